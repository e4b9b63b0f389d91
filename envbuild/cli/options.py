"""The options that several commands share, and what becomes of them."""

from __future__ import annotations

import datetime as dt
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from envbuild.config import Config
from envbuild.foreign import load
from envbuild.lockfile import LockPolicy
from envbuild.platform import Platform
from envbuild.spec.forms import FORMS

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuild.spec.environment import EnvironmentSpec


class Option(click.Option):
    """An option that stands in a section of the help."""

    def __init__(self, *names: Any, section: str = "Options", **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self.section = section


class Command(click.Command):
    """A command whose help shows the options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section, in the order in which they were declared."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _group(section: str, *options: tuple[tuple[str, ...], dict[str, Any]]) -> tuple[Any, ...]:
    return tuple(
        click.option(*names, cls=Option, section=section, **attributes) for names, attributes in options
    )


def _of(*names: str, **attributes: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return names, attributes


_FORM: Final = {
    "metavar": "FORM",
    "type": click.Choice(FORMS),
    "help": f"What the file is, where its name and content do not say so: {', '.join(FORMS)}.",
}
_GLIBC: Final = _of(
    "--glibc", metavar="VERSION", help="Choose packages for this glibc instead of the one found in the base."
)
_LAID_OVER: Final = _group(
    "Laid over the definition",
    _of(
        "--base",
        metavar="IMAGE",
        help="The base image: a reference, oci:PATH[:TAG], docker-daemon:NAME[:TAG] or scratch.",
    ),
    _of("--steps", metavar="FILE", type=click.Path(path_type=Path), help="Docker steps to run on the base."),
    _of(
        "--platform",
        metavar="PLATFORM",
        multiple=True,
        help="The platform, as linux/amd64; given again, an image for each and an index over them.",
    ),
    _of(
        "--as-of", metavar="DATE", help="Ignore packages newer than this, as 2026-11-01 or an RFC 3339 time."
    ),
    _of("--channel-alias", metavar="URL", help="The URL under which channel names stand."),
    _GLIBC,
    _of("--cuda", metavar="VERSION", help="Choose packages for machines with this CUDA version, as 12.4."),
    _of(
        "--cuda-arch",
        metavar="VERSION",
        help="Choose packages for machines whose devices have this compute capability, as 8.6.",
    ),
    _of(
        "--archspec",
        metavar="NAME",
        help="Choose packages for machines with this microarchitecture, as x86_64_v3.",
    ),
    _of("--confine/--no-confine", default=None, help="Read no file outside of the definition's folder."),
    _of("--pyc/--no-pyc", default=None, help="Compile the modules of noarch packages into their layers."),
)
DEFINITION: Final = (*_LAID_OVER, *_group("Laid over the definition", _of("--format", "form", **_FORM)))
DEFINITION_TO_LOCK: Final = (
    *_LAID_OVER,
    *_group("Laid over the definition", _of("--input-format", "form_of_input", **_FORM)),
)
"""The same for ``lock``, whose ``--format`` is what it writes."""
REBASE: Final = _group("Options", _GLIBC)
LOOKUP: Final = _group(
    "Where images are",
    _of(
        "--workspace",
        metavar="REPOSITORY",
        help="Where images are looked up first and pushed: HOST/NAME, or oci:FOLDER for a layout on disk.",
    ),
    _of("--global", "global_", metavar="REPOSITORY", help="A second repository to look in."),
    _of("--promote/--no-promote", default=None, help="Copy a hit in the global repository to the workspace."),
    _of(
        "--on-unavailable",
        type=click.Choice(["fail", "build"]),
        help="What to do where a registry cannot be asked; fail if not given.",
    ),
    _of("--index-ttl", metavar="SECONDS", help="How long the local index is trusted; or as 10m."),
    _of("--deep/--no-deep", default=None, help="Use an image only where all its blobs are there."),
)
BUILD: Final = _group(
    "How images are built",
    _of("--builder", type=click.Choice(["auto", "layers", "docker"]), help="How to build; auto chooses."),
    _of("--compression", type=click.Choice(["gzip", "zstd"]), help="How new layers are compressed."),
    _of(
        "--max-layers", metavar="N", type=int, help="The most layers an image may have, its base's included."
    ),
    _of("--docker-host", metavar="URL", help="The Docker Engine's address, for Docker steps."),
    _of("--buildx", metavar="NAME", help="The buildx builder that runs Docker steps, not an engine."),
    _of("--jobs", metavar="N", type=int, help="How many things to do at once."),
)
LOCKS: Final = _group(
    "Locks",
    _of("--lock", metavar="FILE", type=click.Path(path_type=Path), help="The lock; envbuild.lock beside it."),
    _of("--locked", is_flag=True, help="Fail where there is no lock, or a stale one."),
    _of("--no-lock", is_flag=True, help="Look at no lock."),
)
ENGINE: Final = tuple(_group("Options", _of("--docker-host", metavar="URL", help="The engine's address.")))
CACHE: Final = _group("Options", _of("--cache-dir", metavar="FOLDER", help="The folder of the local index."))
GENERAL: Final = _group(
    "Options",
    _of(
        "--insecure",
        metavar="HOST",
        multiple=True,
        help="Speak plain HTTP to this registry host; may be given again. Loopback hosts need no such leave.",
    ),
    _of("--timeout", metavar="SECONDS", help="When to give up; or as 10m."),
    _of("--json", "as_json", is_flag=True, help="Print JSON, one object a line; also errors and progress."),
    _of("--quiet", is_flag=True, help="Show no progress."),
)


@dataclass(frozen=True, slots=True)
class Common:
    """What the shared options say.

    Attributes:
        config: The settings that hold.
        overrides: What is laid over each definition: base, steps, platforms, as_of, form.
        as_json: Whether to print JSON.
        quiet: Whether to show no progress.
        locks: Which locks are used.
    """

    config: Config
    overrides: dict[str, Any]
    as_json: bool
    quiet: bool
    locks: LockPolicy = field(default_factory=LockPolicy)

    def load(self, source: str) -> EnvironmentSpec:
        """Read a definition and lay the options over it."""
        return load(source, **self.overrides, **self.config.reading)


def common(*groups: tuple[Any, ...]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command groups of shared options; it receives them as one ``Common``."""
    shared = [option for group in (*groups, CACHE, GENERAL) for option in group]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(**values: Any) -> Any:
            return command(options=_take(values, names), **values)

        decorated = functools.reduce(lambda inner, option: option(inner), reversed(shared), wrapper)
        params = getattr(decorated, "__click_params__", [])
        names = {param.name for param in params if isinstance(param, Option)}
        return decorated

    return decorate


def _take(values: dict[str, Any], names: set[str]) -> Common:
    """Take the shared options out of a command's arguments."""
    given = {name: values.pop(name) for name in names if name in values}
    platforms = tuple(Platform.parse(each) for each in given.pop("platform", ()))
    overrides = {name: given.pop(name, None) for name in ("base", "steps", "as_of")}
    overrides["platforms"] = platforms or None
    overrides["form"] = given.pop("form", None) or given.pop("form_of_input", None)
    as_json, quiet = given.pop("as_json"), given.pop("quiet")
    given["insecure"] = given["insecure"] or None
    locks = LockPolicy(given.pop("lock", None), given.pop("locked", False), given.pop("no_lock", False))
    return Common(Config.load(**given), overrides, as_json, quiet, locks)


def moment(seconds: float) -> str:
    """Seconds since the epoch as a person reads them, in UTC."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def amount(size: float) -> str:
    """A number of bytes as a person reads it."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
