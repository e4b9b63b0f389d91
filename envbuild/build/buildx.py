"""The command ``docker buildx``: for steps that mount secrets, and for builders with names."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from envbuild.build.trace import decode_rawjson
from envbuild.deadline import cleaning_up
from envbuild.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from envbuild.build.trace import StepLog

_ENGINES: Final = ("docker", "error")
"""What stands as the driver of an engine's own builder, or of one whose engine does not answer."""
_SECONDS: Final = 30.0
_BOOTSTRAP_SECONDS: Final = 300.0


def version(endpoint: str | None = None) -> str | None:
    """What ``docker buildx version`` says, or None where there is no buildx."""
    done = _said(endpoint, "version")
    return done.stdout.strip() or None if done is not None and done.returncode == 0 else None


def builders() -> tuple[tuple[str, str], ...]:
    """The names and drivers of the builders that buildx knows; those of engines themselves are left out."""
    done = _said(None, "ls")
    if done is None or done.returncode != 0:
        return ()
    rows = [
        line.split() for line in done.stdout.splitlines()[1:] if line[:1].strip() and len(line.split()) > 1
    ]
    return tuple((row[0].rstrip("*"), row[1]) for row in rows if row[1] not in _ENGINES)


def inspect(name: str) -> dict[str, str]:
    """What buildx says of a builder, which is started if need be: ``Driver``, ``BuildKit version`` and so on.

    Raises:
        BuildError: There is no buildx, no such builder, or it does not answer.
    """
    if version() is None:
        raise BuildError(
            "builders of buildx need the docker command with buildx, and there is none",
            hint="install buildx (apt-get install docker-buildx, or Docker's docker-buildx-plugin)",
        )
    done = _said(None, "inspect", "--bootstrap", name, seconds=_BOOTSTRAP_SECONDS)
    found: dict[str, str] = {}
    for line in done.stdout.splitlines() if done is not None else ():
        key, colon, value = line.partition(":")
        if colon and not key.startswith(" "):
            found.setdefault(key.strip(), value.strip())
    said = " ".join(done.stderr.split()) if done is not None else f"no answer in {_BOOTSTRAP_SECONDS:g} s"
    if done is None or done.returncode != 0 or found.get("Status", "running") != "running":
        why = found.get("Error") or said or found.get("Status", "")
        raise BuildError(
            f"the buildx builder {name!r} does not answer: {why}",
            hint="docker buildx ls lists builders, docker buildx create makes one",
            retryable=True,
        )
    return found


def _said(
    endpoint: str | None, *arguments: str, seconds: float = _SECONDS
) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            ["docker", "buildx", *arguments],
            env=_environment(endpoint),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def build(
    endpoint: str | None,
    options: Iterable[str],
    secrets: Mapping[str, bytes],
    context: Iterable[bytes],
    log: StepLog,
    on_start: Callable[[Callable[[], None]], None],
    *,
    target: tuple[str, ...] = ("--builder=default", "--load"),
) -> None:
    """Build a context.

    Args:
        endpoint: The engine's address, or None for what the user's settings say.
        options: Further options, as ``--tag``.
        secrets: The secrets' values; they are written to private files for as long as the build runs.
        context: The build context's tar.
        log: Follows the progress; its ``error`` is set if the build fails.
        on_start: Is given a function that stops the build.
        target: Who builds, and where the image goes: with the engine's own builder, and into the engine.
    """
    with tempfile.TemporaryDirectory(prefix="envbuild-secrets-") as folder:
        command = ["docker", "buildx", "build", "--progress=rawjson", *target, *options]
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
                with cleaning_up():
                    process.terminate()  # buildx cancels the build in the engine, then ends
                    if process.stderr is not None:
                        process.stderr.close()
                    process.wait()
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


def _environment(endpoint: str | None) -> dict[str, str]:
    """The environment of the command, without what is for envbuild alone: logins, keys, secrets of steps.

    Of ``SOURCE_DATE_EPOCH`` buildx would make a build argument.
    """
    own = {
        name: text
        for name, text in os.environ.items()
        if name != "SOURCE_DATE_EPOCH" and not name.startswith("ENVBUILD_")
    }
    return own if endpoint is None else {**own, "DOCKER_HOST": endpoint}
