"""Child processes that end with the call which started them."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envbuild.deadline import Deadline


def said(
    process: subprocess.Popen[bytes], deadline: Deadline, doing: str, given: bytes | None = None
) -> tuple[bytes, bytes]:
    """What a process prints until its end; it is killed where the call ends first, in whichever thread.

    Args:
        process: The process; what is not a pipe comes to nothing.
        deadline: When to give up.
        doing: What it does, for the message.
        given: What it reads.

    Raises:
        DeadlineExceeded: The time ran out.
    """
    try:
        while True:
            try:
                out, err = process.communicate(given, timeout=deadline.slice())
            except subprocess.TimeoutExpired:
                deadline.check(doing)
                given = None  # it is kept by the process
            else:
                return out or b"", err or b""
    except BaseException:
        process.kill()
        raise
