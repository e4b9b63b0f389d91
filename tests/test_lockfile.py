"""Locks: one byte form, strict reading with places, matching, and a lock as a definition."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envbuild.digest import Digest
from envbuild.errors import SpecError
from envbuild.key import CanonicalForm
from envbuild.lock import Lock, PackageRecord, PipDistribution
from envbuild.lockfile import FILE_NAME, LockPolicy, apply, base_text, differences, load
from envbuild.lockfile.document import START, LockEntry, LockFile, distribution_json
from envbuild.lockfile.place import line_and_column, offset_of
from envbuild.platform import LINUX_AMD64, Platform
from envbuild.reference import ImageReference
from envbuild.spec.environment import EnvironmentSpec, parse
from spec_samples import document, platform, sample

BASE = Digest("b" * 64)
ARM64 = Platform.parse("linux/arm64")
NUMPY = PackageRecord(
    name="numpy",
    version="1.26.4",
    build="py311h1",
    build_number=1,
    subdir="linux-64",
    url="https://conda.example.com/c/linux-64/numpy-1.26.4-py311h1.conda",
    sha256=Digest("1" * 64),
    size=10,
    md5="0" * 32,
    depends=("python >=3.11,<3.12.0a0", "libblas"),
    metadata='{"constrains":["numpy-base <0a0"],"license":"BSD","timestamp":1700000000000}',
)
PYTHON = replace(
    NUMPY, name="python", sha256=Digest("2" * 64), size=None, md5=None, depends=(), metadata="",
    python_site_packages_path="lib/python3.11/site-packages",
)  # fmt: skip
PURE = replace(NUMPY, name="zpure", subdir="noarch", noarch="python", url="file:///c/noarch/zpure-1-0.conda")
WHEEL = PipDistribution(
    "requests", "2.32.3", "https://files.example.com/requests-2.32.3-py3-none-any.whl", Digest("3" * 64), 5,
    "requests-2.32.3-py3-none-any.whl",
)  # fmt: skip
PIP = '"pip": [\n'
DEFINITION = """
base: debian:12-slim
conda: {channels: [conda-forge], dependencies: [numpy=1.26]}
variables: {A: "é"}
"""


def spec(
    text: str = DEFINITION, source: str = "envbuild.yaml", folder: Path = Path("/nowhere")
) -> EnvironmentSpec:
    return parse(text.encode(), source, folder)


def entry(
    found: EnvironmentSpec, digest: Digest | None = BASE, target: Platform = LINUX_AMD64, **more: Any
) -> LockEntry:
    form = CanonicalForm.of(found, digest, target)
    return LockEntry(base_text(found, Path("/nowhere")), form, Lock.of(target, [PYTHON, NUMPY, PURE]), **more)


def lock(**more: Any) -> LockFile:
    return LockFile.of("envbuild.yaml", [entry(spec(), **more)])


def refused(content: bytes) -> SpecError:
    with pytest.raises(SpecError) as caught:
        LockFile.parse(content, "envbuild.lock")
    assert caught.value.source == "envbuild.lock"
    assert caught.value.line is not None
    assert caught.value.column is not None
    return caught.value


def test_a_lock_is_read_as_it_was_written() -> None:
    for written in (
        lock(),
        lock(pip=(WHEEL, replace(WHEEL, name="z", size=None, direct_url="https://e.com/z"))),
    ):
        content = written.to_bytes()
        found = LockFile.parse(content, "envbuild.lock")
        assert found == written
        assert found.to_bytes() == content
        assert content.startswith(START)
        assert content.endswith(b"}\n")


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**9))
def test_any_definition_survives_its_lock(seed: int) -> None:
    one = sample(Random(seed))
    found = spec(json.dumps(document(one)))
    written = LockFile.of("x", [entry(found, one.base, platform(one))])
    assert LockFile.parse(written.to_bytes(), "x") == written


def test_equal_locks_have_equal_bytes_whatever_the_order() -> None:
    forwards = [entry(spec()), entry(spec(), target=ARM64)]
    assert LockFile.of("x", forwards).to_bytes() == LockFile.of("x", forwards[::-1]).to_bytes()
    assert LockFile.of("x", forwards).entry(ARM64) == forwards[1]
    assert LockFile.of("x", forwards[:1]).entry(ARM64) is None


def test_one_value_a_line() -> None:
    lines = lock().to_bytes().decode().splitlines()
    assert '     "name": "numpy",' in lines
    assert lines.index('     "version": "1.26.4",') == lines.index('     "name": "numpy",') + 1
    assert max(map(len, lines)) < 120


def test_the_fixed_bytes() -> None:
    """The format is published; this lock must never read or write otherwise."""
    made = lock(pip=(WHEEL,))
    seal = json.loads(made.to_bytes())["seal"]
    assert seal == "45294ba4bf765c80c6dcf5d2a70af03bedaf37591b327dde369c6ca5c3c5dbe1"
    (one,) = made.entries
    bare = Lock.of(one.lock.platform, [replace(each, metadata="") for each in one.lock.packages])
    seal = json.loads(LockFile.of("envbuild.yaml", [replace(one, lock=bare)]).to_bytes())["seal"]
    assert seal == "3aa0b002a94a52638bcba25c691f214389db85d717f0a19636a715cfd00fdb8d"


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_changed_byte_goes_unseen(data: st.DataObject) -> None:
    content = lock(pip=(WHEEL,)).to_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    refused(content[:place] + bytes([value]) + content[place + 1 :])


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_no_missing_or_added_byte_goes_unseen(data: st.DataObject) -> None:
    content = lock().to_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    refused(content[:place] + content[place + 1 :])
    refused(content[:place] + data.draw(st.binary(min_size=1, max_size=3)) + content[place:])
    refused(content[:place])


def edited(change: str, to: str) -> bytes:
    content = lock(pip=(WHEEL,)).to_bytes().decode()
    assert change in content
    return content.replace(change, to, 1).encode()


@pytest.mark.parametrize(
    ("change", "to", "line", "message"),
    [
        ('"envbuild_lock": 1', '"envbuild_lock": 2', 2, "version is 2, expected 1"),
        ('"definition"', '"defunition"', 3, "'defunition' is not a member"),
        ('"linux/amd64": {', '"linux/vax": {', 5, "'linux/vax' is not a platform"),
        ('"platform": "linux/amd64"', '"platform": "linux/arm64"', None, "the form is for 'linux/arm64'"),
        ('"numpy 1.26.*"', '"numpy 1.27.*"', 6, "the key is not that of the form"),
        ('"sha256": "1111', '"sha256": "11x1', None, "expected 64 lower-case"),
        ('"size": 10', '"size": "10"', None, "expected a whole number"),
        ('"size": 10', '"size": -1', None, "expected a whole number"),
        ('"size": 10', '"size": true', None, "expected a whole number"),
        ('"build_number": 1,', '"build_number": 1.0,', None, "expected a whole number"),
        ('"noarch": "python"', '"noarch": "perl"', None, "expected 'python' or 'generic'"),
        ('"md5": "0', '"md5": "g', None, "which it cannot be"),
        ('"url": "https://conda', '"url": "ftp://conda', None, "is not a URL: its scheme is 'ftp'"),
        (
            '"url": "https://conda',
            r'"url": "https://evil\\@conda',
            None,
            "it holds a backslash",
        ),
        ('"url": "https://conda', '"url": "https://me:hush@conda', None, "locks hold no logins"),
        ('"depends": [', '"depended": [', None, "'depended' is not a member"),
        ('"license": "BSD"', '"licence": "BSD"', None, "'licence' is not a member"),
        ('"license": "BSD"', '"license": 1', None, "expected text"),
        ('"timestamp": 1700000000000', '"timestamp": "now"', None, "expected a whole number"),
        ('"constrains": [', '"constrains": 1, "x": [', None, "'x' is not a member|expected a list"),
        ('"build": "py311h1"', '"build": "../../x"', None, "which it cannot be"),
        ('"name": "zpure"', '"name": "../zpure"', None, "which it cannot be"),
        (
            '"python_site_packages_path": "lib/python3.11/site-packages"',
            '"python_site_packages_path": "lib/../../site-packages"',
            None,
            "which it cannot be",
        ),
        ('"name": "zpure"', '"name": "numpy"', None, "a package stands twice"),
        (PIP, f"{PIP}{json.dumps(distribution_json(WHEEL))}, ", None, "a wheel stands twice"),
        ('"version": "1.26.4"', '"version": "1.26.5"', None, "does not match its seal"),
        ('"version": "1.26.4"', '"version": ""', None, "which it cannot be"),
        (' "seal"', '  "seal"', None, "not in its one byte form"),
        ("}\n", "}\n\n", None, "not JSON|one byte form"),
        ("{", "", 2, "not JSON"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(change: str, to: str, line: int | None, message: str) -> None:
    error = refused(edited(change, to))
    assert re.search(message, error.message)
    assert error.hint
    text = edited(change, to).decode()
    if line is not None:
        assert error.line == line
    elif "twice" not in message and "seal" not in message and "JSON" not in message:
        shown = text.splitlines()[(error.line or 0) - 1]
        assert to.partition(":")[0].strip(' "{') in shown


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"null", b"[]", b"{}", b'"x"', b"[" * 100_000, b'{"envbuild_lock": 1}', b"9" * 5000,
     b'{"envbuild_lock": "\\ud800"}', b'{"envbuild_lock": 1, "definition": "", "platforms": {}, "seal": ""}',
     b'{"envbuild_lock": 1, "definition": "", "platforms": {"linux/amd64": {}}, "seal": ""}',
     b'{"envbuild_lock": 1, "definition": "", "platforms": {"linux/amd64": {"key": 1, "form": 3}}}',
     b'{"envbuild_lock": NaN}'],
)  # fmt: skip
def test_what_is_no_lock_is_refused(content: bytes) -> None:
    refused(content)


def test_line_ends_that_a_tool_changed_are_told() -> None:
    assert "one byte form" in refused(lock().to_bytes().replace(b"\n", b"\r\n")).message


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=20,
    ),
    st.data(),
)
def test_every_value_of_a_json_text_is_found(value: Any, data: st.DataObject) -> None:
    text = json.dumps(
        value, indent=data.draw(st.sampled_from([None, 1])), ensure_ascii=data.draw(st.booleans())
    )
    path: list[str | int] = []
    while isinstance(value, list | dict) and value and data.draw(st.booleans()):
        step: Any = data.draw(
            st.sampled_from(range(len(value)) if isinstance(value, list) else sorted(value))
        )
        path.append(step)
        value = value[step]
    offset = offset_of(text, path)
    assert json.JSONDecoder().raw_decode(text, offset)[0] == value
    line, column = line_and_column(text, offset)
    assert text.split("\n")[line - 1][column - 1 :] == text[offset:].split("\n")[0]


def test_a_path_that_is_not_there_leads_to_what_is_around_it() -> None:
    text = '{"a": [1, {"b": 2}]}'
    assert offset_of(text, ["a", 7]) == text.index("[")
    assert offset_of(text, ["a", 1, "c"]) == text.index('{"b"')
    assert offset_of(text, ["x", 0]) == 0
    assert offset_of(text, ["a", 0, "x"]) == text.index("1")


# In use


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A definition in a folder with its lock; the definition's path."""
    path = tmp_path / "envbuild.yaml"
    path.write_text(DEFINITION)
    found = load(path)
    written = LockEntry(
        base_text(found, tmp_path), CanonicalForm.of(found, BASE, LINUX_AMD64), Lock.of(LINUX_AMD64, [NUMPY])
    )
    (tmp_path / FILE_NAME).write_bytes(LockFile.of(path.name, [written]).to_bytes())
    return path


def test_a_lock_beside_the_definition_pins_its_base(beside: Path) -> None:
    locked = apply(load(beside), LINUX_AMD64, LockPolicy())
    assert locked.entry is not None
    assert locked.note is None
    assert isinstance(locked.spec.base, ImageReference)
    assert locked.spec.base.digest == BASE
    assert CanonicalForm.of(locked.spec, BASE, LINUX_AMD64).key == locked.entry.key


def test_another_layout_of_the_same_definition_matches(beside: Path) -> None:
    beside.write_text("# words\n" + DEFINITION.replace("numpy=1.26", "NumPy 1.26.*"))
    assert apply(load(beside), LINUX_AMD64, LockPolicy(required=True)).entry is not None


def test_a_stale_lock_is_not_used_and_told_in_words(beside: Path) -> None:
    beside.write_text(DEFINITION.replace("numpy=1.26", "numpy=2"))
    found = load(beside)
    locked = apply(found, LINUX_AMD64, LockPolicy())
    assert locked.entry is None
    assert locked.spec is found
    assert "is stale: dependency numpy: numpy 1.26.* -> numpy 2.*; it is not used" in str(locked.note)
    with pytest.raises(SpecError, match="is stale") as caught:
        apply(found, LINUX_AMD64, LockPolicy(required=True))
    assert "envbuild lock" in str(caught.value.hint)


def test_another_base_makes_a_lock_stale_and_its_own_digest_does_not(beside: Path) -> None:
    found = load(beside)
    for other in ("debian:13", "scratch", f"debian@{Digest('c' * 64)}"):
        assert "base: docker.io/library/debian:12-slim ->" in str(
            apply(found.with_base(other), LINUX_AMD64, LockPolicy()).note
        )
    pinned = apply(found.with_base(f"debian@{BASE}"), LINUX_AMD64, LockPolicy())
    assert pinned.entry is not None


def test_another_platform_is_not_locked(beside: Path) -> None:
    found = load(beside, platforms="linux/arm64")
    assert "is not for linux/arm64" in str(apply(found, ARM64, LockPolicy()).note)
    with pytest.raises(SpecError, match="not for linux/arm64"):
        apply(found, ARM64, LockPolicy(required=True))


def test_the_lock_of_another_definition_in_the_folder_is_left_alone(beside: Path) -> None:
    other = beside.with_name("other.yaml")
    other.write_text(DEFINITION)
    locked = apply(load(other), LINUX_AMD64, LockPolicy())
    assert (locked.entry, locked.note) == (None, None)
    with pytest.raises(SpecError, match=r"is the lock of envbuild\.yaml"):
        apply(load(other), LINUX_AMD64, LockPolicy(required=True))
    assert apply(load(other), LINUX_AMD64, LockPolicy(beside.with_name(FILE_NAME))).entry is not None


def test_without_a_lock_nothing_is_said_and_required_ones_are_missed(tmp_path: Path) -> None:
    path = tmp_path / "envbuild.yaml"
    path.write_text(DEFINITION)
    locked = apply(load(path), LINUX_AMD64, LockPolicy())
    assert (locked.entry, locked.note) == (None, None)
    with pytest.raises(SpecError, match=r"there is no envbuild\.lock"):
        apply(load(path), LINUX_AMD64, LockPolicy(required=True))
    with pytest.raises(SpecError, match="cannot be read"):
        apply(load(path), LINUX_AMD64, LockPolicy(tmp_path / "none.lock"))


def test_locks_can_be_ignored(beside: Path) -> None:
    (beside.parent / FILE_NAME).write_bytes(b"garbage")
    assert apply(load(beside), LINUX_AMD64, LockPolicy(ignored=True)).entry is None
    with pytest.raises(SpecError):
        apply(load(beside), LINUX_AMD64, LockPolicy())


def test_standard_input_has_no_lock_beside_it(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(beside.parent)
    assert apply(spec(source="<stdin>"), LINUX_AMD64, LockPolicy()).entry is None


def test_layouts_are_named_from_the_locks_folder(tmp_path: Path) -> None:
    text = f"base: oci:{tmp_path}/bases:minimal\ndependencies: [a]\n".replace("dependencies: [a]\n", "")
    found = spec(text)
    assert base_text(found, tmp_path / "project") == "oci:../bases:minimal"
    assert base_text(found.with_base(f"oci:{tmp_path}/b@{BASE}"), tmp_path) == f"oci:b@{BASE}"
    assert base_text(found.with_base("scratch"), tmp_path) == "scratch"


def test_every_edit_is_a_difference() -> None:
    locked = entry(spec())
    assert differences(locked, spec(), Path("/nowhere")) == ()
    for changed in (
        DEFINITION + "as_of: 2026-01-01\n",
        DEFINITION + "steps: [RUN a]\n",
        DEFINITION.replace("conda-forge", "other"),
        DEFINITION.replace("é", "e"),
    ):
        assert len(differences(locked, spec(changed), Path("/nowhere"))) >= 1


# A lock as a definition


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**9))
def test_a_lock_stands_for_its_definition(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    one = sample(Random(seed))
    found = spec(json.dumps(document(one)))
    path = tmp_path_factory.mktemp("lock") / FILE_NAME
    path.write_bytes(LockFile.of("x", [entry(found, one.base, platform(one))]).to_bytes())
    revived = load(path)
    assert CanonicalForm.of(revived, one.base, platform(one)) == CanonicalForm.of(
        found, one.base, platform(one)
    )
    locked = apply(revived, platform(one), LockPolicy(required=True))
    assert locked.entry is not None


def test_a_lock_for_several_platforms_is_asked_which(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(LockFile.of("x", [entry(spec()), entry(spec(), target=ARM64)]).to_bytes())
    with pytest.raises(SpecError, match="linux/amd64, linux/arm64") as caught:
        load(path)
    assert "--platform" in str(caught.value.hint)
    assert load(path, platforms=(ARM64,)).platforms == (ARM64,)
    with pytest.raises(SpecError, match="s390x is asked for"):
        load(path, platforms="linux/s390x")
    with pytest.raises(SpecError, match="as_of cannot be laid over"):
        load(path, as_of="2026-01-01", platforms=(ARM64,))


def test_a_lock_does_not_hold_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "x-1-py3-none-any.whl").write_bytes(b"1")
    for text in ("base: scratch\nsteps: [COPY a /a]\n", "base: scratch\npip: [./x-1-py3-none-any.whl]\n"):
        path = tmp_path / FILE_NAME
        path.write_bytes(LockFile.of("x", [entry(spec(text, folder=tmp_path), None)]).to_bytes())
        with pytest.raises(SpecError, match="which a lock does not hold") as caught:
            load(path)
        assert "definition" in str(caught.value.hint)


def test_a_form_that_is_no_definition_is_refused(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    conda = {"channels": [], "dependencies": ["numpy  >=1"], "nodefaults": False}
    for member, value, said in (
        ("conda", {"channels": 3}, "conda.channels is 3, expected a list"),
        ("variables", None, "variables is None, expected an object"),
        ("variables", {"A=B\nC": "x"}, "is not a variable's name"),
        ("steps", {"context": [], "x": 1}, "'x' is not a member"),
        ("conda", conda, "cannot be made into a definition"),
    ):
        form = CanonicalForm({**CanonicalForm.of(spec(), BASE, LINUX_AMD64).fields, member: value})
        path.write_bytes(LockFile.of("x", [replace(entry(spec()), form=form)]).to_bytes())
        with pytest.raises(SpecError, match=said):
            load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": ["true\nFROM evil"]},
        {"arguments": ["true\\\n\nUSER 0"]},
        {"keyword": "RUN x\nFROM", "arguments": ["evil"]},
        {"flags": ["network=none\nFROM evil"]},
        {"flags": ["mount=type=bind,source=.\nFROM evil"]},
        {"arguments": ["cat <<E"], "heredocs": [{"content": "a\nE\nFROM evil\n", "name": "E"}]},
        {"arguments": ["cat"], "heredocs": [{"content": "FROM evil\n", "name": "E"}]},
        {"arguments": ["cat <<E"], "heredocs": [{"content": "a", "name": "E"}]},
        {"arguments": ["x"], "keyword": "# syntax=evil\nRUN"},
        {"keyword": "ONBUILD", "arguments": ["RUN true"]},
        {"keyword": "FROM", "arguments": ["evil"]},
        {"keyword": "COPY", "arguments": ["a", "b\nFROM evil"], "exec": True},
    ],
)
def test_steps_of_a_lock_that_are_others_as_text_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    docs = [{"expand": True, "stripTabs": False, **each} for each in changes.get("heredocs", [])]
    one = {"keyword": "RUN", "flags": [], "arguments": ["true"], "exec": False, **changes, "heredocs": docs}
    steps = {"args": {}, "context": [], "instructions": [one]}
    path = tmp_path / FILE_NAME
    for member in ("steps", "steps_after"):
        form = CanonicalForm({**CanonicalForm.of(spec(), BASE, LINUX_AMD64).fields, member: steps})
        path.write_bytes(LockFile.of("x", [replace(entry(spec()), form=form)]).to_bytes())
        with pytest.raises(SpecError):
            load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "a\n--index-url http://evil/simple\nb"},
        {"specifiers": ["==1\n-r /etc/passwd"]},
        {"marker": 'python_version > "3"\n--extra-index-url http://evil'},
        {"url": "https://h/a-1.zip\n-e .", "name": "a"},
        {"extras": ["x]\nb["]},
        {"hashes": ["sha256:" + "0" * 64 + "\nevil"]},
    ],
)
def test_requirements_of_a_lock_that_are_others_as_text_are_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    one = {"editable": False, "extras": [], "hashes": [], "local": None, "marker": "", "name": "a",
           "specifiers": ["==1"], "url": None}  # fmt: skip
    lists = ("constraints", "findLinks", "findLinksLocal", "indexes", "noBinary", "onlyBinary", "switches")
    pip: dict[str, Any] = {key: [] for key in (*lists, "trustedHosts")}
    path = tmp_path / FILE_NAME
    for member in ({"requirements": [{**one, **change}]}, {"indexes": ["https://h/simple\n-r /etc/passwd"]}):
        section = {**pip, "ownIndex": False, "requirements": [one], **member}
        form = CanonicalForm({**CanonicalForm.of(spec(), BASE, LINUX_AMD64).fields, "pip": section})
        path.write_bytes(LockFile.of("x", [replace(entry(spec()), form=form)]).to_bytes())
        with pytest.raises(SpecError):
            load(path)
