"""The command line: parse, one call, print. The only place that prints or exits."""

from __future__ import annotations

import importlib
import json
import sys
from typing import TYPE_CHECKING, Final

import click

from envbuild.errors import EnvbuildError

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMANDS: Final = {
    "resolve": (
        "envbuild.cli.resolve",
        "Answer with the digest-pinned reference of each definition's image.",
    ),
    "key": ("envbuild.cli.key", "Print the key of each definition."),
    "build": ("envbuild.cli.resolve", "Build an image without asking whether it is there."),
    "inspect": ("envbuild.cli.inspect", "Show what an image is made of."),
    "prewarm": ("envbuild.cli.prewarm", "Resolve many definitions at once."),
    "cache": ("envbuild.cli.cache", "Look at the local index, or clear it."),
    "doctor": ("envbuild.cli.doctor", "Check what envbuild needs on this machine."),
}


class _LazyGroup(click.Group):
    """A group that imports a command's module when the command is called: the hit path stays thin."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(_COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)  # noqa: S101 - the table above names commands
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="envbuild")
def cli() -> None:
    """A content-addressed builder and cache of environment images."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name; those of the process if None.

    Returns:
        The process exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        outcome = cli.main(words, prog_name="envbuild", standalone_mode=False)
    except EnvbuildError as error:
        report(error, as_json="--json" in words)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    return outcome if isinstance(outcome, int) else 0


def report(error: EnvbuildError, *, as_json: bool, subject: str | None = None) -> None:
    """Tell a person, or a program, what went wrong; on standard error."""
    if as_json:
        click.echo(json.dumps(describe(error, subject), ensure_ascii=False), err=True)
        return
    prefix = f"{subject}: " if subject and subject not in str(error) else ""
    click.echo(f"error: {prefix}{error}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


def describe(error: EnvbuildError, subject: str | None = None) -> dict[str, object]:
    """An error as a JSON object."""
    document: dict[str, object] = {"spec": subject} if subject else {}
    return document | {
        "error": type(error).__name__,
        "message": str(error),
        "hint": error.hint,
        "retryable": error.retryable,
        "exit_code": error.exit_code,
    }
