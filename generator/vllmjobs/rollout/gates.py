"""The gates of a release: approvals by others, counted and written out."""

import hashlib
from collections.abc import Iterable, Mapping

from vllmjobs.environment.problems import UserError
from vllmjobs.text.value import Value


class RefusedError(UserError):
    """A gate is closed: nothing was changed."""

    exit_code = 4


class Approval(Value, frozen=True):
    """One person's approval of one version of a job with one content."""

    accessor: str  # the accessor ID of the ACL token; no secret
    name: str  # the name of the ACL token; empty where it has none
    version: int  # the job's version that is approved
    digest: str  # the digest of the content: see `rollout.gates.digest`
    at: str  # the time of the approval, as `Notification.at`

    @property
    def who(self) -> str:
        """The token's name, else the beginning of its accessor ID, as `nomad acl token list` shows it."""
        return self.name or self.accessor[:8]


class Approved(Value, frozen=True):
    """The approvals of one content, counted."""

    job: str
    version: int  # the job's version that is to be
    digest: str  # the digest of its content
    required: int  # people that have to approve
    by: tuple[Approval, ...] = ()  # one approval for each person whose approval counts
    own: bool = False  # the one who deploys has approved too, which does not count

    @property
    def missing(self) -> int:
        """The count of people who still have to approve."""
        return max(0, self.required - len(self.by))


def digest(jobs: Mapping[str, str]) -> str:
    """Return the SHA-256, in hex, of all jobs of an environment: their HCL as rendered, one after the other.

    The balancer's job belongs to a change as the models' does: the one who approves has read both.
    """
    return hashlib.sha256("".join(jobs.values()).encode()).hexdigest()


def version_to_be(latest: int | None) -> int:
    """Return the version that a change of a job will have; `latest` is None for a job that is not there.

    Nomad counts from 0, anew after a purge (nomad/state/state_store.go, upsertJobImpl).
    """
    return 0 if latest is None else latest + 1


def count(
    approvals: Iterable[Approval],
    required: int,
    job: str,
    version: int,
    digest: str,
    deployer: tuple[str, str] | None = None,
) -> Approved:
    """Count the people who approve exactly this content as exactly this version, less the one who deploys.

    Two tokens belong to one person where their accessor IDs or their names are the same; so does a third that
    shares one with either. `deployer` is the accessor ID and the name of the one who deploys, None where that
    is not known.
    """
    people: list[list[Approval]] = []
    if deployer:
        people.append([Approval(*deployer, version, digest, "")])
    own = people[:]
    for approval in sorted(approvals, key=lambda each: (each.at, each.who)):
        if (approval.version, approval.digest) != (version, digest):
            continue
        same = [person for person in people if any(_is_same(approval, other) for other in person)]
        if same:
            first, *others = same
            first += [approval, *(each for other in others for each in other)]
            people = [person for person in people if person not in others]
        else:
            people.append([approval])
    return Approved(
        job=job,
        version=version,
        digest=digest,
        required=required,
        by=tuple(person[0] for person in people if person not in own),
        own=any(len(person) > 1 for person in own),
    )


def _is_same(one: Approval, other: Approval) -> bool:
    return one.accessor == other.accessor or (one.name != "" and one.name == other.name)


def current(approvals: Iterable[Approval], latest: int | None) -> list[Approval]:
    """Return the approvals to keep: of the latest version, whose release may be resumed, and of the next."""
    kept = (latest, version_to_be(latest))
    return [approval for approval in approvals if approval.version in kept]


def listed(approved: Approved, approvals: Iterable[Approval]) -> str:
    """Write what is approved, how far it has come, by whom, and which approvals are of other content."""
    lines = [_has(approved)]
    lines += [f"  {each.who}, {each.at}" for each in approved.by]
    lines += [
        f"  {each.who}, {each.at}: for other content, {each.digest[:12]}; does not count"
        for each in approvals
        if each.version == approved.version and each.digest != approved.digest
    ]
    return "\n".join([*lines, ""])


def refusal(approved: Approved, command: str) -> str:
    """Write why a change that lacks approvals is refused, and the `command` with which others approve it."""
    names = f" ({', '.join(each.who for each in approved.by)})" if approved.by else ""
    own = "; your own does not count" if approved.own else ""
    others = "one other person" if approved.missing == 1 else f"{approved.missing} other people"
    return f"{_has(approved)}{names}{own}; {others} must run {command}"


def _has(approved: Approved) -> str:
    """Write the count: vllm-prod, version 8, 3f2a9c1b04de: 1 of 2 approvals."""
    what = f"{approved.job}, version {approved.version}, {approved.digest[:12]}"
    return f"{what}: {len(approved.by)} of {approved.required} approvals"
