"""The peer's installer: rattler links an environment for ``/opt/env`` into a folder, from a warm cache.

``python install.py ENVIRONMENT CHANNEL-URL TARGET PACKAGE-CACHE``
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import rattler
import yaml


async def install(specs: list[str], channel: str, target: Path, cache: Path) -> None:
    """Solve and link."""
    virtual = [
        rattler.GenericVirtualPackage(
            rattler.PackageName(name), rattler.Version(version), rattler.BuildString(build)
        )
        for name, version, build in (
            ("__glibc", "2.36", "0"),
            ("__linux", "6.1", "0"),
            ("__unix", "0", "0"),
            ("__archspec", "1", "x86_64"),
        )
    ]
    records = await rattler.solve(
        sources=[channel],
        specs=specs,
        gateway=rattler.Gateway(cache_dir=cache / "repodata"),
        platforms=[rattler.Subdir("linux-64"), rattler.Subdir("noarch")],
        virtual_packages=virtual,
    )
    await rattler.install(
        records,
        target_prefix=target,
        cache_dir=cache / "pkgs",
        platform=rattler.Subdir("linux-64"),
        alternative_target_prefix="/opt/env",
        show_progress=False,
    )


if __name__ == "__main__":
    dependencies = yaml.safe_load(Path(sys.argv[1]).read_text())["dependencies"]
    asyncio.run(install(dependencies, sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])))
    os._exit(0)  # rattler's threads may still let go of the interpreter, which Python aborts at its end
