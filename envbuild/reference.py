"""Names of images: repositories, tags and digest-pinned references.

Grammar: the OCI Distribution Specification 1.1 ("Pulling manifests") and, for short names such as
``debian``, the rules of Docker's reference library. A repository is either on a registry's host or an
OCI image layout on disk, written ``oci:PATH``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from envbuild.digest import Digest
from envbuild.errors import SpecError

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"[A-Za-z0-9+._-]+:[0-9A-Fa-f]{32,}")
_DOCKER_HUB = "docker.io"
LAYOUT_SCHEME = "oci:"
ENGINE_SCHEME = "docker-daemon:"


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of a repository: 1 to 128 of ``A-Z a-z 0-9 _ . -``, not starting with ``.`` or ``-``."""

    name: str

    def __post_init__(self) -> None:
        if not _TAG.fullmatch(self.name):
            raise SpecError(
                f"{self.name!r} is not a tag: expected 1 to 128 letters, digits, '_', '.' or '-', "
                "the first a letter, digit or '_'"
            )

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Repository:
    """A place that holds images: ``host/path`` on a registry, or an OCI layout in a folder.

    Most callers want :meth:`parse`.

    Attributes:
        host: The registry's host and port, lower case; empty for a layout, ``docker-daemon:`` for a name in a
            Docker Engine.
        path: The repository's path on that host, the layout's folder as an absolute path, or the name.
    """

    host: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``registry.example.com/team/envs``, ``team/envs`` (Docker Hub), ``debian`` or ``oci:PATH``.

        Raises:
            SpecError: The text is not a repository, or carries a tag or digest.
        """
        if text.startswith(LAYOUT_SCHEME):
            return cls._layout(text)
        host, path = _split_host(text)
        if not _PATH.fullmatch(path) or len(host) + 1 + len(path) > 255:
            raise SpecError(
                f"{text!r} is not a repository: expected HOST/PATH in lower case, or oci:FOLDER",
                hint="write it as registry.example.com/team/envs, without tag or digest",
            )
        return cls(host, path)

    @classmethod
    def _layout(cls, text: str) -> Self:
        folder = text.removeprefix(LAYOUT_SCHEME)
        if not folder or any(ord(character) < 32 for character in folder):
            raise SpecError(f"{text!r} names no folder", hint="write it as oci:FOLDER")
        return cls("", str(expand_home(folder).absolute()))

    @property
    def is_layout(self) -> bool:
        """Whether this is an OCI image layout on disk."""
        return not self.host

    @property
    def is_engine(self) -> bool:
        """Whether this is a name that only a Docker Engine knows: a base, and nothing else."""
        return self.host == ENGINE_SCHEME

    @property
    def folder(self) -> Path:
        """The layout's folder; only for layouts."""
        if not self.is_layout:
            raise SpecError(f"{self} is not a layout on disk")
        return Path(self.path)

    def __str__(self) -> str:
        if self.is_layout or self.is_engine:
            return f"{self.host or LAYOUT_SCHEME}{self.path}"
        return f"{self.host}/{self.path}"

    def at(self, digest: Digest) -> ImageReference:
        """The image with that digest in this repository."""
        return ImageReference(self, digest)

    def tagged(self, tag: Tag) -> TaggedReference:
        """Whatever that tag names in this repository now."""
        return TaggedReference(self, tag)


@dataclass(frozen=True, slots=True)
class ImageReference:
    """One image for ever: a repository and a digest. Written ``repository@sha256:…``."""

    repository: Repository
    digest: Digest

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``repository@sha256:…``; a tag in front of the digest is dropped.

        Raises:
            SpecError: There is no digest, or the repository is malformed.
        """
        parsed = parse_reference(text)
        if not isinstance(parsed, ImageReference):
            raise SpecError(f"{text!r} has no digest: expected repository@sha256:…")
        return cls(parsed.repository, parsed.digest)

    def __str__(self) -> str:
        return f"{self.repository}@{self.digest}"


@dataclass(frozen=True, slots=True)
class TaggedReference:
    """What a tag names at the moment somebody asks: an input, never an answer."""

    repository: Repository
    tag: Tag

    def __str__(self) -> str:
        return f"{self.repository}:{self.tag}"


def expand_home(folder: str) -> Path:
    """The folder as a path, ``~`` and ``~user`` at its start filled in.

    Raises:
        SpecError: There is no such user.
    """
    try:
        return Path(folder).expanduser()
    except RuntimeError:
        raise SpecError(f"{folder!r} names the home of a user who is not known here") from None


def parse_reference(text: str, default_tag: str = "latest") -> ImageReference | TaggedReference:
    """Parse a reference as a user writes it: ``debian:12-slim``, ``name@sha256:…``, ``oci:PATH[:TAG]``.

    A tag beside a digest is dropped, as every registry client does: the digest says more. In a layout, a
    last part after a colon that holds no slash is a tag.

    Raises:
        SpecError: The text is not a reference.
    """
    name, digest = _split_digest(text)
    repository, written = _split_tag(name)
    tag = Tag(written if written is not None else default_tag)
    if digest is not None:
        return ImageReference(Repository.parse(repository), Digest.parse(digest))
    return TaggedReference(Repository.parse(repository), tag)


def parse_engine_reference(text: str) -> ImageReference | TaggedReference:
    """Parse ``docker-daemon:NAME[:TAG]``, ``docker-daemon:sha256:ID`` or ``docker-daemon:NAME@sha256:…``.

    The name stays as it is written: engines differ on what a short one means. The digest behind an ``@`` is
    that of the manifest which envbuild makes of the image, an ID is the engine's own.

    Raises:
        SpecError: The text is not such a reference.
    """
    parsed = parse_reference(text.removeprefix(ENGINE_SCHEME))
    written, _ = _split_tag(_split_digest(text.removeprefix(ENGINE_SCHEME))[0])
    if parsed.repository.is_layout:
        raise SpecError(f"{text!r} names no image", hint=f"write it as {ENGINE_SCHEME}NAME:TAG")
    return replace(parsed, repository=Repository(ENGINE_SCHEME, written))


def _split_digest(text: str) -> tuple[str, str | None]:
    name, at, digest = text.rpartition("@")
    # A folder's name may hold an @, a repository's may not.
    if not at or (text.startswith(LAYOUT_SCHEME) and not _DIGEST.fullmatch(digest)):
        return text, None
    return name, digest


def _split_tag(name: str) -> tuple[str, str | None]:
    scheme = LAYOUT_SCHEME if name.startswith(LAYOUT_SCHEME) else ""
    rest, colon, tag = name[len(scheme) :].rpartition(":")
    if not colon or "/" in tag:
        return name, None
    return scheme + rest, tag


def _split_host(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    is_host = slash and (
        any(mark in first for mark in ".:") or first == "localhost" or first != first.lower()
    )
    if not is_host:
        return _DOCKER_HUB, text if slash else f"library/{text}"
    if not _HOST.fullmatch(first):
        raise SpecError(f"{text!r} is not a repository: {first!r} is not a host name")
    host = first.lower()
    if host in {"index.docker.io", "registry-1.docker.io"}:
        host = _DOCKER_HUB
    return (host, rest if "/" in rest or host != _DOCKER_HUB else f"library/{rest}")
