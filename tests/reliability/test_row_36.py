"""Row 36: URLs, differential. What our grammar reads, every reader reads alike, or refuses.

The readers are those of whoever sends a request: urllib3, requests, uv and rattler (Rust's ``url``), and
beside them Python's ``urllib`` and a reader of WHATWG's standard.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import ada_url
import pytest
import requests
import urllib3.util
import uv
from rattler import Channel as RattlerChannel

from envbuild.conda.link import PythonTarget
from envbuild.conda.solve import SolveRequest, solve
from envbuild.deadline import NO_DEADLINE
from envbuild.digest import Descriptor, Digest
from envbuild.errors import ChannelError, EnvbuildError, SolveError, SpecError
from envbuild.foreign import load
from envbuild.key import CanonicalForm
from envbuild.oci.auth import Credentials
from envbuild.oci.client import Client
from envbuild.oci.probe import Prober
from envbuild.oci.remote import RemoteRegistry
from envbuild.oci.thin import ThinRegistry
from envbuild.oci.transport import Settings
from envbuild.pip.fetch import fetch_wheel
from envbuild.pip.resolve import PipRequest, resolve
from envbuild.platform import LINUX_AMD64
from envbuild.reference import Repository, Tag
from envbuild.spec.channel import Channel
from envbuild.spec.conda import CondaSection
from envbuild.spec.match import MatchSpec
from envbuild.spec.pip import PipSection
from envbuild.spec.virtual import VirtualPackages
from envbuild.url import PORTS, Url, UrlError
from parts.fault_server import Asked, Call, Script, serving
from tiny import make_channel
from tiny_wheels import TinyWheel

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


def generated(seed: int, count: int, shapes: tuple[str, ...] = SHAPES) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(count):
        if rng.random() < 0.15:
            yield "".join(rng.choice(PIECES) for _ in range(rng.randint(2, 8)))
            continue
        text = rng.choice(shapes)
        for _ in range(rng.randint(1, 3)):
            place = rng.randint(0, len(text))
            text = text[:place] + rng.choice(PIECES) + text[place + rng.choice((0, 0, 1, 3)) :]
        yield text


def whatwg(text: str) -> Read:
    url = ada_url.URL(text)
    return url.hostname, int(url.port or PORTS[url.protocol.rstrip(":")]), url.pathname


def rust(text: str) -> Read:
    return whatwg(str(RattlerChannel(text).base_url))


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
    """Without what is the same everywhere: case, needless escapes (RFC 3986, 6.2.2), a slash at the end."""
    host = host.lower().strip("[]")
    if ":" in host:
        host = Url.parse(f"http://[{host}]").origin[1].strip("[]")

    def escape(found: re.Match[str]) -> str:
        letter = chr(int(found[0][1:], 16))
        return letter if re.fullmatch("[A-Za-z0-9._~-]", letter) else found[0].upper()

    return host, port, re.sub("%[0-9a-fA-F]{2}", escape, path).rstrip("/")


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
            try:
                seen = comparable(*read(each))
            except Exception:  # noqa: BLE001, S112 - a reader may refuse it, each in its way
                continue
            assert seen == ours, f"{name} reads {each!r} as {seen}, and we read {text!r} as {ours}"
    if "#" not in text:  # nothing is read in one piece that would be refused part by part
        assert replace(Url.parse(f"{text}#"), fragment=None) == url, text
    return True


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.nightly)])
def test_what_is_read_is_read_alike(count: int) -> None:
    seed = random.randrange(1 << 32)
    read = sum(check(text) for text in generated(seed, count))
    assert count / 50 < read < count, f"seed {seed}"  # the generator makes both kinds


LOCATIONS = (
    "/v2/x?state=a",
    "//cdn.example/x",
    "2?state=b",
    "?state=b",
    "https://cdn.example:8443/x?sig=a%2Fb",
    "#x",
)


@pytest.mark.parametrize("count", [5_000, pytest.param(50_000, marks=pytest.mark.nightly)])
def test_where_a_redirect_leads_is_read_alike(count: int) -> None:
    base = "https://registry.example:5000/v2/envs/blobs/uploads/1"
    seed = random.randrange(1 << 32)
    read = 0
    for text in generated(seed, count, (*LOCATIONS, *SHAPES)):
        try:
            url = Url.parse(base).join(text)
        except UrlError:
            continue
        read += 1
        ours = comparable(*url.origin[1:], url.path)
        seen = comparable(*whatwg(ada_url.URL(text, base=base).href))
        assert seen == ours, f"{text!r}, seed {seed}"
        # Python's own drops empty parts of paths, and nobody follows redirects with it.
        by_urllib = comparable(*stdlib(urllib.parse.urljoin(base, text)))
        assert by_urllib[:2] == ours[:2], f"{text!r}, seed {seed}"
    assert count / 50 < read < count, f"seed {seed}"


def test_a_reader_of_another_place_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check("http://good/")
    for wrong in (("evil", 80, "/"), ("good", 81, "/"), ("good", 80, "/x")):
        monkeypatch.setitem(READERS, "wrong", {"http://good/": wrong}.__getitem__)
        with pytest.raises(AssertionError, match="wrong reads"):
            check("http://good/")


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
    "--trusted-host 0x7f.1",
    "--trusted-host {evil}:99999",
)


@pytest.mark.parametrize("line", LINES)
def test_no_requirement_has_the_key_of_another_server(tmp_path: Path, line: str) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text(f"{line.format(evil='evil.example', good='good.example')}\n")
    with pytest.raises(SpecError) as caught:
        load(path)
    if r"\@" in line:
        assert "***@good.example" in caught.value.message, "what is wrong with the URL does not show"


@pytest.mark.parametrize(
    "channel", [r"http://evil.example\@good.example/chan", "http://good.example%2f@evil.example\\/chan"]
)
def test_no_channel_has_the_key_of_another_server(tmp_path: Path, channel: str) -> None:
    path = tmp_path / "environment.yml"
    path.write_text(f"channels: ['{channel}']\ndependencies: ['{channel}::pkg']\n")
    with pytest.raises(SpecError):
        load(path)


def test_no_step_adds_from_what_readers_take_for_two_servers(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    checksum = f"--checksum=sha256:{'0' * 64}"
    path.write_text(f"FROM scratch\nADD {checksum} http://127.1/x /x\n")
    with pytest.raises(SpecError, match="is not a URL"):
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


def solved_with(folder: Path, info: dict[str, object], drop: str = "") -> list[str]:
    """The URLs of a solution from a channel that says something of itself, on a server beside another one."""
    make_channel(folder)
    shutil.copytree(folder / "tiny", folder / "other")
    for subdir in ("linux-64", "noarch"):
        path = folder / "tiny" / subdir / "repodata.json"
        document = json.loads(path.read_text())
        document["info"] |= info
        document["repodata_version"] = 2
        kept = document["packages.conda"].items()
        document["packages.conda"] = {name: each for name, each in kept if each["name"] != drop}
        path.write_text(json.dumps(document))
        for packed in path.parent.glob("repodata[._]*.zst"):
            packed.unlink()

    def files(call: Call, asked: Asked) -> None:
        path = folder / asked.path.strip("/")
        if path.is_file():
            call.answer(200, path.read_bytes(), {})
        else:
            call.fail(404, "NOT_FOUND")

    with serving(files) as server:
        channel = Channel.parse(f"http://{server.host}/tiny")
        section = CondaSection((channel,), dependencies=(MatchSpec.parse("tool"),))
        request = SolveRequest(section, LINUX_AMD64, VirtualPackages(glibc="2.36"), "strict", None)
        found = solve(request, cache_dir=folder / "cache", deadline=NO_DEADLINE)
        return [each.url.replace(server.host, "HERE") for each in found.lock.packages]


@pytest.mark.parametrize("relation", ["base", "overrides"])
def test_a_channel_brings_no_other_channel_along(tmp_path: Path, relation: str) -> None:
    with pytest.raises(SolveError):
        solved_with(tmp_path, {"channel_relations": {relation: "../other"}}, drop="tool")


@pytest.mark.parametrize("place", ["file:///etc/", "ftp://good.example/x/", "//evil.example/x/"])
def test_where_a_channel_says_its_packages_are_is_read_as_all_urls(tmp_path: Path, place: str) -> None:
    with pytest.raises(ChannelError, match=r"tool in http://.*/tiny/? is at "):
        solved_with(tmp_path, {"base_url": place})


@pytest.mark.parametrize(
    ("place", "read"),
    [
        ("https://good.example/x/", "https://good.example/x/tool-2.0-0.conda"),
        (r"https://evil.example\@good.example/x/", "https://evil.example/@good.example/x/tool-2.0-0.conda"),
    ],
)
def test_where_a_channel_says_its_packages_are_is_one_place(tmp_path: Path, place: str, read: str) -> None:
    """The solver reads it first, and we what it read: what is fetched is at the place that is shown."""
    assert solved_with(tmp_path, {"base_url": place}) == [read]


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


def names_another_server(where: str, place: str) -> Script:
    """A registry that wants a login, and names a place in one of the headers that we act on."""

    def script(call: Call, asked: Asked) -> None:
        if where == "realm":
            call.answer(401, b"", {"WWW-Authenticate": f'Bearer realm="{place}",service="x"'})
        elif "authorization" not in asked.headers:
            call.answer(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
        elif where == "upload" and asked.method == "POST":
            call.answer(202, b"", {"Location": place})
        elif where == "link" and "tags/list" in asked.path:
            listed = json.dumps({"name": "envs", "tags": ["a"]}).encode()
            call.answer(200, listed, {"Link": f'<{place}>; rel="next"', "Content-Type": "application/json"})
        else:
            call.fail(404, "BLOB_UNKNOWN")

    return script


@pytest.mark.parametrize("kind", ["thin", "full"])
@pytest.mark.parametrize("where", ["realm", "upload", "link"])
def test_no_header_of_a_registry_leads_a_login_elsewhere(kind: str, where: str) -> None:
    canary = Canary()
    with serving(canary) as evil, serving(canary) as good:
        good.script = names_another_server(where, rf"http://{evil.host}\@{good.host}/v2/envs/x")
        repository, login = Repository.parse(f"{good.host}/envs"), Credentials("me", "hush")
        settings = Settings(retries=0)
        full = RemoteRegistry(repository, credentials=login, settings=settings)
        client = Client(settings)
        thin = ThinRegistry(repository, lambda: full, client, settings, login)
        registry = thin if kind == "thin" else full
        descriptor = Descriptor("application/octet-stream", Digest.of(b"x"), 1)
        asking: dict[str, Callable[[], object]] = {
            "realm": lambda: registry.has_blob(descriptor.digest),
            "upload": lambda: registry.put_blob(descriptor, lambda: io.BytesIO(b"x")),
            "link": lambda: list(registry.tags()),
        }
        with pytest.raises(EnvbuildError, match=r"no place on the web|is no URL|nothing is sent there"):
            asking[where]()
        full.close()
        client.close()
    assert canary.asked == []


def test_a_link_of_an_index_is_read_once_and_takes_no_login_along(tmp_path: Path) -> None:
    """An index may link to any server. Uv reads the link, we what uv read: one place, no login."""
    wheel = TinyWheel("tiny")
    content = wheel.to_bytes()
    digest = hashlib.sha256(content).hexdigest()

    def elsewhere(call: Call, asked: Asked) -> None:
        is_wheel = asked.path.endswith(wheel.file_name)
        call.answer(200, content, {}) if is_wheel else call.fail(404)

    with serving(elsewhere) as evil, serving(elsewhere) as good:

        def index(call: Call, asked: Asked) -> None:
            if asked.authorization is None:
                call.answer(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
                return
            link = rf"http://{evil.host}\@{good.host}/{wheel.file_name}#sha256={digest}"
            page = f'<a href="{link}">{wheel.file_name}</a>'.encode()
            call.answer(200, page, {"Content-Type": "text/html"})

        good.script = index
        text = f"-i http://me:hush@{good.host}/simple\ntiny\n"
        section = PipSection.from_requirements(text.encode(), "r.txt", None)
        python = PythonTarget("3.11.4", "lib/python3.11/site-packages")
        request = PipRequest(section, LINUX_AMD64, python, "2.36", pypi="http://127.0.0.1:1/simple")
        solution = resolve(request, cache_dir=tmp_path / "cache", deadline=NO_DEADLINE)
        (found,) = solution.distributions
        assert found.url == f"http://{evil.host}/@{good.host}/{wheel.file_name}"
        with fetch_wheel(found, url=solution.urls[found.url], deadline=NO_DEADLINE) as stream:
            assert stream.read() == content
        assert evil.asked
        assert {asked.authorization for asked in evil.asked} == {None}
        assert all("simple" in asked.path for asked in good.asked)
