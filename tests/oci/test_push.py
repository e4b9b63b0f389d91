"""Large blobs in pieces: what the registry has is not sent again, and a registry that cannot is humoured."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections import Counter
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import pytest

from envbuild.deadline import Deadline
from envbuild.digest import Descriptor
from envbuild.errors import IntegrityError, RegistryError, Unavailable
from envbuild.oci.manifest import OCI_LAYER_GZIP
from envbuild.oci.open import Settings
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository
from oci_contract import Source, read
from parts.fault_proxy import BASIC, Case, FaultProxy, proxying
from parts.fault_server import Asked, Call, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from parts.registry_server import RegistryServer

CONTENT = Random(0).randbytes(10_500)
BLOB = Descriptor.of(CONTENT, OCI_LAYER_GZIP)
PIECES = Settings(connect_timeout=2, read_timeout=2, retries=3, chunk=1000, patience=1.0)


class Store:
    """A registry's uploads, as the specification has them, with a fault before some of the requests.

    Args:
        faults: By the number of the PATCH, from 1: ``before`` and ``after`` it has its effect the connection
            ends; ``half`` of it has its effect.
        kept: Whether the registry knows uploads after a fault.
    """

    def __init__(self, faults: dict[int, str], *, kept: bool = True) -> None:
        self.faults = faults
        self.kept = kept
        self.content = b""
        self.upload = 0
        self.patches: list[int] = []
        self.stored: bytes | None = None
        self.guard = threading.Lock()

    def __call__(self, call: Call, asked: Asked) -> None:
        with self.guard:
            getattr(self, asked.method.lower())(call, asked)

    def head(self, call: Call, _: Asked) -> None:
        call.answer(200 if self.stored is not None else 404)

    def post(self, call: Call, _: Asked) -> None:
        self.content, self.upload = b"", self.upload + 1
        call.answer(202, headers={"Location": f"/upload/{self.upload}"})

    def get(self, call: Call, asked: Asked) -> None:
        if self.kept and asked.path == f"/upload/{self.upload}":
            call.answer(204, headers=self.state())
        else:
            call.fail(404, "BLOB_UPLOAD_UNKNOWN")

    def state(self) -> dict[str, str]:
        return {"Location": f"/upload/{self.upload}", "Range": f"0-{max(len(self.content) - 1, 0)}"}

    def patch(self, call: Call, asked: Asked) -> None:
        start, end = (int(each) for each in asked.headers["content-range"].split("-"))
        assert end - start + 1 == len(asked.body)
        self.patches.append(start)
        fault = self.faults.get(len(self.patches), "")
        if start != len(self.content):
            call.fail(416, "BLOB_UPLOAD_INVALID")
            return
        if fault != "before":
            self.content += asked.body[: len(asked.body) // 2] if fault == "half" else asked.body
        if fault:
            call.hang_up()
        else:
            call.answer(202, headers=self.state())

    def put(self, call: Call, asked: Asked) -> None:
        self.content += asked.body
        if hashlib.sha256(self.content).hexdigest() in asked.path:
            self.stored = self.content
        call.answer(201 if self.stored is not None else 400)

    def delete(self, call: Call, _: Asked) -> None:
        self.upload += 1
        call.answer(204)


def put(script: Store, content: bytes = CONTENT) -> Source:
    source = Source(content)
    with serving(script) as server:
        target = RemoteRegistry(Repository.parse(f"{server.host}/envs"), settings=PIECES)
        try:
            assert target.put_blob(BLOB, source) is True
        finally:
            target.close()
    assert all(stream.closed for stream in source.streams)
    return source


def test_in_pieces() -> None:
    store = Store({})
    assert put(store).calls == 1
    assert store.stored == CONTENT
    assert store.patches == [*range(0, 10_500, 1000)]


@pytest.mark.parametrize(
    ("fault", "sent"), [("before", 11_500), ("after", 10_500), ("half", 11_000)], ids=["none", "all", "half"]
)
def test_goes_on_from_where_the_registry_is(fault: str, sent: int) -> None:
    store = Store({5: fault})
    put(store)
    assert store.stored == CONTENT
    assert store.upload == 1, "nothing was begun anew"
    starts = {"before": 4000, "after": 5000, "half": 4500}
    assert store.patches[5] == starts[fault]
    assert sum(min(1000, 10_500 - start) for start in store.patches) == sent


def test_a_lost_upload_begins_anew() -> None:
    store = Store({5: "before"}, kept=False)
    assert put(store).calls == 2
    assert store.stored == CONTENT
    assert (store.upload, store.patches[5]) == (2, 0)


def test_uploads_that_are_always_lost_end() -> None:
    store = Store(dict.fromkeys(range(3, 100, 3), "before"), kept=False)
    with pytest.raises(RegistryError, match="too often"):
        put(store)
    assert store.upload == 1 + PIECES.retries


def test_wrong_bytes_are_never_finished() -> None:
    store = Store({})
    with pytest.raises(IntegrityError):
        put(store, CONTENT[:-1] + b"?")
    assert store.stored is None


def test_a_registry_that_takes_no_pieces_gets_the_whole() -> None:
    class Old(Store):
        def patch(self, call: Call, _: Asked) -> None:
            call.fail(405, "UNSUPPORTED")

    store = Old({})
    put(store)
    assert store.stored == CONTENT


def test_the_least_size_of_pieces_is_heeded() -> None:
    class Coarse(Store):
        def post(self, call: Call, _: Asked) -> None:
            self.upload += 1
            headers = {"Location": f"/upload/{self.upload}", "OCI-Chunk-Min-Length": "4000"}
            call.answer(202, headers=headers)

    store = Coarse({})
    put(store)
    assert store.stored == CONTENT
    assert store.patches == [0, 4000, 8000]


@pytest.mark.parametrize("said", ["0-999", "0-0", "bytes=0-999", "0-99999999", "", "nonsense"])
def test_an_accepted_piece_counts_whatever_its_range_says(said: str) -> None:
    """ECR's ``Range`` stays at the first piece; others answer zero, or nothing."""

    class Stale(Store):
        def patch(self, call: Call, asked: Asked) -> None:
            self.patches.append(int(asked.headers["content-range"].split("-")[0]))
            if self.patches[-1] != len(self.content):
                call.fail(416, "BLOB_UPLOAD_INVALID")
                return
            self.content += asked.body
            call.answer(
                202, headers={"Location": f"/upload/{self.upload}", **({"Range": said} if said else {})}
            )

        def get(self, _: Call, __: Asked) -> None:
            raise AssertionError("a registry that accepts everything need not be asked")

    store = Stale({})
    assert put(store).calls == 1
    assert store.stored == CONTENT
    assert store.patches == [*range(0, 10_500, 1000)]


@pytest.mark.parametrize("said", ["0-999", "0-0", "0-99999999"], ids=["stale", "zero", "too much"])
def test_a_stale_answer_after_a_failure_ends_in_one_whole_upload(said: str) -> None:
    class Stale(Store):
        def state(self) -> dict[str, str]:
            return {"Location": f"/upload/{self.upload}", "Range": said}

    store = Stale({5: "after"})
    put(store)
    assert store.stored == CONTENT
    assert len(store.patches) <= 5 + 2, "two rounds, and then the whole"
    assert store.upload == 3, "the first one, its end, and the whole"


def test_pieces_that_are_never_taken_end() -> None:
    class Full(Store):
        def patch(self, call: Call, _: Asked) -> None:
            self.patches.append(0)
            call.fail(416, "BLOB_UPLOAD_INVALID")

        def put(self, call: Call, _: Asked) -> None:
            call.fail(507)

    store = Full({})
    with pytest.raises(Unavailable, match="507"):
        put(store)
    assert len(store.patches) == 2


def test_pieces_that_are_put_together_wrongly_are_sent_whole() -> None:
    """The bytes were hashed on their way: a registry that finds another digest has lost count."""

    class Forgetful(Store):
        def patch(self, call: Call, _: Asked) -> None:
            call.answer(202, headers=self.state())

    store = Forgetful({})
    put(store)
    assert store.stored == CONTENT


def test_trouble_of_the_source_is_not_blamed_on_the_target() -> None:
    """What is copied may come from a registry in trouble: the target is not asked again for that."""
    store = Store({})

    with serving(lambda call, _: call.fail(503)) as broken, serving(store) as server:
        settings = replace(PIECES, retries=1)
        source = RemoteRegistry(Repository.parse(f"{broken.host}/envs"), settings=settings)
        target = RemoteRegistry(Repository.parse(f"{server.host}/envs"), settings=settings)
        with pytest.raises(Unavailable, match="503"):
            target.put_blob(BLOB, lambda: source.open_blob(BLOB))
        assert len(broken.asked) <= 4, "at 0, 0.1 and 0.7 s"
        assert store.upload <= 1


class TestRealServer:
    @pytest.fixture
    def proxy(
        self, registry: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[FaultProxy]:
        with proxying(registry.port, "127.0.0.1:9") as proxy:
            auths = {proxy.host: {"auth": BASIC.removeprefix("Basic ")}}
            (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
            monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
            yield proxy

    @pytest.mark.parametrize("fault", ["503", "reset", "truncated", "429"])
    def test_pieces_that_fail(self, proxy: FaultProxy, fault: str) -> None:
        """Distribution keeps an upload whose request never came, and drops one whose answer was lost."""
        for seed in range(4):
            case = proxy.add(f"{fault}-{seed}", Case("patch upload", fault, 2, 5, Random(seed)))
            repository = Repository.parse(f"{proxy.host}/{fault}-{seed}/envs")
            target = RemoteRegistry(repository, settings=PIECES)
            assert target.by(Deadline.after(30)).put_blob(BLOB, lambda: io.BytesIO(CONTENT)) is True
            assert read(target, BLOB) == CONTENT
            assert case.failed == 2
            sent = Counter(operation for operation, _, status in case.answers if status == 202)
            if fault in {"503", "429"}:
                assert sent == {"start upload": 1, "patch upload": 11}, "what was stored is not sent again"
            assert sent["start upload"] <= 3
            target.close()
