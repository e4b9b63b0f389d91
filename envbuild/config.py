"""Settings: the machine's, the user's, the project's, ``ENVBUILD_*``, flags, in rising precedence.

A project is somebody else's: its ``envbuild.toml`` came with a checkout. What decides whom to believe, whom
to tell a secret and which content stands for a key is the user's own or the machine's to set
(:data:`_PROJECT`).
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from envbuild.errors import SpecError
from envbuild.reference import Repository
from envbuild.spec.files import read_file
from envbuild.spec.virtual import NAMES, VirtualPackages, spelled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from envbuild.spec.environment import EnvironmentSpec
    from envbuild.trust import Trust

Builder = Literal["auto", "layers", "docker"]
OnUnavailable = Literal["fail", "build"]
CompressionName = Literal["gzip", "zstd"]
StepNetwork = Literal["default", "none"]

FILE_NAME = "envbuild.toml"
OWN_FILE = "ENVBUILD_CONFIG"
"""The variable that names the user's own file of settings."""
MACHINE_FILE = Path("/etc/envbuild/config.toml")
DEFAULT_CHANNEL_ALIAS = "https://conda.anaconda.org"
_NO_SETTINGS = (
    *("ENVBUILD_USERNAME", "ENVBUILD_PASSWORD", "ENVBUILD_HOST"),
    *("ENVBUILD_SECRET_", "ENVBUILD_SIGN_KEY", OWN_FILE),
)
"""What variables begin with that are read and are no settings."""
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(ms|[smhd])", re.ASCII)
_DURATION = re.compile(f"(?:{_DURATION_PART.pattern}){{1,8}}", re.ASCII)
_STRUCTURES = {
    "trust": ("Trust",),
    "channels": ("dict", "mappingproxy"),
    "login_variables": ("dict", "mappingproxy"),
    "insecure": ("frozenset", "set"),
    "registries": ("dict", "mappingproxy"),
}
"""The settings whose values are made of several, by the names of the types that they may have."""
MAX_FILE = 4 << 20
"""The largest file of settings that is read: one comes with a checkout."""
MAX_LAYERS = 125
"""What Docker's overlay driver can stack (its own limit is 125 layers and the container's)."""


def _default_cache() -> Path:
    import platformdirs

    with _home("the cache"):
        return platformdirs.user_cache_path("envbuild")


def _default_workspace() -> Repository:
    import platformdirs

    with _home("images"):
        return Repository("", str(platformdirs.user_data_path("envbuild") / "images"))


@contextlib.contextmanager
def _home(what: str) -> Iterator[None]:
    """Say what to do where it is not known where home is."""
    try:
        yield
    except RuntimeError:
        raise SpecError(
            f"no home folder for {what}: HOME is not set, and passwd does not know user {os.getuid()}",
            hint="set HOME, or name folders with --cache-dir and --workspace "
            "(ENVBUILD_CACHE_DIR, ENVBUILD_WORKSPACE)",
        ) from None


def _at_home(path: Path) -> Path:
    with _home(str(path)):
        return path.expanduser()


@dataclass(frozen=True)
class Config:
    """Everything that a call may be told apart from the definition itself.

    Attributes:
        workspace: Where images are looked up first and pushed; by default a layout in the user's data folder.
        global_: A second repository that is looked up and never written by itself, or None.
        base: The base image of definitions that name none, or None.
        builder: How images are built.
        on_unavailable: What an unknown answer of a registry means: fail, or build all the same.
        promote: Whether a hit in the global repository is copied to the workspace.
        index_ttl: Seconds for which a local index entry is trusted without asking the registry.
        base_ttl: Seconds for which a base tag's digest is remembered.
        deep: Whether a hit counts only where all blobs of the image are there.
        attach: Whether lock, definition and provenance are attached to what is built.
        sbom: Whether SBOMs are attached too; needs the extra ``sbom``.
        confine: Whether definitions are kept from naming paths outside of their folders.
        trust: Which images are trusted, and the key to sign with; None to trust all.
        channel_alias: The URL under which channel names stand.
        channels: For the URL of a channel, or of several, the URLs that are read before it: the same content.
        login_variables: For the names of environment variables that may stand for credentials in URLs of
            channels and indexes the servers that they may be sent to, as ``https://host``.
        insecure: Registry hosts that are spoken to over plain HTTP (loopback hosts always are).
        registries: For a registry's host, the mirrors that are read before it, each as ``HOST`` or
            ``HOST/PREFIX``.
        compression: How new layers are compressed.
        pyc: Whether the modules of ``noarch: python`` packages are compiled into their layers.
        max_layers: The largest number of layers of an image, the base's included.
        glibc: The glibc version to choose packages for, in place of the definition's and the base's, or None.
        cuda: The CUDA version of the machines (``__cuda``), in place of the definition's, or None.
        cuda_arch: The compute capability of their devices (``__cuda_arch``), likewise.
        archspec: The microarchitecture of their processors (``__archspec``), likewise.
        jobs: How many things are done at once.
        timeout: Seconds after which a call gives up, or None.
        docker_host: The engine's address, or None for the usual places.
        buildx: The name of a builder of buildx that runs Docker steps in place of an engine, or None.
        step_timeout: Seconds that the Docker steps of one build may take together, or None.
        step_memory: Bytes of memory that each Docker step may use, or None; may be text, as ``2g``.
        step_cpus: Processors that each Docker step may use (0.5 is half of one), or None.
        step_disk: Bytes that the layers of one build's steps may have together, or None; may be text.
        step_network: ``none`` keeps Docker steps from the network.
        cache_dir: The folder of the index, the locks and the repodata; disposable.
    """

    workspace: Repository = field(default_factory=_default_workspace)
    global_: Repository | None = None
    base: str | None = None
    builder: Builder = "auto"
    on_unavailable: OnUnavailable = "fail"
    promote: bool = False
    index_ttl: float = 600.0
    base_ttl: float = 3600.0
    deep: bool = False
    attach: bool = True
    sbom: bool = False
    confine: bool = False
    trust: Trust | None = None
    channel_alias: str = field(default=DEFAULT_CHANNEL_ALIAS, repr=False)
    channels: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    login_variables: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    insecure: frozenset[str] = frozenset()
    registries: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    compression: CompressionName = "gzip"
    pyc: bool = False
    max_layers: int = 100
    glibc: str | None = None
    cuda: str | None = None
    cuda_arch: str | None = None
    archspec: str | None = None
    jobs: int = field(default_factory=lambda: min(8, 2 * (os.cpu_count() or 1)))
    timeout: float | None = None
    docker_host: str | None = field(default=None, repr=False)
    buildx: str | None = None
    step_timeout: float | None = None
    step_memory: int | None = None
    step_cpus: float | None = None
    step_disk: int | None = None
    step_network: StepNetwork = "default"
    cache_dir: Path = field(default_factory=_default_cache)

    def __post_init__(self) -> None:
        """Take text for what it stands for, as a file of settings does, and refuse what does not fit.

        Raises:
            SpecError: A value is not one of its setting.
        """
        for name, declared in type(self).__dataclass_fields__.items():
            value = getattr(self, name)
            if value is declared.default or (name == "cache_dir" and isinstance(value, Path)):
                continue
            where = f"Config({name}=…)"
            if (kinds := _STRUCTURES.get(name)) is None:
                object.__setattr__(self, name, _PARSERS[name](value, where, None))
            elif type(value).__name__ not in kinds:
                raise SpecError(f"{where} is {value!r}, expected a {kinds[0]}")

    @classmethod
    def load(
        cls,
        folder: Path | None = None,
        environ: Mapping[str, str] | None = None,
        **flags: Any,
    ) -> Self:
        """The settings that hold in a folder.

        Args:
            folder: Where to look for the project's ``envbuild.toml`` or ``pyproject.toml``, upwards to the
                root; the current folder if None.
            environ: The environment; :data:`os.environ` if None. A variable that is empty is as one that is
                not set.
            flags: Settings by name that win over all others; None means not given.

        Raises:
            SpecError: A setting is unknown, has a value that does not fit, or is not a project's to set.
        """
        environ = os.environ if environ is None else environ
        for remark in unknown_variables(environ):
            warnings.warn(remark, stacklevel=2)
        own, read = _own_settings(environ)
        changes = _with_project(own, folder or Path.cwd(), read)
        for setting, parse in _PARSERS.items():
            variable = _variable(setting)
            if text := environ.get(variable, "").strip():
                changes[setting] = parse(text, variable, None)
        for name, value in flags.items():
            if value is not None:
                changes[name] = _PARSERS[_setting(name, "flags")](value, f"--{name.strip('_')}", None)
        return cls(**changes)

    @property
    def reading(self) -> dict[str, Any]:
        """How definitions are read: arguments of :func:`envbuild.load`."""
        from envbuild.deadline import Deadline

        return {"confine": self.confine, "deadline": Deadline.after(self.timeout)}

    def over(self, spec: EnvironmentSpec) -> EnvironmentSpec:
        """A definition with those settings laid over it that decide what its image holds.

        The base is given to a definition that has none; all others win over what the definition says. What
        has no effect on a definition, as CUDA's version on one without packages, leaves it as it is.

        Raises:
            SpecError: A setting does not fit the definition.
        """
        if not spec.has_base and self.base is not None:
            spec = spec.with_base(self.base)
        if spec.has_packages:
            given = {name: getattr(self, name) for name in NAMES}
            spec = spec.with_virtual_packages(VirtualPackages.of(given)).under(self.channel_alias)
        return replace(
            spec,
            pyc=spec.pyc or (self.pyc and spec.has_conda),
            offline=spec.offline or (self.step_network == "none" and spec.runs_programs),
        )


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """What to say of variables that look like settings and are none."""
    said, prefix = [], "ENVBUILD_"
    for name in sorted(name for name in environ if name.startswith(prefix)):
        known = [setting.rstrip("_").upper() for setting in _PARSERS]
        if name.removeprefix(prefix) in known or name.startswith(_NO_SETTINGS):
            continue
        import difflib

        near = difflib.get_close_matches(name.removeprefix(prefix), known, 1)
        said.append(f"{name} is no setting" + (f": did you mean {prefix}{near[0]}?" if near else ""))
    return said


def _variable(setting: str) -> str:
    return f"ENVBUILD_{setting.rstrip('_').upper()}"


def _own_settings(environ: Mapping[str, str]) -> tuple[dict[str, Any], frozenset[Path]]:
    """The settings of the machine's file and the user's, and which files these are."""
    changes: dict[str, Any] = {}
    files = [MACHINE_FILE] if MACHINE_FILE.is_file() else []
    if named := environ.get(OWN_FILE, "").strip():
        files.append(_at_home(Path(named)).absolute())
    elif (user := _users_file(environ)) is not None and user.is_file():
        files.append(user)
    for path in files:
        table = _read_toml(path)
        if path.name == "pyproject.toml":
            table = table.get("tool", {}).get("envbuild") or {}
        changes |= {setting: value for setting, _, value in _parsed(table, path)}
    return changes, frozenset(path.resolve() for path in files)


def _users_file(environ: Mapping[str, str]) -> Path | None:
    """The user's file of settings; None where it is not known where home is."""
    folder, home = environ.get("XDG_CONFIG_HOME", ""), environ.get("HOME")
    if folder.startswith("/"):
        return Path(folder, "envbuild/config.toml")
    return Path(home, ".config/envbuild/config.toml") if home else None


def _with_project(own: dict[str, Any], folder: Path, read: frozenset[Path]) -> dict[str, Any]:
    """The settings with those of the project's file, as far as these are a project's to set.

    Args:
        own: The user's settings.
        folder: The folder that is in the project.
        read: The files that were read as the user's own.
    """
    path, table = _find_table(folder)
    changes = dict(own)
    if path is None or (read and path.resolve() in read):
        return changes
    for setting, name, value in _parsed(table, path):
        choose = _PROJECT[setting]
        if choose is None or (setting == "trust" and value.signs):
            what = "sign_key and sign_identity are" if setting == "trust" else f"{name} is"
            raise SpecError(
                f"{what} not a project's to set: whoever wrote the project would decide whom you believe or "
                "what you tell",
                source=str(path),
                hint=f"set it in your own file, ~/.config/envbuild/config.toml, or as {_variable(setting)}; "
                f"or make this file your own with {OWN_FILE}={path}",
            )
        changes[setting] = choose(own[setting], value) if setting in own else value
        if changes[setting] != value:
            warnings.warn(f"{path}: {name} does not hold: your own setting is stricter", stacklevel=3)
    return changes


def _parsed(table: dict[str, Any], path: Path) -> Iterator[tuple[str, str, Any]]:
    """For each setting of a file its name here, its name there, and its value."""
    for name, value in table.items():
        setting = _setting(name, f"{path}")
        yield setting, name, _value(setting, name, value, path)


def _value(setting: str, name: str, value: Any, path: Path) -> Any:
    """The value of a setting in a file."""
    try:
        if setting == "trust":
            return _trust(value, name, path.parent, path)
        return _PARSERS[setting](value, f"{path}: {name}", path.parent)
    except (ValueError, OverflowError) as error:  # TOML has numbers that Python neither converts nor shows
        raise SpecError(f"{path}: {name} cannot be read: {error}") from None


def _setting(name: str, where: str) -> str:
    setting = "global_" if name == "global" else name.replace("-", "_")
    if setting not in _PARSERS:
        import difflib

        known = [known.rstrip("_") for known in _PARSERS]
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(known)}"
        raise SpecError(f"{where}: setting {name!r} is not known", hint=hint)
    return setting


def _find_table(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    for parent in (folder.absolute(), *folder.absolute().parents):
        own = parent / FILE_NAME
        if own.is_file():
            return own, _read_toml(own)
        project = parent / "pyproject.toml"
        if project.is_file():
            table = _read_project(project)
            if table is not None:
                return project, table
    return None, {}


def _read_project(path: Path) -> dict[str, Any] | None:
    """The table of a ``pyproject.toml``; most have none, which shows without reading TOML."""
    try:
        content = read_file(path, MAX_FILE)
    except OSError:
        content = b"envbuild"  # what is wrong is told below
    if b"envbuild" not in content and b"\\" not in content:  # with a backslash the name may be escaped
        return None
    table: dict[str, Any] | None = _read_toml(path).get("tool", {}).get("envbuild")
    return table


def _read_toml(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        content = read_file(path, MAX_FILE)
        if len(content) > MAX_FILE:
            raise SpecError(f"it is larger than {MAX_FILE} bytes", source=str(path))
        return tomllib.loads(content.decode())
    except (ValueError, OSError, RecursionError) as error:  # a number may be too long for Python
        raise SpecError(f"cannot be read as TOML: {error}", source=str(path)) from None


def _text(value: Any, where: str, _folder: Path | None) -> str:
    if not isinstance(value, str) or not value:
        raise SpecError(f"{where} is {value!r}, expected text")
    return value


def _repository(value: Any, where: str, folder: Path | None) -> Repository:
    if isinstance(value, Repository):
        return value
    text = _text(value, where, None)
    if folder is not None and text.startswith("oci:"):
        text = f"oci:{folder / _at_home(Path(text.removeprefix('oci:')))}"
    try:
        return Repository.parse(text)
    except SpecError as error:
        raise SpecError(f"{where}: {error}", hint=error.hint) from None


def _alias(value: Any, where: str, _folder: Path | None) -> str:
    from envbuild.spec.channel import Channel, redact

    alias = _text(value, where, None).strip().rstrip("/")
    if "://" not in alias:
        raise SpecError(
            f"{where} is {redact(alias)!r}, expected a URL", hint="write it as https://HOST/FOLDER"
        )
    try:
        Channel.parse(f"{alias}/channel")
    except SpecError as error:
        raise SpecError(f"{where}: {error.message}", hint=error.hint) from None
    return alias


def _virtual_package(name: str) -> Callable[[Any, str, Path | None], str]:
    def parse(value: Any, where: str, _folder: Path | None) -> str:
        try:
            return spelled(name, _text(value, where, None).strip())
        except SpecError as error:
            raise SpecError(f"{where}: {error.message}", hint=error.hint) from None

    return parse


def _choice(kind: Any) -> Callable[[Any, str, Path | None], Any]:
    def parse(value: Any, where: str, _folder: Path | None) -> Any:
        if value not in get_args(kind):
            raise SpecError(f"{where} is {value!r}, expected one of {', '.join(get_args(kind))}")
        return value

    return parse


def _flag(value: Any, where: str, _folder: Path | None) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise SpecError(f"{where} is {value!r}, expected true or false")


def _promotion(value: Any, where: str, folder: Path | None) -> bool:
    """``on-hit`` or ``never``; or whether hits are promoted."""
    return value == "on-hit" if value in {"on-hit", "never"} else _flag(value, where, folder)


def _seconds(value: Any, where: str, _folder: Path | None) -> float:
    if isinstance(value, str) and _DURATION.fullmatch(value.strip()):
        value = sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(value))
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < float("inf") or isinstance(value, bool):
        raise SpecError(f"{where} is {value!r}, expected seconds, 0 or more, or as 90s, 10m, 1h30m")
    return seconds


def _number(least: int, most: int) -> Callable[[Any, str, Path | None], int]:
    def parse(value: Any, where: str, _folder: Path | None) -> int:
        text = str(value)
        if (
            isinstance(value, bool)
            or not text.isascii()
            or not text.isdigit()
            or not least <= int(text) <= most
        ):
            raise SpecError(f"{where} is {value!r}, expected a whole number from {least} to {most}")
        return int(text)

    return parse


def _bytes(value: Any, where: str, _folder: Path | None) -> int:
    found = re.fullmatch(r"([0-9]{1,12})([kmg]?)b?", str(value).strip().lower())
    if found is None or isinstance(value, bool):
        raise SpecError(f"{where} is {value!r}, expected bytes, as 536870912, 512m or 2g")
    return int(found[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[found[2]]


def _processors(value: Any, where: str, _folder: Path | None) -> float:
    try:
        count = float(value)
    except (TypeError, ValueError):
        count = 0.0
    if not 0.01 <= count <= 1024 or isinstance(value, bool):
        raise SpecError(f"{where} is {value!r}, expected a number of processors, as 0.5 or 4")
    return count


def _hosts(value: Any, where: str, _folder: Path | None) -> frozenset[str]:
    hosts = value.split(",") if isinstance(value, str) else value
    if not isinstance(hosts, list | tuple | set | frozenset) or not all(
        isinstance(host, str) for host in hosts
    ):
        raise SpecError(f"{where} is {value!r}, expected a list of hosts")
    return frozenset(host.strip().lower() for host in hosts if host.strip())


def _table_of_mirrors(value: Any, where: str, what: str, example: str) -> dict[str, list[str]]:
    """``{place: {mirrors: [place, …]}}``, or as text ``place=place,place;place=place``."""
    if isinstance(value, str):
        pairs = (part.partition("=")[::2] for part in value.split(";") if part.strip())
        value = {place: {"mirrors": instead.split(",")} for place, instead in pairs}
    if not isinstance(value, dict):
        raise SpecError(f"{where} is {value!r}, expected a table of {what}")
    found: dict[str, list[str]] = {}
    for place, table in value.items():
        instead = table.get("mirrors") if isinstance(table, dict) and table.keys() == {"mirrors"} else None
        if not isinstance(instead, list) or not all(isinstance(each, str) for each in instead):
            raise SpecError(f'{where}: {place} has {table!r}, expected mirrors = ["{example}", …]')
        found[place.strip()] = [each.strip() for each in instead]
    return found


def _channels(value: Any, where: str, folder: Path | None) -> dict[str, tuple[str, ...]]:
    """The mirrors of channels, all as URLs without credentials."""
    found = _table_of_mirrors(value, where, "channels", "https://HOST/CHANNEL")
    return {
        _channel(place, where, folder): tuple(_channel(each, where, folder) for each in instead)
        for place, instead in found.items()
    }


def _channel(text: str, where: str, folder: Path | None) -> str:
    from envbuild.spec.channel import Channel, redact

    try:
        channel = Channel.parse(text, folder)
    except SpecError as error:
        raise SpecError(f"{where}: {error}", hint=error.hint) from None
    url = channel.urls()[0]
    if channel.is_defaults or ("://" not in text and not url.startswith("file:")):
        raise SpecError(
            f"{where}: {text!r} is a name, expected a URL",
            hint="names stand under channel_alias: write the URL that is meant",
        )
    if redact(text) != text:
        raise SpecError(
            f"{where}: {redact(text)!r} holds credentials",
            hint="take them out and log in to the host with RATTLER_AUTH_FILE, the keyring or netrc",
        )
    return url.rstrip("/")


def _login_variables(value: Any, where: str, _folder: Path | None) -> dict[str, tuple[str, ...]]:
    """The servers of variables: ``{NAME: "HOST"}`` or ``{NAME: [HOST, …]}``, as text ``NAME=HOST,HOST;…``."""
    if isinstance(value, str):
        pairs = (part.partition("=")[::2] for part in value.split(";") if part.strip())
        value = {name: places.split(",") for name, places in pairs}
    if not isinstance(value, dict):
        raise SpecError(f"{where} is {value!r}, expected a table of variables and their hosts")
    found = {}
    for name, places in value.items():
        places = [places] if isinstance(places, str) else places  # noqa: PLW2901
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name.strip()):
            raise SpecError(f"{where}: {name!r} is no name of a variable", hint="write NAME = 'HOST'")
        if not isinstance(places, list | tuple) or not all(isinstance(each, str) for each in places):
            raise SpecError(f'{where}: {name} has {places!r}, expected "HOST" or ["HOST", …]')
        found[name.strip()] = tuple(_server(each.strip(), f"{where}: {name}") for each in places)
    return found


def _server(text: str, where: str) -> str:
    """A server as ``https://host:port``."""
    from envbuild.spec.channel import redact, split_credentials

    url = text if "://" in text else f"https://{text}"
    try:
        public, private = split_credentials(url.rstrip("/"))
    except SpecError as error:
        raise SpecError(f"{where}: {error}", hint=error.hint) from None
    scheme, _, host = public.partition("://")
    if scheme not in {"http", "https"} or "/" in host or public != private or not text:
        raise SpecError(
            f"{where} has {redact(text)!r}, expected a server", hint="write HOST, HOST:PORT or http://HOST"
        )
    return public


def _mirrors(value: Any, where: str, _folder: Path | None) -> dict[str, tuple[str, ...]]:
    """The mirrors of registries."""
    found: dict[str, tuple[str, ...]] = {}
    for host, places in _table_of_mirrors(value, where, "hosts", "HOST").items():
        found[host.lower()] = tuple(places)
        for place in places:
            _repository(f"{place}/x", where, None)
    return found


def _folder(value: Any, where: str, folder: Path | None) -> Path:
    path = value if isinstance(value, Path) else Path(_text(value, where, None))
    return ((folder or Path.cwd()) / _at_home(path)).absolute()


def _trust(value: Any, where: str, folder: Path | None, file: Path | None = None) -> Trust:
    from envbuild.trust import Trust

    return Trust.parse(value, where, folder, file)


_PARSERS: dict[str, Callable[[Any, str, Path | None], Any]] = {
    "workspace": _repository,
    "global_": _repository,
    "base": _text,
    "builder": _choice(Builder),
    "on_unavailable": _choice(OnUnavailable),
    "promote": _promotion,
    "index_ttl": _seconds,
    "base_ttl": _seconds,
    "deep": _flag,
    "attach": _flag,
    "sbom": _flag,
    "confine": _flag,
    "trust": _trust,
    "channel_alias": _alias,
    "channels": _channels,
    "login_variables": _login_variables,
    "insecure": _hosts,
    "registries": _mirrors,
    "compression": _choice(CompressionName),
    "pyc": _flag,
    "max_layers": _number(1, MAX_LAYERS),
    "glibc": _virtual_package("glibc"),
    "cuda": _virtual_package("cuda"),
    "cuda_arch": _virtual_package("cuda_arch"),
    "archspec": _virtual_package("archspec"),
    "jobs": _number(1, 256),
    "timeout": _seconds,
    "docker_host": _text,
    "buildx": _text,
    "step_timeout": _seconds,
    "step_memory": _bytes,
    "step_cpus": _processors,
    "step_disk": _bytes,
    "step_network": _choice(StepNetwork),
    "cache_dir": _folder,
}


def _theirs(_own: Any, project: Any) -> Any:
    """The project's value, whatever the user's is."""
    return project


def _least(own: Any, project: Any) -> Any:
    """The smaller limit."""
    return min(own, project)


def _either(own: Any, project: Any) -> Any:
    """What one of the two asks for."""
    return own or project


_PROJECT: dict[str, Callable[[Any, Any], Any] | None] = {
    "workspace": _theirs,
    "global_": None,  # what is found there stands for keys, and may come into the workspace of others
    "base": _theirs,
    "builder": _theirs,
    "on_unavailable": _theirs,
    "promote": None,
    "index_ttl": _least,
    "base_ttl": _least,
    "deep": _either,
    "attach": _either,
    "sbom": _either,
    "confine": _either,
    "trust": lambda own, _project: own,
    "channel_alias": _theirs,  # it is in the key
    "channels": None,  # what a mirror lists is believed, and is not in the key
    "login_variables": None,
    "insecure": None,
    "registries": None,  # a mirror learns what is read, and gets the login of its host
    "compression": _theirs,
    "pyc": _theirs,
    "max_layers": _theirs,
    "glibc": _theirs,
    "cuda": _theirs,
    "cuda_arch": _theirs,
    "archspec": _theirs,
    "jobs": _least,
    "timeout": _least,
    "docker_host": None,  # an engine gets the steps' secrets and files, and what it answers is believed
    "buildx": None,
    "step_timeout": _least,
    "step_memory": _least,
    "step_cpus": _least,
    "step_disk": _least,
    "step_network": lambda own, project: own if own == "none" else project,
    "cache_dir": None,  # what is in a cache is believed
}
"""What holds of a setting that the user has and the project's file has, too: the stricter one where there is
one. With None a project's file may not set it at all."""
