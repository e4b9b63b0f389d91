"""Names of images: repositories, tags and digest-pinned references.

Grammar: that of ``distribution/reference``, which Docker and the OCI Distribution Specification 1.1
("Pulling manifests") share, with its rules for short names such as ``debian``. Of what it accepts, host
names that DNS cannot hold (RFC 1035, section 2.3.4), addresses that are none and ports above 65535 are
refused here, before anybody is asked. A repository is either on a registry's host or an OCI image layout on
disk, written ``oci:PATH``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from envbuild.digest import Digest
from envbuild.errors import SpecError
from envbuild.url import UrlError, checked_host

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_LONGEST_PATH = 255
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"({_LABEL}(?:\.{_LABEL})*|\[([0-9A-Fa-f:]+)\])(?::([0-9]{{1,9}}))?")
_LONGEST_HOST, _LAST_PORT = 253, 65535
_IMAGE_ID = re.compile(r"[0-9a-f]{64}")
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
        host: The registry's host and port, lower case but where only capitals say that it is a host; empty
            for a layout, ``docker-daemon:`` for a name in a Docker Engine.
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
        _refuse_image_id(text)
        if text.startswith(LAYOUT_SCHEME):
            return cls._layout(text)
        host, path = _split_host(text)
        if len(path) > _LONGEST_PATH:
            raise SpecError(
                f"the repository {text[:60]!r}… has a path of {len(path)} characters, expected at most "
                f"{_LONGEST_PATH} behind the host"
            )
        if not _PATH.fullmatch(path):
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
    _refuse_image_id(text)
    name, digest = _split_digest(text)
    written, tag_name = _split_tag(name)
    if _IMAGE_ID.fullmatch(written):  # with a tag or a digest it can only be a name
        written = f"{_DOCKER_HUB}/{written}"
    repository, tag = Repository.parse(written), Tag(default_tag if tag_name is None else tag_name)
    if digest is not None:
        return ImageReference(repository, Digest.parse(digest))
    return TaggedReference(repository, tag)


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


def _refuse_image_id(text: str) -> None:
    """Refuse 64 hexadecimal digits on their own: an engine would take them for one of its images."""
    if _IMAGE_ID.fullmatch(text):
        raise SpecError(
            f"{text!r} is an image ID, expected a name",
            hint=f"write NAME@sha256:{text[:6]}… for a digest, or docker.io/library/{text[:6]}… for a "
            "repository of that name",
        )


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
    host = _parse_host(first, text)
    if host in {"index.docker.io", "registry-1.docker.io"}:
        host = _DOCKER_HUB
    return (host, rest if "/" in rest or host != _DOCKER_HUB else f"library/{rest}")


def _parse_host(written: str, text: str) -> str:
    """A registry's host and port in one spelling: lower case, the port without leading zeros."""
    found = _HOST.fullmatch(written)
    if found is None or len(found[1]) > _LONGEST_HOST or not _is_address(found[2]):
        raise SpecError(
            f"{text!r} is not a repository: {written!r} is not a host name",
            hint="a host is written as registry.example.com or registry.example.com:5000: labels of 1 to 63 "
            "letters, digits and inner hyphens, joined by single dots",
        )
    try:
        checked_host(found[1])
    except UrlError as error:
        raise SpecError(f"{text!r} is not a repository: {error}") from None
    if found[3] is None:
        lower = written.lower()
        # Only its capitals tell a host of one label from a part of Docker Hub: they stay.
        return lower if "." in lower or ":" in lower or lower == "localhost" else written
    port = int(found[3])
    if not 0 < port <= _LAST_PORT:
        raise SpecError(f"{text!r} is not a repository: {port} is not a port, expected 1 to {_LAST_PORT}")
    return f"{found[1].lower()}:{port}"


def _is_address(inner: str | None) -> bool:
    """Whether what stands between brackets, if anything does, is an IPv6 address."""
    if inner is None:
        return True
    import ipaddress

    try:
        ipaddress.IPv6Address(inner)
    except ValueError:
        return False
    return True
