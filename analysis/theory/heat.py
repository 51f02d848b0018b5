"""Explicit Euler for the heat equation u_t = kappa u_xx (Sun et al. 2024, section 3.1, Fig. 1).

The plainest case of a step size with a limit: beyond it rounding errors grow without end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.theory.arguments import broadcast, finite, plain_numbers, positive, step_count
from trainables.domain import InputError, Mistake

Array = NDArray[np.float64]


def heat_start(points: int = 31) -> Array:
    """The paper's initial condition: a triangle of slope 1/10 with both ends at 0, (points,).

    Raises:
        InputError: if `points` is below 3.
    """
    index = np.arange(step_count("points", points, 3))
    return np.minimum(index, points - 1 - index) / 10


def heat_step(u: ArrayLike, dt: ArrayLike, dx: ArrayLike = 1.0, kappa: ArrayLike = 1.0) -> Array:
    """One explicit Euler step of u_t = kappa u_xx with both ends held (eq. 2).

    Args:
        u: values on a line, (..., points), at least 3 points.
        dt: time step, > 0, of a shape that broadcasts with the leading axes of `u`.
        dx: distance of two points, > 0, likewise.
        kappa: diffusivity, > 0, likewise.

    Returns:
        The values one step later, in the broadcast shape.

    Raises:
        InputError: for a shape or a number outside these laws.
    """
    return heat_simulate(u, dt, 1, dx, kappa)


def heat_simulate(
    u: ArrayLike, dt: ArrayLike, steps: int, dx: ArrayLike = 1.0, kappa: ArrayLike = 1.0
) -> Array:
    """Values after a number of explicit Euler steps; infinite or NaN where they overflow.

    Args:
        u: initial values, (..., points), at least 3 points.
        dt: time step, > 0, of a shape that broadcasts with the leading axes of `u`.
        steps: number of steps, >= 0; the time reached is steps dt.
        dx: distance of two points, > 0, of such a shape too.
        kappa: diffusivity, > 0, of such a shape too.

    Raises:
        InputError: for a shape or a number outside these laws.
    """
    grid = {name: number[..., None] for name, number in _grid(dx, kappa).items()}
    state, step, *rest = broadcast(u=line("u", u), dt=positive("dt", dt)[..., None], **grid)
    state, inner = state.copy(), _ratio(step, *rest)[..., 1:-1]
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(step_count("steps", steps, 0)):
            state[..., 1:-1] += inner * np.diff(state, 2)
    return state


def line(field: str, values: ArrayLike) -> Array:
    """Finite values along a last axis of at least 3 points; InputError otherwise."""
    numbers = finite(field, values)
    if numbers.ndim < 1 or numbers.shape[-1] < 3:
        raise InputError(
            [Mistake(field, numbers.shape, "its shape is (..., points), points >= 3", "add points")]
        )
    return numbers


@plain_numbers
def mesh_ratio(dt: ArrayLike, dx: ArrayLike = 1.0, kappa: ArrayLike = 1.0) -> Array:
    """Kappa dt / dx^2, checked: all three > 0, any shapes that broadcast."""
    return _ratio(*broadcast(dt=positive("dt", dt), **_grid(dx, kappa)))


@plain_numbers
def heat_amplifier(
    frequency: ArrayLike, dt: ArrayLike, dx: ArrayLike = 1.0, kappa: ArrayLike = 1.0
) -> Array:
    """Factor A by which one step multiplies a Fourier mode of an endless line (eq. 3).

    A = 1 - 2 kappa dt / dx^2 (1 - cos frequency). The paper asks for |A| < 1 at every frequency
    and calls |A| >= 1 divergent. That cannot be met: A = 1 at frequency 0 for every dt, since the
    mean is conserved. The condition for bounded values is |A| <= 1; a mode with |A| = 1 is kept.

    Args:
        frequency: radians per sample, any shape. (The paper's DFT frequencies are radians per
            sample too, so its cos(frequency dx) agrees with this only for dx = 1.)
        dt: time step, > 0.
        dx: distance of two points, > 0.
        kappa: diffusivity, > 0.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    wave, *rest = broadcast(
        frequency=finite("frequency", frequency), dt=positive("dt", dt), **_grid(dx, kappa)
    )
    return np.asarray(1 - 2 * _ratio(*rest) * (1 - np.cos(wave)))


@plain_numbers
def heat_cfl_bound(dx: ArrayLike = 1.0, kappa: ArrayLike = 1.0) -> Array:
    """Courant-Friedrichs-Lewy bound of an endless line: dt < dx^2 / (2 kappa).

    Sufficient on every grid, and the limit of `heat_dirichlet_bound` for many points.

    Args:
        dx: distance of two points, > 0, any shape.
        kappa: diffusivity, > 0.

    Raises:
        InputError: if a number is not > 0.
    """
    return 0.5 / _ratio(np.ones(()), *broadcast(**_grid(dx, kappa)))


@plain_numbers
def heat_dirichlet_bound(points: int = 31, dx: ArrayLike = 1.0, kappa: ArrayLike = 1.0) -> Array:
    """Largest dt at which values stay bounded on a grid with held ends; exact.

    The modes are sin(m pi i / (n - 1)), m = 1 .. n - 2, with the factors
    1 - 4 kappa dt / dx^2 sin^2(m pi / (2 (n - 1))). The last one decides: .501373 for the paper's
    31 points, a little above the CFL bound of 1/2.

    Args:
        points: number n of grid points with both ends, >= 3.
        dx: distance of two points, > 0, any shape.
        kappa: diffusivity, > 0.

    Raises:
        InputError: if a number breaks its law.
    """
    ratio = _ratio(np.ones(()), *broadcast(**_grid(dx, kappa)))
    return 0.5 / (ratio * _extreme_modes(points)[1])


@plain_numbers
def heat_growth(
    dt: ArrayLike, points: int = 31, dx: ArrayLike = 1.0, kappa: ArrayLike = 1.0
) -> Array:
    """Largest factor per step of any mode on a grid with held ends: the spectral radius; exact.

    Args:
        dt: time step, > 0, any shape.
        points: number of grid points with both ends, >= 3.
        dx: distance of two points, > 0.
        kappa: diffusivity, > 0.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    ratio = _ratio(*broadcast(dt=positive("dt", dt), **_grid(dx, kappa)))
    slow, fast = _extreme_modes(points)
    return np.maximum(np.abs(1 - 4 * ratio * slow), np.abs(1 - 4 * ratio * fast))


def _grid(dx: ArrayLike, kappa: ArrayLike) -> dict[str, Array]:
    return {"dx": positive("dx", dx), "kappa": positive("kappa", kappa)}


def _ratio(step: Array, space: Array, speed: Array) -> Array:
    return speed * step / space**2


def _extreme_modes(points: int) -> tuple[float, float]:
    """sin^2 of the first and the last mode's half frequency."""
    gaps = step_count("points", points, 3) - 1
    first, last = np.sin(np.array([1, gaps - 1]) * np.pi / (2 * gaps)) ** 2
    return float(first), float(last)
