"""Match specs, with py-rattler as the oracle: the solver reads the canonical spelling like the original."""

from __future__ import annotations

import functools
import itertools
import re

import pytest
import rattler
from hypothesis import given, settings
from hypothesis import strategies as st
from rattler.exceptions import InvalidMatchSpecError

from envbuild.errors import SpecError
from envbuild.spec import matchgrammar, shortmatch
from envbuild.spec.constraint import canonical_constraint
from envbuild.spec.document import Mark
from envbuild.spec.match import MatchSpec

SHA = "01ba4719c80b6fe911b091a7c05124b64eeece964e09c058ef8f9805daca546b"
MD5 = "d41d8cd98f00b204e9800998ecf8427e"
URL = "https://conda.anaconda.org/conda-forge/linux-64/numpy-1.26.4-py311h64a7726_0.conda"

CANONICAL = [
    ("numpy", "numpy"),
    ("NumPy", "numpy"),
    ("numpy *", "numpy"),
    ("numpy=*", "numpy"),
    ("__glibc >=2.17", "__glibc >=2.17"),
    ("_libgcc_mutex", "_libgcc_mutex"),
    ("numpy=1.26", "numpy 1.26.*"),
    ("numpy =1.26", "numpy 1.26.*"),
    ("numpy= 1.26", "numpy 1.26.*"),
    ("numpy=1.26=", "numpy 1.26.*"),
    ("numpy 1.26.*", "numpy 1.26.*"),
    ("numpy==1.26.*", "numpy 1.26.*"),
    ("numpy 1.26*", "numpy 1.26.*"),
    ("NumPy[version='1.26.*']", "numpy 1.26.*"),
    ("numpy[version='=1.26']", "numpy 1.26.*"),
    ("dask-cuda==26.10.*,>=0.0.0a0", "dask-cuda 26.10.*,>=0.0.0a"),
    ("dask-cuda >=0.0.0a0 , == 26.10.*", "dask-cuda 26.10.*,>=0.0.0a"),
    ("numpy ==1.26.*|2", "numpy 1.26.*|==2"),
    ("numpy 2|==1.26.*", "numpy 1.26.*|==2"),
    ("numpy (==1.26.*,>1.26.1)|(2,==2.*)", "numpy 1.26.*,>1.26.1|==2,2.*"),
    ("numpy[version='==1.26.*']", "numpy 1.26.*"),
    ("numpy[version='>1.26.1,==1.26.*']", "numpy 1.26.*,>1.26.1"),
    ("numpy==1.26.*=py_0", 'numpy 1.26.*[build="py_0"]'),
    ("numpy==1.26.4", "numpy ==1.26.4"),
    ("numpy 1.26.4", "numpy ==1.26.4"),
    ("numpy[version=1.26.4]", "numpy ==1.26.4"),
    ("numpy 1.26.0", "numpy ==1.26"),
    ("numpy >=1.26,<2", "numpy >=1.26,<2"),
    ("numpy<2,>=1.26", "numpy >=1.26,<2"),
    ("numpy >= 1.26.0 , < 2.0", "numpy >=1.26,<2"),
    ("numpy >=1.26,<2,<2,>=1.2", "numpy >=1.26,<2"),
    ("numpy 1.26|1.25", "numpy ==1.25|==1.26"),
    ("numpy (>=1.2,<2)|3", "numpy ==3|>=1.2,<2"),
    ("numpy ~=1.2.3", "numpy 1.2.*,>=1.2.3"),
    ("numpy !=1.26.*,>1", "numpy >1,!=1.26.*"),
    ("python=3.11=py311*", 'python ==3.11[build="py311*"]'),
    ("python 3.11.* *_cpython", 'python 3.11.*[build="*_cpython"]'),
    ("python 3.11 h1234_0", 'python ==3.11[build="h1234_0"]'),
    ("python=3.11=H1234_0", 'python ==3.11[build="h1234_0"]'),
    ("python=3.11.0=h1234_0", 'python ==3.11[build="h1234_0"]'),
    ("python==3.11=*", "python ==3.11"),
    ("python >=3,<4=h1_0", 'python >=3,<4[build="h1_0"]'),
    ("python[build='^py3.*$']", 'python[build="^py3.*$"]'),
    ("numpy[build_number='>=3']", 'numpy[build_number=">=3"]'),
    ("numpy[build_number=03]", 'numpy[build_number="==3"]'),
    ("conda-forge::numpy", 'numpy[channel="conda-forge"]'),
    ("https://conda.anaconda.org/conda-forge/::numpy", 'numpy[channel="conda-forge"]'),
    ("numpy[channel=conda-forge]", 'numpy[channel="conda-forge"]'),
    ("conda-forge/linux-64::numpy 1.26", 'numpy ==1.26[channel="conda-forge",subdir="linux-64"]'),
    ("conda-forge/label/dev::numpy", 'numpy[channel="conda-forge/label/dev"]'),
    (
        "https://me:pw@example.com/t/tok/team/noarch::x=1",
        'x 1.*[channel="https://example.com/team",subdir="noarch"]',
    ),
    (
        "numpy[subdir=noarch, license='BSD 3, new', fn=a.conda]",
        'numpy[subdir="noarch",fn="a.conda",license="BSD 3, new"]',
    ),
    (f"numpy[sha256={SHA.upper()}, md5='{MD5}']", f'numpy[sha256="{SHA}",md5="{MD5}"]'),
    (f"numpy[url={URL}]", f'numpy[url="{URL}"]'),
    (URL, f'numpy[url="{URL}"]'),
    (f"{URL}#{MD5}", f'numpy[md5="{MD5}",url="{URL}"]'),
    (f"{URL}#sha256:{SHA}", f'numpy[sha256="{SHA}",url="{URL}"]'),
    ("/srv/c/noarch/a-b-1.0-0.tar.bz2", 'a-b[url="file:///srv/c/noarch/a-b-1.0-0.tar.bz2"]'),
    ("file:///srv/c/noarch/a-b-1.0-0.conda", 'a-b[url="file:///srv/c/noarch/a-b-1.0-0.conda"]'),
    ("numpy 1.26 # the last one", "numpy ==1.26"),
    ("r-ashr =2.2_63", "r-ashr 2.2.63.*"),
    ("mmseqs2 =18.8cc5c", "mmseqs2 18.8cc5c.*"),
    ("  numpy   >=1  ", "numpy >=1"),
]


@pytest.mark.parametrize(("text", "canonical"), CANONICAL)
def test_each_meaning_has_one_spelling(text: str, canonical: str) -> None:
    spec = MatchSpec.parse(text)
    assert spec.canonical() == str(spec) == canonical
    assert MatchSpec.parse(canonical).canonical() == canonical


def solver_fields(text: str) -> tuple[object, ...]:
    """What the solver understands beside the version."""
    spec = rattler.MatchSpec(text)
    build = None if spec.build in {"*", None} else str(spec.build).lower()
    channel = spec.channel.base_url if spec.channel else None
    number = str(spec.build_number) if spec.build_number is not None else None
    texts = re.findall('(?:license|url)="([^"]*)"', spec.to_canonical_string())
    hashes = spec.sha256, spec.md5, spec.file_name
    return spec.name.normalized, build, number, channel, spec.subdir, hashes, texts


VERSIONS = [
    "0.9",
    "1",
    "1.2",
    "1.2.3",
    "1.2.9",
    "1.3",
    "1.25",
    "1.26",
    "1.26.0",
    "1.26.4",
    "1.26dev",
    "1.27",
    "2",
    "2.2_63",
    "3",
    "3.11",
    "3.11.4",
    "4",
    "18.8cc5c",
]
BUILDS = ["py311h1_0", "py310_0", "h1234_0", "0_cpython", "H1234_0"]


@functools.cache
def pool(name: str) -> list[rattler.PackageRecord]:
    """Records of one package that differ in version, build and build number."""
    return [
        rattler.PackageRecord(name, version, rattler.BuildString(build), number, "noarch")
        for version, build, number in itertools.product(VERSIONS, BUILDS, (0, 3))
    ]


def allowed(text: str) -> list[bool]:
    """Which records of the pool the solver would take, the channel set aside.

    ``==1.26.*`` is a series only behind the name to it, and to libmamba wherever it stands.
    """
    spec = rattler.MatchSpec(re.sub(r"==( *[^ ,|=()]+\*)", r"=\1", text))
    return [spec.matches(record) for record in pool(spec.name.normalized)]


@pytest.mark.parametrize("text", [text for text, _ in CANONICAL if "#" not in text and "me:pw" not in text])
def test_the_solver_reads_the_canonical_spelling_alike(text: str) -> None:
    canonical = MatchSpec.parse(text).canonical()
    assert solver_fields(canonical) == solver_fields(text)
    assert allowed(canonical) == allowed(text)


def test_different_meanings_have_different_spellings() -> None:
    texts = [
        "numpy",
        "numpy=1",
        "numpy==1",
        "numpy>=1",
        "numpy>1",
        "numpy 1.*,>1",
        "numpy=1.0",
        "numpy==1=0",
        "numpy[build=0]",
        "pandas",
        "numpy[build_number=0]",
        "c::numpy",
        "c/noarch::numpy",
        "numpy[subdir=noarch]",
        "num-py",
        "num_py",
        "numpy[fn=0]",
        f"numpy[md5={MD5}]",
        f"numpy[sha256={SHA}]",
        "numpy[license=0]",
        "numpy[license_family=0]",
        "numpy[track_features=0]",
    ]
    assert len({MatchSpec.parse(text).canonical() for text in texts}) == len(texts)


REFUSED = [
    ("", "not a package name"),
    ("   ", "not a package name"),
    ("-r requirements.txt", "option of pip"),
    ("--index-url x", "option of pip"),
    ("-c", "option of pip"),
    ("-e ./project", "option of pip"),
    ("--hash=sha256:abc", "option of pip"),
    ("--index-url https://x", "option of pip"),
    (">=1.2", "not a package name"),
    ("num\u0440y", "CYRILLIC SMALL LETTER ER"),
    ("numpy\u200b", "ZERO WIDTH SPACE"),
    ("numpy\u00a0=1", "NO-BREAK SPACE"),
    ("numpy=1\nRUN x", r"U\+000A"),
    ("numpy;python_version<'3'", "';'"),
    ("numpy @ https://x/y.whl", "requirement of pip"),
    ("numpy 1.26 1.27 1.28", "build"),
    ("numpy >=1 <2", "'<2' stands where a build"),
    ("numpy ===1", "not a version operator"),
    ("numpy 1.*.3", "inside the version"),
    ("numpy $(id)", "version"),
    ("numpy`id`", "not a package name"),
    ("numpy[", "not closed"),
    ("numpy[version]", "KEY=VALUE"),
    ("numpy[versoin=1]", "not a key"),
    ("numpy[build=a,build=b]", "twice"),
    ("numpy=1[version=2]", "version twice"),
    ("numpy=1=a[build=b]", "build twice"),
    ("a::numpy[channel=b]", "channel twice"),
    ("a:b:numpy", "single ':'"),
    ("ftp://x/y/noarch/a-1-0.conda", "no URL that packages come from"),
    ("https://x/y.whl", "does not end in"),
    ("./a-1-0.conda", "no URL that packages come from"),
    (f"{URL}#abc", "sha256"),
    ("numpy[md5=abc]", "md5"),
    ("numpy[subdir=mars-7x]x", "not closed"),
    ("numpy[subdir=mars-64]", "not a platform"),
    ("numpy[build='a|b']", "malformed"),
    ("numpy[build='^(a$']", "regular expression"),
    ("numpy[build_number='>=3,<5']", "malformed"),
    ("numpy[license='']", "empty"),
    ("numpy[extras=[a]]", "'extras' between brackets is known, and not supported"),
    ("numpy[version=1, when='python >=3']", "'when' between brackets is known, and not supported"),
    ("numpy 1[build=0,flags=[cuda]]", "'flags' between brackets is known, and not supported"),
    ("numpy[namespace=a]", "'namespace' between brackets is known, and not supported"),
    ("numpy; if python >=3", "'; if' is known, and not supported"),
    ("numpy >2.*", "ambiguous"),
    ("numpy[features=a]", "not a key"),
    ("*", "not a package name"),
    ("py*", "not a package name"),
    ("^py.*$", "not a package name"),
    ("numpy " + "1|" * 1100 + "1", "characters"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_is_no_match_spec_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as refusal:
        MatchSpec.parse(text, Mark("environment.yml", 7, 5))
    assert str(refusal.value).startswith("environment.yml:7:5: match spec ")


def test_credentials_are_kept_for_fetching_and_shown_nowhere() -> None:
    by_channel = MatchSpec.parse("https://me:s3cret@example.com/t/tk-1/team::x")
    by_url = MatchSpec.parse("https://me:s3cret@example.com/t/tk-1/team/noarch/x-1-0.conda")
    assert by_channel.channel is not None
    assert by_channel.channel.url() == "https://me:s3cret@example.com/t/tk-1/team"
    assert by_url.private_url == "https://me:s3cret@example.com/t/tk-1/team/noarch/x-1-0.conda"
    for spec in (by_channel, by_url):
        assert "s3cret" not in repr(spec) + str(spec)
        assert "tk-1" not in repr(spec) + str(spec)
    with pytest.raises(SpecError) as refusal:
        MatchSpec.parse("https://me:s3cret@example.com/t/tk-1/team/noarch/x.whl")
    assert "s3cret" not in str(refusal.value)


def test_fields_can_be_asked_for() -> None:
    spec = MatchSpec.parse("c/noarch::x 1.2 py_0")
    assert [spec.get(key) for key in ("channel", "subdir", "build", "md5")] == ["c", "noarch", "py_0", None]


NUMBERS = st.sampled_from(
    [
        "0",
        "0.0",
        "1",
        "1.0",
        "1.2",
        "1.2.0",
        "1.2.3",
        "1.26",
        "2",
        "01",
        "1.02",
        "1" * 19,
        "3.11",
        "2.2_63",
        "1.0a1",
        "2.0a0",
        "1a0.2.0",
        "1.0a0b",
        "1.1.1w",
        "1dev.0",
        "1post0",
    ]
)
OPERATORS = st.sampled_from(["", "", "=", "==", ">=", ">", "<", "<=", "!=", "~="])
SPACES = st.sampled_from(["", " "])
CONSTRAINTS = st.lists(
    st.builds("{}{}{}{}".format, OPERATORS, SPACES, NUMBERS, st.sampled_from(["", "", ".*", "*"])),
    min_size=1,
    max_size=3,
)
TEXTS = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(
        ["", "", "", "conda-forge::", "defaults::", "nodefaults::", "a/b::", "a/linux-64::", "::"]
    ),
    st.sampled_from(["numpy", "NumPy", "r-x.y", "_a"]),
    st.sampled_from(["", " ", "  "]),
    st.builds(lambda joint, parts: joint.join(parts), st.sampled_from([",", "|", " , ", " | "]), CONSTRAINTS),
    st.sampled_from(
        [
            "",
            "",
            "=py311h1_0",
            "=*cuda*",
            "=*x",
            " py3*",
            "=*",
            "=**",
            " ",
            "[build_number=3]",
            "[build='*_0']",
        ]
    ),
)


@given(TEXTS)
@settings(max_examples=2000, deadline=None)
def test_canonicalising_keeps_what_matches(text: str) -> None:
    try:
        canonical = MatchSpec.parse(text).canonical()
    except SpecError:
        return
    assert MatchSpec.parse(canonical).canonical() == canonical
    try:
        expected = allowed(text)
    except InvalidMatchSpecError:
        return
    assert allowed(canonical) == expected


@given(TEXTS)
@settings(max_examples=2000, deadline=None)
def test_the_short_ways_give_what_the_grammar_gives(text: str) -> None:
    try:
        short = MatchSpec.parse(text)
    except SpecError:
        with pytest.raises(SpecError):
            matchgrammar.read_match(text, None)
    else:
        name, version, fields, channel, _ = matchgrammar.read_match(text, None)
        assert (name, version, fields, channel) == (short.name, short.version, short.fields, short.channel)
        assert short.spelling == shortmatch.spell(name, version, fields)


ONE_CONSTRAINT = st.from_regex(
    r"(==?|>=?|<=?|!=|~=|) ?(0|[1-9][0-9]?)(\.[01]|\.[01]?a0?|\.post1){0,3}(\.\*)?", fullmatch=True
)


@given(ONE_CONSTRAINT)
@settings(max_examples=2000, deadline=None)
def test_the_short_way_of_a_constraint_gives_what_the_grammar_gives(text: str) -> None:
    short = shortmatch.read_short_constraint(text)
    assert short is None or short == canonical_constraint(text)


def test_a_plain_constraint_is_read_the_short_way() -> None:
    assert shortmatch.read_short_constraint(">=1.26.0") == ">=1.26"


@given(st.text(max_size=40) | st.text(alphabet="numpy=<>!~*[]()|,. '\"1:/#@;$\\", max_size=30))
@settings(max_examples=2000, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        canonical = MatchSpec.parse(text).canonical()
    except SpecError:
        return
    assert canonical.isascii()
    assert canonical.isprintable()
    assert MatchSpec.parse(canonical).canonical() == canonical
    rattler.MatchSpec(canonical)
