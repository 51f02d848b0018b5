"""What the interactive page shows, as plain values for JSON."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.map import COLUMNS, EVIDENCE, REGIMES, StabilityMap
from analysis.plot import COLOURS, MARKERS, bounds, title_parts
from analysis.tracking import Tracking
from trainables.domain import AXIS_NAMES, ZERO_LEVEL, Axis, InputError, Mistake

Array = NDArray[np.float64]

#: Values along each free axis at which the model is asked, by how many axes are free.
LATTICE = {1: 257, 2: 129, 3: 33}
#: Points of a third axis that are shown with a slice lie this near to it, in unit coordinates.
NEAR = 0.1
#: Steps of a probability on the page: two bytes each.
STEPS = 65535
#: Vertices of a theory line.
VERTICES = 200


def content(
    stability_map: StabilityMap, tracking: Tracking | None = None, theory: bool = True
) -> dict[str, Any]:
    """Everything that the page draws and says.

    Raises:
        InputError: no axis is free.
    """
    free = [axis for axis in stability_map.axes if axis.free]
    if not free:
        law, remedy = "a page needs a free axis", "give an axis a range"
        raise InputError([Mistake("axes", None, law, remedy)])
    title, *parts = title_parts(stability_map)
    return {
        "title": title,
        "parts": parts,
        "counts": stability_map.counts(),
        "quality": str(stability_map.quality).splitlines(),
        "regimes": [{"name": n, "colour": COLOURS[n], "marker": MARKERS[n]} for n in REGIMES],
        "zero": ZERO_LEVEL / 2,
        "near": NEAR,
        "axes": [_axis(axis) for axis in stability_map.axes],
        "views": _views([axis.name for axis in free]),
        "lattice": _lattice(stability_map, free),
        "theory": _theory(stability_map) if theory else [],
        "evidence": list(EVIDENCE),
        "points": _points(stability_map.frame),
        "tracking": _tracking(tracking or Tracking(), stability_map.frame),
    }


def _axis(axis: Axis) -> dict[str, Any]:
    return {
        "name": axis.name,
        "scale": axis.scale,
        "low": axis.low,
        "high": axis.high,
        "value": axis.value,
        "zero": axis.zero,
    }


def _views(names: Sequence[str]) -> list[dict[str, str | None]]:
    """Which axes run across and up, and which one is moved by the slider."""
    if len(names) == 1:
        return [{"across": names[0], "up": None, "along": None}]
    views: list[dict[str, str | None]] = []
    for across, up in combinations(names, 2):
        rest = [name for name in names if name not in (across, up)]
        views.append({"across": across, "up": up, "along": rest[0] if rest else None})
    return views


def _lattice(stability_map: StabilityMap, free: Sequence[Axis]) -> dict[str, Any]:
    """Probabilities of stable and divergent over all free axes, the last axis running fastest."""
    units = np.linspace(0, 1, LATTICE[len(free)])
    values = {a.name: np.r_[[0.0] * a.zero, a.from_unit(units)] for a in free}
    grid = np.meshgrid(*values.values(), indexing="ij")
    found = stability_map.classify(**dict(zip(values, grid, strict=True)))
    return {
        "shape": [len(column) for column in values.values()],
        "steps": STEPS,
        "stable": _bytes(found["stable"]),
        "divergent": _bytes(found["divergent"]),
    }


def _bytes(probabilities: Array) -> str:
    steps = np.rint(np.clip(probabilities, 0, 1) * STEPS).astype("<u2")
    return base64.b64encode(steps.tobytes()).decode("ascii")


def _theory(stability_map: StabilityMap) -> list[dict[str, Any]]:
    """Bounds on lr over weight decay as lines in unit coordinates, where both are free."""
    lr, _, decay = stability_map.axes
    if not (lr.free and decay.free):
        return []
    assert lr.high is not None and lr.low is not None
    heights = np.linspace(0, 1, VERTICES)
    lines = []
    for overlay in bounds(stability_map):
        rates = overlay.lr(decay.from_unit(heights))
        inside = np.isfinite(rates) & (rates >= lr.low) & (rates <= lr.high)
        if inside.sum() > 1:
            places = np.stack([lr.to_unit(rates[inside]), heights[inside]], axis=1)
            line = [[round(float(v), 5) for v in place] for place in places]
            lines.append({"label": overlay.label, "exact": overlay.exact, "line": line})
    return lines


def _points(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Columns of the evidence; axis values in full, so that they find their run."""
    shown = [name for name in COLUMNS if name != "trainings"]
    return {name: [_plain(v, name in AXIS_NAMES) for v in frame[name]] for name in shown}


def _plain(value: Any, full: bool) -> Any:
    if isinstance(value, str) or value is None:
        return value
    if float(value).is_integer():
        return int(value) if abs(value) < 2**53 else float(value)
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    return float(value) if full else float(f"{value:.5g}")


def _tracking(tracking: Tracking, frame: pd.DataFrame) -> dict[str, Any]:
    """Per point: the page of its run, where it is known, and the filter that finds it."""
    parent = f"tags.`mlflow.parentRunId` = '{tracking.sweep}'" if tracking.sweep else None
    links, filters = [], []
    for row in frame[["number", *AXIS_NAMES]].itertuples():
        links.append(tracking.link(tracking.runs.get(int(row.number))))
        at = [f"params.{name} = '{float(getattr(row, name))!r}'" for name in AXIS_NAMES]
        filters.append(" and ".join([*([parent] if parent else []), *at]))
    return {"links": links, "filters": filters}
