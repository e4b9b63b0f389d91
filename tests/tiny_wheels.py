"""Wheels of a few bytes, folders and indexes of them, and a way to put linked files on a disk."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from envbuild.conda.link import LinkedFile
from envbuild.conda.tar import Kind
from envbuild.digest import Digest
from envbuild.lock import PipDistribution


@dataclass(frozen=True)
class TinyWheel:
    """A wheel to be written.

    Attributes:
        name: The name as the project writes it.
        version: The version.
        files: The content of each file, by its path in the wheel.
        requires: Requirements.
        tag: The compatibility tag.
        entry_points: The content of ``entry_points.txt``.
        executable: The paths that may be run.
        metadata: Further lines of METADATA.
    """

    name: str
    version: str = "1.0"
    files: dict[str, bytes] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    tag: str = "py3-none-any"
    entry_points: str = ""
    executable: tuple[str, ...] = ()
    metadata: str = ""

    @property
    def stem(self) -> str:
        """NAME-VERSION."""
        return f"{self.name.replace('-', '_')}-{self.version}"

    @property
    def file_name(self) -> str:
        """The wheel's file name."""
        return f"{self.stem}-{self.tag}.whl"

    @property
    def info(self) -> str:
        """The ``.dist-info`` folder."""
        return f"{self.stem}.dist-info"

    def contents(self) -> dict[str, bytes]:
        """Every file but RECORD."""
        lines = ["Metadata-Version: 2.1", f"Name: {self.name}", f"Version: {self.version}"]
        lines += [f"Requires-Dist: {each}" for each in self.requires]
        metadata = "".join(f"{line}\n" for line in lines) + self.metadata
        wheel = f"Wheel-Version: 1.0\nGenerator: tiny\nRoot-Is-Purelib: true\nTag: {self.tag}\n"
        found = {f"{self.name.replace('-', '_')}/__init__.py": b"", **self.files}
        found |= {f"{self.info}/METADATA": metadata.encode(), f"{self.info}/WHEEL": wheel.encode()}
        if self.entry_points:
            found[f"{self.info}/entry_points.txt"] = self.entry_points.encode()
        return found

    def record(self) -> str:
        """RECORD's content."""
        rows = [f"{path},{digest_of(content)},{len(content)}" for path, content in self.contents().items()]
        return "".join(f"{row}\n" for row in [*rows, f"{self.info}/RECORD,,"])

    def to_bytes(self) -> bytes:
        """The wheel."""
        return zipped(
            [*self.contents().items(), (f"{self.info}/RECORD", self.record().encode())], self.executable
        )

    def put(self, folder: Path) -> Path:
        """Write the wheel into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.file_name
        path.write_bytes(self.to_bytes())
        return path

    def distribution(self) -> PipDistribution:
        """What a solution says of it."""
        content = self.to_bytes()
        return PipDistribution(
            self.name.lower(),
            self.version,
            f"file:///{self.file_name}",
            Digest.of(content),
            len(content),
            self.file_name,
        )


def metadata_of(wheel: TinyWheel) -> bytes:
    """The content of a wheel's METADATA, which PEP 658 serves beside it."""
    return wheel.contents()[f"{wheel.info}/METADATA"]


def digest_of(content: bytes) -> str:
    """A digest as RECORD has it."""
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def zipped(members: Iterable[tuple[str, bytes]], executable: Iterable[str] = ()) -> bytes:
    """A zip archive of some members; some may be run."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in members:
            info = zipfile.ZipInfo(path)
            info.external_attr = (0o100755 if path in set(executable) else 0o100644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return out.getvalue()


def unpack(files: Iterable[LinkedFile], folder: Path) -> None:
    """Put linked files on a disk."""
    for file in files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.kind is Kind.SYMLINK:
            path.symlink_to(file.target)
            continue
        path.write_bytes(b"".join(file.chunks))
        path.chmod(file.mode)


@dataclass
class Index:
    """An index on this machine.

    Attributes:
        url: Its URL, without credentials.
        asked: What was asked for with the right credentials, as ``GET /simple/tiny/``.
        status: The answer to everything, where it is not None.
        kept: The wheels, by file name; they may be changed.
        logins: The header ``Authorization`` of each question.
    """

    url: str
    asked: list[str] = field(default_factory=list)
    status: int | None = None
    kept: dict[str, TinyWheel] = field(default_factory=dict)
    logins: list[str | None] = field(default_factory=list)


def _respond(here: Index, uploaded: dict[str, str], path: str) -> tuple[int, bytes, str]:
    """Status, body and content type of an answer."""
    kind, _, name = unquote(path).strip("/").partition("/")
    wheel = here.kept.get(name.removesuffix(".metadata"))
    if kind == "files" and wheel is not None:
        content = metadata_of(wheel) if name.endswith(".metadata") else wheel.to_bytes()
        return 200, content, "application/octet-stream"
    files = [_file(here, wheel, uploaded) for wheel in here.kept.values() if wheel.name == name]
    document = {"meta": {"api-version": "1.1"}, "name": name, "files": files, "versions": []}
    status = 200 if files and kind == "simple" else 404
    return status, json.dumps(document).encode(), "application/vnd.pypi.simple.v1+json"


def _file(here: Index, wheel: TinyWheel, uploaded: dict[str, str]) -> dict[str, object]:
    content = wheel.to_bytes()
    found = {"filename": wheel.file_name, "url": f"{here.url}/files/{wheel.file_name}", "size": len(content)}
    times = {"upload-time": uploaded[wheel.file_name]} if uploaded else {}
    core = {"core-metadata": {"sha256": hashlib.sha256(metadata_of(wheel)).hexdigest()}}
    return {**found, **times, **core, "hashes": {"sha256": hashlib.sha256(content).hexdigest()}}


@contextmanager
def index(
    wheels: Iterable[TinyWheel],
    *,
    user: str | None = None,
    uploaded: dict[str, str] | None = None,
) -> Iterator[Index]:
    """Serve wheels as PEP 691 and PEP 658 have it.

    Args:
        wheels: The wheels.
        user: ``USER:PASSWORD`` that everybody must give; nobody where it is None.
        uploaded: Times of upload, by file name.
    """
    expected = "Basic " + base64.b64encode((user or "").encode()).decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here.logins.append(self.headers.get("Authorization"))
            if here.status is not None:
                self._answer(here.status, b"", "text/plain")
                return
            if user is not None and self.headers.get("Authorization") != expected:
                self._answer(401, b"", "text/plain")
                return
            here.asked.append(f"{self.command} {self.path}")
            self._answer(*_respond(here, uploaded or {}, self.path))

        do_HEAD = do_GET  # noqa: N815 - the base class looks for this name

        def _answer(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="tiny"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here = Index(f"http://127.0.0.1:{server.server_port}", kept={wheel.file_name: wheel for wheel in wheels})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
