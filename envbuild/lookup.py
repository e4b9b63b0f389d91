"""Looking a key or a lock key up: the index, then the workspace and the global repository at the same time.

An answer is a hit, a miss or unknown; unknown is never taken for a miss.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from envbuild.deadline import Deadline
from envbuild.errors import EnvbuildError, IntegrityError, NotFound, RegistryError, Unavailable
from envbuild.index import ImageEntry
from envbuild.key import LOCK_ANNOTATION
from envbuild.progress import Event

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from envbuild.admission import Admitted
    from envbuild.config import Config
    from envbuild.digest import Digest
    from envbuild.index import Index
    from envbuild.lockkey import Name
    from envbuild.oci.manifest import ImageIndex, Manifest
    from envbuild.oci.registries import Registries
    from envbuild.platform import Platform
    from envbuild.progress import Progress
    from envbuild.reference import ImageReference, Repository, Tag

_GRACE: Final = 5.0
"""Seconds for which a place is waited for when one that counts less has the image."""
_LATE: Final = 0.5

Place = Literal["index", "workspace", "global"]


@dataclass(frozen=True, slots=True)
class Hit:
    """An image that was found and is what was asked for.

    Attributes:
        reference: Where it is.
        lock_key: The lock key that it carries, or None.
        source: Who knew it.
    """

    reference: ImageReference
    lock_key: str | None
    source: Place


@dataclass(frozen=True, slots=True)
class Lookup:
    """Finds keys and lock keys.

    Attributes:
        config: Which repositories there are, and what an unknown answer means.
        index: The local index.
        registries: Asks repositories.
        progress: Told of unknown answers that did not matter.
        confirm: Whether the repositories are asked whatever the index knows.
        platforms: The platforms that are wanted: one is an image's, several an index's; None for either.
        part: Whether what is found becomes part of an index that is put into the workspace.
    """

    config: Config
    index: Index
    registries: Registries
    progress: Progress
    confirm: bool = False
    platforms: Collection[Platform] | None = None
    part: bool = False

    def find(self, key: Name, deadline: Deadline) -> Hit | None:
        """The image of a key, or None where every repository says that it has none.

        The image of a lock key may have been built of another definition, or without a lock: it carries the
        lock key, so it is that solution.

        Raises:
            RegistryError: No repository has it, and at least one could not be asked.
            IntegrityError: A repository has another image under the key's tag.
            DeadlineExceeded: The time ran out.
        """
        if not self.confirm and (hit := self._indexed(key, deadline)) is not None:
            return hit
        answers = self._ask_all(key, deadline)
        for place, repository in self._repositories().items():
            if self.confirm and place in answers and answers[place] is None:
                self.index.evict_image(str(key), repository)
        for answer in answers.values():
            if isinstance(answer, Hit):
                self._report_unknown(answers)
                self._remember(key, answer)
                return answer
            if isinstance(answer, IntegrityError):
                raise answer
        self._fail_on_unknown(answers)
        return None

    def at(self, repository: Repository, key: Name, deadline: Deadline) -> Admitted | None:
        """What has the tag of a key in one repository; None where the policy does not accept it.

        Raises:
            NotFound: Nothing has the tag.
            RegistryError: The repository could not be asked.
            IntegrityError: It is another image.
        """
        manifest = self._get(repository, key.tag, deadline)
        return self._admitted(manifest, key, repository, f"{repository}:{key.tag}", deadline)

    def _indexed(self, key: Name, deadline: Deadline) -> Hit | None:
        """What the index knows, if it is fresh or the registry confirms it; else it is forgotten."""
        for repository in self._repositories().values():
            entry = self.index.image(str(key), repository)
            if entry is None:
                continue
            hit = Hit(entry.reference, entry.lock_key, "index")
            is_fresh = 0 <= time.time() - entry.confirmed_at < self.config.index_ttl
            if is_fresh and not self._asks(repository):
                return hit
            if self._confirmed(key, entry, deadline):
                return hit
        return None

    def _confirmed(self, key: Name, entry: ImageEntry, deadline: Deadline) -> bool:
        repository = entry.reference.repository
        try:
            manifest = self._get(repository, entry.reference.digest, deadline)
        except NotFound:
            self.index.evict_image(str(key), repository)
            return False
        except RegistryError as error:
            if not self.registries.unknowns.is_miss(repository, error):
                raise
            return False
        if self._admitted(manifest, key, repository, str(entry.reference), deadline) is None:
            self.index.evict_image(str(key), entry.reference.repository)
            return False
        self.index.put_image(ImageEntry(str(key), entry.reference, entry.lock_key, time.time()))
        return True

    def _ask_all(self, key: Name, deadline: Deadline) -> dict[Place, Hit | EnvbuildError | None]:
        """One answer a place, in the order in which they count; asked at the same time.

        No place is waited for whose answer would change nothing, and none for long that does not answer
        while another has the image.
        """
        places = self._repositories()
        if len(places) == 1:
            return {place: self._answer(place, places[place], key, deadline) for place in places}
        answers: dict[Place, Hit | EnvbuildError | None] = {}
        arrived, enough = threading.Condition(), Deadline.after(deadline.remaining())

        def ask(place: Place) -> None:
            answer = self._answer(place, places[place], key, enough)
            with arrived:
                answers[place] = answer
                arrived.notify()

        for place in places:
            threading.Thread(target=ask, args=(place,), daemon=True).start()
        patience: Deadline | None = None
        try:
            with arrived:
                while not _is_settled(places, answers):
                    if patience is None and any(isinstance(answer, Hit) for answer in answers.values()):
                        patience = Deadline.after(deadline.remaining(_GRACE))
                    elif patience is None and deadline.remaining() <= 0:
                        patience = Deadline.after(_LATE)  # they end by themselves, and say why
                    elif patience is not None and patience.remaining() <= 0:
                        break
                    arrived.wait((patience or deadline).slice())
                if _is_settled(places, answers):  # who did not answer yet was not needed
                    return {place: answers[place] for place in places if place in answers}
                late = Unavailable("has not answered in time")
                return {place: answers.get(place, late) for place in places}
        finally:
            enough.end()

    def _answer(
        self, place: Place, repository: Repository, key: Name, deadline: Deadline
    ) -> Hit | EnvbuildError | None:
        try:
            return self._ask(place, repository, key, deadline)
        except EnvbuildError as error:
            return error

    def _ask(self, place: Place, repository: Repository, key: Name, deadline: Deadline) -> Hit | None:
        try:
            found = self.at(repository, key, deadline)
        except NotFound:
            return None
        if found is None:
            return None
        manifest = found.manifest
        reference = repository.at(manifest.descriptor.digest)
        return Hit(reference, manifest.annotations.get(LOCK_ANNOTATION), place)

    def _asks(self, repository: Repository) -> bool:
        """Whether an image needs more than the index's word."""
        if not self.config.deep and self.config.trust is None:
            return False
        from envbuild.admission import Admission

        return Admission(self.config, self.progress).asks(repository, part=self.part)

    def _admitted(
        self,
        manifest: Manifest | ImageIndex,
        key: Name,
        repository: Repository,
        what: str,
        deadline: Deadline,
    ) -> Admitted | None:
        from envbuild.admission import Admission, Admitted, require_name

        require_name(manifest, key, what, self.platforms)
        admission = Admission(self.config, self.progress)
        if not admission.asks(repository, part=self.part):
            return Admitted(manifest)
        registry = self.registries.open(repository)
        return admission.image(manifest, registry, deadline, part=self.part, platforms=self.platforms)

    def _get(
        self, repository: Repository, reference: Tag | Digest, deadline: Deadline
    ) -> Manifest | ImageIndex:
        return self.registries.probe(repository, reference, deadline)

    def _repositories(self) -> dict[Place, Repository]:
        places: dict[Place, Repository] = {"workspace": self.config.workspace}
        if self.config.global_ is not None and self.config.global_ != self.config.workspace:
            places["global"] = self.config.global_
        return places

    def _remember(self, key: Name, hit: Hit) -> None:
        self.index.put_image(ImageEntry(str(key), hit.reference, hit.lock_key, time.time()))

    def _report_unknown(self, answers: dict[Place, Hit | EnvbuildError | None]) -> None:
        for place, answer in answers.items():
            if isinstance(answer, EnvbuildError):
                self.progress(Event("resolve", place, "output", text=f"could not be asked: {answer}"))

    def _fail_on_unknown(self, answers: dict[Place, Hit | EnvbuildError | None]) -> None:
        for place, answer in answers.items():
            if not isinstance(answer, EnvbuildError):
                continue
            repository = self._repositories()[place]
            if isinstance(answer, RegistryError) and self.registries.unknowns.is_miss(repository, answer):
                continue
            raise answer


def _is_settled(places: Iterable[Place], answers: dict[Place, Hit | EnvbuildError | None]) -> bool:
    """Whether the answers say what the outcome is: each place counts less than the one before it."""
    for place in places:
        if place not in answers:
            return False
        if isinstance(answers[place], Hit | IntegrityError):
            return True
    return True
