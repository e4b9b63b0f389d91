"""An environment's own interpreter, run on this machine for one purpose: to compile modules.

Its program and the few library modules that it needs to start are unpacked from the verified package into
the cache, and compared with their digests before each use. It gets an empty environment, no network where the
kernel allows that, and nothing but the modules' texts.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import queue
import re
import select
import shutil
import subprocess
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from envbuild.conda.package import Package
from envbuild.conda.tar import Kind
from envbuild.errors import BuildError, StorageError
from envbuild.storage import key_lock, private_folder, read_own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

    from envbuild.deadline import Deadline

_WORKER: Final = Path(__file__).with_name("pyc_worker.py")
_LISTING: Final = "listing.json"
_HINT: Final = "use --no-pyc: then a container compiles what it imports"
_BUSY_TRIES: Final = 50
_MAX_TAG: Final = 100


@dataclass
class Interpreter:
    """Compiles modules in as many processes as there are cores; none is started before the first module.

    The processes end when it is closed, or when nobody holds it any more.

    Attributes:
        what: The python package's name for messages.
        digest: The sha256 of the package, in hex.
        name: The name of its program, as ``python3.11``.
        tag: What its compiled files are named with.
        fetch: Gets the verified package.
        cache_dir: Where it is unpacked.
        deadline: When to give up.
    """

    what: str
    digest: str
    name: str
    tag: str
    fetch: Callable[[], IO[bytes]]
    cache_dir: Path
    deadline: Deadline
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._running = _Running()
        self._end = weakref.finalize(self, self._running.end)

    def compile(self, source: bytes, path: str) -> Future[bytes]:
        """See :class:`envbuild.conda.pyc.Compiler`; a failure of the interpreter is a ``BuildError``."""
        return self._running.pool.submit(self._compile, source, path)

    def close(self) -> None:
        """End the processes; what has not been compiled yet is given up."""
        self._end()

    def _compile(self, source: bytes, path: str) -> bytes:
        self.deadline.check(f"compiling {path}")
        try:
            worker = self._running.idle.get_nowait()
        except queue.Empty:
            worker = self._started()
        content = worker.compile(source, path)
        self._running.idle.put(worker)
        return content

    def _started(self) -> _Worker:
        with self._guard:
            command = [*self._wrapper, str(self._folder / "bin" / self.name)]
        worker = _Worker.start(command, self._folder, self.what, self.deadline)
        self._running.workers.append(worker)
        if worker.tag != self.tag:
            raise BuildError(f"{self.what} compiles for {worker.tag!r}, expected {self.tag!r}", hint=_HINT)
        return worker

    @cached_property
    def _folder(self) -> Path:
        folder = private_folder(self.cache_dir / "pythons") / self.digest
        with key_lock(self.cache_dir, f"python-{self.digest}", self.deadline):
            if not _is_whole(folder):
                self._unpack(folder)
        return folder

    def _unpack(self, folder: Path) -> None:
        """Have the program and its library in the folder, whole or not at all."""
        new = folder.with_suffix(".new")
        for each in (new, folder):
            if each.is_symlink():
                each.unlink()
            shutil.rmtree(each, ignore_errors=True)
        with self.fetch() as stream:
            package = Package.open(stream, self.what, self.deadline)
            listing = dict(_unpacked(package, new, _needed(self.name)))
            program = new / "bin" / self.name
            if not program.is_file():
                raise BuildError(f"{self.what} has no file bin/{self.name}", hint=_HINT)
            if b"\0libpython3" in program.read_bytes():
                listing |= _unpacked(package, new, re.compile(r"lib/libpython3[^/]*"))
        (new / _LISTING).write_text(json.dumps(listing))
        (new / _LISTING).chmod(0o600)
        new.rename(folder)

    @cached_property
    def _wrapper(self) -> tuple[str, ...]:
        """What takes the network away from the command that follows, where that is allowed."""
        program = shutil.which("unshare")
        if program is None:
            return ()
        wrapper = (program, "--user", "--net", "--")
        tried = subprocess.run([*wrapper, "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return wrapper if tried.returncode == 0 else ()


def _needed(name: str) -> re.Pattern[str]:
    library = rf"lib/{re.escape(name)}"
    return re.compile(rf"bin/{re.escape(name)}|{library}/[^/]+\.py|{library}/encodings/[^/]+\.py")


def _unpacked(package: Package, folder: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Write some files of a package; gives their paths and digests."""
    for member in package.members():
        if member.kind is Kind.FILE and wanted.fullmatch(member.path):
            content = member.read()
            path = folder / member.path
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o700)
            yield member.path, hashlib.sha256(content).hexdigest()


def _is_whole(folder: Path) -> bool:
    """Whether what was unpacked is as it was."""
    try:
        private_folder(folder)
        listing = json.loads(read_own(folder / _LISTING))
        return all(
            hashlib.sha256(read_own(folder / path)).hexdigest() == digest for path, digest in listing.items()
        )
    except (OSError, ValueError, AttributeError, StorageError):
        return False


class _Running:
    """What is to be ended."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="pyc")
        self.idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self.workers: list[_Worker] = []

    def end(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        for worker in self.workers:
            worker.process.kill()
        self.pool.shutdown()
        for worker in self.workers:
            worker.close()


@dataclass
class _Worker:
    """A process that compiles one module after the other."""

    process: subprocess.Popen[bytes]
    what: str
    deadline: Deadline
    tag: str = ""

    @classmethod
    def start(cls, command: list[str], home: Path, what: str, deadline: Deadline) -> _Worker:
        arguments = [*command, "-s", "-P", "-S", "-B", "-W", "ignore", str(_WORKER)]
        environment = {"PYTHONHOME": str(home), "PYTHONHASHSEED": "0"}
        worker = cls(_popen(arguments, environment, what), what, deadline)
        try:
            size = int.from_bytes(worker._read(4), "little")
            worker.tag = worker._read(min(size, _MAX_TAG)).decode("ascii", "replace")
        except BaseException:
            worker.close()
            raise
        return worker

    def compile(self, source: bytes, path: str) -> bytes:
        """The compiled file; empty where the module cannot be compiled."""
        name = path.encode()
        stream = self.process.stdin
        if stream is None:
            raise BuildError(f"the python of {self.what} takes no input", hint=_HINT)
        try:
            stream.write(len(name).to_bytes(4, "little") + len(source).to_bytes(4, "little") + name + source)
            stream.flush()
        except OSError:
            raise self._ended(f"it compiled {path}") from None
        return self._read(int.from_bytes(self._read(4), "little"))

    def close(self) -> None:
        """End the process; nobody may be waiting for it any more."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()

    def _read(self, size: int) -> bytes:
        stream = self.process.stdout
        pieces = []
        while size and stream is not None:
            left = self.deadline.remaining()
            if left != float("inf") and not select.select([stream], [], [], left)[0]:
                self.deadline.check("compiling modules")
                continue
            piece = os.read(stream.fileno(), size)
            if not piece:
                raise self._ended("it compiled modules")
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _ended(self, when: str) -> BuildError:
        said = b""
        self.process.kill()
        if not self.tag and self.process.stderr is not None:
            said = self.process.stderr.read()[-500:]
        text = said.decode(errors="replace").strip().rpartition("\n")[2]
        return BuildError(f"{self.what} ended while {when}{text and ': '}{text}", hint=_HINT)


def _popen(arguments: list[str], environment: dict[str, str], what: str) -> subprocess.Popen[bytes]:
    for _ in range(_BUSY_TRIES):
        try:
            return subprocess.Popen(
                arguments,
                env=environment,
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            # A process that began while the program was written holds it open for a moment.
            if error.errno != errno.ETXTBSY:
                raise BuildError(f"{what} cannot be run here: {error.strerror}", hint=_HINT) from None
            time.sleep(0.02)
    raise BuildError(f"{what} cannot be run here: its program is being written", hint=_HINT)
