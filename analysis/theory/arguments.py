"""Arguments of the theory's functions as arrays, each checked against its domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainables.domain import InputError, Mistake

Array = NDArray[np.float64]


def checked(
    field: str, value: Any, holds: Callable[[Array], NDArray[np.bool_]], law: str, remedy: str
) -> Array:
    """`value` as an array of finite floats that obeys a law.

    Raises:
        InputError: if it is not real and finite or breaks the law; names the first that does.
    """
    real = Mistake(field, value, "must be real numbers", "give a number or an array of them")
    try:
        if np.iscomplexobj(value):
            raise InputError([real])
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError([real]) from error
    good = np.isfinite(array) & holds(np.where(np.isfinite(array), array, 1.0))
    if not good.all():
        raise InputError([Mistake(field, float(array[~good].flat[0]), law, remedy)])
    return array


def finite(field: str, value: Any) -> Array:
    """`value` as an array of finite floats; InputError where it is not."""
    return checked(field, value, np.isfinite, "must be finite", "replace NaN and infinity")


def positive(field: str, value: Any) -> Array:
    """`value` as an array of finite floats > 0; InputError where it is not."""
    return checked(
        field, value, lambda a: a > 0, "must be finite and > 0", "choose a positive number"
    )


def not_negative(field: str, value: Any) -> Array:
    """`value` as an array of finite floats >= 0; InputError where it is not."""
    return checked(
        field, value, lambda a: a >= 0, "must be finite and >= 0", "choose 0 or a positive number"
    )


def layers(field: str, value: Any, least: int = 1) -> Array:
    """`value` as an array of whole numbers >= `least`; InputError where it is not."""
    return checked(
        field,
        value,
        lambda a: (a >= least) & (a % 1 == 0),
        f"must be a whole number >= {least}",
        "give the number of layers",
    )


def step_count(field: str, value: Any, least: int = 0) -> int:
    """`value` if it is one whole number >= `least`; InputError if not."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        law = f"must be one whole number >= {least}"
        raise InputError([Mistake(field, value, law, "choose such a number")])
    return int(value)


def broadcast(**arrays: Array) -> tuple[Array, ...]:
    """The arrays in their common shape; InputError, with the shapes, if there is none."""
    try:
        return tuple(np.broadcast_arrays(*arrays.values()))
    except ValueError as error:
        shapes = {name: array.shape for name, array in arrays.items()}
        mistake = Mistake(
            ", ".join(arrays), shapes, "shapes must broadcast", "add axes of length 1 where needed"
        )
        raise InputError([mistake]) from error


def symmetric(field: str, value: ArrayLike) -> Array:
    """`value` as symmetric matrices of shape (..., n, n); InputError if it is none."""
    matrix = finite(field, value)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.size == 0:
        law = "must be square matrices of shape (..., n, n)"
        raise InputError([Mistake(f"{field}.shape", matrix.shape, law, "check the axes")])
    scale = np.abs(matrix).max(axis=(-2, -1))
    asymmetry = np.abs(matrix - np.swapaxes(matrix, -1, -2)).max(axis=(-2, -1))
    if (asymmetry > 1e-10 * scale).any():
        law = "must be 0: the matrix must equal its transpose"
        remedy = "the theorem holds for symmetric matrices only"
        raise InputError([Mistake(f"{field} - {field}^T", float(asymmetry.max()), law, remedy)])
    return matrix
