"""The share of the requests that a model's canaries get: its key in Consul's KV, and the numbers."""

import re
from collections.abc import Iterable, Mapping, Sequence

Shares = Mapping[str, float]  # by group
_SHARE = re.compile(r"[01]\.[0-9]+")


def share_folder(job: str) -> str:
    """Return the beginning of the keys of a job's shares."""
    return f"vllmjobs/{job}/"


def share_key(job: str, group: str) -> str:
    """Return the key of the share of a group's canaries, which nginx's template reads."""
    return f"{share_folder(job)}{group}/canary_weight"


def group_of(job: str, key: str) -> str | None:
    """Return the group whose share this key of the job's folder holds; None for any other key."""
    match = re.fullmatch(r"([^/]+)/canary_weight", key.removeprefix(share_folder(job)))
    return match[1] if match else None


def share_text(share: float) -> str:
    """Return a share, 0.001 to 1, as it is written under its key."""
    return f"{share:.4f}"


def read_share(text: str) -> float | None:
    """Return the share that a release wrote under a key; None for what no release writes."""
    return float(text) if _SHARE.fullmatch(text) else None


def least_given(groups: Iterable[str], answers: Sequence[Shares]) -> dict[str, float | None]:
    """Return the least share that any balancer gives each group's canaries; None without an answer."""
    return {group: min((answer[group] for answer in answers), default=None) for group in groups}
