"""Publishing what was built: signed before it is tagged, with lock, provenance and SBOM attached after."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from envbuild import sbom
from envbuild.key import CanonicalForm
from envbuild.lockfile import base_text
from envbuild.lockfile.document import LockEntry, LockFile
from envbuild.oci.manifest import encode
from envbuild.oci.referrers import Artifact, attach, referrers
from envbuild.oci.registry import publish
from envbuild.progress import Event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.config import Config
    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor, Digest
    from envbuild.lock import Lock
    from envbuild.oci.manifest import ImageIndex, Manifest
    from envbuild.oci.registry import Registry
    from envbuild.platform import Platform
    from envbuild.progress import Progress
    from envbuild.spec.environment import EnvironmentSpec

LOCK_TYPE: Final = "application/vnd.envbuild.lock.v1+json"
FORM_TYPE: Final = "application/vnd.envbuild.form.v1+json"
IN_TOTO_TYPE: Final = "application/vnd.in-toto+json"
SPDX_TYPE: Final = "application/spdx+json"
CYCLONEDX_TYPE: Final = "application/vnd.cyclonedx+json"
PROVENANCE: Final = "https://slsa.dev/provenance/v1"
STATEMENT: Final = "https://in-toto.io/Statement/v1"


@dataclass(frozen=True)
class Made:
    """What an image was made from.

    Attributes:
        spec: The definition.
        platform: The platform it was built for.
        base: The digest of the base's manifest; None for ``scratch``.
        lock: The packages.
        started: When the build began, in UTC.
    """

    spec: EnvironmentSpec
    platform: Platform
    base: Digest | None
    lock: Lock
    started: datetime

    @property
    def form(self) -> CanonicalForm:
        """The definition's canonical form."""
        return CanonicalForm.of(self.spec, self.base, self.platform)


def publish_built(
    config: Config,
    target: Registry,
    manifest: Manifest,
    made: Made,
    deadline: Deadline,
    progress: Progress,
    *,
    stored: bool = False,
    has_empty: bool = False,
) -> Manifest | ImageIndex:
    """Sign an image if there is a key for that, tag it with its key, and attach what is known of it.

    An image that was there first wins, if it is trusted. What cannot be attached is told and does not matter.

    Args:
        config: The settings.
        target: The workspace.
        manifest: The image, whose blobs are there.
        made: What it was made from.
        deadline: When to give up.
        progress: Told of what could not be attached.
        stored: Whether the manifest is there under its digest.
        has_empty: Whether the config of artifacts, an empty JSON object, is there.

    Raises:
        Untrusted: Another image that the policy does not accept has the key's tag.
        SpecError: The key to sign with cannot be used.
    """
    trust = config.trust
    if not stored:
        target.put_manifest(manifest)
    if trust is not None and trust.sign_key is not None:
        from envbuild.trust import sign

        sign(target, manifest, trust.sign_key, locks=config.cache_dir, deadline=deadline)

    def attached() -> None:
        try:
            artifacts = describe(made, target, manifest.descriptor, sboms=config.sbom)
            attach(
                target,
                manifest.descriptor,
                artifacts,
                locks=config.cache_dir,
                deadline=deadline,
                new_types=True,
                has_empty=has_empty,
            )
        except Exception as error:  # noqa: BLE001 - whatever a library for SBOMs raises: the image is there
            text = f"not attached to the image: {error}"
            progress(Event("push", str(made.form.key), "output", text=text))

    with ThreadPoolExecutor(1, thread_name_prefix="attach") as beside:
        if config.attach:
            beside.submit(attached)
        seen = publish(target, manifest, made.form.key.tag, stored=True)
    rule = trust.rule(target.repository) if trust is not None else None
    if seen.descriptor.digest != manifest.descriptor.digest and rule is not None and rule.require_signed:
        from envbuild.trust import check

        check(target, seen, rule.keys)
    return seen


def describe(made: Made, target: Registry, subject: Descriptor, *, sboms: bool) -> Iterator[Artifact]:
    """What is attached to an image: documents about how it was made and, if asked, what is in it.

    The libraries that write SBOMs take as long to import as a small build takes in all.
    """
    finished = datetime.now(UTC).replace(microsecond=0)
    form, name = made.form, str(target.repository)
    yield _artifact(FORM_TYPE, form.to_json(), "form.json")
    if made.spec.pip is None:
        yield _artifact(LOCK_TYPE, lock_of(made).to_bytes(), "envbuild.lock")
    provenance = encode(statement(made, name, subject.digest, finished))
    yield Artifact(
        IN_TOTO_TYPE, IN_TOTO_TYPE, provenance, {"in-toto.io/predicate-type": PROVENANCE}, "provenance.json"
    )
    if not sboms:
        return
    for kind, write in ((SPDX_TYPE, sbom.spdx), (CYCLONEDX_TYPE, sbom.cyclonedx)):
        if (document := write(subject.digest, name, made.lock, finished)) is not None:
            yield _artifact(kind, document, f"sbom.{'spdx' if kind == SPDX_TYPE else 'cdx'}.json")


def _artifact(kind: str, content: bytes, title: str) -> Artifact:
    return Artifact(kind, kind, content, {}, title)


def lock_of(made: Made) -> LockFile:
    """The lock of what was built."""
    source = Path(made.spec.source)
    folder = source.parent if source.is_file() else Path.cwd()
    entry = LockEntry(base_text(made.spec, folder), made.form, made.lock)
    return LockFile.of(source.name if source.is_file() else "", [entry])


def statement(made: Made, name: str, subject: Digest, finished: datetime) -> dict[str, Any]:
    """The provenance as an in-toto statement with a SLSA v1 predicate; only its times differ between builds.

    Args:
        made: What the image was made from.
        name: The repository.
        subject: The digest of the manifest.
        finished: When the build ended, in UTC.
    """
    dependencies: list[dict[str, Any]] = [
        {"uri": sbom.purl(each), "digest": {"sha256": each.sha256.hex}, "downloadLocation": each.url}
        for each in made.lock.packages
    ]
    if made.base is not None:
        dependencies.insert(0, {"name": "base", "digest": {"sha256": made.base.hex}})
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": subject.hex}}],
        "predicateType": PROVENANCE,
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:envbuild:image:v1",
                "externalParameters": json.loads(made.form.to_json()),
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": {"id": "urn:envbuild:builder", "version": {"envbuild": _version()}},
                "metadata": {
                    "invocationId": str(made.form.key),
                    "startedOn": made.started.replace(microsecond=0).isoformat().replace("+00:00", "Z"),
                    "finishedOn": finished.isoformat().replace("+00:00", "Z"),
                },
            },
        },
    }


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("envbuild")
    except PackageNotFoundError:
        return "unknown"


def referrers_of(registry: Registry, subject: Digest) -> list[dict[str, Any]]:
    """What is attached to an image, as JSON objects for people and programs to read."""
    return [entry.to_json() for entry in referrers(registry, subject)]
