"""Credentials are found where people keep them, shown to nobody, and sent only where they belong."""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from envbuild.errors import SpecError, Unauthorized
from envbuild.oci.auth import Authority, Challenge, Credentials, Keychain, scope
from envbuild.reference import Repository

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TEAM = Repository.parse("registry.example.com:5000/team/envs")
HUB = Repository.parse("debian")


def auth(username: str = "alice", password: str = "s3cret") -> dict[str, str]:  # noqa: S107
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


def keychain(tmp_path: Path, config: Any = None, **environment: str) -> Keychain:
    if config is not None:
        (tmp_path / ".docker").mkdir(exist_ok=True)
        (tmp_path / ".docker/config.json").write_text(
            config if isinstance(config, str) else json.dumps(config)
        )
    return Keychain(environment, tmp_path)


class TestKeychain:
    def test_nothing_is_anonymous(self, tmp_path: Path) -> None:
        assert keychain(tmp_path).find(TEAM) is None
        assert keychain(tmp_path, "").find(TEAM) is None
        assert keychain(tmp_path, {"auths": {TEAM.host: {}}}).find(TEAM) is None

    @pytest.mark.parametrize(
        "key",
        [
            "registry.example.com:5000",
            "https://registry.example.com:5000",
            "http://registry.example.com:5000/",
            "https://registry.example.com:5000/v1/",
            "https://registry.example.com:5000/v2/",
            "REGISTRY.example.com:5000",
            "registry.example.com:5000/team",
            "registry.example.com:5000/team/envs",
        ],
    )
    def test_spellings_of_a_host(self, tmp_path: Path, key: str) -> None:
        found = keychain(tmp_path, {"auths": {key: auth()}}).find(TEAM)
        assert found == Credentials("alice", "s3cret")

    @pytest.mark.parametrize(
        "key",
        [
            "registry.example.com",
            "example.com:5000",
            "registry.example.com:5000/tea",
            "other.example.com:5000",
        ],
    )
    def test_other_hosts_get_nothing(self, tmp_path: Path, key: str) -> None:
        assert keychain(tmp_path, {"auths": {key: auth()}}).find(TEAM) is None

    @pytest.mark.parametrize(
        "key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "https://registry-1.docker.io"]
    )
    def test_docker_hub_has_many_names(self, tmp_path: Path, key: str) -> None:
        assert keychain(tmp_path, {"auths": {key: auth()}}).find(HUB) == Credentials("alice", "s3cret")

    def test_longest_name_wins(self, tmp_path: Path) -> None:
        auths = {
            TEAM.host: auth("host"),
            f"{TEAM.host}/team": auth("team"),
            f"{TEAM.host}/other": auth("other"),
        }
        found = keychain(tmp_path, {"auths": auths}).find(TEAM)
        assert found is not None
        assert found.username == "team"

    def test_password_with_colons(self, tmp_path: Path) -> None:
        found = keychain(tmp_path, {"auths": {TEAM.host: auth(password="a:b:ü")}}).find(TEAM)
        assert found == Credentials("alice", "a:b:ü")

    def test_plain_username_and_password(self, tmp_path: Path) -> None:
        entry = {"username": "alice", "password": "s3cret"}
        assert keychain(tmp_path, {"auths": {TEAM.host: entry}}).find(TEAM) == Credentials("alice", "s3cret")

    def test_identity_token(self, tmp_path: Path) -> None:
        found = keychain(tmp_path, {"auths": {TEAM.host: {**auth(), "identitytoken": "refresh"}}}).find(TEAM)
        assert found is not None
        assert (found.identity_token, found.basic) == ("refresh", None)

    def test_docker_config_names_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/config.json").write_text(json.dumps({"auths": {TEAM.host: auth("elsewhere")}}))
        chain = keychain(tmp_path, {"auths": {TEAM.host: auth()}}, DOCKER_CONFIG=str(tmp_path / "elsewhere"))
        found = chain.find(TEAM)
        assert found is not None
        assert found.username == "elsewhere"

    @pytest.mark.parametrize(
        ("variable", "path"),
        [
            ("REGISTRY_AUTH_FILE", "auth.json"),
            ("XDG_RUNTIME_DIR", "containers/auth.json"),
            ("XDG_CONFIG_HOME", "containers/auth.json"),
            (None, ".config/containers/auth.json"),
        ],
    )
    def test_podman(self, tmp_path: Path, variable: str | None, path: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"auths": {f"{TEAM.host}/team": auth("podman")}}))
        value = str(file) if variable == "REGISTRY_AUTH_FILE" else str(tmp_path)
        found = keychain(tmp_path, **({variable: value} if variable else {})).find(TEAM)
        assert found is not None
        assert found.username == "podman"

    def test_environment_for_one_host_wins(self, tmp_path: Path) -> None:
        chain = keychain(
            tmp_path,
            {"auths": {TEAM.host: auth()}},
            ENVBUILD_USERNAME_TEAM="bob",
            ENVBUILD_PASSWORD_TEAM="builder",
            ENVBUILD_HOST_TEAM="Registry.example.com:5000",
            ENVBUILD_USERNAME="tom",
            ENVBUILD_PASSWORD="other",
            ENVBUILD_HOST="other.example.com",
        )
        assert chain.find(TEAM) == Credentials("bob", "builder")
        assert chain.find(HUB) is None

    def test_environment_with_a_host(self, tmp_path: Path) -> None:
        chain = keychain(
            tmp_path, ENVBUILD_USERNAME="bob", ENVBUILD_PASSWORD="builder", ENVBUILD_HOST=TEAM.host
        )
        assert chain.find(TEAM) == Credentials("bob", "builder")
        assert chain.find(HUB) is None

    @pytest.mark.parametrize("word", ["", "_REGISTRY_EXAMPLE_COM_5000"])
    @pytest.mark.parametrize("host", [None, "", "https://registry.example.com:5000/"])
    def test_environment_without_a_host_is_refused(self, tmp_path: Path, word: str, host: str | None) -> None:
        variables = {f"ENVBUILD_USERNAME{word}": "bob", f"ENVBUILD_PASSWORD{word}": "builder"}
        variables |= {} if host is None else {f"ENVBUILD_HOST{word}": host}
        with pytest.raises(SpecError, match=r"host|HOST") as caught:
            keychain(tmp_path, **variables).find(TEAM)
        assert caught.value.hint is not None
        assert "builder" not in str(caught.value)

    def test_hosts_that_look_alike_have_logins_of_their_own(self, tmp_path: Path) -> None:
        """No two hosts share a variable, whatever is in their names."""
        named = "registry.example.com:5000"
        chain = keychain(
            tmp_path,
            ENVBUILD_USERNAME_REGISTRY_EXAMPLE_COM_5000="bob",
            ENVBUILD_PASSWORD_REGISTRY_EXAMPLE_COM_5000="builder",
            ENVBUILD_HOST_REGISTRY_EXAMPLE_COM_5000=named,
        )
        alike = ("registry-example.com:5000", "registry.example-com:5000", "registry.example.com.5000")
        others = ("registry.example.com", "registry.example.com:50", "xregistry.example.com:5000")
        for host in (*alike, *others):
            assert chain.find(Repository(host, "team/envs")) is None
        assert chain.find(Repository(named, "team/envs")) == Credentials("bob", "builder")

    def test_two_logins_for_one_host_are_refused(self, tmp_path: Path) -> None:
        variables = {
            f"ENVBUILD_{part}{word}": "canary"
            for part in ("USERNAME", "PASSWORD")
            for word in ("", "_A", "_B")
        }
        hosts = {"ENVBUILD_HOST": HUB.host, "ENVBUILD_HOST_A": TEAM.host, "ENVBUILD_HOST_B": TEAM.host}
        chain = keychain(tmp_path, **variables, **hosts)
        with pytest.raises(SpecError, match="_A and ENVBUILD_USERNAME_B are for the same host"):
            chain.find(TEAM)
        assert chain.find(HUB) == Credentials("canary", "canary")

    @pytest.mark.parametrize("missing", ["USERNAME", "PASSWORD"])
    @pytest.mark.parametrize("empty", [{}, {"": ""}])
    def test_an_empty_variable_hides_no_other_login(
        self, tmp_path: Path, missing: str, empty: dict[str, str]
    ) -> None:
        """As where a CI has a secret on some branches alone."""
        variables = {"ENVBUILD_USERNAME": "bob", "ENVBUILD_PASSWORD": "builder", "ENVBUILD_HOST": TEAM.host}
        del variables[f"ENVBUILD_{missing}"]
        variables |= {f"ENVBUILD_{missing}": text for text in empty.values()}
        found = keychain(tmp_path, {"auths": {TEAM.host: auth("file")}}, **variables).find(TEAM)
        assert found is not None
        assert found.username == "file"

    @pytest.mark.parametrize(
        "content", ["[]", "{", "not json", '{"auths": {"registry.example.com:5000": {"auth": "%%%secret"}}}']
    )
    def test_broken_files_are_named_but_not_quoted(self, tmp_path: Path, content: str) -> None:
        with pytest.raises(SpecError) as caught:
            keychain(tmp_path, content).find(TEAM)
        assert str(tmp_path / ".docker/config.json") in str(caught.value)
        assert "secret" not in str(caught.value)


class TestHelpers:
    @pytest.fixture
    def helper(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        program = tmp_path / "bin/docker-credential-test"
        program.parent.mkdir()
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        return program

    @staticmethod
    def write(program: Path, script: str) -> None:
        program.write_text(f'#!/bin/sh\nread -r server || true\n[ "$1" = get ] || exit 9\n{script}\n')
        program.chmod(0o755)

    @pytest.mark.parametrize("where", [{"credsStore": "test"}, {"credHelpers": {TEAM.host: "test"}}])
    def test_helper_is_asked_for_the_host(self, tmp_path: Path, helper: Path, where: Any) -> None:
        self.write(helper, """printf '{"Username":"alice","Secret":"for %s"}' "$server" """)
        chain = keychain(tmp_path, {"auths": {TEAM.host: {}}, **where})
        assert chain.find(TEAM) == Credentials("alice", f"for {TEAM.host}")
        assert chain.find(TEAM, helpers=False) is None

    def test_helper_is_asked_for_docker_hub_by_its_old_name(self, tmp_path: Path, helper: Path) -> None:
        self.write(helper, """printf '{"Username":"alice","Secret":"%s"}' "$server" """)
        found = keychain(tmp_path, {"credsStore": "test"}).find(HUB)
        assert found == Credentials("alice", "https://index.docker.io/v1/")

    def test_helper_of_one_host_is_not_asked_for_another(self, tmp_path: Path, helper: Path) -> None:
        self.write(helper, f"touch {tmp_path}/asked; exit 1")
        assert keychain(tmp_path, {"credHelpers": {"other.example.com": "test"}}).find(TEAM) is None
        assert not (tmp_path / "asked").exists()

    def test_helper_gives_an_identity_token(self, tmp_path: Path, helper: Path) -> None:
        self.write(helper, """echo '{"Username":"<token>","Secret":"refresh"}'""")
        found = keychain(tmp_path, {"credsStore": "test"}).find(TEAM)
        assert found is not None
        assert found.identity_token == "refresh"

    def test_helper_knows_nothing(self, tmp_path: Path, helper: Path) -> None:
        self.write(helper, "echo 'credentials not found in native keychain'; exit 1")
        assert keychain(tmp_path, {"credsStore": "test"}).find(TEAM) is None

    @pytest.mark.parametrize(
        "script", ["echo s3cret; exit 3", "echo s3cret", "echo '[]'", """echo '{"Secret":"s3cret"}'"""]
    )
    def test_helper_that_fails(self, tmp_path: Path, helper: Path, script: str) -> None:
        self.write(helper, script)
        with pytest.raises(Unauthorized, match="docker-credential-test") as caught:
            keychain(tmp_path, {"credsStore": "test"}).find(TEAM)
        assert "s3cret" not in f"{caught.value} {caught.value.hint}"

    def test_helper_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(Unauthorized, match=r"docker-credential-none-such .* is not there"):
            keychain(tmp_path, {"credsStore": "none-such"}).find(TEAM)

    @pytest.mark.parametrize("name", ["../evil", "a/b", "-x", "a b", ["list"]])
    def test_helper_names_are_checked(self, tmp_path: Path, name: Any) -> None:
        with pytest.raises(SpecError, match="credential helper"):
            keychain(tmp_path, {"credsStore": name}).find(TEAM)


def test_secrets_are_not_shown() -> None:
    credentials = Credentials("alice", "s3cret", "refresh-me")
    chain = Keychain({"ENVBUILD_PASSWORD": "s3cret"})
    for shown in (repr(credentials), str(credentials), f"{credentials!r:>10}", repr(chain)):
        assert "s3cret" not in shown
        assert "refresh-me" not in shown


class TestChallenge:
    @pytest.mark.parametrize(
        ("header", "expected"),
        [
            ('Basic realm="a b"', (Challenge("basic", {"realm": "a b"}),)),
            (
                'Bearer realm="https://auth.example.com/token",service="r",scope="repository:a:pull,push"',
                (
                    Challenge(
                        "bearer",
                        {
                            "realm": "https://auth.example.com/token",
                            "service": "r",
                            "scope": "repository:a:pull,push",
                        },
                    ),
                ),
            ),
            (
                'BEARER Realm=plain , error = "in\\"valid", Basic realm=x',
                (
                    Challenge("bearer", {"realm": "plain", "error": 'in"valid'}),
                    Challenge("basic", {"realm": "x"}),
                ),
            ),
            ("Negotiate", (Challenge("negotiate", {}),)),
            ("", ()),
            (',,,="', ()),
        ],
    )
    def test_parse(self, header: str, expected: tuple[Challenge, ...]) -> None:
        assert Challenge.parse(header) == expected

    def test_long_headers_end(self) -> None:
        assert len(Challenge.parse("a " * 1_000_000)) <= 8192


class TokenServer:
    """Remembers what it was asked."""

    def __init__(self, body: Any, status: int = 200) -> None:
        self.body = json.dumps(body).encode()
        self.status = status
        self.asked: list[tuple[str, dict[str, str], bytes | None]] = []

    def __call__(
        self, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        self.asked.append((url, dict(headers), body))
        return self.status, {}, self.body


BEARER = (
    'Bearer realm="https://auth.example.com/token?x=1",service="the service",'
    'scope="repository:team/envs:pull"'
)
PULL = (scope("team/envs", "pull"),)
PUSH = (scope("team/envs", "pull", "push"),)


def authority(credentials: Credentials | Keychain | None = None) -> Authority:
    return Authority(TEAM, f"https://{TEAM.host}", credentials or Keychain({}))


class TestAuthority:
    @pytest.fixture(autouse=True)
    def _no_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))

    def test_basic_is_sent_at_once_where_it_is_known(self) -> None:
        assert authority(Credentials("alice", "s3cret")).header(PULL) == "Basic YWxpY2U6czNjcmV0"
        assert authority().header(PULL) is None

    def test_basic_without_credentials(self) -> None:
        with pytest.raises(Unauthorized) as caught:
            authority().answer("Basic realm=x", PULL, None, TokenServer({}), "reading")
        assert f"docker login {TEAM.host}" in str(caught.value.hint)

    def test_wrong_password_is_said_at_once(self) -> None:
        asked = authority(Credentials("alice", "s3cret"))
        with pytest.raises(Unauthorized, match="'alice'"):
            asked.answer("Basic realm=x", PULL, asked.header(PULL), TokenServer({}), "reading")

    def test_unknown_scheme(self) -> None:
        with pytest.raises(Unauthorized, match="Negotiate"):
            authority().answer("Negotiate", PULL, None, TokenServer({}), "reading")

    def test_token_is_fetched_and_kept_for_its_scope(self) -> None:
        asked, server = (
            authority(Credentials("alice", "s3cret")),
            TokenServer({"token": "t1", "expires_in": 300}),
        )
        assert asked.answer(BEARER, PULL, None, server, "reading") == "Bearer t1"
        url, headers, body = server.asked[0]
        assert url == (
            "https://auth.example.com/token?x=1&service=the+service&scope=repository%3Ateam%2Fenvs%3Apull"
        )
        assert (headers, body) == ({"Authorization": "Basic YWxpY2U6czNjcmV0"}, None)
        assert asked.header(PULL) == "Bearer t1"
        assert asked.header(PUSH) is None

    def test_anonymous_token(self) -> None:
        server = TokenServer({"access_token": "t2"})
        assert authority().answer(BEARER, PULL, None, server, "reading") == "Bearer t2"
        assert server.asked[0][1] == {}

    def test_identity_token_is_exchanged(self) -> None:
        server = TokenServer({"access_token": "t3"})
        authority(Credentials("", "", "refresh")).answer(BEARER, PUSH, None, server, "writing")
        url, headers, body = server.asked[0]
        assert url == "https://auth.example.com/token?x=1"
        assert "Authorization" not in headers
        assert body is not None
        assert b"grant_type=refresh_token" in body
        assert b"refresh_token=refresh" in body
        assert b"pull%2Cpush" in body

    def test_expired_token_is_not_used(self) -> None:
        asked = authority()
        asked.answer(BEARER, PULL, None, TokenServer({"token": "t4", "expires_in": 1e-9}), "reading")
        assert asked.header(PULL) is None

    def test_a_token_is_renewed_before_it_is_missed(self) -> None:
        asked, first = authority(), TokenServer({"token": "t5", "expires_in": 1e-9})
        assert asked.fresh(PULL, first, "reading") is None, "nobody knows yet what the registry wants"
        assert first.asked == []
        asked.answer(BEARER, PULL, None, first, "reading")
        second = TokenServer({"token": "t6", "expires_in": 300})
        assert asked.fresh(PUSH, second, "writing") == "Bearer t6"
        assert second.asked[0][0].endswith("&scope=repository%3Ateam%2Fenvs%3Apull%2Cpush")
        assert asked.fresh(PUSH, second, "writing") == "Bearer t6"
        assert len(second.asked) == 1

    @pytest.mark.parametrize(
        "realm",
        [
            "http://auth.example.com/token",
            "file:///etc/passwd",
            "",
            "//x",
            "https://user:pw@auth.example.com/",
        ],
    )
    def test_credentials_go_to_no_odd_token_server(self, realm: str) -> None:
        server = TokenServer({"token": "t"})
        with pytest.raises(Unauthorized, match="token server"):
            authority(Credentials("alice", "s3cret")).answer(
                f'Bearer realm="{realm}"', PULL, None, server, "x"
            )
        assert server.asked == []

    @pytest.mark.parametrize(
        ("base", "realm", "is_asked"),
        [
            ("http://plain.example.com", "http://plain.example.com:5001/token", True),
            ("http://plain.example.com", "https://auth.example.com/token", True),
            ("http://plain.example.com", "http://auth.example.com/token", False),
            ("http://plain.example.com", "http://127.0.0.1:5001/token", False),
            ("http://127.0.0.1:5000", "http://localhost:5001/token", True),
            ("http://127.0.0.1:5000", "http://auth.example.com/token", False),
            ("https://registry.example.com", "http://127.0.0.1:5001/token", False),
        ],
    )
    def test_credentials_go_in_clear_no_further_than_to_their_registry(
        self, base: str, realm: str, is_asked: bool
    ) -> None:
        """Whoever stands between could name any token server."""
        server = TokenServer({"token": "t"})
        asked = Authority(TEAM, base, Credentials("alice", "s3cret"))
        if is_asked:
            assert asked.answer(f'Bearer realm="{realm}"', PULL, None, server, "x") == "Bearer t"
        else:
            with pytest.raises(Unauthorized, match="token server"):
                asked.answer(f'Bearer realm="{realm}"', PULL, None, server, "x")
        assert bool(server.asked) is is_asked

    @pytest.mark.parametrize(
        "body", [[], {}, {"token": 7}, {"token": "a\r\nX-Evil: 1"}, {"token": ""}, "text"]
    )
    def test_token_answers_are_checked(self, body: Any) -> None:
        with pytest.raises(Unauthorized, match="token"):
            authority().answer(BEARER, PULL, None, TokenServer(body), "reading")

    def test_token_server_refuses(self) -> None:
        with pytest.raises(Unauthorized, match=r"auth\.example\.com"):
            authority().answer(BEARER, PULL, None, TokenServer({}, 401), "reading")
