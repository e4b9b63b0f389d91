"""Publishing what was built: signed before it is tagged, with what is known of it attached."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from envbuild.admission import Admission
from envbuild.attach import describe
from envbuild.oci.referrers import THREADS, attach, has_referrers_api
from envbuild.oci.registry import publish, publish_over
from envbuild.progress import Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from envbuild.attach import Made
    from envbuild.config import Config
    from envbuild.deadline import Deadline
    from envbuild.digest import Descriptor
    from envbuild.index import Index
    from envbuild.lockkey import Name
    from envbuild.oci.manifest import ImageIndex, Manifest
    from envbuild.oci.referrers import Artifact
    from envbuild.oci.registry import Registry
    from envbuild.progress import Progress


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the repository that is published to, so that it is not asked again.

    Attributes:
        stored: Whether the manifest is there under its digest.
        absent: Whether the key's tag was looked for a moment ago and was not there.
        has_empty: Whether to take it that the config of artifacts is there; see
            :func:`envbuild.oci.referrers.put_artifact`.
        has_api: Whether there is the referrers API; None where nobody asked.
        index: Keeps for a day whether there is that API; None where nothing is kept.
        crowded: Whether many others are published at the same time: threads of its own would only disturb.
    """

    stored: bool = False
    absent: bool = False
    has_empty: bool = False
    has_api: bool | None = None
    index: Index | None = None
    crowded: bool = False

    def tells_api(self, target: Registry) -> bool | None:
        """Whether a registry has the referrers API; None if that is neither known nor kept."""
        host = target.repository.host
        if self.has_api is not None or self.index is None or not host:
            return self.has_api

        def ask() -> str:
            return "listed" if has_referrers_api(target) else "tagged"

        return self.index.daily(f"referrers {host}", ask) == "listed"


NOTHING: Final = Known()


def _nothing() -> None:
    """Nothing is to be done."""


@dataclass(frozen=True, slots=True)
class Signing:
    """What goes with an image's signature.

    Attributes:
        claims: What is said of the image beside what it carries.
        done: Called when the image is signed, where it is, and before it has the tag of its key.
    """

    claims: Mapping[str, str] = field(default_factory=dict)
    done: Callable[[], None] = _nothing


PLAIN: Final = Signing()


@dataclass(frozen=True, slots=True)
class Publisher:
    """Publishes images to a repository.

    Attributes:
        config: The settings.
        target: The workspace.
        deadline: When to give up.
        progress: Told of what could not be attached.
        known: What need not be asked.
    """

    config: Config
    target: Registry
    deadline: Deadline
    progress: Progress
    known: Known = NOTHING

    def publish_built(
        self,
        manifest: Manifest,
        name: Name,
        made: Made,
        store: Callable[[], None] | None = None,
        *,
        signing: Signing = PLAIN,
    ) -> Manifest | ImageIndex:
        """Publish an image with what is known of it; as :meth:`publish`.

        Args:
            manifest: The image.
            name: Its key or lock key.
            made: What it was made from.
            store: As :meth:`publish` takes it.
            signing: As :meth:`publish` takes it.
        """

        def artifacts() -> Iterator[Artifact]:
            return describe(made, self.target, manifest.descriptor, sboms=self.config.sbom)

        return self.publish(manifest, name, artifacts, store, signing=signing)

    def publish(
        self,
        manifest: Manifest | ImageIndex,
        key: Name,
        artifacts: Callable[[], Iterable[Artifact]],
        store: Callable[[], None] | None = None,
        *,
        signing: Signing = PLAIN,
    ) -> Manifest | ImageIndex:
        """Sign an image or index if there is a key for that, tag it with its key, attach what is known of it.

        One that was there first wins, if it is trusted; else ours takes its tag, where ours is signed. What
        cannot be attached is told and does not matter.

        Args:
            manifest: The image or index.
            key: Its key or lock key.
            artifacts: Makes what is attached.
            store: Puts the manifest, and before it what it names; if None, what it names is there, and the
                manifest is put unless it is known to be there.
            signing: What its signature claims, and what is done once it is signed.

        Raises:
            Untrusted: Another image that the policy does not accept has the key's tag, and that is a failure,
                or ours would not be accepted either.
            SpecError: The key to sign with cannot be used.
        """
        stored: Future[None] = Future()

        def attached() -> None:
            self._attach(manifest.descriptor, key, artifacts, stored)

        with ExitStack() as beside:
            if self.config.attach and not self.known.crowded:
                pool = beside.enter_context(ThreadPoolExecutor(1, thread_name_prefix="attach"))
                beside.callback(stored.cancel)  # so that nobody waits for a manifest that will not be put
                pool.submit(attached)
            self._put(manifest, store)
            stored.set_result(None)
            self._sign(manifest, signing.claims)  # which may attach too, and waits for its turn
            signing.done()
            if self.config.attach and self.known.crowded:
                attached()  # a kill before the tag leaves work to do, one after it an image without
            seen = publish(self.target, manifest, key.tag, stored=True, absent=self.known.absent)
        return self._admitted(manifest, key, seen)

    def _put(self, manifest: Manifest | ImageIndex, store: Callable[[], None] | None) -> None:
        if store is not None:
            store()
        elif not self.known.stored:
            self.target.put_manifest(manifest)

    def _sign(self, manifest: Manifest | ImageIndex, claims: Mapping[str, str]) -> None:
        if self.config.trust is not None:
            from envbuild.trust import Untrusted, sign_built

            trust, locks = self.config.trust, self.config.cache_dir
            try:
                sign_built(
                    self.target,
                    manifest,
                    trust,
                    locks=locks,
                    deadline=self.deadline,
                    claims=claims,
                    has_config=self.known.has_empty,
                )
            except Untrusted as error:
                if trust.rule(self.target.repository).require_signed:
                    raise
                what = str(manifest.descriptor.digest)
                self.progress(Event("push", what, "output", text=f"not signed: {error}"))

    def _admitted(
        self, manifest: Manifest | ImageIndex, key: Name, seen: Manifest | ImageIndex
    ) -> Manifest | ImageIndex:
        """What has the key's tag in the end: what was there first is held against the policy."""
        trust = self.config.trust
        if trust is None or seen.descriptor.digest == manifest.descriptor.digest:
            return seen
        admission = Admission(self.config, self.progress)
        if (rule := admission.rule(self.target.repository)) is None:
            return seen
        if not trust.signs or rule.on_failure == "fail":
            admission.require(seen, self.target, self.deadline)
            return seen
        if admission.image(seen, self.target, self.deadline) is not None:
            return seen
        admission.require(manifest, self.target, self.deadline)
        return publish_over(self.target, manifest, key.tag)

    def _attach(
        self,
        subject: Descriptor,
        key: Name,
        artifacts: Callable[[], Iterable[Artifact]],
        stored: Future[None],
    ) -> None:
        """Attach what is known of an image once it is stored, or tell why not."""
        try:
            attach(
                self.target,
                subject,
                artifacts(),
                locks=self.config.cache_dir,
                deadline=self.deadline,
                new_types=True,
                has_empty=self.known.has_empty,
                has_api=self.known.tells_api(self.target),
                ready=stored.result,
                threads=1 if self.known.crowded else THREADS,
            )
        except CancelledError:
            return
        except Exception as error:  # noqa: BLE001 - whatever a library for SBOMs raises: the image is there
            self.progress(Event("push", str(key), "output", text=f"not attached to the image: {error}"))
