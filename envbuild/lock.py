"""A solved environment: the base's digest, the packages' records, one platform.

The lock has one canonical byte form; :attr:`Lock.key` is the hash over it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

import rfc8785

from envbuild.errors import IntegrityError

if TYPE_CHECKING:
    from envbuild.digest import Digest
    from envbuild.platform import Platform

NoArch = Literal["python", "generic"]

_WORD: Final = r"[A-Za-z0-9_.+!~-]"
FORMS: Final = {
    "name": re.compile(f"{_WORD}{{1,128}}"),
    "version": re.compile(f"{_WORD}{{1,128}}"),
    "build": re.compile(f"{_WORD}{{1,128}}"),
    "subdir": re.compile("[a-z0-9_-]{1,32}"),
    "url": re.compile("[^\x00-\x1f\x7f]{1,4096}"),
    "python_site_packages_path": re.compile(rf"(?:(?!\.\.?(?:/|$)){_WORD}{{1,128}}(?:/(?!$)|$)){{1,16}}"),
}
"""What the fields of a record may be that end in paths of an image: nothing that leads elsewhere."""

METADATA: Final = (
    "constrains", "extra_depends", "features", "license", "license_family", "purls", "timestamp",
    "track_features",
)  # fmt: skip
"""What channels say of a package beside the fields below, and correct after the fact."""


def encode_metadata(said: dict[str, Any]) -> str:
    """What a channel says of :data:`METADATA`, in the one spelling."""
    known = {name: said[name] for name in METADATA if name in said}
    return json.dumps(known, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class PackageRecord:
    """What is known of one Conda package before it is fetched.

    Raises:
        IntegrityError: A field is nothing that a package may have, as a version with a ``/`` in it.

    Attributes:
        name: The package's name, lower case.
        version: The version as the channel writes it.
        build: The build string.
        build_number: The build number.
        subdir: ``linux-64``, ``noarch`` and so on.
        url: Where the package is, without credentials or tokens; ``https:``, ``http:`` or ``file:``.
        sha256: The digest of the package file.
        size: The package file's size in bytes, or None where the channel does not say.
        md5: The package file's MD5 as the channel gives it, or None; never used to verify.
        noarch: ``python``, ``generic`` or None.
        depends: The package's own requirements, as match specs.
        python_site_packages_path: Where this python keeps its packages, relative to the prefix, or None.
        metadata: What the channel says of :data:`METADATA`, as a JSON object in one spelling; empty where
            nobody asked a channel. An installer records what the channel says, not what the package does.
    """

    name: str
    version: str
    build: str
    build_number: int
    subdir: str
    url: str
    sha256: Digest
    size: int | None = None
    md5: str | None = None
    noarch: NoArch | None = None
    depends: tuple[str, ...] = ()
    python_site_packages_path: str | None = None
    metadata: str = ""

    def __post_init__(self) -> None:
        for field, form in FORMS.items():
            value = getattr(self, field)
            if value is not None and not form.fullmatch(value):
                raise IntegrityError(
                    f"the record of {self.name!r:.80} in {self.url!r:.300} has the {field} {value!r:.80}, "
                    "which no package can have",
                    hint="look at the channel: its index is damaged, or an attack on whoever uses it",
                )

    @property
    def may_be_python(self) -> bool:
        """Whether it depends on the environment's python where its files go.

        A channel that leaves ``noarch`` out says it by the folder alone; which kind it is the package tells.
        """
        return self.noarch == "python" or (self.noarch is None and self.subdir == "noarch")

    @property
    def file_name(self) -> str:
        """The package's file name, the last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def channel(self) -> str:
        """The URL of the channel that it is in: the package's without file name and subdir."""
        return self.url.rsplit("/", 2)[0]

    @property
    def identity(self) -> dict[str, str]:
        """What tells this package from every other: the fields that keys are made of."""
        return {
            "name": self.name,
            "version": self.version,
            "build": self.build,
            "subdir": self.subdir,
            "sha256": self.sha256.hex,
        }

    @property
    def said(self) -> dict[str, Any]:
        """What the channel says and an installer records; empty where nobody asked a channel.

        ``noarch`` is not among it: what the package says decides there.
        """
        if not self.metadata:
            return {}
        own = {
            "build_number": self.build_number,
            "depends": list(self.depends),
            "python_site_packages_path": self.python_site_packages_path,
            "subdir": self.subdir,
        }
        said: dict[str, Any] = json.loads(self.metadata)
        return said | {name: value for name, value in own.items() if value is not None}

    @property
    def in_image(self) -> dict[str, str]:
        """What an image holds of it: its files, and in ``conda-meta`` its URL and what the channel says."""
        held = self.identity | {"url": self.url}
        if not self.metadata:
            return held
        text = json.dumps(self.said, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return held | {"said": hashlib.sha256(text.encode()).hexdigest()}

    def __lt__(self, other: PackageRecord) -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[str, ...]:
        return (*self.identity.values(), self.url)

    def __str__(self) -> str:
        return f"{self.name}-{self.version}-{self.build}"


@dataclass(frozen=True, slots=True)
class PipDistribution:
    """What is known of one wheel before it is fetched.

    Attributes:
        name: The PEP 503 name.
        version: The version.
        url: Where the wheel is, without credentials; ``https:``, ``http:`` or ``file:``. In a lock, a
            wheel that is one of the definition's own files has its path from the lock's folder.
        sha256: The digest of the wheel.
        size: The wheel's size in bytes, or None where the index does not say.
        file_name: The wheel's file name.
        direct_url: The URL, without credentials, of what the definition names by its place; None for a wheel
            from an index or a folder of links. That of a file or folder on a machine is ``file:///NAME``.
        built_from: What is there, where it is no wheel: ``folder``, or the sha256 of a source archive.
        requested: Whether the definition asks for it by name, and not only another distribution.
    """

    name: str
    version: str
    url: str
    sha256: Digest
    size: int | None
    file_name: str
    direct_url: str | None = None
    built_from: str | None = None
    requested: bool = False

    @property
    def identity(self) -> dict[str, str | bool | None]:
        """What tells this wheel's files from every other's: the fields that keys are made of."""
        return {
            "name": self.name,
            "version": self.version,
            "sha256": self.sha256.hex,
            "directUrl": self.direct_url,
            **self.told,
        }

    @property
    def told(self) -> dict[str, str | bool]:
        """The part of the identity that is there only where it says something."""
        built = {"builtFrom": self.built_from} if self.built_from is not None else {}
        return {**built, **({"requested": True} if self.requested else {})}

    def __lt__(self, other: PipDistribution) -> bool:
        return (self.name, self.version, self.sha256.hex) < (other.name, other.version, other.sha256.hex)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Lock:
    """One solution for one platform.

    Attributes:
        platform: The platform it was solved for.
        packages: The packages, sorted by name.
    """

    platform: Platform
    packages: tuple[PackageRecord, ...]

    @classmethod
    def of(cls, platform: Platform, packages: list[PackageRecord] | tuple[PackageRecord, ...]) -> Lock:
        """A lock with its packages in the one order."""
        return cls(platform, tuple(sorted(packages)))

    @cached_property
    def by_name(self) -> dict[str, PackageRecord]:
        """The packages by name."""
        return {package.name: package for package in self.packages}

    @property
    def python(self) -> PackageRecord | None:
        """The record of the environment's python, or None."""
        return self.by_name.get("python")

    def key(self, **rest: Any) -> str:
        """The lock key, 64 hex digits: equal for any two definitions whose images are the same.

        Args:
            rest: As :meth:`form` takes it.
        """
        return hashlib.sha256(b"envbuild/lock/v1\x00" + rfc8785.dumps(self.form(**rest))).hexdigest()

    def form(
        self,
        *,
        base: Digest | None,
        steps: str | None,
        variables: dict[str, str],
        layout: int,
        pip: Any = None,
        steps_after: Any = None,
        settings: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """What the lock key is the hash of, as JSON values.

        Args:
            base: The digest of the base's manifest; None for ``scratch``.
            steps: The steps key, or None where there are no steps.
            variables: The user's variables.
            layout: The version of the prefix layout.
            pip: What the pip section adds, as JSON, or None where there is none.
            steps_after: The canonical form of the steps after the environment, as JSON, or None.
            settings: Further members of the definition's form that decide what the image holds.
        """
        return {
            "base": str(base) if base else "scratch",
            "steps": steps,
            "platform": str(self.platform),
            "packages": [package.in_image for package in self.packages],
            "variables": variables,
            "layout": layout,
            "pip": pip,
            "steps_after": steps_after,
            **(settings or {}),
        }
