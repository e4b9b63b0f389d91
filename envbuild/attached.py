"""Whether what is attached to an image is about that image: definition, lock, statements; the recipe, too.

None of it is part of the image, and anybody who may write to the repository can add some. So each must name
the image as its subject, and say what the image's own annotations say.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final

from envbuild.attach import BUILD_TYPE, CYCLONEDX_TYPE, FORM_TYPE, IN_TOTO_TYPE, LOCK_TYPE, SPDX_TYPE
from envbuild.build.assemble import BASE_DIGEST_ANNOTATION
from envbuild.build.recipe import RECIPE_ANNOTATION, Recipe, name_of, recipe_tag, require_of
from envbuild.checks import NotChecked, checked
from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Digest
from envbuild.errors import IntegrityError, counted
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION, CanonicalForm
from envbuild.lockfile.document import LockFile
from envbuild.lockkey import LockKey
from envbuild.oci.manifest import Manifest
from envbuild.oci.referrers import read_artifact, referrers
from envbuild.oci.registry import find_manifest
from envbuild.platform import Platform
from envbuild.trust.claims import RECIPE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from envbuild.checks import Check
    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor
    from envbuild.lockkey import Name
    from envbuild.oci.manifest import ImageIndex
    from envbuild.oci.registry import Registry

_OURS: Final = (FORM_TYPE, LOCK_TYPE, IN_TOTO_TYPE, SPDX_TYPE, CYCLONEDX_TYPE)
_MOST: Final = 64
"""How many of what is attached is read: others may attach things, too."""
_MOST_BYTES: Final = 256 << 20


@dataclass(frozen=True)
class Attached:
    """What is attached to one image or index, read once.

    Attributes:
        registry: The repository.
        image: The image or index.
        deadline: When to give up.
        claims: What accepted signatures of the image claim; None where none was asked for.
    """

    registry: Registry
    image: Manifest | ImageIndex
    deadline: Deadline = NO_DEADLINE
    claims: tuple[Mapping[str, Any], ...] | None = None

    @cached_property
    def _artifacts(self) -> list[tuple[Descriptor, bytes]]:
        """What has a type that envbuild attaches, with its content.

        Raises:
            IntegrityError: Something is damaged, or about something else, or there is far too much.
        """
        found = []
        listed = referrers(self.registry, self.image.descriptor.digest)
        ours = [entry for entry in listed if entry.artifact_type in _OURS]
        if len(ours) > _MOST:
            raise IntegrityError(f"{len(ours)} things are attached, at most {_MOST} are read")
        size = 0
        for entry in ours:
            self.deadline.check("reading what is attached")
            content = self._content(entry)
            size += len(content)
            if size > _MOST_BYTES:
                raise IntegrityError(f"more than {_MOST_BYTES} bytes are attached")
            found.append((entry, content))
        return found

    def _content(self, entry: Descriptor) -> bytes:
        what = f"what is attached as {entry.digest}"
        artifact = self.registry.get_manifest(entry.digest)
        if not isinstance(artifact, Manifest) or artifact.artifact_type != entry.artifact_type:
            raise IntegrityError(f"{what} is no {entry.artifact_type!r:.80}")
        subject = artifact.subject
        if subject is None or subject.digest != self.image.descriptor.digest:
            named = subject.digest if subject is not None else "nothing"
            raise IntegrityError(f"{what} is attached to {named}, expected {self.image.descriptor.digest}")
        return read_artifact(self.registry, artifact)

    def _of(self, kind: str) -> list[tuple[str, bytes]]:
        return [(str(entry.digest), text) for entry, text in self._artifacts if entry.artifact_type == kind]

    def checks(self, config: dict[str, Any] | None, prefix: str) -> Iterator[Check]:
        """The checks of what is attached to an image.

        Args:
            config: The image's config; None where it cannot be read.
            prefix: What the checks' names begin with.
        """
        yield checked(f"{prefix}attached", self._subjects)
        yield checked(f"{prefix}definition", partial(self._form, config or {}))
        yield checked(f"{prefix}lock", self._lock)
        yield checked(f"{prefix}recipe", partial(self._recipe, config or {}))

    def index_checks(self, children: dict[Platform, Manifest]) -> Iterator[Check]:
        """The checks of what is attached to an index.

        Args:
            children: The index's images.
        """
        yield checked("attached", self._subjects)
        yield checked("lock", partial(self._locks, children))

    def _subjects(self) -> str:
        found = self._artifacts
        for digest, content in self._of(IN_TOTO_TYPE):
            if self.image.descriptor.digest.hex not in _subjects_of(content):
                raise IntegrityError(f"the statement {digest} is not about the image")
            carried = self.image.annotations.get(KEY_ANNOTATION)
            if carried is not None and (key := _key_built(content)) not in {None, carried}:
                raise IntegrityError(f"the statement {digest} is about a build for the key {key}")
        if not found:
            raise NotChecked("nothing of envbuild's is attached")
        return f"{counted(len(found), 'artifact')}, with the image as subject"

    def _form(self, config: dict[str, Any]) -> str:
        """The attached definition must have the key that the image carries, and the config must follow it."""
        key = self.image.annotations.get(KEY_ANNOTATION)
        forms = self._of(FORM_TYPE)
        if not forms:
            raise NotChecked("no definition is attached")
        if key is None:
            raise NotChecked("the image carries no key to compare the definition with")
        for digest, content in forms:
            form = _form_of(content)
            if form is None or str(form.key) != key:
                raise IntegrityError(f"the attached definition {digest} has another key than {key}")
            platform = Platform.parse(form.fields["platform"])
            if (config.get("os"), config.get("architecture")) != (platform.os, platform.architecture):
                raise IntegrityError(f"the attached definition {digest} is for {platform}, the image is not")
            if form.fields["steps_after"] is None:
                _require_variables(form.fields["variables"], config)
        return "the attached definition has the key, the platform and the variables"

    def _lock(self) -> str:
        """The attached lock must have the lock key that the image carries, computed from the lock alone."""
        locks = self._of(LOCK_TYPE)
        if not locks:
            raise NotChecked("no lock is attached")
        for digest, content in locks:
            lock = LockFile.parse(content, f"the attached lock {digest}")
            if len(lock.entries) != 1:
                raise IntegrityError(f"the attached lock {digest} is for {len(lock.entries)} platforms")
            _require_solution(self.image, lock, digest)
        return "the attached lock has the lock key"

    def _locks(self, children: dict[Platform, Manifest]) -> str:
        locks = self._of(LOCK_TYPE)
        if not locks:
            raise NotChecked("no lock is attached")
        for digest, content in locks:
            lock = LockFile.parse(content, f"the attached lock {digest}")
            seen = {entry.lock.platform for entry in lock.entries}
            if seen != set(children):
                raise IntegrityError(f"the attached lock {digest} is for other platforms than the index")
            for entry in lock.entries:
                one = LockFile.of(lock.definition, [entry])
                _require_solution(children[entry.lock.platform], one, digest)
        return f"the attached lock has the lock keys of {counted(len(children), 'image')}"

    def _recipe(self, config: dict[str, Any]) -> str:
        """What a rebase would make of the image is what is in the image."""
        own, lock = name_of(self.image), self.image.annotations.get(LOCK_ANNOTATION)
        if own is None or not isinstance(self.image, Manifest):
            raise NotChecked("the image carries no key and no lock key")
        names: list[Name] = [own] if lock is None or isinstance(own, LockKey) else [own, LockKey(lock)]
        refused: IntegrityError | None = None
        for name in names:
            if (found := find_manifest(self.registry, recipe_tag(name))) is None:
                continue
            try:
                text = found.annotations.get(RECIPE_ANNOTATION, "")
                recipe = Recipe.parse(text, name, str(recipe_tag(name)))
                require_of(recipe, self.image, str(self.image.descriptor.digest))
                _require_contents(recipe, self.image, config)
                self._require_vouched(recipe)
            except IntegrityError as error:  # beside an image that was built again stands one of its lock key
                refused = refused or error
            else:
                return f"{recipe_tag(name)} has the lock key and the layers"
        if refused is not None:
            raise refused
        raise NotChecked("no recipe stands beside it")

    def _require_vouched(self, recipe: Recipe) -> None:
        if self.claims is not None and not any(
            each.get(RECIPE) == recipe.claim[RECIPE] for each in self.claims
        ):
            raise IntegrityError("no accepted signature of the image names the recipe beside it")


def _subjects_of(content: bytes) -> set[str]:
    """The digests that an in-toto statement is about; none of what is no statement."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {subject["digest"]["sha256"] for subject in json.loads(content)["subject"]}
    return set()


def _key_built(content: bytes) -> str | None:
    """The key for which a statement says that something was built; None where it says nothing of that."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        build = json.loads(content)["predicate"]["buildDefinition"]
        if build["buildType"] == BUILD_TYPE and "base" in build["externalParameters"]:
            return str(CanonicalForm(build["externalParameters"]).key)
    return None


def _form_of(content: bytes) -> CanonicalForm | None:
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        form = CanonicalForm(json.loads(content))
        # Members that a form may not lack are looked at here, and its key is computed.
        if {"platform", "variables", "steps_after"} <= set(form.fields):
            form.to_json()
            return form
    return None


def _require_variables(variables: Any, config: dict[str, Any]) -> None:
    """See that a config sets the variables of the definition, which no other sets after them."""
    set_ = (config.get("config") or {}).get("Env") or []
    for name, value in variables.items() if isinstance(variables, dict) else ():
        seen = [entry.partition("=")[2] for entry in set_ if entry.partition("=")[0] == name]
        if seen != [value]:
            raise IntegrityError(f"the definition sets {name}, and the config does not set it to that once")


def _require_solution(image: Manifest | ImageIndex, lock: LockFile, digest: str) -> None:
    (entry,) = lock.entries
    key, carried = (image.annotations.get(name) for name in (KEY_ANNOTATION, LOCK_ANNOTATION))
    if key not in {None, str(entry.key)}:
        raise IntegrityError(f"the attached lock {digest} is for the key {entry.key}, expected {key}")
    if str(found := entry.lock_key(_base(image))) != carried:
        raise IntegrityError(
            f"the attached lock {digest} has the lock key {found}, and the image carries {carried or 'none'}"
        )


def _require_contents(recipe: Recipe, image: Manifest, config: dict[str, Any]) -> None:
    plain = dict(zip((layer.digest for layer in image.layers), _diff_ids(config), strict=False))
    for layer in recipe.layers:
        if str(layer.diff_id) != plain.get(layer.descriptor.digest):
            digest = layer.descriptor.digest
            raise IntegrityError(f"the recipe beside the image gives {digest} another diff id")


def _diff_ids(config: dict[str, Any]) -> list[Any]:
    root = config.get("rootfs")
    found = root.get("diff_ids") if isinstance(root, dict) else None
    return found if isinstance(found, list) else []


def _base(image: Manifest | ImageIndex) -> Digest | None:
    """The digest of the base that an image says it is on, an image's also where the form names an index."""
    named = image.annotations.get(BASE_DIGEST_ANNOTATION)
    return Digest.parse(named) if named is not None else None
