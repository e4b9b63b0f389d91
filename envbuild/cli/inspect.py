"""``envbuild inspect``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from envbuild import attach
from envbuild.cli.options import DEFINITION, LOOKUP, Command, amount, common
from envbuild.cli.progress import shown
from envbuild.deadline import Deadline
from envbuild.errors import CacheMiss, IntegrityError, counted, plain
from envbuild.oci.manifest import ImageIndex
from envbuild.oci.registry import find_manifest
from envbuild.reference import ImageReference, parse_reference
from envbuild.resolver import Resolver

if TYPE_CHECKING:
    from envbuild.cli.options import Common
    from envbuild.digest import Digest
    from envbuild.oci.manifest import Manifest
    from envbuild.oci.registry import Registry
    from envbuild.reference import TaggedReference


@click.command(cls=Command)
@click.argument("image", metavar="REF|SPEC")
@common(DEFINITION, LOOKUP)
def inspect(image: str, options: Common) -> None:
    """Show what an image is made of: keys, base, variables and layers, and what is attached to it.

    Give a reference, or a definition whose image is looked up; nothing is built or written.
    """
    # Looking must not copy a global hit anywhere.
    config = replace(options.config, promote=False)
    with shown(options) as display, Resolver(config, progress=display) as resolver:
        if image == "-" or Path(image).exists():
            found: ImageReference | TaggedReference = _resolved(resolver, image, options)
        else:
            found = parse_reference(image)
        wanted = found.digest if isinstance(found, ImageReference) else found.tag
        registry = resolver.registries.open(found.repository).by(Deadline.after(options.config.timeout))
        manifest = registry.get_manifest(wanted)
        document = describe(registry, manifest)
        document["attached"] = _attached(registry, manifest.descriptor.digest)
    if options.as_json:
        click.echo(plain(json.dumps(document, ensure_ascii=False)))
    else:
        _print(document)


def _resolved(resolver: Resolver, spec: str, options: Common) -> ImageReference:
    try:
        return resolver.resolve(options.load(spec), build=False).reference
    except CacheMiss as miss:
        raise CacheMiss(miss.message, hint=f"build it with `envbuild resolve {spec}`") from None


def describe(registry: Registry, manifest: Manifest | ImageIndex) -> dict[str, Any]:
    """An image or an index as a JSON object."""
    document: dict[str, Any] = {
        "reference": str(registry.repository.at(manifest.descriptor.digest)),
        "media_type": manifest.media_type,
        "annotations": dict(manifest.annotations),
    }
    if isinstance(manifest, ImageIndex):
        return document | {"manifests": [entry.to_json() for entry in manifest.manifests]}
    from envbuild.imageconfig import read_config

    try:
        config = read_config(registry, manifest)
    except IntegrityError as error:
        raise IntegrityError(f"{document['reference']}: {error.message}", hint=error.hint) from None
    titles = [*_titles(config.get("history")), *[""] * len(manifest.layers)]
    runtime = config.get("config") or {}
    return document | {
        "platform": f"{config.get('os')}/{config.get('architecture')}",
        "created": config.get("created"),
        "environment": runtime.get("Env") or [],
        "labels": runtime.get("Labels") or {},
        "size": sum(blob.size for blob in manifest.blobs),
        "layers": [
            {"digest": str(layer.digest), "size": layer.size, "media_type": layer.media_type, "title": title}
            for layer, title in zip(manifest.layers, titles, strict=False)
        ],
    }


def _titles(history: Any) -> list[str]:
    """What made each layer, as far as a config's history tells it."""
    steps = [step for step in history if isinstance(step, dict)] if isinstance(history, list) else []
    return [str(step.get("created_by") or "") for step in steps if not step.get("empty_layer")]


_NAMES: Final = {
    attach.LOCK_TYPE: "lock",
    attach.FORM_TYPE: "definition",
    attach.IN_TOTO_TYPE: "provenance",
    attach.SPDX_TYPE: "SBOM, SPDX",
    attach.CYCLONEDX_TYPE: "SBOM, CycloneDX",
}


def _attached(registry: Registry, subject: Digest) -> list[dict[str, Any]]:
    """What is attached to an image, and its signatures."""
    from envbuild.trust import signature_tag

    found = attach.referrers_of(registry, subject)
    signed = find_manifest(registry, signature_tag(subject))
    return found if signed is None else [*found, {**signed.descriptor.to_json(), "artifactType": "signature"}]


def _print(document: dict[str, Any]) -> None:
    """Show names in one column and what they name in another; layers by size below."""
    rows = [(name, document[name]) for name in ("platform", "created") if document.get(name)]
    rows += document["annotations"].items()
    rows += [("env", variable) for variable in document.get("environment", ())]
    for entry in document.get("manifests", ()):
        platform = entry.get("platform") or {}
        parts = (platform.get("os"), platform.get("architecture"), platform.get("variant"))
        rows.append(("/".join(filter(None, parts)) or "manifest", entry["digest"]))
    for entry in document["attached"]:
        kind = entry.get("artifactType", "")
        rows.append(("attached", f"{entry['digest']}  {_NAMES.get(kind, kind)}"))
    width = max((len(name) for name, _ in rows), default=0)
    click.echo(document["reference"])
    for name, value in rows:
        click.echo(plain(f"{name:<{width}}  {value}"))
    for layer in document.get("layers", ()):
        click.echo(
            f"{amount(layer['size']):>10}  {layer['digest'][7:19]}  {plain(layer['title'][:80])}".rstrip()
        )
    if "size" in document:
        click.echo(f"{amount(document['size']):>10}  in {counted(len(document['layers']), 'layer')}")
