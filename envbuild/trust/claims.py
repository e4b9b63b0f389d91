"""What a signed statement may say of an image beside its digest; what it says must be true.

Sources: cosign's "Signature Specification" has a place for such claims; the names are ours.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from envbuild.trust.policy import Untrusted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.oci.manifest import ImageIndex, Manifest

EXPIRES: Final = "io.envbuild.expires"
RECIPE: Final = "io.envbuild.recipe"
"""Names the content of the recipe beside the image; whoever acts on a recipe compares it."""
_REPEATED: Final = ("io.envbuild.key", "io.envbuild.lock", "io.envbuild.scheme")
"""Annotations of the manifest that may be repeated."""


def claims_of(
    manifest: Manifest | ImageIndex,
    expires: datetime | None = None,
    more: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """What is said of an image when it is signed: what it carries, until when that holds, and ``more``."""
    claims = dict(more or {})
    claims |= {name: manifest.annotations[name] for name in _REPEATED if name in manifest.annotations}
    if expires is not None:
        claims[EXPIRES] = expires.isoformat()
    return claims


def check_claims(claims: Mapping[str, Any], manifest: Manifest | ImageIndex, now: datetime) -> None:
    """Compare what was said with the image.

    Raises:
        Untrusted: It is not so, or does not hold any more.
    """
    for name in _REPEATED:
        if claims.get(name) is not None and claims[name] != manifest.annotations.get(name):
            raise Untrusted(f"it is for {name} {claims[name]!r:.80}")
    if claims.get(EXPIRES) is not None and now >= _moment(claims[EXPIRES]):
        raise Untrusted(f"it expired at {claims[EXPIRES]}")


def _moment(text: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise Untrusted(f"it expires at {text!r:.80}, which is no time") from None
    if moment.tzinfo is None:
        raise Untrusted(f"it expires at {text!r:.80}, which has no time zone")
    return moment
