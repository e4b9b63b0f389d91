"""Virtual packages: what a definition says of the machines that will run the image.

What is not given is not guessed from the machine that builds: the base's own glibc counts, there is no CUDA,
and the processor is any one of the platform.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, Self

from envbuild.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.platform import Platform

_VERSION: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6}){0,3}")
_PROCESSOR: Final = re.compile(r"[a-z][a-z0-9_]{1,31}")
_FAMILIES: Final = {
    "amd64": "x86_64",
    "arm64": "aarch64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}
_LINUX: Final = "4.18"
"""The kernel that containers are solved for: the oldest that supported distributions run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualPackages:
    """Versions of virtual packages in their canonical spelling; None where nothing is said.

    Attributes:
        archspec: The oldest microarchitecture of the machines' processors, as ``x86_64_v3``.
        cuda: The CUDA version of the machines' drivers, as ``12.4``.
        cuda_arch: The least compute capability of the machines' devices, as ``8.6``.
        glibc: The version of glibc to choose packages for, as ``2.36``.
    """

    archspec: str | None = None
    cuda: str | None = None
    cuda_arch: str | None = None
    glibc: str | None = None

    @classmethod
    def of(cls, written: Mapping[str, str | None]) -> Self:
        """Those of names and versions as a person writes them.

        Raises:
            SpecError: A name is not known, or a version is not of its form.
        """
        return cls(**{name: spelled(name, text) for name, text in written.items() if text is not None})

    def over(self, others: VirtualPackages) -> VirtualPackages:
        """These, and what others say where these say nothing."""
        return VirtualPackages(**(others.canonical() | self.canonical()))

    def canonical(self) -> dict[str, str]:
        """What is given, for the key: names and versions."""
        given = {name: getattr(self, name) for name in NAMES}
        return {name: version for name, version in given.items() if version is not None}

    def check(self, platforms: tuple[Platform, ...]) -> None:
        """Refuse a processor that cannot be that of the platforms.

        Raises:
            SpecError: It is of another family, or there are several platforms.
        """
        if self.archspec is None:
            return
        named = {each.architecture: _FAMILIES[each.architecture] for each in platforms}
        others = [family for family in _FAMILIES.values() if family not in named.values()]
        if len(named) > 1 or self.archspec.startswith(tuple(others)):
            raise SpecError(
                f"archspec is {self.archspec}, and the image is for {', '.join(map(str, platforms))}",
                hint="name one platform, and a processor of it",
            )

    def packages(self, platform: Platform) -> tuple[tuple[str, str, str], ...]:
        """Name, version and build of each virtual package of a platform, as the solver knows them."""
        found = [
            ("__unix", "0", "0"),
            ("__linux", _LINUX, "0"),
            ("__archspec", "1", self.archspec or _FAMILIES[platform.architecture]),
        ]
        rest = {"__glibc": self.glibc, "__cuda": self.cuda, "__cuda_arch": self.cuda_arch}
        return (*found, *((name, version, "0") for name, version in rest.items() if version is not None))


NOTHING_SAID: Final = VirtualPackages()
NAMES: Final = tuple(field.name for field in fields(VirtualPackages))


def spelled(name: str, text: str) -> str:
    """The one spelling of a virtual package's version.

    Raises:
        SpecError: The name is not known, or the text is not of the form that it has.
    """
    if name not in NAMES:
        raise SpecError(
            f"{name!r} is not a virtual package that can be given", hint=f"known: {', '.join(NAMES)}"
        )
    if name == "archspec":
        if not _PROCESSOR.fullmatch(text):
            raise SpecError(
                f"archspec is {text!r}, expected the name of a microarchitecture",
                hint="write it as archspec has it: x86_64_v3, zen3, neoverse_v1",
            )
        return text
    if not _VERSION.fullmatch(text):
        raise SpecError(f"{name} is {text!r}, expected a version", hint=f"write it as {_EXAMPLES[name]}")
    from envbuild.spec.version import Version

    version = str(Version.parse(text).stripped())
    return version if name != "glibc" or "." in version else f"{version}.0"


_EXAMPLES: Final = {"cuda": "12.4", "cuda_arch": "8.6", "glibc": "2.36"}
