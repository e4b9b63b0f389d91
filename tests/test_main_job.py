"""The main job end to end: a real engine, real registries, real packages, real Debian bases."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from envbuild.config import Config
from envbuild.oci.copy import copy_image
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.registry import publish
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository, Tag
from envbuild.resolver import ResolvedImage, Resolver, Source
from fixtures_channel import Bases, ChannelFolder
from parts.docker_engine import DockerEngine
from parts.registry_server import RegistryServer

pytestmark = pytest.mark.xdist_group("engine")

SPEC = """\
base: {base}
steps: |
  # a command from Debian, and a file of ours
  RUN apt-get update && apt-get install -y --no-install-recommends hello \\
      && rm -rf /var/lib/apt/lists/*
  COPY greeting.txt /etc/greeting
  ENV GREETING=/etc/greeting
steps_after: |
  RUN python -c "import numpy; open('/etc/after', 'w').write(numpy.__name__)"
conda:
  channels: [fixtures, nodefaults]
  dependencies: [python=3.11, numpy, pandas, scikit-learn, tabulate]
variables:
  OMP_NUM_THREADS: "1"
"""

CHECK = """\
import json, os, ssl, sqlite3, sys
import numpy, pandas, sklearn
from sklearn.linear_model import LinearRegression
x = numpy.arange(10.0).reshape(-1, 1)
slope = LinearRegression().fit(x, 3 * x.ravel() + 1).coef_[0]
frame = pandas.DataFrame({"a": [1, 2, 3]})
print(json.dumps({
    "slope": round(float(slope), 6), "mean": float(frame.a.mean()), "prefix": sys.prefix,
    "conda": os.environ["CONDA_PREFIX"], "threads": os.environ["OMP_NUM_THREADS"],
    "after": open("/etc/after").read(), "greeting": open(os.environ["GREETING"]).read(),
    "meta": sorted(name for name in os.listdir("/opt/env/conda-meta") if name.startswith("numpy-")),
}))
"""


@pytest.fixture(scope="module")
def published_base(registry: RegistryServer, bases: Bases) -> str:
    """The minimal base in the registry, as a user names it."""
    source = LayoutRegistry(Repository.parse(f"oci:{bases.minimal}"))
    repository = registry.repository("bases")
    target = RemoteRegistry(repository)
    manifest = source.get_manifest(Tag("latest"))
    copy_image(source, target, manifest)
    publish(target, manifest, Tag("minimal"))
    target.close()
    return f"{repository}:minimal"


@pytest.fixture
def config(
    registry: RegistryServer,
    channel: ChannelFolder,
    engine: DockerEngine,
    tmp_path: Path,
    published_base: str,
) -> Config:
    """The settings of a machine that has seen nothing yet."""
    return Config(
        workspace=registry.repository("envs"),
        channel_alias=channel.alias,
        cache_dir=tmp_path / "cache",
        docker_host=engine.host,
        base=published_base,
    )


def definition(folder: Path, base: str, text: str = SPEC) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "greeting.txt").write_text("good morning")
    path = folder / "envbuild.yaml"
    path.write_text(text.format(base=base))
    return path


def resolve(config: Config, spec: Path, **options: Any) -> ResolvedImage:
    with Resolver(config) as resolver:
        return resolver.resolve(spec, **options)


def settings(config: Config) -> dict[str, str]:
    """The same settings for a process."""
    values = {
        "ENVBUILD_WORKSPACE": str(config.workspace),
        "ENVBUILD_CHANNEL_ALIAS": config.channel_alias,
        "ENVBUILD_CACHE_DIR": str(config.cache_dir),
        "ENVBUILD_DOCKER_HOST": config.docker_host or "",
        "ENVBUILD_BASE": config.base or "",
    }
    return {**os.environ, **values}


def envbuild(config: Config, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "envbuild", *words]
    return subprocess.run(
        command, env=settings(config), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def test_steps_and_packages_run_under_docker_and_a_second_machine_builds_nothing(
    config: Config,
    tmp_path: Path,
    engine: DockerEngine,
    registry: RegistryServer,
    second_registry: RegistryServer,
) -> None:
    spec = definition(tmp_path / "project", str(config.base))
    built = envbuild(config, "resolve", "--json", str(spec))
    assert built.returncode == 0, built.stderr
    answer = json.loads(built.stdout)
    assert answer["source"] == "built"
    assert "apt-get install" in built.stderr

    engine.docker("pull", answer["reference"])
    ran = engine.docker("run", "--rm", answer["reference"], "python", "-c", CHECK)
    seen = json.loads(ran.stdout)
    assert seen["slope"] == 3.0
    assert seen["mean"] == 2.0
    assert seen["prefix"] == seen["conda"] == "/opt/env"
    assert seen["threads"] == "1"
    assert seen["after"] == "numpy"
    assert seen["greeting"] == "good morning"
    assert len(seen["meta"]) == 1
    assert "Hello, world!" in engine.docker("run", "--rm", answer["reference"], "hello").stdout
    table = engine.docker(
        "run", "--rm", answer["reference"], "sh", "-c", "printf 'a b\\n1 2\\n' | tabulate -f pipe -1"
    )
    assert table.stdout.startswith("|")

    before = len(registry.requests)
    elsewhere = replace(config, cache_dir=tmp_path / "other")
    second = resolve(elsewhere, definition(tmp_path / "elsewhere" / "copy", str(config.base)))
    assert second.source is Source.WORKSPACE
    assert str(second.reference) == answer["reference"]
    assert not [line for line in registry.requests[before:] if not line.startswith(("GET", "HEAD"))]

    user = replace(
        config,
        cache_dir=tmp_path / "third",
        workspace=second_registry.repository("mine"),
        global_=config.workspace,
    )
    third = resolve(user, spec)
    assert (third.source, str(third.reference)) == (Source.GLOBAL, answer["reference"])
    promoted = resolve(replace(user, cache_dir=tmp_path / "fourth", promote=True), spec)
    assert promoted.reference.repository == user.workspace
    assert promoted.reference.digest == third.reference.digest
    engine.docker("pull", str(promoted.reference))

    other = spec.with_name("other.yaml")
    alone = (
        spec.read_text().partition("steps_after:")[0] + "conda:" + spec.read_text().partition("\nconda:")[2]
    )
    other.write_text(alone.replace("tabulate", "tabulate, tqdm"))
    sharing = replace(user, cache_dir=tmp_path / "fifth", docker_host="unix:///nowhere.sock")
    shared = resolve(sharing, other)
    assert shared.source is Source.BUILT, "the steps' image was taken from the global repository"


def test_one_definition_built_in_two_processes_and_folders_has_one_digest(
    config: Config, tmp_path: Path, second_registry: RegistryServer
) -> None:
    text = SPEC.partition("steps:")[0] + "conda:" + SPEC.partition("\nconda:")[2]
    answers = []
    for number, workspace in enumerate((config.workspace, second_registry.repository("envs"))):
        apart = replace(config, workspace=workspace, cache_dir=tmp_path / f"cache{number}")
        spec = definition(tmp_path / f"folder{number}" / ("deep" * number), str(config.base), text)
        done = envbuild(apart, "resolve", "--json", str(spec))
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
    assert [answer["source"] for answer in answers] == ["built", "built"]
    assert answers[0]["digest"] == answers[1]["digest"]


def test_a_pip_section_runs_above_conda_and_alone_on_a_base_with_python(
    config: Config, tmp_path: Path, engine: DockerEngine, bases: Bases
) -> None:
    both = tmp_path / "environment.yml"
    both.write_text("channels: [fixtures]\ndependencies: [python=3.11, rich, pip, pip: [cowsay==6.1]]\n")
    image = resolve(config, both)
    engine.docker("pull", str(image.reference))
    said = engine.docker("run", "--rm", str(image.reference), "cowsay", "-t", "moo")
    assert "| moo |" in said.stdout
    engine.docker("run", "--rm", str(image.reference), "python", "-c", "import cowsay, rich")

    alone = tmp_path / "requirements.txt"
    alone.write_text("cowsay==6.1\n")
    image = resolve(replace(config, base=f"oci:{bases.python}"), alone)
    engine.docker("pull", str(image.reference))
    said = engine.docker("run", "--rm", str(image.reference), "python", "-m", "cowsay", "-t", "moo")
    assert "| moo |" in said.stdout


def _resolve_at(config: Config, spec: Path, moment: float, answers: Any) -> None:
    time.sleep(max(0.0, moment - time.time()))
    image = resolve(config, spec)
    answers.put((str(image.source), str(image.reference)))


def test_sixteen_processes_that_ask_at_once_build_once(config: Config, tmp_path: Path) -> None:
    spec = tmp_path / "environment.yml"
    spec.write_text("channels: [fixtures]\ndependencies: [python=3.11, rich]\n")
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    workers = [
        context.Process(target=_resolve_at, args=(config, spec, time.time() + 5, answers)) for _ in range(16)
    ]
    for worker in workers:
        worker.start()
    seen = [answers.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert [source for source, _ in seen].count("built") == 1
    assert len({reference for _, reference in seen}) == 1


def test_with_the_registry_stopped_resolve_exits_4_and_builds_nothing(
    config: Config, tmp_path: Path, stoppable_registry: RegistryServer
) -> None:
    spec = definition(tmp_path / "project", str(config.base))
    stopped = replace(config, workspace=stoppable_registry.repository("envs"))
    stoppable_registry.stop()
    done = envbuild(stopped, "resolve", str(spec))
    assert done.returncode == 4
    assert done.stdout == ""
    assert "solving" not in done.stderr
    assert "hint:" in done.stderr
    assert not (config.cache_dir / "repodata").exists()


def test_a_failing_step_shows_its_command_its_last_lines_and_its_code(config: Config, tmp_path: Path) -> None:
    text = SPEC.replace("RUN apt-get update", "RUN echo so far so good; sh -c 'exit 7' || exit 23; true")
    done = envbuild(config, "resolve", str(definition(tmp_path / "p", str(config.base), text)))
    assert done.returncode == 6
    assert "so far so good" in done.stderr
    assert "23" in done.stderr
    assert "exit 7" in done.stderr


def test_steps_without_an_engine_say_how_to_get_one(config: Config, tmp_path: Path) -> None:
    spec = definition(tmp_path / "p", str(config.base))
    lonely = replace(config, docker_host=f"unix://{tmp_path}/{uuid.uuid4().hex[:8]}.sock")
    done = envbuild(lonely, "resolve", str(spec))
    assert done.returncode == 6
    assert "apt-get install docker.io" in done.stderr


def test_one_package_changed_sends_one_layer(
    config: Config, tmp_path: Path, registry: RegistryServer
) -> None:
    spec = tmp_path / "environment.yml"
    spec.write_text("channels: [fixtures]\ndependencies: [python=3.11, rich, click=8.1]\n")
    config = replace(config, attach=False)
    resolve(config, spec)
    spec.write_text("channels: [fixtures]\ndependencies: [python=3.11, rich, 'click>=8.2']\n")
    before = len(registry.requests)
    changed = resolve(config, spec)
    assert (changed.source, changed.layers_made) == (Source.BUILT, 1)
    assert changed.bytes_uploaded < 400_000
    uploads = [line for line in registry.requests[before:] if line.startswith("PUT") and "/blobs/" in line]
    assert len(uploads) <= 5
