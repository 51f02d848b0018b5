"""RelL1, the relative distance between two trainings (Sun et al. 2024, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rel_l1(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """RelL1 = (2 / N) sum_i |x_i - y_i| / (|x_i| + |y_i|), evaluated in float64.

    0 means equal, 2 means that every entry differs in sign or is zero on one side only. A term
    0 / 0 counts as 0 (the original leaves it undefined), and so does one of numbers so small that
    they have lost digits: below tiny / u of their dtype rounding is absolute, and weights that
    decay to nothing would look as if they separated. A tensor that is zero in both arguments (a
    bias that was never touched) is left out of N.

    Args:
        first: tensors of one training, any shapes.
        second: tensors of the other, the same shapes.

    Returns:
        A number in [0, 2]; NaN where an entry is not finite; 0 where nothing is left to compare.
    """
    return float(rel_l1_each([x[None] for x in first], [y[None] for y in second])[0])


def rel_l1_each(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """`rel_l1` of many pairs of trainings, none of which depends on the others.

    Args:
        first: tensors of shape (pairs, ...), one or more.
        second: tensors of the same shapes.

    Returns:
        (pairs,) in float64.
    """
    total = torch.zeros(len(first[0]) if first else 1, dtype=torch.float64)
    count = total
    for x, y in zip(first, second, strict=True):
        x64, y64 = (t.detach().reshape(len(t), -1).double() for t in (x, y))
        limits = torch.finfo(x.dtype)
        scale = x64.abs() + y64.abs()
        ratio = (x64 - y64).abs() / scale
        value = torch.where(scale <= limits.tiny / limits.eps, 0.0, ratio).sum(1)
        counted = (value != 0) | scale.any(1)
        total = total.to(value.device) + value
        count = count.to(value.device) + counted * x64.shape[1]
    return torch.where(count > 0, 2 * total / count.clamp_min(1), 0.0)
