"""The same environment on another base: new manifests and configs, and nothing built or downloaded."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from envbuild.build.assemble import (
    BASE_DIGEST_ANNOTATION,
    SCHEME_ANNOTATION,
    assemble,
    oci_layer,
    reannotated,
)
from envbuild.build.base import glibc_version
from envbuild.build.compose import Composition
from envbuild.build.job import Job
from envbuild.build.layers import LayersBuilder
from envbuild.build.recipe import BUILD_AGAIN, put_recipe, read_recipe
from envbuild.build.upload import Upload
from envbuild.errors import (
    BuildError,
    EnvbuildError,
    IntegrityError,
    NotFound,
    SolveError,
    SpecError,
    TagMoved,
)
from envbuild.key import KEY_SCHEME, SCRATCH, CanonicalForm, Key
from envbuild.lookup import KEY_ANNOTATION, LOCK_ANNOTATION
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.reference import ImageReference, Tag, TaggedReference
from envbuild.spec.version import Version, parse_constraint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuild.build.base import BaseImage
    from envbuild.build.bases import Bases
    from envbuild.build.recipe import Recipe
    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor, Digest
    from envbuild.oci.registry import Registry
    from envbuild.platform import Platform
    from envbuild.reference import Repository
    from envbuild.spec.environment import EnvironmentSpec
    from envbuild.spec.steps import Steps
    from envbuild.spec.version import Term

BaseName = ImageReference | TaggedReference | None
_KEY_TAG: Final = f"k{KEY_SCHEME}-"


@dataclass(frozen=True, slots=True)
class Rebased:
    """An image on its new base.

    Attributes:
        source: The image that it was made from.
        reference: The image.
        key: Its key: that of the same definition on the new base.
        lock_key: The key of its solution, 64 hex digits; None where it was there and says none.
        made: False where the workspace had an image of the key.
    """

    source: ImageReference
    reference: ImageReference
    key: Key
    lock_key: str | None
    made: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """An image that stays on its old base, and why."""

    source: str
    error: EnvbuildError


@dataclass(frozen=True)
class Rebaser(LayersBuilder):
    """Puts environments on another base. May be used by several threads.

    What it makes is what :class:`LayersBuilder` makes of the same packages on that base, byte for byte.

    Attributes:
        bases: Resolves bases.
    """

    bases: Bases = field(kw_only=True)
    _guard: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _bases: dict[tuple[str, str], tuple[Digest | None, BaseImage]] = field(default_factory=dict, repr=False)
    _present: set[str] = field(default_factory=set, repr=False)

    def rebase(self, image: ImageReference | TaggedReference, base: BaseName, deadline: Deadline) -> Rebased:
        """Put one image's environment on a base and publish it to the workspace.

        Args:
            image: An image that envbuild made, with its recipe beside it.
            base: The new base; None for ``scratch``.
            deadline: When to give up.

        Raises:
            SpecError: It is no such image, or there is no such base.
            SolveError: A package needs another glibc than the base has.
            BuildError: It cannot be done without building: there is no recipe, the base has too many layers,
                or its steps need files or an engine.
            RegistryError: A registry could not be asked or written.
        """
        wanted = image.digest if isinstance(image, ImageReference) else image.tag
        try:
            manifest = self.registries.probe(image.repository, wanted, deadline)
        except NotFound as error:
            raise SpecError(f"there is no image {image}: {error.message}") from None
        return self._rebase(image.repository, manifest, base, deadline)

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
        found = (tag for tag in registry.tags() if tag.name.startswith(_KEY_TAG))
        tags = sorted(found, key=str)

        def each(tag: Tag) -> Rebased | Failed | None:
            try:
                manifest = self.registries.probe(workspace, tag, deadline)
                if (
                    isinstance(manifest, ImageIndex)
                    or manifest.annotations.get(BASE_DIGEST_ANNOTATION) not in names
                ):
                    return None
                return self._rebase(workspace, manifest, base, deadline)
            except EnvbuildError as error:
                return Failed(f"{workspace}:{tag}", error)

        with ThreadPoolExecutor(self.config.jobs, thread_name_prefix="rebase") as pool:
            yield from (done for done in pool.map(each, tags) if done is not None)

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
        self, repository: Repository, manifest: Manifest | ImageIndex, base: BaseName, deadline: Deadline
    ) -> Rebased:
        source = repository.at(manifest.descriptor.digest)
        recipe = self._recipe(source, manifest, deadline)
        platform = recipe.lock.platform
        digest, new = self._base(base, platform, deadline)
        form = CanonicalForm({**recipe.form.fields, "base": str(digest) if digest else SCRATCH})
        there = self._find(form.key.tag, deadline)
        if there is not None:
            reference = self.config.workspace.at(there.descriptor.digest)
            return Rebased(source, reference, form.key, there.annotations.get(LOCK_ANNOTATION), made=False)
        job = Job(_spec(recipe, base), form.key, platform, new, deadline)
        seen, lock_key = self._publish(job, recipe, form, repository)
        return Rebased(source, self.config.workspace.at(seen), form.key, lock_key, made=True)

    def _recipe(self, source: ImageReference, manifest: Manifest | ImageIndex, deadline: Deadline) -> Recipe:
        key = manifest.annotations.get(KEY_ANNOTATION)
        if key is None or isinstance(manifest, ImageIndex):
            raise SpecError(f"{source} is no image of one platform that envbuild made")
        try:
            recipe = read_recipe(self.registries, source.repository, Key(key), deadline)
        except NotFound:
            raise BuildError(f"{source} has no recipe beside it", hint=BUILD_AGAIN) from None
        if recipe.lock_key != manifest.annotations.get(LOCK_ANNOTATION):
            raise IntegrityError(f"the recipe beside {source} is that of another solution", hint=BUILD_AGAIN)
        return recipe

    def _base(
        self, base: BaseName, platform: Platform, deadline: Deadline
    ) -> tuple[Digest | None, BaseImage]:
        """The digest that stands for a base in keys, and the base; read once."""
        name = (str(base), str(platform))
        with self._guard:
            if name not in self._bases:
                image = self.bases.image(base, platform, deadline)
                digest = base.digest if isinstance(base, ImageReference) else image.digest
                self._bases[name] = (digest, image)
            return self._bases[name]

    def _publish(
        self, job: Job, recipe: Recipe, form: CanonicalForm, origin: Repository
    ) -> tuple[Digest, str]:
        target = self.registries.open(self.config.workspace).by(job.deadline)
        upload = Upload(target, self.progress)
        base = self._with_steps(job, upload)
        self._check_glibc(recipe, base)
        lock_key = self._lock_key(job, recipe.lock)
        annotations = self._annotations(job, lock_key)
        manifest = self._find(Tag(f"l1-{lock_key}"), job.deadline)
        if isinstance(manifest, Manifest) and manifest.annotations.get(LOCK_ANNOTATION) == lock_key:
            manifest = reannotated(manifest, annotations)
        else:
            manifest = self._on(base, job, recipe, lock_key, annotations, upload, origin)
            target.put_manifest(manifest, Tag(f"l1-{lock_key}"))
        self._keep(target, recipe.on(form, lock_key))
        target.put_manifest(manifest, job.key.tag)
        seen = self._find(job.key.tag, job.deadline)
        if seen is None or seen.annotations.get(KEY_ANNOTATION) != str(job.key):
            raise TagMoved(f"{target.repository}:{job.key.tag} was written and names something else now")
        return seen.descriptor.digest, lock_key

    def _on(
        self,
        base: BaseImage,
        job: Job,
        recipe: Recipe,
        lock_key: str,
        annotations: dict[str, str],
        upload: Upload,
        origin: Repository,
    ) -> Manifest:
        """The manifest of the environment on a base; all that it names is in the target."""
        total = len(base.manifest.layers) + len(recipe.layers)
        if total > self.config.max_layers:
            raise BuildError(
                f"the image would have {total} layers, at most {self.config.max_layers} are allowed",
                hint=f"raise max_layers (at most 125); or {BUILD_AGAIN}",
            )
        for layer in base.manifest.layers:
            self._require(upload, oci_layer(layer), base.registry, "base")
        if origin != self.config.workspace:
            source = self.registries.open(origin).by(job.deadline)
            for own in recipe.layers:
                self._require(upload, own.descriptor, source, own.title)
        variables = dict(job.spec.variables)
        composition = Composition((), 0, 0, recipe.scripted, dict(recipe.activation))
        assembled = assemble(
            base,
            recipe.layers,
            environment=self._environment(job, base, composition) if recipe.lock.packages else variables,
            labels={LOCK_ANNOTATION: lock_key, SCHEME_ANNOTATION: str(KEY_SCHEME)},
            annotations=annotations,
        )
        if recipe.scripted or job.spec.steps_after is not None:
            return self._after(job, assembled, recipe.scripted, recipe.lock, upload)
        upload.put_bytes(assembled.manifest.config, assembled.config, "config")
        return assembled.manifest

    def _require(self, upload: Upload, layer: Descriptor, source: Registry | None, title: str) -> None:
        """Have a layer in the target; asked once."""
        with self._guard:
            if str(layer.digest) not in self._present:
                upload.require(layer, source, title)
                self._present.add(str(layer.digest))

    def _keep(self, target: Registry, recipe: Recipe) -> None:
        with self._guard:
            known = "recipe" in self._present
        put_recipe(target, recipe, has_config=known)
        with self._guard:
            self._present.add("recipe")

    def _find(self, tag: Tag, deadline: Deadline) -> Manifest | ImageIndex | None:
        try:
            return self.registries.probe(self.config.workspace, tag, deadline)
        except NotFound:
            return None

    def _check_glibc(self, recipe: Recipe, base: BaseImage) -> None:
        """Hold what the packages need against the base.

        Raises:
            SolveError: The base's glibc is not what a package needs.
        """
        needs = recipe.glibc_needs
        if not needs:
            return
        with self._guard:
            seen = self.config.glibc or glibc_version(base, self.index.fact, self.index.put_fact)
        if missing := [need for need in needs if seen is None or not allows(need, seen)]:
            raise SolveError(
                f"the base has {f'glibc {seen}' if seen else 'no glibc'}, and packages of this environment "
                f"need {', '.join(f'__glibc {need}' for need in missing)}",
                hint="choose a base with another glibc, or resolve the definition anew on this base",
            )


def allows(constraint: str, version: str) -> bool:
    """Whether a version constraint, as ``>=2.17,<3``, allows a version."""
    seen = Version.parse(version)
    alternatives, _ = parse_constraint(constraint)
    return any(all(_holds(term, seen) for term in conjunction) for conjunction in alternatives)


_OPERATORS: Final[dict[str, Callable[[int], bool]]] = {
    "==": lambda order: order == 0,
    "!=": lambda order: order != 0,
    ">=": lambda order: order >= 0,
    "<=": lambda order: order <= 0,
    ">": lambda order: order > 0,
    "<": lambda order: order < 0,
}


def _holds(term: Term, version: Version) -> bool:
    if term.operator in _OPERATORS:
        return _OPERATORS[term.operator](version.compare(Version.parse(term.version)))
    starts = f"{version}.".startswith(f"{term.version}.")
    return starts == (term.operator == "=")


def _spec(recipe: Recipe, base: BaseName) -> EnvironmentSpec:
    """As much of the definition as the image needs beyond its layers."""
    from envbuild.spec.environment import EnvironmentSpec

    form = recipe.form.fields
    if form["pip"] is not None:
        raise BuildError("its pip section is installed for the Python of its base", hint=BUILD_AGAIN)
    return EnvironmentSpec(
        source=f"the recipe of {recipe.form.key}",
        base=base,
        steps=_steps(form["steps"]),
        steps_after=_steps(form["steps_after"]),
        variables=tuple(sorted(form["variables"].items())),
        platforms=(recipe.lock.platform,),
    )


def _steps(section: dict[str, Any] | None) -> Steps | None:
    from envbuild.lockfile.revive import revived_steps

    if section is not None and section["context"]:
        raise BuildError("its steps read files, which a recipe does not hold", hint=BUILD_AGAIN)
    return revived_steps(section, Path("recipe"))
