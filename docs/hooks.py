"""What MkDocs does to the pages on their way to the site."""

from __future__ import annotations

import re
from typing import Any

#: A link to a file of the repository that is no page of the site.
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")
#: What tells the tests that a block is not run, and why.
UNRUN = re.compile(r"<!-- not run[^>]*-->\n")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Name files beside `docs/` instead of linking to them: the site stands alone."""

    def named(found: re.Match[str]) -> str:
        text, path = found.groups()
        return f"`{path}`" if text == path else f"{text} (`{path}`)"

    return UNRUN.sub("", OUTSIDE.sub(named, markdown))
