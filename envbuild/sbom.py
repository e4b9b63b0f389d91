"""What is in an environment, as SPDX 2.3 and CycloneDX 1.6: the same packages always give the same bytes.

The documents are about the environment, not about one image: which images have it is said by what they are
attached to, and the packages of an image's base are not among it. So they name no image, and no time of
their own. ``docs/decisions/0012`` says why no library writes them; the tests read them with the libraries.
"""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from envbuild.lock import PipDistribution
from envbuild.oci.manifest import encode

if TYPE_CHECKING:
    from envbuild.lock import Lock, PackageRecord

    Content = tuple[PackageRecord | PipDistribution, ...]

NAME: Final = "environment"
_CREATED: Final = "1970-01-01T00:00:00Z"
"""SPDX wants a time; that of the images' configs, which are made of nothing but their content either."""
_NAMESPACE: Final = uuid.UUID("6f1c4c0e-6a53-5b0e-9a55-1f2f0a8f7c11")
_NOBODY_SAYS: Final = "NOASSERTION"


def purl(package: PackageRecord | PipDistribution) -> str:
    """A Conda package or a wheel as a package URL; source: the types ``conda`` and ``pypi``."""
    if isinstance(package, PipDistribution):
        name, version = quote(package.name, safe=""), quote(package.version, safe="")
        return f"pkg:pypi/{name}@{version}?file_name={quote(package.file_name, safe='')}"
    kind = "conda" if package.url.endswith(".conda") else "tar.bz2"
    qualifiers = {"build": package.build, "subdir": package.subdir, "type": kind}
    tail = "&".join(f"{name}={quote(value, safe='')}" for name, value in qualifiers.items())
    return f"pkg:conda/{quote(package.name, safe='')}@{quote(package.version, safe='')}?{tail}"


def cyclonedx(lock: Lock, wheels: tuple[PipDistribution, ...]) -> bytes:
    """The packages of an environment in CycloneDX 1.6 JSON.

    Args:
        lock: The Conda packages.
        wheels: What pip installs.
    """
    contents: Content = (*lock.packages, *wheels)
    identity = _identity(contents)
    refs = [str(number) for number in range(1, len(contents) + 1)]
    return encode(
        {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "serialNumber": _urn(identity, "cyclonedx"),
            "metadata": {
                "component": {"bom-ref": "0", "type": "application", "name": NAME, "version": identity}
            },
            "components": [
                {
                    "bom-ref": ref,
                    "type": "library",
                    "name": package.name,
                    "version": package.version,
                    "purl": purl(package),
                    "hashes": [{"alg": "SHA-256", "content": package.sha256.hex}],
                }
                for ref, package in zip(refs, contents, strict=True)
            ],
            "dependencies": [{"ref": "0", "dependsOn": refs}],
        }
    )


def spdx(lock: Lock, wheels: tuple[PipDistribution, ...]) -> bytes:
    """The packages of an environment in SPDX 2.3 JSON; arguments as above."""
    contents: Content = (*lock.packages, *wheels)
    identity = _identity(contents)
    environment = _spdx_package(0, NAME, identity) | {"primaryPackagePurpose": "APPLICATION"}
    packages = [_spdx_content(number, each) for number, each in enumerate(contents, 1)]
    contained = [("SPDXRef-0", "CONTAINS", package["SPDXID"]) for package in packages]
    return encode(
        {
            "spdxVersion": "SPDX-2.3",
            "dataLicense": "CC0-1.0",
            "SPDXID": "SPDXRef-DOCUMENT",
            "name": NAME,
            "documentNamespace": _urn(identity, "spdx"),
            "creationInfo": {"created": _CREATED, "creators": ["Tool: envbuild"]},
            "packages": [environment, *packages],
            "relationships": [
                {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}
                for one, kind, other in (("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-0"), *contained)
            ],
        }
    )


def _spdx_content(number: int, package: PackageRecord | PipDistribution) -> dict[str, Any]:
    # A local file has no address that others could use.
    url = package.url if package.url.startswith(("https:", "http:")) else _NOBODY_SAYS
    reference = {
        "referenceCategory": "PACKAGE-MANAGER",
        "referenceType": "purl",
        "referenceLocator": purl(package),
    }
    return _spdx_package(number, package.name, package.version, url) | {
        "checksums": [{"algorithm": "SHA256", "checksumValue": package.sha256.hex}],
        "externalRefs": [reference],
    }


def _spdx_package(number: int, name: str, version: str, url: str = _NOBODY_SAYS) -> dict[str, Any]:
    """What every package has; licences may be left out in SPDX 2.3, and files where none was analysed."""
    return {
        "SPDXID": f"SPDXRef-{number}",
        "name": name,
        "versionInfo": version,
        "downloadLocation": url,
        "filesAnalyzed": False,
    }


def _identity(contents: Content) -> str:
    """A digest over the packages, 64 hex digits."""
    lines = (f"{purl(package)} {package.url} {package.sha256.hex}\n" for package in contents)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _urn(identity: str, form: str) -> str:
    """A name for a document that no document of other content has."""
    return f"urn:uuid:{uuid.uuid5(_NAMESPACE, f'{form} {identity}')}"
