"""From a definition to the digest-pinned reference of its image: index, workspace, global, else build."""

from __future__ import annotations

import contextlib
import enum
import os
import time
import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from envbuild import lockfile
from envbuild.build.bases import Bases
from envbuild.deadline import Deadline
from envbuild.errors import CacheMiss, IntegrityError, RegistryError, SpecError, TagMoved
from envbuild.index import ImageEntry, Index
from envbuild.key import CanonicalForm, index_key
from envbuild.lookup import Lookup
from envbuild.oci.registries import Registries
from envbuild.oci.unknown import Unknowns
from envbuild.progress import Event, silent
from envbuild.storage import key_lock, local_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

    from envbuild.build.bases import Named
    from envbuild.build.job import Again, Job
    from envbuild.config import Config
    from envbuild.digest import Digest
    from envbuild.key import Key
    from envbuild.lockfile.document import LockEntry
    from envbuild.lockkey import LockKey, Name
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
        lock_key: The key of its solution, 64 hex digits; None where the image says none, and for an index
            that is not locked.
        source: Where it was found.
        platform: The platform it is for.
        seconds: How long the call took.
        layers_made: Layers that were made; 0 unless it was built.
        layers_reused: Package layers that were known already; 0 unless it was built.
        bytes_uploaded: Bytes of blobs sent to the workspace.
        platforms: All platforms that it is for: several where it is an index, and then ``platform`` is the
            definition's first.
        locked: Whether it was looked for, and stands in its repository, by its lock key and not by its key.
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
    locked: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """A definition on its way to one image: loaded, held to its lock, with its base resolved.

    Attributes:
        spec: The definition; its base is pinned where it is locked.
        form: Its canonical form.
        key: The key of the form.
        platform: The platform.
        deadline: When to give up.
        locked: What a lock says it was solved to, or None.
        base: The digest that stands for the base in the form; None for ``scratch``.
        lock_key: The lock key of what is locked, or None.
        manifest: The digest of the manifest of the base's platform, where something is locked; None for
            ``scratch``.
        note: What a person should know of the lock, or None.
    """

    spec: EnvironmentSpec
    form: CanonicalForm
    key: Key
    platform: Platform
    deadline: Deadline
    locked: LockEntry | None
    base: Digest | None
    lock_key: LockKey | None = None
    manifest: Digest | None = None
    note: str | None = None

    @property
    def name(self) -> Name:
        """What the image is looked up by, and is published as."""
        return self.lock_key or self.key

    @property
    def hashed(self) -> dict[str, Any]:
        """What the name is the hash of: the canonical form, or that of the solution."""
        if self.locked is None:
            return dict(self.form.fields)
        from envbuild.lockkey import solution_form

        return solution_form(self.form, self.manifest, self.locked.lock, self.locked.pip)

    @property
    def inputs(self) -> Mapping[str, Any]:
        """All that decides which image it is, to be compared with that of others."""
        if self.locked is None:
            return self.form.fields
        from envbuild.lockfile.document import distribution_json

        packages = [package.identity for package in self.locked.lock.packages]
        wheels = [distribution_json(wheel) for wheel in self.locked.pip]
        return {**self.form.fields, "packages": packages, "wheels": wheels}


class Resolver:
    """Resolves definitions. Keeps connections and caches; may be used by several threads.

    Args:
        config: The settings.
        progress: Told what is going on.
        locks: Which locks are used; those that stand beside definitions and match them, if None.
        confirm: Whether registries are asked for every image, whatever the index knows.
        again: The image that is built again from its lock, or None.
    """

    def __init__(
        self,
        config: Config,
        *,
        progress: Progress = silent,
        locks: lockfile.LockPolicy | None = None,
        confirm: bool = False,
        again: Again | None = None,
    ) -> None:
        self.config = config
        self.confirm = confirm
        self.again = again
        self.progress = progress
        self.locks = locks or lockfile.LockPolicy()
        self.index = Index(config.cache_dir, patience=config.timeout, warn=self._remark)
        self._told: set[tuple[str, str]] = set()
        self.connect()
        _resolvers.add(self)

    def connect(self) -> None:
        """Begin with new connections, as a forked child must: its parent speaks through the old ones."""
        config, progress = self.config, self.progress
        self.registries = Registries(
            config.insecure, config.registries, progress=progress, unknowns=unknowns_of(config, progress)
        )
        self.bases = Bases(self.registries, self.index, config.base_ttl, config.docker_host, config.trust)

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
        """A definition, with the settings laid over it that decide what the image holds.

        Raises:
            SpecError: The definition cannot be understood.
        """
        from envbuild.foreign import load
        from envbuild.spec.environment import EnvironmentSpec

        loaded = spec if isinstance(spec, EnvironmentSpec) else load(spec, **self.config.reading)
        if self.locks.lock_key is not None:  # what must come out was made with the lock's own settings
            return loaded
        return self.config.over(loaded)

    def key(self, spec: EnvironmentSpec | Path | str, *, timeout: float | None = None) -> Key:
        """The key of a definition, or of the index where it is for several platforms; nothing is written.

        What is locked is looked up by :meth:`name` instead.

        Raises:
            SpecError: The definition cannot be understood.
        """
        return index_key({each: one.key for each, one in self.wanted(spec, timeout=timeout).items()})

    def name(self, spec: EnvironmentSpec | Path | str, *, timeout: float | None = None) -> Name:
        """What :meth:`resolve` looks for: the lock key where a lock matches, else the key; as :meth:`key`."""
        return name_for(self.wanted(spec, timeout=timeout))

    def form(self, spec: EnvironmentSpec | Path | str, *, timeout: float | None = None) -> CanonicalForm:
        """The canonical form of a definition for one platform, from which the key is made."""
        return self.request(spec, timeout).form

    @local_errors()
    def wanted(
        self, spec: EnvironmentSpec | Path | str, *, timeout: float | None = None
    ) -> dict[Platform, Wanted]:
        """What is wanted for each platform of a definition, sorted by platform.

        The base's tag is asked once for all of them.

        Raises:
            SpecError: The definition cannot be understood.
            IntegrityError: The lock has not the lock key that it must have.
        """
        deadline = Deadline.after(self.config.timeout if timeout is None else timeout)
        named: Named | None = None
        found = {}
        for platform, part in self.parts(spec).items():
            locked = lockfile.apply(part, platform, self.locks, confine=self.config.confine)
            if locked.note is not None and (part.source, locked.note) not in self._told:
                self._told.add((part.source, locked.note))
                self.progress(Event("resolve", part.source, "output", text=locked.note))
            base = locked.spec.require_base()
            named = named or self.bases.named(base, deadline)
            digest = self.bases.digest(base, platform, deadline, named)
            form = CanonicalForm.of(locked.spec, digest, platform)
            request = Wanted(
                locked.spec, form, form.key, platform, deadline, locked.entry, digest, note=locked.note
            )
            found[platform] = request if locked.entry is None else self._locked(request, locked.entry)
        return found

    def request(self, spec: EnvironmentSpec | Path | str, timeout: float | None = None) -> Wanted:
        """What is wanted for a definition for one platform; errors as of :meth:`wanted`."""
        spec = self.load(spec)
        platform = _one_platform(spec)
        return self.wanted(spec, timeout=timeout)[platform]

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
            build: Whether a miss may be built. If not, no registry is written at all: a hit in the global
                repository is not promoted, and no index is put over images that are there.
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
        requests = self.wanted(spec, timeout=timeout)
        if len(requests) > 1:

            def action(request: Wanted) -> ResolvedImage:
                return self._resolved(request, build=build, part=True)

            image = self._several(requests, action, build=build)
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
        requests = self.wanted(spec, timeout=timeout)
        if len(requests) > 1:
            image = self._several(requests, self._built)
        else:
            image = self._built(requests[spec.platforms[0]])
        return replace(image, seconds=time.monotonic() - started)

    def _several(
        self,
        requests: Mapping[Platform, Wanted],
        action: Callable[[Wanted], ResolvedImage],
        *,
        build: bool = True,
    ) -> ResolvedImage:
        """The index of a definition for several platforms: found, or made of the image of each."""
        from envbuild.build.platforms import publish_index

        platforms = tuple(requests)
        deadline = requests[platforms[0]].deadline
        key = index_key({each: request.key for each, request in requests.items()})
        name = name_for(requests)
        lock = None if name == key else str(name)
        hit = self._lookup(name, deadline, platforms, promote=build)
        if hit is not None:
            source = Source(hit.source)
            found = ResolvedImage(
                hit.reference, key, lock, source, platforms[0], 0.0, locked=lock is not None
            )
        else:
            images = {each: action(request) for each, request in requests.items()}
            if not build:
                raise _miss(name)
            reference = publish_index(
                name,
                {each: image.reference for each, image in images.items()},
                self.config,
                self.registries,
                deadline,
                progress=self.progress,
            )
            self.index.put_image(ImageEntry(str(name), reference, lock, time.time()))
            found = _together(reference, key, lock, tuple(images.values()))
        return replace(found, platforms=platforms)

    def _resolved(self, request: Wanted, *, build: bool, part: bool = False) -> ResolvedImage:
        """The image of one platform; one that becomes ``part`` of an index is asked for more."""
        image = self._find(request, promote=build, part=part)
        if image is None and not build:
            raise _miss(request.name)
        return image or self._build_once(request, part=part)

    def _built(self, request: Wanted) -> ResolvedImage:
        with key_lock(self.config.cache_dir, str(request.name), request.deadline):
            with contextlib.suppress(RegistryError):  # what has the tag and is another image ends it early
                self._looking((request.platform,)).at(self.config.workspace, request.name, request.deadline)
            return self._build(request)

    def _locked(self, request: Wanted, entry: LockEntry) -> Wanted:
        """The request with its lock key; no registry is asked, but where an older version's lock is open."""
        manifest = entry.manifest or entry.digest
        if entry.is_open:
            base = request.spec.require_base()
            manifest = self.bases.image(base, request.platform, request.deadline).digest
        # The lock was made of the same packages, and how they are installed is what this definition says.
        found = replace(entry, form=request.form).lock_key(manifest)
        must = self.locks.lock_key
        if must not in {None, str(found)}:
            raise IntegrityError(
                f"the packages, wheels and settings have the lock key {found}, expected {must}",
                hint="the lock is not that of the image; resolve the definition instead",
            )
        return replace(request, lock_key=found, manifest=manifest)

    def _find(self, request: Wanted, *, promote: bool = True, part: bool = False) -> ResolvedImage | None:
        platforms = (request.platform,)
        hit = self._lookup(request.name, request.deadline, platforms, promote=promote, part=part)
        if hit is None:
            return None
        if hit.source != "index":
            self.index.put_form(str(request.name), request.inputs)
        return ResolvedImage(
            hit.reference,
            request.key,
            hit.lock_key,
            Source(hit.source),
            request.platform,
            0.0,
            locked=request.lock_key is not None,
        )

    def _lookup(
        self,
        name: Name,
        deadline: Deadline,
        platforms: tuple[Platform, ...],
        *,
        promote: bool,
        part: bool = False,
    ) -> Hit | None:
        """Find an image, and copy one that is not in the workspace to it where that is wished."""
        hit = self._looking(platforms, part=part).find(name, deadline)
        if hit is None or hit.reference.repository == self.config.workspace:
            return hit
        return self._promote(hit, name, deadline, platforms) if promote and self.config.promote else hit

    def _looking(self, platforms: tuple[Platform, ...], *, part: bool = False) -> Lookup:
        return Lookup(self.config, self.index, self.registries, self.progress, self.confirm, platforms, part)

    def _promote(self, hit: Hit, name: Name, deadline: Deadline, platforms: tuple[Platform, ...]) -> Hit:
        """Copy a global hit to the workspace with what is attached; a failure leaves the hit where it is."""
        from envbuild.promote import Promotion
        from envbuild.trust.policy import Untrusted

        promotion = Promotion(
            self.registries.open(hit.reference.repository),
            self.registries.open(self.config.workspace),
            self.config,
            self.progress,
            deadline,
        )
        try:
            done = promotion.promote(
                hit.reference.digest, name=name, platforms=platforms, with_referrers=True
            )
        except (RegistryError, Untrusted) as error:
            self.progress(Event("resolve", str(name), "output", text=f"not promoted: {error}"))
            return hit
        reference = done.reference
        self.index.put_image(ImageEntry(str(name), reference, hit.lock_key, time.time()))
        return replace(hit, reference=reference)

    def _build_once(self, request: Wanted, *, part: bool = False) -> ResolvedImage:
        """Build under the name's lock; whoever waited for it finds what the holder built."""
        with key_lock(self.config.cache_dir, str(request.name), request.deadline):
            return self._find(request, part=part) or self._build(request)

    def job(self, request: Wanted) -> Job:
        """What a builder is given to build it."""
        from envbuild.build.job import Job

        base = self.bases.image(request.spec.require_base(), request.platform, request.deadline, request.base)
        return Job(
            request.spec,
            request.key,
            request.platform,
            base,
            request.deadline,
            request.locked,
            request.lock_key,
            self.again,
        )

    def _require_use(self, request: Wanted) -> None:
        """Refuse to build what would not get its tag.

        Raises:
            Untrusted: What has the tag is not accepted, and nothing is signed here that could take its place.
        """
        workspace, trust = self.config.workspace, self.config.trust
        if trust is None or trust.signs or not trust.rule(workspace).require_signed:
            return
        with contextlib.suppress(RegistryError):
            manifest = self.registries.probe(workspace, request.name.tag, request.deadline)
            from envbuild.admission import Admission

            registry = self.registries.open(workspace)
            Admission(self.config, self.progress).require(manifest, registry, request.deadline)

    def _build(self, request: Wanted) -> ResolvedImage:
        from envbuild.build.choose import builder_for

        if self.config.attach and self.config.sbom:
            from envbuild.sbom import check

            check()
        self._require_use(request)
        self.progress(Event("resolve", str(request.name), "start", text="building"))
        job = self.job(request)
        builder = builder_for(self.config, self.index, self.registries, self.progress)
        try:
            built = builder.build(job)
        except TagMoved:  # another machine tagged its image at the same moment: that one is the answer
            if (found := self._find(request)) is None:
                raise
            return found
        reference = self.config.workspace.at(built.digest)
        self.index.put_image(ImageEntry(str(request.name), reference, built.lock_key, time.time()))
        self.index.put_form(str(request.name), request.inputs)
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
            locked=request.lock_key is not None,
        )


def unknowns_of(config: Config, progress: Progress) -> Unknowns:
    """What the settings say that unknown answers of workspace and global repository mean."""
    if config.on_unavailable != "build":
        return Unknowns(progress=progress)
    places = (config.workspace, config.global_)
    return Unknowns([place for place in places if place is not None], progress)


_resolvers: weakref.WeakSet[Resolver] = weakref.WeakSet()


def _forked() -> None:
    for resolver in _resolvers:
        resolver.connect()


os.register_at_fork(after_in_child=_forked)


def name_for(requests: Mapping[Platform, Wanted]) -> Name:
    """What the image of one platform, or the index over those of several, is looked up by."""
    if len(requests) == 1:
        return next(iter(requests.values())).name
    if all(request.lock_key is None for request in requests.values()):
        return index_key({platform: request.key for platform, request in requests.items()})
    from envbuild.lockkey import index_name

    return index_name({platform: request.name for platform, request in requests.items()})


def _miss(name: Name) -> CacheMiss:
    return CacheMiss(
        f"no registry holds {name.tag}", hint="let it be built: with build=True, or without --no-build"
    )


def _together(
    reference: ImageReference, key: Key, lock: str | None, images: tuple[ResolvedImage, ...]
) -> ResolvedImage:
    built = any(image.source is Source.BUILT for image in images)
    return ResolvedImage(
        reference,
        key,
        lock,
        Source.BUILT if built else Source.WORKSPACE,
        images[0].platform,
        0.0,
        sum(image.layers_made for image in images),
        sum(image.layers_reused for image in images),
        sum(image.bytes_uploaded for image in images),
        locked=lock is not None,
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
