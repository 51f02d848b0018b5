"""Step sizes for products that start at the identity (Nar and Sastry 2018, "Residual networks").

A linear residual network starts with every layer at the identity. Where all layers and the
symmetric target share an eigenbasis, gradient descent on ||W_L ... W_1 - R||_F^2 / 2 falls apart
into one scalar problem for each eigenvalue of R: minimise (w_L ... w_1 - eigenvalue)^2 / 2.

The paper asks only that the matrices be diagonalisable in a common basis and states its bounds
with the spectral radius. That is not enough: the gradient contains transposes, which leave the
basis unless it is orthonormal. For R = [[1, 3], [0, 1/2]] and two layers the spectral radius is 1,
which would allow lr = 1/2, while no solution is stable above 0.313 (`deep_linear_lr_bound` with the
largest singular value). So the matrix functions here take symmetric matrices only, whose spectral
radius is their largest singular value.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.theory.arguments import (
    broadcast,
    finite,
    layers,
    leading_axes,
    plain_numbers,
    positive,
    step_count,
    symmetric,
)
from trainables.domain import InputError, Mistake

Array = NDArray[np.float64]


@plain_numbers
def scalar_solution_lr_bound(weights: ArrayLike) -> Array:
    """Learning rate below which a solution w_1 ... w_L = eigenvalue is stable, above it not.

    2 / sum_i (eigenvalue / w_i)^2 (proposition 1). It is largest where all |w_i| are equal, and
    is `deep_linear_lr_bound` there. For L >= 2 the solutions form a surface, so "asymptotically
    stable" holds for the product only: the weights come to rest at a solution nearby.

    Args:
        weights: w_1, ..., w_L in the last axis; the eigenvalue is their product.

    Returns:
        The bound, in the shape of the leading axes; infinity where two weights are 0.

    Raises:
        InputError: if `weights` has no axis or is not finite.
    """
    w = _axis_of_weights(weights)
    with np.errstate(divide="ignore"):
        bound: Array = 2 / (_products_of_others(w) ** 2).sum(axis=-1)
    return bound


@plain_numbers
def identity_limit(eigenvalue: ArrayLike, depth: ArrayLike) -> Array:
    """What each of `depth` equal factors that start at 1 converges to.

    eigenvalue^(1/depth) if positive. A negative one cannot be reached by two or more factors:
    they go to 0, the nearest value with a product that is not negative (theorem 3). A single
    factor reaches every eigenvalue.

    Args:
        eigenvalue: of the target, finite.
        depth: number of layers, >= 1; broadcasts with `eigenvalue`.

    Raises:
        InputError: if an argument is out of its domain or the shapes do not broadcast.
    """
    lam, depth = _problem(eigenvalue, depth)
    return np.where(depth == 1, lam, np.maximum(lam, 0) ** (1 / depth))


@plain_numbers
def identity_lr_bound(eigenvalue: ArrayLike, depth: ArrayLike) -> Array:
    """Learning rate up to which factors that start at 1 approach their limit without overshoot.

    With a = eigenvalue^(1/depth): 1 / (depth a^(2 (depth - 1))) if eigenvalue >= 1,
    (1 - a) / (1 - eigenvalue) if it lies in (0, 1) (proposition 2), 1 / (1 - eigenvalue) if it is
    negative (theorem 3 of "Step size matters"), and 1 for a single factor. A bound for all
    eigenvalues of a matrix is their minimum.

    Args:
        eigenvalue: of the target, finite.
        depth: number of layers, >= 1; broadcasts with `eigenvalue`.

    Raises:
        InputError: if an argument is out of its domain or the shapes do not broadcast.
    """
    return _lr_bound(*_problem(eigenvalue, depth))


def _lr_bound(lam: Array, depth: Array) -> Array:
    large = np.maximum(lam, 1)
    steep = 1 / (depth * large ** (2 * (depth - 1) / depth))
    # (1 - a) / (1 - a^depth) is the inverse of 1 + a + ... + a^(depth - 1): no 0 / 0 near 1.
    gentle = 1 / _slope_from_one(np.clip(lam, 0, 1), depth)
    falling = 1 / (1 - np.minimum(lam, 0))
    bound = np.where(lam >= 1, steep, np.where(lam > 0, gentle, falling))
    return np.where(depth == 1, 1.0, bound)


@plain_numbers
def identity_rate(eigenvalue: ArrayLike, lr: ArrayLike, depth: ArrayLike) -> Array:
    """Factor beta of the guarantee |w[k] - limit| <= beta^k |1 - limit| for factors from 1.

    1 - lr (eigenvalue - 1) / (eigenvalue^(1/depth) - 1) for eigenvalue > 1 and
    1 - lr depth eigenvalue^(2 (depth - 1) / depth) for eigenvalue in (0, 1] (proposition 2). For
    other eigenvalues, derived here: 1 - lr |eigenvalue| for two factors and a negative eigenvalue,
    1 - lr for a single factor, and otherwise 1, because the approach to 0 is slower than any
    geometric sequence: of order (lr k)^(-1 / (2 depth - 2)) at eigenvalue 0.

    Args:
        eigenvalue: of the target, finite.
        lr: learning rate, > 0 and at most `identity_lr_bound`, above which nothing is guaranteed.
        depth: number of layers, >= 1. All three broadcast.

    Raises:
        InputError: if an argument is out of its domain or the shapes do not broadcast.
    """
    lam, lr, depth = broadcast(
        eigenvalue=finite("eigenvalue", eigenvalue),
        lr=positive("lr", lr),
        depth=layers("depth", depth),
    )
    largest = _lr_bound(lam, depth)
    if (lr > largest * (1 + 1e-12)).any():
        worst = float(lr[lr > largest * (1 + 1e-12)].flat[0])
        law = "no rate is guaranteed above identity_lr_bound(eigenvalue, depth)"
        raise InputError([Mistake("lr", worst, law, "use a smaller learning rate")])
    above = _slope_from_one(np.maximum(lam, 1), depth)
    below = depth * np.clip(lam, 0, 1) ** (2 * (depth - 1) / depth)
    negative = np.where(depth == 2, np.maximum(-lam, 0), 0.0)
    slope = np.where(lam > 1, above, np.where(lam > 0, below, negative))
    # At the largest lr rounding may take the factor below 0, and its powers with it.
    return np.maximum(1 - lr * np.where(depth == 1, 1.0, slope), 0.0)


def identity_path(eigenvalue: ArrayLike, lr: ArrayLike, depth: ArrayLike, steps: int) -> Array:
    """Gradient descent with `depth` equal factors that start at 1.

    w <- w - lr w^(depth - 1) (w^depth - eigenvalue); the factors stay equal.

    Args:
        eigenvalue: of the target, finite.
        lr: learning rate, > 0.
        depth: number of layers, >= 1. All three broadcast.
        steps: number of steps, >= 0.

    Returns:
        The factor before each step and at the end, in a new first axis of length steps + 1. A run
        that overflows ends in infinities and NaN.

    Raises:
        InputError: if an argument is out of its domain or the shapes do not broadcast.
    """
    lam, lr, depth = broadcast(
        eigenvalue=finite("eigenvalue", eigenvalue),
        lr=positive("lr", lr),
        depth=layers("depth", depth),
    )
    path = np.empty((step_count("steps", steps) + 1, *lam.shape))
    path[0] = 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(steps):
            w = path[k]
            path[k + 1] = w - lr * w ** (depth - 1) * (w**depth - lam)
    return path


def product_path(weights: ArrayLike, eigenvalue: ArrayLike, lr: ArrayLike, steps: int) -> Array:
    """Gradient descent on (w_L ... w_1 - eigenvalue)^2 / 2 from any weights.

    Args:
        weights: w_1, ..., w_L in the last axis.
        eigenvalue: finite.
        lr: learning rate, > 0; broadcasts with `eigenvalue` and the leading axes of `weights`.
        steps: number of steps, >= 0.

    Returns:
        The weights before each step and at the end: a new first axis of length steps + 1, the
        common shape, and L. A run that overflows ends in infinities and NaN.

    Raises:
        InputError: if an argument is out of its domain or the shapes do not broadcast.
    """
    w = _axis_of_weights(weights)
    lam, lr, _ = broadcast(
        eigenvalue=finite("eigenvalue", eigenvalue), lr=positive("lr", lr), weights=w[..., 0]
    )
    path = np.empty((step_count("steps", steps) + 1, *lam.shape, w.shape[-1]))
    path[0] = w
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(steps):
            w = path[k]
            error = w.prod(axis=-1) - lam
            path[k + 1] = w - (lr * error)[..., None] * _products_of_others(w)
    return path


def double_path(eigenvalue: ArrayLike, lr: ArrayLike, depth: ArrayLike, steps: int) -> Array:
    """Gradient descent with a difference of two products, w^depth - z^depth, both from 1.

    The linear case of the paper's pair of residual networks: it starts at 0 and reaches
    eigenvalues of either sign, the negative ones too that a single product cannot.

    Measured for 2, 3 and 5 layers: after 100 steps at a fortieth of `deep_linear_lr_bound`
    (eigenvalues below 1 counted as 1) it is closer than a single product for eigenvalues from 0.1
    to 10, except at 1, where that one starts.
    The paper also finds it stable where a single product is not. This was not seen for positive
    eigenvalues >= 1: the largest learning rates that converge agree to 1 % or are smaller, since
    the sharpness of its solution, depth (w^(2 depth - 2) + z^(2 depth - 2)), is larger.

    Args:
        eigenvalue: of the target, finite.
        lr: learning rate, > 0.
        depth: number of layers of each product, >= 1. All three broadcast.
        steps: number of steps, >= 0.

    Returns:
        w and z (last axis, length 2) before each step and at the end, in a new first axis of length
        steps + 1. A run that overflows ends in infinities and NaN.

    Raises:
        InputError: if an argument is out of its domain or the shapes do not broadcast.
    """
    lam, lr, depth = broadcast(
        eigenvalue=finite("eigenvalue", eigenvalue),
        lr=positive("lr", lr),
        depth=layers("depth", depth),
    )
    path = np.ones((step_count("steps", steps) + 1, *lam.shape, 2))
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(steps):
            w, z = path[k, ..., 0], path[k, ..., 1]
            error = w**depth - z**depth - lam
            path[k + 1, ..., 0] = w - lr * w ** (depth - 1) * error
            path[k + 1, ..., 1] = z + lr * z ** (depth - 1) * error
    return path


def common_eigenvalues(matrices: ArrayLike) -> Array:
    """Eigenvalues of symmetric matrices in one orthonormal basis common to all.

    With the layers and the target as `matrices`, each row of the result is the scalar problem
    that `product_path` solves: deep linear descent acts on each row by itself.

    Args:
        matrices: shape (number, n, n).

    Returns:
        Shape (n, number): row i has the eigenvalues that belong to the i-th common eigenvector.

    Raises:
        InputError: if a matrix is not symmetric or there is no common eigenbasis.
    """
    stack = symmetric("matrices", matrices)
    if stack.ndim != 3:
        law = "must be one stack of shape (number, n, n)"
        raise InputError([Mistake("matrices.shape", stack.shape, law, "check the axes")])
    scale = np.maximum(np.abs(stack).max(axis=(1, 2), keepdims=True), np.finfo(float).tiny)
    # A generic combination separates all common eigenvectors that any of the matrices separates.
    share = np.cos(np.arange(1, len(stack) + 1))[:, None, None]
    _, basis = np.linalg.eigh((share * stack / scale).sum(axis=0))
    turned = basis.T @ stack @ basis
    values = np.diagonal(turned, axis1=1, axis2=2)
    rest = np.abs(turned - values[:, None, :] * np.eye(stack.shape[-1])) / scale
    if rest.max() > 1e-8:
        law = "must have a common eigenbasis"
        remedy = "matrices that commute have one; layers that start at the identity keep it"
        raise InputError([Mistake("matrices", f"{rest.max():.3g} off the diagonal", law, remedy)])
    return np.asarray(values.T)


@plain_numbers
def residual_lr_bound(target: ArrayLike, depth: ArrayLike) -> Array:
    """Learning rate up to which descent from identity layers converges, for a symmetric target.

    The minimum of `identity_lr_bound` over the eigenvalues. It is never below
    `identity_start_lr_bound` and above it where all eigenvalues lie below 1. The matrix version
    in the paper, with the spectral radius, is the case rho >= 1; see the head of this file for why
    it must not be used on matrices that are not symmetric, and `identity_start_lr_bound` for what
    rounding does where eigenvalues are negative.

    Args:
        target: R, symmetric, of shape (..., n, n).
        depth: number of layers, >= 1; broadcasts with the leading axes of `target`.

    Raises:
        InputError: if `target` is not symmetric or the shapes do not broadcast.
    """
    values = np.asarray(np.linalg.eigvalsh(symmetric("target", target)), dtype=np.float64)
    counts = layers("depth", depth)
    leading_axes({"target": values.shape[:-1], "depth": counts.shape})
    return np.asarray(_lr_bound(values, counts[..., None]).min(axis=-1))


def _problem(eigenvalue: ArrayLike, depth: ArrayLike) -> tuple[Array, Array]:
    lam, depth = broadcast(
        eigenvalue=finite("eigenvalue", eigenvalue), depth=layers("depth", depth)
    )
    return lam, depth


def _slope_from_one(lam: Array, depth: Array) -> Array:
    """(lam - 1) / (lam^(1/depth) - 1) for lam >= 0 but 1, without cancellation beside it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log = np.log(lam)
        slope: Array = np.expm1(log) / np.expm1(log / depth)
    return slope


def _axis_of_weights(weights: ArrayLike) -> Array:
    w = finite("weights", weights)
    if w.ndim < 1 or w.shape[-1] == 0:
        law = "needs w_1, ..., w_L in its last axis"
        raise InputError([Mistake("weights.shape", w.shape, law, "give a list of factors")])
    return w


def _products_of_others(w: Array) -> Array:
    """For each weight the product of all others: eigenvalue / w_i, also where w_i is 0."""
    ones = np.ones_like(w[..., :1])
    before = np.concatenate([ones, w[..., :-1]], axis=-1).cumprod(axis=-1)
    after = np.concatenate([ones, w[..., :0:-1]], axis=-1).cumprod(axis=-1)[..., ::-1]
    product: Array = before * after
    return product
