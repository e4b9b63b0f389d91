"""A channel of tiny packages and bases of one small layer: whole resolves in a fraction of a second."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import tarfile
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import conda_oracle
from conda_packages import PLACEHOLDER, Entry, Package
from envbuild.config import Config
from envbuild.digest import Descriptor, Digest
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import OCI_CONFIG, OCI_LAYER_GZIP, Manifest, encode
from envbuild.oci.registry import publish
from envbuild.reference import Repository, Tag

LIBC = b"\x7fELF...GNU C Library (Debian GLIBC 2.36-9) stable release version 2.36.\n..."

PACKAGES = (
    Package((Entry("bin/python3.11", b"x" * 1000, 0o755),), name="python", version="3.11.4"),
    Package(
        (Entry("site-packages/pyth/__init__.py", b"a = 1\n"),),
        name="pyth",
        noarch="python",
        entry_points=("pyth = pyth:main",),
        index={"depends": ["python"]},
    ),
    Package((Entry("share/tool/data", b"one"),), name="tool", version="1.0"),
    Package((Entry("share/tool/data", b"two"),), name="tool", version="2.0"),
    Package(
        (Entry("bin/thing", f"#!/bin/sh\n# {PLACEHOLDER}\n".encode(), 0o755, placeholder="text"),),
        index={"depends": ["__glibc >=2.17"]},
    ),
    Package((Entry("share/new", b"n"),), name="newer", index={"depends": ["__glibc >=2.99"]}),
    Package((Entry("share/one-path", b"first"), Entry("share/a", b"a")), name="first"),
    Package((Entry("share/one-path", b"second"), Entry("share/b", b"b")), name="second"),
    Package((Entry("bin/.scripted-post-link.sh", b"exit 0\n", 0o755),), name="scripted"),
    Package(
        (Entry("bin/.writes-post-link.sh", b'echo by the script > "$PREFIX/written"\n', 0o755),),
        name="writes",
    ),
)


def make_channel(alias: Path) -> None:
    """Write the channel ``tiny`` under a folder that serves as channel alias."""
    folder = alias / "tiny"
    for package in PACKAGES:
        package.put(folder)
    asyncio.run(conda_oracle.index(folder))


def make_base(repository: Repository, tag: str, files: dict[str, bytes], **config: Any) -> Digest:
    """Publish a base image of one layer of files; returns the digest of its manifest."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return make_base_of(repository, tag, raw.getvalue(), **config)


def make_base_of(
    repository: Repository, tag: str, layer: bytes, *, architecture: str = "amd64", **config: Any
) -> Digest:
    """Publish a base image of one layer, given as a tar; returns the digest of its manifest."""
    packed = gzip.compress(layer, 1, mtime=0)
    document = encode(
        {
            "architecture": architecture,
            "os": "linux",
            "created": "2026-01-02T03:04:05Z",
            "config": {
                "Env": ["PATH=/usr/bin:/bin", "BASE=yes"],
                "User": "1000",
                "WorkingDir": "/work",
                **config,
            },
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer))]},
            "history": [{"created_by": "the base"}],
        }
    )
    registry = LayoutRegistry(repository)
    blob = Descriptor.of(packed, OCI_LAYER_GZIP)
    described = Descriptor.of(document, OCI_CONFIG)
    registry.put_blob(blob, lambda: io.BytesIO(packed))
    registry.put_blob(described, lambda: io.BytesIO(document))
    return publish(registry, Manifest.build(described, (blob,), {}), Tag(tag)).descriptor.digest


@dataclass
class World:
    """A machine with a channel, a base and places for images.

    Attributes:
        root: The folder that everything is in.
        config: The settings of the first machine.
    """

    root: Path
    config: Config

    @classmethod
    def make(cls, root: Path) -> World:
        """Make the channel and the base."""
        make_channel(root / "channels")
        make_base(Repository.parse(f"oci:{root}/bases"), "minimal", {"lib/libc.so.6": LIBC})
        config = Config(
            workspace=Repository.parse(f"oci:{root}/workspace"),
            base=f"oci:{root}/bases:minimal",
            channel_alias=(root / "channels").as_uri(),
            cache_dir=root / "cache",
        )
        return cls(root, config)

    def other_machine(self, **changes: Any) -> Config:
        """The settings of a machine that has seen nothing yet."""
        return replace(self.config, cache_dir=self.root / f"cache-{uuid.uuid4().hex}", **changes)

    def spec(self, *dependencies: str, name: str = "environment.yml", **more: Any) -> Path:
        """Write a definition."""
        path = self.root / name
        document = {"channels": ["tiny"], "dependencies": list(dependencies), **more}
        path.write_text(json.dumps(document))
        return path

    def patch(self, subdir: str, name: str | None = None, **members: Any) -> None:
        """Let the channel say something else of its packages, or of one of them; None takes a member away."""
        folder = self.root / "channels" / "tiny" / subdir
        path = folder / "repodata.json"
        document = json.loads(path.read_bytes())
        for package in document["packages.conda"].values():
            if name is None or package["name"] == name:
                package.update(members)
                for each in [each for each, value in members.items() if value is None]:
                    del package[each]
        path.write_text(json.dumps(document))
        for other in (*folder.glob("repodata.json.*"), *folder.glob("repodata_shards*")):
            other.unlink()

    def layout(self, config: Config | None = None) -> LayoutRegistry:
        """The workspace."""
        return LayoutRegistry((config or self.config).workspace)
