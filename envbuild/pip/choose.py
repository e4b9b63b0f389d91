"""From what uv lists of a version to the one wheel that is installed."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote

from envbuild.digest import Digest
from envbuild.errors import ChannelError, IntegrityError, SolveError
from envbuild.lock import PipDistribution
from envbuild.pip.tags import rank
from envbuild.spec.local import Origin
from envbuild.url import FILE, Url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from packaging.tags import Tag

    from envbuild.spec.local import LocalSource
    from envbuild.spec.pip import PipSection


@dataclass(frozen=True)
class Chooser:
    """Chooses wheels for one section and one target.

    Attributes:
        local: The local wheels that the section names, by name.
        requested: The names that the section asks for.
        read: The sha256 of each wheel on this machine that was read with the definition, by its URL.
        hashes: The sha256 digests that the section allows, by name; None where it says nothing of hashes.
        accepted: The tags that fit, ranked.
        stubs: A folder whose wheels are stand-ins for what is installed.
        found: The public URL of a file that an index names.
        folders: Those whose files indexes on this machine may name.
        loose: Whether what has no hash may be installed beside what has.
    """

    local: dict[str, LocalSource]
    requested: frozenset[str]
    read: dict[str, str]
    hashes: dict[str, set[str]] | None
    accepted: Mapping[Tag, int]
    stubs: Path
    found: Callable[[str], str]
    folders: tuple[str, ...] = ()
    loose: bool = False

    @classmethod
    def of(
        cls,
        section: PipSection,
        requested: frozenset[str],
        accepted: Mapping[Tag, int],
        stubs: Path,
        found: Callable[[str], str],
    ) -> Self:
        """The chooser of a section."""
        requirements = (*section.requirements, *section.constraints)
        allowed: dict[str, set[str]] | None = None
        if "--require-hashes" in section.switches or any(each.hashes for each in requirements):
            allowed = {}
            for each in requirements:
                digests = {text.removeprefix("sha256:") for text in each.hashes if text.startswith("sha256:")}
                allowed.setdefault(each.name, set()).update(digests)
        local = {each.name: each.local for each in section.requirements if each.local}
        files = [*local.values(), *section.find_links_local]
        files += [each.local for each in section.constraints if each.local]
        read = {each.path.as_uri(): each.files[0].sha256 for each in files if each.name}
        loose = "--no-require-hashes" in section.switches
        indexes = [url for url in (*section.fetch_indexes, *section.fetch_links) if url.startswith("file:")]
        paths = [posixpath.normpath(unquote(Url.parse(url, FILE).path)) for url in indexes]
        folders = tuple(f"{posixpath.dirname(path).rstrip('/')}/" for path in paths)
        return cls(local, requested, read, allowed, accepted, stubs, found, folders, loose)

    def choose(self, package: dict[str, Any]) -> PipDistribution:
        """The wheel of one of the solution's packages.

        Raises:
            SolveError: None of its wheels is allowed by the section's hashes.
            ChannelError: Its index gives no sha256 of it, or names a file of this machine.
            IntegrityError: A local wheel is not the one that was read with the definition.
        """
        name = package["name"]
        files = package.get("wheels") or [package["archive"]]
        offered = [self._distribution(package, file) for file in files]
        fitting = [(place, each) for each in offered if (place := rank(each.file_name, self.accepted))]
        ranked = [each for _, each in sorted(fitting, key=lambda pair: pair[0])]
        if not ranked:
            raise SolveError(
                f"{name} {package.get('version', '')} has no wheel that fits the base and its python: "
                f"{', '.join(each.file_name for each in offered)}",
                hint="choose another version, or another base",
            )
        allowed = [each for each in ranked if self._allows(each)]
        if not allowed:
            raise SolveError(
                f"no wheel of {name} {package.get('version', '')} has a hash that the section allows; the "
                f"best is {ranked[0].file_name} with sha256:{ranked[0].sha256.hex}",
                hint="where one requirement has --hash, all that is installed needs one with sha256",
            )
        return allowed[0]

    def _allows(self, distribution: PipDistribution) -> bool:
        if self.hashes is None or self._is_stub(distribution.url):
            return True
        digests = self.hashes.get(distribution.name, set())
        return distribution.sha256.hex in digests or (self.loose and not digests)

    def _is_of_the_definition(self, url: str) -> bool:
        """Whether a file of this machine is one that the definition names, or that a folder of it has."""
        path = posixpath.normpath(unquote(Url.parse(url, FILE).path))
        return url in self.read or self._is_stub(url) or path.startswith(self.folders)

    def _is_stub(self, url: str) -> bool:
        return url.startswith(f"{self.stubs.as_uri()}/")

    def _distribution(self, package: dict[str, Any], file: dict[str, Any]) -> PipDistribution:
        local = self.local.get(package["name"])
        url = self.found(file["url"]) if "url" in file else Path(file["path"]).as_uri()
        file_name = unquote(url.partition("#")[0].partition("?")[0].rpartition("/")[2])
        if url.startswith("file:") and not self._is_of_the_definition(url):
            raise ChannelError(
                f"{package['name']} would be read from {url}, which an index or a wheel names and the "
                "definition does not: what others wrote names no file of this machine",
                hint="name the file in the definition where it is wanted",
            )
        try:
            digest = Digest(file["hashes"]["sha256"])
        except (KeyError, ValueError):
            raise ChannelError(
                f"{file_name} has no sha256 in its index",
                hint="ask the index's owner to publish sha256 digests",
            ) from None
        if self.read.get(url, digest.hex) != digest.hex:
            raise IntegrityError(f"{url} changed since the definition was read", hint="resolve again")
        named = None
        if file is package.get("archive"):
            named = Origin(url) if "url" in file else local.origin if local is not None else None
        return PipDistribution(
            package["name"],
            str(package.get("version") or _version_of(file_name)),
            url,
            digest,
            file.get("size") or _size_of(url),
            file_name,
            named.url if named is not None else None,
            named.built_from if named is not None else None,
            package["name"] in self.requested,
        )


def _version_of(file_name: str) -> str:
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    try:
        return str(parse_wheel_filename(file_name)[1])
    except InvalidWheelFilename:
        raise SolveError(f"{file_name!r} is no wheel's name", hint="name the wheel as it was built") from None


def _size_of(url: str) -> int | None:
    if not url.startswith("file:"):
        return None
    try:
        return Path(unquote(Url.parse(url, FILE).path)).stat().st_size
    except OSError:
        return None
