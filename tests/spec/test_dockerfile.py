"""The grammar of Dockerfile instructions: what is equal, what differs, what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envbuild.errors import SpecError
from envbuild.spec.dockerfile import parse_instructions
from envbuild.spec.document import Mark
from envbuild.spec.quoting import expand, split_words, unquote

if TYPE_CHECKING:
    from envbuild.spec.instruction import Instruction

MARK = Mark("steps", 1, 1)


def parse(text: str) -> tuple[Instruction, ...]:
    return parse_instructions(text, MARK)


SAME = [
    ("ENV A b", "ENV A=b"),
    ("ENV A b c", 'ENV A="b c"'),
    ("ENV A='b c'", 'ENV A="b c"'),
    (r"ENV A=b\ c", 'ENV A="b c"'),
    ("ENV A=$B", 'ENV A="${B}"'),
    ('ENV A=$B"c"', "ENV A=${B}c"),
    ("ENV A='$B'", r"ENV A=\$B"),
    ("env A=b", "ENV   A=b"),
    ("LABEL x y", 'LABEL "x"="y"'),
    ("ARG A=b", "ARG A='b'"),
    ("EXPOSE 80 81/TCP 80", "EXPOSE 81/tcp 80/tcp"),
    ("VOLUME /b /a", 'VOLUME ["/a", "/b"]'),
    ('COPY ["a", "b"]', "COPY a  b"),
    ("COPY --link --chown=1 a b", "COPY --chown=1 --link=true a b"),
    ("COPY --link=false a b", "COPY a b"),
    ('COPY --chown="1:1" a b', "COPY --chown=1:1 a b"),
    ("RUN --network=default a", "RUN a"),
    ("RUN -- a", "RUN a"),
    (
        "RUN --mount=type=bind,src=a,dst=/b,ro a",
        "RUN --mount=target=/b,readonly=true,source=a a",
    ),
    ('RUN ["a","b"]', 'RUN [ "a" , "\\u0062" ]'),
    ("RUN a \\\nb", "RUN a b"),
    ("RUN a \\\n# note\n\n   # more\nb", "RUN a b"),
    ("\ufeffRUN a\r\nRUN b\r\n", "RUN a\nRUN b"),
    ("  # note\n\n\t RUN a  \n", "RUN a"),
    ("RUN a \\  \nb", "RUN a b"),
    ("HEALTHCHECK cmd a", "HEALTHCHECK CMD a"),
    ("healthcheck none", "HEALTHCHECK NONE"),
]


@pytest.mark.parametrize(("left", "right"), SAME)
def test_one_meaning_has_one_value(left: str, right: str) -> None:
    assert parse(left) == parse(right)


DIFFERENT = [
    ("RUN a  b", "RUN a b"),
    ('RUN ["a"]', "RUN a"),
    ("RUN a", "CMD a"),
    ("ENV A=$B", r"ENV A=\$B"),
    ("ENV A=b B=c", "ENV A=b"),
    ("ENV A='$B'", "ENV A=$B"),
    ("ENV A=a B=$A", "ENV B=$A A=a"),
    ("ENV A=${B}c", "ENV A=$Bc"),
    ("ARG A", "ARG A="),
    ("COPY a b", "ADD a b"),
    ("COPY --chown=1 a b", "COPY --chown=2 a b"),
    ("RUN --mount=type=tmpfs,target=/a x", "RUN --mount=type=tmpfs,target=/b x"),
    ("RUN <<EOF\na\nEOF", "RUN <<EOF\nb\nEOF"),
    ("RUN <<EOF\n$a\nEOF", "RUN <<'EOF'\n$a\nEOF"),
    ("COPY <<EOF /a\nx\nEOF", "COPY <<EOF /a\nx\n\nEOF"),
    ("COPY <<-EOF /a\n\tx\nEOF", "COPY <<EOF /a\n\tx\nEOF"),
    ("EXPOSE 53/udp", "EXPOSE 53"),
    ("RUN a\nRUN b", "RUN b\nRUN a"),
    ("ENTRYPOINT []", "CMD []"),
]


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_two_meanings_have_two_values(left: str, right: str) -> None:
    assert parse(left) != parse(right)


REFUSED = [
    ("FROM debian", "FROM cannot"),
    ("ONBUILD RUN a", "ONBUILD"),
    ("# syntax=docker/dockerfile:1\nRUN a", "directive"),
    ("#Escape=`\nRUN a", "directive"),
    ("# check = skip=all\nRUN a", "directive"),
    ("RUN a \\\n# syntax=x\nb", "directive"),
    ("RNU a", "unknown instruction"),
    ("RUN", "no arguments"),
    ("RUN []", "empty command"),
    ("RUN [1]", "other than strings"),
    ("COPY a", "source and a destination"),
    ("RUN a\x07", "U\\+0007"),
    ("RUN a\rRUN b", "U\\+000D"),
    ("RUN a\u2028RUN b", "U\\+2028"),
    ("RUN a\u202eb", "U\\+202E"),
    ("RUN a\x85b", "U\\+0085"),
    ("RUN a\u00a0b", "U\\+00A0"),
    ("RUN a\\\\\nRUN b", "two backslashes"),
    ("RUN <<EOF\na", "has no end"),
    ('RUN "a <<EOF\nb\nEOF', "heredoc beside"),
    ("RUN a << EOF\nb\nEOF", "ends in <<"),
    ("RUN echo $(( 1 << 2 ))", "ends in <<"),
    ("RUN a \\ \\\n", "ends in a backslash"),
    ("RUN a<< <<EOF\nb\nEOF", "ends in <<"),
    ("RUN --mount=type=tmpfs,target=<< a", "'<'"),
    ("EXPOSE 80 $A\\ 90", "no port"),
    ("COPY --form=a b c", "--form"),
    ("CMD --x a", "--x"),
    ("ENV --x=1 a=b", "--x"),
    ("RUN --network a", "no value"),
    ("COPY --chown=1 --chown=2 a b", "twice"),
    ("RUN --mount=type=bind,source a", "mount field"),
    ("RUN --mount=src=a,source=b a", "twice"),
    ("COPY --link=yes a b", "--link"),
    ("COPY --chown=é a b", "ASCII"),
    ("ENV A", "no value"),
    ("ENV A=b c", "no '='"),
    ('ENV A="b', "not closed"),
    ("ENV =b", "name"),
    ("SHELL /bin/bash", "JSON array"),
    ("EXPOSE http", "no port"),
    ("HEALTHCHECK RUN a", "HEALTHCHECK"),
    ('CMD ["\\ud800"]', "surrogate"),
    ("CMD " + "[" * 100_000, "too deep"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refusals_name_place_and_way_out(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse(text)
    assert caught.value.source == "steps"
    assert caught.value.line
    assert caught.value.column
    assert caught.value.hint


def test_a_refusal_names_the_line_and_column_of_its_instruction() -> None:
    with pytest.raises(SpecError) as caught:
        parse_instructions("RUN a\n\n  RNU b\n", Mark("env.yaml", 10, 3))
    assert str(caught.value).startswith("env.yaml:12:5: ")
    assert caught.value.hint == "did you mean RUN?"


def test_shell_form_keeps_every_byte_that_a_shell_sees() -> None:
    (one,) = parse("RUN printf 'a  b' \\\n    && echo \"$X\"  # not a comment\n")
    assert one.arguments == ("printf 'a  b'     && echo \"$X\"  # not a comment",)


def test_a_test_bracket_is_shell_form() -> None:
    (one,) = parse("RUN [ -f x ] && true")
    assert not one.exec_form
    assert one.arguments == ("[ -f x ] && true",)


def test_heredocs_follow_the_whole_instruction_in_order() -> None:
    one, two = parse("COPY <<A <<-'B C' /d/ \n# kept\nA\n\tx\n\tB C\nRUN y\n")
    assert [(doc.name, doc.content, doc.expand, doc.strip_tabs) for doc in one.heredocs] == [
        ("A", "# kept\n", True, False),
        ("B C", "\tx\n", False, True),
    ]
    assert two.arguments == ("y",)


@pytest.mark.parametrize(
    "text", ["RUN a<<EOF", "RUN a <<< b", "RUN echo '<<EOF'", 'RUN ["<<EOF"]', "CMD <<EOF"]
)
def test_what_only_looks_like_a_heredoc_is_none(text: str) -> None:
    one, two = parse(f"{text}\nRUN b")
    assert one.heredocs == ()
    assert two.arguments == ("b",)


@pytest.mark.parametrize("text", [pair[0] for pair in SAME + DIFFERENT] + [pair[1] for pair in DIFFERENT])
def test_rendered_text_parses_back_to_equal_instructions(text: str) -> None:
    instructions = parse(text)
    rendered = "".join(one.render() for one in instructions)
    assert parse(rendered) == instructions


def test_a_long_line_is_folded_below_the_limit_of_the_scanner_and_keeps_its_meaning() -> None:
    instructions = parse("RUN " + " && ".join(f"echo \\# number {number}" for number in range(4_500)))
    rendered = instructions[0].render()
    assert max(map(len, rendered.split("\n"))) < 65_536
    assert parse(rendered) == instructions


# What may stand in a value, with a taste for what is special.
_TEXT = st.text(
    st.one_of(st.sampled_from(" \t\\\"'$`{}#<-=[],\n"), st.characters(codec="utf-8")), max_size=30
)
_HEADS = st.sampled_from(
    ["RUN", "ENV A=", "ENV A ", "LABEL b=", "COPY a ", "CMD ", "ARG A=", "USER ", "EXPOSE "]
)


@given(st.lists(st.tuples(_HEADS, _TEXT), min_size=1, max_size=4))
def test_any_text_parses_back_from_its_rendering_or_is_refused(parts: list[tuple[str, str]]) -> None:
    try:
        instructions = parse("\n".join(f"{head} {text}" for head, text in parts))
    except SpecError:
        return
    rendered = "".join(one.render() for one in instructions)
    assert parse(rendered) == instructions
    assert "".join(one.render() for one in parse(rendered)) == rendered


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Zs"]), min_size=1))
def test_a_quoted_value_has_one_spelling_in_every_form(value: str) -> None:
    value += "."  # a backslash before white space at the end of a line continues it
    escaped = "".join(f"\\{one}" for one in value)
    double = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    assert parse(f"ENV A={escaped}") == parse(f'ENV A="{double}"')
    if "'" not in value:
        assert parse(f"ENV A='{value}'") == parse(f'ENV A="{double}"')
    assert expand(f'"{double}"', {}) == value


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("$A", "a"),
        ("${A}b", "ab"),
        ("$AB", None),
        ("${N:-x}", "x"),
        ("${N-x}", ""),
        ("${A:+x}", "x"),
        ("${N:+x}", ""),
        ("${A:?x}", None),
        ("'$A'", "$A"),
        ("\\$A", "$A"),
        ('"$A $A"', "a a"),
        ("$U", None),
        ("$", "$"),
    ],
)
def test_variables_are_replaced_where_they_are_known(word: str, expected: str | None) -> None:
    assert expand(word, {"A": "a", "N": "", "U": None}) == expected


def test_words_and_quotes() -> None:
    assert split_words("a \"b c\"d e\\ f 'g'") == ["a", '"b c"d', "e\\ f", "'g'"]
    assert split_words("a 'b") is None
    assert unquote("\"it's\"\\ 'a\"b'") == "it's a\"b"
