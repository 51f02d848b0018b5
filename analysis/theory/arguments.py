"""What goes into the theory's functions, as arrays checked against their domain; what comes out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from numbers import Real
from typing import Any, ParamSpec

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainables.domain import InputError, Mistake

Array = NDArray[np.float64]
_Given = ParamSpec("_Given")


# --------------------------------------------------------------------------- results


def number(value: Any) -> Any:
    """A Python number (or string) in place of an array without axes; all else as it is."""
    return value.item() if isinstance(value, np.generic | np.ndarray) and not value.ndim else value


def plain_numbers(function: Callable[_Given, Any]) -> Callable[_Given, Any]:
    """The function with a float in place of each array without axes that it returns.

    This is the one rule for all results: numbers for numbers, arrays for arrays.
    """

    @functools.wraps(function)
    def with_floats(*args: _Given.args, **kwargs: _Given.kwargs) -> Any:
        found = function(*args, **kwargs)
        return tuple(map(number, found)) if isinstance(found, tuple) else number(found)

    return with_floats


# --------------------------------------------------------------------------- arguments


def real(field: str, value: Any) -> Array:
    """`value` as an array of floats, NaN and infinity included; tensors are detached.

    Raises:
        InputError: if it is not made of real numbers.
    """
    try:
        array = np.asarray(_detached(value))
    except (TypeError, ValueError, RuntimeError):
        array = np.array(None)
    if array.dtype.kind == "O" and all(isinstance(entry, Real) for entry in array.flat):
        array = array.astype(np.float64)  # whole numbers beyond 64 bits, fractions
    if array.dtype.kind not in "biuf":
        remedy = "give a number or an array of them"
        raise InputError([Mistake(field, value, "must be real numbers", remedy)])
    return array.astype(np.float64, copy=False)


def _detached(value: Any) -> Any:
    """A torch tensor, alone or in lists, without its gradient and on the processor."""
    if isinstance(value, list | tuple):
        return [_detached(entry) for entry in value]
    if not hasattr(value, "detach"):
        return value
    values = value.detach().cpu()
    return (values.double() if values.is_floating_point() else values).numpy()


def checked(
    field: str, value: Any, holds: Callable[[Array], NDArray[np.bool_]], law: str, remedy: str
) -> Array:
    """`value` as an array of finite floats that obeys a law.

    Raises:
        InputError: if it is not real and finite or breaks the law; names the first that does.
    """
    array = real(field, value)
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


def one(field: str, array: Array) -> float:
    """The number in an array without axes; InputError where there are axes."""
    if array.ndim:
        law = "must be one number"
        raise InputError([Mistake(f"{field}.shape", array.shape, law, "call it for each number")])
    return float(array)


def sequence(field: str, value: Any) -> list[Any]:
    """The members of a list, or of the first axis of an array; InputError where it is neither."""
    if isinstance(value, list | tuple) or bool(getattr(value, "shape", ())):
        return list(value)
    law = "must be a list"
    raise InputError([Mistake(field, value, law, "put the arrays between brackets")])


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


def leading_axes(shapes: dict[str, tuple[int, ...]]) -> None:
    """InputError, with the arguments' names, where these leading axes do not broadcast."""
    try:
        np.broadcast_shapes(*shapes.values())
    except ValueError as error:
        law = "leading axes must broadcast"
        remedy = "add axes of length 1 where needed"
        raise InputError([Mistake(", ".join(shapes), shapes, law, remedy)]) from error


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
