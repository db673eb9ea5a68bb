"""Reports whose names and values are not nice, as a parser of GitHub's Markdown reads them."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from unit.changes.report.reports import HOSTILE, group, job, report, reports
from vllmjobs.changes.model import Field, Report
from vllmjobs.changes.report.markdown import LEAST, LIMIT, as_markdown

GFM = MarkdownIt("commonmark").enable(["table", "strikethrough"])
# What the page holds itself; anything else comes from a value.
TAGS = {
    "h3", "p", "ul", "li", "strong", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "details",
    "summary",
}  # fmt: skip
# And these are in no report.
FOREIGN = {"link_open", "image", "hr", "blockquote_open", "ordered_list_open", "em_open", "code_block"}


class Page(HTMLParser):
    """The elements of a page: open ones, all of them, the cells of each row, and text outside of code."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[int] = []
        self.said = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert all(name in ("class", "style", "open") for name, _ in attrs)
        self.open.append(tag)
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append(0)
        if tag in ("td", "th"):
            self.rows[-1] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "code" not in self.open:
            self.said += data


def tokens(text: str) -> Iterator[Token]:
    """All of them, those within lines too."""
    for token in GFM.parse(text):
        yield token
        yield from token.children or ()


@given(reports, st.integers(LEAST, LIMIT))
def test_no_value_leaves_its_place(found: Report, limit: int) -> None:
    text = as_markdown(found, limit)
    page = Page(GFM.render(text))
    assert page.open == []
    assert page.tags <= TAGS
    assert len(set(page.rows)) <= 1
    assert not re.search(r"(?:@|#|!|%|~|\bGH-)[\w\"]", page.said.replace("🔵", ""))
    for token in tokens(text):
        assert token.type not in FOREIGN
        if token.type == "fence":
            assert token.info in ("diff", "sh")
        if token.type == "heading_open":
            assert token.map == [1, 2]


@given(st.sampled_from(HOSTILE), st.sampled_from(HOSTILE))
def test_a_value_is_read_as_it_is_written(before: str, after: str) -> None:
    field = Field(path=("data",), before=f"x{before}", after=f"y{after}")
    text = as_markdown(report(job(group("chat", "in-place", fields=(field,)))))
    fences = [token.content for token in tokens(text) if token.type == "fence"]
    assert len(fences) == 1
    assert all(line[:2].rstrip() in ("", "+", "-", "!") for line in fences[0].splitlines())
