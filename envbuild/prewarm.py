"""Many definitions at once: each is resolved, and one that fails does not stop the rest."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from envbuild.errors import EnvbuildError, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor

    from envbuild.resolver import ResolvedImage

_SUFFIXES: Final = {".yml", ".yaml"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one definition: an image, or an error.

    Attributes:
        source: The definition's file.
        image: Its image, or None.
        error: Why there is none, or None.
    """

    source: str
    image: ResolvedImage | None
    error: EnvbuildError | None


def definitions(places: Iterable[str]) -> tuple[str, ...]:
    """The definition files that some files and folders stand for, in order, each once.

    A folder stands for every YAML file under it, apart from hidden ones.

    Raises:
        SpecError: A place does not exist, or a folder holds no YAML file.
    """
    found: dict[str, None] = {}
    for place in places:
        path = Path(place)
        if place != "-" and not path.exists():
            raise SpecError(f"{place} does not exist", hint="give definition files, or folders of them")
        files = _yaml_files(path) if path.is_dir() else [place]
        if not files:
            raise SpecError(f"the folder {place} holds no .yml or .yaml file")
        found.update(dict.fromkeys(files))
    return tuple(found)


def _yaml_files(folder: Path) -> list[str]:
    return [
        str(path)
        for path in sorted(folder.rglob("*"))
        if path.suffix in _SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def prewarm(
    sources: Iterable[str],
    resolve: Callable[[str], ResolvedImage],
    *,
    jobs: int,
    executor: Executor | None = None,
) -> Iterator[Outcome]:
    """Resolve definitions, at most ``jobs`` at once, and say of each what became of it, as they end.

    Args:
        sources: Definition files.
        resolve: Resolves one of them.
        jobs: How many are under way at once.
        executor: Runs them; a pool of threads if None.
    """

    def attempt(source: str) -> Outcome:
        try:
            return Outcome(source, resolve(source), None)
        except EnvbuildError as error:
            return Outcome(source, None, error)

    own = ThreadPoolExecutor(jobs, thread_name_prefix="prewarm") if executor is None else None
    pool = executor or own
    assert pool is not None  # noqa: S101 - one of the two is there
    try:
        for future in as_completed([pool.submit(attempt, source) for source in sources]):
            yield future.result()
    finally:
        if own is not None:
            own.shutdown(wait=True, cancel_futures=True)
