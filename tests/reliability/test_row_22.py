"""Row 22: twenty faults at twelve operations. A registry in trouble costs time, never correctness."""

from __future__ import annotations

import itertools
import ssl
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from envbuild.errors import DeadlineExceeded
from envbuild.oci.client import tls_context
from parts.fault_proxy import FAULTS, OPERATIONS, proxying
from parts.fault_server import serving
from parts.programs import program
from parts.toxic import Laboratory, Outcome, login, relay

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from parts.fault_server import FaultServer
    from parts.registry_server import RegistryServer

WORKERS = 12


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ssl.SSLContext]:
    """A certificate for localhost that the tests trust."""
    folder = tmp_path_factory.mktemp("tls")
    command = [program("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]
    command += ["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(folder / "key")]
    subprocess.run([*command, "-out", str(folder / "crt")], check=True, capture_output=True)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(folder / "crt", folder / "key")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(folder / "crt"))
        tls_context.cache_clear()
        yield made
    tls_context.cache_clear()


@pytest.fixture(scope="module")
def canary(registry: RegistryServer) -> Iterator[FaultServer]:
    """The host that redirects lead to."""
    with serving(relay(registry.host)) as server:
        yield server


@pytest.fixture(scope="module")
def laboratory(
    tmp_path_factory: pytest.TempPathFactory,
    registry: RegistryServer,
    canary: FaultServer,
    context: ssl.SSLContext,
) -> Iterator[Laboratory]:
    root = tmp_path_factory.mktemp("toxic")
    with proxying(registry.port, canary.host, context) as proxy:
        yield Laboratory.make(root, registry, proxy)


@pytest.fixture(autouse=True)
def _login(laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    login(tmp_path, monkeypatch, laboratory.proxy)


Plan = tuple[str, str, int | None, int]


def judge(laboratory: Laboratory, canary: FaultServer, plans: Iterable[Plan]) -> None:
    """Run cases side by side, and see that no rule was broken in any of them."""
    plans = list(plans)
    with ThreadPoolExecutor(WORKERS) as pool:
        outcomes = list(pool.map(lambda plan: laboratory.run(*plan), plans))
    print(_summary(outcomes))  # noqa: T201
    for number, each in enumerate(outcomes):  # on a busy machine some do not come so far in their time
        if not each.struck and isinstance(each.error, DeadlineExceeded):
            outcomes[number] = laboratory.run(*plans[number], hasty=30.0)
    wrong = [f"{each.name}: {each.problem}" for each in outcomes if each.problem]
    wrong += [f"{each.name}: {each.error!r}" for each in outcomes if each.must_succeed and each.error]
    wrong += [f"{each.name}: no such request was made" for each in outcomes if not each.struck]
    assert not wrong, "\n".join(wrong)
    assert [asked for asked in canary.asked if asked.authorization is not None] == []


def _summary(outcomes: list[Outcome]) -> str:
    kinds = Counter(type(each.error).__name__ if each.error else "success" for each in outcomes)
    transient = sum(each.must_succeed for each in outcomes)
    return f"{len(outcomes)} cases, {transient} of them must succeed: {dict(kinds)}"


def test_every_fault_at_every_operation(laboratory: Laboratory, canary: FaultServer) -> None:
    pairs = itertools.product(OPERATIONS, FAULTS)
    judge(
        laboratory,
        canary,
        [(*pair, (1, None, 3)[number % 3], number) for number, pair in enumerate(pairs)],
    )


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_every_fault_at_every_operation_20_times(laboratory: Laboratory, canary: FaultServer) -> None:
    plans = itertools.product(OPERATIONS, FAULTS, range(20))
    judge(
        laboratory,
        canary,
        [(operation, fault, (1, 2, 3, None)[seed % 4], seed) for operation, fault, seed in plans],
    )
