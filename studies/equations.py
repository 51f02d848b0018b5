"""The heat equation, the Beltrami flow, and four attractors in turn: what needs no network."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.plot import plot_map
from analysis.theory import (
    beltrami_cfl_bound,
    beltrami_cfl_bound_as_printed,
    beltrami_divergence_bound,
    beltrami_restrained_band,
    beltrami_sharpness,
    beltrami_signal,
    beltrami_simulate,
    heat_cfl_bound,
    heat_dirichlet_bound,
    heat_growth,
    heat_simulate,
    heat_start,
)
from studies.page import LAW, Claim, Findings, Picture, Study, Table, figure, judge, save
from studies.runs import Ran, Runs
from trainables.domain import Point, Training
from trainables.tasks import get_task

Array = NDArray[np.float64]

#: Time steps of the paper's heat equation, and the steps after which its line is drawn.
CALM_DT, WILD_DT, SNAPSHOTS = 0.4, 0.8, (0, 10, 40, 100)
#: Steps of the training that tells slow growth from none.
LONGER = 10_000
#: Multiples of the bound of the linearised equation in the paper's Fig. 2, and steps of the flow.
MULTIPLES, FLOW_STEPS = (1, 10, 100, 1000), 20_000
#: Standard deviation of the noise in the flow's signal.
NOISE = 0.1
#: Attractors: rate, strength, steps, seeds.
RATE, ALPHA, STEPS, SEEDS = 0.3, 1.0, 160, 20
#: Name, strength, mode and anchor of the four trainings compared.
WALKS: tuple[tuple[str, float, str, str | int], ...] = (
    ("plain", 0.0, "generic", "never"),
    ("regularised, anchor fixed", ALPHA, "generic", "never"),
    ("regularised, anchor moved every 4 steps", ALPHA, "generic", 4),
    ("as in the authors' program, anchor moved", ALPHA, "analytic", 4),
)


def find(runs: Runs) -> Findings:
    """Run the sweeps and compare."""
    heat, flow = runs.sweep("heat"), runs.sweep("beltrami")
    free, still = runs.sweep("attractors"), runs.sweep("attractors", stabiliser__anchor=4)
    states = _flow_states()
    walks = {name: _walks(runs, alpha, mode, anchor) for name, alpha, mode, anchor in WALKS}
    return Findings(
        claims=[
            *_heat_claims(runs, heat),
            *_flow_claims(flow, states),
            *_attractor_claims(walks),
            _strong(free),
        ],
        pictures=[
            Picture("heat", HEAT, _draw_heat),
            Picture("beltrami", BELTRAMI, partial(_draw_flow, states)),
            Picture("attractors", ATTRACTORS, partial(_draw_attractors, walks)),
            Picture("map", MAP, partial(plot_map, free.map)),
        ],
        tables=[_flow_table(states), _attractor_table(walks), _volume_table(free, still)],
        remarks=REMARKS,
    )


HEAT = (
    "Beside Fig. 1 of Sun et al.: the line after 0, 10, 40 and 100 steps, at a time step of 0.4 "
    "(left) and 0.8 (right; symmetric logarithmic)."
)
BELTRAMI = (
    "Beside Fig. 2 of Sun et al.: the flow after 20,000 steps at 0.99, 10 and 100 times the bound "
    "of the linearised equation. At 1000 times it has no values left to draw."
)
ATTRACTORS = (
    "Beside Fig. 1 of Fang et al.: the last half of one training of each kind, and the four "
    "attractors (crosses). The minimum is the origin."
)
MAP = "The map over (lr, alpha), anchor fixed. The paper has no such figure."
REMARKS = [
    LAW,
    "A walk converges if its spread is below a tenth of plain SGD's; noise is small below that of "
    "the signal.",
    "The lines and flows of the figures beside Figs. 1 and 2 of Sun et al. are iterated by "
    "`analysis.theory`, which knows no training: they are not in the cost below. Maps and edges "
    "are the service's.",
    "Neither paper names the settings of its figure, but for the heat equation: signal, delta and "
    "fidelity of the flow, places and noise of the attractors are stabmap's own.",
]


# ------------------------------------------------------------------------- heat


def _heat_claims(runs: Runs, heat: Ran) -> list[Claim]:
    (edge,) = heat.edges("lr", "divergent")
    longer = heat.train(LONGER, lr=edge.below).verdict.regime.value
    exact = float(heat_dirichlet_bound(31))
    return [
        Claim(
            "the heat equation is stable below dt (CFL condition)",
            f"{heat_cfl_bound():g}",
            f"{edge}; exact for 31 points: {exact:.7g}",
            judge(edge.meets(f"{heat_cfl_bound():g}")),
            "the paper's bound is that of an endless line, and 31 points with held ends bear a "
            f"little more: {exact / 0.5 - 1:.2%}. The rest is slow growth: {edge.below:.6g} is "
            f"{longer} in {LONGER:,} steps",
        ),
        Claim(
            "dt = 0.4 is stable, dt = 0.8 diverges (Fig. 1)",
            "so in the figure",
            f"{_label(heat, CALM_DT)}, {_label(heat, WILD_DT)}",
            judge((_label(heat, CALM_DT), _label(heat, WILD_DT)) == ("stable", "divergent")),
        ),
        Claim(
            "growth of an error in one step at dt = 0.8",
            "none",
            f"{_growth(runs):.6g}; exact {heat_growth(WILD_DT):.6g}",
            "new",
        ),
    ]


def _growth(runs: Runs) -> float:
    """By how much the last of 300 steps multiplies the line."""
    training = Training(dtype="float64")
    walk = runs.walk(get_task("heat"), Point(WILD_DT), training, 300, 0)
    sizes = [float(now.snapshot()[0].norm()) for now in walk]
    return sizes[-1] / sizes[-2]


def _label(ran: Ran, lr: float) -> str:
    return ran.at(lr=lr).verdict.regime.value


def _draw_heat(path: Path) -> None:
    drawn = figure()
    for panel, dt in zip(drawn.subplots(1, 2), (CALM_DT, WILD_DT), strict=True):
        for steps in SNAPSHOTS:
            panel.plot(heat_simulate(heat_start(31), dt, steps), label=f"t = {steps * dt:g}")
        panel.set(title=f"dt = {dt:g}", xlabel="point", ylabel="u")
        panel.legend(fontsize=8)
    panel.set_yscale("symlog", linthresh=1)
    save(drawn, path)


# ------------------------------------------------------------------------- Beltrami


def _steps_of(multiple: int) -> float:
    """The time step: at the bound itself nothing is decided, so 1 stands for 0.99."""
    return float(beltrami_cfl_bound()) * (multiple if multiple > 1 else 0.99)


def _flow_states() -> dict[int, Array]:
    """Last state of the flow by multiple of the bound."""
    signal = beltrami_signal()
    return {m: beltrami_simulate(signal, signal, _steps_of(m), FLOW_STEPS).u for m in MULTIPLES}


def _apart(states: dict[int, Array], multiple: int) -> float:
    """Root mean square of the difference to the stable answer."""
    return float(np.sqrt(np.mean((states[multiple] - states[1]) ** 2)))


def _flow_claims(flow: Ran, states: dict[int, Array]) -> list[Claim]:
    strict, printed = float(beltrami_cfl_bound()), float(beltrami_cfl_bound_as_printed())
    limit = float(beltrami_divergence_bound())
    stable, divergent = flow.edges("lr", "stable")[0], flow.edges("lr", "divergent")[-1]
    rates = [point.lr for point in flow.spec.start]
    labels = [_label(flow, lr) for lr in rates]
    return [
        Claim(
            "the flow is stable below dt (CFL condition)",
            f"{printed:.7g} (formula as printed)",
            f"{stable}; linearised exactly {strict:.7g}",
            judge(stable.below >= printed),
            "both formulas are safe, as they take the line for flat; at the answer itself 2 / "
            f"sharpness is {2 / float(beltrami_sharpness(states[1])):.6g}. The printed one takes "
            f"the data term twice, which makes {strict / printed - 1:.2%} here",
        ),
        Claim(
            "10 and 100 times the bound are restrained, 1000 times diverges (Fig. 2)",
            "so in the figure",
            ", ".join(
                f"{lr / strict:.4g} times: {name}" for lr, name in zip(rates, labels, strict=True)
            ),
            judge(labels == ["stable", "restrained", "restrained", "divergent"]),
        ),
        Claim(
            "the noise is small at 10 times and larger at 100 times (Fig. 2)",
            "seen, not measured",
            f"root mean square {_apart(states, 10):.3f} and {_apart(states, 100):.3f}; the "
            f"signal's own noise is {NOISE:g}",
            judge(_apart(states, 10) < NOISE < _apart(states, 100)),
        ),
        Claim(
            "too large a step diverges",
            "somewhere between 100 and 1000 times",
            f"above {divergent}: {divergent.middle / strict:.1f} times the bound",
            judge(100 < divergent.middle / strict < 1000),
            f"exact: 2 / fidelity = {limit:g}, {float(beltrami_restrained_band()):.4g} times the "
            "bound: the flux is bounded, so the data term alone can diverge",
        ),
    ]


def _flow_table(states: dict[int, Array]) -> Table:
    rows = []
    for multiple, state in states.items():
        largest = float(np.abs(state).max())
        finite = math.isfinite(largest)
        rows.append(
            (
                "0.99" if multiple == 1 else str(multiple),
                f"{largest:.4g}" if finite else "not finite",
                f"{_apart(states, multiple):.4g}" if finite else "not finite",
            )
        )
    headings = ("times the bound", "largest value", "root mean square from the stable answer")
    return Table(f"The flow after {FLOW_STEPS:,} steps", headings, rows)


def _draw_flow(states: dict[int, Array], path: Path) -> None:
    drawn = figure(9, 3)
    for panel, multiple in zip(drawn.subplots(1, 3, sharey=True), MULTIPLES[:3], strict=True):
        panel.plot(beltrami_signal(), color="lightgrey", label="signal")
        panel.plot(states[multiple], label="flow")
        panel.set(title=f"{multiple if multiple > 1 else 0.99} times", xlabel="point")
    panel.legend(fontsize=8)
    save(drawn, path)


# ------------------------------------------------------------------------- attractors


def _walks(runs: Runs, alpha: float, mode: str, anchor: str | int) -> Array:
    """(seeds, steps, 2) states of the second half of the trainings."""
    task = get_task("quadratic-attractors", samples=40)
    stabiliser = {"name": "stability", "mode": mode, "anchor": anchor}
    training = Training(dtype="float64", stabiliser=stabiliser)
    found = []
    for seed in range(SEEDS):
        states = [
            now.snapshot()[0].numpy().ravel()
            for now in runs.walk(task, Point(RATE, alpha), training, STEPS, seed)
        ]
        found.append(states[STEPS // 2 :])
    return np.array(found)


def _spread(walks: Array) -> Array:
    """(seeds,) root mean square distance from a training's own mean."""
    apart = walks - walks.mean(1, keepdims=True)
    return np.asarray(np.sqrt((apart**2).sum(-1).mean(1)))


def _centre(walks: Array) -> Array:
    """(seeds,) distance of a training's mean from the origin."""
    return np.asarray(np.linalg.norm(walks.mean(1), axis=-1))


def _mean(values: Array) -> str:
    """Mean with its standard error."""
    return f"{values.mean():.3f} ± {values.std(ddof=1) / math.sqrt(len(values)):.3f}"


def _attractor_claims(walks: dict[str, Array]) -> list[Claim]:
    plain, fixed, moved, printed = walks.values()
    drop = _spread(plain) - _spread(fixed)
    sure = drop.mean() > 2 * drop.std(ddof=1) / math.sqrt(SEEDS)
    expected = math.sqrt(2 * RATE / (2 - RATE) * (1 + 0.1**2))
    return [
        Claim(
            "switching makes SGD oscillate (Fig. 1)",
            "seen, not measured",
            f"spread {_mean(_spread(plain))}; for independent picks {expected:.3f}",
            judge(bool(_spread(plain).min() > 0.1)),
        ),
        Claim(
            "the regulariser damps the oscillation (Fig. 1)",
            "seen, not measured",
            f"spread {_mean(_spread(fixed))} at alpha {ALPHA:g}",
            judge(bool(sure)),
            f"the drop in the same order of picks is {_mean(drop)}",
        ),
        Claim(
            "a moving anchor lets it converge to the origin (Fig. 1)",
            "asymptotic convergence",
            f"distance of its mean from the origin: {_mean(_centre(fixed))} with a fixed anchor, "
            f"{_mean(_centre(moved))} with a moving one; its spread stays {_mean(_spread(moved))}",
            judge(bool(_spread(moved).mean() < 0.1 * _spread(plain).mean())),
            f"the mean does come near, as that of plain SGD does ({_mean(_centre(plain))}); the "
            "state goes on swinging, as it must at a constant rate with one attractor a step",
        ),
        Claim(
            "the same with the penalty differentiated as in the authors' program",
            "damped",
            f"spread {_mean(_spread(printed))}",
            judge(bool(_spread(printed).mean() < _spread(plain).mean())),
            "there the derivative sees the predicted step alone, which shrinks as the state goes "
            "on: the penalty pushes outwards",
        ),
    ]


def _strong(free: Ran) -> Claim:
    edges = [free.map.max_stable("alpha", lr=lr, confidence=0.5) for lr in (0.03, 0.1, 0.3, 1.0)]
    return Claim(
        "largest alpha that is stable at lr 0.03, 0.1, 0.3, 1 (map above)",
        "none",
        ", ".join("none" if edge is None else f"{edge:.3g}" for edge in edges),
        "new",
        "so a stabiliser can be too strong, at any learning rate",
    )


def _attractor_table(walks: dict[str, Array]) -> Table:
    rows = [(name, _mean(_spread(w)), _mean(_centre(w))) for name, w in walks.items()]
    title = f"Attractors: lr {RATE:g}, {SEEDS} seeds, the last {STEPS // 2} of {STEPS} steps"
    return Table(title, ("training", "spread", "distance of the mean from the origin"), rows)


def _volume_table(free: Ran, still: Ran) -> Table:
    rows = []
    for name, ran in (("never", free), ("every 4 steps", still)):
        counts = ran.map.counts()
        volume = ran.map.volume("stable")
        rows.append(
            (
                name,
                " / ".join(str(counts[r]) for r in ("stable", "restrained", "divergent")),
                f"{volume.share:.3f} ({volume.low:.3f} to {volume.high:.3f})",
            )
        )
    headings = (
        "anchor moved",
        "trainings stable / restrained / divergent",
        "stable share of the box",
    )
    return Table("The maps over (lr, alpha)", headings, rows)


def _draw_attractors(walks: dict[str, Array], path: Path) -> None:
    drawn = figure(10, 3)
    panels = drawn.subplots(1, len(walks), sharex=True, sharey=True)
    for panel, (name, states) in zip(panels, walks.items(), strict=True):
        panel.plot(*states[0].T, ".-", linewidth=0.5, markersize=3)
        panel.plot([1, 1, -1, -1], [1, -1, 1, -1], "x", color="black")
        panel.set_title(name.replace(", ", ",\n"), fontsize=8)
        panel.set_aspect("equal")
    save(drawn, path)


STUDY = Study(
    name="equations",
    title="Two equations and four attractors",
    source=("Sun et al. 2024, section 3: Figs. 1 and 2; Fang et al. 2022, section 3.3: Fig. 1"),
    question=(
        "Do the smallest examples of both papers do what their figures show, and at which step "
        "sizes exactly?"
    ),
    find=find,
)
