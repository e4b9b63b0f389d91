"""What differs between two canonical forms, in words; pure and without I/O.

A form is the JSON object that ``docs/key.md`` specifies, or one with the members of a lock beside it. Two
forms without a difference here are equal, and each difference names one input.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

Kind = Literal["added", "removed", "changed"]

_SHOWN: Final = 100
"""How many characters of a value a sentence shows."""


@dataclass(frozen=True, slots=True)
class Change:
    """One input that differs.

    Attributes:
        part: Where in the definition it is, as ``dependency`` or ``context file``.
        kind: What became of it from the first form to the second.
        name: Which one it is, as ``numpy``; empty where a part has only one.
        before: Its value in the first form; None where it is not there.
        after: Its value in the second form; None where it is not there.
    """

    part: str
    kind: Kind
    name: str = ""
    before: Any = None
    after: Any = None

    def __str__(self) -> str:
        subject = f"{self.part} {self.name}".rstrip()
        if self.kind == "changed":
            return f"{subject}: {_shown(self.before)} -> {_shown(self.after)}"
        value = self.after if self.kind == "added" else self.before
        told = "" if value is None or value == self.name else f": {_shown(value)}"
        return f"{subject} {self.kind}{told}"

    def to_json(self) -> dict[str, Any]:
        """The change as a JSON object."""
        return {
            "part": self.part,
            "kind": self.kind,
            "name": self.name,
            "before": self.before,
            "after": self.after,
        }


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[Change, ...]:
    """The inputs that differ between two forms; none exactly where the forms are equal.

    Args:
        first: A canonical form's members (:attr:`envbuild.key.CanonicalForm.fields`).
        second: Another one's.
    """
    names = [*_READERS, *sorted((first.keys() | second.keys()) - _READERS.keys())]
    return tuple(change for name in names for change in _member(name, first.get(name), second.get(name)))


def nearest(
    form: Mapping[str, Any], forms: Iterable[tuple[str, Mapping[str, Any]]]
) -> tuple[str, tuple[Change, ...]] | None:
    """Of some named forms the one with the fewest differences to a form, and these; None where there is none.

    Args:
        form: What was asked for.
        forms: Names (keys) and forms; of equally near ones the first is taken.
    """
    found = ((name, compare(known, form)) for name, known in forms)
    return min(found, key=lambda each: len(each[1]), default=None)


def explain(key: str, form: Mapping[str, Any], forms: Mapping[str, Mapping[str, Any]]) -> str:
    """Why there is no image of a key, in words: what differs from the nearest key that is known.

    Args:
        key: The key of the form.
        form: What was asked for.
        forms: Canonical forms that are known, by key.
    """
    if key in forms:
        return f"{key[:12]} was resolved here before: its image is gone, or was in another repository"
    found = nearest(form, forms.items())
    if found is None:
        return f"{key[:12]} is the first key that this index sees"
    name, changes = found
    return "\n  ".join([f"{key[:12]} is nearest to {name[:12]}, from which it differs:", *map(str, changes)])


def _member(name: str, before: Any, after: Any) -> Iterator[Change]:
    """The changes of one member; if its reader sees none, the member as a whole."""
    if before == after:
        return
    reader = _READERS.get(name)
    changes = list(reader(before, after)) if reader is not None else []
    yield from changes or [Change(name.replace("_", " "), "changed", before=before, after=after)]


def _value(part: str) -> Callable[[Any, Any], Iterator[Change]]:
    """A reader of a member that has one value."""

    def read(before: Any, after: Any) -> Iterator[Change]:
        yield Change(part, _kind(before, after), before=before, after=after)

    return read


def _kind(before: Any, after: Any) -> Kind:
    return "added" if before is None else "removed" if after is None else "changed"


def _named(part: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    """Values by name."""
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old != new:
            yield Change(part, _kind(old, new), name, old, new)


def _grouped(
    part: str, before: Sequence[Any], after: Sequence[Any], name_of: Callable[[Any], str]
) -> Iterator[Change]:
    """Items of which several may have one name: those that went and those that came, paired in order."""
    old, new = _by_name(before, after, name_of), _by_name(after, before, name_of)
    for name in sorted(old.keys() | new.keys()):
        gone, come = old.get(name, []), new.get(name, [])
        paired = min(len(gone), len(come))
        for place in range(max(len(gone), len(come))):
            left = gone[place] if place < len(gone) else None
            right = come[place] if place < len(come) else None
            yield Change(part, "changed" if place < paired else _kind(left, right), name, left, right)


def _by_name(
    items: Sequence[Any], others: Sequence[Any], name_of: Callable[[Any], str]
) -> dict[str, list[Any]]:
    """The items that the others do not hold, by name."""
    left = Counter(map(_text, items))
    left.subtract(Counter(map(_text, others)))
    found: dict[str, list[Any]] = {}
    for item in items:
        if left[_text(item)] > 0:
            left[_text(item)] -= 1
            found.setdefault(name_of(item), []).append(item)
    return found


def _ordered(part: str, before: Sequence[str], after: Sequence[str]) -> Iterator[Change]:
    """Texts whose order counts, each there once: what went, what came, and whether the rest was reordered."""
    yield from (Change(part, "removed", name, before=name) for name in before if name not in after)
    yield from (Change(part, "added", name, after=name) for name in after if name not in before)
    kept = [name for name in before if name in after]
    order = [name for name in after if name in before]
    if kept != order:
        yield Change(f"{part} order", "changed", before=kept, after=order)


def _conda(before: Any, after: Any) -> Iterator[Change]:
    old, new = before or {}, after or {}
    yield from _ordered("channel", old.get("channels", []), new.get("channels", []))
    if old.get("nodefaults", False) != new.get("nodefaults", False):
        yield Change(
            "nodefaults", "changed", before=bool(old.get("nodefaults")), after=bool(new.get("nodefaults"))
        )
    yield from _grouped("dependency", old.get("dependencies", []), new.get("dependencies", []), _first_word)


def _first_word(spec: str) -> str:
    return spec.split(" ", 1)[0].split("[", 1)[0]


_PIP_LISTS: Final = {
    "allReleases": "pip all-releases",
    "indexes": "pip index",
    "findLinks": "pip find-links",
    "noBinary": "pip no-binary",
    "onlyBinary": "pip only-binary",
    "onlyFinal": "pip only-final",
    "switches": "pip option",
    "trustedHosts": "pip trusted host",
}


def _pip(before: Any, after: Any) -> Iterator[Change]:
    old, new = before or {}, after or {}
    for member, part in (("requirements", "requirement"), ("constraints", "constraint")):
        yield from _grouped(part, old.get(member, []), new.get(member, []), _requirement_name)
    for member, part in _PIP_LISTS.items():
        yield from _ordered(part, old.get(member, []), new.get(member, []))
    if old.get("ownIndex", False) != new.get("ownIndex", False):
        yield Change("pip index-url", "added" if new.get("ownIndex") else "removed")
    strategies = old.get("indexStrategy", "pip"), new.get("indexStrategy", "pip")
    if strategies[0] != strategies[1]:
        yield from _value("index strategy")(*strategies)
    yield from _grouped(
        "pip find-links folder",
        old.get("findLinksLocal", []),
        new.get("findLinksLocal", []),
        lambda source: str(source["name"]),
    )


def _requirement_name(requirement: dict[str, Any]) -> str:
    local = requirement.get("local") or {}
    return str(requirement.get("name") or requirement.get("url") or local.get("name") or "a local folder")


def _steps(part: str) -> Callable[[Any, Any], Iterator[Change]]:
    """A reader of steps: build arguments, instructions in order, context files."""

    def read(before: Any, after: Any) -> Iterator[Change]:
        old, new = before or {}, after or {}
        yield from _named("build argument", old.get("args", {}), new.get("args", {}))
        yield from _instructions(part, old.get("instructions", []), new.get("instructions", []))
        yield from _named("context file", _paths(old), _paths(new))

    return read


def _paths(steps: dict[str, Any]) -> dict[str, Any]:
    return {file["path"]: file for file in steps.get("context", [])}


def _instructions(part: str, before: list[Any], after: list[Any]) -> Iterator[Change]:
    """Instructions are compared as the lines of a text are."""
    old, new = [_text(one) for one in before], [_text(one) for one in after]
    if old != new and Counter(old) == Counter(new):
        yield Change(f"{part} order", "changed", before=before, after=after)
        return
    for tag, start, end, begin, stop in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        for place in range(max(end - start, stop - begin)):
            left = before[start + place] if start + place < end else None
            right = after[begin + place] if begin + place < stop else None
            number = str(start + place + 1 if left is not None else begin + place + 1)
            yield Change(part, _kind(left, right), number, left, right)


def _packages(before: Any, after: Any) -> Iterator[Change]:
    """The packages of locks: by name, told by what tells packages apart, else by what channels say."""
    old, new = _records(before), _records(after)
    same = {name for name in old.keys() & new.keys() if _tell_package(old[name]) == _tell_package(new[name])}
    for name in sorted(old.keys() | new.keys()):
        if name in same:
            yield from _named(f"record of {name}", _flat(old[name]), _flat(new[name]))
        else:
            yield from _named("package", _only(old, name), _only(new, name))


def _only(records: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: records[name]} if name in records else {}


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """A record's members, with those of its metadata beside them."""
    plain = {name: value for name, value in record.items() if name != "metadata"}
    return {**plain, **record.get("metadata", {})}


def _records(packages: Any) -> dict[str, Any]:
    return {record["name"]: record for record in packages or []}


_READERS: Final[dict[str, Callable[[Any, Any], Iterator[Change]]]] = {
    "base": _value("base"),
    "platform": _value("platform"),
    "steps": _steps("step"),
    "conda": _conda,
    "channel_priority": _value("channel priority"),
    "as_of": _value("as_of"),
    "pip": _pip,
    "variables": lambda before, after: _named("variable", before or {}, after or {}),
    "steps_after": _steps("step after"),
    "prefix_layout": _value("prefix layout"),
    "virtual_packages": lambda before, after: _named("virtual package", before or {}, after or {}),
    "pyc": _value("pyc"),
    "step_network": _value("step network"),
    "packages": _packages,
    "wheels": lambda before, after: _named("wheel", _records(before), _records(after)),
    "environment": lambda before, after: _named("environment variable", before or {}, after or {}),
}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _shown(value: Any) -> str:
    """A value as a person reads it, cut where it is long."""
    told = next((tell(value) for fits, tell in _TELLERS if fits(value)), None)
    text = (told if told is not None else _text(value)).replace("\n", "\\n")
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _is(*members: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(member in value for member in members)


def _tell_requirement(value: dict[str, Any]) -> str:
    extras = f"[{','.join(value['extras'])}]" if value["extras"] else ""
    place = f" @ {value['url']}" if value["url"] else " from a local source" if value["local"] else ""
    marker = f"; {value['marker']}" if value["marker"] else ""
    hashes = f" with {len(value['hashes'])} hashes" if value["hashes"] else ""
    editable = " (editable)" if value["editable"] else ""
    return f"{value['name']}{extras}{','.join(value['specifiers'])}{place}{marker}{hashes}{editable}".strip()


def _tell_instruction(value: dict[str, Any]) -> str:
    flags = "".join(f"--{flag} " for flag in value["flags"])
    body = json.dumps(value["arguments"]) if value["exec"] else " ".join(value["arguments"])
    texts = "\n".join(["", *(one["content"] for one in value["heredocs"])])
    return f"{value['keyword']} {flags}{body}{texts}"


def _tell_file(value: dict[str, Any]) -> str:
    if value["type"] == "link":
        return f"link to {value['target']}"
    if value["type"] == "folder":
        return "empty folder"
    mode = ", executable" if value["executable"] else ""
    return f"{value['size']} bytes, sha256 {value['sha256'][:12]}{mode}"


def _tell_package(value: dict[str, Any]) -> str:
    told = f", sha256 {value['sha256'][:12]}" if "sha256" in value else ""
    return f"{value['version']} {value['build']}{told}"


_TELLERS: Final[tuple[tuple[Callable[[Any], bool], Callable[[Any], str]], ...]] = (
    (lambda value: value is None, lambda _: "nothing"),
    (lambda value: value == "", lambda _: '""'),
    (_is("specifiers", "extras"), _tell_requirement),
    (_is("keyword", "arguments"), _tell_instruction),
    (_is("type", "path"), _tell_file),
    (_is("name", "version", "build"), _tell_package),
    (_is("name", "version", "file_name"), lambda value: f"{value['version']}, sha256 {value['sha256'][:12]}"),
    (
        lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
        ", ".join,
    ),
    (
        lambda value: isinstance(value, list) and all(_is("keyword")(item) for item in value),
        lambda value: "; ".join(map(_tell_instruction, value)),
    ),
)
