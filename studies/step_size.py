"""The largest step of deep linear networks, and a fit that swings between two functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.theory import deep_linear_lr_bound, identity_start_lr_bound, relu_output_bound
from studies.page import Claim, Findings, Picture, Study, Table, figure, judge, save
from studies.runs import Bracket, Ran, Runs, seeds_by_label
from trainables.domain import Point, PointResult, Regime
from trainables.tasks import get_task

Array = NDArray[np.float64]

#: Eigenvalues of the target; all are multiplied so that the largest is the one asked for.
EIGENVALUES = (4.0, 2.0, 1.0, 0.5, 0.1)
#: Depths with the largest eigenvalue 4, and largest eigenvalues with 3 layers.
DEPTHS, DEPTH_RHO = (1, 2, 3, 4, 8), 4.0
RHOS, RHO_DEPTH = (1.0, 8.0), 3
#: Rates of the paper's fit, and how many draws of the weights are followed at each.
RATES, DRAWS = (2e-4, 3e-4), 10
#: A larger gap between the functions of odd and even steps than this is an oscillation.
GAP = 0.01
#: A training that ends below this share of its first loss has come to a solution.
SOLVED = 0.01


def find(runs: Runs) -> Findings:
    """Run the sweeps and compare."""
    sweeps = {(DEPTH_RHO, depth): _linear(runs, depth, DEPTH_RHO) for depth in DEPTHS}
    sweeps |= {(rho, RHO_DEPTH): _linear(runs, RHO_DEPTH, rho) for rho in RHOS}
    depths = {depth: _edge(sweeps[DEPTH_RHO, depth]) for depth in DEPTHS}
    rhos = {rho: _edge(sweeps[rho, RHO_DEPTH]) for rho in RHOS}
    rhos[DEPTH_RHO] = depths[RHO_DEPTH]
    rhos = dict(sorted(rhos.items()))
    fit = runs.sweep("two-layer-relu")
    gaps = {lr: _gaps(runs, fit, lr) for lr in RATES}
    return Findings(
        claims=[*_linear_claims(depths, rhos, _beyond(sweeps)), *_fit_claims(fit, gaps)],
        pictures=[
            Picture("linear", LINEAR, partial(_draw_linear, depths, rhos)),
            Picture("fit", FIT, partial(_draw_fit, gaps)),
        ],
        tables=[_linear_table(depths, rhos), _fit_table(fit, gaps)],
        remarks=REMARKS,
    )


LINEAR = (
    "Largest stable step of a product of linear layers from the identity: measured (dots), twice "
    "the bound of theorem 2, which is corollary 1 (line), and theorem 2 (dashed). The paper has "
    "these as theorems, without a figure."
)
FIT = (
    "Beside Fig. 2: what two steps after each other make of the fit, for the draw that swings most "
    "at 3e-4, at the paper's two rates. The paper's draw swings at the larger rate alone."
)
REMARKS = [
    "The weights of the paper's Fig. 2 come from TensorFlow 1 and cannot be drawn again, so many "
    f"draws are trained. A draw swings where the gap between two steps exceeds {GAP:g}. "
    "A claim on one draw agrees where it holds for more than half of them.",
]


# ------------------------------------------------------------------------- deep linear


def _linear(runs: Runs, depth: int, rho: float) -> Ran:
    """Training from the identity, along lr."""
    eigenvalues = [value * rho / max(EIGENVALUES) for value in EIGENVALUES]
    return runs.sweep("deep-linear", task__depth=depth, task__eigenvalues=eigenvalues)


def _edge(ran: Ran) -> Bracket:
    """Where training ceases to be stable, from below."""
    return ran.halved(ran.brackets("lr", "stable")[0], "lr", "stable")


#: Largest eigenvalue, depth and a training of that network.
Beyond = tuple[float, int, PointResult]


def _beyond(sweeps: Mapping[tuple[float, int], Ran]) -> list[Beyond]:
    """Stable trainings above the bound of corollary 1."""
    return [
        (*key, result)
        for key, ran in sweeps.items()
        for result in ran.results
        if result.point.lr > float(deep_linear_lr_bound(*key))
        and result.verdict.regime is Regime.STABLE
    ]


def _solved(result: PointResult) -> bool:
    """Whether a training came to a solution, and not to rest elsewhere."""
    return _loss(result, "final") < SOLVED * _loss(result, "initial")


def _loss(result: PointResult, when: str) -> float:
    return float(result.replicates[0].evidence[f"{when}_loss"] or 0)


def _off(edges: dict[tuple[float, int], Bracket]) -> list[float]:
    """By how much each edge is off the exact limit, relative."""
    return [e.middle / float(deep_linear_lr_bound(rho, n)) - 1 for (rho, n), e in edges.items()]


def _linear_claims(
    depths: dict[int, Bracket], rhos: dict[float, Bracket], beyond: Sequence[Beyond]
) -> list[Claim]:
    edges = _all(depths, rhos)
    safe = {key: float(identity_start_lr_bound(*key)) for key in edges}
    held = [edges[key].below >= safe[key] for key in edges]
    off = _off(edges)
    solved = sum(_solved(result) for _, _, result in beyond)
    above = [key for key, edge in edges.items() if edge.below > float(deep_linear_lr_bound(*key))]
    return [
        Claim(
            "descent from the identity converges up to 1 / (L rho^(2 (L - 1) / L)) (theorem 2)",
            f"{len(held)} of {len(held)} cases",
            f"{sum(held)} of {len(held)}",
            judge(all(held)),
            "the factor to the measured limit is "
            f"{min(edges[k].middle / safe[k] for k in edges):.3f} to "
            f"{max(edges[k].middle / safe[k] for k in edges):.3f}: the theorem is safe, not sharp",
        ),
        Claim(
            "above 2 / (L rho^(2 (L - 1) / L)) no solution is stable (corollary 1)",
            "an upper bound",
            f"training ceases to be stable above it in {len(above)} of {len(edges)} cases, off by "
            f"{min(off):+.2%} to {max(off):+.2%}; {solved} trainings above it are stable at "
            "a solution",
            judge(not above and not solved),
            "it is nearly the limit itself: the balanced solution attains it" + _elsewhere(beyond),
        ),
        Claim(
            "a larger singular value or more layers need a smaller step",
            "so for rho > 1",
            "limit at depth 1 to 8: "
            + ", ".join(f"{e.middle:.4g}" for e in depths.values())
            + f"; at rho {', '.join(f'{r:g}' for r in rhos)}: "
            + ", ".join(f"{e.middle:.4g}" for e in rhos.values()),
            judge(_falls(depths.values()) and _falls(rhos.values())),
        ),
    ]


def _elsewhere(beyond: Sequence[Beyond]) -> str:
    """Where stable trainings above the bound are at rest."""
    listed = ", ".join(
        f"lr {r.point.lr:.3g} at loss {_loss(r, 'final'):.4g} ({depth} layers, eigenvalue {rho:g})"
        for rho, depth, r in beyond
        if not _solved(r)
    )
    return f". What is stable above it rests where it is no solution: {listed}" if listed else ""


def _falls(edges: Iterable[Bracket]) -> bool:
    return all(a.middle > b.middle for a, b in pairwise(edges))


def _all(
    depths: dict[int, Bracket], rhos: dict[float, Bracket]
) -> dict[tuple[float, int], Bracket]:
    """All edges by largest eigenvalue and depth."""
    found = {(DEPTH_RHO, depth): edge for depth, edge in depths.items()}
    return found | {(rho, RHO_DEPTH): edge for rho, edge in rhos.items()}


def _linear_table(depths: dict[int, Bracket], rhos: dict[float, Bracket]) -> Table:
    rows = []
    for (rho, depth), edge in _all(depths, rhos).items():
        exact, safe = (
            float(deep_linear_lr_bound(rho, depth)),
            float(identity_start_lr_bound(rho, depth)),
        )
        rows.append(
            (
                str(depth),
                f"{rho:g}",
                str(edge),
                f"{exact:.6g}",
                f"{edge.middle / exact - 1:+.2%}",
                f"{safe:.6g}",
            )
        )
    headings = (
        "layers",
        "largest eigenvalue",
        "largest stable lr",
        "corollary 1",
        "off",
        "theorem 2",
    )
    return Table("Deep linear networks from the identity", headings, rows)


def _draw_linear(depths: dict[int, Bracket], rhos: dict[float, Bracket], path: Path) -> None:
    drawn = figure()
    left, right = drawn.subplots(1, 2)
    layers, sizes = np.arange(1, 9), np.geomspace(1, 8, 50)
    left.plot(layers, deep_linear_lr_bound(DEPTH_RHO, layers), label="corollary 1")
    left.plot(layers, identity_start_lr_bound(DEPTH_RHO, layers), "--", label="theorem 2")
    left.plot(list(depths), [e.middle for e in depths.values()], "o", label="measured")
    right.plot(sizes, deep_linear_lr_bound(sizes, RHO_DEPTH))
    right.plot(sizes, identity_start_lr_bound(sizes, RHO_DEPTH), "--")
    right.plot(list(rhos), [e.middle for e in rhos.values()], "o")
    left.set(xlabel="layers (largest eigenvalue 4)", ylabel="largest stable lr", yscale="log")
    right.set(xlabel="largest eigenvalue (3 layers)", xscale="log", yscale="log")
    left.legend(fontsize=8)
    save(drawn, path)


# ------------------------------------------------------------------------- ReLU fit


def _gaps(runs: Runs, fit: Ran, lr: float) -> list[tuple[Array, Array]]:
    """What each draw makes of x at the last step but one and at the last."""
    task, found = get_task(fit.spec.task_name, **fit.spec.task_options), []
    x = task.train_data()[0]
    for seed in range(DRAWS):
        last: list[Array] = []
        for now in runs.walk(task, Point(lr), fit.spec.training, fit.spec.steps, seed):
            if now.count >= fit.spec.steps - 1:
                last.append(now.module(x).detach().numpy()[0, :, 0].copy())
        found.append((last[0], last[1]))
    return found


def _gap(pair: tuple[Array, Array]) -> float:
    return float(np.abs(pair[0] - pair[1]).max())


Gaps = dict[float, list[tuple[Array, Array]]]


def _swinging(gaps: Gaps) -> dict[float, int]:
    """How many draws swing at each rate."""
    return {lr: sum(_gap(pair) > GAP for pair in pairs) for lr, pairs in gaps.items()}


def _fit_claims(fit: Ran, gaps: Gaps) -> list[Claim]:
    low, high = RATES
    swing, count = _swinging(gaps), len(gaps[low])
    ordered = sum(_gap(a) <= GAP < _gap(b) for a, b in zip(gaps[low], gaps[high], strict=True))
    trained = [one for result in fit.results for one in result.replicates]
    settled = [one for one in trained if one.verdict.regime.value == "stable"]
    largest = max(float(o.evidence["metric"] or 0) for o in settled)
    return [
        Claim(
            "at 2e-4 the fit converges to one function (Fig. 2, left)",
            "one draw: it does",
            f"{count - swing[low]} of {count} draws",
            judge(swing[low] < count / 2),
        ),
        Claim(
            "at 3e-4 it swings between two functions (Fig. 2, right)",
            "one draw: it does",
            f"{swing[high]} of {count} draws",
            judge(swing[high] > count / 2),
            "what happens depends on the draw of the weights; the paper has one. Other draws, "
            "stable / restrained / divergent, at "
            + "; ".join(f"{r.point.lr:g}: {seeds_by_label(r)}" for r in fit.results),
        ),
        Claim(
            "the same draw converges at 2e-4 and swings at 3e-4",
            "one draw: it does",
            f"{ordered} of {count} draws",
            judge(ordered > count / 2),
            f"the draws that swing at {high:g} swing at {low:g} too: "
            f"{swing[low]} at {low:g}, {swing[high]} at {high:g}"
            if swing[low] and not ordered
            else "",
        ),
        Claim(
            "a fit that has converged obeys |x| |f(x)| <= 1 / (2 lr) (theorem 4)",
            f"{relu_output_bound(high, 1.0):.0f} at 3e-4",
            f"at most {largest:.3g} in {len(settled)} stable trainings",
            judge(largest <= min(relu_output_bound(r.point.lr, 1.0) for r in fit.results)),
            "the bound holds and is far from tight, as the paper says",
        ),
    ]


def _fit_table(fit: Ran, gaps: Gaps) -> Table:
    rows = []
    for result in fit.results:
        found = [_gap(pair) for pair in gaps.get(result.point.lr, ())]
        seen = [f"{np.median(found):.2g}", f"{max(found):.3g}"] if found else ["-", "-"]
        rows.append((f"{result.point.lr:g}", seeds_by_label(result), *seen))
    headings = ("lr", "draws stable / restrained / divergent", "median gap", "largest gap")
    title = f"The fit after {fit.spec.steps:,} steps, and the gap of {DRAWS} other draws"
    return Table(title, headings, rows)


def _draw_fit(gaps: Gaps, path: Path) -> None:
    draw = int(np.argmax([_gap(pair) for pair in gaps[RATES[1]]]))
    task = get_task("two-layer-relu")
    x, target = (tensor.numpy()[0, :, 0] for tensor in task.train_data())
    drawn = figure()
    for panel, lr in zip(drawn.subplots(1, 2), RATES, strict=True):
        odd, even = gaps[lr][draw]
        panel.plot(x, target, color="black", linewidth=3, alpha=0.3, label="f")
        panel.plot(x, odd, label="one step before")
        panel.plot(x, even, "--", label="last step")
        panel.set(title=f"lr {lr:g}", xlabel="x")
    panel.legend(fontsize=8)
    save(drawn, path)


STUDY = Study(
    name="step-size",
    title="Step size",
    source="Nar and Sastry 2018: theorems 1, 2 and 4, corollary 1, Fig. 2",
    question=(
        "How large may the step be for deep linear networks, and does a two-layer ReLU fit swing "
        "between two functions above some step?"
    ),
    find=find,
)
