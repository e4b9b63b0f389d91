"""The process's entry: ``python -m envbuild`` and the command ``envbuild``.

From the first line on a signal ends the process with its code and no traceback: what is imported next takes
longer than many a call.
"""

import os
import signal
import sys

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _end(number: int, _frame: object) -> None:
    os._exit(128 + number)


for _number in _SIGNALS:
    if signal.getsignal(_number) is not signal.SIG_IGN:
        signal.signal(_number, _end)


def main() -> None:
    """Run the command line and exit with its code."""
    _have_standard_streams()
    from envbuild.cli import main as run

    run()


def _have_standard_streams() -> None:
    """Keep files from taking the place of a standard stream that is closed; what is printed to one fails."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is not None:
            continue
        # Nobody can write to what is open for reading, nor read what is open for writing.
        opened = os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_WRONLY)
        if opened != number:
            os.dup2(opened, number)
            os.close(opened)
        setattr(sys, name, open(number, mode, encoding="utf-8", errors="backslashreplace"))  # noqa: PTH123, SIM115


if __name__ == "__main__":
    main()
