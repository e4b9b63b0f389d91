"""One Python requirement as pip reads it, in one spelling.

Sources: PEP 508 (requirements), PEP 440 (versions), PEP 503 (names), pip's "Requirement Specifiers" and "VCS
Support" pages. ``packaging`` checks the grammar; the spelling is made here, so that a new release of it moves
no key. It is imported only where there is a requirement.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from envbuild.spec.document import Mark, fail
from envbuild.spec.files import require_url
from envbuild.spec.local import read_local, without_file_scheme
from envbuild.spec.marker import canonical_marker
from envbuild.spec.shortrequirement import read_short_requirement
from envbuild.spec.tokens import hide_tokens, without_tokens
from envbuild.spec.version import shortest
from envbuild.url import Url, UrlError

if TYPE_CHECKING:
    from pathlib import Path

    from envbuild.spec.local import LocalSource, ReadSources

_USERINFO = re.compile(r"(?<=://)[^/?#@\s]*(?:@[^/?#@\s]*)*@")
_NESTED_LOGIN = re.compile(r"://[^/?#@]*@")
_WEB = re.compile(r"https?://", re.IGNORECASE)
_FILE = re.compile(r"file:", re.IGNORECASE)
_TAIL = re.compile(r"[?#]")
_AUTHORITY_END = re.compile(r"[/?#]")
_VARIABLE = re.compile(r"\$\{[A-Za-z0-9_]+\}")
_MARKER_START = re.compile(r"\s;")
_RELEASE = re.compile(r"((?:[0-9]++!)?[0-9]++(?>(?:\.[0-9]++)*))(.*)")
_EGG = re.compile(r"[#&]egg=([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[([A-Za-z0-9._, -]*)\])?")
_SUBDIRECTORY = re.compile(r"(?<!\.whl)#(?:[^\s#]*&)?subdirectory=[^&\s]")
_VCS = re.compile(r"(?:git|hg|svn|bzr)\+", re.IGNORECASE)
_SHA256 = re.compile(r"#(?:[^\s#]*&)?sha256=([0-9A-Fa-f]+)")
_WHEEL = re.compile(r"(?:.*/)?([A-Za-z0-9][A-Za-z0-9._]*)-[^/-]+(?:-[^/-]+){3,4}\.whl")
_REMOTE = re.compile(r"(?:(?:git|hg|svn|bzr)\+)?[a-z][a-z0-9+.-]*:(?://|(?=/))", re.IGNORECASE)
_SCHEMES = re.compile(
    r"(?:https?|file|(?:git|hg|svn|bzr)\+(?:https?|ssh|git|file|static-http|svn|sftp|ftp|lp)):", re.IGNORECASE
)
"""Those that pip fetches from."""

_PATH = re.compile(
    r"(?P<path>\.{1,2}(?:/[^;\[\]]*)?|~?/[^;\[\]]*|[^;@\[\]]*/[^;\[\]]*|[^;@\[\]]+\.(?:whl|zip|tar\.\w+|tgz))"
)
_PATH_TAIL = re.compile(r"\s*+(?:\[([A-Za-z0-9._, -]*+)\]\s*+)?(?:;(.*))?")
_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))
_NO_ESCAPES = re.compile(r'[^"\\\x00-\x1f]*')
_HEAD = '{"editable":false,"extras":[],"hashes":[],"local":null,"marker":"","name":"'
MAX_LENGTH = 2048
_HASHES = {"sha256": 64, "sha384": 96, "sha512": 128}


class PipRequirement(NamedTuple):
    """A requirement; two are equal when they ask for the same.

    Attributes:
        name: The PEP 503 name; empty where only the source at a URL or path tells it.
        extras: PEP 503 names, sorted.
        specifiers: ``>=1.2`` and so on, sorted, each once.
        marker: The environment marker in one spelling, or empty.
        url: A URL without credentials, or None.
        local: A local source, or None.
        editable: Whether it was given with ``-e``.
        hashes: ``sha256:…`` and so on, sorted.
        fetch_url: The URL as it was written; it may hold credentials. It takes no part in comparing, like
            all that follows, and is not shown.
        mark: Where it stands.
    """

    name: str
    extras: tuple[str, ...] = ()
    specifiers: tuple[str, ...] = ()
    marker: str = ""
    url: str | None = None
    local: LocalSource | None = None
    editable: bool = False
    hashes: tuple[str, ...] = ()
    fetch_url: str | None = None
    mark: Mark = Mark("", 1, 1)

    def __eq__(self, other: object) -> bool:
        return self[:8] == other[:8] if isinstance(other, PipRequirement) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[:8])

    def __repr__(self) -> str:
        return f"PipRequirement({self.json_text()})"

    def to_json(self) -> dict[str, Any]:
        """The requirement's part of a canonical form."""
        return {
            "editable": self.editable,
            "extras": list(self.extras),
            "hashes": list(self.hashes),
            "local": self.local.to_json() if self.local else None,
            "marker": self.marker,
            "name": self.name,
            "specifiers": list(self.specifiers),
            "url": self.url,
        }

    def json_text(self) -> str:
        """The RFC 8785 text of :meth:`to_json`, which decides the order of requirements."""
        more = self.editable or self.extras or self.hashes or self.local or self.marker or self.url
        if more or not _NO_ESCAPES.fullmatch("".join(self.specifiers)):
            return _ENCODER.encode(self.to_json())
        specifiers = ",".join([f'"{one}"' for one in self.specifiers])
        return f'{_HEAD}{self.name}","specifiers":[{specifiers}],"url":null}}'

    def text(self) -> str:
        """A line of a requirements file; it may hold credentials."""
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        place = self.local.path.as_uri() if self.local else self.fetch_url
        if self.editable and self.local is None:
            body = f"-e {place}{f'#egg={self.name}{extras}' if self.name else ''}"
        elif self.editable:
            body = f"-e {self.local.path if self.local else ''}{extras}"
        elif place is None:
            body = f"{self.name}{extras}{','.join(self.specifiers)}"
        elif self.name:
            body = f"{self.name}{extras} @ {place}"
        else:
            body = f"{self.local.path if self.local else place}{extras if self.local else ''}"
        marker = f" ; {self.marker}" if self.marker else ""
        return body + marker + "".join(f" --hash={digest}" for digest in self.hashes)


def without_logins(text: str) -> str:
    """A URL, or a text with some, without users and passwords; a leading ``git+`` and the like stay."""
    return _USERINFO.sub("", text)


def without_login(url: str) -> str:
    """One URL without its user and password; what stands behind its host stays, whatever it looks like."""
    scheme, separator, rest = url.partition("://")
    place = _AUTHORITY_END.split(rest, maxsplit=1)[0]
    return f"{scheme}{separator}{place.rpartition('@')[2]}{rest[len(place) :]}"


def redacted(text: str) -> str:
    """A text for people: of the users, passwords and tokens of the URLs in it shows that they are there."""
    return hide_tokens(_USERINFO.sub("***@", text))


def strip_credentials(url: str, mark: Mark | None = None, *, of_file: bool = False) -> str:
    """The URL without user, password and ``/t/TOKEN``.

    Args:
        url: A URL.
        mark: Where it stands.
        of_file: Whether it is a file's, and not that of an index.

    Raises:
        SpecError: What may be a token may be a folder, too.
    """
    bare = without_login(url)
    if not _WEB.match(bare) or "/t/" not in bare:
        return bare
    place, tail = _TAIL.split(bare, maxsplit=1)[0], _TAIL.search(bare)
    server, slash, path = place.partition("://")[2].partition("/")
    path = without_tokens(slash + path, redacted(url), mark, of_file=of_file)
    return f"{place.partition('://')[0]}://{server}{path}{bare[tail.start() :] if tail else ''}"


def public_url(url: str, mark: Mark, *, of_file: bool = False) -> str:
    """The URL without credentials, checked: no white space, and variables only in the credentials.

    Args:
        url: A URL.
        mark: Where it stands.
        of_file: Whether it is a file's, and not that of an index.

    Raises:
        SpecError: It is not such a URL; or what may be a token may be a folder, too.
    """
    public = strip_credentials(url, mark, of_file=of_file)
    if re.search(r"\s", url) or url.startswith("-"):
        fail(mark, f"the URL {public[:80]!r} holds white space or starts with '-'", "write one plain URL")
    if found := _VARIABLE.search(public):
        fail(
            mark,
            f"the variable {found[0]} stands outside a URL's credentials, so the key cannot know it",
            "write its value",
        )
    public = strip_credentials(fetched_url(url, mark), mark, of_file=of_file)
    if _NESTED_LOGIN.search(public.partition("://")[2]):
        # It would be in the key and in locks; without it two URLs would have one key.
        fail(
            mark,
            f"{redacted(url)[:120]!r} holds a URL with a user or a password behind its own host",
            "write the URL that is meant, or '%40' for an '@' that ends no login",
        )
    return public


def fetched_url(url: str, mark: Mark) -> str:
    """The URL as whoever fetches gets it: put together again from what was read, credentials and all.

    Raises:
        SpecError: It is none that all readers read alike.
    """
    if _FILE.match(url):
        return url  # the reader of local files reads it
    system = found[0] if (found := _VCS.match(url)) else ""
    try:
        return f"{system.lower()}{Url.parse(url[len(system) :], None, template=True)}"
    except UrlError as error:
        fail(
            mark,
            f"{redacted(url)[:120]!r} is not a URL: {error}",
            "write one plain URL, as https://host/path",
        )


def _check_scheme(url: str, mark: Mark) -> None:
    """Refuse a requirement's URL that pip would not fetch from."""
    require_url(url, mark)
    if _SCHEMES.match(url):
        return
    scheme = url.partition(":")[0].lower()
    hint = (
        f"write {scheme}+{hide_tokens(without_logins(url))[:80]}"
        if scheme in {"git", "hg", "svn", "bzr"}
        else ""
    )
    fail(mark, f"{scheme}: is no scheme that pip fetches requirements from", hint or "give an https: URL")


def parse_requirement(text: str, mark: Mark, hashes: tuple[str, ...] = ()) -> PipRequirement:
    """Parse a PEP 508 requirement.

    Raises:
        SpecError: The text is not one.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        found = Requirement(text)
    except RecursionError:
        fail(mark, f"the brackets in {text[:80]!r}… are nested too deep", "take some of them out")
    except InvalidRequirement as error:
        from envbuild.spec.misread import likely_meant

        shown = redacted(text)
        reason, hint = likely_meant(shown) or (str(error).split("\n", 1)[0], "write it as PEP 508 has it")
        fail(mark, f"{shown[:120]!r} is not a requirement: {redacted(reason)}", hint)
    if found.name.endswith("_"):  # which packaging reads as a letter
        fail(mark, f"the name {found.name[:80]!r} ends in '_'", "end it in a letter or digit")
    return PipRequirement(
        name=canonical_name(found.name),
        extras=tuple(sorted({canonical_name(extra) for extra in found.extras})),
        specifiers=tuple(sorted({_specifier(one.operator, one.version) for one in found.specifier})),
        marker=canonical_marker(_marker_of(text, has_url=found.url is not None)) if found.marker else "",
        url=public_url(found.url, mark, of_file=True) if found.url else None,
        fetch_url=fetched_url(found.url, mark) if found.url else None,
        hashes=hashes,
        mark=mark,
    )


def _marker_of(text: str, *, has_url: bool) -> str:
    """What stands behind the semicolon; a URL may hold one, and ends at white space."""
    return _MARKER_START.split(text, maxsplit=1)[1] if has_url else text.partition(";")[2]


def canonical_name(name: str) -> str:
    """The PEP 503 name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def name_from_url(url: str) -> tuple[str, tuple[str, ...]]:
    """Name and extras from ``#egg=`` or a wheel's file name in a URL; empty where there are none."""
    if found := _EGG.search(url):
        return canonical_name(found[1]), _extras(found[2])
    wheel = _WHEEL.fullmatch(re.split(r"[?#]", url, maxsplit=1)[0])
    return (canonical_name(wheel[1]) if wheel else ""), ()


def check_hash(value: str, mark: Mark) -> str:
    """A ``--hash`` value in lower case.

    Raises:
        SpecError: It is none of sha256, sha384, sha512, or has the wrong number of digits.
    """
    algorithm, _, digits = value.lower().partition(":")
    if len(digits) != _HASHES.get(algorithm, 0) or not re.fullmatch("[0-9a-f]+", digits):
        fail(mark, f"--hash {value[:80]!r}", "write --hash=sha256: and 64 hexadecimal digits")
    return f"{algorithm}:{digits}"


def _specifier(operator: str, version: str) -> str:
    """A specifier in one spelling: PEP 440's normal form, without zeros that compare as nothing."""
    from packaging.version import Version

    if operator == "===":
        return operator + version
    if version.endswith(".*"):
        return f"{operator}{Version(version[:-2])}.*"
    normal = str(Version(version))
    found = _RELEASE.fullmatch(normal)
    if operator == "~=" or found is None:  # the number of parts counts
        return operator + normal
    return operator + shortest(found[1]) + found[2]


def read_requirement(
    text: str, mark: Mark, folder: Path | None, hashes: tuple[str, ...], sources: ReadSources | None = None
) -> PipRequirement:
    """Parse a requirement of any form: PEP 508, a bare URL, or a path, whose files are read.

    Args:
        text: The requirement without options.
        mark: Its place.
        folder: What relative paths start from, or None.
        hashes: What its ``--hash`` options said.
        sources: The files that were read for the same definition.

    Raises:
        SpecError: It is not understood, or its file cannot be read.
    """
    if len(text) > MAX_LENGTH:
        fail(mark, f"a requirement has {len(text)} characters, expected at most {MAX_LENGTH}", "shorten it")
    if (short := read_short_requirement(text)) is not None:
        return PipRequirement(*short, hashes=hashes, mark=mark)
    if _SUBDIRECTORY.search(text) and not _VCS.search(text):
        fail(
            mark,
            f"{redacted(text)[:200]!r} asks for a folder of an archive: #subdirectory= is known and "
            "not supported",
            "unpack the archive beside the definition and name the project's folder, as ./NAME/FOLDER",
        )
    read = _read_place(text, mark, folder, hashes, sources)
    if read.local is not None and read.local.name and (asked := _SHA256.search(text)):
        digest = read.local.files[0].sha256
        if asked[1].lower() != digest:
            hint = "correct the hash, or get the file again"
            fail(
                mark,
                f"{read.local.name} has sha256 {digest}, expected {asked[1].lower()} as its URL says",
                hint,
            )
    return read


def _read_place(
    text: str, mark: Mark, folder: Path | None, hashes: tuple[str, ...], sources: ReadSources | None
) -> PipRequirement:
    """A requirement that is more than a name and versions, before what its fragment asks for is looked at."""
    if is_remote(text):
        url, marker = _split_marker(text)
        _check_scheme(url, mark)
        name, extras = name_from_url(url)
        url = _EGG.sub("", url) if "&" not in url else url
        return PipRequirement(
            name,
            extras,
            marker=_marker(marker, mark),
            url=public_url(url, mark, of_file=True),
            fetch_url=fetched_url(url, mark),
            hashes=hashes,
            mark=mark,
        )
    by_path = "@" not in text.partition("/")[0]
    if by_path and (local := _local_requirement(text, mark, folder, hashes, sources)):
        return local
    if found := re.search(r"\$\{[A-Za-z0-9_]+\}", redacted(text)):
        fail(mark, f"the variable {found[0]}: the key cannot know its value", "write its value")
    parsed = parse_requirement(text, mark, hashes)
    if parsed.url:
        _check_scheme(parsed.url, mark)
    if parsed.url and _FILE.match(parsed.url):
        source = read_local(parsed.url, mark, folder, project=True, sources=sources)
        return parsed._replace(url=None, fetch_url=None, local=source)
    return parsed


def _local_requirement(
    text: str, mark: Mark, folder: Path | None, hashes: tuple[str, ...], sources: ReadSources | None
) -> PipRequirement | None:
    head, marker = _split_marker(text)
    head = without_file_scheme(head)
    if not (found := _PATH.match(head)):
        return None
    if not (tail := _PATH_TAIL.fullmatch(head, found.end())):
        fail(mark, f"{text[:80]!r} is not understood as a path", "write ./PATH, ./PATH[EXTRA] or a URL")
    local = read_local(found["path"].strip(), mark, folder, project=True, sources=sources)
    return PipRequirement(
        name_from_url(local.name)[0],
        _extras(tail[1]),
        marker=_marker(marker, mark),
        local=local,
        hashes=hashes,
        mark=mark,
    )


def is_remote(value: str) -> bool:
    """Whether a value is a URL of anything but a local file."""
    return _REMOTE.match(value) is not None and not _FILE.match(value)


def _extras(text: str | None) -> tuple[str, ...]:
    return tuple(sorted({canonical_name(one.strip()) for one in (text or "").split(",") if one.strip()}))


def _split_marker(text: str) -> tuple[str, str]:
    """Split a URL or path from its marker, which a space and a semicolon start."""
    head, _, marker = text.partition(" ;") if " ;" in text else text.partition("; ")
    return head.strip(), marker.strip()


def _marker(text: str, mark: Mark) -> str:
    return parse_requirement(f"x ; {text}", mark).marker if text else ""
