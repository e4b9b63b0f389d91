"""Each rule finds what it is for, says where, and keeps quiet about what is well done."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from envbuild.lint import RULES, Finding, Severity, lint, warnings_of
from envbuild.spec.environment import EnvironmentSpec, parse

CLEAN = """
base: debian@sha256:{digest}
conda:
  channels: [conda-forge]
  dependencies: [python=3.11, pip=24, numpy=1.26, {extra}]
""".replace("{digest}", "a" * 64)
COMMIT = "0123456789" * 4


def spec(text: str, folder: Path = Path("/nowhere")) -> EnvironmentSpec:
    return parse(text.encode(), "env.yaml", folder)


def clean(extra: str = "zlib=1.2", more: str = "") -> EnvironmentSpec:
    return spec(CLEAN.replace("{extra}", extra) + more)


def codes(found: EnvironmentSpec) -> list[str]:
    return [finding.rule.code for finding in lint(found)]


def on(base: str) -> EnvironmentSpec:
    return clean().with_base(base)


def conda(*dependencies: str) -> EnvironmentSpec:
    listed = "".join(f"  - {json.dumps(each)}\n" for each in dependencies)
    return spec(f"channels: [c]\ndependencies:\n{listed}")


def pip(*lines: str) -> EnvironmentSpec:
    return parse("\n".join(lines).encode(), "requirements.txt", Path("/nowhere"))


def test_a_careful_definition_has_no_findings() -> None:
    assert lint(clean()) == ()
    assert lint(pip("requests==2.32.3", f"x @ git+https://example.com/x.git@{COMMIT}")) == ()


BROKEN = {
    "EB101": [
        conda("python"),
        conda("python>=3.9"),
        conda("python=3"),
        conda("python>=3.9,<4"),
        conda("python>=3.9,<3.12"),
        conda("python=3.11|=3.12|>=3.13"),
    ],
    "EB102": [spec("dependencies: [numpy=1, pip, pip: [x==1]]")],
    "EB103": [
        conda("python=3.11", "python>=3.9"),
        conda("python=3.11", "pypy3.9"),
        conda("python=3.11", "numpy=1.26=py39h1_0"),
    ],
    "EB104": [conda("numpy"), conda("numpy[build='py3*']")],
    "EB105": [conda("numpy>=1"), conda("numpy>1,!=1.3"), conda("numpy=1|>=3")],
    "EB106": [conda("numpy>=1", "numpy<2"), conda("a=1", "a=1.2", "a<9")],
    "EB107": [
        conda("numpy=1", "numpy=2"),
        conda("numpy==1.2", "numpy>1.2"),
        conda("numpy>=2,<1"),
        conda("numpy=1.2", "numpy>=1.3"),
        conda("numpy=1|=2", "numpy=3"),
        conda("python=3.11", "python=3.12"),
        conda("numpy=1.2", "numpy<1.1"),
    ],
    "EB108": [spec("dependencies: [a=1]"), spec("channels: []\ndependencies: [a=1]")],
    "EB111": [pip("requests"), pip("requests[security]; python_version > '3'")],
    "EB112": [pip("requests>=2"), pip("requests~=2.1"), pip("requests==2.*")],
    "EB113": [spec("dependencies: [python=3.11, pip: [x==1]]")],
    "EB114": [pip("--extra-index-url https://a.example.com/s", "x==1"),
              pip("-i https://a.example.com/s", "--extra-index-url https://b.example.com/s", "x==1")],
    "EB115": [
        pip("x @ git+https://example.com/x.git"),
        pip("x @ git+https://example.com/x.git@main"),
        pip("x @ git+ssh://git@example.com/x.git@v1.2"),
        pip("git+ssh://git@example.com/x.git#egg=x"),
        pip("x @ git+https://example.com/x.git@0123abc"),
        pip("x @ git+https://example.com/x.git@feature/one"),
        pip("x @ https://github.com/o/x/archive/refs/heads/main.zip"),
    ],
    "EB116": [spec("channels: ['http://example.com/c']\ndependencies: [a=1]"),
              pip("-i http://example.com/s", "x==1")],
    "EB121": [on("debian:12-slim"), on("registry.example.com/a/b:1"), on("oci:/srv/bases/debian")],
    "EB122": [on("debian"), on("debian:latest")],
    "EB123": [
        on("mcr.microsoft.com/azureml/openmpi3.1.2-ubuntu18.04"),
        on("mcr.microsoft.com/azureml/base:openmpi3.1.2-ubuntu18.04"),
        on("mcr.microsoft.com/azureml/intelmpi2018.3-ubuntu16.04:20200821.v1"),
        on("mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu20.04@sha256:" + "a" * 64),
        on("mcr.microsoft.com/azureml/curated/acpt-pytorch-1.11-py38-cuda11.3-gpu:9"),
    ],
    "EB124": [on("python:3.11"), on("continuumio/miniconda3:24"),
              on("mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04:1")],
    "EB131": [
        spec("channels: ['https://me:pw@example.com/c']\ndependencies: [a=1]"),
        spec("channels: ['https://example.com/t/tk-123/c']\ndependencies: [a=1]"),
        conda("https://me:pw@example.com/c::a=1"),
        pip("-i https://me:pw@example.com/s", "x==1"),
        pip("x @ https://me:pw@example.com/x-1.whl"),
        pip("--find-links https://me:pw@example.com/s", "x==1"),
    ],
    "EB132": [
        clean(more="steps: ['RUN curl https://me:pw@example.com/x']\n"),
        clean(more="steps: |\n  RUN <<E\n  curl https://me:pw@example.com/x\n  E\n"),
        clean(more="variables: {PROXY: 'http://me:pw@example.com'}\n"),
        clean(more="variables: {AWS_SECRET_ACCESS_KEY: abc}\n"),
    ],
}  # fmt: skip
FINE = {
    "EB101": [conda("python=3.11"), conda("python==3.11.4"), conda("python>=3.11,<3.12"), conda("a=1"),
              conda("python=3.11|=3.12"), conda("python~=3.11.2"), conda("python", "python=3.11")],
    "EB102": [spec("dependencies: [python=3.11, pip, pip: [x==1]]"), pip("x==1")],
    "EB103": [conda("python=3.11", "numpy=1.26=py311h1_0"), conda("python=3.11", "python-dateutil=2")],
    "EB104": [conda("numpy=1"), conda("pip"), conda(f"numpy[sha256={'1' * 64}]"),
              conda("https://e.com/linux-64/a-1-0.conda")],
    "EB105": [conda("numpy>=1,<2"), conda("numpy"), conda("numpy~=1.2"), conda("numpy==1")],
    "EB106": [conda("numpy", "scipy"), conda("numpy=1", "numpy=1.*")],
    "EB107": [conda("numpy=1.2", "numpy>=1.2.5"), conda("numpy>=1,<=1"), conda("numpy=1", "numpy=1.2"),
              conda("numpy==1.2", "numpy=1.2"), conda("numpy<3", "numpy!=2"), conda("a==1.0.0", "a==1"),
              conda("numpy=1.2", "numpy<1.2"), conda("numpy==1", "numpy=1.0")],
    "EB108": [spec("channels: [c]\ndependencies: [a=1]"), spec("dependencies: []"),
              spec("dependencies: ['c::a=1']")],
    "EB111": [pip("requests==1"), pip("requests>=1"), pip("x @ https://example.com/x-1-py3-none-any.whl")],
    "EB112": [pip("requests==1"), pip("requests===1"), pip("requests"), pip("requests>=1,==1.2")],
    "EB113": [spec("dependencies: [python=3.11, pip, pip: [x==1]]"), pip("x==1")],
    "EB114": [pip("-i https://a.example.com/s", "x==1"),
              pip("--extra-index-url https://a.example.com/s", "--require-hashes", "x==1")],
    "EB115": [pip(f"x @ git+https://example.com/x.git@{COMMIT}"),
              pip(f"git+ssh://git@example.com/x.git@{COMMIT}#egg=x"), pip("x @ svn+https://example.com/x@12"),
              pip("x @ https://example.com/x-1.tar.gz"), pip("x==1")],
    "EB116": [spec("channels: ['http://localhost:1/c', 'https://e.com/c']\ndependencies: [a=1]")],
    "EB121": [clean(), on("debian"), spec("dependencies: []"), spec("base: scratch")],
    "EB122": [clean(), on("debian:12"), on("oci:/srv/bases/debian")],
    "EB123": [on("mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu22.04:1"), on("ubuntu:18.04"),
              on("mcr.microsoft.com/azureml/minimal-py312-inference:1")],
    "EB124": [on("debian:12"), spec("base: python:3.11")],
    "EB131": [pip("x @ git+ssh://git@example.com/x@1"), pip("-i https://${U}:${P}@example.com/s", "x==1"),
              spec("channels: ['https://example.com/c']\ndependencies: [a=1]"),
              spec("channels: ['https://${U}:${P}@example.com/c']\ndependencies: [a=1]"),
              spec("channels: ['https://jane:${P}@example.com/c']\ndependencies: [a=1]"),
              spec("channels: ['https://example.com/t/${TOKEN}/c']\ndependencies: [a=1]")],
    "EB132": [clean(more="steps: ['RUN curl https://$U:$P@example.com/x']\n"),
              clean(more="variables: {KEYS: a, API_KEY: ''}\n")],
}  # fmt: skip


def test_each_rule_has_examples() -> None:
    listed = [rule.code for rule in RULES]
    assert listed == sorted(set(listed))
    assert set(BROKEN) == set(FINE) == set(listed)
    assert all(re.fullmatch(r"EB1\d\d", code) for code in listed)


@pytest.mark.parametrize(("code", "found"), [(code, one) for code in BROKEN for one in BROKEN[code]])
def test_a_rule_finds_what_it_is_for(code: str, found: EnvironmentSpec) -> None:
    assert codes(found).count(code) == 1


@pytest.mark.parametrize(("code", "found"), [(code, one) for code in FINE for one in FINE[code]])
def test_a_rule_leaves_alone_what_is_well(code: str, found: EnvironmentSpec) -> None:
    assert code not in codes(found)


def test_no_finding_shows_a_secret() -> None:
    for found in (one for many in BROKEN.values() for one in many):
        shown = [
            *map(str, lint(found)),
            *(json.dumps(each.to_json()) for each in lint(found)),
            *warnings_of(found),
        ]
        assert not any("pw" in line or "tk-123" in line for line in shown)


def test_a_finding_says_where_what_why_and_what_to_do() -> None:
    (finding,) = [each for each in lint(conda("python=3.11", "numpy")) if each.rule.code == "EB104"]
    assert str(finding) == "env.yaml:4:5: EB104 warning: numpy has no version"
    document = finding.to_json()
    assert (document["source"], document["line"], document["column"]) == ("env.yaml", 4, 5)
    assert document["severity"] == "warning"
    assert document["why"]
    assert document["advice"]


def test_a_finding_without_a_place_names_the_definition() -> None:
    (finding,) = lint(on("debian:12"))
    assert str(finding).startswith("env.yaml: EB121 warning")
    assert finding.to_json()["line"] is None


def test_findings_stand_in_the_order_of_the_file() -> None:
    places = [finding.mark.line for finding in lint(conda("zlib", "python", "numpy")) if finding.mark]
    assert places == sorted(places)
    assert len(places) == 3


def test_warnings_are_one_line_a_rule() -> None:
    lines = warnings_of(conda("a", "b", "c", "d>=1"))
    assert len(lines) == 1
    assert lines[0].startswith("env.yaml:3:5: EB104 a has no version (and 2 more like it): pin it")


def test_a_lock_settles_what_is_open_and_nothing_else() -> None:
    found = spec("channels: ['http://example.com/c']\ndependencies: [python, numpy]").with_base("debian:12")
    open_codes = {line.split()[1] for line in warnings_of(found)}
    locked_codes = {line.split()[1] for line in warnings_of(found, locked=True)}
    assert open_codes == {"EB101", "EB104", "EB116", "EB121"}
    assert locked_codes == {"EB116"}


def test_a_moment_settles_what_is_newest() -> None:
    text = "base: debian:12\nconda: {channels: [c], dependencies: [python, numpy]}\n"
    assert codes(spec(text)) == ["EB121", "EB101", "EB104"]
    assert codes(spec(text + "as_of: 2026-01-01\n")) == ["EB121"]


def test_the_table_in_the_docs_is_the_rules() -> None:
    text = (Path(__file__).parents[1] / "docs" / "lint.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line[:3] == "| E"
    ]
    expected = [
        [
            rule.code,
            rule.name,
            str(rule.severity),
            rule.why,
            rule.advice,
            ", ".join(
                name
                for name, settled in (("lock", rule.settled_by_lock), ("as_of", rule.settled_by_moment))
                if settled
            )
            or "-",
        ]
        for rule in RULES
    ]
    assert rows == expected


def test_notes_are_no_warnings() -> None:
    found = lint(conda("python=3.11", "numpy>=1"))
    assert [(each.rule.code, each.rule.severity) for each in found] == [("EB105", Severity.NOTE)]
    assert all(isinstance(each, Finding) for each in found)
    assert warnings_of(conda("python=3.11", "numpy>=1")) == ()
