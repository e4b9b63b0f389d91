"""Digests, descriptors and the reader that lets no wrong byte pass."""

from __future__ import annotations

import hashlib
import io
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envbuild.digest import Descriptor, Digest, VerifyingReader
from envbuild.errors import IntegrityError, SpecError
from envbuild.platform import LINUX_AMD64

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class Dribble(io.RawIOBase):
    """A stream that gives at most so many bytes a read, as a socket does."""

    def __init__(self, content: bytes, step: int) -> None:
        super().__init__()
        self._rest, self._step = content, step

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        taken = self._rest[: min(size if size >= 0 else self._step, self._step)]
        self._rest = self._rest[len(taken) :]
        return taken


def reader(content: bytes, promised: bytes | Descriptor, step: int = 1 << 20) -> VerifyingReader:
    descriptor = promised if isinstance(promised, Descriptor) else Descriptor.of(promised, "x/y")
    return VerifyingReader(Dribble(content, step), descriptor, "the blob")  # type: ignore[arg-type]


def test_known_digest() -> None:
    assert str(Digest.of(b"")) == f"sha256:{EMPTY}"
    assert Digest.parse(f"sha256:{EMPTY}") == Digest(EMPTY)
    assert Digest(EMPTY).short == "e3b0c44298fc"
    assert Digest.of(bytearray(b"ab")) == Digest.of(memoryview(b"ab")) == Digest.of(b"ab")


@given(st.binary())
def test_a_digest_survives_its_own_spelling(content: bytes) -> None:
    digest = Digest.of(content)
    assert Digest.parse(str(digest)) == digest
    assert pickle.loads(pickle.dumps(digest)) == digest  # noqa: S301 - made in this line
    assert digest.verify(content, "x") is content


@pytest.mark.parametrize(
    "text",
    [
        "",
        EMPTY,
        f"sha512:{EMPTY}",
        f"SHA256:{EMPTY}",
        f"sha256:{EMPTY.upper()}",
        f"sha256:{EMPTY[:-1]}",
        f"sha256:{EMPTY}0",
        f"sha256:{EMPTY}\n",
        f" sha256:{EMPTY}",
        f"sha256: {EMPTY}",
        "sha256:../../etc/passwd",
        "sha256:" + "\N{ARABIC-INDIC DIGIT ZERO}" * 64,
        f"sha256:sha256:{EMPTY}",
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="64"):
        Digest.parse(text)


def test_verify_names_what_was_seen_and_expected() -> None:
    with pytest.raises(IntegrityError, match=f"the index has digest .*{Digest.of(b'b').hex}.*{EMPTY}"):
        Digest(EMPTY).verify(b"b", "the index")


def test_a_descriptor_as_json() -> None:
    plain = Descriptor.of(b"abc", "x/y")
    digest = f"sha256:{hashlib.sha256(b'abc').hexdigest()}"
    assert plain.to_json() == {"mediaType": "x/y", "digest": digest, "size": 3}
    full = Descriptor("x/y", plain.digest, 3, {"a": "1"}, LINUX_AMD64, "t/u")
    assert full.to_json() == {
        "mediaType": "x/y",
        "digest": digest,
        "size": 3,
        "artifactType": "t/u",
        "platform": {"architecture": "amd64", "os": "linux"},
        "annotations": {"a": "1"},
    }


def test_annotating_gives_a_new_descriptor() -> None:
    first = Descriptor.of(b"", "x/y").annotated(a="1")
    second = first.annotated(a="2", b="3")
    assert dict(first.annotations) == {"a": "1"}
    assert dict(second.annotations) == {"a": "2", "b": "3"}
    assert hash(first) == hash(second)
    assert first != second


@given(content=st.binary(max_size=300), step=st.integers(1, 64), size=st.integers(1, 400))
def test_the_right_bytes_pass(content: bytes, step: int, size: int) -> None:
    stream = reader(content, content, step)
    taken = bytearray()
    while piece := stream.read(size):
        taken += piece
    assert bytes(taken) == content


@given(content=st.binary(max_size=200), other=st.binary(max_size=200), step=st.integers(1, 64))
def test_other_bytes_never_pass(content: bytes, other: bytes, step: int) -> None:
    if content == other:
        return
    with pytest.raises(IntegrityError, match="the blob"):
        reader(content, other, step).readall()


def test_the_last_bytes_are_held_back_until_they_are_verified() -> None:
    descriptor = Descriptor("x/y", Digest.of(b"other"), 6)
    stream = reader(b"abcdef", descriptor, step=3)
    assert stream.read(3) == b"abc"
    with pytest.raises(IntegrityError, match="has digest"):
        stream.read(3)


@pytest.mark.parametrize("content", [b"abc", b"abcd", b"abcdefgh" * 100])
def test_no_byte_past_the_size_is_given_out(content: bytes) -> None:
    descriptor = Descriptor("x/y", Digest.of(content[:2]), 2)
    with pytest.raises(IntegrityError, match=r"expected|more than"):
        reader(content, descriptor).readall()


def test_a_short_stream_is_seen() -> None:
    stream = reader(b"ab", b"abc")
    assert stream.read(10) == b"ab"
    with pytest.raises(IntegrityError, match="gave 2 bytes, expected 3"):
        stream.read(10)


def test_an_empty_read_is_not_the_end() -> None:
    stream = reader(b"abc", b"abc")
    assert stream.read(0) == b""
    assert stream.readall() == b"abc"
    assert stream.read(5) == b""


def test_an_empty_blob_is_verified_too() -> None:
    assert reader(b"", b"").readall() == b""
    with pytest.raises(IntegrityError, match="has digest"):
        reader(b"", Descriptor("x/y", Digest.of(b"a"), 0)).readall()


def test_closing_closes_the_stream_below() -> None:
    below = io.BytesIO(b"abc")
    stream = VerifyingReader(below, Descriptor.of(b"abc", "x/y"), "x")
    assert stream.readable()
    stream.close()
    stream.close()
    assert below.closed
