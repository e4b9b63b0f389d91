"""Channels: one spelling in the key, credentials only in what is fetched from."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from envbuild.errors import SpecError
from envbuild.spec.channel import Channel, redact, split_credentials
from envbuild.spec.document import Mark

SPELLINGS = [
    ("conda-forge", "conda-forge"),
    ("conda-forge/", "conda-forge"),
    ("https://conda.anaconda.org/conda-forge", "conda-forge"),
    ("https://conda.anaconda.org/conda-forge/", "conda-forge"),
    ("HTTPS://Conda.Anaconda.org:443/conda-forge", "conda-forge"),
    ("https://conda.anaconda.org/t/tk-123/conda-forge", "conda-forge"),
    ("https://me:secret@conda.anaconda.org/conda-forge", "conda-forge"),
    ("conda-forge/label/dev", "conda-forge/label/dev"),
    ("https://conda.anaconda.org/conda-forge/label/dev/", "conda-forge/label/dev"),
    ("pkgs/main", "https://repo.anaconda.com/pkgs/main"),
    ("https://repo.anaconda.com/pkgs/main/", "https://repo.anaconda.com/pkgs/main"),
    ("https://me:secret@Example.com:8443/t/tk-123/a/b/", "https://example.com:8443/a/b"),
    ("https://example.com/conda/t/tk-123/a", "https://example.com/conda/a"),
    ("https://example.com/api/conda/t/S3cretToken/a/b", "https://example.com/api/conda/a/b"),
    ("https://example.com/conda/t/8f14e45f-ea0c-4e58/a", "https://example.com/conda/a"),
    ("https://example.com/conda/t/eyJhbGciOi.eyJzdWIi_x.x/a", "https://example.com/conda/a"),
    ("https://example.com/t/one/a/t/tk-2/b", "https://example.com/a/b"),
    ("https://example.com/a/t", "https://example.com/a/t"),
    ("https://example.com/a/t/", "https://example.com/a/t"),
    ("https://example.com/a/t/nightly", "https://example.com/a/t/nightly"),
    ("https://example.com/t/2026-11", "https://example.com/t/2026-11"),
    ("https://example.com/a/%74/nightly/b", "https://example.com/a/%74/nightly/b"),
    ("https://example.com/at/tk-123/b", "https://example.com/at/tk-123/b"),
    ("file:///srv/t/tk-123/a", "file:///srv/t/tk-123/a"),
    ("/srv/t/one/a", "file:///srv/t/one/a"),
    ("http://conda.anaconda.org/conda-forge", "http://conda.anaconda.org/conda-forge"),
    ("https://[::1]:8080/c", "https://[::1]:8080/c"),
    ("https://conda.anaconda.org/defaults", "https://conda.anaconda.org/defaults"),
    ("https://conda.anaconda.org/pkgs/main", "https://conda.anaconda.org/pkgs/main"),
    ("defaults", "defaults"),
    ("file:///srv/channel/", "file:///srv/channel"),
    ("file://localhost/srv//x/../channel", "file:///srv/channel"),
    ("file:///srv/a%20b", "file:///srv/a%20b"),
    ("/srv/channel", "file:///srv/channel"),
    ("./channel", "file:///home/me/project/channel"),
    ("../channel/", "file:///home/me/channel"),
]


@pytest.mark.parametrize(("text", "canonical"), SPELLINGS)
def test_each_spelling_has_one_canonical_form(text: str, canonical: str) -> None:
    channel = Channel.parse(text, Path("/home/me/project"))
    assert channel.canonical == str(channel) == canonical
    assert Channel.parse(canonical).canonical == canonical


def test_names_stand_on_the_alias() -> None:
    channel = Channel.parse("conda-forge/label/dev")
    assert channel.url() == "https://conda.anaconda.org/conda-forge/label/dev"
    moved = channel.under("https://me:pw@Conda.example.com/x/")
    assert moved.canonical == "https://conda.example.com/x/conda-forge/label/dev"
    assert moved.url() == "https://me:pw@conda.example.com/x/conda-forge/label/dev"
    assert moved.under("https://another.example.com") == moved, "an alias is laid over names once"
    for alias in ("https://conda.anaconda.org", "HTTPS://Conda.Anaconda.org:443/"):
        assert channel.under(alias).canonical == "conda-forge/label/dev"
        assert channel.under(alias).under("https://another.example.com") == channel.under(alias)
    with_token = channel.under("https://example.com/conda/t/tk-1")
    assert with_token.canonical == "https://example.com/conda/conda-forge/label/dev"


@pytest.mark.parametrize(
    "text", ["https://conda.anaconda.org/conda-forge", "defaults", "pkgs/main", "https://x.org/c", "/srv/c"]
)
def test_what_is_no_name_stands_under_no_alias(text: str) -> None:
    channel = Channel.parse(text)
    assert channel.under("https://mirror.example.com/conda") == channel
    assert channel.under("https://mirror.example.com/conda").urls() == channel.urls()


def test_defaults_are_several() -> None:
    channel = Channel.parse("defaults")
    assert channel.is_defaults
    assert channel.urls() == ("https://repo.anaconda.com/pkgs/main", "https://repo.anaconda.com/pkgs/r")
    with pytest.raises(SpecError, match="several"):
        channel.url()


def test_a_platform_behind_a_folder_t_is_no_token() -> None:
    """As in the URL of a package of the channel ``https://example.com/a/t``."""
    for url in ("https://example.com/a/t/linux-64/x-1-0.conda", "https://example.com/t/noarch/x-1-0.conda"):
        assert split_credentials(url) == (url, url)


def test_credentials_are_kept_for_fetching_and_shown_nowhere() -> None:
    channel = Channel.parse("https://me:s3cret@example.com/t/tk-123/team/")
    assert channel.url() == "https://me:s3cret@example.com/t/tk-123/team"
    assert channel == Channel.parse("https://example.com/team")
    assert hash(channel) == hash(Channel.parse("https://example.com/team"))
    assert "s3cret" not in repr(channel) + str(channel)
    assert "tk-123" not in repr(channel) + str(channel)
    assert pickle.loads(pickle.dumps(channel)).url() == channel.url()  # noqa: S301


REFUSED = [
    ("", "not a channel"),
    ("nodefaults", "not a channel"),
    ("defaults/", "not a channel"),
    ("-c", "not a channel"),
    ("a//b", "not a channel"),
    ("a/../b", "not a channel"),
    ("conda forge", "holds a space"),
    ("conda-f\u043erge", "CYRILLIC SMALL LETTER O"),
    ("conda-forge\n", r"U\+000A"),
    ("conda-forge/linux-64", "ends with the platform 'linux-64'"),
    ("https://conda.anaconda.org/conda-forge/noarch/", "ends with the platform 'noarch'"),
    ("/srv/channel/osx-arm64", "ends with the platform"),
    ("file:///srv/channel/win-64", "ends with the platform"),
    ("ftp://example.com/c", "scheme 'ftp'"),
    ("s3://bucket/c", "scheme 's3'"),
    ("oci://example.com/c", "scheme 'oci'"),
    ("https:///c", "not a URL"),
    ("https://example.com/c?x=1", "query or a fragment"),
    ("https://example.com/c#x", "query or a fragment"),
    ("https://example.com/a/../b", "not a URL"),
    ("https://example.com:port/c", "not a URL"),
    ("https://exa$(id)mple.com/c", "not a URL"),
    ('https://example.com/"c"', "not a URL"),
    ("file://server/share", "not a local file"),
    ("file:///a%0Ab", "control character"),
    ("$CHANNEL", "not a channel"),
    ("--override-channels", "not a channel"),
    ("https://example.com/t/tk-123", "nothing stands behind the token"),
    ("https://example.com/a/t/tk-123/", "nothing stands behind the token"),
    ("https://example.com/a/t/nightly/b", "may be a token or a folder"),
    ("https://example.com/t/one/a/t/two/b", "may be a token or a folder"),
    ("https://example.com/a/t/v2/b", "may be a token or a folder"),
    ("https://example.com/a/t/2026.11/b", "may be a token or a folder"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_is_no_channel_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as refusal:
        Channel.parse(text, Path("/home/me"), Mark("environment.yml", 3, 5))
    assert (refusal.value.source, refusal.value.line, refusal.value.column) == ("environment.yml", 3, 5)


def test_a_relative_folder_needs_a_folder_to_start_from() -> None:
    with pytest.raises(SpecError, match="relative"):
        Channel.parse("./channel")


@pytest.mark.parametrize("folder", ["", "/conda/api"])
@pytest.mark.parametrize("tail", ["?x=1", "/linux-64", "/a b", "/<>", "/\u202e"])
def test_refusals_show_no_credentials(tail: str, folder: str) -> None:
    with pytest.raises(SpecError) as refusal:
        Channel.parse(f"https://me:s3cret@example.com{folder}/t/tk-123/team{tail}")
    shown = f"{refusal.value} {refusal.value.hint}"
    assert "s3cret" not in shown
    assert "tk-123" not in shown


def test_redaction() -> None:
    assert (
        redact("see https://u:p@h/t/tok/c and http://tok@h") == "see https://***@h/t/***/c and http://***@h"
    )
    assert redact("conda-forge") == "conda-forge"
    assert (
        redact("not https://h/a/t/tk-1/c but file:///a/t/b/c")
        == "not https://h/a/t/***/c but file:///a/t/b/c"
    )
    assert redact("file://u:p@h/t/tk-1/c") == "file://***@h/t/***/c"
