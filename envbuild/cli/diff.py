"""``envbuild diff``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from envbuild.cli.options import DEFINITION, Command, common
from envbuild.cli.progress import shown
from envbuild.deadline import Deadline
from envbuild.diff import Change, compare
from envbuild.errors import SpecError, plain
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION, OPTIONAL
from envbuild.lockfile import LockPolicy, is_lock
from envbuild.reference import ImageReference, parse_reference
from envbuild.resolver import Resolver

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.cli.options import Common
    from envbuild.digest import Digest
    from envbuild.lockfile.document import LockFile
    from envbuild.oci.registry import Registry
    from envbuild.reference import Tag

Members = dict[str, Any]
"""What is known of one side: the members of a canonical form, and of a lock or an image those beside it."""


@click.command(cls=Command)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@common(DEFINITION)
def diff(first: str, second: str, options: Common) -> int:
    """Say which inputs differ between two definitions, locks or images; exit with 1 if any does.

    An image is known by the lock that is attached to it, or by its definition where it was resolved on this
    machine; of any other one its base, its packages and its variables are compared.
    """
    with (
        shown(options) as display,
        Resolver(options.config, progress=display, locks=LockPolicy(ignored=True)) as resolver,
    ):
        changes = differences(_members(resolver, first, options), _members(resolver, second, options))
    for change in changes:
        click.echo(
            plain(json.dumps(change.to_json(), ensure_ascii=False) if options.as_json else str(change))
        )
    return 1 if changes else 0


def differences(first: Members, second: Members) -> tuple[Change, ...]:
    """The changes between two sides in what is known of both; the keys speak where nothing else does."""
    known = first.keys() & second.keys() - {"key"}
    if "as_of" in known:  # two whole forms: what only one of them has is a difference
        known |= (first.keys() | second.keys()) & set(OPTIONAL)
    left, right = ({name: side[name] for name in known & side.keys()} for side in (first, second))
    if "packages" in known and not (_hashed(left) and _hashed(right)):
        left, right = _without_hashes(left), _without_hashes(right)
    changes = compare(left, right)
    if not changes and None not in (first["key"], second["key"]) and first["key"] != second["key"]:
        return (Change("key", "changed", before=first["key"], after=second["key"]),)
    return changes


def _hashed(side: Members) -> bool:
    return all("sha256" in package for package in side["packages"])


def _without_hashes(side: Members) -> Members:
    """A side whose packages are known as an image without a lock tells them."""
    kept = [{name: package[name] for name in ("name", "version", "build")} for package in side["packages"]]
    return {**side, "packages": sorted(kept, key=lambda package: package["name"])}


def _members(resolver: Resolver, text: str, options: Common) -> Members:
    if is_lock(text):
        return _of_lock(Path(text), options)
    if text == "-" or Path(text).exists():
        loaded = options.load(text)
        if loaded.lock is not None:
            from envbuild.lockfile.document import LockFile

            return _of_entries(LockFile.parse(loaded.lock, loaded.source), text, options)
        form = resolver.form(loaded)
        return {**form.fields, "key": str(form.key)}
    return _of_image(resolver, text, options)


def _of_lock(path: Path, options: Common) -> Members:
    from envbuild.lockfile.document import LockFile

    return _of_entries(LockFile.read(path), str(path), options)


def _of_entries(file: LockFile, name: str, options: Common) -> Members:
    from envbuild.lockfile.document import distribution_json, package_json

    wanted = options.overrides["platforms"]
    entries = [entry for entry in file.entries if wanted is None or entry.lock.platform in wanted]
    if len(entries) != 1:
        known = ", ".join(str(entry.lock.platform) for entry in file.entries)
        raise SpecError(f"{name} is for {known}", hint="say which with --platform")
    (entry,) = entries
    packages = [package_json(package) for package in entry.lock.packages]
    wheels = [distribution_json(wheel) for wheel in entry.pip]
    return {**entry.form.fields, "packages": packages, "wheels": wheels, "key": str(entry.key)}


def _of_image(resolver: Resolver, text: str, options: Common) -> Members:
    from envbuild.build.assemble import BASE_DIGEST_ANNOTATION
    from envbuild.cli.inspect import describe

    found = parse_reference(text)
    wanted = found.digest if isinstance(found, ImageReference) else found.tag
    registry = resolver.registries.open(found.repository).by(Deadline.after(options.config.timeout))
    if (lock := _attached(registry, wanted)) is not None:
        return _of_entries(lock, text, options)
    document = describe(registry, registry.get_manifest(wanted))
    annotations: Mapping[str, str] = document["annotations"]
    key, lock_key = (annotations.get(name) for name in (KEY_ANNOTATION, LOCK_ANNOTATION))
    if (key or lock_key) is None or "layers" not in document:
        raise SpecError(
            f"{text} is no image that envbuild made", hint="compare definitions, locks or such images"
        )
    members: Members = {
        "base": annotations.get(BASE_DIGEST_ANNOTATION, "scratch"),
        "platform": document["platform"],
        "environment": dict(each.split("=", 1) for each in document["environment"] if "=" in each),
        "lock key": lock_key,
        "key": key,
    }
    if (packages := _packages(document["layers"])) is not None:
        members["packages"] = packages
        del members["lock key"]  # what differs is told package by package
    return members | (resolver.index.form(str(key or lock_key)) or {})


def _attached(registry: Registry, wanted: Tag | Digest) -> LockFile | None:
    """The lock that is attached to an image or to those of an index, or None."""
    from envbuild.restore import attached_lock

    try:
        return attached_lock(registry, wanted)
    except SpecError:
        return None


def _packages(layers: list[dict[str, Any]]) -> list[dict[str, str]] | None:
    """The packages that the layers' titles name; None where a layer holds several."""
    packages = []
    for layer in layers:
        words = layer["title"].removeprefix("envbuild ").split(" ")
        parts = words[0].rsplit("-", 2)
        if layer["title"].startswith("envbuild ") and words[-1] == "packages":
            return None
        if layer["title"].startswith("envbuild ") and len(words) == 1 and len(parts) == 3:
            packages.append(dict(zip(("name", "version", "build"), parts, strict=True)))
    return packages
