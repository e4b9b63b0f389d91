"""What a resolved image looks like on the screen and in JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from envbuild.cli.options import amount
from envbuild.errors import counted
from envbuild.resolver import Source

if TYPE_CHECKING:
    from envbuild.resolver import ResolvedImage

_PLACES: Final = {
    Source.INDEX: "local index",
    Source.WORKSPACE: "workspace",
    Source.GLOBAL: "global repository",
}


def summary(image: ResolvedImage, subject: str | None = None) -> str:
    """What was done, in one line."""
    prefix = f"{subject}: " if subject else ""
    if image.source is not Source.BUILT:
        return f"{prefix}found in the {_PLACES[image.source]} in {image.seconds:.2f} s"
    return (
        f"{prefix}built in {image.seconds:.1f} s: {counted(image.layers_made, 'layer')} made, "
        f"{image.layers_reused} reused, {amount(image.bytes_uploaded)} uploaded"
    )


def as_json(image: ResolvedImage) -> dict[str, Any]:
    """A resolved image as a JSON object."""
    return {
        "reference": str(image.reference),
        "repository": str(image.reference.repository),
        "digest": str(image.reference.digest),
        "key": str(image.key),
        "lock": image.lock_key,
        "locked": image.locked,
        "source": str(image.source),
        "platform": str(image.platform),
        "platforms": [str(each) for each in image.platforms or (image.platform,)],
        "seconds": round(image.seconds, 4),
        "layers_made": image.layers_made,
        "layers_reused": image.layers_reused,
        "bytes_uploaded": image.bytes_uploaded,
    }
