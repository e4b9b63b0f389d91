"""``envbuild inspect`` shows what is attached to an image."""

from __future__ import annotations

import io
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cli_calls import Call
from envbuild import attach
from envbuild.digest import Descriptor
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import Manifest
from envbuild.reference import ImageReference, parse_reference
from test_trust import pem
from tiny import World


def test_what_is_attached_is_named(world: World, call: Call) -> None:
    reference = call("resolve", world.spec("tool=1")).out.strip()
    (document,) = call("inspect", reference, "--json").documents
    kinds = {entry["artifactType"] for entry in document["attached"]}
    assert kinds == {attach.FORM_TYPE, attach.LOCK_TYPE, attach.IN_TOTO_TYPE}
    text = call("inspect", reference).out
    lines = [line.split() for line in text.splitlines()]
    rows = [line for line in text.splitlines() if line.startswith(("io.", "attached", "env"))]
    columns = {len(found[0]) for line in rows if (found := re.match(r"\S+ +", line))}
    assert len(columns) == 1
    shown = {(line[1], line[2]) for line in lines if line[0] == "attached"}
    names = {attach.FORM_TYPE: "definition", attach.LOCK_TYPE: "lock", attach.IN_TOTO_TYPE: "provenance"}
    assert shown == {(entry["digest"], names[entry["artifactType"]]) for entry in document["attached"]}


ODD_CONFIGS: tuple[Any, ...] = (
    7, [], None, {"history": [7]}, {"history": 7}, {"history": [{"created_by": 7}]}, {"config": "x"},
    {"config": {"Env": 7}}, {"config": {"Labels": [1]}}, {"created": ["x"]},
    {"history": [{"created_by": "\x1b]0;owned\x07\x9b2J\ud800\u202e"}], "created": "\x1b[2J"},
)  # fmt: skip


@pytest.mark.parametrize("command", ["inspect", "diff", "verify"])
def test_an_image_whose_config_is_odd_is_shown_as_text_or_refused(
    world: World, call: Call, command: str
) -> None:
    """Whoever may write to a registry writes what people see on their terminals, too."""
    reference = parse_reference(call("resolve", world.spec("tool=1")).out.strip())
    assert isinstance(reference, ImageReference)
    layout = LayoutRegistry(reference.repository)
    good = layout.get_manifest(reference.digest)
    assert isinstance(good, Manifest)
    for config in (*ODD_CONFIGS, b"[" * 100_000, b"\xff"):
        content = config if isinstance(config, bytes) else json.dumps(config).encode()
        blob = Descriptor.of(content, good.config.media_type)
        layout.put_blob(blob, partial(io.BytesIO, content))
        notes = {**good.annotations, "a note": "\x1b[31m"}
        changed = Manifest.build(blob, good.layers, notes)
        layout.put_manifest(changed)
        odd = str(reference.repository.at(changed.descriptor.digest))
        for more in ((), ("--json",)):
            seen = call(command, odd, *((str(reference),) if command == "diff" else ()), *more)
            assert seen.code in {0, 1, 7}, (config, seen)
            said = seen.out + seen.err
            assert all(each.isprintable() or each == "\n" for each in said), (config, said)


def test_signatures_and_indexes_too(
    world: World, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.pem").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    (tmp_path / "policy.toml").write_text('sign_key = "key.pem"\n')
    monkeypatch.setenv("ENVBUILD_TRUST", str(tmp_path / "policy.toml"))
    path = world.root / "both.yaml"
    document = {"base": "scratch", "platforms": ["linux/amd64", "linux/arm64"], "variables": {"A": "1"}}
    path.write_text(json.dumps(document))
    reference = call("resolve", path).out.strip()
    lines = [line.split() for line in call("inspect", reference).out.splitlines()]
    assert {line[2] for line in lines if line[0] == "attached"} == {"lock", "provenance", "signature"}
