"""Putting an image together from layers: its config and its manifest. No daemon and no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from envbuild.build.base import EPOCH
from envbuild.digest import Descriptor
from envbuild.key import KEY_ANNOTATION
from envbuild.oci.manifest import (
    DOCKER_LAYER_GZIP,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Manifest,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.build.base import BaseImage
    from envbuild.digest import Digest
    from envbuild.oci.manifest import ImageIndex

STEPS_ANNOTATION: Final = "io.envbuild.steps"
SCHEME_ANNOTATION: Final = "io.envbuild.scheme"
BASE_DIGEST_ANNOTATION: Final = "org.opencontainers.image.base.digest"
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

LAYER_TYPES: Final = frozenset({OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD})
"""What the layers of an environment may be."""
_AS_OCI: Final = {
    DOCKER_LAYER_GZIP: OCI_LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar": OCI_LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": OCI_LAYER_ZSTD,
}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer to put on top.

    Attributes:
        descriptor: The compressed blob.
        diff_id: The digest of the tar in it.
        title: What people read in the image's history.
    """

    descriptor: Descriptor
    diff_id: Digest
    title: str


@dataclass(frozen=True)
class Assembled:
    """An image ready to be pushed once its layers are there.

    Attributes:
        manifest: The manifest.
        config: The config's bytes.
    """

    manifest: Manifest
    config: bytes


@dataclass(frozen=True, slots=True)
class Variables:
    """The variables of an environment.

    Attributes:
        image: Those of the image that are not the base's own.
        start: All that are set before the scripts of activation run, the base's own among them.
    """

    image: dict[str, str]
    start: dict[str, str]


def assemble(
    base: BaseImage,
    layers: tuple[Layer, ...],
    *,
    environment: Mapping[str, str],
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
) -> Assembled:
    """An image of a base and layers on top of it.

    The base's user, working directory, entry point, command and ports are kept. Equal arguments give equal
    bytes: the time of creation is the base's.

    Args:
        base: The base; its layers come first.
        layers: The layers on top, lowest first.
        environment: Variables that are added to the base's or replace them.
        labels: Labels that are added to the base's or replace them.
        annotations: The manifest's annotations.
    """
    config = encode(_config(base, layers, environment, labels))
    descriptors = (*(oci_layer(layer) for layer in base.manifest.layers), *(x.descriptor for x in layers))
    manifest = Manifest.build(
        Descriptor.of(config, OCI_CONFIG), descriptors, annotations, media_type=OCI_MANIFEST
    )
    return Assembled(manifest, config)


def reannotated(manifest: Manifest, annotations: Mapping[str, str]) -> Manifest:
    """The same image under other annotations."""
    return Manifest.build(manifest.config, manifest.layers, annotations, media_type=manifest.media_type)


def conda_environment(base: BaseImage, prefix: str, variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of an environment's image: the prefix first on the base's ``PATH``, the user's last."""
    path = variables_of(base.config).get("PATH", DEFAULT_PATH)
    return {"PATH": f"{prefix}/bin:{path}", "CONDA_PREFIX": prefix, **variables}


def prefix_environment(
    base: BaseImage, prefix: str, variables: Mapping[str, str], *, conda: bool, venv: bool
) -> dict[str, str]:
    """The variables of an image with packages or wheels in its prefix.

    Args:
        base: The base with its steps.
        prefix: The prefix.
        variables: The user's variables, which come last.
        conda: Whether Conda installs packages there.
        venv: Whether it is a virtual environment over the base's python.
    """
    own = conda_environment(base, prefix, {})
    if not conda:
        del own["CONDA_PREFIX"]
    if venv:
        own["VIRTUAL_ENV"] = prefix
    return {**own, **variables}


def _config(
    base: BaseImage, layers: tuple[Layer, ...], environment: Mapping[str, str], labels: Mapping[str, str]
) -> dict[str, Any]:
    document = dict(base.config)
    created = document.get("created") or EPOCH
    runtime = dict(document.get("config") or {})
    variables = {**variables_of(base.config), **environment}
    runtime["Env"] = [f"{name}={value}" for name, value in variables.items()]
    merged = {**(runtime.get("Labels") or {}), **labels}
    if merged:
        runtime["Labels"] = dict(sorted(merged.items()))
    history = [*(document.get("history") or []), *(_history(layer, created) for layer in layers)]
    diff_ids = [*base.config["rootfs"]["diff_ids"], *(str(layer.diff_id) for layer in layers)]
    document |= {
        "created": created,
        "config": runtime,
        "history": history,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    return document


def _history(layer: Layer, created: str) -> dict[str, str]:
    return {"created": created, "created_by": f"envbuild {layer.title}"}


def variables_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The variables that an image's config sets."""
    entries = (config.get("config") or {}).get("Env") or []
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def oci_layer(layer: Descriptor) -> Descriptor:
    """A base's layer as an OCI manifest may name it; URLs and annotations of the base are not taken over."""
    return Descriptor(_AS_OCI.get(layer.media_type, layer.media_type), layer.digest, layer.size)


def difference(image: Manifest, made: Manifest | ImageIndex) -> str | None:
    """What differs between an image and what came out when it was built again; None where it is the same.

    Who asked for an image first does not change what it is: the key that it carries does not count.
    """
    digest = made.descriptor.digest
    if isinstance(made, Manifest) and _content(made) == _content(image):
        return None
    layers = made.layers if isinstance(made, Manifest) else ()
    other = [pair for pair in zip(image.layers, layers, strict=False) if pair[0].digest != pair[1].digest]
    same = min(len(image.layers), len(layers)) - len(other)
    told = f"gave {digest}: {same} of {len(image.layers)} layers alike"
    for before, after in other[:1]:
        told += f", {before.digest} ({before.size} bytes) became {after.digest} ({after.size} bytes)"
    if isinstance(made, Manifest) and made.config.digest != image.config.digest:
        told += ", and another config"
    return told


def _content(manifest: Manifest) -> tuple[object, ...]:
    """All of an image but the key that it carries."""
    notes = {name: text for name, text in manifest.annotations.items() if name != KEY_ANNOTATION}
    return manifest.media_type, manifest.config, manifest.layers, notes
