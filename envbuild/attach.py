"""What is attached to an image: the canonical form of its definition, lock, provenance and SBOMs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from envbuild import __version__
from envbuild.digest import Digest
from envbuild.lockfile.document import LockEntry, LockFile
from envbuild.oci.manifest import encode
from envbuild.oci.referrers import GZIPPED, Artifact, referrers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.digest import Descriptor
    from envbuild.key import CanonicalForm
    from envbuild.lock import Lock, PipDistribution
    from envbuild.oci.registry import Registry
    from envbuild.reference import ImageReference

LOCK_TYPE: Final = "application/vnd.envbuild.lock.v1+json"
FORM_TYPE: Final = "application/vnd.envbuild.form.v1+json"
IN_TOTO_TYPE: Final = "application/vnd.in-toto+json"
SPDX_TYPE: Final = "application/spdx+json"
CYCLONEDX_TYPE: Final = "application/vnd.cyclonedx+json"
BUILD_TYPE: Final = "urn:envbuild:image:v1"
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
        made.definition, [LockEntry.of(made.base_name, made.base, made.form, made.lock, made.wheels)]
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
            "buildDefinition": {"buildType": BUILD_TYPE, **definition},
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
