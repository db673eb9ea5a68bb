"""`python -m image`, of scripts/build: an image's bill of materials, and what a scanner's answer is worth.

The scanner is one with a database of ours, in the place of pip-audit, which asks PyPI.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from vllmjobs.text.json import Json
from vllmjobs.vllm.releases import NEWEST

SCRIPTS = Path(__file__).parents[2] / "scripts"
CANARY = "django==3.2.0"
KNOWN: Json = {"id": "PYSEC-2021-439", "aliases": ["CVE-2021-35042"], "fix_versions": ["3.2.5"]}
LEAK: Json = {"id": "PYSEC-2026-1", "aliases": ["CVE-2026-1111"], "fix_versions": []}
# Answers as pip-audit 2.10.1 does, and refuses what it refuses.
SCANNER = """\
import json, os, sys
known, listed = json.loads(os.environ["KNOWN"]), []
for path in [sys.argv[n + 1] for n, word in enumerate(sys.argv) if word == "--requirement"]:
    lines = open(path).read().split()
    names = [line.partition("==")[0] for line in lines]
    if len(names) != len({*names}) or any("+" in line for line in lines):
        sys.exit("ERROR:pip_audit._cli:package has duplicate requirements")
    for line in lines:
        name, _, version = line.partition("==")
        reason = f"Dependency not found on PyPI and could not be audited: {name} ({version})"
        one = {"name": name, "version": version, "vulns": known.get(line)}
        listed.append(one if line in known else {"name": name, "skip_reason": reason})
print(json.dumps({"dependencies": listed, "fixes": []}))
sys.exit(any(known.values()))
"""


def environment(prefix: str, *packages: str, license: str | None = None) -> str:
    """A line as installed.py prints it."""
    listed: list[Json] = [
        {"name": name, "version": version, "license": license, "classifiers": []}
        for name, _, version in (one.partition("==") for one in packages)
    ]
    return json.dumps({"prefix": prefix, "packages": listed}) + "\n"


def bill(installed: str) -> Json:
    done = subprocess.run(
        [sys.executable, "-m", "image", "bill", "vllmjobs-vllm:1"],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        input=installed,
        check=True,
        capture_output=True,
        text=True,
    )
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(done.stdout) is None
    found: Json = json.loads(done.stdout)
    return found


class Audit:
    """One run, with what the scanner's database knows of each version; what it lacks is not on PyPI."""

    def __init__(
        self,
        folder: Path,
        installed: str,
        known: dict[str, list[Json]],
        *options: str,
        scanner: str = SCANNER,
    ) -> None:
        (folder / "pip_audit.py").write_text(scanner)
        done = subprocess.run(
            [sys.executable, "-m", "image", "audit", "--report", folder / "report", *options, "vllm:1"],
            env={**os.environ, "PYTHONPATH": f"{folder}:{SCRIPTS}", "KNOWN": json.dumps(known)},
            input=installed,
            check=False,
            capture_output=True,
            text=True,
        )
        self.code, self.label, self.words = done.returncode, done.stdout.strip(), done.stderr.strip()
        self.report: Json = json.loads((folder / "report").read_text())


def test_each_version_of_a_package_is_listed_once_with_where_it_is() -> None:
    found = bill(environment("/usr", "Torch==2.9.0+cu130", "Foo_Bar==1") + environment("/opt", "foo-bar==1"))
    assert [(one["name"], one["purl"]) for one in found["components"]] == [
        ("foo-bar", "pkg:pypi/foo-bar@1"),
        ("torch", "pkg:pypi/torch@2.9.0%2Bcu130"),
    ]
    prefixes = [one["value"] for one in found["components"][0]["properties"]]
    assert prefixes == ["/opt", "/usr"]


@pytest.mark.parametrize(
    ("said", "listed"),
    [
        ("MIT", [{"license": {"id": "MIT"}}]),
        ("MIT AND Apache-2.0", [{"expression": "MIT AND Apache-2.0"}]),
        ("Some licence", [{"license": {"name": "Some licence"}}]),
        ("Permission is hereby granted,\nfree of charge", None),
        (None, None),
    ],
)
def test_a_licence_is_listed_as_its_package_states_it(said: str | None, listed: list[Json] | None) -> None:
    (found,) = bill(environment("/usr", "foo==1", license=said))["components"]
    licenses = [
        {key: value for key, value in one.items() if key != "acknowledgement"}
        for one in found.get("licenses", [])
    ]
    assert (licenses or None) == listed


def test_an_image_is_clean_when_the_same_run_finds_what_is_known_of_another_package(tmp_path: Path) -> None:
    audit = Audit(tmp_path, environment("/usr", "vllm==0.33.0"), {CANARY: [KNOWN], "vllm==0.33.0": []})
    assert (audit.code, audit.label) == (0, "none known")
    assert audit.words == "vulnerabilities: none known; in 1 packages"
    assert (audit.report["scanned"], audit.report["vulnerabilities"]) == (True, [])


@pytest.mark.parametrize("known", [{}, {CANARY: []}, {"vllm==0.33.0": []}])
def test_a_scanner_that_finds_nothing_in_what_is_known_to_be_vulnerable_has_not_scanned(
    tmp_path: Path, known: dict[str, list[Json]]
) -> None:
    audit = Audit(tmp_path, environment("/usr", "vllm==0.33.0"), known)
    assert (audit.code, audit.label) == (1, "not scanned")
    assert f"not scanned: {CANARY}, which has known vulnerabilities, was not found" in audit.words
    assert (audit.report["scanned"], audit.report["vulnerabilities"]) == (False, None)
    assert [one["package"] for one in audit.report["not_scanned"]] == ["vllm"]


def test_what_was_not_scanned_can_be_let_pass_but_never_as_clean(tmp_path: Path) -> None:
    audit = Audit(tmp_path, environment("/usr", "vllm==0.33.0"), {}, "--allow-unscanned")
    assert (audit.code, audit.label) == (0, "not scanned")
    assert not audit.report["scanned"]


def test_a_scanner_that_fails_has_not_scanned(tmp_path: Path) -> None:
    scanner = "raise ConnectionError('no route to pypi.org')"
    audit = Audit(tmp_path, environment("/usr", "vllm==0.33.0"), {}, scanner=scanner)
    assert (audit.code, audit.label) == (1, "not scanned")
    assert audit.report["why"] == "pip-audit failed: ConnectionError: no route to pypi.org"


def test_a_vulnerable_package_fails_until_its_vulnerability_is_accepted_by_any_of_its_names(
    tmp_path: Path,
) -> None:
    installed, known = environment("/usr", "vllm==0.33.0"), {CANARY: [KNOWN], "vllm==0.33.0": [LEAK]}
    audit = Audit(tmp_path, installed, known)
    assert (audit.code, audit.label) == (1, "vulnerable")
    assert audit.words == "vulnerabilities: vulnerable: vllm 0.33.0 (PYSEC-2026-1); in 1 packages"
    accepted = Audit(tmp_path, installed, known, "--ignore", "CVE-2026-1111")
    assert (accepted.code, accepted.label) == (0, "none but PYSEC-2026-1")
    assert [one["ignored"] for one in accepted.report["vulnerabilities"]] == [True]
    other = Audit(tmp_path, installed, known, "--ignore", "CVE-2026-2222")
    assert other.code == 1


def test_accepting_what_is_vulnerable_does_not_accept_what_is_not_scanned(tmp_path: Path) -> None:
    audit = Audit(
        tmp_path, environment("/usr", "a==1"), {CANARY: [KNOWN], "a==1": [LEAK]}, "--allow-unscanned"
    )
    assert audit.code == 1
    audit = Audit(tmp_path, environment("/usr", "a==1"), {}, "--ignore", "PYSEC-2026-1")
    assert audit.label == "not scanned"


def test_what_pypi_does_not_have_is_named(tmp_path: Path) -> None:
    installed = environment("/usr", "vllm==0.33.0", "ours==1", "odd==unknown")
    audit = Audit(tmp_path, installed, {CANARY: [KNOWN], "vllm==0.33.0": []})
    assert audit.words == "vulnerabilities: none known; in 3 packages, of which not scanned: odd, ours"
    assert [(one["package"], one["version"]) for one in audit.report["not_scanned"]] == [
        ("odd", "unknown"),
        ("ours", "1"),
    ]


def test_a_local_version_is_looked_up_by_its_public_one(tmp_path: Path) -> None:
    installed = environment("/usr", "torch==2.9.0+cu130")
    audit = Audit(tmp_path, installed, {CANARY: [KNOWN], "torch==2.9.0": [LEAK]})
    assert [(one["package"], one["version"]) for one in audit.report["vulnerabilities"]] == [
        ("torch", "2.9.0+cu130")
    ]


def test_two_versions_of_a_package_are_looked_up_both_and_so_is_an_image_with_the_canary_in_it(
    tmp_path: Path,
) -> None:
    installed = environment("/usr", "a==1", "django==3.2.0") + environment("/opt", "a==2", "django==5.0")
    known = {CANARY: [KNOWN], "a==1": [LEAK], "a==2": [], "django==5.0": []}
    audit = Audit(tmp_path, installed, known)
    assert [(one["package"], one["version"]) for one in audit.report["vulnerabilities"]] == [
        ("a", "1"),
        ("django", "3.2.0"),
    ]
    assert audit.report["not_scanned"] == []


def test_the_image_is_built_on_the_newest_vllm_whose_arguments_are_known() -> None:
    dockerfile = (SCRIPTS.parent / "images/vllm/Dockerfile").read_text()
    assert re.findall(r"^ARG TAG=(.*)$", dockerfile, re.MULTILINE) == [f"v{NEWEST}"]
