"""Pictures of a map, for paper and screen: readable in grey and for the colour-blind."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from analysis.colours import COLOURS as COLOURS
from analysis.compare import Comparison
from analysis.map import REGIMES, StabilityMap
from analysis.theory import Overlay, overlays
from trainables.domain import ZERO_LEVEL, Axis, InputError, Mistake

Array = NDArray[np.float64]

HATCHES = {"stable": "", "restrained": "//", "divergent": "xx"}
MARKERS = {"stable": "o", "restrained": "s", "divergent": "X"}
#: Cells along each side of a panel.
RESOLUTION = 160
#: Characters of a line of the title: more are wider than a map of two axes.
LONGEST_LINE = 80
#: Panels along a third free axis, in unit coordinates.
SLICES = (0.0, 0.5, 1.0)
#: Width of a picture beside text, in pixels.
SMALL = 720
#: matplotlib is not made for several threads: settings, fonts and formulas are shared.
_DRAWING = threading.RLock()


def plot_map(stability_map: StabilityMap, path: str | Path, theory: bool = True) -> Path:
    """Draw a map: regions of the fitted model, every evaluated point, the theory's bounds.

    One free axis gives curves of the probabilities; two give a map; a third gives a panel for
    each of a few of its values, with each point in the nearest panel. Scales are those of the
    axes. Where the most likely regime has less than 80 % the region is pale.

    Args:
        stability_map: what to draw.
        path: file to write; the ending decides the format (png, svg, pdf).
        theory: whether to draw the closed-form bounds.

    Returns:
        The path.

    Raises:
        InputError: no axis is free, or the file cannot be written.
    """
    free = [axis for axis in stability_map.axes if axis.free]
    if not free:
        raise InputError(
            [Mistake("axes", None, "a picture needs a free axis", "give an axis a range")]
        )
    with _DRAWING:
        if len(free) == 1:
            return _saved(_curves(stability_map, free[0]), path)
        return _saved(_regions(stability_map, free, theory), path)


def shrink(picture: Path, path: Path, width: int = SMALL) -> Path:
    """Write a picture (PNG) again, so wide at most."""
    from PIL import Image  # comes with matplotlib

    with Image.open(picture) as opened:
        small = opened.convert("RGB")
        small.thumbnail((width, 10 * width))
        small.save(path, optimize=True)
    return path


def plot_comparison(found: Comparison, path: str | Path) -> Path:
    """Draw two maps next to each other, and the stable and bounded volume that is gained.

    Two or three free axes; a third is held at the middle of its range, which the title says. What
    only one of the maps has as stable is outlined in both.

    Args:
        found: what `compare` gave.
        path: file to write; the ending decides the format (png, svg, pdf).

    Returns:
        The path.

    Raises:
        InputError: fewer than two free axes, or the file cannot be written.
    """
    free = [axis for axis in found.first.axes if axis.free]
    if len(free) < 2:
        law = "the picture of a comparison needs two free axes"
        raise InputError([Mistake("axes", [a.name for a in free], law, "print the table instead")])
    with _DRAWING:
        return _saved(_compared(found, free), path)


def _compared(found: Comparison, free: Sequence[Axis]) -> Figure:
    across, up = _Scale(free[0]), _Scale(free[1])
    held = {axis.name: float(axis.from_unit(0.5)) for axis in free[2:]}
    figure = Figure(figsize=(15.0, 5.2), layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    stable = [_stable_cells(one, across, up, held) for one in (found.first, found.second)]
    for panel, one, name in zip(panels, (found.first, found.second), _names(found), strict=False):
        _region_panel(panel, one, across, up, held)
        _outline(panel, across, up, stable[0] != stable[1])
        panel.set_title(name, fontsize=10)
    _gain_panel(panels[2], found)
    figure.suptitle(", ".join(f"{name} = {value:.3g}" for name, value in held.items()), fontsize=10)
    patches = _legend(panels[0])[: len(REGIMES)]
    patches.append(Line2D([], [], color="black", linewidth=1.6, label="stable in one of them"))
    figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _names(found: Comparison) -> list[str]:
    """What sets either map apart: the first fields that differ."""
    pairs = [(d.field.rpartition(".")[2], d.first, d.second) for d in found.settings[:3]]
    names = [", ".join(f"{n} = {pair[i]}" for n, *pair in pairs) for i in range(2)]
    return [
        f"{order}: {name or 'same settings'}"[:70]
        for order, name in zip(("first", "second"), names, strict=True)
    ]


def _stable_cells(
    found: StabilityMap, across: _Scale, up: _Scale, held: Mapping[str, float]
) -> Any:
    """Whether stable is most likely, in the cells of a panel; no cell of a gap is."""
    x, y = across.cells()[1], up.cells()[1]
    solid = np.isfinite(y)[:, None] & np.isfinite(x)[None, :]
    grid = {
        across.axis.name: np.where(np.isfinite(x), x, x[-1])[None, :],
        up.axis.name: np.where(np.isfinite(y), y, y[-1])[:, None],
    }
    given = found.classify(**grid, **held)
    best = np.argmax(np.stack([given[name] for name in REGIMES]), axis=0)
    return solid & (best == 0)


def _outline(panel: Axes, across: _Scale, up: _Scale, inside: Any) -> None:
    """A line around cells, block by block."""
    x_edges, y_edges = across.cells()[0], up.cells()[0]
    for rows in up.blocks():
        for columns in across.blocks():
            part = inside[rows, columns]
            if part.any() and not part.all():
                x = _to_edges(x_edges[columns.start :], part.shape[1])
                y = _to_edges(y_edges[rows.start :], part.shape[0])
                cells = np.pad(part.astype(float), 1, mode="edge")
                panel.contour(x, y, cells, levels=[0.5], colors="black", linewidths=1.6)


def _gain_panel(panel: Axes, found: Comparison) -> None:
    """The gains with their intervals."""
    for row, gain in enumerate(found.gains):
        panel.plot([gain.low, gain.high], [row, row], color="black", linewidth=2)
        panel.plot(gain.difference, row, "o", color="black")
        text = f"{gain.difference:+.1%}, P(gain) = {gain.probability:.3f}"
        panel.annotate(
            text, (gain.difference, row), (0, 12), textcoords="offset points", ha="center",
            fontsize=9,
        )  # fmt: skip
    panel.axvline(0, color="grey", linewidth=1, linestyle="--")
    panel.set_yticks(range(len(found.gains)), [gain.part for gain in found.gains])
    panel.set_ylim(len(found.gains) - 0.4, -0.6)
    panel.margins(x=0.35)
    panel.set_xlabel(f"share of the box gained ({found.gains[0].confidence:.0%} interval)")


def _saved(figure: Figure, path: str | Path) -> Path:
    """Write a figure: the same figure gives the same bytes."""
    target = Path(path).expanduser()
    FigureCanvasAgg(figure)
    if not target.suffix:
        raise InputError(
            [Mistake("path", str(path), "has no ending", "name a .png, .svg or .pdf file")]
        )
    # No date and no version in the file: the same map gives the same bytes.
    plain: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}}
    plain["pdf"] = {"CreationDate": None}
    try:
        with rc_context({"svg.hashsalt": "stabmap"}):
            figure.savefig(target, dpi=150, metadata=plain.get(target.suffix[1:].lower()))
    except (OSError, ValueError) as error:
        raise InputError(
            [
                Mistake(
                    "path",
                    str(path),
                    f"cannot be written ({error})",
                    "choose a folder that exists and an ending such as .png, .svg or .pdf",
                )
            ]
        ) from error
    return target


class _Scale:
    """An axis on paper: log10 for a log axis, with the extra zero level set apart below."""

    def __init__(self, axis: Axis) -> None:
        self.axis = axis
        assert axis.low is not None and axis.high is not None
        self._log = axis.scale == "log"
        self.low, self.high = self._raw(axis.low), self._raw(axis.high)
        self.zero = self.low + ZERO_LEVEL / 2 * (self.high - self.low)

    def _raw(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def place(self, values: Array) -> Array:
        """Positions of values."""
        if self.axis.zero:
            return np.array([self.zero if v == 0 else self._raw(v) for v in values])
        return np.array([self._raw(v) for v in values])

    def cells(self) -> tuple[Array, Array]:
        """Edges of the cells and the value in the middle of each; the zero level comes first."""
        edges = np.linspace(self.low, self.high, RESOLUTION + 1)
        middles = (edges[1:] + edges[:-1]) / 2
        values = 10.0**middles if self._log else middles
        if self.axis.zero:
            half = self.low - self.zero
            edges = np.concatenate([[self.zero - half, self.low - half / 2], edges])
            values = np.concatenate([[0.0, np.nan], values])
        return edges, values

    def blocks(self) -> list[slice]:
        """Cells that belong together: the zero level and the range, without the gap between."""
        return [slice(0, 1), slice(2, None)] if self.axis.zero else [slice(0, None)]

    def decorate(self, along: Any) -> None:
        """Ticks and label."""
        if self._log:
            decades = range(math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9) + 1)
            ticks = [(float(d), f"$10^{{{d}}}$") for d in decades]
            if len(ticks) < 2:
                ends = np.linspace(self.low, self.high, 3)
                ticks = [(float(e), f"{10**e:.3g}") for e in ends]
            minor = [
                position
                for d in range(math.floor(self.low), math.ceil(self.high) + 1)
                for m in range(2, 10)
                if self.low <= (position := d + math.log10(m)) <= self.high
            ]
            along.set_ticks(minor, minor=True)
        else:
            ticks = [(float(t), f"{t:g}") for t in np.linspace(self.low, self.high, 6)]
        if self.axis.zero:
            ticks = [(self.zero, "0"), *ticks]
        along.set_ticks([t for t, _ in ticks], labels=[text for _, text in ticks])
        along.set_label_text(self.axis.name.replace("_", " "))


def _regions(stability_map: StabilityMap, free: Sequence[Axis], theory: bool) -> Figure:
    across, up = _Scale(free[0]), _Scale(free[1])
    third = free[2] if len(free) > 2 else None
    levels = [{}] if third is None else [{third.name: v} for v in _levels(third)]
    figure = Figure(figsize=(1.2 + 5.2 * len(levels), 5.4), layout="constrained")
    panels = figure.subplots(1, len(levels), squeeze=False)[0]
    for panel, held in zip(panels, levels, strict=True):
        _region_panel(panel, stability_map, across, up, held)
        _points(panel, stability_map, across, up, third, held, levels)
        if theory:
            _theory(panel, stability_map, across, up)
        if third is not None:
            panel.set_title(f"{third.name} = {held[third.name]:.3g}", fontsize=10)
    figure.suptitle(_title(stability_map), fontsize=11)
    figure.legend(
        handles=_legend(panels[0]), loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    return figure


def _levels(axis: Axis) -> list[float]:
    values = [float(v) for v in axis.from_unit(np.array(SLICES))]
    return [0.0, *values[1:]] if axis.zero else values


def _region_panel(
    panel: Axes, stability_map: StabilityMap, across: _Scale, up: _Scale, held: Mapping[str, float]
) -> None:
    x_edges, x = across.cells()
    y_edges, y = up.cells()
    solid = np.isfinite(y)[:, None] & np.isfinite(x)[None, :]
    grid = {
        across.axis.name: np.where(np.isfinite(x), x, x[-1])[None, :],
        up.axis.name: np.where(np.isfinite(y), y, y[-1])[:, None],
    }
    probabilities = stability_map.classify(**grid, **held)
    stack = np.stack([probabilities[name] for name in REGIMES])
    best, sure = np.argmax(stack, axis=0), np.max(stack, axis=0) >= 0.8
    image = np.zeros((*best.shape, 4))
    for index, name in enumerate(REGIMES):
        image[best == index, :3] = to_rgb(COLOURS[name])
    image[..., 3] = np.where(solid, np.where(sure, 0.6, 0.3), 0.0)
    panel.pcolormesh(x_edges, y_edges, image, rasterized=True, linewidth=0)
    for index, name in enumerate(REGIMES):
        for rows in up.blocks():
            for columns in across.blocks():
                inside = (best == index)[rows, columns]
                _hatch(
                    panel, x_edges[columns.start :], y_edges[rows.start :], inside, HATCHES[name]
                )
    across.decorate(panel.xaxis)
    up.decorate(panel.yaxis)
    panel.set_xlim(x_edges[0], x_edges[-1])
    panel.set_ylim(y_edges[0], y_edges[-1])


def _hatch(panel: Axes, x_edges: Array, y_edges: Array, inside: Any, hatch: str) -> None:
    """Hatch the cells of one block, up to its outer edges."""
    if not hatch or not inside.any():
        return
    shape = inside.shape
    x = _to_edges(x_edges, shape[1])
    y = _to_edges(y_edges, shape[0])
    cells = np.pad(inside.astype(float), 1, mode="edge")
    panel.contourf(x, y, cells, levels=[0.5, 1.5], colors="none", hatches=[hatch])


def _to_edges(edges: Array, count: int) -> Array:
    """Middles of cells with the outer edges on both sides."""
    middles = (edges[:count] + edges[1 : count + 1]) / 2
    return np.concatenate([edges[:1], middles, edges[count : count + 1]])


def _points(
    panel: Axes,
    stability_map: StabilityMap,
    across: _Scale,
    up: _Scale,
    third: Axis | None,
    held: Mapping[str, float],
    levels: Sequence[Mapping[str, float]],
) -> None:
    """The evaluated points; with a third axis those that are nearest to this panel."""
    frame = stability_map.frame
    if third is not None:
        places = third.to_unit(np.array([level[third.name] for level in levels]))
        here = third.to_unit(held[third.name])
        distance = np.abs(third.to_unit(frame[third.name])[:, None] - places[None, :])
        frame = frame[places[np.argmin(distance, axis=1)] == here]
    for name in REGIMES:
        rows = frame[frame["regime"] == name]
        panel.scatter(
            across.place(rows[across.axis.name].to_numpy()),
            up.place(rows[up.axis.name].to_numpy()),
            marker=MARKERS[name],
            color=COLOURS[name],
            edgecolors="black",
            linewidths=0.6,
            s=26,
            zorder=3,
        )


def _theory(panel: Axes, stability_map: StabilityMap, across: _Scale, up: _Scale) -> None:
    """Bounds on lr against weight decay, where these are the panel's axes."""
    if (across.axis.name, up.axis.name) != ("lr", "weight_decay"):
        return
    for overlay, style in zip(bounds(stability_map), ("-", "--", ":"), strict=False):
        heights = np.linspace(up.low, up.high, 200)
        values = 10.0**heights if up.axis.scale == "log" else heights
        lr = overlay.lr(values)
        inside = (lr >= (across.axis.low or 0)) & (lr <= (across.axis.high or np.inf))
        if inside.any():
            panel.plot(
                across.place(lr[inside]),
                heights[inside],
                style,
                color="black",
                linewidth=1.6,
                label=overlay.label,
            )


def bounds(stability_map: StabilityMap) -> list[Overlay]:
    """The closed-form bounds that hold for what a map was trained with."""
    about = stability_map.about
    task = dict(about["task"])
    training = about["training"]
    return overlays(
        task.pop("name"), task, training["optimiser"], training["momentum"], training["decay"]
    )


def _legend(panel: Axes) -> list[Any]:
    handles: list[Any] = [
        Patch(facecolor=COLOURS[name], alpha=0.6, hatch=HATCHES[name], label=f"{name} (model)")
        for name in REGIMES
    ]
    handles += [
        Line2D(
            [],
            [],
            linestyle="",
            marker=MARKERS[name],
            color=COLOURS[name],
            markeredgecolor="black",
            label=f"{name} (evaluated)",
        )
        for name in REGIMES
    ]
    return [*handles, *panel.get_legend_handles_labels()[0]]


def title_parts(stability_map: StabilityMap) -> list[str]:
    """What was swept: the task, then how it was trained, each a few words."""
    about = stability_map.about
    training = about["training"]
    held = [
        f"{axis.name} = {axis.value:g}"
        for axis in stability_map.axes
        if not axis.free and (axis.value or axis.name == "lr")
    ]
    return [
        about["task"]["name"],
        *_stand_in(stability_map),
        f"{training['optimiser']}, {training['steps']} steps, {training['dtype']}",
        f"k = {', '.join(map(str, training['ks']))}",
        f"{len(stability_map.frame)} points x {training['seeds']} seeds",
        *held,
        *_stabiliser(stability_map),
    ]


def _title(stability_map: StabilityMap) -> str:
    """What was swept, in lines that fit above a map."""
    lines = [""]
    for part in title_parts(stability_map):
        longer = f"{lines[-1]}   {part}".strip()
        fits = len(longer) <= LONGEST_LINE or not lines[-1]
        lines = [*lines[:-1], longer] if fits else [*lines, part]
    return "\n".join(lines)


def _stand_in(stability_map: StabilityMap) -> list[str]:
    """What the data stand in for, without what they are: a title is short."""
    given = stability_map.stand_in
    return [] if given is None else [f"stand-in for {given.partition(':')[0]}"]


def _stabiliser(stability_map: StabilityMap) -> list[str]:
    """What alpha is the strength of, where there is any."""
    (alpha,) = (axis for axis in stability_map.axes if axis.name == "alpha")
    if not alpha.free and not alpha.value:
        return []
    return [f"alpha: strength of {stability_map.about['training']['stabiliser']['name']}"]


def _curves(stability_map: StabilityMap, axis: Axis) -> Figure:
    """Probabilities along the only free axis, with the evaluated points on top."""
    scale = _Scale(axis)
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    panel = figure.subplots()
    positions = np.linspace(scale.low, scale.high, 400)
    values = 10.0**positions if axis.scale == "log" else positions
    assert axis.low is not None and axis.high is not None
    probabilities = stability_map.classify(**{axis.name: np.clip(values, axis.low, axis.high)})
    heights = {"stable": 1.12, "restrained": 1.08, "divergent": 1.04}
    for name, style in zip(REGIMES, ("-", "--", ":"), strict=True):
        panel.plot(positions, probabilities[name], style, color=COLOURS[name], linewidth=2)
        rows = stability_map.frame[stability_map.frame["regime"] == name]
        places = scale.place(rows[axis.name].to_numpy())
        panel.scatter(
            places,
            np.full(len(places), heights[name]),
            marker=MARKERS[name],
            color=COLOURS[name],
            edgecolors="black",
            linewidths=0.6,
            s=26,
        )
    scale.decorate(panel.xaxis)
    panel.set_ylabel("probability")
    panel.set_ylim(-0.03, 1.17)
    figure.suptitle(_title(stability_map), fontsize=10)
    figure.legend(
        handles=_legend(panel), loc="outside lower center", ncols=3, fontsize=8, frameon=False
    )
    return figure
