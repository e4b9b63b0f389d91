"""The full grammar of Conda's match specs.

Grammar: Conda's ``MatchSpec`` as py-rattler reads it (the solver decides with it), in ASCII. Where Conda and
the solver disagree on what a spelling means, it is refused with the spelling to use instead.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias

from envbuild.errors import SpecError
from envbuild.spec.channel import Channel, file_url, redact, split_credentials
from envbuild.spec.constraint import canonical_constraint, parse_constraint, spell_constraint
from envbuild.spec.document import describe
from envbuild.spec.shortmatch import read_short_constraint
from envbuild.spec.tokens import is_subdir

if TYPE_CHECKING:
    from pathlib import Path

    from envbuild.spec.shortmatch import Fields

MAX_LENGTH = 2048
_KEYS = (
    "build", "build_number", "channel", "subdir", "sha256", "md5", "url", "fn", "license", "license_family",
    "track_features",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HIDDEN = re.compile(r"[^ -~\t]")
_WORD = re.compile(r"([A-Za-z_][A-Za-z_-]*)(?:\s.*)?", re.DOTALL)
_NUMBER = re.compile(r"[0-9.]+")
_NAME_END = re.compile(r"[\s<>=!~(\[]")
_CONDITION = re.compile(r";\s*if\s")
_KEY = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=")
_FIELD = re.compile(
    r"""\s*+([A-Za-z0-9_-]++)\s*+=(?:\s*+"([^"]*+)"\s*+|\s*+'([^']*+)'\s*+|([^,'"\[\]]++))(,|$)"""
)
_EXTRAS = re.compile(r"\s*[A-Za-z][A-Za-z0-9_.-]*(?:\s*,\s*[A-Za-z][A-Za-z0-9_.-]*)*\s*")
_REPOSITORY = re.compile(r"(?:git|hg|bzr|svn)(?:\+|:|@)|[^/]*+/.*\.git(?:@|#|$)", re.IGNORECASE)
_ARCHIVE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*)-[^-/]+-[^-/]+(?:\.conda|\.tar\.bz2)")
_URL_LIKE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|/|\.{1,2}/")
_SINGLE_EQUALS = re.compile(r"=\s*([A-Za-z0-9!_.+-]+)")
_BUILD = re.compile(r"[A-Za-z0-9_.+*-]+")
_BUILD_NUMBER = re.compile(r"(==|!=|>=|<=|>|<|=)?\s*([0-9]{1,18})")
_UNSUPPORTED = {
    "when": "whether it holds would be decided anew by each solve: write one definition for each case",
    "extras": "name the packages that the extra stands for as dependencies of their own",
    "flags": "choose the variant by its build, as name=1.2=*cuda*, or by a package that only it depends on",
    "namespace": "leave it out: no channel has namespaces",
}
"""Keys of newer proposals that the solver reads and Conda does not; ``; if`` is an older form of ``when``."""
_HASHES = {"sha256": re.compile(r"[0-9a-f]{64}"), "md5": re.compile(r"[0-9a-f]{32}")}

Parsed: TypeAlias = "tuple[str, str | None, Fields, Channel | None, str | None]"
"""Name, version, fields, channel and private URL of a match spec."""


def read_match(text: str, base_folder: Path | None) -> Parsed:
    """Read a match spec of any form.

    Args:
        text: The match spec.
        base_folder: The folder that relative channels start from; None refuses them.

    Raises:
        SpecError: It is not a match spec, or one whose meaning is not certain.
    """
    _check_characters(text)
    text = text.strip()
    if (_URL_LIKE.match(text) or _REPOSITORY.match(text)) and "::" not in text:
        return _from_url(text)
    positional, fields = _split_brackets(_without_comment(text))
    place, separator, rest = positional.rpartition("::")
    if separator:
        _add_channel(place.strip(), fields)
    elif " @ " in positional:
        raise SpecError("NAME @ URL is a requirement of pip", hint="put it under `pip:` in the dependencies")
    elif ":" in positional and not positional.startswith("-"):
        raise SpecError("a single ':' is found, expected '::'", hint="write it as channel::name")
    name, rest = _split_name(rest.strip())
    if word := _WORD.fullmatch(rest):
        raise SpecError(
            f"{word[1]!r} stands where a version is expected",
            hint=f"a dependency names one package: write `{name}-{word[1]}`, or two dependencies",
        )
    version = _version(rest, fields)
    return (name, version, *_assemble(fields, base_folder))


def _check_characters(text: str) -> None:
    if len(text) > MAX_LENGTH:
        raise SpecError(f"it has {len(text)} characters, expected at most {MAX_LENGTH}")
    if found := _HIDDEN.search(text):
        raise SpecError(
            f"it holds the character {describe(found.group())}",
            hint="names and versions are ASCII; type it again, the letter may only look like another",
        )
    if _CONDITION.search(text):
        raise SpecError("'; if' is known, and not supported", hint=_UNSUPPORTED["when"])
    if ";" in text:
        raise SpecError(
            "it holds a ';'", hint="conditions belong to pip requirements; put those under `pip:`"
        )


def _without_comment(text: str) -> str:
    if "#" not in text:
        return text
    quote = ""
    for position, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "#":
            return text[:position].strip()
    return text


def _split_brackets(text: str) -> tuple[str, dict[str, str]]:
    opening = text.find("[")
    if opening < 0:
        return text, {}
    if not text.endswith("]"):
        raise SpecError(
            "a '[' is not closed at the end", hint='write it as name[version=">=1.2", build="py*"]'
        )
    return text[:opening].strip(), _fields(text[opening + 1 : -1])


def _fields(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    position = 0
    while position < len(text):
        _refuse_unsupported(text, position)
        match = _FIELD.match(text, position)
        if match is None:
            if _EXTRAS.fullmatch(text) and text.strip() not in {*_KEYS, "version"}:
                raise SpecError(
                    f"[{text}] are extras, and Conda's packages have none",
                    hint="drop the brackets, or write it under `- pip:`",
                )
            raise SpecError(
                f"{text[position:].strip()!r} between brackets is not KEY=VALUE",
                hint="put a value that holds a comma, a bracket or a quote into quotes",
            )
        key = match[1]
        if key != "version" and key not in _KEYS:
            raise SpecError(
                f"{key!r} is not a key between brackets", hint=f"known: version, {', '.join(_KEYS)}"
            )
        if key in fields:
            raise SpecError(f"{key!r} stands twice between brackets", hint="delete one of them")
        fields[key] = next(value for value in match.groups()[1:4] if value is not None).strip()
        position = match.end()
    return fields


def _refuse_unsupported(text: str, position: int) -> None:
    """Before the value is read: it may be a list."""
    key = _KEY.match(text, position)
    if key is not None and (hint := _UNSUPPORTED.get(key[1])) is not None:
        raise SpecError(f"{key[1]!r} between brackets is known, and not supported", hint=hint)


def _add_channel(place: str, fields: dict[str, str]) -> None:
    channel, slash, subdir = place.rstrip("/").rpartition("/")
    if slash and is_subdir(subdir):
        if fields.get("subdir", subdir) != subdir:
            raise SpecError(f"it names two platforms, {subdir!r} and {fields['subdir']!r}")
        fields["subdir"] = subdir
    else:
        channel = place
    if "channel" in fields:
        raise SpecError("it names a channel twice", hint="keep the one in front of '::'")
    fields["channel"] = channel


def _split_name(text: str) -> tuple[str, str]:
    end = found.start() if (found := _NAME_END.search(text)) else len(text)
    name = text[:end]
    if name.startswith("-"):
        raise SpecError(f"{name!r} is an option of pip", hint="put it under `pip:` in the dependencies")
    if _NUMBER.fullmatch(name):
        raise SpecError(
            f"{name!r} is a version, and the name of a package is missing",
            hint=f"write it as `python={name}`, if python was meant",
        )
    if not _NAME.fullmatch(name):
        raise SpecError(
            f"{name!r} is not a package name: expected letters, digits, '_', '-' and '.'",
            hint="a dependency starts with the name of one package",
        )
    return name.lower(), text[end:].strip()


def _version(rest: str, fields: dict[str, str]) -> str | None:
    """The version constraint behind the name; the build behind that goes into the fields."""
    inner = fields.pop("version", None)
    if not rest:
        return read_short_constraint(inner) or canonical_constraint(inner) if inner is not None else None
    if inner is not None:
        raise SpecError("it gives a version twice", hint="keep one of them")
    alternatives, end = parse_constraint(rest)
    build = _split_build(rest[end:])
    if build is None:
        return spell_constraint(alternatives)
    if "build" in fields:
        raise SpecError("it gives a build twice", hint="keep one of them")
    fields["build"] = build
    if exact := _SINGLE_EQUALS.fullmatch(rest[:end].strip()):
        # With a build behind it, a single '=' is exact, as in name=1.2.3=py_0.
        return canonical_constraint(exact[1])
    return spell_constraint(alternatives)


def _split_build(tail: str) -> str | None:
    if tail and tail[0] not in "= \t":
        raise SpecError(f"{tail!r} stands behind the version", hint="write it as name >=1.26,<2")
    build = tail.removeprefix("=").strip()
    if build[:1] in {"<", ">", "=", "!", "~"}:
        raise SpecError(f"{build!r} stands where a build is expected", hint="join constraints with a comma")
    return build or None


def _assemble(fields: dict[str, str], base_folder: Path | None) -> tuple[Fields, Channel | None, str | None]:
    if not fields:
        return (), None, None
    channel = private_url = None
    if "channel" in fields:
        channel = Channel.parse(fields["channel"], base_folder)
        fields["channel"] = channel.canonical
    if "url" in fields:
        fields["url"], private_url = _package_url(fields["url"])
    canonical = [(key, _field_value(key, fields[key])) for key in _KEYS if key in fields]
    kept = tuple((key, value) for key, value in canonical if (key, value) != ("build", "*"))
    return kept, channel, private_url


def _field_value(key: str, value: str) -> str:
    if not value or '"' in value:
        raise SpecError(
            f"the {key} is {'empty' if not value else 'a text with quotes'}", hint="give it a value"
        )
    if key == "build":
        return _build(value)
    if key == "build_number":
        return _build_number(value)
    if key in _HASHES:
        return _hash(key, value)
    if key == "subdir" and not is_subdir(value):
        raise SpecError(f"the subdir {value!r} is not a platform", hint="write it as linux-64 or noarch")
    if key == "track_features":
        return ",".join(sorted(set(re.split(r"[,\s]+", value.strip(", ")))))
    if "\\" in value:
        raise SpecError(f"the {key} holds a backslash")
    return value


def _build(value: str) -> str:
    if value.startswith("^") and value.endswith("$"):
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise SpecError(f"the build {value!r} is not a regular expression: {error}") from error
        return value
    if not _BUILD.fullmatch(value):
        hint = (
            "alternatives need a regular expression: ^(a|b)$"
            if "|" in value
            else "write it as py311* or h1234_0"
        )
        raise SpecError(f"the build {value!r} is malformed", hint=hint)
    # Builds are compared without regard to case.
    return re.sub(r"\*+", "*", value.lower())


def _build_number(value: str) -> str:
    match = _BUILD_NUMBER.fullmatch(value)
    if match is None:
        raise SpecError(f"the build number {value!r} is malformed", hint="write it as 3 or '>=3'")
    operator = "==" if match[1] in {None, "="} else match[1]
    return f"{operator}{int(match[2])}"


def _hash(key: str, value: str) -> str:
    if not _HASHES[key].fullmatch(value.lower()):
        raise SpecError(f"the {key} {value!r} is malformed", hint="copy all of its hexadecimal digits")
    return value.lower()


def _package_url(text: str) -> tuple[str, str]:
    if text.startswith("/"):
        text = f"file://{text}"
    if _REPOSITORY.match(text):
        raise SpecError(
            f"{redact(text)!r} is a repository of version control, and Conda installs packages",
            hint="name a wheel or archive under `- pip:`, or run pip in a Docker step (`steps_after`)",
        )
    scheme = text.partition("://")[0].lower()
    if scheme == "file":
        url = file_url(text)
        return url, url
    if scheme not in {"http", "https"}:
        raise SpecError(
            f"{redact(text)!r} is no URL that packages come from",
            hint="use https, http, or file:///absolute/path",
        )
    return split_credentials(text)


def _from_url(text: str) -> Parsed:
    """A package's URL or absolute path; ``#<md5>`` or ``#sha256:<digits>`` may follow, as in URL lists."""
    address, mark, digest = text.partition("#")
    canonical, private = _package_url(address.strip())
    archive = _ARCHIVE.fullmatch(canonical.rpartition("/")[2])
    if archive is None:
        raise SpecError(
            "the URL does not end in NAME-VERSION-BUILD.conda or .tar.bz2", hint="name one package's file"
        )
    fields = {"url": canonical}
    if mark:
        key = "md5" if len(digest) == 32 else "sha256"
        fields[key] = _hash(key, digest.strip().removeprefix("sha256:").removeprefix("md5:"))
    ordered = tuple((key, fields[key]) for key in _KEYS if key in fields)
    return archive[1].lower(), None, ordered, None, private
