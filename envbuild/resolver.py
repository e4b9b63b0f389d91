"""From a definition to the digest-pinned reference of its image: index, workspace, global, else build."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Self

from envbuild import lockfile
from envbuild.build.bases import Bases
from envbuild.deadline import Deadline
from envbuild.errors import CacheMiss, RegistryError, SpecError, TagMoved
from envbuild.index import ImageEntry, Index
from envbuild.key import CanonicalForm, index_key
from envbuild.lookup import Lookup
from envbuild.oci.registries import Registries
from envbuild.progress import Event, silent
from envbuild.storage import key_lock, local_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from envbuild.build.bases import Named
    from envbuild.config import Config
    from envbuild.digest import Digest
    from envbuild.key import Key
    from envbuild.lockfile.document import LockEntry
    from envbuild.lookup import Hit
    from envbuild.platform import Platform
    from envbuild.progress import Progress
    from envbuild.reference import ImageReference
    from envbuild.spec.environment import EnvironmentSpec


class Source(enum.StrEnum):
    """Where an image was found."""

    INDEX = "index"
    WORKSPACE = "workspace"
    GLOBAL = "global"
    BUILT = "built"


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """The answer: an image that was there or was built.

    Attributes:
        reference: ``repository@sha256:…``.
        key: The definition's key.
        lock_key: The key of its solution, 64 hex digits; None where the image says none.
        source: Where it was found.
        platform: The platform it is for.
        seconds: How long the call took.
        layers_made: Layers that were made; 0 unless it was built.
        layers_reused: Package layers that were known already; 0 unless it was built.
        bytes_uploaded: Bytes of blobs sent to the workspace.
        platforms: All platforms that it is for: several where it is an index, and then ``platform`` is the
            definition's first.
    """

    reference: ImageReference
    key: Key
    lock_key: str | None
    source: Source
    platform: Platform
    seconds: float
    layers_made: int = 0
    layers_reused: int = 0
    bytes_uploaded: int = 0
    platforms: tuple[Platform, ...] = ()


class Resolver:
    """Resolves definitions. Keeps connections and caches; may be used by several threads.

    Args:
        config: The settings.
        progress: Told what is going on.
        locks: Which locks are used; those that stand beside definitions and match them, if None.
    """

    def __init__(
        self, config: Config, *, progress: Progress = silent, locks: lockfile.LockPolicy | None = None
    ) -> None:
        self.config = config
        self.progress = progress
        self.locks = locks or lockfile.LockPolicy()
        self.index = Index(config.cache_dir, patience=config.timeout, warn=self._remark)
        self.registries = Registries(config.insecure, config.registries)
        self._told: set[tuple[str, str]] = set()
        self.bases = Bases(self.registries, self.index, config.base_ttl, config.docker_host)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back connections and files. Closing twice is harmless."""
        self.registries.close()
        self.index.close()

    def _remark(self, text: str) -> None:
        self.progress(Event("resolve", "index", "output", text=text))

    def load(self, spec: EnvironmentSpec | Path | str) -> EnvironmentSpec:
        """A definition, with the configured base where it names none.

        Raises:
            SpecError: The definition cannot be understood.
        """
        from envbuild.foreign import load
        from envbuild.spec.environment import EnvironmentSpec

        loaded = spec if isinstance(spec, EnvironmentSpec) else load(spec)
        if not loaded.has_base and self.config.base is not None:
            return loaded.with_base(self.config.base)
        return loaded

    def key(self, spec: EnvironmentSpec | Path | str, *, timeout: float | None = None) -> Key:
        """The key of a definition, or of the index where it is for several platforms; nothing is written.

        Raises:
            SpecError: The definition cannot be understood.
        """
        return index_key({each: form.key for each, form in self.forms(spec, timeout=timeout).items()})

    def form(self, spec: EnvironmentSpec | Path | str, *, timeout: float | None = None) -> CanonicalForm:
        """The canonical form of a definition for one platform, from which the key is made."""
        return self._request(spec, timeout).form

    @local_errors()
    def forms(
        self, spec: EnvironmentSpec | Path | str, *, timeout: float | None = None
    ) -> dict[Platform, CanonicalForm]:
        """The canonical form of a definition for each of its platforms, sorted by platform."""
        return {each: request.form for each, request in self._requests(spec, timeout).items()}

    def parts(self, spec: EnvironmentSpec | Path | str) -> dict[Platform, EnvironmentSpec]:
        """A definition taken apart: for each of its platforms, sorted, the definition for that one."""
        loaded = self.load(spec)
        return {each: replace(loaded, platforms=(each,)) for each in loaded.platforms}

    @local_errors()
    def resolve(
        self,
        spec: EnvironmentSpec | Path | str,
        *,
        build: bool = True,
        timeout: float | None = None,
    ) -> ResolvedImage:
        """The image of a definition: found, or built and pushed to the workspace.

        Args:
            spec: A definition or the path of one.
            build: Whether a miss may be built.
            timeout: Seconds after which to give up; the configured time if None.

        Raises:
            SpecError: The definition cannot be understood.
            CacheMiss: It is nowhere, and ``build`` is false.
            RegistryError: A registry could not be asked; nothing was built.
            SolveError: Nothing satisfies the definition.
            BuildError: The build failed.
            IntegrityError: What was found is not what it says it is.
            DeadlineExceeded: The time ran out.
        """
        started = time.monotonic()
        spec = self.load(spec)
        requests = self._requests(spec, timeout)
        if len(requests) > 1:
            image = self._several(requests, lambda request: self._resolved(request, build=build))
        else:
            image = self._resolved(requests[spec.platforms[0]], build=build)
        return replace(image, seconds=time.monotonic() - started)

    @local_errors()
    def build(self, spec: EnvironmentSpec | Path | str, *, timeout: float | None = None) -> ResolvedImage:
        """Build the image of a definition without asking whether it is there; arguments and errors as above.

        If the workspace has an image of the same key, that one stays and is the answer.
        """
        started = time.monotonic()
        spec = self.load(spec)
        requests = self._requests(spec, timeout)
        if len(requests) > 1:
            image = self._several(requests, self._built)
        else:
            image = self._built(requests[spec.platforms[0]])
        return replace(image, seconds=time.monotonic() - started)

    def _several(
        self, requests: Mapping[Platform, _Request], action: Callable[[_Request], ResolvedImage]
    ) -> ResolvedImage:
        """The index of a definition for several platforms: found, or made of the image of each."""
        from envbuild.build.platforms import publish_index

        platforms = tuple(requests)
        deadline = requests[platforms[0]].deadline
        key = index_key({each: request.key for each, request in requests.items()})
        hit = Lookup(self.config, self.index, self.registries, self.progress).find(key, deadline)
        if hit is not None:
            if hit.source == "global" and self.config.promote:
                hit = self._promote(hit, key, deadline)
            found = ResolvedImage(hit.reference, key, None, Source(hit.source), platforms[0], 0.0)
        else:
            images = {each: action(request) for each, request in requests.items()}
            reference = publish_index(
                key,
                {each: image.reference for each, image in images.items()},
                self.config,
                self.registries,
                deadline,
                progress=self.progress,
            )
            self.index.put_image(ImageEntry(str(key), reference, None, time.time()))
            found = _together(reference, key, tuple(images.values()))
        return replace(found, platforms=platforms)

    def _request(self, spec: EnvironmentSpec | Path | str, timeout: float | None) -> _Request:
        spec = self.load(spec)
        platform = _one_platform(spec)
        return self._requests(spec, timeout)[platform]

    def _requests(
        self, spec: EnvironmentSpec | Path | str, timeout: float | None
    ) -> dict[Platform, _Request]:
        """What is asked for on each platform; the base's tag is asked once for all of them."""
        deadline = Deadline.after(self.config.timeout if timeout is None else timeout)
        named: Named | None = None
        found = {}
        for platform, part in self.parts(spec).items():
            locked = lockfile.apply(part, platform, self.locks)
            if locked.note is not None and (part.source, locked.note) not in self._told:
                self._told.add((part.source, locked.note))
                self.progress(Event("resolve", part.source, "output", text=locked.note))
            base = locked.spec.require_base()
            named = named or self.bases.named(base, deadline)
            digest = self.bases.digest(base, platform, deadline, named)
            form = CanonicalForm.of(locked.spec, digest, platform)
            found[platform] = _Request(locked.spec, form, form.key, platform, deadline, locked.entry, digest)
        return found

    def _resolved(self, request: _Request, *, build: bool) -> ResolvedImage:
        image = self._find(request)
        if image is None and not build:
            raise CacheMiss(
                f"no registry holds {request.key.tag}",
                hint="let it be built: with build=True, or without --no-build",
            )
        return image or self._build_once(request)

    def _built(self, request: _Request) -> ResolvedImage:
        with key_lock(self.config.cache_dir, str(request.key), request.deadline):
            return self._build(request)

    def _find(self, request: _Request) -> ResolvedImage | None:
        lookup = Lookup(self.config, self.index, self.registries, self.progress)
        hit = lookup.find(request.key, request.deadline)
        if hit is None:
            return None
        if hit.source != "index":
            self.index.put_form(str(request.key), request.form.fields)
        if hit.source == "global" and self.config.promote:
            hit = self._promote(hit, request.key, request.deadline)
        return ResolvedImage(
            hit.reference, request.key, hit.lock_key, Source(hit.source), request.platform, 0.0
        )

    def _promote(self, hit: Hit, key: Key, deadline: Deadline) -> Hit:
        """Copy a global hit to the workspace with what is attached; a failure leaves the hit where it is."""
        from envbuild.promote import Promotion

        promotion = Promotion(
            self.registries.open(hit.reference.repository),
            self.registries.open(self.config.workspace),
            self.config.cache_dir,
            self.config.jobs,
            self.progress,
            deadline,
        )
        try:
            reference = promotion.promote(hit.reference.digest, with_referrers=True).reference
        except RegistryError as error:
            self.progress(Event("resolve", str(key), "output", text=f"not promoted: {error}"))
            return hit
        self.index.put_image(ImageEntry(str(key), reference, hit.lock_key, time.time()))
        return replace(hit, reference=reference)

    def _build_once(self, request: _Request) -> ResolvedImage:
        """Build under the key's lock; whoever waited for it finds what the holder built."""
        with key_lock(self.config.cache_dir, str(request.key), request.deadline):
            return self._find(request) or self._build(request)

    def _build(self, request: _Request) -> ResolvedImage:
        from envbuild.build.choose import builder_for
        from envbuild.build.job import Job

        if self.config.attach and self.config.sbom:
            from envbuild.sbom import check

            check()
        self.progress(Event("resolve", str(request.key), "start", text="building"))
        base = self.bases.image(request.spec.require_base(), request.platform, request.deadline, request.base)
        builder = builder_for(self.config, self.index, self.registries, self.progress)
        wanted = self.locks.lock_key
        job = Job(request.spec, request.key, request.platform, base, request.deadline, request.locked, wanted)
        try:
            built = builder.build(job)
        except TagMoved:  # another machine tagged its image at the same moment: that one is the answer
            if (found := self._find(request)) is None:
                raise
            return found
        reference = self.config.workspace.at(built.digest)
        self.index.put_image(ImageEntry(str(request.key), reference, built.lock_key, time.time()))
        self.index.put_form(str(request.key), request.form.fields)
        return ResolvedImage(
            reference,
            request.key,
            built.lock_key,
            Source.BUILT,
            request.platform,
            0.0,
            built.layers_made,
            built.layers_reused,
            built.bytes_uploaded,
        )


class _Request(NamedTuple):
    """A definition on its way: loaded, with its base resolved."""

    spec: EnvironmentSpec
    form: CanonicalForm
    key: Key
    platform: Platform
    deadline: Deadline
    locked: LockEntry | None
    base: Digest | None


def _together(reference: ImageReference, key: Key, images: tuple[ResolvedImage, ...]) -> ResolvedImage:
    built = any(image.source is Source.BUILT for image in images)
    return ResolvedImage(
        reference,
        key,
        None,
        Source.BUILT if built else Source.WORKSPACE,
        images[0].platform,
        0.0,
        sum(image.layers_made for image in images),
        sum(image.layers_reused for image in images),
        sum(image.bytes_uploaded for image in images),
    )


def _one_platform(spec: EnvironmentSpec) -> Platform:
    if len(spec.platforms) != 1:
        names = ", ".join(str(platform) for platform in spec.platforms)
        raise SpecError(
            f"the definition is for {names}: one platform is resolved at a time",
            source=spec.source,
            hint="say which with --platform",
        )
    return spec.platforms[0]
