"""What a rule of the policy is about: a registry's host, the repositories under a path, layouts in a folder.

Names are parsed as references are, and compared as parsed: a rule whose name is spelled otherwise than the
repository must hold all the same. What can be read in two ways is refused: a rule that holds for something
else than its author meant leaves open what they meant.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from envbuild.errors import SpecError
from envbuild.reference import (
    ENGINE_SCHEME,
    LAYOUT_SCHEME,
    Repository,
    TaggedReference,
    expand_home,
    parse_reference,
)

_HUB: Final = "docker.io"
_HUB_NAMES: Final = ("index.docker.io", "registry-1.docker.io")
_HUB_LAYERS: Final = "-layers"
"""How the repository ends that shares the layers of one on Docker Hub, where paths have two parts."""
_STANDARD_PORTS: Final = (":443", ":80")
_HINT: Final = (
    "write it as registry.example.com/team, oci:FOLDER, or a host as registry.example.com or registry:5000/; "
    "the rule holds for all under it"
)


@dataclass(frozen=True, slots=True)
class Scope:
    """What a rule is about. Most callers want :meth:`parse`.

    Attributes:
        host: The registry's host in its one spelling; empty for layouts on disk.
        parts: The parts of the path; none for all of a host. Of a layout those of its folder, as written.
    """

    host: str
    parts: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, folder: Path | None = None) -> Self:
        """Read the name of a rule.

        Args:
            text: ``HOST``, ``HOST/PATH``, ``PATH/PATH`` on Docker Hub, or ``oci:FOLDER``; a slash at the end
                changes nothing, except that it tells a host or a namespace from an image.
            folder: What the name of a layout's folder is relative to; the current folder if None.

        Raises:
            SpecError: It is none of these, or more than one.
        """
        if text.startswith(LAYOUT_SCHEME):
            return cls("", _layout(text, folder))
        if "://" in text or text.startswith(ENGINE_SCHEME):
            raise SpecError(f"{text!r} has a scheme, and a rule is about a repository", hint=_HINT)
        if any(mark in text for mark in "*?"):
            raise SpecError(f"{text!r} has a pattern, and rules have none", hint=_HINT)
        name, is_open = text.removesuffix("/"), text.endswith("/")
        first, slash, rest = name.partition("/")
        try:
            # The grammar of references knows a host by what stands behind it.
            start = Repository.parse(f"{first}/x/x")
            if not slash and (is_open or _is_host(first)):
                return cls(_canonical(start.host), tuple(start.path.split("/")[:-2]))
            of_hub = _canonical(start.host) == _HUB and (
                not slash or (start.path == "x/x" and "/" not in rest)
            )
            found = Repository.parse(f"{name}/x" if of_hub and is_open else name)
        except SpecError:
            raise SpecError(f"{text!r} is not the name of a repository or a host", hint=_HINT) from None
        if of_hub and not is_open:
            inner = rest or first
            raise SpecError(
                f"{text!r} may be an image of Docker Hub or all that is somebody's there",
                hint=f"write docker.io/library/{inner} for the image, docker.io/{inner}/ for all under it",
            )
        parts = tuple(found.path.split("/"))
        return cls(_canonical(found.host), parts[:-1] if of_hub else parts)

    def matched(self, repository: Repository) -> int | None:
        """How many parts of a repository's name the scope names; None where it is about others.

        Folders are compared by their real paths, as they are now.
        """
        if bool(self.host) == repository.is_layout:
            return None
        if repository.is_layout:
            mine, seen = _real(self.parts), _real(repository.folder.parts)
        else:
            mine, seen = self.parts, tuple(repository.path.split("/"))
            if _canonical(repository.host) != self.host:
                return None
            if self.host == _HUB and len(seen) == 1:  # as where the host is written with its port
                seen = ("library", *seen)
        if seen[: len(mine)] == mine:
            return len(mine)
        if self.host == _HUB and mine == (*seen[:-1], seen[-1].removesuffix(_HUB_LAYERS)):
            return len(mine)
        return None

    @property
    def repository(self) -> Repository:
        """The repository of that name; only where there is a path."""
        return Repository(self.host, "/".join(self.parts) if self.host else str(Path(*self.parts)))

    @property
    def place(self) -> Scope:
        """The same where two scopes are equal that are about the same."""
        return self if self.host else Scope("", _real(self.parts))

    def __str__(self) -> str:
        return "/".join((self.host, *self.parts)) if self.host else str(self.repository)


def _layout(text: str, folder: Path | None) -> tuple[str, ...]:
    if text.startswith(f"{LAYOUT_SCHEME}//"):
        raise SpecError(f"{text!r} is a URL, and a rule is about a repository", hint=_HINT)
    reference = parse_reference(text)
    whole = Repository.parse(text)
    if not isinstance(reference, TaggedReference) or reference.repository != whole:
        raise SpecError(
            f"{text!r} has a tag or a digest, and a rule holds for all images of a repository", hint=_HINT
        )
    return ((folder or Path.cwd()) / expand_home(text.removeprefix(LAYOUT_SCHEME))).absolute().parts


def _is_host(name: str) -> bool:
    return "." in name or name.startswith(("localhost:", "[")) or name == "localhost" or name != name.lower()


def _canonical(host: str) -> str:
    """A host in the one spelling in which rules are compared; both standard ports are those of the host."""
    host = host.lower()
    for port in _STANDARD_PORTS:
        host = host.removesuffix(port)
    if host in _HUB_NAMES:
        return _HUB
    name, bracket, port = host.rpartition("]")
    if not bracket:
        return host
    import ipaddress

    return f"[{ipaddress.IPv6Address(name[1:]).compressed}]{port}"


def _real(parts: tuple[str, ...]) -> tuple[str, ...]:
    return Path(os.path.realpath(Path(*parts))).parts
