"""Fetching a wheel, as packages are fetched: verified, tried again, and without a file left behind."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from envbuild.deadline import Deadline
    from envbuild.lock import PackageRecord, PipDistribution


def fetch_wheel(
    distribution: PipDistribution,
    *,
    url: str | None = None,
    deadline: Deadline,
    seen: Callable[[int], None] | None = None,
) -> IO[bytes]:
    """Get a wheel's bytes; they are those of the distribution's sha256.

    Args:
        distribution: What to fetch.
        url: Where it is, maybe with credentials; the distribution's own URL where it is None.
        deadline: When to give up.
        seen: Told the number of bytes of each piece that arrives.

    Raises:
        BuildError: The wheel is not there.
        ChannelError: The wheel may not be read, or (``retryable``) its index is in trouble.
        IntegrityError: What the index gives is not the wheel.
        DeadlineExceeded: The time ran out.
        StorageFull: There is no room for the wheel.
    """
    from envbuild.conda.fetch import fetch_package

    # A wheel has all of a package's record that fetching looks at; its URL holds the login, if any.
    record = cast("PackageRecord", distribution)
    urls = () if url is None else (url,)
    return fetch_package(record, urls=urls, login=lambda _: None, deadline=deadline, seen=seen)
