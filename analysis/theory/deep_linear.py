"""Step sizes for deep linear networks (Nar and Sastry 2018, "Step size matters", sections 2-3).

The network is W_L ... W_1 x, the loss 1/(2 N) sum_i ||R x_i - W_L ... W_1 x_i||^2 with inputs of
(1/N) sum_i x_i x_i^T = I, so that up to a constant the loss is ||W_L ... W_1 - R||_F^2 / 2. Every
bound below holds for this scaling; a loss c times as large needs c times smaller learning rates.

`weights` is always the sequence W_1, ..., W_L; W_j has shape (..., n_j, n_(j-1)), where the leading
axes, if any, number separate networks and broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.theory.arguments import (
    broadcast,
    checked,
    finite,
    layers,
    leading_axes,
    not_negative,
    plain_numbers,
    positive,
    sequence,
    step_count,
    symmetric,
)
from trainables.domain import InputError, Mistake

Array = NDArray[np.float64]


# --------------------------------------------------------------------------- theorem 1


@plain_numbers
def solution_lr_bound(weights: Sequence[ArrayLike]) -> Array:
    """Largest learning rate at which gradient descent can converge to a given solution.

    2 / sum_j p_(j-1)^2 q_(j+1)^2 with p_j = ||W_j ... W_1 v||, q_j = ||u^T W_L ... W_j||,
    p_0 = q_(L+1) = 1 and (u, v) the top singular vectors of W_L ... W_1 (theorem 1). From a random
    start, a larger learning rate converges there with probability 0; a smaller one need not
    converge. It is an upper estimate of 2 / `solution_sharpness`, equal to it for the layers
    c_j S^(a_j) with one symmetric positive semidefinite S and a_j >= 0, and it shrinks without
    limit when one layer is scaled up and another down.

    The paper's proof linearises around W_L ... W_1 = R, where the fit is exact.

    Args:
        weights: W_1, ..., W_L of the solution.

    Returns:
        The bound, in the shape of the leading axes; infinity where the denominator is 0.

    Raises:
        InputError: if a shape does not fit its neighbour's or a weight is not finite.
    """
    chain = _chain(weights)
    left, right = _partial_products(chain)
    u, _, vt = np.linalg.svd(chain[-1] @ right[-1], full_matrices=False)
    first, last = u[..., :1], vt[..., :1, :]
    total = sum(
        _square(np.swapaxes(first, -1, -2) @ after) * _square(before @ np.swapaxes(last, -1, -2))
        for after, before in zip(left, right, strict=True)
    )
    with np.errstate(divide="ignore"):
        return 2 / np.asarray(total, dtype=np.float64)


@plain_numbers
def solution_sharpness(weights: Sequence[ArrayLike]) -> Array:
    """Largest Hessian eigenvalue of the loss at a solution that fits exactly.

    It is the largest eigenvalue of E -> sum_j A_j E B_j with A_j = (W_L ... W_(j+1)) (...)^T and
    B_j = (W_(j-1) ... W_1)^T (...), which moves the error W_L ... W_1 - R (proof of theorem 1).
    Where the fit is not exact the Hessian has further terms, which this leaves out.

    Args:
        weights: W_1, ..., W_L of the solution. The operator is built as a square matrix with
            n_L n_0 rows.

    Returns:
        The eigenvalue, in the shape of the leading axes; 2 divided by it is the exact boundary.

    Raises:
        InputError: if a shape does not fit its neighbour's or a weight is not finite.
    """
    chain = _chain(weights)
    size = chain[-1].shape[-2] * chain[0].shape[-1]
    operator = np.zeros(())
    for after, before in zip(*_partial_products(chain), strict=True):
        a = after @ np.swapaxes(after, -1, -2)
        b = np.swapaxes(before, -1, -2) @ before
        product = np.einsum("...ij,...kl->...ikjl", a, b)
        operator = operator + product.reshape(*product.shape[:-4], size, size)
    return np.asarray(np.linalg.eigvalsh(operator)[..., -1])


# --------------------------------------------------------------------------- corollaries


@plain_numbers
def deep_linear_lr_bound(rho: ArrayLike, depth: ArrayLike) -> Array:
    """Largest learning rate at which any solution for a target can be stable.

    2 / (depth rho^(2 (depth - 1) / depth)) (corollary 1). The balanced solution, R^(1/depth) in
    every layer for a symmetric positive semidefinite R, attains it: this is the exact limit of
    its local stability, twice what theorem 2 (`identity_start_lr_bound`) guarantees for
    rho >= 1. Measured for rho >= 1 and depth 1 to 30: from the identity, gradient descent
    converges at 1.99 and not at 2.01 in place of the 2. For rho < 1 the start lies far from the
    solution and a learning rate below this bound can diverge.

    Args:
        rho: largest singular value of the target R, >= 0.
        depth: number of layers, >= 1; broadcasts with `rho`.

    Raises:
        InputError: if an argument is out of its domain or the shapes do not broadcast.
    """
    rho, depth = broadcast(rho=not_negative("rho", rho), depth=layers("depth", depth))
    with np.errstate(divide="ignore"):
        bound: Array = 2 / (depth * rho ** (2 * (depth - 1) / depth))
    return bound


@plain_numbers
def largest_singular_value_bound(lr: ArrayLike, depth: ArrayLike) -> Array:
    """Largest singular value that an estimate can have once gradient descent has converged.

    (2 / (depth lr))^(depth / (2 depth - 2)) (corollary 2): the inverse of `deep_linear_lr_bound`.

    Args:
        lr: learning rate, > 0.
        depth: number of layers, >= 2, since one layer gives no such bound; broadcasts with `lr`.

    Raises:
        InputError: if an argument is out of its domain or the shapes do not broadcast.
    """
    lr, depth = broadcast(lr=positive("lr", lr), depth=layers("depth", depth, 2))
    bound: Array = (2 / (depth * lr)) ** (depth / (2 * depth - 2))
    return bound


# --------------------------------------------------------------------------- theorems 2 and 3


@plain_numbers
def identity_start_lr_bound(rho: ArrayLike, depth: ArrayLike) -> Array:
    """Learning rate up to which descent from identity layers converges, for a symmetric target R.

    min(1 / depth, 1 / (depth rho^(2 (depth - 1) / depth))): theorem 2 for R without negative
    eigenvalues, theorem 3 for others. Theorem 3 also asks for lr <= 1 / (1 - lowest eigenvalue),
    which follows: the lowest is not below -rho, and depth is at least 2. The bound is sufficient,
    not necessary: see `deep_linear_lr_bound` for the boundary itself.

    The limit is `nearest_psd` of R. Three things that the paper leaves out:

    - A zero eigenvalue of R (depth >= 2), or a negative one (depth >= 3), is approached slower
      than any geometric sequence, so "with a linear rate" in theorem 2 needs R positive definite.
    - Theorem 3 needs depth >= 2: one layer converges to R itself.
    - The limit of theorem 3 is a saddle. It is reached in exact arithmetic, and in floating point
      only while all layers stay equal to the bit, as for two layers and a diagonal R if both
      updates round alike. With R in a rotated basis the layers differ by rounding, the
      differences grow (for two layers by the factor 1 + lr |eigenvalue| a step), and after a few
      hundred steps the iterate leaves for R itself.

    Args:
        rho: largest singular value of R, >= 0.
        depth: number of layers, >= 1; broadcasts with `rho`.

    Raises:
        InputError: if an argument is out of its domain or the shapes do not broadcast.
    """
    rho, depth = broadcast(rho=not_negative("rho", rho), depth=layers("depth", depth))
    # rho below 1 would give a bound above 1 / depth.
    bound: Array = 1 / (depth * np.maximum(rho, 1) ** (2 * (depth - 1) / depth))
    return bound


def nearest_psd(target: ArrayLike) -> Array:
    """Closest positive semidefinite matrix in Frobenius norm: negative eigenvalues become 0.

    What descent from identity layers converges to in exact arithmetic (theorem 3).

    Args:
        target: symmetric matrices of shape (..., n, n).

    Raises:
        InputError: if `target` is not symmetric or not finite.
    """
    values, basis = np.linalg.eigh(symmetric("target", target))
    return np.asarray((basis * np.maximum(values, 0)[..., None, :]) @ np.swapaxes(basis, -1, -2))


# --------------------------------------------------------------------------- gradient descent


def deep_linear_descent(
    weights: Sequence[ArrayLike], target: ArrayLike, lr: ArrayLike, steps: int
) -> list[Array]:
    """Gradient descent on ||W_L ... W_1 - R||_F^2 / 2, all layers at once.

    Args:
        weights: W_1, ..., W_L at the start.
        target: R, of shape (..., n_L, n_0).
        lr: learning rate, > 0, of the shape of the leading axes, which all broadcast.
        steps: number of steps, >= 0.

    Returns:
        The layers after the last step. A run that overflows ends in infinities and NaN.

    Raises:
        InputError: if an argument is out of its domain or the shapes do not fit.
    """
    chain = _chain(weights)
    target = finite("target", target)
    rate = positive("lr", lr)[..., None, None]
    shape = (chain[-1].shape[-2], chain[0].shape[-1])
    if target.shape[-2:] != shape:
        law = f"must end in the shape {shape} of W_L ... W_1"
        raise InputError([Mistake("target.shape", target.shape, law, "check the axes")])
    leading_axes(
        {
            "weights": np.broadcast_shapes(*(w.shape[:-2] for w in chain)),
            "target": target.shape[:-2],
            "lr": rate.shape[:-2],
        }
    )
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(step_count("steps", steps)):
            left, right = _partial_products(chain)
            error = chain[-1] @ right[-1] - target
            gradients = [
                np.swapaxes(after, -1, -2) @ error @ np.swapaxes(before, -1, -2)
                for after, before in zip(left, right, strict=True)
            ]
            # The rate comes last so that equal gradients give equal layers to the bit.
            chain = [w - rate * g for w, g in zip(chain, gradients, strict=True)]
    return chain


def identity_layers(size: int, depth: int) -> list[Array]:
    """`depth` identity matrices with `size` rows: the start of theorems 2 and 3.

    Raises:
        InputError: if a number is not whole or below 1.
    """
    rows = step_count("size", size, 1)
    return [np.eye(rows) for _ in range(step_count("depth", depth, 1))]


def network_product(weights: Sequence[ArrayLike]) -> Array:
    """The linear map W_L ... W_1 of a network, of shape (..., n_L, n_0).

    Raises:
        InputError: if a shape does not fit its neighbour's or a weight is not finite.
    """
    chain = _chain(weights)
    return np.asarray(chain[-1] @ _partial_products(chain)[1][-1])


def balanced_layers(target: ArrayLike, depth: int) -> list[Array]:
    """The solution R^(1/depth) in every layer, to which theorem 2 leads.

    Args:
        target: R, symmetric positive semidefinite, of shape (..., n, n).
        depth: number of layers, >= 1.

    Raises:
        InputError: if `target` is not symmetric or has a negative eigenvalue.
    """
    values, basis = np.linalg.eigh(symmetric("target", target))
    noise = 1e-12 * np.abs(values).max(axis=-1, keepdims=True)
    law = "every eigenvalue must be >= 0"
    checked("target", values, lambda a: a >= -noise, law, "use nearest_psd(target)")
    layer_count = step_count("depth", depth, 1)
    roots = np.maximum(values, 0) ** (1 / layer_count)
    layer = (basis * roots[..., None, :]) @ np.swapaxes(basis, -1, -2)
    return [layer.copy() for _ in range(layer_count)]


def _chain(weights: Sequence[ArrayLike]) -> list[Array]:
    chain = [finite(f"weights[{j}]", w) for j, w in enumerate(sequence("weights", weights))]
    if not chain:
        law = "a network needs at least one layer"
        raise InputError([Mistake("weights", [], law, "give W_1, ..., W_L")])
    for j, w in enumerate(chain):
        if w.ndim < 2 or w.size == 0:
            law = "must be matrices of shape (..., rows, columns)"
            raise InputError([Mistake(f"weights[{j}].shape", w.shape, law, "check the axes")])
        if j and w.shape[-1] != chain[j - 1].shape[-2]:
            law = f"needs {chain[j - 1].shape[-2]} columns, the rows of the layer before"
            remedy = "list the layers from input to output"
            raise InputError([Mistake(f"weights[{j}].shape", w.shape, law, remedy)])
    leading_axes({f"weights[{j}]": w.shape[:-2] for j, w in enumerate(chain)})
    return chain


def _partial_products(chain: list[Array]) -> tuple[list[Array], list[Array]]:
    """W_L ... W_(j+1) and W_(j-1) ... W_1 for j = 1, ..., L."""
    right = [np.eye(chain[0].shape[-1])]
    for w in chain[:-1]:
        right.append(w @ right[-1])
    left = [np.eye(chain[-1].shape[-2])]
    for w in chain[:0:-1]:
        left.append(left[-1] @ w)
    return left[::-1], right


def _square(vector: Array) -> Array:
    """Squared length of a row or column."""
    return np.asarray((vector**2).sum(axis=(-2, -1)))
