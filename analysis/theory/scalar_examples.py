"""Gradient descent on three scalar functions (Nar and Sastry 2018, "Step size matters", section 1).

They show, in one variable, what the step size does to any training: it can turn a minimum into an
oscillation (example 1), choose among minima (example 2) and decide which starts diverge (3).

"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.theory.arguments import (
    broadcast,
    checked,
    finite,
    plain_numbers,
    positive,
    step_count,
)

Array = NDArray[np.float64]

#: The maximum between the two minima of example 2: the one real root of 3 x^3 - 6 x^2 + 4 x - 3.
TWO_MINIMA_BARRIER = 1.556133882907315


# --------------------------------------------------------------------------- example 1


@plain_numbers
def three_halves_step(x: ArrayLike, lr: ArrayLike) -> Array:
    """One step of gradient descent on (2/3) |x|^(3/2): x - lr sign(x) sqrt|x|.

    Args:
        x: where the step starts, finite.
        lr: learning rate, > 0; broadcasts with `x`.

    Raises:
        InputError: if an argument is out of its domain or the shapes do not broadcast.
    """
    x, lr = broadcast(x=finite("x", x), lr=positive("lr", lr))
    return x - lr * np.sign(x) * np.sqrt(np.abs(x))


@plain_numbers
def three_halves_cycle(lr: ArrayLike) -> Array:
    """Size lr^2 / 4 of the oscillation that example 1 ends in from almost every start.

    The iterate alternates between +lr^2/4 and -lr^2/4. The derivative of the step is 0 there, so
    the distance to the cycle is squared at each step (example 1).

    Args:
        lr: learning rate, > 0, any shape.

    Raises:
        InputError: if `lr` is out of its domain.
    """
    return positive("lr", lr) ** 2 / 4


def three_halves_starts(lr: ArrayLike, count: int) -> Array:
    """The first starts from which example 1 reaches its minimum 0; with them, their negatives.

    0, lr^2, (3 + sqrt 5)/2 lr^2, ...: each is what one step takes to the one before. No other
    start converges to 0: the step pushes away from 0, so 0 must be hit exactly. In floating point
    a step from the third member on may miss the one before by a rounding error and then leaves.

    Args:
        lr: learning rate, > 0, any shape.
        count: how many, >= 1.

    Returns:
        The starts, rising, in a new last axis of length `count`.

    Raises:
        InputError: if an argument is out of its domain.
    """
    lr = positive("lr", lr)
    starts = [np.zeros_like(lr)]
    for _ in range(step_count("count", count, 1) - 1):
        starts.append(((lr + np.sqrt(lr**2 + 4 * starts[-1])) / 2) ** 2)
    return np.stack(starts, axis=-1)


# --------------------------------------------------------------------------- example 2


@plain_numbers
def two_minima_loss(x: ArrayLike) -> Array:
    """The function (x^2 + 1) (x - 1)^2 (x - 2)^2 of example 2, minimal at 1 and at 2."""
    x = finite("x", x)
    return (x**2 + 1) * ((x - 1) * (x - 2)) ** 2


@plain_numbers
def two_minima_gradient(x: ArrayLike) -> Array:
    """Derivative of the function of example 2: 2 (x - 1) (x - 2) (3 x^3 - 6 x^2 + 4 x - 3)."""
    return _two_minima_gradient(finite("x", x))


def _two_minima_gradient(x: Array) -> Array:
    slope: Array = 2 * (x - 1) * (x - 2) * (((3 * x - 6) * x + 4) * x - 3)
    return slope


@plain_numbers
def two_minima_curvature(x: ArrayLike) -> Array:
    """Second derivative of the function of example 2; 4 at x = 1 and 10 at x = 2."""
    x = finite("x", x)
    cubic = ((3 * x - 6) * x + 4) * x - 3
    return 2 * (2 * x - 3) * cubic + 2 * (x - 1) * (x - 2) * ((9 * x - 12) * x + 4)


def two_minima_thresholds() -> tuple[float, float]:
    """Learning rates 2 / f'' above which the minima at 1 and 2 of example 2 repel: 1/2 and 1/5."""
    first, second = 2 / two_minima_curvature([1.0, 2.0])
    return float(first), float(second)


@plain_numbers
def two_minima_limit(x: ArrayLike, lr: ArrayLike, steps: int = 3000) -> Array:
    """Where gradient descent on the function of example 2 ends: measured, not a closed form.

    Args:
        x: starts, finite.
        lr: learning rate, > 0; broadcasts with `x`.
        steps: number of steps, >= 1. Near a threshold convergence is slow: 3000 is enough from
            2 % below it downwards.

    Returns:
        1 or 2 where the iterate has come within 1e-6 of that minimum, infinity where it has left
        [-1e6, 1e6] (it never returns from there), NaN where it still moves: a cycle or chaos.

    Raises:
        InputError: if an argument is out of its domain or the shapes do not broadcast.
    """
    x, lr = broadcast(x=finite("x", x), lr=positive("lr", lr))
    x = x.copy()
    for _ in range(step_count("steps", steps, 1)):
        x = np.where(np.abs(x) > 1e6, np.inf, x)
        inside = np.isfinite(x)
        x = np.where(inside, x - lr * _two_minima_gradient(np.where(inside, x, 0.0)), np.inf)
    limit = np.where(np.abs(x) > 1e6, np.inf, np.nan)
    for minimum in (1.0, 2.0):
        limit = np.where(np.abs(x - minimum) < 1e-6, minimum, limit)
    return limit


# --------------------------------------------------------------------------- example 3


@plain_numbers
def even_power_step(x: ArrayLike, lr: ArrayLike, power: ArrayLike) -> Array:
    """One step of gradient descent on x^power: x - lr power x^(power - 1).

    Args:
        x: where the step starts, finite.
        lr: learning rate, > 0.
        power: even, >= 4. All three broadcast.

    Raises:
        InputError: if an argument is out of its domain or the shapes do not broadcast.
    """
    x, lr, power = broadcast(x=finite("x", x), lr=positive("lr", lr), power=_even("power", power))
    return x - lr * power * x ** (power - 1)


@plain_numbers
def even_power_radius(lr: ArrayLike, power: ArrayLike) -> Array:
    """Largest |start| from which gradient descent on x^power converges to 0.

    x_c = (2 / (lr power))^(1 / (power - 2)) (example 3). Below it the iterate converges, above it
    diverges, and +-x_c itself is a cycle of two. Convergence is slow, of order
    steps^(-1 / (power - 2)), because the curvature vanishes at 0.

    Args:
        lr: learning rate, > 0.
        power: even, >= 4; broadcasts with `lr`.

    Raises:
        InputError: if an argument is out of its domain or the shapes do not broadcast.
    """
    lr, power = broadcast(lr=positive("lr", lr), power=_even("power", power))
    radius: Array = (2 / (lr * power)) ** (1 / (power - 2))
    return radius


def _even(field: str, value: ArrayLike) -> Array:
    return checked(
        field,
        value,
        lambda a: (a >= 4) & (a % 2 == 0),
        "must be an even whole number >= 4",
        "use 4, 6, 8, ...; for x^2 the bound is lr < 1 from every start",
    )
