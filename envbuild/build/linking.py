"""What an environment's packages are linked for: the prefix, the python, and who compiles modules."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from envbuild.conda.fetch import fetch_package
from envbuild.conda.interpreter import Interpreter
from envbuild.conda.link import LinkTarget, PythonTarget
from envbuild.conda.pyc import Pyc, can_compile, is_own, pyc_mode
from envbuild.deadline import NO_DEADLINE
from envbuild.errors import BuildError
from envbuild.storage import private_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.config import Config
    from envbuild.deadline import Deadline
    from envbuild.lock import Lock, PackageRecord


def link_target(
    prefix: str,
    lock: Lock,
    config: Config,
    urls: Mapping[str, tuple[str, ...]],
    deadline: Deadline = NO_DEADLINE,
    *,
    pyc: bool = False,
) -> LinkTarget:
    """What the packages of a lock are linked for.

    Where modules shall be compiled and cannot be, for the python is old or of another kind, the target says
    so, and with it the layer keys.

    Args:
        prefix: The prefix in the image.
        lock: The packages.
        config: Says where the interpreter is kept.
        urls: For each package's URL the URLs to fetch it from, in order.
        deadline: When to give up compiling.
        pyc: Whether the modules of ``noarch: python`` packages are compiled.

    Raises:
        BuildError: Modules shall be compiled, and this machine cannot run the python.
    """
    record = lock.python
    if record is None:
        return LinkTarget(prefix, None, lock.platform)
    python = PythonTarget.of(record)
    if not pyc or not can_compile(record):
        return LinkTarget(prefix, python, lock.platform)
    if not is_own(lock.platform):  # what is compiled must not depend on who builds
        raise BuildError(
            f"modules for {lock.platform} cannot be compiled on this machine",
            hint="build on such a machine, or with --no-pyc: then a container compiles what it imports",
        )
    return LinkTarget(prefix, python, lock.platform, _pyc(record, python, config, urls, deadline))


def _pyc(
    record: PackageRecord,
    python: PythonTarget,
    config: Config,
    urls: Mapping[str, tuple[str, ...]],
    deadline: Deadline,
) -> Pyc:
    tag = f"cpython-{python.short.replace('.', '')}"
    spool = private_folder(config.cache_dir / "spool")
    fetch = partial(fetch_package, record, urls=urls.get(record.url, ()), deadline=deadline, folder=spool)
    name = f"python{python.short}"
    interpreter = Interpreter(str(record), record.sha256.hex, name, tag, fetch, config.cache_dir, deadline)
    return Pyc(pyc_mode(record), tag, interpreter)
