"""Copies of what channels with a token list: the solver never asks for a URL with a secret in it.

A Conda token stands in the path, and the solver's client tells every server that it is redirected to where it
came from, token and all. So what it would read of such a channel is fetched here, redirects and all, and it
is given a folder.
"""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Final, cast
from urllib.parse import unquote

from envbuild.conda.fetch import Connections
from envbuild.errors import ChannelError, StorageError
from envbuild.storage import key_lock, private_folder, written_whole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import urllib3

    from envbuild.conda.stand_ins import StandIn
    from envbuild.deadline import Deadline

_ATTEMPTS: Final = 3
_PAUSE: Final = 0.5
_CHUNK: Final = 1 << 18
_MAX_BYTES: Final = 4 << 30
"""More than any channel lists; a compressed list could unpack to anything."""
_TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_MISSING: Final = frozenset({404, 410})
_STATE: Final = "state.json"


@dataclass(frozen=True)
class Copies:
    """The copies in one cache folder.

    Attributes:
        cache_dir: The cache folder.
    """

    cache_dir: Path
    _read: dict[tuple[str, tuple[str, ...]], int] = field(default_factory=dict, repr=False, compare=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def read(self, channel: StandIn, paths: tuple[str, ...], period: int, deadline: Deadline) -> str:
        """Have copies of some files of a channel, as they were at some moment of a period.

        Args:
            channel: The channel, and the place where it is read.
            paths: Its files, as ``linux-64/repodata.json``; one that it lacks has no copy.
            period: The number of the period.
            deadline: When to give up.

        Returns:
            The ``file:`` URL of the folder that stands for the channel.

        Raises:
            ChannelError: The channel cannot be read.
            StorageError: A copy cannot be written.
            DeadlineExceeded: The time ran out.
        """
        repodata = private_folder(private_folder(self.cache_dir) / "repodata")
        folder = private_folder(private_folder(repodata / "copies") / channel.secret_name)
        asked = channel.secret_name, paths
        with self._guard:
            known = self._read.get(asked) == period
        if not known:
            connections = Connections()
            try:
                with key_lock(self.cache_dir, f"copy-{channel.secret_name}", deadline):
                    for path in paths:
                        _Copy(channel, path, _inside(folder, path), connections, deadline).renew()
            finally:
                connections.close()
            with self._guard:
                self._read[asked] = period
        return folder.as_uri()


@dataclass(frozen=True)
class _Copy:
    """The copy of one file."""

    channel: StandIn
    path: str
    target: Path
    connections: Connections
    deadline: Deadline

    def renew(self) -> None:
        """Fetch the file unless it is unchanged; lists are rather fetched compressed."""
        private_folder(self.target.parent)
        state = self._state()
        packed = f"{self.path}.zst" if self.path.endswith("repodata.json") else None
        for path in filter(None, (packed, self.path)):
            known = state if state.get("path") == path else {}
            with self._asked(path, known) as response:
                if response.status == 304:
                    return
                if response.status in _MISSING:
                    continue
                if response.status != 200:
                    words = {401: "401 Unauthorized", 403: "403 Forbidden"}
                    raise self._failed(path, f"answered {words.get(response.status, response.status)}")
                self._write(response, path)
                return
        for old in (self.target, self._state_file):
            old.unlink(missing_ok=True)

    @property
    def _state_file(self) -> Path:
        return self.target.with_name(f"{self.target.name}.{_STATE}")

    def _state(self) -> dict[str, str]:
        """What the server said of the copy that is there."""
        try:
            found = json.loads(self._state_file.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        good = isinstance(found, dict) and all(isinstance(each, str) for each in found.values())
        return found if good and self.target.is_file() else {}

    @contextlib.contextmanager
    def _asked(self, path: str, known: Mapping[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
        """The answer to a question for a file; trouble that may pass is tried again."""
        import urllib3

        login = {} if self.channel.header is None else {"Authorization": self.channel.header}
        names = {"etag": "If-None-Match", "modified": "If-Modified-Since"}
        asked = {header: known[name] for name, header in names.items() if name in known}
        for attempt in range(_ATTEMPTS):
            self.deadline.check(f"reading {self.channel.public}")
            trouble = ""
            try:
                response = self.connections.get(f"{self.channel.place}/{path}", login, self.deadline, asked)
            except urllib3.exceptions.HTTPError as error:
                reason = getattr(error, "reason", None)
                trouble = type(reason if isinstance(reason, Exception) else error).__name__
            else:
                if response.status not in _TRANSIENT or attempt + 1 == _ATTEMPTS:
                    with contextlib.closing(response):
                        yield response
                    return
                response.close()
            self.deadline.sleep(_PAUSE * 2**attempt)
        raise self._failed(path, f"could not be asked ({trouble})")

    def _write(self, response: urllib3.BaseHTTPResponse, path: str) -> None:
        import urllib3
        import zstandard

        packed, last = path != self.path, b""
        try:
            with written_whole(self.target) as file:
                size = 0
                chunks = _unpacked(response) if packed else response.stream(_CHUNK, decode_content=True)
                for content in chunks:
                    self.deadline.check(f"reading {self.channel.public}")
                    size += len(content)
                    if size > _MAX_BYTES:
                        raise self._failed(path, f"has more than {_MAX_BYTES} bytes")
                    last = content.strip()[-1:] or last
                    file.write(content)
                if self.path.endswith(".json") and last != b"}":  # cut off where no length was told
                    raise self._failed(path, "ended in its middle")
            said = {"etag": "ETag", "modified": "Last-Modified"}.items()
            known = {name: text for name, header in said if (text := response.headers.get(header))}
            with written_whole(self._state_file) as file:
                file.write(json.dumps({"path": path, **known}).encode())
        except (urllib3.exceptions.HTTPError, zstandard.ZstdError) as error:
            raise self._failed(path, f"could not be read ({type(error).__name__})") from None
        except OSError as error:
            raise StorageError(f"{self.target} cannot be written: {error.strerror}") from error

    def _failed(self, path: str, why: str) -> ChannelError:
        """An error that names the channel without its token."""
        return ChannelError(f"'{self.channel.public}/{path}' {why}", retryable=True)


def _unpacked(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """The content of a file compressed with zstd, in small pieces however well it is compressed."""
    import zstandard

    reader = zstandard.ZstdDecompressor().stream_reader(
        cast("IO[bytes]", response), read_across_frames=True, closefd=False
    )
    while content := reader.read(_CHUNK):
        yield content


def _inside(folder: Path, path: str) -> Path:
    """A file in a folder by its path in a URL.

    Raises:
        ChannelError: The path leads elsewhere.
    """
    names = [unquote(part) for part in path.split("/")]
    if any(name in {"", ".", ".."} or "/" in name or "\0" in name for name in names):
        raise ChannelError(f"{path!r} is no path of a file in a channel")
    return folder.joinpath(*names)
