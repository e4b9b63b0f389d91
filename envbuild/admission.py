"""What is taken from a registry: nothing enters an answer or an image but through here.

Whatever its tag family, what is taken must be what it says it is: its bytes are those of its digest, and it
carries the name by which it was asked for. Where the policy asks for signatures, somebody whom it accepts
must vouch for it too; what nobody vouches for is as good as not there, and is made again.
"""

from __future__ import annotations

import json
import re
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from envbuild.digest import Digest
from envbuild.errors import IntegrityError, NotFound, SpecError
from envbuild.index import MADE
from envbuild.key import KEY_ANNOTATION, LOCK_ANNOTATION, LOCK_TAG
from envbuild.oci.manifest import ImageIndex, Manifest
from envbuild.progress import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from envbuild.config import Config
    from envbuild.deadline import Deadline
    from envbuild.index import Index
    from envbuild.lockkey import Name
    from envbuild.oci.registry import Registry
    from envbuild.platform import Platform
    from envbuild.progress import Progress
    from envbuild.reference import Repository, Tag
    from envbuild.trust import Rule, Untrusted

VOUCHER_ANNOTATION: Final = "io.envbuild.voucher"
"""Names the signed statement that vouches for what is kept beside layers."""
_HEX: Final = re.compile("[0-9a-f]{64}")
_MOST_LAYERS: Final = 127
_MAX_REMEMBERED: Final = 256 << 10
"""The longest list of subjects that the index remembers, in characters."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """An image that may be used.

    Attributes:
        manifest: The image or index.
        is_vouched: Whether a signature was asked for, and is there.
        claims: What each accepted signature that was read says of it beside its digest.
    """

    manifest: Manifest | ImageIndex
    is_vouched: bool = False
    claims: tuple[Mapping[str, Any], ...] = ()

    @property
    def image(self) -> Manifest:
        """The manifest of what is no index.

        Raises:
            IntegrityError: It is one.
        """
        if isinstance(self.manifest, ImageIndex):
            raise IntegrityError(f"{self.manifest.descriptor.digest} is an index, expected an image")
        return self.manifest

    def lets(self, claim: str, value: str) -> bool:
        """Whether something beside the image may be used: its signature says so, or none was asked for."""
        return not self.is_vouched or any(each.get(claim) == value for each in self.claims)


@dataclass(frozen=True)
class Admission:
    """Decides what may be used. May be used by several threads.

    Attributes:
        config: The settings, with the policy.
        progress: Told of what is not used, and why.
        index: Remembers whose statements were accepted; None to look at each again.
    """

    config: Config
    progress: Progress
    index: Index | None = None
    _rules: dict[tuple[Repository, bool], Rule | None] = field(default_factory=dict, repr=False)
    _statements: dict[tuple[Digest, str], Mapping[str, Digest] | Untrusted] = field(
        default_factory=dict, repr=False
    )
    _told: set[Repository] = field(default_factory=set, repr=False)
    _guard: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def rule(self, owner: Repository, *, part: bool = False) -> Rule | None:
        """Whose signatures are asked for in a repository, or in that of its layers; None where nobody's are.

        What becomes part of an image that is built here is asked for more than an answer is: the image's own
        signature, or the rule of where it goes, must not vouch for what nobody vouched for before.

        Args:
            owner: The repository that the rule is about.
            part: Whether something becomes part of what is put into the workspace.
        """
        with self._guard:
            if (owner, part) not in self._rules:
                self._rules[owner, part] = self._rule(owner, part=part)
            return self._rules[owner, part]

    def _rule(self, owner: Repository, *, part: bool) -> Rule | None:
        trust = self.config.trust
        if trust is None:
            return None
        from envbuild.trust import accepted_here

        rule, target = trust.rule(owner), trust.rule(self.config.workspace)
        if not part or not (trust.signs or target.require_signed):
            return rule if rule.require_signed else None
        if rule.require_signed:
            return accepted_here(owner, trust)
        home = accepted_here(self.config.workspace, trust)
        keys = tuple(dict.fromkeys((*home.keys, *rule.keys)))
        # Under another root the same identity may be somebody else's.
        others = rule.identities if rule.trusted_root == target.trusted_root else ()
        identities = tuple(dict.fromkeys((*home.identities, *others)))
        return replace(home, keys=keys, identities=identities, on_failure="miss")

    def asks(self, owner: Repository, *, part: bool = False) -> bool:
        """Whether an image needs more than its manifest to be used."""
        return self.config.deep or self.rule(owner, part=part) is not None

    def image(
        self,
        manifest: Manifest | ImageIndex,
        registry: Registry,
        deadline: Deadline,
        *,
        part: bool = False,
        platforms: Collection[Platform] | None = None,
        every: bool = False,
    ) -> Admitted | None:
        """An image that was found, if it may be used; None with a word to people where not.

        Args:
            manifest: The image or index, which is what its name says.
            registry: The repository that it is in.
            deadline: When to give up.
            part: Whether it, or something in it, becomes part of what is put into the workspace.
            platforms: Whose images of an index are used; None for all.
            every: Whether all accepted signatures are read, for what they claim.

        Raises:
            Untrusted: It is not accepted, and the policy says that this is a failure and not a miss.
        """
        try:
            return self.require(manifest, registry, deadline, part=part, platforms=platforms, every=every)
        except IntegrityError as error:
            from envbuild.trust import Untrusted

            rule = self.rule(registry.repository, part=part)
            if isinstance(error, Untrusted) and rule is not None and rule.on_failure == "fail":
                raise
            self.tell(registry.repository, error)
            return None

    def require(
        self,
        manifest: Manifest | ImageIndex,
        registry: Registry,
        deadline: Deadline,
        *,
        part: bool = False,
        platforms: Collection[Platform] | None = None,
        every: bool = False,
    ) -> Admitted:
        """As :meth:`image`, where nothing can be done without it.

        Raises:
            IntegrityError: It is not whole, where that is asked.
            Untrusted: It is not accepted.
        """
        rule = self.rule(registry.repository, part=part)
        registry = registry.by(deadline)
        if self.config.deep:
            from envbuild.oci.whole import require_whole

            require_whole(registry, manifest, jobs=self.config.jobs)
        if rule is None:
            return Admitted(manifest)
        from envbuild.trust import check_rule

        accepted = check_rule(registry, manifest, rule, platforms=platforms, deadline=deadline, every=every)
        return Admitted(manifest, is_vouched=True, claims=accepted.claims)

    def voucher(
        self,
        owner: Repository,
        place: Registry,
        tag: Tag,
        found: Manifest | ImageIndex,
        content: Callable[[], Manifest],
    ) -> str | None:
        """Who vouches for what is kept beside layers, in the words of the index: ``OWNER@DIGEST``.

        Where nobody need there is no digest: it is the repository's word alone.

        Args:
            owner: The repository whose rule holds for the place.
            place: Where it is kept, for a call with its deadline.
            tag: Its tag.
            found: What the tag names.
            content: Writes what was read of that again: nothing else of it is used.

        Returns:
            None where somebody must vouch for it and nobody does: it is as good as not there.

        Raises:
            Untrusted: So it is, and the policy says that this is a failure and not a miss.
            RegistryError: The statement could not be asked for.
        """
        rule = self.rule(owner, part=True)
        if rule is None:
            return f"{owner}@"
        from envbuild.trust import Untrusted

        try:
            named = self._vouching(place, tag, found, content(), rule)
        except Untrusted as error:
            if rule.on_failure == "fail":
                raise Untrusted(f"{place.repository}:{tag}: {error.message}", hint=error.hint) from None
            self._tell_once(place.repository, error)
            return None
        return f"{owner}@{named}"

    def still(
        self, voucher: str, owners: Collection[Repository], place: Callable[[Repository], Registry]
    ) -> bool:
        """Whether what the index remembers may be used: whoever vouched for it is still accepted.

        The index is the machine's, and each project names its own workspace: the word of a repository counts
        for those who read it, and for nobody else.

        Args:
            voucher: Who vouched, as :meth:`voucher` said, or :data:`envbuild.index.MADE`.
            owners: The repositories that are read.
            place: Opens the repository beside an owner, for a call with its deadline.

        Raises:
            RegistryError: A statement could not be asked for again.
        """
        if voucher == MADE:
            return True
        name, _, digest = voucher.rpartition("@")
        owner = next((each for each in owners if str(each) == name), None)
        if owner is None:
            return False
        if (rule := self.rule(owner, part=True)) is None:
            return True
        if not digest:
            self._tell_once(owner, IntegrityError("they were taken from others without a voucher"))
            return False
        from envbuild.trust import Untrusted

        try:
            self._subjects(Digest.parse(digest), place(owner), rule)
        except Untrusted as error:
            self._tell_once(owner, error)
            return False
        return True

    def _vouching(
        self, place: Registry, tag: Tag, found: Manifest | ImageIndex, content: Manifest, rule: Rule
    ) -> Digest:
        """The statement that vouches for what a tag names."""
        from envbuild.trust import Untrusted

        named = _named(found, tag)
        if self._subjects(named, place, rule).get(tag.name) != content.descriptor.digest:
            raise Untrusted(f"the statement {named} does not vouch for {tag} as it is")
        return named

    def _subjects(self, named: Digest, place: Registry, rule: Rule) -> Mapping[str, Digest]:
        """What a statement vouches for; read and verified once, and remembered for as long as the rule holds.

        Raises:
            Untrusted: The rule does not accept it, or it is not there.
        """
        from envbuild.trust import Untrusted
        from envbuild.trust.statement import fingerprint

        with self._guard:  # of many that ask for one statement, one reads it
            name = (named, fingerprint(rule))
            if name not in self._statements:
                try:
                    self._statements[name] = self._read(named, name[1], place, rule)
                except Untrusted as error:
                    self._statements[name] = error
            known = self._statements[name]
        if isinstance(known, Untrusted):
            raise known
        return known

    def _read(self, named: Digest, accepted: str, place: Registry, rule: Rule) -> Mapping[str, Digest]:
        from envbuild.trust import Untrusted
        from envbuild.trust.statement import read_statement

        fact = f"statement {named} {accepted}"
        if self.index is not None and (known := self.index.fact(fact)) is not None:
            return {tag: Digest(hex_) for tag, hex_ in json.loads(known).items()}
        try:
            subjects = read_statement(place.get_manifest(named), rule)
        except NotFound:
            raise Untrusted(f"the statement {named} is not in {place.repository}") from None
        text = json.dumps({tag: digest.hex for tag, digest in subjects.items()}, separators=(",", ":"))
        if self.index is not None and len(text) <= _MAX_REMEMBERED:
            self.index.put_fact(fact, text)
        return subjects

    def _tell_once(self, place: Repository, why: IntegrityError) -> None:
        with self._guard:
            first = place not in self._told
            self._told.add(place)
        if first:
            text = f"warning: layers that nobody vouches for are made again: {why}"
            self.progress(Event("layer", str(place), "output", text=text))

    def tell(self, place: Repository, why: IntegrityError) -> None:
        """Tell people what is not used."""
        self.progress(Event("resolve", str(place), "output", text=f"not used: {why}"))


def _named(found: Manifest | ImageIndex, tag: Tag) -> Digest:
    """The statement that something names."""
    from envbuild.trust import Untrusted

    named = found.annotations.get(VOUCHER_ANNOTATION)
    try:
        return Digest.parse(named or "")
    except SpecError:
        what = "no statement" if named is None else f"{named!r:.80}, which is no digest"
        raise Untrusted(f"{tag} names {what} that vouches for it") from None


def require_name(
    manifest: Manifest | ImageIndex,
    name: Name,
    what: str,
    platforms: Collection[Platform] | None = None,
) -> None:
    """See that what a tag names is an image that carries the name, as far as its manifest tells.

    Args:
        manifest: What the tag names.
        name: The key or lock key that it was asked for by.
        what: The tag for messages.
        platforms: The platforms that are wanted: one is an image's, several an index's; None where the name
            may be that of either.

    Raises:
        IntegrityError: It is something else.
    """
    is_lock = name.tag.name.startswith(LOCK_TAG)
    word = "lock key" if is_lock else "key"
    require_carried(manifest, LOCK_ANNOTATION if is_lock else KEY_ANNOTATION, str(name), what, word)
    lock = manifest.annotations.get(LOCK_ANNOTATION)
    if lock is not None and not _HEX.fullmatch(lock):
        raise IntegrityError(f"{what} carries the lock key {lock!r:.80}, which is none")
    if platforms is not None:
        _require_kind(manifest, platforms, what)


def _require_kind(manifest: Manifest | ImageIndex, platforms: Collection[Platform], what: str) -> None:
    if isinstance(manifest, ImageIndex) != (len(platforms) > 1):
        kind = "an index over several images" if isinstance(manifest, ImageIndex) else "one image"
        raise IntegrityError(f"{what} is {kind}, expected {'one' if len(platforms) == 1 else 'an index'}")
    if isinstance(manifest, ImageIndex):
        lacking = sorted(str(each) for each in platforms if manifest.for_platform(each) is None)
        if lacking:
            raise IntegrityError(f"{what} has no image for {', '.join(lacking)}")


def require_carried(
    manifest: Manifest | ImageIndex, annotation: str, value: str, what: str, word: str
) -> None:
    """See that a manifest is that of an image, and carries the name by which it was asked for.

    Args:
        manifest: What a tag names.
        annotation: The annotation that has the name.
        value: The name.
        what: The tag for messages.
        word: What the name is called.

    Raises:
        IntegrityError: It is something else.
    """
    seen = manifest.annotations.get(annotation)
    if seen != value:
        raise IntegrityError(
            f"{what} carries the {word} {seen or 'of nothing'}, expected {value}",
            hint="the tag was moved or written by something else: delete it, then resolve again",
        )
    if isinstance(manifest, Manifest):
        if manifest.artifact_type is not None:
            raise IntegrityError(
                f"{what} is an artifact of the type {manifest.artifact_type!r:.80}, no image"
            )
        if (count := len(manifest.layers)) > _MOST_LAYERS:
            raise IntegrityError(f"{what} has {count} layers, and no engine runs more than {_MOST_LAYERS}")
