"""What is attached to an image: artifacts whose manifests name it as their subject.

Registries with the referrers API list them. Elsewhere, and in layouts, an image index under the tag
``sha256-<hex>`` of the subject does. That tag is read, changed and written, so writers must take turns: on
one machine a file lock sees to that, and what was written is read back. Source: OCI Distribution
Specification 1.1 ("Listing Referrers", "Referrers Tag Schema", "Pushing Manifests with Subject").
"""

from __future__ import annotations

import hashlib
import io
import random
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Descriptor, Digest
from envbuild.errors import IntegrityError, NotFound, RegistryError, TagMoved
from envbuild.oci.manifest import OCI_EMPTY, ImageIndex, Manifest
from envbuild.oci.registry import find_manifest
from envbuild.reference import Tag
from envbuild.storage import key_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from concurrent.futures import Future
    from contextlib import AbstractContextManager
    from pathlib import Path

    from envbuild.deadline import Deadline
    from envbuild.oci.registry import Registry

EMPTY: Final = b"{}"
MAX_ARTIFACT: Final = 64 << 20
"""The largest blob of an artifact that is read into memory, in bytes."""
GZIPPED: Final = "+gzip"
"""How the media type of a compressed blob ends; source: RFC 8460, section 6.2, and OCI's own layers."""
_GZIP: Final = 16 + zlib.MAX_WBITS
_ATTEMPTS: Final = 8
THREADS: Final = 6
_SMALL: Final = 1 << 18
"""A blob up to this size is sent without a question whether it is there."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """Something to attach.

    Attributes:
        artifact_type: What it is, as a media type.
        media_type: The media type of its one blob.
        content: The blob.
        annotations: Annotations of its manifest.
        title: The blob's file name for tools that write it to disk; empty for none.
    """

    artifact_type: str
    media_type: str
    content: bytes
    annotations: Mapping[str, str]
    title: str = ""

    def manifest(self, subject: Descriptor) -> Manifest:
        """The artifact's manifest; equal artifacts of one subject have equal bytes."""
        layer = Descriptor.of(self.content, self.media_type)
        if self.title:
            layer = layer.annotated(**{"org.opencontainers.image.title": self.title})
        return Manifest.build(
            Descriptor.of(EMPTY, OCI_EMPTY),
            (layer,),
            self.annotations,
            subject=replace(subject, annotations={}, platform=None),
            artifact_type=self.artifact_type,
        )


def fallback_tag(subject: Digest) -> Tag:
    """The tag that lists a subject's referrers where there is no API."""
    return Tag(f"sha256-{subject.hex}")


def referrers(
    registry: Registry, subject: Digest, artifact_type: str | None = None
) -> tuple[Descriptor, ...]:
    """The artifacts that are attached to a manifest; filtered here, as registries need not do it.

    Args:
        registry: The repository.
        subject: The digest of the manifest.
        artifact_type: Only those of this type; None for all.

    Raises:
        IntegrityError: The list is not what the specification says.
    """
    listed = _api_lists(registry, subject)
    found = listed if listed is not None else _tagged(registry, subject)
    return tuple(each for each in found if artifact_type in {None, each.artifact_type})


def has_referrers_api(registry: Registry) -> bool:
    """Whether a registry has the referrers API, which it has for every manifest or for none."""
    return registry.referrers(Digest("0" * 64)) is not None


def _api_lists(registry: Registry, subject: Digest) -> tuple[Descriptor, ...] | None:
    """What is attached where there is the API; None where there is none.

    An API that came later than tags that are still there knows nothing of what they list.
    """
    listed = registry.referrers(subject)
    if listed is None:
        return None
    return tuple({each.digest: each for each in listed or _tagged(registry, subject)}.values())


def attach(  # noqa: PLR0913 - what a caller knows is not asked again
    registry: Registry,
    subject: Descriptor,
    artifacts: Iterable[Artifact],
    *,
    locks: Path,
    deadline: Deadline = NO_DEADLINE,
    new_types: bool = False,
    has_empty: bool = False,
    has_api: bool | None = None,
    ready: Callable[[], None] | None = None,
    threads: int = THREADS,
) -> tuple[Descriptor, ...]:
    """Attach artifacts to a manifest, all in one pass; those that are attached already stay as they are.

    Args:
        registry: The repository, in which the subject is, or will be when ``ready`` returns.
        subject: The descriptor of the manifest.
        artifacts: What to attach.
        locks: The folder of the local cache, whose locks make writers take turns.
        deadline: When to give up.
        new_types: Whether to attach only what nothing of its type is attached of.
        has_empty: As :func:`put_artifact` takes it.
        has_api: What :func:`has_referrers_api` said of the registry; None to ask.
        ready: Waits until the subject is in the repository; blobs are put before, manifests after.
        threads: How much is done at once.

    Returns:
        The entries of the artifacts as listings have them.

    Raises:
        RegistryError: There is no API, and something else has the tag of the list.
    """
    registry = registry.by(deadline)
    with ThreadPoolExecutor(threads, thread_name_prefix="attach") as pool, ExitStack() as turn:
        listing = pool.submit(_api_lists, registry, subject.digest) if has_api is not False else None
        empty = None if has_empty else pool.submit(_put, registry, EMPTY, OCI_EMPTY, ask=True)
        putting = [
            (artifact, pool.submit(_put, registry, artifact.content, artifact.media_type, ask=False))
            for artifact in artifacts
        ]
        listed = listing.result() if listing is not None else None
        tagged: Future[tuple[Descriptor, ...]] | None = None
        if listed is None:  # the list is read beside the blobs, and nobody else writes it until it is written
            turn.enter_context(_turn(registry, subject.digest, locks, deadline))
            tagged = pool.submit(_require_list, registry, subject.digest)
        if empty is not None:
            empty.result()
        for _, put in putting:
            put.result()
        present = listed if tagged is None else tagged.result()
        types = {each.artifact_type for each in present or ()} if new_types else set()
        wanted = [
            artifact.manifest(subject) for artifact, _ in putting if artifact.artifact_type not in types
        ]
        if ready is not None:
            ready()
        list(pool.map(lambda each: put_artifact(registry, each, has_config=True), wanted))
        entries = tuple(map(_entry, wanted))
        if tagged is not None and entries:
            _enlist_under_tag(registry, subject.digest, entries, present or ())
    return entries


def put_artifact(
    registry: Registry, manifest: Manifest, tag: Tag | None = None, *, has_config: bool = False
) -> None:
    """Put the manifest of an artifact, and before it its config, the empty JSON object.

    Args:
        registry: The repository.
        manifest: The manifest, whose layers are there.
        tag: Its tag, if any.
        has_config: Whether to take it that the config is there: it was put there before, or the registry
            refuses a manifest that lacks it.
    """
    if has_config:
        try:
            registry.put_manifest(manifest, tag)
        except NotFound:
            pass
        else:
            return
    _put(registry, EMPTY, OCI_EMPTY, ask=True)
    registry.put_manifest(manifest, tag)


def enlist(
    registry: Registry,
    subject: Digest,
    manifests: Iterable[Manifest],
    *,
    locks: Path,
    deadline: Deadline = NO_DEADLINE,
) -> tuple[Descriptor, ...]:
    """Have manifests that name a subject, and are in the repository, listed.

    Raises:
        TagMoved: Other machines wrote the list over and over.
        RegistryError: Something else has the list's tag.
    """
    entries = tuple(_entry(manifest) for manifest in manifests)
    if entries and registry.referrers(subject) is None:
        with _turn(registry, subject, locks, deadline):
            _enlist_under_tag(registry, subject, entries, _require_list(registry, subject))
    return entries


def _turn(
    registry: Registry, subject: Digest, locks: Path, deadline: Deadline
) -> AbstractContextManager[object]:
    """The right to write a subject's list, among the processes of this machine."""
    name = f"{registry.repository}@{subject}"
    return key_lock(locks, f"referrers-{hashlib.sha256(name.encode()).hexdigest()}", deadline)


def read_artifact(registry: Registry, manifest: Manifest) -> bytes:
    """The content of an artifact's one blob, decompressed where its media type ends with ``+gzip``.

    Raises:
        IntegrityError: It has more than one, or too large a one, or one that is not what its type says.
    """
    what = f"the artifact {registry.repository}@{manifest.descriptor.digest}"
    if len(manifest.layers) != 1 or manifest.layers[0].size > MAX_ARTIFACT:
        raise IntegrityError(
            f"{what} has {len(manifest.layers)} blobs, expected one of at most {MAX_ARTIFACT} bytes"
        )
    (layer,) = manifest.layers
    with registry.open_blob(layer) as stream:
        content = stream.read()
    return _decompressed(content, what) if layer.media_type.endswith(GZIPPED) else content


def _decompressed(content: bytes, what: str) -> bytes:
    unpacker = zlib.decompressobj(_GZIP)
    try:
        unpacked = unpacker.decompress(content, MAX_ARTIFACT)
    except zlib.error as error:
        raise IntegrityError(f"{what} is not compressed with gzip as it says: {error}") from None
    if unpacker.unconsumed_tail or unpacker.unused_data or not unpacker.eof:
        raise IntegrityError(f"{what} is cut, or is more than {MAX_ARTIFACT} bytes when it is decompressed")
    return unpacked


def _put(registry: Registry, content: bytes, media_type: str, *, ask: bool) -> None:
    ask = ask or len(content) > _SMALL
    registry.put_blob(Descriptor.of(content, media_type), lambda: io.BytesIO(content), ask=ask)


def _enlist_under_tag(
    registry: Registry, subject: Digest, entries: tuple[Descriptor, ...], present: tuple[Descriptor, ...]
) -> None:
    """Add entries to the list under a tag, and see that they are there.

    Args:
        registry: The repository.
        subject: Whose list it is.
        entries: What is to be in it.
        present: What was in it a moment ago.
    """
    tag = fallback_tag(subject)
    wanted = {entry.digest: entry for entry in entries}
    for attempt in range(_ATTEMPTS):
        there = {entry.digest for entry in present}
        if wanted.keys() <= there:
            return
        new = [entry for digest, entry in wanted.items() if digest not in there]
        registry.put_manifest(ImageIndex.build((*present, *new), {}), tag)
        if attempt:  # somebody on another machine writes too: let them finish, then look
            time.sleep(random.uniform(0.01, 0.1) * attempt)  # noqa: S311
        present = _require_list(registry, subject)
    if not wanted.keys() <= {entry.digest for entry in present}:
        raise TagMoved(
            f"{registry.repository}:{tag} was written {_ATTEMPTS} times and lacks the new entries each time",
            hint="another machine writes it at the same time; attach again",
            retryable=True,
        )


def _tagged(registry: Registry, subject: Digest) -> tuple[Descriptor, ...]:
    """What the list under a subject's tag names; nothing where something else has that tag."""
    found = find_manifest(registry, fallback_tag(subject))
    return found.manifests if _is_list(registry, subject, found) else ()  # type: ignore[union-attr]


def _is_list(registry: Registry, subject: Digest, found: Manifest | ImageIndex | None) -> bool:
    """Whether what has a subject's tag is the list of its referrers.

    GitLab answers with the subject itself, as if the tag were its digest (oras-go issue 1396): of an index
    over several platforms the images would be taken for attached, and written back as such. An entry that
    names a platform is an image's. Lists of go-containerregistry give no types: what such an entry names says
    itself what it is attached to.
    """
    if not isinstance(found, ImageIndex) or found.descriptor.digest == subject:
        return False
    if any(entry.platform is not None for entry in found.manifests):
        return False
    untyped = [entry for entry in found.manifests if entry.artifact_type is None]
    if not untyped:
        return True
    named = find_manifest(registry, untyped[0].digest)
    attached = getattr(named, "subject", None)
    return attached is not None and attached.digest == subject


def _require_list(registry: Registry, subject: Digest) -> tuple[Descriptor, ...]:
    """What the list under a subject's tag names, for a writer of the list.

    What is no list is an error, as the specification has it ("Pushing Manifests with Subject").

    Raises:
        RegistryError: The tag is that of something else, which must not be replaced.
    """
    found = find_manifest(registry, fallback_tag(subject))
    if found is None:
        return ()
    if not _is_list(registry, subject, found):
        what = "the image itself" if found.descriptor.digest == subject else str(found.descriptor.digest)
        raise RegistryError(
            f"{registry.repository}:{fallback_tag(subject)} names {what} and no list of what is attached",
            hint="this registry cannot list what is attached: set attach = false, or choose a registry with "
            "the referrers API",
        )
    return found.manifests  # type: ignore[union-attr]


def _entry(manifest: Manifest) -> Descriptor:
    """An artifact as listings have it."""
    return replace(
        manifest.descriptor,
        annotations=manifest.annotations,
        artifact_type=manifest.artifact_type or manifest.config.media_type,
    )
