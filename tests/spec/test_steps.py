"""Docker steps: what is refused, what counts, and that nothing can be smuggled in."""

from __future__ import annotations

import json
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envbuild.errors import SpecError
from envbuild.spec.document import Mark
from envbuild.spec.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

MARK = Mark("steps", 1, 1)
SHA = "0123456789abcdef" * 4
COMMIT = "0123456789" * 4


def parse(text: str, args: Mapping[str, str] | None = None, context: Path | None = None) -> Steps:
    return Steps.parse(text, MARK, args=args or {}, context=context)


def canonical(text: str, args: Mapping[str, str] | None = None, context: Path | None = None) -> str:
    return json.dumps(parse(text, args, context).canonical(), sort_keys=True)


REFUSED = [
    ("COPY --from=builder /a /b", "no digest"),
    ("COPY --from=0 /a /b", "no digest"),
    ("COPY --from=debian:12 /a /b", "no digest"),
    ("COPY --from=debian@sha256:12 /a /b", "no digest"),
    (f"COPY --from=$X@sha256:{SHA} /a /b", "no digest"),
    ("ADD https://example.com/a /b", "no checksum"),
    ("ADD HTTPS://example.com/a /b", "no checksum"),
    ("ADD --checksum=sha256:12 https://example.com/a /b", "no checksum"),
    ("ARG U=https://example.com/a\nADD $U /b", "no checksum"),
    ("ENV U=https://example.com/\nADD ${U}a /b", "no checksum"),
    ("ARG U\nADD $U /b", "only during the build"),
    ("ADD $UNSET/a /b", "only during the build"),
    ('ADD ["https://example.com/a", "/b"]', "no checksum"),
    (f"ADD --checksum=sha256:{SHA} https://me:secret@example.com/a /b", "credentials"),
    ("ADD https://github.com/a/b.git /b", "no commit"),
    ("ADD https://github.com/a/b.git#main /b", "no commit"),
    ("ADD git@github.com:a/b.git /b", "no commit"),
    ("ADD github.com/a/b /b", "no commit"),
    ("ADD ftp://example.com/a /b", "unknown kind"),
    ("RUN --security=insecure a", "--security=insecure"),
    ("RUN --network=host a", "--network=host"),
    ("RUN --network=$N a", "not allowed"),
    ("RUN --mount=type=bind,from=debian,target=/a b", "no digest"),
    ("RUN --mount=type=cache,from=stage,target=/a b", "no digest"),
    ("RUN --mount=type=ssh a", "ssh"),
    ("RUN --mount=type=$T,target=/a b", "type"),
    ("RUN --mount=type=secret,id=$X b", "secret"),
    ("RUN --mount=type=cache,target=/a,id=a/../../b c", r"'\.\.'"),
    ("RUN --mount=type=cache,target=../a b", r"'\.\.'"),
    ("ARG UP=..\nRUN --mount=type=cache,target=/a,id=$UP/b c", r"'\.\.'"),
    ("ARG ENVBUILD_BASE", "envbuild's own"),
    ("ARG BUILDPLATFORM", "what machine the engine runs on"),
    ("ARG A B=1 BUILDARCH", "what machine the engine runs on"),
    ("COPY a b", "no context"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_hidden_inputs_are_refused_with_place_and_way_out(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse(text)
    assert caught.value.source == "steps"
    assert caught.value.line == 1 + text.count("\n")
    assert caught.value.column == 1
    assert caught.value.hint
    assert "secret@" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"COPY --from=registry.example.com:5000/a/b:1@sha256:{SHA} /a /b",
        f"ADD --checksum=sha256:{SHA} https://example.com/a /b",
        f"ARG U=https://example.com/a\nADD --checksum=sha256:{SHA} $U /b",
        f"ADD https://github.com/a/b.git#{COMMIT}:sub /b",
        f"ADD --checksum={COMMIT} https://github.com/a/b.git /b",
        f"RUN --mount=type=bind,from=a@sha256:{SHA},target=/a b",
        "RUN --mount=type=cache,target=/root/.cache --mount=type=tmpfs,target=/t b",
        "COPY <<EOF /a\nx\nEOF",
        "RUN --network=none a",
        "ARG BUILDARCH=amd64",
        "ARG TARGETARCH",
    ],
)
def test_what_is_pinned_needs_no_context(text: str) -> None:
    steps = parse(text)
    assert steps.context == ()
    assert parse(steps.render()).instructions == steps.instructions


def test_arguments_that_change_the_builder_are_refused_where_they_have_an_effect() -> None:
    for name in (
        "BUILDKIT_SYNTAX", "BUILDKIT_CACHE_MOUNT_NS", "BUILDKIT_SANDBOX_HOSTNAME", "BUILDKIT_MULTI_PLATFORM",
        "BUILDKIT_DOCKERFILE_CHECK", "BUILDKIT_CONTEXT_KEEP_GIT_DIR", "BUILDKIT_INLINE_CACHE", "BUILDKIT_NEW",
        "SOURCE_DATE_EPOCH", "HTTP_PROXY", "https_proxy", "no_proxy", "ALL_PROXY", "FTP_PROXY", "TARGETSTAGE",
    ):  # fmt: skip
        for text in (f"ARG {name}", f"ARG A {name}=x", f'ARG "{name}"'):
            with pytest.raises(SpecError, match="changes how engines build"):
                parse(text, {name: "docker/dockerfile:1"})
    with pytest.raises(SpecError, match="calls the stage"):
        parse("ARG TARGETSTAGE")
    assert parse("ARG http_proxy SOURCE_DATE_EPOCH=1").args == ()
    assert parse("RUN a", {"BUILDKIT_SYNTAX": "docker/dockerfile:1"}).args == ()
    assert parse("ARG BUILDARCH", {"BUILDARCH": "x"}).args == (("BUILDARCH", "x"),)


PLACED = [
    ("COPY . /x", 'COPY [".envbuild.context/.", "/x"]'),
    (
        "COPY / b* /d/ /x/",
        'COPY [".envbuild.context/.", ".envbuild.context/b*", ".envbuild.context/d/", "/x/"]',
    ),
    ("COPY $A/b /x", 'COPY [".envbuild.context/$A/b", "/x"]'),
    (
        "COPY --parents ./a c/./d /x/",
        'COPY --parents=true [".envbuild.context/././a", ".envbuild.context/c/./d", "/x/"]',
    ),
    ("COPY a <<B /x/\nc\nB", "COPY .envbuild.context/a <<B /x/\nc\nB"),
    (f"COPY --from=a@sha256:{SHA} /a /b", f'COPY --from=a@sha256:{SHA} ["/a", "/b"]'),
    (
        f"ADD --checksum=sha256:{SHA} https://example.com/a b /x/",
        f'ADD --checksum=sha256:{SHA} ["https://example.com/a", ".envbuild.context/b", "/x/"]',
    ),
    ("RUN --mount=target=/x a", "RUN --mount=source=.envbuild.context/.,target=/x,type=bind a"),
    ("RUN --mount=source=/b,target=/x a", "RUN --mount=source=.envbuild.context/b,target=/x,type=bind a"),
    (
        f"RUN --mount=from=a@sha256:{SHA},target=/x a",
        f"RUN --mount=from=a@sha256:{SHA},target=/x,type=bind a",
    ),
    ("RUN --mount=type=cache,target=/x/ a", "RUN --mount=id=KEY-/x,target=/x/,type=cache a"),
    (
        "RUN --mount=type=cache,target=/x,id=pip,sharing=locked a",
        "RUN --mount=id=KEY-pip,sharing=locked,target=/x,type=cache a",
    ),
    (
        f"RUN --mount=type=cache,target=/x,from=a@sha256:{SHA},source=/s a",
        f"RUN --mount=from=a@sha256:{SHA},id=KEY-/x,source=/s,target=/x,type=cache a",
    ),
    ("RUN --mount=type=tmpfs,target=/x a", "RUN --mount=target=/x,type=tmpfs a"),
    ("RUN --mount=type=secret,id=a a", "RUN --mount=id=a,type=secret a"),
    ("ENV A=b", 'ENV A="b"'),
]


@pytest.mark.parametrize(("text", "expected"), PLACED)
def test_an_engine_reads_the_contexts_folder_and_caches_of_these_steps_alone(
    text: str, expected: str, tmp_path: Path
) -> None:
    for name in ("a", "b", "c/d", "d/e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    steps = parse(text, {}, tmp_path)
    assert steps.for_engine("KEY") == expected + "\n"
    assert "KEY" not in steps.render()
    assert ".envbuild" not in steps.render()


def test_a_source_from_a_variable_is_told_from_a_url(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    text = f"ARG U=https://example.com/\nARG F=a\nADD --checksum=sha256:{SHA} ${{U}}x $F /x/"
    assert '["${U}x", ".envbuild.context/$F", "/x/"]' in parse(text, {}, tmp_path).for_engine("KEY")
    text = f"ARG U\nADD --checksum=sha256:{SHA} $U /x/"
    assert '["$U", "/x/"]' in parse(text, {"U": "https://example.com/"}, tmp_path).for_engine("KEY")


def test_secrets_are_named_and_never_read() -> None:
    steps = parse("RUN --mount=type=secret,id=b x\nRUN --mount=type=secret,target=/run/secrets/a,required x")
    assert steps.secret_ids == ("a", "b")


def test_build_arguments_count_where_an_arg_takes_them_up() -> None:
    text = "ARG A=1\nRUN echo $A"
    assert parse(text, {"A": "2", "B": "3"}).args == (("A", "2"),)
    assert parse(text, {"A": "2", "B": "3"}).unused_args == ("B",)
    assert canonical(text, {"A": "2", "B": "3"}) == canonical(text, {"A": "2"})
    assert len({canonical(text), canonical(text, {"A": "2"}), canonical(text, {"A": "3"})}) == 3


def test_context_files_are_read_once_and_only_where_a_source_selects_them(tmp_path: Path) -> None:
    for name in ("a1", "a2", "b", "c"):
        (tmp_path / name).write_text(name)
    text = "ARG N=1\nCOPY a$N /x\nRUN --mount=type=bind,source=b,target=/b cat /b"
    steps = parse(text, {}, tmp_path)
    assert [file.path for file in steps.context] == ["a1", "b"]
    assert [file.path for file in parse(text, {"N": "2"}, tmp_path).context] == ["a2", "b"]
    (tmp_path / "b").write_text("changed")
    with steps.build_context() as stream, tarfile.open(fileobj=stream) as tar:
        assert tar.getnames() == ["a1", "b"]
        content = tar.extractfile("b")
        assert content is not None
        assert content.read() == b"b"
    assert canonical(text, {}, tmp_path) != json.dumps(steps.canonical(), sort_keys=True)


def test_a_source_that_only_the_build_knows_selects_the_whole_context(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    assert [file.path for file in parse("ARG N\nCOPY $N /x", {}, tmp_path).context] == ["a", "b"]
    assert [file.path for file in parse("COPY ${FROM_BASE} /x", {}, tmp_path).context] == ["a", "b"]


def test_env_wins_over_arg_in_sources(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    steps = parse("ENV N=b\nARG N=a\nCOPY $N /x", {"N": "a"}, tmp_path)
    assert [file.path for file in steps.context] == ["b"]


def test_a_missing_source_names_the_instruction(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"steps:2:1: COPY: 'none' is not in the context"):
        parse("RUN a\nCOPY none /x", {}, tmp_path)


def test_canonical_and_repr_hold_no_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("the content of a file")
    steps = parse("COPY a /x", {}, tmp_path)
    assert "the content" not in repr(steps)
    assert "the content" not in json.dumps(steps.canonical())


def test_items_are_one_instruction_each() -> None:
    items = [("RUN a \\\n b", MARK), ("RUN <<EOF\nRUN x\nEOF", Mark("steps", 9, 1))]
    assert len(Steps.parse_items(items, MARK, args={}, context=None).instructions) == 2
    for text, count in (("RUN a\nRUN b", 2), ("# note", 0), ("", 0)):
        with pytest.raises(SpecError, match=f"steps:4:7: the item holds {count} instructions"):
            Steps.parse_items([(text, Mark("steps", 4, 7))], MARK, args={}, context=None)


_PIECES = [
    "\nRUN touch /canary",
    "\r\nRUN touch /canary",
    "\rRUN touch /canary",
    "\x85RUN touch /canary",
    "\u2028RUN touch /canary",
    "\u2029RUN touch /canary",
    "\x0bRUN touch /canary",
    "\x0cRUN touch /canary",
    "\x00RUN touch /canary",
    "\x1bRUN touch /canary",
    "\\\nRUN touch /canary",
    "\\\\\nRUN touch /canary",
    " <<EOF\nRUN touch /canary\nEOF",
    " <<EOF\nEOF\nRUN touch /canary",
    " <<'EOF'\n",
    " <<-E\n\tE\nRUN touch /canary",
    "\n# syntax=evil/frontend\nRUN touch /canary",
    "# syntax=evil/frontend",
    "\n# escape=`\nRUN touch /canary",
    "\nFROM evil",
    "\nONBUILD RUN touch /canary",
    "$(touch /canary)",
    "`touch /canary`",
    "${X:-$(touch /canary)}",
    '"; touch /canary; "',
    "'; touch /canary; '",
    "--mount=type=bind,from=evil,target=/x",
    "--security=insecure x",
    "--network=host x",
    "--index-url https://evil.example",
    '["sh", "-c", "touch /canary"]',
    '"]\nRUN touch /canary',
    "\u202eRUN touch /canary",
    "\\",
    "\\\\",
    "\\ ",
    " \\\n# x\nRUN touch /canary",
    "\ud800",
    "\ufeff",
    "{{ x }}",
]
_BEFORE = ["", "x", "x ", "'", '"', "\\", "x\n", "-", "--", "$", "[", "#", "<<"]
PAYLOADS = [before + piece for before in _BEFORE for piece in _PIECES]
FIELDS = [
    "RUN {}",
    'RUN ["a", "{}"]',
    "ENV A={}",
    'ENV A="{}"',
    "ENV A {}",
    "LABEL a='{}'",
    "ARG A={}",
    "WORKDIR /{}",
    "USER {}",
    "COPY {} /x",
    "CMD {}",
    "RUN --mount=type=tmpfs,target={} x",
]


def test_there_are_enough_payloads() -> None:
    assert len(set(PAYLOADS)) >= 500
    assert len(FIELDS) == 12


def _attempts(field: str, folder: Path) -> Iterator[tuple[str, Steps]]:
    for payload in PAYLOADS:
        items = [("RUN first", MARK), (field.replace("{}", payload), MARK), ("RUN last", MARK)]
        try:
            yield payload, Steps.parse_items(items, MARK, args={}, context=folder)
        except SpecError:
            continue


@pytest.mark.parametrize("field", FIELDS)
def test_no_payload_in_an_item_changes_the_number_of_instructions(field: str, tmp_path: Path) -> None:
    passed = 0
    for payload, steps in _attempts(field, tmp_path):
        passed += 1
        rendered = steps.render()
        again = parse(rendered, {}, tmp_path).instructions
        assert again == steps.instructions, payload
        assert [one.keyword for one in again] == ["RUN", field.split(" ", 1)[0], "RUN"], payload
        assert rendered.startswith("RUN first\n")
        assert rendered.endswith("\nRUN last\n")
    assert passed


@pytest.mark.parametrize("payload", PAYLOADS[:: len(_BEFORE)])
def test_no_payload_in_a_build_argument_reaches_the_text(payload: str) -> None:
    try:
        steps = parse("ARG A\nRUN a", {"A": payload})
    except SpecError:
        return
    assert steps.render() == "ARG A\nRUN a\n"


_COMMANDS = [
    "RUN apt-get update",
    "ENV A=1 B=$A",
    "WORKDIR /srv",
    'RUN ["a", "b"]',
    "USER 1000",
    "LABEL x='y z'",
]
_NOISE = st.sampled_from(["", "\n", "# a note\n", "   \n", "\t# RUN nothing\n\n"])


@given(st.data())
@settings(deadline=None)
def test_layout_never_counts(data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(_COMMANDS), min_size=1, max_size=5))
    text = ""
    for command in chosen:
        keyword, _, rest = command.partition(" ")
        space = data.draw(st.sampled_from([" ", "   ", "\t", " \\\n", " \\\n# note\n\n"]))
        spelling = data.draw(st.sampled_from([keyword, keyword.lower(), keyword.title()]))
        indent, tail = data.draw(st.sampled_from(["", "  "])), data.draw(st.sampled_from(["", "  \t"]))
        text += f"{data.draw(_NOISE)}{indent}{spelling}{space}{rest}{tail}\n"
    if data.draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    assert canonical(text) == canonical("\n".join(chosen))


@given(st.data())
def test_every_step_its_order_and_each_byte_of_a_command_count(data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(_COMMANDS), min_size=1, max_size=5))
    place = data.draw(st.integers(0, len(chosen) - 1))
    edit = data.draw(st.sampled_from(["drop", "add", "byte", "twice"]))
    other = {
        "drop": [*chosen[:place], *chosen[place + 1 :]],
        "add": [*chosen[:place], "RUN true", *chosen[place:]],
        "byte": [*chosen[:place], f"RUN echo '{chosen[place][-1]}  '", *chosen[place + 1 :]],
        "twice": [*chosen[:place], chosen[place], *chosen[place:]],
    }[edit]
    assert canonical("\n".join(chosen)) != canonical("\n".join(other))


_ANY = st.text(st.one_of(st.sampled_from("RUNCOPY <-=\\\"'$`{}[]#,@:/.\n\t"), st.characters()), max_size=60)


@given(_ANY)
def test_any_text_is_steps_or_a_spec_error(text: str) -> None:
    try:
        steps = parse(text)
    except SpecError:
        return
    assert parse(steps.render()).canonical() == steps.canonical()
