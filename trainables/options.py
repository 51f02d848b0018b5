"""Options of tasks and stabilisers: frozen dataclasses that are found by name and check their laws.

Each check names the field as it is written in a spec, such as `task.samples`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainables.domain import InputError, Mistake, nearest
from trainables.messages import listed


def choice(field: str, value: object, allowed: Sequence[str]) -> Iterator[Mistake]:
    """A mistake where `value` is none of `allowed`."""
    if value not in allowed:
        yield Mistake(field, value, "unknown choice", f"use one of {', '.join(allowed)}")


def whole(field: str, value: object, low: int, high: float = math.inf) -> Iterator[Mistake]:
    """A mistake where `value` is not an integer in [low, high]."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        law = f"an integer >= {low}" if high == math.inf else f"an integer from {low} to {high}"
        yield Mistake(field, value, law, "choose one of these")


def number_from(field: str, value: object, low: float, high: float) -> Iterator[Mistake]:
    """A mistake where `value` is not a number in [low, high]."""
    if not _is_number(value) or not low <= value <= high:  # type: ignore[operator]
        yield Mistake(field, value, f"a number from {low:g} to {high:g}", "choose such a number")


def numbers(field: str, value: object, most: int) -> Iterator[Mistake]:
    """A mistake where `value` is not a tuple of 1 to `most` finite numbers."""
    listed = isinstance(value, tuple) and 1 <= len(value) <= most
    if not listed or not all(_is_number(v) and math.isfinite(v) for v in value):  # type: ignore[attr-defined]
        yield Mistake(field, value, f"1 to {most} finite numbers", "write a list such as [2, 1]")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def fraction(field: str, value: object, zero: bool = True) -> Iterator[Mistake]:
    """A mistake where `value` is not in [0, 1), or is 0 where `zero` is false."""
    inside = _is_number(value) and 0 <= value < 1 and (zero or value > 0)  # type: ignore[operator]
    if not inside:
        law = "a number in [0, 1)" if zero else "a number in (0, 1)"
        yield Mistake(field, value, law, "choose such a number, as 0.2")


def flag(field: str, value: object) -> Iterator[Mistake]:
    """A mistake where `value` is neither true nor false."""
    if not isinstance(value, bool):
        yield Mistake(field, value, "true or false", "write one of these")


def as_numbers(value: object) -> object:
    """A list of numbers as a tuple of floats; anything else as it is."""
    if not isinstance(value, (list, tuple)) or not all(_is_number(v) for v in value):
        return value
    try:
        return tuple(map(float, value))
    except OverflowError:  # an integer beyond the largest float
        return value


def as_names(value: object) -> object:
    """One name, or a list of names, as a tuple; anything else as it is."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def layer_names(field: str, value: object) -> Iterator[Mistake]:
    """A mistake where `value` is neither None nor a tuple of different names."""
    if value is None:
        return
    names = value if isinstance(value, tuple) else ()
    texts = bool(names) and all(isinstance(name, str) for name in names)
    if not texts or len(set(names)) < len(names):
        yield Mistake(field, value, "names of layers, each once", "leave it out for the default")


def plain_options(found: Any) -> dict[str, Any]:
    """The name of a dataclass and all its options, as `construct` takes them: tuples as lists."""
    options = dataclasses.asdict(found)
    return {"name": found.name} | {
        key: list(value) if isinstance(value, tuple) else value for key, value in options.items()
    }


def unknown_name(
    field: str, kind: str, name: object, known: Sequence[str], where: str | None = None
) -> InputError:
    """The error of asking for a task or stabiliser that there is not.

    Args:
        field: as it is written in a spec.
        kind: of what there is not.
        name: what was asked for.
        known: all that there are.
        where: all of them are listed, so that a message may name a few only.
    """
    guess = nearest(str(name), known)
    meant = f"did you mean {guess}? " if guess else ""
    names = ", ".join(known) if where is None else listed(known, where)
    return InputError([Mistake(field, name, f"no such {kind}", f"{meant}known: {names}")])


def construct(field: str, name: str, found: type[Any], options: Mapping[str, Any]) -> Any:
    """An instance of the dataclass `found` with these options.

    Raises:
        InputError: an unknown option, or an option that breaks its law.
    """
    known = [f.name for f in dataclasses.fields(found)]
    mistakes = []
    for key, value in options.items():
        if key not in known:
            guess = nearest(key, known)
            meant = f"did you mean {guess}? " if guess else ""
            mistakes.append(
                Mistake(
                    f"{field}.{key}",
                    value,
                    f"{name} has no such option",
                    f"{meant}known: {', '.join(known) or 'none'}",
                )
            )
    try:
        made = found(**{key: value for key, value in options.items() if key in known})
    except InputError as error:
        raise InputError([*mistakes, *error.mistakes]) from error
    except TypeError:
        if not mistakes:  # else the option that is missing may be the one that is misspelt
            raise
    if mistakes:
        raise InputError(mistakes)
    return made
