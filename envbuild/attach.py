"""Publishing what was built: signed before it is tagged, with lock, provenance and SBOM attached after."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from envbuild import __version__
from envbuild.digest import Digest
from envbuild.lockfile.document import LockEntry, LockFile
from envbuild.oci.manifest import encode
from envbuild.oci.referrers import GZIPPED, THREADS, Artifact, attach, has_referrers_api, referrers
from envbuild.oci.registry import publish
from envbuild.progress import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from envbuild.config import Config
    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor
    from envbuild.index import Index
    from envbuild.key import CanonicalForm, Key
    from envbuild.lock import Lock, PipDistribution
    from envbuild.oci.manifest import ImageIndex, Manifest
    from envbuild.oci.registry import Registry
    from envbuild.progress import Progress
    from envbuild.reference import ImageReference

LOCK_TYPE: Final = "application/vnd.envbuild.lock.v1+json"
FORM_TYPE: Final = "application/vnd.envbuild.form.v1+json"
IN_TOTO_TYPE: Final = "application/vnd.in-toto+json"
SPDX_TYPE: Final = "application/spdx+json"
CYCLONEDX_TYPE: Final = "application/vnd.cyclonedx+json"
PROVENANCE: Final = "https://slsa.dev/provenance/v1"
STATEMENT: Final = "https://in-toto.io/Statement/v1"
_LEVEL: Final = 3


@dataclass(frozen=True)
class Made:
    """What an image was made from.

    Attributes:
        form: The definition's canonical form.
        base: The digest of the base's manifest; None for ``scratch``.
        base_name: The base as the definition names it.
        lock: The packages.
        wheels: What the pip section installs.
        started: When the build began, in UTC.
        definition: The definition's file name; empty where it had none.
        origin: The image whose environment was put on another base; None for one that was built.
    """

    form: CanonicalForm
    base: Digest | None
    base_name: str
    lock: Lock
    wheels: tuple[PipDistribution, ...]
    started: datetime
    definition: str = ""
    origin: ImageReference | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the repository that is published to, so that it is not asked again.

    Attributes:
        stored: Whether the manifest is there under its digest.
        absent: Whether the key's tag was looked for a moment ago and was not there.
        has_empty: Whether the config of artifacts, an empty JSON object, is there.
        has_api: Whether there is the referrers API; None where nobody asked.
        index: Keeps for a day whether there is that API; None where nothing is kept.
        crowded: Whether many others are published at the same time: threads of its own would only disturb.
    """

    stored: bool = False
    absent: bool = False
    has_empty: bool = False
    has_api: bool | None = None
    index: Index | None = None
    crowded: bool = False

    def tells_api(self, target: Registry) -> bool | None:
        """Whether a registry has the referrers API; None if that is neither known nor kept."""
        host = target.repository.host
        if self.has_api is not None or self.index is None or not host:
            return self.has_api

        def ask() -> str:
            return "listed" if has_referrers_api(target) else "tagged"

        return self.index.daily(f"referrers {host}", ask) == "listed"


NOTHING: Final = Known()


def publish_built(
    config: Config,
    target: Registry,
    manifest: Manifest,
    made: Made,
    deadline: Deadline,
    progress: Progress,
    known: Known = NOTHING,
) -> Manifest | ImageIndex:
    """Publish an image with what is known of it; as :func:`publish_with`.

    Args:
        config: The settings.
        target: The workspace.
        manifest: The image, whose blobs are there.
        made: What it was made from.
        deadline: When to give up.
        progress: Told of what could not be attached.
        known: What need not be asked.
    """

    def artifacts() -> Iterator[Artifact]:
        return describe(made, target, manifest.descriptor, sboms=config.sbom)

    return publish_with(config, target, manifest, made.form.key, artifacts, deadline, progress, known)


def publish_with(
    config: Config,
    target: Registry,
    manifest: Manifest | ImageIndex,
    key: Key,
    artifacts: Callable[[], Iterable[Artifact]],
    deadline: Deadline,
    progress: Progress,
    known: Known = NOTHING,
) -> Manifest | ImageIndex:
    """Sign an image or an index if there is a key for that, tag it with its key, attach what is known of it.

    One that was there first wins, if it is trusted. What cannot be attached is told and does not matter.

    Args:
        config: The settings.
        target: The workspace.
        manifest: The image or index; what it names is there.
        key: Its key.
        artifacts: Makes what is attached.
        deadline: When to give up.
        progress: Told of what could not be attached.
        known: What need not be asked.

    Raises:
        Untrusted: Another image that the policy does not accept has the key's tag.
        SpecError: The key to sign with cannot be used.
    """
    trust = config.trust
    if not known.stored:
        target.put_manifest(manifest)
    if trust is not None:
        from envbuild.trust import sign_built

        sign_built(target, manifest, trust, locks=config.cache_dir, deadline=deadline)

    def attached() -> None:
        _attach(config, target, manifest.descriptor, key, artifacts, deadline, progress, known)

    if config.attach and known.crowded:
        attached()  # a kill before the tag leaves work to do, one after it would leave an image without
    with ExitStack() as beside:
        if config.attach and not known.crowded:
            pool = beside.enter_context(ThreadPoolExecutor(1, thread_name_prefix="attach"))
            pool.submit(attached)
        seen = publish(target, manifest, key.tag, stored=True, absent=known.absent)
    rule = trust.rule(target.repository) if trust is not None else None
    if seen.descriptor.digest != manifest.descriptor.digest and rule is not None and rule.require_signed:
        from envbuild.trust import check_rule

        check_rule(target, seen, rule)
    return seen


def _attach(
    config: Config,
    target: Registry,
    subject: Descriptor,
    key: Key,
    artifacts: Callable[[], Iterable[Artifact]],
    deadline: Deadline,
    progress: Progress,
    known: Known,
) -> None:
    """Attach what is known of an image, or tell why not."""
    try:
        attach(
            target,
            subject,
            artifacts(),
            locks=config.cache_dir,
            deadline=deadline,
            new_types=True,
            has_empty=known.has_empty,
            has_api=known.tells_api(target),
            threads=1 if known.crowded else THREADS,
        )
    except Exception as error:  # noqa: BLE001 - whatever a library for SBOMs raises: the image is there
        progress(Event("push", str(key), "output", text=f"not attached to the image: {error}"))


def describe(made: Made, target: Registry, subject: Descriptor, *, sboms: bool) -> Iterator[Artifact]:
    """What is attached to an image: documents about how it was made and, if asked, what is in it."""
    lock = lock_of(made).to_bytes()
    yield _artifact(FORM_TYPE, made.form.to_json(), "form.json")
    yield _lock_artifact(lock)
    document = statement(made, Digest.of(lock), str(target.repository), subject.digest, datetime.now(UTC))
    yield provenance_artifact(document)
    if not sboms:
        return
    from envbuild import sbom

    yield _artifact(SPDX_TYPE, sbom.spdx(made.lock, made.wheels), "sbom.spdx.json")
    yield _artifact(CYCLONEDX_TYPE, sbom.cyclonedx(made.lock, made.wheels), "sbom.cdx.json")


def provenance_artifact(document: dict[str, Any]) -> Artifact:
    """A provenance as it is attached."""
    notes = {"in-toto.io/predicate-type": PROVENANCE}
    return Artifact(IN_TOTO_TYPE, IN_TOTO_TYPE, encode(document), notes, "provenance.json")


def lock_artifact(lock: LockFile) -> Artifact:
    """A lock as it is attached."""
    return _lock_artifact(lock.to_bytes())


def _lock_artifact(content: bytes) -> Artifact:
    """Compressed to a quarter, by the library that compresses layers: it gives the same bytes everywhere."""
    from isal import igzip_lib

    packed = igzip_lib.compress(content, _LEVEL, igzip_lib.COMP_GZIP)
    return Artifact(LOCK_TYPE, f"{LOCK_TYPE}{GZIPPED}", packed, {}, "envbuild.lock.gz")


def _artifact(kind: str, content: bytes, title: str) -> Artifact:
    return Artifact(kind, kind, content, {}, title)


def lock_of(made: Made) -> LockFile:
    """The lock of what was built."""
    return LockFile.of(
        made.definition, [LockEntry(made.base_name, made.form, made.lock, tuple(sorted(made.wheels)))]
    )


def statement(made: Made, lock: Digest, name: str, subject: Digest, finished: datetime) -> dict[str, Any]:
    """The provenance of an image: an in-toto statement with a SLSA v1 predicate.

    Only its times differ between builds. The packages are what the lock says, which is named by the digest of
    its bytes as a file; ``docs/decisions/0012`` says why they are not repeated.

    Args:
        made: What the image was made from.
        lock: The digest of its lock.
        name: The repository.
        subject: The digest of the manifest.
        finished: When the build ended, in UTC.
    """
    definition: dict[str, Any] = {"externalParameters": json.loads(made.form.to_json())}
    if made.origin is not None:
        definition["internalParameters"] = {"rebasedFrom": str(made.origin)}
    dependencies: list[dict[str, Any]] = [
        {"name": "envbuild.lock", "mediaType": LOCK_TYPE, "digest": {"sha256": lock.hex}}
    ]
    if made.base is not None:
        dependencies.insert(0, {"name": "base", "digest": {"sha256": made.base.hex}})
    definition["resolvedDependencies"] = dependencies
    return provenance(definition, str(made.form.key), name, subject, (made.started, finished))


def provenance(
    definition: dict[str, Any], key: str, name: str, subject: Digest, times: tuple[datetime, datetime]
) -> dict[str, Any]:
    """A statement of how something was made.

    Args:
        definition: The parameters and dependencies.
        key: The key that it was made for.
        name: The repository.
        subject: The digest of the manifest.
        times: When it was begun and when it was finished, in UTC.
    """
    started, finished = (each.replace(microsecond=0).isoformat() for each in times)
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": subject.hex}}],
        "predicateType": PROVENANCE,
        "predicate": {
            "buildDefinition": {"buildType": "urn:envbuild:image:v1", **definition},
            "runDetails": {
                "builder": {"id": "urn:envbuild:builder", "version": {"envbuild": __version__}},
                "metadata": {
                    "invocationId": key,
                    "startedOn": started.replace("+00:00", "Z"),
                    "finishedOn": finished.replace("+00:00", "Z"),
                },
            },
        },
    }


def referrers_of(registry: Registry, subject: Digest) -> list[dict[str, Any]]:
    """What is attached to an image, as JSON objects for people and programs to read."""
    return [entry.to_json() for entry in referrers(registry, subject)]
