"""A base with Docker steps run on it: looked up by its name, else built by an engine and published."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from envbuild.admission import Admission, require_carried
from envbuild.build.assemble import BASE_DIGEST_ANNOTATION, STEPS_ANNOTATION, Layer, oci_layer
from envbuild.build.base import BaseImage
from envbuild.build.engines import connect
from envbuild.build.secrets import build_secrets
from envbuild.build.upload import in_parallel, rewound
from envbuild.digest import CHUNK, Descriptor, Digest
from envbuild.errors import BuildError
from envbuild.key import steps_key
from envbuild.oci.manifest import OCI_CONFIG, Manifest
from envbuild.oci.registry import publish, publish_over
from envbuild.progress import Event
from envbuild.reference import Tag
from envbuild.storage import key_lock, private_folder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from envbuild.build.steps_image import Limits, NewLayer, StepsBase
    from envbuild.build.upload import Upload
    from envbuild.config import Config
    from envbuild.deadline import Deadline
    from envbuild.oci.manifest import ImageIndex
    from envbuild.oci.registries import Registries
    from envbuild.platform import Platform
    from envbuild.progress import Progress
    from envbuild.reference import Repository
    from envbuild.spec.steps import Steps

SPOOL_BYTES: Final = 8 << 20


def known_steps(
    name: str,
    platform: Platform,
    config: Config,
    registries: Registries,
    progress: Progress,
    deadline: Deadline,
    also: Repository | None = None,
) -> BaseImage | None:
    """The image of steps on a base, where a repository has it and it may be used.

    Args:
        name: The steps' name: the key of base and steps.
        platform: The platform.
        config: Names the repositories, and the policy.
        registries: Opens them.
        progress: Told of what is not used.
        deadline: When to give up.
        also: A repository that is asked too, or None.

    Raises:
        RegistryError: A repository could not be asked.
        IntegrityError: What has the name is something else.
    """
    tag, admission = Tag(f"s1-{name}"), Admission(config, progress)
    for repository in dict.fromkeys((config.workspace, config.global_, also)):
        if repository is None:
            continue
        manifest = registries.ask(repository, tag, deadline)
        if not isinstance(manifest, Manifest):
            continue
        what = f"{repository}:{tag}"
        require_carried(manifest, STEPS_ANNOTATION, name, what, "name of steps")
        registry = registries.open(repository).by(deadline)
        if admission.image(manifest, registry, deadline, part=True) is not None:
            return BaseImage.read(registry, manifest.descriptor.digest, platform)
    return None


@dataclass(frozen=True)
class StepsBuilder:
    """Has images of bases and steps.

    Attributes:
        config: The settings.
        registries: The repositories.
        upload: The blobs of this build.
        progress: Told what is going on.
        offline: Whether steps are kept from the network.
        also: A repository that may have their images too, or None.
    """

    config: Config
    registries: Registries
    upload: Upload
    progress: Progress
    offline: bool = False
    also: Repository | None = None

    def image(self, base: BaseImage, steps: Steps, platform: Platform, deadline: Deadline) -> BaseImage:
        """The image of a base with steps run on it.

        Raises:
            BuildError: It is nowhere, and a step failed or there is no engine to run it.
            RegistryError: A repository could not be asked.
        """
        name = steps_key(base.digest, steps, platform, offline=self.offline)
        found = self._find(name, platform, deadline)
        if found is None:
            with key_lock(self.config.cache_dir, f"s1-{name}", deadline):
                found = self._find(name, platform, deadline) or self._build(
                    base, steps, platform, name, deadline
                )
        return found

    def _find(self, name: str, platform: Platform, deadline: Deadline) -> BaseImage | None:
        config, registries = self.config, self.registries
        found = known_steps(name, platform, config, registries, self.progress, deadline, self.also)
        if found is not None and found.registry is not None:
            self.progress(Event("step", str(found.registry.repository), "reused", text=f"s1-{name}"))
        return found

    def run(
        self, base: BaseImage, steps: Steps, platform: Platform, deadline: Deadline
    ) -> tuple[bytes, tuple[Descriptor, ...]]:
        """Run steps on an image and put what is new into the target.

        Returns:
            The config of image and steps, and the new layers, lowest first. Config and layers are in the
            target; the image's own layers need not be.

        Raises:
            BuildError: A step failed, there is no engine, or a secret has no value.
        """
        secrets = build_secrets(steps.secret_ids)
        with connect(self.config) as engine, contextlib.ExitStack() as opened:
            built = engine.run_steps(
                self.as_steps_base(base),
                steps.for_engine(
                    str(steps_key(Digest.of(base.raw_config), steps, platform, offline=self.offline))
                ),
                opened.enter_context(steps.build_context()) if steps.context else None,
                args=dict(steps.args),
                secrets=secrets,
                platform=platform,
                limits=self.limits,
                progress=self.progress,
                deadline=deadline,
            )
        with built:
            layers = self.put_all(built.layers, "steps")
            self.upload.put_bytes(Descriptor.of(built.config, OCI_CONFIG), built.config, "config")
            return built.config, tuple(layer.descriptor for layer in layers)

    def as_steps_base(self, image: BaseImage) -> StepsBase:
        """An image as the engine takes it."""
        from envbuild.build.steps_image import StepsBase

        return StepsBase(image.manifest, image.raw_config, image.open_layer)

    @property
    def limits(self) -> Limits:
        """What steps may use.

        Raises:
            BuildError: They are to have the network that the settings keep them from: an image that was made
                elsewhere with another setting is made again.
        """
        from envbuild.build.steps_image import Limits

        config = self.config
        if config.step_network == "none" and not self.offline:
            raise BuildError(
                "the steps and scripts of this image had the network, and here step_network is none",
                hint="make it again where step_network is default, or resolve its definition here",
            )
        network: Literal["none"] | None = "none" if self.offline else None
        return Limits(config.step_memory, config.step_cpus, config.step_timeout, config.step_disk, network)

    def _build(
        self, base: BaseImage, steps: Steps, platform: Platform, name: str, deadline: Deadline
    ) -> BaseImage:
        config, layers = self.run(base, steps, platform, deadline)
        in_parallel(
            self.config.jobs,
            lambda layer: self.upload.require(layer, base.registry, "base"),
            base.manifest.layers,
        )
        annotations = {STEPS_ANNOTATION: name}
        if base.digest is not None:
            annotations[BASE_DIGEST_ANNOTATION] = str(base.digest)
        below = tuple(oci_layer(layer) for layer in base.manifest.layers)
        manifest = Manifest.build(Descriptor.of(config, OCI_CONFIG), (*below, *layers), annotations)
        seen = self._publish(manifest, name, deadline)
        return BaseImage.read(self.upload.target, seen.descriptor.digest, platform)

    def _publish(self, manifest: Manifest, name: str, deadline: Deadline) -> Manifest | ImageIndex:
        """Sign the image of steps if there is a key for that, and tag it; as :class:`Publisher` does it."""
        target, trust = self.upload.target, self.config.trust
        target.put_manifest(manifest)
        if trust is not None and trust.signs:
            from envbuild.trust import sign_built

            sign_built(target, manifest, trust, locks=self.config.cache_dir, deadline=deadline)
        seen = publish(target, manifest, Tag(f"s1-{name}"), stored=True)
        if seen.descriptor.digest == manifest.descriptor.digest:
            return seen
        admission = Admission(self.config, self.progress)
        if not admission.asks(target.repository, part=True):
            return seen
        if admission.image(seen, target, deadline, part=True) is not None:
            return seen
        return publish_over(target, manifest, Tag(f"s1-{name}"))

    def put_all(self, layers: Iterable[NewLayer], title: str) -> tuple[Layer, ...]:
        """Compress layers that an engine made and put them into the target."""
        from envbuild.conda.layer import Compression, compress

        spool = private_folder(self.config.cache_dir / "spool")
        compression = Compression.of(self.config.compression)

        def put(layer: NewLayer) -> Layer:
            with layer.open() as source, tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(spool)) as file:
                descriptor, _, _ = compress(iter(lambda: source.read(CHUNK), b""), file, compression)
                self.upload.put(descriptor, lambda: rewound(file), title)
            return Layer(descriptor, layer.diff_id, title)

        return tuple(in_parallel(self.config.jobs, put, layers))
