"""Solving a Conda section for a platform; beside ``conda/locks`` the only module that imports ``rattler``."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import threading
import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from envbuild.conda.stand_ins import StandIns
from envbuild.digest import Digest
from envbuild.errors import SolveError
from envbuild.lock import Lock, PackageRecord
from envbuild.spec.channel import DEFAULTS, Channel, split_credentials
from envbuild.spec.shortmatch import spell

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    import rattler

    from envbuild.deadline import Deadline
    from envbuild.lock import NoArch
    from envbuild.platform import Platform
    from envbuild.spec.conda import CondaSection
    from envbuild.spec.match import MatchSpec

_GATEWAY_SECONDS: Final = 600.0
_ARCHSPEC: Final = {
    "amd64": "x86_64",
    "arm64": "aarch64",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}
_LINUX: Final = "4.18"
"""The kernel that containers are solved for: the oldest that supported distributions run."""
NO_STAND_INS: Final = StandIns.of(())


@dataclass(frozen=True, slots=True)
class VirtualPackages:
    """What the base image and the machines that will run it offer to packages.

    Attributes:
        glibc: The base's glibc version as ``2.36``, or None where it has none.
        cuda: The CUDA version of the machines' drivers as ``12.4``, or None.
    """

    glibc: str | None
    cuda: str | None = None

    def of(self, platform: Platform) -> tuple[tuple[str, str, str], ...]:
        """Name, version and build of each virtual package; never anything of the host's."""
        packages = [
            ("__unix", "0", "0"),
            ("__linux", _LINUX, "0"),
            ("__archspec", "1", _ARCHSPEC[platform.architecture]),
        ]
        if self.glibc is not None:
            packages.append(("__glibc", self.glibc, "0"))
        if self.cuda is not None:
            packages.append(("__cuda", self.cuda, "0"))
        return tuple(packages)


@dataclass(frozen=True)
class Solution:
    """A lock, and where its packages are fetched from.

    Attributes:
        lock: The packages, free of credentials.
        urls: For each package's URL the URL to fetch it from, which may hold credentials.
    """

    lock: Lock
    urls: dict[str, str]

    def __repr__(self) -> str:
        return f"Solution({len(self.lock.packages)} packages for {self.lock.platform})"


@dataclass(frozen=True, slots=True)
class SolveRequest:
    """What to solve, apart from where.

    Attributes:
        conda: Channels and match specs.
        platform: The platform to solve for.
        virtual_packages: What the base offers.
        channel_priority: ``strict``, ``flexible`` or ``disabled``.
        as_of: Packages newer than this are not there, or None.
        channel_alias: The URL under which channel names stand.
    """

    conda: CondaSection
    platform: Platform
    virtual_packages: VirtualPackages
    channel_priority: str
    as_of: dt.datetime | None
    channel_alias: str


def solve(request: SolveRequest, *, cache_dir: Path, deadline: Deadline) -> Solution:
    """Find the packages that satisfy a Conda section.

    Args:
        request: What to solve.
        cache_dir: Where repodata is kept between calls.
        deadline: When to give up.

    Raises:
        SolveError: Nothing satisfies the section, with the solver's reasons; or a channel cannot be read
            (then ``retryable``).
        DeadlineExceeded: The time ran out.
    """
    deadline.check("solving")
    stand_ins = StandIns.of(_all_urls(request))
    records = _run(_solve(request, stand_ins, cache_dir, deadline))
    packages = [package_record(record, stand_ins) for record in records]
    private = [stand_ins.private(record.url) for record in records]
    urls = dict(zip((package.url for package in packages), private, strict=True))
    return Solution(Lock.of(request.platform, packages), urls)


async def _solve(
    request: SolveRequest, stand_ins: StandIns, cache_dir: Path, deadline: Deadline
) -> list[rattler.RepoDataRecord]:
    import rattler
    from rattler.exceptions import FetchRepoDataError, GatewayError, SolverError

    remaining = deadline.remaining(at_most=3600.0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rattler.exceptions.GatewayWarning)
            return await asyncio.wait_for(
                rattler.solve(
                    sources=[rattler.Channel(stand_ins.named(url)) for url in _channel_urls(request)],
                    specs=_specs(request, stand_ins),
                    gateway=_gateway(cache_dir, stand_ins, int(time.monotonic() / _GATEWAY_SECONDS)),
                    platforms=[rattler.Subdir(request.platform.subdir), rattler.Subdir("noarch")],
                    virtual_packages=_virtual_packages(request),
                    channel_priority=getattr(rattler.ChannelPriority, request.channel_priority.capitalize()),
                    exclude_newer=request.as_of,
                    timeout=dt.timedelta(seconds=remaining),
                ),
                timeout=remaining,
            )
    except TimeoutError:
        deadline.check("solving")
        raise SolveError("the solver found no answer within an hour", hint="pin more packages") from None
    except SolverError as error:
        raise _unsolvable(request, stand_ins.public(str(error)).strip()) from None
    except (GatewayError, FetchRepoDataError) as error:
        raise SolveError(
            f"a channel could not be read: {stand_ins.public(str(error))}",
            hint="check the channel's name, the network and the credentials; channel names stand under "
            f"{public_url(request.channel_alias)}",
            retryable=True,
        ) from None


def _channel_urls(request: SolveRequest) -> list[str]:
    """Where the section's channels are; a section that names none means ``defaults``, as Conda has it."""
    channels = request.conda.channels
    if not channels and request.conda.nodefaults:
        raise SolveError("there is no channel: `nodefaults` stands alone", hint="add a channel to `channels`")
    return [
        url for channel in channels or (Channel(DEFAULTS),) for url in channel.urls(request.channel_alias)
    ]


def _all_urls(request: SolveRequest) -> list[str]:
    """Where the channels of the section and its dependencies are, and packages that are named by a URL."""
    dependencies = request.conda.dependencies
    named = [spec.channel for spec in dependencies if spec.channel is not None]
    packages = [spec.private_url for spec in dependencies if spec.private_url is not None]
    channels = [url for channel in named for url in channel.urls(request.channel_alias)]
    return _channel_urls(request) + channels + packages


def _specs(request: SolveRequest, stand_ins: StandIns) -> list[rattler.MatchSpec]:
    import rattler
    from rattler.exceptions import InvalidMatchSpecError

    specs = []
    for dependency in request.conda.dependencies:
        try:
            specs.append(rattler.MatchSpec(_spec_text(dependency, request.channel_alias, stand_ins)))
        except InvalidMatchSpecError as error:
            raise SolveError(f"the solver does not understand {dependency.canonical()!r}: {error}") from None
    return specs


def _spec_text(spec: MatchSpec, alias: str, stand_ins: StandIns) -> str:
    """A match spec as the solver reads it: its channel stands under our alias, not under the solver's."""
    fields = dict(spec.fields)
    if spec.channel is not None:
        fields["channel"] = stand_ins.named(spec.channel.urls(alias)[0])
    if spec.private_url is not None:
        fields["url"] = stand_ins.named(spec.private_url)
    return spell(spec.name, spec.version, tuple(fields.items()))


def _virtual_packages(request: SolveRequest) -> list[rattler.GenericVirtualPackage]:
    from rattler import BuildString, GenericVirtualPackage, PackageName, Version

    return [
        GenericVirtualPackage(PackageName(name), Version(version), BuildString(build))
        for name, version, build in request.virtual_packages.of(request.platform)
    ]


@functools.lru_cache(maxsize=4)
def _gateway(cache_dir: Path, stand_ins: StandIns, _period: int) -> rattler.Gateway:
    """A gateway keeps repodata in memory; a new one each period sees what is new in the channels."""
    import rattler

    client = _client(stand_ins) if stand_ins.all else None
    return rattler.Gateway(cache_dir=cache_dir / "repodata", client=client)


def _client(stand_ins: StandIns) -> rattler.Client:
    """A client that knows what the stand-ins stand for; for other hosts it has the user's own credentials."""
    from rattler import networking

    return networking.Client(
        [
            networking.AuthenticationMiddleware(),
            networking.AddHeadersMiddleware(stand_ins.headers),
            networking.MirrorMiddleware(stand_ins.mirrors()),
            networking.RetryMiddleware(),  # within: only what was tried often enough counts against a mirror
        ]
    )


def _unsolvable(request: SolveRequest, text: str) -> SolveError:
    hint = "loosen or correct the dependencies that the solver names"
    if "__glibc" in text:
        seen = request.virtual_packages.glibc
        offered = f"the base offers glibc {seen}" if seen else "the base has no glibc"
        hint = f"{offered}: choose a newer base, or older packages"
    elif "__cuda" in text:
        hint = "say which CUDA version the machines have with --cuda"
    return SolveError(f"no set of packages satisfies the environment:\n{text}", hint=hint)


def public_url(url: str) -> str:
    """A URL without its user, password and token."""
    return url if url.startswith("file:") else split_credentials(url)[0]


def package_record(record: rattler.RepoDataRecord, stand_ins: StandIns = NO_STAND_INS) -> PackageRecord:
    """A record of the solver's as ours, without credentials.

    Args:
        record: The record.
        stand_ins: Those that it was solved with.

    Raises:
        SolveError: It has no sha256.
    """
    name, url = record.name.normalized, public_url(stand_ins.public(record.url))
    if record.sha256 is None:
        raise SolveError(
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
        sha256=Digest(record.sha256.hex()),
        size=record.size,
        md5=record.md5.hex() if record.md5 else None,
        noarch=cast("NoArch | None", noarch),
        depends=tuple(record.depends),
        python_site_packages_path=record.python_site_packages_path,
    )


def _run(coroutine: Coroutine[Any, Any, list[rattler.RepoDataRecord]]) -> list[rattler.RepoDataRecord]:
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
    return cast("list[rattler.RepoDataRecord]", records)
