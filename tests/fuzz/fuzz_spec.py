"""A harness for atheris: whatever bytes come, a definition is read or refused with SpecError.

    python tests/fuzz/fuzz_spec.py -max_total_time=60 FOLDER    (FOLDER keeps what libFuzzer finds of use)

The vectors' definitions are the first seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
NAMES = ("environment.yml", "requirements.txt", "Dockerfile", "azureml_environment.json")

with atheris.instrument_imports(include=["envbuild"]):
    from envbuild.errors import SpecError
    from envbuild.key import CanonicalForm
    from envbuild.platform import LINUX_AMD64
    from envbuild.spec.environment import parse


def one_input(content: bytes) -> None:
    """Read a definition; its first byte chooses the name that it goes by."""
    name = NAMES[content[0] % len(NAMES)] if content else NAMES[0]
    try:
        spec = parse(content[1:], name, Path("/nonexistent"))
        if not spec.has_base:
            spec = spec.with_base("scratch")
        if spec.base is None:
            CanonicalForm.of(spec, None, LINUX_AMD64).to_json()
    except SpecError:
        return


def seeds(folder: Path) -> None:
    """Write the first seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(ROOT.glob("fixtures/vectors/*/*")):
        if path.name in {*NAMES, "envbuild.yaml", "env.yml"}:
            first = bytes([NAMES.index(path.name) if path.name in NAMES else 0])
            (folder / f"{path.parent.name}-{path.name}").write_bytes(first + path.read_bytes())


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if not argument.startswith("-"):
            seeds(Path(argument))
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
