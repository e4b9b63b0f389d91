"""The lock key: what is locked is named by its solution, which a lock tells before anything is built.

The key of a definition (``k1-``) names whatever it is solved to; a lock key (``l1-``) names one solution.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import rfc8785

from envbuild.errors import SpecError
from envbuild.key import BUILT_WITH, KEY_SCHEME, Key, canonical_steps_key, index_key
from envbuild.reference import Tag

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from envbuild.digest import Digest
    from envbuild.key import CanonicalForm
    from envbuild.lock import Lock, PipDistribution
    from envbuild.platform import Platform

_HEX = re.compile(r"[0-9a-f]{64}")
_INDEX_DOMAIN = b"envbuild/index-lock/v1\x00"
_TAG = re.compile(rf"(?P<kind>k{KEY_SCHEME}|l1)-(?P<hex>[0-9a-f]{{64}})")
MAX_PLATFORMS = 10
"""For how many platforms an index has images: it is tried which of them go by their lock keys."""


@dataclass(frozen=True, slots=True)
class LockKey:
    """The name of a solution: equal for any two definitions whose images are the same.

    Attributes:
        hex: 64 lower-case hexadecimal digits, never cut.
    """

    hex: str

    def __post_init__(self) -> None:
        if not _HEX.fullmatch(self.hex):
            raise SpecError(f"{self.hex!r:.80} is not a lock key: expected 64 lower-case hexadecimal digits")

    def __str__(self) -> str:
        return self.hex

    @property
    def tag(self) -> Tag:
        """The tag under which a registry holds the image: ``l1-`` and the lock key."""
        return Tag(f"l1-{self.hex}")


Name = Key | LockKey
"""What an image is looked up by: the key of its definition or, where that is locked, of its solution."""


def lock_key(
    form: CanonicalForm, base: Digest | None, lock: Lock, wheels: Iterable[PipDistribution] = ()
) -> LockKey:
    """The lock key of a solution, which builders and those who look for a lock's image compute alike.

    Args:
        form: The canonical form of the definition.
        base: The digest of the manifest of the base's platform; None for ``scratch``. The form names an index
            where the definition does.
        lock: The Conda packages.
        wheels: What the pip section adds.
    """
    return LockKey(lock.key(**_rest(form, base, lock, wheels)))


def solution_form(
    form: CanonicalForm, base: Digest | None, lock: Lock, wheels: Iterable[PipDistribution] = ()
) -> dict[str, Any]:
    """What :func:`lock_key` hashes, as JSON values; same arguments."""
    return lock.form(**_rest(form, base, lock, wheels))


def _rest(
    form: CanonicalForm, base: Digest | None, lock: Lock, wheels: Iterable[PipDistribution]
) -> dict[str, Any]:
    """What makes an image beside its packages.

    Which files of Conda's packages the wheels replace, and which python of the base they are for, follow from
    these and are left out: a solution is known before it is installed.
    """
    fields = form.fields
    steps, pip = fields["steps"], None
    if fields["pip"] is not None:
        # What is constant here was told once, and lock keys that are published were made with it.
        pip = {"wheels": [each.identity for each in sorted(wheels)], "replaced": [], "python": None}
    return {
        "base": base,
        "steps": canonical_steps_key(base, steps, lock.platform, offline="step_network" in fields)
        if steps is not None
        else None,
        "variables": fields["variables"],
        "layout": fields["prefix_layout"],
        "pip": pip,
        "steps_after": fields["steps_after"],
        "settings": {name: fields[name] for name in BUILT_WITH if name in fields},
    }


def index_name(names: Mapping[Platform, Name]) -> LockKey:
    """The lock key of one environment on several platforms, of which at least one is locked.

    Args:
        names: The name of the image of each platform.
    """
    form = {"images": {str(platform): str(name.tag) for platform, name in names.items()}}
    return LockKey(hashlib.sha256(_INDEX_DOMAIN + rfc8785.dumps(form)).hexdigest())


def together(name: Name, images: Mapping[Platform, Sequence[Name]]) -> dict[Platform, Name] | None:
    """Which names of its images an index's name was made of; None where it was made of others.

    Args:
        name: The key or lock key of the index.
        images: The names of the image of each platform: its key, its lock key, or both.
    """
    if not 1 < len(images) <= MAX_PLATFORMS:
        return None
    if isinstance(name, Key):
        keys = {platform: each for platform, own in images.items() for each in own if isinstance(each, Key)}
        return dict(keys) if len(keys) == len(images) and index_key(keys) == name else None
    for chosen in product(*images.values()):
        names = dict(zip(images, chosen, strict=True))
        if index_name(names) == name:
            return names
    return None


def name_in(reference: Tag | Digest) -> Name | None:
    """The name that a tag is made of; None for a digest, and for every other tag."""
    found = _TAG.fullmatch(reference.name) if isinstance(reference, Tag) else None
    if found is None:
        return None
    return Key(found["hex"]) if found["kind"] == f"k{KEY_SCHEME}" else LockKey(found["hex"])
