"""Trees of a jobspec's words, by which two jobs are compared.

A tree is nested maps. A block stands under its kind and its labels, `group "chat"` under `group` and then
`chat`; a block that may be repeated, under its kind and what tells it from the others: `service` and then its
name. Functions here return new trees; only `put` changes the one that it is given, while that is built.
"""

from collections.abc import Callable, Collection

Leaf = str | int | float | bool | None
Item = Leaf | list["Item"] | dict[str, "Item"]
Tree = dict[str, Item]
TreePath = tuple[str, ...]

# What tells repeated blocks apart, best first.
NAMED_BY = {
    "constraint": ("attribute", "operator"),
    "affinity": ("attribute",),
    "spread": ("attribute",),
    "target": ("value",),
    "service": ("name",),
    "check": ("name", "type"),
    "template": ("destination",),
    "artifact": ("source",),
    "mount": ("target",),
    "volume_mount": ("destination", "volume"),
    "identity": ("name",),
    "upstreams": ("destination_name",),
}


def below(tree: Item, word: str) -> Tree:
    """Return the map under a word; empty where there is none."""
    item = tree.get(word) if isinstance(tree, dict) else None
    return item if isinstance(item, dict) else {}


def number(item: Item) -> int | None:
    """Return a whole number, however it is written; None for an expression."""
    try:
        return int(item) if isinstance(item, (str, int, float)) else None
    except ValueError:
        return None


def groups(job: Tree) -> dict[str, Tree]:
    """Return the groups of a job, by name."""
    return {name: group for name, group in below(job, "group").items() if isinstance(group, dict)}


def less(tree: Tree, words: Collection[str]) -> Tree:
    """Return a tree less these words."""
    return {word: item for word, item in tree.items() if word not in words}


def without_groups(job: Tree) -> Tree:
    """Return what a job says about itself as a whole."""
    return less(job, ("group",))


def without(tree: Tree, word: str, item: Item) -> Tree:
    """Return a tree less a word, if the word stands for this very item."""
    return {key: value for key, value in tree.items() if key != word or value != item}


def with_each(tree: Tree, kind: str, change: Callable[[str, Tree], Tree]) -> Tree:
    """Return a tree in which each block of a kind is what `change` makes of its name and itself."""
    blocks = below(tree, kind)
    if not blocks:
        return tree
    changed: Tree = {
        name: change(name, block) if isinstance(block, dict) else block for name, block in blocks.items()
    }
    return {**tree, kind: changed}


def put(tree: Tree, words: list[str], inner: Item) -> None:
    """Hang a block under its words; a second one of the same words gets a number."""
    *above, last = words
    for word in above:
        lower = tree.get(word)
        if not isinstance(lower, dict):
            lower = tree[word] = {}
        tree = lower
    name, count = last, 1
    while name in tree:
        count += 1
        name = f"{last}#{count}"
    tree[name] = inner
