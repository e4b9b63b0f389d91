"""``conda-lock.yml`` of version 1, and what pixi wrote like it up to version 3.

It is read here, not by rattler, which refuses a part of what conda-lock itself writes (dependencies whose
version YAML takes for a number). What is read of a package is its URL and its digest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from envbuild.errors import SpecError, counted
from envbuild.foreign.solved import at_url, section
from envbuild.spec.document import Mark, fail
from envbuild.spec.files import check_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.platform import Platform
    from envbuild.spec.conda import CondaSection
    from envbuild.spec.match import MatchSpec

_VERSIONS: Final = {"1", "2", "3"}
_INSTALLED: Final = {"main", "dev"}
"""The categories that ``conda-lock install`` installs where nothing else is asked for."""
_MAX_DEPTH: Final = 16
_LOOK: Final = 10_000
"""After how many values the deadline is looked at."""
_MAX_VALUES: Final = 5_000_000
_HINT: Final = "write it again with `conda-lock`"
_SOLVED: Final = "name the definition that it was made from"


class _Block(NamedTuple):
    """A mapping, and the line that it starts in."""

    line: int
    members: dict[str, Any]


def read(content: bytes, source: str, wanted: Platform | None) -> tuple[CondaSection, Platform]:
    """The packages of a lock for a platform; None is ``linux/amd64``, or the one Linux that it is for.

    Raises:
        SpecError: It is no such lock, or not for the platform, or holds Python distributions.
    """
    from envbuild.conda.locks import solved_platform

    root = _Reader(source).read(content)
    members = root.members if isinstance(root, _Block) else {}
    if (version := members.get("version")) not in _VERSIONS:
        raise SpecError(f"the lock cannot be read: its version is {version!r:.40}, expected 1", source=source)
    metadata, packages = members.get("metadata"), members.get("package")
    if not isinstance(metadata, _Block) or not isinstance(packages, list):
        raise SpecError("the lock cannot be read: expected `metadata` and a list `package`", source=source)
    blocks = [each for each in packages if isinstance(each, _Block)]
    listed = metadata.members.get("platforms")
    subdirs = {each.members.get("platform") for each in blocks} | set(_texts(listed))
    platform = solved_platform({each for each in subdirs if isinstance(each, str)}, wanted, source)
    own = [each for each in blocks if each.members.get("platform") == platform.subdir and _is_installed(each)]
    if others := [each for each in own if each.members.get("manager") != "conda"]:
        raise SpecError(
            f"the lock has {counted(len(others), 'package')} from Python indexes, as "
            f"{others[0].members.get('name')}: only Conda's are read",
            source=source,
            line=others[0].line,
            column=1,
            hint=_SOLVED,
        )
    return section(_spec(each, source) for each in own), platform


def _is_installed(package: _Block) -> bool:
    return package.members.get("category", "main") in _INSTALLED


def _texts(value: Any) -> list[str]:
    """The texts of a list; earlier versions list platforms as the names of members."""
    if isinstance(value, _Block):
        return list(value.members)
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []


def _spec(package: _Block, source: str) -> MatchSpec:
    digests = package.members.get("hash")
    known = digests.members if isinstance(digests, _Block) else {}
    kind = "sha256" if known.get("sha256") else "md5"
    mark = Mark(source, package.line, 1)
    return at_url(str(package.members.get("url")), kind, str(known.get(kind)), mark, _HINT)


class _Reader:
    """Builds texts, lists and blocks of YAML's events, without recursion; aliases are refused."""

    def __init__(self, source: str) -> None:
        self._source = source

    def read(self, content: bytes) -> Any:
        import yaml

        parser: Any
        try:
            from yaml.cyaml import CParser  # type: ignore[attr-defined]
        except ImportError:  # PyYAML without libyaml
            parser = yaml.BaseLoader(content)
        else:
            parser = CParser(content)
        try:
            return self._root(parser)
        except yaml.MarkedYAMLError as error:
            place = error.problem_mark or error.context_mark
            mark = Mark(self._source, place.line + 1, place.column + 1) if place else None
            fail(mark, f"the lock cannot be read: {error.problem or error.context}", _HINT)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SpecError(f"the lock cannot be read: {error}", source=self._source) from None
        finally:
            parser.dispose()

    def _root(self, parser: Any) -> Any:
        import yaml

        top: list[Any] = []
        stack: list[tuple[list[Any], int]] = []
        children = top
        for count in range(_MAX_VALUES):
            if count % _LOOK == 0:
                check_time(f"reading {self._source}")
            event = parser.get_event()
            if isinstance(event, yaml.ScalarEvent):
                children.append(event.value)
            elif isinstance(event, yaml.AliasEvent):
                fail(self._mark(event), "the lock cannot be read: an alias stands here", _HINT)
            elif isinstance(event, yaml.CollectionStartEvent):
                stack.append((children, self._mark(event).line))
                children = []
                if len(stack) > _MAX_DEPTH:
                    fail(self._mark(event), "the lock cannot be read: it is nested too deep", _HINT)
            elif isinstance(event, yaml.CollectionEndEvent):
                closed, (children, line) = children, stack.pop()
                children.append(
                    _Block(line, dict(_pairs(closed))) if isinstance(event, yaml.MappingEndEvent) else closed
                )
            elif event is None or isinstance(event, (yaml.DocumentEndEvent, yaml.StreamEndEvent)):
                return top[0] if top else None
        raise SpecError(f"the lock has more than {_MAX_VALUES} values", source=self._source)

    def _mark(self, event: Any) -> Mark:
        return Mark(self._source, event.start_mark.line + 1, event.start_mark.column + 1)


def _pairs(children: list[Any]) -> Iterator[tuple[str, Any]]:
    for name, value in zip(children[::2], children[1::2], strict=True):
        yield str(name), value
