"""Markdown for GitHub and GitLab in which the texts of others stay texts.

A forge does more with text than its parser: it turns `@name`, `#1`, `!1` and the like into links, and tells
people. Not in code, so names stand in code; in sentences something that is not seen breaks such a reference.
"""

import re

from vllmjobs.changes.report import quoting

# https://github.github.com/gfm/: what opens emphasis, code, links, HTML, a cell, mathematics; and what makes
# a link of an address, in which entities would be shown as such.
_MARKUP = r"[\\`*\[\]<>|~&$]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])|:(?=//)|(?<=www)\."
# https://docs.gitlab.com/user/markdown/#gitlab-specific-references; `@`, `#` and GH-1 are GitHub's too.
_REFERENCE = r"[@#!$%&^~](?=[\w\"])|\bGH-(?=\d)"
_SPECIAL = re.compile(f"(?P<reference>{_REFERENCE})|{_MARKUP}", re.IGNORECASE)
_BLOCK = re.compile(r"\d+[.)]|\W")
_NOTHING = "&#8203;"  # a space without width
_PLAIN = re.compile(r"[\w./:@=,;()+~-]+( [\w./:@=,;()+~-]+)*", re.ASCII)


def name(text: str) -> str:
    """Return a name as code."""
    shown = quoting.name(text)
    return f"`{shown}`" if _PLAIN.fullmatch(shown) else in_html(text)


def in_html(text: str) -> str:
    """Return a name as code in HTML, where backticks mean nothing or cannot hold the name."""
    return f"<code>{re.sub(r'[^a-zA-Z0-9 /-]', _entity, quoting.name(text))}</code>"


def prose(text: str) -> str:
    """Return a sentence on one line, which begins no list, heading or quotation within an item."""
    shown = quoting.prose(text)
    return (_NOTHING if _BLOCK.match(shown) else "") + _SPECIAL.sub(_entity, shown)


def fenced(lines: list[str], language: str) -> str:
    """Return a block of code, whose fence is longer than any run of backticks in it."""
    text = "\n".join(lines)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}\n"


def _entity(match: re.Match[str]) -> str:
    entities = "".join(f"&#{ord(character)};" for character in match[0])
    return entities + (_NOTHING if match.groupdict().get("reference") else "")


FOR_MARKDOWN = quoting.Escaping(name, prose)
