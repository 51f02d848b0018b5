"""A page of headings, tables and code that can be written as Markdown and as HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

STYLE = """
:root { color-scheme: light dark; }
body { max-width: 52rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; background: #fff; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #8886; overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: .7rem; border: 1px solid #8886; border-radius: 4px; }
"""


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title of the page."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Sentences."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of texts under a head; an empty head names no column."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Code:
    """Lines to be copied as they are."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A picture as a data address; only HTML holds it."""

    address: str
    text: str


Block = Heading | Paragraph | Items | Table | Code | Picture


def as_markdown(blocks: Sequence[Block]) -> str:
    """The page as Markdown, in which every text stands for itself."""
    return "\n\n".join(part for block in blocks if (part := _markdown(block))) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_literal(text)}"
        case Paragraph(text):
            return _literal(text)
        case Items(texts):
            return "\n".join(f"- {_literal(text)}" for text in texts)
        case Table(head, rows):
            width = max(map(len, [head, *rows]))
            lines = [list(head) or [""] * width, ["---"] * width, *rows]
            return "\n".join(
                f"| {' | '.join(cells if i == 1 else map(_literal, cells))} |"
                for i, cells in enumerate(lines)
            )
        case Code(text):
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            return f"{fence}\n{text.rstrip()}\n{fence}"
        case Picture():
            return ""


def _literal(text: str) -> str:
    """On one line, without anything that Markdown or the HTML in it would obey."""
    text = html.escape(" ".join(text.split()), quote=False)
    # A sign at the beginning of a line would make it a heading, a list or a quotation.
    text = re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)
    text = re.sub(r"^(#|[-+]\s|=|\d+[.)]\s)", r"\\\1", text)
    return re.sub(r"(?i)\b(https?|ftp|www|mailto)([:.])", r"\1&#8203;\2", text)


def as_html(blocks: Sequence[Block], title: str) -> str:
    """The page as one HTML file that loads nothing and runs nothing."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<title>{html.escape(title)}</title>\n<link rel="icon" href="data:,">',
            f"<style>{STYLE}</style>\n</head>\n<body>",
            *map(_html, blocks),
            "</body>\n</html>\n",
        ]
    )


def as_fragment(blocks: Sequence[Block]) -> str:
    """The blocks alone, as a part of somebody else's HTML page."""
    return "\n".join(map(_html, blocks))


def _html(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{html.escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Items(texts):
            return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"
        case Table(head, rows):
            top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
            body = "".join(_row(row, bool(head)) for row in rows)
            top = f"<thead><tr>{top}</tr></thead>" if head else ""
            return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>'
        case Code(text):
            return f"<pre><code>{html.escape(text.rstrip())}</code></pre>"
        case Picture(address, text):
            return f'<p><img src="{html.escape(address)}" alt="{html.escape(text)}"></p>'


def _row(cells: Sequence[str], headed: bool) -> str:
    """A row; without a head its first cell names it."""
    texts = [html.escape(cell) for cell in cells]
    first = f"<td>{texts[0]}</td>" if headed else f'<th scope="row">{texts[0]}</th>'
    return f"<tr>{first}{''.join(f'<td>{text}</td>' for text in texts[1:])}</tr>"
