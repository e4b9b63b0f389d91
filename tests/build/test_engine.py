"""Steps on a real Docker Engine."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest
from filelock import FileLock

from engine_bases import (
    base_of,
    content_of,
    debian_base,
    files_of,
    fresh,
    leftovers,
    small_system,
    tar_of,
)
from envbuild.build.engine import Engine
from envbuild.build.steps_build import BASE_REPOSITORY, BUILD_REPOSITORY
from envbuild.build.steps_image import Limits, StepsBase
from envbuild.deadline import Deadline
from envbuild.digest import Digest
from envbuild.errors import BuildError, BuildLimit, DeadlineExceeded, IntegrityError
from envbuild.oci.manifest import Manifest, encode
from envbuild.spec.steps import CONTEXT_FOLDER
from parts.processes import gone_within, runs_within

if TYPE_CHECKING:
    from collections.abc import Iterator

    from envbuild.digest import Descriptor
    from envbuild.progress import Event
    from parts.docker_engine import DockerEngine

pytestmark = pytest.mark.xdist_group("engine")
CACHE = Path(__file__).parents[2] / ".cache"


@pytest.fixture(scope="module", params=["docker", pytest.param("podman", marks=pytest.mark.nightly)])
def engine(request: pytest.FixtureRequest, engine: DockerEngine) -> DockerEngine:
    """Each engine; of Podman's tests some are for every day: ``test_podman.py``."""
    if request.param == "docker":
        return engine
    podman: DockerEngine = request.getfixturevalue("podman")
    return podman


dockers_alone = pytest.mark.parametrize("engine", ["docker"], indirect=True)
"""A test of what Podman does not do: stop a step that runs (4.3), or build in two ways."""


@pytest.fixture(scope="module")
def base() -> StepsBase:
    return base_of(small_system(), settings={"Labels": {"of": "base"}})


@pytest.fixture
def docker(engine: DockerEngine) -> Iterator[Engine]:
    """An engine; what a test leaves in it is an error."""
    with Engine.connect(engine.host) as connected:
        before = leftovers(engine)
        yield connected
        limit = time.monotonic() + 10
        while leftovers(engine) - before and time.monotonic() < limit:
            time.sleep(0.1)  # an engine stops a cancelled build in its own time
        assert leftovers(engine) - before == set()


def test_steps_become_new_layers_and_a_config(docker: Engine, base: StepsBase) -> None:
    steps = (
        "ARG WHO\nENV GREETING=hello\nRUN echo $GREETING $WHO > /said\n"
        f"COPY {CONTEXT_FOLDER}/data/file /copied\n"
        "WORKDIR /work\nUSER somebody\n"
        'LABEL a="b c"\nENTRYPOINT ["/bin/cat"]\nCMD ["/said"]\n'
    )
    context = io.BytesIO(tar_of({"data/file": b"from the context", "unused": b"x"}))
    with docker.run_steps(base, steps, context, args={"WHO": "world"}) as built:
        assert content_of(built, "said") == b"hello world\n"
        assert content_of(built, "copied") == b"from the context"
        assert files_of(built)["work"].isdir()
        assert "bin/sh" not in files_of(built), "the base's layer is not among the new ones"
        config = json.loads(built.config)
        for layer in built.layers:
            assert Digest.of(layer.path.read_bytes()) == layer.diff_id
            assert layer.size == layer.path.stat().st_size
        ids = [str(layer.diff_id) for layer in built.layers]
        path = built.layers[0].path
    assert not path.exists(), "leaving the context removes the layers' files"
    assert config["rootfs"]["diff_ids"] == [*json.loads(base.config)["rootfs"]["diff_ids"], *ids]
    assert config["config"] == {
        "User": "somebody",
        "Env": ["PATH=/bin", "GREETING=hello"],
        "Entrypoint": ["/bin/cat"],
        "Cmd": ["/said"],
        "WorkingDir": "/work",
        "Labels": {"a": "b c", "of": "base"},
    }
    assert config["history"][0] == {"created": "2026-01-02T03:04:05Z", "created_by": "the base"}
    assert {entry["created"] for entry in config["history"][1:]} == {"1970-01-01T00:00:00Z"}
    assert config["created"] == "1970-01-01T00:00:00Z"
    assert set(config) == {"architecture", "os", "created", "config", "rootfs", "history"}


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_a_base_of_any_compression_and_several_layers(docker: Engine, compression: str) -> None:
    base = base_of(small_system(), tar_of({"second": fresh().encode()}), compression=compression)
    with docker.run_steps(base, "RUN cat /second > /third\n") as built:
        assert len(built.layers) == 1
        assert content_of(built, "third")


def test_a_base_is_given_to_the_engine_once(docker: Engine) -> None:
    base = base_of(small_system(), tar_of({"once": fresh().encode()}))
    opened: list[object] = []

    def open_blob(layer: Descriptor) -> IO[bytes]:
        opened.append(layer)
        return base.open_blob(layer)

    counted = StepsBase(base.manifest, base.config, open_blob)
    docker.run_steps(counted, "RUN touch /a\n").close()
    docker.run_steps(counted, "RUN touch /b\n").close()
    assert len(opened) == 2


def test_a_name_that_hides_another_image_is_not_trusted(engine: DockerEngine, docker: Engine) -> None:
    base, other = (base_of(small_system(), tar_of({name: fresh().encode()})) for name in ("ours", "theirs"))
    docker.load(other, f"{BASE_REPOSITORY}:{Digest.of(base.config).hex}")
    with docker.run_steps(base, "RUN cat /ours > /seen\n") as built:
        assert content_of(built, "seen")


def test_a_base_whose_blob_is_corrupt_is_refused(docker: Engine) -> None:
    base = base_of(tar_of({"file": fresh().encode()}))
    bad = StepsBase(base.manifest, base.config, lambda layer: io.BytesIO(bytes(layer.size)))
    with pytest.raises(IntegrityError, match="expected sha256"):
        docker.run_steps(bad, "RUN touch /a\n")


def test_steps_on_nothing(docker: Engine) -> None:
    config = encode({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"diff_ids": []}})
    scratch = StepsBase(Manifest.build(base_of().manifest.config, (), {}), config, lambda _: io.BytesIO())
    with docker.run_steps(
        scratch, f"COPY {CONTEXT_FOLDER}/file /file\n", io.BytesIO(tar_of({"file": b"alone"}))
    ) as built:
        assert content_of(built, "file") == b"alone"
        assert len(built.layers) == 1


def test_heredocs_and_cache_mounts(docker: Engine, base: StepsBase) -> None:
    mark = fresh()
    steps = (
        f"RUN --mount=type=cache,target=/cache,id={mark} echo kept > /cache/file\n"
        f"RUN --mount=type=cache,target=/cache,id={mark} <<EOF\n"
        'cat /cache/file > /seen\necho "$HOME" >> /seen\nEOF\n'
        "RUN cat > /typed <<EOF && cat <<OTHER >> /typed\none\nEOF\ntwo\nOTHER\n"
    )
    with docker.run_steps(base, steps) as built:
        assert content_of(built, "seen") == b"kept\n/\n"
        assert content_of(built, "typed") == b"one\ntwo\n"
        assert "cache/file" not in files_of(built)


def test_the_same_empty_layer_as_the_base_has(docker: Engine) -> None:
    empty = tar_of({})
    steps = f"COPY {CONTEXT_FOLDER}/nothing/ /\n"
    with docker.run_steps(base_of(small_system(), empty), steps, _empty_folder()) as built:
        assert len(built.layers) == len(json.loads(built.config)["rootfs"]["diff_ids"]) - 2


def _empty_folder() -> io.BytesIO:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        entry = tarfile.TarInfo("nothing")
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(entry)
    return io.BytesIO(content.getvalue())


def test_output_streams_as_it_comes(docker: Engine, base: StepsBase) -> None:
    seen: list[tuple[float, Event]] = []
    steps = f"RUN echo first-{fresh()}; sleep 1; echo last >&2\n"
    docker.run_steps(base, steps, progress=lambda event: seen.append((time.monotonic(), event))).close()
    lines = [(when, event) for when, event in seen if event.state == "output"]
    assert [event.text[:6] for _, event in lines] == ["first-", "last"]
    assert lines[1][0] - lines[0][0] > 0.5
    assert {event.phase for _, event in seen} == {"step"}
    assert any("FROM the base image" in event.subject for _, event in seen)
    states = [event.state for _, event in seen if "RUN echo" in event.subject]
    assert states == ["start", "output", "output", "done"]


def test_a_failing_step_says_what_it_was_and_what_it_said(docker: Engine, base: StepsBase) -> None:
    failing = "RUN seq 30 >&2; echo oh no >&2; exit 7"  # engines may mix up the order of two outputs
    with pytest.raises(BuildError) as caught:
        docker.run_steps(base, f"RUN echo {fresh()}\n{failing}\n")
    message = str(caught.value)
    assert failing in message
    assert "exit code 7" in message
    assert message.splitlines()[-1] == "  oh no"
    assert len(message.splitlines()) == 21
    assert caught.value.exit_code == 6


def test_a_step_that_the_engine_cannot_read(docker: Engine, base: StepsBase) -> None:
    with pytest.raises(BuildError, match=r"(?i)nonsense"):
        docker.run_steps(base, "NONSENSE\n")


def test_a_file_that_is_not_in_the_context(docker: Engine, base: StepsBase) -> None:
    with pytest.raises(BuildError, match="COPY missing /x"):
        docker.run_steps(base, "COPY missing /x\n")


@dockers_alone
@pytest.mark.parametrize("memory", [None, 256 << 20], ids=["buildkit", "older builder"])
def test_a_build_that_takes_too_long(
    engine: DockerEngine, docker: Engine, base: StepsBase, memory: int | None
) -> None:
    seconds = 300 + int(fresh()[:4], 16)
    begun = time.monotonic()
    with pytest.raises(BuildLimit, match="2 seconds"):
        docker.run_steps(base, f"RUN sleep {seconds}\n", limits=Limits(memory=memory, seconds=2))
    assert time.monotonic() - begun < 6
    gone_within(10, f"sleep {seconds}")


@dockers_alone
def test_a_build_that_passes_the_deadline_talking(docker: Engine, base: StepsBase) -> None:
    mark = fresh()
    with pytest.raises(DeadlineExceeded):
        docker.run_steps(
            base, f"RUN while true; do echo {mark}; sleep 0.01; done\n", deadline=Deadline.after(2)
        )
    gone_within(10, mark)


@dockers_alone
def test_an_interrupted_build_leaves_nothing(engine: DockerEngine, docker: Engine, tmp_path: Path) -> None:
    seconds = 300 + int(fresh()[:4], 16)
    program = (
        "from engine_bases import *; from envbuild.build.engine import Engine\n"
        f"Engine.connect({engine.host!r}).run_steps(base_of(small_system()), 'RUN sleep {seconds}\\n')\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
    )
    runs_within(30, f"sleep {seconds}")
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=30)[1]
    gone_within(10, f"sleep {seconds}")
    assert list(tmp_path.iterdir()) == []


def test_two_builds_at_once(docker: Engine, base: StepsBase) -> None:
    steps = f"RUN sleep 1; echo {fresh()} > /file\n"
    with ThreadPoolExecutor() as pool:
        first, second, other = pool.map(
            lambda text: docker.run_steps(base, text), [steps, steps, f"RUN echo {fresh()} > /file\n"]
        )
    with first, second, other:
        assert content_of(first, "file") == content_of(second, "file") != content_of(other, "file")


def test_memory_is_limited_with_the_older_builder(docker: Engine, base: StepsBase) -> None:
    limit = 64 << 20
    groups = "/sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max"
    steps = f"RUN cat {groups} > /limit 2>&1; touch /x\n"
    with docker.run_steps(base, steps, limits=Limits(memory=limit, cpus=0.5)) as built:
        assert str(limit).encode() in content_of(built, "limit")


@dockers_alone
def test_memory_cannot_be_limited_with_a_mount(docker: Engine, base: StepsBase) -> None:
    with pytest.raises(BuildError, match="need BuildKit"):
        docker.run_steps(base, "RUN --mount=type=cache,target=/c touch /x\n", limits=Limits(memory=64 << 20))


def test_layers_that_are_too_big_are_not_used(docker: Engine, base: StepsBase) -> None:
    with pytest.raises(BuildLimit, match="at most 1000000"):
        docker.run_steps(base, "RUN head -c 2000000 /dev/zero > /big\n", limits=Limits(disk=1_000_000))


def test_values_are_data(docker: Engine, base: StepsBase, tmp_path: Path) -> None:
    value = "$(touch /pwned) `touch /pwned` \"; touch /pwned; ' \n RUN touch /pwned \\"
    steps = 'ARG VALUE\nRUN env > /env; echo "$VALUE" > /value\n'
    with docker.run_steps(base, steps, args={"VALUE": value}) as built:
        assert content_of(built, "value").decode() == value + "\n"
        assert "pwned" not in files_of(built)


def test_the_bases_argument_cannot_be_given(docker: Engine, base: StepsBase) -> None:
    with pytest.raises(BuildError, match="ENVBUILD_BASE"):
        docker.run_steps(base, "RUN touch /x\n", args={"ENVBUILD_BASE": "debian"})


def test_a_frontend_is_never_fetched(docker: Engine, base: StepsBase) -> None:
    steps = "# syntax=registry.invalid/frontend:1\nRUN touch /x\n"
    with docker.run_steps(base, steps) as built:
        assert "x" in files_of(built)


@pytest.mark.usefixtures("buildx")
def test_secrets_are_mounted_and_leave_no_trace(docker: Engine, base: StepsBase) -> None:
    secret = fresh()
    seen: list[Event] = []
    steps = (
        f"ARG NAME\nRUN --mount=type=secret,id=token echo {fresh()}; cat /run/secrets/token; "
        "head -c 8 /run/secrets/token > /begin; echo $NAME > /name\n"
        f"COPY {CONTEXT_FOLDER}/file /copied\n"
    )
    with docker.run_steps(
        base,
        steps,
        io.BytesIO(tar_of({"file": b"copied"})),
        args={"NAME": "a b"},
        secrets={"token": secret.encode()},
        progress=seen.append,
    ) as built:
        assert content_of(built, "begin").decode() == secret[:8]
        assert content_of(built, "name") == b"a b\n"
        assert content_of(built, "copied") == b"copied"
        assert secret.encode() not in built.config
    assert "***" in [event.text for event in seen]
    assert secret not in repr(seen)


@pytest.mark.usefixtures("buildx")
def test_a_secret_that_is_left_in_a_layer(docker: Engine, base: StepsBase) -> None:
    with pytest.raises(BuildError, match="secret token"):
        docker.run_steps(
            base,
            f"RUN --mount=type=secret,id=token echo {fresh()}; cat /run/secrets/token > /leak\n",
            secrets={"token": fresh().encode()},
        )


@pytest.mark.usefixtures("buildx")
def test_a_failing_step_with_a_secret(docker: Engine, base: StepsBase, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(secret := fresh())
    with pytest.raises(BuildError, match="exit code 9") as caught:
        docker.run_steps(
            base,
            "RUN --mount=type=secret,id=token cat /run/secrets/token; exit 9\n",
            secrets={"token": tmp_path / "token"},
        )
    assert str(caught.value).endswith("  ***")
    assert secret not in str(caught.value)


@dockers_alone
@pytest.mark.usefixtures("buildx")
def test_a_build_with_a_secret_that_takes_too_long(docker: Engine, base: StepsBase) -> None:
    seconds = 300 + int(fresh()[:4], 16)
    with pytest.raises(BuildLimit):
        docker.run_steps(
            base,
            f"RUN --mount=type=secret,id=token sleep {seconds}\n",
            secrets={"token": b"some-value"},
            limits=Limits(seconds=3),
        )
    gone_within(10, f"sleep {seconds}")


@dockers_alone
def test_secrets_without_buildx_say_how_to_get_it(
    docker: Engine, base: StepsBase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="buildx") as caught:
        docker.run_steps(
            base,
            "RUN --mount=type=secret,id=token cat /run/secrets/token\n",
            secrets={"token": b"value-of-it"},
        )
    assert caught.value.hint is not None
    assert "buildx" in caught.value.hint


def test_no_engine_says_what_was_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(BuildError, match=r"none\.sock \(No such file") as caught:
        Engine.connect()
    assert caught.value.hint is not None
    assert "docker.io" in caught.value.hint


def test_the_usual_places_are_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("envbuild.build.engine_info._SYSTEM_SOCKETS", (f"{tmp_path}/docker.sock",))
    with pytest.raises(BuildError, match="podman"):
        Engine.connect()


def test_the_current_context_is_used(
    engine: DockerEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "contexts/meta" / Digest.of(b"mine").hex
    folder.mkdir(parents=True)
    endpoints = {"docker": {"Host": engine.host, "SkipTLSVerify": False}}
    (folder / "meta.json").write_text(json.dumps({"Name": "mine", "Metadata": {}, "Endpoints": endpoints}))
    (tmp_path / "config.json").write_text(json.dumps({"currentContext": "mine"}))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with Engine.connect() as found:
        assert found.describe().endpoint.endswith(engine.host.removeprefix("unix://"))


def test_what_an_engine_is(docker: Engine, engine: DockerEngine) -> None:
    info = docker.describe()
    assert info.version == engine.docker("version", "--format", "{{.Server.Version}}").stdout.strip()
    assert info.storage == engine.docker("info", "--format", "{{.Driver}}").stdout.strip()
    podman = engine.host.endswith("podman.sock")
    assert (info.buildkit, info.podman) == (not podman, podman)
    assert info.heredocs == (info.major >= 23)


def test_a_command_in_a_container(
    docker: Engine, engine: DockerEngine, base: StepsBase, tmp_path: Path
) -> None:
    image = docker.load(base, "envbuild-test:run")
    said: dict[int, bytes] = {1: b"", 2: b""}

    def output(stream: int, data: bytes) -> None:
        said[stream] += data

    try:
        (tmp_path / "in").write_text("mounted\n")
        code = docker.run(
            image,
            ["sh", "-c", "cat in; echo $NAME >&2; exit 5"],
            output=output,
            mounts={tmp_path: "/data"},
            env={"NAME": "value"},
            workdir="/data",
        )
        assert docker.run(image, ["id", "-un"], output=output, user="somebody") == 0
    finally:
        engine.docker("rmi", "envbuild-test:run")
    assert code == 5
    assert said == {1: b"mounted\nsomebody\n", 2: b"value\n"}


def test_an_archive_is_loaded(docker: Engine, engine: DockerEngine, base: StepsBase) -> None:
    mine = base_of(tar_of({"loaded": fresh().encode()}))
    image = docker.load(mine, "envbuild-test:saved")
    saved = subprocess.run(
        ["docker", "save", "envbuild-test:saved"],
        env={**os.environ, **engine.environment},
        capture_output=True,
        check=True,
    )
    engine.docker("rmi", "envbuild-test:saved")
    assert docker.load_archive(io.BytesIO(saved.stdout)) == (image,)
    engine.docker("rmi", "envbuild-test:saved")


def test_prune_removes_what_is_ours(docker: Engine, engine: DockerEngine) -> None:
    base = base_of(tar_of({"pruned": fresh().encode()}))
    docker.load(base, "envbuild-test:kept")
    engine.docker("tag", "envbuild-test:kept", f"{BASE_REPOSITORY}:{fresh()}")
    engine.docker("tag", "envbuild-test:kept", f"{BUILD_REPOSITORY}:{fresh()}")
    assert docker.prune() >= 2
    listed = engine.docker("images", "--format", "{{.Repository}}").stdout.split()
    names = {name.removeprefix("localhost/") for name in listed}
    engine.docker("rmi", "envbuild-test:kept")
    assert "envbuild-test" in names
    assert not {BASE_REPOSITORY, BUILD_REPOSITORY} & names


def test_apt_installs_in_a_step(docker: Engine) -> None:
    with FileLock(CACHE / "test-bases.lock"):
        debian = debian_base(CACHE / "test-bases")
    steps = "RUN apt-get update && apt-get install -y --no-install-recommends libgomp1\n"
    with docker.run_steps(debian, steps) as built:
        assert any("libgomp.so.1" in name for name in files_of(built))
        assert len(built.layers) == 1
