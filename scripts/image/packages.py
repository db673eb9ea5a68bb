"""The Python packages of an image, as `installed.py` lists them, one line for each of its Pythons."""

import json
from collections.abc import Iterable
from typing import NamedTuple

from packaging.utils import canonicalize_name

LONGEST_LICENSE = 100  # characters; some packages put all of the text there


class Package(NamedTuple):
    """One package, in all the places where that version of it is."""

    name: str
    """The name as PyPI writes it in addresses: `flask-cors`."""
    version: str
    license: str | None
    prefixes: tuple[str, ...]


def read(lines: Iterable[str]) -> list[Package]:
    """Return each package and version once, by name."""
    packages: dict[tuple[str, str], Package] = {}
    for line in filter(str.strip, lines):
        listed = json.loads(line)
        for one in listed["packages"]:
            name, version = canonicalize_name(one["name"]), one["version"]
            before = packages.get((name, version))
            prefixes = {*(before.prefixes if before else ()), listed["prefix"]}
            packages[name, version] = Package(name, version, _license(one), tuple(sorted(prefixes)))
    return [packages[key] for key in sorted(packages)]


def _license(listed: dict[str, object]) -> str | None:
    text = str(listed["license"] or "").strip()
    if text and text != "UNKNOWN" and "\n" not in text and len(text) <= LONGEST_LICENSE:
        return text
    classifiers = listed["classifiers"]
    assert isinstance(classifiers, list)
    return str(classifiers[0]).rpartition(" :: ")[2] if classifiers else None
