"""Image archives and build contexts, without an engine."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from typing import TYPE_CHECKING

import pytest
import zstandard

from engine_bases import base_of, tar_of
from envbuild.build.archive import DOCKERFILE, context_chunks, diff_ids, image_chunks, unpack_image
from envbuild.digest import Digest
from envbuild.errors import BuildError, BuildLimit, IntegrityError
from envbuild.spec.steps import CONTEXT_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ONE, TWO = tar_of({"one": b"1" * 5000}), tar_of({"two": b"2"})


def read_tar(chunks: Iterable[bytes]) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        return {
            entry.name: content.read() if (content := archive.extractfile(entry)) else b""
            for entry in archive
        }


def config_of(*tars: bytes) -> bytes:
    return json.dumps({"rootfs": {"diff_ids": [str(Digest.of(tar)) for tar in tars]}}).encode()


def saved(files: dict[str, bytes], layers: list[str], links: dict[str, str] | None = None) -> io.BytesIO:
    manifest = json.dumps([{"Config": "config.json", "Layers": layers}]).encode()
    return io.BytesIO(tar_of({**files, "manifest.json": manifest}, links=links))


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_an_archive_for_the_engine(compression: str) -> None:
    base = base_of(ONE, TWO, compression=compression)
    files = read_tar(image_chunks(base.config, base.manifest.layers, base.open_blob, "name:tag"))
    (entry,) = json.loads(files["manifest.json"])
    assert entry["RepoTags"] == ["name:tag"]
    assert files[entry["Config"]] == base.config
    layers = [files[name] for name in entry["Layers"]]
    assert [gzip.decompress(layer) if compression == "gzip" else layer for layer in layers] == [ONE, TWO]


def test_a_layer_that_stands_twice_is_sent_once() -> None:
    base = base_of(ONE)
    layers = base.manifest.layers * 2
    files = read_tar(image_chunks(base.config, layers, base.open_blob, "name:tag"))
    assert len(json.loads(files["manifest.json"])[0]["Layers"]) == 2
    assert len([name for name in files if name.endswith("layer.tar")]) == 1


@pytest.mark.parametrize("content", [b"", b"short", bytes(100_000)])
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_blob_that_is_something_else(content: bytes, compression: str) -> None:
    base = base_of(ONE, compression=compression)
    with pytest.raises(IntegrityError):
        list(image_chunks(base.config, base.manifest.layers, lambda _: io.BytesIO(content), "name:tag"))


def test_unpacking_gives_the_layers_in_order_and_only_what_is_new(tmp_path: Path) -> None:
    big = tar_of({"big": bytes(2 << 20)})
    files = {
        "b/layer.tar": ONE,
        "a/layer.tar": big,
        "config.json": config_of(big, ONE, TWO),
        "c/layer.tar": TWO,
    }
    archive = saved(files, ["a/layer.tar", "b/layer.tar", "c/layer.tar"])
    image = unpack_image(archive, tmp_path, known=[Digest.of(big)])
    assert image.config == files["config.json"]
    assert [layer.diff_id for layer in image.layers] == [Digest.of(tar) for tar in (big, ONE, TWO)]
    first, second, third = (layer.path for layer in image.layers)
    assert first is None
    assert second is not None
    assert third is not None
    assert (second.read_bytes(), third.read_bytes()) == (ONE, TWO)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < len(big)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_compressed_layers_of_the_containerd_store(tmp_path: Path, pack: type) -> None:
    archive = saved({"config.json": config_of(ONE), "blobs/x": pack(ONE)}, ["blobs/x"])
    (layer,) = unpack_image(archive, tmp_path).layers
    assert layer.path is not None
    assert layer.path.read_bytes() == ONE


def test_layers_that_are_links_to_layers(tmp_path: Path) -> None:
    archive = saved(
        {"a/layer.tar": ONE, "config.json": config_of(ONE, ONE)},
        ["a/layer.tar", "b/layer.tar"],
        links={"b/layer.tar": "../a/layer.tar"},
    )
    assert [layer.diff_id for layer in unpack_image(archive, tmp_path).layers] == [Digest.of(ONE)] * 2


@pytest.mark.parametrize(
    ("files", "layers"),
    [
        ({"config.json": config_of(ONE), "l": TWO}, ["l"]),
        ({"config.json": config_of(ONE), "l": b"\x1f\x8bnot gzip"}, ["l"]),
        ({"config.json": config_of(ONE), "l": gzip.compress(ONE)[:-20]}, ["l"]),
        ({"config.json": config_of(ONE, TWO), "l": ONE}, ["l"]),
        ({"config.json": config_of(ONE)}, ["l"]),
        ({"config.json": b"{}", "l": ONE}, ["l"]),
        ({"config.json": b"nonsense", "l": ONE}, ["l"]),
        ({"l": ONE}, ["l"]),
    ],
)
def test_archives_that_are_not_what_they_say(
    tmp_path: Path, files: dict[str, bytes], layers: list[str]
) -> None:
    with pytest.raises(IntegrityError):
        unpack_image(saved(files, layers), tmp_path)


def test_links_in_a_circle(tmp_path: Path) -> None:
    archive = saved({"config.json": config_of(ONE)}, ["a"], links={"a": "b", "b": "a"})
    with pytest.raises(IntegrityError, match="has no"):
        unpack_image(archive, tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"no tar at all" * 100, tar_of({"x": b""}), tar_of({"manifest.json": b"[]"})]
)
def test_streams_that_are_no_image(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(IntegrityError):
        unpack_image(io.BytesIO(content), tmp_path)


def test_names_in_an_archive_are_never_paths(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    files = {"../outside": ONE, "/absolute": TWO, "config.json": config_of(ONE)}
    unpack_image(saved(files, ["../outside"]), folder)
    assert list(tmp_path.iterdir()) == [folder]
    assert all(path.name.isdigit() for path in folder.iterdir())


def test_a_limit_counts_new_layers_only(tmp_path: Path) -> None:
    files = {"config.json": config_of(ONE, TWO), "1": ONE, "2": TWO}
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    limit = len(TWO)
    unpack_image(saved(files, ["1", "2"]), tmp_path / "a", known=[Digest.of(ONE)], max_bytes=limit)
    with pytest.raises(BuildLimit):
        unpack_image(saved(files, ["1", "2"]), tmp_path / "b", known=[Digest.of(ONE)], max_bytes=limit - 1)


def test_a_big_layer_beyond_the_limit_is_not_kept(tmp_path: Path) -> None:
    big = tar_of({"big": bytes(3 << 20)})
    files = {"config.json": config_of(big, TWO), "1": big, "2": TWO}
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    found = unpack_image(saved(files, ["1", "2"]), tmp_path / "a", known=[Digest.of(big)], max_bytes=1 << 20)
    assert [layer.path is None for layer in found.layers] == [True, False]
    with pytest.raises(BuildLimit, match="at most 1048576"):
        unpack_image(saved(files, ["1", "2"]), tmp_path / "b", max_bytes=1 << 20)
    assert all(path.stat().st_size < 1 << 20 for path in (tmp_path / "b").iterdir())


def test_needles_are_found_across_pieces(tmp_path: Path) -> None:
    layer = tar_of({"file": bytes((1 << 20) - 512 - 3) + b"needle" + bytes(5000)})
    assert b"needle" not in layer[: 1 << 20]
    image = unpack_image(
        saved({"config.json": config_of(layer), "l": layer}, ["l"]),
        tmp_path,
        needles=lambda piece: frozenset({"found"} if b"needle" in piece else ()),
        overlap=5,
    )
    assert image.layers[0].needles == {"found"}


def test_a_context_gets_the_dockerfile() -> None:
    long = f"{'d' * 150}/{'f' * 150}"
    own = {"a/file": b"content", ".dockerignore": b"*", DOCKERFILE: b"FROM own\n", long: b"long"}
    context = io.BytesIO(tar_of(own, links={"a/link": "file"}))
    files = read_tar(context_chunks(context, "FROM x\n"))
    expected = {f"{CONTEXT_FOLDER}/{name}": content for name, content in own.items()}
    expected |= {CONTEXT_FOLDER: b"", f"{CONTEXT_FOLDER}/a/link": b"content", DOCKERFILE: b"FROM x\n"}
    assert files == expected
    assert read_tar(context_chunks(None, "FROM é\n")) == {
        CONTEXT_FOLDER: b"",
        DOCKERFILE: "FROM é\n".encode(),
    }


def test_a_context_keeps_its_links() -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("file"))
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            entry = tarfile.TarInfo(f"link{kind.decode()}")
            entry.type, entry.linkname = kind, "file"
            archive.addfile(entry)
    chunks = b"".join(context_chunks(io.BytesIO(content.getvalue()), ""))
    with tarfile.open(fileobj=io.BytesIO(chunks)) as archive:
        targets = [entry.linkname for entry in archive if entry.name.startswith(f"{CONTEXT_FOLDER}/link")]
    assert targets == [f"{CONTEXT_FOLDER}/file", "file"]


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", ".."])
def test_names_that_a_context_may_not_have(name: str) -> None:
    for context in (tar_of({name: b"FROM evil\n"}), tar_of({}, links={name: "x"})):
        with pytest.raises(BuildError, match="may not have"):
            list(context_chunks(io.BytesIO(context), "FROM x\n"))
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = tarfile.LNKTYPE, name
        archive.addfile(entry)
    with pytest.raises(BuildError, match="may not have"):
        list(context_chunks(io.BytesIO(content.getvalue()), "FROM x\n"))


def test_a_context_that_is_no_tar_or_holds_a_device() -> None:
    with pytest.raises(BuildError, match="not a tar"):
        list(context_chunks(io.BytesIO(b"nonsense" * 100), ""))
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        entry = tarfile.TarInfo("device")
        entry.type = tarfile.CHRTYPE
        archive.addfile(entry)
    with pytest.raises(BuildError, match="neither a file"):
        list(context_chunks(io.BytesIO(content.getvalue()), ""))


@pytest.mark.parametrize(
    "config", [b"", b"[]", b"{}", b'{"rootfs":{"diff_ids":[1]}}', b'{"rootfs":{"diff_ids":3}}']
)
def test_configs_without_diff_ids(config: bytes) -> None:
    with pytest.raises(IntegrityError):
        diff_ids(config)
