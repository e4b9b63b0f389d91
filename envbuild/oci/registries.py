"""Every repository that a call uses, opened once."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from envbuild.errors import RegistryError
from envbuild.oci.unknown import LenientRegistry, Unknowns
from envbuild.progress import silent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from envbuild.deadline import Deadline
    from envbuild.digest import Digest
    from envbuild.oci.manifest import ImageIndex, Manifest
    from envbuild.oci.open import Settings
    from envbuild.oci.probe import Prober
    from envbuild.oci.registry import Registry
    from envbuild.progress import Progress
    from envbuild.reference import Repository, Tag


class Registries:
    """Opens repositories and keeps them open. May be used by several threads.

    Args:
        insecure: Hosts that are spoken to in plain HTTP.
        mirrors: For a host, where its repositories may be read too, each as ``HOST`` or ``HOST/PREFIX``.
        progress: Told of registries that are waited for.
        patience: Seconds for which a registry that does not answer is waited for; see
            :class:`envbuild.oci.transport.Settings`.
        unknowns: What answers mean that say nothing; failures, if None.

    Attributes:
        unknowns: That policy.
    """

    def __init__(
        self,
        insecure: frozenset[str],
        mirrors: Mapping[str, tuple[str, ...]] | None = None,
        *,
        progress: Progress = silent,
        patience: float | None = None,
        unknowns: Unknowns | None = None,
    ) -> None:
        self._insecure = insecure
        self._mirrors = mirrors or {}
        self._progress = progress
        self._patience = patience
        self.unknowns = unknowns or Unknowns()
        self._known: Settings | None = None
        self._opened: dict[Repository, Registry] = {}
        self._prober: Prober | None = None
        self._guard = threading.Lock()

    def open(self, repository: Repository) -> Registry:
        """The repository, ready to be used."""
        with self._guard:
            if repository not in self._opened:
                self._opened[repository] = self._open(repository)
            return self._opened[repository]

    def probe(
        self, repository: Repository, reference: Tag | Digest, deadline: Deadline
    ) -> Manifest | ImageIndex:
        """The manifest that a tag or digest names, read over the thin path.

        Raises:
            NotFound: There is none.
            Unavailable: The registry could not be asked.
        """
        if repository.is_layout:
            return self.open(repository).by(deadline).get_manifest(reference)
        with self._guard:
            prober = self._probing()
        return prober.probe(repository, reference, deadline)

    def ask(
        self, repository: Repository, reference: Tag | Digest, deadline: Deadline
    ) -> Manifest | ImageIndex | None:
        """As :meth:`probe`, with None for a miss, and for what the policy takes for one.

        Raises:
            RegistryError: The registry did not say, and that is a failure.
        """
        try:
            return self.probe(repository, reference, deadline)
        except RegistryError as error:
            if not self.unknowns.is_miss(repository, error):
                raise
            return None

    def close(self) -> None:
        """Give back every connection. Closing twice is harmless."""
        with self._guard:
            for registry in self._opened.values():
                registry.close()
            self._opened.clear()
            if self._prober is not None:
                self._prober.close()
                self._prober = None

    def _open(self, repository: Repository) -> Registry:
        """Over the thin client, unless mirrors or a proxy stand between; the guard is held."""
        registry = self._opened_plainly(repository)
        return LenientRegistry(registry, self.unknowns) if self.unknowns.concerns(repository) else registry

    def _opened_plainly(self, repository: Repository) -> Registry:
        from envbuild.oci.open import open_registry

        settings = self._settings()
        places = () if repository.is_layout else self._mirrors.get(repository.host, ())

        def full() -> Registry:
            return open_registry(repository, settings=settings, mirrors=places)

        if repository.is_layout or repository.is_engine or places:
            return full()
        from envbuild.oci.probe import is_behind_proxy

        if is_behind_proxy(repository.host):
            return full()
        from envbuild.oci.thin import ThinRegistry

        return ThinRegistry(repository, full, self._probing().client, settings)

    def _probing(self) -> Prober:
        """Asks registries over the thin path; the guard is held."""
        if self._prober is None:
            from envbuild.oci.probe import Prober

            settings, patience = self._settings(), self.unknowns.patience
            self._prober = Prober(settings if patience is None else replace(settings, patience=patience))
        return self._prober

    def _settings(self) -> Settings:
        """One for all, so that they share what is known of hosts; the guard is held."""
        if self._known is None:
            from envbuild.oci.open import Settings

            self._known = Settings(
                insecure_hosts=self._insecure, patience=self._patience, progress=self._progress
            )
        return self._known
