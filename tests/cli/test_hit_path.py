"""What the process of an index hit imports: time follows from that, and is measured by the benchmarks."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from cli_calls import Call
from tiny import World

if TYPE_CHECKING:
    from parts.registry_server import RegistryServer

ALLOWED = {"cachetools", "click", "cython_runtime", "envbuild", "yaml"}
"""What a hit may load beside the standard library; PyYAML's parser in C brings the runtime of Cython."""

NEVER = (
    *("rattler", "oras", "docker", "requests", "rich", "urllib3", "packaging", "isal", "zstandard"),
    *("asyncio", "ssl", "http.client", "email", "concurrent.futures", "multiprocessing"),
    *("subprocess", "tarfile", "zipfile", "importlib.metadata", "filelock", "platformdirs"),
    *("envbuild.build.layers", "envbuild.build.compose", "envbuild.build.engine", "envbuild.oci.remote"),
    *("envbuild.oci.layout", "envbuild.conda", "envbuild.prewarm", "envbuild.run"),
    *("envbuild.spec.azureml", "envbuild.spec.pip", "envbuild.spec.steps", "envbuild.spec.dockerfile"),
)

PROGRAM = """
import sys
before = set(sys.modules)
from envbuild.cli import exit_code_of
code = exit_code_of(sys.argv[1:])
print(code, *sorted(set(sys.modules) - before), file=sys.stderr)
"""


def imported(*words: str) -> tuple[int, set[str], str]:
    """The exit code of a call, the modules that it imported, and its standard output."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True)
    code, *modules = done.stderr.splitlines()[-1].split()
    return int(code), set(modules), done.stdout


def test_an_index_hit_imports_little(world: World, call: Call) -> None:
    spec = str(world.spec("tool=1"))
    assert call("resolve", spec).code == 0
    code, modules, out = imported("resolve", "--json", spec)
    assert code == 0
    assert '"source": "index"' in out
    tops = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    assert {name for name in tops if not name.startswith("_")} <= ALLOWED
    assert modules & set(NEVER) == set()
    own = {name for name in modules if name.partition(".")[0] == "envbuild"}
    assert len(own) <= 43, sorted(own)


def test_help_needs_no_resolver() -> None:
    code, modules, _ = imported("--help")
    assert code == 0
    assert "envbuild.resolver" not in modules
    assert "yaml" not in modules


def test_a_build_of_small_layers_imports_no_second_http_client(
    world: World, registry: RegistryServer
) -> None:
    words = ["--workspace", str(registry.repository("small")), "--base", str(world.config.base)]
    words += ["--channel-alias", world.config.channel_alias]
    code, modules, out = imported("resolve", str(world.spec("tool=1", "first")), *words)
    assert code == 0
    assert "@sha256:" in out
    assert modules & {"oras", "requests", "urllib3"} == set()
    assert {"envbuild.oci.thin", "envbuild.build.compose"} <= modules
