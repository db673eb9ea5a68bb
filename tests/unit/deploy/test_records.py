"""What is kept of a release in a Nomad Variable, which everybody with `read` on it sees."""

from typing import Any, cast

from vllmjobs.cluster.deployments import Deployments
from vllmjobs.cluster.nomad import Where
from vllmjobs.deploy import records
from vllmjobs.rollout.model import Record

TOKEN = "hf_" + "aBcD" * 9


class Variable:
    """Nomad's Variable, as `Deployments` hands it out."""

    def __init__(self) -> None:
        self.items: dict[str, str] = {}

    def update_variable(self, _path: str, _where: Where, change: Any) -> None:
        self.items = change(self.items)

    def variable(self, _path: str, _where: Where) -> tuple[dict[str, str], int]:
        return self.items, 1


def test_what_a_person_typed_is_kept_without_its_secrets() -> None:
    variable, where = Variable(), Where("vllm-prod", "default", "global")
    record = Record(
        version=1, at="2026-11-23T21:04:05.678Z", by="ann", now=f"the token {TOKEN} --api-key s3cret leaked",
        reason=f"curl said token={TOKEN}",
    )  # fmt: skip
    records.write(cast(Deployments, variable), where, record)
    assert TOKEN not in str(variable.items)
    assert "s3cret" not in str(variable.items)
    (kept,) = records.read(cast(Deployments, variable), where)
    assert (kept.now, kept.reason) == ("the token … --api-key … leaked", "curl said token=…")
    assert (kept.version, kept.by, kept.at) == (1, "ann", record.at)
