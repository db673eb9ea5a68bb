"""The worth of pip-audit's answer, and what it says of an image's packages.

Where its database cannot be reached, or a mirror answers in its place, pip-audit can end with "no known
vulnerabilities". So a package that has some is asked for in the same run: unless it is found, nothing was
scanned.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, TypedDict

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from image.packages import Package

CANARY = ("django", "3.2.0")  # CVE-2021-35042 and some dozens more


class Vulnerability(TypedDict):
    """A known one, in a package of the image."""

    package: str
    version: str
    id: str
    aliases: list[str]
    fixed_in: list[str]
    ignored: bool


class Unscanned(TypedDict):
    """A package of which nothing is known."""

    package: str
    version: str
    why: str


class Report(TypedDict):
    """The report of one image. Where it was not scanned, `vulnerabilities` is null, not empty."""

    image: str
    scanned: bool
    why: str | None
    packages: int
    vulnerabilities: list[Vulnerability] | None
    not_scanned: list[Unscanned]


class Verdict(NamedTuple):
    """The verdict on an image: true where it may be used, and the words for it."""

    passes: bool
    label: str
    words: str


def requirements(packages: Sequence[Package]) -> list[str]:
    """Return the files that pip-audit is to read, the canary's first; one file may not name a package twice.

    A local version (`2.9.0+cu130`) is asked for by its public one: PyPI knows no other.
    """
    files: list[dict[str, str]] = [{CANARY[0]: CANARY[1]}]
    for package in packages:
        if not (version := _public(package.version)):
            continue
        file = next((one for one in files[1:] if one.get(package.name, version) == version), None)
        if file is None:
            files.append(file := {})
        file[package.name] = version
    return ["".join(f"{name}=={version}\n" for name, version in file.items()) for file in files]


def report(
    image: str, packages: Sequence[Package], answer: str, error: str, ignored: Collection[str] = ()
) -> Report:
    """Judge pip-audit's answer (`--format json`), or the error that it ended with instead."""
    answers, why = _read(answer, error)
    canary = answers.get(CANARY)
    if why is None and not (canary and canary.get("vulns")):
        why = f"{'=='.join(CANARY)}, which has known vulnerabilities, was not found to have any"
    if why is not None:
        unscanned = [Unscanned(package=one.name, version=one.version, why=why) for one in packages]
        return Report(
            image=image,
            scanned=False,
            why=why,
            packages=len(packages),
            vulnerabilities=None,
            not_scanned=unscanned,
        )
    vulnerabilities: list[Vulnerability] = []
    not_scanned: list[Unscanned] = []
    for package in packages:
        result = answers.get((package.name, _public(package.version) or ""))
        if result is None or "vulns" not in result:
            reason = result["skip_reason"] if result else "pip-audit has no answer for it"
            not_scanned.append(Unscanned(package=package.name, version=package.version, why=reason))
            continue
        for one in result["vulns"]:
            vulnerabilities.append(
                Vulnerability(
                    package=package.name,
                    version=package.version,
                    id=one["id"],
                    aliases=one["aliases"],
                    fixed_in=one["fix_versions"],
                    ignored=not {one["id"], *one["aliases"]}.isdisjoint(ignored),
                )
            )
    return Report(
        image=image,
        scanned=True,
        why=None,
        packages=len(packages),
        vulnerabilities=vulnerabilities,
        not_scanned=not_scanned,
    )


def verdict(result: Report, allow_unscanned: bool = False) -> Verdict:
    """Say what a report comes to. What was not scanned never counts as clean."""
    if result["vulnerabilities"] is None:
        return Verdict(allow_unscanned, "not scanned", f"not scanned: {result['why']}")
    count = f"{result['packages']} packages"
    if unknown := [one["package"] for one in result["not_scanned"]]:
        count += f", of which not scanned: {', '.join(unknown)}"
    open_ones = [one for one in result["vulnerabilities"] if not one["ignored"]]
    if open_ones:
        named = ", ".join(f"{one['package']} {one['version']} ({one['id']})" for one in open_ones)
        return Verdict(False, "vulnerable", f"vulnerable: {named}; in {count}")
    if accepted := sorted({one["id"] for one in result["vulnerabilities"]}):
        words = f"none but {', '.join(accepted)}"
        return Verdict(True, words, f"{words}; in {count}")
    return Verdict(True, "none known", f"none known; in {count}")


def _read(answer: str, error: str) -> tuple[dict[tuple[str, str], dict[str, Any]], str | None]:
    """Return the dependencies of an answer by name and version; else why there are none."""
    try:
        listed = json.loads(answer)["dependencies"]
    except (ValueError, LookupError, TypeError):
        last = (error.strip().splitlines() or ["no answer"])[-1]
        return {}, f"pip-audit failed: {last}"
    answers: dict[tuple[str, str], dict[str, Any]] = {}
    for one in listed:
        # What it skips has its version only in the reason: `… could not be audited: torch (2.9.0)`.
        version = one.get("version") or one["skip_reason"].rpartition("(")[2].rstrip(")")
        answers[canonicalize_name(one["name"]), version] = one
    return answers, None


def _public(version: str) -> str | None:
    try:
        return Version(version).public
    except InvalidVersion:
        return None
