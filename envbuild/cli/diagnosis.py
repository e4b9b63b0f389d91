"""What ``envbuild doctor`` says of registries: whether they answer, how they are asked, what is trusted."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from envbuild.deadline import Deadline
from envbuild.digest import Digest
from envbuild.errors import EnvbuildError, NotFound, SpecError
from envbuild.oci.registries import Registries
from envbuild.reference import Tag
from envbuild.spec.fields import reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from envbuild.config import Config
    from envbuild.reference import Repository

ANSWER_SECONDS: Final = 10.0
_PATIENCE: Final = 3.0
"""Seconds for which a registry that does not answer is asked again: who looks at it wants to know."""
_NOTHING: Final = Digest("0" * 64)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What it is.
        state: ``ok``, ``missing`` (envbuild works without it) or ``broken``.
        seen: What was seen.
        hint: What to do, or None.
        exit_code: What the command exits with if it is broken.
    """

    name: str
    state: str
    seen: str
    hint: str | None = None
    exit_code: int = 0


def attempt(name: str, look: Callable[[], str]) -> Check:
    """What was seen, or the error as a check that failed."""
    try:
        return Check(name, "ok", look())
    except EnvbuildError as error:
        return Check(name, "broken", str(error), error.hint, error.exit_code)


def registries(config: Config) -> Iterator[Check]:
    """The checks of the workspace, of the global repository and of the way to them."""
    yield from _repository("workspace", config.workspace, config)
    if config.global_ is None:
        yield Check("global", "missing", "none is configured")
    else:
        yield from _repository("global", config.global_, config)
    yield _proxies(config)
    yield attempt("authorities", _authorities)
    yield from _mirrors(config)
    yield from _trust(config)


def _repository(name: str, repository: Repository, config: Config) -> Iterator[Check]:
    found = attempt(name, lambda: _answers(repository, config))
    yield found
    if repository.is_layout:
        return
    yield _credentials(f"{name} login", repository)
    if found.state == "ok":
        yield _referrers(f"{name} attached", repository, config)


def _answers(repository: Repository, config: Config) -> str:
    """Whether a repository answers: that it has no such tag is the answer hoped for."""
    opened = Registries(config.insecure, patience=_PATIENCE)
    try:
        opened.probe(repository, Tag("envbuild-doctor"), Deadline.after(ANSWER_SECONDS))
    except NotFound:
        pass
    finally:
        opened.close()
    return f"{repository} answers"


def _credentials(name: str, repository: Repository) -> Check:
    from envbuild.oci.credentials import Keychain

    try:
        found = Keychain().located(repository)
    except EnvbuildError as error:
        return Check(name, "broken", str(error), error.hint, error.exit_code)
    if found is None:
        hint = f"if it asks for a login: docker login {repository.host}"
        return Check(
            name, "missing", f"nobody keeps one for {repository.host}: it is asked anonymously", hint
        )
    return Check(name, "ok", f"from {found[1]}")


def _referrers(name: str, repository: Repository, config: Config) -> Check:
    """Where what is attached to images goes; no answer to this is no fault."""
    opened = Registries(config.insecure, patience=_PATIENCE)
    try:
        registry = opened.open(repository).by(Deadline.after(ANSWER_SECONDS))
        listed = registry.referrers(_NOTHING)
        # Of a repository that is not there some servers say what those without the API say.
        is_there = listed is not None or next(iter(registry.tags()), None) is not None
    except EnvbuildError as error:
        return Check(name, "missing", f"whether there is the referrers API is not known: {error}")
    finally:
        opened.close()
    if not is_there:
        return Check(name, "missing", "whether there is the referrers API shows when something was pushed")
    if listed is None:
        return Check(name, "ok", "no referrers API: what is attached is listed under tags sha256-…")
    return Check(name, "ok", "listed by the referrers API")


def _proxies(config: Config) -> Check:
    from envbuild.oci.open import Settings
    from envbuild.oci.proxies import proxy_for

    settings, ways = Settings(insecure_hosts=config.insecure), []
    for host in _hosts(config):
        proxy = proxy_for(settings.base_url(host))
        ways.append(f"{host} through {proxy}" if proxy else f"{host} directly")
    if not any(" through " in way for way in ways):
        return Check("proxy", "missing", f"none is used{': ' if ways else ''}{', '.join(ways)}")
    return Check("proxy", "ok", ", ".join(ways))


def _authorities() -> str:
    """Whose certificates are trusted: of channels and indexes, too, so also where no registry is asked."""
    from envbuild.oci.client import tls_context
    from envbuild.oci.transport import BUNDLES

    tls_context()
    named = [f"{name}={os.environ[name]}" for name in BUNDLES if os.environ.get(name)]
    return f"those of {' and '.join(named)}" if named else "the usual ones"


def _hosts(config: Config) -> list[str]:
    """The servers that are asked, each once."""
    named = [each for each in (config.workspace, config.global_) if each is not None and not each.is_layout]
    places = [
        place.partition("/")[0]
        for repository in named
        for place in config.registries.get(repository.host, ())
    ]
    return list(dict.fromkeys([*(each.host for each in named), *places]))


def _mirrors(config: Config) -> Iterator[Check]:
    if not config.registries:
        yield Check("mirrors", "missing", "none are configured")
    for host, places in sorted(config.registries.items()):
        yield Check("mirrors", "ok", f"{host} is read from {', '.join(places)}, then from itself")


def _trust(config: Config) -> Iterator[Check]:
    """Which rule holds for which repository, and which rules hold for none that is configured."""
    if config.trust is None:
        yield Check("trust", "missing", "no policy: images are used without a signature")
        return
    used = set()
    for name, repository in _judged(config).items():
        scope, rule = config.trust.chosen(repository)
        used.add(scope)
        asked = f"must be signed, else a {rule.on_failure}" if rule.require_signed else "need no signature"
        whose = f"the rule {scope!r}" if scope is not None else "no rule of its own"
        yield Check(f"trust {name}", "ok", f"images of {repository} {asked} ({whose})")
    for scope in config.trust.scopes:
        if scope not in used:
            yield Check(
                "trust rule",
                "missing",
                f"{scope!r} is about none of the repositories that are configured",
                "compare it with the names above; what a mirror gives goes by the rule of what it mirrors",
            )


def _judged(config: Config) -> dict[str, Repository]:
    """The repositories whose images, layers and bases are judged; what a mirror gives goes by its origin."""
    from envbuild.build.known import layers_repository

    named = {"workspace": config.workspace, "global": config.global_}
    found: dict[str, Repository] = {}
    for name, repository in named.items():
        if repository is not None:
            found |= {name: repository, f"{name} layers": layers_repository(repository)}
    with contextlib.suppress(SpecError):  # which is told where the base is used
        base = reference(config.base, Path.cwd(), None) if config.base is not None else None
        if base is not None and not base.repository.is_engine:
            found["base"] = base.repository
    return found
