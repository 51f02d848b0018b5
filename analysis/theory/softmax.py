"""When a softmax is so sure that its floating-point format rounds the loss to 0."""

from __future__ import annotations

import math

from trainables.domain import InputError, Mistake, nearest

#: Bits of the significand, the leading one included. A distance of 2^-p above 1 rounds back to 1.
PRECISION = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}


def softmax_collapse_gap(dtype: object) -> float:
    """Gap p ln 2 by which the top logit must lead for the softmax to round to certainty.

    With the largest logit m, the softmax and the cross-entropy divide by sum exp(z - m) = 1 + tail.
    In a format of p significant bits the sum rounds to exactly 1 where the tail is at most 2^-p
    (half a unit in the last place, and the tie goes to the even 1). Then the loss of a sample
    whose label leads is exactly 0 and its gradient through the top logit vanishes (softmax
    collapse, Prieto et al. 2025). With two classes this happens at gaps >= p ln 2; with more it
    happens as soon as the gap exceeds p ln 2 by the logarithm of the number of other classes, and
    earlier where the terms are added to the 1 one at a time.

    Args:
        dtype: `float16`, `bfloat16`, `float32` or `float64`; also a dtype of torch or numpy, as
            `torch.float32`.

    Returns:
        The gap in units of the logits: 7.625, 5.545, 16.636 or 36.737.

    Raises:
        InputError: the format is unknown.
    """
    name = str(getattr(dtype, "__name__", dtype)).removeprefix("torch.")
    if name not in PRECISION:
        guess = nearest(name, tuple(PRECISION))
        remedy = f"did you mean {guess}?" if guess else f"use one of {', '.join(PRECISION)}"
        raise InputError([Mistake("dtype", dtype, "no such floating-point format", remedy)])
    return PRECISION[name] * math.log(2)
