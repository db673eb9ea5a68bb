"""The bill of materials of an image, as CycloneDX 1.6 in JSON."""

from collections.abc import Iterable

from cyclonedx.factory.license import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from image.packages import Package


def bill(image: str, packages: Iterable[Package]) -> str:
    """List the packages as libraries of the container `NAME:TAG`."""
    name, _, tag = image.rpartition(":")
    bom = Bom()
    bom.metadata.component = Component(
        type=ComponentType.CONTAINER, name=name, version=tag, bom_ref=f"{name}:{tag}"
    )
    libraries = [_library(package) for package in packages]
    for library in libraries:
        bom.components.add(library)
    bom.register_dependency(bom.metadata.component, libraries)
    return JsonV1Dot6(bom).output_as_string(indent=2)


def _library(package: Package) -> Component:
    url = PackageURL("pypi", name=package.name, version=package.version)
    return Component(
        type=ComponentType.LIBRARY,
        name=package.name,
        version=package.version,
        purl=url,
        bom_ref=url.to_string(),
        licenses=[LicenseFactory().make_from_string(package.license)] if package.license else [],
        properties=[Property(name="vllmjobs:prefix", value=prefix) for prefix in package.prefixes],
    )
