"""One lock on one base is one digest, whoever builds it, and wherever."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cli_calls import ENVBUILD
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import Manifest
from envbuild.reference import Repository
from parts.programs import program
from tiny import LIBC, make_base

if TYPE_CHECKING:
    from fixtures_channel import ChannelFolder

DEFINITION = """\
channels: [fixtures, nodefaults]
dependencies: [python=3.11, click, tabulate, activation, clobber-a, clobber-b]
variables: {GREETING: "grüß dich"}
"""


SETTINGS = {"gzip": "true", "zstd": "false"}
"""Whether modules are compiled, by compression."""


@dataclass(frozen=True)
class Machine:
    """What differs from one machine to the next.

    Attributes:
        name: The folder that everything is in.
        umask: Which permissions new files do not get.
        cores: On how many processors it runs.
        variables: Environment variables.
    """

    name: str
    umask: int
    cores: int
    variables: dict[str, str] = field(default_factory=dict)


MACHINES = (
    Machine("plain", 0o022, os.cpu_count() or 1, {"PYTHONHASHSEED": "1"}),
    Machine(
        "ünï côdé/deep/er", 0o077, 1,
        {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "LC_ALL": "C", "ENVBUILD_JOBS": "1"},
    ),
    Machine(
        "x", 0o000, 2,
        {"PYTHONHASHSEED": "random", "TZ": "America/St_Johns", "LC_ALL": "tr_TR.UTF-8", "ENVBUILD_JOBS": "9",
         "USER": "someone", "SOURCE_DATE_EPOCH": "1", "PYTHONOPTIMIZE": "2"},
    ),
)  # fmt: skip


def run(machine: Machine, root: Path, *arguments: str, **variables: str) -> str:
    """Run envbuild as a process of that machine; gives its standard output."""
    folder = root / machine.name
    for each in ("home", "tmp"):
        (folder / each).mkdir(parents=True, exist_ok=True)
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith(("ENVBUILD_", "PYTHON"))},
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        **machine.variables,
        **variables,
    }
    allowed = sorted(os.sched_getaffinity(0))[: machine.cores]
    prefix = [program("taskset", "util-linux"), "--cpu-list", ",".join(map(str, allowed))]
    done = subprocess.run(
        [*prefix, *ENVBUILD, *arguments],
        cwd=folder, env=environment, umask=machine.umask, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def test_one_lock_is_one_digest_on_every_machine(channel: ChannelFolder, tmp_path: Path) -> None:
    settings = {
        "ENVBUILD_CHANNEL_ALIAS": channel.alias,
    }
    first = tmp_path / MACHINES[0].name
    first.mkdir()
    (first / "environment.yml").write_text(DEFINITION)
    make_base(Repository.parse(f"oci:{first}/bases"), "minimal", {"lib/libc.so.6": LIBC})
    run(MACHINES[0], tmp_path, "lock", "--base", "oci:bases:minimal", "environment.yml", **settings)
    digests = {}
    for machine in MACHINES:
        folder = tmp_path / machine.name
        folder.mkdir(parents=True, exist_ok=True)
        if folder != first:
            for name in ("environment.yml", "envbuild.lock"):
                shutil.copyfile(first / name, folder / name)
            shutil.copytree(first / "bases", folder / "bases")
        for compression, pyc in SETTINGS.items():
            workspace = f"oci:{folder}/images-{compression}"
            answer = run(
                machine, tmp_path,
                "resolve", "--locked", "--quiet", "--base", "oci:bases:minimal", "environment.yml",
                ENVBUILD_WORKSPACE=workspace, ENVBUILD_PYC=pyc,
                ENVBUILD_COMPRESSION=compression, **settings,
            )  # fmt: skip
            digests[machine.name, compression] = answer.rpartition("@")[2]
    for compression in SETTINGS:
        assert len({digests[machine.name, compression] for machine in MACHINES}) == 1, digests
    assert digests["plain", "gzip"] != digests["plain", "zstd"]
    for compression in SETTINGS:
        _check_layers(Repository.parse(f"oci:{first}/images-{compression}"), f"layer.v1.tar+{compression}")


def _check_layers(workspace: Repository, kind: str) -> None:
    """The comparison was of something: each package of the definition has its layer."""
    layout = LayoutRegistry(workspace)
    (tag,) = (tag for tag in layout.tags() if str(tag).startswith("l1-"))
    manifest = layout.get_manifest(tag)
    assert isinstance(manifest, Manifest)
    assert len(manifest.layers) >= 6
    assert all(layer.media_type.endswith(kind) for layer in manifest.layers[1:])
