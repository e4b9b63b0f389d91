"""The file ``envbuild.lock``: what a definition was solved to, in one byte form.

``docs/lock.md`` specifies the format. A lock that is not byte for byte what :meth:`LockFile.to_bytes`
writes is refused: a file that was merged or edited by hand describes an environment that nobody solved.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from envbuild.digest import Digest
from envbuild.errors import IntegrityError, SpecError
from envbuild.key import SCRATCH
from envbuild.lock import FORMS, METADATA, Lock, PackageRecord, PipDistribution, encode_metadata
from envbuild.lockfile.files import write_whole
from envbuild.lockfile.form import read_form
from envbuild.lockfile.place import AGAIN, LINE, Node, line_and_column
from envbuild.lockkey import lock_key
from envbuild.platform import Platform
from envbuild.spec.channel import redact
from envbuild.spec.files import read_file
from envbuild.url import FETCHED, Url, UrlError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from envbuild.key import CanonicalForm, Key
    from envbuild.lockkey import LockKey

VERSION: Final = 1
MAX_BYTES: Final = 64 << 20
START: Final = b'{\n "envbuild_lock": '
"""How every lock begins, whatever its version."""

_PINNED: Final = re.compile(r".*@sha256:[0-9a-f]{64}", re.DOTALL)
_END: Final = b"\n}\n"
_SEAL_DOMAIN: Final = b"envbuild/lockfile/v1\x00"
_HEX: Final = re.compile("[0-9a-f]{64}")
_BUILT_FROM: Final = re.compile("folder|[0-9a-f]{64}")
_MD5: Final = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class LockEntry:
    """What a definition was solved to for one platform.

    Attributes:
        base: The base as the definition names it; a layout's folder relative to the lock.
        form: The definition's canonical form, with the digest of the base.
        lock: The packages.
        pip: The Python distributions, sorted by name.
        manifest: The digest of the manifest of the base's platform, where the definition names the base by a
            digest, which may be that of an index; else None: the form has it.
    """

    base: str
    form: CanonicalForm
    lock: Lock
    pip: tuple[PipDistribution, ...] = ()
    manifest: Digest | None = None

    @classmethod
    def of(
        cls,
        base: str,
        manifest: Digest | None,
        form: CanonicalForm,
        lock: Lock,
        wheels: Iterable[PipDistribution] = (),
    ) -> Self:
        """What a definition was solved to on a base; of what manifest is kept where the form may not say it.

        Args:
            base: The base as the definition names it.
            manifest: The digest of the manifest of the base's platform; None for ``scratch``.
            form: The definition's canonical form.
            lock: The packages.
            wheels: The Python distributions.
        """
        return cls(base, form, lock, tuple(sorted(wheels)), manifest if _PINNED.fullmatch(base) else None)

    def lock_key(self, manifest: Digest | None) -> LockKey:
        """The lock key of the solution.

        Args:
            manifest: The digest of the manifest of the base's platform; None for ``scratch``.
        """
        return lock_key(self.form, manifest, self.lock, self.pip)

    @property
    def is_open(self) -> bool:
        """Whether the base must be asked for its platform's manifest, as where an older version locked it."""
        return self.manifest is None and self.is_pinned

    @property
    def is_pinned(self) -> bool:
        """Whether the definition names its base by a digest."""
        return _PINNED.fullmatch(self.base) is not None

    @property
    def key(self) -> Key:
        """The definition's key."""
        return self.form.key

    @property
    def digest(self) -> Digest | None:
        """The digest of the base; None for ``scratch``."""
        return None if self.form.fields["base"] == SCRATCH else Digest.parse(self.form.fields["base"])


@dataclass(frozen=True)
class LockFile:
    """A lock.

    Attributes:
        definition: The file name of the definition; empty where it had none.
        entries: One a platform, sorted by platform; at least one.
    """

    definition: str
    entries: tuple[LockEntry, ...]

    @classmethod
    def of(cls, definition: str, entries: Iterable[LockEntry]) -> Self:
        """A lock with its entries in order."""
        return cls(definition, tuple(sorted(entries, key=lambda entry: str(entry.lock.platform))))

    def entry(self, platform: Platform) -> LockEntry | None:
        """The entry of a platform, or None."""
        return next((entry for entry in self.entries if entry.lock.platform == platform), None)

    def to_bytes(self) -> bytes:
        """The one byte form: JSON, one value a line, a line feed at the end."""
        document: dict[str, Any] = {
            "envbuild_lock": VERSION,
            "definition": self.definition,
            "platforms": {str(entry.lock.platform): _entry_json(entry) for entry in self.entries},
        }
        content = _encode(document)
        seal = hashlib.sha256(_SEAL_DOMAIN + content).hexdigest()
        return content.removesuffix(_END) + f',\n "seal": "{seal}"'.encode() + _END

    @classmethod
    def parse(cls, content: bytes, source: str) -> Self:
        """Read a lock.

        Args:
            content: The file's bytes.
            source: Its name for messages.

        Raises:
            SpecError: It is not a lock, of another version, damaged, or not as :meth:`to_bytes` writes it;
                with line and column.
        """
        text = _decoded(content, source)
        root = Node(_loaded(text, source), (), text, source)
        root.mapping({"envbuild_lock", "definition", "platforms", "seal"})
        if (version := root.get("envbuild_lock")).value != VERSION:
            version.fail(f"the lock's version is {version.value!r}, expected {VERSION}", AGAIN)
        platforms = root.get("platforms").mapping()
        found = cls.of(root.get("definition").text(None), [_entry(each) for each in platforms])
        if not found.entries:
            root.get("platforms").fail("there is no platform, expected at least one", AGAIN)
        _check_bytes(found.to_bytes().decode(), text, root)
        return found

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a lock from a file; errors as :meth:`parse`."""
        return cls.parse(read_bytes(path), str(path))

    def write(self, path: Path) -> None:
        """Write the lock whole or not at all.

        Raises:
            StorageError: The file cannot be written.
        """
        write_whole(path, self.to_bytes())


def read_bytes(path: Path) -> bytes:
    """The bytes of a lock, and no more than one above the limit.

    Raises:
        SpecError: They cannot be read.
    """
    try:
        if not path.is_fifo():
            return read_file(path, MAX_BYTES)
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(f"the lock cannot be read: {error.strerror}", source=str(path)) from None


def _encode(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()


def _entry_json(entry: LockEntry) -> dict[str, Any]:
    return {
        "key": str(entry.key),
        "base": entry.base,
        **({"manifest": str(entry.manifest)} if entry.manifest is not None else {}),
        "form": _sorted(entry.form.fields),
        "packages": [package_json(package) for package in entry.lock.packages],
        "pip": [distribution_json(one) for one in entry.pip],
    }


def _sorted(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True))


def package_json(package: PackageRecord) -> dict[str, Any]:
    """A package as a lock has it: in the order in which people look; what is not known is left out."""
    members = {
        "name": package.name,
        "version": package.version,
        "build": package.build,
        "build_number": package.build_number,
        "subdir": package.subdir,
        "noarch": package.noarch,
        "url": package.url,
        "sha256": package.sha256.hex,
        "md5": package.md5,
        "size": package.size,
        "python_site_packages_path": package.python_site_packages_path,
        "depends": list(package.depends) or None,
        "metadata": json.loads(package.metadata) if package.metadata else None,
    }
    return {name: value for name, value in members.items() if value is not None}


def distribution_json(one: PipDistribution) -> dict[str, Any]:
    """A wheel as a lock has it; what is not known is left out."""
    members = {
        "name": one.name,
        "version": one.version,
        "file_name": one.file_name,
        "url": one.url,
        "sha256": one.sha256.hex,
        "size": one.size,
        "direct_url": one.direct_url,
        "built_from": one.built_from,
        "requested": True if one.requested else None,
    }
    return {name: value for name, value in members.items() if value is not None}


def _decoded(content: bytes, source: str) -> str:
    if len(content) > MAX_BYTES:
        raise SpecError(f"the lock is larger than {MAX_BYTES} bytes", source=source, line=1, column=1)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        before = content[: error.start].decode()
        line, column = line_and_column(before, len(before))
        raise SpecError(
            f"byte 0x{content[error.start]:02x} is not UTF-8",
            source=source,
            line=line,
            column=column,
            hint=AGAIN,
        ) from None


def _loaded(text: str, source: str) -> Any:
    try:
        document = json.loads(text)
        json.dumps(document, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise SpecError(
            f"the lock is not JSON: {error.msg}",
            source=source,
            line=error.lineno,
            column=error.colno,
            hint=AGAIN,
        ) from None
    except (ValueError, RecursionError) as error:
        message = f"the lock is not JSON that envbuild writes: {type(error).__name__}"
        raise SpecError(message, source=source, line=1, column=1, hint=AGAIN) from None
    return document


def _entry(node: Node) -> LockEntry:
    node.mapping({"key", "base", "manifest", "form", "packages", "pip"})
    platform = (
        Platform.parse(str(node.path[-1]))
        if _is_platform(node.path[-1])
        else node.fail(f"{node.path[-1]!r} is not a platform")
    )
    form = _form(node.get("form"), platform)
    if str(form.key) != node.get("key").text(_HEX):
        node.get("key").fail(f"the key is not that of the form beside it, which has {form.key}")
    packages = [read_package(each) for each in node.get("packages").items()]
    lock = Lock.of(platform, packages)
    if len(lock.by_name) != len(packages):
        node.get("packages").fail("a package stands twice")
    pip = tuple(sorted(read_distribution(each) for each in node.get("pip").items()))
    if len({wheel.name for wheel in pip}) != len(pip):
        node.get("pip").fail("a wheel stands twice")
    manifest = node.optional("manifest", lambda each: _digest(each, each.text().removeprefix("sha256:")))
    return LockEntry(node.get("base").text(), form, lock, pip, manifest)


def _is_platform(name: str | int) -> bool:
    try:
        return str(Platform.parse(str(name))) == name
    except SpecError:
        return False


def _form(node: Node, platform: Platform) -> CanonicalForm:
    node.mapping()
    if (said := node.get("platform")).value != str(platform):
        said.fail(f"the form is for {said.value!r:.60}, expected {platform}")
    return read_form(node)


def _digest(node: Node, digits: str) -> Digest:
    if not _HEX.fullmatch(digits):
        node.fail(f"{node.name} is {digits[:80]!r}, expected 64 lower-case hexadecimal digits")
    return Digest(digits)


_PACKAGE: Final = {
    "name", "version", "build", "build_number", "subdir", "noarch", "url", "sha256", "md5", "size",
    "python_site_packages_path", "depends", "metadata",
}  # fmt: skip


def read_package(node: Node) -> PackageRecord:
    """A package of a lock, each member of its type; SpecError for anything else."""
    if (quick := _quick_package(node)) is not None:
        return quick
    node.check(_PACKAGE)
    noarch = node.optional("noarch", Node.text)
    if noarch not in {None, "python", "generic"}:
        node.get("noarch").fail(f"noarch is {noarch!r}, expected 'python' or 'generic'")
    depends = node.find("depends")
    return PackageRecord(
        name=node.get("name").text(FORMS["name"]),
        version=node.get("version").text(FORMS["version"]),
        build=node.get("build").text(FORMS["build"]),
        build_number=node.get("build_number").number(),
        subdir=node.get("subdir").text(FORMS["subdir"]),
        url=_url(node.get("url")),
        sha256=_digest(node.get("sha256"), node.get("sha256").text(None)),
        size=node.optional("size", Node.number),
        md5=node.optional("md5", lambda md5: md5.text(_MD5)),
        noarch=noarch,
        depends=depends.texts() if depends is not None else (),
        python_site_packages_path=node.optional(
            "python_site_packages_path", lambda path: path.text(FORMS["python_site_packages_path"])
        ),
        metadata=node.optional("metadata", _metadata) or "",
    )


def _quick_package(node: Node) -> PackageRecord | None:
    """The same where nothing is wrong, as with nearly all: no member's place is kept. None in any doubt."""
    known = node.value
    if type(known) is not dict or any(type(value) is not _KINDS.get(name) for name, value in known.items()):
        return None
    try:
        good = (
            _MD5.fullmatch(known.get("md5", _NO_MD5))
            and known.get("noarch", "python") in {"python", "generic"}
            and min(known["build_number"], known.get("size", 0)) >= 0
            and all(type(each) is str and LINE.fullmatch(each) for each in known.get("depends", ()))
        )
        if not good:
            return None
        _url(node.get("url"))
        said = node.optional("metadata", _metadata) or ""
        more = {
            "sha256": Digest(known["sha256"]),
            "depends": tuple(known.get("depends", ())),
            "metadata": said,
        }
        return PackageRecord(**{**known, **more})
    except (KeyError, TypeError, SpecError, IntegrityError):
        return None


_NO_MD5: Final = "0" * 32
_KINDS: Final = {
    **dict.fromkeys(("name", "version", "build", "subdir", "noarch", "url", "sha256", "md5"), str),
    **dict.fromkeys(("build_number", "size"), int),
    "python_site_packages_path": str,
    "depends": list,
    "metadata": dict,
}
"""The types of a package's members."""


def _metadata(node: Node) -> str:
    """What the channel says of a package: texts, lists of texts, a time in milliseconds."""
    for each in node.mapping(set(METADATA)):
        name = str(each.path[-1])
        if name == "timestamp":
            each.number()
        elif name in {"constrains", "purls"}:
            each.texts()
        elif name == "extra_depends":
            for extra in each.mapping():
                extra.texts()
        else:
            each.text(None)
    return encode_metadata(node.value)


def read_distribution(node: Node) -> PipDistribution:
    """A wheel of a lock, each member of its type; SpecError for anything else."""
    node.check(
        {"name", "version", "file_name", "url", "sha256", "size", "direct_url", "built_from", "requested"}
    )
    return PipDistribution(
        name=node.get("name").text(),
        version=node.get("version").text(),
        url=_url_or_path(node.get("url")),
        sha256=_digest(node.get("sha256"), node.get("sha256").text(None)),
        size=node.optional("size", Node.number),
        file_name=node.get("file_name").text(),
        direct_url=node.optional("direct_url", _url),
        built_from=node.optional("built_from", lambda kind: kind.text(_BUILT_FROM)),
        requested=node.find("requested") is not None,
    )


def _url(node: Node) -> str:
    """A URL that every reader reads alike, without a login: nobody else looks at it before it is fetched."""
    text = node.text()
    try:
        url = Url.parse(text, FETCHED)
    except UrlError as error:
        node.fail(f"{node.name} is {redact(text)[:200]!r}, which is not a URL: {error}")
    if url.userinfo is not None:
        node.fail(f"{node.name} is {redact(text)[:200]!r}, and locks hold no logins")
    return text


def _url_or_path(node: Node) -> str:
    """The same, or the path of a file of the definition's own."""
    return _url(node) if "://" in node.text() else node.text()


def _check_bytes(expected: str, text: str, root: Node) -> None:
    """Refuse a file that is not what we would write; a wrong seal is told as such."""
    if expected == text:
        return
    seal = root.get("seal")
    if text.replace(str(seal.value), json.loads(expected)["seal"], 1) == expected:
        seal.fail("the lock does not match its seal: it was edited, merged or damaged")
    pairs = enumerate(zip(expected, text, strict=False))
    offset = next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(expected), len(text)))
    line, column = line_and_column(text, offset)
    raise SpecError(
        "the lock is not in its one byte form from here on: it was edited, merged or damaged",
        source=root.source,
        line=line,
        column=column,
        hint=AGAIN,
    )
