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
def example_map(*free: str, seed: int = 0, seeds: int = 1, orders: int = 1) -> StabilityMap:
    """A made-up map whose boundaries are straight lines in logarithmic coordinates.

    A learning rate is stable up to 10^(-1.3 + 0.4 alpha) weight_decay^-0.4, with weight decays
    below 1e-5 counted as 1e-5, and bounded up to 16 times that. Where trainings do not diverge the
    metric is an accuracy of 0.9 with three made-up scatters: a standard deviation of 0.002 between
    the k, 0.01 between the seeds and, with several data orders, 0.005 between these.

    Args:
        *free: axes to vary; lr and weight_decay if none is named.
        seed: of the 64 points.
        seeds: initial weights a point.
        orders: data orders of each.

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
            "optimiser": "sgd", "momentum": 0.0, "decay": "coupled", "ks": [1, 3], "seeds": seeds,
            "seed": seed, "orders": orders, "steps": 40, "dtype": "float32", "device": "cpu",
            "stabiliser": {"name": "stability" if "alpha" in free else "none"},
        },
        "search": {"method": "sobol"},
    }  # fmt: skip
    places = box_points([Axis(name=n, **axes[n]) for n in AXIS_NAMES], POINTS, seed)
    results = [(i, _result(place, i, seeds, orders)) for i, place in enumerate(places)]
    return StabilityMap.of(about, results)


def _result(place: NDArray[np.float64], number: int, seeds: int, orders: int) -> PointResult:
    lr, alpha, weight_decay = map(float, place)
    stable = -1.3 + 0.4 * alpha - 0.4 * np.log10(max(weight_decay, 1e-5))
    bounded = float(stable + np.log10(16) - np.log10(lr))
    near = float(np.clip(stable - np.log10(lr), -1, 1))
    margins = Margins(-1.0 if bounded < 0 else near, bounded)
    verdict = Verdict(margins, REASONS[margins.regime], 40)
    calm = margins.regime is not Regime.DIVERGENT
    random = np.random.default_rng(number)
    by_seed, by_order = random.normal(size=seeds) * 0.01, random.normal(size=orders) * 0.005
    by_k = random.normal(size=(seeds, orders, 2)) * 0.002
    replicates = []
    for i, j in np.ndindex(seeds, orders):
        metrics = 0.9 + by_seed[i] + by_order[j] * (orders > 1) + by_k[i, j]
        names = ("metric", "metric_k3")
        evidence = {n: float(v) if calm else None for n, v in zip(names, metrics, strict=True)}
        order = j if orders > 1 else None
        replicates.append(Replicate(i, verdict, 40, evidence, order=order))
    return PointResult(Point(lr, alpha, weight_decay), tuple(replicates))
