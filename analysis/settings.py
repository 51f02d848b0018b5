"""What was swept, field by field: in what two maps differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from analysis.map import StabilityMap


@dataclass(frozen=True)
class Difference:
    """A field in which two maps differ: its path, such as `training.optimiser`, and both values.

    None stands for a field that a map does not have.
    """

    field: str
    first: Any
    second: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.first} and {self.second}"


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], apart: tuple[str, ...] = ()
) -> tuple[Difference, ...]:
    """Fields in which descriptions (`StabilityMap.about`) differ, by name.

    Args:
        first: a description.
        second: another one.
        apart: paths of fields that are not looked at, nor what is below them.
    """
    one, two = dict(_flat(first, apart)), dict(_flat(second, apart))
    fields = sorted(one.keys() | two.keys())
    found = (Difference(name, one.get(name), two.get(name)) for name in fields)
    return tuple(d for d in found if not _equal(d.first, d.second))


def settings(found: StabilityMap) -> dict[str, Any]:
    """`about` with the axes as they are, slices included."""
    axes = {
        axis.name: {n: getattr(axis, n) for n in ("scale", "low", "high", "value", "zero")}
        for axis in found.axes
    }
    return {**found.about, "axes": axes}


def _flat(given: Mapping[str, Any], apart: tuple[str, ...], at: str = "") -> Iterator[Any]:
    for name, value in given.items():
        path = f"{at}{name}"
        if path in apart:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, apart, f"{path}.")
        else:
            yield path, value


def _equal(one: Any, two: Any) -> bool:
    """Lists and tuples are one: a file knows no tuples."""
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return np.array_equal(np.array(one, dtype=object), np.array(two, dtype=object))
    return bool(one == two)
