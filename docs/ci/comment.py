#!/usr/bin/env python3
"""Puts a report on the pull or merge request as one comment: the one that is there is written anew.

usage: ci/comment.py <report.md

The report's first line is its marker. A comment is the same one when it begins with that line and was written
by whoever the token belongs to. Reads what GitHub Actions or GitLab CI sets, and
GITHUB_TOKEN or GITLAB_TOKEN. Exits 1 when nothing could be written.
"""

import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

SECONDS = 30  # for one request


class Forge(NamedTuple):
    """The differences between GitHub and GitLab."""

    comments: str
    """The address at which a request's comments are listed and made."""
    change: str
    """The address at which a comment is changed; its id follows."""
    verb: str
    author: str
    """The key of a comment that names its author."""
    header: tuple[str, str]
    me: str
    """The user to whom the token belongs."""


def github() -> Forge:
    """Ask GraphQL who we are: a workflow's own token may not read `/user`."""
    header = ("Authorization", f"Bearer {variable('GITHUB_TOKEN')}")
    match = re.fullmatch(r"refs/pull/(\d+)/(?:merge|head)", variable("GITHUB_REF"))
    if not match:
        sys.exit(f"comment.py: {variable('GITHUB_REF')} is no pull request")
    issues = f"{variable('GITHUB_API_URL')}/repos/{variable('GITHUB_REPOSITORY')}/issues"
    viewer, _ = send("POST", variable("GITHUB_GRAPHQL_URL"), header, {"query": "{ viewer { login } }"})
    if "data" not in viewer:
        sys.exit(f"comment.py: {variable('GITHUB_GRAPHQL_URL')}: {viewer}")
    me = viewer["data"]["viewer"]["login"]
    return Forge(f"{issues}/{match[1]}/comments", f"{issues}/comments", "PATCH", "user", header, me)


def gitlab() -> Forge:
    """Use a project's access token: the job's own may not write comments."""
    header = ("PRIVATE-TOKEN", variable("GITLAB_TOKEN"))
    api = variable("CI_API_V4_URL")
    request = variable("CI_MERGE_REQUEST_IID")
    notes = f"{api}/projects/{variable('CI_PROJECT_ID')}/merge_requests/{request}/notes"
    user, _ = send("GET", f"{api}/user", header)
    return Forge(notes, notes, "PUT", "author", header, user["username"])


def variable(name: str) -> str:
    """Read an environment variable that has to be there."""
    value = os.environ.get(name, "")
    if not value:
        sys.exit(f"comment.py: {name} is not set")
    return value


def send(verb: str, url: str, header: tuple[str, str], body: object = None) -> tuple[Any, str]:
    """Return the answer, and the address of the next page or nothing."""
    request = urllib.request.Request(
        url,
        method=verb,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Accept": "application/json", "Content-Type": "application/json"},
    )
    request.add_unredirected_header(*header)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            following = re.search(r'<([^>]+)>;\s*rel="next"', answer.headers.get("Link", ""))
            return json.load(answer), following[1] if following else ""
    except urllib.error.HTTPError as error:
        body = error.read(500).decode(errors="replace")
        sys.exit(f"comment.py: {verb} {url}: {error.code} {error.reason}: {body}")
    except (OSError, ValueError) as error:
        sys.exit(f"comment.py: {verb} {url}: {error}")


def listed(forge: Forge) -> Iterator[dict[str, Any]]:
    """Go through all comments, page by page."""
    url = f"{forge.comments}?per_page=100"
    while url:
        page, url = send("GET", url, forge.header)
        yield from page


def main() -> None:
    """Write the comment."""
    report = sys.stdin.read()
    marker = report.partition("\n")[0].strip()
    if not re.fullmatch("<!-- .+ -->", marker):
        sys.exit("comment.py: the first line of the report is no marker, such as <!-- vllmjobs diff -->")
    forge = gitlab() if "GITLAB_CI" in os.environ else github()
    for comment in listed(forge):
        by = comment[forge.author]  # null, once the account is gone
        name = by and by.get("login", by.get("username"))
        if name == forge.me and comment["body"].partition("\n")[0].strip() == marker:
            send(forge.verb, f"{forge.change}/{comment['id']}", forge.header, {"body": report})
            print(f"updated comment {comment['id']}")
            return
    made, _ = send("POST", forge.comments, forge.header, {"body": report})
    print(f"wrote comment {made['id']}")


if __name__ == "__main__":
    main()
