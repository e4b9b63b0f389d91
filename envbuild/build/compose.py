"""Package layers: those that are known are taken over, the others are fetched and made, all at once."""

from __future__ import annotations

import contextlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import IO, TYPE_CHECKING, Final, cast

from envbuild.build.assemble import Layer
from envbuild.build.conflicts import conflicts
from envbuild.build.plan import Unit, join
from envbuild.build.records import RecordStore, corrections_of, own_words, path_of
from envbuild.build.scripts import has_script
from envbuild.build.seen import Seen, activation_files, clobbers_in, json_in
from envbuild.build.upload import in_parallel, rewound
from envbuild.conda.clobber import clobbers, lost_paths
from envbuild.conda.fetch import Connections, fetch_package
from envbuild.conda.layer import PathHashes, layer_key, write_layer
from envbuild.conda.link import LinkedFile, footprint, link
from envbuild.conda.meta import corrected
from envbuild.conda.order import installation_order
from envbuild.conda.package import Package
from envbuild.conda.tar import CHUNK, parents
from envbuild.errors import BuildError
from envbuild.index import MADE, LayerEntry
from envbuild.progress import Event, Meter, Metered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from envbuild.build.known import SharedLayers
    from envbuild.build.records import Correction
    from envbuild.build.upload import Upload
    from envbuild.conda.clobber import Clobber
    from envbuild.conda.layer import Compression
    from envbuild.conda.link import LinkTarget
    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor
    from envbuild.index import Index
    from envbuild.lock import Lock, PackageRecord
    from envbuild.oci.registries import Registries
    from envbuild.progress import Progress

HUGE: Final = 24 << 20
"""From this download size on a layer is compressed on all cores."""

SPOOL_BYTES: Final = 8 << 20
"""A layer up to this size is kept in memory between being made and being sent."""


class Entangled(Exception):  # noqa: N818 - never leaves a composer
    """Packages that share a layer for want of room carry one path."""

    def __init__(self, unit: Unit) -> None:
        super().__init__(unit.title)
        self.unit = unit


def _entangled(key: str) -> str:
    return f"entangled {key}"


@dataclass(frozen=True, slots=True)
class Composition:
    """The package layers of an environment, lowest first.

    Attributes:
        layers: The layers.
        made: How many of them were made.
        reused: How many were known.
        scripted: The names of the packages that have a post-link script.
        activation: The text of the files that take part in activation, by path; None for one without text.
        contents: The packages of each layer, and the paths in it.
        corrections: The packages of which the channel says something else than their layers, or may.
    """

    layers: tuple[Layer, ...]
    made: int
    reused: int
    scripted: frozenset[str] = frozenset()
    activation: dict[str, str | None] = field(default_factory=dict, hash=False)
    contents: tuple[tuple[tuple[PackageRecord, ...], PathHashes], ...] = ()
    corrections: tuple[Correction, ...] = ()


@dataclass(frozen=True)
class Composer:
    """Makes package layers and has them in the target repository.

    Attributes:
        upload: The blobs of this build.
        index: Knows layers that were made before.
        shared: Knows layers that others made.
        registries: Where those may be taken from.
        target: What packages are linked for.
        compression: How new layers are compressed.
        urls: For each package's URL the URLs to fetch it from, in order.
        spool: The folder for layers on their way; nothing in it has a name.
        jobs: How many layers are made at once.
        deadline: When to give up.
        progress: Told of each layer.
        connections: What packages are fetched through.
    """

    upload: Upload
    index: Index
    shared: SharedLayers
    registries: Registries
    target: LinkTarget
    compression: Compression
    urls: dict[str, tuple[str, ...]] = field(repr=False)
    spool: Path
    jobs: int
    deadline: Deadline
    progress: Progress
    connections: Connections = field(default_factory=Connections, compare=False)
    _held: dict[str, bytes] = field(default_factory=dict, compare=False)

    def compose(self, units: tuple[Unit, ...]) -> Composition:
        """Have every unit's layer in the target, or, if it is known, where the upload can bring it from.

        Packages that carry the same path, or a file where another has a folder, are linked together in one
        layer: no order of layers on top of each other would give what an installer gives.

        Raises:
            BuildError: A package cannot be fetched or linked.
        """
        made: set[Unit] = set()
        units = self._joined(units)
        while True:
            try:
                entries = self._entries(units, made)
            except Entangled as error:
                self.index.put_fact(_entangled(self._key(error.unit)), "yes")
                units = self._joined(units)
                continue
            together = conflicts(
                {unit: PathHashes(entries[unit].files, entries[unit].folders) for unit in units}
            )
            if not together:
                break
            names = [
                frozenset(record.name for unit in group for record in unit.records) for group in together
            ]
            units = join(units, names)
        layers = tuple(Layer(entries[unit].descriptor, entries[unit].diff_id, unit.title) for unit in units)
        new = sum(unit in made for unit in units)
        scripted = frozenset(
            record.name
            for unit in units
            for record in unit.records
            if has_script(record.name, entries[unit].files)
        )
        activation: dict[str, str | None] = {}
        for unit in units:
            activation |= activation_files(json_in(entries[unit].activation, "{}"))
        contents = tuple(
            (unit.records, PathHashes(entries[unit].files, entries[unit].folders)) for unit in units
        )
        for unit in units:
            self.tell_clobbers(clobbers_in(json_in(entries[unit].clobbers, "[]")))
        corrections = tuple(each for unit in units for each in corrections_of(unit, entries[unit]))
        return Composition(layers, new, len(units) - new, scripted, activation, contents, corrections)

    def tell_clobbers(self, found: Iterable[Clobber]) -> None:
        """Tell of packages that carry one path."""
        for each in found:
            self.progress(Event("layer", each.loser, "output", text=f"warning: {each}"))

    def _joined(self, units: tuple[Unit, ...]) -> tuple[Unit, ...]:
        """The plan with those units in order of installation that were found to need it."""
        several = [unit for unit in units if len(unit.records) > 1 and not unit.joined]
        found = [unit for unit in several if self.index.fact(_entangled(self._key(unit))) is not None]
        return join(units, [frozenset(record.name for record in unit.records) for unit in found])

    def _key(self, unit: Unit) -> str:
        return unit.key(lambda record: layer_key(record, self.target, self.compression))

    def _entries(self, units: tuple[Unit, ...], made: set[Unit]) -> dict[Unit, LayerEntry]:
        keys = {unit: self._key(unit) for unit in units}
        known = self.shared.held(self.index, keys.values())
        shared = self.shared.find(key for key in keys.values() if key not in known)
        self.index.put_layers(shared)
        known |= shared
        self._tell_plan(keys, known)

        def entry(unit: Unit) -> LayerEntry:
            self.deadline.check(f"making the layer of {unit.title}")
            key = keys[unit]
            if (found := known.get(key)) is None:
                made.add(unit)
                return self._made(unit, key)
            self._expect(unit, key, found)
            self.progress(Event("layer", unit.title, "reused", found.descriptor.size, unit.size))
            return found

        return dict(zip(units, in_parallel(self.jobs, entry, units, deadline=self.deadline), strict=True))

    def _tell_plan(self, keys: dict[Unit, str], known: dict[str, LayerEntry]) -> None:
        here = {unit: known[key] for unit, key in keys.items() if key in known}
        spared, fetched = (
            sum(unit.size for unit in keys if (unit in here) is reused) for reused in (True, False)
        )
        self.progress(Event("plan", "layers", "done", len(here), len(keys)))
        layers = sum(each.descriptor.size for each in here.values())
        self.progress(Event("plan", "reused", "done", layers, spared))
        self.progress(Event("plan", "packages", "start", 0, fetched))

    def _made(self, unit: Unit, key: str) -> LayerEntry:
        """A layer that is made, kept in mind and shared."""
        entry = replace(self._make(unit), voucher=MADE)
        self.index.put_layers({key: entry})
        self.upload.later(partial(self.shared.share, key, entry))
        return entry

    def _expect(self, unit: Unit, key: str, entry: LayerEntry) -> None:
        """A known layer is thought to be in the target; else it comes from where it was seen, or is made."""
        here = self.upload.target.repository
        places = dict.fromkeys((entry.repository, self.shared.own))
        sources = tuple(self.registries.open(place).by(self.deadline) for place in places if place != here)

        def arrived() -> None:
            self.index.put_layers({key: replace(entry, repository=here)})
            if entry.repository != self.shared.own:
                self.shared.share(key, replace(entry, repository=here))

        def make() -> Descriptor:
            return self._made(unit, key).descriptor

        self.upload.expect(entry.descriptor, sources, unit.title, make=make, arrived=arrived)

    def history(self, lock: Lock, corrections: tuple[Correction, ...] = ()) -> Layer:
        """The layer that makes the prefix an environment for Conda: what was installed, as channels have it.

        Args:
            lock: The packages.
            corrections: Those of which the channel says something else than their layers, or may.
        """
        records = in_parallel(self.jobs, self._corrected, corrections) if corrections else []
        files = sorted((file for file in records if file is not None), key=lambda file: file.path)
        return self.layer("history", [*files, _history(lock)])

    def _corrected(self, correction: Correction) -> LinkedFile | None:
        """A record as the channel has it; None where the package says the same."""
        own = self._records.text(correction, self._records_of)
        content = corrected(own, correction.record)
        return None if content == own else LinkedFile.record(correction.path, content)

    @property
    def _records(self) -> RecordStore:
        return RecordStore(self.index, self.shared, self.upload.later, self._held)

    def _records_of(self, unit: Unit) -> dict[str, bytes]:
        """The records of a unit's packages, which are fetched for them."""
        seen = Seen()
        with contextlib.ExitStack() as stack:
            for file in seen.watch(self._linked(unit, self._opened(unit, stack), seen)):
                del file
        return seen.records

    def layer(self, title: str, files: Iterable[LinkedFile]) -> Layer:
        """A small layer that is made anew each time."""
        entry = self._write(title, files)
        return Layer(entry.descriptor, entry.diff_id, title)

    def archive(
        self,
        lock: Lock,
        out: IO[bytes],
        *,
        above: Iterable[LinkedFile] = (),
        removed: frozenset[str] = frozenset(),
    ) -> Composition:
        """Write the whole environment, its history included, as one layer that nobody keeps.

        Args:
            lock: The packages.
            out: Where it is written to.
            above: Files that come after those of the packages, and stay where both have a path.
            removed: Paths of files that packages bring and that shall not be there.

        Returns:
            What is known of it; it has no layers.
        """
        from envbuild.pip.installed import without

        unit = Unit(installation_order(lock.packages), joined=True)
        seen = Seen()
        self.progress(Event("layer", unit.title, "start", 0, unit.size))
        with contextlib.ExitStack() as stack:
            packages = self._opened(unit, stack)
            files = without(
                _as_channels_have_it(seen.watch(self._linked(unit, packages, seen)), unit), removed
            )
            files = _with_above(files, above)
            history = [_history(lock)] if lock.packages else []
            written = write_layer(
                chain(files, history),
                out,
                self.compression,
                prefix=self.target.prefix,
                pool=stack.enter_context(_threads()),
            )
        self.progress(Event("layer", unit.title, "done", written.descriptor.size, unit.size))
        names = (record.name for record in lock.packages)
        scripted = frozenset(name for name in names if has_script(name, written.path_hashes.files))
        self.tell_clobbers(seen.clobbers)
        return Composition((), 1, 0, scripted, seen.activation)

    def _make(self, unit: Unit) -> LayerEntry:
        self.progress(Event("layer", unit.title, "start", 0, unit.size))
        seen = Seen()
        with contextlib.ExitStack() as stack:
            packages = self._opened(unit, stack)
            pool = stack.enter_context(_threads()) if unit.size >= HUGE else None
            files = seen.watch(self._linked(unit, packages, seen))
            entry = self._write(unit.title, files, pool)
        entry = replace(
            entry,
            activation=seen.activation_text,
            records=own_words(seen.records),
            clobbers=seen.clobbers_text,
        )
        self._records.keep(entry.descriptor.digest, seen.records, corrections_of(unit, entry))
        self.progress(Event("layer", unit.title, "done", entry.descriptor.size, unit.size))
        return entry

    def _opened(self, unit: Unit, stack: contextlib.ExitStack) -> list[tuple[Package, PackageRecord]]:
        packages = []
        linked = Meter(self.progress, "layer", unit.title, unit.size)
        for record in unit.records:
            source = stack.enter_context(Metered(self._fetched(record), linked))
            packages.append((Package.open(cast("IO[bytes]", source), str(record), self.deadline), record))
        return packages

    def _fetched(self, record: PackageRecord) -> IO[bytes]:
        """A package's bytes, verified."""
        name, size = str(record), record.size or 0
        urls = self.urls.get(record.url, (record.url,))
        self.progress(Event("fetch", name, "start", 0, size))
        source = fetch_package(
            record,
            urls=urls,
            deadline=self.deadline,
            connections=self.connections,
            seen=Meter(self.progress, "fetch", name, size),
            folder=self.spool,
        )
        self.progress(Event("fetch", name, "done", size, size))
        return source

    def _linked(
        self, unit: Unit, packages: list[tuple[Package, PackageRecord]], seen: Seen
    ) -> Iterator[LinkedFile]:
        """The files of several packages; which of them carry one path is kept in mind.

        Raises:
            Entangled: Two of them carry one path, and the unit's order does not say whose stays.
        """
        footprints = [footprint(package, record, self.target) for package, record in packages]
        lost = lost_paths(footprints)
        if any(lost) and not unit.joined:
            raise Entangled(unit)
        seen.clobbers = clobbers(footprints, lost)
        for (package, record), paths in zip(packages, lost, strict=True):
            for file in link(package, record, self.target, lost=paths):
                self.deadline.check(f"making the layer of {unit.title}")
                yield self._in_time(file) if file.size > CHUNK else file

    def _in_time(self, file: LinkedFile) -> LinkedFile:
        """The same file, whose content ends with the time."""

        def chunks() -> Iterator[bytes]:
            for chunk in file.chunks:
                self.deadline.check(f"packing {file.path}")
                yield chunk

        return replace(file, chunks=chunks())

    def _write(
        self, title: str, files: Iterable[LinkedFile], pool: ThreadPoolExecutor | None = None
    ) -> LayerEntry:
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(self.spool)) as file:
            written = write_layer(files, file, self.compression, prefix=self.target.prefix, pool=pool)
            size = written.descriptor.size

            def content() -> IO[bytes]:
                sent = Meter(self.progress, "push", title, size)
                return cast("IO[bytes]", Metered(rewound(file), sent))

            self.upload.put(written.descriptor, content, title)
        hashes = written.path_hashes
        here = self.upload.target.repository
        return LayerEntry(written.descriptor, written.diff_id, hashes.files, hashes.folders, here)


def takes_folder(owner: str, path: str, below: str) -> BuildError:
    """The error where a file would take the place of a folder and of all in it, as no installer does."""
    where = f"the file {path!r}, which" if path else "a file where there"
    return BuildError(
        f"{owner} has {where} is a folder of {below}",
        hint="exclude one of the two, or choose another version of it",
    )


def _with_above(below: Iterable[LinkedFile], above: Iterable[LinkedFile]) -> Iterator[LinkedFile]:
    """The files of packages, then those above them.

    Raises:
        BuildError: One of these would take the place of a folder.
    """
    folders: dict[str, str] = {}
    for file in below:
        folders.update(dict.fromkeys(parents(file.path), file.owner))
        yield file
    for file in above:
        if file.path in folders:
            raise takes_folder(file.owner, file.path, folders[file.path])
        yield file


def _history(lock: Lock) -> LinkedFile:
    lines = ["==> 1980-01-01 00:00:00 <==", "# cmd: envbuild"]
    lines += [f"+{package.url.rpartition('/')[0]}::{package}" for package in lock.packages]
    return LinkedFile.generated("conda-meta/history", "".join(f"{line}\n" for line in lines).encode())


def _threads() -> ThreadPoolExecutor:
    """A thread for each core, to compress one layer: it may be the last that is being made."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="compress")


def _as_channels_have_it(files: Iterable[LinkedFile], unit: Unit) -> Iterator[LinkedFile]:
    """The same files, with the records of the packages corrected."""
    records = {path_of(record): record for record in unit.records}
    for file in files:
        record = records.get(file.path)
        if record is None:
            yield file
            continue
        content = corrected(b"".join(file.chunks), record)
        yield replace(file, size=len(content), chunks=(content,))
