"""A lock as a definition: what its canonical form says, made into a definition again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from envbuild.errors import SpecError
from envbuild.key import CanonicalForm
from envbuild.lockfile.document import LockFile
from envbuild.spec import fields
from envbuild.spec.document import Mark
from envbuild.spec.environment import ChannelPriority, EnvironmentSpec
from envbuild.spec.virtual import VirtualPackages

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from envbuild.lockfile.document import LockEntry
    from envbuild.platform import Platform
    from envbuild.reference import ImageReference
    from envbuild.spec.conda import CondaSection
    from envbuild.spec.pip import PipSection
    from envbuild.spec.steps import Steps

_NAME_IT = "name the definition that it was made from"


def definition(
    content: bytes, path: Path, platforms: str | Platform | Iterable[str | Platform] | None = None
) -> EnvironmentSpec:
    """The definition that a lock was made from, as far as a build needs it.

    Args:
        content: The lock.
        path: Its file, for messages; layouts on disk are named from its folder.
        platforms: Which of its platforms to take; needed where it has several.

    Raises:
        SpecError: The lock is damaged, is not for that platform, or its steps or requirements read files.
    """
    entry = _entry(LockFile.parse(content, str(path)), path, platforms)
    try:
        spec = _revived(entry, path)
    except (KeyError, TypeError, ValueError, AttributeError):
        spec = None
    if spec is None or CanonicalForm.of(spec, entry.digest, entry.lock.platform).key != entry.key:
        raise SpecError("the lock's form cannot be made into a definition", source=str(path), hint=_NAME_IT)
    return replace(spec, lock=content)


def _revived(entry: LockEntry, path: Path) -> EnvironmentSpec:
    form = entry.form.fields
    return EnvironmentSpec(
        source=str(path),
        base=_base(entry, path),
        steps=revived_steps(form["steps"], path),
        conda=_conda(form["conda"]),
        pip=_pip(form["pip"], path),
        steps_after=revived_steps(form["steps_after"], path),
        variables=tuple(sorted(form["variables"].items())),
        channel_priority=ChannelPriority(form["channel_priority"]),
        platforms=(entry.lock.platform,),
        as_of=fields.moment(form["as_of"], None) if form["as_of"] is not None else None,
        virtual_packages=VirtualPackages.of(form.get("virtual_packages", {})),
        pyc=form.get("pyc", False),
        offline="step_network" in form,
    )


def _entry(file: LockFile, path: Path, platforms: Any) -> LockEntry:
    if platforms is None and len(file.entries) == 1:
        return file.entries[0]
    known = ", ".join(str(entry.lock.platform) for entry in file.entries)
    if platforms is None:
        raise SpecError(f"the lock is for {known}", source=str(path), hint="say which with --platform")
    wanted = fields.platforms((platforms,) if isinstance(platforms, str) else tuple(platforms))
    entry = file.entry(wanted[0]) if len(wanted) == 1 else None
    if entry is None:
        names = ", ".join(map(str, wanted))
        raise SpecError(f"the lock is for {known}, and {names} is asked for", source=str(path), hint=_NAME_IT)
    return entry


def _base(entry: LockEntry, path: Path) -> ImageReference | None:
    found = fields.reference(entry.base, path.parent.resolve(), Mark(str(path), 1, 1))
    return found.repository.at(entry.digest) if found is not None and entry.digest is not None else None


def _conda(section: dict[str, Any] | None) -> CondaSection | None:
    from envbuild.spec.channel import DEFAULT_ALIAS, Channel
    from envbuild.spec.conda import CondaSection
    from envbuild.spec.match import MatchSpec

    if section is None:
        return None
    found = CondaSection(
        tuple(Channel.parse(each) for each in section["channels"]),
        section["nodefaults"],
        tuple(MatchSpec.parse(each) for each in section["dependencies"]),
    )
    return found.under(DEFAULT_ALIAS)  # a form says where channels lead: no alias is left to be laid over it


def revived_steps(section: dict[str, Any] | None, path: Path) -> Steps | None:
    """Steps of their part of a form, where they read no files; ``path`` is named in messages."""
    from envbuild.spec.dockerfile import parse_instructions
    from envbuild.spec.instruction import Heredoc, Instruction
    from envbuild.spec.steps import Steps

    if section is None:
        return None
    if section["context"]:
        raise SpecError("the steps read files, which a lock does not hold", source=str(path), hint=_NAME_IT)
    instructions = tuple(
        Instruction(
            one["keyword"],
            tuple(one["flags"]),
            tuple(one["arguments"]),
            one["exec"],
            tuple(
                Heredoc(each["name"], each["content"], each["expand"], each["stripTabs"])
                for each in one["heredocs"]
            ),
        )
        for one in section["instructions"]
    )
    found = Steps.of(instructions, Mark(str(path), 1, 1), args=section["args"], context=None)
    # An engine reads them as text: what is no instruction by the grammar could be several, or a FROM, there.
    if parse_instructions(found.render(), Mark(str(path), 1, 1)) != instructions:
        raise SpecError("the steps are others when they are written as text", source=str(path), hint=_NAME_IT)
    return found


def _pip(section: dict[str, Any] | None, path: Path) -> PipSection | None:
    from envbuild.spec.collector import Collector
    from envbuild.spec.pip import IndexStrategy, PipSection
    from envbuild.spec.requirement import PipRequirement

    if section is None:
        return None
    if section["findLinksLocal"] or any(
        one["local"] for one in (*section["requirements"], *section["constraints"])
    ):
        raise SpecError(
            "pip requirements read files, which a lock does not hold", source=str(path), hint=_NAME_IT
        )

    def requirements(listed: list[dict[str, Any]]) -> tuple[PipRequirement, ...]:
        return tuple(
            PipRequirement(
                one["name"],
                tuple(one["extras"]),
                tuple(one["specifiers"]),
                one["marker"],
                one["url"],
                None,
                one["editable"],
                tuple(one["hashes"]),
                one["url"],
            )
            for one in listed
        )

    found = PipSection(
        requirements=requirements(section["requirements"]),
        constraints=requirements(section["constraints"]),
        indexes=tuple(section["indexes"]),
        own_index=section["ownIndex"],
        find_links=tuple(section["findLinks"]),
        no_binary=tuple(section["noBinary"]),
        only_binary=tuple(section["onlyBinary"]),
        trusted_hosts=tuple(section["trustedHosts"]),
        switches=tuple(section["switches"]),
        all_releases=tuple(section.get("allReleases", ())),
        only_final=tuple(section.get("onlyFinal", ())),
        index_strategy=IndexStrategy(section.get("indexStrategy", IndexStrategy.PIP)),
        fetch_indexes=tuple(section["indexes"]),
        fetch_links=tuple(section["findLinks"]),
    )
    again = Collector()
    again.file(found.requirements_text().encode(), str(path), None, constraint=False)
    again.file(found.constraints_text().encode(), str(path), None, constraint=True)
    # uv reads it as text, too.
    read = PipSection(**again.members(), index_strategy=found.index_strategy)
    if read != found:
        raise SpecError(
            "the pip section is another one when it is written as text", source=str(path), hint=_NAME_IT
        )
    return read
