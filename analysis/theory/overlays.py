"""Which closed-form bounds hold for a sweep, to lay over its measured map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.theory.edge_of_stability import decay_bound
from analysis.theory.one_layer_cnn import OneLayerCNN

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Overlay:
    """A bound on the learning rate as a function of weight decay, to be drawn over a map."""

    label: str
    lr: Callable[[Array], Array]
    exact: bool


def overlays(
    task: str, task_options: dict[str, object], optimiser: str, momentum: float, decay: str
) -> list[Overlay]:
    """The bounds that hold for a task and an optimiser."""
    drawn = []
    if task == "one-layer-cnn" and optimiser == "sgd" and momentum == 0 and decay == "coupled":
        width = int(str(task_options.get("kernel", 32)))

        def stable(weight_decay: Array) -> Array:
            return np.array(
                [OneLayerCNN(max(w, 1e-9), width).largest_stable_lr for w in weight_decay]
            )

        drawn.append(Overlay("theory: 2 / sharpness", stable, exact=True))
    bound = decay_bound(np.ones(1), optimiser, momentum, decay)
    if np.isfinite(bound).all():
        text = f"theory: {bound[0]:.3g} / weight decay"
        drawn.append(
            Overlay(text, lambda w: decay_bound(w, optimiser, momentum, decay), exact=False)
        )
    return drawn
