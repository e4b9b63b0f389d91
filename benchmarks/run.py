"""Every number that the documentation claims, beside what a user would use instead.

``python benchmarks/run.py [--repeats N] [--only GROUP]`` prints tables of medians. Nothing is asserted.

The peer of the build cases is as fast as a Dockerfile gets: rattler installs the environment into the build
context from a warm package cache, BuildKit copies it onto the base in one layer, ``docker push`` uploads it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests"), str(ROOT / "fixtures")]


def main() -> None:
    """Run the groups that the command line asks for."""
    import big
    import builds
    import hits
    import keys
    import pulls
    import rebases
    import registry
    import strict

    groups = {
        "keys": keys.run,
        "hits": hits.run,
        "registry": registry.run,
        "builds": builds.run,
        "pulls": pulls.run,
        "big": big.run,
        "rebases": rebases.run,
        "strict": strict.run,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="how often each case is run (3)")
    parser.add_argument("--only", choices=sorted(groups), help="one group only")
    chosen = parser.parse_args()
    for name, run in groups.items():
        if chosen.only in {None, name}:
            run(chosen.repeats)


if __name__ == "__main__":
    main()
