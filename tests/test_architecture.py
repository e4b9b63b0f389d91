"""The modules stand in one line, and each outside library has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import envbuild

ROOT = Path(envbuild.__file__).parent

ORDER = (
    "errors",
    "progress",
    "deadline",
    "budget",
    "inflate",
    "child",
    "storage",
    "platform",
    "digest",
    "url",
    "reference",
    "spec",
    "key",
    "lint",
    "diff",
    "lock",
    "lockkey",
    "lockfile",
    "oci",
    "conda",
    "foreign",
    "pip",
    "trust",
    "config",
    "sealed",
    "index",
    "cleaning",
    "admission",
    "lookup",
    "sbom",
    "attach",
    "publishing",
    "transfer",
    "build",
    "promote",
    "resolver",
    "restore",
    "checks",
    "imageconfig",
    "attached",
    "unpacked",
    "verify",
    "rebuild",
    "locking",
    "prewarm",
    "run",
    "output",
    "cli",
    "__main__",
)
SPEC_ORDER = ("document", "conda", "pip", "steps", "azureml", "environment")
DOORS: dict[str, str | tuple[str, ...]] = {
    "rattler": ("conda/solve.py", "conda/locks.py"),
    "oras": "oci/remote.py",
    "requests": "oci/remote.py",
    "docker": "build/engine.py",
    "uv": "pip/uv.py",
    "sigstore": "trust/identity.py",
    "click": "cli/",
    "rich": "cli/",
}
HIT_PATH = ("oras", "docker", "rattler", "requests", "rich", "urllib3", "packaging")

FILES = sorted(ROOT.rglob("*.py"))
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_bytes()) for path in FILES}


def module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".").replace("__init__", "")


MODULES = {module(path): tree for path, tree in TREES.items()}


def imported(tree: ast.AST) -> set[str]:
    """Every module that the tree imports, also in functions and for types only, by full name."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(tree: ast.AST) -> set[str]:
    """The modules of envbuild among them, as ``spec.conda``."""
    found = set()
    for name in imported(tree):
        if name.split(".")[0] != "envbuild":
            continue
        inner = name.removeprefix("envbuild").removeprefix(".")
        while inner and inner not in MODULES:
            inner = inner.rpartition(".")[0]
        found.add(inner)
    return found


def test_every_module_has_its_place() -> None:
    assert {name.split(".")[0] for name in MODULES} - {""} <= set(ORDER)


@pytest.mark.parametrize("name", sorted(set(MODULES) - {""}))
def test_a_module_imports_only_what_stands_before_it(name: str) -> None:
    place = ORDER.index(name.split(".", maxsplit=1)[0])
    later = {each for each in own_imports(MODULES[name]) if each and ORDER.index(each.split(".")[0]) > place}
    assert not later


def test_no_module_imports_itself_round_a_corner() -> None:
    # A package's own __init__ names its modules lazily and stands behind them.
    graph = {name: own_imports(tree) - {name} for name, tree in MODULES.items() if name}
    assert set(TopologicalSorter(graph).static_order()) >= set(graph)


def test_the_parts_of_a_definition_stand_in_the_documented_order() -> None:
    reach = {name: _reach(f"spec.{name}", set()) for name in SPEC_ORDER}
    for place, name in enumerate(SPEC_ORDER):
        # A Conda file holds its pip section, so `conda` reads `pip`; all else looks back only.
        later = {f"spec.{each}" for each in SPEC_ORDER[place + 1 :]} - (
            {"spec.pip"} if name == "conda" else set()
        )
        assert not reach[name] & later


def _reach(name: str, seen: set[str]) -> set[str]:
    for each in own_imports(MODULES.get(name, ast.Module([], []))) - seen:
        seen.add(each)
        _reach(each, seen)
    return seen


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_one_door(library: str) -> None:
    users = {
        path for path, tree in TREES.items() if library in {name.split(".")[0] for name in imported(tree)}
    }
    assert {path for path in users if not path.startswith(DOORS[library])} == set()


@pytest.mark.parametrize("path", sorted(TREES))
def test_urls_are_read_by_one_grammar(path: str) -> None:
    """Two readers may find two servers in one URL: :mod:`envbuild.url` reads, and no library does."""
    readers = {
        "urlsplit",
        "urlparse",
        "urljoin",
        "urlunsplit",
        "urlunparse",
        "urldefrag",
        "parse_url",
        "splitport",
    }
    names = {node.attr for node in ast.walk(TREES[path]) if isinstance(node, ast.Attribute)}
    names |= {name.rpartition(".")[2] for name in imported(TREES[path])}
    assert names & readers == set()


def ends_or_prints(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in {"print", "exit", "quit", "SystemExit", "input"}
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return (node.value.id, node.attr) in {
            ("sys", "exit"),
            ("sys", "stdout"),
            ("sys", "stderr"),
            ("os", "_exit"),
            ("os", "abort"),
        }
    return False


@pytest.mark.parametrize("path", sorted(path for path in TREES if not path.startswith(("cli/", "__main__"))))
def test_only_the_command_line_prints_or_exits(path: str) -> None:
    assert [node.lineno for node in ast.walk(TREES[path]) if ends_or_prints(node)] == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("source", ["print(1)", "sys.exit(1)", "raise SystemExit", "sys.stdout.write('')"])
def test_the_check_for_printing_sees_it(source: str) -> None:
    assert any(ends_or_prints(node) for node in ast.walk(ast.parse(source)))


def test_a_key_needs_no_heavy_library() -> None:
    program = (
        "import sys, envbuild.key, envbuild.spec.environment\n"
        f"print(*sorted(set({HIT_PATH!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_conda_file_needs_no_parser_of_other_forms(tmp_path: Path) -> None:
    (tmp_path / "environment.yml").write_text("dependencies: [numpy=1.26]\n")
    program = (
        "import sys, envbuild.key\n"
        "from envbuild.spec.environment import load\n"
        "spec = load('environment.yml', base='scratch')\n"
        "envbuild.key.CanonicalForm.of(spec, None, spec.platforms[0]).key\n"
        "print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    others = {f"envbuild.spec.{name}" for name in ("pip", "steps", "dockerfile", "azureml")}
    assert others & set(done.stdout.split()) == set()


def test_no_folder_of_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    tests = Path(__file__).parent
    passed_over = pytestconfig.getini("norecursedirs")
    folders = {part for file in tests.rglob("test_*.py") for part in file.relative_to(tests).parts[:-1]}
    assert "build" in folders
    assert [name for name in folders if any(fnmatch(name, each) for each in passed_over)] == []
