"""skopeo, crane and oras read what envbuild pushed and attached, and envbuild reads what oras attached."""

from __future__ import annotations

import gzip
import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from envbuild.attach import FORM_TYPE, LOCK_TYPE
from envbuild.digest import Digest
from envbuild.key import KEY_ANNOTATION, CanonicalForm
from envbuild.lockfile.document import LockFile
from envbuild.oci.manifest import Manifest
from envbuild.oci.referrers import fallback_tag, read_artifact, referrers
from envbuild.oci.registry import find_manifest

if TYPE_CHECKING:
    from interop.conftest import Pushed

MINE = "application/vnd.example.note.v1"


def test_skopeo_inspects_and_copies(pushed: Pushed, tmp_path: Path) -> None:
    source = f"docker://{pushed.reference}"
    raw = pushed.oracles.skopeo("inspect", "--tls-verify=false", "--raw", source)
    assert raw.encode() == pushed.manifest.raw
    seen = json.loads(pushed.oracles.skopeo("inspect", "--tls-verify=false", "--no-tags", source))
    assert seen["Digest"] == str(pushed.reference.digest)
    assert seen["Layers"] == [str(layer.digest) for layer in pushed.manifest.layers]
    copy = ["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", source, f"oci:{tmp_path}/copy"]
    pushed.oracles.skopeo(*copy)
    names = {path.name for path in (tmp_path / "copy/blobs/sha256").iterdir()}
    assert names == {each.digest.hex for each in (*pushed.manifest.blobs, pushed.manifest.descriptor)}


def test_crane_validates(pushed: Pushed) -> None:
    name = str(pushed.reference)
    assert "PASS" in pushed.oracles.crane("validate", "--remote", name)
    assert pushed.oracles.crane("manifest", name).encode().rstrip() == pushed.manifest.raw.rstrip()
    tag = f"{pushed.reference.repository}:k1-{pushed.manifest.annotations[KEY_ANNOTATION]}"
    assert pushed.oracles.crane("digest", tag).strip() == str(pushed.reference.digest)
    assert json.loads(pushed.oracles.crane("config", name))["os"] == "linux"


def test_crane_copies_with_the_same_digest(pushed: Pushed) -> None:
    target = f"{pushed.reference.repository}-{uuid.uuid4().hex[:8]}:copied"
    pushed.oracles.crane("copy", str(pushed.reference), target)
    assert pushed.oracles.crane("digest", target).strip() == str(pushed.reference.digest)


def test_oras_discovers_and_pulls_what_is_attached(pushed: Pushed, tmp_path: Path) -> None:
    name = str(pushed.reference)
    listed = pushed.oracles.oras_json("discover", "--plain-http", name)["manifests"]
    found = {each["artifactType"]: each["reference"] for each in listed}
    assert {LOCK_TYPE, FORM_TYPE} <= set(found)
    assert {each["digest"] for each in listed} >= {
        str(each.digest) for each in referrers(pushed.registry, pushed.reference.digest)
    }
    for kind in (LOCK_TYPE, FORM_TYPE):
        pushed.oracles.oras("pull", "--plain-http", "--output", str(tmp_path), found[kind])
    lock = LockFile.parse(gzip.decompress((tmp_path / "envbuild.lock.gz").read_bytes()), "envbuild.lock")
    assert {package.name for entry in lock.entries for package in entry.lock.packages} >= {"pyth", "thing"}
    form = CanonicalForm(json.loads((tmp_path / "form.json").read_bytes()))
    assert str(form.key) == pushed.manifest.annotations[KEY_ANNOTATION]


def test_what_oras_attached_is_read(pushed: Pushed, tmp_path: Path) -> None:
    before = {each.digest for each in referrers(pushed.registry, pushed.reference.digest)}
    (pushed.oracles.home / "note.txt").write_text("a note by hand")
    attached = pushed.oracles.oras_json(
        *("attach", "--plain-http", "--artifact-type", MINE, "--annotation", "by=hand"),
        *(str(pushed.reference), "note.txt:text/plain"),
    )
    (entry,) = referrers(pushed.registry, pushed.reference.digest, MINE)
    assert entry.digest == Digest.parse(attached["digest"])
    assert entry.annotations["by"] == "hand"
    manifest = pushed.registry.get_manifest(entry.digest)
    assert isinstance(manifest, Manifest)
    assert read_artifact(pushed.registry, manifest) == b"a note by hand"
    after = {each.digest for each in referrers(pushed.registry, pushed.reference.digest)}
    assert after > before, "what envbuild attached is still listed"


def test_the_fallback_tag_is_written_where_there_is_no_api(pushed: Pushed) -> None:
    has_api = pushed.registry.referrers(pushed.reference.digest) is not None
    tagged = find_manifest(pushed.registry, fallback_tag(pushed.reference.digest))
    assert (tagged is None) == has_api
