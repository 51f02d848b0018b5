"""An Optuna search space as the unit cube of the fitted model, and back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from analysis.surface import INDICATOR, ZERO_SHARE
from trainables.domain import InputError, Mistake

Array = NDArray[np.float64]
Range = FloatDistribution | IntDistribution
Params = Mapping[str, Any]


@dataclass(frozen=True)
class Encoding:
    """Parameters as unit coordinates: ranges first, then columns that indicate categories.

    Args:
        space: name and distribution of each parameter.
        zero: for an axis with an extra level at 0 the name of its switch, a categorical parameter
            with the choices False and True. Where it is True the axis has no meaning; it is
            proposed, and read, as the low end of its range.

    Raises:
        InputError: an entry of the space is no distribution, or one of `zero` names no such pair.
    """

    space: Mapping[str, BaseDistribution]
    zero: Mapping[str, str]

    def __post_init__(self) -> None:
        mistakes = [
            Mistake(
                f"space.{name}",
                given,
                "an axis is a numeric range (FloatDistribution, IntDistribution) or a facet "
                "(CategoricalDistribution) of Optuna",
                "write FloatDistribution(low, high, log=True)",
            )
            for name, given in self.space.items()
            if not isinstance(given, (FloatDistribution, IntDistribution, CategoricalDistribution))
        ]
        for axis, switch in self.zero.items():
            if not isinstance(self.space.get(axis), (FloatDistribution, IntDistribution)):
                law, remedy = "an axis with an extra zero is a numeric range", "name one"
                mistakes.append(Mistake("zero", axis, law, remedy))
            choices = getattr(self.space.get(switch), "choices", ())
            if set(map(repr, choices)) != {"False", "True"}:
                law = "the switch of an extra zero is categorical"
                remedy = "use CategoricalDistribution([False, True])"
                mistakes.append(Mistake(f"zero.{axis}", switch, law, remedy))
            elif list(self.zero.values()).count(switch) > 1:
                law, remedy = "an axis with an extra zero has a switch of its own", "add one"
                mistakes.append(Mistake(f"zero.{axis}", switch, law, remedy))
        if mistakes:
            raise InputError(mistakes)

    @cached_property
    def ranges(self) -> dict[str, Range]:
        """The numeric parameters."""
        kinds = (FloatDistribution, IntDistribution)
        return {name: d for name, d in self.space.items() if isinstance(d, kinds)}

    @cached_property
    def facets(self) -> dict[str, tuple[Any, ...]]:
        """The choices of the categorical parameters that are no switches."""
        switches = set(self.zero.values())
        return {
            name: d.choices
            for name, d in self.space.items()
            if isinstance(d, CategoricalDistribution) and name not in switches
        }

    @property
    def free(self) -> int:
        """How many axes have more than one value; a switch is no axis."""
        return sum(not self.space[name].single() for name in (*self.ranges, *self.facets))

    @property
    def draws(self) -> int:
        """How many uniform numbers make one point."""
        return len(self.ranges) + len(self.facets)

    @cached_property
    def size(self) -> int | None:
        """How many different points there are; None where there is no end of them."""
        sizes = [len(choices) for choices in self.facets.values()]
        for name, d in self.ranges.items():
            if d.step is None:
                return None
            sizes.append(_steps(d) + (name in self.zero))
        return math.prod(sizes)

    @property
    def indicators(self) -> int:
        """How many columns indicate categories."""
        return len(self.zero) + sum(len(_columns(len(c), 0)) for c in self.facets.values())

    def decode(self, draws: Array) -> list[dict[str, Any]]:
        """Parameters from uniform numbers, (n, draws) in [0, 1): any even spread stays even."""
        found: dict[str, Sequence[Any]] = {}
        columns = iter(draws.T)
        for name, given in self.ranges.items():
            units = next(columns)
            if name in self.zero:
                found[self.zero[name]] = (units < ZERO_SHARE).tolist()
                units = np.maximum(units - ZERO_SHARE, 0.0) / (1 - ZERO_SHARE)
            found[name] = _values(given, units.tolist())
        for name, choices in self.facets.items():
            last = len(choices) - 1
            found[name] = [choices[min(int(u * len(choices)), last)] for u in next(columns)]
        rows = zip(*(found[name] for name in self.space), strict=True)
        return [dict(zip(self.space, row, strict=True)) for row in rows]

    def encode(self, points: Sequence[Params]) -> Array:
        """(n, d) unit coordinates."""
        found = np.empty((len(points), len(self.ranges) + self.indicators))
        found[:, : len(self.ranges)] = self._coordinates(points)
        if self.indicators:
            found[:, len(self.ranges) :] = [[*self._indicators(params)] for params in points]
        return found

    def _coordinates(self, points: Sequence[Params]) -> Array:
        """(n, ranges) unit coordinates."""
        found = np.empty((len(points), len(self.ranges)))
        for column, (name, given) in enumerate(self.ranges.items()):
            found[:, column] = _units(given, [params[name] for params in points])
            if name in self.zero:
                found[[bool(params[self.zero[name]]) for params in points], column] = 0.0
        return found

    def _indicators(self, params: Params) -> Iterator[float]:
        for switch in self.zero.values():
            yield 0.5 + INDICATOR * bool(params[switch])
        for name, choices in self.facets.items():
            yield from _columns(len(choices), self._index(name, params))

    def _index(self, name: str, params: Params) -> int:
        return int(self.space[name].to_internal_repr(params[name]))

    def draws_near(self, params: Params, shifts: Array) -> Array:
        """(n, draws) uniform numbers whose ranges lie (n, ranges) shifts away from a point."""
        start = []
        for name, coordinate in zip(self.ranges, self._coordinates([params])[0], strict=True):
            if name in self.zero:
                coordinate = ZERO_SHARE + coordinate * (1 - ZERO_SHARE)
                coordinate = 0.0 if params[self.zero[name]] else coordinate
            start.append(coordinate)
        moved = np.clip(np.array(start) + shifts, 0.0, 1.0)
        for column, name in enumerate(self.ranges):
            if name in self.zero and params[self.zero[name]]:
                moved[:, column] = 0.0
        facets = [
            (self._index(name, params) + 0.5) / len(choices)
            for name, choices in self.facets.items()
        ]
        return np.concatenate([moved, np.tile(facets, (len(shifts), 1))], axis=1)

    def holds(self, params: Params) -> bool:
        """Whether a point has all parameters, each inside its distribution."""
        return all(
            name in params and _contains(given, params[name]) for name, given in self.space.items()
        )

    def mistakes(self, params: Params, where: str) -> Iterator[Mistake]:
        """Why a point has no coordinates; a number outside its range has some.

        Args:
            params: the point.
            where: what it is called in messages.
        """
        for name, given in self.space.items():
            field, value = f"{where}.{name}", params.get(name)
            if name not in params:
                yield Mistake(field, None, "the search varied this axis", "give its value")
            elif isinstance(given, CategoricalDistribution):
                if not _contains(given, value):
                    yield Mistake(field, value, f"one of {list(given.choices)}", "choose one")
            elif not (isinstance(value, Real) and math.isfinite(value)):
                yield Mistake(field, value, "a finite number", "give its value")
            elif name in self.ranges and self.ranges[name].log and value <= 0:
                yield Mistake(field, value, "> 0 must hold on a log scale", "raise it")

    def key(self, params: Params) -> tuple[float | None, ...]:
        """What two points share that are one: at an extra zero the axis does not count."""
        ignored = {axis for axis, switch in self.zero.items() if params[switch]}
        return tuple(
            None if name in ignored else _place(given, params[name])
            for name, given in self.space.items()
        )

    def everything(self) -> Iterator[dict[str, Any]]:
        """All points, where their number has an end, one at a time: there may be many."""
        for draws in itertools.product(*map(self._levels, self.space)):
            params = dict(zip(self.space, draws, strict=True))
            lowest = all(params[a] == self.ranges[a].low for a, s in self.zero.items() if params[s])
            if lowest:  # the one of each extra zero that is proposed
                yield params

    def _levels(self, name: str) -> Iterator[Any]:
        given = self.ranges.get(name)
        if given is None:
            return iter(self.space[name].choices)  # type: ignore[attr-defined]
        return (_stepped(given, i) for i in range(_steps(given)))


def _units(given: Range, values: Sequence[float]) -> Array:
    if given.high == given.low:
        return np.zeros(len(values))
    place = np.array(values, dtype=np.float64)
    if given.log:
        # numpy's logarithm, as in `Axis.to_unit`: other ones differ in the last bit.
        logs: Array = np.log(place / given.low) / math.log(given.high / given.low)
        return logs
    return (place - given.low) / (given.high - given.low)


def _values(given: Range, units: Sequence[float]) -> Sequence[float | int]:
    """The values at unit coordinates, on the steps where there are any."""
    low, high = given.low, given.high
    if given.step is not None and not given.log:  # each step gets the same share
        count = _steps(given)
        return [_stepped(given, min(int(unit * count), count - 1)) for unit in units]
    if given.log:
        width = math.log(high / low)
        values = [low * math.exp(unit * width) for unit in units]
    else:
        values = [low + unit * (high - low) for unit in units]
    if isinstance(given, IntDistribution):
        return [int(min(max(round(value), low), high)) for value in values]
    return [float(min(max(value, low), high)) for value in values]


def _steps(given: Range) -> int:
    assert given.step is not None
    return round((given.high - given.low) / given.step) + 1


def _stepped(given: Range, index: int) -> float | int:
    assert given.step is not None
    if isinstance(given, IntDistribution):
        return int(given.low + index * given.step)
    return float(min(given.low + index * given.step, given.high))


def _place(given: BaseDistribution, value: Any) -> float:
    """A number that equal values share: two roundings of a step are equal."""
    if isinstance(given, FloatDistribution) and given.step is not None:
        return float(round((value - given.low) / given.step))
    return float(given.to_internal_repr(value))


def _contains(given: BaseDistribution, value: Any) -> bool:
    try:
        return given._contains(given.to_internal_repr(value))
    except ValueError:  # not even of the right type
        return False


def _columns(count: int, index: int) -> list[float]:
    """Two choices need one column, more need one each."""
    return [0.5 + INDICATOR * (index == i) for i in range(1 if count <= 2 else 0, count)]
