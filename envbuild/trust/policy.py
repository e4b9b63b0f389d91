"""Which images are trusted: a rule for each repository, as the table ``[trust]`` has them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, cast

from envbuild.errors import IntegrityError, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
        rules: By repository, or a path of components at its start.
        sign_key: Where the key is with which what is built here is signed: a file or ``env:NAME``; or None.
        sign_identity: Where the token is in whose name what is built here is signed: ``ambient`` for that of
            the CI job, or ``env:NAME``; or None.
    """

    default: Rule = field(default_factory=Rule)
    rules: tuple[tuple[str, Rule], ...] = ()
    sign_key: str | None = None
    sign_identity: str | None = None

    @classmethod
    def parse(cls, value: Any, where: str, folder: Path | None) -> Self:
        """Read the table ``[trust]``, or the TOML file that a text names.

        Args:
            value: The table, the file's name, or what was parsed before.
            where: The setting's name for messages.
            folder: What relative names of files are relative to.

        Raises:
            SpecError: A member is unknown or does not fit, or a key cannot be read.
        """
        folder = folder or Path.cwd()
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            path = folder / Path(value).expanduser()
            return cls.parse(_toml(path), str(path), path.parent)
        if not isinstance(value, dict):
            raise SpecError(f"{where} is {value!r:.80}, expected a table or the name of a TOML file")
        given = dict(value)
        rules, sign_key = given.pop("repositories", {}), given.pop("sign_key", None)
        sign_identity = _token_source(given.pop("sign_identity", None), f"{where}.sign_identity")
        default = _rule(given, Rule(), where, folder)
        if not isinstance(rules, dict):
            raise SpecError(f"{where}.repositories is {rules!r:.80}, expected a table")
        if sign_key is not None:
            sign_key = _sign_key(sign_key, f"{where}.sign_key", folder)
        named = [
            (name, _rule(rule, default, f"{where}.repositories.{name}", folder))
            for name, rule in rules.items()
        ]
        longest_first = tuple(sorted(named, key=lambda each: -len(each[0])))
        return cls(default, longest_first, sign_key, sign_identity)

    @property
    def signs(self) -> bool:
        """Whether what is built is signed."""
        return self.sign_key is not None or self.sign_identity is not None

    def rule(self, repository: Repository) -> Rule:
        """The rule of a repository: the longest that names it or what it is in."""
        text = str(repository)
        for name, rule in self.rules:
            if text == name or text.startswith(f"{name.rstrip('/')}/"):
                return rule
        return self.default


def _toml(path: Path) -> Any:
    import tomllib

    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
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
        content = path.read_bytes()
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
