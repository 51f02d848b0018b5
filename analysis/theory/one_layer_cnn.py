"""Exact phases of the non-linear one-layer CNN on a checkerboard (Sun et al. 2024, section 5.4).

Every patch of a checkerboard is +c or -c, so only the component kappa = <K, c> of the w x w kernel
K sees the data. With p the share of + patches, the logit is

    G(kappa) = p swish(kappa) + (1 - p) swish(-kappa) = kappa (tanh(kappa / 2) / 2 + p - 1/2),

and gradient descent on the loss with label 1 and coupled weight decay is, exactly,

    kappa <- kappa - lr [(sigmoid(G(kappa)) - 1) w^2 G'(kappa) + weight_decay kappa],
    rest of K <- (1 - lr weight_decay) rest of K.

The image size enters through p alone, since the network takes the mean over positions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from analysis.theory.arguments import (
    broadcast,
    checked,
    finite,
    not_negative,
    number,
    one,
    plain_numbers,
    positive,
    step_count,
)
from trainables.domain import Regime

Array = NDArray[np.float64]

#: |kappa| is held here once it is beyond, so that divergent paths keep signs and growth rates.
FAR = 1e300


@dataclass(frozen=True)
class CNNPhases:
    """What gradient descent on the one-layer CNN does at each pair of learning rate and decay.

    For numbers all five are a number (a string) each, for arrays arrays.

    Args:
        regime: values of `trainables.domain.Regime`, in the broadcast shape of both.
        largest_stable_lr: boundary between stable and restrained, in the shape of the decays.
        largest_bounded_lr: boundary between restrained and divergent, likewise.
        equilibrium: kappa* at the minimum; infinite where the decay is 0.
        sharpness: largest Hessian eigenvalue at the minimum, weight decay included.
    """

    regime: Any
    largest_stable_lr: Any
    largest_bounded_lr: Any
    equilibrium: Any
    sharpness: Any

    def __post_init__(self) -> None:
        for part in fields(self):
            object.__setattr__(self, part.name, number(getattr(self, part.name)))


@dataclass(frozen=True)
class OneLayerCNN:
    """Exact phases for one weight decay; `one_layer_cnn_phases` takes arrays.

    Args:
        weight_decay: coupled weight decay lambda, >= 0.
        width: side w of the kernel, >= 1.
        share: p in [0, 1], from `checkerboard_share`; 1/2 in the limit of a large image. The
            minimum with kappa < 0 is the one with kappa > 0 of share 1 - p.

    Raises:
        InputError: if a number breaks its law.
    """

    weight_decay: float
    width: int = 32
    share: float = 0.5

    def __post_init__(self) -> None:
        decay = one("weight_decay", not_negative("weight_decay", self.weight_decay))
        object.__setattr__(self, "weight_decay", decay)
        object.__setattr__(self, "width", step_count("width", self.width, 1))
        object.__setattr__(self, "share", _share(self.share))

    def gradient(self, kappa: float) -> float:
        """Derivative that drives kappa, with weight decay."""
        at = one("kappa", finite("kappa", kappa))
        return float(
            _gradient(np.asarray(at), np.asarray(self.weight_decay), self.width, self.share)
        )

    def curvature(self, kappa: float) -> float:
        """Hessian eigenvalue along c at kappa, with weight decay."""
        at = one("kappa", finite("kappa", kappa))
        return float(
            _curvature(np.asarray(at), np.asarray(self.weight_decay), self.width, self.share)
        )

    @property
    def equilibrium(self) -> float:
        """kappa* > 0 at the minimum of the loss.

        0 where weight decay wins (share 1/2 and weight_decay >= width^2 / 4); infinite for weight
        decay 0. For a share below 1/2 and a strong decay there is no minimum with kappa > 0, and
        this is the only one there is, below 0.
        """
        return float(_equilibrium(np.asarray(self.weight_decay), self.width, self.share))

    @property
    def sharpness(self) -> float:
        """Largest Hessian eigenvalue at the minimum, weight decay included."""
        return float(_phases(np.ones(()), np.asarray(self.weight_decay), self).sharpness)

    @property
    def largest_stable_lr(self) -> float:
        """Boundary between stable and restrained: 2 / sharpness at the minimum."""
        return float(_phases(np.ones(()), np.asarray(self.weight_decay), self).largest_stable_lr)

    @property
    def largest_bounded_lr(self) -> float:
        """Boundary between restrained and divergent: 2 / weight_decay."""
        return float(_phases(np.ones(()), np.asarray(self.weight_decay), self).largest_bounded_lr)


def one_layer_cnn_phases(
    lr: ArrayLike, weight_decay: ArrayLike, width: int = 32, share: float = 0.5
) -> CNNPhases:
    """Exact regimes of gradient descent on the one-layer CNN over learning rates and decays.

    Stable below 2 / max(curvature along c at kappa*, weight_decay); divergent above
    2 / weight_decay, where weight decay throws all components outwards (the data pull with a
    bounded force, so they cannot cause it); restrained between. At 2 / weight_decay itself the
    components other than kappa keep their size: bounded. From weight_decay of about 200 on (width
    32) the two boundaries are one.

    Without decay there is no minimum: kappa grows without end, ever more slowly, and the curvature
    dies out, so every learning rate is stable in the sense that nothing oscillates; a perturbation
    of the other components is kept, neither amplified nor forgotten.

    Args:
        lr: learning rate, > 0.
        weight_decay: coupled weight decay, >= 0, of a shape that broadcasts.
        width: side of the kernel, >= 1.
        share: p in [0, 1], from `checkerboard_share`. The phases are those of the minimum with
            kappa > 0; for the one with kappa < 0, which differs a little unless p is 1/2, give
            1 - p.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    rate, decay = positive("lr", lr), not_negative("weight_decay", weight_decay)
    broadcast(lr=rate, weight_decay=decay)
    return _phases(rate, decay, OneLayerCNN(0.0, width, share))


@plain_numbers
def checkerboard_share(image: ArrayLike, width: ArrayLike) -> Array:
    """Share p of the patches that equal the one in the image's first corner, c.

    ceil(m^2 / 2) / m^2 with m = image - width + 1 positions a side: 1/2 for even m, and just above
    for odd m.

    Args:
        image: side of the image, whole numbers >= 1, any shape.
        width: side of the kernel, whole numbers from 1 to `image`, of a shape that broadcasts.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    law = "must be whole numbers >= 1"
    size, side = (
        checked(name, value, lambda v: (v >= 1) & (v % 1 == 0), law, "choose such numbers")
        for name, value in (("image", image), ("width", width))
    )
    size, side = broadcast(image=size, width=side)
    law = "must not exceed the image"
    checked("width", side, lambda w: w <= size, law, "use a smaller kernel")
    patches = (size - side + 1) ** 2
    return np.asarray(np.ceil(patches / 2) / patches)


def one_layer_cnn_path(
    kappa: ArrayLike,
    lr: ArrayLike,
    weight_decay: ArrayLike,
    steps: int,
    width: int = 32,
    share: float = 0.5,
) -> Array:
    """The exact path of kappa = <K, c> under gradient descent.

    Args:
        kappa: start; the shapes of the first three arguments broadcast.
        lr: learning rate, > 0.
        weight_decay: coupled weight decay, >= 0.
        steps: number of updates, >= 0.
        width: side of the kernel, >= 1.
        share: p in [0, 1].

    Returns:
        kappa before each update and after the last, (steps + 1, ...). Numbers beyond 1e300 are
        held there.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    start, rate, decay = _start(kappa, lr, weight_decay)
    cnn = OneLayerCNN(0.0, width, share)
    path = np.empty((step_count("steps", steps) + 1, *start.shape))
    path[0] = start
    with np.errstate(over="ignore"):
        for step in range(steps):
            slope = _gradient(path[step], decay, cnn.width, cnn.share)
            path[step + 1] = np.clip(path[step] - rate * slope, -FAR, FAR)
    return path


@plain_numbers
def one_layer_cnn_exponent(
    kappa: ArrayLike,
    lr: ArrayLike,
    weight_decay: ArrayLike,
    steps: int = 1000,
    width: int = 32,
    share: float = 0.5,
) -> Array:
    """Finite-time Lyapunov exponent of training, per step, over the second half of a path.

    A small change of the kernel along c is multiplied by 1 - lr curvature(kappa) in each step, one
    across it by 1 - lr weight_decay. This is the larger of the mean logarithm of the first and the
    logarithm of the second (which a kernel of one pixel does not have): below 0 where rounding
    errors die out, above where they are amplified. Within the restrained regime it is below 0 in
    the windows where the path is periodic.

    Args:
        kappa: start, different from 0 (for share 1/2 the path would stay there); the shapes of the
            first three arguments broadcast.
        lr: learning rate, > 0.
        weight_decay: coupled weight decay, >= 0.
        steps: number of updates, >= 2.
        width: side of the kernel, >= 1.
        share: p in [0, 1].

    Returns:
        One exponent per entry; minus infinity where a step forgets all changes.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    count = step_count("steps", steps, 2)
    checked("kappa", kappa, lambda k: k != 0, "must differ from 0", "start beside 0")
    path = one_layer_cnn_path(kappa, lr, weight_decay, count, width, share)[count // 2 : -1]
    _, rate, decay = _start(kappa, lr, weight_decay)
    with np.errstate(divide="ignore"):
        along = np.log(np.abs(1 - rate * _curvature(path, decay, width, share))).mean(axis=0)
        across = np.log(np.abs(1 - rate * decay))
    return np.asarray(along if width == 1 else np.maximum(along, across))


@plain_numbers
def one_layer_cnn_loss(
    kappa: ArrayLike,
    weight_decay: ArrayLike,
    width: int = 32,
    share: float = 0.5,
    rest: ArrayLike = 0.0,
) -> Array:
    """Loss with its decay term: softplus(-G(kappa)) + weight_decay / 2 ||K||^2.

    Args:
        kappa: <K, c>; the shapes of all array arguments broadcast.
        weight_decay: coupled weight decay, >= 0.
        width: side w of the kernel, >= 1.
        share: p in [0, 1].
        rest: squared norm of K without its component along c, >= 0, so that
            ||K||^2 = kappa^2 / w^2 + rest.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    x, decay, other = broadcast(
        kappa=finite("kappa", kappa),
        weight_decay=not_negative("weight_decay", weight_decay),
        rest=not_negative("rest", rest),
    )
    side, p = step_count("width", width, 1), _share(share)
    with np.errstate(over="ignore"):
        norm = (x / side) ** 2 + other
        return np.asarray(np.logaddexp(0, -_logit(x, p)[0]) + decay / 2 * norm)


# --------------------------------------------------------------------------- the scalar problem


def _share(share: float) -> float:
    law = "0 <= share <= 1 must hold"
    return one("share", checked("share", share, lambda p: (p >= 0) & (p <= 1), law, "use 0.5"))


def _start(kappa: ArrayLike, lr: ArrayLike, weight_decay: ArrayLike) -> tuple[Array, ...]:
    return broadcast(
        kappa=finite("kappa", kappa),
        lr=positive("lr", lr),
        weight_decay=not_negative("weight_decay", weight_decay),
    )


def _logit(x: Array, share: float) -> tuple[Array, Array, Array]:
    """G and its first two derivatives, free of cancellation near 0 and far away."""
    tilt = np.tanh(x / 2) / 2
    bump = expit(x) * expit(-x)  # derivative of the sigmoid
    lean = share - 0.5
    return x * (tilt + lean), tilt + x * bump + lean, 2 * bump * (1 - x * tilt)


def _gradient(x: Array, decay: Array, width: int, share: float) -> Array:
    value, slope, _ = _logit(x, share)
    return np.asarray(decay * x - expit(-value) * width**2 * slope)


def _curvature(x: Array, decay: Array, width: int, share: float) -> Array:
    value, slope, bend = _logit(x, share)
    doubt = expit(-value)
    return np.asarray(width**2 * doubt * (expit(value) * slope**2 - bend) + decay)


def _equilibrium(decay: Array, width: int, share: float) -> Array:
    """kappa* of `OneLayerCNN.equilibrium` for each decay."""
    right = _right_minimum(decay, width, share)
    if share >= 0.5:
        return right
    return np.where(np.isnan(right), -_right_minimum(decay, width, 1 - share), right)


def _right_minimum(decay: Array, width: int, share: float) -> Array:
    """The minimum with kappa > 0; 0 where share 1/2 leaves kappa = 0 only, NaN where none."""
    peak, most = _strongest_pull(share)
    low = np.full(decay.shape, peak)
    high = low + 1.0
    searched = decay > 0
    growing = searched
    while growing.any():
        high = np.where(growing, 2 * high, high)
        growing = searched & (_gradient(high, decay, width, share) < 0)
    for _ in range(128):  # bisection to the last bit, from a bracket of any size met here
        middle = (low + high) / 2
        falling = _gradient(middle, decay, width, share) < 0
        low, high = np.where(falling, middle, low), np.where(falling, high, middle)
    none = 0.0 if share == 0.5 else np.nan
    found = np.where(decay < most * width**2, high, none)
    return np.where(searched, found, np.inf)


def _strongest_pull(share: float) -> tuple[float, float]:
    """Where the data's pull over kappa, (1 - sigmoid G) G' / kappa, is largest, and how large.

    It falls from there on, so that each decay below it has one minimum beyond that place. For
    shares from 1/2 on the place is 0; the pull over kappa is 1/4 there for 1/2, unbounded above.
    """
    if share >= 0.5:
        return 0.0, 0.25 if share == 0.5 else np.inf

    def lack(x: float) -> float:
        value, slope, _ = _logit(np.asarray(x), share)
        return -float(expit(-value) * slope / x)

    grid = np.geomspace(1e-9, 10, 200)
    at = int(np.argmin([lack(x) for x in grid]))
    inner = (grid[max(at - 1, 0)], grid[at + 1])
    best = minimize_scalar(lack, bounds=inner, method="bounded", options={"xatol": 1e-12})
    return float(best.x), -float(best.fun)


def _phases(lr: Array, decay: Array, cnn: OneLayerCNN) -> CNNPhases:
    """The phases of a network whose own weight decay does not count."""
    kappa = _equilibrium(decay, cnn.width, cnn.share)
    inside = np.isfinite(kappa)
    along = _curvature(np.where(inside, kappa, 0.0), decay, cnn.width, cnn.share)
    sharpness = np.where(inside, np.maximum(along, decay), decay)
    with np.errstate(divide="ignore"):
        stable, bounded = 2 / sharpness, 2 / (decay + 0.0)
    stable = np.minimum(stable, bounded)
    regime = np.select(
        [lr > bounded, lr >= stable],
        [Regime.DIVERGENT.value, Regime.RESTRAINED.value],
        Regime.STABLE.value,
    )
    return CNNPhases(regime, stable, bounded, kappa, sharpness)
