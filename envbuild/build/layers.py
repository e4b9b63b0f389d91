"""The daemonless builder: an image composed of a base and one layer a package."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from envbuild.admission import Admission, require_name
from envbuild.build.assemble import (
    BASE_DIGEST_ANNOTATION,
    SCHEME_ANNOTATION,
    Variables,
    assemble,
    conda_environment,
    oci_layer,
    reannotated,
    variables_of,
)
from envbuild.build.base import BaseImage
from envbuild.build.job import Built, job_form, made_of
from envbuild.build.plan import plan
from envbuild.build.recipe import PipPart, keep_recipe, recipe_like, recipe_of
from envbuild.build.solving import origins, solve_conda
from envbuild.build.upload import RemadeError, Upload
from envbuild.digest import Descriptor
from envbuild.errors import BuildError, IntegrityError
from envbuild.key import KEY_ANNOTATION, KEY_SCHEME, LOCK_ANNOTATION
from envbuild.lockkey import lock_key
from envbuild.oci.manifest import OCI_CONFIG, Manifest
from envbuild.oci.registry import find_manifest
from envbuild.progress import Event
from envbuild.publishing import Known, Publisher, Signing
from envbuild.storage import private_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from envbuild.admission import Admitted
    from envbuild.build.assemble import Assembled, Layer
    from envbuild.build.compose import Composer, Composition
    from envbuild.build.job import Job
    from envbuild.build.known import SharedLayers
    from envbuild.build.place import Node
    from envbuild.build.wheels import Wheels
    from envbuild.conda.solve import Solution
    from envbuild.config import Config
    from envbuild.deadline import Deadline
    from envbuild.index import Index
    from envbuild.lock import Lock
    from envbuild.lockkey import LockKey
    from envbuild.oci.registries import Registries
    from envbuild.oci.registry import Registry
    from envbuild.progress import Progress
    from envbuild.reference import Tag

PREFIX: Final = "/opt/env"


@dataclass(frozen=True)
class Parts:
    """What an image is composed of.

    Attributes:
        base: The base with its steps.
        solution: The Conda packages.
        composer: Makes their layers.
        wheels: What the pip section adds, or None.
    """

    base: BaseImage
    solution: Solution
    composer: Composer
    wheels: Wheels | None = None

    @property
    def count(self) -> int:
        """How many packages and wheels there are."""
        return len(self.solution.lock.packages) + (self.wheels.count if self.wheels else 0)


@dataclass(frozen=True)
class LayersBuilder:
    """Composes images without a daemon; Docker steps alone need one.

    Attributes:
        config: The settings.
        index: Knows layers and facts.
        registries: The repositories.
        progress: Told what is going on.
    """

    config: Config
    index: Index
    registries: Registries
    progress: Progress

    def build(self, job: Job) -> Built:
        """Build and publish; see :class:`envbuild.build.job.Builder`."""
        started = dt.datetime.now(dt.UTC)
        target = self.registries.open(self.config.workspace).by(job.deadline)
        while True:  # each turn makes a layer that was believed before, and there are only so many
            try:
                with Upload(target, self.progress) as upload:
                    return self._build(job, upload, started)
            except RemadeError as error:
                job.deadline.check("composing the image")
                self.progress(
                    Event("layer", str(target.repository), "output", text=f"composed again: {error}")
                )

    def _build(self, job: Job, upload: Upload, started: dt.datetime) -> Built:
        target, trust = upload.target, self.config.trust
        if trust is not None and trust.sign_key is not None:  # fails at once, and its library takes a while
            upload.later(partial(self._read_key, trust.sign_key))
        base = self._with_steps(job, upload)
        above = upload.later(partial(self._folder_above, base, job))
        if job.locked is None:
            above.result()  # the same reading tells the glibc that the solve asks for
        solution = self._solve(job, base)
        parts = self._parts(job, base, solution, upload)
        pip = PipPart.of(parts.wheels, job.spec) if parts.wheels is not None else None
        wheels = pip.wheels if pip is not None else ()
        solved = lock_key(job_form(job), job.base.digest, solution.lock, wheels)
        _require(job.lock_key, solved)
        composition: Composition | None = None
        same = self._same_solution(target, solved, job.deadline)
        if same is not None and job.lock_key is not None:
            upload.settle()
            return Built(same.manifest.descriptor.digest, str(solved), 0, parts.count, upload.bytes_sent)
        annotations = self._annotations(job, solved)
        known = Known(has_empty=upload.refuses_dangling(self.index), index=self.index)
        keep = partial(keep_recipe, target, name=job.name, progress=self.progress, has_config=known.has_empty)
        store: Callable[[], None] | None = None
        if same is None:
            assembled, composition, variables = self._compose(job, parts, str(solved), annotations, above)
            recipe = recipe_of(job, str(solved), solution.lock, composition, pip)
            scripted = composition.scripted
            manifest = self._after(job, assembled, scripted, solution.lock, variables, upload)
            if job.again is not None:
                job.again.require(manifest)
            upload.later(partial(keep, recipe))
            whole = assembled if manifest is assembled.manifest else None
            store = partial(self._store, manifest, whole, upload)
            tag = None if job.lock_key else solved.tag

            def done() -> None:
                upload.later(parts.composer.shared.vouch)
                self._name(upload, manifest, tag, job.deadline)

            signing = Signing(recipe.claim if self._signs else {}, done)
        else:
            found = recipe_like(job, str(solved), same, self.registries, self.config.workspace)
            keep(found)
            manifest = reannotated(same.image, annotations)
            signing = Signing(found.claim if found is not None and self._signs else {})
        made = made_of(job, solution.lock, wheels, started)
        publisher = Publisher(self.config, target, job.deadline, self.progress, known)
        seen = publisher.publish_built(manifest, job.name, made, store, signing=signing)
        upload.settle()
        return Built(
            seen.descriptor.digest,
            str(solved),
            composition.made if composition else 0,
            composition.reused if composition else parts.count,
            upload.bytes_sent,
        )

    def _with_steps(self, job: Job, upload: Upload) -> BaseImage:
        if job.spec.steps is None or not job.spec.steps.instructions:
            return job.base
        from envbuild.build.steps import StepsBuilder

        also = job.again.repository if job.again is not None else None
        builder = StepsBuilder(self.config, self.registries, upload, self.progress, job.spec.offline, also)
        return builder.image(job.base, job.spec.steps, job.platform, job.deadline)

    def _solve(self, job: Job, base: BaseImage) -> Solution:
        from envbuild.conda.solve import Solution

        spec = job.spec
        if job.locked is not None:
            return Solution.of(job.locked.lock, origins(spec, self.config))
        return solve_conda(
            spec,
            base,
            job.platform,
            config=self.config,
            index=self.index,
            deadline=job.deadline,
            progress=self.progress,
        )

    def _parts(self, job: Job, base: BaseImage, solution: Solution, upload: Upload) -> Parts:
        """What the image is composed of; Conda's layers are made for a pip section, which depends on them."""
        composer = self._composer(job, solution, upload)
        if job.spec.pip is None:
            return Parts(base, solution, composer)
        from envbuild.build.wheels import find_wheels

        wheels = find_wheels(job, job.spec.pip, base, composer, solution.lock, self.config)
        return Parts(base, solution, composer, wheels)

    def _annotations(self, job: Job, solved: LockKey) -> dict[str, str]:
        annotations = {LOCK_ANNOTATION: str(solved), SCHEME_ANNOTATION: str(KEY_SCHEME)}
        if job.carried is not None:
            annotations[KEY_ANNOTATION] = str(job.carried)
        if job.base.digest is not None:
            annotations[BASE_DIGEST_ANNOTATION] = str(job.base.digest)
        return annotations

    def _read_key(self, sign_key: str) -> None:
        from envbuild.trust.cosign import public_half

        public_half(sign_key)

    @property
    def _signs(self) -> bool:
        return self.config.trust is not None and self.config.trust.signs

    def _same_solution(self, target: Registry, solved: LockKey, deadline: Deadline) -> Admitted | None:
        """The image of this solution, of whatever definition: its layers and config serve as they are."""
        found = find_manifest(target, solved.tag)
        if not isinstance(found, Manifest):
            return None
        try:
            require_name(found, solved, f"{target.repository}:{solved.tag}")
        except IntegrityError:
            return None
        admission = Admission(self.config, self.progress)
        return admission.image(found, target, deadline, part=True, every=True)

    def _compose(
        self,
        job: Job,
        parts: Parts,
        lock_key: str,
        annotations: dict[str, str],
        above: Future[Node | None],
    ) -> tuple[Assembled, Composition, Variables]:
        base, upload = parts.base, parts.composer.upload
        sources = () if base.registry is None else (base.registry,)
        for layer in base.manifest.layers:
            upload.expect(oci_layer(layer), sources, "base")
        given_back = self._given_back(above.result(), upload) if parts.count else ()
        composition = self._content(parts, len(given_back))
        variables = self._settings(job, parts, composition)
        assembled = assemble(
            base,
            (*composition.layers, *given_back),
            environment=variables.image,
            labels={LOCK_ANNOTATION: lock_key, SCHEME_ANNOTATION: str(KEY_SCHEME)},
            annotations=annotations,
        )
        return assembled, composition, variables

    def _folder_above(self, base: BaseImage, job: Job) -> Node | None:
        """The folder above the environment's, where package layers would change it."""
        from envbuild.build.place import folder_above

        if not (job.spec.conda and job.spec.conda.dependencies) and job.spec.pip is None:
            return None
        return folder_above(base, PREFIX, self.index, self.config.jobs, job.deadline)

    def _given_back(self, above: Node | None, upload: Upload) -> tuple[Layer, ...]:
        """The layer on top of an environment's that leaves the folder above it as the base has it, if any."""
        from envbuild.build.place import as_it_was
        from envbuild.conda.layer import Compression

        return as_it_was(above, PREFIX, upload, Compression.of(self.config.compression))

    def _content(self, parts: Parts, reserved: int) -> Composition:
        """The environment's layers, in the target or on their way; so many more will be on top of them."""
        base, lock, composer, wheels = parts.base, parts.solution.lock, parts.composer, parts.wheels
        budget = self.config.max_layers - len(base.manifest.layers) - 1 - reserved
        if budget < 1:
            raise BuildError(
                f"the base has {len(base.manifest.layers)} layers, which leaves no room under the limit of "
                f"{self.config.max_layers}",
                hint="raise max_layers (at most 125), or choose a base with fewer layers",
            )
        composition = wheels.compose(composer, budget) if wheels else composer.compose(plan(lock, budget))
        history = (composer.history(lock, composition.corrections),) if lock.packages else ()
        return replace(composition, layers=(*composition.layers, *history))

    def _settings(self, job: Job, parts: Parts, composition: Composition) -> Variables:
        """The variables of the image."""
        variables, conda = dict(job.spec.variables), bool(parts.solution.lock.packages)
        if parts.wheels is not None:
            own = parts.wheels.environment(parts.base, variables, conda=conda)
            return self._environment(job, parts.base, composition, own)
        if not conda:
            return Variables(variables, {**variables_of(parts.base.config), **variables})
        return self._environment(job, parts.base, composition)

    def _after(
        self,
        job: Job,
        assembled: Assembled,
        scripted: frozenset[str],
        lock: Lock,
        variables: Variables,
        upload: Upload,
    ) -> Manifest:
        """The manifest of an image with all run that needs the environment; its blobs are in the target.

        Where nothing runs it is the manifest of what was assembled, and nothing is put.
        """
        steps = job.spec.steps_after
        has_steps = steps is not None and bool(steps.instructions)
        if not has_steps and not scripted:
            return assembled.manifest
        self._complete(assembled, upload)
        from envbuild.build.steps import StepsBuilder

        image = BaseImage(None, assembled.manifest, assembled.config, upload.target)
        builder = StepsBuilder(self.config, self.registries, upload, self.progress, job.spec.offline)
        if scripted:
            from envbuild.build.post_link import PostLink

            scripts = PostLink(builder, PREFIX, variables.start)
            image = scripts.run(image, lock.packages, scripted, job.platform, job.deadline)
        if steps is None or not has_steps:
            return image.manifest
        config, layers = builder.run(image, steps, job.platform, job.deadline)
        return Manifest.build(
            Descriptor.of(config, OCI_CONFIG), (*image.manifest.layers, *layers), image.manifest.annotations
        )

    def _complete(self, assembled: Assembled, upload: Upload) -> None:
        upload.put_bytes(assembled.manifest.config, assembled.config, "config")
        upload.complete(assembled.manifest, self.index, self.config.jobs)

    def _store(self, manifest: Manifest, assembled: Assembled | None, upload: Upload) -> None:
        """Put the manifest.

        Args:
            manifest: The image.
            assembled: The image with its config, where that is not complete in the target yet.
            upload: Puts it.
        """
        if assembled is not None:
            self._complete(assembled, upload)
        else:
            upload.target.put_manifest(manifest)

    def _name(self, upload: Upload, manifest: Manifest, tag: Tag | None, deadline: Deadline) -> None:
        """Begin to name an image by its solution, unless another that serves as well has that tag.

        Args:
            upload: Does it.
            manifest: The image, which is signed where it will be.
            tag: Names the solution; None where the image is published by that name.
            deadline: When to give up.
        """
        target, admission = upload.target, Admission(self.config, self.progress)

        def name(tag: Tag) -> None:
            found = find_manifest(target, tag)
            if found is None or admission.image(found, target, deadline, part=True) is None:
                target.put_manifest(manifest, tag)

        if tag is not None:
            upload.later(partial(name, tag))

    def _environment(
        self, job: Job, base: BaseImage, composition: Composition, own: dict[str, str] | None = None
    ) -> Variables:
        """The variables of the image: the prefix's, those of activation, and above all the definition's.

        Args:
            job: The job.
            base: The base with its steps.
            composition: The layers, and the texts that take part in activation.
            own: The variables of the prefix; those of a Conda environment if None.
        """
        from envbuild.conda.activate import activate, is_script

        variables = dict(job.spec.variables)
        environment = conda_environment(base, PREFIX, variables) if own is None else own
        before = {**variables_of(base.config), **environment}
        files = {path: text for path, text in composition.activation.items() if not is_script(path)}
        start = {**before, **activate(files, before).variables, **variables}
        activation = activate(composition.activation, before)
        for path, reason in activation.left_out.items():
            text = f"{path} is not part of the image's variables: {reason}"
            self.progress(Event("layer", path, "output", text=text))
        return Variables({**environment, **activation.variables, **variables}, start)

    def _shared(self, job: Job, *, refuses_dangling: bool = False) -> SharedLayers:
        """The layers beside the repositories."""
        from envbuild.build.known import SharedLayers

        config = self.config
        return SharedLayers(
            self.registries,
            Admission(config, self.progress, self.index),
            config.workspace,
            config.global_,
            config.jobs,
            job.deadline,
            self.progress,
            refuses_dangling,
        )

    def _composer(self, job: Job, solution: Solution, upload: Upload) -> Composer:
        from envbuild.build.compose import Composer
        from envbuild.build.linking import link_target
        from envbuild.conda.layer import Compression

        config = self.config
        shared = self._shared(job, refuses_dangling=upload.refuses_dangling(self.index))
        return Composer(
            upload,
            self.index,
            shared,
            self.registries,
            link_target(PREFIX, solution.lock, config, solution.urls, job.deadline, pyc=job.spec.pyc),
            Compression.of(self.config.compression),
            solution.urls,
            private_folder(self.config.cache_dir / "spool"),
            self.config.jobs,
            job.deadline,
            self.progress,
        )


def _require(wanted: LockKey | None, solved: LockKey) -> None:
    """Refuse a solution that is not the one which must come out."""
    if wanted not in {None, solved}:
        raise IntegrityError(
            f"the packages, wheels and settings have the lock key {solved}, expected {wanted}",
            hint="the lock is not that of the image; resolve the definition instead",
        )
