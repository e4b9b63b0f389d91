"""Tokens in the paths of URLs, as ``https://host/t/TOKEN/channel``: servers of packages take logins there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from envbuild.spec.document import fail

if TYPE_CHECKING:
    from envbuild.spec.document import Mark

_FOLDER: Final = re.compile(r"(?!tk-)(?:[a-z]{1,16}[-_]?[0-9]{0,4}|v?[0-9]{1,4}(?:[._-][0-9]{1,4}){0,3})")
"""How folders are named and tokens are not: a word, a word and a number, a version or a date."""
_URL: Final = re.compile(r"https?://[^\s'\"`<>]+", re.IGNORECASE)
_TOKEN: Final = re.compile(r"(?<=/t/)[^/\s?#]+")
_OPERATING_SYSTEMS: Final = frozenset({"linux", "osx", "win", "freebsd", "zos", "emscripten", "wasi"})


def is_subdir(text: str) -> bool:
    """Whether the text is a Conda platform as ``linux-64`` or ``noarch``."""
    system, dash, machine = text.partition("-")
    return text == "noarch" or bool(dash and machine.isalnum() and system in _OPERATING_SYSTEMS)


def hide_tokens(text: str) -> str:
    """A text for people, without the tokens of the web URLs in it."""
    return _URL.sub(lambda url: _TOKEN.sub("***", url[0]), text)


def without_tokens(path: str, shown: str, mark: Mark | None, *, of_file: bool = False) -> str:
    """A URL's path without ``/t/TOKEN``, wherever that stands.

    At the start of the path a ``t`` is never a folder: all of Conda's tools and servers take what follows for
    a token. Further on it may be one, and so it may in the URL of a single file. What is named as folders
    are is neither dropped there, or two folders would be one channel, nor kept, or a token would be in keys:
    it is refused.

    Args:
        path: The path.
        shown: The URL for people.
        mark: Where it stands.
        of_file: Whether this is the URL of a file, whose name is no token.

    Raises:
        SpecError: Nothing stands behind a token; or it may be a folder.
    """
    if "/t/" not in path:
        return path
    kept: list[str] = []
    parts, at = path.split("/"), 0
    last = max(each for each, part in enumerate(parts) if part)
    while at < len(parts):
        token, has_more = "".join(parts[at + 1 : at + 2]), last >= at + 2
        like_folder = bool(_FOLDER.fullmatch(token))
        is_name = of_file and len(parts) - at == 2
        is_folder = not (token or has_more) or is_subdir(token) or is_name or (like_folder and not has_more)
        if parts[at] != "t" or is_folder:
            kept.append(parts[at])
            at += 1
        elif not has_more:
            fail(mark, f"nothing stands behind the token of {shown!r}", "write it as /t/TOKEN/NAME")
        elif like_folder and (len(kept) > 1 or of_file):
            hint = (
                "a folder of that name is written as /%74/; a token that is so short belongs to the start of "
                "the path of a channel or index, or to a login outside the URL"
            )
            fail(mark, f"what stands behind /t/ in {shown!r} may be a token or a folder", hint)
        else:
            at += 2
    return "/".join(kept)


def token_prefixes(public: str, private: str) -> tuple[str, str] | None:
    """What two URLs that differ by tokens begin with: without, and with them; None where they are equal."""
    without, with_tokens = public.split("/"), private.split("/")
    while len(without) > 3 and without[-1] == with_tokens[-1]:
        without.pop()
        with_tokens.pop()
    return None if without == with_tokens else ("/".join(without), "/".join(with_tokens))
