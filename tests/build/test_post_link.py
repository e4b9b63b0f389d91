"""Post-link scripts on a real Docker Engine, and what is known of them without one."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import conda_oracle
from conda_packages import Entry, Package
from engine_bases import fresh, small_system
from envbuild.build.base import decompressed
from envbuild.build.scripts import has_script, script_of
from envbuild.conda.layer import PathHashes
from envbuild.config import Config
from envbuild.errors import BuildError, BuildLimit, StepFailed
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import Manifest
from envbuild.progress import Event
from envbuild.reference import Repository
from envbuild.resolver import ResolvedImage, Resolver
from parts.cut_socket import CutSocket
from parts.docker_engine import DockerEngine
from tiny import World, make_base_of


def scripted(
    name: str,
    text: str,
    *depends: str,
    noarch: Any = None,
    version: str = "1.0",
    number: int = 0,
    more: dict[str, str] | None = None,
) -> Package:
    """A package with a post-link script, and with more files."""
    folder = "python-scripts" if noarch == "python" else "bin"
    entry = Entry(f"{folder}/.{name}-post-link.sh", text.encode(), 0o755)
    files = {"share/texts/" + name: name, **(more or {})}
    extra = tuple(Entry(path, content.encode()) for path, content in files.items())
    index = {"depends": list(depends), "build_number": number}
    return Package((entry, *extra), name=name, version=version, noarch=noarch, index=index)


PACKAGES = (
    scripted(
        "says",
        'env > "$PREFIX/seen-env"\npwd > "$PREFIX/seen-folder"\nid -u > "$PREFIX/seen-user"\n'
        'printf "said\\nby says" > "$PREFIX/.messages.txt"\n'
        'read line || echo none > "$PREFIX/seen-input"\n',
        version="1.5",
        number=3,
    ),
    scripted("alast", 'echo alast >> "$PREFIX/order"\n', "middle"),
    scripted("middle", 'echo middle >> "$PREFIX/order"\n', "zfirst"),
    scripted("zfirst", 'echo zfirst >> "$PREFIX/order"\n'),
    scripted("fails", 'echo "$PKG_NAME" is unhappy >&2\necho sorry > "$PREFIX/.messages.txt"\nexit 7\n'),
    scripted(
        "measures",
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max > $PREFIX/limit 2>&1\n"
        "exit 0\n",
    ),
    scripted("nothing", "exit 0\n"),
    scripted("goes-on", 'missing-command\necho still > "$PREFIX/went-on"\n'),
    scripted("slow", "sleep 60\n"),
    scripted(
        "returns", 'echo first > "$PREFIX/returned"\nreturn 0\necho more > "$PREFIX/returned"\nexit 9\n'
    ),
    scripted("returns-badly", "false || return 3\nexit 0\n"),
    scripted("is-killed", "kill -9 $$\n"),
    scripted(
        "wants-activation",
        'echo "$SIMPLE $MADE $LAST $GIVEN $CONDA_DEFAULT_ENV $CONDA_SHLVL $#" > "$PREFIX/activated"\n'
        'env > "$PREFIX/exported"\n',
        more={
            "etc/conda/env_vars.d/given.json": '{"GIVEN": "json", "OVER": "json"}',
            "etc/conda/activate.d/b.sh": 'export SIMPLE="${SIMPLE:-}1" LAST=b\nhidden=b\n',
            "etc/conda/activate.d/Z.sh": 'export MADE="$MADE$(echo from-$GIVEN-$OVER)" LAST=Z\n',
        },
    ),
    scripted("snake", 'echo hissed > "$PREFIX/hissed"\n', "python", noarch="python"),
    Package((Entry("bin/.other-post-link.sh", b"exit 9\n", 0o755),), name="not-its-own"),
)


@dataclass
class Machine:
    """A world with an engine and packages with scripts."""

    world: World
    config: Config

    def resolve(self, *dependencies: str, config: Config | None = None, **more: Any) -> ResolvedImage:
        events = more.pop("events", [])
        spec = self.world.spec(*dependencies, name=f"{'-'.join(dependencies)}.yml", **more)
        with Resolver(config or self.config, progress=events.append) as resolver:
            return resolver.resolve(spec)

    def lonely(self) -> Config:
        """The settings of a machine without an engine, which has seen nothing."""
        host = f"unix://{self.world.root}/no.sock"
        return self.world.other_machine(docker_host=host, base=self.config.base)


@pytest.fixture
def machine(tmp_path: Path, engine: DockerEngine) -> Machine:
    """A machine that has seen nothing yet."""
    world = World.make(tmp_path)
    folder = tmp_path / "channels" / "tiny"
    for package in PACKAGES:
        package.put(folder)
    asyncio.run(conda_oracle.index(folder))
    bases = Repository.parse(f"oci:{tmp_path}/bases")
    make_base_of(bases, "small", small_system())
    return Machine(world, replace(world.config, base=f"{bases}:small", docker_host=engine.host))


def manifest_of(image: ResolvedImage) -> Manifest:
    found = LayoutRegistry(image.reference.repository).get_manifest(image.reference.digest)
    assert isinstance(found, Manifest)
    return found


def config_of(image: ResolvedImage) -> Any:
    with LayoutRegistry(image.reference.repository).open_blob(manifest_of(image).config) as stream:
        return json.load(stream)


def keys_in(config: Config) -> list[str]:
    """The tags of environments in the workspace."""
    tags = [str(tag) for tag in LayoutRegistry(config.workspace).tags()]
    return [tag for tag in tags if tag.startswith(("k1-", "l1-"))]


def layers_of(image: ResolvedImage) -> list[dict[str, tuple[tarfile.TarInfo, bytes]]]:
    """Every layer's entries under the prefix, lowest first."""
    registry, found = LayoutRegistry(image.reference.repository), []
    for layer in manifest_of(image).layers:
        with registry.open_blob(layer) as stream:
            content = b"".join(decompressed(stream, layer.media_type))
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            found.append(
                {
                    entry.name.removeprefix("opt/env/"): (
                        entry,
                        archive.extractfile(entry).read() if entry.isreg() else b"",  # type: ignore[union-attr]
                    )
                    for entry in archive
                    if entry.name.startswith("opt/env")
                }
            )
    return found


@pytest.mark.xdist_group("engine")
def test_a_script_gets_what_conda_promises(machine: Machine) -> None:
    events: list[Event] = []
    # A step that BuildKit remembers says nothing, so this one is new to it.
    image = machine.resolve("says", events=events, variables={"FRESH": fresh()})
    *_, below, top = layers_of(image)
    seen = dict(line.split("=", 1) for line in top["seen-env"][1].decode().splitlines())
    assert seen["PREFIX"] == seen["CONDA_PREFIX"] == seen["ROOT_PREFIX"] == "/opt/env"
    assert (seen["PKG_NAME"], seen["PKG_VERSION"], seen["PKG_BUILDNUM"]) == ("says", "1.5", "3")
    assert seen["PATH"].startswith("/opt/env/bin:")
    assert seen["BASE"] == "yes", "the base's variables are there"
    assert not [name for name in seen if name.startswith("ENVBUILD_")]
    assert top["seen-folder"][1] == b"/opt/env/bin\n"
    assert top["seen-user"][1] == b"0\n"
    assert top["seen-input"][1] == b"none\n"
    assert ".messages.txt" not in top
    said = [event.text for event in events if event.subject == "post-link script of says-1.5-0"]
    assert said[-3:] == ["said", "by says", ""]
    assert "bin/.says-post-link.sh" in {name for layer in layers_of(image) for name in layer}
    assert "conda-meta/history" in below


@pytest.mark.xdist_group("engine")
def test_a_script_is_sourced_in_the_activated_environment(machine: Machine) -> None:
    image = machine.resolve("returns", "wants-activation", variables={"OVER": "definition"})
    top = layers_of(image)[-1]
    assert top["returned"][1] == b"first\n"
    assert top["activated"][1] == b"1 from-json-definition b json /opt/env 1 0\n"
    assert b"hidden" not in top["exported"][1]
    assert "SIMPLE=1" in config_of(image)["config"]["Env"]


@pytest.mark.xdist_group("engine")
def test_a_script_that_returns_an_error_or_is_killed(machine: Machine) -> None:
    with pytest.raises(StepFailed, match=r"script of returns-badly-1\.0-0 failed with exit code 3"):
        machine.resolve("returns-badly")
    with pytest.raises(StepFailed, match=r"script of is-killed-1\.0-0 failed with exit code 137") as caught:
        machine.resolve("is-killed")
    assert "memory" in (caught.value.hint or "")


@pytest.mark.xdist_group("engine")
def test_an_engine_that_goes_away_is_not_the_script(machine: Machine, engine: DockerEngine) -> None:
    with CutSocket(machine.world.root / "e.sock", engine.host.removeprefix("unix://")) as way:

        def cut_once_it_runs(event: Event) -> None:
            if event.subject == "post-link script of slow-1.0-0":
                way.cut()

        config = replace(machine.config, docker_host=f"unix://{way.path}")
        spec = machine.world.spec("slow", variables={"FRESH": fresh()})
        with Resolver(config, progress=cut_once_it_runs) as resolver, pytest.raises(BuildError) as caught:
            resolver.resolve(spec)
    message = str(caught.value)
    assert message.startswith("the engine failed while the post-link script of slow-1.0-0 ran: ")
    assert caught.value.retryable
    assert not isinstance(caught.value, StepFailed)
    assert caught.value.hint is None


@pytest.mark.xdist_group("engine")
def test_the_images_settings_stay_as_they_are(machine: Machine) -> None:
    plain, image = (config_of(machine.resolve(name)) for name in ("tool", "says"))
    for config in (plain, image):
        del config["config"]["Labels"]
    assert image["config"] == plain["config"]
    assert image["config"]["User"] == "1000"
    assert image["created"] == plain["created"]
    assert image["history"][-1]["created_by"] == "envbuild post-link scripts of says"
    assert len(image["rootfs"]["diff_ids"]) == len(plain["rootfs"]["diff_ids"]) + 1


@pytest.mark.xdist_group("engine")
def test_scripts_run_in_the_order_of_installation_in_one_layer(machine: Machine) -> None:
    image = machine.resolve("alast", "snake")
    top = layers_of(image)[-1]
    assert top["order"][1].split() == [b"zfirst", b"middle", b"alast"]
    assert top["hissed"][1] == b"hissed\n"
    assert top["order"][0].mtime == 315_532_800


@pytest.mark.xdist_group("engine")
def test_two_machines_give_one_digest_and_known_layers_still_have_scripts(machine: Machine) -> None:
    first = machine.resolve("alast")
    other = machine.world.other_machine(
        base=machine.config.base,
        docker_host=machine.config.docker_host,
        workspace=Repository.parse(f"oci:{machine.world.root}/elsewhere"),
    )
    assert machine.resolve("alast", config=other).reference.digest == first.reference.digest
    again = machine.resolve("alast", "middle", variables={"A": "1"})
    assert again.layers_made == 0, "nothing was fetched"
    assert "order" in layers_of(again)[-1]
    same = machine.resolve("alast", "zfirst", config=machine.lonely())
    assert same.lock_key == first.lock_key, "an equal solution needs no engine"
    assert manifest_of(same).layers == manifest_of(first).layers


@pytest.mark.xdist_group("engine")
def test_scripts_have_the_limits_of_steps(machine: Machine) -> None:
    image = machine.resolve("measures", config=replace(machine.config, step_memory=256 << 20, step_cpus=0.5))
    assert str(256 << 20).encode() in layers_of(image)[-1]["limit"][1]


@pytest.mark.xdist_group("engine")
@pytest.mark.parametrize("memory", [None, 256 << 20], ids=["buildkit", "older builder"])
def test_a_failing_script_says_whose_it_is_and_what_it_said(machine: Machine, memory: int | None) -> None:
    with pytest.raises(BuildError) as caught:
        machine.resolve("fails", "zfirst", config=replace(machine.config, step_memory=memory))
    assert str(caught.value) == (
        "the post-link script of fails-1.0-0 failed with exit code 7; its last lines:\n"
        "  fails is unhappy\n  sorry\n  "
    )
    assert caught.value.hint
    assert not keys_in(machine.config)


@pytest.mark.xdist_group("engine")
def test_the_exit_code_decides_and_not_a_command_before(machine: Machine) -> None:
    image = machine.resolve("goes-on", "not-its-own")
    assert layers_of(image)[-1]["went-on"][1] == b"still\n"


@pytest.mark.xdist_group("engine")
def test_scripts_that_change_nothing_add_no_layer(machine: Machine) -> None:
    image = machine.resolve("nothing")
    assert len(manifest_of(image).layers) == 3
    assert len(config_of(image)["history"]) == 3


@pytest.mark.xdist_group("engine")
def test_steps_after_come_after_scripts(machine: Machine) -> None:
    spec = machine.world.root / "envbuild.yaml"
    spec.write_text(
        f"base: {machine.config.base}\nconda:\n  channels: [tiny]\n  dependencies: [zfirst]\n"
        "steps_after: |\n  USER 0\n  RUN cat /opt/env/order > /opt/env/after\n"
    )
    with Resolver(machine.config) as resolver:
        image = resolver.resolve(spec)
    *_, scripts, after = layers_of(image)
    assert "order" in scripts
    assert after["after"][1] == b"zfirst\n"


@pytest.mark.xdist_group("engine")
def test_a_script_may_not_take_longer_than_steps_may(machine: Machine) -> None:
    with pytest.raises(BuildLimit, match="2 seconds"):
        machine.resolve("slow", config=replace(machine.config, step_timeout=2.0))


@pytest.mark.xdist_group("engine")
def test_without_a_shell_the_packages_are_named(machine: Machine) -> None:
    make_base_of(Repository.parse(f"oci:{machine.world.root}/bases"), "bare", b"\0" * 1024)
    with pytest.raises(BuildError, match=r"scripts of zfirst-1\.0-0 could not be run") as caught:
        machine.resolve("zfirst", config=replace(machine.config, base=f"oci:{machine.world.root}/bases:bare"))
    assert "shell" in (caught.value.hint or "")


def test_without_an_engine_the_package_is_named(tmp_path: Path) -> None:
    world = World.make(tmp_path)
    config = replace(world.config, docker_host=f"unix://{tmp_path}/no.sock")
    with Resolver(config) as resolver, pytest.raises(BuildError) as caught:
        resolver.resolve(world.spec("scripted"))
    assert "scripted-1.0-0 runs a script when it is installed (bin/.scripted-post-link.sh)" in str(
        caught.value
    )
    assert "none answered at unix://" in str(caught.value)
    assert "DOCKER_HOST" in (caught.value.hint or "")
    assert not keys_in(world.config)


def test_a_script_is_found_among_path_hashes() -> None:
    paths = [f"share/{number}" for number in range(1000)]
    assert not has_script("thing", PathHashes.of(paths, ()).files)
    assert has_script("thing", PathHashes.of([*paths, script_of("thing")], ()).files)
    assert not has_script("thing", PathHashes.of([script_of("other")], ()).files)
    wanted = PathHashes.of([script_of("thing")], ()).files
    assert not has_script("thing", b"\0" * 4 + wanted + b"\0" * 4), "hashes are looked at whole"
    assert has_script("thing", b"\0" * 4 + wanted + b"\0" * 4 + wanted)
    assert not has_script("thing", b"")
