"""One tiny image on each kind of registry, and the programs of other people that look at it."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from envbuild.config import Config
from envbuild.oci.manifest import Manifest
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import ImageReference
from envbuild.resolver import Resolver
from parts.oracles import Oracles
from parts.registry_server import PASSWORD, USERNAME
from tiny import World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from parts.server_process import ServerProcess

SERVERS = ("registry", "htpasswd_registry", "token_registry", "ocimem")
WITH_LOGIN = ("htpasswd_registry", "token_registry")


@dataclass(frozen=True, slots=True)
class Pushed:
    """An image that envbuild built, pushed and attached to.

    Attributes:
        config: The settings that it was built with.
        reference: The image.
        manifest: Its manifest.
        registry: Its repository.
        oracles: The programs, logged in where that is needed.
    """

    config: Config
    reference: ImageReference
    manifest: Manifest
    registry: RemoteRegistry
    oracles: Oracles


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Tiny packages and a tiny base."""
    return World.make(tmp_path_factory.mktemp("interop"))


@pytest.fixture(scope="module", params=SERVERS)
def pushed(request: pytest.FixtureRequest, world: World) -> Iterator[Pushed]:
    """The image on each kind of registry."""
    server: ServerProcess = request.getfixturevalue(request.param)
    home = world.root / request.param
    home.mkdir()
    pair = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
    auths = {server.host: {"auth": pair}} if request.param in WITH_LOGIN else {}
    (home / "config.json").write_text(json.dumps({"auths": auths}))
    config = replace(world.config, workspace=server.repository(), cache_dir=home / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_CONFIG", str(home))
        with Resolver(config) as resolver:
            image = resolver.resolve(world.spec("pyth", "thing", "tool"))
        registry = RemoteRegistry(config.workspace)
        manifest = registry.get_manifest(image.reference.digest)
        assert isinstance(manifest, Manifest)
        yield Pushed(config, image.reference, manifest, registry, Oracles(home))
        registry.close()


@pytest.fixture(autouse=True)
def _logged_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The login that the image was pushed with holds for the test, too."""
    if "pushed" in request.fixturenames:
        pushed: Pushed = request.getfixturevalue("pushed")
        monkeypatch.setenv("DOCKER_CONFIG", str(pushed.oracles.home))
