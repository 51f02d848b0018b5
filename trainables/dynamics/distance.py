"""RelL1, the relative distance between two trainings (Sun et al. 2024, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

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
    for group in _together(first, second):
        x64, y64 = (_side_by_side(tensors) for tensors in zip(*group, strict=True))
        limits = torch.finfo(group[0][0].dtype)
        scale = x64.abs() + y64.abs()
        ratio = (x64 - y64).abs() / scale
        terms = torch.where(scale <= limits.tiny / limits.eps, 0.0, ratio)
        sizes = [x[0].numel() for x, _ in group]
        parts = terms.split_with_sizes(sizes, 1), scale.split_with_sizes(sizes, 1)
        for some, scales in zip(*parts, strict=True):
            value = some.sum(1)
            counted = (value != 0) | scales.any(1)
            total = total.to(value.device) + value
            count = count.to(value.device) + counted * some.shape[1]
    return torch.where(count > 0, 2 * total / count.clamp_min(1), 0.0)


#: Entries up to which a call costs more than its arithmetic, and from how many such tensors on it
#: is sooner to copy them together.
SMALL, MANY = 4096, 5


def _together(
    first: Sequence[Tensor], second: Sequence[Tensor]
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Pairs of tensors: a large one by itself, small ones beside each other."""
    pairs = list(zip(first, second, strict=True))
    if len(pairs) < MANY:
        yield from ([pair] for pair in pairs)
        return
    for (_, large), found in groupby(pairs, lambda p: (p[0].dtype, p[0].numel() > SMALL)):
        group = list(found)
        if large or len(group) < MANY:
            yield from ([pair] for pair in group)
        else:
            yield group


def _side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    """(pairs, entries) in float64."""
    flat = [t.detach().reshape(len(t), -1) for t in tensors]
    return (flat[0] if len(flat) == 1 else torch.cat(flat, 1)).double()
