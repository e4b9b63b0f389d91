"""Compiled modules: made by the environment's own python, the same on every machine, and used by it."""

from __future__ import annotations

import importlib.util
import io
import json
import marshal
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING

import pytest
from rattler import PrefixRecord

import conda_oracle as oracle
import envbuild.conda.interpreter as interpreter_module
from conda_packages import PLACEHOLDER, Entry, Package
from envbuild.build.linking import link_target
from envbuild.conda.fetch import fetch_package
from envbuild.conda.interpreter import Interpreter
from envbuild.conda.layer import Compression, layer_key, make_layer
from envbuild.conda.link import LinkTarget, PythonTarget, footprint, link
from envbuild.conda.package import Package as Opened
from envbuild.conda.pyc import Pyc, can_compile, is_own, pyc_mode
from envbuild.conda.pyc_worker import compiled
from envbuild.config import Config
from envbuild.deadline import NO_DEADLINE, Deadline
from envbuild.digest import Digest
from envbuild.errors import BuildError, DeadlineExceeded
from envbuild.lock import Lock, PackageRecord
from envbuild.platform import Platform
from parts.programs import program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fixtures_channel import ChannelFolder

GZIP = Compression.of("gzip")
SITE = "lib/python3.11/site-packages"
MODULES = {
    "mod/__init__.py": b"x = 1\n",
    "mod/names.py": b"def f(a, b='a-b'):\n    return {a, 'a-b', '-', None} if b in {1, 'x', None} else '-'\n",
    "mod/latin.py": "# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"),
    "mod/warns.py": b"x = '\\d' is 'x'\n",
    "mod/broken.py": b"print 'of another age'\n",
    "mod/nul.py": b"x = '\0'\n",
    "mod/deep.py": b"x = " + b"-" * 50_000 + b"1\n",
}
NOT_COMPILED = {"broken", "nul", "deep"}


@dataclass
class Pretended:
    """A compiler that tells what it was asked."""

    asked: list[tuple[bytes, str]] = field(default_factory=list)

    def compile(self, source: bytes, path: str) -> Future[bytes]:
        self.asked.append((source, path))
        done: Future[bytes] = Future()
        done.set_result(b"compiled " + source)
        return done


@pytest.fixture(scope="module")
def python(channel: ChannelFolder, tmp_path_factory: pytest.TempPathFactory) -> PackageRecord:
    found = oracle.records(channel.path, tmp_path_factory.mktemp("repodata"))
    return next(oracle.lock_record(each) for each in found if each.name.normalized == "python")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def interpreter_of(python: PackageRecord, cache: Path, deadline: Deadline = NO_DEADLINE) -> Interpreter:
    fetch = partial(fetch_package, python, deadline=deadline)
    return Interpreter(
        str(python), python.sha256.hex, "python3.11", "cpython-311", fetch, cache, deadline
    )  # fmt: skip


@pytest.fixture
def interpreter(python: PackageRecord, cache: Path) -> Iterator[Interpreter]:
    started = interpreter_of(python, cache)
    yield started
    started.close()


def package_of(modules: dict[str, bytes], **more: bytes) -> Package:
    entries = [Entry(f"site-packages/{path}", text) for path, text in modules.items()]
    return Package(tuple(entries), name="mod", noarch="python")


def target_with(compiler: Pretended | Interpreter, python: PackageRecord | None = None) -> LinkTarget:
    mode = "pretended" if python is None else pyc_mode(python)
    return LinkTarget(python=PythonTarget("3.11.2", SITE), pyc=Pyc(mode, "cpython-311", compiler))


def linked(package: Package, target: LinkTarget, **options: frozenset[str]) -> dict[str, oracle.Installed]:
    content = package.write_conda()
    opened = Opened.open(io.BytesIO(content), package.name)
    return oracle.collect(link(opened, package.record(content), target, **options))


def test_modules_are_compiled_where_the_interpreter_looks() -> None:
    pretended = Pretended()
    package = Package(
        (
            Entry("site-packages/mod/__init__.py", b"1"),
            Entry("site-packages/mod/link.py", link="__init__.py"),
            Entry("site-packages/mod/data.txt", b"2"),
            Entry("site-packages/top.py", PLACEHOLDER.encode(), placeholder="text"),
            Entry("site-packages/own.py", b"3"),
            Entry("site-packages/__pycache__/own.cpython-311.pyc", b"its own"),
            Entry("python-scripts/run.py", b"4"),
            Entry("share/other.py", b"5"),
        ),
        name="mod",
        noarch="python",
    )
    seen = linked(package, target_with(pretended))
    assert pretended.asked == [
        (b"1", f"/opt/env/{SITE}/mod/__init__.py"),
        (b"/opt/env", f"/opt/env/{SITE}/top.py"),
    ]
    pycs = {path: each.content for path, each in seen.items() if path.endswith(".pyc")}
    assert pycs == {
        f"{SITE}/mod/__pycache__/__init__.cpython-311.pyc": b"compiled 1",
        f"{SITE}/__pycache__/top.cpython-311.pyc": b"compiled /opt/env",
        f"{SITE}/__pycache__/own.cpython-311.pyc": b"its own",
    }
    record = json.loads(seen["conda-meta/mod-1.0-0.json"].content)
    assert set(pycs) <= set(record["files"])
    kinds = {each["_path"]: each["path_type"] for each in record["paths_data"]["paths"]}
    assert kinds[f"{SITE}/__pycache__/top.cpython-311.pyc"] == "pyc_file"
    without = linked(package, replace(target_with(pretended), pyc=None))
    assert {path for path in seen if path not in without} == set(pycs) - {
        f"{SITE}/__pycache__/own.cpython-311.pyc"
    }


def test_other_packages_have_nothing_compiled() -> None:
    pretended = Pretended()
    package = Package((Entry(f"{SITE}/mod.py", b"1"),))
    assert f"{SITE}/mod.py" in linked(package, target_with(pretended))
    assert not pretended.asked


def test_a_module_that_another_package_replaces_is_not_compiled() -> None:
    pretended = Pretended()
    package = package_of({"mod/a.py": b"a", "mod/b.py": b"b"})
    lost = frozenset({f"{SITE}/mod/a.py", f"{SITE}/mod/__pycache__/a.cpython-311.pyc"})
    seen = linked(package, target_with(pretended), lost=lost)
    assert [source for source, _ in pretended.asked] == [b"b"]
    assert not lost & seen.keys()


def test_a_footprint_has_the_compiled_modules() -> None:
    package = package_of({"mod/a.py": b"a"})
    content = package.write_conda()
    opened = Opened.open(io.BytesIO(content), "mod")
    seen = footprint(opened, package.record(content), target_with(Pretended()))
    assert seen.files == {f"{SITE}/mod/a.py", f"{SITE}/mod/__pycache__/a.cpython-311.pyc"}


class Slow(Pretended):
    """A compiler that is done in any order."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        super().__init__()
        self.pool = pool
        self.dice = random.Random(7)

    def compile(self, source: bytes, path: str) -> Future[bytes]:
        self.asked.append((source, path))
        pause = self.dice.choice((0, 0, 0.003))

        def later() -> bytes:
            time.sleep(pause)
            return b"compiled " + source

        return self.pool.submit(later)


def test_the_order_does_not_depend_on_who_is_first() -> None:
    package = package_of({f"mod/m{number:03}.py": b"%d" % number for number in range(200)})
    content = package.write_conda()
    opened = Opened.open(io.BytesIO(content), "mod")

    def order(compiler: Pretended) -> list[str]:
        return [each.path for each in link(opened, package.record(content), target_with(compiler))]

    with ThreadPoolExecutor(5) as pool:
        slow = order(Slow(pool))
    expected = order(Pretended())
    assert slow == expected
    assert len(expected) == 401
    assert expected.index(f"{SITE}/mod/__pycache__/m000.cpython-311.pyc") < 70, "written on the way"


def test_the_interpreter_compiles_what_it_can(interpreter: Interpreter) -> None:
    futures = {path: interpreter.compile(text, f"/opt/env/{path}") for path, text in MODULES.items()}
    seen = {path: future.result() for path, future in futures.items()}
    assert {path for path, content in seen.items() if not content} == {
        f"mod/{name}.py" for name in NOT_COMPILED
    }
    for path, content in seen.items():
        if content:
            assert content[4:8] == (1).to_bytes(4, "little"), "unchecked, by hash"
            assert content[8:16] == importlib.util.source_hash(MODULES[path])


def test_the_worker_gives_what_the_interpreter_reads() -> None:
    for path, text in MODULES.items():
        if path.split("/")[1][:-3] not in NOT_COMPILED and "warns" not in path:
            content = compiled(text, f"/opt/env/{path}")
            assert content[:4] == importlib.util.MAGIC_NUMBER
            code = marshal.loads(content[16:])  # noqa: S302 - our own bytes
            assert isinstance(code, CodeType)
            assert code == compile(text, f"/opt/env/{path}", "exec", dont_inherit=True, optimize=0)
            assert code.co_filename == f"/opt/env/{path}"


WORKER = Path(interpreter_module.__file__).with_name("pyc_worker.py")
LIBRARY = ("argparse", "ast", "dataclasses", "enum", "inspect", "re/_parser", "tarfile", "typing", "zipfile")


def stdlib() -> dict[str, bytes]:
    """Modules of this interpreter's own library."""
    texts = {}
    for name in LIBRARY:
        path = Path(os.__file__).parent / f"{name}.py"
        if path.is_file():
            texts[name] = path.read_bytes()
    assert len(texts) > 5
    return texts


def answers(command: list[str], texts: dict[str, bytes], seed: int, **variables: str) -> dict[str, bytes]:
    """What a worker gives for some texts, in an order of its own."""
    names = sorted(texts)
    random.Random(seed).shuffle(names)
    asked = b""
    for name in names:
        path = f"/opt/env/lib/{name}.py".encode()
        asked += len(path).to_bytes(4, "little") + len(texts[name]).to_bytes(4, "little") + path + texts[name]
    environment = {"PYTHONHASHSEED": str(seed), **variables}
    done = subprocess.run(command, env=environment, input=asked, capture_output=True, check=True).stdout
    stream = io.BytesIO(done)
    stream.read(int.from_bytes(stream.read(4), "little"))
    return {name: stream.read(int.from_bytes(stream.read(4), "little")) for name in names}


def test_the_bytes_do_not_depend_on_the_process_its_seed_or_what_it_did_before() -> None:
    texts = {**stdlib(), **{path: text for path, text in MODULES.items() if "deep" not in path}}
    plain = [sys.executable, "-s", "-S", "-B", "-W", "ignore", str(WORKER)]
    code = (
        "import argparse, ast, dataclasses, json, typing, zipfile, runpy;"
        "kept = [compile(open(m.__file__).read(), 'x', 'exec') for m in (argparse, ast, typing)];"
        f"runpy.run_path({str(WORKER)!r}, run_name='__main__')"
    )
    busy = [sys.executable, "-s", "-B", "-W", "ignore", "-c", code]
    expected = answers(plain, texts, 1)
    assert sum(map(len, expected.values())) > 200_000
    assert answers(plain, texts, 2, LC_ALL="C", TZ="Asia/Tokyo") == expected
    assert answers(busy, texts, 3) == expected


@pytest.mark.nightly
def test_the_bytes_do_not_depend_on_how_the_interpreter_was_built(tmp_path: Path) -> None:
    # Debian's own python, and the same version built with assertions, reference tracing and other allocators.
    ours = "/usr/bin/python3.11"
    for name in ("python3.11-dbg", "libpython3.11-dbg"):
        subprocess.run(
            [program("apt-get", "apt"), "download", name], cwd=tmp_path, check=True, capture_output=True
        )
    for package in tmp_path.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, tmp_path / "root"], check=True)
    texts = {path.name: path.read_bytes() for path in Path("/usr/lib/python3.11").glob("*.py")}
    other = str(tmp_path / "root/usr/bin/python3.11d")
    options = ["-s", "-S", "-B", "-W", "ignore", str(WORKER)]
    traced = "import sys; print(hasattr(sys, 'gettotalrefcount'))"
    said = [subprocess.check_output([each, "-c", traced], text=True) for each in (ours, other)]
    assert said == ["False\n", "True\n"]
    assert answers([ours, *options], texts, 1) == answers([other, *options], texts, 2)


def test_a_layer_with_compiled_modules_is_the_same_each_time(
    python: PackageRecord, cache: Path, tmp_path: Path
) -> None:
    package = package_of(MODULES)
    content = package.write_conda()
    digests = set()
    for folder in (cache, tmp_path):
        started = interpreter_of(python, folder)
        try:
            out = io.BytesIO()
            target = target_with(started, python)
            digests.add(make_layer(package.record(content), io.BytesIO(content), target, GZIP, out).diff_id)
        finally:
            started.close()
    assert len(digests) == 1


def test_the_environments_python_uses_them(
    python: PackageRecord, interpreter: Interpreter, tmp_path: Path
) -> None:
    seen = linked(package_of(MODULES), target_with(interpreter, python))
    for path, each in seen.items():
        place = tmp_path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(each.content)
    (tmp_path / SITE / "mod/names.py").write_bytes(b"raise RuntimeError('the source was read')\n")
    home = interpreter._folder
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]; import mod.names;"
        "print(mod.names.f('a', 'x') == {'a', 'a-b', '-', None})"
    )
    done = subprocess.run(
        [home / "bin/python3.11", "-s", "-S", "-c", code, tmp_path / SITE],
        env={"PYTHONHOME": str(home)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "True\n"


def test_rattler_reads_the_record(python: PackageRecord, interpreter: Interpreter, tmp_path: Path) -> None:
    seen = linked(package_of(MODULES), target_with(interpreter, python))
    path = tmp_path / "mod-1.0-0.json"
    path.write_bytes(seen["conda-meta/mod-1.0-0.json"].content)
    record = PrefixRecord.from_path(path)
    kinds = {str(each.relative_path): each.path_type for each in record.paths_data.paths}
    assert kinds[f"{SITE}/mod/__pycache__/names.cpython-311.pyc"].pyc_file


def test_layer_keys_name_the_python_that_compiles(python: PackageRecord) -> None:
    noarch = package_of(MODULES).record(b"x")
    other = replace(python, sha256=Digest.of(b"another build"))
    targets = [target_with(Pretended(), each) for each in (python, other)]
    targets.append(replace(targets[0], pyc=None))
    assert len({layer_key(noarch, target, GZIP) for target in targets}) == 3
    native = replace(noarch, noarch=None, subdir="linux-64")
    assert len({layer_key(native, target, GZIP) for target in targets}) == 1


@pytest.mark.parametrize(
    ("version", "build", "possible"),
    [
        ("3.11.2", "h0000000_0", True),
        ("3.14.1", "h32b2ec7_101_cp314", True),
        ("3.13.1", "h9a34b6e_1_cp313t", False),
        ("3.10.9", "h0000000_0", False),
        ("3.11.9", "0_73_pypy", False),
        ("3.12.1", "0_graalpy_312", False),
        ("2.7.18", "0", False),
    ],
)
def test_what_can_be_compiled_for(python: PackageRecord, version: str, build: str, *, possible: bool) -> None:
    record = replace(python, version=version, build=build)
    assert can_compile(record) is possible


def test_programs_of_this_machines_kind_are_run() -> None:
    here = Platform.parse(f"linux/{os.uname().machine}")
    assert is_own(here)
    assert not is_own(Platform.parse("linux/s390x" if here.architecture != "s390x" else "linux/amd64"))


def test_the_setting_decides(python: PackageRecord, tmp_path: Path) -> None:
    here = Platform.parse(f"linux/{os.uname().machine}")
    lock = Lock.of(here, (python,))
    config = Config(cache_dir=tmp_path)
    assert link_target("/opt/env", lock, config, {}).pyc is None
    pyc = link_target("/opt/env", lock, config, {}, pyc=True).pyc
    assert pyc is not None
    assert pyc.mode == f"unchecked-hash/1/{python.sha256.hex}"
    assert link_target("/opt/env", Lock.of(here, ()), config, {}, pyc=True).pyc is None
    other = Platform.parse("linux/s390x")
    assert other != here
    with pytest.raises(BuildError, match="modules for linux/s390x cannot be compiled on this machine"):
        link_target("/opt/env", Lock.of(other, (python,)), config, {}, pyc=True)
    old = replace(python, version="3.10.9")
    assert link_target("/opt/env", Lock.of(other, (old,)), config, {}, pyc=True).pyc is None


def test_a_damaged_copy_of_the_interpreter_is_made_again(python: PackageRecord, tmp_path: Path) -> None:
    first = interpreter_of(python, tmp_path)
    expected = first.compile(b"x = 1", "/opt/env/x.py").result()
    first.close()
    folder = first._folder
    library = folder / "lib/python3.11/encodings/utf_8.py"
    whole = library.read_bytes()
    library.write_bytes(b"raise SystemExit\n")
    (folder.with_suffix(".new") / "bin").mkdir(parents=True)
    (folder.with_suffix(".new") / "bin/python3.11").write_bytes(b"half of it")
    again = interpreter_of(python, tmp_path)
    assert again.compile(b"x = 1", "/opt/env/x.py").result() == expected
    again.close()
    assert library.read_bytes() == whole
    assert sorted(path.name for path in (tmp_path / "pythons").iterdir()) == [python.sha256.hex]


def test_a_python_that_does_not_run_here_is_an_error(tmp_path: Path) -> None:
    for content, says in (
        (b"no program", "cannot be run here"),
        (b"#!/bin/sh\necho no home >&2; exit 3\n", "no home"),
    ):
        package = Package((Entry("bin/python3.11", content, 0o755),), name="python", version="3.11.9")
        data = package.write_conda()
        record = package.record(data)
        broken = Interpreter(
            str(record),
            record.sha256.hex,
            "python3.11",
            "cpython-311",
            partial(io.BytesIO, data),
            tmp_path,
            NO_DEADLINE,
        )
        broken.__dict__["_wrapper"] = ()
        with pytest.raises(BuildError, match=says) as seen:
            broken.compile(b"1", "/opt/env/x.py").result()
        assert seen.value.hint is not None
        assert "--no-pyc" in seen.value.hint
        broken.close()


def test_a_python_without_its_program_is_an_error(tmp_path: Path) -> None:
    package = Package((Entry("bin/other", b"x"),), name="python", version="3.11.9")
    data = package.write_conda()
    record = package.record(data)
    broken = Interpreter(
        str(record),
        record.sha256.hex,
        "python3.11",
        "cpython-311",
        lambda: io.BytesIO(data),
        tmp_path,
        NO_DEADLINE,
    )
    with pytest.raises(BuildError, match="has no file bin/python"):
        broken.compile(b"1", "/opt/env/x.py").result()
    broken.close()


def test_a_killed_process_is_an_error_and_no_hang(python: PackageRecord, cache: Path) -> None:
    started = interpreter_of(python, cache)
    started.compile(b"x = 1", "/opt/env/x.py").result()
    for worker in started._running.workers:
        os.kill(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
    with pytest.raises(BuildError, match="ended while it compiled"):
        started.compile(b"x = 1", "/opt/env/x.py").result()
    started.close()


def test_a_process_that_hangs_is_given_up_at_the_deadline(python: PackageRecord, cache: Path) -> None:
    started = interpreter_of(python, cache)
    started.compile(b"x = 1", "/opt/env/x.py").result()
    (worker,) = started._running.workers
    os.kill(worker.process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, worker.process.pid, os.WSTOPPED | os.WNOWAIT)
    worker.deadline = Deadline.after(0.2)
    with pytest.raises(DeadlineExceeded):
        started.compile(b"x = 1", "/opt/env/x.py").result()
    started.close()
    assert worker.process.returncode == -signal.SIGKILL


def test_no_process_outlives_its_owner(python: PackageRecord, cache: Path) -> None:
    started = interpreter_of(python, cache)
    started.compile(b"x = 1", "/opt/env/x.py").result()
    (worker,) = started._running.workers
    del started
    assert worker.process.wait(10) == -signal.SIGKILL


def test_the_interpreter_gets_nothing_of_this_process(
    python: PackageRecord, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "canary")
    started = interpreter_of(python, cache)
    started.compile(b"x = 1", "/opt/env/x.py").result()
    (worker,) = started._running.workers
    variables = Path(f"/proc/{worker.process.pid}/environ").read_bytes().split(b"\0")
    assert {each.partition(b"=")[0] for each in variables if each} == {b"PYTHONHOME", b"PYTHONHASHSEED"}
    if started._wrapper:
        network = Path(f"/proc/{worker.process.pid}/net/dev").read_text()
        assert [line.split(":")[0].strip() for line in network.splitlines()[2:]] == ["lo"]
    started.close()


CHECK = """
import marshal, pathlib, sys
site, seen = pathlib.Path(sys.argv[1]), 0
for path in sorted(site.rglob("*.py")):
    compiled = path.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc"
    inside = f"/opt/env/lib/python3.11/site-packages/{path.relative_to(site)}"
    try:
        code = compile(path.read_bytes(), inside, "exec", dont_inherit=True, optimize=0)
        if b"coding: big5" in path.read_bytes()[:100]:
            raise SyntaxError("its codec is no built-in module")
    except (SyntaxError, ValueError):
        assert not compiled.exists(), compiled
        continue
    assert marshal.loads(compiled.read_bytes()[16:]) == code, path
    seen += 1
print(seen)
"""


def program_of(python: PackageRecord, folder: Path) -> Path:
    """The channel's python, unpacked whole and by other means."""
    prefix = folder / "python"
    if not prefix.exists():
        with fetch_package(python, deadline=NO_DEADLINE) as stream:
            target = LinkTarget(python=PythonTarget.of(python))
            for path, file in oracle.collect(link(Opened.open(stream, str(python)), python, target)).items():
                (prefix / path).parent.mkdir(parents=True, exist_ok=True)
                if file.kind == "file":
                    (prefix / path).write_bytes(file.content)
                    (prefix / path).chmod(file.mode)
                else:
                    (prefix / path).symlink_to(file.content.decode())
    return prefix / "bin/python3.11"


def check_channel(
    channel: ChannelFolder, python: PackageRecord, interpreter: Interpreter, tmp_path: Path, names: set[str]
) -> int:
    """Packages hold the same with compiled modules, what the channel's python makes of the sources."""
    plain, compiling = (replace(target_with(interpreter, python), pyc=None), target_with(interpreter, python))
    seen = 0
    for each in oracle.records(channel.path, tmp_path / "repodata"):
        record = oracle.lock_record(each)
        if record.noarch != "python" or (names and record.name not in names):
            continue
        installed = []
        for target in (plain, compiling):
            with fetch_package(record, deadline=NO_DEADLINE) as stream:
                installed.append(oracle.collect(link(Opened.open(stream, str(record)), record, target)))
        without, found = installed
        meta = f"conda-meta/{record}.json"
        more = found.keys() - without.keys()
        assert {path: file for path, file in found.items() if path not in {*more, meta}} == {
            path: file for path, file in without.items() if path != meta
        }
        assert all(
            "/__pycache__/" in path and file.mode == 0o644 for path, file in found.items() if path in more
        )
        assert set(json.loads(found[meta].content)["files"]) == found.keys() - {meta}
        folder = tmp_path / str(record)
        for path, file in found.items():
            if file.kind == "file":
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(file.content)
        seen += int(
            subprocess.run(
                [program_of(python, tmp_path), "-W", "ignore", "-c", CHECK, folder / SITE],
                check=True, stdout=subprocess.PIPE, text=True,
            ).stdout
        )  # fmt: skip
        shutil.rmtree(folder)
    return seen


def test_packages_of_the_channel_hold_the_same_and_their_modules_compiled(
    channel: ChannelFolder, python: PackageRecord, interpreter: Interpreter, tmp_path: Path
) -> None:
    names = {"click", "tabulate", "requests", "jinja2", "typing_extensions"}
    assert check_channel(channel, python, interpreter, tmp_path, names) > 60


@pytest.mark.nightly
def test_all_packages_of_the_channel_hold_the_same_and_their_modules_compiled(
    channel: ChannelFolder, python: PackageRecord, interpreter: Interpreter, tmp_path: Path
) -> None:
    assert check_channel(channel, python, interpreter, tmp_path, set()) > 4000
