"""The YAML loader: strings only, with places, and without YAML's surprises."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from envbuild.errors import SpecError
from envbuild.spec import document
from envbuild.spec.document import MAX_NODES, Mapping, Mark, Scalar, Sequence, is_null, load_document

if TYPE_CHECKING:
    from envbuild.spec.document import Node


def plain(node: Node) -> object:
    """The node without its places."""
    if isinstance(node, Scalar):
        return node.value
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return {key.value: plain(value) for key, value in node.entries}


def load(content: str | bytes) -> Node:
    return load_document(content if isinstance(content, bytes) else content.encode(), "spec.yml")


def test_places_are_kept() -> None:
    node = load("a: 1\nlist:\n  - x\n  - {k: é, l: v}\n")
    assert isinstance(node, Mapping)
    items = node.get("list")
    assert isinstance(items, Sequence)
    inner = items.items[1]
    assert isinstance(inner, Mapping)
    assert inner.entries[1][1] == Scalar("v", Mark("spec.yml", 4, 15), plain=True)
    assert str(items.items[0].mark) == "spec.yml:3:5"
    assert node.get("nothing") is None


TRAPS = [
    "3.10", "NO", "no", "on", "Off", "y", "012", "0o14", "0x1F", "12:30:45", "1_000", "1e3", ".inf", ".nan",
    "2026-11-01", "2026-11-01T10:00:00Z", "True", "1.", "-0", "+1", "0b11", "=", "9" * 5000, "null-ish",
    "1,000",
]  # fmt: skip


@pytest.mark.parametrize("text", TRAPS)
def test_the_traps_of_yaml_are_text(text: str) -> None:
    assert plain(load(f"a: {text}\n")) == {"a": text}


@pytest.mark.parametrize("text", ["", " null", " ~", " NULL"])
def test_nothing_is_null_only_without_quotes(text: str) -> None:
    node = load(f"a:{text}\nb: ''\nc: 'null'\n")
    assert isinstance(node, Mapping)
    assert [is_null(value) for _, value in node.entries] == [True, False, False]
    assert is_null(node.get("missing"))


REFUSED = {
    "duplicate key": ("a: 1\nb: 2\na: 3\n", 3, 1, "'a' stands twice, first in line 1"),
    "duplicate key in another spelling": ("a: 1\n\"\\u0061\": 2\n", 2, 1, "'a' stands twice"),
    "duplicate in depth": ("x:\n  - {a: 1, 'a': 2}\n", 2, 12, "stands twice"),
    "anchor": ("a: &x 1\n", 1, 4, "anchor &x"),
    "anchor on a list": ("a: &x [1]\n", 1, 4, "anchor &x"),
    "alias": ("a: &x\n", 1, 4, "anchor &x"),
    "undefined alias": ("a: *x\n", 1, 4, "alias *x"),
    "merge key": ("a:\n  <<: {b: 1}\n", 2, 3, "merge key"),
    "tag": ("a: !!python/object/apply:os.system [x]\n", 1, 4, "tag"),
    "local tag": ("a: !x 1\n", 1, 4, "tag !x"),
    "bare tag": ("a: ! 1\n", 1, 4, "tag !"),
    "tag of text": ("a: !!str 3.10\n", 1, 4, "tag"),
    "tag directive": ("%TAG ! tag:x,2000:\n---\na: 1\n", 1, 1, "%TAG"),
    "two documents": ("a: 1\n---\nb: 2\n", 2, 1, "second document"),
    "empty": ("", 1, 1, "empty"),
    "only a comment": ("# nothing\n", 1, 1, "empty"),
    "list as key": ("? [a]\n: 1\n", 1, 3, "key"),
    "tab": ("a:\n\t- b\n", 2, 1, "a tab indents"),
    "unclosed": ("a: [1, 2\nb: 3\n", 1, 4, "not closed"),
    "no-break control": ("a: b\x07\n", 1, 5, "U+0007"),
    "line separator": ("a: 'b\u2028c'\n", 1, 6, "U+2028 LINE SEPARATOR"),
    "next line": ("x: 1\na: b\x85c\n", 2, 5, "U+0085"),
    "bidi": ("a: b\u202ec\n", 1, 5, "RIGHT-TO-LEFT OVERRIDE"),
    "zero width": ("a: nu\u200bmpy\n", 1, 6, "ZERO WIDTH SPACE"),
    "escaped bidi": ('a: "b\\u202Ec"\n', 1, 4, "RIGHT-TO-LEFT OVERRIDE"),
    "escaped null": ('a: "b\\0c"\n', 1, 4, "U+0000"),
    "lone return": ("a: 1\rb: 2\n", 1, 5, "U+000D"),
    "depth": ("[" * 40, 1, 33, "deeper than 32"),
    "block depth": ("".join(" " * n + "a:\n" for n in range(900)), 33, 33, "deeper than 32"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_surprises_is_refused_with_its_place(case: str) -> None:
    content, line, column, message = REFUSED[case]
    start = time.process_time()
    with pytest.raises(SpecError) as refusal:
        load(content)
    assert time.process_time() - start < 0.5
    assert message in refusal.value.message
    assert (refusal.value.source, refusal.value.line, refusal.value.column) == ("spec.yml", line, column)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\n".decode().encode("utf-16"), "UTF-16"),
        (b"a: 1\n".decode().encode("utf-32-le"), "UTF-16 or UTF-32"),
        ("a: 1\n".encode("utf-16-le"), "UTF-16"),
        (b"a: 1\nb: \xe9\n", "byte 0xe9 is not UTF-8"),
        (b"x" * ((1 << 20) + 1), "1048577 bytes"),
        (b"[" + b"a," * (MAX_NODES + 1) + b"]", "more than 20000"),
        (b"a: &a [b,b,b,b,b,b]\nb: &b [*a,*a,*a,*a,*a]\n", "anchor"),
    ],
)
def test_other_bytes_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(SpecError, match=message) as refusal:
        load(content)
    assert refusal.value.line is not None


def test_sizes_within_the_limits_pass() -> None:
    assert isinstance(load(b"[" + b"a," * (MAX_NODES - 1) + b"]"), Sequence)
    assert isinstance(load("[" * 32 + "]" * 32), Sequence)
    assert plain(load(b"a: " + b"9" * 100_000)) == {"a": "9" * 100_000}


def test_byte_order_mark_line_ends_and_json_make_no_difference() -> None:
    block = "a: [x, 'y']\nb:\n  c: |\n    one\n    two\n"
    flow = json.dumps({"a": ["x", "y"], "b": {"c": "one\ntwo\n"}})
    variants = [
        block,
        "\ufeff" + block,
        block.replace("\n", "\r\n"),
        flow,
        "---\n" + block + "...\n",
        "%YAML 1.2\n---\n" + block,
    ]
    assert all(plain(load(text)) == plain(load(block)) for text in variants)


def test_without_libyaml_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    content = "a: [x, 'y', 3.10, ~]\nb: {c: \"d\\te\"}\n# end\n"
    fast = load(content)
    monkeypatch.setattr(document, "_parser", yaml.BaseLoader)
    assert load(content) == fast
    for text, line, _, message in REFUSED.values():
        with pytest.raises(SpecError) as refusal:
            load(text)
        assert refusal.value.line == line, text
        assert message in refusal.value.message


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_bytes_load_or_are_refused(content: bytes) -> None:
    with contextlib.suppress(SpecError):
        assert load(content) == load(content)


@given(st.text(alphabet="ab:-[]{}&*!|>'\"%@`#,? \n\t\\\r\ufeff\u2028é0", max_size=60))
@settings(max_examples=1000, deadline=None)
def test_text_of_yaml_characters_loads_or_is_refused(content: str) -> None:
    with contextlib.suppress(SpecError):
        assert load(content) == load(content)


JSON = st.recursive(
    st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abc<", min_size=1, max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(JSON)
@settings(max_examples=300, deadline=None)
def test_json_reads_back(value: object) -> None:
    assert plain(load(json.dumps(value))) == value


@pytest.mark.parametrize("unit", ["[", "{a: "])
def test_great_depth_is_refused_where_the_parser_notices_it(unit: str) -> None:
    with pytest.raises(SpecError, match="deeper than 32 levels") as caught:
        load_document((unit * 100_000).encode(), "x")
    assert caught.value.line == 1
    assert caught.value.column is not None
    assert caught.value.column > 32 * len(unit)
