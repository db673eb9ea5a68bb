"""The releases of vLLM that have a table, which of them is the newest, and how versions are ordered.

A release is known as soon as its table lies in `arguments/tables/`, and nothing else names the newest one:
`scripts/vllm-tables VERSION` adds a release.
"""

import re
from functools import lru_cache
from glob import glob  # importlib.resources would take three milliseconds of every command

from vllmjobs import vllm

# A release, and what may follow: rc1, .post1, .dev12, +cu129. PEP 440: dev < rc < release < post.
_VERSION = re.compile(
    r"v?(\d+(?:\.\d+)*)(?:\.?(a|b|rc)\.?(\d+))?(?:\.?(post)(\d+))?(?:\.?(dev)(\d+))?(?:\+[\w.]+)?"
)
_TABLE = re.compile(r".*[/\\](.+)\.json\.gz")


def is_version(text: str) -> bool:
    """Tell whether a text is a version number, such as 0.24.0, 0.24.0rc1 or 0.24.0+cu129."""
    return bool(_VERSION.fullmatch(text.strip()))


def precedes(version: str, other: str) -> bool:
    """Tell whether a version is older than another one."""
    return order(version) < order(other)


@lru_cache
def order(version: str) -> tuple[object, ...]:
    """Return the key by which versions are sorted; what is no version number is newer than every release."""
    match = _VERSION.fullmatch(version.strip())
    if not match:
        return ((1 << 30,), 0, 0, 0, 0)
    release, pre, pre_number, post, post_number, dev, dev_number = match.groups()
    numbers = tuple(int(part) for part in release.split("."))
    while numbers and numbers[-1] == 0:
        numbers = numbers[:-1]
    without_pre = -1 if dev and not post else 3
    stage = ("a", "b", "rc").index(pre) if pre else without_pre
    after, before = int(post_number) + 1 if post else 0, int(dev_number) if dev else 1 << 30
    return numbers, stage, int(pre_number or 0), after, before


_FILES = glob(f"{vllm.__path__[0]}/arguments/tables/*")  # noqa: PTH207 (pathlib is for edges)
VERSIONS = tuple(
    sorted((file[1] for file in map(_TABLE.fullmatch, _FILES) if file), key=order)
)  # Every release that has a table, oldest first
NEWEST = VERSIONS[-1]  # the newest release that has a table
GPUS_BY_UUID_SINCE = "0.24.0"
"""The first release that reads UUIDs in CUDA_VISIBLE_DEVICES; those before make a number of each."""
