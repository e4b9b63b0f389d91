"""What BuildKit tells about a running build, turned into progress events and into a failure's message.

Sources: ``control.proto`` of BuildKit (``StatusResponse``: 1 vertexes, 2 statuses, 3 logs), which the Docker
Engine sends base64-encoded as ``moby.buildkit.trace``; and ``docker buildx build --progress=rawjson``.
"""

from __future__ import annotations

import base64
import json
import re
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from envbuild.errors import BuildError, IntegrityError, StepFailed
from envbuild.progress import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuild.progress import Progress

OUT_OF_MEMORY: Final = (
    "it was killed, mostly because memory ran out: raise step_memory, or give the engine more memory"
)
TAIL_LINES: Final = 20
"""How many of a failed step's last lines its error shows."""

_MAX_LINE: Final = 4096
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_EXIT_CODE: Final = re.compile(r"(?:exit code: |non-zero code: |exit status )(\d+)\s*\Z")
_KILLED: Final = "137"
_LEGACY_STEP: Final = re.compile(r"(?:Step \d+/\d+ |STEP \d+/\d+): (.*)", re.DOTALL)
_LEGACY_END: Final = re.compile(r"COMMIT |Successfully (?:built|tagged) ")
_LEGACY_REMARK: Final = re.compile(r" ---> |--> [0-9a-f]|Removing intermediate container ")


@dataclass(frozen=True, slots=True)
class Vertex:
    """A node of the build graph: mostly a Dockerfile instruction.

    Attributes:
        digest: The node's identity.
        name: What BuildKit calls it, as ``[stage-0 2/3] RUN make``.
        cached: It was not run: its result was there.
        started: It has begun.
        completed: It has ended, well or badly.
        error: Why it failed; empty if it did not.
    """

    digest: str
    name: str
    cached: bool = False
    started: bool = False
    completed: bool = False
    error: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Log:
    """Bytes that a vertex wrote to its standard output (stream 1) or standard error (2)."""

    vertex: str
    stream: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Trace:
    """One message of BuildKit's progress."""

    vertexes: tuple[Vertex, ...] = ()
    logs: tuple[Log, ...] = ()


def decode_trace(message: bytes) -> Trace:
    """Decode a ``StatusResponse``; fields that nobody needs are skipped.

    Raises:
        IntegrityError: The bytes are not a protobuf message.
    """
    vertexes: list[Vertex] = []
    logs: list[Log] = []
    for number, value in _fields(message):
        if number == 1 and isinstance(value, bytes):
            vertexes.append(_vertex(value))
        elif number == 3 and isinstance(value, bytes):
            logs.append(_log(value))
    return Trace(tuple(vertexes), tuple(logs))


def decode_rawjson(line: str | bytes) -> Trace:
    """Decode a line of ``--progress=rawjson``; any other line gives an empty trace."""
    try:
        document = json.loads(line)
    except ValueError:
        return Trace()
    if not isinstance(document, dict):
        return Trace()
    vertexes = tuple(
        Vertex(
            str(entry.get("digest", "")),
            str(entry.get("name", "")),
            bool(entry.get("cached")),
            "started" in entry,
            "completed" in entry,
            str(entry.get("error", "")),
        )
        for entry in document.get("vertexes") or ()
    )
    logs = tuple(
        Log(
            str(entry.get("vertex", "")),
            int(entry.get("stream", 1)),
            base64.b64decode(entry.get("data") or ""),
        )
        for entry in document.get("logs") or ()
    )
    return Trace(vertexes, logs)


def _vertex(message: bytes) -> Vertex:
    seen = dict(_fields(message))  # a repeated field that matters (inputs) is not read
    return Vertex(
        _text(seen.get(1)), _text(seen.get(3)), bool(seen.get(4)), 5 in seen, 6 in seen, _text(seen.get(7))
    )


def _log(message: bytes) -> Log:
    seen = dict(_fields(message))
    data, stream = seen.get(4, b""), seen.get(3, 1)
    return Log(
        _text(seen.get(1)), stream if isinstance(stream, int) else 1, data if isinstance(data, bytes) else b""
    )


def _text(value: int | bytes | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: varints as numbers, everything else as bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size, at = _varint(message, at) if wire == _BYTES else ({_FIXED64: 8, _FIXED32: 4}.get(wire, -1), at)
        if size < 0 or at + size > len(message):
            raise IntegrityError(f"the engine's progress is not protobuf: wire type {wire} at byte {at}")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at + count + 1
    raise IntegrityError(f"the engine's progress is not protobuf: no varint at byte {at}")


@dataclass(slots=True)
class StepLog:
    """Follows one build: tells its progress, remembers each step's last lines, explains its failure.

    Attributes:
        progress: Where events go.
        redact: Takes the values of secrets out of a text; it sees whole lines, and of a line without end
            pieces that overlap.
        overlap: The number of characters of the longest of them.
        error: What the engine said went wrong, as it said it; empty while all is well.
    """

    progress: Progress
    redact: Callable[[str], str] = str
    overlap: int = 0
    error: str = field(default="", repr=False)
    _vertexes: dict[str, Vertex] = field(default_factory=dict, repr=False)
    _tails: dict[str, deque[str]] = field(default_factory=dict, repr=False)
    _partial: dict[tuple[str, int], bytes] = field(default_factory=dict, repr=False)
    _done: set[str] = field(default_factory=set)
    _legacy: str = ""

    def feed(self, event: dict[str, Any]) -> None:
        """Take one JSON object of the engine's build stream."""
        if event.get("id") == "moby.buildkit.trace":
            self.follow(decode_trace(base64.b64decode(event.get("aux") or "")))
        elif "error" in event:
            detail = event.get("errorDetail") or {}
            self.error = str(detail.get("message") or event["error"]).strip()
        elif isinstance(text := event.get("stream"), str):
            self._feed_legacy(text)

    def follow(self, trace: Trace) -> None:
        """Take one message of BuildKit."""
        for vertex in trace.vertexes:
            self._see(vertex)
        for log in trace.logs:
            self._hear(log.vertex, log.stream, log.data)

    def _see(self, vertex: Vertex) -> None:
        before = self._vertexes.get(vertex.digest, Vertex(vertex.digest, vertex.name))
        self._vertexes[vertex.digest] = vertex
        if vertex.started and not before.started and not vertex.cached:
            self._tell(vertex.name, "start")
        if vertex.completed and vertex.digest not in self._done:
            self._done.add(vertex.digest)
            self._flush(vertex.digest)
            self._tell(vertex.name, "reused" if vertex.cached else "done")

    def _hear(self, digest: str, stream: int, data: bytes) -> None:
        *lines, rest = (self._partial.pop((digest, stream), b"") + data).split(b"\n")
        for line in lines:
            self._line(digest, line)
        if len(rest) > _MAX_LINE + self.overlap:
            # A secret may have begun at its end: what is whole is taken out, and the end is held back.
            text = self.redact(rest.decode(errors="surrogateescape"))
            cut = max(0, len(text) - self.overlap)
            if cut:
                self._line(digest, text[:cut].encode(errors="surrogateescape"))
            rest = text[cut:].encode(errors="surrogateescape")
        if rest:
            self._partial[digest, stream] = rest

    def _flush(self, digest: str) -> None:
        for key in [key for key in self._partial if key[0] == digest]:
            self._line(digest, self._partial.pop(key))

    def _line(self, digest: str, line: bytes) -> None:
        text = self.redact(line.decode(errors="surrogateescape").rstrip("\r"))[:_MAX_LINE]
        text = text.encode(errors="surrogateescape").decode(errors="replace")
        self._tails.setdefault(digest, deque(maxlen=TAIL_LINES)).append(text)
        name = self._vertexes[digest].name if digest in self._vertexes else digest
        self._tell(name, "output", text)

    def _feed_legacy(self, text: str) -> None:
        """A line of the engine's older builder, or of Podman's."""
        if step := _LEGACY_STEP.match(text):
            self._end_legacy()
            self._legacy = text.strip()
            self._vertexes[self._legacy] = Vertex(self._legacy, step[1].strip(), started=True)
            self._tell(step[1].strip(), "start")
        elif _LEGACY_END.match(text):
            self._end_legacy()
        elif self._legacy and not _LEGACY_REMARK.match(text):
            self._hear(self._legacy, 1, text.encode())

    def _end_legacy(self) -> None:
        if self._legacy:
            self._flush(self._legacy)
            self._tell(self._vertexes[self._legacy].name, "done")
        self._legacy = ""

    def _tell(self, name: str, state: str, text: str = "") -> None:
        self.progress(Event("step", self.redact(name), state, text=text))

    def failure(self) -> BuildError:
        """The error of a build that failed: the step, its exit code and its last lines.

        It is a :class:`StepFailed` where a command ended with an exit code, and else the engine's own.
        """
        failed = next((vertex for vertex in self._vertexes.values() if vertex.error), None)
        if failed is None and self._legacy and _EXIT_CODE.search(self.error):
            failed = self._vertexes[self._legacy]
        if failed is None:
            said = self.error or "no reason given"
            message = self.redact(f"the engine could not build the steps: {said}")
            return BuildError(message, hint=_hint(said, ""))
        self._flush(failed.digest)
        said = failed.error or self.error
        code = _EXIT_CODE.search(said)
        why = f"with exit code {code[1]}" if code else f": {said}"
        head = self.redact(f"the step {failed.name!r} failed {why}".replace(" :", ":"))
        lines = self._tails.get(failed.digest, ())
        tail = "; its last lines:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""
        hint = _hint(said, "\n".join(lines))
        if code is None:
            return BuildError(head + tail, hint=hint)
        return StepFailed(head + tail, hint=hint or (OUT_OF_MEMORY if code[1] == _KILLED else None))


def _hint(error: str, output: str) -> str | None:
    text = f"{error}\n{output}".lower()
    if "exec format error" in text:
        return "the image is for another processor: install emulation (qemu-user-static) on the engine's host"
    if "no space left on device" in text:
        return "the engine's disk is full: docker builder prune"
    if "could not resolve" in text or "temporary failure" in text:
        return "the step had no name resolution: check the engine's network and DNS settings"
    return None
