"""``envbuild inspect`` shows what is attached to an image."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cli_calls import Call
from envbuild import attach
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
