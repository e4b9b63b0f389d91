"""What somebody who may write a registry, and has no key of ours, puts where we look.

A :class:`Stage` holds repositories as an honest team left them, and runs the command line in them. What an
honest run answers and writes is the measure: with poison beside it a call gives the same, or refuses.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import zstandard

from envbuild.attach import FORM_TYPE, LOCK_TYPE, lock_artifact
from envbuild.build.recipe import RECIPE_ANNOTATION
from envbuild.cli import exit_code_of
from envbuild.digest import Descriptor, Digest
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION
from envbuild.lock import Lock
from envbuild.lockfile.document import LockFile
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.manifest import OCI_CONFIG, OCI_LAYER_GZIP, ImageIndex, Manifest, encode, parse_manifest
from envbuild.oci.referrers import Artifact, attach, fallback_tag, read_artifact, referrers
from envbuild.oci.registry import find_manifest
from envbuild.oci.remote import RemoteRegistry
from envbuild.reference import Repository, Tag
from oci_contract import put

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from envbuild.oci.registry import Registry
    from parts.registry_server import RegistryServer

STORES: Final = ("workspace", "global", "other")
FAMILIES: Final = ("k1-", "l1-", "s1-", "f1-", "l-", "m-")
VOUCHER: Final = "io.envbuild.voucher"
STRANGE: Final = "e" * 64
"""A key and a lock key that nobody asked for."""


@dataclass(frozen=True)
class Written:
    """What a repository holds.

    Attributes:
        tags: The digest of what each tag names, those of signatures and lists of attachments too.
        manifests: All manifests that are there, with a tag or without.
    """

    tags: Mapping[str, Digest]
    manifests: Mapping[Digest, Manifest | ImageIndex]

    @classmethod
    def of(cls, repository: Repository) -> Written:
        """Read a layout's files."""
        folder = repository.folder
        if not (folder / "index.json").exists():
            return cls({}, {})
        tags: dict[str, Digest] = {}
        for entry in json.loads((folder / "index.json").read_bytes())["manifests"]:
            name = (entry.get("annotations") or {}).get("org.opencontainers.image.ref.name")
            if name is not None:
                tags.setdefault(name, Digest.parse(entry["digest"]))
        manifests: dict[Digest, Manifest | ImageIndex] = {}
        for path in (folder / "blobs" / "sha256").iterdir():
            raw = path.read_bytes()
            if raw[:1] == b"{" and b'"schemaVersion"' in raw:
                digest = Digest.of(raw)
                manifests[digest] = LayoutRegistry(repository).get_manifest(digest)
        return cls(tags, manifests)

    @classmethod
    def on(cls, server: RegistryServer, repository: Repository) -> Written:
        """Read the files of a registry."""
        store = server.folder / "data/docker/registry/v2"
        folder = store / "repositories" / repository.path / "_manifests"
        tags: dict[str, Digest] = {}
        for link in folder.glob("tags/*/current/link"):
            tags[link.parts[-3]] = Digest.parse(link.read_text())
        manifests: dict[Digest, Manifest | ImageIndex] = {}
        for link in folder.glob("revisions/sha256/*/link"):
            digest = Digest.parse(link.read_text())
            raw = (store / "blobs/sha256" / digest.hex[:2] / digest.hex / "data").read_bytes()
            manifests[digest] = parse_manifest(raw, None, str(digest))
        return cls(tags, manifests)

    def named(self, name: str) -> Manifest | ImageIndex:
        """What a tag names."""
        return self.manifests[self.tags[name]]


@dataclass(frozen=True)
class Outcome:
    """What a call came to.

    Attributes:
        code: Its exit code.
        answers: The digests that it answered with.
        files: The content of the files that it wrote.
        after: What each repository holds now.
        told: What it said on standard error.
        keys: The keys that it named.
    """

    code: int
    answers: tuple[str, ...]
    files: Mapping[str, bytes]
    after: Mapping[str, Written]
    told: str
    keys: tuple[str, ...] = ()


@dataclass
class Stage:
    """Repositories, and a machine that has seen nothing yet.

    Attributes:
        folder: Where the repositories are.
        settings: The variables of the machine.
        server: The registry that the repositories are on; None for layouts in the folder.
        number: How many machines there were.
    """

    folder: Path
    settings: dict[str, str]
    server: RegistryServer | None = None
    number: int = 0

    def store(self, name: str) -> Repository:
        """One of the repositories."""
        if self.server is not None:
            path = f"{self.folder.parent.name}/{self.folder.name}/{name}"
            return Repository.parse(f"{self.server.host}/{path}")
        return Repository.parse(f"oci:{self.folder}/{name}")

    def open(self, name: str) -> Registry:
        """One of the repositories, to read and write."""
        repository = self.store(name)
        return RemoteRegistry(repository) if self.server is not None else LayoutRegistry(repository)

    def written(self) -> dict[str, Written]:
        """What each repository holds."""
        if self.server is not None:
            return {name: Written.on(self.server, self.store(name)) for name in STORES}
        return {name: Written.of(self.store(name)) for name in STORES}

    def on(self, server: RegistryServer) -> Stage:
        """The same repositories on a registry."""
        hosted = Stage(self.folder, self.settings, server)
        for name in STORES:
            source, target, written = self.open(name), hosted.open(name), self.written()[name]
            by_kind = sorted(written.manifests.values(), key=lambda each: isinstance(each, ImageIndex))
            for manifest in by_kind:
                _bring(manifest, source, target)
            for tag in written.tags:
                target.put_manifest(written.named(tag), Tag(tag))
        return hosted

    def copy(self, folder: Path) -> Stage:
        """The same in another folder."""
        folder.mkdir()
        for name in STORES:
            if (self.folder / name).exists():
                shutil.copytree(self.folder / name, folder / name)
        return Stage(folder, self.settings)

    def call(self, words: Iterable[str], **settings: str) -> Outcome:
        """Run the command line on a machine that has seen nothing yet."""
        self.number += 1
        home = self.folder / f"machine-{self.number}"
        home.mkdir()
        out, err = io.StringIO(), io.StringIO()
        places = {f"{{{name}}}": str(self.store(name)) for name in STORES}
        given = [_filled(word, places) for word in words]
        variables = {"CACHE_DIR": str(home / "cache"), **self.settings, **settings}
        variables = {name: _filled(value, places) for name, value in variables.items()}
        with (
            contextlib.chdir(home),
            mock.patch.dict(os.environ, {f"ENVBUILD_{name}": value for name, value in variables.items()}),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = exit_code_of(given)
        documents = [json.loads(line) for line in out.getvalue().splitlines() if line.startswith("{")]
        answers = [each["reference"] for each in documents if each.get("reference")]
        files = {path.name: _content(path) for path in home.iterdir() if path.is_file()}
        digests = tuple(sorted(answer.rpartition("@")[2] for answer in answers))
        keys = tuple(each["key"] for each in documents if each.get("key"))
        return Outcome(code, digests, files, self.written(), err.getvalue(), keys)


def _filled(text: str, places: Mapping[str, str]) -> str:
    for name, value in places.items():
        text = text.replace(name, value)
    return text


def _content(path: Path) -> bytes:
    if path.suffix != ".tar":
        return path.read_bytes()
    with tarfile.open(path) as archive:
        return b"\n".join(sorted(member.name.encode() for member in archive.getmembers()))


def evil_layer(registry: Registry) -> tuple[Descriptor, Digest]:
    """A layer that nobody made for us; its blob and its diff id."""
    import gzip

    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        info = tarfile.TarInfo("opt/env/lib/evil.so")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    return put(registry, gzip.compress(raw.getvalue(), 1, mtime=0), OCI_LAYER_GZIP), Digest.of(raw.getvalue())


def evil_twin(
    manifest: Manifest | ImageIndex, source: Registry, target: Registry, *, strange: bool = False
) -> Manifest | ImageIndex:
    """What looks like an image, index, recipe, layer or record, with something in it that is not theirs.

    Args:
        manifest: The honest one.
        source: Has its content.
        target: Is given the twin and what it names.
        strange: Whether an image in an index carries keys that nobody asked for.
    """
    if isinstance(manifest, ImageIndex):
        entries = []
        for entry in manifest.manifests:
            twin = evil_twin(source.get_manifest(entry.digest), source, target, strange=True)
            entries.append(replace(twin.descriptor, platform=entry.platform))
        made: Manifest | ImageIndex = ImageIndex.build(tuple(entries), manifest.annotations)
    elif manifest.artifact_type is not None:
        made = _evil_artifact(manifest, target)
    else:
        made = _evil_image(manifest, source, target, strange=strange)
    target.put_manifest(made)
    return made


def _evil_image(manifest: Manifest, source: Registry, target: Registry, *, strange: bool) -> Manifest:
    layer, diff_id = evil_layer(target)
    config = json.loads(source.open_blob(manifest.config).read())
    config["config"].setdefault("Env", []).append("LD_PRELOAD=/opt/env/lib/evil.so")
    config["rootfs"]["diff_ids"].append(str(diff_id))
    config.get("history", []).append({"created_by": "somebody"})
    for blob in manifest.layers:
        target.put_blob(blob, lambda blob=blob: source.open_blob(blob))  # type: ignore[misc]
    notes = dict(manifest.annotations)
    if strange:
        notes |= {name: STRANGE for name in (KEY_ANNOTATION, LOCK_ANNOTATION) if name in notes}
    return Manifest.build(put(target, encode(config), OCI_CONFIG), (*manifest.layers, layer), notes)


def _evil_artifact(manifest: Manifest, target: Registry) -> Manifest:
    notes = {name: text for name, text in manifest.annotations.items() if name != VOUCHER}
    layers = manifest.layers
    if RECIPE_ANNOTATION in notes:
        packed = base64.b64decode(notes[RECIPE_ANNOTATION])
        document = json.loads(zstandard.ZstdDecompressor().stream_reader(packed).read())
        document["layers"] = document["layers"][:-1]
        document["activation"]["etc/conda/env_vars.d/evil.json"] = '{"LD_PRELOAD": "/opt/env/lib/evil.so"}'
        notes[RECIPE_ANNOTATION] = base64.b64encode(zstandard.compress(encode(document))).decode()
    elif "io.envbuild.layer" in notes:
        layer, diff_id = evil_layer(target)
        layers, notes["io.envbuild.diff-id"] = (layer,), str(diff_id)
    elif "io.envbuild.record" in notes:
        packed = base64.b64decode(notes["io.envbuild.record"])
        document = json.loads(zstandard.ZstdDecompressor().stream_reader(packed).read())
        document["depends"] = ["evil"]
        notes["io.envbuild.record"] = base64.b64encode(zstandard.compress(encode(document))).decode()
    else:
        notes["somebody"] = "was here"
    return Manifest.build(
        put(target, b"{}", manifest.config.media_type), layers, notes, artifact_type=manifest.artifact_type
    )


@dataclass(frozen=True)
class Poison:
    """Poison for one call: what is planted, and where.

    Attributes:
        source: The repository that the call reads.
        target: The repository that it writes.
        before: What they hold before the call.
        honest: What the call comes to without poison.
        origin: Repositories as they are after the honest call, which have the content of all that it wrote.
    """

    source: str
    target: str
    before: Mapping[str, Written]
    honest: Outcome
    origin: Stage

    def known(self, family: str) -> list[str]:
        """The tags of a family that are there."""
        return sorted(name for name in self.before[self.source].tags if name.startswith(family))

    def new(self, family: str) -> list[str]:
        """The tags of a family that an honest call writes."""
        before, after = self.before[self.target].tags, self.honest.after[self.target].tags
        return sorted(name for name in after if name.startswith(family) and name not in before)

    def evil(self, stage: Stage, family: str, *, coming: bool) -> int:
        """Put the twins of a family in place; how many there are."""
        store, names = (self.target, self.new(family)) if coming else (self.source, self.known(family))
        target, origin = stage.open(store), self.origin.open(store)
        for name in names:
            twin = evil_twin(origin.get_manifest(Tag(name)), origin, target)
            target.put_manifest(twin, Tag(name))
        return len(names)

    def swapped(self, stage: Stage, family: str, *, coming: bool) -> int:
        """Let each tag of a family name something honest that is not what it says; how many there are."""
        store, names = (self.target, self.new(family)) if coming else (self.source, self.known(family))
        target, origin = stage.open(store), self.origin.open(store)
        everything = self.honest.after[store]
        others = [name for name in everything.tags if name.startswith(family)]
        for name in names:
            mine = everything.tags[name]
            other = next((each for each in sorted(others) if everything.tags[each] != mine), None)
            if other is None:
                continue
            _bring(everything.named(other), origin, target)
            target.put_manifest(everything.named(other), Tag(name))
        return len(names)

    def attached(self, stage: Stage, kind: str) -> int:
        """Attach a lock or a definition of something else to each image; how many there are."""
        registry = stage.open(self.source)
        count = 0
        for manifest in self.before[self.source].manifests.values():
            subject = manifest.descriptor
            listed = find_manifest(registry, fallback_tag(subject.digest))
            old = referrers(registry, subject.digest, kind)
            if not isinstance(listed, ImageIndex) or not old:
                continue
            artifact = registry.get_manifest(old[0].digest)
            assert isinstance(artifact, Manifest)
            kept = tuple(entry for entry in listed.manifests if entry.artifact_type != kind)
            registry.put_manifest(ImageIndex.build(kept, {}), fallback_tag(subject.digest))
            evil = _evil_attachment(kind, read_artifact(registry, artifact))
            attach(registry, subject, [evil], locks=stage.folder)
            count += 1
        return count


def _evil_attachment(kind: str, content: bytes) -> Artifact:
    if kind == FORM_TYPE:
        document = json.loads(content)
        document["variables"] = {"LD_PRELOAD": "/opt/env/lib/evil.so"}
        return Artifact(kind, kind, encode(document), {}, "form.json")
    assert kind == LOCK_TYPE
    lock = LockFile.parse(content, "the lock")
    entries = []
    for entry in lock.entries:
        packages = [replace(each, sha256=Digest.of(b"evil")) for each in entry.lock.packages]
        entries.append(replace(entry, lock=Lock.of(entry.lock.platform, packages)))
    return lock_artifact(LockFile.of(lock.definition, entries))


def _bring(manifest: Manifest | ImageIndex, source: Registry, target: Registry) -> None:
    """Have all that a manifest names, and it, in a repository."""
    for entry in manifest.manifests if isinstance(manifest, ImageIndex) else ():
        _bring(source.get_manifest(entry.digest), source, target)
    for blob in manifest.blobs if isinstance(manifest, Manifest) else ():
        target.put_blob(blob, lambda blob=blob: source.open_blob(blob))  # type: ignore[misc]
    target.put_manifest(manifest)


def same(first: Manifest | ImageIndex, second: Manifest | ImageIndex) -> bool:
    """Whether two manifests are the same, whoever vouches for what is in them."""

    def content(manifest: Manifest | ImageIndex) -> Any:
        document = json.loads(manifest.raw)
        document.get("annotations", {}).pop(VOUCHER, None)
        return document

    return bool(content(first) == content(second))


def faults(
    outcome: Outcome, honest: Outcome, before: Mapping[str, Written], *, names_only: bool = False
) -> list[str]:
    """What a call accepted or wrote that an honest one does not.

    Args:
        outcome: The call among poison.
        honest: The call without.
        before: What the repositories held before, poison and all.
        names_only: Whether only the names of what was written count, as where nobody asks for signatures.
    """
    found: list[str] = []
    if outcome.code not in {0, 2, 3, 4, 5, 6, 7}:
        found.append(f"exit code {outcome.code}")
    if not names_only:
        if extra := set(outcome.answers) - set(honest.answers):
            found.append(f"answered {sorted(extra)}")
        if outcome.code == 0 and outcome.answers != honest.answers:
            found.append(f"answered {outcome.answers}, expected {honest.answers}")
        found += [f"wrote {name}" for name, text in outcome.files.items() if honest.files.get(name) != text]
    everything = honest.after.values()
    good = {digest.hex for written in everything for digest in written.manifests}
    tags = {name: written.named(name) for written in everything for name in written.tags}
    for store, after in outcome.after.items():
        told = _written(store, after, before[store], tags, good, names_only=names_only)
        found += told
    return found


def _written(
    store: str,
    after: Written,
    before: Written,
    honest: Mapping[str, Manifest | ImageIndex],
    good: set[str],
    *,
    names_only: bool,
) -> list[str]:
    found = []
    for name, digest in after.tags.items():
        if before.tags.get(name) == digest:
            continue
        if name.startswith("sha256-"):  # a signature or a list: it must be about what is honest
            if not names_only and name.removeprefix("sha256-").partition(".")[0] not in good:
                found.append(f"{store}: {name} was written")
        elif name not in honest:
            if not _is_statement(after.named(name)) and not (names_only and name.startswith("m-")):
                found.append(f"{store}: {name} was written, and nobody asked for it")
        elif not names_only and not same(after.named(name), honest[name]):
            expected = honest[name].descriptor.digest.short
            found.append(f"{store}: {name} names {digest.short}, expected {expected}")
    images = [] if names_only else [digest for digest in after.manifests if digest not in before.manifests]
    return found + [
        f"{store}: the image {digest.short} was written"
        for digest in images
        if digest.hex not in good and _is_ours(after.manifests[digest])
    ]


def _is_ours(manifest: Manifest | ImageIndex) -> bool:
    """Whether it is an image, with annotations of envbuild's."""
    if isinstance(manifest, ImageIndex) or manifest.artifact_type is not None:
        return False
    is_image = manifest.config.media_type == OCI_CONFIG
    return is_image and any(name.startswith("io.envbuild.") for name in manifest.annotations)


def _is_statement(manifest: Manifest | ImageIndex) -> bool:
    """Whether it is a signed statement about what is shared: its name is that of its content."""
    return isinstance(manifest, Manifest) and "statement" in (manifest.artifact_type or "")
