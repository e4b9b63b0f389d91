"""The same environment on another base: new manifests and configs, and nothing built or downloaded."""

from __future__ import annotations

import datetime as dt
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from envbuild.admission import Admission, require_name
from envbuild.build.assemble import BASE_DIGEST_ANNOTATION, reannotated
from envbuild.build.job import Job
from envbuild.build.platforms import publish_index
from envbuild.build.recipe import BUILD_AGAIN, keep_recipe, name_of, read_recipe, require_together
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
from envbuild.lockkey import MAX_PLATFORMS, LockKey, index_name, lock_key, name_in
from envbuild.lookup import Lookup
from envbuild.oci.family import entries
from envbuild.oci.manifest import ImageIndex
from envbuild.oci.referrers import has_referrers_api
from envbuild.publishing import Known, Publisher, Signing
from envbuild.reference import ImageReference, TaggedReference
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
    from envbuild.platform import Platform
    from envbuild.reference import Repository, Tag

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
        return self._rebase(image.repository, manifest, base, deadline, name_in(wanted))

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
            name = name_in(tag)
            locked = isinstance(name, LockKey)

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
                return self._rebase(workspace, manifest, base, deadline, name)

            return _tried(found, f"{workspace}:{tag}")

        def several(found: tuple[Tag, ImageIndex]) -> Rebased | Failed | None:
            def rebased() -> Rebased | None:
                named = entries(index, f"{workspace}:{tag}")
                parts = (self.registries.probe(workspace, part.digest, deadline) for part in named)
                on = {part.annotations.get(BASE_DIGEST_ANNOTATION) for part in parts}
                return self._rebase(workspace, index, base, deadline, name_in(tag)) if on & names else None

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
        named: Name | None,
    ) -> Rebased:
        """Rebase what was ``named`` by its tag; None where it was named by its digest."""
        source = repository.at(manifest.descriptor.digest)
        own = name_of(manifest)
        if own is None:
            raise SpecError(f"{source} is no image that envbuild made")
        if named is not None:
            require_name(manifest, named, f"{repository}:{named.tag}")
        if isinstance(manifest, ImageIndex):
            return self._rebase_index(source, manifest, named or own, base, deadline)
        return self._carry_out(self._plan(source, manifest, base, deadline, named or own))

    def _plan(
        self, source: ImageReference, manifest: Manifest, base: BaseName, deadline: Deadline, named: Name
    ) -> _Plan:
        """How an image gets to its new base: all that can be compared before something is written.

        It gets there under its lock key where it was named by that, as what carries no key is anyway.
        """
        recipe = self._recipe(source, manifest, deadline)
        digest, new = self._base(base, recipe.lock.platform, deadline)
        form = self._form(recipe, digest)
        solved = lock_key(form, new.digest, recipe.lock, recipe.pip.wheels if recipe.pip is not None else ())
        wanted = solved if isinstance(named, LockKey) else None
        job = Job(
            as_spec(replace(recipe, form=form), base),
            form.key,
            recipe.lock.platform,
            new,
            deadline,
            lock_key=wanted,
        )
        there, is_free = self._there(job.name, (job.platform,), deadline)
        return _Plan(source, job, recipe.on(form, str(solved)), solved, there, is_free)

    def _carry_out(self, plan: _Plan) -> Rebased:
        key, name = plan.job.key, plan.job.name
        if plan.there is not None:
            reference = self.config.workspace.at(plan.there.descriptor.digest)
            lock = plan.there.annotations.get(LOCK_ANNOTATION)
            return Rebased(plan.source, reference, key, lock, made=False, name=name)
        reference = self.config.workspace.at(self._publish(plan))
        return Rebased(plan.source, reference, key, str(plan.solved), made=True, name=name)

    def _rebase_index(
        self, source: ImageReference, index: ImageIndex, named: Name, base: BaseName, deadline: Deadline
    ) -> Rebased:
        """The index over the images of an index, each rebased for its platform."""
        images = self._images(source, index, named, deadline)
        plans = {
            platform: self._plan(source.repository.at(image.descriptor.digest), image, base, deadline, own)
            for platform, (image, own) in images.items()
        }
        key = index_key({platform: plan.job.key for platform, plan in plans.items()})
        name: Name = key
        if isinstance(named, LockKey):
            name = index_name({platform: plan.job.name for platform, plan in plans.items()})
        there, _ = self._there(name, tuple(plans), deadline)
        if there is not None:
            reference = self.config.workspace.at(there.descriptor.digest)
            return Rebased(source, reference, key, None, made=False, name=name)
        reference = publish_index(
            name,
            {platform: self._carry_out(plan).reference for platform, plan in plans.items()},
            self.config,
            self.registries,
            deadline,
            progress=self.progress,
        )
        return Rebased(source, reference, key, None, made=True, name=name)

    def _images(
        self, source: ImageReference, index: ImageIndex, named: Name, deadline: Deadline
    ) -> dict[Platform, tuple[Manifest, Name]]:
        """The image of each platform of an index that may be used, and what it goes by."""
        admission = Admission(self.config, self.progress)
        registry = self.registries.open(source.repository)
        if admission.image(index, registry, deadline, part=True, platforms=()) is None:
            raise IntegrityError(f"{source} is not trusted, and so neither is what is made of it")
        images: list[Manifest] = []
        for entry in index.manifests[:MAX_PLATFORMS]:
            part = self.registries.probe(source.repository, entry.digest, deadline)
            if isinstance(part, ImageIndex):
                raise IntegrityError(f"{source} is an index of indexes")
            images.append(part)
        names = require_together(index, images, named, str(source))
        return {platform: (image, names[platform]) for platform, image in zip(names, images, strict=True)}

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

    def _publish(self, plan: _Plan) -> Digest:
        job, recipe, solved, source = plan.job, plan.recipe, plan.solved, plan.source
        started = dt.datetime.now(dt.UTC)
        target = self.registries.open(self.config.workspace).by(job.deadline)
        upload = Upload(target, self.progress)
        base = self._with_steps(job, upload)
        self.check(recipe, base, job.deadline)
        annotations = self._annotations(job, solved)
        runs, tag = self.runs(job, recipe), None
        same = self._same_solution(target, solved, job.deadline) if runs else None
        if same is not None:
            manifest = reannotated(same.image, annotations)
        else:
            manifest = self.on_base(base, job, recipe, annotations, upload, source.repository)
            if runs and job.lock_key is None:  # nobody was there first, and others need not run it again
                tag = solved.tag
        has_empty = "empty" in self._seen
        has_empty = keep_recipe(target, recipe, job.name, self.progress, has_config=has_empty)
        if has_empty:
            self._seen["empty"] = True
        has_api = self._has_api(target)
        known = Known(absent=plan.is_free, has_empty=has_empty, has_api=has_api, crowded=True)
        publisher = Publisher(self.config, target, job.deadline, self.progress, known)
        seen = publisher.publish_built(
            manifest,
            job.name,
            made_on(job, recipe, started, source),
            signing=Signing(
                recipe.claim if self._signs else {},
                partial(self._name, upload, manifest, tag, job.deadline),
            ),
        )
        return seen.descriptor.digest

    def _has_api(self, target: Registry) -> bool | None:
        if not self.config.attach:
            return None
        with self._once:
            if "api" not in self._seen:
                self._seen["api"] = has_referrers_api(target)
            return bool(self._seen["api"])

    def _there(
        self, name: Name, platforms: tuple[Platform, ...], deadline: Deadline
    ) -> tuple[Manifest | ImageIndex | None, bool]:
        """What the workspace has under a name, as whoever resolves it finds it, and whether its tag is free.

        Raises:
            IntegrityError: Something else has the tag.
            Untrusted: What has it is not accepted, and nothing is signed here that could take its place.
        """
        workspace = self.config.workspace
        lookup = Lookup(self.config, self.index, self.registries, self.progress, platforms=platforms)
        try:
            found = lookup.at(workspace, name, deadline)
        except NotFound:
            return None, True
        if found is None and not self._signs:
            from envbuild.trust import Untrusted

            raise Untrusted(
                f"{workspace}:{name.tag} is not accepted, and what is made here is not signed",
                hint="delete the tag, or rebase where `sign_key` or `sign_identity` is set",
            )
        return (found.manifest if found is not None else None), False


@dataclass(frozen=True, slots=True)
class _Plan:
    """How one image gets to its new base.

    Attributes:
        source: The image that it is made from.
        job: What is made.
        recipe: The environment under the definition on the new base.
        solved: The key of its solution there.
        there: The image that the workspace has of the name; None where one is made.
        is_free: Whether the tag of the name was not there.
    """

    source: ImageReference
    job: Job
    recipe: Recipe
    solved: LockKey
    there: Manifest | ImageIndex | None
    is_free: bool


def _hex(tag: Tag) -> str:
    """The digits of a tag, behind what says whose they are."""
    return tag.name.partition("-")[2]


def _tried(action: Callable[[], Rebased | None], name: str) -> Rebased | Failed | None:
    try:
        return action()
    except EnvbuildError as error:
        return Failed(name, error)
