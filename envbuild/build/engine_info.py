"""What an engine can do, and how steps are put to it accordingly."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from envbuild.build import buildx
from envbuild.build.heredoc import DEFAULT_SHELL, lower_heredocs
from envbuild.errors import BuildError

if TYPE_CHECKING:
    from envbuild.build.steps_image import Limits, StepsBase

_SYSTEM_SOCKETS: Final = ("/var/run/docker.sock", "/run/podman/podman.sock")
_NEEDS_BUILDKIT: Final = re.compile(r"(?im)^[ \t]*+(?:RUN\s+--|(?:COPY|ADD)\s+--(?!chown=|from=))")


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is.

    Attributes:
        endpoint: Its address.
        version: Its version, as ``20.10.24+dfsg1``.
        storage: Its storage driver, as ``overlay2``.
        buildkit: Whether it has a BuildKit that can be used over plain HTTP.
        podman: Whether it is Podman, which speaks the same API.
        containerd_store: Whether images are kept by containerd; an image's ID is then its manifest's digest.
        named: Whether it is no engine but a BuildKit that buildx knows by name; ``storage`` is its driver.
    """

    endpoint: str = field(repr=False)
    version: str
    storage: str
    buildkit: bool
    podman: bool
    containerd_store: bool
    named: bool = False

    def __str__(self) -> str:
        """What people read."""
        if self.named:
            return f"BuildKit {self.version} at {self.endpoint}, driver {self.storage}"
        kind = "Podman" if self.podman else "Docker Engine"
        how = "BuildKit" if self.buildkit else "its own builder"
        return f"{kind} {self.version} at {self.endpoint}, {self.storage} storage, builds with {how}"

    @property
    def major(self) -> int:
        """The first number of the version."""
        return int(found[0]) if (found := re.match(r"\d+", self.version)) else 0

    @property
    def heredocs(self) -> bool:
        """Whether its own Dockerfile front end knows heredocs (Engine 23, BuildKit 0.10)."""
        return self.named or (self.buildkit and self.major >= 23)

    @property
    def buildx(self) -> str | None:
        """What ``docker buildx version`` says here, or None; it runs the command."""
        return buildx.version(self.endpoint)


def builder_parameters(steps: str, limits: Limits, info: EngineInfo) -> dict[str, str]:
    """The parameters that choose BuildKit or, where it cannot keep the limits, the engine's older builder.

    Raises:
        BuildError: The steps need BuildKit, and it cannot be had.
    """
    limited = limits.memory is not None or limits.cpus is not None
    network = {} if limits.network is None else {"networkmode": limits.network}
    if info.podman:
        # Without layers of each step Podman keeps no images of them either.
        return {"layers": "0", **network, **_limit_parameters(limits)}
    if info.buildkit and not limited:
        return {"version": "2", **network}
    if _NEEDS_BUILDKIT.search(steps):
        why = "limits of memory or processors" if info.buildkit else f"Docker Engine {info.version}"
        raise BuildError(
            f"these steps need BuildKit, which cannot be had with {why}",
            hint="limit the engine itself (dockerd --cgroup-parent), or leave out flags such as RUN --mount",
        )
    # The older builder's cache can be poisoned (CVE-2024-24557), so it is not used.
    return {"version": "1", "nocache": "1", **network, **_limit_parameters(limits)}


def lowered(steps: str, base: StepsBase, info: EngineInfo) -> str:
    """The steps in a spelling that the engine knows."""
    if info.heredocs:
        return steps
    shell = (json.loads(base.config).get("config") or {}).get("Shell") or DEFAULT_SHELL
    return lower_heredocs(steps, shell)


def _limit_parameters(limits: Limits) -> dict[str, str]:
    memory = {} if limits.memory is None else {"memory": str(limits.memory), "memswap": str(limits.memory)}
    quota = int((limits.cpus or 0) * 100_000)
    cpus = {} if limits.cpus is None else {"cpuperiod": "100000", "cpuquota": str(quota)}
    return {**memory, **cpus}


def usual_endpoints() -> tuple[str, ...]:
    """Where engines listen by themselves: Docker, Docker without root, Docker Desktop, Podman.

    Where Podman's own variable names an engine on a socket or over TCP, that one comes first.
    """
    named = os.environ.get("CONTAINER_HOST", "")
    own = (named,) if named.startswith(("unix://", "tcp://")) else ()
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    of_the_user = ("docker.sock", "podman/podman.sock")
    paths = (*_SYSTEM_SOCKETS, *(f"{runtime}/{name}" for name in of_the_user))
    sockets = (f"unix://{path}" for path in (*paths, f"{Path.home()}/.docker/run/docker.sock"))
    return tuple(dict.fromkeys((*own, *sockets)))
