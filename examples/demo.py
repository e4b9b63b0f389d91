"""The main job on this machine alone: no Docker, no registry server. ``make demo`` runs it.

A real environment of more than 40 packages is resolved five times: built, found in the local index, found in
the workspace, with one package changed, and on a base that was built again. What it makes is in a
folder of its own, which it deletes when it starts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import envbuild
from envbuild.build.engine import Engine
from envbuild.errors import BuildError
from envbuild.index import Index
from envbuild.progress import silent
from envbuild.reference import Repository
from envbuild.resolver import Resolver, Source
from envbuild.run import Command, run_image

if TYPE_CHECKING:
    from envbuild.config import Config
    from envbuild.progress import Event, Progress
    from envbuild.resolver import ResolvedImage

ROOT: Final = Path(__file__).resolve().parent.parent
FIXTURES: Final = Path(os.environ.get("ENVBUILD_FIXTURES") or ROOT / ".cache" / "fixtures").resolve()
SCIENTIFIC: Final = ROOT / "fixtures" / "envs" / "scientific"
HEAD: Final = f"{'':<26}{'source':<11}{'made':>5}{'reused':>8}{'uploaded':>11}{'seconds':>9}"
PROGRAM: Final = (
    "import sys, numpy, pandas, sklearn; print("
    "'Python', sys.version.split()[0], '· numpy', numpy.__version__, '· pandas', pandas.__version__, "
    "'· scikit-learn', sklearn.__version__)"
)


class Packages:
    """Counts what the solver found; the progress of this demo."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, event: Event) -> None:
        """Take note of a solution."""
        if (event.phase, event.state) == ("solve", "done"):
            self.count = event.done


def main() -> int:
    """Run the demo; 0 only if every answer came from where it should."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--state", type=Path, default=ROOT / ".cache" / "demo", help="what it deletes and uses"
    )
    state = parser.parse_args().state.resolve()
    shutil.rmtree(state, ignore_errors=True)
    config = envbuild.Config(
        workspace=Repository.parse(f"oci:{state}/images"),
        base=f"oci:{FIXTURES}/bases/minimal",
        channel_alias=(FIXTURES / "channels").as_uri(),
        cache_dir=state / "cache",
    )
    rebuilt = replace(config, base=f"oci:{FIXTURES}/bases/minimal-rebuilt")
    spec, changed = SCIENTIFIC / "environment.yml", SCIENTIFIC / "changed.yml"
    packages = Packages()
    print(
        f"{spec.relative_to(ROOT)} on a Debian base, into an OCI layout on disk\n\n{HEAD}\n{'-' * len(HEAD)}"
    )
    images = {
        "built": resolve("nothing is there yet", config, spec, packages),
        "again": resolve("the same again", config, spec),
    }
    with contextlib.closing(Index(config.cache_dir)) as index:
        index.clear()
    images |= {
        "cleared": resolve("with the index cleared", config, spec),
        "changed": resolve("with one package changed", config, changed),
        "rebased": resolve("on a rebuilt base", rebuilt, spec),
    }
    print(f"\n{packages.count} packages. The references:\n")
    for name, image in images.items():
        print(f"  {name:<9} {short(image)}")
    print()
    return check(images, packages.count) or run(config, images["built"])


def resolve(title: str, config: Config, spec: Path, progress: Progress = silent) -> ResolvedImage:
    """Resolve as a new process would, and print a line of the table."""
    image = envbuild.resolve(spec, config=config, progress=progress)
    figures = f"{image.layers_made:>5}{image.layers_reused:>8}{megabytes(image.bytes_uploaded):>11}"
    print(f"{title:<26}{image.source:<11}{figures}{image.seconds:>9.2f}", flush=True)
    return image


def megabytes(size: int) -> str:
    """A number of bytes in megabytes, or nothing."""
    return f"{size / 1e6:.1f} MB" if size else "-"


def short(image: ResolvedImage) -> str:
    """The reference, relative to the project."""
    return str(image.reference).replace(f"{ROOT}/", "")


def check(images: dict[str, ResolvedImage], packages: int) -> int:
    """Whether the demo showed what it says; 1 if not."""
    built, rebased, changed = images["built"], images["rebased"], images["changed"]
    expected = {
        "at least 40 packages": packages >= 40,
        "the first answer was built": built.source is Source.BUILT,
        "the second came from the index": images["again"].source is Source.INDEX,
        "the third came from the workspace": images["cleared"].source is Source.WORKSPACE,
        "the three are one image": len({images[each].reference for each in ("built", "again", "cleared")})
        == 1,
        "one changed package made one layer": changed.layers_made == 1,
        "a rebuilt base made no layer": (rebased.source, rebased.layers_made) == (Source.BUILT, 0),
    }
    broken = [name for name, holds in expected.items() if not holds]
    for name in broken:
        print(f"NOT SO: {name}", file=sys.stderr)
    return 1 if broken else 0


def run(config: Config, image: ResolvedImage) -> int:
    """Run Python from the image if an engine is there."""
    try:
        engine = Engine.connect()
    except BuildError:
        print("No Docker Engine answers here, so nothing was run in the image; all else needs none.")
        return 0

    def show(stream: int, content: bytes) -> None:
        print(content.decode(errors="replace"), end="", file=sys.stderr if stream == 2 else sys.stdout)

    with engine, Resolver(config) as resolver:
        print("In a container of the first image:")
        command = Command(("python", "-c", PROGRAM))
        return run_image(image.reference, command, engine=engine, registries=resolver.registries, output=show)


if __name__ == "__main__":
    sys.exit(main())
