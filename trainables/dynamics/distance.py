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
    total = 0.0
    count = 0
    for x, y in zip(first, second, strict=True):
        x64, y64 = x.detach().double(), y.detach().double()
        limits = torch.finfo(x.dtype)
        scale = x64.abs() + y64.abs()
        ratio = (x64 - y64).abs() / scale
        value = float(torch.where(scale <= limits.tiny / limits.eps, 0.0, ratio).sum())
        if value == 0 and not bool(scale.any()):
            continue
        total += value
        count += x64.numel()
    return 2.0 * total / count if count else 0.0
