"""Step size and output size of two-layer ReLU networks (Nar and Sastry 2018, section 4).

The network is W g(V x - b) with g the ReLU and b fixed; the loss is factor sum_i ||W g(V x_i - b)
- f(x_i)||^2. Theorem 4 has factor 1/2, the paper's experiment has 1, a mean over N points has 1/N.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.theory.arguments import (
    broadcast,
    finite,
    leading_axes,
    one,
    plain_numbers,
    positive,
    step_count,
)
from trainables.domain import InputError, Mistake

Array = NDArray[np.float64]


@plain_numbers
def relu_output_bound(lr: ArrayLike, factor: ArrayLike = 0.5) -> Array:
    """Largest max_i ||x_i|| ||f_hat(x_i)|| of a network that gradient descent has converged to.

    1 / (2 factor lr): 1 / lr for the loss with 1/2 (theorem 4), 1 / (2 lr) without it. From a
    random start, a larger value has probability 0. It is attained by one point and one active
    unit with |W| ||x|| = g, and far from tight otherwise: in the paper's experiment the left side
    is about 3 and the bound 1667.

    The reason, for a solution that fits exactly: the Hessian's largest eigenvalue is at least
    2 factor (||g||^2 + ||x_i||^2 ||D W^T u||^2) >= 4 factor ||x_i|| ||f_hat(x_i)||, where u is the
    direction of the output and D marks the active units, and stability needs lr times it <= 2.

    Args:
        lr: learning rate, > 0.
        factor: what the sum of squared errors is multiplied with, > 0; broadcasts with `lr`.

    Raises:
        InputError: if an argument is out of its domain or the shapes do not broadcast.
    """
    lr, factor = broadcast(lr=positive("lr", lr), factor=positive("factor", factor))
    bound: Array = 1 / (2 * factor * lr)
    return bound


@plain_numbers
def relu_lr_bound(x: ArrayLike, outputs: ArrayLike, factor: ArrayLike = 0.5) -> Array:
    """Largest learning rate at which gradient descent can converge to a network's outputs.

    1 / (2 factor max_i ||x_i|| ||f_hat(x_i)||): theorem 4 read the other way.

    Args:
        x: inputs, shape (N, n).
        outputs: f_hat(x_i) of the solution, shape (..., N, m).
        factor: what the sum of squared errors is multiplied with, > 0; broadcasts with the leading
            axes of `outputs`.

    Returns:
        The bound, in the leading shape; infinity where all products are 0.

    Raises:
        InputError: if an argument is out of its domain or the shapes do not fit.
    """
    x = _inputs(x)
    outputs = finite("outputs", outputs)
    if outputs.ndim < 2 or outputs.shape[-2] != len(x):
        law = f"must end in ({len(x)}, m): one row for each input"
        raise InputError([Mistake("outputs.shape", outputs.shape, law, "check the axes")])
    sizes = np.linalg.norm(x, axis=-1) * np.linalg.norm(outputs, axis=-1)
    largest, factor = broadcast(outputs=sizes.max(axis=-1), factor=positive("factor", factor))
    with np.errstate(divide="ignore"):
        bound: Array = 1 / (2 * factor * largest)
    return bound


def relu_outputs(x: ArrayLike, w: ArrayLike, v: ArrayLike, b: ArrayLike) -> Array:
    """Outputs W g(V x_i - b) of a two-layer network.

    Args:
        x: inputs, shape (N, n).
        w: output weights, shape (..., m, r).
        v: hidden weights, shape (..., r, n).
        b: thresholds, shape (..., r).

    Returns:
        Shape (..., N, m).

    Raises:
        InputError: if an argument is not finite or the shapes do not fit.
    """
    x, w, v, b = _network(x, w, v, b)
    hidden = np.maximum(x @ np.swapaxes(v, -1, -2) - b[..., None, :], 0)
    return np.asarray(hidden @ np.swapaxes(w, -1, -2))


def relu_descent(
    x: ArrayLike,
    targets: ArrayLike,
    w: ArrayLike,
    v: ArrayLike,
    b: ArrayLike,
    lr: ArrayLike,
    steps: int,
    factor: float = 0.5,
) -> tuple[Array, Array]:
    """Gradient descent on W and V; b stays.

    Args:
        x: inputs, shape (N, n).
        targets: f(x_i), shape (..., N, m).
        w: output weights at the start, shape (..., m, r).
        v: hidden weights at the start, shape (..., r, n).
        b: thresholds, shape (..., r).
        lr: learning rate, > 0. Its shape and all leading axes broadcast.
        steps: number of steps, >= 0.
        factor: what the sum of squared errors is multiplied with, > 0.

    Returns:
        W and V after the last step. A run that overflows ends in infinities and NaN.

    Raises:
        InputError: if an argument is out of its domain or the shapes do not fit.
    """
    x, w, v, b = _network(x, w, v, b)
    targets = finite("targets", targets)
    if targets.ndim < 2 or targets.shape[-2:] != (len(x), w.shape[-2]):
        law = f"must end in ({len(x)}, {w.shape[-2]}): one row for each input"
        raise InputError([Mistake("targets.shape", targets.shape, law, "check the axes")])
    rate = positive("lr", lr)[..., None, None]
    leading_axes(
        {
            "targets": targets.shape[:-2],
            "w": w.shape[:-2],
            "v": v.shape[:-2],
            "b": b.shape[:-1],
            "lr": rate.shape[:-2],
        }
    )
    scale = 2 * one("factor", positive("factor", factor))
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(step_count("steps", steps)):
            before = x @ np.swapaxes(v, -1, -2) - b[..., None, :]
            hidden = np.maximum(before, 0)
            error = scale * (hidden @ np.swapaxes(w, -1, -2) - targets)
            back = np.where(before > 0, error @ w, 0.0)
            w, v = (
                w - rate * (np.swapaxes(error, -1, -2) @ hidden),
                v - rate * (np.swapaxes(back, -1, -2) @ x),
            )
    return w, v


def _inputs(x: ArrayLike) -> Array:
    array = finite("x", x)
    if array.ndim != 2 or array.size == 0:
        law = "must have shape (points, dimensions)"
        raise InputError([Mistake("x.shape", array.shape, law, "add an axis for one dimension")])
    return array


def _network(
    x: ArrayLike, w: ArrayLike, v: ArrayLike, b: ArrayLike
) -> tuple[Array, Array, Array, Array]:
    x, w, v, b = _inputs(x), finite("w", w), finite("v", v), finite("b", b)
    units = b.shape[-1] if b.ndim else 0
    if units == 0 or w.ndim < 2 or w.shape[-1] != units or v.shape[-2:] != (units, x.shape[1]):
        shapes = {"x": x.shape, "w": w.shape, "v": v.shape, "b": b.shape}
        law = "must be (N, n), (..., m, r), (..., r, n) and (..., r)"
        raise InputError([Mistake("x, w, v, b", shapes, law, "check the axes")])
    leading_axes({"w": w.shape[:-2], "v": v.shape[:-2], "b": b.shape[:-1]})
    return x, w, v, b
