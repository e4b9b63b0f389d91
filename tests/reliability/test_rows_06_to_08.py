"""Rows 6 to 8: hostile definitions get an error that says where and what, soon and in little memory."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from envbuild.errors import SpecError
from envbuild.spec.environment import EnvironmentSpec, parse

ROOT = Path(__file__).parents[2]
SEEDS = sorted(
    path
    for path in (ROOT / "fixtures/vectors").glob("*/*")
    if path.name in {"environment.yml", "envbuild.yaml", "requirements.txt", "Dockerfile", "env.yml"}
    or path.name == "azureml_environment.json"
)
TOKENS = [
    *(b"&a ", b"*a", b"!!python/object ", b"<<: ", b"---\n", b"...\n", b"? ", b"| ", b">\n", b"[", b"]"),
    *(b"\x00", b"\xff", b"\xe2\x80\xa8", b"\xe2\x80\xae", b"\xed\xa0\x80", b"\r", b"\t", b"\\", b"'", b'"'),
    *(
        b"<<EOF\n",
        b"# syntax=x\n",
        b"FROM x\n",
        b"--mount=",
        b"$(x)",
        b"${A:-",
        b"-r ",
        b"-e .\n",
        b"../" * 9,
    ),
    *(b"9" * 5000, b"(" * 300, b"[" * 300, b"1|" * 300, b"~=", b"[version='", b"@ file:///etc/", b";", b"::"),
    *(b"{", b"#", b": ", b" ; a==b"),
]


def mutated(random: Random) -> tuple[str, bytes]:
    """The name and content of a definition that was good before."""
    path = random.choice(SEEDS)
    content = bytearray(path.read_bytes())
    for _ in range(random.randint(1, 6)):
        at = random.randint(0, len(content))
        kind = random.randint(0, 5)
        if kind == 0:
            content[at : at + random.randint(0, 20)] = random.randbytes(random.randint(0, 8))
        elif kind == 1:
            content[at:at] = random.choice(TOKENS)
        elif kind == 2:
            del content[at : at + random.randint(1, 40)]
        elif kind == 3:
            content[at:at] = content[at : at + random.randint(1, 60)] * random.randint(1, 30)
        elif kind == 4:
            other = random.choice(SEEDS).read_bytes()
            content[at:] = other[random.randint(0, len(other)) :]
        elif content:
            content[at % len(content)] ^= 1 << random.randint(0, 7)
    return path.name, bytes(content)


def read_all(seeds: range) -> list[float]:
    """Read mutated definitions; how many CPU seconds each took, sorted."""
    times = []
    for seed in seeds:
        name, content = mutated(Random(seed))
        started = time.process_time()
        try:
            assert isinstance(parse(content, name, Path("/nonexistent")), EnvironmentSpec)
        except SpecError:
            pass
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        times.append(time.process_time() - started)
    return sorted(times)


def p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


def test_fuzzed_definitions_are_read_or_refused() -> None:
    assert p99(read_all(range(1500))) < 0.050


@pytest.mark.nightly
def test_10_000_fuzzed_definitions_in_little_memory() -> None:
    print("seeds 10,000 to 19,999")  # noqa: T201
    program = (
        "from reliability.test_rows_06_to_08 import p99, read_all\n"
        "print(p99(read_all(range(10_000, 20_000))))\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    slowest, kilobytes = done.stdout.split()
    assert float(slowest) < 0.050
    assert int(kilobytes) < 256 * 1024


def fuzz(seconds: int, folder: Path) -> str:
    command = [sys.executable, str(ROOT / "tests/fuzz/fuzz_spec.py"), f"-max_total_time={seconds}"]
    command += ["-rss_limit_mb=256", str(folder / "corpus")]
    # A process inherits the peak of the one that starts it: a shell has none worth speaking of.
    command = ["sh", "-c", '"$@"; exit $?', "sh", *command]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.mark.nightly
def test_a_coverage_guided_fuzzer_finds_nothing_in_60_seconds(tmp_path: Path) -> None:
    found = re.search(r"Done (\d+) runs", fuzz(60, tmp_path))
    assert found is not None
    assert int(found[1]) > 10_000


def test_the_fuzzer_runs(tmp_path: Path) -> None:
    assert re.search(r"Done \d+ runs", fuzz(2, tmp_path))


# Row 7


def levels(count: int, indent: str = " ") -> str:
    return "".join(f"{indent * level}a:\n" for level in range(count))


YAML = "environment.yml"
PIP = "requirements.txt"
DOCKER = "Dockerfile"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(8)
)
HEAD = "dependencies:\n"
BOMBS: dict[str, tuple[str, str | bytes]] = {
    "billion laughs": (YAML, LAUGHS),
    "alias": (YAML, "a: &x b\ndependencies: [*x]\n"),
    "alias of itself": (YAML, "dependencies: &x [*x]\n"),
    "unused anchor": (YAML, "dependencies: &x [a]\n"),
    "anchor of a key": (YAML, "&x dependencies: [a]\n"),
    "quadratic aliases": (YAML, "a: &x " + "y" * 1000 + "\ndependencies: [" + "*x, " * 10_000 + "]\n"),
    "depth 100,000 in brackets": (YAML, "dependencies: " + "[" * 100_000),
    "depth 100,000 in closed brackets": (YAML, "dependencies: " + "[" * 100_000 + "]" * 100_000),
    "depth 100,000 in braces": (YAML, "dependencies: " + "{a: " * 100_000),
    "depth 100,000 in dashes": (YAML, "dependencies:\n  " + "- " * 100_000 + "a\n"),
    "depth 100,000 of questions": (YAML, "? " * 100_000 + "a\n"),
    "depth 1,000 of blocks": (YAML, levels(1000)),
    "depth 33": (YAML, "dependencies: " + "[" * 33 + "]" * 33 + "\n"),
    "100,000 values": (YAML, "dependencies: [" + "a, " * 100_000 + "]\n"),
    "100,000 lines": (YAML, HEAD + "- a\n" * 100_000),
    "100,000 keys": (YAML, "".join(f"k{number}: a\n" for number in range(60_000))),
    "one key 60,000 times": (YAML, "a: b\n" * 60_000),
    "repeated key": (YAML, "name: a\nname: b\ndependencies: [a]\n"),
    "repeated key in quotes": (YAML, "name: a\n'name': b\ndependencies: [a]\n"),
    "repeated key by escape": (YAML, 'name: a\n"n\\u0061me": b\ndependencies: [a]\n'),
    "repeated dependencies": (YAML, "dependencies: [a]\ndependencies: [b]\n"),
    "repeated variable": (YAML, "dependencies: [a]\nvariables: {A: '1', A: '2'}\n"),
    "merge key": (YAML, "x: &x {a: b}\n<<: *x\ndependencies: [a]\n"),
    "merge key of a mapping": (YAML, "<<: {dependencies: [a]}\n"),
    "merge key inside": (YAML, "dependencies: [a]\nvariables: {<<: {A: '1'}}\n"),
    "tag python/object": (YAML, "dependencies: !!python/object/apply:os.system ['true']\n"),
    "tag python/name": (YAML, "dependencies: [!!python/name:os.system a]\n"),
    "tag of our own": (YAML, "dependencies: !x [a]\n"),
    "tag binary": (YAML, "dependencies: [!!binary YQ==]\n"),
    "tag set": (YAML, "dependencies: !!set {a, b}\n"),
    "tag str": (YAML, "dependencies: [!!str 1]\n"),
    "tag directive": (YAML, "%TAG ! tag:x,2000:\n---\ndependencies: [a]\n"),
    "include tag": (YAML, "dependencies: !include /etc/passwd\n"),
    "two documents": (YAML, "dependencies: [a]\n---\ndependencies: [b]\n"),
    "10,000 documents": (YAML, "---\na\n" * 10_000),
    "number of 100,000 digits": (YAML, f"dependencies: [a={'9' * 100_000}]\n"),
    "number of 5,000 digits": (YAML, f"dependencies: [a==1.{'9' * 5000}]\n"),
    "epoch of 5,000 digits": (YAML, f"dependencies: ['a=={'9' * 1900}!1']\n"),
    "2,000 parts of a version": (YAML, f"dependencies: [a=={'1.' * 2000}1]\n"),
    "alternatives multiplied": (
        YAML,
        HEAD + "- a " + ",".join(f"({n}|>{n})" for n in range(40)),
    ),
    "1,000 alternatives": (YAML, "dependencies: ['a " + "|".join(f"{n}.x" for n in range(400)) + "']\n"),
    "1,000 brackets": (YAML, "dependencies: ['a " + "(" * 900 + "1" + ")" * 900 + "']\n"),
    "build as a regular expression": (YAML, "dependencies: [\"a[build='^(a+)+(b+$']\"]\n"),
    "spaces": (YAML, "dependencies: ['a" + " " * 500_000 + "!']\n"),
    "one name of a MiB": (YAML, "dependencies: [" + "a" * 1_000_000 + "]\n"),
    "more than a MiB": (YAML, HEAD + "# \n" * 400_000),
    "key that never ends": (YAML, "a" * 500_000 + ": b\n"),
    "quote that never ends": (YAML, "dependencies: ['" + "a\n" * 300_000),
    "escape of a surrogate": (YAML, 'dependencies: ["\\ud800"]\n'),
    "escape of a line separator": (YAML, 'dependencies: ["a\\u2028b"]\n'),
    "UTF-16": (YAML, "dependencies: [a]\n".encode("utf-16")),
    "UTF-7": (YAML, b"+AGQ-ependencies: [a]\n"),
    "overlong UTF-8": (YAML, b"dependencies: [\xc0\xaf]\n"),
    "NUL": (YAML, b"dependencies: [a\x00b]\n"),
    "lone carriage returns": (YAML, "dependencies: [a]\r- b\r"),
    "requirements that include each other": (PIP, "-r requirements.txt\n-r /dev/zero\n"),
    "100,000 requirements with brackets": (PIP, "a[" * 100_000),
    "marker of 10,000 brackets": (PIP, "a ; " + "(" * 10_000 + "os_name == 'a'" + ")" * 10_000 + "\n"),
    "requirement with 5,000 digits": (PIP, f"a=={'9' * 5000}\n"),
    "continuation that never ends": (PIP, "a==\\\n" * 100_000),
    "heredoc that never ends": (DOCKER, "FROM a\nRUN <<EOF\n" + "x\n" * 100_000),
    "1,000 heredocs": (DOCKER, "FROM a\nRUN " + " ".join(f"<<E{n}" for n in range(1000)) + "\n"),
    "JSON of 100,000 brackets": (DOCKER, "FROM a\nRUN " + "[" * 100_000 + "\nBAD x\n"),
    "stages": (DOCKER, "FROM a\n" * 50_000),
    "instruction that never ends": (DOCKER, "FROM a\nRUN a \\\n" + "b \\\n" * 100_000),
    "quotes": (DOCKER, "FROM a\nENV A=" + "'" * 99_999 + "\n"),
}


def test_there_are_60_bombs() -> None:
    assert len(BOMBS) >= 60


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(name: str) -> None:
    source, content = BOMBS[name]
    raw = content if isinstance(content, bytes) else content.encode()
    times = []
    tracer = sys.gettrace()
    for _ in range(3):  # the quickest of three: other work on the machine is no fault of ours
        sys.settrace(None)  # nor is what measuring coverage costs
        started = time.process_time()
        with pytest.raises(SpecError) as refusal:
            parse(raw, source, Path("/nonexistent"))
        times.append(time.process_time() - started)
        sys.settrace(tracer)
        if times[-1] < 0.1:
            break
    assert min(times) < 0.1
    assert refusal.value.source is not None
    assert len(str(refusal.value)) < 1000


# Row 8


TRAPS: list[tuple[str, str | None]] = [
    ("3.10", "3.10"),
    ("1.20", "1.20"),
    ("NO", "NO"),
    ("no", "no"),
    ("yes", "yes"),
    ("on", "on"),
    ("off", "off"),
    ("y", "y"),
    ("true", "true"),
    ("012", "012"),
    ("0o14", "0o14"),
    ("0x1F", "0x1F"),
    ("0b101", "0b101"),
    ("1_000", "1_000"),
    ("12:30:45", "12:30:45"),
    ("1e3", "1e3"),
    (".5", ".5"),
    (".inf", ".inf"),
    (".NaN", ".NaN"),
    ("2026-11-01", "2026-11-01"),
    ("2026-11-01 02:00:00", "2026-11-01 02:00:00"),
    ("+1", "+1"),
    ("=", "="),
    ("1.0 # c", "1.0"),
    ("1.0#c", "1.0#c"),
    ("'null'", "null"),
    ("null", None),
    ("~", None),
    ("", None),
    ("a: b", None),
    ("@a", None),
    ("`a`", None),
    ("%a", None),
    ("\ta", "a"),
    ("*a", None),
    ("&a", None),
    ("!a", None),
    ("[a", None),
]


@pytest.mark.parametrize(("written", "value"), TRAPS)
def test_a_trap_of_yaml_is_a_text_or_an_error_with_its_place(written: str, value: str | None) -> None:
    content = f"dependencies: [a]\nvariables:\n  A: {written}\n"
    if value is not None:
        assert dict(parse(content.encode(), YAML, Path("/nonexistent")).variables)["A"] == value
        return
    with pytest.raises(SpecError) as refusal:
        parse(content.encode(), YAML, Path("/nonexistent"))
    error = refusal.value
    assert (error.source, error.line is not None, error.column is not None) == (YAML, True, True)
    assert error.hint


@pytest.mark.parametrize("version", ["3.10", "1.20", "012", "1e3", "2026"])
def test_versions_are_no_numbers(version: str) -> None:
    spec = parse(f"dependencies:\n  - x=={version}\n  - y={version}\n".encode(), YAML, Path("/nonexistent"))
    assert spec.conda is not None
    assert spec.conda.dependencies[1].canonical() == f"y {version.lstrip('0')}.*"
