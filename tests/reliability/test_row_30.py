"""Row 30: fifty secrets where secrets are kept. None is in anything that envbuild says or writes."""

from __future__ import annotations

import base64
import contextlib
import functools
import gc
import gzip
import http.server
import json
import logging
import os
import subprocess
import sys
import threading
import traceback
import urllib.parse
import uuid
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from engine_bases import small_system
from envbuild.build.secrets import variable_of
from envbuild.errors import EnvbuildError, SpecError
from envbuild.oci.auth import Authority, Credentials, Keychain
from envbuild.oci.manifest import OCI_LAYER_GZIP, OCI_LAYER_ZSTD, Manifest
from envbuild.oci.referrers import read_artifact, referrers
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository
from envbuild.resolver import Resolver
from parts.fault_proxy import Case, proxying
from tiny import make_base_of
from wheel_world import wheel_world

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envbuild.progress import Event
    from parts.docker_engine import DockerEngine
    from parts.fault_proxy import FaultProxy
    from parts.registry_server import RegistryServer
    from tiny import World

ENVIRONMENT = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_CLIENT_SECRET", "GITHUB_TOKEN", "GITLAB_TOKEN"),
    *("CI_JOB_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "ANACONDA_API_TOKEN", "CONDA_TOKEN", "TWINE_PASSWORD"),
    *("NPM_TOKEN", "OPENAI_API_KEY", "DATABASE_PASSWORD", "SSH_KEY", "GPG_PASSPHRASE", "VAULT_TOKEN"),
    *("SLACK_TOKEN", "UV_INDEX_PASSWORD", "MLFLOW_TRACKING_PASSWORD", "ENVBUILD_PASSWORD_OTHER"),
)


MANY, LOOKS = 20, 60
"""How many values of a type are looked at, and how often."""


class Secrets:
    """Makes secrets and remembers them."""

    def __init__(self) -> None:
        self._random = Random(30)
        self.all: dict[str, str] = {}

    def new(self, place: str) -> str:
        """One that nothing else holds."""
        secret = f"Canary{self._random.getrandbits(96):024x}x{len(self.all)}"
        self.all[place] = secret
        return secret

    def leaks(self, where: str, content: bytes) -> Iterator[str]:
        """The secrets that are in some bytes, as they are or in base64."""
        for place, secret in self.all.items():
            if any(form in content for form in forms(secret)):
                yield f"{place} in {where}"


@functools.cache
def forms(secret: str) -> tuple[bytes, ...]:
    """A secret's bytes as they may be written: plain, backwards, and in base64 behind anything."""
    raw = secret.encode()
    encoded = []
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + raw)
        # What stands at the ends depends on the neighbours.
        encoded.append(text[4 if shift else 0 : -4])
    return (raw, raw[::-1], raw.hex().encode(), urllib.parse.quote(secret).encode(), *encoded)


def test_the_harness_finds_secrets() -> None:
    secrets = Secrets()
    secret = secrets.new("a place")
    for content in (
        secret,
        f"user:{secret}",
        base64.b64encode(f"user:{secret}".encode()).decode(),
        base64.b64encode(f"u:{secret}@host".encode()).decode(),
        base64.urlsafe_b64encode(f"us:{secret}".encode()).decode(),
    ):
        assert list(secrets.leaks("it", b"before " + content.encode() + b" after")) == ["a place in it"]
    assert list(secrets.leaks("it", b"nothing")) == []
    for pack in (gzip.compress, zstandard.ZstdCompressor().compress):
        layer = pack(b"a layer that holds " + b"much " * 1000 + secret.encode())
        assert [leak for each in unpacked(layer) for leak in secrets.leaks("it", each)] == ["a place in it"]
    assert list(unpacked(b"nothing")) == []


class Machine:
    """Somebody's machine: credentials in every place that is known for them, a registry, channels, indexes.

    Attributes:
        said: Everything that was said, by where.
    """

    def __init__(self, root: Path, server: RegistryServer, proxy: FaultProxy, secrets: Secrets) -> None:
        self.root = root
        self.server = server
        self.proxy = proxy
        self.secrets = secrets
        self.world: World = wheel_world(root)
        self.name = f"secret{uuid.uuid4().hex[:12]}"
        self.case = proxy.add(self.name, Case())
        proxy.password = secrets.new("the registry's password")
        self.said: list[tuple[str, bytes]] = []
        self.looks = 0

    def settle(self, patch: pytest.MonkeyPatch) -> None:
        """Put secrets where people put them."""
        self.patch = patch
        new, home = self.secrets.new, self.root / "home"
        (home / ".config/pip").mkdir(parents=True)
        for name in ENVIRONMENT:
            patch.setenv(name, new(f"${name}"))
        encoded = base64.b64encode(f"alice:{self.proxy.password}".encode()).decode()
        auths: dict[str, Any] = {self.proxy.host: {"auth": encoded}}
        for number in range(6):
            other = base64.b64encode(f"bob:{new(f'docker config {number}')}".encode()).decode()
            auths[f"registry{number}.example.com"] = {"auth": other}
        auths["token.example.com"] = {"auth": "", "identitytoken": new("identity token")}
        (home / "config.json").write_text(json.dumps({"auths": auths}))
        hosts = [
            "default",
            *("127.0.0.1", "localhost"),
            *(f"machine h{number}.example.com" for number in range(5)),
        ]
        lines = [
            f"{host if ' ' in host or host == 'default' else 'machine ' + host} login carol password "
            for host in hosts
        ]
        (home / ".netrc").write_text("".join(f"{line}{new(f'netrc {line}')}\n" for line in lines))
        (home / ".netrc").chmod(0o600)
        (home / ".config/pip/pip.conf").write_text(
            f"[global]\nextra-index-url = https://u:{new('pip.conf')}@pypi.example.com/simple\n"
        )
        (home / ".condarc").write_text(f"channels: [https://conda.example.com/t/{new('condarc')}/x]\n")
        token = {"localhost": {"CondaToken": new("rattler's file")}}
        (home / "logins.json").write_text(json.dumps(token))
        patch.setenv("RATTLER_AUTH_FILE", str(home / "logins.json"))
        patch.setenv("HOME", str(home))
        patch.setenv("DOCKER_CONFIG", str(home))
        patch.setenv("NETRC", str(home / ".netrc"))
        patch.setenv("PIP_INDEX_URL", f"https://u:{new('$PIP_INDEX_URL')}@pypi.example.com/simple")
        patch.setenv("UV_EXTRA_INDEX_URL", f"https://u:{new('$UV_EXTRA_INDEX_URL')}@pypi.example.com/simple")

    def hear(self, where: str, content: str | bytes) -> None:
        """Note what was said."""
        self.said.append((where, content.encode() if isinstance(content, str) else content))

    def resolver(self, **changes: Any) -> Resolver:
        place = f"{self.proxy.host}/{self.name}"
        config = self.world.other_machine(workspace=Repository.parse(f"{place}/envs"), **changes)
        config = replace(config, base=f"oci:{self.root}/bases:python")

        told: set[tuple[str, str]] = set()

        def tell(event: Event) -> None:
            self.hear("progress", repr(event))
            if (event.phase, event.state) not in told:  # in the middle of the work
                told.add((event.phase, event.state))
                self.look_at_values()

        return Resolver(config, progress=tell)

    def look_at_values(self) -> None:
        """What each value of the product's own types that is alive shows of itself."""
        self.looks += 1
        if self.looks > LOOKS:
            return
        looked_at: Counter[type] = Counter()
        for each in gc.get_objects():
            kind = type(each)
            if str(kind.__module__).startswith("envbuild.") and looked_at[kind] < MANY:
                looked_at[kind] += 1
                text = repr(each).encode()
                if any(True for _ in self.secrets.leaks("", text)):
                    self.hear(f"repr of {kind.__name__}", text)
        assert len(looked_at) > 10

    def spec(self, channel: str, *pip: str, conda: tuple[str, ...] = ("python",)) -> Path:
        path = self.root / f"{uuid.uuid4().hex}.yml"
        path.write_text(json.dumps({"channels": [channel], "dependencies": [*conda, {"pip": list(pip)}]}))
        return path

    def resolve(self, spec: Path, **changes: Any) -> EnvbuildError | None:
        """One call, with all that can be seen of it."""
        with self.resolver(**changes) as resolver:
            try:
                image = resolver.resolve(spec, timeout=60)
            except EnvbuildError as error:
                self.hear("error", f"{error!r} {error} {error.hint} {vars(error)!r}")
                self.hear("traceback", "".join(traceback.format_exception(error)))
                return error
            finally:
                self.look_at_values()
                for each in (resolver, resolver.config, resolver.registries, resolver.index, resolver.bases):
                    self.hear("repr", repr(each))
            self.hear("repr", repr(image))
            self.hear("spec", repr(resolver.load(spec)))
            self.hear("form", resolver.form(spec).to_json())
        return None

    def listen_to_what_is_attached(self) -> int:
        """Every tag and artifact, read by their digests."""
        direct = RemoteRegistry(Repository.parse(f"{self.server.host}/{self.name}/envs"))
        seen = 0
        for tag in direct.tags():
            manifest = direct.get_manifest(tag)
            for entry in referrers(direct, manifest.descriptor.digest):
                artifact = direct.get_manifest(entry.digest)
                assert isinstance(artifact, Manifest)
                self.hear(f"attached {entry.artifact_type}", read_artifact(direct, artifact))
                seen += 1
        direct.close()
        return seen

    def layers(self) -> set[str]:
        """The media types of all layers of all images, which are searched below."""
        direct = RemoteRegistry(Repository.parse(f"{self.server.host}/{self.name}/envs"))
        images = [direct.get_manifest(tag) for tag in direct.tags() if tag.name.startswith("k1-")]
        direct.close()
        return {layer.media_type for image in images if isinstance(image, Manifest) for layer in image.layers}

    def leaks(self) -> list[str]:
        """Every secret in what was said and in every file that was written."""
        found = [leak for where, content in self.said for leak in self.secrets.leaks(where, content)]
        repositories = self.server.folder / "data"
        written = [
            path for path in (*repositories.rglob("*"), *self.root.rglob("cache-*/**/*")) if path.is_file()
        ]
        assert len(written) > 20
        for path in written:
            content = path.read_bytes()
            for plain in (content, *unpacked(content)):
                found += self.secrets.leaks(path.name, plain)
        return sorted(set(found))


def unpacked(content: bytes) -> Iterable[bytes]:
    """What is in some bytes that are compressed, as layers are; nothing where they are not."""
    with contextlib.suppress(OSError, EOFError, zlib.error):
        yield gzip.decompress(content)
    with contextlib.suppress(zstandard.ZstdError):
        yield zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True).read()


class Files(http.server.SimpleHTTPRequestHandler):
    """Serves a folder to whoever comes, with whatever credentials; ``/t/TOKEN`` is passed over anywhere."""

    def translate_path(self, path: str) -> str:
        parts = path.split("/")
        at = parts.index("t") if "t" in parts else len(parts)
        return super().translate_path("/".join(parts[:at] + parts[at + 2 :]))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def files(tmp_path: Path) -> Iterator[str]:
    handler = functools.partial(Files, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def machine(
    tmp_path: Path, stoppable_registry: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    with proxying(stoppable_registry.port, "127.0.0.1:9") as proxy:
        made = Machine(tmp_path, stoppable_registry, proxy, Secrets())
        made.settle(monkeypatch)
        yield made


def test_no_secret_is_told(machine: Machine, files: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    new = machine.secrets.new
    channel = f"http://dave:{new('channel')}@{files}/channels/tiny"
    tokened = f"http://{files}/t/{new('channel token')}/channels/tiny"
    links = f"--find-links http://erin:{new('find-links')}@{files}/links/"
    index = f"--extra-index-url http://frank:{new('extra index')}@{files}/simple/"
    offline = ("--no-index", links)

    # What succeeds
    assert machine.resolve(machine.spec(channel, *offline, "small")) is None
    assert machine.resolve(machine.spec(tokened, *offline, "top", conda=("python", "dep"))) is None
    deep = f"http://{files}/channels/t/{new('token inside the path')}/tiny"
    assert machine.resolve(machine.spec(deep, *offline, "top", conda=("python", "dep"))) is None
    own = files.replace("127.0.0.1", "localhost")
    for number, host in enumerate((files, own)):  # the logins of netrc and of rattler's file
        plain = f"http://{host}/channels/tiny"
        assert machine.resolve(machine.spec(plain, *offline, conda=("python", f"{plain}::tool"))) is None
        mirrors = {f"https://c{number}.invalid": (f"http://{host}/channels",)}
        away = machine.spec(f"https://c{number}.invalid/tiny", *offline, conda=("python", "tool"))
        assert machine.resolve(away, channels=mirrors) is None
    aliased = machine.spec("tiny", *offline, "small")
    assert (
        machine.resolve(aliased, channel_alias=f"http://dave:{new('channel alias')}@{files}/channels") is None
    )
    machine.patch.setenv("CHANNEL_WORD", new("a variable of a channel"))
    filled = machine.spec("http://dave:${CHANNEL_WORD}@" + f"{files}/channels/tiny", conda=("python", "tool"))
    assert machine.resolve(filled, login_variables={"CHANNEL_WORD": (f"http://{files}",)}) is None
    assert isinstance(machine.resolve(replace_name(machine, filled)), SpecError)
    packed = machine.spec(tokened, *offline, "top", conda=("python", "dep", "tool"))
    assert machine.resolve(packed, compression="zstd") is None
    assert machine.layers() == {OCI_LAYER_GZIP, OCI_LAYER_ZSTD}
    assert machine.listen_to_what_is_attached() >= 4

    # What fails, each in its own way
    wrong = [
        machine.spec(channel, *offline, conda=("python", "no-such-package")),
        machine.spec(channel, *offline, "no-such-distribution"),
        machine.spec(channel, index, "no-such-distribution"),
        machine.spec(channel, f"{links} --bogus", "small"),
        machine.spec(
            channel, f"small @ http://g:{new('direct url')}@{files}/links/none-1.0-py3-none-any.whl"
        ),
        machine.spec(f"http://h:{new('closed port')}@127.0.0.1:9/none"),
        machine.spec(f"http://i:{new('bad host')}@bad host/none"),
        machine.spec(f"https://j:{new('bad port')}@example.com:port/none"),
        machine.spec(f"ftp://k:{new('bad scheme')}@example.com/none"),
    ]
    for spec in wrong:
        assert machine.resolve(spec) is not None, spec.read_text()
    good = machine.spec(channel, *offline, "small")
    faults = ("500", "401 loop", "reset")
    for number, operation in enumerate(("auth", "get tag", "start upload", "put upload", "put manifest")):
        machine.proxy.add(machine.name, Case(operation, faults[number % 3]))
        machine.resolve(replace_name(machine, good))
    machine.proxy.add(machine.name, Case("auth", "401 loop"))
    machine.resolve(replace_name(machine, good))
    machine.proxy.add(machine.name, Case())
    commands(machine, good, wrong)
    objects(machine)
    for record in caplog.records:
        machine.hear(f"log of {record.name}", f"{record.getMessage()} {record.exc_text or ''}")
    assert len(machine.secrets.all) >= 50
    leaks = machine.leaks()
    assert not leaks, "\n".join(leaks)


@pytest.mark.xdist_group("engine")
@pytest.mark.usefixtures("buildx")
def test_no_build_secret_is_told(machine: Machine, files: str, engine: DockerEngine) -> None:
    """Steps that mount secrets: one that prints them, one that fails, and one that leaves them in a layer."""
    (machine.root / "home/cli-plugins").symlink_to(machine.root / "docker/cli-plugins")
    make_base_of(Repository.parse(f"oci:{machine.root}/bases"), "system", small_system(), User="root")
    channel = f"http://dave:{machine.secrets.new('channel')}@{files}/channels/tiny"
    values = {name: machine.secrets.new(f"build secret {name}") for name in ("token", "other-token")}
    lines = [machine.secrets.new(f"line {number} of a key") for number in range(4)]
    armor = ("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----", "")
    values["key"] = "\n".join([armor[0], *lines, *armor[1:]])
    for name, value in values.items():
        machine.patch.setenv(variable_of(name), value)
    mounts = " ".join(f"--mount=type=secret,id={name}" for name in values)
    shown = " ".join(f"/run/secrets/{name}" for name in values)

    def resolve(command: str, **changes: Any) -> EnvbuildError | None:
        document = {
            "base": f"oci:{machine.root}/bases:system",
            "steps": [f"RUN {mounts} echo {uuid.uuid4()}; {command}"],
            "secrets": list(values),
            "conda": {"channels": [channel], "dependencies": ["tool"]},
        }
        path = machine.root / f"{uuid.uuid4().hex}.yaml"
        path.write_text(json.dumps(document))
        return machine.resolve(path, docker_host=engine.host, **changes)

    assert resolve(f"cat {shown}; head -c 6 {shown} > /begin") is None
    several = 'while read -r line; do echo "  $line"; done < /run/secrets/key; echo $(cat /run/secrets/key)'
    assert resolve(f"cat {shown} >&2; {several}; touch /done", compression="zstd") is None
    assert machine.layers() == {OCI_LAYER_GZIP, OCI_LAYER_ZSTD}
    assert machine.listen_to_what_is_attached() >= 4
    assert "exit code 9" in str(resolve(f"cat {shown}; exit 9"))
    assert "secret" in str(resolve(f"cat {shown} > /left"))
    assert any(b"***" in content for where, content in machine.said if where == "progress")
    leaks = machine.leaks()
    assert not leaks, "\n".join(leaks)


def replace_name(machine: Machine, spec: Path) -> Path:
    """The same environment with another key."""
    document = json.loads(spec.read_text()) | {"variables": {"N": uuid.uuid4().hex}}
    path = machine.root / f"{uuid.uuid4().hex}.yml"
    path.write_text(json.dumps(document))
    return path


def commands(machine: Machine, good: Path, wrong: list[Path]) -> None:
    """The command line, whose every word is heard."""
    environment = {
        **os.environ,
        "ENVBUILD_WORKSPACE": f"{machine.proxy.host}/{machine.name}/envs",
        "ENVBUILD_BASE": f"oci:{machine.root}/bases:python",
        "ENVBUILD_CACHE_DIR": str(machine.root / "cache-of-commands"),
    }
    for arguments in (
        ("resolve", str(good)),
        ("resolve", "--json", "--dry-run", str(replace_name(machine, good))),
        ("key", str(good)),
        ("lint", str(good), *map(str, wrong)),
        ("diff", str(good), str(wrong[0])),
        ("lock", str(good)),
        ("resolve", str(wrong[4])),
        ("doctor",),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "envbuild", *arguments], env=environment, capture_output=True, check=False
        )
        machine.hear(f"envbuild {arguments[0]}", done.stdout + done.stderr)
    for lock in machine.root.glob("*.lock"):
        machine.hear("lock", lock.read_bytes())


def objects(machine: Machine) -> None:
    """What holds credentials, as debuggers and careless log lines show it."""
    repository = Repository.parse(f"{machine.proxy.host}/{machine.name}/envs")
    keychain = Keychain()
    found = keychain.find(repository)
    assert found is not None
    assert found.password == machine.proxy.password
    authority = Authority(repository, "http://x", found)
    authority.header(("x",))
    remote = RemoteRegistry(repository, credentials=found)
    for each in (found, keychain, authority, remote, remote._host, Credentials("u", found.password)):
        machine.hear(f"repr of {type(each).__name__}", f"{each!r} {each}")
    remote.close()
