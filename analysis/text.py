"""A map as text, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.map import REGIMES, StabilityMap
from trainables.domain import Axis

Array = NDArray[np.float64]

SHADES = (".", "~", "#")
LEGEND = ". stable   ~ restrained   # divergent   (S, R, D: evaluated points)"


def as_text(stability_map: StabilityMap, width: int = 56, height: int = 16) -> str:
    """Regions as shades, evaluated points as letters; the first free axis runs to the right.

    A third free axis is held at its smallest value, which the text says.

    Args:
        stability_map: what to draw.
        width: columns of the region.
        height: rows of the region.
    """
    free = [axis for axis in stability_map.axes if axis.free]
    if not free:
        return f"one point: {stability_map.frame['regime'].iloc[0]}"
    across, up = free[0], free[1] if len(free) > 1 else None
    held = {axis.name: axis.smallest for axis in free[2:]}
    gap = 2 if across.zero else 0  # one column for the zero level, one to set it apart
    x = across.from_unit(np.linspace(0, 1, width - gap))
    levels = [0.0] if up is None else up.from_unit(np.linspace(0, 1, height))
    rows = [_shades(stability_map, across, x, up, float(v), held) for v in levels]
    zero = None
    if up is not None and up.zero:
        zero = _shades(stability_map, across, x, up, 0.0, held)
    for _, point in stability_map.frame.iterrows():
        if any(point[name] != value for name, value in held.items()):
            continue
        place = float(across.to_unit(point[across.name]))
        column = 0 if place < 0 else gap + round(place * (width - gap - 1))
        level = float(up.to_unit(point[up.name])) if up is not None else 0.0
        row = zero if zero is not None and level < 0 else rows[round(level * (len(rows) - 1))]
        row[column] = str(point["regime"])[0].upper()
    text = _framed(rows, zero, across, up, held)
    given = stability_map.stand_in
    return text if given is None else f"{text}\ndata: a stand-in for {given}"


def _shades(
    stability_map: StabilityMap,
    across: Axis,
    x: Array,
    up: Axis | None,
    level: float,
    held: Mapping[str, float],
) -> list[str]:
    values = np.concatenate([[0.0], x]) if across.zero else x
    at: dict[str, float | Array] = {across.name: values, **held}
    if up is not None:
        at[up.name] = level
    probabilities = stability_map.classify(**at)
    best = np.argmax(np.stack([probabilities[name] for name in REGIMES]), axis=0)
    shades = [SHADES[i] for i in best]
    return [shades[0], " ", *shades[1:]] if across.zero else shades


def _framed(
    rows: Sequence[list[str]],
    zero: list[str] | None,
    across: Axis,
    up: Axis | None,
    held: Mapping[str, float],
) -> str:
    labels = [""] * len(rows)
    if up is not None:
        labels[0], labels[-1] = f"{up.low:.3g}", f"{up.high:.3g}"
    margin = max(map(len, [*labels, "0"])) + 1
    lines = [f"{label:>{margin}} |{''.join(row)}|" for label, row in zip(labels, rows, strict=True)]
    lines.reverse()
    if zero is not None:
        lines.append(f"{'0':>{margin}} |{''.join(zero)}|")
    if up is not None:
        lines.insert(0, f"{up.name} ({up.scale})")
    ends = f"{'0 ' if across.zero else ''}{across.low:.3g}", f"{across.high:.3g}"
    gap = len(rows[0]) - len(ends[0]) - len(ends[1])
    middle = f"{across.name} ({across.scale})"
    lines.append(f"{'':>{margin}}  {ends[0]}{middle:^{max(gap, 1)}}{ends[1]}")
    if held:
        lines.append("at " + ", ".join(f"{name} = {value:g}" for name, value in held.items()))
    return "\n".join([*lines, LEGEND])
