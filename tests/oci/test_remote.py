"""The remote back end: what only a network can do wrong; ``test_remote_contract`` has the rest."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import time
import tracemalloc
from typing import IO, TYPE_CHECKING

import pytest

from envbuild.deadline import Deadline
from envbuild.digest import Descriptor, Digest
from envbuild.errors import (
    DeadlineExceeded,
    IntegrityError,
    NotFound,
    RegistryError,
    SpecError,
    StorageError,
    Unauthorized,
    Unavailable,
)
from envbuild.oci.auth import Credentials
from envbuild.oci.manifest import OCI_CONFIG, OCI_LAYER_GZIP, ImageIndex, Manifest, encode
from envbuild.oci.open import Settings, open_registry
from envbuild.oci.probe import Prober
from envbuild.oci.remote import RemoteRegistry
from envbuild.oci.transport import MissingContent
from envbuild.reference import Repository, Tag
from oci_contract import ABSENT, Source, put, put_image, read
from parts.fault_server import Asked, Call, FaultServer, serving
from parts.registry_server import PASSWORD, USERNAME, RegistryServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from parts.docker_engine import DockerEngine

ALICE = Credentials(USERNAME, PASSWORD)
QUICK = Settings(connect_timeout=2, read_timeout=2, retries=2, patience=1.0)


def remote(
    server: FaultServer, credentials: Credentials | None = None, path: str = "team/envs"
) -> RemoteRegistry:
    repository = Repository.parse(f"{server.host}/{path}")
    return RemoteRegistry(repository, credentials=credentials, settings=QUICK)


class TestRealServer:
    def test_repository_of_one_server(self, registry: RegistryServer) -> None:
        opened = open_registry(registry.repository("opened"))
        assert isinstance(opened, RemoteRegistry)
        descriptor = put(opened, b"content")
        assert read(opened, descriptor) == b"content"
        opened.close()

    def test_existing_blob_costs_one_head(self, registry: RegistryServer) -> None:
        target = RemoteRegistry(registry.repository())
        descriptor = put(target, b"once")
        before = len(registry.requests)
        assert target.put_blob(descriptor, Source(b"once")) is False
        path = f"/v2/{target.repository.path}/blobs/{descriptor.digest}"
        assert registry.requests[before:] == [f"HEAD {path} 200"]

    def test_bodies_are_sent_once_with_a_password(self, htpasswd_registry: RegistryServer) -> None:
        target = RemoteRegistry(htpasswd_registry.repository(), credentials=ALICE)
        before = len(htpasswd_registry.requests)
        source = Source(b"secret layer" * 1000)
        target.put_blob(Descriptor.of(source.content, OCI_LAYER_GZIP), source)
        assert source.calls == 1
        seen = [(line.split()[0], line.split()[2]) for line in htpasswd_registry.requests[before:]]
        assert seen == [("HEAD", "404"), ("POST", "202"), ("PUT", "201")]

    def test_netrc_is_not_sent(
        self, htpasswd_registry: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login {USERNAME} password {PASSWORD}\n")
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        with pytest.raises(Unauthorized):
            RemoteRegistry(htpasswd_registry.repository()).has_blob(ABSENT.digest)

    def test_wrong_password_cannot_write(self, htpasswd_registry: RegistryServer) -> None:
        target = RemoteRegistry(htpasswd_registry.repository(), credentials=Credentials(USERNAME, "wrong"))
        calls: list[Callable[[], object]] = [
            lambda: target.has_blob(ABSENT.digest),
            lambda: target.put_blob(ABSENT, Source(b"never stored")),
            lambda: target.open_blob(ABSENT),
            lambda: target.delete_manifest(ABSENT.digest),
            lambda: list(target.tags()),
        ]
        started = time.monotonic()
        for call in calls:
            with pytest.raises(Unauthorized):
                call()
        assert time.monotonic() - started < 10

    def test_every_missing_blob_is_named(self, registry: RegistryServer) -> None:
        target = RemoteRegistry(registry.repository())
        there = put(target, b"{}", OCI_CONFIG)
        lost = tuple(Descriptor.of(f"lost {number}".encode(), OCI_LAYER_GZIP) for number in range(60))
        with pytest.raises(MissingContent) as caught:
            target.put_manifest(Manifest.build(there, lost, {}), Tag("partial"))
        assert set(caught.value.missing) == {layer.digest for layer in lost}
        assert isinstance(caught.value, NotFound)

    def test_tags_of_referrers_are_hidden(self, registry: RegistryServer) -> None:
        target = RemoteRegistry(registry.repository())
        manifest = put_image(target, "image")
        for name in ("v1", f"sha256-{'a' * 64}", "sha256-short"):
            target.put_manifest(manifest, Tag(name))
        assert set(target.tags()) == {Tag("v1"), Tag("sha256-short")}

    def test_upload_is_streamed(self, registry: RegistryServer) -> None:
        size = 48 << 20
        digest = hashlib.sha256(bytes(size)).hexdigest()
        target = RemoteRegistry(registry.repository())

        class Zeros(io.RawIOBase):
            left = size

            def read(self, count: int = -1, /) -> bytes:
                count = min(count, self.left)
                self.left -= count
                return bytes(count)

        def opened() -> IO[bytes]:
            return Zeros()  # type: ignore[return-value]

        descriptor = Descriptor(OCI_LAYER_GZIP, Digest(digest), size)
        tracemalloc.start()
        try:
            assert target.put_blob(descriptor, opened) is True
            with target.open_blob(descriptor) as stream:
                while stream.read(1 << 20):
                    pass
            assert tracemalloc.get_traced_memory()[1] < 12 << 20
        finally:
            tracemalloc.stop()

    def test_source_that_cannot_be_read_is_not_the_networks_fault(self, registry: RegistryServer) -> None:
        target = RemoteRegistry(registry.repository())

        def opened() -> IO[bytes]:
            raise PermissionError(13, "Permission denied")

        with pytest.raises(StorageError, match="Permission denied"):
            target.put_blob(ABSENT, opened)

    @pytest.mark.xdist_group("engine")
    def test_engine_pulls_what_was_put(self, registry: RegistryServer, engine: DockerEngine) -> None:
        target = RemoteRegistry(registry.repository("pulled"))
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            member = tarfile.TarInfo("hello")
            member.size = 5
            archive.addfile(member, io.BytesIO(b"hello"))
        layer = put(target, gzip.compress(tar.getvalue(), mtime=0))
        rootfs = {"type": "layers", "diff_ids": [str(Digest.of(tar.getvalue()))]}
        config = encode({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs})
        manifest = Manifest.build(put(target, config, OCI_CONFIG), (layer,), {})
        target.put_manifest(manifest, Tag("v1"))
        reference = str(target.repository.at(manifest.descriptor.digest))
        engine.docker("pull", "--quiet", reference)
        digests = engine.docker("image", "inspect", "--format", "{{json .RepoDigests}}", reference).stdout
        assert json.loads(digests) == [reference]
        engine.docker("image", "rm", reference)


class TestBrokenReads:
    content = bytes(range(256)) * 400
    descriptor = Descriptor.of(content, OCI_LAYER_GZIP)

    def cut(self, call: Call, asked: Asked, each: int = 30_000, ranges: bool = True) -> None:
        """Some bytes of the blob from where it was asked, then the end of the connection."""
        start = int(asked.headers.get("range", "bytes=0-")[6:-1]) if ranges else 0
        if start > 0:
            call.send_response(206)
            call.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        else:
            call.send_response(200)
        call.send_header("Content-Length", str(len(self.content) - start))
        call.end_headers()
        call.wfile.write(self.content[start : start + each])
        call.hang_up()

    def test_taken_up_where_it_broke(self) -> None:
        with serving(self.cut) as server:
            assert read(remote(server), self.descriptor) == self.content
            starts = [asked.headers.get("range") for asked in server.asked]
        assert starts == [None, "bytes=30000-", "bytes=60000-", "bytes=90000-"]

    def test_server_without_ranges(self) -> None:
        def script(call: Call, asked: Asked) -> None:
            self.cut(call, asked, 30_000 * len(call.server.asked), ranges=False)

        with serving(script) as server:
            assert read(remote(server), self.descriptor) == self.content

    def test_always_broken(self) -> None:
        def script(call: Call, asked: Asked) -> None:
            self.cut(call, asked, 0 if "range" in asked.headers else 10)

        with serving(script) as server, pytest.raises(Unavailable, match="10 of 102400 bytes"):
            read(remote(server), self.descriptor)

    def test_corrupt(self) -> None:
        with (
            serving(lambda call, _: call.answer(200, b"x" * len(self.content))) as server,
            pytest.raises(IntegrityError),
        ):
            read(remote(server), self.descriptor)

    def test_stalled(self) -> None:
        def script(call: Call, asked: Asked) -> None:
            call.answer(200, b"x", {"Content-Length": str(len(self.content))})
            call.server.ended.wait(30)

        with serving(script) as server:
            started = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                read(remote(server).by(Deadline.after(1)), self.descriptor)
            assert time.monotonic() - started < 5

    def test_redirected_to_another_host(self) -> None:
        with serving(lambda call, _: call.answer(200, self.content)) as store:

            def script(call: Call, _: Asked) -> None:
                call.answer(307, headers={"Location": f"{store.url}/signed"})

            with serving(script) as server:
                assert read(remote(server, ALICE), self.descriptor) == self.content
                assert server.asked[0].authorization == ALICE.basic
            assert [asked.authorization for asked in store.asked] == [None]


class TestBrokenHeads:
    """A connection that ends in an answer's head gave none, though ``http.client`` takes it for one."""

    @pytest.mark.parametrize(
        "head",
        [
            b"HTTP/1.1 20",
            b"HTTP/1.1 404 Not Found",
            b"HTTP/1.1 404 Not Found\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1",
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Le",
        ],
    )
    def test_asked_again(self, head: bytes) -> None:
        def script(call: Call, _: Asked) -> None:
            if len(call.server.asked) == 1:
                call.wfile.write(head)
                call.hang_up()
            else:
                call.fail(403, "DENIED")

        asks: tuple[Callable[[RemoteRegistry], object], ...] = (
            lambda target: target.has_blob(ABSENT.digest),
            lambda target: target.get_manifest(Tag("x")),
        )
        for ask in asks:
            with serving(script) as server:
                target = remote(server)
                with pytest.raises(Unauthorized):
                    ask(target)
                assert len(server.asked) == 2
                target.close()

    def test_the_thin_client_asks_again(self) -> None:
        def script(call: Call, _: Asked) -> None:
            if len(call.server.asked) == 1:
                call.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Len")
                call.hang_up()
            else:
                call.fail(403, "DENIED")

        with serving(script) as server, Prober(QUICK) as prober:
            with pytest.raises(Unauthorized):
                prober.probe(Repository.parse(f"{server.host}/envs"), Tag("x"))
            assert len(server.asked) == 2


class TestBrokenWrites:
    content = b"layer " * 50_000
    descriptor = Descriptor.of(content, OCI_LAYER_GZIP)

    @pytest.mark.parametrize("fault", ["hang up", "500", "429", "404"])
    def test_sent_again_from_the_first_byte(self, fault: str) -> None:
        def script(call: Call, asked: Asked) -> None:
            puts = sum(each.method == "PUT" for each in call.server.asked)
            if asked.method == "HEAD":
                call.answer(404)
            elif asked.method == "POST":
                call.answer(202, headers={"Location": f"/upload/{puts}?state=x"})
            elif puts == 2:
                call.answer(201)
            elif fault == "hang up":
                call.hang_up()
            else:
                call.fail(int(fault))

        source = Source(self.content)
        with serving(script) as server:
            assert remote(server).put_blob(self.descriptor, source) is True
            sent = [asked for asked in server.asked if asked.method == "PUT"]
        assert [asked.body for asked in sent] == [self.content] * 2
        digest = f"digest=sha256%3A{self.descriptor.digest.hex}"
        assert [asked.path for asked in sent] == [
            f"/upload/0?state=x&{digest}",
            f"/upload/1?state=x&{digest}",
        ]
        assert [stream.closed for stream in source.streams] == [True, True]

    def test_always_failing(self) -> None:
        def script(call: Call, asked: Asked) -> None:
            call.answer(404) if asked.method == "HEAD" else call.fail(503)

        with serving(script) as server, pytest.raises(Unavailable, match="503"):
            remote(server).put_blob(self.descriptor, Source(self.content))

    def test_upload_elsewhere_sees_no_credentials(self) -> None:
        with serving(lambda call, _: call.answer(201)) as store:

            def script(call: Call, asked: Asked) -> None:
                headers = {"Location": f"{store.url}/bucket"}
                call.answer(404) if asked.method == "HEAD" else call.answer(202, headers=headers)

            with serving(script) as server:
                remote(server, ALICE).put_blob(self.descriptor, Source(self.content))
                assert server.asked[-1].authorization == ALICE.basic
            assert [(asked.method, asked.authorization) for asked in store.asked] == [("PUT", None)]

    def test_login_lost_in_the_middle(self) -> None:
        def script(call: Call, asked: Asked) -> None:
            if asked.path.startswith("/token"):
                call.answer(200, json.dumps({"token": f"t{len(call.server.asked)}"}).encode())
            elif asked.method == "HEAD":
                call.answer(404)
            elif asked.method == "POST":
                call.answer(202, headers={"Location": "/upload/1"})
            elif asked.authorization is None:
                call.fail(401, headers={"WWW-Authenticate": f'Bearer realm="{call.server.url}/token"'})
            else:
                call.answer(201)

        source = Source(self.content)
        with serving(script) as server:
            assert remote(server).put_blob(self.descriptor, source) is True
            assert [asked.body for asked in server.asked if asked.method == "PUT"] == [self.content] * 2
            token = next(asked for asked in server.asked if asked.path.startswith("/token"))
        assert "scope=repository%3Ateam%2Fenvs%3Apull%2Cpush" in token.path

    def test_bad_source_cancels_the_upload(self) -> None:
        def script(call: Call, asked: Asked) -> None:
            if asked.method == "POST":
                call.answer(202, headers={"Location": "/upload/1"})
            else:
                call.answer(404 if asked.method == "HEAD" else 204)

        with serving(script) as server:
            with pytest.raises(IntegrityError):
                remote(server).put_blob(self.descriptor, Source(b"other"))
            assert "DELETE" in {asked.method for asked in server.asked}

    def test_stalled_upload_ends_by_its_deadline(self) -> None:
        def script(call: Call, asked: Asked) -> None:
            if asked.method == "POST":
                call.answer(202, headers={"Location": "/upload/1"})
            elif asked.method == "HEAD":
                call.answer(404)
            else:
                call.server.ended.wait(30)

        with serving(script) as server:
            started = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                remote(server).by(Deadline.after(1)).put_blob(self.descriptor, Source(self.content))
            assert time.monotonic() - started < 5

    def test_no_such_repository_is_not_a_miss(self) -> None:
        with serving(lambda call, _: call.fail(404, "NAME_UNKNOWN")) as server:
            for call in (
                lambda: remote(server).put_blob(self.descriptor, Source(self.content)),
                lambda: remote(server).put_manifest(ImageIndex.build((), {}), Tag("v1")),
            ):
                with pytest.raises(RegistryError, match="no such repository") as caught:
                    call()
                assert not isinstance(caught.value, NotFound)

    def test_manifest_that_was_stored_as_another(self) -> None:
        def script(call: Call, _: Asked) -> None:
            call.answer(201, headers={"Docker-Content-Digest": str(ABSENT.digest)})

        with serving(script) as server, pytest.raises(IntegrityError, match="stored as"):
            remote(server).put_manifest(ImageIndex.build((), {}))

    def test_registry_that_contradicts_itself_is_asked_again(self) -> None:
        def script(call: Call, asked: Asked) -> None:
            error = {"code": "MANIFEST_BLOB_UNKNOWN", "detail": {"Digest": str(ABSENT.digest)}}
            if asked.method == "HEAD":
                call.answer(200)
            elif sum(each.method == "PUT" for each in call.server.asked) == 1:
                call.answer(400, json.dumps({"errors": [error]}).encode())
            else:
                call.answer(201)

        with serving(script) as server:
            remote(server).put_manifest(ImageIndex.build((), {}), Tag("v1"))
            assert [asked.method for asked in server.asked] == ["PUT", "HEAD", "PUT"]

    def test_deletion_may_be_switched_off(self) -> None:
        with (
            serving(lambda call, _: call.fail(405, "UNSUPPORTED")) as server,
            pytest.raises(RegistryError, match="UNSUPPORTED") as caught,
        ):
            remote(server).delete_manifest(ABSENT.digest)
        assert caught.value.hint is not None


class TestMounts:
    def test_other_host_is_not_asked(self) -> None:
        with serving(lambda call, _: call.answer(201)) as server:
            other = Repository.parse("registry.example.com/team/envs")
            assert remote(server).mount_blob(ABSENT, other) is False
            assert server.asked == []

    def test_token_may_read_the_source(self) -> None:
        def script(call: Call, asked: Asked) -> None:
            if asked.path.startswith("/token"):
                call.answer(200, b'{"token":"t"}')
            elif asked.authorization is None:
                call.fail(401, headers={"WWW-Authenticate": f'Bearer realm="{call.server.url}/token"'})
            else:
                call.answer(201)

        with serving(script) as server:
            source = Repository.parse(f"{server.host}/global/envs")
            assert remote(server).mount_blob(ABSENT, source) is True
            assert server.asked[1].path == (
                "/token?scope=repository%3Ateam%2Fenvs%3Apull%2Cpush&scope=repository%3Aglobal%2Fenvs%3Apull"
            )

    def test_refused_mount_gives_the_upload_up(self) -> None:
        def script(call: Call, asked: Asked) -> None:
            call.answer(202, headers={"Location": "/upload/7"}) if asked.method == "POST" else call.answer(
                204
            )

        with serving(script) as server:
            assert remote(server).mount_blob(ABSENT, Repository.parse(f"{server.host}/global/envs")) is False
            assert (server.asked[-1].method, server.asked[-1].path) == ("DELETE", "/upload/7")

    def test_source_that_is_not_ours(self) -> None:
        with serving(lambda call, _: call.fail(403, "DENIED")) as server:
            assert remote(server).mount_blob(ABSENT, Repository.parse(f"{server.host}/theirs")) is False


class TestListings:
    def test_pages_are_followed(self) -> None:
        pages = {"": ["a", "b"], "b": ["c", "d"], "d": []}

        def script(call: Call, asked: Asked) -> None:
            last = asked.path.rpartition("last=")[2] if "last=" in asked.path else ""
            names = pages[last]
            link = f'</v2/team/envs/tags/list?n=1000&last={names[-1]}>; rel="next"' if names else ""
            call.answer(200, json.dumps({"tags": names}).encode(), {"Link": link} if link else {})

        with serving(script) as server:
            assert [tag.name for tag in remote(server).tags()] == ["a", "b", "c", "d"]
            assert len(server.asked) == 3

    @pytest.mark.parametrize(
        "link", ["http://127.0.0.1:9/v2/x/tags/list", "https://example.com/", "//example.com/x"]
    )
    def test_pages_stay_on_their_host(self, link: str) -> None:
        headers = {"Link": f'<{link}>; rel="next"'}
        with (
            serving(lambda call, _: call.answer(200, b'{"tags":["a"]}', headers)) as server,
            pytest.raises(IntegrityError, match="not on the same registry"),
        ):
            list(remote(server).tags())

    def test_pages_without_end(self) -> None:
        def script(call: Call, asked: Asked) -> None:
            call.answer(200, b'{"tags":["a"]}', {"Link": f'<{asked.path}>; rel="next"'})

        with serving(script) as server, pytest.raises(IntegrityError):
            list(remote(server).tags())

    @pytest.mark.parametrize("body", [b"", b"[]", b'{"tags":[7]}', b'{"tags":["../x"]}', b'{"tags":"ab c"}'])
    def test_what_is_no_listing(self, body: bytes) -> None:
        with serving(lambda call, _: call.answer(200, body)) as server, pytest.raises(IntegrityError):
            list(remote(server).tags())

    def test_null_is_none(self) -> None:
        with serving(lambda call, _: call.answer(200, b'{"name":"x","tags":null}')) as server:
            assert list(remote(server).tags()) == []


class TestAddresses:
    @pytest.mark.parametrize(
        ("host", "url"),
        [
            ("docker.io", "https://registry-1.docker.io"),
            ("registry.example.com", "https://registry.example.com"),
            ("registry.example.com:5000", "https://registry.example.com:5000"),
            ("localhost", "http://localhost"),
            ("localhost:5000", "http://localhost:5000"),
            ("127.0.0.1:5000", "http://127.0.0.1:5000"),
            ("127.9.9.9", "http://127.9.9.9"),
            ("[::1]:5000", "http://[::1]:5000"),
            ("127.0.0.1.example.com", "https://127.0.0.1.example.com"),
            ("localhost.example.com", "https://localhost.example.com"),
            ("plain.example.com:5000", "http://plain.example.com:5000"),
            ("plain.example.com", "https://plain.example.com"),
        ],
    )
    def test_plain_http_only_where_it_is_safe_or_wished(self, host: str, url: str) -> None:
        assert Settings(insecure_hosts=frozenset({"plain.example.com:5000"})).base_url(host) == url

    def test_insecure_can_be_said(self) -> None:
        assert Settings().base_url("127.0.0.1:5000", insecure=False) == "https://127.0.0.1:5000"
        assert Settings().base_url("example.com", insecure=True) == "http://example.com"

    @pytest.mark.parametrize("path", ["name", "team/envs", "a.b/c", "a/b/c/d"])
    def test_paths_are_kept(self, path: str) -> None:
        with serving(lambda call, _: call.answer(200)) as server:
            remote(server, path=path).has_blob(ABSENT.digest)
            assert server.asked[0].path == f"/v2/{path}/blobs/{ABSENT.digest}"

    def test_layouts_are_opened_elsewhere(self, tmp_path: Path) -> None:
        layout = Repository.parse(f"oci:{tmp_path / 'layout'}")
        with pytest.raises(SpecError):
            RemoteRegistry(layout)
        assert open_registry(layout).repository == layout
