"""What is in an image, as SPDX 2.3 and CycloneDX 1.6, where the libraries for them are installed."""

from __future__ import annotations

import importlib
import json
import uuid
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from envbuild.lock import PipDistribution

if TYPE_CHECKING:
    from datetime import datetime

    from envbuild.digest import Digest
    from envbuild.lock import Lock, PackageRecord

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


def _serial(subject: Digest, form: str) -> uuid.UUID:
    return uuid.uuid5(_NAMESPACE, f"{form} {subject}")


def cyclonedx(
    subject: Digest, name: str, lock: Lock, wheels: tuple[PipDistribution, ...], moment: datetime
) -> bytes | None:
    """The packages of an image in CycloneDX 1.6 JSON; None without ``cyclonedx-python-lib``.

    Args:
        subject: The digest of the image's manifest.
        name: The image's name.
        lock: The packages.
        wheels: What pip installed.
        moment: The time that the document bears.
    """
    try:
        from cyclonedx.model import HashAlgorithm, HashType
        from cyclonedx.model.bom import Bom
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
        from packageurl import PackageURL
    except ImportError:
        return None
    bom = Bom(serial_number=_serial(subject, "cyclonedx"))
    bom.metadata.timestamp = moment
    bom.metadata.component = Component(
        name=name, version=str(subject), type=ComponentType.CONTAINER, bom_ref=str(subject)
    )
    contents: tuple[PackageRecord | PipDistribution, ...] = (*lock.packages, *wheels)
    for package in contents:
        bom.components.add(
            Component(
                name=package.name,
                version=package.version,
                bom_ref=purl(package),
                purl=PackageURL.from_string(purl(package)),
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=package.sha256.hex)],
            )
        )
    bom.register_dependency(bom.metadata.component, bom.components)
    written: bytes = JsonV1Dot6(bom).output_as_string().encode()
    return written


def spdx(
    subject: Digest, name: str, lock: Lock, wheels: tuple[PipDistribution, ...], moment: datetime
) -> bytes | None:
    """The packages of an image in SPDX 2.3 JSON; None without ``spdx-tools``; arguments as above."""
    try:
        model, converter = _spdx("model"), _spdx("jsonschema.document_converter")
    except ImportError:
        return None
    info = model.CreationInfo(
        "SPDX-2.3",
        "SPDXRef-DOCUMENT",
        name,
        f"urn:uuid:{_serial(subject, 'spdx')}",
        [model.Actor(model.ActorType.TOOL, "envbuild")],
        moment.replace(microsecond=0, tzinfo=None),
    )
    packages = [_spdx_image(model, subject, name)]
    contents: tuple[PackageRecord | PipDistribution, ...] = (*lock.packages, *wheels)
    packages += [_spdx_package(model, number, package) for number, package in enumerate(contents)]
    kinds, relate = model.RelationshipType, model.Relationship
    relationships = [relate("SPDXRef-DOCUMENT", kinds.DESCRIBES, "SPDXRef-Image")]
    relationships += [relate("SPDXRef-Image", kinds.CONTAINS, package.spdx_id) for package in packages[1:]]
    document = model.Document(info, packages=packages, relationships=relationships)
    return json.dumps(converter.DocumentConverter().convert(document), indent=1).encode()


def _spdx(name: str) -> Any:
    """A module of a library that does not say which of its names are for others."""
    return importlib.import_module(f"spdx_tools.spdx.{name}")


def _spdx_image(model: Any, subject: Digest, name: str) -> Any:
    return model.Package(
        "SPDXRef-Image",
        name,
        model.SpdxNoAssertion(),
        version=str(subject),
        files_analyzed=False,
        checksums=[model.Checksum(model.ChecksumAlgorithm.SHA256, subject.hex)],
        primary_package_purpose=model.PackagePurpose.CONTAINER,
    )


def _spdx_package(model: Any, number: int, package: PackageRecord | PipDistribution) -> Any:
    category = model.ExternalPackageRefCategory.PACKAGE_MANAGER
    return model.Package(
        f"SPDXRef-Package-{number}",
        package.name,
        # A local file has no address that others could use.
        package.url if package.url.startswith(("https:", "http:")) else model.SpdxNoAssertion(),
        version=package.version,
        file_name=package.file_name,
        files_analyzed=False,
        checksums=[model.Checksum(model.ChecksumAlgorithm.SHA256, package.sha256.hex)],
        external_references=[model.ExternalPackageRef(category, "purl", purl(package))],
    )
