"""What debuggers, tracebacks with locals and careless log lines show of a value: no login, whatever it holds.

Every dataclass and named tuple of the package is looked at. A field that by its name may hold a URL with a
login, a login, or what somebody answered or wrote, is filled with a canary and must not be in the ``repr``;
which fields are public all the same is said here, with the reason.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from typing import TYPE_CHECKING, Final

import envbuild
from envbuild.config import Config
from envbuild.url import Url

if TYPE_CHECKING:
    from collections.abc import Iterator

CANARY: Final = "https://user:S3cretCanary@host.example.com/t/T0kenCanary/x"
SUSPECT: Final = re.compile(
    r"url|place|login|index|link|direct|private|secret|token|header|auth|password|alias|environ|location|realm"
    r"|proxy|source|requirement|constraint|option|value|content|body|raw|docker_host|endpoint|argument|text|said|data|error|partial|tail|output|line"
)

NAME: Final = "a name, a path or an address of the registry, as people may see it"
CLEAN: Final = "logins were taken out before: it is what keys, locks and messages hold"
STORED: Final = "it is in an image or beside it, where whoever may read the registry sees it"
STEP: Final = "steps and scripts are shown as they run, and are in the image's history"
PUBLIC: Final = {
    "conda.meta.PathRecord.place": NAME,
    **dict.fromkeys(("conda.paths.PathEntry.placeholder", "lint.rule.Finding.source"), NAME),
    "build.rebase.Failed.source": NAME,
    **dict.fromkeys(("prewarm.Outcome.source", "spec.node.Mark.source", "lockfile.place.Node.source"), NAME),
    **dict.fromkeys(("spec.environment.EnvironmentSpec.source",), NAME),
    **dict.fromkeys(("spec.environment.EnvironmentSpec.secrets", "spec.steps.Steps.secret_ids"), NAME),
    **dict.fromkeys(("spec.channel.Channel.alias_name", "config.Config.login_variables"), NAME),
    **dict.fromkeys(("conda.unsolvable.Unsolvable.placed", "conda.unsolvable.Unsolvable.said"), CLEAN),
    **dict.fromkeys(("lock.PackageRecord.url", "lock.PipDistribution.url"), CLEAN),
    **dict.fromkeys(("lock.PipDistribution.direct_url", "spec.local.Origin.url"), CLEAN),
    **dict.fromkeys(("spec.requirement.PipRequirement.url", "pip.uv.Compilation.options"), CLEAN),
    **dict.fromkeys(("spec.pip.PipSection.indexes", "spec.pip.PipSection.find_links"), CLEAN),
    "progress.Event.text": CLEAN,
    **dict.fromkeys(("build.base.BaseImage.raw_config", "conda.package.Package.index"), STORED),
    **dict.fromkeys(("oci.manifest.ImageIndex.raw", "oci.manifest.Manifest.raw"), STORED),
    **dict.fromkeys(("oci.referrers.Artifact.content", "conda.relocate.Relocated.content"), STORED),
    **dict.fromkeys(("lock.PackageRecord.metadata", "pip.installed.Installed.metadata"), STORED),
    **dict.fromkeys(("build.post_link._Log.tail", "checks.Check.detail"), CLEAN),
    **dict.fromkeys(("conda.activate._Shell.values", "conda.shell.Text.text"), STEP),
    **dict.fromkeys(("spec.instruction.Heredoc.content", "spec.instruction.Instruction.arguments"), STEP),
}
"""The fields that may be shown, and why."""


_TEXT: Final = re.compile(r"\b(?:str|(?<!IO\[)bytes|Any)\b")


def classes() -> Iterator[tuple[str, type, tuple[str, ...], tuple[str, ...]]]:
    """Each dataclass and named tuple, with the names of its fields, and of those that may hold text."""
    for found in pkgutil.walk_packages(envbuild.__path__, "envbuild."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        for kind in vars(module).values():
            if not isinstance(kind, type) or kind.__module__ != found.name:
                continue
            if dataclasses.is_dataclass(kind):
                types = {each.name: each.type for each in dataclasses.fields(kind)}
            elif issubclass(kind, tuple) and hasattr(kind, "_fields"):
                types = kind.__annotations__
            else:
                continue
            texts = tuple(each for each, written in types.items() if _TEXT.search(str(written)))
            yield f"{found.name.removeprefix('envbuild.')}.{kind.__name__}", kind, tuple(types), texts


class Nothing(str):
    """Stands for whatever else a value holds."""

    def __getattr__(self, name: str) -> Nothing:
        return Nothing()


def shown(kind: type, names: tuple[str, ...], filled: str) -> str:
    """The ``repr`` of a value with one field that holds a login."""
    values = {name: CANARY if name == filled else Nothing() for name in names}
    if issubclass(kind, tuple):
        return repr(tuple.__new__(kind, [values[name] for name in names]))
    made = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return repr(made)


ALL: Final = {
    f"{title}.{name}": (kind, names, name)
    for title, kind, names, texts in classes()
    for name in texts
    if SUSPECT.search(name)
}


def test_no_value_shows_a_login_that_it_may_hold() -> None:
    assert len(ALL) > 60
    showing = {case for case, value in ALL.items() if re.search("S3cretCanary|T0kenCanary", shown(*value))}
    assert sorted(showing - PUBLIC.keys()) == []
    assert sorted(PUBLIC.keys() - showing) == [], "these are no longer shown"


def test_the_harness_sees_what_is_shown() -> None:
    @dataclasses.dataclass
    class Open:
        url: str
        header: str = dataclasses.field(repr=False)

    assert "S3cretCanary" in shown(Open, ("url", "header"), "url")
    assert "S3cretCanary" not in shown(Open, ("url", "header"), "header")


def test_a_url_shows_its_server_alone() -> None:
    """A token may stand in the path, and a signature in the query."""
    url = Url.parse(f"{CANARY}?signature=S3cretCanary#S3cretCanary")
    assert repr(url) == "Url(scheme='https', host='host.example.com', port=None)"


def test_settings_show_no_login() -> None:
    config = Config(
        channel_alias="https://user:S3cretCanary@c.example.com", docker_host="tcp://u:S3cretCanary@h:1"
    )
    assert "S3cretCanary" not in f"{config!r} {dataclasses.replace(config, jobs=2)}"
