"""Docker steps as values: what a build of steps gets and gives, whichever engine does it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal, Self

from envbuild.build.base import EPOCH
from envbuild.digest import Descriptor
from envbuild.errors import BuildError, IntegrityError
from envbuild.oci.manifest import Manifest, encode
from envbuild.spec.steps import CONTEXT_FOLDER

if TYPE_CHECKING:
    import tempfile
    from collections.abc import Callable, Mapping

    from envbuild.build.archive import SavedImage, SavedLayer
    from envbuild.build.secrets import Secrets
    from envbuild.digest import Digest

STEPS_TEMPLATE: Final = "steps.Dockerfile"

_CONFIG_FIELDS: Final = (
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "Healthcheck",
    "OnBuild",
    "Shell",
)
_HISTORY_FIELDS: Final = ("created_by", "author", "comment", "empty_layer")
_PODMANS_LABEL: Final = "io.buildah.version"
_CACHE_ID: Final = re.compile(r"\bid=[0-9a-f]{64}-")


@dataclass(frozen=True, slots=True)
class StepsBase:
    """The image that steps run on; one without layers means ``scratch``.

    Attributes:
        manifest: Its manifest.
        config: Its config's bytes.
        open_blob: Opens one of its layers, wherever it is.
    """

    manifest: Manifest
    config: bytes
    open_blob: Callable[[Descriptor], IO[bytes]]

    def with_settings(self, **changes: Any) -> StepsBase:
        """The same layers under a config with other settings; None takes one away."""
        document = json.loads(self.config)
        settings = {**(document.get("config") or {}), **changes}
        document["config"] = {name: value for name, value in settings.items() if value is not None}
        config, manifest = encode(document), self.manifest
        descriptor = Descriptor.of(config, manifest.config.media_type)
        manifest = Manifest.build(
            descriptor, manifest.layers, manifest.annotations, media_type=manifest.media_type
        )
        return StepsBase(manifest, config, self.open_blob)

    def without_triggers(self) -> StepsBase:
        """The base as an engine gets it: engines run the ``ONBUILD`` triggers of what they build on.

        Triggers are for a Dockerfile that is built on the image, with a context of its own. They stay in the
        image that is made, and whether an engine had to do with it must not show there.
        """
        triggers = (json.loads(self.config).get("config") or {}).get("OnBuild")
        return self.with_settings(OnBuild=None) if triggers else self


@dataclass(frozen=True, slots=True)
class Limits:
    """What a build may use; None means as much as there is.

    Attributes:
        memory: Bytes of memory of each step.
        cpus: Processors of each step; 0.5 is half of one.
        seconds: Seconds for the whole build.
        disk: Bytes that the steps' layers may have in all; looked at when the steps are done.
        network: ``none`` keeps steps from the network; None is what the engine gives them.
    """

    memory: int | None = None
    cpus: float | None = None
    seconds: float | None = None
    disk: int | None = None
    network: Literal["none"] | None = None


@dataclass(frozen=True, slots=True)
class NewLayer:
    """A layer that the steps made: an uncompressed tar.

    Attributes:
        diff_id: The tar's digest, verified.
        path: The tar; it is gone when the :class:`BuiltSteps` is closed.
    """

    diff_id: Digest
    path: Path

    @property
    def size(self) -> int:
        """The tar's size in bytes."""
        return self.path.stat().st_size

    def open(self) -> IO[bytes]:
        """Open the tar; the caller closes it."""
        return self.path.open("rb")


@dataclass(frozen=True, slots=True)
class BuiltSteps:
    """What steps made of a base. A context manager: leaving it removes the layers' files.

    The layers are as the engine made them, so files carry the time at which a step wrote them: building the
    same steps twice gives two digests. An image of steps is therefore found by its tag and not made again.

    Attributes:
        config: The config of base and steps; its times are fixed and fields of the engine's own are gone.
        layers: The layers above the base's, lowest first.
    """

    config: bytes
    layers: tuple[NewLayer, ...]
    _folder: tempfile.TemporaryDirectory[str] = field(repr=False, compare=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the layers' files."""
        self._folder.cleanup()


def steps_dockerfile(steps: str, head: str = STEPS_TEMPLATE) -> str:
    """The Dockerfile for some steps: a template of envbuild's and, behind it and unchanged, the steps."""
    return f"{template(head).rstrip()}\n{steps}"


def as_written(text: str) -> str:
    """An engine's text with the context's paths and the ids of caches as the user wrote them."""
    text = text.replace(f"{CONTEXT_FOLDER}/./", "").replace(f"{CONTEXT_FOLDER}/", "")
    return _CACHE_ID.sub("id=", text)


def template(name: str) -> str:
    """A Dockerfile template of the package, or of the checkout that the package runs from."""
    packaged = resources.files("envbuild").joinpath("_dockerfiles", name)
    if packaged.is_file():
        return packaged.read_text("utf-8")
    return Path(__file__).parents[2].joinpath("dockerfiles", name).read_text("utf-8")


def finish(
    base: StepsBase, saved: SavedImage, secrets: Secrets, folder: tempfile.TemporaryDirectory[str]
) -> BuiltSteps:
    """Check what an engine built, and take from it what is new.

    Raises:
        IntegrityError: The image is not the base with layers on top.
        BuildError: A secret's value stands in the config or in a new layer.
    """
    below = json.loads(base.config)
    ours = [str(layer.diff_id) for layer in saved.layers]
    expected = list(below["rootfs"]["diff_ids"] or ())
    if ours[: len(expected)] != expected:
        raise IntegrityError("the engine built on other layers than the base's; the image was not used")
    new = saved.layers[len(expected) :]
    config = normalised_config(saved.config, below)
    leaked = secrets.found_in(config).union(*(layer.needles for layer in new))
    if leaked:
        names = ", ".join(sorted(leaked))
        raise BuildError(
            f"the steps left the value of the secret {names} in the image; it was not used",
            hint="read the secret from its mount under /run/secrets, and write it nowhere",
        )
    return BuiltSteps(config, tuple(NewLayer(layer.diff_id, _kept(layer)) for layer in new), folder)


def _kept(layer: SavedLayer) -> Path:
    if layer.path is None:
        raise IntegrityError(f"the engine gave the base's layer {layer.diff_id} once more as a new one")
    return layer.path


def normalised_config(config: bytes, base: Mapping[str, Any]) -> bytes:
    """An engine's image config with fixed times and without the engine's own fields.

    The base's part of the history is kept as it was.
    """
    document = json.loads(config)
    settings = document.get("config") or {}
    below = base.get("history") or []
    above = (document.get("history") or [])[len(below) :]
    result: dict[str, Any] = {
        name: document[name] for name in ("architecture", "os", "variant") if document.get(name)
    }
    result["created"] = EPOCH
    labels = {name: text for name, text in (settings.get("Labels") or {}).items() if name != _PODMANS_LABEL}
    triggers = (base.get("config") or {}).get("OnBuild")
    settings = {**settings, "Labels": labels, "OnBuild": triggers}
    result["config"] = {name: settings[name] for name in _CONFIG_FIELDS if settings.get(name)}
    result["rootfs"] = {"type": "layers", "diff_ids": document["rootfs"]["diff_ids"]}
    result["history"] = [
        *below,
        *(
            {"created": EPOCH, **{name: _told(step, name) for name in _HISTORY_FIELDS if _says(step, name)}}
            for step in above
        ),
    ]
    return encode(result)


def _told(step: Mapping[str, Any], name: str) -> Any:
    return as_written(str(step[name])) if name == "created_by" else step[name]


def _says(step: Mapping[str, Any], name: str) -> bool:
    """Whether an entry of the history says something; Podman's comments name images that are gone."""
    return bool(step.get(name)) and not (name == "comment" and str(step[name]).startswith("FROM "))
