"""The stable learning rate of deeper networks, with and without weight decay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy.stats import entropy, hypergeom
from torch import Tensor

from analysis.colours import COLOURS
from studies.page import LAW, Claim, Findings, Picture, Study, Table, decided, figure, judge, save
from studies.runs import Bracket, Ran, Runs, first_edge, seeds_by_label
from trainables.domain import PointResult, Regime
from trainables.tasks import Task, get_task

#: Of the paper's Fig. 9; its Figs. 7 and 8 have none.
DECAYS = (0.0, 5e-4)
#: Convolutions, and hidden layers of the tanh networks.
CNN, TANH = (1, 2, 3), (2, 4)
#: Rates of Figs. 7 and 8.
SHOWN, EDGE_RATE = 5.0, 0.013333333333333334
#: Where the stable rate of Fig. 9 lies, by convolutions.
FIG_9 = {1: Bracket(90.0, 100.0), 2: Bracket(10.0, 20.0)}
#: Steps of the trainings that show what comes after the sweep's.
LONGER = 600
#: Level of the tests.
LEVEL = 0.05
#: Deals of a test's draws; their seed.
DEALS, SEED = 99_999, 0
#: Accuracy over that of a constant answer, below which next to nothing was learnt.
LITTLE = 0.05

Array = NDArray[np.int_]


@dataclass(frozen=True)
class Net:
    """One network with one weight decay, trained over lr.

    Args:
        layers: convolutions or hidden layers.
        decay: weight decay.
        ran: the sweep, over all weight decays.
    """

    layers: int
    decay: float
    ran: Ran

    @property
    def results(self) -> list[PointResult]:
        """The trainings with this weight decay."""
        return [r for r in self.ran.results if r.point.weight_decay == self.decay]

    def at(self, lr: float) -> PointResult:
        """The training at a rate."""
        return self.ran.at(lr=lr, weight_decay=self.decay)

    def longer(self, lr: float) -> PointResult:
        """The same for longer."""
        return self.ran.train(LONGER, lr=lr, weight_decay=self.decay)

    @property
    def edge(self) -> Bracket:
        """Where the label, the median over draws, ceases to be stable."""
        return first_edge((r.point.lr, r.verdict.regime is Regime.STABLE) for r in self.results)

    @property
    def above(self) -> list[PointResult]:
        """The trainings above the edge, in the order of their rates."""
        return [r for r in self.results if r.point.lr > self.edge.above]

    @cached_property
    def constant_loss(self) -> float:
        """The least cross entropy of an answer that is the same for all images."""
        return float(entropy(_counts(self._task.train_data())))

    @cached_property
    def constant_accuracy(self) -> float:
        """The largest accuracy of an answer that is the same for all held-out images."""
        counts = _counts(self._task.test_data())
        return float(counts.max() / counts.sum())

    @property
    def _task(self) -> Task:
        return get_task(self.ran.spec.task_name, **self.ran.spec.task_options)


def _counts(data: tuple[Tensor, Tensor]) -> Array:
    """How many samples each label has."""
    return np.asarray(np.unique(data[1].numpy(), return_counts=True)[1])


def _stable(result: PointResult) -> int:
    """How many draws are stable."""
    return sum(one.verdict.regime is Regime.STABLE for one in result.replicates)


def _sharpness(result: PointResult) -> float:
    """The largest sharpness in the second half of a training, median over draws."""
    ratios = [float(one.evidence["sharpness_ratio"] or 0) for one in result.replicates]
    return 2 * float(np.median(ratios)) / result.point.lr


def _median(result: PointResult, name: str) -> float:
    """The median over draws of what the trainings ended with."""
    found = [one.evidence.get(name) for one in result.replicates]
    return float(np.median([np.nan if value is None else value for value in found]))


Nets = dict[tuple[int, float], Net]


def find(runs: Runs) -> Findings:
    """Run a sweep a network and compare."""
    cnn = _nets(runs, "depth-cnn", CNN)
    tanh = _nets(runs, "depth-tanh", TANH)
    families = {"convolutions": cnn, "tanh networks": tanh}
    return Findings(
        claims=[
            *_cnn_claims(cnn),
            *_tanh_claims(tanh),
            *(_decay_claim(name, nets) for name, nets in families.items()),
            *(_islands(name, nets) for name, nets in families.items()),
            *(_learnt(name, nets) for name, nets in families.items()),
        ],
        pictures=[Picture("labels", LABELS, partial(_draw, cnn, tanh))],
        tables=[
            _edge_table(families),
            *(_table(name, nets, decay) for name, nets in families.items() for decay in DECAYS),
        ],
        remarks=REMARKS,
    )


def _nets(runs: Runs, preset: str, depths: tuple[int, ...]) -> Nets:
    sweeps = {layers: runs.sweep(preset, task__layers=layers) for layers in depths}
    return {
        (layers, decay): Net(layers, decay, ran)
        for decay in DECAYS
        for layers, ran in sweeps.items()
    }


LABELS = (
    "Every training by lr and depth, five draws of the weights above each other; left convolutions,"
    " right tanh networks; above without weight decay, below with 5e-4. Grey: the range of the "
    "paper's Fig. 9, or the rate of Figs. 7 and 8."
)
REMARKS = [
    LAW,
    "Every training has initial weights of its own: a draw at one rate has nothing to do with one "
    "at another rate or decay, and a deeper network is another one. So an edge is that of the "
    "label, the median over the draws: the largest rate up to which it is stable at every trained "
    "one, and the next. The order of two depths is decided by how many draws of each are stable at "
    "the rates up to the larger of the two edges, with a test that deals the draws anew within "
    "each rate and takes both edges again; the effect of weight decay by those at all rates, with "
    f"the exact test of that kind. An effect has p < {LEVEL:g}; otherwise nothing can be said.",
    "Images, steps and width are fewer than the paper's, to fit two cores: 32 zeros and ones, or "
    "32 patches of photographs instead of CIFAR-10, and tanh layers of 24 units. The paper gives "
    "neither the start of its kernels, nor the pooling, nor the scale of its images, on which "
    "every rate depends; so an order is a test, and a rate hardly one.",
]


def _cnn_claims(nets: Nets) -> list[Claim]:
    calm, deep = nets[1, 0.0], nets[3, 0.0]
    longer = deep.longer(SHOWN)
    shown = [
        Claim(
            f"one convolution is stable at lr {SHOWN:g}, without decay (Fig. 7, left)",
            "stable",
            f"{calm.at(SHOWN).verdict.regime.value}; draws stable / restrained / divergent "
            f"{seeds_by_label(calm.at(SHOWN))}",
            judge(calm.at(SHOWN).verdict.regime is Regime.STABLE),
        ),
        Claim(
            "three are restrained there (Fig. 7, right)",
            "restrained",
            f"{deep.at(SHOWN).verdict.regime.value}; draws {seeds_by_label(deep.at(SHOWN))}",
            judge(deep.at(SHOWN).verdict.regime is Regime.RESTRAINED),
            f"in {LONGER} steps {longer.verdict.regime.value}, draws {seeds_by_label(longer)}: "
            "deep nets first rest on a plateau, where every rate is calm",
        ),
    ]
    ranges = [
        Claim(
            f"stable rate with {layers} convolution{'s' if layers > 1 else ''} and weight decay "
            f"{DECAYS[1]:g} (Fig. 9)",
            f"{expected.below:g} to {expected.above:g}",
            str(nets[layers, DECAYS[1]].edge),
            judge(nets[layers, DECAYS[1]].edge.overlaps(expected)),
            "the scale of images and pooling is not known: see the remarks",
        )
        for layers, expected in FIG_9.items()
    ]
    orders = [
        _order(nets, one, other, decay, "convolutions")
        for decay in DECAYS
        for one, other in pairwise(CNN)
    ]
    return [*shown, *ranges, *orders]


def fewer(first: Sequence[int], second: Sequence[int], draws: int) -> float:
    """P that two groups with so many successes differ by chance, two-sided and exact.

    Args:
        first: successes of the first group at each rate, of `draws` trials.
        second: of the second.
        draws: trials of each group at each rate.

    Returns:
        p, where trials are exchangeable between the groups within each rate.
    """
    chances = np.ones(1)
    for one, other in zip(first, second, strict=True):
        at_rate = hypergeom(2 * draws, one + other, draws).pmf(np.arange(draws + 1))
        chances = np.convolve(chances, at_rate)
    found = sum(second)
    return float(min(1.0, 2 * min(chances[: found + 1].sum(), chances[found:].sum())))


def _pairs(one: Net, other: Net) -> list[tuple[PointResult, PointResult]]:
    """The trainings of two networks at the rates that both were trained at."""
    rates = {r.point.lr: r for r in other.results}
    return [(r, rates[r.point.lr]) for r in one.results if r.point.lr in rates]


def _counted(pairs: Sequence[tuple[PointResult, PointResult]]) -> tuple[str, int, float]:
    """Stable draws of both sides in words, by how many the second has more, and p."""
    first, second = ([_stable(pair[i]) for pair in pairs] for i in (0, 1))
    draws = len(pairs[0][0].replicates)
    p = fewer(first, second, draws)
    words = f"{sum(second)} against {sum(first)} of {draws * len(pairs)} stable (p = {p:.2g})"
    return words, sum(second) - sum(first), p


def below_edges(counts: Array, draws: int) -> Array:
    """Stable draws up to the larger of the two edges.

    Args:
        counts: of stable draws, (..., 2, rates), of two networks at increasing rates.
        draws: how many there are at each.

    Returns:
        Their sums, (..., 2), over the rates below the larger edge: those where the label, the
        median over draws, has been stable from the lowest rate on in either network.
    """
    stable = np.logical_and.accumulate(2 * counts > draws, axis=-1)
    inside = stable.any(axis=-2, keepdims=True)
    return np.asarray((counts * inside).sum(-1))


def order(first: Sequence[int], second: Sequence[int], draws: int) -> tuple[int, int, float]:
    """Stable draws of two networks up to the larger edge, and p that there is no difference.

    Draws are dealt anew to the two networks within each rate, edges and all.
    """
    found = below_edges(np.array([first, second]), draws)
    total = np.add(first, second)
    random = np.random.default_rng(SEED)
    ones = random.hypergeometric(total, 2 * draws - total, draws, size=(DEALS, len(total)))
    dealt = below_edges(np.stack([ones, total - ones], axis=1), draws)
    gaps = np.abs(dealt[:, 1] - dealt[:, 0])
    p = (1 + int((gaps >= abs(found[1] - found[0])).sum())) / (1 + DEALS)
    return int(found[0]), int(found[1]), p


def _order(nets: Nets, shallow: int, deep: int, decay: float, what: str) -> Claim:
    one, other = nets[shallow, decay], nets[deep, decay]
    pairs = _pairs(one, other)
    first, second = ([_stable(pair[i]) for pair in pairs] for i in (0, 1))
    fewest, most, p = order(first, second, len(pairs[0][0].replicates))
    higher = most > fewest and p < LEVEL
    why = "too few draws to tell" if p >= LEVEL else ""
    if higher:
        low = one.results[0].point.lr
        sharp = [_sharpness(net.results[0]) for net in (one, other)]
        why = (
            f"in so few steps at lr {low:g} the median sharpness comes to "
            f"{sharp[0]:.3g} with {shallow} and {sharp[1]:.3g} with {deep}"
        )
    elif p < LEVEL and one.edge == other.edge:
        why = "the label's edge is the same; below it fewer draws are stable"
    return Claim(
        f"{deep} {what} are stable up to a smaller rate than {shallow}, weight decay {decay:g}",
        "so in Figs. 7 to 9",
        f"edges {other.edge} against {one.edge}; up to the larger one {most} against {fewest} "
        f"stable trainings (p = {p:.2g})",
        decided(most < fewest and p < LEVEL, higher),
        why,
    )


def _tanh_claims(nets: Nets) -> list[Claim]:
    claims = []
    for layers, paper in ((2, Regime.STABLE), (4, Regime.RESTRAINED)):
        net = nets[layers, 0.0]
        shown, longer = net.at(EDGE_RATE), net.longer(EDGE_RATE)
        claims.append(
            Claim(
                f"{layers} tanh layers at lr 2 / 150 (Fig. 8)",
                paper.value,
                f"{shown.verdict.regime.value}; draws {seeds_by_label(shown)}; "
                f"in {LONGER} steps {longer.verdict.regime.value}, draws {seeds_by_label(longer)}",
                "not testable here",
                "a stand-in for CIFAR-10, 32 images, 24 units and fewer steps",
            )
        )
    return [*claims, *(_order(nets, *TANH, decay, "tanh layers") for decay in DECAYS)]


def _decay_claim(name: str, nets: Nets) -> Claim:
    depths = sorted({layers for layers, _ in nets})
    without, with_decay = ([nets[layers, decay] for layers in depths] for decay in DECAYS)
    pairs = [p for one, other in zip(without, with_decay, strict=True) for p in _pairs(one, other)]
    calm = sum(net.edge.below > 0 for net in without)
    words, more, p = _counted(pairs)
    effect = "fewer" if more < 0 else "more"
    return Claim(
        f"weight decay {DECAYS[1]:g} changes how many trainings of {name} are stable",
        "none: the paper calls decay necessary for stability",
        f"{words}; without it {calm} of {len(without)} depths have a stable rate",
        "new",
        f"{effect} with it" if p < LEVEL else "no effect shown",
    )


def _islands(name: str, nets: Nets) -> Claim:
    """Whether the label is stable again above the edge."""
    above = [(net, result) for net in nets.values() for result in net.above]
    again = [(net, r) for net, r in above if r.verdict.regime is Regime.STABLE]
    below = [_sharpness(net.at(net.edge.below)) if net.edge.below else 0.0 for net, _ in again]
    flatter = sum(_sharpness(r) < last for (_, r), last in zip(again, below, strict=True))
    listed = ", ".join(f"{r.point.lr:.3g} ({_layers(n.layers)}, {n.decay:g})" for n, r in again)
    return Claim(
        f"above its edge a network stays unstable ({name})",
        "one boundary a network in Fig. 9",
        f"stable again at {len(again)} of {len(above)} rates above the edges"
        + (f": lr {listed}" if again else ""),
        judge(not again),
        "to be stable at a larger rate takes a flatter point, and a large step can leave a sharp "
        f"minimum: the median training is flatter than at the last stable rate in {flatter} of them"
        if again
        else "",
    )


def _learnt(name: str, nets: Nets) -> Claim:
    found = [result for net in nets.values() for result in net.results]
    accuracies = [_median(result, "metric") for result in found]
    losses = [_median(result, "final_loss") for result in found]
    net = next(iter(nets.values()))
    return Claim(
        f"what the {name} have learnt",
        "not said",
        f"median accuracy {min(accuracies):.0%} to {max(accuracies):.0%}, median loss "
        f"{min(losses):.3f} to {max(losses):.3f}; the best constant answer has "
        f"{net.constant_accuracy:.0%} and {net.constant_loss:.3f}",
        "new",
        "next to nothing: their edges are those of networks near a plateau"
        if max(accuracies) < net.constant_accuracy + LITTLE
        else "",
    )


def _edge_table(families: dict[str, Nets]) -> Table:
    rows = [
        (name, str(net.layers), f"{net.decay:g}", str(net.edge))
        for name, nets in families.items()
        for net in nets.values()
    ]
    return Table("Edges of stable", ("", "layers", "weight decay", "edge of stable"), rows)


def _table(name: str, nets: Nets, decay: float) -> Table:
    depths = [layers for layers, at in nets if at == decay]
    rates = [r.point.lr for r in nets[depths[0], decay].results]
    rows = [
        (f"{lr:.6g}", *(_cell(nets[layers, decay].at(lr)) for layers in depths)) for lr in rates
    ]
    title = (
        f"{name.capitalize()}, weight decay {decay:g}: draws stable / restrained / divergent, "
        "median loss and accuracy at the end"
    )
    return Table(title, ("lr", *map(_layers, depths)), rows)


def _layers(count: int) -> str:
    return f"{count} layer{'s' if count > 1 else ''}"


def _cell(result: PointResult) -> str:
    loss, accuracy = (_median(result, key) for key in ("final_loss", "metric"))
    return f"{seeds_by_label(result)}; {loss:.3f}; {accuracy:.0%}"


def _draw(cnn: Nets, tanh: Nets, path: Path) -> None:
    drawn = figure(9, 5)
    panels = drawn.subplots(2, 2, sharex="col")
    for row, decay in zip(panels, DECAYS, strict=True):
        for panel, nets, depths in zip(row, (cnn, tanh), (CNN, TANH), strict=True):
            for layers in depths:
                for result in nets[layers, decay].results:
                    for seed, one in enumerate(result.replicates):
                        colour = COLOURS[one.verdict.regime.value]
                        height = depths.index(layers) + 0.12 * (seed - 2)
                        panel.plot(result.point.lr, height, "o", color=colour, markersize=3)
            panel.set(xscale="log", ylabel="layers", title=f"weight decay {decay:g}")
            panel.set_yticks(range(len(depths)), [str(layers) for layers in depths])
    dots = [Line2D([], [], marker="o", linestyle="", color=c, label=n) for n, c in COLOURS.items()]
    drawn.legend(handles=dots, loc="outside upper center", ncols=len(dots), fontsize=8)
    for layers, expected in FIG_9.items():
        height = CNN.index(layers)
        panels[1, 0].fill_between(
            [expected.below, expected.above], height - 0.4, height + 0.4, color="lightgrey"
        )
    panels[0, 0].axvline(SHOWN, color="lightgrey", zorder=0)
    panels[0, 1].axvline(EDGE_RATE, color="lightgrey", zorder=0)
    for panel in panels[1]:
        panel.set_xlabel("lr")
    save(drawn, path)


STUDY = Study(
    name="depth",
    title="Depth",
    source="Sun et al. 2024, section 6.2: Figs. 7 to 9",
    question=(
        "Are deeper networks stable only at smaller learning rates, and does weight decay change "
        "that?"
    ),
    find=find,
)
