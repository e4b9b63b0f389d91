"""The quick reader gives what the full one gives, or nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envbuild.errors import SpecError
from envbuild.spec import document
from envbuild.spec.plainyaml import read_plain

READ = [
    "a: b\n",
    "a: b",
    "\n# c\na: b # c\n\n",
    "name: x\nchannels:\n  - conda-forge\ndependencies:\n  - numpy=1.26\n  - python 3.11.*\n",
    "dependencies:\n- numpy\n- pip:\n  - a==1\n  - b\n- scipy\nname: x\n",
    "dependencies:\n  - pip:\n      - a # w\n      # no\n      - 'b'\n  - c\nvariables:\n  A: \"x y\"\n",
    "channels: [a, b/c,  d-e]\nname: 'x # y: z'\n",
    "a:   b  \nc:\n    -   d\n    -   e::f\n",
    "a:\n  b:\n    c: d\n    e: f\n  g: h\n",
    "a: http://host:80/x#y\nb: x:y\nc: a - b\nd: it's\n",
    "a: ''\nb: \"\"\n",
]
LEFT = [
    "",
    "a",
    "- a\n",
    "a:\n",
    "a:\nb: c\n",
    "a: - b\n",
    "a: b: c\n",
    "a: {b: c}\n",
    "a: [b, [c]]\n",
    "a: []\n",
    "a: |\n  b\n",
    "a: &x b\n",
    "a: *x\n",
    "a: !t b\n",
    "a: b\na: c\n",
    "a: b\n  c\n",
    "a:\n  - b\n    c\n",
    "a:\n  - b\n      - c\n",
    "a:\n    - b\n  - c\n",
    "a:\n  - - b\n",
    "a:\n  - b: c\n    d: e\n",
    "a:\n  - pip:\n    - b\n    x: c\n",
    " a: b\n",
    "a: 'it''s'\n",
    'a: "\\n"\n',
    "a: 'b\n  c'\n",
    "a: b\r\n",
    "a: \tb\n",
    "a:b\n",
    "? a\n: b\n",
    "---\na: b\n",
    "a: b\n---\na: b\n",
    "a: é\n",
    "<<: a\n",
    "a: b # c\nd\n",
    "a: b\n...\n",
    "a: b\n- c\n",
    "a: %b\n",
    "a: 'b' c\n",
    "a:\n  -\n    b\n",
    "a:\n  - \n",
]


@pytest.mark.parametrize("text", READ)
def test_plain_documents_are_read(text: str) -> None:
    node = read_plain(text.encode(), "x")
    assert node is not None
    assert node == document._load(text.encode(), "x", [])


@pytest.mark.parametrize("text", LEFT)
def test_all_else_is_left_to_the_full_reader(text: str) -> None:
    assert read_plain(text.encode(), "x") is None


PIECES = [
    *("a", "b", "pip", "- ", "-", ": ", ":", "\n", "\n", "\n  ", "\n    ", "\n- ", "\n  - ", "\n    - "),
    *("\n      - ", "\nname: ", "\n  b: ", "\n  - pip:", "pip:\n", " ", "  ", "#", " # c", "'", '"', "''"),
    *("[", "]", "[a, b]", ", ", "{", "}", "&a", "*a", "!", "|", ">", "%", "@", "`", "?", "? ", "<<: ", "\t"),
    *("---", "...", "1.2", "x=1.*", "c::d", "http://e", "\\", "~", "null", "é", "\r\n"),
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=25).map(lambda pieces: "a: b" + "".join(pieces))


def compare(text: str) -> bool:
    """Whether the quick reader reads a text; then it must be as the full one has it, marks and all."""
    content = text.encode()
    node = read_plain(content, "x")
    if node is None:
        return False
    try:
        content = document._checked_bytes(content, "x")
    except SpecError:
        return False
    assert node == document._load(content, "x", []), text
    return True


@given(TEXTS)
@settings(max_examples=3000, deadline=None)
def test_what_is_read_is_read_alike(text: str) -> None:
    compare(text)


WORDS = st.sampled_from(
    ["a", "1.2", "x=1.*", "c::d", "'q: # z'", '"q"', "it's", "a b", "http://e/#f", "x >=1,<2"]
)
COMMENTS = st.sampled_from(["", "", "", "  # c", " "])
ITEMS = st.builds("{}{}".format, WORDS, COMMENTS)
BLANK = st.sampled_from(["", "", "", "\n", "  # c\n", "# c\n"])


@st.composite
def documents(draw: st.DrawFn) -> str:
    """Definitions in many indentations, nearly all of them good."""
    lines = [draw(BLANK)]
    for name in draw(
        st.lists(st.sampled_from(["name", "channels", "dependencies", "variables"]), min_size=1)
    ):
        kind = draw(st.sampled_from(["text", "list", "nested", "flow", "mapping"]))
        indent = " " * draw(st.integers(0, 4))
        dash = "-" + " " * draw(st.integers(1, 3))
        items = draw(st.lists(ITEMS, min_size=1, max_size=4))
        if kind == "text":
            lines.append(f"{name}: {items[0]}\n")
        elif kind == "flow":
            lines.append(f"{name}: [a, {draw(WORDS)}, b]\n")
        elif kind == "mapping":
            lines.append(f"{name}:\n" + "".join(f"{indent}K{at}: {item}\n" for at, item in enumerate(items)))
        else:
            lines.append(f"{name}:{draw(COMMENTS)}\n" + "".join(f"{indent}{dash}{item}\n" for item in items))
            if kind == "nested":
                deeper = indent + " " * draw(st.integers(0, 4))
                lines.append(f"{indent}{dash}pip:\n" + "".join(f"{deeper}- {item}\n" for item in items))
        lines.append(draw(BLANK))
    return "".join(lines)


@given(documents())
@settings(max_examples=1500, deadline=None)
def test_good_definitions_are_read_alike(text: str) -> None:
    compare(text)


@pytest.mark.nightly
@given(TEXTS | documents())
@settings(max_examples=40_000, deadline=None)
def test_what_is_read_is_read_alike_at_length(text: str) -> None:
    compare(text)
