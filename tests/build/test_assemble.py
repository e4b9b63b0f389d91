"""Assembly: what is kept of the base, what is added, and that equal input gives equal bytes."""

from __future__ import annotations

import json
from typing import Any

from envbuild.build.assemble import Layer, assemble, conda_environment, reannotated
from envbuild.build.base import EPOCH, BaseImage
from envbuild.digest import Descriptor, Digest
from envbuild.oci.manifest import DOCKER_LAYER_GZIP, OCI_LAYER_GZIP, OCI_MANIFEST, Manifest, encode
from envbuild.platform import LINUX_AMD64

LAYER = Layer(Descriptor(OCI_LAYER_GZIP, Digest.of(b"blob"), 4), Digest.of(b"tar"), "numpy-1-0")


def base(runtime: dict[str, Any] | None = None, **document: Any) -> BaseImage:
    layer = Descriptor(DOCKER_LAYER_GZIP, Digest.of(b"below"), 5, {"some": "annotation"})
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": runtime,
        "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(b"belowtar"))]},
        **document,
    }
    return BaseImage(
        None, Manifest.build(Descriptor("c/c", Digest.of(b"c"), 1), (layer,), {}), encode(config), None
    )


def build(below: BaseImage, **more: Any) -> tuple[Manifest, Any]:
    arguments: dict[str, Any] = {"environment": {}, "labels": {}, "annotations": {}, **more}
    assembled = assemble(below, (LAYER,), **arguments)
    assert assembled.manifest.config.digest == Digest.of(assembled.config)
    return assembled.manifest, json.loads(assembled.config)


def test_the_base_keeps_its_user_folder_command_and_history() -> None:
    runtime = {
        "User": "app",
        "WorkingDir": "/w",
        "Entrypoint": ["/e"],
        "Cmd": ["c"],
        "ExposedPorts": {"1/tcp": {}},
    }
    history = [{"created_by": "base"}, {"created_by": "ENV", "empty_layer": True}]
    _, config = build(base(runtime, history=history, created="2026-01-01T00:00:00Z"))
    assert {name: config["config"][name] for name in runtime} == runtime
    assert config["history"][:2] == history
    assert config["history"][2] == {"created": "2026-01-01T00:00:00Z", "created_by": "envbuild numpy-1-0"}
    assert config["rootfs"]["diff_ids"] == [str(Digest.of(b"belowtar")), str(Digest.of(b"tar"))]


def test_variables_and_labels_are_added_and_replaced_in_place() -> None:
    below = base({"Env": ["PATH=/bin", "A=old", "B=kept"], "Labels": {"x": "1", "y": "2"}})
    _, config = build(below, environment={"A": "new", "C": "a=b"}, labels={"y": "3"})
    assert config["config"]["Env"] == ["PATH=/bin", "A=new", "B=kept", "C=a=b"]
    assert config["config"]["Labels"] == {"x": "1", "y": "3"}


def test_a_base_without_config_or_time_is_a_base() -> None:
    _, config = build(base(None))
    assert config["created"] == EPOCH
    assert config["config"]["Env"] == []


def test_the_manifest_is_oci_and_names_nothing_of_the_bases_but_blobs() -> None:
    manifest, _ = build(base())
    assert manifest.media_type == OCI_MANIFEST
    assert [layer.media_type for layer in manifest.layers] == [OCI_LAYER_GZIP, OCI_LAYER_GZIP]
    assert manifest.layers[0].annotations == {}


def test_equal_input_gives_equal_bytes_and_the_input_is_not_changed() -> None:
    below = base({"Env": ["A=1"]})
    before = below.raw_config
    first, _ = build(below, environment={"A": "2"}, annotations={"b": "1", "a": "2"})
    second, _ = build(below, environment={"A": "2"}, annotations={"a": "2", "b": "1"})
    assert first.raw == second.raw
    assert json.dumps(below.config) == json.dumps(json.loads(before))


def test_other_annotations_change_the_manifest_alone() -> None:
    manifest, _ = build(base(), annotations={"k": "1"})
    other = reannotated(manifest, {"k": "2"})
    assert (other.config, other.layers) == (manifest.config, manifest.layers)
    assert other.descriptor.digest != manifest.descriptor.digest


def test_the_prefix_stands_first_on_the_bases_path_and_the_user_has_the_last_word() -> None:
    environment = conda_environment(base({"Env": ["PATH=/x:/y"]}), "/opt/env", {"A": "1"})
    assert environment == {"PATH": "/opt/env/bin:/x:/y", "CONDA_PREFIX": "/opt/env", "A": "1"}
    assert conda_environment(base(), "/opt/env", {})["PATH"].startswith("/opt/env/bin:/usr/local/sbin:")
    assert conda_environment(base(), "/opt/env", {"CONDA_PREFIX": "mine"})["CONDA_PREFIX"] == "mine"


def test_scratch_has_no_layers() -> None:
    assembled = assemble(BaseImage.scratch(LINUX_AMD64), (LAYER,), environment={}, labels={}, annotations={})
    assert assembled.manifest.layers == (LAYER.descriptor,)
