"""Rows 22 and 24: calls of the library to a real registry through the fault proxy, each judged afterwards."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field, replace
from random import Random
from typing import TYPE_CHECKING, Any

from envbuild.deadline import Deadline
from envbuild.errors import EnvbuildError
from envbuild.index import ImageEntry
from envbuild.oci.copy import copy_image
from envbuild.oci.layout import LayoutRegistry
from envbuild.oci.open import Settings
from envbuild.oci.referrers import Artifact, attach, referrers
from envbuild.oci.registry import find_manifest, publish
from envbuild.oci.remote import RemoteRegistry
from envbuild.oci.whole import missing
from envbuild.reference import Repository, Tag
from envbuild.resolver import Resolver
from parts.fault_case import WRONG
from parts.fault_proxy import BASIC, TRANSIENT, Case
from tiny import World

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from envbuild.config import Config
    from envbuild.digest import Digest
    from envbuild.key import Key
    from parts.fault_proxy import FaultProxy
    from parts.fault_server import Asked, Call
    from parts.registry_server import RegistryServer

PATIENT, HASTY = 90.0, 8.0
"""Seconds for a call that must succeed, and for one that need not."""
MARGIN = 5.0


@dataclass(frozen=True)
class Outcome:
    """How a call went.

    Attributes:
        name: The operation, the fault, how often and the seed.
        problem: What must never be, or None.
        must_succeed: Whether nothing but success is right.
        error: What was raised, or None.
        struck: Whether the fault was made at all.
    """

    name: str
    problem: str | None
    must_succeed: bool
    error: BaseException | None
    struck: bool


@dataclass
class Laboratory:
    """A registry, the proxy before it, and an image that everybody knows.

    Attributes:
        server: The registry.
        proxy: The proxy.
        world: A machine with a channel and a base.
        image: The image of the definition, in the world's workspace.
        key: Its key.
        foreign: The manifest of another image.
    """

    server: RegistryServer
    proxy: FaultProxy
    world: World
    spec: Path
    image: Digest
    key: Key
    foreign: bytes
    settings: Settings = field(
        default_factory=lambda: Settings(connect_timeout=5.0, read_timeout=2.0, retries=4)
    )

    @classmethod
    def make(cls, root: Path, server: RegistryServer, proxy: FaultProxy) -> Laboratory:
        """Build the image once, without faults."""
        world = World.make(root)
        spec = world.spec("tool==1.0")
        shared = {"base": LayoutRegistry(Repository.parse(f"oci:{root}/bases")), "envs": world.layout()}
        with Resolver(replace(world.config, attach=False)) as resolver:
            image = resolver.resolve(spec)
            other = resolver.resolve(world.spec("tool==2.0", name="other.yml"))
            foreign = world.layout().get_manifest(other.reference.digest).raw
        for name, source in shared.items():
            target = cls._direct(server, f"shared/{name}")
            tag = Tag("minimal") if name == "base" else image.key.tag
            manifest = source.get_manifest(tag)
            copy_image(source, target, manifest)
            publish(target, manifest, tag)
            target.close()
        return cls(server, proxy, world, spec, image.reference.digest, image.key, foreign)

    @staticmethod
    def _direct(server: RegistryServer, path: str) -> RemoteRegistry:
        return RemoteRegistry(Repository.parse(f"{server.host}/{path}"))

    def place(self, name: str, what: str) -> None:
        """Have the base or the image in a case's repository, without the proxy."""
        source = self._direct(self.server, f"shared/{what}")
        target = self._direct(self.server, f"{name}/{what}")
        tag = Tag("minimal") if what == "base" else self.key.tag
        manifest = source.get_manifest(tag)
        copy_image(source, target, manifest)
        target.put_manifest(manifest, tag)
        target.close()
        source.close()

    def run(self, operation: str, fault: str, times: int | None, seed: int, hasty: float = HASTY) -> Outcome:
        """One case: a call during which an operation fails, and what must hold afterwards."""
        name = f"c{uuid.uuid4().hex[:12]}"
        random = Random(f"{operation} {fault} {seed}")
        times = 1 if fault == "401 once" else times
        case = Case(operation, fault, times, random=random, foreign=self.foreign)
        must = fault in TRANSIENT and times is not None and not (operation == "auth" and "401" in fault)
        must = must or (fault in WRONG and operation == "get blob" and times == 1)
        host = self.proxy.tls_host if fault == "tls" else self.proxy.host
        actions = self._actions(operation)
        action = actions[(seed % 4 == 3) * (seed // 4 % len(actions))]
        getattr(self, f"_prepare{action.__name__}")(name)
        self.proxy.add(name, case)
        seconds = PATIENT if must else hasty
        found: Digest | None = None
        error: BaseException | None = None
        problem: str | None = None
        started = time.monotonic()
        try:
            found = action(f"{host}/{name}", seconds)
        except EnvbuildError as raised:
            error = raised
            problem = None if raised.message else "an error that says nothing"
        except BaseException as raised:  # noqa: BLE001 - that it cannot be is what is tested
            error, problem = raised, f"raw {type(raised).__name__}: {raised}"
        late = time.monotonic() - started - seconds
        if late > MARGIN:
            problem = f"{late:.1f} s past its deadline"
        if found is not None and found != self.image:
            problem = f"a wrong image: {found}"
        if error is None and found is None:
            problem = problem or "neither an image nor an error"
        problem = problem or self.judge(name)
        text = f"{operation} | {fault} | {times} times | seed {seed} | {action.__name__.strip('_')}"
        return Outcome(text, problem, must, error, case.failed > 0)

    def judge(self, name: str) -> str | None:
        """What is wrong in a case's workspace: a tag on another image, or on one that is not whole."""
        target = self._direct(self.server, f"{name}/envs")
        try:
            tagged = find_manifest(target, self.key.tag)
            if tagged is None:
                return None
            if tagged.descriptor.digest != self.image:
                return f"the key's tag names {tagged.descriptor.digest}"
            lost = missing(target, tagged)
            return f"the tagged image lacks {lost[0].digest}" if lost else None
        finally:
            target.close()

    def _actions(self, operation: str) -> tuple[Any, ...]:
        """Calls that make such a request; the first is made most often, whole builds cost the most."""
        return {
            "auth": (self._hit, self._push, self._build),
            "get tag": (self._push, self._build),
            "get manifest": (self._hit,),
            "head blob": (self._hit, self._push, self._build),
            "get blob": (self._pull, self._build),
            "start upload": (self._push, self._build),
            "patch upload": (self._push,),
            "put upload": (self._push, self._build),
            "mount": (self._mount, self._build),
            "put manifest": (self._push, self._build),
            "put tag": (self._push, self._build),
            "referrers": (self._attach, self._build),
        }[operation]

    def resolver(self, config: Config, settings: Settings | None = None) -> Resolver:
        """A machine with the laboratory's short patience."""
        resolver = Resolver(config)
        hosts = frozenset({self.proxy.tls_host})
        resolver.registries._known = replace(settings or self.settings, secure_hosts=hosts)
        return resolver

    # Calls, each with what must be there before

    def _prepare_build(self, name: str) -> None:
        self.place(name, "base")

    def _build(self, place: str, seconds: float) -> Digest:
        config = self.world.other_machine(
            workspace=Repository.parse(f"{place}/envs"), base=f"{place}/base:minimal"
        )
        with self.resolver(config, own(self.settings)) as resolver:
            return resolver.resolve(self.spec, timeout=seconds).reference.digest

    def _prepare_hit(self, name: str) -> None:
        self.place(name, "envs")

    def _hit(self, place: str, seconds: float) -> Digest:
        """A hit of the local index that must be confirmed, down to the blobs."""
        workspace = Repository.parse(f"{place}/envs")
        config = self.world.other_machine(workspace=workspace, deep=True, index_ttl=0)
        with self.resolver(config, own(self.settings)) as resolver:
            resolver.index.put_image(ImageEntry(str(self.key), workspace.at(self.image), None, time.time()))
            return resolver.resolve(self.spec, timeout=seconds).reference.digest

    def _prepare_pull(self, name: str) -> None:
        self.place(name, "envs")

    def _pull(self, place: str, seconds: float) -> Digest:
        """From the registry into a layout."""
        source = self.remote(f"{place}/envs")
        target = LayoutRegistry(Repository.parse(f"oci:{self.world.root}/{uuid.uuid4().hex}"))
        return self._copy(source, target, seconds)

    def _prepare_push(self, name: str) -> None:
        """Nothing need be there."""

    def _push(self, place: str, seconds: float) -> Digest:
        """From a layout into the registry, in tiny pieces."""
        return self._copy(self.world.layout(), self.remote(f"{place}/envs", chunk=100), seconds)

    def _prepare_mount(self, name: str) -> None:
        self.place(name, "base")
        source, target = self._direct(self.server, "shared/envs"), self._direct(self.server, f"{name}/from")
        copy_image(source, target, source.get_manifest(self.image))
        source.close()
        target.close()

    def _mount(self, place: str, seconds: float) -> Digest:
        """From one repository of the registry into another."""
        source, target = self.remote(f"{place}/from"), self.remote(f"{place}/envs")
        return self._copy(source, target, seconds)

    def _prepare_attach(self, name: str) -> None:
        self.place(name, "envs")

    def _attach(self, place: str, seconds: float) -> Digest:
        """Something to an image."""
        target, deadline = self.remote(f"{place}/envs"), Deadline.after(seconds)
        try:
            subject = target.by(deadline).get_manifest(self.image).descriptor
            artifact = Artifact("application/x-test", "text/plain", place.encode(), {})
            locks = self.world.root / "locks"
            entries = attach(target, subject, [artifact], locks=locks, deadline=deadline)
            listed = referrers(target.by(deadline), self.image)
            assert {entry.digest for entry in entries} <= {entry.digest for entry in listed}
            return subject.digest
        finally:
            target.close()

    def _copy(self, source: Any, target: Any, seconds: float) -> Digest:
        deadline = Deadline.after(seconds)
        source, target = source.by(deadline), target.by(deadline)
        try:
            manifest = source.get_manifest(self.image)
            copy_image(source, target, manifest, jobs=2, deadline=deadline)
            digest = publish(target, manifest, self.key.tag).descriptor.digest
            assert not target.repository.is_layout or not missing(target, manifest)
            return digest
        finally:
            source.close()
            target.close()

    def remote(self, name: str, **changes: Any) -> RemoteRegistry:
        """A repository behind the proxy."""
        hosts = frozenset({self.proxy.tls_host})
        settings = replace(own(self.settings), secure_hosts=hosts, **changes)
        return RemoteRegistry(Repository.parse(name), settings=settings)


def own(settings: Settings) -> Settings:
    """The same settings, with nothing known of hosts yet."""
    return Settings(
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
        retries=settings.retries,
    )


def relay(upstream: str) -> Any:
    """A script of a foreign host that has what the registry has, as object stores do; it notes who asks."""

    def script(call: Call, asked: Asked) -> None:
        request = urllib.request.Request(f"http://{upstream}{asked.path}", method=asked.method)
        for name in ("accept", "range"):
            if name in asked.headers:
                request.add_header(name, asked.headers[name])
        if asked.method not in {"GET", "HEAD"}:
            call.fail(403)
            return
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                kept = {"Content-Type", "Docker-Content-Digest", "Content-Range"}
                headers = {name: value for name, value in answer.headers.items() if name in kept}
                call.answer(answer.status, answer.read(), headers)
        except urllib.error.HTTPError as error:
            with error:
                call.answer(error.code, error.read())

    return script


def login(folder: Path, monkeypatch: pytest.MonkeyPatch, proxy: FaultProxy) -> None:
    """Have the credentials for the proxy found where Docker keeps them."""
    auths = {host: {"auth": BASIC.removeprefix("Basic ")} for host in (proxy.host, proxy.tls_host)}
    (folder / "config.json").write_text(json.dumps({"auths": auths}))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
