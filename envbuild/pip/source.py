"""Projects that are built into wheels: what a pip section names as sources, and what their builds ask for.

Nothing of a project is run here. Source: PEP 517 and 518, "build-system" of ``pyproject.toml``.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import re
import stat
import tomllib
import zipfile
import zlib
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from envbuild.conda.tar import Kind, TarReader, safe_path
from envbuild.conda.variables import holds_variables
from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Digest
from envbuild.errors import BuildError, IntegrityError
from envbuild.inflate import Bounds, Codec, Inflated, codec_of, open_zip
from envbuild.lock import PipDistribution
from envbuild.pip.fetch import fetch_wheel
from envbuild.spec.context import ContextFile
from envbuild.spec.document import fail
from envbuild.spec.requirement import parse_requirement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from envbuild.conda.link import PythonTarget
    from envbuild.deadline import Deadline
    from envbuild.spec.pip import PipSection
    from envbuild.spec.requirement import PipRequirement

_VCS: Final = re.compile(r"(?:git|hg|svn|bzr)\+", re.IGNORECASE)
_FRAGMENT: Final = re.compile(r"(?:^|&)sha256=([0-9a-f]{64})(?:&|\Z)")
_LEGACY: Final = ("setuptools>=40.8.0", "wheel")
"""What a project without a build system in ``pyproject.toml`` is built with (PEP 517)."""

_BOUNDS: Final = Bounds(free=64 << 20, ratio=100, most=1 << 30)
"""What a source archive may unpack to: it is held in memory. Sources shrink to a third or a tenth."""
_MAX_ARCHIVE: Final = 1 << 30
_MAX_FILES: Final = 200_000
_DAMAGED: Final = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
)


def is_source(requirement: PipRequirement) -> bool:
    """Whether a requirement names a project's folder or a source archive, whose own code makes the wheel."""
    if requirement.local is not None:
        return requirement.editable or not requirement.local.name.endswith(".whl")
    if requirement.url is None or _VCS.match(requirement.url):
        return False
    return not _path(requirement.url).endswith(".whl")


def applies(requirement: PipRequirement, python: PythonTarget, machine: str) -> bool:
    """Whether a requirement's marker holds in an image.

    Args:
        requirement: The requirement.
        python: The environment's python.
        machine: As ``x86_64``.
    """
    if not requirement.marker:
        return True
    from packaging.markers import Marker

    environment = {
        "implementation_name": "cpython",
        "implementation_version": python.version,
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": python.version,
        "python_version": python.short,
        "sys_platform": "linux",
    }
    return Marker(requirement.marker).evaluate({**environment, "extra": ""})


@dataclass(frozen=True)
class ProjectSource:
    """A project's files.

    Attributes:
        what: What it is called in messages.
        files: The files, with paths relative to the project's folder.
    """

    what: str
    files: tuple[ContextFile, ...]

    @classmethod
    def read(
        cls, requirement: PipRequirement, fetch_url: Callable[[str], str], deadline: Deadline
    ) -> ProjectSource:
        """The files of a requirement for which :func:`is_source` holds.

        Args:
            requirement: The requirement.
            fetch_url: Gives a URL with its credentials.
            deadline: When to give up.

        Raises:
            BuildError: Its archive has no digest, cannot be fetched, or is of a kind that is not read.
            IntegrityError: Its archive is not what the digest says, damaged, or hostile.
        """
        local = requirement.local
        if local is not None and not local.name:
            return cls(requirement.name or str(local.path), local.files)
        if local is not None:
            content, name = local.files[0].content or b"", local.name
            _check_hashes(content, requirement, name)
        else:
            name = unquote(_path(requirement.url or "").rpartition("/")[2])
            with _fetch(requirement, name, fetch_url, deadline) as stream:
                content = stream.read(_MAX_ARCHIVE + 1)
                if len(content) > _MAX_ARCHIVE:
                    raise IntegrityError(
                        f"{name} has more than {_MAX_ARCHIVE} bytes, which no source archive has"
                    )
        return cls(requirement.name or name, unpacked(content, name, deadline))

    @property
    def identity(self) -> list[dict[str, Any]]:
        """What tells its wheel from every other's: JSON values only."""
        return [file.to_json() for file in self.files]

    @property
    def requires(self) -> tuple[str, ...]:
        """The requirements of its build.

        Raises:
            BuildError: It is no project, or its ``pyproject.toml`` cannot be read.
        """
        found = {file.path: file.content for file in self.files}
        if "pyproject.toml" not in found and "setup.py" not in found:
            raise BuildError(
                f"{self.what} is no Python project: it has neither pyproject.toml nor setup.py",
                hint="name the project's own folder or source archive",
            )
        try:
            document = tomllib.loads((found.get("pyproject.toml") or b"").decode())
            requires = document.get("build-system", {}).get("requires", _LEGACY)
            return tuple(str(each) for each in requires)
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise BuildError(
                f"pyproject.toml of {self.what} cannot be read: {error}", hint="correct it"
            ) from None


def build_section(section: PipSection, source: ProjectSource, requirement: PipRequirement) -> PipSection:
    """The section, with the same indexes, that asks for what a project's build needs.

    Raises:
        SpecError: One of its requirements is not understood, or has a variable in its URL: whoever wrote the
            project is not who wrote the definition.
    """
    requirements = tuple(parse_requirement(text, requirement.mark) for text in source.requires)
    for each in requirements:
        if each.fetch_url is not None and holds_variables(each.fetch_url):
            fail(
                requirement.mark,
                f"{source.what} asks for {each.name or each.url} with a variable in its URL",
                "variables are filled in only where the definition itself has them: take it out of the "
                "project's pyproject.toml, or name a wheel of the project",
            )
    switches = tuple(each for each in section.switches if each != "--require-hashes")
    return replace(
        section, requirements=requirements, constraints=(), no_binary=(), only_binary=(), switches=switches
    )


def unpacked(content: bytes, name: str, deadline: Deadline = NO_DEADLINE) -> tuple[ContextFile, ...]:
    """The files of a source archive, without the folder that all of them are in; sorted by path.

    Raises:
        BuildError: It is no archive of a kind that is read.
        IntegrityError: It is damaged or hostile.
    """
    try:
        if zipfile.is_zipfile(io.BytesIO(content)):
            found = list(_limited(_zipped(content, name, deadline), name))
        else:
            found = list(_limited(_tarred(content, name, deadline), name))
    except _DAMAGED as error:
        raise IntegrityError(f"{name} is damaged: {error}") from None
    tops = {file.path.partition("/")[0] for file in found}
    if len(tops) == 1 and all("/" in file.path for file in found):
        found = [replace(file, path=file.path.partition("/")[2]) for file in found]
    return tuple(sorted(found, key=lambda file: file.path))


def _limited(files: Iterable[ContextFile], name: str) -> Iterator[ContextFile]:
    size = 0
    for count, file in enumerate(files):
        size += file.size
        if size > _BOUNDS.most or count >= _MAX_FILES:
            raise IntegrityError(f"{name} holds more than {_MAX_FILES} files or {_BOUNDS.most} bytes")
        yield file


def _zipped(content: bytes, name: str, deadline: Deadline) -> Iterator[ContextFile]:
    with open_zip(io.BytesIO(content), _MAX_FILES, name) as archive:
        size = sum(member.file_size for member in archive.infolist())
        if size > (limit := _BOUNDS.allowed(len(content))):
            raise IntegrityError(f"{name} unpacks to {size} bytes, at most {limit} are expected of its size")
        for member in archive.infolist():
            if member.is_dir():
                continue
            deadline.check(f"unpacking {name}")
            runs = bool(stat.S_IMODE(member.external_attr >> 16) & 0o100)
            yield ContextFile.of(safe_path(member.filename, name), archive.read(member), executable=runs)


def _tarred(content: bytes, name: str, deadline: Deadline) -> Iterator[ContextFile]:
    codec = codec_of(content)
    if codec is Codec.PLAIN and content[257:262] != b"ustar":
        raise BuildError(
            f"{name} is no archive that can be read", hint="name a source archive: .tar.gz or .zip"
        )
    made: dict[str, ContextFile] = {}
    for member in TarReader(Inflated(io.BytesIO(content), codec, _BOUNDS, name, deadline), name):
        path = member.path
        if member.kind is Kind.DIRECTORY:
            continue
        if member.kind is Kind.SYMLINK:
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), member.target))
            if member.target.startswith("/") or target.startswith("../"):
                raise IntegrityError(f"{name} has the link {path!r}, which points out of it")
            file = ContextFile(path, executable=False, content=None, target=member.target)
        else:
            data = member.read() if member.kind is Kind.FILE else _linked(made, member.target, name)
            file = ContextFile.of(path, data, executable=bool(member.mode & 0o100))
        made[path] = file
        yield file


def _linked(made: dict[str, ContextFile], target: str, name: str) -> bytes:
    """The content of the file, before it, that a hard link names."""
    found = made.get(safe_path(target, name))
    if found is None or found.content is None:
        raise IntegrityError(f"{name} has a hard link to {target!r}, which is no file before it")
    return found.content


def _fetch(
    requirement: PipRequirement, name: str, fetch_url: Callable[[str], str], deadline: Deadline
) -> IO[bytes]:
    bare = (requirement.url or "").partition("#")[0]
    record = PipDistribution(requirement.name or name, "0", bare, archive_digest(requirement), None, name)
    return fetch_wheel(record, url=fetch_url(bare), deadline=deadline)


def archive_digest(requirement: PipRequirement) -> Digest:
    """The digest that a definition gives for an archive at a URL.

    Raises:
        BuildError: It gives none, or several.
    """
    digests = [text.removeprefix("sha256:") for text in requirement.hashes if text.startswith("sha256:")]
    url = requirement.url or ""
    if found := _FRAGMENT.search(url.partition("#")[2]):
        digests.append(found[1])
    if len(set(digests)) != 1:
        name = unquote(_path(url).rpartition("/")[2])
        raise BuildError(
            f"{requirement.mark.source}:{requirement.mark.line}: the archive {name} has no sha256",
            hint=f"write {requirement.name or 'NAME'} @ {url.partition('#')[0]}#sha256= and its 64 digits",
        )
    return Digest(digests[0])


def _check_hashes(content: bytes, requirement: PipRequirement, name: str) -> None:
    digests = {text.removeprefix("sha256:") for text in requirement.hashes if text.startswith("sha256:")}
    if requirement.hashes and hashlib.sha256(content).hexdigest() not in digests:
        raise IntegrityError(
            f"{name} has another sha256 than --hash says: {hashlib.sha256(content).hexdigest()}",
            hint="correct the hash, or get the archive again",
        )


def _path(url: str) -> str:
    return re.split(r"[?#]", url, maxsplit=1)[0]
