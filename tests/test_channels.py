"""Whole builds from channels on a server: mirrors and logins change where bytes come from, no more."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest

from cli_calls import ENVBUILD
from envbuild.conda.solve import _gateway
from envbuild.config import Config
from envbuild.errors import ChannelError
from envbuild.lockfile import FILE_NAME, LockPolicy
from envbuild.locking import make_lock
from envbuild.resolver import ResolvedImage, Resolver, Source
from tiny import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "C4nary-s3cret"


@dataclass
class Server:
    """Serves the world's channels to who has the login, if one is wanted."""

    folder: Path
    url: str = ""
    header: str | None = None
    asked: list[str] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)


class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, server: Server, *arguments: object) -> None:
        self.of = server
        super().__init__(*arguments, directory=str(server.folder))  # type: ignore[arg-type]

    def send_head(self):  # type: ignore[no-untyped-def]
        self.of.asked.append(self.path)
        if self.headers.get("Authorization") != self.of.header:
            return self.send_error(401)
        return super().send_head()

    def send_response(self, code: int, message: str | None = None) -> None:
        self.of.answers.append(code)
        super().send_response(code, message)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path)


@pytest.fixture
def server(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("HOME", str(world.root))
    monkeypatch.delenv("NETRC", raising=False)
    made = Server(world.root / "channels")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, made)) as listening:
        made.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        listening.shutdown()
        thread.join()


def resolve(config: Config, spec: Path, policy: LockPolicy | None = None) -> ResolvedImage:
    with Resolver(config, locks=policy) as resolver:
        return resolver.resolve(spec)


def elsewhere(world: World, **changes: object) -> Config:
    """A machine that has seen nothing, with a workspace of its own."""
    config = world.other_machine(**changes)
    return replace(
        config, workspace=replace(config.workspace, path=f"{world.root}/images-{config.cache_dir.name}")
    )


def test_a_mirror_gives_the_same_image(world: World, server: Server) -> None:
    spec = world.spec("tool", "pyth", channels=[f"{server.url}/tiny"])
    direct = resolve(elsewhere(world), spec)
    asked = len(server.asked)
    folder = (f"file://{world.root}/channels",)
    mirrored = resolve(elsewhere(world, channels={server.url: folder}), spec)
    assert (mirrored.key, mirrored.reference.digest) == (direct.key, direct.reference.digest)
    assert mirrored.source is direct.source is Source.BUILT
    assert len(server.asked) == asked


def test_a_lock_is_built_from_mirrors_where_its_channels_cannot_be_reached(
    world: World, server: Server
) -> None:
    channel = "https://origin.invalid/tiny"
    mirrors = {"https://origin.invalid": (server.url,)}
    spec = world.spec("tool", "pyth", channels=[channel])
    with Resolver(elsewhere(world, channels=mirrors)) as resolver:
        lock = make_lock(resolver, resolver.load(spec), world.root)
    (world.root / FILE_NAME).write_bytes(lock.to_bytes())
    assert channel.encode() in lock.to_bytes()
    assert server.url.encode() not in lock.to_bytes()
    image = resolve(elsewhere(world, channels=mirrors), spec, LockPolicy(required=True))
    assert image.source is Source.BUILT
    with pytest.raises(ChannelError, match=r"could not be fetched from https://origin\.invalid/tiny"):
        resolve(elsewhere(world), spec, LockPolicy(required=True))


def test_a_private_channel_needs_no_login_in_the_definition(
    world: World, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = f"{server.url}/tiny"
    spec = world.spec("thing", f"{plain}::tool", channels=[plain])
    public = resolve(elsewhere(world), spec)
    server.header = "Basic amFuZTpDNG5hcnktczNjcmV0"
    with pytest.raises(ChannelError, match="401 Unauthorized"):
        resolve(elsewhere(world), spec)
    (world.root / ".netrc").write_text(f"machine 127.0.0.1 login jane password {SECRET}\n")
    private = resolve(elsewhere(world), spec)
    assert (private.key, private.reference.digest) == (public.key, public.reference.digest)
    (world.root / ".netrc").unlink()
    monkeypatch.setenv("WORD", SECRET)
    filled = world.spec("thing", f"{plain}::tool", channels=[plain.replace("://", "://jane:${WORD}@")])
    by_variable = resolve(elsewhere(world, login_variables={"WORD": (server.url,)}), filled)
    assert (by_variable.key, by_variable.reference.digest) == (public.key, public.reference.digest)


def test_a_lock_has_the_logins_of_the_channels_that_only_dependencies_name(
    world: World, server: Server
) -> None:
    server.header = "Basic amFuZTpDNG5hcnktczNjcmV0"
    private = server.url.replace("://", f"://jane:{SECRET}@")
    spec = world.spec(f"{private}/tiny::tool", "thing", channels=["tiny"])
    with Resolver(elsewhere(world)) as resolver:
        lock = make_lock(resolver, resolver.load(spec), world.root)
    assert SECRET.encode() not in lock.to_bytes()
    (world.root / FILE_NAME).write_bytes(lock.to_bytes())
    assert resolve(elsewhere(world), spec, LockPolicy(required=True)).source is Source.BUILT


def test_authorities_that_cannot_be_read_are_named_when_channels_are_asked(world: World) -> None:
    spec = world.spec("tool", channels=[f"file://{world.root}/channels/tiny"])
    place = ("--workspace", f"oci:{world.root}/images", "--base", "scratch")
    answer = subprocess.run(
        [*ENVBUILD, "resolve", "--dry-run", *place, str(spec)],
        env={"PATH": os.environ["PATH"], "SSL_CERT_FILE": f"{world.root}/none.pem", "HOME": str(world.root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 4, answer.stderr
    assert f"SSL_CERT_FILE={world.root}/none.pem cannot be read" in answer.stderr


def test_a_proxy_on_the_way_to_a_channel_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:{SECRET}@127.0.0.1:1")
    with pytest.raises(ChannelError) as refusal:
        resolve(elsewhere(world, timeout=20.0), world.spec("tool", channels=["https://origin.invalid/tiny"]))
    assert "through the proxy http://127.0.0.1:1:" in (refusal.value.hint or "")
    assert SECRET not in f"{refusal.value}"


def test_a_server_that_answers_no_more_than_unchanged_is_read_anew(world: World, server: Server) -> None:
    for path in (world.root / "channels").rglob("repodata*"):
        os.utime(path)  # what has just changed is asked for again soon
    channel = f"{server.url}/tiny"
    resolve(world.config, world.spec("tool=1", channels=[channel]))
    time.sleep(1.5)
    _gateway.cache_clear()
    assert 304 not in server.answers
    resolve(world.config, world.spec("tool=2", channels=[channel]))
    assert 304 in server.answers
