"""The drawing of the imports between the rooms of the package, as mermaid.

A room is a folder of the package, or one of the two wings of `vllm/`; a module that lies flat at the root is
none. An arrow that a longer path already says is left out, so that the drawing can be read.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from generation.page import with_part

PAGE = "docs/architecture.md"
PACKAGE = "generator/vllmjobs"
WINGS = {"vllm"}  # folders whose own folders are rooms


def files(root: Path) -> dict[str, str]:
    """Return the page of the architecture, with the drawing of the rooms as they are."""
    return {PAGE: with_part(root / PAGE, "imports", drawing(root / PACKAGE))}


def drawing(package: Path) -> str:
    """Return a sentence with the numbers, and the drawing."""
    arrows = _arrows(package)
    rooms = sorted({*arrows, *(room for rooms in arrows.values() for room in rooms)})
    count = sum(map(len, arrows.values()))
    lines = [
        f"{len(rooms)} rooms, {count} arrows between them. An arrow goes from a room to one that it imports;",
        "one that a longer path already says is left out.",
        "",
        "```mermaid",
        "flowchart TD",
        *(f"    {_id(room)}[{room}/]" for room in rooms),
        *(f"    {_id(room)} --> {_id(other)}" for room in rooms for other in sorted(_drawn(arrows, room))),
        "```",
    ]
    return "\n".join(lines)


def _arrows(package: Path) -> dict[str, set[str]]:
    """Return, for each room, the other rooms that it imports."""
    arrows: dict[str, set[str]] = {}
    for path in sorted(package.rglob("*.py")):
        room = _room(package, path.relative_to(package).parts)
        if room is None:
            continue
        imported = {_room(package, parts) for parts in _imported(path, package)}
        arrows.setdefault(room, set()).update(other for other in imported if other and other != room)
    return arrows


def _imported(path: Path, package: Path) -> Iterator[tuple[str, ...]]:
    """Yield the place in the package of each module that a file imports."""
    for node in _statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name.name}" for name in node.names]
        else:
            continue
        for top, *parts in (name.split(".") for name in names):
            if top == package.name:
                yield tuple(parts)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield each statement in a node, and no expression: there are ten times as many."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield child
            yield from _statements(child)


def _room(package: Path, parts: tuple[str, ...]) -> str | None:
    """Return the room that holds a file, or a name of a module; None for what lies at the package's root."""
    if not parts or not (package / parts[0]).is_dir():
        return None
    is_wing = parts[0] in WINGS and len(parts) > 1 and (package / parts[0] / parts[1]).is_dir()
    return f"{parts[0]}/{parts[1]}" if is_wing else parts[0]


def _drawn(arrows: dict[str, set[str]], room: str) -> set[str]:
    """Return the rooms that a room imports, and that no other of its imports leads to."""
    direct = arrows.get(room, set())
    return {other for other in direct if not any(other in _reached(arrows, via) for via in direct - {other})}


def _reached(arrows: dict[str, set[str]], room: str) -> set[str]:
    """Return every room that a path of arrows leads to; the rooms import each other in no circle."""
    direct = arrows.get(room, set())
    return direct.union(*(_reached(arrows, other) for other in direct))


def _id(room: str) -> str:
    return room.replace("/", "_")
