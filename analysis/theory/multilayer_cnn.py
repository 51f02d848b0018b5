"""What the layers after the first multiply its gain by (Sun et al. 2024, multi-layer networks)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.theory.arguments import finite, plain_numbers, sequence, step_count
from analysis.theory.images import power_spectrum
from trainables.domain import InputError, Mistake

Array = NDArray[np.float64]


@plain_numbers
def multilayer_gain_as_printed(kernels: Sequence[ArrayLike], slopes: ArrayLike = 0.5) -> Array:
    """The paper's gamma: product over the later layers of slope times sum of the kernel.

    For layers I_{j+1} = r(K_j * I_j) and the logit sum(I_{N+1}), the paper treats layer i as the
    one-layer network with input I_i and a replaced by a gamma, gamma standing for the derivative
    of the logit by I_{i+1}, taken as constant in space and independent of K_i (after theorem 5.7).
    That derivative is the product of r' sum(K_j) over j > i. Per layer the paper has r' = 1/2
    (eq. 25) where K_i * I_i is about 0 or far below, and 1 where it is far above; the last holds
    only where sum(K_j) > 0, else r' is 0.

    The derivation is right to leading order in the later kernels. What it drops is that r' of a
    later layer depends on K_i too; `multilayer_gain` keeps it.

    Args:
        kernels: K_{i+1}, ..., K_N, two-dimensional; none gives 1.
        slopes: r' of each later layer, one number or one a layer.

    Raises:
        InputError: if a kernel is not two-dimensional or finite, or the slopes do not fit.
    """
    sums = np.array([_kernel(kernel).sum() for kernel in sequence("kernels", kernels)])
    r = finite("slopes", slopes)
    if r.shape not in ((), sums.shape):
        law = f"one number, or {len(sums)} of them"
        raise InputError([Mistake("slopes", r.shape, law, "give one for each kernel")])
    return np.asarray(np.prod(r * sums))


def multilayer_gain(kernels: Sequence[ArrayLike], shape: tuple[int, int]) -> Array:
    """Factor Gamma by which the later layers multiply the curvature of each Fourier mode.

    For periodic layers, at K_i = 0, the Hessian of the logit by K_i has exactly the eigenvalues
    beta / 2 |Ihat|^2 Gamma, with

        Gamma(w) = sum_{j=i}^N  prod_{l>j} sum(K_l) / 2  prod_{i<l<=j} |Khat_l(w)|^2 / 4.

    The first term, j = i, is the paper's gamma; for one later layer the whole is
    sum(K) / 2 + |Khat(w)|^2 / 4. Use a power spectrum times Gamma as the p of the bounds above,
    with I the input of layer i:

        p = power_spectrum(image) * multilayer_gain(kernels, image.shape)
        linear_cnn_decay_range(lr, a, p.min(), p.max())

    Args:
        kernels: K_{i+1}, ..., K_N, two-dimensional, none larger than `shape`; none gives 1.
        shape: rows and columns of the image.

    Returns:
        Gamma at the frequencies of `power_spectrum`, in the given shape.

    Raises:
        InputError: if a kernel is not two-dimensional or finite, or larger than the image.
    """
    sides = sequence("shape", shape)
    if len(sides) != 2:
        raise InputError([Mistake("shape", shape, "rows and columns", "give two numbers")])
    rows, columns = (step_count("shape", side, 1) for side in sides)
    gain = np.ones((rows, columns))
    through = np.ones((rows, columns))
    for kernel in map(_kernel, sequence("kernels", kernels)):
        if kernel.shape[0] > rows or kernel.shape[1] > columns:
            law = f"no larger than the image, {(rows, columns)}"
            raise InputError([Mistake("kernels", kernel.shape, law, "use a smaller kernel")])
        missing = _missing(kernel.shape, (rows, columns))
        through = through * power_spectrum(np.pad(kernel, missing)) / 4
        gain = gain * kernel.sum() / 2 + through
    return gain


def _kernel(kernel: ArrayLike) -> Array:
    pixels = finite("kernels", kernel)
    if pixels.ndim != 2 or 0 in pixels.shape:
        law = "each kernel has rows and columns"
        raise InputError([Mistake("kernels", pixels.shape, law, "give two-dimensional kernels")])
    return pixels


def _missing(small: tuple[int, ...], large: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(0, there - here) for here, there in zip(small, large, strict=True)]
