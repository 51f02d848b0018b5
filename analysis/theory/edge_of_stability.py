"""Thresholds of linear stability on quadratic bowls (Cohen et al. 2021, appendix B, and 2022)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.theory.arguments import broadcast, number, plain_numbers, real
from trainables.domain import InputError, Mistake, nearest

Array = NDArray[np.float64]

#: Optimisers with a threshold. Those after `nesterov` divide the gradient by a preconditioner.
OPTIMISERS = ("sgd", "nesterov", "adam", "adamw", "rmsprop", "adadelta")
DECAYS = ("coupled", "decoupled")


@overload
def quadratic_threshold(
    lr: float,
    optimiser: str = ...,
    momentum: float = ...,
    weight_decay: float = ...,
    decay: str | None = ...,
    step: int | None = ...,
) -> float: ...


@overload
def quadratic_threshold(
    lr: ArrayLike,
    optimiser: str = ...,
    momentum: ArrayLike = ...,
    weight_decay: ArrayLike = ...,
    decay: str | None = ...,
    step: ArrayLike | None = ...,
) -> Array: ...


def quadratic_threshold(
    lr: ArrayLike,
    optimiser: str = "sgd",
    momentum: ArrayLike = 0.0,
    weight_decay: ArrayLike = 0.0,
    decay: str | None = None,
    step: ArrayLike | None = None,
) -> float | Array:
    """Largest Hessian eigenvalue of the undecayed loss at which a quadratic bowl still attracts.

    With eta = lr, b = momentum, l = weight_decay, each entry is exact: from 0 up to it all roots
    of the update lie inside the unit circle, and there one of them leaves at -1.

    | optimiser            | coupled decay                  | decoupled decay                     |
    |----------------------|--------------------------------|-------------------------------------|
    | sgd (heavy ball)     | (2 + 2b) / eta - l             | (1 + b) (2 - eta l) / eta           |
    | nesterov             | (2 + 2b) / (eta (1 + 2b)) - l  | (1 + b) (2 - eta l) / (eta (1 + 2b))|
    | adam (adamw right)   | (2 + 2b) / (eta (1 - b)) - l   | (1 + b) (2 - eta l) / (eta (1 - b)) |
    | rmsprop              | (2 + 2b) / eta - l             | (1 + b) (2 - eta l) / eta           |
    | adadelta (b = 0)     | 2 / eta - l                    | (2 - eta l) / eta                   |

    Without momentum the two kinds of decay agree. A value below 0 means that the decay alone is
    too strong for the learning rate.

    The adaptive optimisers are taken with their preconditioner P held still, and the threshold is
    one on the top eigenvalue of P^-1 H, H being the Hessian: P = diag(sqrt(v) + eps) for adam
    (v corrected for its start at 0) and rmsprop, diag(sqrt(v + eps) / sqrt(u + eps)) with the
    mean square u of past updates for adadelta. Coupled decay passes through P as well: `- l` is
    exact for P = 1, and otherwise the top eigenvalue of P^-1 (H + l I) has to stay below the
    threshold for weight_decay = 0. The factor 1 - b of adam comes from its averaged gradient;
    the momentum of rmsprop, as in torch, sums and has no such factor.

    A sharpness above the threshold at the start of training (catapult) is not instability in
    itself: training can move to a flatter place and end up stable. The threshold speaks of the
    point at which the Hessian is taken, not of the path to come.

    Args:
        lr: learning rate, finite and > 0.
        optimiser: `sgd`, `nesterov`, `adam`, `adamw`, `rmsprop` or `adadelta`.
        momentum: b in [0, 1): for adam beta_1, for rmsprop torch's `momentum`; 0 for adadelta.
        weight_decay: l, finite and >= 0.
        decay: `coupled` (added to the gradient) or `decoupled` (scales the parameter by
            1 - lr weight_decay). None is coupled, and decoupled for adamw, which has no other.
        step: number t >= 0 of updates made before this one, for adam and adamw: the threshold is
            multiplied by 1 - b^(t+1), which is Adam's correction of its first moment (before
            coupled decay is taken off). None is the limit of many steps.

    Returns:
        The threshold, in units of the Hessian: a float for numbers, else an array of the shape to
        which lr, momentum, weight_decay and step broadcast.

    Raises:
        InputError: an argument lies outside its domain, a name is unknown, or the shapes do not
            broadcast; all mistakes are listed.
    """
    eta, b, lam, count = _numbers(
        lr=lr, momentum=momentum, weight_decay=weight_decay, step=-1 if step is None else step
    )
    coupled = _is_coupled(optimiser, decay)
    mistakes = [
        *_outside("lr", eta, np.isfinite(eta) & (eta > 0), "finite and > 0 must hold", "raise it"),
        *_out_of_domain(optimiser, b, lam),
        *(_step_mistakes(optimiser, count) if step is not None else ()),
    ]
    if mistakes:
        raise InputError(mistakes)
    decoupled_part = 0.0 if coupled else eta * lam
    free = (1 + b) * (2 - decoupled_part) / eta * _relief(optimiser, b)
    if step is not None:
        free = free * (1 - b ** (count + 1))
    threshold = free - lam if coupled else free
    found: float | Array = number(threshold)
    return found


@plain_numbers
def decay_bound(
    weight_decay: ArrayLike,
    optimiser: str = "sgd",
    momentum: ArrayLike = 0.0,
    decay: str | None = None,
) -> Array:
    """Learning rate above which weight decay alone throws parameters without curvature outwards.

    2 / lambda for gradient descent and for every decoupled decay; with coupled decay
    (2 + 2 b) / lambda for heavy-ball and (2 + 2 b) / ((1 + 2 b) lambda) for Nesterov momentum. The
    bound is where `quadratic_threshold` falls to 0. For the adaptive optimisers with coupled
    decay there is none (infinity), since their steps do not grow with the gradient.

    Args:
        weight_decay: lambda, finite and >= 0, any shape; 0 gives infinity.
        optimiser: as for `quadratic_threshold`.
        momentum: as for `quadratic_threshold`; broadcasts against `weight_decay`.
        decay: as for `quadratic_threshold`.

    Raises:
        InputError: as `quadratic_threshold`.
    """
    lam, b = _numbers(weight_decay=weight_decay, momentum=momentum)
    coupled = _is_coupled(optimiser, decay)
    mistakes = list(_out_of_domain(optimiser, b, lam))
    if mistakes:
        raise InputError(mistakes)
    factor = np.full(np.broadcast_shapes(lam.shape, b.shape), 2.0)
    if coupled:
        plain = optimiser in ("sgd", "nesterov")
        factor = factor * (1 + b) * _relief(optimiser, b) if plain else factor * np.inf
    with np.errstate(divide="ignore", over="ignore"):
        # The sum turns -0.0 into 0.0, which would give minus infinity.
        return np.asarray(factor / (lam + 0.0))


def _relief(optimiser: str, b: Array) -> Array:
    """By how much the threshold differs from heavy ball's with the same momentum."""
    if optimiser == "nesterov":
        return np.asarray(1 / (1 + 2 * b))
    if optimiser in ("adam", "adamw"):
        return np.asarray(1 / (1 - b))
    return np.ones_like(b)


def _numbers(**values: ArrayLike) -> list[Array]:
    """The values as arrays that broadcast against each other."""
    arrays = {name: real(name, value) for name, value in values.items()}
    broadcast(**arrays)
    return list(arrays.values())


def _is_coupled(optimiser: str, decay: str | None) -> bool:
    """Whether the decay enters the gradient; refuses names that there are not."""
    mistakes = []
    if optimiser not in OPTIMISERS:
        mistakes.append(_unknown("optimiser", optimiser, OPTIMISERS))
    if decay is not None and decay not in DECAYS:
        mistakes.append(_unknown("decay", decay, DECAYS))
    if optimiser == "adamw" and decay == "coupled":
        mistakes.append(
            Mistake("decay", decay, "adamw is Adam with decoupled decay", "use optimiser adam")
        )
    if mistakes:
        raise InputError(mistakes)
    return decay != "decoupled" and optimiser != "adamw"


def _unknown(field: str, name: str, names: tuple[str, ...]) -> Mistake:
    guess = nearest(str(name), names)
    remedy = f"did you mean {guess}?" if guess else f"use one of {', '.join(names)}"
    return Mistake(field, name, f"no such {field}", remedy)


def _outside(
    field: str, values: Array, inside: NDArray[np.bool_], law: str, remedy: str
) -> Iterable[Mistake]:
    """The first value that is not inside, where there is one."""
    if not inside.all():
        yield Mistake(field, float(values[~inside].flat[0]), law, remedy)


def _out_of_domain(optimiser: str, b: Array, lam: Array) -> Iterable[Mistake]:
    inside = (b >= 0) & (b < 1)
    yield from _outside("momentum", b, inside, "0 <= momentum < 1 must hold", "use 0, or 0.9")
    if optimiser == "adadelta" and inside.all():
        yield from _outside("momentum", b, b == 0, "adadelta has no momentum", "use 0")
    inside = np.isfinite(lam) & (lam >= 0)
    yield from _outside("weight_decay", lam, inside, "finite and >= 0 must hold", "use 0 or more")


def _step_mistakes(optimiser: str, count: Array) -> Iterable[Mistake]:
    if optimiser not in ("adam", "adamw"):
        law = f"{optimiser} does not correct its first moment"
        yield Mistake("step", count.tolist(), law, "leave it out")
    inside = np.isfinite(count) & (count >= 0) & (count == np.floor(count))
    law = "a count of updates is an integer >= 0"
    yield from _outside("step", count, inside, law, "count from 0, or leave it out")
