"""Write ``docs/cli.md`` from the help of every command: ``python docs/cli.py``."""  # noqa: INP001

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from envbuild.cli import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET: Final = Path(__file__).with_name("cli.md")
HEAD: Final = """\
# Command line

Written by `python docs/cli.py` from what `--help` prints; a test compares the two.

Standard output carries only the result: for `resolve` and `build` one reference a line, with `--json` one
object a line. Progress, remarks and errors go to standard error: a live display on a terminal, plain lines
elsewhere and where `CI` is set, and with `--json` one object a line, of which those with the member `error`
are errors:

| member | meaning |
|---|---|
| `error` | the kind: `SpecError`, `CacheMiss`, `Unavailable`, `ChannelError`, `SolveError`, ... |
| `message`, `hint` | what was seen and expected, and what to do next (or null) |
| `retryable` | whether the same call may succeed later without any change |
| `exit_code` | what the process exits with |
| `spec` | the definition, where several were given |
| `others` | further mistakes of the same definition, each with `message` and `hint` |

and the others are events:

| `event` | `subject` | `state` | `done`, `total` |
|---|---|---|---|
| `resolve` | the key, or a registry | `start`, `output` | |
| `solve` | the platform, or `pip` | `start`, `done` | `total` dependencies; `done` packages |
| `plan` | `layers` | `done` | layers that are known, of all |
| `plan` | `reused` | `done` | bytes of known layers; bytes of packages that are not fetched |
| `plan` | `packages` | `start` | `total` bytes of packages to fetch |
| `fetch` | a package | `start`, `progress`, `done` | bytes |
| `layer` | a package, or how many | `start`, `progress` | bytes of packages |
| `layer` | the same | `done`, `reused` | bytes of the layer; bytes of packages |
| `push` | a layer, a blob | `progress`, `done` | bytes |
| `step` | an instruction, a script | `start`, `output`, `done`, `reused` | |
| `load`, `output` | an image, a file | `start`, `done` | |

`text` is a line of output or a remark, or empty. `progress` comes at most five times a second for one thing.
New events and members may come: ignore what you do not know.
"""


def render() -> str:
    """The whole document."""
    return "\n".join([HEAD, *_sections(cli, None)])


def _sections(command: click.Command, parent: click.Context | None) -> Iterator[str]:
    name = command.name if parent is not None else "envbuild"
    context = click.Context(command, parent, name, terminal_width=100, max_content_width=100)
    context.help_option_names = ["-h", "--help"]
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            inner = command.get_command(context, each)
            if inner is not None:
                yield from _sections(inner, context)


if __name__ == "__main__":
    TARGET.write_text(render())
