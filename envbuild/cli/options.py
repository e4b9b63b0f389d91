"""The options that several commands share, and what becomes of them."""

from __future__ import annotations

import datetime as dt
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from envbuild.config import Config
from envbuild.platform import Platform
from envbuild.spec.environment import load

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuild.spec.environment import EnvironmentSpec

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--base", metavar="IMAGE", help="The base image: a reference, oci:PATH[:TAG] or scratch."),
    click.option(
        "--steps", metavar="FILE", type=click.Path(path_type=Path), help="Docker steps to run on the base."
    ),
    click.option("--platform", metavar="PLATFORM", help="The platform, as linux/amd64."),
    click.option(
        "--as-of", metavar="DATE", help="Ignore packages newer than this, as 2026-11-01 or an RFC 3339 time."
    ),
    click.option("--workspace", metavar="REPOSITORY", help="Where images are looked up first and pushed."),
    click.option("--global", "global_", metavar="REPOSITORY", help="A second repository to look in."),
    click.option(
        "--builder", type=click.Choice(["auto", "layers", "docker", "buildx"]), help="How to build."
    ),
    click.option("--channel-alias", metavar="URL", help="The URL under which channel names stand."),
    click.option("--index-ttl", metavar="SECONDS", type=float, help="How long the local index is trusted."),
    click.option("--cache-dir", metavar="FOLDER", help="The folder of the local index."),
    click.option("--jobs", metavar="N", type=int, help="How many things to do at once."),
    click.option("--timeout", metavar="SECONDS", type=float, help="When to give up."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    click.option("--quiet", is_flag=True, help="Show no progress."),
)
_SETTINGS = ("workspace", "global_", "builder", "channel_alias", "index_ttl", "cache_dir", "jobs", "timeout")


@dataclass(frozen=True, slots=True)
class Common:
    """What the shared options say.

    Attributes:
        config: The settings that hold.
        overrides: What is laid over each definition: base, steps, platforms, as_of.
        as_json: Whether to print JSON.
        quiet: Whether to show no progress.
    """

    config: Config
    overrides: dict[str, Any]
    as_json: bool
    quiet: bool

    def load(self, source: str) -> EnvironmentSpec:
        """Read a definition and lay the options over it."""
        return load(source, **self.overrides)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the shared options; it receives them as one ``Common``."""

    @functools.wraps(command)
    def wrapper(**values: Any) -> Any:
        settings = {name: values.pop(name) for name in _SETTINGS}
        platform = values.pop("platform")
        overrides = {
            "base": values.pop("base"),
            "steps": values.pop("steps"),
            "as_of": values.pop("as_of"),
            "platforms": (Platform.parse(platform),) if platform else None,
        }
        options = Common(Config.load(**settings), overrides, values.pop("as_json"), values.pop("quiet"))
        return command(options=options, **values)

    for option in reversed(_OPTIONS):
        wrapper = option(wrapper)
    return wrapper


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
