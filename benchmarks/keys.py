"""What a key costs: beside the bare load of the same bytes by PyYAML's C loader, in the same run."""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from envbuild.digest import Digest
from envbuild.key import CanonicalForm, Key
from envbuild.platform import LINUX_AMD64
from envbuild.spec.environment import parse
from measure import table

if TYPE_CHECKING:
    from collections.abc import Callable

_ROOT = Path("/")
BASE = Digest("b" * 64)
NAMES = """
python numpy pandas scipy scikit-learn matplotlib pytorch torchvision torchaudio jupyterlab ipykernel dask
distributed xarray zarr fsspec s3fs pyarrow fastparquet numba llvmlite cython pytest hypothesis black ruff
mypy requests aiohttp httpx pydantic fastapi uvicorn sqlalchemy alembic psycopg2 redis-py celery flask django
gunicorn pillow opencv scikit-image networkx sympy statsmodels seaborn bokeh plotly
""".split()  # noqa: SIM905 - a list a line is easier to read
MIXED = (
    *("{n}={a}.{b}", "{n}=={a}.{b}.0", "{n}", "{n}>={a}.{b},<{c}", "{n}={a}.{b}.4=py311h64a7726_{b}"),
    *("{n} {a}.{b}.*", "{n} =={a}.{b}.2", "{n} >={a}.{b}", "{n}={a}.{b}  # pinned", "conda-forge::{n}={a}"),
)
RARE = {
    7: "'{n} >={a}.{b}, <{c}.0a0'",
    17: '"{n} !={a}.{b}.1,>={a}"',
    27: "{n}~={a}.{b}.1",
    37: "'{n} {a}.{b}.*|{c}.*'",
    47: "\"{n}[version='>={a}.{b}',build='*cuda*']\"",
}
HEAVY = ("oras", "docker", "rattler", "requests", "rich", "urllib3", "packaging")


def plain() -> bytes:
    """50 dependencies as most files write them."""
    lines = [f"  - {name}=1.{number}\n" for number, name in enumerate(NAMES)]
    return ("name: bench\nchannels:\n  - conda-forge\ndependencies:\n" + "".join(lines)).encode()


def mixed() -> bytes:
    """50 dependencies in the forms that occur, some quoted, with comments, and variables."""
    lines = [
        "# The environment of the benchmark.\nname: bench\nchannels: [conda-forge, bioconda, nodefaults]\n"
    ]
    lines.append("dependencies:\n")
    for number, name in enumerate(NAMES):
        form = RARE.get(number, MIXED[number % len(MIXED)])
        lines.append(f"  - {form.format(n=name, a=number % 4 + 1, b=number, c=number % 4 + 2)}\n")
    lines.append("variables:\n  OMP_NUM_THREADS: '1'\n  MODE: fast\n")
    return "".join(lines).encode()


def with_pip() -> bytes:
    """40 dependencies of Conda and 10 of pip."""
    kept = plain().splitlines(keepends=True)
    lines = [f"      - {name}=={number}.1.0\n".encode() for number, name in enumerate(NAMES[40:])]
    return b"".join([*kept[:-10], b"  - pip:\n", *lines])


def key(content: bytes) -> Key:
    """The key of an ``environment.yml``, from its bytes."""
    spec = parse(content, "environment.yml", _ROOT)
    return CanonicalForm.of(spec.with_base("debian"), BASE, LINUX_AMD64).key


def run(repeats: int) -> None:
    """Print the tables of keys."""
    files = {"plain pins": plain(), "mixed forms": mixed(), "40 Conda, 10 pip": with_pip()}
    table(
        f"A key of 50 dependencies, CPU time (median of {repeats * 15})",
        ["file", "PyYAML CSafeLoader", "key", "ratio", "ratio of the least", "keys/s a core"],
        [_beside(name, content, repeats * 15) for name, content in files.items()],
    )
    table("A definition of 1 MiB", ["file", "result", "peak memory", "time"], [*map(_large, _LARGE)])
    table("`envbuild key FILE` as a process", ["what", "value"], _process())


def _beside(name: str, content: bytes, turns: int) -> list[str]:
    """Interleaved, so that the noise of the machine meets both alike; nothing is cached between turns."""
    load: list[float] = []
    ours: list[float] = []
    for _ in range(turns):
        load.append(_cpu(lambda: yaml.load(content, Loader=yaml.CSafeLoader)))
        ours.append(_cpu(lambda: key(content)))
    bare, full = statistics.median(load), statistics.median(ours)
    ratios = [f"{full / bare:.2f}×", f"{min(ours) / min(load):.2f}×"]
    return [name, f"{bare * 1e6:.0f} µs", f"{full * 1e6:.0f} µs", *ratios, f"{1 / full:.0f}"]


def _cpu(call: Callable[[], object], count: int = 10) -> float:
    gc.collect()
    started = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - started) / count


_LARGE = ("comments", "values", "one text", "heredoc")
_MEASURE = """
import sys, time
sys.path.insert(0, sys.argv[2])
import keys
content = keys.large(sys.argv[1])
keys.key(keys.plain())
def peak():
    return next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
started = time.process_time()
try:
    result = "key" if keys.key(content) else ""
except Exception as error:
    result = type(error).__name__
used = time.process_time() - started
print(peak(), before, f"{used * 1000:.0f}", result)
"""


def large(kind: str) -> bytes:
    """A definition of 1 MiB."""
    size = 1 << 20
    head = plain() if kind != "heredoc" else b"base: debian\nsteps: |\n  RUN <<END\n"
    tail = b""
    if kind == "comments":
        line = b"# comment\n"
    elif kind == "values":
        head += b"".join(b"  - package-%d=%s0\n" % (number, b"1." * 20) for number in range(19_000))
        line = b"#"
    elif kind == "one text":
        head, line, tail = head + b"variables:\n  A: '", b"x", b"'\n"
    else:
        line, tail = b"  echo 'a line of many'\n", b"  END\n"
    return head + line * ((size - len(head) - len(tail)) // len(line)) + tail


def _large(kind: str) -> list[str]:
    command = [sys.executable, "-c", _MEASURE, kind, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, before, milliseconds, result = done.stdout.split()
    more = (int(peak) - int(before)) / 1024
    return [
        kind,
        result,
        f"{int(peak) / 1024:.0f} MiB, {more:.0f} MiB of it for the key",
        f"{milliseconds} ms",
    ]


def _process() -> list[list[str]]:
    with tempfile.TemporaryDirectory(prefix="envbuild-bench-") as folder:
        path = Path(folder, "environment.yml")
        path.write_bytes(mixed())
        program = (
            "import sys\nfrom envbuild.cli import main\n"
            f"sys.argv[1:] = ['key', '--base', 'scratch', {str(path)!r}]\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
            f"print(len(sys.modules), *sorted(set(sys.modules) & set({HEAVY!r})))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    count, *heavy = done.stdout.split("\n")[1].split()
    return [["modules imported", count], [f"of {', '.join(HEAVY)}", ", ".join(heavy) or "none"]]
