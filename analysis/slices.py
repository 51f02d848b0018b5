"""A map at fixed values of some axes: the same model, fewer free axes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from analysis import exports
from analysis.map import StabilityMap
from analysis.quality import Audit
from analysis.surface import Surface
from analysis.table import Tables
from trainables.domain import Axis, InputError, Mistake, StabmapError


@dataclass(frozen=True, repr=False)
class MapSlice(StabilityMap):
    """What `StabilityMap.slice` gives: a map that draws on all points of another.

    Its `frame` holds the points at the fixed values exactly, often none. All questions are answered
    by the model of the whole map. It cannot be exported: `export` the whole map, and slice again.

    Args:
        whole: the map that was sliced.
    """

    whole: StabilityMap

    @cached_property
    def surface(self) -> Surface:
        """The fitted model of the whole map."""
        return self.whole.surface

    @cached_property
    def _tables(self) -> Tables:
        return self.whole._tables

    @property
    def _seen(self) -> tuple[Axis, ...]:
        return self.whole._seen

    @property
    def _evidence(self) -> StabilityMap:
        return self.whole._evidence

    def audit(self, number: int | None = None) -> Audit | None:
        """None: an audit's points cover the whole box."""
        return None

    def write_parquet(self, path: Path) -> None:
        """Refused."""
        raise self._refusal(path)

    def to_json(self) -> str:
        """Refused."""
        raise self._refusal("map.json")

    def export(
        self, folder: str | Path, formats: Sequence[str] = tuple(exports.FILES)
    ) -> list[Path]:
        """Refused: half of the evidence would be missing."""
        raise self._refusal(folder)

    def _refusal(self, target: str | Path) -> StabmapError:
        law = "a slice draws on points outside of it, which a file of it would not hold"
        return InputError([Mistake("export", str(target), law, "export the whole map")])


def sliced(whole: StabilityMap, fixed: Mapping[str, float]) -> MapSlice:
    """A map at fixed values of free axes, which are known to lie in their ranges."""
    axes = tuple(Axis(a.name, value=fixed[a.name]) if a.name in fixed else a for a in whole.axes)
    here = np.ones(len(whole.frame), dtype=bool)
    for name, value in fixed.items():
        here &= whole.frame[name].to_numpy() == value
    rows = whole.frame[here].reset_index(drop=True)
    return MapSlice(axes, rows, {**whole.about, "slice": dict(fixed)}, whole)


def slice_mistakes(axes: Iterable[Axis], fixed: Mapping[str, object]) -> list[Mistake]:
    """What is wrong with the values of a slice, apart from where they lie."""
    mistakes = [
        Mistake(axis.name, fixed[axis.name], "the map has this axis fixed", "leave it out")
        for axis in axes
        if axis.name in fixed and not axis.free
    ]
    if not fixed:
        mistakes.append(Mistake("fixed", {}, "a slice fixes an axis", "give one: weight_decay=0"))
    for name, value in fixed.items():
        if np.ndim(value) != 0:  # type: ignore[arg-type]
            law = "a slice has one value of an axis"
            mistakes.append(Mistake(name, value, law, "give a number"))
    return mistakes
