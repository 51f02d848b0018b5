"""A small picture of a map, as SVG in a fraction of a second: for notebooks.

It stands on a white ground of its own, so that it reads the same in a dark notebook.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from analysis.colours import COLOURS
from analysis.map import REGIMES, StabilityMap
from trainables.domain import ZERO_LEVEL, Axis

Array = NDArray[np.float64]

#: Sides of a panel in pixels, cells along each, and room for labels at the left, top and bottom.
WIDTH, HEIGHT, CELLS = 300, 220, 60
LEFT, TOP, BOTTOM, GAP = 62, 20, 76, 26
#: Places of the panels of a third axis, in unit coordinates; its points are in the nearest one.
SLICES = (0.0, 0.5, 1.0)
#: Half the height of the cells of an extra level at 0, in unit coordinates.
HALF = 0.04
#: A regime that is less likely than this is pale.
SURE = 0.8
TEXT = 'font-family="sans-serif" font-size="11" fill="#000"'
#: Marks differ in shape too, and so do the regions: plain, hatched and crossed.
SHAPES = {
    "stable": '<circle r="3.2" cx="{x}" cy="{y}"/>',
    "restrained": '<rect x="{left}" y="{top}" width="6" height="6"/>',
    "divergent": '<path d="M{left} {top}l6 6m0 -6l-6 6" stroke-width="3.4"/>'
    '<path d="M{left} {top}l6 6m0 -6l-6 6" stroke="{colour}" stroke-width="1.8"/>',
}
PATTERNS = (
    '<pattern id="restrained" width="8" height="8" patternUnits="userSpaceOnUse">'
    '<path d="M0 8L8 0" stroke="#000" stroke-opacity=".45" stroke-width=".8"/></pattern>'
    '<pattern id="divergent" width="8" height="8" patternUnits="userSpaceOnUse">'
    '<path d="M0 8L8 0M0 0L8 8" stroke="#000" stroke-opacity=".45" stroke-width=".8"/></pattern>'
)


def sketch(stability_map: StabilityMap, fitted: bool = True) -> str | None:
    """The picture as a data address; None where no axis is free.

    One free axis gives the probabilities on top of each other; two give a map; three give a panel
    for each of three values of the third.

    Args:
        stability_map: what to draw.
        fitted: whether to draw the model's regions; if not, the trained points alone.
    """
    free = [axis for axis in stability_map.axes if axis.free]
    if not free:
        return None
    text = _svg(stability_map, free, fitted)
    return f"data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode('ascii')}"


def _svg(stability_map: StabilityMap, free: Sequence[Axis], fitted: bool) -> str:
    third = free[2] if len(free) > 2 else None
    values = [None] if third is None else _levels(third)
    width = LEFT + len(values) * (WIDTH + GAP)
    height = TOP + HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"><defs>{PATTERNS}</defs>'
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
    ]
    for number, value in enumerate(values):
        held = {} if third is None or value is None else {third.name: value}
        parts.append(f'<g transform="translate({LEFT + number * (WIDTH + GAP)} {TOP})">')
        parts += _panel(stability_map, free, held, fitted, number == 0)
        parts.append("</g>")
    parts += _legend()
    return "".join([*parts, "</svg>"])


def _levels(axis: Axis) -> list[float]:
    """Values of a third axis that have a panel; an extra level at 0 is one of them."""
    values = [float(v) for v in axis.from_unit(np.array(SLICES))]
    return [0.0, *values[1:]] if axis.zero else values


def _panel(
    stability_map: StabilityMap,
    free: Sequence[Axis],
    held: Mapping[str, float],
    fitted: bool,
    labelled: bool,
) -> Iterator[str]:
    across, up = free[0], free[1] if len(free) > 1 else None
    if fitted:
        regions = _bands if up is None else _regions
        yield from regions(stability_map, free, held)
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#000"/>'
    yield from _marks(stability_map, free, held)
    for place, text in _ticks(across):
        x = _x(across, place)
        yield f'<path d="M{x} {HEIGHT}v4" stroke="#000"/>'
        yield f'<text x="{x}" y="{HEIGHT + 16}" text-anchor="middle" {TEXT}>{text}</text>'
    middle = f'x="{WIDTH / 2}" text-anchor="middle"'
    yield f'<text {middle} y="{HEIGHT + 32}" {TEXT}>{_named(across)}</text>'
    for name, value in held.items():
        yield f'<text {middle} y="-6" {TEXT}>{name} = {value:.3g}</text>'
    if labelled:
        ticks = _ticks(up) if up is not None else [(0.0, "0"), (1.0, "1")]
        for place, text in ticks:
            y = HEIGHT * (1 - place) if up is None else _y(up, place)
            yield f'<path d="M0 {y}h-4" stroke="#000"/>'
            yield f'<text x="-7" y="{y + 4}" text-anchor="end" {TEXT}>{text}</text>'
        name = "probability" if up is None else _named(up)
        turned = f'transform="translate(-46 {HEIGHT / 2}) rotate(-90)"'
        yield f'<text {turned} text-anchor="middle" {TEXT}>{name}</text>'


def _named(axis: Axis) -> str:
    return f"{axis.name.replace('_', ' ')} ({axis.scale})"


# --------------------------------------------------------------------------- places


def _share(axis: Axis, unit: float) -> float:
    """Where a unit coordinate lies along a side, from 0 to 1: below the range is room for 0."""
    low = ZERO_LEVEL - HALF if axis.zero else 0.0
    return (float(unit) - low) / (1 - low)


def _x(axis: Axis, unit: float) -> float:
    return round(WIDTH * _share(axis, unit), 1)


def _y(axis: Axis, unit: float) -> float:
    return round(HEIGHT * (1 - _share(axis, unit)), 1)


def _ticks(axis: Axis) -> list[tuple[float, str]]:
    """Unit coordinates and labels: decades of a log axis, a few values of a linear one."""
    assert axis.low is not None and axis.high is not None
    values = [axis.low, (axis.low + axis.high) / 2, axis.high]
    if axis.scale == "log":
        first, last = math.log10(axis.low), math.log10(axis.high)
        decades = range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1)
        stride = math.ceil(len(decades) / 5) if decades else 1
        values = [10.0**d for d in decades[::stride]] if len(decades) > 1 else values[::2]
    ticks = [(float(axis.to_unit(v)), f"{v:.3g}") for v in values]
    return [*([(ZERO_LEVEL, "0")] if axis.zero else []), *ticks]


def _cells(axis: Axis) -> list[tuple[float, float, float]]:
    """Value in the middle of each cell, and its ends in unit coordinates; 0 has a cell apart."""
    edges = np.linspace(0, 1, CELLS + 1)
    middles = axis.from_unit((edges[1:] + edges[:-1]) / 2)
    found = [
        (float(v), float(a), float(b)) for v, a, b in zip(middles, edges, edges[1:], strict=False)
    ]
    apart = (0.0, ZERO_LEVEL - HALF, ZERO_LEVEL + HALF)
    return [apart, *found] if axis.zero else found


# --------------------------------------------------------------------------- what is drawn


def _regions(
    stability_map: StabilityMap, free: Sequence[Axis], held: Mapping[str, float]
) -> Iterator[str]:
    """The most likely regime of each cell, equal neighbours in one piece."""
    across, up = free[0], free[1]
    columns, rows = _cells(across), _cells(up)
    grid = {
        across.name: np.array([c[0] for c in columns])[None, :],
        up.name: np.array([r[0] for r in rows])[:, None],
    }
    found = stability_map.classify(**grid, **held)
    stack = np.stack([found[name] for name in REGIMES])
    looks = 2 * stack.argmax(0) + (stack.max(0) >= SURE)
    for (_, low, high), row in zip(rows, looks, strict=True):
        top, bottom = _y(up, high), _y(up, low)
        for first, last, look in _runs(row, columns):
            left, right = _x(across, columns[first][1]), _x(across, columns[last][2])
            box = f'x="{left}" y="{top}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
            yield _filled(box, REGIMES[look // 2], bool(look % 2))


def _runs(row: Array, columns: Sequence[tuple[float, float, float]]) -> Iterator[tuple[int, ...]]:
    """First and last cell of equal neighbours that touch, and how they look."""
    first = 0
    for here in range(len(row)):
        over = here + 1 == len(row)
        if over or row[here + 1] != row[here] or columns[here + 1][1] > columns[here][2]:
            yield first, here, int(row[here])
            first = here + 1


def _bands(
    stability_map: StabilityMap, free: Sequence[Axis], held: Mapping[str, float]
) -> Iterator[str]:
    """Probabilities along the only axis, on top of each other."""
    columns = _cells(free[0])
    found = stability_map.classify(**{free[0].name: np.array([c[0] for c in columns])}, **held)
    for index, (_, low, high) in enumerate(columns):
        left, top = _x(free[0], low), float(HEIGHT)
        for name in REGIMES:
            tall = HEIGHT * float(found[name][index])
            top -= tall
            size = f'width="{_x(free[0], high) - left:.1f}" height="{tall:.1f}"'
            if tall >= 0.05:
                yield _filled(f'x="{left}" y="{top:.1f}" {size}', name, True)


def _filled(box: str, name: str, sure: bool) -> str:
    fill = f'<rect {box} fill="{COLOURS[name]}" fill-opacity="{0.6 if sure else 0.3}"/>'
    return fill if name == "stable" else f'{fill}<rect {box} fill="url(#{name})"/>'


def _marks(
    stability_map: StabilityMap, free: Sequence[Axis], held: Mapping[str, float]
) -> Iterator[str]:
    """The trained points; with a third axis those that are nearest to this panel."""
    across, up = free[0], free[1] if len(free) > 1 else None
    frame = stability_map.frame
    for axis in free[2:]:
        levels = _levels(axis)
        units = axis.to_unit(frame[axis.name].to_numpy())
        nearest = np.abs(units[:, None] - axis.to_unit(levels)).argmin(1)
        frame = frame[nearest == levels.index(held[axis.name])]
    for name in REGIMES:
        rows = frame[frame["regime"] == name]
        xs = across.to_unit(rows[across.name].to_numpy())
        ys = np.zeros(len(rows)) if up is None else up.to_unit(rows[up.name].to_numpy())
        yield f'<g fill="{COLOURS[name]}" stroke="#000" stroke-width=".7">'
        for x, y in zip(xs, ys, strict=True):
            down = 8.0 + 9 * REGIMES.index(name) if up is None else _y(up, y)
            yield _mark(name, _x(across, x), down)
        yield "</g>"


def _mark(name: str, x: float, y: float) -> str:
    places = {"x": x, "y": y, "left": round(x - 3, 1), "top": round(y - 3, 1)}
    return SHAPES[name].format(**places, colour=COLOURS[name])


def _legend() -> Iterator[str]:
    top = TOP + HEIGHT + 46
    for index, name in enumerate(REGIMES):
        left = LEFT + 92 * index
        yield _filled(f'x="{left}" y="{top}" width="18" height="12"', name, True)
        yield f'<g fill="{COLOURS[name]}" stroke="#000" stroke-width=".7">'
        yield f"{_mark(name, left + 9.0, top + 6.0)}</g>"
        yield f'<text x="{left + 23}" y="{top + 10}" {TEXT}>{name}</text>'
    pale = f"pale: below {SURE:.0%}"
    yield f'<text x="{LEFT}" y="{top + 26}" {TEXT}>{pale}</text>'
