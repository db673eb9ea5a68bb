"""The releases of vLLM that are known are those whose tables lie there; versions have their order."""

from itertools import pairwise
from pathlib import Path

import pytest

import vllmjobs
from vllmjobs.vllm.releases import NEWEST, VERSIONS, is_version, precedes


def test_each_table_is_a_release_and_the_newest_comes_last() -> None:
    folder = Path(vllmjobs.__file__).parent / "vllm/arguments/tables"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{version}.json.gz" for version in VERSIONS
    )
    assert all(precedes(older, newer) for older, newer in pairwise(VERSIONS))
    assert VERSIONS[-1] == NEWEST
    assert all(map(is_version, VERSIONS))


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("0.9.1", "0.10"),
        ("0.33.0.dev1", "0.33.0rc1"),
        ("0.33.0rc1", "0.33.0rc2"),
        ("0.33.0rc2", "0.33.0"),
        ("0.33.0", "0.33.0.post1"),
        ("0.33.0.post1", "0.33.1"),
        ("0.33.0", "main"),
    ],
)
def test_versions_are_ordered_as_packages_are(older: str, newer: str) -> None:
    assert precedes(older, newer)
    assert not precedes(newer, older)
