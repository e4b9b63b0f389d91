"""Packages that were solved by another tool, as match specs that only they satisfy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from envbuild.spec.conda import CondaSection
from envbuild.spec.document import fail
from envbuild.spec.files import check_time
from envbuild.spec.match import MatchSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envbuild.lock import PackageRecord
    from envbuild.spec.document import Mark

_ARCHIVE: Final = re.compile(r"(.+)-([^-/]+)-([^-/]+?)(?:\.conda|\.tar\.bz2)")
_DIGESTS: Final = {"md5": re.compile("[0-9a-f]{32}"), "sha256": re.compile("[0-9a-f]{64}")}


def section(specs: Iterable[MatchSpec]) -> CondaSection:
    """A section of match specs and their channels; each names its own, so that no order counts."""
    specs = tuple(specs)
    by_spelling = {spec.canonical(): spec for spec in specs}
    channels = {spec.channel.canonical: spec.channel for spec in specs if spec.channel is not None}
    return CondaSection(
        tuple(channels[name] for name in sorted(channels)),
        False,
        tuple(by_spelling[spelling] for spelling in sorted(by_spelling)),
    )


def section_of(packages: Iterable[PackageRecord]) -> CondaSection:
    """A section that only these packages satisfy."""
    return section(
        _exact(each.name, each.version, each.build, each.channel, each.subdir, f'sha256="{each.sha256.hex}"')
        for each in packages
    )


def subdir_of(url: str) -> str:
    """The subdir that a package's URL names."""
    return url.rpartition("/")[0].rpartition("/")[2]


def at_url(url: str, kind: str, digest: str, mark: Mark, hint: str) -> MatchSpec:
    """The package at a URL, with its digest.

    Args:
        url: The URL.
        kind: ``md5`` or ``sha256``.
        digest: The digest, in hexadecimal digits.
        mark: Where it stands.
        hint: What to do where it is none.

    Raises:
        SpecError: It is no URL of a package, or no such digest.
        DeadlineExceeded: The time for reading the lock ran out.
    """
    check_time(f"reading {mark.source}")
    place, _, file_name = url.rpartition("/")
    channel, _, subdir = place.rpartition("/")
    archive = _ARCHIVE.fullmatch(file_name)
    if archive is None or not _DIGESTS[kind].fullmatch(digest):
        fail(mark, f"{url[:200]!r} with the {kind} {digest[:80]!r} is no package URL with its digest", hint)
    return _exact(archive[1], archive[2], archive[3], channel, subdir, f'{kind}="{digest}"', mark)


def _exact(
    name: str, version: str, build: str, channel: str, subdir: str, digest: str, mark: Mark | None = None
) -> MatchSpec:
    text = f'{name}[version="=={version}",build="{build}",channel="{channel}",subdir="{subdir}",{digest}]'
    return MatchSpec.parse(text, mark)
