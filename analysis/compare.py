"""Two maps against each other: what a stabiliser, an optimiser, a dtype or a GPU changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.grid import axis_values
from analysis.map import REGIMES, StabilityMap
from analysis.quality import box_points, drawn_regimes
from analysis.settings import Difference, differences, settings
from analysis.surface import ZERO_SHARE
from analysis.volume import DRAWS, POINTS, ends, part_shares
from trainables.domain import Axis, InputError, Mistake

Array = NDArray[np.float64]

#: Volumes that are compared: stable, and all that does not diverge.
PARTS = ("stable", "bounded")
#: Places along each free axis of the shared grid, by how many of them there are.
PLACES = {1: 256, 2: 64, 3: 20}
#: Fields that say where, not what: they have an entry of their own.
APART = ("axes", "merged", "slice")


@dataclass(frozen=True)
class Gain:
    """How much more of the box a part fills in the second map than in the first.

    Args:
        part: stable, or bounded: stable and restrained together.
        first: share of the box in the first map, mean over the draws of its boundaries.
        second: the same in the second.
        difference: second - first.
        low: lower end of the interval of the difference.
        high: its upper end.
        confidence: share of the draws in the interval.
        probability: posterior probability that the difference is above 0: near 1 or 0 where it is
            significant, 0.5 where nothing can be said.
    """

    part: str
    first: float
    second: float
    difference: float
    low: float
    high: float
    confidence: float
    probability: float

    @property
    def factor(self) -> float:
        """The second share over the first; infinite where the first is 0."""
        return self.second / self.first if self.first else float("inf")

    def __str__(self) -> str:
        return (
            f"{self.part}: {self.first:.1%} -> {self.second:.1%} of the box, "
            f"{self.difference:+.1%} ({self.low:+.1%} to {self.high:+.1%}); "
            f"probability of a gain {self.probability:.3f}"
        )


@dataclass(frozen=True, repr=False)
class Comparison:
    """What `compare` finds.

    Args:
        first: the first map.
        second: the second.
        gains: of the stable volume and of the bounded one.
        settings: in what the maps differ, the values of their fixed axes included.
        places: a grid of the box, which both maps share: the free axes, `first` and `second`, the
            most likely regime in each, `differs`, the probability that the regimes are two, and
            `share`, the part of the box that a place stands for.
    """

    first: StabilityMap
    second: StabilityMap
    gains: tuple[Gain, ...]
    settings: tuple[Difference, ...]
    places: pd.DataFrame

    @cached_property
    def differing(self) -> pd.DataFrame:
        """The places whose most likely regimes differ, the surest ones first.

        Example:
            >>> from stabmap import compare, example_map
            >>> found = example_map()
            >>> len(compare(found, found).differing)
            0
        """
        rows = self.places[self.places["first"] != self.places["second"]]
        return rows.sort_values("differs", ascending=False, kind="stable").reset_index(drop=True)

    def table(self) -> pd.DataFrame:
        """Share of the box by regime in the first map (rows) and in the second (columns).

        Example:
            >>> from stabmap import compare, example_map
            >>> found = example_map("lr", "alpha", "weight_decay")
            >>> table = compare(found.slice(alpha=0), found.slice(alpha=2)).table()
            >>> bool(table.loc["restrained", "stable"] > 0.1)
            True
        """
        found = self.places.pivot_table("share", "first", "second", "sum", fill_value=0.0)
        return found.reindex(index=list(REGIMES), columns=list(REGIMES), fill_value=0.0)

    @property
    def differ(self) -> float:
        """Share of the box in which the most likely regimes differ.

        Example:
            >>> from stabmap import compare, example_map
            >>> compare(example_map(), example_map()).differ
            0.0
        """
        return float(self.places["share"][self.places["first"] != self.places["second"]].sum())

    def to_dict(self) -> dict[str, Any]:
        """Gains, differing settings and the table as plain numbers and texts, for JSON.

        Example:
            >>> from stabmap import compare, example_map
            >>> sorted(compare(example_map(), example_map(seed=1)).to_dict())
            ['differ', 'gains', 'settings', 'table']
        """
        return {
            "gains": {gain.part: asdict(gain) for gain in self.gains},
            "differ": self.differ,
            "table": self.table().to_dict("index"),
            "settings": {d.field: [d.first, d.second] for d in self.settings},
        }

    def __str__(self) -> str:
        """The findings in some lines."""
        lines = [str(gain) for gain in self.gains]
        lines.append(f"another regime is most likely in {self.differ:.1%} of the box")
        lines += [f"differs: {found}" for found in self.settings]
        return "\n".join([*lines, *([] if self.settings else ["the settings are the same"])])

    def _repr_html_(self) -> str:
        """What a notebook shows: both pictures, the gains, the table, what differs."""
        from analysis.notebook import comparison_html

        return comparison_html(self)

    def __repr__(self) -> str:
        """The same as `str`."""
        return f"Comparison({self})"


def compare(
    first: StabilityMap, second: StabilityMap, *, confidence: float = 0.9, seed: int = 0
) -> Comparison:
    """How much of the box is gained by going from one map to another, and where.

    The maps may differ in everything but the ranges of their free axes: the stabiliser or its
    strength, the optimiser, the dtype, the device, even the task. What they differ in is part of
    the result. To compare strengths within one map, compare two slices of it.

    Courses of the boundaries of both maps are drawn from their models' posteriors, jointly for
    slices of one map, and the volumes taken of each (`StabilityMap.volume`). So an interval covers
    what the models do not know of the boundaries, but not how a result would vary over other data.

    Args:
        first: a map, such as the one without the stabiliser.
        second: another one.
        confidence: of the intervals, in (0, 1).
        seed: of the draws.

    Returns:
        Gains of stable and bounded volume, where the regimes differ, and in what the maps do.

    Raises:
        InputError: the free axes have other names or ranges, no axis is free, a confidence outside
            (0, 1), or a map without a point.

    Example:
        >>> from stabmap import compare, example_map
        >>> found = example_map("lr", "alpha", "weight_decay")
        >>> gained = compare(found.slice(alpha=0), found.slice(alpha=2))
        >>> stable, bounded = gained.gains
        >>> 0.1 < stable.low < stable.difference < stable.high, stable.probability > 0.99
        (True, True)
        >>> [str(difference) for difference in gained.settings]
        ['alpha: 0.0 and 2.0']
    """
    if mistakes := _mistakes(first, second, confidence):
        raise InputError(mistakes)
    return Comparison(
        first, second, _gains(first, second, confidence, seed), _settings(first, second),
        _places(first, second),
    )  # fmt: skip


def _mistakes(first: StabilityMap, second: StabilityMap, confidence: float) -> list[Mistake]:
    mistakes = []
    if not 0 < confidence < 1:
        mistakes.append(Mistake("confidence", confidence, "0 < confidence < 1", "use 0.9"))
    for one, two in zip(first.axes, second.axes, strict=True):
        if (one.free or two.free) and one != two:
            law = "maps that are compared have the same free axes with the same ranges"
            remedy = "sweep both over one box, or slice at a value of an axis that one lacks"
            ranges = [_range(axis.__dict__) for axis in (one, two)]
            mistakes.append(Mistake(f"axes.{one.name}", ranges, law, remedy))
    if not mistakes and not any(axis.free for axis in first.axes):
        law = "a sweep of a single point has no volume"
        mistakes.append(Mistake("axes", [], law, "sweep an axis"))
    return mistakes


def _range(axis: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in axis.items() if name != "name" and value is not None}


def _gains(
    first: StabilityMap, second: StabilityMap, confidence: float, seed: int
) -> tuple[Gain, ...]:
    one, two = _draws(first, second, seed)
    found = []
    for part in PARTS:
        found.append(gain_of(part, one, two, confidence))
    return tuple(found)


def gain_of(part: str, one: NDArray[np.int_], two: NDArray[np.int_], confidence: float) -> Gain:
    """What a part of the box gains from one set of drawn regimes to another.

    Args:
        part: one of `analysis.volume.PARTS`.
        one: regimes before, (draws, points).
        two: regimes after, of the same draws.
        confidence: of the interval.
    """
    shares = part_shares(one, part), part_shares(two, part)
    gained = shares[1] - shares[0]
    low, high = ends(gained, confidence)
    # A tie, such as two maps without a boundary, speaks for neither side.
    sure = float((gained > 0).mean() + (gained == 0).mean() / 2)
    before, after = (float(share.mean()) for share in shares)
    return Gain(part, before, after, float(gained.mean()), low, high, float(confidence), sure)


def _draws(
    first: StabilityMap, second: StabilityMap, seed: int
) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Regimes of both maps at points of the box, (draws, points) each."""
    x, y = (found.unit(box_points(found.axes, POINTS)) for found in (first, second))
    if first.surface is second.surface:
        joint = drawn_regimes(first.surface, np.concatenate([x, y]), seed, DRAWS)
        return joint[:, :POINTS], joint[:, POINTS:]
    # Other random numbers for the second, or equal maps would seem to be one and the same.
    draws = (drawn_regimes(first.surface, x, 2 * seed, DRAWS),
             drawn_regimes(second.surface, y, 2 * seed + 1, DRAWS))  # fmt: skip
    return draws


def _settings(first: StabilityMap, second: StabilityMap) -> tuple[Difference, ...]:
    held = tuple(
        Difference(one.name, one.value, two.value)
        for one, two in zip(first.axes, second.axes, strict=True)
        if one.value != two.value
    )
    return held + differences(settings(first), settings(second), APART)


def _places(first: StabilityMap, second: StabilityMap) -> pd.DataFrame:
    """The shared grid with what both maps say of it."""
    free = [axis for axis in first.axes if axis.free]
    values = [axis_values(axis, PLACES[len(free)]) for axis in free]
    grids = np.meshgrid(*values, indexing="ij")
    places = {axis.name: grid.ravel() for axis, grid in zip(free, grids, strict=True)}
    parts = np.meshgrid(*map(_weights, free, values), indexing="ij")
    share = np.prod([part.ravel() for part in parts], axis=0)
    one, two = (_probabilities(found, places) for found in (first, second))
    shown = {name: np.array(REGIMES)[p.argmax(1)] for name, p in (("first", one), ("second", two))}
    return pd.DataFrame({**places, **shown, "differs": 1 - (one * two).sum(1), "share": share})


def _weights(axis: Axis, values: Array) -> Array:
    """Which part of an axis each value stands for: half as much at the ends of the range."""
    ranged = np.ones(len(values) - axis.zero)
    ranged[[0, -1]] = 0.5
    ranged *= (1 - ZERO_SHARE * axis.zero) / ranged.sum()
    return np.concatenate([[ZERO_SHARE], ranged]) if axis.zero else ranged


def _probabilities(found: StabilityMap, places: Mapping[str, Array]) -> Array:
    given = found.classify(**places)
    return np.stack([given[name] for name in REGIMES], axis=1)
