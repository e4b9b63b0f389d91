"""BuildKit's progress: the wire format, events and failures."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envbuild.build.secrets import Secrets
from envbuild.build.trace import Log, StepLog, Trace, Vertex, decode_rawjson, decode_trace
from envbuild.errors import IntegrityError, StepFailed
from envbuild.progress import Event, silent

# Recorded from Docker Engine 20.10.24: a step that failed, and a line that another one wrote.
RECORDED_FAILURE = (
    "CtQCCkdzaGEyNTY6MDk0MjAzY2MwYjZlMjFjMWFkNDI0NzQxZmRkOGFlMzJjMTE0ZWRhMTMwN2YyNTA4ZTY0OTY1ZWU4ODJh"
    "M2RjNxJHc2hhMjU2OjE3NjhiYTIzMGMzY2NkNjg4ZjkyODFlYTBkZGY0NmE1MTI5ZDM3ODk2ZWY2OTk2MjIyNWE5OGQwODlh"
    "NjgwMmUaM1tzdGFnZS0wIDYvNl0gUlVOIGVjaG8gYmVmb3JlOyBlY2hvIGVyciA+JjI7IGV4aXQgNyoMCKTgldgGEKnauusC"
    "MgwIpOCV2AYQyLOI9wI6b2V4ZWN1dG9yIGZhaWxlZCBydW5uaW5nIFsvYmluL3NoIC1jIGVjaG8gYmVmb3JlOyBlY2hvIGVy"
    "ciA+JjI7IGV4aXQgN106IHVuYWJsZSB0byBmaW5kIHVzZXIgMDogaW52YWxpZCBhcmd1bWVudA=="
)
RECORDED_LOG = (
    "GmMKR3NoYTI1NjowMDQwYThiMGVmMDI3ODc5MjljZTU4YmZjYWEwYWZjMDVlZDM0YWQyMTU0NmZjMmU0MGU2YTgzYWFiOGUx"
    "YTczEgwIouCV2AYQhKbRkQIYASIIaGkgYXZhbAo="
)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def vertex(digest: str, name: str, *, cached: bool = False, ended: bool = False, error: str = "") -> bytes:
    parts = (
        field(1, digest.encode())
        + field(2, b"sha256:input")
        + field(2, b"sha256:other")
        + field(3, name.encode())
    )
    parts += field(4, 1) if cached else b""
    parts += field(5, field(1, 1_700_000_000))
    parts += field(6, field(1, 1_700_000_001)) if ended else b""
    return field(1, parts + (field(7, error.encode()) if error else b""))


def log(digest: str, data: bytes, stream: int = 1) -> bytes:
    return field(3, field(1, digest.encode()) + field(2, field(1, 5)) + field(3, stream) + field(4, data))


def test_a_message_with_everything_in_it() -> None:
    message = (
        vertex("d", "RUN é", ended=True, error="exit code: 2") + field(2, b"status") + log("d", b"x\n", 2)
    )
    message += field(9, 7) + varint(10 << 3 | 1) + bytes(8) + varint(11 << 3 | 5) + bytes(4)
    assert decode_trace(message) == Trace(
        (Vertex("d", "RUN é", started=True, completed=True, error="exit code: 2"),), (Log("d", 2, b"x\n"),)
    )


def test_what_an_engine_really_sent() -> None:
    (failed,) = decode_trace(base64.b64decode(RECORDED_FAILURE)).vertexes
    assert failed.name == "[stage-0 6/6] RUN echo before; echo err >&2; exit 7"
    assert failed.error.startswith("executor failed running [/bin/sh -c echo before; echo err >&2; exit 7]")
    assert failed.started
    assert failed.completed
    (line,) = decode_trace(base64.b64decode(RECORDED_LOG)).logs
    assert (line.stream, line.data) == (1, b"hi aval\n")


@given(st.binary(max_size=200))
def test_other_bytes_are_refused_or_skipped(message: bytes) -> None:
    with contextlib.suppress(IntegrityError):  # and nothing else
        assert isinstance(decode_trace(message), Trace)


@pytest.mark.parametrize("message", [b"\x0a\x05ab", b"\x0a", b"\xff" * 11, b"\x0b", b"\x09\x00"])
def test_cut_and_broken_messages(message: bytes) -> None:
    with pytest.raises(IntegrityError, match="not protobuf"):
        decode_trace(message)


def test_the_json_of_buildx() -> None:
    line = {
        "vertexes": [
            {"digest": "d", "name": "RUN a", "started": "2026", "completed": "2026", "error": "bad"}
        ],
        "logs": [{"vertex": "d", "stream": 2, "data": base64.b64encode(b"out").decode()}],
    }
    assert decode_rawjson(json.dumps(line)) == Trace(
        (Vertex("d", "RUN a", started=True, completed=True, error="bad"),), (Log("d", 2, b"out"),)
    )
    for other in ("ERROR: no", "[]", "", "{"):
        assert decode_rawjson(other) == Trace()


def trace_event(message: bytes) -> dict[str, str]:
    return {"id": "moby.buildkit.trace", "aux": base64.b64encode(message).decode()}


def test_events_of_a_step() -> None:
    seen: list[Event] = []
    steps = StepLog(seen.append)
    steps.feed(trace_event(vertex("a", "RUN one")))
    steps.feed(trace_event(log("a", b"first\nsec")))
    steps.feed(trace_event(log("a", b"ond\r\nlast")))
    steps.feed(trace_event(vertex("a", "RUN one", ended=True)))
    steps.feed(trace_event(vertex("a", "RUN one", ended=True)))
    steps.feed(trace_event(vertex("b", "RUN two", cached=True, ended=True)))
    assert [(event.subject, event.state, event.text) for event in seen] == [
        ("RUN one", "start", ""),
        ("RUN one", "output", "first"),
        ("RUN one", "output", "second"),
        ("RUN one", "output", "last"),
        ("RUN one", "done", ""),
        ("RUN two", "reused", ""),
    ]


def test_lines_of_the_two_streams_are_not_mixed_within_a_line() -> None:
    seen: list[str] = []
    steps = StepLog(lambda event: seen.append(event.text))
    for data, stream in ((b"ou", 1), (b"er", 2), (b"t\n", 1), (b"r\n", 2)):
        steps.feed(trace_event(log("a", data, stream)))
    assert seen == ["out", "err"]


def test_an_endless_line_does_not_fill_the_memory() -> None:
    lines: list[str] = []
    steps = StepLog(lambda event: lines.append(event.text))
    for _ in range(100):
        steps.feed(trace_event(log("a", b"x" * 1000)))
    assert sum(len(kept) for kept in steps._partial.values()) <= 5000
    assert 0 < max(map(len, lines)) <= 4096


def test_a_failure_shows_the_last_lines_of_the_step_that_failed() -> None:
    steps = StepLog(silent)
    steps.feed(trace_event(vertex("a", "RUN good", ended=True) + vertex("b", "RUN bad")))
    steps.feed(trace_event(log("a", b"of another step\n")))
    steps.feed(trace_event(log("b", b"".join(b"%d\n" % number for number in range(50)) + b"unfinished")))
    steps.feed(trace_event(vertex("b", "RUN bad", ended=True, error="executor failed: exit code: 12")))
    steps.feed({"error": "failed to solve", "errorDetail": {"message": "failed to solve: exit code: 12"}})
    lines = str(steps.failure()).splitlines()
    assert lines[0] == "the step 'RUN bad' failed with exit code 12; its last lines:"
    assert lines[1:] == [f"  {number}" for number in range(31, 50)] + ["  unfinished"]


def test_a_failure_of_the_older_builder() -> None:
    seen: list[Event] = []
    steps = StepLog(seen.append)
    for text in ("Step 1/2 : FROM base", " ---> 123", "Step 2/2 : RUN bad", " ---> Running in 1", "why\n"):
        steps.feed({"stream": text})
    steps.feed(
        {"errorDetail": {"code": 3, "message": "The command 'bad' returned a non-zero code: 3"}, "error": "x"}
    )
    assert str(steps.failure()) == "the step 'RUN bad' failed with exit code 3; its last lines:\n  why"
    assert [event.text for event in seen if event.state == "output"] == ["why"]


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("exec format error", "emulation"),
        ("write /x: no space left on device", "prune"),
        ("Could not resolve 'deb.debian.org'", "network"),
    ],
)
def test_hints(said: str, hint: str) -> None:
    steps = StepLog(silent)
    steps.feed(trace_event(vertex("a", "RUN x") + log("a", said.encode())))
    steps.feed(trace_event(vertex("a", "RUN x", ended=True, error="exit code: 1")))
    assert hint in (steps.failure().hint or "")


@pytest.mark.parametrize(
    ("said", "own"),
    [
        ("executor failed running [/bin/sh -c x]: exit code: 12", True),
        ('process "/bin/sh -c x" did not complete successfully: exit code: 137', True),
        ('error building at STEP "RUN x": error while running runtime: exit status 7', True),
        ("failed to create shim task: OCI runtime create failed", False),
        ("executor failed running [/bin/sh -c echo exit code: 5]: context canceled", False),
        ("failed to copy files: write /x: no space left on device", False),
    ],
)
def test_an_exit_code_is_a_commands_and_all_else_the_engines(said: str, own: bool) -> None:
    steps = StepLog(silent)
    steps.feed(trace_event(vertex("a", "RUN x", ended=True, error=said)))
    failure = steps.failure()
    assert isinstance(failure, StepFailed) is own
    assert ("memory" in (failure.hint or "")) is ("137" in said)


def test_secrets_are_taken_out_of_names_lines_and_failures() -> None:
    seen: list[Event] = []
    steps = StepLog(seen.append, lambda text: text.replace("hunter22", "***"))
    steps.feed(trace_event(vertex("a", "RUN hunter22") + log("a", b"a hun") + log("a", b"ter22\n")))
    steps.feed(trace_event(vertex("a", "RUN hunter22", ended=True, error="hunter22: bad")))
    assert "hunter22" not in repr(seen) + str(steps.failure())
    assert "a ***" in str(steps.failure())
    assert StepLog(silent, lambda _: "***", error="hunter22").failure().message == "***"


PEM = (
    b"-----BEGIN PRIVATE KEY-----\n"
    + b"".join(base64.b64encode(hashlib.sha384(bytes([line])).digest()) + b"\n" for line in range(20))
    + b"QUJDREVGR0g=\n-----END PRIVATE KEY-----\n"
)
NETRC = b"machine pypi.example.com\n  login me\n  password Sw0rdf1sh\n"


def written(value: bytes) -> dict[str, bytes]:
    """What programs print of a secret."""
    wrapped = base64.encodebytes(value)
    indented = b"".join(b"     1\t" + line + b"\r\n" for line in value.splitlines())
    return {
        "cat": value,
        "cat -n": indented,
        "cat -A": value.replace(b"\n", b"$\n"),
        "tr -d": value.replace(b"\n", b""),
        "echo $(cat)": b" ".join(value.split(b"\n")),
        "json": json.dumps({"key": value.decode()}).encode(),
        "repr": repr(value).encode(),
        "url": urllib.parse.quote(value).encode(),
        "base64": wrapped,
        "base64 -w0": base64.b64encode(value),
        "basic": base64.b64encode(b"me:" + value.strip()),
        "openssl": b"\n".join(wrapped.replace(b"\n", b"")[at : at + 64] for at in range(0, 9999, 64)),
        "behind much": b"x" * 4090 + value.replace(b"\n", b"\\n"),
        "in a line without end": b"x" * 9000 + value.replace(b"\n", b"") + b"y" * 9000,
    }


@pytest.mark.parametrize(
    "value",
    [PEM, NETRC, b"hunter22 and more", b"S3cret\xff\xfe9"],
    ids=["key", "netrc", "password", "bytes"],
)
@pytest.mark.parametrize("size", [1, 7, 64, 4096, 1 << 20])
def test_no_part_of_a_secret_is_shown_however_it_arrives(value: bytes, size: int) -> None:
    secrets = Secrets({"key": value})
    parts = [each for each in value.replace(b"\r", b"").split(b"\n") if each and b"-----" not in each]
    if value is NETRC:
        parts = [b"Sw0rdf1sh"]
    try:
        ways = written(value)
    except UnicodeDecodeError:
        ways = {"cat": value, "without end": b"x" * 4094 + value + b"y" * 9000}
    for way, output in ways.items():
        seen: list[str] = []
        steps = StepLog(lambda event: seen.append(event.text), secrets.redact, secrets.longest)  # noqa: B023
        for at in range(0, len(output), size):
            steps.feed(trace_event(log("a", output[at : at + size])))
        steps.feed(trace_event(vertex("a", "RUN x", ended=True, error=f"exit code: 1 {way}")))
        said = "\n".join(seen) + str(steps.failure())
        assert "***" in said or len(output) > 4000, way  # what is too long for a line is cut
        for part in parts:
            for form in (part, base64.b64encode(part)[4:-4], part[: max(6, len(part) * 2 // 3)]):
                assert form.decode(errors="replace") not in said, (way, part)


def test_what_all_keys_have_in_common_is_no_secret() -> None:
    secrets = Secrets({"key": PEM})
    text = "-----BEGIN PRIVATE KEY-----"
    assert secrets.redact(text) == text
    assert secrets.found_in(b"x" + text.encode() + b"\n") == frozenset()
    assert Secrets({"short": b"abc"}).redact("abc") == "abc"
