"""Whether an image is what it says it is, check by check."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from envbuild.digest import CHUNK
from envbuild.errors import IntegrityError, NotFound, counted
from envbuild.key import KEY_SCHEME, CanonicalForm
from envbuild.lookup import KEY_ANNOTATION, LOCK_ANNOTATION, LOCK_TAG
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.oci.referrers import read_artifact, referrers
from envbuild.oci.registry import reread
from envbuild.reference import Tag
from envbuild.trust import Rule, check_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuild.digest import Descriptor, Digest
    from envbuild.oci.registry import Registry
    from envbuild.reference import ImageReference

FORM_TYPE: Final = "application/vnd.envbuild.form.v1+json"
SCHEME_ANNOTATION: Final = "io.envbuild.scheme"
MAX_CONFIG: Final = 8 << 20
_HEX: Final = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer.

    Attributes:
        name: What was looked at.
        passed: Whether it is as it should be; None where there is nothing to compare.
        detail: What was seen.
    """

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """The result.

    Attributes:
        reference: The image.
        checks: In the order in which they were made.
    """

    reference: ImageReference
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)


def verify(
    registry: Registry,
    wanted: Tag | Digest,
    *,
    full: bool = False,
    keys: tuple[bytes, ...] = (),
    rule: Rule | None = None,
) -> Report:
    """Check an image; an index with every image in it.

    Args:
        registry: The repository, for a call with the deadline that holds.
        wanted: The image.
        full: Whether every blob is read and hashed, instead of only looked for.
        keys: Public keys in PEM, one of which must have signed it; none to go by the rule.
        rule: What the policy says of the repository; one that asks for none, or None, leaves them alone.

    Raises:
        NotFound: There is no such image.
        IntegrityError: The manifest itself is not what its digest says.
        Unavailable: The registry could not be asked; that is no answer about the image.
    """
    manifest = registry.get_manifest(wanted)
    reference = registry.repository.at(manifest.descriptor.digest)
    checks = [Check("manifest", True, f"{manifest.descriptor.digest}, {len(manifest.raw)} bytes")]
    checks += _Verifier(registry, full).image(manifest, wanted, "")
    asked = Rule(True, keys) if keys else rule
    if asked is not None and asked.require_signed:
        checks.append(_checked("signature", lambda: check_rule(registry, manifest, asked)))
    return Report(reference, tuple(checks))


def _checked(name: str, action: Callable[[], str | None]) -> Check:
    """A check that fails with an integrity error or for want of something; None for nothing to compare."""
    try:
        detail = action()
    except (IntegrityError, NotFound) as error:
        return Check(name, False, error.message)
    return Check(name, None if detail is None else True, detail or "nothing to compare")


@dataclass(frozen=True, slots=True)
class _Verifier:
    registry: Registry
    full: bool

    def image(self, manifest: Manifest | ImageIndex, wanted: Tag | Digest, prefix: str) -> Iterator[Check]:
        yield _checked(f"{prefix}key", lambda: _key(manifest, wanted))
        yield _checked(f"{prefix}lock key", lambda: _lock(manifest, wanted))
        if isinstance(manifest, ImageIndex):
            for entry in manifest.manifests:
                yield from self._entry(entry.digest, f"{entry.platform or entry.digest.short} ")
            return
        try:
            config = self._config(manifest)
        except (IntegrityError, NotFound) as error:
            yield Check(f"{prefix}config", False, error.message)
        else:
            yield Check(f"{prefix}config", True, str(manifest.config.digest))
            yield _checked(f"{prefix}platform", lambda: _platform(config))
            yield _checked(f"{prefix}layers", lambda: _layers(config, manifest))
            yield _checked(f"{prefix}labels", lambda: _labels(config, manifest))
        yield _checked(f"{prefix}blobs", lambda: self._blobs(manifest))
        yield _checked(f"{prefix}definition", lambda: self._form(manifest))

    def _entry(self, digest: Digest, prefix: str) -> Iterator[Check]:
        try:
            manifest = self.registry.get_manifest(digest)
        except (IntegrityError, NotFound) as error:
            yield Check(f"{prefix}manifest", False, error.message)
            return
        yield Check(f"{prefix}manifest", True, str(digest))
        if isinstance(manifest, ImageIndex):
            yield Check(f"{prefix}image", False, "an index in an index, expected an image")
            return
        yield from self.image(manifest, digest, prefix)

    def _config(self, manifest: Manifest) -> dict[str, Any]:
        if manifest.config.size > MAX_CONFIG:
            raise IntegrityError(
                f"the config has {manifest.config.size} bytes, at most {MAX_CONFIG} are read"
            )
        with self.registry.open_blob(manifest.config) as stream:
            content = stream.read()
        try:
            config = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise IntegrityError(f"the config is not JSON: {error}") from None
        if not isinstance(config, dict):
            raise IntegrityError("the config is not a JSON object")
        return config

    def _blobs(self, manifest: Manifest) -> str:
        bad = []
        for blob in manifest.blobs:
            try:
                if self.full:
                    reread(partial(self._read, blob))
                elif not self.registry.has_blob(blob.digest):
                    bad.append(f"{blob.digest} is missing")
            except (IntegrityError, NotFound) as error:
                bad.append(f"{blob.digest}: {error.message}")
        if bad:
            raise IntegrityError("; ".join(bad))
        size = sum(blob.size for blob in manifest.blobs)
        how = "read and hashed" if self.full else "all there"
        return f"{counted(len(manifest.blobs), 'blob')}, {size} bytes, {how}"

    def _read(self, blob: Descriptor) -> None:
        with self.registry.open_blob(blob) as stream:
            while stream.read(CHUNK):
                pass

    def _form(self, manifest: Manifest) -> str | None:
        """The attached definition must be the one whose key the image carries."""
        key = manifest.annotations.get(KEY_ANNOTATION)
        entries = referrers(self.registry, manifest.descriptor.digest, FORM_TYPE)
        if key is None or not entries:
            return None
        for entry in entries:
            artifact = self.registry.get_manifest(entry.digest)
            if isinstance(artifact, Manifest) and _form_key(read_artifact(self.registry, artifact)) != key:
                raise IntegrityError(f"the attached definition {entry.digest} has another key than {key}")
        return "the attached form has the key"


def _form_key(content: bytes) -> str | None:
    try:
        form = json.loads(content)
        return str(CanonicalForm(form).key) if isinstance(form, dict) else None
    except (ValueError, TypeError, RecursionError):
        return None


def _key(manifest: Manifest | ImageIndex, wanted: Tag | Digest) -> str | None:
    seen = manifest.annotations.get(KEY_ANNOTATION)
    named = wanted.name if isinstance(wanted, Tag) else ""
    expected = named.removeprefix("k1-") if named.startswith("k1-") else None
    if expected is not None and seen != expected:
        raise IntegrityError(f"it carries the key {seen or 'of nothing'}, expected {expected}")
    if seen is None:
        return None
    if not _HEX.fullmatch(seen):
        raise IntegrityError(f"it carries {seen!r:.80}, which is no key")
    scheme = manifest.annotations.get(SCHEME_ANNOTATION)
    if scheme not in {None, str(KEY_SCHEME)}:
        raise IntegrityError(f"its key is of scheme {scheme!r:.20}, expected {KEY_SCHEME}")
    return seen


def _lock(manifest: Manifest | ImageIndex, wanted: Tag | Digest) -> str | None:
    seen = manifest.annotations.get(LOCK_ANNOTATION)
    named = wanted.name if isinstance(wanted, Tag) and wanted.name.startswith(LOCK_TAG) else None
    if named is not None and named != f"{LOCK_TAG}{seen}":
        expected = named.removeprefix(LOCK_TAG)
        raise IntegrityError(f"it carries the lock key {seen or 'of nothing'}, expected {expected}")
    if seen is not None and not _HEX.fullmatch(seen):
        raise IntegrityError(f"it carries {seen!r:.80}, which is no lock key")
    return seen


def _platform(config: dict[str, Any]) -> str:
    system, architecture = config.get("os"), config.get("architecture")
    if not isinstance(system, str) or not isinstance(architecture, str) or not system or not architecture:
        raise IntegrityError(f"the config names the platform {system!r:.40}/{architecture!r:.40}")
    return f"{system}/{architecture}"


def _layers(config: dict[str, Any], manifest: Manifest) -> str:
    root = config.get("rootfs")
    found = root.get("diff_ids") if isinstance(root, dict) else None
    if not isinstance(found, list) or len(found) != len(manifest.layers):
        count = len(found) if isinstance(found, list) else "no list of"
        raise IntegrityError(f"the config names {count} layers, the manifest {len(manifest.layers)}")
    if not all(isinstance(each, str) and _HEX.fullmatch(each.removeprefix("sha256:")) for each in found):
        raise IntegrityError("the config names a layer by something other than a sha256 digest")
    return f"{counted(len(found), 'layer')} in config and manifest"


def _labels(config: dict[str, Any], manifest: Manifest) -> str | None:
    runtime = config.get("config")
    labels = (runtime.get("Labels") if isinstance(runtime, dict) else None) or {}
    compared = []
    for name in (LOCK_ANNOTATION, SCHEME_ANNOTATION):
        label, annotation = labels.get(name), manifest.annotations.get(name)
        if label is None or annotation is None:
            continue
        if label != annotation:
            raise IntegrityError(f"the label {name} is {label!r:.80}, the annotation {annotation!r:.80}")
        compared.append(name)
    return f"{', '.join(compared)} agree with the annotations" if compared else None
