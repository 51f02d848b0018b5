"""The one-layer CNN of the PDE paper: its rates, its phases, its sharpness, its linearisation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.map import REGIMES, StabilityMap
from analysis.plot import plot_map
from analysis.theory import (
    DecayRange,
    OneLayerCNN,
    checkerboard_eigenvalue,
    checkerboard_share,
    linear_cnn_decay_range,
    nesterov_decay_range,
    nesterov_decay_range_as_printed,
    nesterov_lr,
    one_layer_cnn_phases,
)
from studies.page import LAW, Claim, Findings, Picture, Study, Table, figure, judge, save
from studies.runs import Bracket, Ran, Runs, printed
from trainables.domain import Point, PointResult, Regime, Replicate, Training
from trainables.dynamics import sharpness
from trainables.tasks import get_task

DECAY = 20.0
RATES = (0.01, 0.02, 0.029, 0.031, 0.05, 0.07, 0.09, 0.099, 0.101, 0.12)
#: Rates of the curves in the paper's Figs. 5 and 6 that this study has.
CALM, WILD = (0.01, 0.029, 0.031), (0.05, 0.07, 0.09)
#: Rates at which the kernel swings between two values.
SWINGING = (0.035, 0.045)
#: The paper's thresholds, and the rates between them that are trained.
THRESHOLD, BLOW_UP = "0.03", "0.1"
BAND = tuple(lr for lr in sorted((*RATES, *SWINGING)) if 0.03 < lr <= 0.1)
#: Seed of the initial kernel in the authors' program.
PAPERS_SEED = 7
#: Steps between two looks at the sharpness, and steps in all.
EVERY, STEPS = 20, 1000
#: Steps of the training that tells slow growth from none.
LONGER = 10_000
#: Share of one of the two patches in the image of the paper.
SHARE = float(checkerboard_share(256, 32))
#: Cells a side of the grid on which a map is held against theory.
SIDE = 200
#: Least decay by side of the kernel as printed, in Table 2 and for Nesterov's method in Table 9;
#: largest decay of any kernel.
TABLE_2 = {16: "3.8e6", 32: "1.3e7", 64: "3.8e7"}
TABLE_9 = {16: "3.9e6", 32: "1.3e7", 64: "3.9e7"}
UPPER = {"sgd": "2e8", "nesterov": "1.42e8"}
#: Theory's bounds as printed there: the least in Table 2, the largest in Table 9.
ENDLESS, LIMIT = "1.07e9", "1.33e8"
#: How often the edges of the linearised CNN are halved.
HALVINGS = 8
#: Side of the kernel in the paper's Fig. 4.
SHOWN = 32
#: Of the paper's Nesterov runs.
MOMENTUM = 0.9


@dataclass(frozen=True)
class Edge:
    """One end of the decays that work: where stable ones end, and where divergent ones begin."""

    stable: Bracket
    divergent: Bracket

    def agreement(self, number: str) -> str:
        """Which of the two a printed number agrees with."""
        found = [name for name in KINDS if getattr(self, name).meets(number)]
        return " and ".join(found) or "neither"


#: The kinds of an edge.
KINDS = ("stable", "divergent")
#: The least and the largest decay by method and side of the kernel.
Bounds = dict[tuple[str, int], tuple[Edge, Edge]]


def find(runs: Runs) -> Findings:
    """Run the sweeps and compare."""
    rates = runs.sweep("one-layer-cnn-rates")
    phases = runs.sweep("one-layer-cnn-phases")
    sweeps = {
        (optimiser, kernel): _linear(runs, optimiser, kernel)
        for optimiser in ("sgd", "nesterov")
        for kernel in TABLE_2
    }
    linear = {key: _bounds(ran) for key, ran in sweeps.items()}
    curves = {lr: _normalised_sharpness(runs, lr) for lr in (*CALM, *WILD)}
    return Findings(
        claims=[
            *_boundary_claims(rates),
            *_distance_claims(rates),
            *_sharpness_claims(curves),
            *_exponent_claims(rates),
            _phase_claim(phases),
            _figure_4_claim(sweeps["sgd", SHOWN]),
            *_linear_claims(linear),
        ],
        pictures=[
            Picture("bounds", BOUNDS, partial(_draw_bounds, sweeps["sgd", SHOWN])),
            Picture("loss", LOSS, partial(_draw_rates, rates)),
            Picture("sharpness", SHARPNESS, partial(_draw_sharpness, curves)),
            Picture("phases", PHASES, partial(plot_map, phases.map)),
        ],
        tables=[_rate_table(rates), _linear_table(linear)],
        remarks=[*REMARKS, _mislabelled(sweeps.values()), _mismatch(phases)],
    )


BOUNDS = (
    "Beside the paper's Fig. 4: loss of the linearised CNN with a kernel of 32, of every weight "
    "decay that its sweep trained: below the exact bounds, between them, above them."
)
LOSS = (
    "Beside the paper's Fig. 5: loss (left) and RelL1 between k = 1 and k = 3 (right), of which "
    "each training keeps 64 steps. A RelL1 of 0 is drawn at 1e-18."
)
SHARPNESS = (
    "Beside the paper's Fig. 6: sharpness times lr, every 20 steps, with weight decay in the "
    "sharpness and the paper's initial kernel (seed 7). Dashed: 2."
)
PHASES = (
    "Phases found by the boundary search, which was told nothing of theory; lines are theory. "
    "The paper has no such figure."
)
REMARKS = [
    LAW,
    "A range such as 0.0322 to 0.0323 is two trained values with different labels: nothing is "
    'interpolated. The paper printed the values at which its trainings "first become unstable", '
    "which may mean either edge, so both are shown.",
    "An error counts as amplified where the verdict's own measure exceeds 0: where k = 1 and 3 are "
    "further apart than rounding errors add up to without amplification.",
]


# ------------------------------------------------------------------------- rates


def _boundary_claims(rates: Ran) -> list[Claim]:
    theory = OneLayerCNN(DECAY)
    (stable,) = rates.edges("lr", "stable")
    (divergent,) = rates.edges("lr", "divergent")
    longer = rates.train(lr=divergent.below, steps=LONGER).verdict.regime.value
    calm = [lr for lr in BAND if rates.at(lr=lr).verdict.regime is not Regime.RESTRAINED]
    return [
        Claim(
            "stable below lr (Fig. 5)",
            THRESHOLD,
            f"{stable}; theory {theory.largest_stable_lr:.6g}",
            judge(stable.meets(THRESHOLD)),
        ),
        Claim(
            "blow-up above lr (Fig. 5)",
            BLOW_UP,
            f"{divergent}; theory {theory.largest_bounded_lr:.6g}",
            judge(divergent.meets(BLOW_UP)),
            "weight decay alone diverges, at 2 / weight decay. Just above it the growth is slow: "
            f"{divergent.below:.6g} is restrained in {STEPS:,} steps and {longer} in {LONGER:,}",
        ),
        Claim(
            "restrained for all 0.03 < lr <= 0.1 (section 5.4)",
            "said of the whole range",
            f"{len(BAND) - len(calm)} of the {len(BAND)} rates trained there; not at "
            + (_listed(calm) or "none"),
            judge(not calm),
            "0.03 was read off a coarse set of rates. Margin and lr x sharpness at "
            + "; ".join(
                f"{lr:g}: {rates.at(lr=lr).verdict.margins.stable:+.3f}, "
                f"{lr * theory.sharpness:.4f}"
                for lr in calm
            ),
        ),
    ]


def _one(rates: Ran, lr: float) -> Replicate:
    return rates.at(lr=lr).replicates[0]


def _amplification(rates: Ran, lr: float) -> float:
    return float(_one(rates, lr).evidence["amplification"] or 0)


def _quarter(rates: Ran, lr: float, number: int) -> float:
    """Median RelL1 over the kept steps of one quarter of the training."""
    values = _one(rates, lr).curves["rel_l1_k3"].values
    return float(np.median(np.array_split(np.array(values), 4)[number]))


def _distance_claims(rates: Ran) -> list[Claim]:
    calm = [_amplification(rates, lr) for lr in CALM]
    wild = [_amplification(rates, lr) for lr in WILD]
    flat = [lr for lr in BAND if _amplification(rates, lr) <= 0]
    largest = [max(_one(rates, lr).curves["rel_l1_k3"].values) for lr in flat]
    labels = [rates.at(lr=lr).verdict for lr in flat]
    late = [(_quarter(rates, lr, 2), _quarter(rates, lr, 3)) for lr in WILD]
    return [
        Claim(
            "errors are not amplified below the threshold (Fig. 5)",
            "flat at 0.01 and 0.03",
            f"amplification {_signed(calm)} at {_listed(CALM)}; RelL1 in the last quarter at most "
            f"{max(_quarter(rates, lr, 3) for lr in CALM):.1g}",
            judge(max(calm) <= 0),
        ),
        Claim(
            "errors build up (Fig. 5)",
            "at 0.05, 0.07, 0.09",
            f"amplification {_signed(wild)}",
            judge(min(wild) > 0),
        ),
        Claim(
            "they then level off (Fig. 5)",
            "at 0.05, 0.07, 0.09",
            "median RelL1 in the last two quarters "
            + ", ".join(f"{one:.2f} and {other:.2f}" for one, other in late),
            judge(all(max(pair) < 2 * min(pair) for pair in late)),
            "level: the two differ by less than a factor of two",
        ),
        Claim(
            "they build up for all 0.03 < lr <= 0.1",
            "said of the whole range",
            f"not at {_listed(flat) or 'none'}: there RelL1 is never above "
            f"{max(largest, default=0.0):.1g}, and the labels are "
            + ", ".join(f"{v.regime.value} ({v.reason.value})" for v in labels),
            judge(not flat),
            f"at {_listed(SWINGING)} the kernel swings between two values, and that cycle "
            f"attracts: the exponent is {', '.join(_exponent(rates, lr) for lr in SWINGING)}. "
            "Restrained does not need chaos",
        ),
    ]


def _signed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in values)


def _exponent(rates: Ran, lr: float) -> str:
    found = _one(rates, lr).evidence["lyapunov_exponent"]
    return "-" if found is None else f"{found:+.4f}"


def _exponent_claims(rates: Ran) -> list[Claim]:
    rows = []
    for lr, exact, text in (
        (0.01, np.log(0.8), "ln 0.8"),
        (0.02, np.log(0.6), "ln 0.6"),
        (0.101, np.log(1.02), "ln 1.02"),
    ):
        found = _one(rates, lr).evidence["lyapunov_exponent"]
        assert found is not None
        rows.append((lr, found, abs(found - exact), text))
    worst = max(error for _, _, error, _ in rows)
    listed = ", ".join(f"{found:+.6f} at {lr:g} ({text})" for lr, found, _, text in rows)
    reason = f"no number in the paper; theory is met to {worst:.1g}"
    return [Claim("Lyapunov exponent a step", "none", listed, "new", reason)]


def _rate_table(rates: Ran) -> Table:
    rows = []
    for lr in sorted((*RATES, *SWINGING)):
        verdict, one = rates.at(lr=lr).verdict, _one(rates, lr)
        regime = str(one_layer_cnn_phases(lr, DECAY).regime)
        rows.append(
            (
                f"{lr:g}", verdict.regime.value, regime, verdict.reason.value,
                f"{one.curves['loss'].values[-1]:.5g}", f"{_last(one, 'rel_l1_k3'):.2g}",
                _exponent(rates, lr), str(one.steps_run),
            )
        )  # fmt: skip
    headings = ("lr", "here", "theory", "why", "last loss", "last RelL1", "exponent", "steps")
    return Table("The rates, at weight decay 20", headings, rows)


def _last(one: Replicate, name: str) -> float:
    return one.curves[name].values[-1]


def _draw_rates(rates: Ran, path: Path) -> None:
    drawn = figure()
    left, right = drawn.subplots(1, 2)
    for lr in (*CALM, *WILD, 0.101, 0.12):
        curves = _one(rates, lr).curves
        left.plot(curves["loss"].steps, curves["loss"].values, label=f"{lr:g}")
        apart = curves["rel_l1_k3"]
        right.plot(apart.steps, np.maximum(apart.values, 1e-18), label=f"{lr:g}")
    left.set(yscale="log", xlabel="step", ylabel="loss", ylim=(0.1, 1e13))
    right.set(yscale="log", xlabel="step", ylabel="RelL1")
    left.legend(title="lr", ncol=2, fontsize=8)
    save(drawn, path)


# ------------------------------------------------------------------------- sharpness


def _normalised_sharpness(runs: Runs, lr: float) -> NDArray[np.float64]:
    """(looks, 2): step, and lr times the sharpness, from the paper's initial kernel."""
    task = get_task("one-layer-cnn")
    training = Training(dtype="float64")
    inputs, targets = task.train_data()
    seen = []
    point = Point(lr, 0.0, DECAY)
    for step, now in enumerate(runs.walk(task, point, training, STEPS, PAPERS_SEED)):
        if step % EVERY == 0:
            top = sharpness(now.module, task.loss.value, inputs, targets).value
            seen.append((step, lr * (top + DECAY)))
    return np.array(seen)


def _sharpness_claims(curves: dict[float, NDArray[np.float64]]) -> list[Claim]:
    half = STEPS // 2
    late = {lr: float(c[c[:, 0] >= half, 1].max()) for lr, c in curves.items()}
    calm, wild = [late[lr] for lr in CALM], [late[lr] for lr in WILD]
    return [
        Claim(
            "lr x sharpness stays below 2 (Fig. 6)",
            "at 0.01 and 0.03",
            f"largest in the second half {', '.join(f'{v:.4f}' for v in calm)} at {_listed(CALM)}",
            judge(max(calm) < 2),
        ),
        Claim(
            "lr x sharpness swings and can exceed 2 (Fig. 6)",
            "at 0.05, 0.07, 0.09",
            f"largest in the second half {', '.join(f'{v:.2f}' for v in wild)}",
            judge(min(wild) > 2),
        ),
    ]


def _draw_sharpness(curves: dict[float, NDArray[np.float64]], path: Path) -> None:
    drawn = figure(6.5)
    panel = drawn.subplots()
    for lr, curve in curves.items():
        panel.plot(curve[:, 0], curve[:, 1], label=f"{lr:g}")
    panel.axhline(2, color="black", linestyle="--", linewidth=1)
    panel.set(xlabel="step", ylabel="lr x sharpness")
    panel.legend(title="lr", fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    save(drawn, path)


# ------------------------------------------------------------------------- phases


def _phase_claim(phases: Ran) -> Claim:
    wrong = misclassified(phases.map)
    expected = phases.map.quality.misclassified
    return Claim(
        "map over (lr, weight decay)",
        "none",
        f"{wrong:.2%} of the box misclassified after {len(phases.results)} trainings; the map "
        f"itself expects {expected:.2%}",
        "new",
        f"held against theory in {SIDE * SIDE:,} cells",
    )


def misclassified(found: StabilityMap) -> float:
    """Share of the (log lr, log weight decay) box where the likeliest label is not theory's."""
    lr, decay = (
        axis.from_unit((np.arange(SIDE) + 0.5) / SIDE)
        for axis in found.axes
        if axis.name in ("lr", "weight_decay")
    )
    truth = one_layer_cnn_phases(lr[None, :], decay[:, None]).regime
    answer: Any = found.classify(lr=lr[None, :], weight_decay=decay[:, None])
    likely = np.array(REGIMES)[np.argmax(np.stack([answer[name] for name in REGIMES]), axis=0)]
    return float((likely != truth).mean())


# ------------------------------------------------------------------------- linearised


def _linear(runs: Runs, optimiser: str, kernel: int) -> Ran:
    if optimiser == "sgd":
        return runs.sweep("linear-cnn", task__kernel=kernel)
    lr = round(float(nesterov_lr(1e-4, MOMENTUM)), 12)
    changes = {"optimiser": "nesterov", "momentum": MOMENTUM, "axes__lr": lr}
    return runs.sweep("linear-cnn", task__kernel=kernel, **changes)


def _bounds(ran: Ran) -> tuple[Edge, Edge]:
    """The outermost edges along the decay."""
    stable, divergent = (ran.edges("weight_decay", kind, HALVINGS) for kind in KINDS)
    return Edge(stable[0], divergent[0]), Edge(stable[-1], divergent[-1])


def _mislabelled(sweeps: Iterable[Ran]) -> str:
    """A remark on trainings of the linearised CNN that got a label that theory does not have."""
    results = [r for ran in sweeps for r in (*ran.results, *ran.single)]
    odd = [r for r in results if r.verdict.regime is Regime.RESTRAINED]
    reasons = Counter(r.verdict.reason.value for r in odd)
    apart = [r.replicates[0].evidence.get("separation") or 0.0 for r in odd]
    least = min((abs(r.verdict.margins.stable) for r in odd), default=0.0)
    most = max((abs(r.verdict.margins.stable) for r in odd), default=0.0)
    return (
        f"{len(odd)} of {len(results)} trainings of the linearised CNN are labelled restrained, "
        "which nothing linear is ("
        + (", ".join(f"{count} {name}" for name, count in sorted(reasons.items())) or "-")
        + f"). Their RelL1 between k = 1 and 3 ends at {max(apart, default=0.0):.1g} at most, and "
        f"their margins are {least:.2g} to {most:.2g} wide: close to the bounds the loss falls "
        "slowly, or by dozens of orders of magnitude, and rounding builds up to the verdict's "
        "threshold. They are what lies between the two edges above."
    )


def _mismatch(phases: Ran) -> str:
    """A remark on single labels of the map of phases that are not theory's."""
    wrong = [
        r.point
        for r in phases.results
        if r.verdict.regime.value
        != one_layer_cnn_phases(r.point.lr, r.point.weight_decay, share=SHARE).regime
    ]
    longer = [
        f"lr {p.lr:.6g}, weight decay {p.weight_decay:.6g} (product {p.lr * p.weight_decay:.6f}): "
        f"{phases.at(lr=p.lr, weight_decay=p.weight_decay).verdict.regime.value}, and "
        f"{_relabelled(phases, p)} in {LONGER:,} steps"
        for p in wrong
    ]
    return (
        f"{len(wrong)} of {len(phases.results)} labels of the map of phases are not theory's"
        + (": " if longer else ".")
        + "; ".join(longer)
        + ("." if longer else "")
    )


def _relabelled(phases: Ran, point: Point) -> str:
    found = phases.train(LONGER, lr=point.lr, weight_decay=point.weight_decay)
    return found.verdict.regime.value


def _sides(ran: Ran) -> dict[str, list[PointResult]]:
    """The trainings of a sweep over the decay by where theory has them."""
    exact = _exact("sgd", SHOWN)
    return {
        "below": [r for r in ran.results if r.point.weight_decay < exact.low],
        "between": [r for r in ran.results if exact.low <= r.point.weight_decay <= exact.high],
        "above": [r for r in ran.results if r.point.weight_decay > exact.high],
    }


def _figure_4_claim(ran: Ran) -> Claim:
    sides = _sides(ran)
    counts = {
        side: ", ".join(
            f"{count} {regime.value}"
            for regime in Regime
            if (count := sum(r.verdict.regime is regime for r in found))
        )
        for side, found in sides.items()
    }
    inside = sides["between"]
    outside = [*sides["below"], *sides["above"]]
    return Claim(
        f"the loss converges between the bounds and not outside (Fig. 4, kernel {SHOWN})",
        "so in the figure",
        "; ".join(f"{side}: {count or 'none'}" for side, count in counts.items()),
        judge(
            all(r.verdict.regime is Regime.STABLE for r in inside)
            and all(r.verdict.regime is not Regime.STABLE for r in outside)
        ),
        "restrained: see the remarks" if any("restrained" in c for c in counts.values()) else "",
    )


def _draw_bounds(ran: Ran, path: Path) -> None:
    drawn = figure(6.5)
    panel = drawn.subplots()
    styles = {"below": "--", "between": "-", "above": ":"}
    for i, (side, found) in enumerate(_sides(ran).items()):
        for j, result in enumerate(found):
            curve = result.replicates[0].curves["loss"]
            label = f"{side} ({len(found)})" if j == 0 else None
            panel.plot(curve.steps, curve.values, styles[side], color=f"C{i}", label=label)
    panel.set(yscale="log", xlabel="step", ylabel="loss", ylim=(1e-40, 1e25))
    panel.legend(title="weight decay", fontsize=8)
    save(drawn, path)


def _exact(optimiser: str, kernel: int) -> DecayRange:
    largest = float(checkerboard_eigenvalue(256, kernel))
    if optimiser == "sgd":
        return linear_cnn_decay_range(1e-8, -0.5, 0.0, largest)
    return nesterov_decay_range(1e-4, MOMENTUM, -0.5, 0.0, largest)


def _linear_claims(linear: Bounds) -> list[Claim]:
    claims = []
    for optimiser, least, name in (("sgd", TABLE_2, "Table 2"), ("nesterov", TABLE_9, "Table 9")):
        ends = [linear[optimiser, kernel] for kernel in least]
        exact = [_exact(optimiser, kernel) for kernel in least]
        claims += [
            _edge_claim(
                f"least bounded weight decay, kernels of 16, 32, 64 ({name})",
                [low for low, _ in ends],
                tuple(least.values()),
                [e.low for e in exact],
                math.ceil,
            ),
            _edge_claim(
                f"largest bounded weight decay, kernels of 16, 32, 64 ({name})",
                [high for _, high in ends],
                (UPPER[optimiser],) * len(least),
                [e.high for e in exact],
                math.floor,
            ),
        ]
    highs = [high for (optimiser, _), (_, high) in linear.items() if optimiser == "nesterov"]
    claims.append(
        Claim(
            "theory's largest stable weight decay for Nesterov (eq. 18), whatever the momentum",
            f"{LIMIT} (formula: {nesterov_decay_range_as_printed(1e-4, -0.5, 0.0, 1.0).high:.4g})",
            f"{min(high.stable.below for high in highs):.4g} is stable",
            judge(all(high.stable.meets(LIMIT) for high in highs)),
            "the formula printed is the limit of momentum 1; with the momentum in it, "
            f"4 / ((1 + 2 m) dt^2) = {_exact('nesterov', 16).high:.4g}",
        )
    )
    largest = max(_exact("sgd", kernel).low for kernel in range(1, 256))
    claims.append(
        Claim(
            "bounds approach those of an endless kernel as the kernel grows (section 5.3)",
            f"least decay to {ENDLESS}",
            f"{linear['sgd', 64][0].divergent.middle:.3g} for 64 pixels; in theory never above "
            f"{largest:.3g}",
            judge(largest >= printed(ENDLESS)[0]),
            "on a checkerboard the bound w^2 (257 - w)^2 / 4 peaks near half the image's side",
        )
    )
    return claims


def inwards(value: float, number: str, to: Callable[[float], int]) -> str:
    """A bound rounded into the range that it ends, with as many digits as a printed number.

    That is the last value inside, for who tries values of so many digits.
    """
    mantissa, _, exponent = number.partition("e")
    decimals = len(mantissa.partition(".")[2])
    units = to(round(value / 10.0 ** (int(exponent) - decimals), 6))
    return f"{units / 10**decimals:.{decimals}f}e{exponent}"


def _edge_claim(
    what: str,
    edges: list[Edge],
    numbers: tuple[str, ...],
    exact: list[float],
    to: Callable[[float], int],
) -> Claim:
    """One kind of edge must agree for every kernel."""
    here = (
        f"{kind}: " + ", ".join(f"{getattr(e, kind).middle:.4g}" for e in edges) for kind in KINDS
    )
    pairs = list(zip(edges, numbers, strict=True))
    holds = any(all(getattr(e, kind).meets(n) for e, n in pairs) for kind in KINDS)
    agreement = ", ".join(e.agreement(n) for e, n in pairs)
    last = [inwards(value, n, to) for value, n in zip(exact, numbers, strict=True)]
    same = sum(value == n for value, n in zip(last, numbers, strict=True))
    reason = (
        f"the paper's agree with the edge of: {agreement}; exact: "
        + ", ".join(f"{value:.7g}" for value in exact)
        + f"; the last values of as many digits inside them are {', '.join(last)}, those of the "
        f"paper in {same} of {len(last)}"
    )
    return Claim(what, ", ".join(numbers), "edge of " + "; of ".join(here), judge(holds), reason)


def _linear_table(linear: Bounds) -> Table:
    rows = []
    for (optimiser, kernel), edges in linear.items():
        exact = _exact(optimiser, kernel)
        least = (TABLE_2 if optimiser == "sgd" else TABLE_9)[kernel]
        for end, edge, number, limit in zip(
            ("least", "largest"),
            edges,
            (least, UPPER[optimiser]),
            (exact.low, exact.high),
            strict=True,
        ):
            rows.append(
                (
                    optimiser, str(kernel), end, number, str(edge.stable), str(edge.divergent),
                    edge.agreement(number), f"{limit:.6g}",
                    f"{edge.divergent.middle / limit - 1:+.2%}",
                )
            )  # fmt: skip
    headings = (
        "method", "kernel", "decay", "paper", "edge of stable", "edge of divergent",
        "the paper's agrees with", "exact", "divergent off",
    )  # fmt: skip
    return Table("Bounds of the linearised CNN", headings, rows)


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


STUDY = Study(
    name="one-layer-cnn",
    title="The one-layer CNN",
    source="Sun et al. 2024, sections 5.3, 5.4 and 6.1: Figs. 4 to 6, Tables 2 and 9",
    question=(
        "Where is the training of one kernel on one image stable, where restrained, where "
        "divergent, and does the search find the exact phases?"
    ),
    find=find,
)
