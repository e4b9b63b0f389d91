"""Records of ``conda-meta`` that channels corrected: what stands in a layer, and what must stand above it.

A layer holds the record that its package's bytes give, whatever channels say of the package later: so it is
shared by all. Where the channel's record is another, the environment's own small layer has the corrected one.
That needs the text of a record whose layer was perhaps made elsewhere: it is kept beside the layer, from the
first time that anybody corrects it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from envbuild.conda.meta import corrections, metadata_of
from envbuild.digest import Descriptor
from envbuild.index import MADE
from envbuild.oci.manifest import OCI_EMPTY, Manifest
from envbuild.oci.referrers import EMPTY
from envbuild.reference import Tag

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from envbuild.build.known import SharedLayers
    from envbuild.build.plan import Unit
    from envbuild.digest import Digest
    from envbuild.index import Index, LayerEntry
    from envbuild.lock import PackageRecord

ARTIFACT_TYPE: Final = "application/vnd.envbuild.record.v1+json"
RECORD_ANNOTATION: Final = "io.envbuild.record"
_MAX_RECORD: Final = 64 << 20
_MAX_REMEMBERED: Final = 256 << 10
"""The longest text that the index remembers, in characters; longer ones are asked for again."""


@dataclass(frozen=True, slots=True)
class Correction:
    """A package whose channel says something else than its layer, or may.

    Attributes:
        record: The package, with what the channel says.
        unit: The packages that share the layer.
        layer: The layer's blob.
    """

    record: PackageRecord
    unit: Unit
    layer: Digest

    @property
    def path(self) -> str:
        """The path of the package's record, relative to the prefix."""
        return path_of(self.record)


def path_of(record: PackageRecord) -> str:
    """The path of a package's record, relative to the prefix."""
    return f"conda-meta/{record}.json"


def own_words(records: Mapping[str, bytes]) -> str:
    """What packages say of themselves, as an index entry holds it.

    Args:
        records: The records in a layer, by path.
    """
    words = {path: metadata_of(json.loads(content)) for path, content in sorted(records.items())}
    return json.dumps(words, separators=(",", ":")) if words else ""


def corrections_of(unit: Unit, entry: LayerEntry) -> tuple[Correction, ...]:
    """The packages of a layer that must be corrected, or of which nobody knows what they say."""
    words = _words(entry.records)
    return tuple(
        Correction(record, unit, entry.descriptor.digest)
        for record in unit.records
        if record.metadata and ((own := words.get(path_of(record))) is None or corrections(own, record))
    )


def _words(text: str) -> dict[str, dict[str, Any]]:
    try:
        words = json.loads(text or "{}")
        return {path: own for path, own in words.items() if isinstance(own, dict)}
    except (ValueError, AttributeError, RecursionError):
        return {}


@dataclass(frozen=True)
class RecordStore:
    """The records in layers: in memory, in the index, and shared beside the layers.

    Attributes:
        index: Remembers the small ones.
        shared: Where others find them, and we theirs.
        later: Does what nobody waits for yet.
    """

    index: Index
    shared: SharedLayers
    later: Callable[[Callable[[], None]], object]
    _held: dict[str, bytes] = field(default_factory=dict)

    def keep(self, layer: Digest, records: Mapping[str, bytes], wanted: tuple[Correction, ...]) -> None:
        """Keep those records of a layer that was just made which must be corrected."""
        for each in wanted:
            if (content := records.get(each.path)) is not None:
                self._held[_name(layer, each.path)] = content

    def text(self, correction: Correction, remade: Callable[[Unit], Mapping[str, bytes]]) -> bytes:
        """A record as it stands in its layer.

        Args:
            correction: The package.
            remade: Makes the records of a layer of its packages again, where nobody has kept them.
        """
        name = _name(correction.layer, correction.path)
        if (content := self._held.get(name)) is not None:
            self._share(name, content)
            return content
        text, _, voucher = (self.index.fact(f"record {name}") or "").partition(" ")
        if text and self.shared.may_use(voucher) and (content := _read(text, correction)) is not None:
            return content
        found = self.shared.note(Tag(f"m-{name}"), RECORD_ANNOTATION, _artifact)
        if found is not None and (content := _read(found[0], correction)) is not None:
            self._remember(name, *found)
            return content
        content = remade(correction.unit)[correction.path]
        self._held[name] = content
        self._share(name, content)
        return content

    def _share(self, name: str, content: bytes) -> None:
        import zstandard

        text = base64.b64encode(zstandard.ZstdCompressor(9).compress(content)).decode()
        if self.index.fact(f"record {name}") == f"{text} {MADE}":
            return
        self._remember(name, text, MADE)
        self.later(partial(self.shared.put, _artifact(text), Tag(f"m-{name}")))

    def _remember(self, name: str, text: str, voucher: str) -> None:
        if len(text) <= _MAX_REMEMBERED:
            self.index.put_fact(f"record {name}", f"{text} {voucher}")


def _artifact(text: str) -> Manifest:
    """A record as it is kept beside the layers; equal ones give equal bytes."""
    empty = Descriptor.of(EMPTY, OCI_EMPTY)
    return Manifest.build(empty, (empty,), {RECORD_ANNOTATION: text}, artifact_type=ARTIFACT_TYPE)


def _name(layer: Digest, path: str) -> str:
    return hashlib.sha256(f"envbuild/record/v1\n{layer}\n{path}".encode()).hexdigest()


def _read(text: str, correction: Correction) -> bytes | None:
    """A record from what was kept of it; None if it is not that of the package."""
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(base64.b64decode(text, validate=True)) as stream:
            content: bytes = stream.read(_MAX_RECORD + 1)
        document = json.loads(content)
        seen = tuple(document[name] for name in ("url", "sha256"))
    except (zstandard.ZstdError, binascii.Error, ValueError, KeyError, TypeError, RecursionError):
        return None
    record = correction.record
    return content if seen == (record.url, record.sha256.hex) and len(content) <= _MAX_RECORD else None
