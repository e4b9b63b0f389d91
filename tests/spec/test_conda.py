"""The Conda section of a definition."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envbuild.errors import SpecError
from envbuild.spec.conda import CondaSection
from envbuild.spec.document import Mapping, Sequence, load_document
from envbuild.spec.pip import PipSection

FOLDER = Path("/home/me/project")


def parse(content: str) -> tuple[CondaSection, PipSection | None]:
    node = load_document(content.encode(), "environment.yml")
    assert isinstance(node, Mapping)
    return CondaSection.parse(node, FOLDER)


def canonical(content: str) -> dict[str, Any]:
    return parse(content)[0].canonical()


FULL = """\
name: science
prefix: /home/me/envs/science
channels:
  - conda-forge
  - https://me:s3cret@example.com/team/
  - https://conda.anaconda.org/conda-forge
  - ./local
  - nodefaults
dependencies:
  - python=3.11
  - NumPy >=1.26,<2
  - numpy<2,>=1.26
  - pip
  - pip:
      - requests>=2
      - click
variables:
  OMP_NUM_THREADS: 1
  MODE: "no"
platforms: [linux-64, osx-arm64]
category: main
"""


def test_a_full_file() -> None:
    section, pip = parse(FULL)
    assert section.canonical() == {
        "channels": ["conda-forge", "https://example.com/team", "file:///home/me/project/local"],
        "dependencies": ["numpy >=1.26,<2", "pip", "python 3.11.*"],
        "nodefaults": True,
        "variables": {"MODE": "no", "OMP_NUM_THREADS": "1"},
    }
    assert pip == PipSection.parse(_pip_items(), FOLDER)
    assert section.channels[1].url() == "https://me:s3cret@example.com/team"
    assert "s3cret" not in repr(section)
    assert str(section.dependencies[0].mark) == "environment.yml:11:5"


def _pip_items() -> tuple[Any, ...]:
    node = load_document(b"[requests>=2, click]", "environment.yml")
    assert isinstance(node, Sequence)
    return node.items


@pytest.mark.parametrize(
    "content",
    [
        "dependencies:\n",
        "dependencies: []\n",
        "dependencies: ~\nchannels:\nvariables: null\nname:\nprefix:\n",
        "dependencies: null\n",
        '{"dependencies": []}',
        "dependencies:\n  - pip:\n",
    ],
)
def test_nothing_written_is_nothing(content: str) -> None:
    section, pip = parse(content)
    assert section == CondaSection()
    assert pip is None


def test_names_places_and_layout_do_not_count() -> None:
    plain = "channels: [a, b]\ndependencies: [x=1, y]\nvariables: {A: b}\n"
    same = "# c\nvariables:\n  'A': \"b\"\nname: z\nprefix: /q\nplatforms: [linux-64]\n"
    same += "dependencies:\n- y\n- X 1.*\n- x=1\nchannels: [a/, b, a]\n"
    assert canonical(plain) == canonical(same)
    assert parse(plain)[0] == parse(same)[0]


DIFFERENT = [
    "channels: [a, b]\ndependencies: [x=1, y]\n",
    "channels: [b, a]\ndependencies: [x=1, y]\n",
    "channels: [a, b, nodefaults]\ndependencies: [x=1, y]\n",
    "channels: [a, b, defaults]\ndependencies: [x=1, y]\n",
    "channels: [a]\ndependencies: [x=1, y]\n",
    "channels: [a, b]\ndependencies: [x==1, y]\n",
    "channels: [a, b]\ndependencies: [x=1.0, y]\n",
    "channels: [a, b]\ndependencies: [x=1]\n",
    "channels: [a, b]\ndependencies: [x=1, y, z]\n",
    "channels: [a, b]\ndependencies: [xy=1]\n",
    "channels: [a, b]\ndependencies: [x=1, y]\nvariables: {A: '1', B: '2'}\n",
    "channels: [a, b]\ndependencies: [x=1, y]\nvariables: {A: 1 B=2}\n",
    "channels: [a, b]\ndependencies: [x=1, y]\nvariables: {A: ''}\n",
    "channels: [ab]\ndependencies: [x=1, y]\n",
]


def test_what_peers_confuse_stays_apart() -> None:
    """Channel order, boundaries between texts, ``=`` and ``==``, ``{A:1,B:2}`` and ``{A:"1 B=2"}``."""
    for left, right in itertools.combinations(DIFFERENT, 2):
        assert canonical(left) != canonical(right), (left, right)


REFUSED = [
    (
        "dependancies: [x]\n",
        1,
        1,
        "`dependancies` is not known in an environment file: did you mean `dependencies`?",
    ),
    ("Channels: [x]\n", 1, 1, "did you mean `channels`?"),
    ("dependencies: [x]\nbuild_dependencies: [y]\n", 2, 1, "`build_dependencies`"),
    ("$schema: x\nname: y\n", 1, 1, "`$schema`"),
    ("python: 3.11\ndependencies: []\n", 1, 1, "`python`"),
    ("pip: [x]\n", 1, 1, "`pip`"),
    ("packages: [x]\n", 1, 1, "`packages`"),
    ("name: x\n", 1, 1, "no `dependencies`"),
    ("name: [x]\ndependencies: []\n", 1, 7, "`name` is a list"),
    ("dependencies: x\n", 1, 15, "`dependencies` is a text, expected a list"),
    ("dependencies: {x: 1}\n", 1, 15, "`dependencies` is a mapping, expected a list"),
    ("dependencies:\n  - \n", 2, 4, "a dependency is empty"),
    ("dependencies:\n  - x\n  - ''\n", 3, 5, "a dependency is empty"),
    ("dependencies:\n  - [x]\n", 2, 5, "a dependency is a list"),
    ("dependencies:\n  - x: 1.2\n", 2, 5, "a mapping with the key `x`"),
    ("dependencies:\n  - {}\n", 2, 5, "empty mapping"),
    ("dependencies:\n  - {pip: [a], npm: [b]}\n", 2, 16, "`npm`"),
    ("dependencies:\n  - pip: [a]\n  - pip: [b]\n", 3, 5, "`pip:` stands twice, first in line 2"),
    ("dependencies:\n  - pip: requirements.txt\n", 2, 10, "`pip` is a text, expected a list"),
    ("dependencies:\n  - pip: [[a]]\n", 2, 11, "a pip requirement is a list"),
    ("dependencies:\n  - -r requirements.txt\n", 2, 5, "option of pip"),
    ("dependencies:\n  - numpy==1.2.\n", 2, 5, "'1.2.' is not a version"),
    ("channels: conda-forge\ndependencies: []\n", 1, 11, "`channels` is a text, expected a list"),
    ("channels: [a, ~]\ndependencies: []\n", 1, 15, "a channel is nothing"),
    ("channels: [[a]]\ndependencies: []\n", 1, 12, "a channel is a list"),
    ("channels: ['a b']\ndependencies: []\n", 1, 12, "holds a space"),
    ("channels: [nodefaults, defaults]\ndependencies: []\n", 1, 11, "both `defaults` and `nodefaults`"),
    ("dependencies: []\nvariables: [A=1]\n", 2, 12, "`variables` is a list"),
    ("dependencies: []\nvariables: {A: }\n", 2, 16, "the variable A has nothing"),
    ("dependencies: []\nvariables: {A: [1]}\n", 2, 16, "the variable A has a list"),
    ("dependencies: []\nvariables: {A-B: 1}\n", 2, 13, "'A-B' is not the name of a variable"),
    ("dependencies: []\nvariables: {'A\\n': 1}\n", 2, 13, "is not the name of a variable"),
]


@pytest.mark.parametrize(("content", "line", "column", "message"), REFUSED)
def test_what_cannot_be_understood_is_refused_with_its_place(
    content: str, line: int, column: int, message: str
) -> None:
    with pytest.raises(SpecError) as refusal:
        parse(content)
    assert message in str(refusal.value)
    assert (refusal.value.source, refusal.value.line, refusal.value.column) == (
        "environment.yml",
        line,
        column,
    )
    assert refusal.value.hint


NAMES = st.text("abxyz", min_size=1, max_size=3)
SPECS = st.builds("{}{}".format, NAMES, st.sampled_from(["", "=1", "==1", ">=1,<2", "=1=py_0", " 1|2"]))


@given(st.lists(SPECS, max_size=6), st.lists(NAMES, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_order_of_dependencies_does_not_count_order_of_channels_does(
    specs: list[str], channels: list[str], random: Any
) -> None:
    shuffled = random.sample(specs, len(specs)) + specs[:2]
    first = canonical(f"channels: {channels}\ndependencies: {specs}\n".replace("'", '"'))
    second = canonical(f"dependencies: {shuffled}\nchannels: {channels}\n".replace("'", '"'))
    assert first == second
    assert first["channels"] == list(dict.fromkeys(channels))
