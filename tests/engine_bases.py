"""Small real base images for tests of the engine, and what goes into a build."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import subprocess
import tarfile
import uuid
from pathlib import Path
from typing import IO

import zstandard

from envbuild.build.steps_build import BUILD_REPOSITORY
from envbuild.build.steps_image import BuiltSteps, StepsBase
from envbuild.digest import Descriptor, Digest
from envbuild.oci.manifest import OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, Manifest, encode
from parts.docker_engine import DockerEngine
from parts.programs import program

PROGRAMS = ("dash", "cat", "env", "head", "id", "ln", "ls", "mkdir", "rm", "seq", "sleep", "touch", "yes")
ACCOUNTS = b"root:x:0:0:root:/:/bin/sh\nsomebody:x:1000:1000::/:/bin/sh\n"


def tar_of(files: dict[str, bytes], *, links: dict[str, str] | None = None) -> bytes:
    """A tar of executable files and of symbolic links, with fixed times."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return content.getvalue()


def with_libraries(path: Path, place: str) -> dict[str, bytes]:
    """A program at a place in a root file system, and the libraries that it needs."""
    listed = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False).stdout
    libraries = re.findall(r"(/\S+) \(0x", listed)
    return {place: path.read_bytes()} | {each.lstrip("/"): Path(each).read_bytes() for each in libraries}


def small_system() -> bytes:
    """A root file system of a shell and a few of this machine's programs, with the libraries they need."""
    files = {"etc/passwd": ACCOUNTS, "etc/group": b"root:x:0:\nsomebody:x:1000:\n"}
    for name in PROGRAMS:
        files |= with_libraries(Path(program(name, "coreutils")), f"bin/{name}")
    return tar_of(files, links={"bin/sh": "dash"})


def packed(tar: bytes, compression: str) -> tuple[Descriptor, bytes]:
    """A layer's blob and its descriptor."""
    if compression == "gzip":
        tar, media_type = gzip.compress(tar, 1, mtime=0), OCI_LAYER_GZIP
    elif compression == "zstd":
        tar, media_type = zstandard.ZstdCompressor().compress(tar), OCI_LAYER_ZSTD
    else:
        media_type = OCI_LAYER
    return Descriptor.of(tar, media_type), tar


def base_of(*tars: bytes, compression: str = "gzip", settings: dict[str, object] | None = None) -> StepsBase:
    """An image of some layers, in memory."""
    blobs = dict(packed(tar, compression) for tar in tars)
    config = encode(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": "2026-01-02T03:04:05Z",
            "config": {"Env": ["PATH=/bin"], **(settings or {})},
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(tar)) for tar in tars]},
            "history": [{"created": "2026-01-02T03:04:05Z", "created_by": "the base"} for _ in tars],
        }
    )
    manifest = Manifest.build(Descriptor.of(config, OCI_CONFIG), tuple(blobs), {})
    return StepsBase(manifest, config, lambda layer: io.BytesIO(blobs[layer]))


def buildx_plugin(folder: Path) -> Path:
    """Debian trixie's buildx (bookworm has none), unpacked into a folder and kept there."""
    plugin = folder / "root/usr/libexec/docker/cli-plugins/docker-buildx"
    if plugin.exists():
        return plugin
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (folder / "sources").write_text(f"deb [signed-by={keys}] http://deb.debian.org/debian trixie main\n")
    settings = {
        "Dir::Etc::sourcelist": folder / "sources",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder,
        "APT::Sandbox::User": "root",
    }
    apt = [program("apt-get", "apt"), "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", "docker-buildx"], check=True, cwd=folder)
    (package,) = folder.glob("docker-buildx_*.deb")
    subprocess.run([program("dpkg", "dpkg"), "--extract", str(package), str(folder / "root")], check=True)
    return plugin


def debian_base(folder: Path) -> StepsBase:
    """A minimal Debian of today's packages, kept in a folder once made."""
    path = folder / "bookworm-minbase.tar"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.tar")
        command = [program("mmdebstrap", "mmdebstrap"), "--quiet", "--variant=minbase", "bookworm", str(part)]
        subprocess.run(command, check=True)
        part.rename(path)
    with path.open("rb") as content:
        digest = Digest(hashlib.file_digest(content, "sha256").hexdigest())
    layer = Descriptor(OCI_LAYER, digest, path.stat().st_size)
    config = encode(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["bash"]},
            "rootfs": {"type": "layers", "diff_ids": [str(digest)]},
        }
    )

    def open_blob(_: Descriptor) -> IO[bytes]:
        return path.open("rb")

    return StepsBase(Manifest.build(Descriptor.of(config, OCI_CONFIG), (layer,), {}), config, open_blob)


def leftovers(engine: DockerEngine) -> set[str]:
    """Containers, images that are being built, and images without a name."""
    images = engine.docker("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").stdout
    lines = [line.removeprefix("localhost/") for line in images.splitlines()]
    found = {line for line in lines if line.startswith((BUILD_REPOSITORY, "<none>"))}
    return found | set(engine.docker("ps", "--all", "--quiet", "--no-trunc").stdout.split())


def files_of(built: BuiltSteps) -> dict[str, tarfile.TarInfo]:
    """The entries of the new layers by path."""
    found: dict[str, tarfile.TarInfo] = {}
    for layer in built.layers:
        with layer.open() as stream, tarfile.open(fileobj=stream) as archive:
            found |= {entry.name: entry for entry in archive}
    return found


def content_of(built: BuiltSteps, name: str) -> bytes:
    """The content of a file in the new layers."""
    for layer in reversed(built.layers):
        with layer.open() as stream, tarfile.open(fileobj=stream) as archive:
            if name in archive.getnames() and (content := archive.extractfile(name)) is not None:
                return content.read()
    raise AssertionError(f"{name} is in no new layer")


def fresh() -> str:
    """Something that no build before had, so that nothing comes from BuildKit's cache."""
    return uuid.uuid4().hex
