"""What is in an environment, as SPDX 2.3 and CycloneDX 1.6: the same packages always give the same bytes.

The documents are about the environment, not about one image: which images have it is said by what they are
attached to, and the packages of an image's base are not among it. So they name no image, and no time of
their own. The libraries that write them, of the extra ``sbom``, take as long to import as a small build takes
in all: they are asked for with ``sbom = true``.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import uuid
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from envbuild.errors import SpecError
from envbuild.lock import PipDistribution
from envbuild.oci.manifest import encode

if TYPE_CHECKING:
    from envbuild.lock import Lock, PackageRecord

    Content = tuple[PackageRecord | PipDistribution, ...]

_LIBRARIES: Final = ("cyclonedx", "packageurl", "spdx_tools")
NAME: Final = "environment"
_CREATED: Final = datetime.fromtimestamp(0, UTC)
"""Both want a time; that of the images' configs, which are made of nothing but their content either."""
_NAMESPACE: Final = uuid.UUID("6f1c4c0e-6a53-5b0e-9a55-1f2f0a8f7c11")


def purl(package: PackageRecord | PipDistribution) -> str:
    """A Conda package or a wheel as a package URL; source: the types ``conda`` and ``pypi``."""
    if isinstance(package, PipDistribution):
        name, version = quote(package.name, safe=""), quote(package.version, safe="")
        return f"pkg:pypi/{name}@{version}?file_name={quote(package.file_name, safe='')}"
    kind = "conda" if package.url.endswith(".conda") else "tar.bz2"
    qualifiers = {"build": package.build, "subdir": package.subdir, "type": kind}
    tail = "&".join(f"{name}={quote(value, safe='')}" for name, value in qualifiers.items())
    return f"pkg:conda/{quote(package.name, safe='')}@{quote(package.version, safe='')}?{tail}"


def check() -> None:
    """Refuse to begin what could not be finished.

    Raises:
        SpecError: A library that writes SBOMs is not installed.
    """
    for name in _LIBRARIES:
        if find_spec(name) is None:
            hint = "pip install 'envbuild[sbom]', or leave sbom = true out"
            raise SpecError(f"sbom = true needs {name}, which is not installed", hint=hint)


def cyclonedx(lock: Lock, wheels: tuple[PipDistribution, ...]) -> bytes:
    """The packages of an environment in CycloneDX 1.6 JSON.

    Args:
        lock: The Conda packages.
        wheels: What pip installs.
    """
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    contents: Content = (*lock.packages, *wheels)
    identity = _identity(contents)
    bom = Bom(serial_number=_serial(identity, "cyclonedx"))
    bom.metadata.timestamp = _CREATED
    bom.metadata.component = Component(
        name=NAME, version=identity, type=ComponentType.APPLICATION, bom_ref="0"
    )
    for number, package in enumerate(contents, 1):
        bom.components.add(
            Component(
                name=package.name,
                version=package.version,
                bom_ref=str(number),
                purl=PackageURL.from_string(purl(package)),
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=package.sha256.hex)],
            )
        )
    bom.register_dependency(bom.metadata.component, bom.components)
    return encode(json.loads(JsonV1Dot6(bom).output_as_string()))


def spdx(lock: Lock, wheels: tuple[PipDistribution, ...]) -> bytes:
    """The packages of an environment in SPDX 2.3 JSON; arguments as above."""
    model, converter = _spdx("model"), _spdx("jsonschema.document_converter")
    contents: Content = (*lock.packages, *wheels)
    identity = _identity(contents)
    info = model.CreationInfo(
        "SPDX-2.3",
        "SPDXRef-DOCUMENT",
        NAME,
        _serial(identity, "spdx").urn,
        [model.Actor(model.ActorType.TOOL, "envbuild")],
        _CREATED.replace(tzinfo=None),
    )
    environment = model.Package(
        "SPDXRef-0",
        NAME,
        model.SpdxNoAssertion(),
        version=identity,
        files_analyzed=False,
        primary_package_purpose=model.PackagePurpose.APPLICATION,
    )
    packages = [_spdx_package(model, number, each) for number, each in enumerate(contents, 1)]
    kinds, relate = model.RelationshipType, model.Relationship
    relationships = [relate("SPDXRef-DOCUMENT", kinds.DESCRIBES, "SPDXRef-0")]
    relationships += [relate("SPDXRef-0", kinds.CONTAINS, package.spdx_id) for package in packages]
    document = model.Document(info, packages=[environment, *packages], relationships=relationships)
    return encode(converter.DocumentConverter().convert(document))


def _spdx_package(model: Any, number: int, package: PackageRecord | PipDistribution) -> Any:
    category = model.ExternalPackageRefCategory.PACKAGE_MANAGER
    return model.Package(
        f"SPDXRef-{number}",
        package.name,
        # A local file has no address that others could use.
        package.url if package.url.startswith(("https:", "http:")) else model.SpdxNoAssertion(),
        version=package.version,
        files_analyzed=False,
        checksums=[model.Checksum(model.ChecksumAlgorithm.SHA256, package.sha256.hex)],
        external_references=[model.ExternalPackageRef(category, "purl", purl(package))],
    )


def _spdx(name: str) -> Any:
    """A module of a library that does not say which of its names are for others."""
    return importlib.import_module(f"spdx_tools.spdx.{name}")


def _identity(contents: Content) -> str:
    """A digest over the packages, 64 hex digits."""
    lines = (f"{purl(package)} {package.url} {package.sha256.hex}\n" for package in contents)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _serial(identity: str, form: str) -> uuid.UUID:
    """A name for a document that no document of other content has."""
    return uuid.uuid5(_NAMESPACE, f"{form} {identity}")
