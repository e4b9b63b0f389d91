"""One run of ``uv pip compile``; the only module that runs ``uv``.

Neither settings of the user nor of the machine reach it, apart from proxies, certificates and logins: what
is resolved depends on the definition. Requirements and indexes go through files that only this user can read,
never through arguments, for they may hold credentials.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from envbuild.child import said
from envbuild.conda.logins import in_netrc_at_all
from envbuild.deadline import Deadline
from envbuild.errors import BuildError, ChannelError, DeadlineExceeded, SolveError
from envbuild.oci.proxies import said_hint
from envbuild.oci.transport import is_loopback
from envbuild.pip.logins import keyring_is_asked_for
from envbuild.spec.requirement import redacted
from envbuild.storage import private_folder

if TYPE_CHECKING:
    from collections.abc import Mapping

_PASSED: Final = ("HOME", "SSL_CERT_DIR", "SSL_CERT_FILE", "TMPDIR")
_PROXIES: Final = ("all_proxy", "https_proxy", "http_proxy", "no_proxy")
_SECURE_PROXIES: Final = ("all_proxy", "https_proxy")
_NO_PLAIN_HTTP: Final = {"http_proxy": "http://127.0.0.1:1", "no_proxy": "localhost,127.0.0.0/8,::1"}
"""Sends plain HTTP nowhere but to this machine; port 1 is nobody's."""
_HIDDEN: Final = "envbuild."
"""In front of the name of a variable that is not for uv."""
_KEYRING: Final = """\
#!{python}
import os, sys
if any(word.startswith("-") for word in sys.argv[sys.argv.index("get") :]):
    sys.exit(1)  # a user of a URL that the program would take for an option
environ = {{name.removeprefix({hidden!r}): text for name, text in os.environ.items() if {hidden!r} in name}}
os.execve({program!r}, [{program!r}, *sys.argv[1:]], environ)
"""
"""Runs the user's keyring in the user's environment, which uv does not see."""
_NETRC: Final = "netrc"
_PLAIN: Final = re.compile(r"\bhttp://(?:[^/\s@]*@)?([^/\s?#]+)", re.IGNORECASE)
_PLAIN_WORD: Final = re.compile(r"[!$-\[\]-~]+")
"""What every reader of such files takes for one word."""
_LONGEST: Final = 3600.0
_WRONG_LOGIN: Final = "401 Unauthorized"
_DENIED: Final = re.compile(r"401 Unauthorized|403 Forbidden")
_TROUBLE: Final = re.compile(
    r"error sending request|Request failed|timed out|\b(?:429|5\d\d) |connection (?:closed|reset)|dns error"
)


@dataclass(frozen=True)
class Compilation:
    """What ``uv`` is asked; the texts may hold credentials.

    Attributes:
        requirements: A requirements file.
        constraints: A constraints file.
        options: Further arguments; they hold no credentials.
        preferences: The version of each name that is taken where it satisfies everything.
        merged: Whether all indexes count for a name, and not only the first that has it.
        own_logins: Whether uv may find logins of the user's itself.
    """

    requirements: str
    constraints: str
    options: tuple[str, ...]
    preferences: Mapping[str, str]
    merged: bool = False
    own_logins: bool = True

    def __repr__(self) -> str:
        return f"Compilation(options={self.options!r})"

    def run(self, cache_dir: Path, deadline: Deadline) -> list[dict[str, Any]]:
        """The ``packages`` of the solution, as ``pylock.toml`` has them; every ``path`` is absolute.

        Raises:
            SolveError: There is no solution.
            ChannelError: An index cannot be read, or (``retryable``) is in trouble.
            DeadlineExceeded: The time ran out.
        """
        deadline.check("resolving the pip section")
        with tempfile.TemporaryDirectory(dir=private_folder(cache_dir / "pip")) as name:
            folder = Path(name)
            self.write_to(folder)
            code, said = self._call(folder, cache_dir, deadline)
            if code != 0:
                raise _failure(said)
            lock = tomllib.loads((folder / "pylock.toml").read_text())
        packages: list[dict[str, Any]] = lock.get("packages", [])
        for package in packages:
            for file in [*package.get("wheels", ()), *filter(None, (package.get("archive"),))]:
                if "path" in file:
                    file["path"] = os.path.normpath(folder / file["path"])
        return packages

    def check_login(self, cache_dir: Path, deadline: Deadline) -> None:
        """Refuse an index that wants another login; uv leaves it out without a word where there are others.

        Other answers are left to :meth:`run`: some indexes say 403 of every name that they do not have.

        Raises:
            ChannelError: It does.
            DeadlineExceeded: The time ran out.
        """
        deadline.check("resolving the pip section")
        with tempfile.TemporaryDirectory(dir=private_folder(cache_dir / "pip")) as name:
            self.write_to(Path(name))
            code, said = self._call(Path(name), cache_dir, deadline)
        if code != 0 and _WRONG_LOGIN in said:
            raise _failure(said)

    @property
    def _plain(self) -> frozenset[str]:
        """The hosts that are asked over plain HTTP, or need not prove who they are."""
        pairs = zip(self.options, self.options[1:], strict=False)
        trusted = [host for option, host in pairs if option == "--allow-insecure-host"]
        return _hosts_in_clear(self.requirements + self.constraints) | frozenset(trusted)

    @property
    def _has_logins(self) -> bool:
        """Whether uv may find logins of the user's itself, for what files on further hosts need.

        A page of an index may name such a file over plain HTTP, where the login would go in clear. So either
        uv has no logins, or it has no plain HTTP: but for this machine it is sent to a proxy that is nowhere,
        which it would pass by for the hosts that the user excepts from proxies.
        """
        excepted = _setting("no_proxy") and any(map(_setting, _SECURE_PROXIES))
        return self.own_logins and not self._plain and not excepted

    @property
    def _asks_keyring(self) -> bool:
        return keyring_is_asked_for() and self._has_logins

    @property
    def _netrc(self) -> str:
        """The user's logins for uv, which would send one for any host to all: the rest."""
        return "".join(
            f"machine {host} login {user} password {word}\n"
            for host, (user, word) in (in_netrc_at_all().items() if self._has_logins else ())
            if all(map(_PLAIN_WORD.fullmatch, (host, user, word)))
        )

    def write_to(self, folder: Path) -> None:
        """Write what uv reads."""
        (folder / "requirements.txt").write_text(self.requirements)
        (folder / "constraints.txt").write_text(self.constraints)
        (folder / _NETRC).touch(0o600)
        (folder / _NETRC).write_text(self._netrc)
        if not self.preferences:
            return
        preferred = "".join(
            f'[[packages]]\nname = "{name}"\nversion = "{version}"\n'
            for name, version in sorted(self.preferences.items())
        )
        head = 'lock-version = "1.0"\ncreated-by = "envbuild"\n'
        (folder / "pylock.toml").write_text(head + preferred)

    def _call(self, folder: Path, cache_dir: Path, deadline: Deadline) -> tuple[int, str]:
        code, said = self.run_in(folder, cache_dir, deadline)
        if code == 0 or not (self._asks_keyring or self._netrc) or not _hosts_in_clear(said):
            return code, said
        without = replace(self, own_logins=False)
        without.write_to(folder)
        return without.run_in(folder, cache_dir, deadline)

    def run_in(self, folder: Path, cache_dir: Path, deadline: Deadline) -> tuple[int, str]:
        """Run uv once; gives its exit code, and what it said."""
        import uv

        arguments = [
            uv.find_uv_bin(), "pip", "compile", "requirements.txt", "--constraints", "constraints.txt",
            "--output-file", "pylock.toml", "--format", "pylock.toml", "--no-header", "--quiet",
            "--no-config", "--no-python-downloads", "--system-certs", "--color", "never",
            "--cache-dir", str(private_folder(cache_dir / "uv")), "--only-binary", ":all:",
            "--index-strategy", "unsafe-best-match" if self.merged else "first-index",
            "--keyring-provider", "subprocess" if self._asks_keyring else "disabled", *self.options,
        ]  # fmt: skip
        if sys.executable:
            arguments += ["--python", sys.executable]
        environment = _environment(folder, keyring=self._asks_keyring)
        if self._asks_keyring or self._netrc:
            environment |= _NO_PLAIN_HTTP
        try:
            process = subprocess.Popen(
                arguments,
                cwd=folder,
                env={**environment, "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise BuildError(f"uv cannot be run: {error.strerror}", hint="install envbuild again") from None
        with process:
            text = _said(process, deadline).decode(errors="replace").replace(f"{folder}/", "")
        return process.returncode, redacted(text).strip()


def _hosts_in_clear(text: str) -> frozenset[str]:
    """The hosts of URLs in a text that are asked over plain HTTP, and are not this machine."""
    hosts = (host.lower() for host in _PLAIN.findall(text))
    return frozenset(host for host in hosts if not is_loopback(host))


def _said(process: subprocess.Popen[bytes], deadline: Deadline) -> bytes:
    longest = Deadline.after(deadline.remaining(_LONGEST))
    try:
        return said(process, longest, "resolving the pip section")[1]
    except DeadlineExceeded:
        deadline.check("resolving the pip section")
        raise SolveError("uv found no answer within an hour", hint="pin more requirements") from None


def _environment(folder: Path, *, keyring: bool) -> dict[str, str]:
    """What uv sees of the environment: no secret under a name that it would put into a URL.

    uv fills ``${NAME}`` in wherever it reads a URL, also in the metadata of a package, which is its author's
    to write. It knows names of capitals alone: proxies are spelled small, and a keyring, which may need any
    variable, gets them from names with a dot.

    Args:
        folder: Where the program stands that uv takes for the keyring.
        keyring: Whether it has one.
    """
    environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
    environment["NETRC"] = str(folder / _NETRC)
    environment |= {name: text for name in _PROXIES if (text := _setting(name))}
    if keyring and sys.executable and (program := shutil.which("keyring")) is not None:
        stand_in = folder / "bin" / "keyring"
        stand_in.parent.mkdir()
        stand_in.write_text(_KEYRING.format(python=sys.executable, hidden=_HIDDEN, program=program))
        stand_in.chmod(0o700)
        environment |= {f"{_HIDDEN}{name}": text for name, text in os.environ.items()}
        environment["PATH"] = f"{stand_in.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return environment


def _setting(name: str) -> str:
    """A variable of the environment under its small or its capital name."""
    return os.environ.get(name) or os.environ.get(name.upper(), "")


def program() -> Path:
    """Where the ``uv`` of this machine is: one file, which runs by itself on any Linux with glibc.

    Raises:
        BuildError: It is not there.
    """
    import uv

    try:
        return Path(uv.find_uv_bin())
    except OSError as error:
        raise BuildError(f"uv cannot be found: {error}", hint="install envbuild again") from None


def _failure(said: str) -> SolveError | ChannelError:
    if _DENIED.search(said):
        return ChannelError(
            f"an index refused to answer:\n{said}",
            hint="check the login in the index's URL or in netrc, "
            "or have the keyring asked with PIP_KEYRING_PROVIDER=subprocess",
        )
    if "No solution found" in said:
        return SolveError(f"nothing satisfies the pip section:\n{said}", hint=_hint(said))
    if _TROUBLE.search(said):
        return ChannelError(
            f"an index could not be read:\n{said}",
            hint=said_hint(said) or "check the index's URL and the network, or try again later",
            retryable="invalid peer certificate" not in said,
        )
    return SolveError(f"the pip section could not be resolved:\n{said}", hint="correct what uv names")


def _hint(said: str) -> str:
    if "no usable wheels" in said or "no wheels with a matching" in said:
        return (
            "only wheels that fit the base are installed: choose a version with one, put a wheel that you "
            "built on an index or beside the definition, or install it in a Docker step"
        )
    if "was not found in the package registry" in said:
        return "check the name, and that the index which has it is named"
    return "loosen or correct the requirements that uv names"
