"""An environment's layers on a base: what a recipe and a base give, byte for byte what a build would."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envbuild.attach import Made
from envbuild.build.assemble import (
    SCHEME_ANNOTATION,
    Variables,
    assemble,
    oci_layer,
    prefix_environment,
    variables_of,
)
from envbuild.build.base import glibc_version
from envbuild.build.compose import Composition
from envbuild.build.layers import PREFIX, LayersBuilder
from envbuild.build.needs import check_glibc
from envbuild.build.place import folder_above
from envbuild.build.recipe import BUILD_AGAIN
from envbuild.errors import BuildError
from envbuild.key import KEY_SCHEME, LOCK_ANNOTATION
from envbuild.lockfile import base_text

if TYPE_CHECKING:
    from datetime import datetime

    from envbuild.build.base import BaseImage
    from envbuild.build.job import Job
    from envbuild.build.recipe import Recipe
    from envbuild.build.upload import Upload
    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor
    from envbuild.oci.manifest import Manifest
    from envbuild.oci.registry import Registry
    from envbuild.reference import ImageReference, Repository, TaggedReference
    from envbuild.spec.environment import EnvironmentSpec
    from envbuild.spec.steps import Steps


@dataclass(frozen=True)
class Transplant(LayersBuilder):
    """Puts the layers of recipes on bases. May be used by several threads.

    What it makes is what :class:`LayersBuilder` makes of the same packages on that base, byte for byte.
    """

    _guard: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _present: set[str] = field(default_factory=set, repr=False)

    def runs(self, job: Job, recipe: Recipe) -> bool:
        """Whether something has to run in the image that an engine makes of it."""
        return bool(recipe.scripted) or job.spec.steps_after is not None

    def on_base(
        self,
        base: BaseImage,
        job: Job,
        recipe: Recipe,
        annotations: dict[str, str],
        upload: Upload,
        origin: Repository,
    ) -> Manifest:
        """The manifest of an environment on a base; all that it names is in the target, itself is not.

        Args:
            base: The base with its steps.
            job: What is made.
            recipe: The environment.
            annotations: Those of the manifest.
            upload: The blobs.
            origin: Where the environment's layers are.

        Raises:
            BuildError: The image would have too many layers.
        """
        with self._guard:
            above = (
                folder_above(base, PREFIX, self.index, self.config.jobs, job.deadline)
                if recipe.layers
                else None
            )
            given_back = self._given_back(above, upload)
        total = len(base.manifest.layers) + len(recipe.layers) + len(given_back)
        if total > self.config.max_layers:
            raise BuildError(
                f"the image would have {total} layers, at most {self.config.max_layers} are allowed",
                hint=f"raise max_layers (at most 125); or {BUILD_AGAIN}",
            )
        for layer in base.manifest.layers:
            self._have(upload, oci_layer(layer), base.registry, "base")
        if origin != self.config.workspace:
            source = self.registries.open(origin).by(job.deadline)
            for own in recipe.layers:
                self._have(upload, own.descriptor, source, own.title)
        variables = self._variables(job, base, recipe)
        assembled = assemble(
            base,
            (*recipe.layers, *given_back),
            environment=variables.image,
            labels={
                LOCK_ANNOTATION: annotations[LOCK_ANNOTATION],
                SCHEME_ANNOTATION: str(KEY_SCHEME),
            },
            annotations=annotations,
        )
        if self.runs(job, recipe):
            return self._after(job, assembled, recipe.scripted, recipe.lock, variables, upload)
        config = assembled.manifest.config
        if self._is_new(str(config.digest)):
            upload.put_bytes(config, assembled.config, "config")
        return assembled.manifest

    def _variables(self, job: Job, base: BaseImage, recipe: Recipe) -> Variables:
        variables, conda = dict(job.spec.variables), bool(recipe.lock.packages)
        if not conda and recipe.pip is None:
            return Variables(variables, {**variables_of(base.config), **variables})
        venv = recipe.pip is not None and recipe.pip.python is not None
        own = prefix_environment(base, PREFIX, variables, conda=conda, venv=venv)
        composition = Composition((), 0, 0, recipe.scripted, dict(recipe.activation))
        return self._environment(job, base, composition, own)

    def _have(self, upload: Upload, layer: Descriptor, source: Registry | None, title: str) -> None:
        """Have a layer in the target; asked once."""
        with self._guard:
            if str(layer.digest) not in self._present:
                upload.require(layer, source, title)
                self._present.add(str(layer.digest))

    def _is_new(self, name: str) -> bool:
        """Whether a name is told for the first time."""
        with self._guard:
            known = name in self._present
            self._present.add(name)
            return not known

    def check(self, recipe: Recipe, base: BaseImage, deadline: Deadline) -> None:
        """Hold what the environment needs against a base.

        Raises:
            SolveError: The base's glibc is not what a package or a wheel needs.
            BuildError: The environment is one of the base's python, and this base has another.
        """

        def glibc() -> str | None:
            with self._guard:
                given: str | None = recipe.form.fields.get("virtual_packages", {}).get("glibc")
                given = self.config.glibc or given
                return given or glibc_version(base, self.index.fact, self.index.put_fact, deadline)

        check_glibc(recipe, glibc)
        if recipe.pip is None or recipe.pip.python is None:
            return
        from envbuild.build.wheels import wheel_target

        with self._guard:
            _, found = wheel_target(PREFIX, None, base, self.index, deadline)
        seen = (found.executable, found.version) if found is not None else None
        if seen != recipe.pip.python:
            raise BuildError(
                f"its wheels are for the base's python {' '.join(recipe.pip.python)}, and this base has "
                f"{' '.join(seen or ('none',))}",
                hint=BUILD_AGAIN,
            )


def as_spec(recipe: Recipe, base: ImageReference | TaggedReference | None) -> EnvironmentSpec:
    """As much of the definition as the image needs beyond its layers.

    Raises:
        BuildError: Its steps read files.
    """
    from envbuild.spec.environment import EnvironmentSpec
    from envbuild.spec.virtual import VirtualPackages

    form = recipe.form.fields
    return EnvironmentSpec(
        source=f"the recipe of {recipe.form.key}",
        base=base,
        steps=_steps(form["steps"]),
        steps_after=_steps(form["steps_after"]),
        variables=tuple(sorted(form["variables"].items())),
        platforms=(recipe.lock.platform,),
        virtual_packages=VirtualPackages.of(form.get("virtual_packages", {})),
        pyc=form.get("pyc", False),
        offline="step_network" in form,
    )


def _steps(section: dict[str, Any] | None) -> Steps | None:
    from envbuild.lockfile.revive import revived_steps

    if section is not None and section["context"]:
        raise BuildError("its steps read files, which a recipe does not hold", hint=BUILD_AGAIN)
    return revived_steps(section, Path("recipe"))


def made_on(job: Job, recipe: Recipe, started: datetime, origin: ImageReference) -> Made:
    """What a rebased image was made from, for what is attached to it.

    Args:
        job: What was made.
        recipe: The environment on the new base.
        started: When it began, in UTC.
        origin: The image whose environment it is.
    """
    wheels = recipe.pip.wheels if recipe.pip is not None else ()
    name = base_text(job.spec, Path.cwd())
    return Made(recipe.form, job.base.digest, name, recipe.lock, wheels, started, origin=origin)
