"""The key: equal for equal meanings, different for any other, and frozen."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import pytest
import rfc8785

from envbuild.digest import Digest
from envbuild.errors import SpecError
from envbuild.key import KEY_SCHEME, PREFIX_LAYOUT, CanonicalForm, Key, index_key, steps_key
from envbuild.platform import LINUX_AMD64, Platform
from envbuild.spec.document import Mark
from envbuild.spec.environment import EnvironmentSpec, parse
from envbuild.spec.steps import Steps
from spec_samples import Sample, edits, plain, platform, sample

ROOT = Path(__file__).parents[1]
BASE = Digest("b" * 64)
ARM64 = Platform.parse("linux/arm64")
FIELDS = {
    "as_of",
    "base",
    "channel_priority",
    "conda",
    "pip",
    "platform",
    "prefix_layout",
    "steps",
    "steps_after",
    "variables",
}
EDITS = edits()


def spec(
    content: str | bytes, folder: Path = Path("/nowhere"), name: str = "envbuild.yaml"
) -> EnvironmentSpec:
    return parse(content if isinstance(content, bytes) else content.encode(), name, folder)


def key(content: str | bytes, folder: Path = Path("/nowhere"), base: Digest | None = BASE) -> str:
    """The key of a definition; one without a base is put on one."""
    found = spec(content, folder)
    if not found.has_base:
        found = found.with_base("debian" if base else "scratch")
    return str(CanonicalForm.of(found, base, found.platforms[0]).key)


def of_sample(one: Sample, content: bytes) -> str:
    return str(CanonicalForm.of(spec(content), one.base, platform(one)).key)


def conda(*dependencies: str, channels: str = "[conda-forge]") -> str:
    return key(f"channels: {channels}\ndependencies: {json.dumps(dependencies)}\n")


def pip(*requirements: str) -> str:
    return key(f"base: debian\npip: {json.dumps(requirements)}\n")


def steps(text: str) -> str:
    return key("base: debian\nsteps: " + json.dumps(text) + "\n")


def test_a_key_is_64_digits_and_a_tag() -> None:
    found = Key("a" * 64)
    assert (str(found), str(found.tag)) == ("a" * 64, "k1-" + "a" * 64)
    assert (KEY_SCHEME, PREFIX_LAYOUT) == (1, 1)


@pytest.mark.parametrize("text", ["", "a" * 63, "A" * 64, "a" * 65, "g" * 64, "a" * 64 + "\n"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="is not a key"):
        Key(text)


def test_the_key_is_the_documented_hash() -> None:
    form = CanonicalForm.of(spec("base: debian\nconda: {dependencies: [a]}\n"), BASE, LINUX_AMD64)
    content = form.to_json()
    assert content == rfc8785.dumps(json.loads(content))
    assert str(form.key) == hashlib.sha256(b"envbuild/key/v1\x00" + content).hexdigest()


@pytest.mark.parametrize(
    "content", ["base: scratch\n", "base: scratch\npip: [a]\nas_of: 2026-11-01\nsteps: RUN a\n"]
)
def test_every_field_is_always_there(content: str) -> None:
    form = json.loads(CanonicalForm.of(spec(content), None, LINUX_AMD64).to_json())
    assert set(form) == FIELDS


def test_the_page_on_the_key_names_every_member_of_a_form() -> None:
    everything = json.loads((ROOT / "fixtures/vectors/everything/canonical.json").read_text())
    page = (ROOT / "docs/key.md").read_text()
    assert [name for name in members(everything) if f"`{name}`" not in page and f'"{name}"' not in page] == []


def members(value: Any) -> set[str]:
    """The names of all members, at any depth, but for those that a user chooses."""
    if isinstance(value, list):
        return {name for item in value for name in members(item)}
    if not isinstance(value, dict):
        return set()
    inner = {
        name for key, item in value.items() if key not in {"variables", "args"} for name in members(item)
    }
    return set(value) | inner


def test_the_plain_fields_are_spelled_as_documented() -> None:
    content = (
        "base: scratch\nas_of: 2026-11-01T02:00:00+02:00\n"
        "variables: {B: b, A: ''}\nchannel_priority: flexible\n"
    )
    form = json.loads(CanonicalForm.of(spec(content), None, ARM64).to_json())
    assert form == {
        "as_of": "2026-11-01T00:00:00Z",
        "base": "scratch",
        "channel_priority": "flexible",
        "conda": None,
        "pip": None,
        "platform": "linux/arm64",
        "prefix_layout": 1,
        "steps": None,
        "steps_after": None,
        "variables": {"A": "", "B": "b"},
    }


def test_a_form_needs_its_base() -> None:
    with pytest.raises(SpecError, match="no base image"):
        CanonicalForm.of(spec("dependencies: [a]\n"), BASE, LINUX_AMD64)
    with pytest.raises(SpecError, match="the digest given for it is None"):
        CanonicalForm.of(spec("base: debian\n"), None, LINUX_AMD64)
    with pytest.raises(SpecError, match="the base is scratch"):
        CanonicalForm.of(spec("base: scratch\n"), BASE, LINUX_AMD64)


def test_years_are_written_in_four_digits() -> None:
    early = replace(spec("base: scratch\n"), as_of=datetime(9, 1, 2, tzinfo=UTC))
    assert CanonicalForm.of(early, None, LINUX_AMD64).fields["as_of"] == "0009-01-02T00:00:00Z"


# Not in the key.


PLAIN = "{channels: [conda-forge], dependencies: [numpy, scipy=1.2]}"
ANACONDA = "conda.anaconda.org"


@pytest.mark.parametrize(
    "content",
    [
        "name: x\nchannels: [conda-forge]\ndependencies: [numpy, scipy=1.2]\n",
        "prefix: /home/me/x\nchannels: [conda-forge]\ndependencies: [numpy, scipy=1.2]\n",
        "# c\nchannels:\n- conda-forge # c\n\ndependencies:\n    - scipy=1.2\n    - numpy\n",
        "channels: [conda-forge]\ndependencies: [scipy=1.2, numpy, numpy]\n",
        "channels: [conda-forge, conda-forge]\ndependencies: [NumPy, 'scipy 1.2.*']\n",
        f"channels: ['https://{ANACONDA}/conda-forge/']\ndependencies: [numpy, scipy=1.2]\n",
        f"channels: ['https://me:x@{ANACONDA}/t/y/conda-forge']\ndependencies: [numpy, scipy=1.2]\n",
        f"base: elsewhere.example.com/debian:13\nconda: {PLAIN}\n",
        f"base: debian\nsecrets: [token]\nconda: {PLAIN}\n",
        f"base: debian\nsteps: '# nothing'\nconda: {PLAIN}\n",
        f"base: debian\nplatforms: [linux/amd64, linux/arm64]\nconda: {PLAIN}\n",
    ],
)
def test_what_has_no_effect_is_not_in_the_key(content: str) -> None:
    assert key(content) == conda("numpy", "scipy=1.2")


def test_variables_have_one_meaning_in_both_places() -> None:
    inside = "base: debian\nconda: {dependencies: [a], variables: {A: '1'}}\n"
    outside = "base: debian\nconda: {dependencies: [a]}\nvariables: {A: '1'}\n"
    overridden = "base: debian\nconda: {dependencies: [a], variables: {A: '0'}}\nvariables: {A: '1'}\n"
    assert key(inside) == key(outside) == key(overridden)


def test_a_conda_section_that_installs_nothing_is_none() -> None:
    assert key("base: debian\nconda: {channels: [x], dependencies: []}\n") == key("base: debian\n")


def test_options_without_requirements_install_nothing() -> None:
    assert pip("--pre") == key("base: debian\npip: []\n") == key("base: debian\n")


def test_layout_of_steps_is_not_in_the_key() -> None:
    first = steps("RUN apt-get update && \\\n    # why\n    apt-get install -y x\nENV A=1\n")
    assert first == steps("# c\nrun apt-get update &&     apt-get install -y x\n\nenv A 1")


def test_files_are_in_the_key_by_content_not_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("requests\n")
    (tmp_path / "b.txt").write_text("# c\nRequests\n")
    (tmp_path / "c.yml").write_text("dependencies: [numpy]\n")
    assert key("base: debian\npip: a.txt\n", tmp_path) == key("base: debian\npip: b.txt\n", tmp_path)
    assert key("base: debian\nconda: c.yml\n", tmp_path) == key("dependencies: [numpy]\n")


def test_the_folder_is_not_in_the_key(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text("x")
    content = "base: debian\nsteps: COPY f /f\n"
    assert key(content, tmp_path / "one") == key(content, tmp_path / "two")


# In the key.


def test_whatever_makes_another_image_makes_another_key(tmp_path: Path) -> None:
    keys = {
        "plain": conda("numpy"),
        "base": key("channels: [conda-forge]\ndependencies: [numpy]\n", base=Digest("c" * 64)),
        "scratch": key("channels: [conda-forge]\ndependencies: [numpy]\n", base=None),
        "exact": conda("numpy==1"),
        "prefix": conda("numpy=1"),
        "least": conda("numpy>=1"),
        "build": conda("numpy=1=py311*"),
        "channel of one": conda("bioconda::numpy"),
        "channels": conda("numpy", channels="[conda-forge, bioconda]"),
        "channel order": conda("numpy", channels="[bioconda, conda-forge]"),
        "nodefaults": conda("numpy", channels="[conda-forge, nodefaults]"),
        "no channels": conda("numpy", channels="[]"),
        "pip inside": key("channels: [conda-forge]\ndependencies: [numpy, pip: [numpy]]\n"),
        "pip alone": pip("numpy"),
        "pip and pip": pip("numpy", "scipy"),
        "nothing": key("base: debian\n"),
        "steps": steps("RUN numpy"),
        "steps after": key("base: debian\nsteps_after: RUN numpy\n"),
        "step exec": steps('RUN ["numpy"]'),
        "variables": key("base: debian\nvariables: {numpy: ''}\n"),
        "priority": key("base: debian\nchannel_priority: flexible\n"),
        "platform": key("base: debian\nplatform: linux/arm64\n"),
        "as_of": key("base: debian\nas_of: 2026-11-01\n"),
        "as_of later": key("base: debian\nas_of: 2026-11-01T00:00:01Z\n"),
    }
    equal = [pair for pair in combinations(keys, 2) if keys[pair[0]] == keys[pair[1]]]
    assert equal == []


def test_build_arguments_are_in_the_key(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("ARG A\nRUN echo $A\n")
    found = {
        key(f"base: debian\nsteps: {{file: s, args: {args}}}\n", tmp_path)
        for args in ("{}", "{A: ''}", "{A: '1'}", "{A: '2'}")
    }
    assert len(found) == 4


def context_key(folder: Path, files: dict[str, str], mode: int = 0o644) -> str:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(mode)
    return key("base: debian\nsteps: COPY . /x\n", folder)


def test_context_files_are_framed(tmp_path: Path) -> None:
    trees: list[dict[str, str]] = [
        {"a": "b1"},
        {"a/b": "1"},
        {"ab": "1"},
        {"a": "12", "b": "3"},
        {"a": "1", "b": "23"},
        {"a": "", "b": "123"},
        {"x": "12", "y": "3"},
        {"d/a": "12", "b": "3"},
    ]
    keys = [context_key(tmp_path / str(number), tree) for number, tree in enumerate(trees)]
    keys.append(context_key(tmp_path / "mode", trees[0], 0o755))
    assert len(set(keys)) == len(keys)


def test_only_the_execute_bit_of_a_mode_counts(tmp_path: Path) -> None:
    first = context_key(tmp_path / "a", {"f": "x"}, 0o644)
    assert first == context_key(tmp_path / "b", {"f": "x"}, 0o600)


def test_dockerignore_is_honoured(tmp_path: Path) -> None:
    first = context_key(tmp_path / "a", {"f": "x", ".dockerignore": "*.log\n.dockerignore\n"})
    second = context_key(tmp_path / "b", {"f": "x", "y.log": "1", ".dockerignore": "*.log\n.dockerignore\n"})
    third = context_key(tmp_path / "c", {"f": "x", "y.txt": "1", ".dockerignore": "*.log\n.dockerignore\n"})
    assert first == second != third


# What peers' keys confuse.


def differ(*contents: str) -> bool:
    return len({key(content) for content in contents}) == len(contents)


def test_one_name_in_three_places_is_three_keys() -> None:
    assert differ(
        "base: debian\npip: [numpy]\n",
        "base: debian\nsteps: RUN apt-get install -y numpy\n",
        "base: debian\nsteps: RUN numpy\n",
        "base: debian\nsteps: CMD numpy\n",
        "base: debian\nconda: {dependencies: [numpy]}\n",
    )


@pytest.mark.parametrize("template", ["base: debian\npip: %s\n", "base: debian\nconda: {dependencies: %s}\n"])
def test_names_do_not_run_together(template: str) -> None:
    assert differ(template % "[ab, c]", template % "[a, bc]", template % "[abc]", template % "[a, b, c]")


def test_variables_do_not_run_together() -> None:
    assert differ(
        "base: debian\nvariables: {A: '1', B: '2'}\n",
        "base: debian\nvariables: {A: '1 B=2'}\n",
        "base: debian\nvariables: {A: '1,B:2'}\n",
        'base: debian\nvariables: {A: "1\\",\\"B\\":\\"2"}\n',
        "base: debian\nvariables: {A1: '', B: '2'}\n",
    )


def test_platforms_have_keys_of_their_own() -> None:
    assert differ("base: debian\nplatform: linux/amd64\n", "base: debian\nplatform: linux/arm64\n")


def test_spelling_of_a_requirement_does_not_matter() -> None:
    assert conda("NumPy=1.26") == conda("numpy 1.26.*") == conda("numpy  =1.26")
    assert conda("numpy=1.26") != conda("numpy==1.26")
    assert pip("NumPy==1.26", "my_lib") == pip("my-lib", "numpy == 1.26")


def test_channel_order_matters_dependency_order_does_not() -> None:
    assert conda("a", channels="[x, y]") != conda("a", channels="[y, x]")
    assert conda("a", "b") == conda("b", "a")


def test_a_key_holds_no_address_no_seed_and_no_locale(tmp_path: Path) -> None:
    (tmp_path / "envbuild.yaml").write_bytes(plain(sample(Random(7))))
    program = (
        "from envbuild.spec.environment import load\n"
        "from envbuild.key import CanonicalForm\n"
        "from envbuild.digest import Digest\n"
        "s = load('envbuild.yaml')\n"
        "print(CanonicalForm.of(s, s.base and s.base.digest, s.platforms[0]).key)\n"
    )
    found = set()
    for seed, locale, zone in [
        ("0", "C", "UTC"),
        ("1", "C.UTF-8", "Asia/Tokyo"),
        ("random", "POSIX", "America/New_York"),
    ]:
        environment = {**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": locale, "TZ": zone}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, check=True
        )
        found.add(done.stdout)
    assert len(found) == 1
    assert re.fullmatch(rb"[0-9a-f]{64}\n", found.pop())


def test_credentials_are_not_in_the_form() -> None:
    content = (
        "base: debian\nconda:\n  dependencies: [a, 'https://e.example.com/b/t/t0k3n/c::d', 'e[url=\"https://e.example.com/b/t/t0k3n/c/noarch/e-1-0.conda\"]']\n"
        "  channels: ['https://me:s3cr3t@conda.example.com/t/t0k3n/c', 'https://example.com/a/t/t0k3n/c']\n"
        "pip: ['--index-url https://me:s3cr3t@pypi.example.com/simple', a]\n"
    )
    form = CanonicalForm.of(spec(content), BASE, LINUX_AMD64)
    assert not re.search(rb"s3cr3t|t0k3n|me:", form.to_json())
    assert b"pypi.example.com" in form.to_json()


# Steps and several platforms.


def parsed(text: str, **args: str) -> Steps:
    return Steps.parse(text, Mark("s", 1, 1), args=args, context=None)


def test_steps_have_a_key_of_their_own() -> None:
    first = steps_key(BASE, parsed("RUN a"), LINUX_AMD64)
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert first == steps_key(BASE, parsed("# c\nrun  a\n"), LINUX_AMD64)
    others = [
        steps_key(None, parsed("RUN a"), LINUX_AMD64),
        steps_key(Digest("c" * 64), parsed("RUN a"), LINUX_AMD64),
        steps_key(BASE, parsed("RUN a"), ARM64),
        steps_key(BASE, parsed("RUN b"), LINUX_AMD64),
        steps_key(BASE, parsed("RUN a\nRUN a"), LINUX_AMD64),
        steps_key(BASE, parsed("ARG A\nRUN a"), LINUX_AMD64),
        steps_key(BASE, parsed("ARG A\nRUN a", A="1"), LINUX_AMD64),
        str(CanonicalForm.of(spec("base: debian\nsteps: RUN a\n"), BASE, LINUX_AMD64).key),
    ]
    assert len({first, *others}) == len(others) + 1


def test_an_index_has_the_key_over_its_platforms() -> None:
    one, two = Key("1" * 64), Key("2" * 64)
    both = index_key({LINUX_AMD64: one, ARM64: two})
    assert both == index_key({ARM64: two, LINUX_AMD64: one})
    content = b'{"keys":{"linux/amd64":"%s","linux/arm64":"%s"}}' % (
        b"1" * 64,
        b"2" * 64,
    )
    assert str(both) == hashlib.sha256(b"envbuild/index-key/v1\x00" + content).hexdigest()
    assert len({both, one, two, index_key({LINUX_AMD64: two, ARM64: one})}) == 4
    assert index_key({ARM64: two}) == two
    with pytest.raises(SpecError, match="no platform"):
        index_key({})
