"""A release of vLLM as its Python files only, from the package index that pip uses."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"


def fetch(version: str, cache: Path) -> Path:
    """Return the folder that holds `vllm/` of this version, downloaded once.

    It comes from the source distribution (15 to 50 MB): the wheel has ten times that, for the kernels.
    """
    folder = cache / f"vllm-{version}"
    if folder.is_dir():
        return folder
    file = _source_distribution(version)
    print(f"scripts/vllm-tables: fetching {file['filename']}", file=sys.stderr)
    with urllib.request.urlopen(urllib.parse.urljoin(_project(), file["url"])) as answer:
        packed = answer.read()
    if hashlib.sha256(packed).hexdigest() != file["hashes"]["sha256"]:
        raise SystemExit(
            f"scripts/vllm-tables: {file['filename']} is not what the index says it is; run again"
        )
    unpacking = cache / f".vllm-{version}.{os.getpid()}"
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        inside = f"vllm-{version}/"
        for member in archive:
            if member.isfile() and member.name.startswith(f"{inside}vllm/") and member.name.endswith(".py"):
                member.name = member.name.removeprefix(inside)
                archive.extract(member, unpacking, filter="data")
    try:
        unpacking.rename(folder)
    except OSError:  # another run was faster
        shutil.rmtree(unpacking)
    return folder


def _project() -> str:
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    index = os.environ.get("PIP_INDEX_URL") or asked.stdout.strip() or _public_index()
    return f"{index.rstrip('/')}/vllm/"


def _public_index() -> str:
    from pip._internal.models.index import PyPI  # noqa: PLC0415  # pip has no other word for its default

    return PyPI.simple_url


def _source_distribution(version: str) -> dict[str, Any]:
    request = urllib.request.Request(_project(), headers={"Accept": SIMPLE_JSON})
    with urllib.request.urlopen(request) as answer:
        files: list[dict[str, Any]] = json.load(answer)["files"]
    name = re.compile(rf"vllm-{re.escape(version)}\.tar\.gz")
    wanted = next((file for file in files if name.fullmatch(file["filename"])), None)
    if not wanted:
        raise SystemExit(f"scripts/vllm-tables: the index has no vllm-{version}.tar.gz")
    return wanted
