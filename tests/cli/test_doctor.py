"""What ``doctor`` says of the way to registries: names and places, never secrets."""

from __future__ import annotations

import base64
import json
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from cli_calls import Call
from envbuild.cli import diagnosis
from envbuild.config import Config
from envbuild.oci.client import tls_context
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository, Tag
from oci_contract import put_image
from parts.ocimem import OcimemServer
from parts.registry_server import PASSWORD, USERNAME, RegistryServer
from tiny import World

SECRET = "C4nary"


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Docker's config file, which is not there yet."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "docker").mkdir()
    return tmp_path / "docker/config.json"


def lines(call: Call, *words: str) -> dict[str, dict[str, str]]:
    answer = call("doctor", "--json", "--docker-host", "unix:///no.sock", *words)
    assert SECRET not in answer.out + answer.err
    assert PASSWORD not in answer.out + answer.err
    return {document["name"]: document for document in answer.documents}


@pytest.mark.usefixtures("world")
def test_where_a_login_is_kept(
    call: Call, docker: Path, htpasswd_registry: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = htpasswd_registry.repository()
    monkeypatch.setenv("ENVBUILD_WORKSPACE", str(repository))
    found = lines(call)
    assert found["workspace"]["state"] == "broken"
    assert found["workspace login"]["state"] == "missing"
    assert "docker login" in found["workspace login"]["hint"]
    assert "workspace attached" not in found

    encoded = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
    docker.write_text(json.dumps({"auths": {repository.host: {"auth": encoded}}}))
    found = lines(call)
    assert found["workspace"]["state"] == "ok"
    assert found["workspace login"]["seen"] == f"from {docker}"

    helper = docker.parent / "docker-credential-ours"
    helper.write_text(f'#!/bin/sh\necho \'{{"Username": "{USERNAME}", "Secret": "{PASSWORD}"}}\'\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{docker.parent}:/usr/bin:/bin")
    docker.write_text(json.dumps({"credHelpers": {repository.host: "ours"}}))
    found = lines(call, "--global", f"{repository.host}/shared")
    for name in ("workspace", "global"):
        assert found[name]["state"] == "ok"
        assert found[f"{name} login"]["seen"] == f"from docker-credential-ours, which {docker} names"

    helper.unlink()
    found = lines(call)
    assert found["workspace login"]["state"] == "broken"
    assert "docker-credential-ours" in found["workspace login"]["seen"]

    monkeypatch.setenv("ENVBUILD_USERNAME_CI", USERNAME)
    monkeypatch.setenv("ENVBUILD_PASSWORD_CI", PASSWORD)
    monkeypatch.setenv("ENVBUILD_HOST_CI", repository.host)
    assert lines(call)["workspace login"]["seen"] == "from ENVBUILD_USERNAME_CI and ENVBUILD_PASSWORD_CI"


@pytest.mark.usefixtures("world", "docker")
def test_where_what_is_attached_goes(call: Call, registry: RegistryServer, ocimem: OcimemServer) -> None:
    places = [f"{host}/doctor{uuid.uuid4().hex[:12]}" for host in (registry.host, ocimem.host)]
    words = ("--workspace", places[0], "--global", places[1])
    assert lines(call, *words)["global attached"]["state"] == "missing"
    for place in places:
        opened = RemoteRegistry(Repository.parse(place))
        opened.put_manifest(put_image(opened, "image"), Tag("v1"))
        opened.close()
    found = lines(call, *words)
    assert found["workspace attached"]["seen"].startswith("no referrers API")
    assert found["global attached"]["seen"] == "listed by the referrers API"
    assert "global attached" not in lines(call, "--global", "127.0.0.1:9/nobody")


@pytest.mark.usefixtures("docker")
def test_mirrors_are_shown(world: World, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(call)["mirrors"]["state"] == "missing"
    assert "workspace login" not in lines(call)
    monkeypatch.setenv("ENVBUILD_REGISTRIES", "docker.io=mirror.example.com/hub,mirror.gcr.io")
    assert world.root.is_dir()
    answer = call("doctor").out
    way = "docker.io is read from mirror.example.com/hub, mirror.gcr.io, then from itself"
    assert f"ok       mirrors            {way}" in answer


def test_the_rule_of_each_repository_is_shown(world: World, tmp_path: Path) -> None:
    (tmp_path / "ours.pub").write_text("-----BEGIN PUBLIC KEY-----\n")
    (tmp_path / "envbuild.toml").write_text(
        """
        workspace = "Ours.example.com/team/envs"
        global = "team/envs"
        base = "debian:12"
        [registries."ours.example.com"]
        mirrors = ["mirror.example.com"]
        [trust]
        keys = ["ours.pub"]
        [trust.repositories."ours.example.com/team"]
        require_signed = true
        on_failure = "fail"
        [trust.repositories."index.docker.io/team/envs"]
        require_signed = true
        [trust.repositories."mirror.example.com"]
        require_signed = true
        [trust.repositories."ours.example.com/teams"]
        require_signed = true
        """
    )
    config = Config.load(tmp_path, {"ENVBUILD_CONFIG": str(tmp_path / "envbuild.toml")})
    found = [(check.name, check.seen) for check in diagnosis._trust(config)]
    ours = "must be signed, else a fail (the rule 'ours.example.com/team')"
    hub = "must be signed, else a miss (the rule 'docker.io/team/envs')"
    assert found == [
        ("trust workspace", f"images of ours.example.com/team/envs {ours}"),
        ("trust workspace layers", f"images of ours.example.com/team/envs/layers {ours}"),
        ("trust global", f"images of docker.io/team/envs {hub}"),
        ("trust global layers", f"images of docker.io/team/envs-layers {hub}"),
        ("trust base", "images of docker.io/library/debian need no signature (no rule of its own)"),
        ("trust rule", "'mirror.example.com' is about none of the repositories that are configured"),
        ("trust rule", "'ours.example.com/teams' is about none of the repositories that are configured"),
    ]
    (open_check,) = diagnosis._trust(world.config)
    assert open_check.state == "missing"


def test_the_proxy_of_each_host_is_shown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)
    config = replace(
        world.config,
        workspace=Repository.parse("ours.example.com/team/envs"),
        global_=Repository.parse("plain.example.com/envs"),
        insecure=frozenset({"plain.example.com"}),
        registries={"ours.example.com": ("mirror.example.com/ours", "127.0.0.1:5000")},
    )
    found = diagnosis._proxies(config)
    assert (found.state, "ours.example.com directly" in found.seen) == ("missing", True)
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:{SECRET}@proxy.example.com:3128")
    monkeypatch.setenv("HTTP_PROXY", f"user:{SECRET}@other.example.com:8080")
    monkeypatch.setenv("NO_PROXY", "mirror.example.com")
    found = diagnosis._proxies(config)
    assert found.state == "ok"
    assert found.seen.split(", ") == [
        "ours.example.com through http://proxy.example.com:3128",
        "plain.example.com through other.example.com:8080",
        "mirror.example.com directly",
        "127.0.0.1:5000 directly",
    ]


def test_authorities_that_cannot_be_read_are_told_without_a_registry(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls_context.cache_clear()
    assert lines(call)["authorities"]["state"] == "ok"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    tls_context.cache_clear()
    check = lines(call)["authorities"]
    assert check["state"] == "broken"
    assert f"SSL_CERT_FILE={tmp_path}/none.pem cannot be read" in check["seen"]
    assert "SSL_CERT_FILE" in check["hint"]
    tls_context.cache_clear()
