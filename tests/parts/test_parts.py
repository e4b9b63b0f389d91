"""The real parts that other tests stand on do start, answer and stop."""

from __future__ import annotations

import http.client
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from parts.docker_engine import DockerEngine
    from parts.ocimem import OcimemServer
    from parts.registry_server import RegistryServer


def test_registry_answers_and_counts_requests(registry: RegistryServer) -> None:
    connection = http.client.HTTPConnection(registry.host, timeout=5)
    connection.request("GET", "/v2/parts/tags/list")
    assert connection.getresponse().status == 404
    connection.close()
    assert "GET /v2/parts/tags/list 404" in registry.requests


def test_repositories_are_unique(registry: RegistryServer) -> None:
    assert registry.repository() != registry.repository()


def test_registry_stops_and_starts_on_the_same_host(stoppable_registry: RegistryServer) -> None:
    host = stoppable_registry.host
    stoppable_registry.stop()
    assert not stoppable_registry._answers()
    stoppable_registry.start()
    assert stoppable_registry._answers()
    assert stoppable_registry.host == host


def test_htpasswd_registry_asks_for_credentials(htpasswd_registry: RegistryServer) -> None:
    connection = http.client.HTTPConnection(htpasswd_registry.host, timeout=5)
    connection.request("GET", "/v2/")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["WWW-Authenticate"][:5]) == (401, "Basic")
    connection.close()


def test_token_registry_lets_nobody_in_without_a_token(token_registry: RegistryServer) -> None:
    connection = http.client.HTTPConnection(token_registry.host, timeout=5)
    connection.request("GET", "/v2/parts/tags/list")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["WWW-Authenticate"][:6]) == (401, "Bearer")
    connection.close()


def test_ocimem_has_the_referrers_api(ocimem: OcimemServer) -> None:
    path = f"/v2/parts/referrers/sha256:{'0' * 64}"
    connection = http.client.HTTPConnection(ocimem.host, timeout=5)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Content-Type"]) == (404, "application/json")
    connection.close()
    assert f"GET {path} 404" in ocimem.requests


@pytest.mark.xdist_group("engine")
def test_engine_runs(engine: DockerEngine) -> None:
    assert engine.answers()
    assert engine.docker("version", "--format", "{{.Server.Version}}").stdout.strip()


@pytest.mark.xdist_group("engine")
def test_tests_of_the_engine_are_one_group(request: pytest.FixtureRequest) -> None:
    """Two at a time would take each other's containers for their own; another pytest may lose the group."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@engine")
