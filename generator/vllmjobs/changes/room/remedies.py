"""Remedies for nodes that take no allocations."""

from vllmjobs.changes.model import Remedy
from vllmjobs.changes.room.fleet import Node
from vllmjobs.supervisor.core.gpu_events import FENCE_META


def make_eligible(node: Node) -> Remedy:
    """Return what makes an ineligible or draining node take allocations."""
    command = f"nomad node eligibility -enable {node.id[:8]}"
    return Remedy(kind="make-eligible", node=node.name, command=command)


def lift_fence(node: Node) -> Remedy:
    """Return what makes a fenced node take allocations, once its GPU is mended."""
    command = f"nomad node meta apply -node-id {node.id[:8]} -unset {FENCE_META}"
    return Remedy(kind="lift-fence", node=node.name, command=command)
