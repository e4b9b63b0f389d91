"""What an image was made of, kept beside it: enough to put the same environment on another base.

The tag ``f1-KEY`` beside an image's ``k1-KEY`` names an artifact without content; its annotation holds the
canonical form of the definition, the packages and the environment's layers as JSON. One
request reads it. Its form proves that it belongs to the key: it hashes to it.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Self

from envbuild.build.assemble import Layer
from envbuild.digest import Descriptor, Digest
from envbuild.errors import EnvbuildError, IntegrityError, SpecError
from envbuild.key import CanonicalForm, Key
from envbuild.lock import Lock, PackageRecord
from envbuild.lookup import KEY_ANNOTATION
from envbuild.oci.manifest import MAX_MANIFEST, OCI_EMPTY, Manifest, encode
from envbuild.platform import Platform
from envbuild.progress import Event
from envbuild.reference import ImageReference, Tag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.build.assemble import Assembled
    from envbuild.build.base import BaseImage
    from envbuild.build.compose import Composition
    from envbuild.build.job import Job
    from envbuild.deadline import Deadline
    from envbuild.oci.registries import Registries
    from envbuild.oci.registry import Registry
    from envbuild.progress import Progress
    from envbuild.reference import Repository

ARTIFACT_TYPE: Final = "application/vnd.envbuild.recipe.v1+json"
RECIPE_ANNOTATION: Final = "io.envbuild.recipe"
VERSION: Final = 1
_EMPTY: Final = b"{}"
BUILD_AGAIN: Final = "resolve its definition with --base, which builds what is missing"


@dataclass(frozen=True)
class Recipe:
    """An environment apart from its base.

    Attributes:
        form: The canonical form of its definition, with the base that it is on.
        lock_key: The key of its solution on that base, 64 hex digits.
        lock: The packages, without where they are; their requirements are whole only where scripts run.
        layers: The environment's own layers, lowest first.
        scripted: The names of the packages that have a post-link script.
        activation: The text of the files that take part in activation, by path.
    """

    form: CanonicalForm
    lock_key: str
    lock: Lock
    layers: tuple[Layer, ...]
    scripted: frozenset[str] = frozenset()
    activation: Mapping[str, str | None] = field(default_factory=dict)

    def on(self, form: CanonicalForm, lock_key: str) -> Recipe:
        """The same environment under another definition or on another base."""
        return replace(self, form=form, lock_key=lock_key)

    @property
    def glibc_needs(self) -> tuple[str, ...]:
        """What the packages ask of the base's glibc, as version constraints."""
        wanted = (each.partition(" ") for package in self.lock.packages for each in package.depends)
        return tuple(sorted({rest.strip() or "*" for name, _, rest in wanted if name == "__glibc"}))

    def to_json(self) -> bytes:
        """The one byte form."""
        return encode(
            {
                "envbuild_recipe": VERSION,
                "form": json.loads(self.form.to_json()),
                "lock_key": self.lock_key,
                "packages": [self._package(package) for package in self.lock.packages],
                "layers": [_layer_json(layer) for layer in self.layers],
                "scripted": sorted(self.scripted),
                "activation": dict(sorted(self.activation.items())),
            }
        )

    def _package(self, package: PackageRecord) -> list[Any]:
        depends = [each for each in package.depends if self.scripted or each.startswith("__")]
        return [*package.identity.values(), package.build_number, depends]

    @classmethod
    def parse(cls, text: str, key: Key, what: str) -> Self:
        """Read a recipe.

        Raises:
            IntegrityError: It is not one, or that of another key.
        """
        try:
            document = json.loads(text)
            found = cls._read(document) if document["envbuild_recipe"] == VERSION else None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SpecError):
            found = None
        if found is None:
            raise IntegrityError(f"{what} is no recipe that this version reads", hint=BUILD_AGAIN)
        if found.form.key != key:
            raise IntegrityError(f"{what} is the recipe of {found.form.key}, expected {key}")
        return found

    @classmethod
    def _read(cls, document: dict[str, Any]) -> Self:
        form = CanonicalForm(document["form"])
        packages = [
            PackageRecord(
                name, version, build, number, subdir, "", Digest(sha256), depends=tuple(map(str, depends))
            )
            for name, version, build, subdir, sha256, number, depends in document["packages"]
        ]
        layers = tuple(
            Layer(Descriptor(media_type, Digest.parse(digest), int(size)), Digest.parse(diff_id), str(title))
            for media_type, digest, size, diff_id, title in document["layers"]
        )
        return cls(
            form,
            str(document["lock_key"]),
            Lock.of(Platform.parse(form.fields["platform"]), packages),
            layers,
            frozenset(map(str, document["scripted"])),
            dict(document["activation"]),
        )


def _layer_json(layer: Layer) -> list[Any]:
    blob = layer.descriptor
    return [blob.media_type, str(blob.digest), blob.size, str(layer.diff_id), layer.title]


def recipe_tag(key: Key) -> Tag:
    """The tag of a key's recipe."""
    return Tag(f"f1-{key}")


def read_recipe(registries: Registries, repository: Repository, key: Key, deadline: Deadline) -> Recipe:
    """The recipe of a key.

    Raises:
        NotFound: The repository has none.
        IntegrityError: It is not what it should be.
    """
    found = registries.probe(repository, recipe_tag(key), deadline)
    text = found.annotations.get(RECIPE_ANNOTATION, "")
    return Recipe.parse(text, key, f"{repository}:{recipe_tag(key)}")


def put_recipe(target: Registry, recipe: Recipe, *, has_config: bool = False) -> bool:
    """Put a recipe beside its image; False for one that no registry would take, which is left out.

    Args:
        target: The image's repository.
        recipe: The recipe.
        has_config: Whether a recipe was put there before.
    """
    empty = Descriptor.of(_EMPTY, OCI_EMPTY)
    annotations = {RECIPE_ANNOTATION: recipe.to_json().decode()}
    manifest = Manifest.build(empty, (empty,), annotations, artifact_type=ARTIFACT_TYPE)
    if len(manifest.raw) > MAX_MANIFEST:
        return False
    if not has_config:
        target.put_blob(empty, lambda: io.BytesIO(_EMPTY))
    target.put_manifest(manifest, recipe_tag(recipe.form.key))
    return True


def keep_recipe(target: Registry, recipe: Recipe | None, progress: Progress) -> bool:
    """Put a recipe beside its image if that is possible: an image without one cannot be rebased, no more.

    Returns:
        Whether it was put, and so the config of artifacts.
    """
    if recipe is None:
        return False
    try:
        return put_recipe(target, recipe)
    except EnvbuildError as error:
        progress(Event("push", str(recipe.form.key), "output", text=f"the recipe was not kept: {error}"))
        return False


def recipe_of(
    job: Job, lock_key: str, lock: Lock, base: BaseImage, assembled: Assembled, composition: Composition
) -> Recipe:
    """The recipe of what a build put together.

    Args:
        job: What was built.
        lock_key: The key of its solution.
        lock: The solution.
        base: What the layers are on: the base with the steps before the environment.
        assembled: The image, before anything runs in it.
        composition: What is known of its layers.
    """
    own = assembled.manifest.layers[len(base.manifest.layers) :]
    config = json.loads(assembled.config)
    above = slice(len(config["history"]) - len(own), None)
    layers = tuple(
        Layer(layer, Digest.parse(diff_id), entry["created_by"].removeprefix("envbuild "))
        for layer, diff_id, entry in zip(
            own,
            config["rootfs"]["diff_ids"][len(base.manifest.layers) :],
            config["history"][above],
            strict=True,
        )
    )
    return Recipe(_form(job), lock_key, lock, layers, composition.scripted, composition.activation)


def recipe_like(
    job: Job, lock_key: str, image: Manifest, registries: Registries, repository: Repository
) -> Recipe | None:
    """The recipe of an image with the same solution, for another definition; None where that has none."""
    try:
        key = Key(image.annotations[KEY_ANNOTATION])
        return read_recipe(registries, repository, key, job.deadline).on(_form(job), lock_key)
    except (KeyError, EnvbuildError):
        return None


def _form(job: Job) -> CanonicalForm:
    """The form that the job's key was made of; a pinned base stands for itself there."""
    named = job.spec.base
    digest = named.digest if isinstance(named, ImageReference) else job.base.digest
    return CanonicalForm.of(job.spec, digest, job.platform)
