"""Weight decays at which the linearised one-layer CNN is stable (Sun et al. 2024, section 5).

Near K * I = 0 the Swish r(x) = x / (1 + exp(-beta x)) has the slope 1/2 + beta x / 2, and gradient
descent on the kernel K of the network sigmoid(sum r(K * I)) becomes linear (eq. 11),

    K <- K - lr [ a/2 (sum I + beta (K * I) * I) + weight_decay K ],

with a = prediction - label held. It splits into modes: the eigenvectors of K -> (K * I) * I, with
eigenvalues p >= 0. Each mode is multiplied by its amplifier

    A = 1 - lr (weight_decay + a beta p / 2),

and is stable where |A| <= 1 (the constant term moves the fixed point only). For a kernel as large
as a periodic image the modes are Fourier modes and p = |Ihat|^2 (`spectrum_extremes`); for a kernel
of w x w pixels inside the image, p are the eigenvalues of X^T X, the rows of X being the image's
w x w patches (`patch_extremes`). In all bounds below only the smallest and the largest p matter.

Symbols of the paper: its alpha is `weight_decay`, its Delta t is `lr` (for Nesterov's method lr is
not Delta t, see `nesterov_momentum`), its beta is `beta`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.theory.arguments import (
    broadcast,
    checked,
    finite,
    not_negative,
    number,
    plain_numbers,
    positive,
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DecayRange:
    """The weight decays from `low` to `high`, ends included; none where `low` > `high`.

    A `low` below 0 means that no weight decay is needed.

    Args:
        low: smallest stable weight decay: a float, or an array of any shape.
        high: largest stable weight decay, of the same shape.
    """

    low: Any
    high: Any

    def __post_init__(self) -> None:
        for end in ("low", "high"):
            object.__setattr__(self, end, number(getattr(self, end)))

    @property
    def empty(self) -> Any:
        """Where no weight decay is stable."""
        return number(np.asarray(self.low > self.high))

    def contains(self, weight_decay: ArrayLike) -> Any:
        """Whether weight decays, of a shape that broadcasts, lie in the range.

        Raises:
            InputError: if one is not finite or the shapes do not broadcast.
        """
        value, low, high = broadcast(
            weight_decay=finite("weight_decay", weight_decay),
            low=np.asarray(self.low),
            high=np.asarray(self.high),
        )
        return number((low <= value) & (value <= high))


# --------------------------------------------------------------------------- gradient descent


@plain_numbers
def linear_cnn_amplifier(
    lr: ArrayLike,
    weight_decay: ArrayLike,
    a: ArrayLike,
    eigenvalue: ArrayLike,
    beta: ArrayLike = 1.0,
) -> Array:
    """A = 1 - lr (weight_decay + a beta p / 2), the factor of a mode per step (eq. 13).

    Args:
        lr: learning rate, > 0; the shapes of all arguments broadcast.
        weight_decay: coupled weight decay, >= 0.
        a: prediction minus label.
        eigenvalue: p of the mode, such as an entry of `power_spectrum`.
        beta: steepness of the Swish, > 0.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    rate, *mode = broadcast(lr=positive("lr", lr), **_mode(weight_decay, a, eigenvalue, beta))
    return _amplifier(rate, *mode)


def linear_cnn_decay_range(
    lr: ArrayLike, a: ArrayLike, smallest: ArrayLike, largest: ArrayLike, beta: ArrayLike = 1.0
) -> DecayRange:
    """Weight decays at which every mode is stable under gradient descent; exact for either sign.

    From max_p(-a beta p / 2) to 2 / lr - max_p(a beta p / 2). For a < 0 these are the bounds of
    the paper's theorem 5.4, for a > 0 they are not: see `linear_cnn_decay_range_as_printed`.

    Args:
        lr: learning rate, > 0; the shapes of all arguments broadcast.
        a: prediction minus label.
        smallest: smallest p, from `spectrum_extremes` or `patch_extremes`.
        largest: largest p, >= smallest.
        beta: steepness of the Swish, > 0.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    rate, *modes = broadcast(lr=positive("lr", lr), **_modes(a, smallest, largest, beta))
    return _range(2 / rate, *modes)


def linear_cnn_decay_range_as_printed(
    lr: ArrayLike, a: ArrayLike, smallest: ArrayLike, largest: ArrayLike, beta: ArrayLike = 1.0
) -> DecayRange:
    """The bounds as the paper prints them (eq. 14), right for a <= 0 only.

    It prints -a beta max p / 2 and 2 / lr - a beta min p / 2 for both signs. For a > 0 the largest
    p, not the smallest, is the first to overshoot, so that its upper bound is too generous; its
    lower bound is that of the least demanding mode, which matters for negative weight decays only.
    See `linear_cnn_decay_range` for arguments and errors.
    """
    rate, *modes = broadcast(lr=positive("lr", lr), **_modes(a, smallest, largest, beta))
    return _range(2 / rate, *modes, printed=True)


# --------------------------------------------------------------------------- Nesterov


@plain_numbers
def nesterov_momentum(dt: ArrayLike, damping: ArrayLike) -> Array:
    """Momentum (2 - d dt) / (2 + d dt) of Nesterov's method as a scheme for K'' + d K' = -grad L.

    That scheme (eq. 16 and 17) is Nesterov's method with this momentum and `nesterov_lr`.

    Args:
        dt: time step, > 0.
        damping: d, >= 0, of a shape that broadcasts; at most 2 / dt, where the momentum is 0.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    step, drag = broadcast(dt=positive("dt", dt), damping=not_negative("damping", damping))
    law = "d dt <= 2 must hold, or the momentum is negative"
    checked("damping", drag, lambda d: d * step <= 2, law, "use a smaller damping or dt")
    return np.asarray((2 - drag * step) / (2 + drag * step))


@plain_numbers
def nesterov_lr(dt: ArrayLike, momentum: ArrayLike) -> Array:
    """Learning rate 2 dt^2 / (2 + d dt) = dt^2 (1 + momentum) / 2 of the scheme of eq. 17.

    Args:
        dt: time step, > 0.
        momentum: in [0, 1], of a shape that broadcasts.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    step, mu = broadcast(dt=positive("dt", dt), momentum=_momentum(momentum))
    return np.asarray(step**2 * (1 + mu) / 2)


@plain_numbers
def nesterov_amplifier(
    dt: ArrayLike,
    momentum: ArrayLike,
    weight_decay: ArrayLike,
    a: ArrayLike,
    eigenvalue: ArrayLike,
    beta: ArrayLike = 1.0,
) -> Array:
    """Largest modulus of the factors per step of a mode under Nesterov's method.

    The factors are the roots of x^2 - (1 + mu) q x + mu q with
    q = 1 - dt^2 (1 + mu) / 2 (weight_decay + a beta p / 2) (eq. 70 and 71).

    Args:
        dt: time step, > 0; the shapes of all arguments broadcast.
        momentum: mu, in [0, 1].
        weight_decay: coupled weight decay, >= 0.
        a: prediction minus label.
        eigenvalue: p of the mode.
        beta: steepness of the Swish, > 0.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    step, mu, *mode = broadcast(
        dt=positive("dt", dt),
        momentum=_momentum(momentum),
        **_mode(weight_decay, a, eigenvalue, beta),
    )
    q = _amplifier(step**2 * (1 + mu) / 2, *mode)
    half = (1 + mu) * q / 2
    root = np.sqrt((half**2 - mu * q).astype(np.complex128))
    return np.maximum(np.abs(half + root), np.abs(half - root))


def nesterov_decay_range(
    dt: ArrayLike,
    momentum: ArrayLike,
    a: ArrayLike,
    smallest: ArrayLike,
    largest: ArrayLike,
    beta: ArrayLike = 1.0,
) -> DecayRange:
    """Weight decays at which every mode is stable under Nesterov's method; exact.

    A mode is stable for 0 <= dt^2 (weight_decay + a beta p / 2) <= 4 / (1 + 2 mu), so damping
    widens the range, up to threefold for momentum 0. The paper says that it does not matter, see
    `nesterov_decay_range_as_printed`.

    Args:
        dt: time step, > 0; the shapes of all arguments broadcast.
        momentum: mu, in [0, 1]; from `nesterov_momentum` for a damping.
        a: prediction minus label.
        smallest: smallest p, from `spectrum_extremes` or `patch_extremes`.
        largest: largest p, >= smallest.
        beta: steepness of the Swish, > 0.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    step, mu, *modes = broadcast(
        dt=positive("dt", dt),
        momentum=_momentum(momentum),
        **_modes(a, smallest, largest, beta),
    )
    return _range(4 / ((1 + 2 * mu) * step**2), *modes)


def nesterov_decay_range_as_printed(
    dt: ArrayLike, a: ArrayLike, smallest: ArrayLike, largest: ArrayLike, beta: ArrayLike = 1.0
) -> DecayRange:
    """The bounds as the paper prints them (eq. 18), with 4 / (3 dt^2) for every damping.

    That is the limit of no damping (momentum 1), the strictest case, so the upper bound is
    sufficient but not necessary for a <= 0. At the paper's momentum .9 and dt 1e-4 it gives 1.33e8
    where the exact bound is 1.43e8, which is what the paper measured (table 9). For a > 0 it has
    the fault of `linear_cnn_decay_range_as_printed` too. Arguments and errors:
    `nesterov_decay_range`.
    """
    step, *modes = broadcast(dt=positive("dt", dt), **_modes(a, smallest, largest, beta))
    return _range(4 / (3 * step**2), *modes, printed=True)


# --------------------------------------------------------------------------- regimes of table 3


def not_activated_decay_range(lr: ArrayLike) -> DecayRange:
    """Where K * I is far below 0 the network is flat: 0 to 2 / lr (table 3, right).

    The "transitioning" regime of that table is `linear_cnn_decay_range`.

    Args:
        lr: learning rate, > 0, any shape.

    Raises:
        InputError: if a number is not > 0.
    """
    high = np.asarray(2 / positive("lr", lr))
    return DecayRange(np.zeros_like(high), high)


def activated_decay_range(lr: ArrayLike, image_sum: ArrayLike, pixels: ArrayLike) -> DecayRange:
    """Where K * I is far above 0: from 0 to 2 / lr - m (sum I)^2 / 4.

    There r' = 1, the logit is sum(I) sum(K), and the loss has the curvature s' (sum I)^2 m along
    the constant kernel of m pixels, with s' = prediction (1 - prediction) <= 1/4. Taken at its
    largest, 1/4, the bound is the strictest; all other directions feel weight decay alone. The
    paper's constant is 2 m times smaller, see `activated_decay_range_as_printed`. For an image
    with sum 0, such as its checkerboard, both are 2 / lr.

    The sum over all shifts of the kernel is meant, as in the paper: for a valid correlation,
    m (sum I)^2 is the squared norm of the vector of the m window sums, and a mean instead of a sum
    over N positions divides that by N^2.

    Args:
        lr: learning rate, > 0; the shapes of all arguments broadcast.
        image_sum: sum of the image's pixels.
        pixels: number m of kernel pixels, w^2 for a kernel of w x w; whole, >= 1.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    high, total, count = broadcast(
        lr=2 / positive("lr", lr),
        image_sum=finite("image_sum", image_sum),
        pixels=_whole("pixels", pixels),
    )
    return DecayRange(np.zeros_like(high), np.asarray(high - count * total**2 / 4))


def activated_decay_range_as_printed(lr: ArrayLike, image_sum: ArrayLike) -> DecayRange:
    """The bounds as the paper prints them (table 3, section D.5): -(sum I)^2 / 8 to 2 / lr - that.

    Too generous: it keeps the slope r'(0) = 1/2 of the switching regime in one place, although
    r' = 1 here, and leaves out the number of kernel pixels. For a 4 x 4 kernel and sum(I) = 3 it
    subtracts 1.125 where 36 is right. The negative lower bound belongs to the constant kernel; all
    others need a weight decay of at least 0. Arguments and errors: `activated_decay_range`.
    """
    high, total = broadcast(lr=2 / positive("lr", lr), image_sum=finite("image_sum", image_sum))
    return DecayRange(np.asarray(-(total**2) / 8), np.asarray(high - total**2 / 8))


# --------------------------------------------------------------------------- helpers


def _mode(
    weight_decay: ArrayLike, a: ArrayLike, eigenvalue: ArrayLike, beta: ArrayLike
) -> dict[str, Array]:
    return {
        "weight_decay": not_negative("weight_decay", weight_decay),
        "a": finite("a", a),
        "eigenvalue": finite("eigenvalue", eigenvalue),
        "beta": positive("beta", beta),
    }


def _amplifier(rate: Array, decay: Array, error: Array, p: Array, steepness: Array) -> Array:
    return np.asarray(1 - rate * (decay + error * steepness * p / 2))


def _modes(
    a: ArrayLike, smallest: ArrayLike, largest: ArrayLike, beta: ArrayLike
) -> dict[str, Array]:
    bottom, top = broadcast(
        smallest=finite("smallest", smallest), largest=finite("largest", largest)
    )
    law = "must not lie below `smallest`"
    checked("largest", top, lambda p: p >= bottom, law, "give the smaller one first")
    return {
        "a": finite("a", a),
        "smallest": bottom,
        "largest": top,
        "beta": positive("beta", beta),
    }


def _range(
    limit: Array,
    error: Array,
    bottom: Array,
    top: Array,
    steepness: Array,
    *,
    printed: bool = False,
) -> DecayRange:
    """Decays with 0 <= decay + a beta p / 2 <= limit for all p, or as if a were negative."""
    first, last = error * steepness * bottom / 2, error * steepness * top / 2
    low = -last if printed else np.maximum(-first, -last)
    high = first if printed else np.maximum(first, last)
    return DecayRange(np.asarray(low), np.asarray(limit - high))


def _whole(field: str, value: ArrayLike) -> Array:
    law = "must be whole numbers >= 1"
    return checked(field, value, lambda v: (v >= 1) & (v % 1 == 0), law, "choose such numbers")


def _momentum(momentum: ArrayLike) -> Array:
    law = "0 <= momentum <= 1 must hold"
    return checked("momentum", momentum, lambda m: (m >= 0) & (m <= 1), law, "use 0.9")
