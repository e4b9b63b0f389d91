"""Row 36: URLs, differential. What our grammar reads, every reader reads alike, or refuses.

The readers are those of whoever sends a request: urllib3, requests, uv and rattler (Rust's ``url``), and
beside them Python's ``urllib`` and a reader of WHATWG's standard.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import ada_url
import pytest
import requests
import urllib3.util
import uv
from rattler import Channel

from envbuild.errors import EnvbuildError, SpecError
from envbuild.foreign import load
from envbuild.key import CanonicalForm
from envbuild.oci.auth import Credentials
from envbuild.oci.probe import Prober
from envbuild.reference import Repository, Tag
from envbuild.url import PORTS, Url, UrlError
from parts.fault_server import Asked, Call, serving

Read = tuple[str, int, str]
"""Host, port and path, as a reader has them."""

_WORDS = r"""
http: https: HTTP: file: // / \ @ : ? # [ ] % %2f %40 %2e %5c %00 .. . good evil GOOD.example a_b - xn--a
xn--bcher-kva 127.0.0.1 0x7f 1 0177 2130706433 ::1 fe80::1%25eth0 ::ffff:1.2.3.4 80 443 080 65536 user pass
p%40 ${VAR} simple x.whl & = ; + ! ' " < > { } | ^ ` ~ * ( ) , $
"""
PIECES = (*_WORDS.split(), *" \t\n\r\x00\x7f\xad\xe9\xdf\u200b\u3002\uff0f\uff20")
SHAPES = (
    "http://good/simple",
    "http://user:pass@good:80/simple/x.whl?a=b#c",
    "https://GOOD.example:8443/a/b/",
    "http://[::1]:5000/x",
    "http://127.0.0.1/a%20b",
    "https://xn--bcher-kva.example/t/tk-1/x",
)


def generated(seed: int, count: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(count):
        if rng.random() < 0.15:
            yield "".join(rng.choice(PIECES) for _ in range(rng.randint(2, 8)))
            continue
        text = rng.choice(SHAPES)
        for _ in range(rng.randint(1, 3)):
            place = rng.randint(0, len(text))
            text = text[:place] + rng.choice(PIECES) + text[place + rng.choice((0, 0, 1, 3)) :]
        yield text


def whatwg(text: str) -> Read:
    url = ada_url.URL(text)
    return url.hostname, int(url.port or PORTS[url.protocol.rstrip(":")]), url.pathname


def rust(text: str) -> Read:
    return whatwg(str(Channel(text).base_url))


def stdlib(text: str) -> Read:
    parts = urllib.parse.urlsplit(text)
    return parts.hostname or "", parts.port or PORTS[parts.scheme], parts.path


def by_urllib3(text: str) -> Read:
    url = urllib3.util.parse_url(text)
    return url.host or "", url.port or PORTS[url.scheme or ""], url.path or ""


def by_requests(text: str) -> Read:
    return by_urllib3(requests.Request("GET", text).prepare().url or "")


READERS: dict[str, Callable[[str], Read]] = {
    "WHATWG": whatwg,
    "rattler": rust,
    "urllib": stdlib,
    "urllib3": by_urllib3,
    "requests": by_requests,
}


def comparable(host: str, port: int, path: str) -> Read:
    """Without what is the same everywhere: case of escapes, brackets, a slash at the end."""
    host = host.lower().strip("[]")
    if ":" in host:
        host = Url.parse(f"http://[{host}]").origin[1].strip("[]")
    path = re.sub("%[0-9a-fA-F]{2}", lambda found: found[0].upper(), path)
    return host, port, path.rstrip("/")


def check(text: str) -> bool:
    """Whether our grammar reads it, and then all readers find the same place."""
    try:
        url = Url.parse(text)
    except UrlError:
        return False
    _, host, port = url.origin
    ours = comparable(host, port, url.path)
    plain = str(url.bare)
    for name, read in READERS.items():
        for each in (text, str(url), plain.partition("?")[0].partition("#")[0]):
            with contextlib.suppress(Exception):  # a reader may refuse it
                seen = comparable(*read(each))
                assert seen == ours, f"{name} reads {each!r} as {seen}, and we read {text!r} as {ours}"
    return True


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.nightly)])
def test_what_is_read_is_read_alike(count: int) -> None:
    seed = random.randrange(1 << 32)
    read = sum(check(text) for text in generated(seed, count))
    assert count / 50 < read < count, f"seed {seed}"  # the generator makes both kinds


def test_the_readers_do_disagree() -> None:
    """What is refused is worth it: these readers take these for different places."""
    for text in (r"http://evil\@good/simple", "http://0x7f.1/", "http://good:0080/%2e%2e/x", "http://gööd/"):
        seen = set()
        for read in READERS.values():
            with contextlib.suppress(Exception):
                seen.add(read(text))
        assert len(seen) > 1, text
        with pytest.raises(UrlError):
            Url.parse(text)


class Canary:
    """A server that must not be asked, and keeps what it was asked all the same."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []

    def __call__(self, call: Call, asked: Asked) -> None:
        self.asked.append(asked)
        call.fail(404, "NOT_FOUND")


@pytest.mark.parametrize("count", [12, pytest.param(300, marks=pytest.mark.nightly)])
def test_uv_asks_the_server_that_we_read(tmp_path: Path, count: int) -> None:
    """Uv is run behind a proxy, which sees whom it asks."""
    hosts: list[str] = []
    asked = 0

    def proxy(call: Call, asked: Asked) -> None:
        hosts.append(urllib3.util.parse_url(asked.path).netloc or "")
        call.fail(404, "NOT_FOUND")

    texts = [
        r"http://user@good.example/simple",
        "http://GOOD.example:8080/a%20b/~c;d=e,f/",
        "http://192.0.2.1:81/x",
    ]
    texts += [text for text in generated(7, count * 40) if check(text) and text.lower().startswith("http:")]
    with serving(proxy) as server:
        way = {"HTTP_PROXY": f"http://{server.host}", "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        for text in texts[:count]:
            url = Url.parse(text)
            if url.hostname in {"127.0.0.1", "::1", "localhost"}:
                continue
            hosts.clear()
            command = [
                uv.find_uv_bin(),
                "pip",
                "compile",
                "--no-cache",
                "--no-config",
                "--index-url",
                str(url),
                "-",
            ]
            subprocess.run(command, input=b"nothing", env=way, capture_output=True, check=False)
            assert set(hosts) <= {url.netloc}, text
            asked += len(hosts)
    assert asked >= len(texts[:count]) / 2


LINES = (
    r"--index-url http://{evil}\@{good}/simple",
    r"--extra-index-url http://{evil}\@{good}/simple",
    r"-f http://{evil}\@{good}/links",
    r"pkg @ http://{evil}\@{good}/pkg-1.0-py3-none-any.whl",
    r"http://{evil}\@{good}/pkg-1.0-py3-none-any.whl",
    r"git+http://{evil}\@{good}/pkg.git#egg=pkg",
    "--index-url http://{good}%2f@{evil}\\/simple",
    "--index-url http:/{evil}/simple",
    "--index-url http:///{evil}/simple",
)


@pytest.mark.parametrize("line", LINES)
def test_no_requirement_has_the_key_of_another_server(tmp_path: Path, line: str) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text(f"{line.format(evil='evil.example', good='good.example')}\n")
    with pytest.raises(SpecError):
        load(path)


@pytest.mark.parametrize(
    "channel", [r"http://evil.example\@good.example/chan", "http://good.example%2f@evil.example\\/chan"]
)
def test_no_channel_has_the_key_of_another_server(tmp_path: Path, channel: str) -> None:
    path = tmp_path / "environment.yml"
    path.write_text(f"channels: ['{channel}']\ndependencies: ['{channel}::pkg']\n")
    with pytest.raises(SpecError):
        load(path)


def test_two_keys_where_two_servers_are(tmp_path: Path) -> None:
    keys = set()
    urls = ("http://good.example/simple", "http://good.example:8080/simple", "http://[2001:db8::1]/simple")
    for number, url in enumerate(urls):
        path = tmp_path / f"requirements-{number}.txt"
        path.write_text(f"--index-url {url}\npkg\n")
        spec = load(path).with_base("scratch")
        keys.add(CanonicalForm.of(spec, None, spec.platforms[0]).key)
    assert len(keys) == 3


NESTED = (
    "https://good.example/http://{}@p/x-1-py3-none-any.whl",
    "x @ https://good.example/x-1-py3-none-any.whl?from=http://{}@p",
    "x @ https://good.example/x-1-py3-none-any.whl#://{}@p",
    "--index-url https://good.example/s?of=http://{}@p\npkg",
    "--find-links https://good.example/s/http://{}@p/\npkg",
)


@pytest.mark.parametrize("form", NESTED)
def test_what_looks_like_a_login_further_on_makes_no_two_urls_one_key(tmp_path: Path, form: str) -> None:
    """It was taken out of the key; in the key it would be a login for all to read."""
    path = tmp_path / "requirements.txt"
    path.write_text(f"{form.format('hush')}\n")
    with pytest.raises(SpecError, match="behind its own host") as caught:
        load(path)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("form", ["x @ {}", "{}", "pkg\n--find-links {}"])
def test_a_file_is_read_whatever_the_case_of_its_scheme(tmp_path: Path, form: str) -> None:
    """Uv reads ``FILE:`` as ``file:``: a key with the URL alone would be that of any content."""
    wheel = tmp_path / "wheels" / "x-1-py3-none-any.whl"
    wheel.parent.mkdir()
    keys = []
    for scheme, content in (("file", b"one"), ("FILE", b"one"), ("FILE", b"two")):
        wheel.write_bytes(content)
        place = wheel if "links" not in form else wheel.parent
        path = tmp_path / "requirements.txt"
        path.write_text(f"{form.format(place.as_uri().replace('file', scheme, 1))}\n")
        spec = load(path).with_base("scratch")
        keys.append(CanonicalForm.of(spec, None, spec.platforms[0]).key)
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize("form", [r"http://{evil}\@{good}/v2/envs/manifests/x", r"/\{evil}/x", r"\\{evil}/x"])
def test_a_redirect_takes_the_login_to_nobody_else(form: str) -> None:
    canary = Canary()
    with serving(canary) as evil:

        def script(call: Call, asked: Asked) -> None:
            if "authorization" not in asked.headers:
                call.answer(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
                return
            location = form.format(evil=evil.host, good=call.server.host)
            call.answer(307, b"", {"Location": location})

        with (
            serving(script) as good,
            Prober(keychain=Credentials("me", "hush")) as prober,
            pytest.raises(EnvbuildError, match="no place on the web"),
        ):
            prober.probe(Repository.parse(f"{good.host}/envs"), Tag("x"))
    assert canary.asked == []
