"""Keys of very many definitions that all differ: none may be equal to another.

    python tests/reliability/collisions.py [--count 10000000] [--processes 2]

Definition number N is made from the digits of N, so no two mean the same. The first 64 bits of each key go
into files by their first byte, which are then searched for equal ones one by one: memory stays small.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from array import array
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from envbuild.digest import Digest
from envbuild.key import CanonicalForm
from envbuild.platform import Platform
from envbuild.spec.environment import parse

CHUNK = 20_000
BASES = [Digest("a" * 64), Digest("b" * 64)]
PLATFORMS = [Platform.parse("linux/amd64"), Platform.parse("linux/arm64")]
VERSIONS = range(1, 251)
OPERATORS = ["=", "==", ">=", "<=", "!=", "<", ">", "~=1."]
CHANNELS = ["[a]", "[b]", "[a, b]", "[b, a]", "[a, nodefaults]"]
VARIABLES = ["", "  A: '1'\n", "  A: '1 B=2'\n", "  A: '1'\n  B: '2'\n", "  B: '1'\n"]
PIP = ["", "[a]", "[b]", "[a, b]", "\n  - a==1", "\n  - --pre\n  - a", "\n  - 'a; os_name == \"a\"'"]
STEPS = ["", "RUN a", "RUN b", 'RUN ["a"]', "ENV a=b", "USER a", "CMD a"]
# Steps and steps after: each alone first, then every other pair.
PAIRS = sorted(itertools.product(STEPS, STEPS), key=lambda pair: sum(map(bool, pair)))


def definition(number: int) -> tuple[bytes, Digest, Platform]:
    """A definition, the digest of its base and its platform; each number another meaning."""
    digits: list[int] = []
    for choices in (VERSIONS, OPERATORS, CHANNELS, VARIABLES, PIP, BASES, PLATFORMS, PAIRS):
        number, digit = divmod(number, len(choices))
        digits.append(digit)
    version, operator, channels, variables, pip, base, platform, pair = digits
    steps, after = PAIRS[pair]
    content = (
        f"base: debian\nconda:\n  channels: {CHANNELS[channels]}\n  dependencies:\n"
        f"  - a{OPERATORS[operator]}{VERSIONS[version] + number * len(VERSIONS)}\n"
    )
    content += f"pip: {PIP[pip]}\n" if pip else ""
    content += f"variables:\n{VARIABLES[variables]}" if variables else ""
    content += f"steps: '{steps}'\n" if steps else ""
    content += f"steps_after: '{after}'\n" if after else ""
    return content.encode(), BASES[base], PLATFORMS[platform]


def keys(start: int, count: int) -> bytes:
    """The first 8 bytes of the keys of some definitions, one after another."""
    found = bytearray()
    for number in range(start, start + count):
        content, base, platform = definition(number)
        spec = parse(content, "envbuild.yaml", Path("/nonexistent"))
        found += bytes.fromhex(CanonicalForm.of(spec, base, platform).key.hex[:16])
    return bytes(found)


def collisions(count: int, processes: int, folder: Path) -> int:
    """How many keys of the first ``count`` definitions are equal to another."""
    ranges = [(start, min(CHUNK, count - start)) for start in range(0, count, CHUNK)]
    files = [(folder / f"{first:02x}").open("wb") for first in range(256)]
    with ProcessPoolExecutor(processes) as pool:
        for chunk in pool.map(keys, *zip(*ranges, strict=True)):
            for at in range(0, len(chunk), 8):
                files[chunk[at]].write(chunk[at : at + 8])
    for file in files:
        file.close()
    return sum(map(partial(_equal, folder), range(256)))


def _equal(folder: Path, first: int) -> int:
    found = array("Q", (folder / f"{first:02x}").read_bytes())
    return len(found) - len(set(found))


def main() -> int:
    """Count and print; exit code 1 where there is a collision."""
    parser = argparse.ArgumentParser(description="collisions of keys")
    parser.add_argument("--count", type=int, default=10_000_000)
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = collisions(given.count, given.processes, Path(folder))
    print(f"{given.count} definitions, {found} collisions, {time.monotonic() - started:.0f} s")  # noqa: T201
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
