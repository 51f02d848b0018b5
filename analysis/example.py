"""A map that takes no training: for examples, notebooks and tests of what reads maps."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from analysis.map import StabilityMap
from analysis.quality import box_points
from trainables.domain import (
    AXIS_NAMES,
    Axis,
    InputError,
    Margins,
    Mistake,
    Point,
    PointResult,
    Reason,
    Regime,
    Replicate,
    Verdict,
)

POINTS = 64
AXES = {
    "lr": {"scale": "log", "low": 0.01, "high": 100.0},
    "alpha": {"scale": "linear", "low": 0.0, "high": 2.0},
    "weight_decay": {"scale": "log", "low": 1e-4, "high": 1.0, "zero": True},
}
HELD = {"lr": 0.1, "alpha": 0.0, "weight_decay": 0.0}
REASONS = {
    Regime.STABLE: Reason.SETTLED,
    Regime.RESTRAINED: Reason.AMPLIFIED,
    Regime.DIVERGENT: Reason.EXPLODED,
}


@lru_cache(maxsize=8)
def example_map(*free: str, seed: int = 0) -> StabilityMap:
    """A made-up map whose boundaries are straight lines in logarithmic coordinates.

    A learning rate is stable up to 10^(-1.3 + 0.4 alpha) weight_decay^-0.4, with weight decays
    below 1e-5 counted as 1e-5, and bounded up to 16 times that.

    Args:
        *free: axes to vary; lr and weight_decay if none is named.
        seed: of the 64 points.

    Raises:
        InputError: an unknown axis.

    Example:
        >>> from stabmap import example_map
        >>> example_map()  # doctest: +ELLIPSIS
        StabilityMap(example, lr 0.01 to 100 log, ...; 64 points: ...)
    """
    free = free or ("lr", "weight_decay")
    if unknown := [name for name in free if name not in AXIS_NAMES]:
        remedy = f"use some of {', '.join(AXIS_NAMES)}"
        raise InputError([Mistake("free", name, "no such axis", remedy) for name in unknown])
    axes = {n: AXES[n] if n in free else {"value": HELD[n]} for n in AXIS_NAMES}
    about = {
        "task": {"name": "example"},
        "axes": axes,
        "training": {
            "optimiser": "sgd", "momentum": 0.0, "decay": "coupled", "ks": [1, 3], "seeds": 1,
            "seed": seed, "steps": 40, "dtype": "float32", "device": "cpu",
            "stabiliser": {"name": "stability" if "alpha" in free else "none"},
        },
        "search": {"method": "sobol"},
    }  # fmt: skip
    places = box_points([Axis(name=n, **axes[n]) for n in AXIS_NAMES], POINTS, seed)
    return StabilityMap.of(about, [(i, _result(place)) for i, place in enumerate(places)])


def _result(place: NDArray[np.float64]) -> PointResult:
    lr, alpha, weight_decay = map(float, place)
    stable = -1.3 + 0.4 * alpha - 0.4 * np.log10(max(weight_decay, 1e-5))
    bounded = float(stable + np.log10(16) - np.log10(lr))
    calm = float(np.clip(stable - np.log10(lr), -1, 1))
    margins = Margins(-1.0 if bounded < 0 else calm, bounded)
    verdict = Verdict(margins, REASONS[margins.regime], 40)
    return PointResult(Point(lr, alpha, weight_decay), (Replicate(0, verdict, 40),))
