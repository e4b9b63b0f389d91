"""Reading one manifest, thinly and with the full client: the same answers, whatever goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.utils import formatdate
from typing import TYPE_CHECKING, NoReturn, Protocol

import pytest

from envbuild.deadline import NO_DEADLINE, Deadline
from envbuild.digest import Descriptor, Digest
from envbuild.errors import (
    DeadlineExceeded,
    EnvbuildError,
    IntegrityError,
    NotFound,
    RegistryError,
    Unauthorized,
    Unavailable,
)
from envbuild.oci.auth import Credentials, Keychain
from envbuild.oci.manifest import (
    MAX_MANIFEST,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_MANIFEST,
    ImageIndex,
    Manifest,
    encode,
)
from envbuild.oci.open import Settings
from envbuild.oci.probe import Prober, probe
from envbuild.oci.remote import RemoteRegistry
from envbuild.progress import Event
from envbuild.reference import Repository, Tag
from oci_contract import put_image
from parts.fault_server import Asked, Call, FaultServer, serving
from parts.registry_server import PASSWORD, USERNAME, RegistryServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": f"sha256:{'0' * 64}", "size": 2}
RAW = encode({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": []})
TAG = Tag("k1-a")
QUICK = Settings(connect_timeout=2, read_timeout=2, retries=2, patience=1.0)
SECRET = Credentials("alice", "s3cret")


class Reader(Protocol):
    """Reads a manifest in one of the two ways."""

    def __call__(
        self,
        repository: Repository,
        reference: Tag | Digest,
        *,
        credentials: Credentials | Keychain | None = None,
        deadline: Deadline = NO_DEADLINE,
        settings: Settings | None = QUICK,
    ) -> Manifest | ImageIndex: ...


def read_in_full(
    repository: Repository,
    reference: Tag | Digest,
    *,
    credentials: Credentials | Keychain | None = None,
    deadline: Deadline = NO_DEADLINE,
    settings: Settings | None = QUICK,
) -> Manifest | ImageIndex:
    registry = RemoteRegistry(repository, credentials=credentials, settings=settings)
    try:
        return registry.by(deadline).get_manifest(reference)
    finally:
        registry.close()


def read_thinly(
    repository: Repository,
    reference: Tag | Digest,
    *,
    credentials: Credentials | Keychain | None = None,
    deadline: Deadline = NO_DEADLINE,
    settings: Settings | None = QUICK,
) -> Manifest | ImageIndex:
    return probe(repository, reference, credentials=credentials, deadline=deadline, settings=settings)


@pytest.fixture(params=[read_thinly, read_in_full], ids=["thin", "full"])
def read(request: pytest.FixtureRequest) -> Reader:
    reader: Reader = request.param
    return reader


def good(call: Call, asked: Asked, raw: bytes = RAW) -> None:
    call.answer(200, raw, {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": str(Digest.of(raw))})


def envs(server: FaultServer) -> Repository:
    return Repository.parse(f"{server.host}/team/envs")


class TestRealRegistry:
    @pytest.fixture
    def repository(self, registry: RegistryServer) -> Repository:
        return registry.repository("probe")

    @pytest.fixture
    def manifest(self, repository: Repository) -> Manifest:
        remote = RemoteRegistry(repository)
        manifest = put_image(remote, "image", annotations={"io.envbuild.key": "a" * 64})
        remote.put_manifest(manifest, TAG)
        remote.close()
        return manifest

    def test_hit(self, read: Reader, repository: Repository, manifest: Manifest) -> None:
        assert read(repository, TAG) == manifest
        assert read(repository, manifest.descriptor.digest) == manifest

    @pytest.mark.usefixtures("manifest")
    def test_hit_is_one_request(self, registry: RegistryServer, repository: Repository) -> None:
        before = len(registry.requests)
        probe(repository, TAG)
        assert registry.requests[before:] == [f"GET /v2/{repository.path}/manifests/{TAG} 200"]

    @pytest.mark.usefixtures("manifest")
    def test_miss(self, read: Reader, repository: Repository) -> None:
        for reference in (Tag("none"), Digest.of(b"none")):
            with pytest.raises(NotFound):
                read(repository, reference)

    def test_threads_share_a_prober(self, repository: Repository, manifest: Manifest) -> None:
        with Prober() as prober, ThreadPoolExecutor(8) as pool:
            seen = list(pool.map(lambda _: prober.probe(repository, TAG), range(64)))
        assert seen == [manifest] * 64

    @pytest.mark.usefixtures("manifest")
    def test_close_twice(self, repository: Repository) -> None:
        prober = Prober()
        prober.probe(repository, TAG)
        prober.close()
        prober.close()

    def test_password(self, read: Reader, htpasswd_registry: RegistryServer) -> None:
        repository = htpasswd_registry.repository("probe")
        credentials = Credentials(USERNAME, PASSWORD)
        remote = RemoteRegistry(repository, credentials=credentials)
        manifest = put_image(remote, "image")
        remote.put_manifest(manifest, TAG)
        remote.close()
        assert read(repository, TAG, credentials=credentials) == manifest

    @pytest.mark.parametrize(
        "credentials", [None, Credentials(USERNAME, "wrong"), Credentials("eve", PASSWORD)]
    )
    def test_refused_quickly(
        self, read: Reader, htpasswd_registry: RegistryServer, credentials: Credentials | None
    ) -> None:
        started = time.monotonic()
        with pytest.raises(Unauthorized) as caught:
            read(htpasswd_registry.repository(), TAG, credentials=credentials, settings=None)
        assert time.monotonic() - started < 5
        assert caught.value.hint is not None
        assert not caught.value.retryable
        assert "wrong" not in str(caught.value)

    def test_docker_config_is_used(
        self,
        read: Reader,
        htpasswd_registry: RegistryServer,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        folder = tmp_path_factory.mktemp("docker-config")
        auths = {htpasswd_registry.host: {"username": USERNAME, "password": PASSWORD}}
        (folder / "config.json").write_text(json.dumps({"auths": auths}))
        monkeypatch.setenv("DOCKER_CONFIG", str(folder))
        with pytest.raises(NotFound):
            read(htpasswd_registry.repository(), TAG)

    def test_stopped_and_started(self, stoppable_registry: RegistryServer) -> None:
        repository = stoppable_registry.repository()
        with Prober(replace(QUICK, patience=None)) as prober:
            with pytest.raises(NotFound):
                prober.probe(repository, TAG)
            stoppable_registry.stop()
            with pytest.raises(Unavailable) as caught:
                prober.probe(repository, TAG, Deadline.after(1))
            assert caught.value.retryable
            stoppable_registry.start()
            with pytest.raises(NotFound):
                prober.probe(repository, TAG)

    def test_full_client_survives_a_restart(self, stoppable_registry: RegistryServer) -> None:
        settings = replace(QUICK, patience=None)
        remote = RemoteRegistry(stoppable_registry.repository(), settings=settings)
        manifest = put_image(remote, "image")
        remote.put_manifest(manifest, TAG)
        stoppable_registry.stop()
        with pytest.raises(Unavailable):
            remote.by(Deadline.after(1)).get_manifest(TAG)
        stoppable_registry.start()
        assert remote.get_manifest(TAG) == manifest
        remote.close()


class TestTrouble:
    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 520])
    def test_busy_twice_then_well(self, read: Reader, status: int) -> None:
        def script(call: Call, asked: Asked) -> None:
            good(call, asked) if len(call.server.asked) > 2 else call.fail(status)

        with serving(script) as server:
            assert read(envs(server), TAG).raw == RAW
            assert len(server.asked) == 3

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_busy_for_ever(self, read: Reader, status: int) -> None:
        with serving(lambda call, _: call.fail(status)) as server:
            with pytest.raises(Unavailable, match=str(status)):
                read(envs(server), TAG)
            assert len(server.asked) == QUICK.retries + 1

    @pytest.mark.parametrize("when", ["1", "date"])
    def test_retry_after_is_honoured(self, read: Reader, when: str) -> None:
        times: list[float] = []

        def script(call: Call, asked: Asked) -> None:
            times.append(time.monotonic())
            wait = when if when != "date" else formatdate(time.time() + 2, usegmt=True)
            good(call, asked) if len(times) > 1 else call.fail(429, headers={"Retry-After": wait})

        with serving(script) as server:
            settings = replace(QUICK, patience=None)
            assert read(envs(server), TAG, deadline=Deadline.after(30), settings=settings).raw == RAW
        assert 0.9 < times[1] - times[0] < 10

    @pytest.mark.parametrize(("wait", "seconds"), [("36000", None), ("20", 3.0), ("soon", 30.0)])
    def test_retry_after_too_long(self, read: Reader, wait: str, seconds: float | None) -> None:
        started = time.monotonic()
        with (
            serving(lambda call, _: call.fail(429, "TOOMANYREQUESTS", {"Retry-After": wait})) as server,
            pytest.raises(Unavailable, match="TOOMANYREQUESTS"),
        ):
            read(envs(server), TAG, deadline=Deadline.after(seconds))
        assert time.monotonic() - started < 5

    @pytest.mark.parametrize("status", [401, 403])
    def test_refusal_is_not_retried(self, read: Reader, status: int) -> None:
        with serving(lambda call, _: call.fail(status, "DENIED")) as server:
            with pytest.raises(Unauthorized):
                read(envs(server), TAG, credentials=SECRET)
            assert len(server.asked) == 1

    def test_refused_after_each_login(self, read: Reader) -> None:
        def script(call: Call, asked: Asked) -> None:
            if asked.path.startswith("/token"):
                return call.answer(200, b'{"token":"t"}')
            realm = f"{call.server.url}/token"
            return call.fail(401, "DENIED", {"WWW-Authenticate": f'Bearer realm="{realm}"'})

        with serving(script) as server:
            with pytest.raises(Unauthorized, match="DENIED"):
                read(envs(server), TAG)
            assert len(server.asked) == 3

    def test_other_answers_are_errors(self, read: Reader) -> None:
        with (
            serving(lambda call, _: call.fail(418, "TEAPOT\x1b[31m\r\n")) as server,
            pytest.raises(RegistryError, match=r"418 \(TEAPOT") as caught,
        ):
            read(envs(server), TAG)
        assert not isinstance(caught.value, NotFound | Unavailable)
        assert str(caught.value).isprintable()

    def test_connection_dies_once(self, read: Reader) -> None:
        def script(call: Call, asked: Asked) -> None:
            good(call, asked) if len(call.server.asked) > 1 else call.hang_up()

        with serving(script) as server:
            assert read(envs(server), TAG).raw == RAW

    def test_connection_always_dies(self, read: Reader) -> None:
        with serving(lambda call, _: call.hang_up()) as server, pytest.raises(Unavailable):
            read(envs(server), TAG)

    def test_truncated_once(self, read: Reader) -> None:
        def script(call: Call, asked: Asked) -> None:
            if len(call.server.asked) > 1:
                return good(call, asked)
            call.answer(200, RAW[:20], {"Content-Length": str(len(RAW)), "Content-Type": OCI_MANIFEST})
            return call.hang_up()

        with serving(script) as server:
            assert read(envs(server), TAG).raw == RAW

    def test_always_truncated(self, read: Reader) -> None:
        def script(call: Call, asked: Asked) -> None:
            call.answer(200, RAW[:20], {"Content-Length": str(len(RAW))})
            call.hang_up()

        with serving(script) as server, pytest.raises(Unavailable):
            read(envs(server), Digest.of(RAW))

    def test_not_http(self, read: Reader) -> None:
        def script(call: Call, asked: Asked) -> None:
            call.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
            call.hang_up()

        with serving(script) as server, pytest.raises(Unavailable):
            read(envs(server), TAG)

    def test_kept_connection_was_closed(self) -> None:
        def script(call: Call, asked: Asked) -> None:
            good(call, asked)
            call.hang_up()

        with serving(script) as server, Prober(Settings(retries=0)) as prober:
            for _ in range(5):
                assert prober.probe(envs(server), TAG).raw == RAW


class TestDeadline:
    def stall(self, call: Call, _: Asked) -> None:
        call.server.ended.wait(30)
        call.hang_up()

    def stall_in_body(self, call: Call, asked: Asked) -> None:
        call.answer(200, RAW[:20], {"Content-Length": str(len(RAW))})
        self.stall(call, asked)

    def drip_headers(self, call: Call, _: Asked) -> None:
        call.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not call.server.ended.wait(0.1):
            call.wfile.write(b"x")

    def drip_body(self, call: Call, _: Asked) -> None:
        call.answer(200, b"", {"Content-Length": str(len(RAW))})
        for byte in RAW:
            call.wfile.write(bytes([byte]))
            if call.server.ended.wait(0.1):
                return

    @pytest.mark.parametrize("name", ["stall", "stall_in_body", "drip_headers", "drip_body"])
    def test_call_ends_by_its_deadline(self, read: Reader, name: str) -> None:
        started = time.monotonic()
        with serving(getattr(self, name)) as server, pytest.raises(DeadlineExceeded) as caught:
            read(envs(server), TAG, deadline=Deadline.after(1), settings=Settings())
        assert time.monotonic() - started < 4
        assert caught.value.retryable

    @pytest.mark.parametrize("name", ["stall", "stall_in_body"])
    def test_people_are_told_of_a_host_that_does_not_answer(
        self, read: Reader, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("envbuild.oci.client.PATIENCE", 0.2)
        told: list[Event] = []
        settings = Settings(read_timeout=1.0, retries=0, progress=told.append)
        started = time.monotonic()
        with serving(getattr(self, name)) as server, pytest.raises(Unavailable):
            read(envs(server), TAG, settings=settings)
        assert 0.9 < time.monotonic() - started < 3
        (event,) = told
        assert (event.phase, event.subject) == ("wait", server.host)
        assert event.text.startswith("no answer for 0 s")

    def test_who_is_sent_something_may_take_longer_to_answer(self) -> None:
        """A registry may copy a whole blob before it answers that it is stored."""

        def script(call: Call, asked: Asked) -> None:
            call.server.ended.wait(1.0)
            call.answer(201)

        with serving(script) as server:
            remote = RemoteRegistry(envs(server), settings=replace(QUICK, read_timeout=0.5))
            remote.put_manifest(Manifest.build(Descriptor.of(b"{}", OCI_EMPTY), (), {}))
            with pytest.raises(Unavailable):
                remote.get_manifest(TAG)
            remote.close()

    def test_a_host_that_takes_no_connections_is_told_of(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("envbuild.oci.client.PATIENCE", 0.3)
        told: list[Event] = []
        settings = Settings(connect_timeout=1.0, retries=0, progress=told.append)
        with socket.socket() as full:  # whose queue is full: nobody takes connections off it
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            host = f"127.0.0.1:{full.getsockname()[1]}"
            with contextlib.ExitStack() as others:
                for _ in range(2):
                    other = others.enter_context(socket.socket())
                    other.setblocking(False)
                    other.connect_ex(full.getsockname())
                with pytest.raises(Unavailable, match="timed out"):
                    probe(Repository.parse(f"{host}/envs"), TAG, settings=settings)
        (event,) = told
        assert (event.subject, event.text) == (host, "no connection for 0 s")

    def test_a_host_that_does_not_exist_is_not_waited_for(
        self, read: Reader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unknown(*_: object, **__: object) -> NoReturn:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        started = time.monotonic()
        with pytest.raises(Unavailable, match="not known") as caught:
            read(Repository.parse("registry.exmaple.com/envs"), TAG, settings=Settings())
        assert time.monotonic() - started < 5
        assert not caught.value.retryable

    def test_who_speaks_something_else_is_not_waited_for(self, read: Reader) -> None:
        """HTTPS to a port of plain HTTP: the settings are wrong, and a minute changes nothing."""
        with serving(good) as server:
            settings = Settings(secure_hosts=frozenset({server.host}), retries=1)
            started = time.monotonic()
            with pytest.raises(Unavailable, match=r"(?i)ssl|tls"):
                read(envs(server), TAG, settings=settings)
            assert time.monotonic() - started < 10

    def test_no_deadline_ends_too(self, read: Reader) -> None:
        with serving(self.stall) as server, pytest.raises(Unavailable):
            read(envs(server), TAG, settings=Settings(read_timeout=0.2, retries=1, patience=2.0))


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    def test_another_host_sees_no_credentials(self, read: Reader, status: int) -> None:
        with serving(good) as other:

            def script(call: Call, asked: Asked) -> None:
                call.answer(status, headers={"Location": f"{other.url}/elsewhere?signature=1"})

            with serving(script) as server:
                assert read(envs(server), TAG, credentials=SECRET).raw == RAW
                assert server.asked[0].authorization is not None
            assert [asked.path for asked in other.asked] == ["/elsewhere?signature=1"]
            assert other.asked[0].authorization is None
            assert "cookie" not in other.asked[0].headers

    def test_another_host_that_asks_for_credentials_gets_none(self, read: Reader) -> None:
        def greedy(call: Call, asked: Asked) -> None:
            call.fail(401, headers={"WWW-Authenticate": 'Basic realm="give"'})

        with serving(greedy) as other:

            def script(call: Call, asked: Asked) -> None:
                call.answer(307, headers={"Location": other.url})

            with serving(script) as server, pytest.raises(Unauthorized):
                read(envs(server), TAG, credentials=SECRET)
            assert [asked.authorization for asked in other.asked] == [None]

    def test_own_host_sees_them(self, read: Reader) -> None:
        def script(call: Call, asked: Asked) -> None:
            moved = asked.path.startswith("/v2/moved")
            good(call, asked) if moved else call.answer(302, headers={"Location": "/v2/moved/manifests/x"})

        with serving(script) as server:
            assert read(envs(server), TAG, credentials=SECRET).raw == RAW
            assert server.asked[1].authorization == SECRET.basic

    @pytest.mark.parametrize(
        "location", ["/v2/team/envs/manifests/k1-a", "", "file:///etc/passwd", "http://"]
    )
    def test_loops_and_nowhere(self, read: Reader, location: str) -> None:
        headers = {"Location": location} if location else {}
        with serving(lambda call, _: call.answer(302, headers=headers)) as server:
            with pytest.raises(RegistryError, match="redirects"):
                read(envs(server), TAG)
            assert len(server.asked) <= 6


class TestTokens:
    def script(self, call: Call, asked: Asked) -> None:
        if asked.path.startswith("/token"):
            return call.answer(200, json.dumps({"token": asked.path}).encode())
        if asked.authorization is None:
            realm = f'Bearer realm="{call.server.url}/token",service="test"'
            return call.fail(401, headers={"WWW-Authenticate": realm})
        return good(call, asked)

    def test_one_token_for_each_repository(self) -> None:
        with serving(self.script) as server, Prober(QUICK) as prober:
            for name in ("a", "b", "a"):
                repository = Repository.parse(f"{server.host}/team/{name}")
                assert prober.probe(repository, TAG).raw == RAW
            tokens = [asked.path for asked in server.asked if asked.path.startswith("/token")]
            assert tokens == [
                f"/token?service=test&scope=repository%3Ateam%2F{name}%3Apull" for name in ("a", "b")
            ]
            assert len(server.asked) == 7

    def test_tokens_stay_with_their_host(self) -> None:
        with serving(self.script) as one, serving(good) as two, Prober(QUICK) as prober:
            prober.probe(envs(one), TAG)
            prober.probe(envs(two), TAG)
            assert [asked.authorization for asked in two.asked] == [None]

    def test_expired_token_is_fetched_again(self, read: Reader) -> None:
        def script(call: Call, asked: Asked) -> None:
            if asked.authorization is not None and "first" in asked.authorization:
                return call.fail(401, headers={"WWW-Authenticate": f'Bearer realm="{call.server.url}/token"'})
            return self.script(call, asked)

        with serving(script) as server:
            assert read(envs(server), TAG).raw == RAW

    def test_busy_token_server_is_asked_again(self, read: Reader) -> None:
        def script(call: Call, asked: Asked) -> None:
            tokens = [each for each in call.server.asked if each.path.startswith("/token")]
            if asked.path.startswith("/token") and len(tokens) == 1:
                return call.fail(503)
            return self.script(call, asked)

        with serving(script) as server:
            assert read(envs(server), TAG).raw == RAW


def _index(**more: object) -> bytes:
    return encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], **more})


class TestHostileManifests:
    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"null",
            b"[]",
            b"{}",
            b"\xff\xfe",
            b"<html>login</html>",
            b"[" * 100_000,
            _index(layers=[], config=CONFIG),
            encode({"schemaVersion": 1, "config": CONFIG, "layers": []}),
            encode({"schemaVersion": 2, "layers": []}),
            encode({"schemaVersion": 2, "config": {**CONFIG, "digest": "sha256:../../x"}, "layers": []}),
            encode({"schemaVersion": 2, "config": {**CONFIG, "size": -1}, "layers": []}),
            encode({"schemaVersion": 2, "config": {**CONFIG, "size": 1e99}, "layers": []}),
            encode({"schemaVersion": 2, "config": CONFIG, "layers": "all"}),
            encode({"schemaVersion": 2, "config": CONFIG, "layers": [], "annotations": {"a": 1}}),
            encode({"schemaVersion": 2, "mediaType": "text/html", "config": CONFIG, "layers": []}),
            encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "config": CONFIG, "layers": []}),
        ],
        ids=range(17),
    )
    def test_refused(self, read: Reader, raw: bytes) -> None:
        with serving(lambda call, asked: good(call, asked, raw)) as server:
            with pytest.raises(IntegrityError):
                read(envs(server), TAG)
            assert len(server.asked) == 1

    @pytest.mark.parametrize("length", [True, False])
    def test_too_large(self, read: Reader, length: bool) -> None:
        raw = RAW + b" " * MAX_MANIFEST

        def script(call: Call, asked: Asked) -> None:
            if length:
                return good(call, asked, raw)
            call.send_response(200)
            call.send_header("Connection", "close")
            call.end_headers()
            call.wfile.write(raw)
            return call.hang_up()

        with serving(script) as server, pytest.raises(IntegrityError, match=str(MAX_MANIFEST)):
            read(envs(server), TAG)

    def test_other_bytes_than_asked_for(self, read: Reader) -> None:
        with serving(good) as server, pytest.raises(IntegrityError):
            read(envs(server), Digest.of(b"another"))

    def test_other_bytes_than_promised(self, read: Reader) -> None:
        headers = {"Docker-Content-Digest": str(Digest.of(b"another"))}
        with (
            serving(lambda call, _: call.answer(200, RAW, headers)) as server,
            pytest.raises(IntegrityError, match="the registry says"),
        ):
            read(envs(server), TAG)

    def test_header_says_index_and_bytes_say_manifest(self, read: Reader) -> None:
        with (
            serving(lambda call, _: call.answer(200, RAW, {"Content-Type": OCI_INDEX})) as server,
            pytest.raises(IntegrityError),
        ):
            read(envs(server), TAG)

    def test_foreign_urls_are_never_asked(self, read: Reader) -> None:
        with serving(good) as canary:
            layer = {**CONFIG, "urls": [f"{canary.url}/layer"]}
            raw = encode({"schemaVersion": 2, "config": {**CONFIG, "urls": [canary.url]}, "layers": [layer]})
            with serving(lambda call, asked: good(call, asked, raw)) as server:
                assert read(envs(server), TAG).raw == raw
            assert canary.asked == []


def test_request_says_what_it_takes(read: Reader) -> None:
    with serving(good) as server:
        read(envs(server), TAG)
        accepted = server.asked[0].headers["accept"]
    assert accepted.count("+json") == 4
    assert server.asked[0].headers["accept-encoding"] == "identity"
    assert server.asked[0].headers["user-agent"] == "envbuild"


@pytest.fixture
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("_no_proxies")
class TestProxies:
    settings = Settings(insecure_hosts=frozenset({"registry.invalid"}), retries=0)
    repository = Repository.parse("registry.invalid/team/envs")

    @pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
    def test_asked(self, read: Reader, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        with serving(good) as proxy:
            monkeypatch.setenv(name, proxy.url)
            assert read(self.repository, TAG, settings=self.settings).raw == RAW
            assert [asked.path for asked in proxy.asked] == [
                f"http://registry.invalid/v2/team/envs/manifests/{TAG}"
            ]

    def test_not_for_loopback(self, read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving(good) as server, serving(good) as proxy:
            monkeypatch.setenv("http_proxy", proxy.url)
            assert read(envs(server), TAG).raw == RAW
            assert proxy.asked == []

    def test_not_where_no_proxy_says(self, read: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving(good) as proxy:
            monkeypatch.setenv("http_proxy", proxy.url)
            monkeypatch.setenv("no_proxy", "registry.invalid")
            with pytest.raises(Unavailable):
                read(self.repository, TAG, settings=self.settings)
            assert proxy.asked == []


def test_thin_path_is_thin() -> None:
    """A hit pays for no client library."""
    code = "import envbuild.oci.probe, envbuild.oci.open, sys; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert not loaded & {"oras", "requests", "urllib3", "docker", "rattler", "rich", "subprocess"}


def test_errors_are_ours_whatever_comes(read: Reader) -> None:
    """Answers cut at every byte give a typed error or the right manifest."""
    whole = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (
        OCI_MANIFEST.encode(),
        len(RAW),
    )
    whole += RAW

    def cut_at(end: int) -> Callable[[Call, Asked], None]:
        def script(call: Call, asked: Asked) -> None:
            call.wfile.write(whole[:end])
            call.hang_up()

        return script

    def outcomes() -> Iterator[bool]:
        for end in range(0, len(whole), 7):
            with serving(cut_at(end)) as server:
                try:
                    seen = read(envs(server), TAG, settings=Settings(retries=0, read_timeout=5))
                except EnvbuildError:
                    yield False
                else:
                    assert seen.raw == RAW
                    yield True

    assert not any(outcomes())
