"""Keys and values with their comments, to the YAML text that a person would have written."""

import re
from collections.abc import Container, Iterator, Mapping
from itertools import chain, count
from typing import NamedTuple, Union

import yaml

from vllmjobs.environment.derive import MAX_SERVICE_NAME
from vllmjobs.environment.model import Balancer
from vllmjobs.environment.problems import Mark
from vllmjobs.environment.tree import Scalar, parse
from vllmjobs.text.visible import visible

ADMIN_PORT = Balancer().admin_port
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9._/-]*(#[A-Za-z0-9_]+)?")
_NO_FOLDING = 1 << 30  # columns


class Commented(NamedTuple):
    """A value, and the comment that stands behind it: where it came from."""

    value: str | int | float | bool
    comment: str = ""


YamlBlock = Mapping[str, Union[Commented, "YamlBlock", None]]  # what is None, or holds nothing, is left out


def yaml_text(block: YamlBlock) -> str:
    """Return the block as YAML that `environment.tree.parse` reads back as the same values."""
    return "".join(_lines(block, 0))


def scalar(value: str | int | float | bool) -> str:
    """Return a value on one line: plain where that is read back as it was, else in double quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return str(value)
    if _PLAIN.fullmatch(value) and parse(value, "")[0] == Scalar(Mark("", 1, 1), value, value):
        return value
    quoted: str = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=_NO_FOLDING)
    return _shown(quoted.removesuffix("\n"))  # its escapes are YAML's, too


def _shown(text: str) -> str:
    """Return the text, visible, and with no order to a forge's runner: see `terminal.printing`."""
    return visible(text).replace("##[", r"#\x23[")


def group_name(wanted: str, job: str, taken: Container[str] = ()) -> str:
    """Return the nearest name that a model may have, free, and short enough for its service in Consul."""
    room = MAX_SERVICE_NAME - len(f"{job}-")
    name = re.sub(r"[^a-z0-9]+", "-", wanted.lower()).strip("-")[:room].strip("-") or "model"
    numbered = (f"{name[: room - len(str(n)) - 1]}-{n}" for n in count(2))
    return next(free for free in chain([name], numbered) if free not in taken)


def balancer(port: Commented | None) -> YamlBlock:
    """Return the balancer that balanced-vllm-docker has, on its port."""
    is_taken = port is not None and port.value == ADMIN_PORT
    moved = Commented(ADMIN_PORT - 1, f"not {ADMIN_PORT}, which is port") if is_taken else None
    return {"kind": Commented("nginx"), "port": port, "admin_port": moved}


def _lines(block: YamlBlock, depth: int) -> Iterator[str]:
    indent = "  " * depth
    is_first = True
    for key, item in block.items():
        if isinstance(item, Commented):
            comment = f" # {_shown(item.comment)}" if item.comment else ""
            yield f"{indent}{key}: {scalar(item.value)}{comment}\n"
        elif item and (inside := "".join(_lines(item, depth + 1))):
            apart = "\n" if depth == 0 or (depth == 1 and not is_first) else ""
            yield f"{apart}{indent}{key}:\n{inside}"
            is_first = False
