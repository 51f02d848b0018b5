"""The stable learning rate of deeper networks, with and without weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from analysis.colours import COLOURS
from studies.page import LAW, Claim, Findings, Picture, Study, Table, decided, figure, judge, save
from studies.runs import Bracket, Ran, Runs, first_edge, seeds_by_label
from trainables.domain import PointResult, Regime

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
        """The training at one of the paper's rates."""
        return self.ran.at(lr=lr, weight_decay=self.decay)

    def longer(self, lr: float) -> PointResult:
        """The same for longer."""
        return self.ran.train(LONGER, lr=lr, weight_decay=self.decay)

    @property
    def edge(self) -> Bracket:
        """Where the label, the median over seeds, ceases to be stable."""
        return first_edge((r.point.lr, r.verdict.regime is Regime.STABLE) for r in self.results)

    @property
    def edges(self) -> list[Bracket]:
        """The same of each seed."""
        seeds = range(len(self.results[0].replicates))
        return [
            first_edge((r.point.lr, _label(r, seed) is Regime.STABLE) for r in self.results)
            for seed in seeds
        ]

    @property
    def islands(self) -> list[bool]:
        """Whether the sharpness is less than below the edge, of each stable training above it."""
        found = []
        for seed, edge in enumerate(self.edges):
            last = [r for r in self.results if r.point.lr == edge.below]
            for r in self.results:
                if r.point.lr > edge.above and _label(r, seed) is Regime.STABLE and last:
                    found.append(_sharpness(r, seed) < _sharpness(last[0], seed))
        return found


def _label(result: PointResult, seed: int) -> Regime:
    return result.replicates[seed].verdict.regime


def _sharpness(result: PointResult, seed: int) -> float:
    """The largest sharpness in the second half of the training, in units of 2."""
    return float(result.replicates[seed].evidence["sharpness_ratio"] or 0) / result.point.lr


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
            *_decay_claims(families),
            *_islands(families),
        ],
        pictures=[Picture("labels", LABELS, partial(_draw, cnn, tanh))],
        tables=[_table("Convolutions on zeros and ones", cnn), _table("Tanh networks", tanh)],
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
    "Every training by lr and depth, five seeds above each other: stable (blue), restrained "
    "(orange), divergent (red); left convolutions, right tanh networks; above without weight "
    "decay, below with 5e-4. Grey: the range of the paper's Fig. 9, or the rate of Figs. 7 and 8."
)
REMARKS = [
    LAW,
    "An edge is the largest rate up to which every trained one is stable, and the next. An order "
    "agrees where it holds for all five seeds, the two ranges of each apart (by chance alone once "
    "in 32), and differs where it is reversed for any. Where ranges overlap neither can be said.",
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
            f"{calm.at(SHOWN).verdict.regime.value}; seeds stable / restrained / divergent "
            f"{seeds_by_label(calm.at(SHOWN))}",
            judge(calm.at(SHOWN).verdict.regime is Regime.STABLE),
        ),
        Claim(
            "three are restrained there (Fig. 7, right)",
            "restrained",
            f"{deep.at(SHOWN).verdict.regime.value}; seeds {seeds_by_label(deep.at(SHOWN))}",
            judge(deep.at(SHOWN).verdict.regime is Regime.RESTRAINED),
            f"in {LONGER} steps {longer.verdict.regime.value}, seeds {seeds_by_label(longer)}: "
            "deep nets first rest on a plateau, where every rate is calm",
        ),
    ]
    ranges = [
        Claim(
            f"stable rate with {layers} convolution{'s' if layers > 1 else ''} and weight decay "
            f"{DECAYS[1]:g} (Fig. 9)",
            f"{expected.below:g} to {expected.above:g}",
            f"{nets[layers, DECAYS[1]].edge}; by seed {_spread(nets[layers, DECAYS[1]])}",
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


def _spread(net: Net) -> str:
    edges = net.edges
    return f"{min(e.below for e in edges):.4g} to {max(e.above for e in edges):.4g}"


def _order(nets: Nets, shallow: int, deep: int, decay: float, what: str) -> Claim:
    pairs = list(zip(nets[shallow, decay].edges, nets[deep, decay].edges, strict=True))
    lower = sum(other.above <= one.below for one, other in pairs)
    higher = sum(one.above <= other.below for one, other in pairs)
    return Claim(
        f"{deep} {what} are stable up to a smaller rate than {shallow}, weight decay {decay:g}",
        "so in Figs. 7 to 9",
        f"{nets[deep, decay].edge} against {nets[shallow, decay].edge}; smaller in {lower}, larger "
        f"in {higher} of {len(pairs)} seeds",
        decided(lower == len(pairs), higher > 0),
        _why(nets, shallow, deep, decay, higher, overlap=lower < len(pairs) and not higher),
    )


def _why(nets: Nets, shallow: int, deep: int, decay: float, higher: int, overlap: bool) -> str:
    """What speaks for the reason: how far both came at the smallest rate."""
    if overlap:
        return "the ranges of some starts overlap"
    if not higher:
        return ""
    first = [min(nets[n, decay].results, key=lambda r: r.point.lr) for n in (shallow, deep)]
    sharp = [np.median([_sharpness(r, i) for i in range(len(r.replicates))]) for r in first]
    return (
        f"in so few steps at lr {first[0].point.lr:g} the median sharpness comes to "
        f"{2 * sharp[0]:.3g} with {shallow} and {2 * sharp[1]:.3g} with {deep}"
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
                f"{shown.verdict.regime.value}; seeds {seeds_by_label(shown)}; "
                f"in {LONGER} steps {longer.verdict.regime.value}, seeds {seeds_by_label(longer)}",
                "not testable here",
                "a stand-in for CIFAR-10, 32 images, 24 units and fewer steps",
            )
        )
    return [*claims, *(_order(nets, *TANH, decay, "tanh layers") for decay in DECAYS)]


def _decay_claims(families: dict[str, Nets]) -> list[Claim]:
    claims = []
    for name, nets in families.items():
        depths = sorted({layers for layers, _ in nets})
        pairs = [
            pair
            for layers in depths
            for pair in zip(*(nets[layers, decay].edges for decay in DECAYS), strict=True)
        ]
        smaller = sum(with_decay.above <= without.below for without, with_decay in pairs)
        larger = sum(without.above <= with_decay.below for without, with_decay in pairs)
        claims.append(
            Claim(
                f"weight decay {DECAYS[1]:g} moves the stable rate of the {name}",
                "none: the paper calls decay necessary for stability",
                f"smaller in {smaller}, larger in {larger} of {len(pairs)} pairs of a seed and a "
                f"depth; {sum(e.below > 0 for e, _ in pairs)} have a stable rate without it",
                "new",
                "each rate was trained from the same weights with and without it",
            )
        )
    return claims


def _table(title: str, nets: Nets) -> Table:
    rows = [
        (str(net.layers), f"{net.decay:g}", str(net.edge), ", ".join(str(e) for e in net.edges))
        for net in nets.values()
    ]
    headings = ("layers", "weight decay", "edge of stable", "edge of each seed")
    return Table(title, headings, rows)


def _islands(families: dict[str, Nets]) -> list[Claim]:
    claims = []
    for name, nets in families.items():
        found = [flatter for net in nets.values() for flatter in net.islands]
        claims.append(
            Claim(
                f"above its edge a start stays unstable ({name})",
                "one boundary a network in Fig. 9",
                f"{len(found)} trainings above the edge of their start are stable again",
                judge(not found),
                "to be stable at a larger rate takes a flatter point, and a large step can leave a "
                f"sharp minimum: {sum(found)} of them are flatter even than the same start at its "
                "last stable rate"
                if found
                else "",
            )
        )
    return claims


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
