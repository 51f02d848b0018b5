"""Which trainings would tell a map most: `StabilityMap.suggest_next`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.lookahead import Outlook
from analysis.quality import BOX, box_points
from trainables.domain import AXIS_NAMES, Axis, InputError, Mistake, Point

if TYPE_CHECKING:
    from analysis.map import StabilityMap

Array = NDArray[np.float64]

#: Points drawn over the box, and those of them that are looked at: the most doubtful ones.
POOL = 1024
CANDIDATES = 256
#: Not the seed of the points that stand for the box: a candidate among them would flatter itself.
SEED = 1
#: Suggestions at most: the criterion looks ahead from one model, which many labels would change.
MOST = 64


@dataclass(frozen=True)
class Suggestion:
    """A point that is worth a training.

    Args:
        point: where, in the axes' units.
        drop: by how much its training is expected to lower the share of the box that the map has
            wrong, once those suggested before it are trained. The two boundaries are counted each
            for itself and added up.
    """

    point: Point
    drop: float

    def __str__(self) -> str:
        place = ", ".join(f"{name} {getattr(self.point, name):.4g}" for name in AXIS_NAMES)
        return f"{place}: {self.drop:.2%} of the box"


def suggestions(found: StabilityMap, n: int, fixed: Mapping[str, float]) -> list[Suggestion]:
    """The best of many candidates, one after the other, each in the light of those before it.

    Args:
        found: the map.
        n: how many, 1 to MOST.
        fixed: values of some axes, inside their ranges.
    """
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 1 <= n <= MOST:
        law = f"a whole number from 1 to {MOST}"
        raise InputError([Mistake("n", n, law, "use 8; train them, and ask the new map")])
    if not any(axis.free for axis in found.axes):
        law = "a map of a single point has no other to train"
        raise InputError([Mistake("axes", [], law, "sweep an axis")])
    places = _candidates(found, fixed)
    if not len(places):
        return []
    box = box_points(found.axes, BOX)
    outlook = Outlook(found.surface, found.unit(places), found.unit(box))
    chosen = []
    for _ in range(min(n, len(places))):
        drop, index = outlook.best()
        outlook.take(index)
        chosen.append(Suggestion(_point(places[index]), drop))
    return chosen


def _point(place: Array) -> Point:
    return Point(*map(float, place))


def _candidates(found: StabilityMap, fixed: Mapping[str, float]) -> Array:
    """(m, 3) places of which the map doubts the regime most, none of them trained yet."""
    axes = [Axis(a.name, value=fixed[a.name]) if a.name in fixed else a for a in found.axes]
    places = np.unique(box_points(axes, POOL, SEED), axis=0)
    trained = found._evidence.frame[list(AXIS_NAMES)].to_numpy(np.float64)
    places = places[~(places[:, None] == trained).all(2).any(1)]
    likely = found.surface.probabilities(found.unit(places)).max(1)
    doubtful: Array = places[np.argsort(likely, kind="stable")[:CANDIDATES]]
    return doubtful
