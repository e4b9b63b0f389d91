"""Packages of one build share connections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest

from envbuild.resolver import Resolver
from tiny import World


class Counting(SimpleHTTPRequestHandler):
    """Keeps connections open, and counts the packages that each one gives."""

    protocol_version = "HTTP/1.1"
    packages: ClassVar[Counter[int]]

    def send_head(self) -> Any:
        del self.headers["If-Modified-Since"]  # rattler wants no 304
        if self.path.endswith(".conda"):
            self.packages[id(self.connection)] += 1
        return super().send_head()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Say nothing."""


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[tuple[str, Counter[int]]]:
    """A channel alias over HTTP, and the packages by connection."""
    packages = Counter[int]()
    handler = type("Handler", (Counting,), {"packages": packages})
    (tmp_path / "channels").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path / "channels")))
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", packages
    server.shutdown()
    server.server_close()


def test_packages_share_connections(tmp_path: Path, counted: tuple[str, Counter[int]]) -> None:
    alias, packages = counted
    world = World.make(tmp_path)
    spec = world.spec("python", "pyth", "tool", "thing", "first")
    with Resolver(world.other_machine(channel_alias=alias, jobs=1)) as resolver:
        resolver.resolve(spec)
    assert list(packages.values()) == [5], "one connection for what is fetched one after the other"
