"""Layers as matrices: the parameters of a linear or convolutional layer as m x n numbers.

A row is an input feature (the bias last), a column an output, so that a linear layer maps a row of
features to a row of outputs by multiplication from the right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.domain import InputError, Mistake, nearest

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def weight_first(layer: nn.Module) -> list[nn.Parameter]:
    """Parameters of a layer, the weight before the bias; a parametrised layer lists them last."""
    return sorted(layer.parameters(), key=lambda parameter: parameter.ndim < 2)


def as_matrix(tensors: Sequence[Tensor]) -> Tensor:
    """Weight (out, in, ...) and optional bias (out,) of a layer as the m x n matrix theta."""
    rows = [tensors[0].reshape(tensors[0].shape[0], -1).T]
    rows += [bias.reshape(1, -1) for bias in tensors[1:]]
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def from_matrix(matrix: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Inverse of `as_matrix`."""
    weight = like[0]
    features = weight.numel() // weight.shape[0]
    parts = [matrix[:features].T.reshape(weight.shape)]
    parts += [matrix[features].reshape(bias.shape) for bias in like[1:]]
    return tuple(parts)


def features_of(layer: nn.Module, inputs: Tensor) -> Tensor | None:
    """What the rows of the layer's matrix are multiplied with, (rows, m without the bias).

    For a linear layer its inputs; for a convolution the patches under the kernel, one row a
    sample and position. Differentiable.

    Returns:
        None for layers other than linear ones and plain two-dimensional convolutions.
    """
    if isinstance(layer, nn.Linear):
        return inputs.reshape(-1, inputs.shape[-1])
    plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
    if not plain or not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str):
        return None
    patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def by_feature_row(outputs: Tensor, layer: nn.Module) -> Tensor:
    """Something shaped like the layer's output as (rows, n), in the order of `features_of`."""
    if isinstance(layer, CONVOLUTIONS):
        return outputs.flatten(2).transpose(1, 2).reshape(-1, outputs.shape[1])
    return outputs.reshape(-1, outputs.shape[-1])


def named_layers(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    """Layers of these kinds by name, in the order of the network."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, kinds)}


def layer_mistakes(
    field: str, names: Sequence[str], module: nn.Module, kinds: tuple[type[nn.Module], ...]
) -> list[Mistake]:
    """A mistake for every name that is no layer of these kinds."""
    known = named_layers(module, kinds)
    wanted = "/".join(kind.__name__ for kind in kinds)
    mistakes = []
    for name in names:
        if name in known:
            continue
        guess = nearest(name, list(known))
        meant = f"did you mean {guess}? " if guess else ""
        mistakes.append(
            Mistake(
                field,
                name,
                f"the network has no {wanted} layer of this name",
                f"{meant}it has: {', '.join(known) or 'none'}",
            )
        )
    return mistakes


#: Matrices with a norm below this have no direction; its square is just a normal double.
SMALLEST_NORM = 1e-150


def top_singular_pair(matrix: Tensor) -> tuple[float, Tensor]:
    """||S||_2 and p q^T with (p, q) the top singular pair; without a graph.

    From the Gram matrix of the smaller side. At S = 0 the norm has no derivative, and p q^T is 0
    there, not an arbitrary direction.

    Args:
        matrix: two-dimensional, m, n >= 1.

    Returns:
        A number and an m x n matrix; NaN where the matrix is not finite.

    Raises:
        InputError: the tensor has another number of dimensions, or no entries.
    """
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise InputError(
            [Mistake("matrix", tuple(matrix.shape), "m x n with m, n >= 1", "reshape it")]
        )
    fixed = matrix.detach()
    # In float64: squares of very small or large entries would leave the range of float32.
    size = float(torch.linalg.vector_norm(fixed, dtype=torch.float64))
    if not math.isfinite(size):
        return math.nan, fixed * math.nan
    if size < SMALLEST_NORM:
        return size, torch.zeros_like(fixed)
    # 1 / size must lie in the dtype's range too.
    narrow = torch.float32 if fixed.dtype == torch.bfloat16 else fixed.dtype
    scaled = fixed.to(narrow if 1e-30 < size < 1e30 else torch.float64) * (1 / size)
    if 1 in fixed.shape:
        return size, scaled.to(fixed.dtype)
    tall = scaled if scaled.shape[0] >= scaled.shape[1] else scaled.T
    q = torch.linalg.eigh(tall.T @ tall).eigenvectors[:, -1]
    image = tall @ q
    norm = float(torch.linalg.vector_norm(image))
    direction = torch.outer(image / norm, q).to(fixed.dtype)
    return norm * size, direction if tall is scaled else direction.T


def largest_singular_value(matrix: Tensor) -> Tensor:
    """||S||_2 of an m x n matrix, differentiable with gradient p q^T (`top_singular_pair`).

    Raises:
        InputError: the tensor has another number of dimensions, or no entries.
    """
    value: Tensor = (top_singular_pair(matrix)[1] * matrix).sum()
    return value
