"""The page: template, style, script and data put into one file."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from analysis.map import StabilityMap
from analysis.page.content import content
from analysis.tracking import Tracking
from trainables.domain import InputError, Mistake


def write_page(
    stability_map: StabilityMap,
    path: str | Path,
    tracking: Tracking | None = None,
    theory: bool = True,
) -> Path:
    """Write a map as one HTML file, to be looked at with a mouse or with the keyboard alone.

    The file loads nothing and sends nothing: a Content-Security-Policy in it forbids both. Links to
    MLflow are followed only where the reader follows them.

    Args:
        stability_map: what to show; one to three free axes.
        path: file to write.
        tracking: where its runs are (`analysis.tracking.find_tracking`); without it the page shows
            the filter that finds each run.
        theory: whether to hold the closed-form bounds, which the reader may hide.

    Returns:
        The path.

    Raises:
        InputError: no axis is free, or the file cannot be written.
    """
    text = page_html(stability_map, tracking, theory)
    target = Path(path).expanduser()
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        law = f"cannot be written ({error.strerror or error})"
        remedy = "choose a folder that exists and that you may write to"
        raise InputError([Mistake("path", str(path), law, remedy)]) from error
    return target


def page_html(
    stability_map: StabilityMap, tracking: Tracking | None = None, theory: bool = True
) -> str:
    """The text of the page.

    Raises:
        InputError: no axis is free.
    """
    shown = content(stability_map, tracking, theory)
    style, script = _part("page.css"), _part("page.js")
    return _filled(
        _part("page.html"),
        {
            "policy": html.escape(
                f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; "
                "img-src data:; base-uri 'none'; form-action 'none'"
            ),
            "title": html.escape(f"{shown['title']}: stability map"),
            "style": style,
            "data": embedded(shown),
            "script": script,
        },
    )


def embedded(value: Any) -> str:
    """JSON that no HTML parser takes for markup, whatever texts it holds."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _part(name: str) -> str:
    return (resources.files("analysis.page") / name).read_text("utf-8")


def _filled(template: str, values: dict[str, str]) -> str:
    """All places at once: a value that looks like a place is left alone."""
    return re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], template)


def _digest(text: str) -> str:
    """How the policy names the one style or script that it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
