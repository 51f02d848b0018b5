"""Does the regulariser widen the range of workable rates of a GAN and of crowd counting?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from analysis.colours import COLOURS
from studies.page import Agreement, Claim, Findings, Picture, Study, Table, decided, figure, save
from studies.runs import Ran, Runs, first_edge
from trainables.domain import Replicate
from trainables.tasks import Task, get_task

#: Strengths; the crowd paper names none.
ALPHAS = (0.0, 1.0, 10.0)
#: Level of the exact tests. An effect has a smaller p.
LEVEL = 0.05
PRESETS = {"crowd": "crowd-rates", "gan": "gan-rates"}
NAMES = {"crowd": "crowd counting (MCNN)", "gan": "GAN (SNGAN)"}
METRICS = {"crowd": "mean absolute error", "gan": "Frechet distance (no FID)"}
REGIMES = ("stable", "bounded", "workable")


@dataclass(frozen=True)
class Trained:
    """One training: its rate, the number of its draw, what it ended with, what is worth nothing."""

    lr: float
    draw: int
    regime: str
    metric: float
    worthless: float

    @property
    def share(self) -> float:
        """What it ended with, in units of what is worth nothing."""
        return self.metric / self.worthless

    def within(self, part: str) -> bool:
        """Whether it is stable, bounded, or workable: bounded and better than worthless."""
        if part == "stable":
            return self.regime == "stable"
        bounded = self.regime != "divergent"
        return bounded and (part == "bounded" or self.metric < self.worthless)


#: Trainings by strength.
Trainings = Mapping[float, Sequence[Trained]]


def find(runs: Runs) -> Findings:
    """Run the sweeps and compare."""
    found: dict[str, Trainings] = {}
    for name, preset in PRESETS.items():
        changes = [{"axes__alpha": alpha} if alpha else {} for alpha in ALPHAS]
        found[name] = {
            alpha: _trainings(name, runs.sweep(preset, **change))
            for alpha, change in zip(ALPHAS, changes, strict=True)
        }
    return Findings(
        claims=[
            *(_claim(name, t, alpha) for name, t in found.items() for alpha in ALPHAS[1:]),
            *PAPERS,
        ],
        pictures=[Picture("rates", RATES, partial(_draw, found))],
        tables=[_edge_table(found), _pair_table(found)],
        remarks=REMARKS,
    )


RATES = (
    "What each training ends with, by rate, in units of a useless answer (dotted): for crowds the "
    "mean count of the training pictures, for the GAN its own generator before its first update. "
    "Below the line it is workable, unless it diverged. A training without a metric stands at the "
    "top. The papers have no such figure."
)
GPU = "a GPU for days; "
PAPERS = (
    Claim(
        "mean error of MCNN on NWPU-Crowd, ten runs (Table 1 of Fang et al.)",
        "328.386 plain, 301.421 clipped, 265.477 regularised",
        "-",
        "not testable here",
        f"{GPU}NWPU-Crowd (5,109 pictures), 100 epochs, full width: preset `crowd-mcnn`. The paper "
        "does not state its alpha",
    ),
    Claim(
        "FID of SNGAN on CIFAR-10 (Fig. 6 of Fang et al.)",
        "below 30 regularised, about 32 plain",
        "-",
        "not testable here",
        f"{GPU}CIFAR-10, weights of Inception-v3, 100 epochs, full width: preset `sngan-cifar-10`",
    ),
    Claim(
        "best FID of BigGAN on CIFAR-100 at three times the rate (Table 2 of Fang et al.)",
        "9.516 plain, 8.605 regularised",
        "-",
        "not testable here",
        f"{GPU}CIFAR-100, weights of Inception-v3, 70,000 updates: preset `biggan-cifar-100`",
    ),
)
REMARKS = [
    "**What was fixed before the run.** Rates, strengths, seeds, sizes: see the presets. Workable "
    "is what does not diverge and ends better than a useless answer: the mean count of the "
    "training pictures for crowds, the generator before its first update for the GAN. A strength "
    "widens the range where it makes more of the (rate, draw) pairs workable than it spoils, by an "
    f"exact two-sided test of the pairs that change, p < {LEVEL:g}. Every training has weights of "
    "its own, so a pair has the rate in common and nothing else. An edge is the first rate, from "
    "below, where a training is not stable (or bounded) any more.",
    "**What it cannot say.** These are stand-ins (made-up crowds, patches of photographs) of the "
    "smallest sizes, trained for 60 updates. The distance is that of the features of a small "
    "network, no FID. The papers' numbers are neither met nor contradicted: what can agree is the "
    "direction of the effect, on these stand-ins.",
    'More seeds and updates: `make study NAME=gan-and-crowd SET="seeds=10 steps=400"`.',
]


def _trainings(name: str, ran: Ran) -> list[Trained]:
    """All trainings of a sweep, draw by draw."""
    worthless = _crowd_worthless if name == "crowd" else _gan_worthless
    of_seed = worthless(get_task(ran.spec.task_name, **ran.spec.task_options))
    return [
        Trained(result.point.lr, draw, one.verdict.regime.value, _metric(one), of_seed(one.seed))
        for result in ran.results
        for draw, one in enumerate(result.replicates)
    ]


def _metric(one: Replicate) -> float:
    found = one.evidence.get("metric")
    return float("inf") if found is None or not np.isfinite(found) else float(found)


def _crowd_worthless(task: Task) -> Callable[[int], float]:
    """The metric of a useless answer, by seed: the mean count of the training pictures."""
    mean = task.train_data()[1].flatten(1).sum(1).mean()
    found = float((task.test_data()[1].flatten(1).sum(1) - mean).abs().mean())
    return lambda _: found


def _gan_worthless(task: Task) -> Callable[[int], float]:
    """The metric of a useless answer, by seed: the generator before its first update."""
    inputs, targets = task.test_data()

    def of(seed: int) -> float:
        with torch.no_grad():
            return task.metric(task.module(seed).eval()(inputs), targets)

    return of


# ------------------------------------------------------------------------- arithmetic


def edge(trained: Sequence[Trained], part: str) -> tuple[float, float]:
    """The last rate from below up to which all are in a part, and the next one.

    The first is 0 where the lowest rate is not in it, the second infinite where all are.
    """
    found = first_edge((one.lr, one.within(part)) for one in trained)
    return found.below, found.above


def changes(plain: Sequence[Trained], now: Sequence[Trained], part: str) -> tuple[int, int, float]:
    """Pairs of (rate, draw) that come into a part, those that leave it, and the exact p."""
    before = {(f"{t.lr:.6g}", t.draw): t.within(part) for t in plain}
    pairs = [(before[f"{t.lr:.6g}", t.draw], t.within(part)) for t in now]
    gained = sum(b and not a for a, b in pairs)
    lost = sum(a and not b for a, b in pairs)
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return gained, lost, p


def agreement(gained: int, lost: int, p: float) -> Agreement:
    """What the test of a widening says; too few changes say nothing."""
    return decided(p < LEVEL and gained > lost, p < LEVEL and lost > gained)


# ------------------------------------------------------------------------- tables, figure


def _claim(name: str, trained: Trainings, alpha: float) -> Claim:
    plain, now = trained[0.0], trained[alpha]
    gained, lost, p = changes(plain, now, "workable")
    counts = [sum(t.within("workable") for t in some) for some in (plain, now)]
    reason = {
        "not testable here": "no effect shown: too few trainings change to tell it from chance",
        "agrees": "on stand-ins, at this size",
        "differs": "it narrows the range, on stand-ins, at this size",
    }
    said = agreement(gained, lost, p)
    return Claim(
        f"{NAMES[name]}: alpha {alpha:g} widens the range of workable rates",
        "so at full size",
        f"{counts[0]} of {len(plain)} trainings workable at alpha 0, {counts[1]} at {alpha:g}: "
        f"+{gained} -{lost}, p = {p:.2g}",
        said,
        reason[said],
    )


def _edge_table(found: Mapping[str, Trainings]) -> Table:
    rows = []
    for name, trained in found.items():
        for alpha, some in trained.items():
            draws = sorted({t.draw for t in some})
            by_draw = [[t for t in some if t.draw == draw] for draw in draws]
            edges = [[_shown(*edge(one, p)) for one in by_draw] for p in ("stable", "bounded")]
            rows.append((NAMES[name], f"{alpha:g}", *("; ".join(e) for e in edges)))
    headings = ("task", "alpha", "stable ends between, by draw", "bounded ends between, by draw")
    return Table("Both boundaries", headings, rows)


def _shown(low: float, high: float) -> str:
    if not low:
        return f"below {high:.3g}"
    return f"above {low:.3g}" if np.isinf(high) else f"{low:.3g} to {high:.3g}"


def _pair_table(found: Mapping[str, Trainings]) -> Table:
    rows = []
    for name, trained in found.items():
        for alpha, now in trained.items():
            cells = []
            for part in REGIMES:
                count = sum(t.within(part) for t in now)
                gained, lost, p = changes(trained[0.0], now, part)
                change = f" (+{gained} -{lost}, p = {p:.2g})" if alpha else ""
                cells.append(f"{count} of {len(now)}{change}")
            rows.append((NAMES[name], f"{alpha:g}", *cells, f"{min(t.metric for t in now):.4g}"))
    return Table(
        "Trainings by strength, changes against alpha 0",
        ("task", "alpha", *REGIMES, "best metric"),
        rows,
    )


def _draw(found: Mapping[str, Trainings], path: Path) -> None:
    drawn = figure(11, 5.5)
    panels: Any = drawn.subplots(len(found), len(ALPHAS), sharex="row", sharey="row")
    for row, (name, trained) in zip(panels, found.items(), strict=True):
        finite = [t.share for some in trained.values() for t in some if np.isfinite(t.share)]
        top = 2 * max(finite)
        for panel, (alpha, some) in zip(row, trained.items(), strict=True):
            for regime, colour in COLOURS.items():
                chosen = [t for t in some if t.regime == regime]
                heights = [min(t.share, top) for t in chosen]
                panel.plot([t.lr for t in chosen], heights, "o", color=colour, label=regime)
            panel.axhline(1, color="black", linestyle=":")
            panel.set(xscale="log", yscale="log")
            panel.set_title(f"{NAMES[name]}, alpha {alpha:g}", fontsize=9)
            panel.set_xlabel("lr", fontsize=8)
        row[0].set_ylabel(f"{METRICS[name]},\nshare of a useless answer's", fontsize=8)
    panels[0][-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    save(drawn, path)


STUDY = Study(
    name="gan-and-crowd",
    title="GAN and crowd counting",
    source="Fang et al. 2022, sections 4.2 and 4.3, small and on stand-ins",
    question=(
        "Does the stability regulariser widen the range of workable learning rates of a GAN and of "
        "a network that counts crowds?"
    ),
    find=find,
)
