"""What each stabiliser adds to the stable volume of (lr, alpha, weight decay), or takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from analysis.colours import COLOURS
from analysis.compare import Comparison, Gain, compare, gain_of
from analysis.map import StabilityMap
from analysis.quality import box_points, drawn_regimes
from analysis.volume import DRAWS, POINTS, Volume
from studies.page import Claim, Findings, Picture, Study, Table, figure, save
from studies.runs import Runs
from trainables.domain import AXIS_NAMES, Axis

Array = NDArray[np.float64]

#: Ranges of alpha: of an inverse norm, of the regulariser's generic mode, and of a share.
NORM: dict[str, Any] = {"scale": "log", "low": 0.1, "high": 10.0}
PULL: dict[str, Any] = {"scale": "log", "low": 0.01, "high": 1.0}
SHARE: dict[str, Any] = {"scale": "linear", "low": 0.1, "high": 1.0}
STABILISERS = {
    "stability": PULL,
    "clip-norm": NORM,
    "clip-spectral-norm": NORM,
    "spectra": NORM,
    "stablemax": SHARE,
    "orthogonal-gradient": SHARE,
    "stable-spam": SHARE,
}
#: Of every interval here. An effect is an interval that does not contain 0.
CONFIDENCE = 0.99
#: Strengths looked at alone, in unit coordinates of alpha's range.
PLACES = {"middle": 0.5, "end": 1.0}
#: Cells of a surface along each axis.
CELLS = 20
GAINED, LOST = "#0072B2", "#D55E00"


@dataclass(frozen=True)
class Found:
    """What the sweeps of one stabiliser found.

    Args:
        name: of the stabiliser.
        map: over (lr, alpha, weight decay).
        whole: the gain at strengths above 0, on average over them.
        single: the comparisons of single strengths with none, by the names of `PLACES`.
    """

    name: str
    map: StabilityMap
    whole: Gain
    single: Mapping[str, Comparison]

    @property
    def plain(self) -> Volume:
        """The stable volume without it."""
        return self.map.slice(alpha=0).volume("stable", confidence=CONFIDENCE)


def find(runs: Runs) -> Findings:
    """Run the sweeps and compare."""
    found = [_found(runs, name, alpha) for name, alpha in STABILISERS.items()]
    return Findings(
        claims=[*(_claim(one) for one in found), _plain_claim(found), _twin_claim(found)],
        pictures=[
            Picture("surfaces", SURFACES, partial(_draw_surfaces, found)),
            Picture("gains", GAINS, partial(_draw_gains, found)),
            Picture("where", WHERE, partial(_draw_where, found)),
        ],
        tables=[_volume_table(found), _strength_table(found), _place_table(found)],
        remarks=REMARKS,
    )


SURFACES = (
    "The boundary of the stable region of each map: training is stable on its left. Without the "
    "stabiliser it is the same curve at every strength. Colour: lr."
)
GAINS = (
    f"Stable volume gained, as a share of the (lr, weight decay) box, with {CONFIDENCE:.0%} "
    "intervals: on average over the strengths above 0, in the middle of alpha's range and at its "
    "end. Filled where the interval does not contain 0."
)
WHERE = (
    "Where the stable region grows (blue) and shrinks (orange) in the middle of alpha's range "
    "(above) and at its end (below). Grey: stable with and without."
)
REMARKS = [
    "**What was fixed before the run.** The box: lr 0.1 to 10 and weight decay 0.001 to 1, as for "
    "the first map but for its dull ends; alpha 0.1 to 10 where it is the inverse of a norm, 0.01 "
    "to 1 for the regulariser (its generic mode: [stabilisers](../stabilisers.md) advises it), 0.1 "
    "to 1 where it is a share; and alpha 0. An effect is a "
    f"{CONFIDENCE:.0%} interval that does not contain 0: with 7 stabilisers and three numbers of "
    "each, one false effect in five such studies is to be expected. More points narrow the "
    'intervals: `SET="budget.points=256"`.',
    "**What the intervals know.** They are the maps' own: what the points leave open about the "
    "boundaries of one network, in 200 steps of plain descent on 200 images. Every training has "
    "initial weights of its own, and the model takes their scatter for noise. Another range of "
    "alpha, network, optimiser or batch size may turn the order of the stabilisers. So may another "
    "kind of processor, which rounds otherwise: an interval that ends close to 0 may hold it there "
    "([it did](index.md)).",
    "**Stable is not good.** The verdict asks whether rounding errors die out and the training "
    "settles, not for accuracy. `orthogonal-convolution` has nothing to act on here, and "
    "`stability-reference` is `stability` computed otherwise. `stable-spam` is meant for AdamW.",
]


def _found(runs: Runs, name: str, alpha: Mapping[str, Any]) -> Found:
    changes = {f"axes__alpha__{field}": value for field, value in alpha.items()}
    swept = runs.sweep("stabiliser-volume", stabiliser=name, **changes).map
    strengths = {place: _strength(swept, unit) for place, unit in PLACES.items()}
    plain = swept.slice(alpha=0)
    single = {
        place: compare(plain, swept.slice(alpha=value), confidence=CONFIDENCE)
        for place, value in strengths.items()
    }
    return Found(name, swept, added(swept), single)


def _alpha(found: StabilityMap) -> Axis:
    return next(axis for axis in found.axes if axis.name == "alpha")


def _strength(found: StabilityMap, unit: float) -> float:
    """A strength by its place on the axis, of six digits at most."""
    return float(f"{float(_alpha(found).from_unit(np.array(unit))):.6g}")


# ------------------------------------------------------------------------- arithmetic


def added(found: StabilityMap, part: str = "stable", seed: int = 0) -> Gain:
    """What strengths above 0 add to a part of the box, on average over their range.

    Each place of the box is held against the same place at alpha 0, in joint draws of the
    boundaries, as `compare` does for two strengths.
    """
    places = box_points(found.axes, POINTS)
    column = [axis.name for axis in found.axes].index("alpha")
    places = places[places[:, column] > 0]
    plain = places.copy()
    plain[:, column] = 0.0
    drawn = drawn_regimes(found.surface, found.unit(np.concatenate([plain, places])), seed, DRAWS)
    without, with_it = np.split(drawn, 2, axis=1)
    return gain_of(part, without, with_it, CONFIDENCE)


def effect(gain: Gain) -> int:
    """1 where the volume grows, -1 where it shrinks, 0 where the interval contains 0."""
    return int(gain.low > 0) - int(gain.high < 0)


# ------------------------------------------------------------------------- tables


def _claim(one: Found) -> Claim:
    words = {1: "adds", -1: "takes", 0: "no effect shown: the interval contains 0"}
    word = words[effect(one.whole)]
    return Claim(
        f"`{one.name}`, alpha {_range(_alpha(one.map))}",
        "none",
        f"**{word}**: {_shown(one.whole)}",
        "new",
        "; ".join(f"{p} ({_strength(one.map, PLACES[p]):g}): {_shown(one.single[p].gains[0])}"
                  for p in PLACES),
    )  # fmt: skip


def _range(axis: Axis) -> str:
    return f"{axis.low:g} to {axis.high:g}"


def _shown(gain: Gain) -> str:
    return f"{gain.difference:+.1%} ({gain.low:+.1%} to {gain.high:+.1%})"


def _plain_claim(found: Sequence[Found]) -> Claim:
    plains = [one.plain for one in found]
    together = max(p.low for p in plains) <= min(p.high for p in plains)
    return Claim(
        "at alpha 0 all maps show one training: all intervals have a value in common",
        "none",
        f"{'yes' if together else 'no'}: {min(p.share for p in plains):.1%} to "
        f"{max(p.share for p in plains):.1%} of the box",
        "new",
        "a check of the intervals: each map learns alpha 0 from points of its own",
    )


def _twin_claim(found: Sequence[Found]) -> Claim:
    """Stabilisers that cannot be told apart here."""
    tables = {one.name: one.map.to_frame()[[*AXIS_NAMES, "regime"]] for one in found}
    twins = [
        f"`{first}` and `{second}`"
        for first, second in combinations(tables, 2)
        if tables[first].equals(tables[second])
    ]
    return Claim(
        "stabilisers whose trainings have the same labels at the same points",
        "none",
        "; ".join(twins) or "none",
        "new",
        "so their maps are one map, and say nothing of which is better" if twins else "",
    )


def _volume_table(found: Sequence[Found]) -> Table:
    rows = []
    for one in found:
        whole = one.map.volume("stable", confidence=CONFIDENCE)
        bounded = added(one.map, "bounded")
        counts = one.map.counts()
        rows.append(
            (
                f"`{one.name}`", " / ".join(str(counts[r]) for r in COLOURS),
                f"{one.map.quality.misclassified:.1%}", _interval(whole), _interval(one.plain),
                f"{one.whole.second:.1%}", f"{one.whole.factor:.2f}",
                f"{one.whole.probability:.4f}", _shown(bounded),
            )
        )  # fmt: skip
    headings = (
        "stabiliser", "points stable / restrained / divergent", "expected wrong",
        "stable, whole box", "stable, alpha 0", "stable, alpha > 0", "factor",
        "probability of a gain", "bounded, gained",
    )  # fmt: skip
    return Table("Volumes", headings, rows)


def _interval(volume: Volume) -> str:
    return f"{volume.share:.1%} ({volume.low:.1%} to {volume.high:.1%})"


def _strength_table(found: Sequence[Found]) -> Table:
    rows = []
    for one in found:
        for place, compared in one.single.items():
            gain = compared.gains[0]
            rows.append(
                (
                    f"`{one.name}`", f"{_strength(one.map, PLACES[place]):g}", _shown(gain),
                    f"{gain.probability:.4f}", ("takes", "-", "adds")[effect(gain) + 1],
                )
            )  # fmt: skip
    headings = (
        "stabiliser", "alpha", "gained against alpha 0", "probability of a gain", "effect",
    )  # fmt: skip
    return Table("Single strengths, by `stabmap compare`", headings, rows)


def _place_table(found: Sequence[Found]) -> Table:
    rows = []
    for one in found:
        for place, compared in one.single.items():
            places = compared.places
            grows = (places["first"] != "stable") & (places["second"] == "stable")
            shrinks = (places["first"] == "stable") & (places["second"] != "stable")
            net = places["share"] * (grows.astype(int) - shrinks)
            third = np.digitize(np.log10(places["weight_decay"]), (-2, -1))
            rows.append(
                (
                    f"`{one.name}`", f"{_strength(one.map, PLACES[place]):g}",
                    *(_amount(places, chosen) for chosen in (grows, shrinks)),
                    *(f"{net[third == i].sum():+.1%}" for i in range(3)),
                )
            )  # fmt: skip
    headings = (
        "stabiliser", "alpha", "grows by, about lr", "shrinks by, about lr",
        "net at weight decay 0.001 to 0.01", "0.01 to 0.1", "0.1 to 1",
    )  # fmt: skip
    return Table("Where in the box, by the most likely label", headings, rows)


def _amount(places: Any, chosen: Any) -> str:
    """The share of some places and the geometric mean of their rates."""
    share = float(places["share"][chosen].sum())
    if not share:
        return "-"
    rate = np.exp(np.average(np.log(places["lr"][chosen]), weights=places["share"][chosen]))
    return f"{share:.1%}, {rate:.2g}"


# ------------------------------------------------------------------------- figures


def _draw_surfaces(found: Sequence[Found], path: Path) -> None:
    drawn = figure(13, 6.8)
    for i, one in enumerate(found):
        panel: Any = drawn.add_subplot(2, 4, i + 1, projection="3d")
        mesh = one.map.boundary_mesh("stable", count=CELLS)
        alpha = _alpha(one.map)
        x, z = (np.log10(mesh.vertices[:, j]) for j in (0, 2))
        y = mesh.vertices[:, 1] if alpha.scale == "linear" else np.log10(mesh.vertices[:, 1])
        if len(mesh.faces):
            shown = panel.plot_trisurf(
                x, y, mesh.faces, z, cmap="viridis", vmin=-1, vmax=1, linewidth=0.1, edgecolor="k"
            )
            shown.set_array(x[mesh.faces].mean(1))
            shown.set_clim(-1, 1)
        low, high = alpha.low or 0.0, alpha.high or 1.0
        ends_of_y = (low, high) if alpha.scale == "linear" else (np.log10(low), np.log10(high))
        panel.set(xlim=(-1, 1), ylim=ends_of_y, zlim=(-3, 0), title=one.name)
        log = "" if alpha.scale == "linear" else "log10 "
        panel.set(xlabel="log10 lr", ylabel=f"{log}alpha", zlabel="log10 weight decay")
        panel.view_init(elev=22, azim=-60)
        panel.locator_params(nbins=4)
        panel.tick_params(labelsize=7)
        panel.set_box_aspect(None, zoom=0.75)
    save(drawn, path)


def _draw_gains(found: Sequence[Found], path: Path) -> None:
    drawn = figure(9, 4)
    panel = drawn.subplots()
    rows = {
        "average": [one.whole for one in found],
        **{place: [one.single[place].gains[0] for one in found] for place in PLACES},
    }
    for i, (label, gains) in enumerate(rows.items()):
        for j, gain in enumerate(gains):
            height, colour = j + (i - 1) * 0.22, ("black", GAINED, LOST)[i]
            panel.plot((gain.low, gain.high), (height, height), color=colour)
            filled = colour if effect(gain) else "white"
            panel.plot(
                gain.difference, height, "os^"[i], color=colour, markerfacecolor=filled,
                label=label if j == 0 else None,
            )  # fmt: skip
    panel.axvline(0, color="grey", linewidth=1)
    panel.set_yticks(range(len(found)), [one.name for one in found])
    panel.invert_yaxis()
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:+.0%}")
    panel.set_xlabel("stable volume gained")
    panel.legend(title="alpha", loc="upper left", bbox_to_anchor=(1, 1))
    save(drawn, path)


def _draw_where(found: Sequence[Found], path: Path) -> None:
    drawn = figure(13, 4.2)
    panels = drawn.subplots(len(PLACES), len(found), sharex=True, sharey=True)
    for row, place in zip(panels, PLACES, strict=True):
        for panel, one in zip(row, found, strict=True):
            _draw_places(panel, one.single[place])
            panel.set_title(f"{one.name} {_strength(one.map, PLACES[place]):g}", fontsize=8)
        row[0].set_ylabel("log10 weight decay")
    drawn.supxlabel("log10 lr", fontsize=10)
    save(drawn, path)


def _draw_places(panel: Axes, compared: Comparison) -> None:
    places = compared.places
    before, after = (places[name] == "stable" for name in ("first", "second"))
    for chosen, colour in ((before & after, "#BBBBBB"), (~before & after, GAINED),
                           (before & ~after, LOST)):  # fmt: skip
        lr, decay = (np.log10(places[name][chosen]) for name in ("lr", "weight_decay"))
        panel.plot(lr, decay, "s", color=colour, markersize=1.6, markeredgewidth=0)
    panel.set(xlim=(-1, 1), ylim=(-3, 0))


STUDY = Study(
    name="stabiliser-volume",
    title="What stabilisers add",
    source="none of the papers: a new result",
    question=(
        "How much does each stabiliser add to the stable volume of (lr, alpha, weight decay) of a "
        "small network, or take from it, and where?"
    ),
    find=find,
)
