"""``docker buildx build`` as a subprocess: for steps that mount secrets, which need a BuildKit session."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import IO, TYPE_CHECKING

from envbuild.build.trace import decode_rawjson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from envbuild.build.trace import StepLog


def version(endpoint: str) -> str | None:
    """What ``docker buildx version`` says, or None where there is no buildx."""
    try:
        done = subprocess.run(
            ["docker", "buildx", "version"],
            env=_environment(endpoint),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def build(
    endpoint: str,
    options: Iterable[str],
    secrets: Mapping[str, bytes],
    context: Iterable[bytes],
    log: StepLog,
    on_start: Callable[[Callable[[], None]], None],
) -> None:
    """Build a context and leave the image in the engine.

    Args:
        endpoint: The engine's address.
        options: Further options, as ``--tag``.
        secrets: The secrets' values; they are written to private files for as long as the build runs.
        context: The build context's tar.
        log: Follows the progress; its ``error`` is set if the build fails.
        on_start: Is given a function that stops the build.
    """
    with tempfile.TemporaryDirectory(prefix="envbuild-secrets-") as folder:
        command = ["docker", "buildx", "build", "--builder=default", "--progress=rawjson", "--load", *options]
        for number, (name, value) in enumerate(secrets.items()):
            path = Path(folder, str(number))
            path.touch(0o600)
            path.write_bytes(value)
            command.append(f"--secret=id={name},src={path}")
        process = subprocess.Popen(
            [*command, "-"],
            env=_environment(endpoint),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        on_start(process.terminate)
        with process:
            try:
                _follow(process, context, log)
            except BaseException:
                process.terminate()  # buildx cancels the build in the engine, then ends
                raise


def _follow(process: subprocess.Popen[bytes], context: Iterable[bytes], log: StepLog) -> None:
    assert process.stdin is not None and process.stderr is not None  # noqa: S101, PT018
    failures: list[Exception] = []
    pump = threading.Thread(target=_pump, args=(context, process.stdin, failures), daemon=True)
    pump.start()
    remarks: deque[str] = deque(maxlen=20)
    for text in _objects_and_remarks(process.stderr):
        if text.startswith(b"{"):
            log.follow(decode_rawjson(text))
        else:
            remarks.append(text.decode(errors="replace").rstrip())
    pump.join()
    if failures:
        raise failures[0]
    if process.wait() != 0:
        log.error = "\n".join(remarks) or f"docker buildx ended with exit code {process.returncode}"


def _objects_and_remarks(stderr: IO[bytes]) -> Iterator[bytes]:
    """JSON objects, of one line or (buildx 0.13) of several indented ones, and the lines between them."""
    begun = b""
    for line in stderr:
        if not begun and not line.startswith(b"{"):
            yield line
            continue
        begun += line
        if line.rstrip().endswith(b"}") and not line.startswith(b" "):
            yield begun
            begun = b""


def _pump(context: Iterable[bytes], stdin: IO[bytes], failures: list[Exception]) -> None:
    try:
        for chunk in context:
            stdin.write(chunk)
    except BrokenPipeError:
        pass  # the build ended early; what it says is the better error
    except Exception as error:  # noqa: BLE001 - carried over to the thread that waits
        failures.append(error)
    finally:
        with contextlib.suppress(OSError):
            stdin.close()


def _environment(endpoint: str) -> dict[str, str]:
    return {**os.environ, "DOCKER_HOST": endpoint}
