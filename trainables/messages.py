"""Text for people: short, on one line, printable, and without anybody's password."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from urllib.parse import unquote

#: Words that announce a secret: as a key, or before `=` in an address.
SECRET_WORD = r"(?:password|passwd|pwd|token|secret|credentials?|api[_-]?key|access[_-]?key)"

#: Environment variables whose value is a secret.
SECRET_VARIABLES = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PGPASSWORD",
    "RAY_AUTH_TOKEN",
)

#: Those whose value is an address that may have a password in it.
ADDRESS_VARIABLES = ("MLFLOW_TRACKING_URI", "STABMAP_DATABASE")

HIDDEN = "***"

#: What is looked at of a value that is far too long to be shown.
LONGEST_VALUE = 4000

#: A shorter secret is hidden by its place alone: as a word it would hide half of every message.
SHORTEST_SECRET = 4


def redacted(text: str) -> str:
    """A text without user names, passwords and tokens: those in addresses, and the environment's.

    Rather too much is hidden than too little: an address with an `@` in its path loses its host.
    """
    for secret in _secrets_of_environment():
        text = text.replace(secret, HIDDEN)
    text = re.sub(r"://\S*@", f"://{HIDDEN}@", text)
    return re.sub(rf"(?i)({SECRET_WORD}(?:=|['\"]: ?)['\"]?)[^&\s'\"]*", rf"\1{HIDDEN}", text)


def _secrets_of_environment() -> list[str]:
    """As they are and as they are written in an address, the longest first."""
    found = [os.environ.get(name, "") for name in SECRET_VARIABLES]
    for name in ADDRESS_VARIABLES:
        address = re.search(r"://(.*)@", os.environ.get(name, ""), re.DOTALL)
        if address:
            user, colon, password = address[1].partition(":")
            found.append(password if colon else user)
    every = {each for secret in found for each in (secret, unquote(secret))}
    return sorted((s for s in every if len(s) >= SHORTEST_SECRET), key=len, reverse=True)


def first_line(error: BaseException, length: int = 200) -> str:
    """The first line of an error's text, without secrets; empty where it has none."""
    return redacted((str(error).strip().splitlines() or [""])[0])[:length]


def printable(text: str) -> str:
    """A text whose control characters, line ends included, are written as escapes.

    A terminal would obey them; a log would take what follows for another entry.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shortened(text: str, length: int) -> str:
    """A text of at most so many characters; dots stand for the rest."""
    return text if len(text) <= length else f"{text[: length - 4]} ..."


def listed(names: Sequence[str], where: str, room: int = 120) -> str:
    """Names with commas: as many as fit, then how many more there are and where all of them are."""
    kept = [name for i, name in enumerate(names) if len(", ".join(names[: i + 1])) <= room]
    more = len(names) - len(kept)
    return ", ".join(kept) + (f" and {more} more ({where})" if more else "")


def shown(value: object) -> str:
    """The beginning of a value as Python writes it, or its type where that cannot be done."""
    try:
        return repr(value)[:LONGEST_VALUE]
    except Exception:  # an integer of 5,000 digits, a list that holds itself too deep
        return f"<{type(value).__name__}>"
