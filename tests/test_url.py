"""One reading of a URL: what all readers read alike is read, and the rest is refused."""

from __future__ import annotations

import pytest

from envbuild.url import FETCHED, Url, UrlError

WRITTEN = {
    "http://host": ("http", "host", 80, ""),
    "HTTPS://Host.Example:443/Path": ("https", "host.example", 443, "/Path"),
    "https://user:pa%40ss@host:8443/a/b?c=d#e": ("https", "host", 8443, "/a/b"),
    "http://127.0.0.1:5000/v2/": ("http", "127.0.0.1", 5000, "/v2/"),
    "http://[2001:DB8::1]:80/x": ("http", "2001:0db8:0000:0000:0000:0000:0000:0001", 80, "/x"),
    "https://a_b.example/t/tk-1/x;y=1,2": ("https", "a_b.example", 443, "/t/tk-1/x;y=1,2"),
    "https://xn--bcher-kva.example/%C3%BC": ("https", "xn--bcher-kva.example", 443, "/%C3%BC"),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_what_all_read_alike_is_read(text: str) -> None:
    scheme, host, port, path = WRITTEN[text]
    url = Url.parse(text)
    assert (*url.origin, url.path) == (scheme, host, port, path)
    assert Url.parse(str(url)) == url


REFUSED = (
    r"http://evil\@good/simple",
    r"http://good\.evil/",
    r"http:\\evil/",
    r"http://good/a\b",
    "http://evil@x@good/",
    "http://a b@good/",
    "http://us[er@good/",
    "http://good:80:80/",
    "http://good:/",
    "http://good:080/",
    "http://good:0/",
    "http://good:65536/",
    "http://good:٣/",
    "http://:80/",
    "http://user@/",
    "http:///good/x",
    "http:/good/x",
    "http:good",
    "//good/x",
    "good/x",
    "http://g%6Fod/",
    "http://good./",
    "http://.good/",
    "http://go..od/",
    "http://-good/",
    "http://good-/",
    "http://gööd/",
    "http://good\u3002evil/",
    "http://0x7f.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://0177.0.0.1/",
    "http://127.0.0.256/",
    "http://1.2.3.4.5/",
    "http://host.0x10/",
    "http://[::1/",
    "http://::1/",
    "http://[::1]x/",
    "http://[fe80::1%25eth0]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[12345::]/",
    "http://[]/",
    "http://good/\tx",
    "http://good/\nx",
    " http://good/",
    "http://good/x ",
    "http://good/\x00",
    "http://good/ü",
    "http://good/%",
    "http://good/%zz",
    "http://good/a/../b",
    "http://good/./b",
    "http://good/%2e%2E/b",
    "http://good/.%2e",
    "http://good//evil/x",
    "http://good/a|b",
    "http://good/{x}",
    "http://good/?q=<x>",
    "http://good/#a#b",
    "file://evil/etc",
    "file://",
    "ftp://good/x",
    "javascript://good/%0aalert",
    f"http://{'a' * 254}/",
    f"http://good/{'a' * 9000}",
)


@pytest.mark.parametrize("text", REFUSED)
def test_what_some_read_otherwise_is_refused(text: str) -> None:
    if text == "file://":  # no path: who asks for a file says so
        assert Url.parse(text, FETCHED).path == ""
        return
    with pytest.raises(UrlError):
        Url.parse(text, FETCHED)


def test_a_refusal_shows_no_login() -> None:
    for text in (
        "http://me:hush@b@good/",
        "http://me:hush@good:99999/",
        "http://me:hush@-/",
        r"http://hush\@x/",
    ):
        with pytest.raises(UrlError) as caught:
            Url.parse(text)
        assert "hush" not in str(caught.value)
    assert "hush" not in repr(Url.parse("http://me:hush@good/"))


def test_variables_stand_for_logins_alone_and_only_where_they_may() -> None:
    url = Url.parse("https://${USER}:${PASSWORD}@host/t/${TOKEN}/x", template=True)
    assert (url.user, url.password, url.host) == ("${USER}", "${PASSWORD}", "host")
    for text in ("https://${HOST}/x", "https://host:${PORT}/x", "https://host/x?${QUERY}", "${URL}"):
        with pytest.raises(UrlError):
            Url.parse(text, template=True)
    with pytest.raises(UrlError):
        Url.parse(str(url))


HERE = Url.parse("https://me:hush@registry.example:8443/v2/envs/blobs/uploads/1?state=a")
PLACE = "https://registry.example:8443"
JOINED = {
    'https://cdn.example/blob?sig=a%2Fb&file="x y"': "https://cdn.example/blob?sig=a%2Fb&file=%22x%20y%22",
    "https://cdn.example/blob?file=\xc3\xbc": "https://cdn.example/blob?file=%C3%BC",
    "/v2/x": f"{PLACE}/v2/x",
    "//cdn.example/x": "https://cdn.example/x",
    "2?state=b": f"{PLACE}/v2/envs/blobs/uploads/2?state=b",
    "?state=b": f"{PLACE}/v2/envs/blobs/uploads/1?state=b",
    "/v2/x#part": f"{PLACE}/v2/x",
    "/v2/x?path=a\\b|c": f"{PLACE}/v2/x?path=a%5Cb%7Cc",
    "": f"{PLACE}/v2/envs/blobs/uploads/1?state=a",
    "#part": f"{PLACE}/v2/envs/blobs/uploads/1?state=a",
}


@pytest.mark.parametrize("location", JOINED)
def test_a_redirect_leads_where_all_readers_find_it(location: str) -> None:
    assert str(HERE.join(location)) == JOINED[location]


@pytest.mark.parametrize(
    "location",
    [
        r"https://evil\@registry.example:8443/x",
        r"/\evil.example/x",
        r"\\evil.example/x",
        r"https:\\evil.example",
        "https:/evil.example",
        "https:evil.example",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "https://me:pw@registry.example:8443/x",
        "///evil.example/x",
        "/v2/../x",
        "http://evil.example:x/",
    ],
)
def test_a_redirect_that_some_follow_elsewhere_is_refused(location: str) -> None:
    with pytest.raises(UrlError):
        HERE.join(location)
