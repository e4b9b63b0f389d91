"""The key of an environment: scheme v1, pure and without I/O.

A key is the sha256 over a domain tag, a zero byte and the RFC 8785 JSON of the canonical form.
``docs/key.md`` specifies it byte by byte; ``fixtures/vectors`` pins it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envbuild.errors import SpecError
from envbuild.reference import Tag

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from envbuild.digest import Digest
    from envbuild.platform import Platform
    from envbuild.spec.environment import EnvironmentSpec
    from envbuild.spec.steps import Steps

KEY_SCHEME = 1
PREFIX_LAYOUT = 1
SCRATCH = "scratch"
BUILT_WITH = ("pyc", "step_network")
"""The members of a form that say what is done with packages once they are chosen; a lock serves with any."""
OPTIONAL = (*BUILT_WITH, "virtual_packages")
"""The members of a form that are there only where they are given."""

KEY_ANNOTATION = "io.envbuild.key"
LOCK_ANNOTATION = "io.envbuild.lock"
LOCK_TAG = "l1-"
"""How the tags of lock keys begin."""

_KEY_DOMAIN = b"envbuild/key/v1"
_INDEX_DOMAIN = b"envbuild/index-key/v1"
_STEPS_DOMAIN = b"envbuild/steps/v1"
_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), check_circular=False)
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Key:
    """The name of an environment: equal for equal definitions, different for any other.

    Attributes:
        hex: 64 lower-case hexadecimal digits, never cut.
    """

    hex: str

    def __post_init__(self) -> None:
        if not _HEX.fullmatch(self.hex):
            raise SpecError(f"{self.hex!r} is not a key: expected 64 lower-case hexadecimal digits")

    def __str__(self) -> str:
        return self.hex

    @property
    def tag(self) -> Tag:
        """The tag under which a registry holds the image: ``k1-`` and the key."""
        return Tag(f"k{KEY_SCHEME}-{self.hex}")


@dataclass(frozen=True, slots=True)
class CanonicalForm:
    """Everything that decides what an image holds, for one platform, as JSON values.

    Most callers want :meth:`of`.

    Attributes:
        fields: The members of the JSON object; all but :data:`OPTIONAL` are always there.
    """

    fields: Mapping[str, Any]

    @classmethod
    def of(cls, spec: EnvironmentSpec, base: Digest | None, platform: Platform) -> CanonicalForm:
        """The canonical form of a definition.

        Args:
            spec: The definition.
            base: The digest of the base's manifest for ``platform``; None for ``scratch``.
            platform: One of the platforms to build for.

        Raises:
            SpecError: The definition has no base, or ``base`` and the definition's base disagree.
        """
        _check_base(spec, base)
        return cls(
            {
                "as_of": _moment(spec.as_of),
                "base": _base(base),
                "channel_priority": str(spec.channel_priority),
                "conda": _conda(spec),
                "pip": spec.pip.canonical() if spec.pip and spec.pip.requirements else None,
                "platform": str(platform),
                "prefix_layout": PREFIX_LAYOUT,
                "steps": _steps(spec.steps),
                "steps_after": _steps(spec.steps_after),
                "variables": dict(spec.variables),
                **_virtual_packages(spec),
                **settings_form(pyc=spec.pyc, offline=spec.offline),
            }
        )

    def to_json(self) -> bytes:
        """The canonical form as RFC 8785 JSON: the bytes that are hashed."""
        return _json(self.fields)

    @property
    def key(self) -> Key:
        """The key of this form."""
        return Key(_hash(_KEY_DOMAIN, self.to_json()))


def steps_key(base: Digest | None, steps: Steps, platform: Platform, *, offline: bool = False) -> str:
    """The name of a base with its steps run, 64 hex digits; its tag is ``s1-`` and these.

    Args:
        base: The digest of the base's manifest for ``platform``; None for ``scratch``.
        steps: The steps that run on the base.
        platform: The platform that they run on.
        offline: Whether they are kept from the network.
    """
    return canonical_steps_key(base, _steps(steps), platform, offline=offline)


def canonical_steps_key(base: Digest | None, steps: Any, platform: Platform, *, offline: bool = False) -> str:
    """The same of steps in canonical form, as the form of a definition holds them; None for no steps."""
    form = {"base": _base(base), "platform": str(platform), "steps": steps}
    return _hash(_STEPS_DOMAIN, _json(form | settings_form(offline=offline)))


def settings_form(*, pyc: bool = False, offline: bool = False) -> dict[str, Any]:
    """The members of forms that settings give, there only where they are not what nobody says.

    Args:
        pyc: Whether modules are compiled into the layers of their packages.
        offline: Whether steps and scripts are kept from the network.
    """
    return ({"pyc": True} if pyc else {}) | ({"step_network": "none"} if offline else {})


def index_key(keys: Mapping[Platform, Key]) -> Key:
    """The key of one environment on several platforms; with one platform, that platform's own key.

    Raises:
        SpecError: There is no platform.
    """
    if not keys:
        raise SpecError("no platform: expected at least one")
    if len(keys) == 1:
        return next(iter(keys.values()))
    form = {"keys": {str(platform): str(key) for platform, key in keys.items()}}
    return Key(_hash(_INDEX_DOMAIN, _json(form)))


def _json(value: Any) -> bytes:
    """RFC 8785 JSON of what forms hold: text, booleans, small integers, null, members with ASCII names.

    For these the standard encoder writes the same bytes as a full implementation, ten times as fast.
    """
    return _ENCODER.encode(value).encode()


def _hash(domain: bytes, content: bytes) -> str:
    return hashlib.sha256(domain + b"\x00" + content).hexdigest()


def _moment(moment: datetime | None) -> str | None:
    return moment.replace(tzinfo=None).isoformat(timespec="seconds") + "Z" if moment else None


def _base(base: Digest | None) -> str:
    return str(base) if base else SCRATCH


def _check_base(spec: EnvironmentSpec, base: Digest | None) -> None:
    wanted = spec.require_base()
    if (wanted is None) != (base is None):
        raise SpecError(
            f"the base is {wanted or SCRATCH}, and the digest given for it is {base}",
            source=spec.source,
            hint="resolve the base to the digest of its manifest; scratch has none",
        )


def _conda(spec: EnvironmentSpec) -> dict[str, Any] | None:
    """The Conda section; its variables stand in the form's own, as they have the same effect there."""
    if spec.conda is None or not spec.conda.dependencies:
        return None
    section = dict(spec.conda.canonical())
    section.pop("variables", None)
    return section


def _virtual_packages(spec: EnvironmentSpec) -> dict[str, Any]:
    given = spec.virtual_packages.canonical()
    return {"virtual_packages": given} if given else {}


def _steps(steps: Steps | None) -> Any:
    return steps.canonical() if steps is not None and steps.instructions else None
