"""Checks that the tasks share; each names the option as it is written in a spec."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainables.domain import Mistake


def choice(option: str, value: object, allowed: Sequence[str]) -> Iterator[Mistake]:
    """A mistake where `value` is none of `allowed`."""
    if value not in allowed:
        yield Mistake(f"task.{option}", value, "unknown choice", f"use one of {', '.join(allowed)}")


def whole(option: str, value: object, low: int, high: int) -> Iterator[Mistake]:
    """A mistake where `value` is not an integer in [low, high]."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        yield Mistake(
            f"task.{option}", value, f"an integer from {low} to {high}", "choose one of these"
        )
