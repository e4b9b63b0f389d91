"""Layouts on disk as the tests make, spoil and check them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envbuild.digest import Digest
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import Manifest, encode
from envbuild.reference import Repository
from oci_contract import read

if TYPE_CHECKING:
    from envbuild.oci.registry import Registry


def layout(folder: Path) -> LayoutRegistry:
    return LayoutRegistry(Repository("", str(folder)))


def blob_path(registry: Registry, digest: Digest) -> Path:
    return registry.repository.folder / "blobs" / "sha256" / digest.hex


def index_of(registry: Registry) -> dict[str, Any]:
    document = json.loads((registry.repository.folder / "index.json").read_bytes())
    assert isinstance(document, dict)
    return document


def write_index(registry: Registry, document: object) -> None:
    (registry.repository.folder / "index.json").write_bytes(encode(document))


def check_whole(registry: Registry) -> set[str]:
    """Read all that a layout holds; its tags' names."""
    folder = registry.repository.folder
    for path in (folder / "blobs" / "sha256").iterdir():
        assert Digest.of(path.read_bytes()).hex == path.name
    names = set()
    for tag in registry.tags():
        manifest = registry.get_manifest(tag)
        assert isinstance(manifest, Manifest)
        for blob in manifest.blobs:
            read(registry, blob)
        names.add(tag.name)
    return names
