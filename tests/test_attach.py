"""What is attached to a built image: complete, true, and of no consequence where it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from envbuild import attach, publishing
from envbuild.digest import Digest
from envbuild.errors import Unavailable
from envbuild.lockfile.document import LockFile
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.oci.referrers import read_artifact, referrers
from envbuild.oci.registry import Registry
from envbuild.oci.remote import RemoteRegistry
from envbuild.platform import Platform
from envbuild.progress import Event
from envbuild.reference import Repository, Tag
from envbuild.resolver import ResolvedImage, Resolver, Source
from envbuild.trust import Rule, Trust, Untrusted, check
from envbuild.verify import verify
from oci_contract import put_image
from parts.programs import program
from parts.registry_server import RegistryServer
from test_trust import pem, public
from tiny import LIBC, World, make_base
from wheel_world import spec, wheel_world


def built(world: World, **changes: Any) -> ResolvedImage:
    with Resolver(replace(world.config, **changes)) as resolver:
        return resolver.resolve(world.spec("python", "first"))


def attached(registry: Registry, digest: Digest) -> dict[str, bytes]:
    found = {}
    for entry in referrers(registry, digest):
        manifest = registry.get_manifest(entry.digest)
        assert isinstance(manifest, Manifest)
        found[str(entry.artifact_type)] = read_artifact(registry, manifest)
    return found


def hashes(packages: list[dict[str, Any]], member: str, value: str) -> dict[str, str]:
    """The one digest of each package of an SBOM, by name."""
    return {each["name"]: only[value] for each in packages for only in [*each[member]]}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.make(tmp_path)


def test_everything_is_attached_and_true(world: World) -> None:
    image = built(world, sbom=True)
    found = attached(world.layout(), image.reference.digest)
    assert set(found) == {
        attach.FORM_TYPE,
        attach.LOCK_TYPE,
        attach.IN_TOTO_TYPE,
        attach.SPDX_TYPE,
        attach.CYCLONEDX_TYPE,
    }
    lock = LockFile.parse(found[attach.LOCK_TYPE], "envbuild.lock")
    assert lock.entries[0].key == image.key
    digests = {package.name: package.sha256.hex for package in lock.entries[0].lock.packages}
    assert set(digests) == {"python", "first"}

    statement = json.loads(found[attach.IN_TOTO_TYPE])
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert statement["subject"][0]["digest"] == {"sha256": image.reference.digest.hex}
    definition = statement["predicate"]["buildDefinition"]
    base = definition["resolvedDependencies"][0]["digest"]["sha256"]
    assert definition["externalParameters"]["base"] == f"sha256:{base}"
    named = {each["name"]: each["digest"]["sha256"] for each in definition["resolvedDependencies"]}
    assert named == {"base": base, "envbuild.lock": Digest.of(found[attach.LOCK_TYPE]).hex}

    bom = json.loads(found[attach.CYCLONEDX_TYPE])
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    assert hashes(bom["components"], "hashes", "content") == digests
    spdx = json.loads(found[attach.SPDX_TYPE])
    assert spdx["spdxVersion"] == "SPDX-2.3"
    assert hashes(spdx["packages"][1:], "checksums", "checksumValue") == digests

    definition_check = next(
        each for each in verify(world.layout(), image.reference.digest).checks if each.name == "definition"
    )
    assert definition_check.passed


def test_wheels_are_listed_too(tmp_path: Path) -> None:
    world = wheel_world(tmp_path)
    with Resolver(replace(world.config, sbom=True)) as resolver:
        image = resolver.resolve(spec(world, "top", "small"))
    found = attached(world.layout(), image.reference.digest)
    (entry,) = LockFile.parse(found[attach.LOCK_TYPE], "envbuild.lock").entries
    assert [(each.name, each.version) for each in entry.pip] == [
        ("dep", "2.0"),
        ("small", "1.0"),
        ("top", "1.0"),
    ]
    assert all(each.url.startswith("links/") for each in entry.pip), "no folder of this machine"
    bom = json.loads(found[attach.CYCLONEDX_TYPE])
    named = {each["purl"]: each["hashes"][0]["content"] for each in bom["components"]}
    for wheel in entry.pip:
        purl = f"pkg:pypi/{wheel.name}@{wheel.version}?file_name={wheel.file_name}"
        assert named[purl] == wheel.sha256.hex
    assert {each["name"] for each in bom["components"]} >= {"top", "dep", "small", "python"}
    names = {each["name"] for each in json.loads(found[attach.SPDX_TYPE])["packages"]}
    assert names >= {"top", "dep", "small", "python"}


def test_an_image_on_a_base_that_is_pinned_by_its_index_has_the_tag_of_its_key(world: World) -> None:
    bases = LayoutRegistry(Repository.parse(f"oci:{world.root}/bases"))
    one = replace(bases.get_manifest(Tag("minimal")).descriptor, platform=Platform("linux", "amd64"))
    index = ImageIndex.build((one,), {})
    bases.put_manifest(index, Tag("several"))
    pinned = str(bases.repository.at(index.descriptor.digest))
    image = built(world, base=pinned)
    assert world.layout().get_manifest(image.key.tag).descriptor.digest == image.reference.digest
    again = built(world, base=pinned, cache_dir=world.root / "other")
    assert (again.source, again.reference) == (Source.WORKSPACE, image.reference)


def test_the_documents_are_valid_in_the_eyes_of_their_libraries(world: World, tmp_path: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    from spdx_tools.spdx.parser.parse_anything import parse_file
    from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

    found = attached(world.layout(), built(world, sbom=True).reference.digest)
    path = tmp_path / "sbom.spdx.json"
    path.write_bytes(found[attach.SPDX_TYPE])
    assert validate_full_spdx_document(parse_file(str(path)), "SPDX-2.3") == []
    bom = found[attach.CYCLONEDX_TYPE].decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bom) is None


def test_only_times_differ_between_two_builds(world: World, tmp_path: Path) -> None:
    documents = []
    for name in ("a", "b"):
        workspace = Repository.parse(f"oci:{tmp_path}/{name}/images")
        image = built(world, workspace=workspace, cache_dir=tmp_path / f"cache-{name}", sbom=True)
        found = attached(LayoutRegistry(workspace), image.reference.digest)
        statement = json.loads(found[attach.IN_TOTO_TYPE])
        for moment in ("startedOn", "finishedOn"):
            assert statement["predicate"]["runDetails"]["metadata"].pop(moment).endswith("Z")
        statement["subject"][0].pop("name")
        documents.append({**found, attach.IN_TOTO_TYPE: statement})
    assert documents[0] == documents[1]
    assert len(documents[0]) == 5


def test_an_sbom_is_the_same_on_every_base(world: World) -> None:
    one = built(world, sbom=True)
    make_base(Repository.parse(f"oci:{world.root}/bases"), "other", {"lib/libc.so.6": LIBC, "etc/x": b"y"})
    other = built(world, sbom=True, base=f"oci:{world.root}/bases:other")
    assert one.reference != other.reference
    first, second = (attached(world.layout(), image.reference.digest) for image in (one, other))
    assert first[attach.LOCK_TYPE] != second[attach.LOCK_TYPE]
    for kind in (attach.SPDX_TYPE, attach.CYCLONEDX_TYPE):
        assert first[kind] == second[kind]


def test_attaching_that_fails_is_told_and_does_not_matter(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Unavailable("the registry went away")

    monkeypatch.setattr(publishing, "attach", fail)
    events: list[Event] = []
    with Resolver(world.config, progress=events.append) as resolver:
        assert resolver.resolve(world.spec("first")).source is Source.BUILT
    assert any("the registry went away" in (event.text or "") for event in events)


def test_it_can_be_left_out(world: World) -> None:
    image = built(world, attach=False)
    assert attached(world.layout(), image.reference.digest) == {}


@pytest.mark.parametrize("sbom", [False, True])
def test_a_build_without_the_libraries_for_sboms(world: World, sbom: bool) -> None:
    script = (
        "import importlib.util, sys\n"
        "real, missing = importlib.util.find_spec, ('cyclonedx', 'spdx_tools')\n"
        "importlib.util.find_spec = lambda name: None if name in missing else real(name)\n"
        "for name in (*missing, 'cryptography'): sys.modules[name] = None\n"
        "from envbuild.cli import exit_code_of\n"
        "sys.exit(exit_code_of(sys.argv[1:]))"
    )
    config = world.config
    words = ["resolve", str(world.spec("first")), "--workspace", str(config.workspace)]
    words += ["--base", str(config.base), "--channel-alias", config.channel_alias]
    words += ["--cache-dir", str(config.cache_dir)]
    environment = {**os.environ, "ENVBUILD_SBOM": str(sbom).lower()}
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if sbom:
        assert done.returncode == 2
        assert "hint: pip install 'envbuild[sbom]'" in done.stderr
        assert not world.config.workspace.folder.exists(), "nothing was built"
        return
    assert done.returncode == 0, done.stderr
    digest = Digest.parse(done.stdout.strip().rpartition("@")[2])
    assert set(attached(world.layout(), digest)) == {attach.FORM_TYPE, attach.LOCK_TYPE, attach.IN_TOTO_TYPE}


# Signing at publication


def test_what_is_built_is_signed_and_then_trusted(world: World, tmp_path: Path) -> None:
    ours = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(pem(ours))
    trust = Trust(Rule(True, (public(ours),), "fail"), sign_key=str(tmp_path / "key.pem"))
    image = built(world, trust=trust)
    assert image.source is Source.BUILT
    check(world.layout(), world.layout().get_manifest(image.reference.digest), [public(ours)])
    assert built(world, trust=trust).source is Source.INDEX
    assert built(world, trust=trust, cache_dir=tmp_path / "other").source is Source.WORKSPACE


@pytest.mark.parametrize("signs", [False, True])
def test_an_unsigned_image_under_the_keys_tag_is_never_the_answer(
    world: World, tmp_path: Path, signs: bool
) -> None:
    """Poisoned: the workspace holds an image of the right key and lock that nobody signed."""
    ours = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(pem(ours))
    image = built(world)
    keys = {"io.envbuild.key": str(image.key), "io.envbuild.lock": str(image.lock_key)}
    evil = put_image(world.layout(), "evil", annotations=keys)
    for tag in (f"k1-{image.key}", f"l1-{image.lock_key}"):
        world.layout().put_manifest(evil, Tag(tag))
    trust = Trust(Rule(True, (public(ours),)), sign_key=str(tmp_path / "key.pem") if signs else None)
    if signs:  # what is built again takes the tag
        again = built(world, trust=trust, cache_dir=tmp_path / "other")
        check(world.layout(), world.layout().get_manifest(again.reference.digest), [public(ours)])
        assert again.reference.digest != evil.descriptor.digest
    else:
        with pytest.raises(Untrusted):
            built(world, trust=trust, cache_dir=tmp_path / "other")
    with pytest.raises(Untrusted):
        check(world.layout(), evil, [public(ours)])


# Other people's programs


def test_skopeo_copies_the_image_beside_its_attachments(
    world: World, registry: RegistryServer, tmp_path: Path
) -> None:
    workspace = registry.repository("attached")
    image = built(world, workspace=workspace, sbom=True)
    remote = RemoteRegistry(workspace)
    assert len(referrers(remote, image.reference.digest)) == 5
    remote.close()
    listing = Tag(f"sha256-{image.reference.digest.hex}")
    skopeo = program("skopeo", "skopeo")
    for name in (f"k1-{image.key}", str(listing)):
        done = subprocess.run(
            [skopeo, "inspect", "--raw", "--tls-verify=false", f"docker://{workspace}:{name}"],
            capture_output=True, check=True,
        )  # fmt: skip
        assert json.loads(done.stdout)["schemaVersion"] == 2
    source, target = f"docker://{workspace}:k1-{image.key}", f"oci:{tmp_path}/copy:v1"
    subprocess.run(
        [skopeo, "copy", "--src-tls-verify=false", source, target], capture_output=True, check=True
    )
    copied = LayoutRegistry(Repository.parse(f"oci:{tmp_path}/copy"))
    assert copied.get_manifest(Tag("v1")).descriptor.digest == image.reference.digest
