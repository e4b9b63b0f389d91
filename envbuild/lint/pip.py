"""Rules about pip requirements, and about where packages come from."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from envbuild.lint.rule import NOTE, WARNING, by_name, dependencies_of, requirements_of, rule
from envbuild.spec.channel import redact
from envbuild.spec.pip import IndexStrategy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.lint.rule import Seen
    from envbuild.spec.environment import EnvironmentSpec
    from envbuild.spec.pip import PipSection


@rule(
    "EB111",
    "pip-unpinned",
    WARNING,
    "the newest release on the day of the build is taken, also one that an attacker has just uploaded",
    "pin it, as NAME==1.2.3, at best with --hash",
    lock=True,
)
def pip_unpinned(spec: EnvironmentSpec) -> Iterator[Seen]:
    """A pip requirement without a version."""
    held = {one.name for one in spec.pip.constraints} if spec.pip is not None else set()
    for one in requirements_of(spec):
        if not (one.specifiers or one.url or one.local or one.name in held):
            yield f"{one.name} has no version", one.mark


@rule(
    "EB112",
    "pip-open",
    NOTE,
    "a range admits every release in it, and pip takes the newest",
    "pin it with ==, at best with --hash",
    lock=True,
)
def pip_open(spec: EnvironmentSpec) -> Iterator[Seen]:
    """A pip requirement with a range."""
    for one in requirements_of(spec):
        if one.specifiers and not any(re.match(r"===?[^*]*\Z", each) for each in one.specifiers):
            yield f"{one.name}{','.join(one.specifiers)} is a range", one.mark


@rule(
    "EB113",
    "pip-missing",
    WARNING,
    "conda adds a pip of its own choice, and other tools fail",
    "add pip to the dependencies",
)
def pip_missing(spec: EnvironmentSpec) -> Iterator[Seen]:
    """A pip section without pip."""
    if requirements_of(spec) and dependencies_of(spec) and "pip" not in by_name(spec):
        yield "there are pip requirements, and pip is not among the dependencies", None


@rule(
    "EB114",
    "extra-index",
    WARNING,
    "pip takes the highest version of all indexes: whoever registers your package's name "
    "on the public one wins (dependency confusion)",
    "use one --index-url that holds or proxies everything, write `index_strategy: first-index`, "
    "or pin by --hash",
)
def extra_index(spec: EnvironmentSpec) -> Iterator[Seen]:
    """More than one index, all of which count."""
    if spec.pip is None or "--require-hashes" in spec.pip.switches:
        return
    if spec.pip.index_strategy is IndexStrategy.FIRST_INDEX:
        return
    for url in spec.pip.indexes[1 if spec.pip.own_index else 0 :]:
        yield f"{url} is an extra index", None


@rule(
    "EB115",
    "moving-reference",
    WARNING,
    "a branch or a tag can name another commit tomorrow, and the key would not know",
    "name the commit with all its digits, as @0123…, or an archive with its hash",
    lock=True,
)
def moving_reference(spec: EnvironmentSpec) -> Iterator[Seen]:
    """A source under version control without its commit."""
    for one in requirements_of(spec):
        if one.url is not None and not one.hashes and (what := _moving(one.url)) is not None:
            yield f"{one.name or one.url}: {what}", one.mark


_VCS: Final = re.compile(r"(git|hg|svn|bzr)\+")
_COMMIT: Final = {"git": r"[0-9a-f]{40}|[0-9a-f]{64}", "hg": "[0-9a-f]{40}", "svn": "[0-9]+", "bzr": "[0-9]+"}
_BRANCH_ARCHIVE: Final = re.compile(r"/archive/(?:refs/heads/)?(?:main|master|develop|HEAD)\.(?:zip|tar\.gz)")


def _moving(url: str) -> str | None:
    """Why a URL can give something else tomorrow, or None."""
    if (system := _VCS.match(url)) is None:
        found = _BRANCH_ARCHIVE.search(url)
        return f"{found[0].rpartition('/')[2]} is an archive of a branch" if found else None
    path = re.split(r"[#?]", url.partition("://")[2], maxsplit=1)[0]
    _, at, reference = path.rpartition("/")[2].rpartition("@") if "@" in path else ("", "", "")
    if not at and "@" in path:
        reference = path.rpartition("@")[2]  # a branch with a slash in its name
    if not reference:
        return "no commit is named, so the newest is taken"
    if re.fullmatch(_COMMIT[system[1]], reference):
        return None
    return f"{reference!r} is a branch, a tag or a part of a commit"


@rule(
    "EB116",
    "plain-http",
    WARNING,
    "anybody on the way can replace what is fetched over http",
    "use https",
)
def plain_http(spec: EnvironmentSpec) -> Iterator[Seen]:
    """Channels and indexes over plain HTTP."""
    channels = [each.canonical for each in spec.conda.channels] if spec.conda is not None else []
    urls = [*spec.pip.indexes, *spec.pip.find_links] if spec.pip is not None else []
    for url in (*channels, *urls):
        if re.match(r"http://(?!localhost[:/]|127\.|\[::1\])", url):
            yield f"{url} is fetched over plain HTTP", None


@rule(
    "EB131",
    "credentials",
    WARNING,
    "whoever reads the definition reads the password; the key and the image do not hold it",
    "take it out and log in to the host instead (netrc, keyring or the client's own login), then replace it",
)
def credentials(spec: EnvironmentSpec) -> Iterator[Seen]:
    """Credentials in URLs of channels, packages, indexes and requirements."""
    if spec.conda is not None:
        for channel in spec.conda.channels:
            if channel.alias_name is None and channel.private and _has_secret(channel.private):
                yield f"the channel {channel.canonical} is written with credentials", None
    for one in dependencies_of(spec):
        written = one.channel is not None and one.channel.alias_name is None
        places = (one.private_url, one.channel.private if one.channel is not None and written else None)
        if any(place and _has_secret(place) for place in places):
            yield f"{one.name} is written with credentials in its URL", one.mark
    yield from _pip_credentials(spec.pip)


def _pip_credentials(pip: PipSection | None) -> Iterator[Seen]:
    if pip is None:
        return
    for public, url in zip(
        (*pip.indexes, *pip.find_links), (*pip.fetch_indexes, *pip.fetch_links), strict=True
    ):
        if _has_secret(url):
            yield f"{public} is written with credentials", None
    for one in (*pip.requirements, *pip.constraints):
        if one.fetch_url and _has_secret(one.fetch_url):
            yield f"{one.name or one.url} is written with credentials in its URL", one.mark


def _has_secret(url: str) -> bool:
    """Whether a URL has a user or token other than a variable or the user ``git``."""
    bare = re.sub(r"://(?:git|[^/@:$]*:\$\{\w+\}|\$\{\w+\}(?::\$\{\w+\})?)@", "://", url)
    bare = re.sub(r"/t/\$\{\w+\}(?=/)", "", bare)
    return redact(bare) != bare
