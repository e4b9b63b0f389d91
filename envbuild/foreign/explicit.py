"""``@EXPLICIT`` lists: URLs of packages, each with its MD5 or sha256 behind a ``#``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from envbuild.errors import SpecError
from envbuild.foreign.solved import at_url, section, subdir_of
from envbuild.platform import LINUX_AMD64, Platform
from envbuild.spec.document import Mark, fail

if TYPE_CHECKING:
    from envbuild.spec.conda import CondaSection

_HINT: Final = "write it with `conda list --explicit --md5`"
_PLATFORM: Final = re.compile(r"#\s*platform:\s*(\S+)")
_PIP: Final = re.compile(r"#\s*pip\s+(\S+)\s+@\s")


def read(content: bytes, source: str, wanted: Platform | None) -> tuple[CondaSection, Platform]:
    """The packages of a list, and the platform that it is for.

    Raises:
        SpecError: A line is no package's URL with its digest; or the list names Python distributions, mixes
            platforms, or is for another one.
    """
    specs, subdirs, said = [], set(), None
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        stripped, mark = line.strip(), Mark(source, number, 1)
        if stripped.startswith("#"):
            said = said or _PLATFORM.fullmatch(stripped)
            if pip := _PIP.match(stripped):  # conda-lock installs what stands in these comments
                fail(
                    mark,
                    f"the list has packages from Python indexes, as {pip[1]}: only Conda's are read",
                    "name the definition that it was made from",
                )
            continue
        if not stripped or stripped == "@EXPLICIT":
            continue
        url, _, digest = stripped.partition("#")
        digest = digest.removeprefix("sha256:")
        specs.append(at_url(url, "md5" if len(digest) == 32 else "sha256", digest, mark, _HINT))
        subdirs.add(subdir_of(url))
    return section(specs), _platform(subdirs - {"noarch"}, said[1] if said else None, wanted, source)


def _platform(subdirs: set[str], said: str | None, wanted: Platform | None, source: str) -> Platform:
    if len(subdirs) > 1:
        raise SpecError(f"the list mixes {', '.join(sorted(subdirs))}", source=source)
    subdir = subdirs.pop() if subdirs else said if said != "noarch" else None
    found = Platform.parse(subdir) if subdir is not None else wanted or LINUX_AMD64
    if wanted is not None and wanted != found:
        raise SpecError(f"the list is for {found}, and {wanted} is asked for", source=source)
    return found
