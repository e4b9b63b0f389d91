"""What an image was made of, kept beside it: enough to put the same environment on another base.

The tag ``f1-KEY`` beside an image's ``k1-KEY`` names an artifact without content; its annotation holds the
canonical form of the definition, the packages, the wheels and the environment's layers as JSON, compressed
with zstd, in base64; or as it is. One request reads it. Its form proves that it belongs to the key: it
hashes to it. Beside a locked image, which carries no key, the tag is ``f1-LOCKKEY``.
"""

from __future__ import annotations

import base64
import contextlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Self

from envbuild.build.assemble import BASE_DIGEST_ANNOTATION, LAYER_TYPES, Layer
from envbuild.build.job import folder_of, job_form
from envbuild.build.seen import activation_files
from envbuild.digest import Descriptor, Digest
from envbuild.errors import EnvbuildError, IntegrityError, NotFound, SpecError
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION, Key
from envbuild.lock import FORMS, Lock
from envbuild.lockfile.document import distribution_json, package_json, read_distribution, read_package
from envbuild.lockfile.form import read_form
from envbuild.lockfile.place import LINE, Node
from envbuild.lockkey import LockKey, lock_key, together
from envbuild.oci.manifest import MAX_MANIFEST, OCI_EMPTY, Manifest, encode
from envbuild.oci.referrers import EMPTY, put_artifact
from envbuild.platform import Platform
from envbuild.progress import Event
from envbuild.reference import Tag
from envbuild.trust.claims import RECIPE
from envbuild.trust.policy import Untrusted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from envbuild.admission import Admitted
    from envbuild.build.compose import Composition
    from envbuild.build.job import Job
    from envbuild.build.wheels import Wheels
    from envbuild.deadline import Deadline
    from envbuild.key import CanonicalForm
    from envbuild.lock import PipDistribution
    from envbuild.lockkey import Name
    from envbuild.oci.manifest import ImageIndex
    from envbuild.oci.registries import Registries
    from envbuild.oci.registry import Registry
    from envbuild.progress import Progress
    from envbuild.reference import Repository
    from envbuild.spec.environment import EnvironmentSpec

ARTIFACT_TYPE: Final = "application/vnd.envbuild.recipe.v1+json"
RECIPE_ANNOTATION: Final = "io.envbuild.recipe"
VERSION: Final = 2
MAX_RECIPE: Final = 32 << 20
"""The largest recipe that is read, in bytes without compression."""
_LEVEL: Final = 9
BUILD_AGAIN: Final = "resolve its definition with --base, which builds what is missing"


@dataclass(frozen=True)
class PipPart:
    """What a pip section added.

    Attributes:
        wheels: The wheels.
        python: Path and version of the base's python under the virtual environment; None where the
            environment has a python of its own.
    """

    wheels: tuple[PipDistribution, ...]
    python: tuple[str, str] | None = None

    @classmethod
    def of(cls, wheels: Wheels, spec: EnvironmentSpec) -> Self:
        """What is kept of a build's wheels; the definition's own files by their path from its folder."""
        from envbuild.pip.locked import portable

        python, found = wheels.python, wheels.solution.distributions
        return cls(
            portable(found, spec.pip, folder_of(spec)) if spec.pip is not None else found,
            (python.executable, python.version) if python is not None else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The part of the recipe's document."""
        return {
            "wheels": [distribution_json(wheel) for wheel in self.wheels],
            "python": self.python,
        }

    @classmethod
    def read(cls, node: Node) -> Self:
        """Read :meth:`to_json`'s document.

        Raises:
            SpecError: It is another.
            ValueError: Its python is no pair.
        """
        node.mapping()
        wheels = tuple(read_distribution(each) for each in node.get("wheels").items())
        python = node.get("python")
        if python.value is None:
            return cls(wheels)
        executable, version = (each.text() for each in python.items())
        return cls(wheels, (executable, version))


@dataclass(frozen=True)
class Recipe:
    """An environment apart from its base.

    Attributes:
        form: The canonical form of its definition, with the base that it is on.
        lock_key: The key of its solution on that base, 64 hex digits.
        lock: The packages.
        layers: The environment's own layers, lowest first.
        scripted: The names of the packages that have a post-link script.
        activation: The text of the files that take part in activation, by path.
        pip: What the pip section added, or None.
    """

    form: CanonicalForm
    lock_key: str
    lock: Lock
    layers: tuple[Layer, ...]
    scripted: frozenset[str] = frozenset()
    activation: Mapping[str, str | None] = field(default_factory=dict)
    pip: PipPart | None = None

    def on(self, form: CanonicalForm, lock_key: str) -> Recipe:
        """The same environment under another definition or on another base."""
        return replace(self, form=form, lock_key=lock_key)

    @property
    def glibc_needs(self) -> tuple[str, ...]:
        """What the packages ask of the base's glibc, as version constraints."""
        wanted = (each.partition(" ") for package in self.lock.packages for each in package.depends)
        return tuple(sorted({rest.strip() or "*" for name, _, rest in wanted if name == "__glibc"}))

    @property
    def claim(self) -> dict[str, str]:
        """What an image's signature says of the recipe that is put beside it."""
        return {RECIPE: str(Digest.of(self.to_json()))}

    def to_json(self) -> bytes:
        """The one byte form."""
        return encode(
            {
                "envbuild_recipe": VERSION,
                "form": json.loads(self.form.to_json()),
                "lock_key": self.lock_key,
                "packages": [package_json(package) for package in self.lock.packages],
                "layers": [_layer_json(layer) for layer in self.layers],
                "scripted": sorted(self.scripted),
                "activation": dict(sorted(self.activation.items())),
                "pip": self.pip.to_json() if self.pip is not None else None,
            }
        )

    def to_text(self) -> str:
        """The document as an annotation holds it."""
        import zstandard

        return base64.b64encode(zstandard.ZstdCompressor(_LEVEL).compress(self.to_json())).decode()

    @classmethod
    def parse(cls, text: str, name: Name, what: str) -> Self:
        """Read a recipe from an annotation; one that is not compressed is read as well.

        Raises:
            IntegrityError: It is not one, or that of another name.
        """
        try:
            plain = _content(text).decode()
            document = json.loads(plain)
            encode(document)  # fails on half a surrogate pair, which nobody could write again
            found = cls._read(Node(document, (), plain, what))
        except (ValueError, KeyError, RecursionError, EnvbuildError):
            found = None
        if found is None:
            raise IntegrityError(f"{what} is no recipe that this version reads", hint=BUILD_AGAIN)
        own = found.form.key if isinstance(name, Key) else found.lock_key
        if str(own) != str(name):
            raise IntegrityError(f"{what} is the recipe of {own}, expected {name}")
        return found

    @classmethod
    def _read(cls, root: Node) -> Self | None:
        """A recipe whose every member is of its type; None for one of another version."""
        root.mapping()
        if root.get("envbuild_recipe").value != VERSION:
            return None
        form = read_form(root.get("form"))
        packages = [read_package(each) for each in root.get("packages").items()]
        scripted = frozenset(each.text(FORMS["name"]) for each in root.get("scripted").items())
        return cls(
            form,
            str(LockKey(root.get("lock_key").text())),
            Lock.of(Platform.parse(form.fields["platform"]), packages),
            tuple(map(_layer, root.get("layers").items())),
            scripted,
            activation_files(root.get("activation").value),
            PipPart.read(pip) if (pip := root.get("pip")).value is not None else None,
        )


def _content(text: str) -> bytes:
    """The document of :meth:`Recipe.to_text`, which may stand there as it is; ValueError for what is none."""
    import zstandard

    if text.startswith("{"):
        return text.encode()

    try:
        with zstandard.ZstdDecompressor().stream_reader(base64.b64decode(text, validate=True)) as stream:
            content: bytes = stream.read(MAX_RECIPE + 1)
    except zstandard.ZstdError as error:
        raise ValueError(error) from None
    if len(content) > MAX_RECIPE:
        raise ValueError("too large")
    return content


def _layer(node: Node) -> Layer:
    known = node.value
    if type(known) is not list or [type(each) for each in known] != [str, str, int, str, str]:
        node.fail(f"{known!r:.80} is no layer")
    kind, digest, size, diff_id, title = known
    if kind not in LAYER_TYPES or size < 0 or not LINE.fullmatch(title):
        node.fail(f"{known!r:.80} is no layer of an environment")
    return Layer(Descriptor(kind, Digest.parse(digest), size), Digest.parse(diff_id), title)


def _layer_json(layer: Layer) -> list[Any]:
    blob = layer.descriptor
    return [blob.media_type, str(blob.digest), blob.size, str(layer.diff_id), layer.title]


def recipe_tag(name: Name) -> Tag:
    """The tag of the recipe beside an image: by its key, or by the lock key of a locked one."""
    return Tag(f"f1-{name}")


def name_of(image: Manifest | ImageIndex) -> Name | None:
    """The key that an image carries, else its lock key; None for what envbuild did not make."""
    try:
        if (key := image.annotations.get(KEY_ANNOTATION)) is not None:
            return Key(key)
        return LockKey(image.annotations[LOCK_ANNOTATION])
    except (KeyError, SpecError):
        return None


def names_of(image: Manifest | ImageIndex) -> tuple[Name, ...]:
    """The key and the lock key that an image carries, as far as it does."""
    found: list[Name] = []
    for annotation, kind in ((KEY_ANNOTATION, Key), (LOCK_ANNOTATION, LockKey)):
        with contextlib.suppress(KeyError, SpecError):
            found.append(kind(image.annotations[annotation]))
    return tuple(found)


def read_recipe(
    registries: Registries, repository: Repository, image: Admitted, deadline: Deadline
) -> Recipe:
    """The recipe of an image.

    An image that was built again from the lock attached to it carries its key, and has its recipe under the
    lock key, as whatever is built of a lock.

    Args:
        registries: Opens repositories.
        repository: Where the image is.
        image: The image, admitted with all claims: where it is vouched for, so must its recipe be.
        deadline: When to give up.

    Raises:
        NotFound: The repository has none.
        IntegrityError: It is not what it should be, or that of another image.
        Untrusted: No signature of the image vouches for it.
    """
    manifest = image.manifest
    where = f"{repository}@{manifest.descriptor.digest}"

    def read(name: Name) -> Recipe:
        return held_recipe(registries.probe(repository, recipe_tag(name), deadline), name, image, repository)

    own = name_of(manifest)
    if own is None:
        raise NotFound(f"{where} carries no key")
    try:
        return read(own)
    except (NotFound, IntegrityError):
        lock = manifest.annotations.get(LOCK_ANNOTATION)
        if isinstance(own, LockKey) or lock is None:
            raise
        with contextlib.suppress(NotFound, IntegrityError, SpecError):
            return read(LockKey(lock))
        raise


def held_recipe(found: Manifest | ImageIndex, name: Name, image: Admitted, repository: Repository) -> Recipe:
    """The recipe that stands beside an image, held against it.

    Args:
        found: What the recipe's tag names.
        name: The name of the image.
        image: The image, admitted with all claims: where it is vouched for, so must its recipe be.
        repository: Where both are.

    Raises:
        IntegrityError: It is not what it should be, or that of another image.
        Untrusted: No signature of the image vouches for it.
    """
    where = f"{repository}@{image.manifest.descriptor.digest}"
    text, what = found.annotations.get(RECIPE_ANNOTATION, ""), f"{repository}:{recipe_tag(name)}"
    recipe = Recipe.parse(text, name, what)
    if image.is_vouched and not image.lets(RECIPE, str(Digest.of(_content(text)))):
        raise Untrusted(f"no signature of {where} vouches for the recipe {what}", hint=BUILD_AGAIN)
    require_of(recipe, image.manifest, where)
    return recipe


def require_together(
    index: ImageIndex, images: Sequence[Manifest], name: Name, what: str
) -> dict[Platform, Name]:
    """See that the images of an index are those that its name was made of.

    Args:
        index: The index.
        images: Its images, in its order.
        name: Its key or lock key.
        what: The index for messages.

    Returns:
        The name of the image of each platform that the index's was made of.

    Raises:
        IntegrityError: They are others, or one is for no platform or for that of another.
    """
    named = {
        entry.platform: names_of(image)
        for entry, image in zip(index.manifests, images, strict=False)
        if entry.platform is not None
    }
    found = together(name, named) if len(named) == len(index.manifests) == len(images) else None
    if found is None:
        raise IntegrityError(f"{what} carries {name.tag}, which is not the name of its images together")
    return found


def require_of(recipe: Recipe, image: Manifest | ImageIndex, name: str) -> None:
    """Hold a recipe against the image that it stands beside: what is made of it is what was in the image.

    Raises:
        IntegrityError: It is that of another image.
    """
    if not isinstance(image, Manifest):
        raise IntegrityError(f"{name} is an index, and recipes are those of images")
    base = image.annotations.get(BASE_DIGEST_ANNOTATION)
    try:
        found = lock_key(
            recipe.form,
            None if base is None else Digest.parse(base),
            recipe.lock,
            recipe.pip.wheels if recipe.pip is not None else (),
        )
    except (SpecError, ValueError, KeyError, TypeError, AttributeError):
        raise IntegrityError(f"the recipe beside {name} is damaged", hint=BUILD_AGAIN) from None
    if not str(found) == recipe.lock_key == image.annotations.get(LOCK_ANNOTATION):
        raise IntegrityError(f"the recipe beside {name} is that of another solution", hint=BUILD_AGAIN)
    own = [layer.descriptor.digest for layer in recipe.layers]
    all_ = [layer.digest for layer in image.layers]
    if not any(all_[start : start + len(own)] == own for start in range(len(all_) - len(own) + 1)):
        raise IntegrityError(f"the recipe beside {name} has layers that the image has not", hint=BUILD_AGAIN)


def recipe_artifact(text: str) -> Manifest:
    """A recipe as it stands beside an image, from its text; equal ones give equal bytes."""
    empty = Descriptor.of(EMPTY, OCI_EMPTY)
    return Manifest.build(empty, (empty,), {RECIPE_ANNOTATION: text}, artifact_type=ARTIFACT_TYPE)


def put_recipe(target: Registry, recipe: Recipe, name: Name, *, has_config: bool = False) -> bool:
    """Put a recipe beside its image; False for one that no registry would take, which is left out.

    Args:
        target: The image's repository.
        recipe: The recipe.
        name: The image's key, or its lock key where it is locked.
        has_config: As :func:`envbuild.oci.referrers.put_artifact` takes it.
    """
    manifest = recipe_artifact(recipe.to_text())
    if len(manifest.raw) > MAX_MANIFEST:
        return False
    put_artifact(target, manifest, recipe_tag(name), has_config=has_config)
    return True


def keep_recipe(
    target: Registry, recipe: Recipe | None, name: Name, progress: Progress, *, has_config: bool = False
) -> bool:
    """Put a recipe beside its image if that is possible: an image without one cannot be rebased, no more.

    Returns:
        Whether it was put, and so the config of artifacts.
    """
    if recipe is None:
        return False
    try:
        return put_recipe(target, recipe, name, has_config=has_config)
    except EnvbuildError as error:
        progress(Event("push", str(name), "output", text=f"the recipe was not kept: {error}"))
        return False


def recipe_of(
    job: Job,
    lock_key: str,
    lock: Lock,
    composition: Composition,
    pip: PipPart | None = None,
) -> Recipe:
    """The recipe of what a build put together.

    Args:
        job: What was built.
        lock_key: The key of its solution.
        lock: The solution.
        composition: Its layers, before anything runs in it.
        pip: What the pip section added.
    """
    return Recipe(
        job_form(job),
        lock_key,
        lock,
        composition.layers,
        composition.scripted,
        composition.activation,
        pip,
    )


def recipe_like(
    job: Job, lock_key: str, image: Admitted, registries: Registries, repository: Repository
) -> Recipe | None:
    """The recipe of an image with the same solution, for another definition; None where that has none."""
    try:
        return read_recipe(registries, repository, image, job.deadline).on(job_form(job), lock_key)
    except EnvbuildError:
        return None
