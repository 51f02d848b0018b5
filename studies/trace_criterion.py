"""SGD's trace criterion over learning rate and batch size, on least squares where it is exact."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from analysis.colours import COLOURS
from analysis.theory import SGDStability, trace_threshold
from stabmap import load_tasks
from studies.least_squares import rows
from studies.page import Claim, Findings, Picture, Study, Table, figure, judge, save
from studies.runs import ROOT, Bracket, Ran, Runs
from trainables.domain import PointResult, Regime

#: Batch sizes of rows of normal numbers; with rows of equal length batches of one alone.
SAMPLES, DIMENSIONS, SIZES = 64, 4, (1, 2, 4, 8, 16, 64)
#: What numbers that are equal may differ by.
ROUNDING = 1e-12
#: Steps of the training that tells slow growth from none.
LONGER = 4_000
#: How often each edge is halved.
HALVINGS = 3


@dataclass(frozen=True)
class Case:
    """One sweep over lr.

    Args:
        batch: samples in a batch.
        equal: whether all rows have one length.
        ran: the sweep.
        stable: where stable trainings end.
        divergent: where divergent ones begin.
    """

    batch: int
    equal: bool
    ran: Ran
    stable: Bracket
    divergent: Bracket

    @property
    def theory(self) -> SGDStability:
        """What holds of the mean square; batches hold no sample twice."""
        return _theory(self.batch, self.equal)

    @property
    def trace_lr(self) -> float:
        """The criterion: 2 / tr(H)."""
        return float(trace_threshold(1.0)) / self.theory.trace

    @property
    def wide_lr(self) -> float:
        """The criterion with the batch size in it: 2 B / tr(H)."""
        return float(trace_threshold(1.0, self.batch)) / self.theory.trace

    @property
    def turn(self) -> Bracket:
        """The trained rates between which the median Lyapunov exponent becomes positive."""
        found = sorted((r.point.lr, _exponent(r)) for r in (*self.ran.results, *self.ran.single))
        above = min(lr for lr, exponent in found if exponent > 0)
        return Bracket(max(lr for lr, e in found if e <= 0 and lr < above), above)


def _theory(batch: int, equal: bool) -> SGDStability:
    return SGDStability(rows(SAMPLES, DIMENSIONS, equal), batch, replacement=False)


def _exponent(result: PointResult) -> float:
    """Median over the seeds; a training that blew up too soon for one counts as growing."""
    found = [one.evidence.get("lyapunov_exponent") for one in result.replicates]
    return float(np.median([np.inf if value is None else value for value in found]))


def find(runs: Runs) -> Findings:
    """Run a sweep a batch size and compare."""
    load_tasks(ROOT / "studies" / "least_squares.py")
    cases = [_case(runs, batch, equal=False) for batch in SIZES]
    even = _case(runs, 1, equal=True)
    return Findings(
        claims=[*_paper_claims(cases, even), *_own_claims(cases, even)],
        pictures=[Picture("map", MAP, partial(_draw, cases))],
        tables=[_limit_table([*cases, even]), _edge_table([*cases, even])],
        remarks=REMARKS,
    )


def _case(runs: Runs, batch: int, equal: bool) -> Case:
    ran = runs.sweep("trace-criterion", task__batch_size=batch, task__equal=equal)
    stable, divergent = (ran.edges("lr", kind, HALVINGS)[0] for kind in ("stable", "divergent"))
    return Case(batch, equal, ran, stable, divergent)


MAP = (
    "Trainings by learning rate and batch size: stable (blue), restrained (orange), divergent "
    "(red), each the median of seven draws of the weights. Lines: 2 / trace (dotted), 2 B / trace "
    "(dash-dot), the general form (dashed), the exact threshold of the mean square (full), "
    "2 / sharpness (grey)."
)
REMARKS = [
    f"The data are {SAMPLES} rows of {DIMENSIONS} normal numbers and the loss is "
    "mean (x . w)^2 / 2, so that all thresholds are exact for batches that "
    "are drawn anew in each step. The service cuts a shuffled epoch into batches: within an epoch "
    "no sample comes twice, and for that theory is an approximation.",
    "The general form is lr [c E|x|^4 + (1 - c) |H|^2] <= 2 tr(H) with Frobenius' norm and "
    "c = (N - B) / (B (N - 1)). With c = 1, and E|x|^4 at least tr(H)^2, it gives lr <= 2 / tr(H).",
    "A bound counts as kept where the largest trained rate below the edge is no larger; two ranges "
    "meet where they share a rate. The limit of gradient descent is met where it lies between the "
    "largest stable and the smallest divergent rate.",
]


def _paper_claims(cases: list[Case], even: Case) -> list[Claim]:
    full = cases[-1]
    limit = full.theory.full_batch_lr
    claims = []
    for name, case in (("normal rows", cases[0]), ("rows of one length", even)):
        exact = case.theory.critical_lr
        claims += [
            Claim(
                f"SGD with batches of one is stable only up to lr = 2 / tr(H) ({name})",
                f"{case.trace_lr:.4g}",
                f"mean square, exact, computed and not trained: {exact:.4g}",
                judge(exact <= case.trace_lr * (1 + ROUNDING)),
                f"{exact / case.trace_lr:.3f} of it: both are the same where all |x| are",
            ),
            Claim(
                f"the same of the labels of single trainings ({name})",
                f"{case.trace_lr:.4g}",
                f"stable up to {case.stable}, divergent from {case.divergent}",
                judge(case.stable.below <= case.trace_lr),
                _between(case),
            ),
        ]
    return [
        *claims,
        Claim(
            "gradient descent is bound by 2 / sharpness alone",
            f"{limit:.4g}",
            f"stable up to {full.stable}, divergent from {full.divergent}, with all {SAMPLES} "
            "samples in a batch",
            judge(full.stable.below <= limit <= full.divergent.above),
        ),
    ]


def _between(case: Case) -> str:
    """Why trainings that are not stable need not diverge."""
    growth = case.theory.radius(case.divergent.below)
    if growth <= 1:
        return "nothing lies between the two"
    return (
        "restrained between them. The criterion is on the mean square, which grows at "
        f"{case.divergent.below:.4g} by a factor of {growth:.3f} a step, while most trainings do "
        "not: a few very large excursions make the mean"
    )


def _own_claims(cases: list[Case], even: Case) -> list[Claim]:
    every = [*cases, even]
    apart = [case for case in every if not case.turn.overlaps(case.divergent)]
    slow = "".join(
        f". With batches of {_name(case)}, {case.divergent.below:.5g} is restrained, and in "
        f"{LONGER:,} steps {case.ran.train(LONGER, lr=case.divergent.below).verdict.regime.value}"
        for case in apart
    )
    beyond = [case for case in cases[1:] if case.stable.below > case.trace_lr]
    return [
        Claim(
            "2 / tr(H) for larger batches",
            "none: proved for batches of one",
            f"stable above it with {len(beyond)} of {len(cases) - 1} batch sizes "
            f"({', '.join(str(case.batch) for case in beyond) or '-'})",
            "new",
            "so the criterion must not be used for them as it stands",
        ),
        _bounds_claim("stable", [case.stable for case in every], every),
        _bounds_claim("divergent", [case.divergent for case in every], every),
        Claim(
            "single trainings die out up to where the Lyapunov exponent is 0",
            "none",
            f"the edge of divergence and the exponent's change of sign meet in "
            f"{len(every) - len(apart)} of {len(every)} cases",
            "new",
            "that is the typical training, not the mean square" + slow,
        ),
        _dying(every),
    ]


def _bounds_claim(kind: str, edges: list[Bracket], cases: list[Case]) -> Claim:
    """Whether the rates below an edge keep to each bound."""
    pairs = list(zip(edges, cases, strict=True))
    ratios = [edge.middle / case.theory.critical_lr for edge, case in pairs]
    return Claim(
        f"below the edge of {kind} lr keeps to the general form; to 2 B / tr(H)",
        "none",
        f"{sum(edge.below <= case.theory.necessary_lr for edge, case in pairs)} and "
        f"{sum(edge.below <= case.wide_lr for edge, case in pairs)} of {len(cases)} cases",
        "new",
        "the edge is at "
        f"{min(ratios):.3f} to {max(ratios):.3f} of the exact threshold of the mean square",
    )


def _dying(cases: list[Case]) -> Claim:
    """Restrained trainings that die out: what the label means for batches."""
    trained = [r for case in cases for r in (*case.ran.results, *case.ran.single)]
    found = [r for r in trained if r.verdict.regime is Regime.RESTRAINED]
    dying = [r for r in found if _exponent(r) < 0]
    return Claim(
        "restrained trainings that die out",
        "none",
        f"{len(dying)} of {len(found)} restrained ones have a negative Lyapunov exponent",
        "new",
        "nothing linear stays restrained: the label says that more than 5 % of the steps raise the "
        "loss of their own batch, as every step with lr |x|^2 > 2 does for a batch of one",
    )


def _limit_table(cases: list[Case]) -> Table:
    rows = [
        (
            _name(case), f"{case.trace_lr:.4g}", f"{case.wide_lr:.4g}",
            f"{case.theory.necessary_lr:.4g}", f"{case.theory.critical_lr:.4g}",
            f"{case.theory.full_batch_lr:.4g}",
        )
        for case in cases
    ]  # fmt: skip
    headings = (
        "batch", "2 / tr(H)", "2 B / tr(H)", "general form", "mean square, exact", "2 / sharpness",
    )  # fmt: skip
    return Table("What theory says of lr", headings, rows)


def _edge_table(cases: list[Case]) -> Table:
    rows = [
        (
            _name(case), str(case.stable), str(case.divergent), str(case.turn),
            f"{case.stable.middle / case.theory.critical_lr:.3f}",
            f"{case.theory.radius(case.divergent.below):.4f}",
        )
        for case in cases
    ]  # fmt: skip
    headings = (
        "batch", "edge of stable", "edge of divergent", "exponent becomes positive",
        "edge of stable / exact",
        "growth of the mean square below the edge of divergence, in theory",
    )  # fmt: skip
    return Table("What was measured, beside theory", headings, rows)


def _name(case: Case) -> str:
    return f"{case.batch}, rows of one length" if case.equal else str(case.batch)


def _draw(cases: list[Case], path: Path) -> None:
    drawn = figure(8.5, 4)
    panel = drawn.subplots()
    sizes = np.array([case.batch for case in cases])
    for case in cases:
        for result in (*case.ran.results, *case.ran.single):
            colour = COLOURS[result.verdict.regime.value]
            panel.plot(result.point.lr, case.batch, "o", color=colour, markersize=4)
    lines = (
        (":", "black", "2 / trace", [case.trace_lr for case in cases]),
        ("-.", "black", "2 B / trace", [case.wide_lr for case in cases]),
        ("--", "tab:purple", "general form", [case.theory.necessary_lr for case in cases]),
        ("-", "tab:purple", "mean square, exact", [case.theory.critical_lr for case in cases]),
        ("-", "grey", "2 / sharpness", [case.theory.full_batch_lr for case in cases]),
    )
    for style, colour, name, rates in lines:
        panel.plot(rates, sizes, style, color=colour, label=name)
    panel.set(xscale="log", yscale="log", xlabel="lr", ylabel="batch size", xlim=(0.1, 3))
    panel.set_yticks(sizes, [str(size) for size in sizes])
    ticks = (0.1, 0.2, 0.5, 1, 2)
    panel.set_xticks(ticks, [f"{lr:g}" for lr in ticks])
    panel.minorticks_off()
    for name, colour in COLOURS.items():
        panel.plot([], [], "o", color=colour, markersize=4, label=name)
    panel.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    save(drawn, path)


STUDY = Study(
    name="trace-criterion",
    title="SGD's trace criterion",
    source=(
        "Wu and Su 2023, the trace criterion; the paper has no figure of it over lr and batch size"
    ),
    question=(
        "Does 2 / tr(H) bound the learning rates at which SGD is stable, for batches of one and "
        "for larger ones?"
    ),
    find=find,
)
