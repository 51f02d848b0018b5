"""Explicit Euler for the Beltrami reaction-diffusion equation (Sun et al. 2024, section 3.2).

The plainest case of a restrained instability: beyond the bound of the linearised equation a steeper
signal diffuses less, which stops the growth, until the data term alone overshoots. With r the data
fidelity, I the target and s the slope,

    u_t = (s / sqrt(s^2 + delta^2))_x + r (I - u),    s = u_x,

descends on the loss  integral of r/2 (I - u)^2 + sqrt(s^2 + delta^2)  (eq. 4). The paper gives no
settings for its Fig. 2; the defaults here (delta .01, fidelity 1, 200 points) are stabmap's own and
show what that figure shows: restrained at 10 and 100 times the bound, divergent at 1000 times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigvalsh_tridiagonal

from analysis.theory.arguments import (
    broadcast,
    finite,
    not_negative,
    number,
    plain_numbers,
    positive,
    step_count,
)
from analysis.theory.heat import line

Array = NDArray[np.float64]


@dataclass(frozen=True)
class BeltramiRun:
    """A simulated evolution.

    Args:
        u: last values, (..., points).
        losses: loss before each step and after the last, (steps + 1, ...).
        largest: largest |u| before each step and after the last, (steps + 1, ...).
    """

    u: Array
    losses: Array
    largest: Array

    def first_above(self, limit: float = 1e30) -> Any:
        """Number of steps after which |u| first exceeded `limit` or overflowed; -1 where never."""
        over = ~(self.largest <= limit)
        return number(np.where(over.any(axis=0), over.argmax(axis=0), -1))


def beltrami_signal(points: int = 200, seed: int = 0) -> Array:
    """A noisy box: 1 from 3/10 to 7/10 of the line and 0 elsewhere, plus noise of size .1.

    Args:
        points: number of points, >= 3.
        seed: seed of numpy's legacy generator.

    Returns:
        The signal, (points,).

    Raises:
        InputError: if `points` is below 3 or `seed` below 0.
    """
    place = np.arange(step_count("points", points, 3)) * 10
    box = ((place >= 3 * points) & (place < 7 * points)).astype(np.float64)
    return box + 0.1 * np.random.RandomState(step_count("seed", seed, 0)).randn(points)


def beltrami_step(
    u: ArrayLike,
    target: ArrayLike,
    dt: ArrayLike,
    delta: ArrayLike = 0.01,
    fidelity: ArrayLike = 1.0,
    dx: ArrayLike = 1.0,
) -> Array:
    """One explicit Euler step with no flux through the ends: `beltrami_simulate` for one step.

    Returns:
        The values one step later, in the broadcast shape.

    Raises:
        InputError: as `beltrami_simulate`.
    """
    return beltrami_simulate(u, target, dt, 1, delta, fidelity, dx).u


@plain_numbers
def beltrami_loss(
    u: ArrayLike,
    target: ArrayLike,
    delta: ArrayLike = 0.01,
    fidelity: ArrayLike = 1.0,
    dx: ArrayLike = 1.0,
) -> Array:
    """The loss of eq. 4 as a sum over the grid; its gradient over dx is what a step descends on.

    Returns:
        One loss for each line, in the broadcast shape of the leading axes. The arguments are those
        of `beltrami_simulate`.

    Raises:
        InputError: as `beltrami_simulate`.
    """
    lines, columns = _problem(u, target, {}, delta, fidelity, dx)
    with np.errstate(over="ignore", invalid="ignore"):
        return _loss(*lines, *columns)


def beltrami_simulate(
    u: ArrayLike,
    target: ArrayLike,
    dt: ArrayLike,
    steps: int,
    delta: ArrayLike = 0.01,
    fidelity: ArrayLike = 1.0,
    dx: ArrayLike = 1.0,
) -> BeltramiRun:
    """Explicit Euler steps with no flux through the ends; overflow gives infinity or NaN.

    Args:
        u: initial values, (..., points), at least 3 points.
        target: I, of a shape that broadcasts with `u`.
        dt: time step, > 0, of a shape that broadcasts with the leading axes of `u`.
        steps: number of steps, >= 0.
        delta: rounds off the slope's absolute value, > 0, of such a shape too.
        fidelity: weight r of the data term, >= 0, of such a shape too.
        dx: distance of two points, > 0, of such a shape too.

    Raises:
        InputError: for a shape or a number outside these laws.
    """
    (start, aim), (step, smooth, weight, space) = _problem(
        u, target, {"dt": positive("dt", dt)}, delta, fidelity, dx
    )
    count = step_count("steps", steps)
    losses = np.empty((count + 1, *start.shape[:-1]))
    largest = np.empty_like(losses)
    state = start.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        for index in range(count + 1):
            losses[index] = _loss(state, aim, smooth, weight, space)
            largest[index] = np.abs(state).max(-1)
            if index < count:
                slope = np.diff(state) / space
                flux = np.diff(slope / np.hypot(slope, smooth), prepend=0.0, append=0.0)
                state += step * (flux / space + weight * (aim - state))
    return BeltramiRun(state, losses, largest)


def _problem(
    u: ArrayLike,
    target: ArrayLike,
    first: dict[str, Array],
    delta: ArrayLike,
    fidelity: ArrayLike,
    dx: ArrayLike,
) -> tuple[tuple[Array, Array], list[Array]]:
    """The lines u and target, (..., points); the numbers, `first` and the last three, (..., 1)."""
    numbers = first | {
        "delta": positive("delta", delta),
        "fidelity": not_negative("fidelity", fidelity),
        "dx": positive("dx", dx),
    }
    start, aim, *columns = broadcast(
        u=line("u", u),
        target=line("target", target),
        **{name: number[..., None] for name, number in numbers.items()},
    )
    return (start, aim), [column[..., :1] for column in columns]


def _loss(state: Array, aim: Array, smooth: Array, weight: Array, space: Array) -> Array:
    length = np.hypot(np.diff(state) / space, smooth)
    density = weight[..., 0] / 2 * ((aim - state) ** 2).sum(-1) + length.sum(-1)
    return np.asarray(space[..., 0] * density)


def _linearised(
    slope: dict[str, Array], delta: ArrayLike, fidelity: ArrayLike, dx: ArrayLike
) -> tuple[Array, Array]:
    """Fidelity and 2 kappa / dx^2 with kappa = 1 / sqrt(slope^2 + delta^2), at slope 0 if {}."""
    smooth, weight, space, *steep = broadcast(
        delta=positive("delta", delta),
        fidelity=not_negative("fidelity", fidelity),
        dx=positive("dx", dx),
        **slope,
    )
    steepness = steep[0] if steep else np.zeros(())
    return weight, 2 / (np.hypot(steepness, smooth) * space**2)


@plain_numbers
def beltrami_cfl_bound(
    slope: ArrayLike = 0.0,
    delta: ArrayLike = 0.01,
    fidelity: ArrayLike = 1.0,
    dx: ArrayLike = 1.0,
) -> Array:
    """Bound on dt of the equation with its diffusivity held: 1 / (r/2 + 2 kappa / dx^2).

    kappa = 1 / sqrt(slope^2 + delta^2). Exact for that linear equation on an endless line: the
    fastest mode has the rate r + 4 kappa / dx^2, and a step must not exceed 2 over it. Where the
    slope is 0 this is also the bound of the equation's true derivative, the strictest of all; at
    other slopes the true diffusivity is delta^2 kappa^3, below kappa, so the bound is safe there.
    `beltrami_sharpness` gives the exact bound for a given u.

    Args:
        slope: u_x, any shape.
        delta: rounds off the slope's absolute value, > 0.
        fidelity: weight r of the data term, >= 0.
        dx: distance of two points, > 0.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    weight, diffusion = _linearised({"slope": finite("slope", slope)}, delta, fidelity, dx)
    return 1 / (weight / 2 + diffusion)


@plain_numbers
def beltrami_cfl_bound_as_printed(
    slope: ArrayLike = 0.0,
    delta: ArrayLike = 0.01,
    fidelity: ArrayLike = 1.0,
    dx: ArrayLike = 1.0,
) -> Array:
    """The bound as the paper prints it: 1 / (r + 2 kappa / dx^2), without the half.

    Sufficient but not necessary: it takes the data term twice. See `beltrami_cfl_bound` for the
    arguments and errors.
    """
    weight, diffusion = _linearised({"slope": finite("slope", slope)}, delta, fidelity, dx)
    return 1 / (weight + diffusion)


@plain_numbers
def beltrami_divergence_bound(fidelity: ArrayLike = 1.0) -> Array:
    """The step at which u ceases to be bounded: 2 / r; exact, infinite for r = 0.

    Each flux is at most 1, so the data term alone decides. Below the bound u stays within
    `beltrami_reach` of its target. At the bound itself the overshoot grows by up to 4 dt / dx a
    cycle of two steps, above it exponentially.

    Args:
        fidelity: weight r of the data term, >= 0, any shape.

    Raises:
        InputError: if a number is negative.
    """
    with np.errstate(divide="ignore"):
        return 2 / not_negative("fidelity", fidelity)


@plain_numbers
def beltrami_restrained_band(
    delta: ArrayLike = 0.01, fidelity: ArrayLike = 1.0, dx: ArrayLike = 1.0
) -> Array:
    """Divergence bound over the strictest CFL bound: 1 + 4 / (r delta dx^2).

    Between the two lies the restrained regime; infinite for r = 0. The paper's Fig. 2, divergent at
    1000 times its bound, thus had r delta above about .004 (dx = 1).

    Args:
        delta: rounds off the slope's absolute value, > 0, any shape.
        fidelity: weight r of the data term, >= 0.
        dx: distance of two points, > 0.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    weight, diffusion = _linearised({}, delta, fidelity, dx)
    with np.errstate(divide="ignore"):
        return 1 + 2 * diffusion / weight


@plain_numbers
def beltrami_reach(dt: ArrayLike, fidelity: ArrayLike = 1.0, dx: ArrayLike = 1.0) -> Array:
    """Bound that |u - I| falls below in the long run: (2 dt / dx) / (1 - |1 - r dt|).

    It follows from |u' - I| <= |1 - r dt| |u - I| + 2 dt / dx; infinite from 2 / r on, and for
    r = 0.

    Args:
        dt: time step, > 0, any shape.
        fidelity: weight r of the data term, >= 0.
        dx: distance of two points, > 0.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    step, weight, space = broadcast(
        dt=positive("dt", dt),
        fidelity=not_negative("fidelity", fidelity),
        dx=positive("dx", dx),
    )
    kept = 1 - np.abs(1 - weight * step)
    with np.errstate(divide="ignore"):
        return np.where(kept > 0, 2 * step / (space * np.maximum(kept, 0)), np.inf)


@plain_numbers
def beltrami_sharpness(
    u: ArrayLike, delta: ArrayLike = 0.01, fidelity: ArrayLike = 1.0, dx: ArrayLike = 1.0
) -> Array:
    """Largest eigenvalue of minus the derivative of the right-hand side at u; exact.

    A fixed point u attracts while dt is below 2 over it. The eigenvalue is that of the Hessian of
    `beltrami_loss` over dx.

    Args:
        u: values, (..., points), at least 3 points.
        delta: rounds off the slope's absolute value, > 0, of a shape that broadcasts with the
            leading axes of `u`.
        fidelity: weight r of the data term, >= 0, of such a shape too.
        dx: distance of two points, > 0, of such a shape too.

    Returns:
        One eigenvalue for each line, in the broadcast shape of the leading axes.

    Raises:
        InputError: for a shape or a number outside these laws.
    """
    values, smooth, weight, space = broadcast(
        u=line("u", u),
        delta=positive("delta", delta)[..., None],
        fidelity=not_negative("fidelity", fidelity)[..., None],
        dx=positive("dx", dx)[..., None],
    )
    spread, space = smooth[..., 1:], space[..., 1:]
    length = np.hypot(np.diff(values) / space, spread)
    stiffness = (spread / length) ** 2 / (length * space**2)
    sides = np.pad(stiffness, [(0, 0)] * (values.ndim - 1) + [(1, 1)])
    diagonal = weight + sides[..., :-1] + sides[..., 1:]
    last = values.shape[-1] - 1
    rows = zip(diagonal.reshape(-1, last + 1), -stiffness.reshape(-1, last), strict=True)
    top = [
        float(eigvalsh_tridiagonal(row, beside, select="i", select_range=(last, last))[0])
        for row, beside in rows
    ]
    return np.array(top).reshape(values.shape[:-1])
