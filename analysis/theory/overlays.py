"""Which closed-form bounds hold for a sweep, to lay over its measured map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from analysis.theory.arguments import not_negative, number, one, real
from analysis.theory.edge_of_stability import OPTIMISERS, decay_bound
from analysis.theory.heat import heat_dirichlet_bound
from analysis.theory.images import checkerboard_eigenvalue
from analysis.theory.one_layer_cnn import OneLayerCNN

#: Stands for no decay at all. There the minimum lies at infinity, where nothing is curved, and no
#: learning rate is too large; at this decay the bound is 8e7 already, off any picture.
NO_DECAY = 1e-9


@dataclass(frozen=True)
class Overlay:
    """A bound on the learning rate as a function of weight decay, to be drawn over a map.

    Args:
        label: text for the legend.
        lr: from weight decays, finite and >= 0, any shape, to learning rates of the same shape.
        exact: whether it is the boundary itself, or only a rate above which no training is calm.
    """

    label: str
    lr: Callable[[ArrayLike], Any]
    exact: bool


def overlays(
    task: str, task_options: dict[str, object], optimiser: str, momentum: float, decay: str
) -> list[Overlay]:
    """The bounds that hold for a task and an optimiser; none where no closed form is known.

    Whatever the task, weight decay alone bounds the learning rate (`decay_bound`): with coupled
    decay for sgd and nesterov, with decoupled decay for all. Coupled decay does not bound the
    adaptive optimisers. Where the boundary of stability lies needs the curvature at the minimum,
    which is known in closed form for the one-layer CNN under gradient descent, and under momentum
    too for tasks with one curvature everywhere: the heat equation and the linearised CNN with a
    positive error. The Beltrami flow is bounded where its data term alone is.

    Args:
        task: name of the task.
        task_options: its options, as in the spec.
        optimiser: name of the optimiser; one without theory gives an empty list.
        momentum: in [0, 1).
        decay: `coupled` or `decoupled`.

    Raises:
        InputError: momentum or decay is not valid; from `Overlay.lr`, a weight decay is not.
    """
    momentum = one("momentum", real("momentum", momentum))
    drawn = []
    if task == "one-layer-cnn" and optimiser == "sgd" and momentum == 0 and decay == "coupled":
        drawn.append(_one_layer_cnn(int(str(task_options.get("kernel", 32)))))
    if optimiser in ("sgd", "nesterov") and decay == "coupled":
        drawn += [_curvature(*known, optimiser, momentum) for known in _known(task, task_options)]
    if optimiser in OPTIMISERS:
        drawn += _weight_decay(optimiser, momentum, decay)
    return drawn


def _one_layer_cnn(width: int) -> Overlay:
    def stable(weight_decay: ArrayLike) -> Any:
        decays = not_negative("weight_decay", weight_decay)
        rates = [OneLayerCNN(max(w, NO_DECAY), width).largest_stable_lr for w in decays.ravel()]
        return number(np.array(rates, dtype=np.float64).reshape(decays.shape))

    return Overlay("theory: 2 / sharpness", stable, exact=True)


def _known(task: str, options: dict[str, object]) -> Iterator[tuple[str, float]]:
    """Name and size of a curvature that, with the weight decay added, bounds the learning rate."""

    def option(name: str, default: float) -> float:
        return float(str(options.get(name, default)))

    if task == "heat":
        yield "sharpness", 2 / float(heat_dirichlet_bound(int(option("points", 31))))
    if task == "beltrami":
        yield "fidelity", option("fidelity", 1.0)
    if task == "linear-one-layer-cnn":
        image, kernel = int(option("image", 256)), int(option("kernel", 16))
        top = float(checkerboard_eigenvalue(image, kernel))
        if options.get("periodic", False):
            top = float(kernel * image) ** 2  # every pixel is a place
        curvature = option("error", -0.5) * option("steepness", 1.0) / 2 * top
        if curvature > 0:  # else weight decay alone bounds the rate, and has its own line
            yield "sharpness", curvature


def _curvature(what: str, size: float, optimiser: str, momentum: float) -> Overlay:
    factor = float(decay_bound(1.0, optimiser, momentum, "coupled"))

    def bounded(weight_decay: ArrayLike) -> Any:
        decays = not_negative("weight_decay", weight_decay)
        return decay_bound(decays + size, optimiser, momentum, "coupled")

    return Overlay(f"theory: {factor:.3g} / ({what} + weight decay)", bounded, exact=True)


def _weight_decay(optimiser: str, momentum: float, decay: str) -> list[Overlay]:
    # AdamW's decay is decoupled whatever the spec says, and Adadelta takes no momentum.
    kind = None if optimiser == "adamw" else decay
    b = 0.0 if optimiser == "adadelta" else momentum
    factor = float(decay_bound(1.0, optimiser, b, kind))
    if not np.isfinite(factor):
        return []
    label = f"theory: {factor:.3g} / weight decay"
    return [Overlay(label, lambda w: decay_bound(w, optimiser, b, kind), exact=False)]
