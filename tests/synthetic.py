"""Made-up results with boundaries that are known exactly, for everything that needs no training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from analysis import surface
from analysis.map import StabilityMap
from sweeps.search.designs import SobolDesign
from sweeps.spec import SweepSpec, load_spec
from sweeps.store import Entry, Store, key_of
from trainables.domain import (
    Curve,
    Margins,
    Point,
    PointResult,
    Reason,
    Regime,
    Replicate,
    Verdict,
)

LR = {"scale": "log", "low": 0.01, "high": 100}
DECAY = {"scale": "log", "low": 1e-4, "high": 1, "zero": True}
ALPHA = {"scale": "linear", "low": 0, "high": 2}

REASONS = {
    Regime.STABLE: Reason.SETTLED,
    Regime.RESTRAINED: Reason.AMPLIFIED,
    Regime.DIVERGENT: Reason.EXPLODED,
}


def spec_of(axes: Mapping[str, Any], **changes: Any) -> SweepSpec:
    """A sweep of the one-layer CNN over some axes."""
    base: dict[str, Any] = {"task": "one-layer-cnn", "axes": dict(axes), "budget": {"points": 64}}
    return load_spec({**base, **changes})


def result_of(
    point: Point, margins: Margins, replicates: int = 1, **evidence: float | None
) -> PointResult:
    """A result whose replicates all have the same margins."""
    verdict = Verdict(margins, REASONS[margins.regime], 37)
    curve = Curve((0, 5), (1.0, 0.5))
    return PointResult(
        point,
        tuple(Replicate(7 + i, verdict, 40, evidence, {"loss": curve}) for i in range(replicates)),
    )


def boundaries(weight_decay: float) -> tuple[float, float]:
    """log10 of the learning rates where restraint and divergence begin: straight lines."""
    slope = -0.4 * math.log10(max(weight_decay, 1e-5) / 1e-2)
    return slope - 0.5, slope + 0.7


def margins_at(point: Point) -> Margins:
    """Distances in decades to both boundaries, the second stretched, the first kept in [-1, 1]."""
    stable, bounded = boundaries(point.weight_decay)
    here = math.log10(point.lr)
    if here > bounded:
        return Margins(-1.0, 300 * (bounded - here))
    return Margins(min(max(stable - here, -1.0), 1.0), bounded - here)


def signs_of(margins: Margins) -> Margins:
    """The same without sizes, which leave little in doubt where they are distances."""
    return Margins(math.copysign(1, margins.stable), math.copysign(1, margins.bounded))


def signs_at(point: Point) -> Margins:
    """On which side of both boundaries a point lies."""
    return signs_of(margins_at(point))


def measure(point: Point) -> PointResult:
    """A training that costs nothing and depends on nothing but the point."""
    return result_of(point, margins_at(point))


def map_of(
    axes: Mapping[str, Any],
    points: Sequence[Point] | int = 64,
    margins: Callable[[Point], Margins] = margins_at,
    **changes: Any,
) -> StabilityMap:
    """A map of made-up margins, at given points or at so many of a design."""
    spec = spec_of(axes, **changes)
    if isinstance(points, int):
        design = SobolDesign(spec.space, 0)
        points = [design[i] for i in range(points)]
    results = [(i, result_of(p, margins(p), growth=0.5)) for i, p in enumerate(points)]
    return StabilityMap.of(spec.about(), results)


def keep(store: Store, result: PointResult, finished_at: float, repetition: int = 0) -> bool:
    """Put one result into a store; whether it was new."""
    return store.extend([Entry(result, repetition, finished_at)])[0]


def kept_in(store: Store, point: Point, repetition: int = 0) -> PointResult | None:
    """What a store has for a point."""
    entry = store.entries.get(key_of(point, repetition))
    return None if entry is None else entry.result


def forget_fits() -> None:
    """Let the next fit of a surface begin from nothing."""
    for cache in (surface._process, surface._sites, surface._gain):
        cache.cache_clear()
    surface._FITTED.clear()
