"""Attachments of images, with the referrers API and without it."""

from __future__ import annotations

import gzip
import io
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from envbuild.digest import Descriptor, Digest
from envbuild.errors import EnvbuildError, IntegrityError, RegistryError, TagMoved, Unavailable
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import OCI_EMPTY, OCI_INDEX, ImageIndex, Manifest, encode
from envbuild.oci.referrers import MAX_ARTIFACT, Artifact, attach, fallback_tag, read_artifact, referrers
from envbuild.oci.registry import Registry
from envbuild.oci.remote import RemoteRegistry
from envbuild.oci.transport import Settings
from envbuild.platform import Platform
from envbuild.reference import Repository, Tag
from oci_contract import at_once, put_image
from parts.fault_server import Asked, Call, serving
from parts.registry_server import RegistryServer
from parts.toxic import relay

LOCK = "application/vnd.example.lock.v1+json"
QUICK = Settings(connect_timeout=2, read_timeout=5, retries=1, patience=1.0)


def artifact(text: str, kind: str = LOCK) -> Artifact:
    return Artifact(kind, "application/json", json.dumps(text).encode(), {"text": text}, "lock.json")


@pytest.fixture(params=["layout", "remote"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    if request.param == "layout":
        return LayoutRegistry(Repository.parse(f"oci:{tmp_path}/layout"))
    server: RegistryServer = request.getfixturevalue("registry_server")
    return RemoteRegistry(server.repository())


@pytest.fixture
def registry_server(stoppable_registry: RegistryServer) -> RegistryServer:
    return stoppable_registry


@pytest.fixture
def subject(registry: Registry) -> Descriptor:
    manifest = put_image(registry, "subject")
    registry.put_manifest(manifest, Tag("v1"))
    return manifest.descriptor


def test_what_is_attached_is_listed_and_read(registry: Registry, subject: Descriptor, tmp_path: Path) -> None:
    assert referrers(registry, subject.digest) == ()
    attach(registry, subject, [artifact("a"), artifact("b", "text/plain")], locks=tmp_path)
    listed = referrers(registry, subject.digest)
    assert {entry.artifact_type for entry in listed} == {LOCK, "text/plain"}
    (entry,) = referrers(registry, subject.digest, LOCK)
    assert entry.annotations == {"text": "a"}
    manifest = registry.get_manifest(entry.digest)
    assert not isinstance(manifest, ImageIndex)
    assert manifest.subject is not None
    assert manifest.subject.digest == subject.digest
    assert read_artifact(registry, manifest) == b'"a"'


def compressed(content: bytes) -> Artifact:
    return Artifact(LOCK, f"{LOCK}+gzip", content, {})


def test_what_is_compressed_is_read_as_what_it_was(
    registry: Registry, subject: Descriptor, tmp_path: Path
) -> None:
    (entry,) = attach(registry, subject, [compressed(gzip.compress(b"the lock"))], locks=tmp_path)
    manifest = registry.get_manifest(entry.digest)
    assert isinstance(manifest, Manifest)
    assert read_artifact(registry, manifest) == b"the lock"


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip",
        gzip.compress(b"x" * 1000)[:-9],
        gzip.compress(b"x") + b"y",
        gzip.compress(bytes(MAX_ARTIFACT + 1), 1),
    ],
    ids=["other", "cut", "more", "bomb"],
)
def test_what_is_not_compressed_as_it_says_is_refused(content: bytes, tmp_path: Path) -> None:
    registry = LayoutRegistry(Repository.parse(f"oci:{tmp_path}/layout"))
    (entry,) = attach(registry, put_image(registry, "x").descriptor, [compressed(content)], locks=tmp_path)
    manifest = registry.get_manifest(entry.digest)
    assert isinstance(manifest, Manifest)
    with pytest.raises(IntegrityError, match=str(entry.digest)):
        read_artifact(registry, manifest)


def test_attaching_again_changes_nothing(registry: Registry, subject: Descriptor, tmp_path: Path) -> None:
    attach(registry, subject, [artifact("a")], locks=tmp_path)
    before = registry.get_manifest(fallback_tag(subject.digest)).raw
    attach(registry, subject, [artifact("a")], locks=tmp_path)
    assert registry.get_manifest(fallback_tag(subject.digest)).raw == before


def test_lists_are_hidden_from_listings(registry: Registry, subject: Descriptor, tmp_path: Path) -> None:
    attach(registry, subject, [artifact("a")], locks=tmp_path)
    manifest = registry.get_manifest(subject.digest)
    registry.put_manifest(manifest, Tag(f"sha256-{subject.digest.hex}.sig"))
    assert list(registry.tags()) == [Tag("v1")]


def test_writers_at_the_same_time_keep_all(registry: Registry, subject: Descriptor, tmp_path: Path) -> None:
    at_once(8, lambda number: attach(registry, subject, [artifact(f"{number}")], locks=tmp_path))
    assert {entry.annotations["text"] for entry in referrers(registry, subject.digest)} == set("01234567")


def test_a_list_that_is_null_is_empty(registry: Registry, subject: Descriptor, tmp_path: Path) -> None:
    if isinstance(registry, LayoutRegistry):
        raw = encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": None})
        registry.put_manifest(ImageIndex(raw, OCI_INDEX, ()), fallback_tag(subject.digest))
    assert referrers(registry, subject.digest) == ()
    attach(registry, subject, [artifact("a")], locks=tmp_path)
    assert len(referrers(registry, subject.digest)) == 1


def test_a_list_that_others_overwrite_all_the_time_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = LayoutRegistry(Repository.parse(f"oci:{tmp_path}/layout"))
    subject = put_image(registry, "subject").descriptor
    put = LayoutRegistry.put_manifest

    def forgetful(self: LayoutRegistry, manifest: object, tag: Tag | None = None) -> None:
        put(self, ImageIndex.build((), {}) if tag else manifest, tag)  # type: ignore[arg-type]

    monkeypatch.setattr(LayoutRegistry, "put_manifest", forgetful)
    with pytest.raises(TagMoved) as caught:
        attach(registry, subject, [artifact("a")], locks=tmp_path / "cache")
    assert caught.value.retryable


class Api:
    """A registry with the referrers API, in memory, as far as attaching needs one."""

    def __init__(self, answer: Callable[[Call, Api], None]) -> None:
        self.answer = answer
        self.manifests: dict[str, bytes] = {}
        self.guard = threading.Lock()

    def __call__(self, call: Call, asked: Asked) -> None:
        path = urlsplit(asked.path).path
        if "/referrers/" in path:
            self.answer(call, self)
        elif "/manifests/" in path and asked.method == "PUT":
            with self.guard:
                self.manifests[path.rpartition("/")[2]] = asked.body
            call.answer(201)
        elif asked.method == "POST":
            call.answer(202, headers={"Location": "/upload"})
        elif asked.method == "PUT":
            call.answer(201)
        else:
            call.fail(404)

    def index(self, manifests: object) -> bytes:
        return encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})


SUBJECT = Descriptor("application/vnd.oci.image.manifest.v1+json", Digest.of(b"x"), 1)


def listed_by_api(call: Call, api: Api) -> None:
    entries = [
        {**Descriptor.of(raw, SUBJECT.media_type).to_json(), "artifactType": json.loads(raw)["artifactType"]}
        for raw in api.manifests.values()
    ]
    call.answer(200, api.index(entries or None), {"Content-Type": OCI_INDEX})


def test_the_api_is_used_where_there_is_one(tmp_path: Path) -> None:
    with serving(api := Api(listed_by_api)) as server:
        registry = RemoteRegistry(Repository.parse(f"{server.host}/envs"), settings=QUICK)
        assert referrers(registry, SUBJECT.digest) == ()
        attach(registry, SUBJECT, [artifact("a"), artifact("b")], locks=tmp_path)
        assert len(referrers(registry, SUBJECT.digest, LOCK)) == 2
        assert referrers(registry, SUBJECT.digest, "text/plain") == ()
        assert not any(name.startswith("sha256-") for name in api.manifests)
        registry.close()


def html(call: Call, api: Api) -> None:
    call.answer(200, b"<html>welcome</html>", {"Content-Type": "text/html"})


@pytest.mark.parametrize("status", [400, 404, 405, 501, 200])
def test_no_api_is_known_by_its_answer(tmp_path: Path, status: int) -> None:
    answer = html if status == 200 else lambda call, api: call.fail(status)  # noqa: ARG005
    with serving(Api(answer)) as server:
        registry = RemoteRegistry(Repository.parse(f"{server.host}/envs"), settings=QUICK)
        assert registry.referrers(SUBJECT.digest) is None
        registry.close()


def two_pages(call: Call, api: Api) -> None:
    first = "page=2" not in call.path
    entry = Descriptor.of(b"first" if first else b"second", SUBJECT.media_type).to_json()
    address = f"<{urlsplit(call.path).path}?page=2>"
    link = {"Link": f'<x>; rel=prev, {address}; title="n"; rel="next"'} if first else {}
    call.answer(200, api.index([entry]), {"Content-Type": OCI_INDEX, **link})


def circle(call: Call, api: Api) -> None:
    here = call.path.rpartition("page=")[2]
    entry = Descriptor.of(here.encode(), SUBJECT.media_type).to_json()
    link = f"<{urlsplit(call.path).path}?page={'b' if here == 'a' else 'a'}>; rel=next"
    call.answer(200, api.index([entry]), {"Content-Type": OCI_INDEX, "Link": link})


def always_one_more(call: Call, api: Api, entries: int) -> None:
    page = int(call.path.rpartition("page=")[2] or 0) if "page=" in call.path else 0
    listed = [
        Descriptor.of(f"{page} {number}".encode(), SUBJECT.media_type).to_json() for number in range(entries)
    ]
    link = f"<{urlsplit(call.path).path}?page={page + 1}>; rel=next"
    call.answer(200, api.index(listed), {"Content-Type": OCI_INDEX, "Link": link})


@pytest.mark.parametrize(
    ("answer", "message", "most"),
    [
        (circle, "on pages without end", 5),
        (lambda call, api: always_one_more(call, api, 0), "on pages without end", 20),
        (lambda call, api: always_one_more(call, api, 3000), "more than 10000", 5),
    ],
    ids=["a circle", "empty pages", "long pages"],
)
def test_pages_without_end_are_refused(answer: Callable[[Call, Api], None], message: str, most: int) -> None:
    asked: list[str] = []

    def counted(call: Call, api: Api) -> None:
        asked.append(call.path)
        answer(call, api)

    with serving(Api(counted)) as server:
        registry = RemoteRegistry(Repository.parse(f"{server.host}/envs"), settings=QUICK)
        with pytest.raises(IntegrityError, match=message):
            registry.referrers(SUBJECT.digest)
        registry.close()
    assert len(asked) <= most


def test_pages_are_followed() -> None:
    with serving(Api(two_pages)) as server:
        registry = RemoteRegistry(Repository.parse(f"{server.host}/envs"), settings=QUICK)
        assert len(registry.referrers(SUBJECT.digest) or ()) == 2
        registry.close()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda call, api: call.fail(503), Unavailable),  # noqa: ARG005
        (
            lambda call, api: call.answer(200, api.index("x"), {"Content-Type": OCI_INDEX}),
            IntegrityError,
        ),
        (
            lambda call, api: call.answer(
                200, api.index([]), {"Content-Type": OCI_INDEX, "Link": '<http://127.0.0.2/>; rel="next"'}
            ),
            IntegrityError,
        ),
    ],
)
def test_an_api_in_trouble_is_not_an_empty_list(
    answer: Callable[[Call, Api], None], kind: type[EnvbuildError]
) -> None:
    with serving(Api(answer)) as server:
        registry = RemoteRegistry(Repository.parse(f"{server.host}/envs"), settings=QUICK)
        with pytest.raises(kind):
            referrers(registry, SUBJECT.digest)
        registry.close()


# What has the tag of a list and is none


def images_of(registry: Registry, *, platforms: bool) -> ImageIndex:
    """An index over two images, as one for several platforms is."""
    entries = []
    for architecture in ("amd64", "arm64"):
        image = put_image(registry, architecture)
        registry.put_manifest(image)
        platform = Platform("linux", architecture) if platforms else None
        entries.append(replace(image.descriptor, platform=platform))
    index = ImageIndex.build(tuple(entries), {})
    registry.put_manifest(index, Tag("v1"))
    return index


@pytest.mark.parametrize("platforms", [True, False])
def test_an_index_under_the_tag_of_a_list_is_not_taken_for_one(
    registry: Registry, tmp_path: Path, platforms: bool
) -> None:
    subject = put_image(registry, "subject")
    registry.put_manifest(subject, Tag("v2"))
    index = images_of(registry, platforms=platforms)
    tag = fallback_tag(subject.descriptor.digest)
    registry.put_manifest(index, tag)
    assert referrers(registry, subject.descriptor.digest) == ()
    with pytest.raises(RegistryError, match=f"names {index.descriptor.digest} and no list"):
        attach(registry, subject.descriptor, [artifact("a")], locks=tmp_path)
    assert registry.get_manifest(tag) == index, "it was not replaced"


def test_an_image_under_the_tag_of_a_list_stays(registry: Registry, tmp_path: Path) -> None:
    subject, other = put_image(registry, "subject"), put_image(registry, "other")
    registry.put_manifest(subject, Tag("v2"))
    tag = fallback_tag(subject.descriptor.digest)
    registry.put_manifest(other, tag)
    assert referrers(registry, subject.descriptor.digest) == ()
    with pytest.raises(RegistryError, match="no list"):
        attach(registry, subject.descriptor, [artifact("a")], locks=tmp_path)
    assert registry.get_manifest(tag) == other


def test_a_list_without_types_is_one_if_its_entries_say_so(registry: Registry, subject: Descriptor) -> None:
    """As go-containerregistry wrote it."""
    attached = artifact("a").manifest(subject)
    registry.put_blob(Descriptor.of(b"{}", OCI_EMPTY), lambda: io.BytesIO(b"{}"))
    registry.put_blob(attached.layers[0], lambda: io.BytesIO(b'"a"'))
    registry.put_manifest(attached)
    listed = ImageIndex.build((attached.descriptor,), {})
    registry.put_manifest(listed, fallback_tag(subject.digest))
    assert [entry.digest for entry in referrers(registry, subject.digest)] == [attached.descriptor.digest]


def test_a_registry_that_answers_with_the_subject_itself(
    registry_server: RegistryServer, tmp_path: Path
) -> None:
    """GitLab reads the tag ``sha256-HEX`` as the digest; it has no referrers API."""
    behind = relay(registry_server.host)
    written: list[str] = []

    def gitlab(call: Call, asked: Asked) -> None:
        if asked.method in {"PUT", "POST", "PATCH"}:
            written.append(f"{asked.method} {asked.path}")
            call.answer(202 if asked.method == "POST" else 201, headers={"Location": "/upload"})
            return
        behind(call, replace(asked, path=asked.path.replace("/manifests/sha256-", "/manifests/sha256:")))

    direct = RemoteRegistry(registry_server.repository())
    index = images_of(direct, platforms=True)
    with serving(gitlab) as server:
        there = RemoteRegistry(Repository.parse(f"{server.host}/{direct.repository.path}"), settings=QUICK)
        assert there.get_manifest(fallback_tag(index.descriptor.digest)) == index
        assert referrers(there, index.descriptor.digest) == ()
        with pytest.raises(RegistryError, match="names the image itself and no list") as caught:
            attach(there, index.descriptor, [artifact("a")], locks=tmp_path)
        assert "attach = false" in str(caught.value.hint)
        assert not [line for line in written if "sha256-" in line]
        there.close()
    direct.close()
