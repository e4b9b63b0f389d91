"""Conda channels in one spelling, credentials kept apart.

A channel is a name on the channel alias (``conda-forge``, ``conda-forge/label/dev``), a URL, a local folder,
or ``defaults``, which stands for Anaconda's ``main`` and ``r``. The canonical spelling goes into the key and
into messages: it holds no credentials. ``https://conda.anaconda.org/NAME`` is spelled ``NAME``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote

from envbuild.errors import SpecError
from envbuild.spec.document import describe, fail
from envbuild.spec.files import require
from envbuild.spec.tokens import is_subdir, without_tokens
from envbuild.url import FILE, Url, UrlError

if TYPE_CHECKING:
    from envbuild.spec.document import Mark

DEFAULT_ALIAS = "https://conda.anaconda.org"
DEFAULTS = "defaults"
NODEFAULTS = "nodefaults"
_ANACONDA = "https://repo.anaconda.com/"
_DEFAULT_URLS = (f"{_ANACONDA}pkgs/main", f"{_ANACONDA}pkgs/r")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~%!$&'()*+,;=:@-]+)*")
_SECRETS = re.compile(r"\bfile:///\S*|(?<=://)[^/@\s]*@|(?<=/t/)[^/\s]+")
_HIDDEN = re.compile(r"[^!-~]")
_SCHEMES = frozenset({"http", "https", "file"})


def redact(text: str) -> str:
    """The text without the user names, passwords and tokens of the URLs in it; ``file:`` URLs have none."""

    def shown(found: re.Match[str]) -> str:
        if found.group().startswith("file:"):
            return found.group()
        return "***@" if found.group().endswith("@") else "***"

    return _SECRETS.sub(shown, text)


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel. Most callers want :meth:`parse`.

    Attributes:
        canonical: The spelling for the key and for people; a name, a URL or ``defaults``.
        private: The URL to fetch from as it was written, with its credentials; None where the canonical
            spelling says it all. Takes no part in comparing, and is not shown.
        fixed: Whether the canonical spelling is a name though a URL was written: no alias changes it.
        alias_name: The name that was written, where an alias made a URL of it.
    """

    canonical: str
    private: str | None = field(default=None, repr=False, compare=False)
    fixed: bool = False
    alias_name: str | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, text: str, base_folder: Path | None = None, mark: Mark | None = None) -> Self:
        """Parse a channel as a definition writes it.

        Args:
            text: The channel.
            base_folder: The folder that relative paths start from; None refuses them.
            mark: Where the text stands.

        Raises:
            SpecError: It is not a channel, or is none that can be fetched from.
        """
        if text == DEFAULTS:
            return cls(DEFAULTS)
        if found := _HIDDEN.search(text):
            what = "a space" if found.group() == " " else describe(found.group())
            fail(mark, f"the channel {redact(text)!r} holds {what}", "write the channel's name or URL")
        if "://" in text:
            return cls._of_url(text, mark)
        if text.startswith(("/", "./", "../", "~/")) or text in {".", ".."}:
            return cls(_folder_url(text, base_folder, mark))
        name = text.rstrip("/")
        if name in {DEFAULTS, NODEFAULTS} or not _NAME.fullmatch(name):
            hint = "write a name as conda-forge, a URL with https:// or file://, or a folder as ./channel"
            fail(mark, f"{redact(text)!r} is not a channel", hint)
        _refuse_subdir(name, text, mark)
        return cls(_ANACONDA + name if name in _ANACONDA_NAMES else name)

    @classmethod
    def _of_url(cls, text: str, mark: Mark | None) -> Self:
        scheme, _, _ = text.partition("://")
        if scheme.lower() not in _SCHEMES:
            fail(mark, f"the scheme {scheme!r} is not known for channels", "use https, http or file")
        if scheme.lower() == "file":
            return cls(_file_url(text, mark))
        canonical, private = split_credentials(text, mark)
        canonical = canonical.rstrip("/")
        _refuse_subdir(canonical, text, mark)
        name = canonical.removeprefix(DEFAULT_ALIAS + "/")
        is_name = bool(_NAME.fullmatch(name)) and name not in _ELSEWHERE
        return cls(name if is_name else canonical, private.rstrip("/"), is_name)

    @property
    def is_defaults(self) -> bool:
        """Whether this stands for Anaconda's default channels."""
        return self.canonical == DEFAULTS

    def under(self, alias: str) -> Channel:
        """The channel that this leads to where names stand under an alias.

        Under the default one a name stays a name; under another it is spelled as the URL, for that is what
        it means. What was written as a URL stays what it is.

        Args:
            alias: The URL in front of names; it may hold credentials.

        Raises:
            SpecError: That is no URL of a channel.
        """
        if self.fixed or self.is_defaults or "://" in self.canonical:
            return self
        if alias == DEFAULT_ALIAS:
            return replace(self, fixed=True)
        return replace(Channel.parse(f"{alias.rstrip('/')}/{self.canonical}"), alias_name=self.canonical)

    @property
    def label(self) -> str:
        """The channel as its definition calls it."""
        return self.alias_name or self.canonical

    def urls(self) -> tuple[str, ...]:
        """The URLs to fetch from, in order of priority; they may hold credentials. Names are Anaconda's."""
        if self.is_defaults:
            return _DEFAULT_URLS
        if self.private is not None:
            return (self.private,)
        return (self.canonical if "://" in self.canonical else f"{DEFAULT_ALIAS}/{self.canonical}",)

    def url(self) -> str:
        """The URL to fetch from; it may hold credentials.

        Raises:
            SpecError: This is ``defaults``, which stands for several.
        """
        if self.is_defaults:
            raise SpecError("the channel 'defaults' stands for several URLs, expected one")
        return self.urls()[0]

    def __str__(self) -> str:
        return self.canonical


_ANACONDA_NAMES = frozenset({"pkgs/main", "pkgs/r", "pkgs/msys2", "pkgs/free", "pkgs/pro", "pkgs/archive"})
_ELSEWHERE = _ANACONDA_NAMES | {DEFAULTS}
"""Names that do not stand under the alias."""


def split_credentials(text: str, mark: Mark | None = None) -> tuple[str, str]:
    """A web URL in one spelling without its credentials, and the same with them.

    Args:
        text: A URL with ``http`` or ``https``.
        mark: Where it stands.

    Raises:
        SpecError: The URL is malformed, has a query or a fragment, or may hold a token or not.
    """
    try:
        url = Url.parse(text, template=True)
    except UrlError as error:
        fail(mark, f"{redact(text)!r} is not a URL: {error}", "write it as https://host/path")
    if url.query is not None or url.fragment is not None:
        fail(mark, f"{redact(text)!r} has a query or a fragment", "leave out what follows '?' or '#'")
    path = without_tokens(url.path, redact(text), mark)
    if not _PATH.fullmatch(path.rstrip("/")):
        hint = "encode special characters as %XX; variables, as ${NAME}, stand for credentials alone"
        fail(mark, f"{redact(text)!r} is not a URL with a host and a plain path", hint)
    return str(replace(url.bare, path=path)), str(url)


def file_url(text: str, mark: Mark | None = None) -> str:
    """A ``file:`` URL in one spelling.

    Raises:
        SpecError: It names another machine, or no absolute path.
    """
    hint = "write it as file:///absolute/path"
    try:
        url = Url.parse(text, FILE)
    except UrlError as error:
        fail(mark, f"{redact(text)!r} is not a local file URL: {error}", hint)
    path = unquote(url.path)
    if not path.startswith("/") or url.query or url.fragment:
        fail(mark, f"{redact(text)!r} is not a local file URL", hint)
    if any(ord(character) < 32 for character in path):
        fail(mark, f"{text!r} holds a control character")
    require(path, mark)
    return Path(os.path.normpath(path)).as_uri()


def _file_url(text: str, mark: Mark | None) -> str:
    url = file_url(text, mark)
    _refuse_subdir(url, text, mark)
    return url


def _folder_url(text: str, base_folder: Path | None, mark: Mark | None) -> str:
    path = Path(text).expanduser() if text.startswith("~/") else Path(text)
    if not path.is_absolute():
        if base_folder is None:
            fail(
                mark, f"the channel {text!r} is relative, and there is no folder to start from", "use file://"
            )
        path = base_folder.absolute() / path
    require(path, mark)
    url = Path(os.path.normpath(path)).as_uri()
    _refuse_subdir(url, text, mark)
    return url


def _refuse_subdir(canonical: str, text: str, mark: Mark | None) -> None:
    channel, slash, subdir = canonical.rpartition("/")
    if slash and is_subdir(subdir):
        fail(
            mark,
            f"the channel {redact(text)!r} ends with the platform {subdir!r}, expected the channel alone",
            f"write {channel!r}: the platform is chosen elsewhere, and 'noarch' belongs to each channel",
        )
