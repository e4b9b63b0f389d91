"""What an environment's packages are linked for: the prefix, the python, and who compiles modules."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from envbuild.conda.fetch import fetch_package
from envbuild.conda.interpreter import Interpreter
from envbuild.conda.link import LinkTarget, PythonTarget
from envbuild.conda.pyc import Pyc, can_compile, pyc_mode
from envbuild.deadline import NO_DEADLINE
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
) -> LinkTarget:
    """What the packages of a lock are linked for.

    Where modules shall be compiled and cannot be, for the python is old or for another kind of machine, the
    target says so, and with it the layer keys.

    Args:
        prefix: The prefix in the image.
        lock: The packages.
        config: Says whether modules are compiled.
        urls: For each package's URL the URLs to fetch it from, in order.
        deadline: When to give up compiling.
    """
    record = lock.python
    if record is None:
        return LinkTarget(prefix, None, lock.platform)
    python = PythonTarget.of(record)
    pyc = None
    if config.pyc and can_compile(record, lock.platform):
        pyc = _pyc(record, python, config, urls, deadline)
    return LinkTarget(prefix, python, lock.platform, pyc)


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
