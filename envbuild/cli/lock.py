"""``envbuild lock``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from envbuild.cli.options import BUILD, DEFINITION_TO_LOCK, Command, common
from envbuild.cli.progress import shown
from envbuild.cli.target import source_image
from envbuild.deadline import Deadline
from envbuild.diff import compare
from envbuild.errors import SpecError, counted
from envbuild.foreign.write import Format, render
from envbuild.lockfile import FILE_NAME, LockPolicy, differences
from envbuild.lockfile.document import LockFile, distribution_json, package_json
from envbuild.lockfile.files import write_whole
from envbuild.resolver import Resolver

if TYPE_CHECKING:
    from envbuild.cli.options import Common
    from envbuild.diff import Change
    from envbuild.lockfile.document import LockEntry
    from envbuild.spec.environment import EnvironmentSpec


@click.command(cls=Command)
@click.argument("spec", metavar="[SPEC]", required=False)
@click.option(
    "--from", "image", metavar="REF", help="Solve nothing; write the lock that is attached to an image."
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help=f"Where to write; {FILE_NAME} beside the definition if not given, - for standard output.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice([str(form) for form in Format]),
    help="What to write; else the file name says: pixi.lock, conda-lock.yml, *.txt is @EXPLICIT.",
)
@click.option("--check", is_flag=True, help="Solve nothing; exit with 1 if the lock is stale or missing.")
@common(DEFINITION_TO_LOCK, BUILD)
def lock(
    spec: str | None, image: str | None, output: str | None, form: str | None, check: bool, options: Common
) -> int:
    """Solve a definition once and write down what came out; from then on resolves are held to it.

    Commit the file beside the definition. Say `envbuild lock` again to take newer packages.
    """
    kind = Format(form) if form is not None else Format.of_name(output or "")
    if (spec is None) == (image is None):
        raise click.UsageError("give a definition, or --from with an image")
    if check and (kind is not Format.ENVBUILD or image is not None):
        raise click.UsageError(f"--check compares a definition with its {FILE_NAME}")
    if spec is None:
        return _from_image(str(image), output, kind, options)
    loaded = options.load(spec)
    laid_over = _laid_over(loaded, options)
    path = _path(loaded.source, output, kind)
    with (
        shown(options) as display,
        Resolver(options.config, progress=display, locks=LockPolicy(ignored=True)) as resolver,
    ):
        loaded = resolver.load(loaded)
        if check:
            display.pause()
            return _check(loaded, path, as_json=options.as_json)
        before = None
        if kind is Format.ENVBUILD:
            before = _before(Path(loaded.source).name, path, named=output is not None)
        from envbuild.locking import make_lock

        made = make_lock(resolver, loaded, path.parent if path is not None else Path())
        display.pause()
    _write(made, before, path, render(made, kind, laid_over=laid_over), options)
    return 0


def _from_image(image: str, output: str | None, kind: Format, options: Common) -> int:
    from envbuild.admission import Admission
    from envbuild.restore import in_folder, restored

    path, deadline = _path("", output, kind), Deadline.after(options.config.timeout)
    with (
        shown(options) as display,
        source_image(image, options, display) as (registry, reference, base),
    ):
        admission = Admission(options.config, display)
        found = restored(registry, reference, options.overrides["platforms"], admission, deadline=deadline)
    made = in_folder(found.lock, path.parent if path is not None else Path(), base)
    before = None
    if kind is Format.ENVBUILD:
        before = _before(made.definition, path, named=output is not None)
    laid_over = {"base"} if base is not None else ()
    _write(made, before, path, render(made, kind, laid_over=laid_over), options)
    return 0


def _write(
    made: LockFile, before: LockFile | None, path: Path | None, content: bytes, options: Common
) -> None:
    if path is None:
        click.echo(content, nl=False)
        return
    write_whole(path, content)
    _report(path, before, made, as_json=options.as_json)


def _laid_over(loaded: EnvironmentSpec, options: Common) -> set[str]:
    """What does not come from the definition: options, and what the settings lay over it."""
    given = {name for name in ("base", "steps") if options.overrides[name] is not None}
    given |= set() if loaded.has_base else {"base"}
    return given if loaded.virtual_packages.canonical() else given | {"virtual_packages"}


def _path(definition: str, output: str | None, kind: Format) -> Path | None:
    if output == "-":
        return None
    source = Path(definition)
    if output is not None:
        return Path(output)
    return (source.parent if source.exists() else Path()) / kind.file_name


def _before(definition: str, path: Path | None, *, named: bool) -> LockFile | None:
    """The lock that will be replaced; that of another definition is, only where its place was named."""
    before = LockFile.read(path) if path is not None and path.exists() else None
    if before is not None and not named and before.definition != definition:
        raise SpecError(
            f"{path} is the lock of {before.definition or 'something else'}",
            source=definition or None,
            hint="give the lock another name with -o, or delete it",
        )
    return before


def _check(spec: EnvironmentSpec, path: Path | None, *, as_json: bool) -> int:
    """Whether the lock holds the definition on each of its platforms."""
    found: list[dict[str, Any]] = []
    file = LockFile.read(path) if path is not None and path.exists() else None
    for platform in spec.platforms:
        entry = file.entry(platform) if file is not None else None
        if entry is None or path is None:
            found.append({"platform": str(platform), "missing": True})
            continue
        found += [
            {"platform": str(platform), **change.to_json(), "text": str(change)}
            for change in differences(entry, spec, path.parent)
        ]
    for each in found:
        told = f"stale for {each['platform']}: {each['text']}" if "text" in each else None
        text = told or f"no lock for {each['platform']}"
        click.echo(json.dumps(each, ensure_ascii=False) if as_json else text)
    return 1 if found else 0


def _report(path: Path, before: LockFile | None, made: LockFile, *, as_json: bool) -> None:
    changes = {str(entry.lock.platform): _changes(before, entry) for entry in made.entries}
    if as_json:
        for entry in made.entries:
            platform = str(entry.lock.platform)
            document = {
                "lock": str(path),
                "platform": platform,
                "key": str(entry.key),
                "packages": len(entry.lock.packages),
                "wheels": len(entry.pip),
                "changes": [change.to_json() for change in changes[platform]],
            }
            click.echo(json.dumps(document, ensure_ascii=False))
        return
    for entry in made.entries:
        wheels = f" and {counted(len(entry.pip), 'wheel')}" if entry.pip else ""
        click.echo(
            f"{path}: {counted(len(entry.lock.packages), 'package')}{wheels} for {entry.lock.platform}"
        )
        if before is not None:
            for change in changes[str(entry.lock.platform)]:
                click.echo(f"  {change}")


def _changes(before: LockFile | None, entry: LockEntry) -> tuple[Change, ...]:
    old = before.entry(entry.lock.platform) if before is not None else None
    return compare(_contents(old), _contents(entry))


def _contents(entry: LockEntry | None) -> dict[str, Any]:
    packages = entry.lock.packages if entry is not None else ()
    wheels = entry.pip if entry is not None else ()
    return {
        "packages": [package_json(package) for package in packages],
        "wheels": [distribution_json(wheel) for wheel in wheels],
    }
