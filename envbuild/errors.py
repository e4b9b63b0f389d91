"""The errors that envbuild raises, named by whose fault they are.

Each message says what was seen and what was expected; ``hint`` says what to do next; ``retryable`` says
whether the same call may succeed later without any change.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


_USERINFO = re.compile(r"(?<=://)[^/\s'\"@]*(?:@[^/\s'\"@]*)*@")
_WEB = re.compile(r"https?://[^\s'\"]+", re.IGNORECASE)
_TOKEN = re.compile(r"(?<=/t/)[^/\s?#]+")
_MOST_MISTAKES = 100
"""How many mistakes of one input are kept: a file that is all wrong is not worth more."""


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number of things as messages write it: ``1 layer``, ``2 layers``.

    Args:
        number: How many.
        noun: What one of them is called.
        plural: What several are called; the noun and an ``s`` if None.
    """
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def plain(text: str) -> str:
    """A text that is nothing but text to a terminal, a log and a reader of JSON, whoever wrote it.

    Control and format characters and lone surrogates become the escapes that JSON has for them; ends of lines
    and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    kept = (
        each if each.isprintable() or each in "\n\t\u00a0\u3000" else json.dumps(each)[1:-1] for each in text
    )
    return "".join(kept)


def _without_logins(text: str) -> str:
    """A text without the users, passwords and tokens of the URLs in it, whoever put them there."""
    if "://" not in text:
        return text
    return _WEB.sub(lambda url: _TOKEN.sub("***", url[0]), _USERINFO.sub("***@", text))


class EnvbuildError(Exception):
    """The root of every error that envbuild raises on purpose; no URL in it shows a login.

    Attributes:
        hint: What the caller can do next, one sentence, or None.
        retryable: Whether the same call may succeed later without any change.
        exit_code: The process exit code that the command line gives this error.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, retryable: bool = False) -> None:
        message = _without_logins(message)
        super().__init__(message)
        self.message = message
        self.hint = hint and _without_logins(hint)
        self.retryable = retryable


class SpecError(EnvbuildError):
    """A definition, a reference or a setting that a user wrote cannot be understood.

    Attributes:
        source: The file's name as the user wrote it, or None where there is no file.
        line: Line, from 1.
        column: Column in characters, from 1.
        others: Further mistakes of the same input, in the order of their places.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        source: str | None = None,
        line: int | None = None,
        column: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.source = source
        self.line = line
        self.column = column
        self.others: tuple[SpecError, ...] = ()

    @classmethod
    def together(cls, found: Iterable[SpecError]) -> SpecError:
        """Several mistakes as one error: the first by its place, which carries the others.

        Args:
            found: At least one mistake; mistakes that one of them carries count like it.
        """
        flat = [each for error in found for each in (error, *error.others)]
        sources = list(dict.fromkeys(each.source for each in flat))
        flat.sort(key=lambda each: (sources.index(each.source), each.line or 0, each.column or 0))
        for each in flat:
            each.others = ()
        flat[0].others = tuple(flat[1:_MOST_MISTAKES])
        return flat[0]

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.source, self.line, self.column) if part is not None)
        return f"{place}: {self.message}" if place else self.message


class CacheMiss(EnvbuildError):
    """No registry holds the key, and building was forbidden."""

    exit_code = 3


class RegistryError(EnvbuildError):
    """A registry answered with something that is neither a hit nor a miss."""

    exit_code = 4


class NotFound(RegistryError):
    """The registry answered, and what was asked for is not there: a miss, not an outage."""


class Unavailable(RegistryError):
    """The registry could not be asked, or was in trouble: unknown, never a miss."""

    def __init__(self, message: str, *, hint: str | None = None, retryable: bool = True) -> None:
        super().__init__(message, hint=hint, retryable=retryable)


class Unauthorized(RegistryError):
    """The registry refused the credentials, or wanted some."""


class TagMoved(RegistryError):
    """A tag names another manifest than the one just written or read."""


class ChannelError(EnvbuildError):
    """A channel or an index of packages could not be read: unreachable, missing, or it refuses the login."""

    exit_code = 4


class SolveError(EnvbuildError):
    """No set of packages satisfies the definition."""

    exit_code = 5


class BuildError(EnvbuildError):
    """The image could not be built: a package, a Docker step or an engine failed."""

    exit_code = 6


class StepFailed(BuildError):
    """A command that a build ran ended with an exit code of its own; the engine did what it was asked to."""


class BuildLimit(BuildError):
    """A build used more time, memory or disk than it was given."""


class IntegrityError(EnvbuildError):
    """Bytes are not what their digest, size or signature says; they were not used."""

    exit_code = 7


class DeadlineExceeded(EnvbuildError):
    """The call's time ran out before there was an answer."""

    exit_code = 8

    def __init__(self, message: str, *, hint: str | None = None, retryable: bool = True) -> None:
        super().__init__(message, hint=hint, retryable=retryable)


class StorageError(EnvbuildError):
    """The local cache directory cannot be used safely."""


class StorageFull(StorageError):
    """The disk that holds the cache or a layout is full."""
