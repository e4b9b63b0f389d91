"""Whether an image's config says what its manifest, its place in an index and its annotations say.

Engines are written in Go, whose reader of JSON takes names in any case and the last of two: what readers
would read differently is a fault. Source: OCI Image Specification 1.1, "Image Configuration".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from envbuild.build.assemble import SCHEME_ANNOTATION
from envbuild.build.base import MAX_CONFIG, read_all
from envbuild.checks import NotChecked, checked
from envbuild.errors import IntegrityError, counted
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION
from envbuild.oci.manifest import (
    DOCKER_CONFIG,
    DOCKER_LAYER_GZIP,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    read_json,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from envbuild.checks import Check
    from envbuild.oci.manifest import Manifest
    from envbuild.oci.registry import Registry
    from envbuild.platform import Platform

MOST_LAYERS: Final = 127
LAYER_TYPES: Final = frozenset(
    {
        OCI_LAYER,
        OCI_LAYER_GZIP,
        OCI_LAYER_ZSTD,
        DOCKER_LAYER_GZIP,
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
)
_DIFF_ID: Final = re.compile("sha256:[0-9a-f]{64}")
_NAMES: Final = {
    (): "architecture author config created history os os.features os.version rootfs variant",
    ("config",): "Cmd Entrypoint Env ExposedPorts Healthcheck Labels OnBuild Shell StopSignal User Volumes "
    "WorkingDir",
    ("rootfs",): "diff_ids type",
}


def read_config(registry: Registry, manifest: Manifest) -> dict[str, Any]:
    """The config of an image, which every reader reads alike.

    Raises:
        IntegrityError: It is not, or is no config of an image.
        NotFound: It is missing.
    """
    if manifest.config.media_type not in {OCI_CONFIG, DOCKER_CONFIG}:
        raise IntegrityError(f"the config is {manifest.config.media_type!r:.80}: this is not an image")
    if manifest.config.size > MAX_CONFIG:
        raise IntegrityError(f"the config has {manifest.config.size} bytes, at most {MAX_CONFIG} are read")
    with registry.open_blob(manifest.config) as stream:
        content = read_all(stream, MAX_CONFIG, "the config")
    try:
        config = read_json(content)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"the config is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise IntegrityError("the config is not a JSON object")
    for path, names in _NAMES.items():
        _require_spelling(config.get(path[0]) if path else config, names.split())
    _require_types(config.get("config") or {})
    return config


def _require_spelling(document: Any, names: list[str]) -> None:
    lower = {name.lower() for name in names}
    for name in document if isinstance(document, dict) else ():
        if name not in names and name.lower() in lower:
            raise IntegrityError(f"the config has a member {name!r:.60}, which readers read in two ways")


def _require_types(runtime: Any) -> None:
    """Refuse what engines cannot read where labels and variables are looked for."""
    if not isinstance(runtime, dict):
        raise IntegrityError("the config has a member 'config' that is not an object")
    variables, labels = runtime.get("Env") or [], runtime.get("Labels") or {}
    if not isinstance(variables, list) or not all(isinstance(each, str) for each in variables):
        raise IntegrityError("the config's variables are not a list of texts")
    if not isinstance(labels, dict) or not all(isinstance(each, str) for each in labels.values()):
        raise IntegrityError("the config's labels are not texts by name")


def config_checks(
    config: dict[str, Any], manifest: Manifest, prefix: str, platforms: Collection[Platform | None]
) -> Iterator[Check]:
    """The checks of a config.

    Args:
        config: The config.
        manifest: The manifest that names it.
        prefix: What the checks' names begin with.
        platforms: Each platform that somebody says it is for; None for what says nothing.
    """
    yield checked(f"{prefix}platform", lambda: _platform(config, platforms))
    yield checked(f"{prefix}layers", lambda: _layers(config, manifest))
    yield checked(f"{prefix}history", lambda: _history(config, manifest))
    yield checked(f"{prefix}labels", lambda: _labels(config, manifest))


def _platform(config: dict[str, Any], platforms: Collection[Platform | None]) -> str:
    system, architecture, variant = (config.get(name) for name in ("os", "architecture", "variant"))
    if not isinstance(system, str) or not isinstance(architecture, str) or not system or not architecture:
        raise IntegrityError(f"the config names the platform {system!r:.40}/{architecture!r:.40}")
    for each in platforms:
        if each is None:
            continue
        other = each.variant is not None and variant not in {None, "", each.variant}
        if (each.os, each.architecture) != (system, architecture) or other:
            raise IntegrityError(f"the config is for {system}/{architecture:.40}, expected {each}")
    return f"{system}/{architecture}"


def diff_ids(config: dict[str, Any]) -> list[str]:
    """The digests of the layers' tars, lowest first.

    Raises:
        IntegrityError: There are none, or they are no digests.
    """
    root = config.get("rootfs")
    found = root.get("diff_ids") if isinstance(root, dict) and root.get("type") == "layers" else None
    if not isinstance(found, list):
        raise IntegrityError("the config has no list of its layers")
    if not all(isinstance(each, str) and _DIFF_ID.fullmatch(each) for each in found):
        raise IntegrityError("the config names a layer by something other than a sha256 digest")
    return found


def _layers(config: dict[str, Any], manifest: Manifest) -> str:
    count = len(manifest.layers)
    if len(found := diff_ids(config)) != count:
        raise IntegrityError(f"the config names {len(found)} layers, the manifest {count}")
    if count > MOST_LAYERS:
        raise IntegrityError(f"it has {count} layers, and no engine runs more than {MOST_LAYERS}")
    if other := next((each for each in manifest.layers if each.media_type not in LAYER_TYPES), None):
        raise IntegrityError(f"the layer {other.digest} is {other.media_type!r:.80}, expected an archive")
    if len({(each.digest, plain) for each, plain in zip(manifest.layers, found, strict=True)}) != len(
        {each.digest for each in manifest.layers}
    ):
        raise IntegrityError("the config gives one layer two diff ids")
    return f"{counted(count, 'layer')} in config and manifest"


def _history(config: dict[str, Any], manifest: Manifest) -> str:
    """One entry a layer; a base may have none of its layers, and no entry is in any manifest."""
    entries = config.get("history")
    if entries is None:
        raise NotChecked("the config has no history")
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise IntegrityError("the config's history is not a list of entries")
    if not all(type(each.get("empty_layer", False)) is bool for each in entries):
        raise IntegrityError("the config's history says otherwise than by true or false what is empty")
    count, layers = sum(not each.get("empty_layer") for each in entries), len(manifest.layers)
    if count > layers:
        raise IntegrityError(f"the history tells of {count} layers, and there are {layers}")
    if count < layers:
        raise NotChecked(f"the history tells of {count} of {layers} layers")
    return f"tells of {counted(count, 'layer')}"


def _labels(config: dict[str, Any], manifest: Manifest) -> str:
    """What an engine keeps of an image are its labels: they say what the annotations say."""
    notes = manifest.annotations
    if KEY_ANNOTATION not in notes and LOCK_ANNOTATION not in notes:
        raise NotChecked("the image carries no key and no lock key")
    labels = (config.get("config") or {}).get("Labels") or {}
    for name in (LOCK_ANNOTATION, SCHEME_ANNOTATION):
        note, label = notes.get(name), labels.get(name)
        if note is None or note != label:
            raise IntegrityError(f"{name} is {note!r:.80} as annotation and {label!r:.80} as label")
    return f"{LOCK_ANNOTATION}, {SCHEME_ANNOTATION} agree with the annotations"
