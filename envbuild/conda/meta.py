"""What an installation adds to a package's own files: its record in ``conda-meta`` and its entry points.

The forms are those of rattler 0.28, which Conda and pixi read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from envbuild.conda.paths import PathType
from envbuild.conda.relocate import long_shebang
from envbuild.lock import METADATA

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from envbuild.conda.paths import EntryPoint, PathEntry
    from envbuild.lock import PackageRecord

_ENTRY_POINT: Final = "unix_python_entry_point"
_MODULE: Final = "pyc_file"
_MAX_SHEBANG: Final = 127
_INDEX_FIELDS: Final = (
    "arch", "build", "build_number", "constrains", "depends", "extra_depends", "features", "license",
    "license_family", "name", "noarch", "platform", "purls", "python_site_packages_path", "subdir",
    "timestamp", "track_features", "version",
)  # fmt: skip


@dataclass(slots=True)
class PathRecord:
    """What ``conda-meta`` says of one installed path; filled in while the path is written.

    Attributes:
        place: The path relative to the prefix.
        path_type: How it was installed.
        entry: What the package says of it, or None for a generated file.
        computed: The digest of what was installed, where it was computed.
        size: The size of what was installed.
        patched: Whether the prefix was replaced in it.
        original: Where it would be if no other package had a file there; None where it is there.
    """

    place: str
    path_type: str
    entry: PathEntry | None = None
    computed: str | None = None
    size: int = 0
    patched: bool = False
    original: str | None = None

    @classmethod
    def of_script(cls, place: str, script: bytes) -> PathRecord:
        """The record of an entry point's script."""
        return cls(place, _ENTRY_POINT, None, hashlib.sha256(script).hexdigest(), len(script))

    @classmethod
    def of_module(cls, place: str, content: bytes) -> PathRecord:
        """The record of a compiled module."""
        return cls(place, _MODULE, None, hashlib.sha256(content).hexdigest(), len(content))

    def hashed(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks, their digest taken as they pass."""
        sha256 = hashlib.sha256()
        for chunk in chunks:
            sha256.update(chunk)
            yield chunk
        self.computed = sha256.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The entry in ``paths_data``."""
        document: dict[str, Any] = {"_path": self.place, "path_type": self.path_type}
        if self.original is not None:
            document["original_path"] = self.original
        entry = self.entry
        if entry is None:
            return document | {"sha256": self.computed, "size_in_bytes": self.size}
        listed = None if self.patched else entry.size
        document["size_in_bytes"] = self.size if listed is None else listed
        if entry.sha256 is not None:
            document["sha256"] = entry.sha256
        if self.computed is not None and self.computed != entry.sha256:
            document["sha256_in_prefix"] = self.computed
        if entry.no_link:
            document["no_link"] = True
        if entry.placeholder is not None:
            document["prefix_placeholder"] = entry.placeholder
        if self.patched:
            document["file_mode"] = str(entry.file_mode)
        return document


def record_of(entry: PathEntry, place: str) -> PathRecord:
    """A record to be filled in of a path that a package lists."""
    return PathRecord(place, str(entry.path_type or PathType.HARDLINK), entry)


def prefix_record(index: dict[str, Any], record: PackageRecord, paths: list[PathRecord]) -> bytes:
    """The file ``conda-meta/NAME-VERSION-BUILD.json``.

    It holds nothing but what the package's bytes, its URL and its installed paths say. The MD5 is not in
    every lock; what the channel says otherwise may change, and stands above it (:func:`corrected`).

    Args:
        index: The package's ``info/index.json``.
        record: The package's URL, digest and size.
        paths: What was installed.
    """
    channel, _, _ = record.url.rpartition("/")
    channel, _, subdir = channel.rpartition("/")
    paths = sorted(paths, key=lambda path: path.place.split("/"))
    document = {name: index[name] for name in _INDEX_FIELDS if index.get(name) is not None}
    if document.get("noarch") is False or document.get("noarch") == "":
        del document["noarch"]
    document = {"build_number": 0, "depends": [], "subdir": subdir} | document
    document |= {
        "channel": f"{channel}/",
        "url": record.url,
        "fn": record.file_name,
        "sha256": record.sha256.hex,
        "files": [path.place for path in paths],
        "paths_data": {"paths_version": 1, "paths": [path.to_json() for path in paths]},
    }
    return _encoded(document)


TAKEN_BACK: Final = frozenset({"constrains", "depends", "extra_depends", "features", "track_features"})
"""What a channel takes back by leaving it out; for all else the package's own stands then, as for Conda."""

_SAID: Final = (*METADATA, "build_number", "depends", "python_site_packages_path", "subdir")


def metadata_of(document: dict[str, Any]) -> dict[str, Any]:
    """What a record says, in the spelling in which records are compared; nothing of what is empty."""
    found = {}
    for name in _SAID:
        value = document.get(name)
        if name in {"features", "track_features"} and isinstance(value, list):
            value = " ".join(map(str, value))
        if value not in (None, "", [], {}):
            found[name] = value
    return found


def corrections(own: dict[str, Any], record: PackageRecord) -> dict[str, Any]:
    """What the channel says otherwise than the package; None for what it takes back.

    Args:
        own: What the package says, as :func:`metadata_of` gives it.
        record: What the channel says; if nobody asked it, nothing is corrected.
    """
    if not record.metadata:
        return {}
    said = metadata_of(record.said)
    asked = [name for name in _SAID if name in said or name in TAKEN_BACK]
    return {name: said.get(name) for name in asked if own.get(name) != said.get(name)}


def corrected(content: bytes, record: PackageRecord) -> bytes:
    """A record of ``conda-meta`` as the channel has it; the same bytes where they say the same.

    Args:
        content: The record that :func:`prefix_record` made.
        record: What the channel says.
    """
    document = json.loads(content)
    changed = corrections(metadata_of(document), record)
    if not changed:
        return content
    for name, value in changed.items():
        if value is not None:
            document[name] = value
        else:
            document.pop(name, None)
    return _encoded({"depends": []} | document)


def _encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def entry_point_script(point: EntryPoint, prefix: str, python: str) -> bytes:
    """The script that an entry point is installed as.

    Args:
        point: The entry point.
        prefix: The prefix in the image.
        python: ``MAJOR.MINOR`` of the environment's python.
    """
    executable = f"{prefix}/bin/python{python}"
    too_long = len(executable) > _MAX_SHEBANG - 2
    imported = point.function.partition(".")[0]
    lines = (
        long_shebang(executable, "") if too_long else f"#!{executable}",
        "# -*- coding: utf-8 -*-",
        "import re",
        "import sys",
        "",
        f"from {point.module} import {imported}",
        "",
        "if __name__ == '__main__':",
        "\tsys.argv[0] = re.sub(r'(-script\\.pyw?|\\.exe)?$', '', sys.argv[0])",
        f"\tsys.exit({point.function}())",
        "",
    )
    return "\n".join(lines).encode()
