"""Whether an image is what it says it is, check by check."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from envbuild.attached import Attached
from envbuild.build.assemble import SCHEME_ANNOTATION, STEPS_ANNOTATION
from envbuild.build.recipe import names_of
from envbuild.checks import Check, NotChecked, Report, checked
from envbuild.deadline import NO_DEADLINE
from envbuild.digest import CHUNK
from envbuild.errors import IntegrityError, NotFound, counted
from envbuild.imageconfig import config_checks, diff_ids, read_config
from envbuild.key import KEY_ANNOTATION, KEY_SCHEME, LOCK_ANNOTATION, LOCK_TAG, Key, index_key
from envbuild.lockkey import LockKey, together
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.oci.registry import reread
from envbuild.reference import Tag
from envbuild.trust import Rule, check_rule
from envbuild.unpacked import unpacked

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor, Digest
    from envbuild.oci.registry import Registry
    from envbuild.platform import Platform
    from envbuild.unpacked import Unpacked

_STEPS_TAG: Final = "s1-"
_HEX: Final = re.compile("[0-9a-f]{64}")
_MOST_IMAGES: Final = 64
"""How many images of an index are looked at."""


def verify(
    registry: Registry,
    wanted: Tag | Digest,
    *,
    full: bool = False,
    keys: tuple[bytes, ...] = (),
    rule: Rule | None = None,
    platforms: Collection[Platform] = (),
    deadline: Deadline = NO_DEADLINE,
) -> Report:
    """Check an image; an index with every image in it.

    Args:
        registry: The repository, for a call with the deadline that holds.
        wanted: The image.
        full: Whether every blob is read and hashed, and each layer unpacked, instead of only looked for.
        keys: Public keys in PEM, one of which must have signed it; none to go by the rule.
        rule: What the policy says of the repository; one that asks for none, or None, leaves them alone.
        platforms: What it must be for; none for whatever it is for.
        deadline: When to give up.

    Raises:
        NotFound: There is no such image.
        IntegrityError: The manifest itself is not what its digest says.
        Unavailable: The registry could not be asked; that is no answer about the image.
    """
    manifest = registry.get_manifest(wanted)
    reference = registry.repository.at(manifest.descriptor.digest)
    checks = [Check("manifest", True, f"{manifest.descriptor.digest}, {len(manifest.raw)} bytes")]
    asked = Rule(True, keys) if keys else rule
    signature, claims = _signature(registry, manifest, asked, deadline)
    verifier = _Verifier(registry, full, deadline)
    if isinstance(manifest, ImageIndex):
        checks += verifier.index(manifest, wanted, tuple(platforms))
    else:
        checks += verifier.image(manifest, wanted, "", tuple(platforms), claims)
    return Report(reference, (*checks, signature))


def _signature(
    registry: Registry, manifest: Manifest | ImageIndex, rule: Rule | None, deadline: Deadline
) -> tuple[Check, tuple[Mapping[str, Any], ...] | None]:
    """The check of the signature, and what the accepted ones claim; None where there are none."""
    if rule is None or not rule.require_signed:
        return Check("signature", None, "neither a key nor the policy asks for one"), None
    try:
        accepted = check_rule(registry, manifest, rule, deadline=deadline, every=True)
    except IntegrityError as error:
        return Check("signature", False, error.message), None
    return Check("signature", True, accepted.by), accepted.claims


@dataclass(frozen=True, slots=True)
class _Verifier:
    registry: Registry
    full: bool
    deadline: Deadline
    layers: dict[Descriptor, Unpacked] = field(default_factory=dict)

    def image(
        self,
        manifest: Manifest,
        wanted: Tag | Digest,
        prefix: str,
        platforms: tuple[Platform | None, ...],
        claims: tuple[Mapping[str, Any], ...] | None = None,
    ) -> Iterator[Check]:
        """The checks of one image; each of the platforms must be its own."""
        yield checked(f"{prefix}key", partial(_key, manifest, wanted))
        yield checked(f"{prefix}lock key", partial(_lock, manifest, wanted))
        if isinstance(wanted, Tag) and wanted.name.startswith(_STEPS_TAG):
            yield checked("steps key", partial(_steps, manifest, wanted))
        config: dict[str, Any] | None = None
        try:
            config = read_config(self.registry, manifest)
        except (IntegrityError, NotFound) as error:
            yield Check(f"{prefix}config", False, error.message)
        else:
            yield Check(f"{prefix}config", True, str(manifest.config.digest))
            yield from config_checks(config, manifest, prefix, platforms)
        yield checked(f"{prefix}blobs", partial(self._blobs, manifest))
        archives = partial(self._archives, manifest, config)
        yield checked(f"{prefix}archives", archives, asked=self.full)
        yield from Attached(self.registry, manifest, self.deadline, claims).checks(config, prefix)

    def index(
        self, index: ImageIndex, wanted: Tag | Digest, platforms: tuple[Platform, ...]
    ) -> Iterator[Check]:
        """The checks of an index, and of every image in it."""
        children: dict[Platform, Manifest] = {}
        yield checked("platforms", partial(_platforms, index, platforms))
        for entry in index.manifests[:_MOST_IMAGES]:
            self.deadline.check("looking at the images of an index")
            prefix = f"{entry.platform or entry.digest.short} "
            try:
                child = _child(self.registry, entry)
            except (IntegrityError, NotFound) as error:
                yield Check(f"{prefix}manifest", False, error.message)
                continue
            yield Check(f"{prefix}manifest", True, str(entry.digest))
            if entry.platform is not None:
                children[entry.platform] = child
            yield from self.image(child, entry.digest, prefix, (entry.platform,))
        yield checked("key", partial(_index_key, index, wanted, children))
        yield checked("lock key", partial(_index_lock, index, wanted, children))
        yield from Attached(self.registry, index, self.deadline).index_checks(children)

    def _blobs(self, manifest: Manifest) -> str:
        """Whether everything is there; with ``full``, whether each blob has its digest and size."""
        bad = []
        for blob in manifest.blobs:
            self.deadline.check("looking for the blobs of an image")
            try:
                if self.full and blob in manifest.layers:
                    self.layers[blob] = unpacked(self.registry, blob, self.deadline)
                elif self.full:
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

    def _archives(self, manifest: Manifest, config: dict[str, Any] | None) -> str:
        """Whether each layer is an archive, and the one that the config means."""
        if not self.full:
            raise NotChecked("only --full unpacks the layers")
        seen = [self.layers.get(layer) for layer in manifest.layers]
        bad = [
            f"{layer.digest}: {found.fault}"
            for layer, found in zip(manifest.layers, seen, strict=True)
            if found is not None and found.fault
        ]
        expected = diff_ids(config or {})
        for layer, found, diff_id in zip(manifest.layers, seen, expected, strict=False):
            if found is not None and not found.fault and found.diff_id != diff_id:
                bad.append(f"{layer.digest} unpacks to {found.diff_id}, and the config says {diff_id}")
        if bad:
            raise IntegrityError("; ".join(dict.fromkeys(bad)))
        if None in seen:
            raise NotChecked("not every layer could be read")
        size = sum(found.size for found in seen if found is not None)
        return f"{counted(len(seen), 'layer')} with the diff ids of the config, {size} bytes unpacked"


def _child(registry: Registry, entry: Descriptor) -> Manifest:
    """An image of an index, of the type and size that the index says."""
    child = registry.get_manifest(entry.digest)
    if not isinstance(child, Manifest):
        raise IntegrityError("an index in an index, expected an image")
    if (entry.media_type, entry.size) != (child.media_type, len(child.raw)):
        raise IntegrityError(
            f"{entry.digest} is {child.media_type} of {len(child.raw)} bytes, and the index says "
            f"{entry.media_type!r:.80} of {entry.size}"
        )
    return child


def _platforms(index: ImageIndex, platforms: tuple[Platform, ...]) -> str:
    """Which image an engine takes must be plain: each platform has one."""
    named = [entry.platform for entry in index.manifests]
    if not named or len(named) > _MOST_IMAGES:
        raise IntegrityError(f"the index has {len(named)} images, expected 1 to {_MOST_IMAGES}")
    if twice := next((each for each in named if each is not None and named.count(each) > 1), None):
        raise IntegrityError(f"the index has several images for {twice}")
    for platform in platforms:
        if index.for_platform(platform) is None:
            raise IntegrityError(f"the index has no image for {platform}")
    if None in named:
        raise NotChecked("the index has images without a platform")
    return ", ".join(map(str, named))


def _key(manifest: Manifest | ImageIndex, wanted: Tag | Digest) -> str:
    seen = manifest.annotations.get(KEY_ANNOTATION)
    named = wanted.name if isinstance(wanted, Tag) else ""
    expected = named.removeprefix("k1-") if named.startswith("k1-") else None
    if expected is not None and seen != expected:
        raise IntegrityError(f"it carries the key {seen or 'of nothing'}, expected {expected}")
    if seen is None:
        raise NotChecked("the image carries no key")
    if not _HEX.fullmatch(seen):
        raise IntegrityError(f"it carries {seen!r:.80}, which is no key")
    scheme = manifest.annotations.get(SCHEME_ANNOTATION)
    if scheme not in {None, str(KEY_SCHEME)}:
        raise IntegrityError(f"its key is of scheme {scheme!r:.20}, expected {KEY_SCHEME}")
    return seen


def _lock(manifest: Manifest | ImageIndex, wanted: Tag | Digest) -> str:
    seen = manifest.annotations.get(LOCK_ANNOTATION)
    named = wanted.name if isinstance(wanted, Tag) and wanted.name.startswith(LOCK_TAG) else None
    if named is not None and named != f"{LOCK_TAG}{seen}":
        expected = named.removeprefix(LOCK_TAG)
        raise IntegrityError(f"it carries the lock key {seen or 'of nothing'}, expected {expected}")
    if seen is None:
        raise NotChecked("the image carries no lock key")
    if not _HEX.fullmatch(seen):
        raise IntegrityError(f"it carries {seen!r:.80}, which is no lock key")
    return seen


def _steps(manifest: Manifest, wanted: Tag) -> str:
    seen = manifest.annotations.get(STEPS_ANNOTATION)
    if wanted.name != f"{_STEPS_TAG}{seen}":
        expected = wanted.name.removeprefix(_STEPS_TAG)
        raise IntegrityError(f"it carries the steps key {seen or 'of nothing'}, expected {expected}")
    return str(seen)


def _index_key(index: ImageIndex, wanted: Tag | Digest, children: dict[Platform, Manifest]) -> str:
    """The key of an index is computed over the keys of its images."""
    seen = _key(index, wanted)
    _require_all(index, children)
    keys = {platform: child.annotations.get(KEY_ANNOTATION) for platform, child in children.items()}
    if without := next((platform for platform, key in keys.items() if key is None), None):
        raise IntegrityError(f"it carries the key {seen}, and its image for {without} carries none")
    found = index_key({platform: Key(key) for platform, key in keys.items() if key is not None})
    if str(found) != seen:
        raise IntegrityError(f"it carries the key {seen}, and its images have the key {found} together")
    return seen


def _index_lock(index: ImageIndex, wanted: Tag | Digest, children: dict[Platform, Manifest]) -> str:
    """The lock key of an index is computed over the names of its images, some of which are lock keys."""
    seen = _lock(index, wanted)
    _require_all(index, children)
    names = {platform: names_of(child) for platform, child in children.items()}
    if together(LockKey(seen), names) is not None:
        return seen
    raise IntegrityError(f"it carries the lock key {seen}, which is not that of its images together")


def _require_all(index: ImageIndex, children: dict[Platform, Manifest]) -> None:
    if len(children) != len(index.manifests):
        raise IntegrityError("its key cannot be that of its images: one is missing, or has no platform")
