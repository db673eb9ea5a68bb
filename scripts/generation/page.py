"""Pages that are written by hand and hold a made part between two markers."""

import re
from pathlib import Path


def with_part(path: Path, name: str, part: str) -> str:
    """Return the text of a page with a new part between `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""
    text = path.read_text()
    between = re.compile(rf"(?<=<!-- {name}: begin -->\n).*?(?=<!-- {name}: end -->)", re.DOTALL)
    if len(between.findall(text)) != 1:
        raise SystemExit(f"scripts/generate: {path} needs one <!-- {name}: begin --> and its end")
    return between.sub(lambda _: f"\n{part.strip()}\n\n", text)
