"""The same environment on another base: new manifests and configs, and nothing built or downloaded."""

from __future__ import annotations

import datetime as dt
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from envbuild.admission import Admission
from envbuild.build.assemble import BASE_DIGEST_ANNOTATION, reannotated
from envbuild.build.job import Job
from envbuild.build.platforms import publish_index
from envbuild.build.recipe import BUILD_AGAIN, keep_recipe, name_of, read_recipe
from envbuild.build.transplant import Transplant, as_spec, made_on
from envbuild.build.upload import Upload
from envbuild.errors import BuildError, EnvbuildError, IntegrityError, NotFound, SpecError
from envbuild.key import (
    KEY_ANNOTATION,
    KEY_SCHEME,
    LOCK_ANNOTATION,
    LOCK_TAG,
    SCRATCH,
    CanonicalForm,
    index_key,
)
from envbuild.lockkey import LockKey, index_name, lock_key
from envbuild.oci.family import entries
from envbuild.oci.manifest import ImageIndex
from envbuild.oci.referrers import has_referrers_api
from envbuild.platform import Platform
from envbuild.publishing import Known, Publisher, Signing
from envbuild.reference import ImageReference, Tag, TaggedReference
from envbuild.spec.virtual import spelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuild.build.base import BaseImage
    from envbuild.build.bases import Bases, Named
    from envbuild.build.recipe import Recipe
    from envbuild.deadline import Deadline
    from envbuild.digest import Digest
    from envbuild.key import Key
    from envbuild.lockkey import Name
    from envbuild.oci.manifest import Manifest
    from envbuild.oci.registry import Registry
    from envbuild.reference import Repository

BaseName = ImageReference | TaggedReference | None
_KEY_TAG: Final = f"k{KEY_SCHEME}-"
_RECIPE_TAG: Final = "f1-"
_LAYOUT_THREADS: Final = 32
"""At least as many rebase into a layout: what waits to be tagged there is tagged in one go."""


@dataclass(frozen=True, slots=True)
class Rebased:
    """An image on its new base.

    Attributes:
        source: The image that it was made from.
        reference: The image.
        key: The key of the same definition on the new base.
        lock_key: The key of its solution, 64 hex digits; None for an image index, or where it says none.
        made: False where the workspace had an image of the name.
        name: What it is looked up by: its key, or where the source is locked its lock key.
    """

    source: ImageReference
    reference: ImageReference
    key: Key
    lock_key: str | None
    made: bool
    name: Name


@dataclass(frozen=True, slots=True)
class Failed:
    """An image that stays on its old base, and why."""

    source: str
    error: EnvbuildError


@dataclass(frozen=True)
class Rebaser(Transplant):
    """Puts environments on another base. May be used by several threads.

    Attributes:
        bases: Resolves bases.
    """

    bases: Bases = field(kw_only=True)
    _bases: dict[tuple[str, str], tuple[Digest | None, BaseImage]] = field(default_factory=dict, repr=False)
    _seen: dict[str, Any] = field(default_factory=dict, repr=False)
    _once: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def rebase(self, image: ImageReference | TaggedReference, base: BaseName, deadline: Deadline) -> Rebased:
        """Put one image's environment on a base and publish it to the workspace.

        Args:
            image: An image that envbuild made, with its recipe beside it; or an index of such images.
            base: The new base; None for ``scratch``.
            deadline: When to give up.

        Raises:
            SpecError: It is no such image, or there is no such base.
            SolveError: A package needs another glibc than the base has.
            BuildError: It cannot be done without building: there is no recipe, the base has too many layers
                or another python, or its steps need files or an engine.
            RegistryError: A registry could not be asked or written.
        """
        wanted = image.digest if isinstance(image, ImageReference) else image.tag
        try:
            manifest = self.registries.probe(image.repository, wanted, deadline)
        except NotFound as error:
            raise SpecError(f"there is no image {image}: {error.message}") from None
        locked = isinstance(wanted, Tag) and wanted.name.startswith(LOCK_TAG)
        return self._rebase(image.repository, manifest, base, deadline, locked=locked)

    def rebase_all(
        self, old: frozenset[Digest], base: BaseName, deadline: Deadline
    ) -> Iterator[Rebased | Failed]:
        """Rebase every image of the workspace that is on a base; one that fails does not stop the others.

        Args:
            old: The digests of that base, one or more as it has platforms.
            base: The new base.
            deadline: When to give up.
        """
        workspace = self.config.workspace
        names = {str(digest) for digest in old}
        registry = self.registries.open(workspace).by(deadline)
        tags = sorted(registry.tags(), key=str)
        with_recipe = {tag.name.removeprefix(_RECIPE_TAG) for tag in tags if tag.name.startswith(_RECIPE_TAG)}
        indexes: list[tuple[Tag, ImageIndex]] = []
        solutions: set[str | None] = set()

        def image(tag: Tag) -> Rebased | Failed | None:
            locked = tag.name.startswith(LOCK_TAG)

            def found() -> Rebased | None:
                manifest = self.registries.probe(workspace, tag, deadline)
                if locked and KEY_ANNOTATION in manifest.annotations and _hex(tag) not in with_recipe:
                    return None  # built without a lock
                if isinstance(manifest, ImageIndex):
                    indexes.append((tag, manifest))
                    return None
                solutions.add(manifest.annotations.get(LOCK_ANNOTATION))
                if manifest.annotations.get(BASE_DIGEST_ANNOTATION) not in names:
                    return None
                return self._rebase(workspace, manifest, base, deadline, locked=locked)

            return _tried(found, f"{workspace}:{tag}")

        def several(found: tuple[Tag, ImageIndex]) -> Rebased | Failed | None:
            def rebased() -> Rebased | None:
                named = entries(index, f"{workspace}:{tag}")
                parts = (self.registries.probe(workspace, part.digest, deadline) for part in named)
                on = {part.annotations.get(BASE_DIGEST_ANNOTATION) for part in parts}
                return self._rebase(workspace, index, base, deadline) if on & names else None

            tag, index = found
            return _tried(rebased, f"{workspace}:{tag}")

        threads = max(self.config.jobs, _LAYOUT_THREADS) if workspace.is_layout else self.config.jobs
        with ThreadPoolExecutor(threads, thread_name_prefix="rebase") as pool:
            keyed = [tag for tag in tags if tag.name.startswith(_KEY_TAG)]
            yield from (done for done in pool.map(image, keyed) if done is not None)
            # What was built of a lock has its recipe by the lock key; an image of a key tells its solution.
            locked = [
                tag
                for tag in tags
                if tag.name.startswith(LOCK_TAG) and (_hex(tag) in with_recipe or _hex(tag) not in solutions)
            ]
            yield from (done for done in pool.map(image, locked) if done is not None)
            # Their images have tags of their own, and so are there now.
            yield from (done for done in pool.map(several, sorted(indexes, key=str)) if done is not None)

    def digests(self, base: ImageReference | TaggedReference, deadline: Deadline) -> frozenset[Digest]:
        """The digests by which images name a base: its own, and of an index those of its platforms."""
        pinned = base.digest if isinstance(base, ImageReference) else None
        registry = self.registries.open(base.repository).by(deadline)
        try:
            found = registry.get_manifest(pinned or base.tag)  # type: ignore[union-attr]
        except NotFound as error:
            if pinned is None:
                raise SpecError(
                    f"the base {base} does not exist: {error.message}", hint="name it by its digest"
                ) from None
            return frozenset({pinned})
        below = {entry.digest for entry in found.manifests} if isinstance(found, ImageIndex) else set()
        return frozenset({found.descriptor.digest, *below})

    def _rebase(
        self,
        repository: Repository,
        manifest: Manifest | ImageIndex,
        base: BaseName,
        deadline: Deadline,
        *,
        locked: bool = False,
    ) -> Rebased:
        """Rebase an image; under its lock key where it is ``locked``, as what carries no key is anyway."""
        source = repository.at(manifest.descriptor.digest)
        own = name_of(manifest)
        if own is None:
            raise SpecError(f"{source} is no image that envbuild made")
        if isinstance(manifest, ImageIndex):
            return self._rebase_index(source, manifest, base, deadline)
        recipe = self._recipe(source, manifest, deadline)
        digest, new = self._base(base, recipe.lock.platform, deadline)
        form = self._form(recipe, digest)
        solved = lock_key(form, new.digest, recipe.lock, recipe.pip.wheels if recipe.pip is not None else ())
        wanted = solved if locked or isinstance(own, LockKey) else None
        name = wanted or form.key
        there = self._find(name.tag, deadline)
        if there is not None:
            reference = self.config.workspace.at(there.descriptor.digest)
            lock = there.annotations.get(LOCK_ANNOTATION)
            return Rebased(source, reference, form.key, lock, made=False, name=name)
        job = Job(
            as_spec(replace(recipe, form=form), base),
            form.key,
            recipe.lock.platform,
            new,
            deadline,
            lock_key=wanted,
        )
        seen = self._publish(job, recipe.on(form, str(solved)), solved, source)
        reference = self.config.workspace.at(seen)
        return Rebased(source, reference, form.key, str(solved), made=True, name=name)

    def _rebase_index(
        self, source: ImageReference, index: ImageIndex, base: BaseName, deadline: Deadline
    ) -> Rebased:
        """The index over the images of an index, each rebased for its platform."""
        done: dict[Platform, Rebased] = {}
        for entry in entries(index, str(source)):
            if entry.platform is None:
                raise SpecError(f"{source} names an image without a platform: {entry.digest}")
            part = self.registries.probe(source.repository, entry.digest, deadline)
            if isinstance(part, ImageIndex):
                raise IntegrityError(f"{source} is an index of indexes")
            platform = Platform(entry.platform.os, entry.platform.architecture, entry.platform.variant)
            done[platform] = self._rebase(source.repository, part, base, deadline)
        key = index_key({platform: each.key for platform, each in done.items()})
        name: Name = key
        if isinstance(name_of(index), LockKey):
            name = index_name({platform: each.name for platform, each in done.items()})
        there = self._find(name.tag, deadline)
        reference = publish_index(
            name,
            {platform: each.reference for platform, each in done.items()},
            self.config,
            self.registries,
            deadline,
            progress=self.progress,
        )
        return Rebased(source, reference, key, None, made=there is None, name=name)

    def _recipe(self, source: ImageReference, manifest: Manifest, deadline: Deadline) -> Recipe:
        """The recipe of an image that is trusted and that it belongs to."""
        admission = Admission(self.config, self.progress)
        registry = self.registries.open(source.repository)
        image = admission.image(manifest, registry, deadline, part=True, every=True)
        if image is None:
            raise IntegrityError(f"{source} is not trusted, and so neither is what is made of it")
        try:
            return read_recipe(self.registries, source.repository, image, deadline)
        except NotFound:
            raise BuildError(f"{source} has no recipe beside it", hint=BUILD_AGAIN) from None

    def _base(
        self, base: BaseName, platform: Platform, deadline: Deadline
    ) -> tuple[Digest | None, BaseImage]:
        """The digest that stands for a base in keys, and the base; read once."""
        name = (str(base), str(platform))
        with self._once:
            if name not in self._bases:
                named = self._asked(base, deadline)
                image = self.bases.image(base, platform, deadline, named.digest if named else None)
                digest = base.digest if isinstance(base, ImageReference) else image.digest
                self._bases[name] = (digest, image)
            return self._bases[name]

    def _form(self, recipe: Recipe, base: Digest | None) -> CanonicalForm:
        """The form of the definition on a base: glibc and the network of steps are what is given now."""
        fields = {**recipe.form.fields, "base": str(base) if base else SCRATCH}
        if self.config.glibc is not None and (fields["conda"] or fields["pip"]):
            given = {"glibc": spelled("glibc", self.config.glibc)}
            fields["virtual_packages"] = fields.get("virtual_packages", {}) | given
        if self.config.step_network == "none" and (
            fields["conda"] or fields["steps"] or fields["steps_after"]
        ):
            fields["step_network"] = "none"
        return CanonicalForm(fields)

    def _asked(self, base: BaseName, deadline: Deadline) -> Named | None:
        """What the base's tag names: one answer for all images and platforms."""
        if not isinstance(base, TaggedReference) or base.repository.is_engine:
            return None
        name = f"tag {base}"
        if name not in self._seen:
            self._seen[name] = self.bases.asked(base, deadline)
        named: Named = self._seen[name]
        return named

    def _publish(self, job: Job, recipe: Recipe, solved: LockKey, source: ImageReference) -> Digest:
        started = dt.datetime.now(dt.UTC)
        target = self.registries.open(self.config.workspace).by(job.deadline)
        upload = Upload(target, self.progress)
        base = self._with_steps(job, upload)
        self.check(recipe, base, job.deadline)
        annotations = self._annotations(job, solved)
        runs, stored = self.runs(job, recipe), False
        same = self._same_solution(target, solved, job.deadline) if runs else None
        if same is not None:
            manifest = reannotated(same.image, annotations)
        else:
            manifest = self.on_base(base, job, recipe, annotations, upload, source.repository)
            if runs and job.lock_key is None:  # nobody was there first, and others need not run it again
                target.put_manifest(manifest, solved.tag)
                stored = True
        has_empty = "empty" in self._seen
        has_empty = keep_recipe(target, recipe, job.name, self.progress, has_config=has_empty)
        if has_empty:
            self._seen["empty"] = True
        known = Known(stored, absent=True, has_empty=has_empty, has_api=self._has_api(target), crowded=True)
        publisher = Publisher(self.config, target, job.deadline, self.progress, known)
        seen = publisher.publish_built(
            manifest,
            job.name,
            made_on(job, recipe, started, source),
            signing=Signing(recipe.claim if self._signs else {}),
        )
        return seen.descriptor.digest

    def _has_api(self, target: Registry) -> bool | None:
        if not self.config.attach:
            return None
        with self._once:
            if "api" not in self._seen:
                self._seen["api"] = has_referrers_api(target)
            return bool(self._seen["api"])

    def _find(self, tag: Tag, deadline: Deadline) -> Manifest | ImageIndex | None:
        try:
            return self.registries.probe(self.config.workspace, tag, deadline)
        except NotFound:
            return None


def _hex(tag: Tag) -> str:
    """The digits of a tag, behind what says whose they are."""
    return tag.name.partition("-")[2]


def _tried(action: Callable[[], Rebased | None], name: str) -> Rebased | Failed | None:
    try:
        return action()
    except EnvbuildError as error:
        return Failed(name, error)
