"""Layers that somebody has made: found by their layer keys beside the workspace, and put there.

A registry holds them in a repository beside the workspace's, a layout among its own images: tag ``l-KEY``
names a manifest whose one layer is the blob. Whatever goes wrong with them costs time and nothing else: a
layer that cannot be found, or that nobody vouches for where somebody must, is made.
"""

from __future__ import annotations

import base64
import threading
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from envbuild.admission import VOUCHER_ANNOTATION
from envbuild.build.assemble import LAYER_TYPES
from envbuild.build.seen import activation_files, clobbers_in, json_in
from envbuild.build.upload import in_parallel
from envbuild.conda.layer import split_hashes
from envbuild.deadline import Deadline
from envbuild.digest import Descriptor, Digest
from envbuild.errors import EnvbuildError, IntegrityError, NotFound, SpecError, Unauthorized
from envbuild.index import LayerEntry
from envbuild.oci.manifest import (
    MAX_MANIFEST,
    OCI_EMPTY,
    Manifest,
)
from envbuild.oci.referrers import EMPTY, put_artifact
from envbuild.progress import Event
from envbuild.reference import Repository, Tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from envbuild.admission import Admission
    from envbuild.index import Index
    from envbuild.oci.manifest import ImageIndex
    from envbuild.oci.registries import Registries
    from envbuild.oci.registry import Registry
    from envbuild.progress import Progress

ARTIFACT_TYPE: Final = "application/vnd.envbuild.layer.v1+json"
LAYER_ANNOTATION: Final = "io.envbuild.layer"
DIFF_ID_ANNOTATION: Final = "io.envbuild.diff-id"
FILES_ANNOTATION: Final = "io.envbuild.files"
FOLDERS_ANNOTATION: Final = "io.envbuild.folders"
ACTIVATION_ANNOTATION: Final = "io.envbuild.activation"
RECORDS_ANNOTATION: Final = "io.envbuild.records"
CLOBBERS_ANNOTATION: Final = "io.envbuild.clobbers"

_DOCKER_HUB: Final = "docker.io"
_PATIENCE: Final = 30.0
"""Seconds that one layer may take to be shared; what takes longer is done without."""
_QUESTION: Final = 10.0
"""Seconds that one question may take, as long as a restart of a registry does."""


def layers_repository(repository: Repository) -> Repository:
    """Where the layers of a repository's images are shared.

    Beside it on a registry, so that nobody finds them among the images; Docker Hub has no deeper paths.
    """
    if repository.is_layout:
        return repository
    ending = "-layers" if repository.host == _DOCKER_HUB else "/layers"
    return Repository(repository.host, repository.path + ending)


def layer_tag(key: str) -> Tag:
    """The tag of a layer."""
    return Tag(f"l-{key}")


def statement_tag(digest: Digest) -> Tag:
    """The tag that keeps a statement."""
    return Tag(f"v-{digest.hex}")


def vouched_for(manifest: Manifest, statement: Digest) -> Manifest:
    """An artifact beside the layers that says which statement vouches for it."""
    notes = {**manifest.annotations, VOUCHER_ANNOTATION: str(statement)}
    return Manifest.build(manifest.config, manifest.layers, notes, artifact_type=manifest.artifact_type)


def describe(key: str, entry: LayerEntry) -> Manifest:
    """The manifest of a shared layer; equal layers give equal bytes."""
    annotations = {
        LAYER_ANNOTATION: key,
        DIFF_ID_ANNOTATION: str(entry.diff_id),
        FILES_ANNOTATION: base64.b64encode(entry.files).decode(),
        FOLDERS_ANNOTATION: base64.b64encode(entry.folders).decode(),
    }
    optional = {
        ACTIVATION_ANNOTATION: entry.activation,
        RECORDS_ANNOTATION: entry.records,
        CLOBBERS_ANNOTATION: entry.clobbers,
    }
    annotations |= {name: text for name, text in optional.items() if text}
    config = Descriptor.of(EMPTY, OCI_EMPTY)
    return Manifest.build(config, (entry.descriptor,), annotations, artifact_type=ARTIFACT_TYPE)


def parse(key: str, manifest: Manifest | ImageIndex, repository: Repository) -> LayerEntry:
    """What a shared layer's manifest says.

    Raises:
        IntegrityError: It is not the manifest of that layer.
    """
    what = f"the layer {repository}:{layer_tag(key)}"
    notes = manifest.annotations
    if not isinstance(manifest, Manifest) or notes.get(LAYER_ANNOTATION) != key or len(manifest.layers) != 1:
        raise IntegrityError(f"{what} is {notes.get(LAYER_ANNOTATION)!r}, expected one layer of that key")
    (layer,) = manifest.layers
    if layer.media_type not in LAYER_TYPES:
        raise IntegrityError(f"{what} has a layer of type {layer.media_type!r}")
    try:
        files, folders = (
            base64.b64decode(notes[name], validate=True) for name in (FILES_ANNOTATION, FOLDERS_ANNOTATION)
        )
        diff_id = Digest.parse(notes[DIFF_ID_ANNOTATION])
        split_hashes(files), split_hashes(folders)
        activation_files(json_in(notes.get(ACTIVATION_ANNOTATION, ""), "{}"))
        clobbers_in(json_in(notes.get(CLOBBERS_ANNOTATION, ""), "[]"))
    except (KeyError, ValueError, SpecError, IntegrityError) as error:
        raise IntegrityError(f"{what} does not say what is in it: {error}") from None
    plain = Descriptor(layer.media_type, layer.digest, layer.size)
    texts = (notes.get(name, "") for name in (ACTIVATION_ANNOTATION, RECORDS_ANNOTATION, CLOBBERS_ANNOTATION))
    return LayerEntry(plain, diff_id, files, folders, repository, *texts)


@dataclass
class SharedLayers:
    """The layers that are shared through registries. May be used by several threads.

    What is shared by whoever signs waits until :meth:`vouch` has signed for all of it at once.

    Attributes:
        registries: Opens repositories.
        admission: Decides what may be used of what others shared.
        workspace: The repository that is built into; its layers are read and written.
        global_: A repository whose layers are read, or None.
        jobs: How many questions are asked at once.
        deadline: When the call ends.
        progress: Told of what did not work.
        refuses_dangling: Whether the workspace's host refuses a manifest whose blobs it lacks.
    """

    registries: Registries
    admission: Admission
    workspace: Repository
    global_: Repository | None
    jobs: int
    deadline: Deadline
    progress: Progress
    refuses_dangling: bool = False
    _waiting: dict[Tag, Manifest] = field(default_factory=dict)
    _broken: set[Repository] = field(default_factory=set)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _has_config: bool = False

    @property
    def own(self) -> Repository:
        """Where this workspace's layers are."""
        return layers_repository(self.workspace)

    @property
    def accepted(self) -> list[str]:
        """Names whose word counts for what is taken: equal where the same are believed."""
        rules = {owner: self.admission.rule(owner, part=True) for owner in self._owners}
        names = {str(owner) for owner, rule in rules.items() if rule is None}
        if strict := [rule for rule in rules.values() if rule is not None]:
            from envbuild.trust.statement import fingerprint

            names |= set(map(fingerprint, strict))
        return sorted(names)

    def held(self, index: Index, keys: Iterable[str]) -> dict[str, LayerEntry]:
        """Those of the layers that the index knows, and that may be used."""
        found = index.layers(keys)
        return {key: entry for key, entry in found.items() if self.may_use(entry.voucher)}

    def may_use(self, voucher: str) -> bool:
        """Whether what the index remembers may be used, by who vouched for it."""
        try:
            return self.admission.still(voucher, self._owners, self._beside)
        except EnvbuildError as error:
            if isinstance(error, SpecError):
                raise
            self._tell(self.own, error)
            return False

    def _beside(self, owner: Repository) -> Registry:
        return self.registries.open(layers_repository(owner)).by(self._within(_QUESTION))

    def find(self, keys: Iterable[str]) -> dict[str, LayerEntry]:
        """Those of the layers that are shared; the workspace is asked before the global repository."""
        found: dict[str, LayerEntry] = {}
        wanted = list(dict.fromkeys(keys))
        for owner in self._owners:
            asked = [key for key in wanted if key not in found]
            answers = in_parallel(self.jobs, lambda key, owner=owner: self._ask(owner, key), asked)  # type: ignore[misc]
            found |= {key: entry for key, entry in zip(asked, answers, strict=True) if entry is not None}
        return found

    def share(self, key: str, entry: LayerEntry) -> None:
        """Put a layer, whose blob is in the entry's repository, where others find it, if that is possible."""
        self.put(describe(key, entry), layer_tag(key), entry)

    def note(self, tag: Tag, name: str, content: Callable[[str], Manifest]) -> tuple[str, str] | None:
        """An annotation of what a tag beside the layers names, and who vouches for it.

        Args:
            tag: The tag.
            name: The annotation.
            content: The artifact that holds the annotation and nothing else.

        Returns:
            None where no place has it, or it may not be used.
        """
        for owner in self._owners:
            text: str | None = None

            def read(manifest: Manifest | ImageIndex) -> Callable[[], Manifest] | None:
                nonlocal text
                text = manifest.annotations.get(name)
                return None if text is None else partial(content, text)

            voucher = self._read(owner, tag, read)
            if voucher is not None and text is not None:
                return text, voucher
        return None

    def put(self, manifest: Manifest, tag: Tag, entry: LayerEntry | None = None) -> None:
        """Put an artifact beside the layers, if that is possible.

        Args:
            manifest: The artifact.
            tag: Its tag.
            entry: The layer that it describes, whose blob is in the entry's repository; or None.
        """
        if self.own in self._broken or len(manifest.raw) > MAX_MANIFEST:
            return
        try:
            target = self.registries.open(self.own).by(self._within(_PATIENCE))
            here = entry is None or entry.repository == self.own
            if entry is not None and not here and not target.mount_blob(entry.descriptor, entry.repository):
                return
            if self._signs:
                with self._guard:
                    self._waiting[tag] = manifest
                return
            self._put(target, manifest, tag)
        except EnvbuildError as error:
            self._give_up(self.own, error)

    def vouch(self) -> None:
        """Sign for all that waits, in one statement, then give it its tags, if that is possible."""
        with self._guard:
            waiting, self._waiting = self._waiting, {}
        trust = self.admission.config.trust
        if not waiting or trust is None or self.own in self._broken:
            return
        from envbuild.trust.statement import sign_statement

        try:
            subjects = {tag.name: manifest.descriptor.digest for tag, manifest in waiting.items()}
            statement = sign_statement(subjects, trust, trust.rule(self.workspace).trusted_root)
            named = statement.descriptor.digest
            target = self.registries.open(self.own).by(self._within(_PATIENCE))
            self._put(target, statement, statement_tag(named))
            in_parallel(
                self.jobs,
                lambda each: self._put(target, vouched_for(waiting[each], named), each),
                waiting,
            )
        except EnvbuildError as error:
            self._give_up(self.own, error)

    def _put(self, target: Registry, manifest: Manifest, tag: Tag) -> None:
        has_config = self.refuses_dangling or self._has_config
        put_artifact(target, manifest, tag, has_config=has_config)
        self._has_config = True

    @property
    def _signs(self) -> bool:
        trust = self.admission.config.trust
        return trust is not None and trust.signs

    @property
    def _owners(self) -> tuple[Repository, ...]:
        """The repositories whose layers are read; what counts more comes first."""
        owners = (self.workspace,) if self.global_ is None else (self.workspace, self.global_)
        return tuple({layers_repository(owner): owner for owner in reversed(owners)}.values())[::-1]

    def _ask(self, owner: Repository, key: str) -> LayerEntry | None:
        entry: LayerEntry | None = None
        place = layers_repository(owner)

        def read(manifest: Manifest | ImageIndex) -> Callable[[], Manifest]:
            nonlocal entry
            entry = parse(key, manifest, place)
            return partial(describe, key, entry)

        voucher = self._read(owner, layer_tag(key), read)
        return None if voucher is None or entry is None else replace(entry, voucher=voucher)

    def _read(
        self,
        owner: Repository,
        tag: Tag,
        read: Callable[[Manifest | ImageIndex], Callable[[], Manifest] | None],
    ) -> str | None:
        """Who vouches for what a tag names, after it was read; None where it cannot be used.

        Args:
            owner: The repository beside which it is.
            tag: Its tag.
            read: Reads it, and gives what writes what was read as an artifact again.

        Raises:
            Untrusted: Nobody vouches for it, and the policy says that this is a failure.
        """
        from envbuild.trust import Untrusted

        place = layers_repository(owner)
        if place in self._broken:
            return None
        try:
            found = self.registries.probe(place, tag, self._within(_QUESTION))
            content = read(found)
            if content is None:
                return None
            return self.admission.voucher(owner, self._beside(owner), tag, found, content)
        except NotFound:
            return None
        except Untrusted:
            raise
        except IntegrityError as error:
            self._tell(place, error)
            return None
        except EnvbuildError as error:
            if not self._is_miss(place, error):
                self._give_up(place, error)
            return None

    def _is_miss(self, place: Repository, error: EnvbuildError) -> bool:
        """Whether a refusal means that there is no such layer: others may be there, and all can be shared."""
        owner = self.workspace if place == self.own else self.global_
        return (
            isinstance(error, Unauthorized)
            and owner is not None
            and self.registries.unknowns.is_miss(owner, error)
        )

    def _within(self, seconds: float) -> Deadline:
        return Deadline.after(self.deadline.remaining(seconds))

    def _give_up(self, place: Repository, error: EnvbuildError) -> None:
        with self._guard:
            first = place not in self._broken
            self._broken.add(place)
        if first:
            self._tell(place, error)

    def _tell(self, place: Repository, error: EnvbuildError) -> None:
        self.progress(Event("layer", str(place), "output", text=f"done without shared layers: {error}"))
