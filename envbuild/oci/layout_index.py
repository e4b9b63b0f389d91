"""``index.json`` and ``oci-layout`` of an OCI image layout, as values.

Source: OCI Image Specification 1.1, "Image Layout" and "Pre-Defined Annotation Keys".
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from envbuild.errors import IntegrityError, StorageError
from envbuild.oci.manifest import OCI_INDEX, encode
from envbuild.storage import TEMPORARY

if TYPE_CHECKING:
    from pathlib import Path

    from envbuild.reference import Tag

REF_NAME: Final = "org.opencontainers.image.ref.name"
LAYOUT_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"
VERSION: Final = "1.0.0"
MARKER: Final = encode({"imageLayoutVersion": VERSION})
MAX_INDEX: Final = 256 << 20
"""The largest ``index.json`` that is read, in bytes: about a million tags."""


@dataclass(frozen=True, slots=True)
class LayoutIndex:
    """What ``index.json`` says. Most callers want :meth:`parse`.

    Attributes:
        document: The whole document with every field that other tools wrote; never changed in place.
        named: The entry of each name; of several entries with one name the first counts, as elsewhere.
        texts: The entries as JSON, where they were written before: most stay as they are.
    """

    document: dict[str, Any]
    named: dict[str, dict[str, Any]]
    texts: tuple[str, ...] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, document: dict[str, Any]) -> LayoutIndex:
        """The index that a document describes."""
        named: dict[str, dict[str, Any]] = {}
        for entry in document["manifests"]:
            if (name := ref_name(entry)) is not None:
                named.setdefault(name, entry)
        return cls(document, named)

    @classmethod
    def parse(cls, raw: bytes, what: str) -> LayoutIndex:
        """Parse ``index.json``.

        Raises:
            IntegrityError: It is too long or not what the specification says.
        """
        if len(raw) > MAX_INDEX:
            raise IntegrityError(f"{what} has more than {MAX_INDEX} bytes")
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError) as error:
            hint = "another tool may be writing it at this moment; else restore it or make the layout again"
            raise IntegrityError(f"{what} is not JSON: {error}", hint=hint, retryable=True) from None
        if not isinstance(document, dict):
            raise IntegrityError(f"{what} is not a JSON object")
        entries = document.get("manifests")
        entries = [] if entries is None else entries  # Go writes an empty list as null
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise IntegrityError(f"{what} has something other than a list of descriptors under 'manifests'")
        return cls.of({**document, "manifests": entries})

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The descriptors, as JSON."""
        entries: list[dict[str, Any]] = self.document["manifests"]
        return entries

    def get(self, tag: Tag) -> dict[str, Any] | None:
        """The tag's entry; a lone image without a name is what other tools take for ``latest``."""
        if tag.name == "latest" and len(self.entries) == 1 and ref_name(self.entries[0]) is None:
            return self.entries[0]
        return self.named.get(tag.name)

    def holding(self, entries: list[dict[str, Any]]) -> LayoutIndex:
        """The same document with other entries."""
        return LayoutIndex.of({**self.document, "manifests": entries})

    def naming(self, new: dict[str, dict[str, Any]]) -> LayoutIndex:
        """The same document with an entry for each of some names, and no other for them."""
        entries, texts = self.entries, self._texts()
        if not new.keys().isdisjoint(self.named):
            kept = [number for number, entry in enumerate(entries) if ref_name(entry) not in new]
            entries, texts = [entries[number] for number in kept], tuple(texts[number] for number in kept)
        named = {**self.named, **new}
        document = {**self.document, "manifests": [*entries, *new.values()]}
        return replace(self, document=document, named=named, texts=(*texts, *map(_text, new.values())))

    def to_json(self) -> bytes:
        """The bytes of ``index.json``, in ASCII: whatever other tools wrote can be written again."""
        entries = ",".join(self._texts())
        fields = (
            f"{_text(name)}:{f'[{entries}]' if name == 'manifests' else _text(value)}"
            for name, value in self.document.items()
        )
        return f"{{{','.join(fields)}}}".encode()

    def _texts(self) -> tuple[str, ...]:
        return self.texts if self.texts is not None else tuple(map(_text, self.entries))


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


NO_TAGS: Final = LayoutIndex.of({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})


def ref_name(entry: dict[str, Any]) -> str | None:
    """The name that an entry of ``index.json`` bears, or None."""
    annotations = entry.get("annotations")
    name = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
    return name if isinstance(name, str) else None


def is_layout(folder: Path) -> bool:
    """Whether a folder is an image layout; False where it is missing or empty, so that it can become one.

    Raises:
        StorageError: It is something else, or a layout of another version.
        OSError: It cannot be read.
    """
    try:
        raw = (folder / LAYOUT_FILE).read_bytes()[:4096]
    except FileNotFoundError:
        return _is_not_yet(folder)
    except NotADirectoryError:
        raise StorageError(f"{folder} is not a folder, expected an OCI image layout") from None
    try:
        version = json.loads(raw).get("imageLayoutVersion")
    except (ValueError, AttributeError, RecursionError):
        version = None
    if version != VERSION:
        raise StorageError(f"{folder / LAYOUT_FILE} gives version {version!r}, expected {VERSION!r}")
    return True


def _is_not_yet(folder: Path) -> bool:
    try:
        names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(TEMPORARY)}
    except FileNotFoundError:
        return False
    if LAYOUT_FILE in names:  # another process has just made it
        return True
    if names - {"lost+found"}:
        raise StorageError(
            f"{folder} holds {min(names)!r} but no {LAYOUT_FILE!r}: it is not an OCI image layout",
            hint="give an empty or a new folder, or one that another tool wrote as a layout",
        )
    return False
