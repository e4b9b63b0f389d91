"""Versions and constraints, with py-rattler as the oracle: the solver decides with its order."""

from __future__ import annotations

import itertools
import re

import pytest
import rattler
from hypothesis import given, settings
from hypothesis import strategies as st
from rattler.exceptions import InvalidMatchSpecError

from envbuild.errors import SpecError
from envbuild.spec.constraint import canonical_constraint
from envbuild.spec.version import Version

POOL = [
    "0",
    "0.1",
    "1",
    "1.0",
    "1.0.0",
    "1.1",
    "1.2",
    "1.2.0",
    "1.2.0.0",
    "1.2.3",
    "1.2.10",
    "1.20",
    "2",
    "2.0",
    "2.0.0",
    "10",
    "1a",
    "1.a",
    "1.0a",
    "1.0a0",
    "1.0a1",
    "1.0b",
    "1.0rc1",
    "1.0.rc1",
    "1.0dev",
    "1.0.dev",
    "1.0dev1",
    "1.0post",
    "1.0.post1",
    "1.0post1",
    "1.2dev",
    "1.2a",
    "1.2.dev",
    "1.2.0a",
    "1.2post",
    "1.2_1",
    "1_2",
    "1-2",
    "1.2_",
    "1.2._",
    "1.2__",
    "1_",
    "1.0_a",
    "1!0",
    "1!1",
    "1!1.2",
    "0!1.2",
    "2!0.1",
    "1.2+1",
    "1.2+1.0",
    "1.2+2",
    "1.2+l",
    "1.2+l1",
    "1.2.3+l",
    "1+0",
    "1.2+0",
    "a",
    "v1",
    "2022a",
    "9e",
    "2026_06",
    "18.8cc5c",
    "01.02",
    "1.1c0.1",
    "1.1c.1",
    "openssl-1",
    "dev",
    "post",
    "1.2RC1",
    "18446744073709551615",
]

MALFORMED = [
    "",
    ".",
    "1.",
    "1..2",
    "_1",
    "-1",
    "1-",
    "1.-",
    "+1",
    "1+",
    "1!",
    "a!1",
    "1+a+b",
    "1 2",
    "1*",
    "1~1",
    "1@2",
    "1.0_2-3",
    "1-_",
    "1--2",
    "ä",
    "\u212a1",
    "1\n",
    "18446744073709551616",
    "9" * 5000,
]


@pytest.mark.parametrize("text", POOL)
def test_the_spelling_keeps_the_version(text: str) -> None:
    version = Version.parse(text)
    assert rattler.Version(str(version)) == rattler.Version(text) == rattler.Version(str(version.stripped()))
    assert Version.parse(str(version)) == version
    assert version.compare(version.stripped()) == 0


def test_the_order_is_the_solvers() -> None:
    for left, right in itertools.product(POOL, POOL):
        ours = Version.parse(left).compare(Version.parse(right))
        a, b = rattler.Version(left), rattler.Version(right)
        assert ours == (a > b) - (a < b), (left, right)
        assert (Version.parse(left).stripped() == Version.parse(right).stripped()) == (a == b), (left, right)


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_versions_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="version"):
        Version.parse(text)


def allowed(constraint: str | None) -> list[str]:
    """The versions of the pool that the solver would take.

    Its library reads ``==1.*`` as 1 alone, but for one right behind a name; Conda reads the series, and so do
    we: the solver is never given that spelling.
    """
    spec = rattler.MatchSpec(f"x[version='{re.sub(r'==(?=[^,|()]*[*])', '', constraint or '*')}']")
    return [version for version in POOL if spec.matches(record(version))]


def record(version: str) -> rattler.PackageRecord:
    return rattler.PackageRecord("x", version, rattler.BuildString("0"), 0, "noarch")


EQUAL = [
    ("1.26.*", "=1.26", "==1.26.*", "1.26*", "=1.26.*", "1.26.*.*", "01.26.*", "(1.26.*)"),
    ("==1.26", "1.26", "==1.26.0", "1.26.0.0", "==1.26,==1.26"),
    (
        ">=1.26,<2",
        "<2,>=1.26",
        "<2.0 , >= 1.26.0",
        ">=1.26,<2,<2",
        ">=1.26,<2,>=1.2",
        "(>=1.26),(<2)",
        "<2,>=1.26,>1",
    ),
    ("==1|==2", "2|1", "1|2|1", "1.0|2", "(1|2)", "(1|2)|1"),
    (">=1,<2|>=1,==3", ">=1,(<2|3)", "(3|<2),>=1"),
    (">=1.2.3,1.2.*", "~=1.2.3", "=1.2,>=1.2.3"),
    ("~=1", "~=01"),
    (">1", ">1.0", ">=1,>1"),
    ("!=1.2.*", "!=1.2*"),
    ("==1", "1|1,>0"),
    (None, "*", "=*", "*|1", "==*", "*,*", ">=*"),
    ("==1.0a1", "1.a1", "1.0A1", "0!1.0a1"),
]


@pytest.mark.parametrize("group", EQUAL)
def test_equal_meanings_have_one_spelling(group: tuple[str | None, ...]) -> None:
    spelling = canonical_constraint(group[0] or "*")
    for text in group:
        assert canonical_constraint(text or "*") == spelling, text
        if text is not None:
            assert allowed(text.replace(" ", "")) == allowed(spelling), text
    assert canonical_constraint(spelling or "*") == spelling


def test_different_meanings_have_different_spellings() -> None:
    texts = [
        "=1.2",
        "==1.2",
        ">=1.2",
        ">1.2",
        "<1.2",
        "<=1.2",
        "!=1.2",
        "!=1.2.*",
        "~=1.2",
        "~=1.2.0",
        "1.2.0.*",
        "1",
        "=1",
        "==1!1.2",
        "1.2+1",
        "1.2_",
        "1.2post",
        "1.2dev",
        "1|2",
        "1,2",
        ">=1,<2",
        ">=1|<2",
        ">=1,<=2",
        ">1,<2",
        "*",
    ]
    assert len({canonical_constraint(text) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "|1",
        "1|",
        "1,",
        ">=1,",
        "1||2",
        "(1",
        "1)",
        "()",
        ">",
        "===1",
        "=<1",
        "<>1",
        "!1",
        "~1",
        "1.*.3",
        "^1.*$",
        "!=*",
        "<*",
        ">*",
        "~=*",
        ">1.2.*",
        "~=1.2.*",
        "1 2",
        "a b",
        "(" * 40 + "1" + ")" * 40,
        "1.2;x",
        "$(x)",
        "1`",
        "1.2.",
        "*.1",
        "(1|2|3),(4|5|6),(7|8|9),(10|11|12)",
        "|".join(map(str, range(65))),
    ],
)
def test_malformed_constraints_are_refused(text: str) -> None:
    with pytest.raises(SpecError):
        canonical_constraint(text)


TERMS = st.builds(
    lambda operator, version, star: f"{operator}{version}{star}",
    st.sampled_from(["", "=", "==", ">=", ">", "<", "<=", "!=", "~="]),
    st.sampled_from(POOL),
    st.sampled_from(["", "", "", ".*", "*"]),
) | st.just("*")
CONSTRAINTS = st.recursive(
    TERMS,
    lambda inner: st.builds(
        lambda joint, parts: f"({joint.join(parts)})",
        st.sampled_from(",|"),
        st.lists(inner, min_size=2, max_size=3),
    ),
    max_leaves=6,
)


@given(CONSTRAINTS)
@settings(max_examples=1000, deadline=None)
def test_the_canonical_spelling_allows_the_same_versions(text: str) -> None:
    try:
        spelling = canonical_constraint(text)
    except SpecError:
        return
    assert allowed(text) == allowed(spelling)
    assert canonical_constraint(spelling or "*") == spelling


@given(CONSTRAINTS, CONSTRAINTS)
@settings(max_examples=1000, deadline=None)
def test_one_spelling_never_stands_for_two_meanings(left: str, right: str) -> None:
    try:
        same = canonical_constraint(left) == canonical_constraint(right)
    except SpecError:
        return
    assert not same or allowed(left) == allowed(right)


@given(st.text(alphabet="12.*<>=!~|,()ab_-+ ", max_size=12))
@settings(max_examples=1000, deadline=None)
def test_what_is_accepted_the_solver_reads_alike(text: str) -> None:
    try:
        spelling = canonical_constraint(text)
    except SpecError:
        return
    try:
        expected = allowed("".join(text.split()))
    except InvalidMatchSpecError:
        expected = allowed(spelling)
    assert allowed(spelling) == expected
