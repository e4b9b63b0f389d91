"""Values of build secrets. They come from the environment and go into mounts: never into a key or a layer.

What a step does to a secret before it prints it cannot be known. Looked for are the value itself and the
forms that programs give to it by themselves: without line feeds, in JSON, in URLs, in base64; and in logs,
which go line by line, each of its lines.
"""

from __future__ import annotations

import base64
import json
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import quote_from_bytes

from envbuild.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

_SHORTEST: Final = 6
"""Shorter values and lines are not looked for: they stand everywhere by chance."""
_ARMOR: Final = re.compile(rb"-----(?:BEGIN|END) [A-Z0-9 ]{1,60}-----")
"""The lines of a PEM file that are in every such file."""
_WRAPPED: Final = (76, 64)
"""Where ``base64`` and ``openssl`` break their lines."""


def variable_of(name: str) -> str:
    """The environment variable that holds a secret: ``pip_token`` is in ``ENVBUILD_SECRET_PIP_TOKEN``."""
    return f"ENVBUILD_SECRET_{re.sub(r'[^A-Za-z0-9]', '_', name).upper()}"


def build_secrets(names: Iterable[str], environ: Mapping[str, str] | None = None) -> dict[str, bytes]:
    """The values of the secrets that steps mount, by their names.

    Raises:
        BuildError: A secret has no value, or an empty one; or two would be one variable.
    """
    values = os.environ if environ is None else environ
    found: dict[str, bytes] = {}
    for name in names:
        variable = variable_of(name)
        for other in found:
            if variable_of(other) == variable:
                raise BuildError(
                    f"the build secrets {other!r} and {name!r} would both be {variable}",
                    hint="rename one of them",
                )
        if not values.get(variable):
            raise BuildError(f"the build secret {name!r} has no value", hint=f"set {variable}")
        found[name] = values[variable].encode()
    return found


@dataclass(frozen=True, repr=False)
class Secrets:
    """The values of build secrets, to keep them out of whatever is shown, kept or pushed."""

    values: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, given: Mapping[str, Path | bytes]) -> Self:
        """Read each secret once.

        Raises:
            BuildError: A secret's file cannot be read.
        """
        values = {}
        for name, source in given.items():
            try:
                values[name] = source if isinstance(source, bytes) else source.read_bytes()
            except OSError as error:
                raise BuildError(f"the secret {name!r} cannot be read: {error.strerror}") from None
        return cls(values)

    @cached_property
    def needles(self) -> dict[bytes, str]:
        """What must not turn up in an image, and the name of the secret that it belongs to."""
        return {form: name for name, value in self.values.items() for form in _forms(value)}

    @property
    def overlap(self) -> int:
        """Bytes that two pieces of a stream must share so that nothing is missed between them."""
        return max((len(needle) - 1 for needle in self.needles), default=0)

    @cached_property
    def _shown(self) -> tuple[str, ...]:
        """What is not shown, the longest first."""
        found = {*self.needles, *(line for value in self.values.values() for line in _lines(value))}
        return tuple(each.decode(errors="surrogateescape") for each in sorted(found, key=len, reverse=True))

    @property
    def longest(self) -> int:
        """The number of characters of the longest text that is not shown."""
        return len(self._shown[0]) if self._shown else 0

    def found_in(self, content: bytes) -> frozenset[str]:
        """The names of the secrets whose values stand in some bytes."""
        return frozenset(name for needle, name in self.needles.items() if needle in content)

    def redact(self, text: str) -> str:
        """The text with ``***`` in place of each secret's value, and of each line of one.

        Args:
            text: The text; bytes that are no UTF-8 as surrogates.
        """
        for needle in self._shown:
            if needle in text:
                text = text.replace(needle, "***")
        return text


def _forms(value: bytes) -> Iterator[bytes]:
    """A value as programs write it, in one piece."""
    text = value.strip()
    if len(text) < _SHORTEST:
        return
    yield text
    lines = text.splitlines()
    for joined in (b"\n", b"\r\n", b"", b"\\n", b" "):
        yield joined.join(lines)
    yield json.dumps(text.decode("latin-1"))[1:-1].encode()
    yield json.dumps(text.decode(errors="replace"), ensure_ascii=False)[1:-1].encode()
    yield quote_from_bytes(text).encode()
    yield quote_from_bytes(text, safe="").encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield encode(value)
        yield encode(text).rstrip(b"=")
        if len(text) >= 2 * _SHORTEST:
            for shift in range(
                3
            ):  # as behind a user's name; what stands at the ends depends on the neighbours
                yield encode(bytes(shift) + text)[4 if shift else 0 : -4]


def _lines(value: bytes) -> Iterator[bytes]:
    """The lines in which a value comes where it, or its base64, has several."""
    encoded = base64.b64encode(value)
    wrapped = [encoded[at : at + width] for width in _WRAPPED for at in range(0, len(encoded), width)]
    for line in (*map(bytes.strip, value.splitlines()), *wrapped):
        if len(line) >= _SHORTEST and not _ARMOR.fullmatch(line):
            yield line
            yield json.dumps(line.decode("latin-1"))[1:-1].encode()
