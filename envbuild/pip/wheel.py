"""A wheel's files as they are installed under the prefix, without a disk.

Source: PyPA, "Binary distribution format", "Recording installed projects", "Entry points" and "Direct URL
origin". The result depends on the wheel's bytes and the target, and on nothing else.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import posixpath
import re
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final

from envbuild.conda.link import FIXED_TIME, LinkedFile
from envbuild.conda.meta import entry_point_script
from envbuild.conda.paths import MAX_COMMANDS, EntryPoint
from envbuild.conda.tar import Kind, parents
from envbuild.errors import IntegrityError
from envbuild.pip.archive import WheelArchive, encode_digest, is_executable

if TYPE_CHECKING:
    import zipfile
    from collections.abc import Iterator

    from envbuild.lock import PipDistribution
    from envbuild.pip.distribution import WheelTarget

INSTALLER: Final = b"envbuild\n"
_MAX_SCRIPT: Final = 16 << 20
_MAX_ENTRY_POINTS: Final = 1 << 20
_PLACEHOLDER: Final = re.compile(rb"#!python[^\r\n]*")
_COMMAND: Final = re.compile(r"[^\s/\\\x00-\x1f\x7f.-][^/\\\x00-\x1f\x7f]*")
_OBJECT: Final = re.compile(r"(?P<module>[\w.]+)\s*:\s*(?P<function>[\w.]+)\s*(?:\[[^\]]*\])?")
_OWN: Final = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json")


def install(source: IO[bytes], distribution: PipDistribution, target: WheelTarget) -> Iterator[LinkedFile]:
    """Install a wheel: its files, its commands, what pip reads of it; sorted by path.

    No module is compiled.

    Args:
        source: The verified wheel, seekable.
        distribution: What the solution says of it.
        target: Where it is installed.

    Raises:
        BuildError: The wheel is of a version of the format that is not known.
        IntegrityError: It is another distribution, damaged, or hostile.
    """
    return _Installer(WheelArchive.open(source, distribution), distribution, target).files()


@dataclass
class _Installer:
    """The state of one installation."""

    wheel: WheelArchive
    distribution: PipDistribution
    target: WheelTarget
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def _site(self) -> str:
        return self.target.python.site_packages

    def files(self) -> Iterator[LinkedFile]:
        """Everything that is installed."""
        commands = {f"bin/{point.command}": point for point in _entry_points(self.wheel)}
        places = {place: each for each, place in self._places() if place not in commands}
        own = {f"{self._site}/{self.wheel.info}/{name}": name for name in _OWN}
        generated = self._generated(commands)
        self._check_folders({*places, *generated, *own})
        for place in sorted({*places, *generated}):
            if (member := places.get(place)) is not None:
                yield from self._member(place, member)
            else:
                yield self._generate(place, *generated[place])
        place = f"{self._site}/{self.wheel.info}/RECORD"
        yield LinkedFile.generated(place, self._record(), owner=self.wheel.what)

    def _places(self) -> Iterator[tuple[zipfile.ZipInfo, str]]:
        """Where each member goes; RECORD, its like and what an installer writes go nowhere."""
        data = f"{self.wheel.info.removesuffix('.dist-info')}.data"
        own = {f"{self.wheel.info}/{name}" for name in _OWN}
        taken: set[str] = set()
        for member in self.wheel.installed():
            if member.filename in own:
                continue
            place = self._place(member.filename, data)
            if place in taken:
                raise IntegrityError(f"{self.wheel.what} installs two files as {place!r}")
            taken.add(place)
            yield member, place

    def _place(self, path: str, data: str) -> str:
        top, _, rest = path.partition("/")
        if top != data:
            return f"{self._site}/{path}"
        scheme, _, rest = rest.partition("/")
        folder = {
            "purelib": f"{self._site}/",
            "platlib": f"{self._site}/",
            "scripts": "bin/",
            "headers": f"{self.target.headers}/{self.distribution.name}/",
            "data": "",
        }.get(scheme)
        if folder is None or not rest:
            raise IntegrityError(f"{self.wheel.what} has {path!r}, which is in no folder that wheels have")
        return folder + rest

    def _generated(self, commands: dict[str, EntryPoint]) -> dict[str, tuple[bytes, int]]:
        """The content and mode of what stands in no wheel."""
        short = self.target.python.short
        found = {
            place: (entry_point_script(point, self.target.prefix, short), 0o755)
            for place, point in commands.items()
        }
        folder = f"{self._site}/{self.wheel.info}"
        found[f"{folder}/INSTALLER"] = (INSTALLER, 0o644)
        if (origin := _origin(self.distribution)) is not None:
            found[f"{folder}/direct_url.json"] = (json.dumps(origin, sort_keys=True).encode(), 0o644)
        if self.distribution.requested:
            found[f"{folder}/REQUESTED"] = (b"", 0o644)
        return found

    def _check_folders(self, places: set[str]) -> None:
        for place in places:
            for folder in parents(place):
                if folder in places:
                    raise IntegrityError(f"{self.wheel.what} has {folder!r} both as a file and as a folder")

    def _member(self, place: str, member: zipfile.ZipInfo) -> Iterator[LinkedFile]:
        chunks = self.wheel.chunks(member)
        script = ".data/scripts/" in member.filename
        if script:
            first = next(chunks, b"")
            if found := _PLACEHOLDER.match(first):
                yield self._script(place, first[found.end() :] + self._rest(member, chunks))
                return
            chunks = itertools.chain((first,), chunks)
        recorded = self.wheel.records[member.filename]
        self._row(place, f"{recorded.algorithm}={recorded.digest}", member.file_size)
        mode = 0o755 if script or is_executable(member) else 0o644
        size, owner = member.file_size, self.wheel.what
        yield LinkedFile(place, Kind.FILE, mode, FIXED_TIME, size, chunks, owner=owner)
        for _ in chunks:  # A caller who looks only at the names leaves them; they are verified all the same.
            pass

    def _rest(self, member: zipfile.ZipInfo, chunks: Iterator[bytes]) -> bytes:
        if member.file_size > _MAX_SCRIPT:
            raise IntegrityError(f"{self.wheel.what} has a script of {member.file_size} bytes")
        return b"".join(chunks)

    def _script(self, place: str, rest: bytes) -> LinkedFile:
        return self._generate(place, f"#!{self.target.prefix}/bin/python".encode() + rest, 0o755)

    def _generate(self, place: str, content: bytes, mode: int) -> LinkedFile:
        self._row(place, f"sha256={encode_digest(hashlib.sha256(content).digest())}", len(content))
        return LinkedFile.generated(place, content, mode, self.wheel.what)

    def _row(self, place: str, digest: str, size: int) -> None:
        self.rows.append((posixpath.relpath(place, self._site), digest, str(size)))

    def _record(self) -> bytes:
        out = io.StringIO()
        own = (f"{self.wheel.info}/RECORD", "", "")
        csv.writer(out, lineterminator="\n").writerows(sorted([*self.rows, own]))
        return out.getvalue().encode()


def _origin(distribution: PipDistribution) -> dict[str, Any] | None:
    """What ``direct_url.json`` says; None where there is none."""
    if distribution.direct_url is None:
        return None
    if distribution.built_from == "folder":
        return {"url": distribution.direct_url, "dir_info": {}}
    digest = distribution.built_from or distribution.sha256.hex
    archive = {"hash": f"sha256={digest}", "hashes": {"sha256": digest}}
    return {"url": distribution.direct_url, "archive_info": archive}


def _entry_points(wheel: WheelArchive) -> Iterator[EntryPoint]:
    """The commands that ``entry_points.txt`` asks for; a command twice is one of them."""
    text = wheel.text("entry_points.txt")
    if len(text) > _MAX_ENTRY_POINTS:
        raise IntegrityError(f"{wheel.what} has an entry_points.txt of {len(text)} characters")
    groups = _sections(text, wheel.what)
    found = [
        point
        for group in ("console_scripts", "gui_scripts")
        if group in groups
        for point in (groups.get("DEFAULT", {}) | groups[group]).items()
    ]
    if len(found) > MAX_COMMANDS:
        raise IntegrityError(f"{wheel.what} has {len(found)} commands, expected at most {MAX_COMMANDS}")
    for command, value in found:
        target = _OBJECT.fullmatch(value.strip())
        if target is None or not _COMMAND.fullmatch(command):
            raise IntegrityError(
                f"{wheel.what} has the entry point {command!r} = {value!r}, expected NAME = MODULE:FUNCTION"
            )
        yield EntryPoint(command, target["module"], target["function"])


def _sections(text: str, what: str) -> dict[str, dict[str, str]]:
    """The options of an INI file by section, as :mod:`configparser` reads it; that takes quadratic time."""
    sections: dict[str, dict[str, list[str]]] = {}
    options: dict[str, list[str]] | None = None
    lines: list[str] | None = None  # those of the last option, which deeper lines go on with
    indent = 0
    for number, line in enumerate(text.split("\n"), 1):
        value = line.strip()
        if not value or value[0] in "#;":
            if lines is not None and not value:
                lines.append("")
            continue
        depth = len(line) - len(line.lstrip())
        if lines is not None and depth > indent:
            lines.append(value)
            continue
        indent = depth
        option, equals, content = (part.strip() for part in value.partition("="))
        if value[0] == "[" and "]" in value[2:]:
            options, lines = sections.setdefault(value[1 : value.rindex("]")], {}), None
        elif options is None or not option or not equals:
            reason = f"line {number} is {value[:80]!r}, expected [SECTION] or NAME = VALUE"
            raise IntegrityError(f"{what} has an entry_points.txt that cannot be read: {reason}")
        else:
            lines = options[option] = [content]
    return {
        section: {name: "\n".join(kept).rstrip() for name, kept in options.items()}
        for section, options in sections.items()
    }
