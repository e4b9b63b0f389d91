"""A PyTorch-size environment: seconds, memory, and what is left behind, in a layout on this machine."""

from __future__ import annotations

import gzip
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torchchannel
from baseimages import bases
from builds import ENVS
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import Manifest
from envbuild.reference import Repository
from measure import folder_size, table

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 300 << 20


@dataclass(frozen=True, slots=True)
class Run:
    """What one build cost.

    Attributes:
        seconds: Wall-clock seconds.
        cpu: Processor seconds.
        resident: The most memory in bytes.
        left: Bytes of temporary files that it left.
    """

    seconds: float
    cpu: float
    resident: int
    left: int


def definition(folder: Path, *, click: str = ">=8.2") -> Path:
    """The scientific environment with PyTorch on top."""
    lines = (ENVS / "scientific" / "environment.yml").read_text()
    lines = lines.replace("  - fixtures\n", "  - torch\n  - fixtures\n")
    lines = lines.replace("  - numpy\n", "  - numpy\n  - torch\n")
    path = folder / f"environment{click}.yml"
    path.write_text(lines.replace("click>=8.2", f"click{click}"))
    return path


def run(repeats: int) -> None:
    """Print the table of the big environment."""
    # In a process of its own: what is started later would inherit the peak of its memory.
    made = subprocess.run(
        [sys.executable, torchchannel.__file__], check=True, stdout=subprocess.PIPE, text=True
    )
    alias = made.stdout.split()[-1]
    seen: dict[str, list[Run]] = {}
    for _ in range(max(repeats, 1)):
        folder = Path(tempfile.mkdtemp(prefix="envbuild-bench-"))
        try:
            for name, figure in _round(folder, alias):
                seen.setdefault(name, []).append(figure)
            raw = _raw_size(folder / "images")
        finally:
            shutil.rmtree(folder)
    rows = []
    for name, runs in seen.items():
        resident = max(each.resident for each in runs)
        rows.append(
            [
                name,
                f"{statistics.median(each.seconds for each in runs):.2f} s",
                f"{statistics.median(each.cpu for each in runs):.2f} s",
                f"{resident / 2**20:.0f} MiB{'' if resident <= LIMIT else ' (!)'}",
                f"{max(each.left for each in runs)} B",
            ]
        )
    title = (
        f"PyTorch and the scientific environment, {raw / 1e9:.2f} GB unpacked (median of {max(repeats, 1)})"
    )
    table(title, ["case", "seconds", "CPU", "memory, the most", "temporary files left"], rows)


def _round(folder: Path, alias: str) -> Iterator[tuple[str, Run]]:
    (folder / "tmp").mkdir()
    first = definition(folder)
    yield "cold", _resolve(folder, alias, first)
    yield "one small package changed", _resolve(folder, alias, definition(folder, click="=8.1.8"))
    yield "index lost", _resolve(folder, alias, first, cache="another machine's")


def _resolve(folder: Path, alias: str, spec: Path, *, cache: str = "cache") -> Run:
    variables = {
        "ENVBUILD_WORKSPACE": f"oci:{folder / 'images'}",
        "ENVBUILD_CHANNEL_ALIAS": alias,
        "ENVBUILD_CACHE_DIR": str(folder / cache),
        "ENVBUILD_BASE": f"oci:{bases()['minimal']}",
        "TMPDIR": str(folder / "tmp"),
    }
    command = [sys.executable, "-m", "envbuild", "resolve", "--quiet", str(spec)]
    started = time.perf_counter()
    with subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    left = folder_size(folder / "tmp") + folder_size(folder / cache / "spool")
    return Run(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, left)


def _raw_size(images: Path) -> int:
    """Bytes of the package layers of one image, unpacked; the base's are left out."""
    layout = LayoutRegistry(Repository.parse(f"oci:{images}"))
    tag = next(tag for tag in layout.tags() if str(tag).startswith("k1-"))
    manifest = layout.get_manifest(tag)
    if not isinstance(manifest, Manifest):
        raise SystemExit(f"{tag} is no image")
    return sum(_unpacked(images / "blobs" / "sha256" / layer.digest.hex) for layer in manifest.layers[1:])


def _unpacked(path: Path) -> int:
    with gzip.open(path) as stream:
        return sum(map(len, iter(lambda: stream.read(1 << 20), b"")))
