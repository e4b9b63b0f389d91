"""Which images are trusted: a rule for each repository, as the table ``[trust]`` has them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, cast

from envbuild.errors import IntegrityError, SpecError
from envbuild.spec.files import read_file
from envbuild.trust.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from envbuild.reference import Repository

OnFailure = Literal["miss", "fail"]


class Untrusted(IntegrityError):  # noqa: N818 - named for what it is, as all errors are
    """An image without a signature that its repository's policy accepts."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who may sign without a key of their own.

    Attributes:
        issuer: Who vouches for the identity: the issuer of its tokens, to the letter.
        identity: The address or URL that the issuer vouches for, to the letter.
    """

    issuer: str
    identity: str


@dataclass(frozen=True, slots=True)
class Rule:
    """What is asked of the images of a repository.

    Attributes:
        require_signed: Whether an image must be signed.
        keys: The public keys that are accepted, in PEM.
        on_failure: Whether an image that is not trusted is a miss, with a warning, or a failure.
        identities: The identities that are accepted.
        trusted_root: The file that says whose word on identities counts; None for Sigstore's public service.
    """

    require_signed: bool = False
    keys: tuple[bytes, ...] = ()
    on_failure: OnFailure = "miss"
    identities: tuple[Identity, ...] = ()
    trusted_root: str | None = None


@dataclass(frozen=True, slots=True)
class Trust:
    """The policy; most callers want :meth:`parse`.

    Attributes:
        default: For repositories that no rule is about.
        rules: By what they are about; text is read as :meth:`envbuild.trust.scope.Scope.parse` does.
        sign_key: Where the key is with which what is built here is signed: a file or ``env:NAME``; or None.
        sign_identity: Where the token is in whose name what is built here is signed: ``ambient`` for that of
            the CI job, or ``env:NAME``; or None.
    """

    default: Rule = field(default_factory=Rule)
    rules: tuple[tuple[str | Scope, Rule], ...] = ()
    sign_key: str | None = None
    sign_identity: str | None = None
    _scopes: tuple[tuple[Scope, Rule], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Read the names of the rules.

        Raises:
            SpecError: A name cannot be read, or two rules are about the same.
        """
        scopes = tuple((Scope.parse(of) if isinstance(of, str) else of, rule) for of, rule in self.rules)
        if len({scope.place for scope, _ in scopes}) < len(scopes):
            raise SpecError(f"two rules are about the same, {', '.join(str(scope) for scope, _ in scopes)}")
        object.__setattr__(self, "_scopes", scopes)

    @classmethod
    def parse(cls, value: Any, where: str, folder: Path | None, file: Path | None = None) -> Self:
        """Read the table ``[trust]``, or the TOML file that a text names.

        Args:
            value: The table, the file's name, or what was parsed before.
            where: The setting's name for messages.
            folder: What relative names of files are relative to.
            file: The TOML file that the table stands in, to name the line of a rule in messages.

        Raises:
            SpecError: A member is unknown or does not fit, or a key cannot be read.
        """
        folder = folder or Path.cwd()
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            path = folder / Path(value).expanduser()
            return cls.parse(_toml(path), "trust", path.parent, path)
        if not isinstance(value, dict):
            raise SpecError(f"{where} is {value!r:.80}, expected a table or the name of a TOML file")
        try:
            return cls._of_table(value, where, folder, file)
        except SpecError as error:
            error.source = error.source or (str(file) if file is not None else None)
            raise

    @classmethod
    def _of_table(cls, table: dict[str, Any], where: str, folder: Path, file: Path | None) -> Self:
        given = dict(table)
        tables, sign_key = given.pop("repositories", {}), given.pop("sign_key", None)
        sign_identity = _token_source(given.pop("sign_identity", None), f"{where}.sign_identity")
        default = _rule(given, Rule(), where, folder)
        if not isinstance(tables, dict):
            raise SpecError(f"{where}.repositories is {tables!r:.80}, expected a table")
        if sign_key is not None:
            sign_key = _sign_key(sign_key, f"{where}.sign_key", folder)
        scopes = _scopes(tables, f"{where}.repositories", folder, file)
        found = cls(default, (), sign_key, sign_identity)
        for name, scope in sorted(scopes.items(), key=lambda each: len(each[1].place.parts)):
            with _at(name, f"{where}.repositories", file):
                outer = found.rule(scope.repository) if scope.parts else default
                rule = _rule(tables[name], outer, repr(name), folder)
            found = replace(found, rules=(*found.rules, (scope, rule)))
        _require_effect(given, tables.values(), where)
        return found

    @property
    def signs(self) -> bool:
        """Whether what is built is signed."""
        return self.sign_key is not None or self.sign_identity is not None

    @property
    def scopes(self) -> tuple[str, ...]:
        """What the rules are about, in words."""
        return tuple(str(scope) for scope, _ in self._scopes)

    def rule(self, repository: Repository) -> Rule:
        """The rule of a repository: the one that names most of the parts of its name.

        It holds for the layers that the repository's images share, too.
        """
        return self.chosen(repository)[1]

    def chosen(self, repository: Repository) -> tuple[str | None, Rule]:
        """The rule of a repository, and what it is about; None for the rule of all others."""
        found = [
            (parts, rule.require_signed, str(scope), rule)
            for scope, rule in self._scopes
            if (parts := scope.matched(repository)) is not None
        ]
        if not found:
            return None, self.default
        _, _, name, rule = max(found, key=lambda each: each[:2])
        return name, rule


def _scopes(tables: dict[str, Any], where: str, folder: Path, file: Path | None) -> dict[str, Scope]:
    """What each rule is about, by its name."""
    scopes: dict[str, Scope] = {}
    for name, table in tables.items():
        with _at(name, where, file):
            if isinstance(table, dict) and any(isinstance(each, dict) for each in table.values()):
                raise SpecError(
                    f"{name!r} has tables in it, expected the members of a rule",
                    hint="a name with dots or slashes stands in quotes",
                )
            scope = Scope.parse(name, folder)
            if other := next((each for each, known in scopes.items() if known.place == scope.place), None):
                raise SpecError(f"{name!r} is about the same repositories as {other!r}: {scope}")
            scopes[name] = scope
    return scopes


@contextlib.contextmanager
def _at(name: str, where: str, file: Path | None) -> Iterator[None]:
    """Say of an error which rule it is in, and on which line that begins."""
    try:
        yield
    except SpecError as error:
        error.message = f"{where}: {error.message}"
        if file is not None and error.source is None:
            error.source, error.line = str(file), _line_of(name, file)
        raise


MAX_POLICY: Final = 4 << 20
"""The largest policy, and trusted root, that is read: a checkout may name one."""
_MAX_KEY: Final = 1 << 16


def _line_of(name: str, file: Path) -> int | None:
    """The first line of a TOML file on which a table or a member of that name begins, if there is one."""
    spelled = (f'"{name}"', f"'{name}'", f".{name}]")
    try:
        lines = read_file(file, MAX_POLICY).decode().splitlines()
    except (OSError, ValueError):
        return None
    for number, line in enumerate(lines, 1):
        start = line.partition("#")[0].strip()
        if any(each in start for each in spelled) and (start.startswith("[") or "=" in start):
            return number
    return None


def _require_effect(every: dict[str, Any], tables: Iterable[dict[str, Any]], where: str) -> None:
    """Refuse a policy that says who may sign and forgets to ask for signatures."""
    if "require_signed" in every or any(table.get("require_signed") for table in tables):
        return
    if names := [name for table in (every, *tables) for name in ("keys", "identities") if name in table]:
        raise SpecError(
            f"{where} has {names[0]} and says nowhere that images must be signed",
            hint="set require_signed = true, here or for some repositories",
        )


def _toml(path: Path) -> Any:
    import tomllib

    try:
        content = read_file(path, MAX_POLICY)
        if len(content) > MAX_POLICY:
            raise SpecError(f"it is larger than {MAX_POLICY} bytes", source=str(path))
        return tomllib.loads(content.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"cannot be read as TOML: {error}", source=str(path)) from None


def _rule(table: Any, default: Rule, where: str, folder: Path) -> Rule:
    if not isinstance(table, dict):
        raise SpecError(f"{where} is {table!r:.80}, expected a table")
    if unknown := sorted(set(table) - set(_READERS)):
        raise SpecError(f"{where}: {unknown[0]!r} is not known", hint=f"known: {', '.join(sorted(_READERS))}")
    given = {name: _READERS[name](value, f"{where}.{name}", folder) for name, value in table.items()}
    rule = replace(default, **given)
    if rule.require_signed and not rule.keys and not rule.identities:
        raise SpecError(
            f"{where} requires signatures and names no keys and no identities",
            hint="name public keys under `keys`, or who may sign under `identities`",
        )
    return rule


def _flag(value: Any, where: str, _folder: Path) -> bool:
    if not isinstance(value, bool):
        raise SpecError(f"{where} is {value!r:.80}, expected true or false")
    return value


def _on_failure(value: Any, where: str, _folder: Path) -> OnFailure:
    if value not in ("miss", "fail"):
        raise SpecError(f"{where} is {value!r:.80}, expected miss or fail")
    return cast("OnFailure", value)


def _identities(tables: Any, where: str, _folder: Path) -> tuple[Identity, ...]:
    if not isinstance(tables, list):
        raise SpecError(f"{where} is {tables!r:.80}, expected a list of tables")
    found = []
    for table in tables:
        texts = [table.get(name) for name in ("issuer", "identity")] if isinstance(table, dict) else []
        if set(table) != {"issuer", "identity"} or not all(isinstance(text, str) and text for text in texts):
            raise SpecError(
                f"{where} has {table!r:.120}, expected an issuer and an identity",
                hint="without its issuer an identity says nothing: anybody may make an issuer",
            )
        found.append(Identity(table["issuer"], table["identity"]))
    return tuple(found)


def _file(name: Any, where: str, folder: Path) -> str:
    if not isinstance(name, str) or not (path := folder / Path(name).expanduser()).is_file():
        raise SpecError(f"{where} is {name!r:.80}, expected the name of a file that is there")
    return str(path)


def _token_source(value: Any, where: str) -> str | None:
    if value is None or (isinstance(value, str) and (value == "ambient" or value.startswith("env:"))):
        return value
    # The value is not shown: somebody may have put the token itself here.
    raise SpecError(f"{where} names no token", hint="write ambient, or name a variable as env:NAME")


def _keys(names: Any, where: str, folder: Path) -> tuple[bytes, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SpecError(f"{where} is {names!r:.80}, expected a list of files")
    return tuple(read_key(folder / Path(name).expanduser()) for name in names)


def read_key(path: Path) -> bytes:
    """A public key's file.

    Raises:
        SpecError: It cannot be read, or is a private key.
    """
    try:
        content = read_file(path, _MAX_KEY)[:_MAX_KEY]
    except OSError as error:
        raise SpecError(f"the key cannot be read: {error.strerror}", source=str(path)) from None
    if b"-----BEGIN PUBLIC KEY-----" not in content:
        raise SpecError("this is not a public key in PEM", source=str(path), hint="name the public half")
    return content


def _sign_key(value: Any, where: str, folder: Path) -> str:
    if not isinstance(value, str) or not value:
        # The value is not shown: somebody may have put the key itself here.
        raise SpecError(f"{where} is not text", hint="name a file, or a variable as env:NAME")
    if value.startswith("-----BEGIN"):
        raise SpecError(f"{where} holds a key", hint="name a file, or a variable as env:NAME")
    return value if value.startswith("env:") else str(folder / Path(value).expanduser())


_READERS: Final[Mapping[str, Callable[[Any, str, Path], Any]]] = {
    "require_signed": _flag,
    "keys": _keys,
    "on_failure": _on_failure,
    "identities": _identities,
    "trusted_root": _file,
}
"""What reads a member of a rule, from its value, its name for messages and the folder of relative names."""
