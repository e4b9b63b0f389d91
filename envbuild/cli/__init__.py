"""The command line: parse, one call, print. The only place that prints or exits."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import signal
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO

import click

from envbuild.deadline import end_all, is_cleaning_up
from envbuild.errors import EnvbuildError, SpecError, StorageError, counted, plain
from envbuild.storage import local_error, remove_unfinished

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

INTERRUPTED: Final = 130
TERMINATED: Final = 143
_BROKEN_PIPE: Final = 141
_MOST_MISTAKES: Final = 20
_GRACE_SECONDS: Final = 0.8
_CLEANING_SECONDS: Final = 5.0
_AFTER_SECONDS: Final = 0.2
_AGAIN_SECONDS: Final = 0.005

_COMMANDS: Final = {
    "resolve": (
        "envbuild.cli.resolve",
        "Answer with the digest-pinned reference of each definition's image.",
    ),
    "key": ("envbuild.cli.key", "Print the key of each definition."),
    "build": ("envbuild.cli.resolve", "Build an image without asking whether it is there."),
    "lint": ("envbuild.cli.lint", "Point out what is likely to hurt in a definition."),
    "lock": ("envbuild.cli.lock", "Solve a definition once and write down what came out."),
    "diff": ("envbuild.cli.diff", "Say which inputs differ between two definitions, locks or images."),
    "run": ("envbuild.cli.run", "Run a command in a definition's image."),
    "inspect": ("envbuild.cli.inspect", "Show what an image is made of."),
    "prewarm": ("envbuild.cli.prewarm", "Resolve many definitions at once."),
    "rebase": ("envbuild.cli.rebase", "Put environments on another base, building nothing."),
    "verify": ("envbuild.cli.verify", "Check that an image is what it says it is."),
    "promote": ("envbuild.cli.promote", "Copy an image to another repository, digest unchanged."),
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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the commands are {', '.join(_COMMANDS)}"
            raise click.UsageError(f"there is no command {args[0]!r}: {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(
    cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="envbuild")
def cli() -> None:
    """A content-addressed builder and cache of environment images.

    Settings come from your own ~/.config/envbuild/config.toml, from envbuild.toml or
    [tool.envbuild] in pyproject.toml, from variables as ENVBUILD_WORKSPACE, and from options;
    later ones win. What decides whom to trust is not a project's to set.

    Exit codes: 0 done; 1 the disk or the cache failed, or what diff and lock --check compare differs;
    2 usage or bad definition; 3 miss under --no-build; 4 registry or channel unavailable or unauthorised;
    5 no solution; 6 build failed; 7 integrity refused; 8 deadline passed; 130 interrupted;
    143 terminated.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code.

    The first SIGINT or SIGTERM ends the call and cleans up; a second one, or threads that do not end within
    a grace, end the process at once, which is safe: what was being written has no name yet.
    """
    stopping: list[int] = []

    def stop(number: int, _frame: object) -> None:
        code = INTERRUPTED if number == signal.SIGINT else TERMINATED
        if stopping:
            os._exit(code)
        stopping.append(code)
        end_all()
        sys.unraisablehook = _insist
        grace = threading.Timer(_GRACE_SECONDS, _give_up, (code,))
        grace.daemon = True
        grace.start()
        raise KeyboardInterrupt

    _on_signals(stop)
    code = 0
    with contextlib.suppress(KeyboardInterrupt):  # one that comes after the answer
        code = exit_code_of(arguments)
        if not stopping:
            _on_signals(lambda number, _: os._exit(128 + number))
    _leave(stopping[0] if stopping else code)


def _give_up(code: int) -> NoReturn:
    """End the process although some thread has not noticed the interrupt, as one that waits for a server."""
    until = time.monotonic() + _CLEANING_SECONDS
    while is_cleaning_up() and time.monotonic() < until:
        time.sleep(_AFTER_SECONDS)
    remove_unfinished()
    os._exit(code)


def _on_signals(handler: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _insist(swallowed: sys.UnraisableHookArgs) -> None:
    """Raise an interrupt again that came while Python ran a callback which cannot pass it on."""
    if not isinstance(swallowed.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(swallowed)
        return
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)


def _leave(code: int) -> NoReturn:
    """Exit; where the solver ran, without taking Python apart.

    The solver's own threads may hold the interpreter for a moment longer than its answer takes, and Python
    aborts where it finds them so at its end. Nothing is left to be done then but to wait for the threads of
    pools, which an interrupt may have left at their work, and what ``atexit`` knows.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001 - as Python does it
    _on_signals(signal.SIG_IGN)  # Python gives signals back to the system at its end
    if "rattler" not in sys.modules:
        sys.exit(code)
    atexit._run_exitfuncs()  # noqa: SLF001 - what is registered must run, as temporary folders are
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code)


def exit_code_of(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and say how it ended.

    Args:
        arguments: What follows the program's name; those of the process if None.

    Returns:
        The process exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    warnings.showwarning = functools.partial(_warn, as_json=as_json)
    try:
        return _answered(words, as_json=as_json)
    except BrokenPipeError:  # nobody reads what is printed, be it the answer or how far it is
        _discard(sys.stdout)
        _discard(sys.stderr)
        return _BROKEN_PIPE
    except OSError as error:
        typed = _unprinted(error) if _in_printing(error) else local_error(error)
        report(typed, as_json=as_json)
        return typed.exit_code


def _warn(message: Warning | str, *_: object, as_json: bool, **__: object) -> None:
    """Tell a person, or a program, of a warning."""
    text = json.dumps({"event": "warning", "text": str(message)}) if as_json else f"warning: {message}"
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def _answered(words: list[str], *, as_json: bool) -> int:
    try:
        outcome = _invoke(words)
        sys.stdout.flush()
    except EnvbuildError as error:
        report(error, as_json=as_json)
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        _report_usage(error, as_json=as_json)
        return 2
    except (KeyboardInterrupt, click.Abort):
        if as_json:
            click.echo(json.dumps({"error": "Interrupted", "exit_code": INTERRUPTED}), err=True)
        else:
            click.echo("interrupted", err=True)
        return INTERRUPTED
    return outcome if isinstance(outcome, int) else 0


def _in_printing(error: OSError) -> bool:
    """Whether it was raised where something is printed."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = trace.tb_frame.f_globals.get("__name__") if trace is not None else None
    return where in {__name__, click.echo.__module__}


def _unprinted(error: OSError) -> StorageError:
    _discard(sys.stdout)
    return StorageError(
        f"standard output cannot be written: {error.strerror}", hint="send it to a place that takes it"
    )


def _discard(stream: TextIO) -> None:
    """Nobody takes what is printed; what Python flushes at its end must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _invoke(words: list[str]) -> Any:
    """Call the command itself: ``cli.main`` would exit by itself where a pipe is broken."""
    if "_ENVBUILD_COMPLETE" in os.environ:
        return cli.main(words, prog_name="envbuild", standalone_mode=False)
    with cli.make_context("envbuild", words) as context:
        return cli.invoke(context)


def _report_usage(error: click.ClickException, *, as_json: bool) -> None:
    if not as_json:
        error.show()
        return
    document = {"error": "UsageError", "message": error.format_message(), "hint": None, "retryable": False}
    click.echo(json.dumps(document | {"exit_code": 2}, ensure_ascii=False), err=True)


def report(error: EnvbuildError, *, as_json: bool, subject: str | None = None) -> None:
    """Tell a person, or a program, what went wrong; on standard error, where it takes that."""
    lines: Iterable[str] = (
        [json.dumps(describe(error, subject), ensure_ascii=False)] if as_json else _lines(error, subject)
    )
    with contextlib.suppress(OSError):
        for line in lines:
            click.echo(plain(line), err=True)


def _lines(error: EnvbuildError, subject: str | None) -> Iterator[str]:
    mistakes = (error, *error.others) if isinstance(error, SpecError) else (error,)
    for each in mistakes[:_MOST_MISTAKES]:
        first, _, _ = str(each).partition("\n")
        prefix = f"{subject}: " if subject and subject not in first else ""
        yield f"error: {prefix}{each}"
        if each.hint:
            yield f"hint: {each.hint}"
    if (more := len(mistakes) - _MOST_MISTAKES) > 0:
        yield f"and {counted(more, 'more mistake')}"


def describe(error: EnvbuildError, subject: str | None = None) -> dict[str, object]:
    """An error as a JSON object."""
    document: dict[str, object] = {"spec": subject} if subject else {}
    if isinstance(error, SpecError) and error.others:
        document["others"] = [
            {"message": str(other), "hint": other.hint} for other in error.others[:_MOST_MISTAKES]
        ]
    return document | {
        "error": next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "envbuild.errors"),
        "message": str(error),
        "hint": error.hint,
        "retryable": error.retryable,
        "exit_code": error.exit_code,
    }
