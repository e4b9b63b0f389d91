"""Values of build secrets. They come from the environment and go into mounts: never into a key or a layer."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from envbuild.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def variable_of(name: str) -> str:
    """The environment variable that holds a secret: ``pip_token`` is in ``ENVBUILD_SECRET_PIP_TOKEN``."""
    return f"ENVBUILD_SECRET_{re.sub(r'[^A-Za-z0-9]', '_', name).upper()}"


def build_secrets(names: Iterable[str], environ: Mapping[str, str] | None = None) -> dict[str, bytes]:
    """The values of the secrets that steps mount, by their names.

    Raises:
        BuildError: A secret has no value, or an empty one; or two would be one variable.
    """
    values = os.environ if environ is None else environ
    found: dict[str, bytes] = {}
    for name in names:
        variable = variable_of(name)
        for other in found:
            if variable_of(other) == variable:
                raise BuildError(
                    f"the build secrets {other!r} and {name!r} would both be {variable}",
                    hint="rename one of them",
                )
        if not values.get(variable):
            raise BuildError(f"the build secret {name!r} has no value", hint=f"set {variable}")
        found[name] = values[variable].encode()
    return found
