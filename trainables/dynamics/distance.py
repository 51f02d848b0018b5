"""RelL1, the relative distance between two trainings (Sun et al. 2024, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
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
    if not first:
        return torch.zeros(1, dtype=torch.float64)
    values, present, sizes = [], [], []
    for group in _together(first, second):
        terms, scale = _terms(*(_side_by_side(tensors) for tensors in zip(*group, strict=True)))
        entries = [x[0].numel() for x, _ in group]
        sizes += entries
        values += [part.sum(1) for part in terms.split_with_sizes(entries, 1)]
        present += [part.any(1) for part in scale.split_with_sizes(entries, 1)]
    counted = (torch.stack(values) != 0) | torch.stack(present)
    count = (counted * torch.tensor(sizes, device=counted.device)[:, None]).sum(0)
    # One after the other: the order of a reduction depends on how many pairs there are.
    total = reduce(torch.add, values)
    return torch.where(count > 0, 2 * total / count.clamp_min(1), 0.0)


def _terms(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """|x - y| / (|x| + |y|), and its denominator, in float64."""
    limits = torch.finfo(x.dtype)
    x64, y64 = x.double(), y.double()
    terms = (x64 - y64).abs_()
    scale = x64.abs().add_(y64.abs())
    return terms.div_(scale).masked_fill_(scale <= limits.tiny / limits.eps, 0.0), scale


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
    """(pairs, entries)."""
    flat = [t.detach().reshape(len(t), -1) for t in tensors]
    return flat[0] if len(flat) == 1 else torch.cat(flat, 1)
