"""Writing locks as other tools have them, where that loses nothing that an image is made of.

What is written is read again before anybody sees it: a lock that :func:`envbuild.foreign.load` would take for
other packages is refused.
"""

from __future__ import annotations

import enum
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from envbuild.conda.solve import public_url
from envbuild.errors import SpecError
from envbuild.foreign import solved_section
from envbuild.foreign.solved import section_of
from envbuild.spec.channel import Channel

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from envbuild.lock import Lock, PackageRecord
    from envbuild.lockfile.document import LockEntry, LockFile

_NAME: Final = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*(.*)", re.DOTALL)
_KEEP: Final = "write an envbuild.lock instead: leave out --format"
_NOT_CARRIED: Final = {
    "base": "a base",
    "steps": "Docker steps",
    "steps_after": "Docker steps after the environment",
    "pip": "a pip section",
    "variables": "variables",
    "virtual_packages": "virtual packages",
}


class Format(enum.StrEnum):
    """The kinds of lock that are written."""

    ENVBUILD = "envbuild"
    PIXI = "pixi"
    CONDA_LOCK = "conda-lock"
    EXPLICIT = "explicit"

    @classmethod
    def of_name(cls, name: str) -> Format:
        """The format that a file of this name has; ``envbuild`` for names that say nothing else."""
        if name.endswith("pixi.lock"):
            return cls.PIXI
        if name.endswith(("conda-lock.yml", "conda-lock.yaml")):
            return cls.CONDA_LOCK
        return cls.EXPLICIT if name.endswith(".txt") else cls.ENVBUILD

    @property
    def file_name(self) -> str:
        """The name that such a file has where nobody says another."""
        return _FILE_NAMES[self]


_FILE_NAMES: Final = {
    Format.ENVBUILD: "envbuild.lock",
    Format.PIXI: "pixi.lock",
    Format.CONDA_LOCK: "conda-lock.yml",
    Format.EXPLICIT: "explicit.txt",
}


def render(file: LockFile, form: Format, *, laid_over: Collection[str] = ()) -> bytes:
    """A lock in a format.

    Args:
        file: The lock.
        form: The format.
        laid_over: Which of ``base``, ``steps`` and ``virtual_packages`` do not come from the definition: who
            reads the lock lays them over it as they were laid over the definition, so it need not hold them.

    Raises:
        SpecError: The format cannot hold what the definition says, or cannot hold a package.
    """
    if form is Format.ENVBUILD:
        return file.to_bytes()
    for entry in file.entries:
        _check(entry, form, laid_over)
    with tempfile.TemporaryDirectory(prefix="envbuild-lock-") as folder:
        path = Path(folder) / form.file_name
        if form is Format.PIXI:
            from envbuild.conda.locks import write_pixi

            write_pixi(path, [entry.lock for entry in file.entries], _channels(file))
        else:
            text = _explicit(file) if form is Format.EXPLICIT else _conda_lock(file)
            path.write_text(text, "utf-8")
        for entry in file.entries:
            _check_read_again(path, entry.lock, form)
        return path.read_bytes()


def _check(entry: LockEntry, form: Format, laid_over: Collection[str]) -> None:
    """Refuse what the format has no place for."""
    for name, what in _NOT_CARRIED.items():
        if name not in laid_over and entry.form.fields.get(name):
            hint = (
                f"give the {name} with --{name}, here and where the lock is used; or "
                if name in _OPTIONS
                else ""
            )
            raise SpecError(
                f"the definition has {what}, which a lock of the format {form} does not hold",
                hint=hint + _KEEP,
            )
    if not entry.lock.packages:
        raise SpecError(
            f"there are no packages, and a lock of the format {form} holds nothing else", hint=_KEEP
        )


_OPTIONS: Final = {"base", "steps"}


def _check_read_again(path: Path, lock: Lock, form: Format) -> None:
    found, _ = solved_section(path.read_bytes(), str(path), lock.platform)
    expected, seen = (
        {spec.canonical() for spec in each.dependencies} for each in (section_of(lock.packages), found)
    )
    if expected != seen:
        odd = min(expected ^ seen)
        raise SpecError(f"a lock of the format {form} would be read as other packages: {odd}", hint=_KEEP)


def _channels(file: LockFile) -> list[str]:
    """The channels of the definition, then those that only its dependencies name."""
    named = (file.entries[0].form.fields["conda"] or {}).get("channels", [])
    urls = [public_url(url) for each in named for url in Channel.parse(each).urls()]
    packages = [package.channel for entry in file.entries for package in entry.lock.packages]
    return list(dict.fromkeys(url.rstrip("/") for url in (*urls, *packages)))


# @EXPLICIT


def _explicit(file: LockFile) -> str:
    from envbuild.conda.order import installation_order

    if len(file.entries) > 1:
        raise SpecError("a list of package URLs is for one platform", hint="say which with --platform")
    lock = file.entries[0].lock
    lines = [f"{package.url}#sha256:{package.sha256.hex}" for package in installation_order(lock.packages)]
    return "\n".join([f"# platform: {lock.platform.subdir}", "@EXPLICIT", *lines, ""])


# conda-lock.yml, version 1


def _conda_lock(file: LockFile) -> str:
    import yaml

    document = {
        "version": 1,
        "metadata": {
            "content_hash": {entry.lock.platform.subdir: str(entry.key) for entry in file.entries},
            "channels": [{"url": url, "used_env_vars": []} for url in _channels(file)],
            "platforms": [entry.lock.platform.subdir for entry in file.entries],
            "sources": [file.definition] if file.definition else [],
        },
        "package": [
            _conda_lock_package(package, entry.lock.platform.subdir)
            for entry in file.entries
            for package in entry.lock.packages
        ],
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=10**6)


def _conda_lock_package(package: PackageRecord, subdir: str) -> dict[str, Any]:
    if package.md5 is None:
        raise SpecError(
            f"a conda-lock.yml needs MD5 sums, and the channel of {package} gives none", hint=_KEEP
        )
    return {
        "name": package.name,
        "version": package.version,
        "manager": "conda",
        "platform": subdir,
        "dependencies": _dependencies(package.depends),
        "url": package.url,
        "hash": {"md5": package.md5, "sha256": package.sha256.hex},
        "category": "main",
        "optional": False,
    }


def _dependencies(depends: Sequence[str]) -> dict[str, str]:
    """Names and what is asked of them; a name that stands twice is asked both."""
    found: dict[str, str] = {}
    for each in depends:
        if match := _NAME.match(each):
            name, asked = match[1], match[2].strip()
            found[name] = ",".join(filter(None, (found.get(name), asked)))
    return found
