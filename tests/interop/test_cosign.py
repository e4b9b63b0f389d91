"""cosign verifies our signatures, and we verify cosign's."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from envbuild.trust import Untrusted, check, sign
from oci_contract import put_image
from parts.programs import program

if TYPE_CHECKING:
    from envbuild.oci.manifest import Manifest
    from interop.conftest import Pushed

WITHOUT_LOG = "--insecure-ignore-tlog=true"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key pair as the documentation says to make one: ``ours.pem`` and ``ours.pub``."""
    folder = tmp_path_factory.mktemp("keys")
    openssl = program("openssl", "openssl")
    made = subprocess.run(
        [openssl, "ecparam", "-genkey", "-name", "prime256v1"], check=True, capture_output=True
    )
    packed = subprocess.run(
        [openssl, "pkcs8", "-topk8", "-nocrypt"], input=made.stdout, check=True, capture_output=True
    )
    (folder / "ours.pem").write_bytes(packed.stdout)
    command = [openssl, "pkey", "-in", str(folder / "ours.pem"), "-pubout", "-out", str(folder / "ours.pub")]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def image(pushed: Pushed, tmp_path: Path) -> Manifest:
    """An image that nobody signed yet, in the same repository."""
    manifest = put_image(pushed.registry, str(tmp_path), annotations=dict(pushed.manifest.annotations))
    pushed.registry.put_manifest(manifest)
    return manifest


def name(pushed: Pushed, image: Manifest) -> str:
    return str(replace(pushed.reference, digest=image.descriptor.digest))


def test_cosign_verifies_what_envbuild_signed(
    pushed: Pushed, image: Manifest, keys: Path, tmp_path: Path
) -> None:
    key, public = str(keys / "ours.pem"), str(keys / "ours.pub")
    with pytest.raises(AssertionError, match="no signatures found"):
        pushed.oracles.cosign("verify", WITHOUT_LOG, "--key", public, name(pushed, image))
    sign(pushed.registry, image, key, locks=tmp_path)
    seen = json.loads(pushed.oracles.cosign("verify", WITHOUT_LOG, "--key", public, name(pushed, image)))
    (payload,) = seen
    assert payload["critical"]["image"]["docker-manifest-digest"] == str(image.descriptor.digest)
    assert payload["optional"]["io.envbuild.key"] == image.annotations["io.envbuild.key"]


def test_cosign_refuses_another_key(pushed: Pushed, image: Manifest, keys: Path, tmp_path: Path) -> None:
    sign(pushed.registry, image, str(keys / "ours.pem"), locks=tmp_path)
    pushed.oracles.cosign("generate-key-pair", "--output-key-prefix", str(tmp_path / "other"))
    with pytest.raises(AssertionError, match="invalid signature"):
        pushed.oracles.cosign(
            "verify", WITHOUT_LOG, "--key", str(tmp_path / "other.pub"), name(pushed, image)
        )


def test_envbuild_verifies_what_cosign_signed(
    pushed: Pushed, image: Manifest, keys: Path, tmp_path: Path
) -> None:
    pushed.oracles.cosign("generate-key-pair", "--output-key-prefix", str(tmp_path / "theirs"))
    public = (tmp_path / "theirs.pub").read_bytes()
    with pytest.raises(Untrusted, match="not signed"):
        check(pushed.registry, image, [public])
    key = str(tmp_path / "theirs.key")
    pushed.oracles.cosign("sign", "--yes", "--tlog-upload=false", "--key", key, name(pushed, image))
    check(pushed.registry, image, [public])
    with pytest.raises(Untrusted, match="not made with a key"):
        check(pushed.registry, image, [(keys / "ours.pub").read_bytes()])


def test_both_sign_in_turn_and_keep_what_is_there(
    pushed: Pushed, image: Manifest, keys: Path, tmp_path: Path
) -> None:
    theirs = str(tmp_path / "theirs")
    pushed.oracles.cosign("generate-key-pair", "--output-key-prefix", theirs)
    sign(pushed.registry, image, str(keys / "ours.pem"), locks=tmp_path)
    pushed.oracles.cosign(
        "sign", "--yes", "--tlog-upload=false", "--key", f"{theirs}.key", name(pushed, image)
    )
    for public in (str(keys / "ours.pub"), f"{theirs}.pub"):
        pushed.oracles.cosign("verify", WITHOUT_LOG, "--key", public, name(pushed, image))
        check(pushed.registry, image, [Path(public).read_bytes()])
    assert sign(pushed.registry, image, str(keys / "ours.pem"), locks=tmp_path) is False
