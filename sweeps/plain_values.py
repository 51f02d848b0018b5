"""The laws that hold for every value of a spec, whatever its field."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from sweeps.plain_yaml import DEEPEST
from trainables.domain import InputError, Mistake
from trainables.messages import SECRET_WORD

LONGEST_TEXT = 1000
#: No file system takes a longer name, in bytes.
LONGEST_NAME = 255
MOST_ENTRIES = 10_000
#: Numbers beyond are no settings, and Python is slow to write them.
LARGEST_NUMBER = 10**40

_REMEDY = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the "
    "environment; for PostgreSQL PGPASSWORD, or ~/.pgpass with mode 600"
)
_SECRET_KEY = re.compile(rf"(?i)(.*[._-])?{SECRET_WORD}")
#: In an address, between `://` and `@`, what follows a colon that does not begin a port.
_SECRET_TEXT = re.compile(rf"(?i)://[^/:@\s]*:(?!\d+(/|$))\S*@|{SECRET_WORD}=")


def plain(raw: Mapping[Any, Any]) -> tuple[dict[str, Any], list[Mistake]]:
    """A copy with texts for keys, without the entries that no field may hold.

    Args:
        raw: a spec as it was read or given.

    Returns:
        The copy, and a mistake for each entry that was left out.

    Raises:
        InputError: it is nested too deep, such as a mapping that holds itself.
    """
    mistakes: list[Mistake] = []
    return _mapping(raw, "", 1, mistakes), mistakes


def _mapping(raw: Mapping[Any, Any], field: str, depth: int, mistakes: list[Mistake]) -> Any:
    copied: dict[str, Any] = {}
    if len(raw) > MOST_ENTRIES:
        mistakes.append(_too_many(field or "spec", raw))
        return copied
    for key, value in raw.items():
        name = str(key)
        place = f"{field}.{name}" if field else name
        found = _key_mistake(place, name, value, copied) or _mistake(place, value)
        if found is not None:
            mistakes.append(found)
        else:
            copied[name] = _copy(value, place, depth, mistakes)
    return copied


def _copy(value: Any, field: str, depth: int, mistakes: list[Mistake]) -> Any:
    inner = isinstance(value, (Mapping, list, tuple))
    if inner and depth >= DEEPEST:
        law = f"nested deeper than {DEEPEST}"
        raise InputError([Mistake(field, type(value).__name__, law, "a spec has four levels")])
    if isinstance(value, Mapping):
        return _mapping(value, field, depth + 1, mistakes)
    if not inner:
        return copy.deepcopy(value)
    found = [m for i, each in enumerate(value) if (m := _mistake(f"{field}.{i}", each))]
    if found:  # an entry of a list goes with its list
        mistakes.append(found[0])
        return type(value)()
    entries = (_copy(each, f"{field}.{i}", depth + 1, mistakes) for i, each in enumerate(value))
    return list(entries) if isinstance(value, list) else tuple(entries)


def _key_mistake(place: str, name: str, value: Any, before: Mapping[str, Any]) -> Mistake | None:
    if name in before:
        return Mistake(place, value, "the key stands there twice", "remove one of the two")
    if not name.isprintable() or len(name) > LONGEST_NAME:
        law = f"a key is printable, and of at most {LONGEST_NAME} characters"
        return Mistake(place, value, law, "remove it")
    if _SECRET_KEY.fullmatch(name) and value is not None:
        return _secret(place)
    return None


def _mistake(field: str, value: Any) -> Mistake | None:
    """What is wrong with a value, whatever its field; the contents of lists come later."""
    if isinstance(value, str):
        return _text_mistake(field, value)
    if isinstance(value, (bytes, bytearray)):
        return Mistake(field, value, "a text, not bytes", "write a text")
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        return Mistake(field, "a number of many digits", "at most 40 digits", "use a smaller one")
    if isinstance(value, (Mapping, list, tuple)) and len(value) > MOST_ENTRIES:
        return _too_many(field, value)
    return None


def _text_mistake(field: str, text: str) -> Mistake | None:
    if _SECRET_TEXT.search(text[: 2 * LONGEST_TEXT]):
        return _secret(field)
    if not text.isprintable():
        law = "a text has no control characters, line ends or invisible signs"
        return Mistake(field, text, law, "remove them")
    names = (name.encode(errors="replace") for name in text.split("/"))
    if len(text) > LONGEST_TEXT or any(len(name) > LONGEST_NAME for name in names):
        law = f"at most {LONGEST_TEXT} characters, and {LONGEST_NAME} bytes between two slashes"
        return Mistake(field, text, law, "shorten it")
    return None


def _too_many(field: str, value: Any) -> Mistake:
    law = f"at most {MOST_ENTRIES} entries"
    return Mistake(field, f"{len(value)} entries", law, "leave some out")


def _secret(field: str) -> Mistake:
    law = "a password, token or key does not belong in a spec"
    return Mistake(field, "(hidden)", law, _REMEDY)
