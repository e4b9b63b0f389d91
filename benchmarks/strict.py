"""What signatures cost: the same builds where nobody asks for any, and where all are signed and asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from baseimages import bases
from channelfolder import channel
from envbuild.oci.copy import copy_image
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.registry import publish
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository, Tag
from measure import Figure, median, table, timed
from parts.registry_server import RegistryServer

ENVS = Path(__file__).resolve().parent.parent / "fixtures" / "envs"
MODES = ("open", "strict")


@dataclass(frozen=True)
class Bench:
    """A fresh registry with a base in it, and fresh caches.

    Attributes:
        folder: Where everything is.
        registry: The registry that is pushed to.
    """

    folder: Path
    registry: RegistryServer

    def start(self) -> None:
        """Start the registry, push the base, make the key."""
        self.registry.start()
        source = LayoutRegistry(Repository.parse(f"oci:{bases()['minimal']}"))
        with_tag = next(iter(source.tags()))
        target = RemoteRegistry(Repository.parse(f"{self.registry.host}/bases"))
        manifest = source.get_manifest(with_tag)
        copy_image(source, target, manifest)
        publish(target, manifest, Tag("minimal"))
        target.close()
        key = subprocess.run(
            ["/usr/bin/openssl", "ecparam", "-genkey", "-name", "prime256v1"], check=True, capture_output=True
        )
        for name, command in {"key.pem": "pkcs8 -topk8 -nocrypt", "key.pub": "pkey -pubout"}.items():
            made = subprocess.run(
                ["/usr/bin/openssl", *command.split()], input=key.stdout, check=True, capture_output=True
            )
            (self.folder / name).write_bytes(made.stdout)
        text = 'require_signed = true\nkeys = ["key.pub"]\nsign_key = "key.pem"\n'
        (self.folder / "strict.toml").write_text(text)

    def resolve(self, mode: str, spec: Path, cache: str) -> tuple[Figure, int]:
        """``envbuild resolve`` as a process, and how many requests the registry answered."""
        command = [sys.executable, "-m", "envbuild", "resolve", "--quiet", str(spec)]
        command += ["--base", f"{self.registry.host}/bases:minimal"]
        settings = {
            "ENVBUILD_WORKSPACE": f"{self.registry.host}/{mode}",
            "ENVBUILD_CHANNEL_ALIAS": channel().parent.as_uri(),
            "ENVBUILD_CACHE_DIR": str(self.folder / f"{cache}-{mode}"),
            "PYTHONDONTWRITEBYTECODE": "",
        }
        if mode == "strict":
            settings["ENVBUILD_TRUST"] = str(self.folder / "strict.toml")
        before = len(self.registry.requests)
        return timed(command, settings, self.folder), len(self.registry.requests) - before


def run(repeats: int) -> None:
    """Print the table of open and strict builds, which take turns."""
    seen: dict[str, dict[str, list[tuple[Figure, int]]]] = {}
    for _ in range(repeats):
        folder = Path(tempfile.mkdtemp(prefix="envbuild-bench-"))
        bench = Bench(folder, RegistryServer(_made(folder / "registry"), cached=True))
        bench.start()
        try:
            _round(bench, seen)
        finally:
            bench.registry.stop()
            shutil.rmtree(folder, ignore_errors=True)
    _print(seen, repeats)


def _round(bench: Bench, seen: dict[str, dict[str, list[tuple[Figure, int]]]]) -> None:
    first, changed = (ENVS / "scientific" / f"{name}.yml" for name in ("environment", "changed"))
    other = bench.folder / "variable.yml"
    other.write_text(first.read_text() + '  ANOTHER: "1"\n')
    for mode in MODES:  # what is asked once a day of a host, and modules that were never compiled
        bench.resolve(mode, ENVS / "small" / "environment.yml", "cache")
    cases = {
        "cold": (first, "cache"),
        "new environment of known layers, new machine": (other, "new"),
        "one small package changed": (changed, "cache"),
        "identical, index hit": (changed, "cache"),
    }
    for name, (spec, cache) in cases.items():
        for mode in MODES:
            figures = seen.setdefault(name, {each: [] for each in MODES})
            figures[mode].append(bench.resolve(mode, spec, cache))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _print(seen: dict[str, dict[str, list[tuple[Figure, int]]]], repeats: int) -> None:
    rows = []
    for name, figures in seen.items():
        seconds = [median([figure for figure, _ in figures[mode]]).seconds for mode in MODES]
        counts = [sorted(count for _, count in figures[mode])[repeats // 2] for mode in MODES]
        rows.append(
            [
                name,
                *(f"{each:.2f} s" for each in seconds),
                f"{seconds[1] / seconds[0]:.2f}×",
                *map(str, counts),
                f"{counts[1] / counts[0]:.2f}×" if counts[0] else "-",
            ]
        )
    head = ["case", "open", "strict", "ratio", "requests, open", "strict", "ratio"]
    table(f"Strict mode beside open mode (median of {repeats}; envbuild as a fresh process)", head, rows)
