"""The gates of a release: what a change weakens, and approvals by others, counted and written out."""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from vllmjobs.environment.model import Environment, ModelDefaults
from vllmjobs.environment.problems import UserError
from vllmjobs.environment.quantity import seconds
from vllmjobs.environment.rollout import Maintenance
from vllmjobs.environment.secrets import without_secrets
from vllmjobs.rollout.model import FAILED, GateRules, Record
from vllmjobs.text.english import listed as shortened
from vllmjobs.text.value import Value
from vllmjobs.text.visible import is_hidden

NOW = "--now REASON deploys it anyway"
_LONGEST_WORDS = 500  # characters: a record shares the 64 KiB of its Nomad Variable with nineteen others
# Marks that show nothing and are not hidden elsewhere: the rest of Default_Ignorable_Code_Point of
# https://unicode.org/Public/UCD/latest/ucd/DerivedCoreProperties.txt.
_MARKS = {0x034F, 0x17B4, 0x17B5, *range(0x180B, 0x1810), *range(0xE0100, 0xE01F0)}


class RefusedError(UserError):
    """A gate is closed: nothing was changed."""

    exit_code = 4


class Approval(Value, frozen=True):
    """One person's approval of one version of a job with one content."""

    accessor: str  # the accessor ID of the ACL token; no secret
    name: str  # the name of the ACL token; empty where it has none
    version: int  # the job's version that is approved
    life: int  # the life of the job in which it was approved: see `life`
    digest: str  # the digest of the content: see `rollout.gates.digest`
    at: str  # the time of the approval, as `Notification.at`

    @property
    def who(self) -> str:
        """The token's name, else the beginning of its accessor ID, as `nomad acl token list` shows it."""
        return self.name if folded(self.name) else self.accessor[:8]


class Proposal(Value, frozen=True):
    """A change of an environment that stands before the gates."""

    job: str
    version: int  # the job's version that is to be
    life: int  # the life of the job in which it is approved: see `life`
    digest: str  # the digest of its content
    rules: tuple[GateRules, ...]  # the rules that it has to meet: its own, and those that it weakens
    weakened: tuple[str, ...] = ()  # the gates that it weakens: `approvals: 2 → 0`
    required: int = 0  # other people who have to approve

    @property
    def takes_words(self) -> bool:
        """True if it weakens gates that ask for nobody's approval, so that `--now REASON` is enough."""
        return bool(self.weakened) and not any(rules.approvals for rules in self.rules)


class Approved(Value, frozen=True):
    """The approvals of one proposal, counted."""

    proposal: Proposal
    by: tuple[Approval, ...] = ()  # one approval for each person whose approval counts
    own: bool = False  # the one who deploys has approved too, which does not count

    @property
    def missing(self) -> int:
        """The count of people who still have to approve."""
        return max(0, self.proposal.required - len(self.by))


def digest(environment: Environment, jobs: Mapping[str, str]) -> str:
    """Return the SHA-256, in hex, of all that decides a release: an environment, and its jobs' HCL by name.

    The balancer's job belongs to a change as the models' does, and so does what changes no byte of a job:
    limits, steps, gates. `extends` and `defaults` are left out: the models have what they say.
    """
    content = replace(environment, extends=None, defaults=ModelDefaults())
    return hashlib.sha256(msgspec.json.encode([content, jobs], order="deterministic")).hexdigest()


def version_to_be(latest: int | None) -> int:
    """Return the version that a change of a job will have; `latest` is None for a job that is not there.

    Nomad counts from 0, anew after a purge (nomad/state/state_store.go, upsertJobImpl).
    """
    return 0 if latest is None else latest + 1


def life(version: int, created: int | None, registered: Iterable[int]) -> int:
    """Return the index of Nomad's that tells a job's life from earlier ones, after which it was purged.

    `created` is the job's CreateIndex, None where it is not there. Version 0 is approved before its life has
    begun, so it has the index of the newest earlier one: the last that was `registered` then, 0 without.
    """
    if version and created is not None:
        return created
    return max((index for index in registered if created is None or index < created), default=0)


def rules_of(environment: Environment) -> GateRules:
    """Return the rules of an environment's gates."""
    return GateRules(approvals=environment.approvals, maintenance=environment.maintenance)


def in_force(records: Iterable[Record], resumed: int | None = None) -> tuple[GateRules, ...]:
    """Return the rules that a change must not weaken: those of the last version that was deployed.

    The records come with the newest first. A release that failed has changed no rule, unless none has ever
    succeeded; one that is `resumed` has to meet the rules that it began with, too. A purge takes no rule
    away.
    """
    known = [(record, record.rules) for record in records if record.rules]
    own = [rules for record, rules in known if record.version == resumed]
    before = [(record, rules) for record, rules in known if record.version != resumed]
    deployed = [rules for record, rules in before if record.outcome not in FAILED]
    return (*own, *(deployed or [rules for _, rules in before])[:1])


def propose(
    job: str,
    version: int,
    life: int,
    digest: str,
    new: GateRules,
    old: Sequence[GateRules] = (),
    reason: str = "",
) -> Proposal:
    """Return a change with what it has to meet: the `old` rules as well, where the `new` ones weaken a gate.

    To weaken a gate takes at least one other person, or the `reason` of the one who deploys, where the old
    rules ask for nobody's approval.
    """
    weaker = tuple(dict.fromkeys(text for rules in old for text in _weakened(rules, new)))
    proposal = Proposal(
        job=job, version=version, life=life, digest=digest,
        rules=(new, *old) if weaker else (new,), weakened=weaker,
    )  # fmt: skip
    required = max(rules.approvals for rules in proposal.rules)
    return replace(proposal, required=1 if proposal.takes_words and not reason else required)


def _weakened(old: GateRules, new: GateRules) -> Iterator[str]:
    if new.approvals < old.approvals:
        yield f"approvals: {old.approvals} → {new.approvals}"
    if _is_wider(old.maintenance, new.maintenance):
        yield without_secrets(f"maintenance: {_windows(old.maintenance)} → {_windows(new.maintenance)}")


def _is_wider(old: Maintenance | None, new: Maintenance | None) -> bool:
    """Tell whether windows may be open where the old ones were not.

    A window is surely not where an old one has the same schedule and time zone, and is no shorter.
    """
    if old is None or new is None:
        return old is not None
    longest: dict[str, float] = {}
    for window in old.windows:
        longest[window.schedule] = max(longest.get(window.schedule, 0), seconds(window.duration))
    return new.time_zone != old.time_zone or any(
        seconds(window.duration) > longest.get(window.schedule, 0) for window in new.windows
    )


def _windows(maintenance: Maintenance | None) -> str:
    if maintenance is None:
        return "any time"
    windows = shortened((f'"{one.schedule}" for {one.duration}' for one in maintenance.windows), most=4)
    return f"{windows} {maintenance.time_zone}"


def count(
    approvals: Iterable[Approval], proposal: Proposal, deployer: tuple[str, str] | None = None
) -> Approved:
    """Count the people who approve exactly this proposal, less the one who deploys.

    Two tokens belong to one person where their accessor IDs or their names are the same, however the names
    are spelt (`folded`); so does a third that shares one with either. `deployer` is the accessor ID and the
    name of the one who deploys, None where that is not known.
    """
    people: list[list[Approval]] = []
    if deployer:
        people.append([Approval(*deployer, proposal.version, proposal.life, proposal.digest, "")])
    own = people[:]
    for approval in sorted(approvals, key=lambda each: (each.at, each.who)):
        if not _is_of(approval, proposal) or approval.digest != proposal.digest:
            continue
        same = [person for person in people if any(_is_same(approval, other) for other in person)]
        if same:
            first, *others = same
            first += [approval, *(each for other in others for each in other)]
            people = [person for person in people if person not in others]
        else:
            people.append([approval])
    return Approved(
        proposal=proposal,
        by=tuple(person[0] for person in people if person not in own),
        own=any(len(person) > 1 for person in own),
    )


def folded(name: str) -> str:
    """Return a name as it is compared: `Ann`, `ann ` and `ann` with a mark that nobody sees are one.

    Compatibility forms and case are folded (NFKC_Casefold of Unicode's chapter 3.13), and what shows nothing
    is left out: spaces, control and format characters.
    """
    before, after = "", name
    while before != after:  # what was taken out may have kept two characters from becoming one
        before, after = after, unicodedata.normalize("NFKC", after).casefold()
        after = "".join(char for char in after if not (char == " " or is_hidden(char) or ord(char) in _MARKS))
    return after


def words(reason: str) -> str:
    """Return the words of `--now` as they are recorded: in one line, not too long, without secrets.

    Empty where they show nothing.
    """
    text = without_secrets(" ".join(reason.split()))
    short = text if len(text) <= _LONGEST_WORDS else f"{text[: _LONGEST_WORDS - 1]}…"
    return short if folded(short) else ""


def _is_of(approval: Approval, proposal: Proposal) -> bool:
    return approval.version == proposal.version and approval.life >= proposal.life


def _is_same(one: Approval, other: Approval) -> bool:
    name = folded(one.name)
    return one.accessor == other.accessor or (name != "" and name == folded(other.name))


def current(approvals: Iterable[Approval], proposal: Proposal) -> list[Approval]:
    """Return the approvals to keep beside a new one: those of the version, and of the one before.

    The release of the one before may be resumed. Of a life that a purge has ended, none is kept.
    """
    before = proposal.version - 1
    return [each for each in approvals if each.version == before or _is_of(each, proposal)]


def listed(approved: Approved, approvals: Iterable[Approval]) -> str:
    """Write what is approved, how far it has come, by whom, and which approvals do not count, and why."""
    proposal = approved.proposal
    lines = [_has(approved)]
    lines += [f"  weakens {each}" for each in proposal.weakened]
    lines += [f"  {each.who}, {each.at}" for each in approved.by]
    for each in approvals:
        if each.version == proposal.version and each.digest != proposal.digest:
            lines.append(f"  {each.who}, {each.at}: for other content, {each.digest[:12]}; does not count")
        elif each.version == proposal.version and not _is_of(each, proposal):
            lines.append(f"  {each.who}, {each.at}: before the job was purged; does not count")
    return "\n".join([*lines, ""])


def refusal(approved: Approved, command: str) -> str:
    """Write why a change that lacks approvals is refused, and the `command` with which others approve it."""
    proposal = approved.proposal
    names = f" ({', '.join(each.who for each in approved.by)})" if approved.by else ""
    own = "; your own does not count" if approved.own else ""
    weaker = f"; it weakens {', '.join(proposal.weakened)}" if proposal.weakened else ""
    others = "one other person" if approved.missing == 1 else f"{approved.missing} other people"
    way_out = f", or {NOW}" if proposal.takes_words else ""
    return f"{_has(approved)}{names}{own}{weaker}; {others} must run {command}{way_out}"


def nobody(proposal: Proposal, does: str) -> str:
    """Write why nobody can approve where ACLs are off: `does` is `deploys` or `approves`."""
    way_out = "turn ACLs on (docs/approvals.md)"
    if proposal.weakened:
        what = f"{proposal.job}: it weakens {', '.join(proposal.weakened)}, for which others have to approve"
        way_out += f", or {NOW}" if proposal.takes_words else ""
    else:
        what, way_out = "approvals are required", f"{way_out}, or set approvals: 0"
    return f"{what}, and with ACLs off nobody can tell who {does}; {way_out}"


def _has(approved: Approved) -> str:
    """Write the count: vllm-prod, version 8, 3f2a9c1b04de: 1 of 2 approvals."""
    proposal = approved.proposal
    what = f"{proposal.job}, version {proposal.version}, {proposal.digest[:12]}"
    return f"{what}: {len(approved.by)} of {proposal.required} approvals"
