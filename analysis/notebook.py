"""What a notebook shows of a map and of a comparison: escaped, static, in under a second."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis.compare import Comparison
from analysis.document import Block, Heading, Items, Paragraph, Picture, Table, as_fragment
from analysis.map import REGIMES, StabilityMap
from analysis.quality import BOX, box_points
from analysis.sketch import sketch
from trainables.domain import AXIS_NAMES

#: Points up to which the model is fitted for a look at a map: more take seconds.
QUICK = 256
#: Of the training, what is said.
SETTINGS = ("optimiser", "steps", "dtype")
#: Settings in which maps differ that are shown, at most.
SHOWN = 12
PLACES = (0.0, 0.5, 1.0)


def map_html(stability_map: StabilityMap) -> str:
    """A map as a part of an HTML page."""
    fitted = _ready(stability_map)
    return as_fragment([*_head(stability_map), *_drawn(stability_map, fitted)])


def comparison_html(found: Comparison) -> str:
    """A comparison as a part of an HTML page."""
    blocks: list[Block] = [Heading("Two maps compared", 4)]
    blocks.append(Items([*map(str, found.gains), _differ(found)]))
    for order, one in (("First", found.first), ("Second", found.second)):
        if (address := sketch(one)) is not None:
            blocks += [Paragraph(f"{order}: {one!r}"), Picture(address, f"{order} map: {one!r}")]
    table = found.table()
    rows = [(f"first {a}", *(f"{table.loc[a, b]:.1%}" for b in REGIMES)) for a in REGIMES]
    blocks.append(Paragraph("Share of the box, by the most likely regime in both."))
    blocks.append(Table(("", *(f"second {b}" for b in REGIMES)), rows))
    settings = [str(difference) for difference in found.settings]
    if len(settings) > SHOWN:
        settings = [*settings[:SHOWN], f"and {len(settings) - SHOWN} more"]
    blocks.append(Paragraph("They differ in:" if settings else "Their settings are the same."))
    blocks += [Items(settings)] if settings else []
    return as_fragment(blocks)


def _differ(found: Comparison) -> str:
    return f"another regime is most likely in {found.differ:.1%} of the box"


def _ready(stability_map: StabilityMap) -> bool:
    """Whether the model is there, or quickly made."""
    evidence = stability_map._evidence
    return len(evidence.frame) > 0 and (len(evidence.frame) <= QUICK or "surface" in vars(evidence))


def _head(stability_map: StabilityMap) -> Iterator[Block]:
    task = stability_map.about.get("task", {}).get("name", "?")
    yield Heading(f"Stability map of {task}", 4)
    training = stability_map.about.get("training", {})
    said = [
        f"{name} {training[name]}" for name in ("optimiser", "steps", "dtype") if name in training
    ]
    axes = [
        f"{axis.name} {axis.low:g} to {axis.high:g}" if axis.free else f"{axis.name} {axis.value:g}"
        for axis in stability_map.axes
    ]
    yield Paragraph("; ".join([*axes, *said, f"{len(stability_map.frame)} points"]))


def _drawn(stability_map: StabilityMap, fitted: bool) -> Iterator[Block]:
    if (address := sketch(stability_map, fitted)) is not None:
        yield Picture(address, f"Map of the regimes: {stability_map!r}")
    yield _table(stability_map, fitted)
    free = [axis for axis in stability_map.axes if axis.free]
    if len(stability_map.frame) == 0 and not fitted:
        yield Paragraph("There is no point yet.")
    elif not fitted:
        yield Paragraph(
            "With so many points the model takes seconds to fit. Ask the map a question, and it is "
            "shown here from then on."
        )
    elif free:
        yield Items([*_largest(stability_map), *str(stability_map.quality).splitlines()])


def _table(stability_map: StabilityMap, fitted: bool) -> Table:
    frame, counts = stability_map.frame, stability_map.counts()
    shares = [""] * len(REGIMES)
    if fitted:
        box = box_points(stability_map.axes, BOX)
        found = stability_map.classify(**dict(zip(AXIS_NAMES, box.T, strict=True)))
        best = np.stack([found[name] for name in REGIMES]).argmax(0)
        shares = [f"{(best == index).mean():.0%}" for index in range(len(REGIMES))]
    rows = []
    for name, share in zip(REGIMES, shares, strict=True):
        reasons = frame.loc[frame["regime"] == name, "reason"].value_counts().items()
        because = ", ".join(f"{reason} {count}" for reason, count in reasons)
        rows.append((name, str(counts[name]), share, because))
    return Table(("regime", "points", "most likely in", "because"), rows)


def _largest(stability_map: StabilityMap) -> Iterator[str]:
    """The largest stable value of the first free axis, at the ends and the middle of the second."""
    along, *others = (axis for axis in stability_map.axes if axis.free)
    held = {axis.name: float(axis.from_unit(0.5)) for axis in others}
    for unit in PLACES if others else (0.0,):
        if others:
            held[others[0].name] = float(others[0].from_unit(unit))
        found = stability_map.max_stable(along.name, **held)
        at = "".join(f", {name} {value:.3g}" for name, value in held.items())
        value = "none" if found is None else f"{found:.3g}"
        yield f"largest {along.name} that is stable with 95 %{at}: {value}"
