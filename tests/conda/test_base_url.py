"""Channels that say where their packages are: they lead to no file of this machine, and break nothing."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from typing import TYPE_CHECKING

import pytest

from envbuild.conda.panics import panics_told
from envbuild.conda.solve import SolveRequest, solve
from envbuild.deadline import NO_DEADLINE
from envbuild.errors import ChannelError, EnvbuildError
from envbuild.platform import LINUX_AMD64
from envbuild.spec.channel import Channel
from envbuild.spec.conda import CondaSection
from envbuild.spec.match import MatchSpec
from envbuild.spec.virtual import VirtualPackages
from tiny import make_channel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """A channel whose lists are JSON alone."""
    make_channel(tmp_path / "served")
    for path in sorted((tmp_path / "served").rglob("*")):
        if path.is_file() and ("shards" in str(path) or path.suffix == ".zst"):
            path.unlink()
    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/tiny"
        server.shutdown()


def urls(tmp_path: Path, channel: str, base_url: str, *, hashed: bool = True) -> list[str]:
    """The URLs of a solution's packages, where the channel says that they are elsewhere."""
    for subdir in ("linux-64", "noarch"):
        path = tmp_path / "served/tiny" / subdir / "repodata.json"
        document = json.loads(path.read_text())
        document["repodata_version"] = 2
        document.setdefault("info", {})["base_url"] = base_url.replace("SUBDIR", subdir)
        for record in (*document["packages"].values(), *document["packages.conda"].values()):
            if not hashed:
                record.pop("sha256")
        path.write_text(json.dumps(document))
    section = CondaSection((Channel.parse(channel),), dependencies=(MatchSpec.parse("tool"),))
    request = SolveRequest(section, LINUX_AMD64, VirtualPackages(glibc="2.36"), "strict", None)
    solution = solve(request, cache_dir=tmp_path / f"cache{hash(base_url)}", deadline=NO_DEADLINE)
    return [package.url for package in solution.lock.packages]


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("odd", ["", "x/..%2F"])
def test_a_channel_leads_to_no_file_of_this_machine(
    tmp_path: Path, served: str, odd: str, hashed: bool
) -> None:
    place = f"file://{tmp_path}/served/tiny/{odd}SUBDIR/"
    with pytest.raises(ChannelError, match=r"the definition does not|a file of this machine, expected"):
        urls(tmp_path, served, place, hashed=hashed)


def test_a_folder_leads_to_no_other_folder(tmp_path: Path, served: str) -> None:
    assert served
    with pytest.raises(ChannelError, match=r"the definition does not|a file of this machine, expected"):
        urls(tmp_path, str(tmp_path / "served/tiny"), f"file://{tmp_path}/elsewhere/SUBDIR/")
    with pytest.raises(ChannelError, match=r"the definition does not|a file of this machine, expected"):
        urls(tmp_path, str(tmp_path / "served/tiny"), "../../elsewhere/")
    (url,) = urls(tmp_path, str(tmp_path / "served/tiny"), "./")
    assert url.startswith("file:")


@pytest.mark.parametrize("base_url", ["data:abc", "mailto:x", "http://[", "https://", "\\\\x\\y", "%", "\0"])
def test_what_is_no_place_breaks_nothing(tmp_path: Path, served: str, base_url: str) -> None:
    try:
        found = urls(tmp_path, served, base_url)
    except EnvbuildError:
        return
    assert all(url.startswith("http://") for url in found)


@pytest.mark.parametrize("base", [BaseException, Exception])
def test_a_panic_is_told_and_all_else_is_let_through(base: type[BaseException]) -> None:
    panic = type("PanicException", (base,), {})
    with pytest.raises(ChannelError, match="said so"), panics_told(ChannelError):
        raise panic("said so\nsecond line")
    with pytest.raises(KeyboardInterrupt), panics_told(ChannelError):
        raise KeyboardInterrupt
