"""Images: power spectra, and the eigenvalues of their patches (Sun et al. 2024, section 5)."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigvalsh

from analysis.theory.arguments import broadcast, checked, finite, plain_numbers, step_count
from trainables.domain import InputError, Mistake

Array = NDArray[np.float64]


def checkerboard(size: int) -> Array:
    """(size, size) image of -1 where row + column is even and +1 elsewhere, as in the paper."""
    index = np.arange(step_count("size", size, 1))
    return np.where((index[:, None] + index) % 2 == 0, -1.0, 1.0)


def power_spectrum(image: ArrayLike) -> Array:
    """|Ihat|^2, the squared modulus of the 2-D discrete Fourier transform.

    Args:
        image: (..., height, width).

    Returns:
        The eigenvalue p of each Fourier mode, in the shape of the image.

    Raises:
        InputError: if the image is not finite or lacks an axis.
    """
    return np.asarray(np.abs(np.fft.fft2(_image(image))) ** 2)


@plain_numbers
def spectrum_extremes(image: ArrayLike) -> tuple[Array, Array]:
    """Smallest and largest p of a kernel as large as the (periodic) image: of |Ihat|^2.

    Args:
        image: (..., height, width).

    Returns:
        Two arrays in the shape of the leading axes.

    Raises:
        InputError: if the image is not finite or lacks an axis.
    """
    power = power_spectrum(image)
    return np.asarray(power.min(axis=(-2, -1))), np.asarray(power.max(axis=(-2, -1)))


def patch_gram(image: ArrayLike, width: int) -> Array:
    """X^T X, (width^2, width^2), the rows of X being the patches of one image.

    It takes patches times width^4 multiplications: well below a second for patches of 16 x 16 in
    an image of 256 x 256, about 16 times as many for 32 x 32. For a checkerboard
    `checkerboard_eigenvalue` says the same at once.

    Args:
        image: (height, columns).
        width: side of a patch, from 1 to the smaller side of the image.

    Raises:
        InputError: if the image is not finite or not two-dimensional, or `width` does not fit.
    """
    pixels = _image(image)
    if pixels.ndim != 2:
        raise InputError(
            [Mistake("image.shape", pixels.shape, "one image", "give (rows, columns)")]
        )
    side = _fitting(width, min(pixels.shape))
    gram = np.zeros((side**2, side**2))
    for row in sliding_window_view(pixels, (side, side)):
        patches = row.reshape(-1, side**2)
        gram += patches.T @ patches
    return gram


@plain_numbers
def patch_extremes(image: ArrayLike, width: int) -> tuple[Array, Array]:
    """Smallest and largest p of a kernel of width x width pixels: of the eigenvalues of X^T X.

    Arguments, cost and errors are those of `patch_gram`.
    """
    gram = patch_gram(image, width)
    values = eigvalsh(gram)
    rows, columns = _image(image).shape
    # With fewer patches than pixels X^T X is singular; rounding would leave some 1e-16 of its norm.
    singular = (rows - width + 1) * (columns - width + 1) < width**2
    return np.asarray(0.0 if singular else max(values[0], 0.0)), np.asarray(values[-1])


@plain_numbers
def checkerboard_eigenvalue(size: ArrayLike, width: ArrayLike) -> Array:
    """Largest p of a width x width kernel on a size x size checkerboard: w^2 (n - w + 1)^2.

    Exact: each of the (n - w + 1)^2 patches is +c or -c with the pattern c of squared norm w^2, so
    X^T X = (n - w + 1)^2 c c^T and all other p are 0 (there is no other for w = 1). It is largest
    near w = n / 2 and does not tend to that of `spectrum_extremes` for larger kernels, as the paper
    conjectures of its table 2: that needs positions where the kernel overhangs the image.

    Args:
        size: side n of the image, whole numbers >= 1, any shape.
        width: side w of the kernel, whole numbers from 1 to n, of a shape that broadcasts.

    Raises:
        InputError: if a number breaks its law or the shapes do not broadcast.
    """
    n, w = broadcast(size=_whole("size", size), width=_whole("width", width))
    checked("width", w, lambda a: a <= n, "must not exceed the image", "use a smaller kernel")
    return np.asarray(w**2 * (n - w + 1) ** 2)


def _image(image: ArrayLike) -> Array:
    pixels = finite("image", image)
    if pixels.ndim < 2 or 0 in pixels.shape:
        law = "its shape is (..., rows, columns)"
        raise InputError([Mistake("image.shape", pixels.shape, law, "give rows and columns")])
    return pixels


def _fitting(width: int, most: int) -> int:
    side = step_count("width", width, 1)
    if side > most:
        raise InputError([Mistake("width", width, f"at most {most}", "use a smaller kernel")])
    return side


def _whole(field: str, value: ArrayLike) -> Array:
    law = "must be whole numbers >= 1"
    return checked(field, value, lambda v: (v >= 1) & (v % 1 == 0), law, "choose such numbers")
