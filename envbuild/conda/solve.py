"""Solving a Conda section for a platform; beside ``conda/locks`` the only module that imports ``rattler``."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import hashlib
import json
import os
import posixpath
import threading
import time
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, cast
from urllib.parse import unquote

from envbuild.conda.copies import Copies
from envbuild.conda.elsewhere import solve_elsewhere
from envbuild.conda.fetch import LOGIN_HINT
from envbuild.conda.meta import metadata_of
from envbuild.conda.origins import Origins, channel_urls
from envbuild.conda.panics import panics_told
from envbuild.conda.stand_ins import StandIns
from envbuild.conda.unsolvable import Offer, Unsolvable
from envbuild.deadline import Deadline
from envbuild.digest import Digest
from envbuild.errors import ChannelError, DeadlineExceeded, SolveError, SpecError
from envbuild.lock import Lock, PackageRecord, encode_metadata
from envbuild.oci.proxies import said_hint
from envbuild.spec.channel import DEFAULTS, Channel, redact, split_credentials
from envbuild.spec.files import opened
from envbuild.spec.shortmatch import spell
from envbuild.storage import private_folder
from envbuild.url import FILE, Url

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping
    from pathlib import Path

    import rattler
    from rattler.platform.subdir import SubdirLiteral

    from envbuild.conda.stand_ins import StandIn
    from envbuild.conda.unsolvable import Finding, Offers
    from envbuild.lock import NoArch
    from envbuild.platform import Platform
    from envbuild.spec.conda import CondaSection
    from envbuild.spec.match import MatchSpec
    from envbuild.spec.virtual import VirtualPackages

    _Found: TypeAlias = tuple[list[rattler.RepoDataRecord], StandIns]

_GATEWAY_SECONDS: Final = 600.0
_UNCHANGED: Final = "304 Not Modified"
"""What rattler takes for a failure where the answer has no date and no ETag, as that of Python's server."""
_LONGEST: Final = 3600.0
_EXPLAINING: Final = 30.0
_MIRROR: Final = 60.0
_CHANNEL: Final = 600.0
"""How long a mirror, and a channel itself, may take to list what it has, where the deadline is not sooner."""
_RELATIONS: Final = "disabled"
"""A channel may name channels to be read with it (CEP-42): only the definition says which are read."""
_DROPPED: Final = 0.1
"""What the solver's own threads need to drop what was cancelled: at the end of python they would complain."""
_solving_in: dict[str, int] = {}
"""The process in which the solver was started first: a fork takes its state over, and not its threads."""
NO_STAND_INS: Final = StandIns()


@dataclass(frozen=True)
class Solution:
    """A lock, and where its packages are fetched from.

    Attributes:
        lock: The packages, free of credentials.
        urls: For each package's URL the URLs to fetch it from, in order; they may hold credentials.
    """

    lock: Lock
    urls: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, lock: Lock, origins: Origins) -> Self:
        """A lock, and where its packages are."""
        return cls(lock, {package.url: origins.places(package.url) for package in lock.packages})

    def __repr__(self) -> str:
        return f"Solution({len(self.lock.packages)} packages for {self.lock.platform})"


@dataclass(frozen=True, slots=True)
class SolveRequest:
    """What to solve, apart from where.

    Attributes:
        conda: Channels and match specs.
        platform: The platform to solve for.
        virtual_packages: What the base and the machines that run the image offer.
        channel_priority: ``strict``, ``flexible`` or ``disabled``.
        as_of: Packages newer than this are not there, or None.
        mirrors: For the URL of a channel, or of several, the URLs to read in its place.
        variables: For the names of variables that may stand for credentials in URLs the servers that these
            are for.
    """

    conda: CondaSection
    platform: Platform
    virtual_packages: VirtualPackages
    channel_priority: str
    as_of: dt.datetime | None
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    variables: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    @property
    def subdirs(self) -> list[rattler.Subdir | SubdirLiteral]:
        """The folders of a channel that are read."""
        import rattler

        return [rattler.Subdir(self.platform.subdir), "noarch"]


def solve(request: SolveRequest, *, cache_dir: Path, deadline: Deadline) -> Solution:
    """Find the packages that satisfy a Conda section.

    Args:
        request: What to solve.
        cache_dir: Where repodata is kept between calls.
        deadline: When to give up.

    Raises:
        SolveError: Nothing satisfies the section, with the reasons.
        ChannelError: A channel cannot be read, or (``retryable``) is in trouble.
        SpecError: There is no channel; or a variable of a channel's URL may not be used or is not set.
        DeadlineExceeded: The time ran out.
    """
    deadline.check("solving")
    if _solving_in.setdefault("process", os.getpid()) != os.getpid():
        return cast("Solution", solve_elsewhere(request, cache_dir, deadline))
    origins = Origins.of(
        channel_urls(request.conda),
        request.mirrors,
        request.variables,
    )
    with panics_told(_panicked):
        records, stand_ins = _run(_solve(request, origins, cache_dir, deadline))
        folders = [*_channels(request), *_package_folders(request)]
        packages = [_package_of_channel(record, stand_ins) for record in records]
        for package in packages:
            _require_in(folders, package.url)
    return Solution.of(Lock.of(request.platform, packages), origins)


def _panicked(said: str) -> ChannelError:
    return ChannelError(
        f"what the channels list breaks the solver: {said}", hint="index the channels again, or leave one out"
    )


def _require_in(folders: Iterable[str], url: str) -> None:
    """Refuse a file of this machine that a folder's list names and the definition does not.

    Raises:
        ChannelError: It is one.
    """
    if not url.startswith("file:"):
        return
    path = posixpath.normpath(unquote(Url.parse(url, FILE).path))
    local = [unquote(Url.parse(each, FILE).path) for each in folders if each.startswith("file:")]
    if not any(path.startswith(f"{posixpath.normpath(folder)}/") for folder in local):
        raise ChannelError(
            f"a package would be read from {url}, which a channel names and the definition does not",
            hint="add the folder as a channel where its packages are wanted",
        )


def _listed(request: SolveRequest) -> tuple[Channel, ...]:
    """The section's channels; a section that names none means ``defaults``, as Conda has it."""
    section = request.conda
    named = any(spec.channel is not None for spec in section.dependencies)
    if not section.channels and section.nodefaults and not named:
        raise SpecError("there is no channel: `nodefaults` stands alone", hint="add a channel to `channels`")
    return section.channels or (() if section.nodefaults else (Channel(DEFAULTS),))


def _channels(request: SolveRequest) -> dict[str, str]:
    """The public URLs of the channels in order of priority, each with its name for people.

    A channel that only a dependency names is read, too, after all others, as Conda does it.
    """
    named = [spec.channel for spec in request.conda.dependencies if spec.channel is not None]
    urls: dict[str, str] = {}
    for channel in (*_listed(request), *named):
        places = _public_urls(channel)
        for url in places:
            urls.setdefault(url, channel.label if len(places) == 1 else url)
    return urls


def _package_folders(request: SolveRequest) -> list[str]:
    """The public URLs of the folders of the packages that are named by URL."""
    named = [spec.private_url for spec in request.conda.dependencies if spec.private_url is not None]
    return [public_url(url).rpartition("/")[0] for url in named]


def _public_urls(channel: Channel) -> list[str]:
    return [public_url(url).rstrip("/") for url in channel.urls()]


async def _solve(
    request: SolveRequest, origins: Origins, cache_dir: Path, deadline: Deadline
) -> tuple[list[rattler.RepoDataRecord], StandIns]:
    """The records, and the stand-ins that they were solved with; a mirror in trouble is left for the next."""
    from rattler.exceptions import FetchRepoDataError, GatewayError

    channels = _channels(request)
    left = {url: list(origins.places(url)) for url in channels}
    folders = _package_folders(request)
    failed: list[str] = []
    is_fresh = False
    while True:
        chosen = [(url, places[0]) for url, places in left.items()]
        chosen += [(folder, origins.places(folder)[-1]) for folder in folders]
        stand_ins = StandIns.of(chosen)
        last = all(len(places) == 1 for places in left.values())
        period = int(time.monotonic() / _GATEWAY_SECONDS)
        limits = {url: _MIRROR if len(places) > 1 else _CHANNEL for url, places in left.items()}
        try:
            stand_ins = await _with_copies(stand_ins, request, cache_dir, limits, deadline)
            gateway = _gateway(cache_dir, stand_ins, 3 if last else 1, period)
            repodata = _Repodata(request, channels, stand_ins, gateway)
            await repodata.read(limits, deadline)
            return await _attempt(repodata, deadline), stand_ins
        except (GatewayError, FetchRepoDataError, _UnreadError) as error:
            text = str(error)
            if _UNCHANGED in text and not is_fresh:
                is_fresh = True
                repodata.forget()
                continue
            named = [url for url in channels if len(left[url]) > 1 and stand_ins.is_named_in(url, text)]
            if not named:
                raise _unreadable(stand_ins.public(text), failed) from None
            failed += [f"its mirror {left[url][0]} failed before: {stand_ins.public(text)}" for url in named]
            for url in named:
                del left[url][0]


async def _with_copies(
    stand_ins: StandIns,
    request: SolveRequest,
    cache_dir: Path,
    limits: Mapping[str, float],
    deadline: Deadline,
) -> StandIns:
    """The stand-ins, with a copy of each channel that has a token in its path."""
    lists = tuple(f"{subdir}/repodata.json" for subdir in (request.platform.subdir, "noarch"))
    packages: dict[str, list[str]] = {}
    for spec in request.conda.dependencies:
        if spec.private_url is not None:
            folder, _, name = public_url(spec.private_url).rpartition("/")
            packages.setdefault(folder, []).append(name)
    period = int(time.monotonic() / _GATEWAY_SECONDS)

    def copied(each: StandIn) -> StandIn:
        if not each.has_token:
            return each
        paths = lists if each.public in limits else tuple(packages.get(each.public, ()))
        seconds = limits.get(each.public, _CHANNEL)
        limit = Deadline.after(deadline.remaining(at_most=seconds))
        try:
            return replace(each, copy=_copies(cache_dir).read(each, paths, period, limit))
        except ChannelError as error:
            raise _UnreadError(error.message) from None
        except DeadlineExceeded:
            deadline.check("reading the channels")
            raise _UnreadError(f"'{each.public}/' gave no answer within {seconds:.0f} s") from None

    return StandIns(tuple(await asyncio.gather(*(asyncio.to_thread(copied, each) for each in stand_ins.all))))


@functools.lru_cache(maxsize=4)
def _copies(cache_dir: Path) -> Copies:
    return Copies(cache_dir)


async def _attempt(repodata: _Repodata, deadline: Deadline) -> list[rattler.RepoDataRecord]:
    import rattler
    from rattler.exceptions import SolverError

    remaining = deadline.remaining(at_most=_LONGEST)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rattler.exceptions.GatewayWarning)
            return await asyncio.wait_for(repodata.solution(remaining), timeout=remaining)
    except TimeoutError:
        await asyncio.sleep(_DROPPED)
        deadline.check("solving")
        raise SolveError("the solver found no answer within an hour", hint="pin more packages") from None
    except SolverError as error:
        said = repodata.stand_ins.public(str(error)).strip()
        raise await _unsolvable(repodata, said, deadline.remaining(at_most=_EXPLAINING)) from None


class _UnreadError(Exception):
    """A channel took too long to answer, or could not be copied; it never leaves this module."""


@dataclass(frozen=True)
class _Repodata:
    """What the channels of one request hold.

    Attributes:
        request: The request.
        channels: Their public URLs, each with its name for people.
        stand_ins: What stands for them.
        gateway: Reads them.
    """

    request: SolveRequest
    channels: dict[str, str]
    stand_ins: StandIns
    gateway: rattler.Gateway

    @property
    def sources(self) -> list[rattler.Channel]:
        """The channels as the solver reads them."""
        import rattler

        return [rattler.Channel(self.stand_ins.named(url)) for url in self.channels]

    async def read(self, limits: Mapping[str, float], deadline: Deadline) -> None:
        """Read what the channels list, which stays in memory; the solver alone would wait for ever.

        Args:
            limits: For each channel's URL how many seconds it has.
            deadline: When to give up.
        """

        async def answers(url: str, seconds: float) -> bool:
            try:
                await asyncio.wait_for(self.names([url]), deadline.remaining(at_most=seconds))
            except TimeoutError:
                await asyncio.sleep(_DROPPED)
                return False
            return True

        asked = [url for url in limits if not self.stand_ins.named(url).startswith("file:")]
        answered = await asyncio.gather(*(answers(url, limits[url]) for url in asked))
        deadline.check("reading the channels")
        silent = [url for url, answer in zip(asked, answered, strict=True) if not answer]
        if silent:
            waited = (f"'{url}/' gave no answer within {limits[url]:.0f} s" for url in silent)
            raise _UnreadError("\n".join(waited))

    def forget(self) -> None:
        """Drop what the cache keeps of the channels, so that they are read anew."""
        for source in self.sources:
            self.gateway.clear_repodata_cache(source, clear_disk=True)

    async def solution(self, seconds: float) -> list[rattler.RepoDataRecord]:
        """The packages that satisfy the request; the solver's own errors where there are none."""
        import rattler

        request = self.request
        return await rattler.solve(
            sources=self.sources,
            specs=await self.specs(),
            gateway=self.gateway,
            platforms=request.subdirs,
            virtual_packages=_virtual_packages(request),
            channel_priority=getattr(rattler.ChannelPriority, request.channel_priority.capitalize()),
            exclude_newer=request.as_of,
            timeout=dt.timedelta(seconds=seconds),
            channel_relations=_RELATIONS,
        )

    async def specs(self) -> list[rattler.MatchSpec]:
        """The dependencies as the solver reads them.

        The solver is shown only those records of a package that its match specs allow, and strict priority
        would not see that a channel has it in other versions. A match spec of the name alone shows them all.
        """
        import rattler

        strict = self.request.channel_priority == "strict" and len(self.channels) > 1
        specs = []
        for dependency in self.request.conda.dependencies:
            specs.append(await self.spec(dependency))
            placed = dependency.channel is not None or dependency.private_url is not None
            if strict and not placed and dependency.spelling != dependency.name:
                specs.append(rattler.MatchSpec(dependency.name))
        return specs

    async def spec(self, dependency: MatchSpec) -> rattler.MatchSpec:
        """One dependency as the solver reads it: its channel stands under our alias, not the solver's."""
        import rattler
        from rattler.exceptions import InvalidMatchSpecError

        fields = dict(dependency.fields)
        if dependency.channel is not None:
            fields["channel"] = self.stand_ins.named(await self._channel(dependency.name, dependency.channel))
        if dependency.private_url is not None:
            fields["url"] = self.stand_ins.named(public_url(dependency.private_url))
        try:
            return rattler.MatchSpec(spell(dependency.name, dependency.version, tuple(fields.items())))
        except InvalidMatchSpecError as error:
            source, line, column = dependency.mark or (None, None, None)
            raise SpecError(
                f"the solver does not understand {dependency.canonical()!r}: {error}",
                source=source,
                line=line,
                column=column,
                hint="write it in another way",
            ) from None

    async def _channel(self, name: str, channel: Channel) -> str:
        """The public URL of a dependency's channel; of several that it stands for, the first that has it."""
        urls = _public_urls(channel)
        if len(urls) > 1:
            have = {self._of(record) for record in await self.records([name])}
            urls = [url for url in urls if self.channels[url] in have] or urls
        return urls[0]

    async def records(self, names: Iterable[str]) -> list[rattler.RepoDataRecord]:
        """All records of some packages, in the order of the channels."""
        import rattler

        specs = [rattler.MatchSpec(name) for name in names]
        found = await self.gateway.query(
            self.sources, self.request.subdirs, specs, recursive=False, channel_relations=_RELATIONS
        )
        return [record for group in found for record in group]

    async def names(self, urls: Iterable[str]) -> list[str]:
        """The names of all packages in some of the channels."""
        import rattler

        sources = [rattler.Channel(self.stand_ins.named(url)) for url in urls]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rattler.exceptions.GatewayWarning)
            found = await self.gateway.names(sources, self.request.subdirs, channel_relations=_RELATIONS)
        return [name.normalized for name in found]

    async def offers(self, names: Iterable[str]) -> Offers:
        """What the channels hold of some packages, the newest first."""
        import rattler

        asked: dict[str, list[tuple[str, rattler.MatchSpec, rattler.MatchSpec]]] = {}
        for each in self.request.conda.dependencies:
            version = rattler.MatchSpec(spell(each.name, each.version, ()))
            asked.setdefault(each.name, []).append((each.spelling, await self.spec(each), version))
        found: dict[str, list[Offer]] = {}
        moment = self.request.as_of
        for record in sorted(await self.records(names), key=lambda record: record.version, reverse=True):
            name = record.name.normalized
            own = asked.get(name, ())
            fits = frozenset(text for text, spec, _ in own if spec.matches(record))
            versioned = frozenset(text for text, _, version in own if version.matches(record))
            since = record.indexed_timestamp or record.timestamp
            late = moment is not None and (since is None or since > moment)
            offer = Offer(self._of(record), str(record.version), str(record.build), fits, versioned, late)
            found.setdefault(name, []).append(offer)
        return found

    def _of(self, record: rattler.RepoDataRecord) -> str:
        """The name of a record's channel for people."""
        url = self.stand_ins.public((record.channel or "").rstrip("/"))
        return self.channels.get(url, url)


async def _unsolvable(repodata: _Repodata, text: str, seconds: float) -> SolveError:
    """Why there is no solution: what the channels hold of what was asked for, and the solver's own words."""
    from rattler.exceptions import FetchRepoDataError, GatewayError

    request = repodata.request
    placed = {
        each.spelling: tuple(repodata.channels[url] for url in _public_urls(each.channel))
        for each in request.conda.dependencies
        if each.channel is not None
    }
    strict = request.channel_priority == "strict"
    names = tuple(repodata.channels.values())
    case = Unsolvable(request.conda.dependencies, names, placed, strict, text)
    findings: tuple[Finding, ...] = ()
    try:
        async with asyncio.timeout(seconds):
            offers = await repodata.offers(case.names)
            known = await repodata.names(repodata.channels) if case.needs_names(offers) else []
        findings = case.findings(offers, known)
    except (GatewayError, FetchRepoDataError, TimeoutError):
        pass  # the solver's words are left
    hint = next((each.hint for each in findings if each.hint), None) or _hint(request, text)
    lines = "".join(f"{each}\n" for each in findings)
    return SolveError(f"no set of packages satisfies the environment:\n{lines}{text}", hint=hint)


def _hint(request: SolveRequest, text: str) -> str:
    if "__glibc" in text:
        seen = request.virtual_packages.glibc
        if not seen:
            return "the base has no glibc: choose one that has, as debian:12-slim, or say with --glibc which"
        return f"the base offers glibc {seen}: choose a newer base, or older packages"
    if "__cuda" in text:
        return "say which CUDA version the machines have with --cuda"
    return "loosen or correct the dependencies that the solver names"


def _unreadable(text: str, before: list[str]) -> ChannelError:
    """What a channel that cannot be read means: refused, missing or in trouble."""
    said = "\n".join([text, *before])
    if "401 Unauthorized" in text or "403 Forbidden" in text:
        return ChannelError(f"a channel refuses to be read: {said}", hint=LOGIN_HINT)
    if "could not find subdir" in text:
        return ChannelError(
            f"a channel is not there: {said}",
            hint="check its name; --channel-alias says where channel names stand",
        )
    return ChannelError(
        f"a channel could not be read: {said}",
        hint=said_hint(text)
        or "check the channel's name and the network, or try again later; --channel-alias says where names "
        "stand",
        retryable="invalid peer certificate" not in text,
    )


def _virtual_packages(request: SolveRequest) -> list[rattler.GenericVirtualPackage]:
    from rattler import BuildString, GenericVirtualPackage, PackageName, Version

    return [
        GenericVirtualPackage(PackageName(name), Version(version), BuildString(build))
        for name, version, build in request.virtual_packages.packages(request.platform)
    ]


@functools.lru_cache(maxsize=4)
def _gateway(cache_dir: Path, stand_ins: StandIns, retries: int, _period: int) -> rattler.Gateway:
    """A gateway keeps repodata in memory; a new one each period sees what is new in the channels.

    Raises:
        ChannelError: The authorities that the environment names cannot be read.
    """
    import rattler

    try:
        client = _client(stand_ins, retries) if stand_ins.all else None
        return rattler.Gateway(cache_dir=private_folder(cache_dir / "repodata"), client=client)
    except ValueError as error:  # rattler says of it: "builder error"
        named = {name: os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR")}
        places = " and ".join(f"{name}={place}" for name, place in named.items() if place)
        raise ChannelError(
            f"channels cannot be asked: {f'the authorities of {places} cannot be read' if places else error}",
            hint="correct SSL_CERT_FILE and SSL_CERT_DIR, or unset them to trust the machine's authorities",
        ) from None


def _client(stand_ins: StandIns, retries: int) -> rattler.Client:
    """A client that knows what the stand-ins stand for."""
    from rattler import networking

    return networking.Client(
        [
            networking.AddHeadersMiddleware(stand_ins.headers),
            networking.MirrorMiddleware(stand_ins.mirrors()),
            # Within: only what was tried often enough counts against a mirror.
            networking.RetryMiddleware(retries),
        ]
    )


def public_url(url: str) -> str:
    """A URL without its user, password and token."""
    return url if url.startswith("file:") else split_credentials(url)[0]


def _package_of_channel(record: rattler.RepoDataRecord, stand_ins: StandIns) -> PackageRecord:
    """A record of the solver's as ours; where its URL cannot be, the channel is at fault, and not the user.

    A channel may say that its packages are elsewhere (CEP-15), but no server says which files of this machine
    are packages.
    """
    channel, url = (stand_ins.public(each or "") for each in (record.channel, record.url))
    what = f"{record.name.normalized} in {channel} is at {redact(url)[:200]!r}"
    hint = "look at `base_url` in the channel's repodata.json"
    if url.startswith("file:") and not channel.startswith("file:"):
        raise ChannelError(f"{what}, a file of this machine, expected a URL on the web", hint=hint)
    try:
        return package_record(record, stand_ins)
    except SpecError as error:
        raise ChannelError(f"{what}: {error.message}", hint=hint) from None


def package_record(record: rattler.RepoDataRecord, stand_ins: StandIns = NO_STAND_INS) -> PackageRecord:
    """A record of the solver's as ours, without credentials.

    Args:
        record: The record.
        stand_ins: Those that it was solved with.

    Raises:
        ChannelError: It has no sha256.
    """
    name, url = record.name.normalized, public_url(stand_ins.public(record.url))
    sha256 = record.sha256.hex() if record.sha256 is not None else _digest_of_file(record.url)
    if sha256 is None:
        raise ChannelError(
            f"{name} {record.version} in {url} has no sha256 in its channel",
            hint="index the channel again with a tool that writes sha256",
        )
    kind = record.noarch
    noarch = "python" if kind.python else "generic" if kind.generic else None
    return PackageRecord(
        name=name,
        version=str(record.version),
        build=str(record.build),
        build_number=record.build_number,
        subdir=record.subdir,
        url=url,
        sha256=Digest(sha256),
        size=record.size,
        md5=record.md5.hex() if record.md5 else None,
        noarch=cast("NoArch | None", noarch),
        depends=tuple(record.depends),
        python_site_packages_path=record.python_site_packages_path,
        metadata=encode_metadata(metadata_of(json.loads(record.to_json()))),
    )


def _digest_of_file(url: str) -> str | None:
    """The sha256 of a package in a folder, which the solver does not take where a URL names it."""
    if not url.startswith("file:"):
        return None
    path = unquote(Url.parse(url, FILE).path)
    with contextlib.suppress(OSError), open(path, "rb", opener=lambda name, _: opened(name)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def _run(coroutine: Coroutine[Any, Any, _Found]) -> _Found:
    """Run a coroutine to its end, also for a caller who is inside an event loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append((asyncio.run(coroutine), None))
        except BaseException as error:  # noqa: BLE001 - handed to the caller below
            outcome.append((None, error))

    thread = threading.Thread(target=work, name="envbuild-solve")
    thread.start()
    thread.join()
    records, error = outcome[0]
    if error is not None:
        raise error
    return cast("_Found", records)
