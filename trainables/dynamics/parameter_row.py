"""A vector over all trained parameters of a network, in whichever form it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.domain import InputError, Mistake

Array = NDArray[np.float64]


def parameter_row(name: str, value: Any, parameters: Sequence[nn.Parameter]) -> Array:
    """`value` as (parameters,) in float64.

    Args:
        name: of the argument, for the message.
        value: an array or a tensor with one number for each parameter, with or without gradient;
            or a list of tensors shaped like the parameters.
        parameters: what the numbers belong to.

    Raises:
        InputError: it is none of these.
    """
    kind = type(value).__name__
    if isinstance(value, list | tuple) and any(isinstance(part, Tensor) for part in value):
        value = _joined(name, value, parameters)
    try:
        if isinstance(value, Tensor):
            kept = value.detach().cpu()
            value = (kept.double() if kept.is_floating_point() else kept).numpy()
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.array(None)
    if array.dtype.kind not in "iuf":
        law = "must be real numbers"
        remedy = "give an array, or a list of tensors shaped like the parameters"
        raise InputError([Mistake(name, kind, law, remedy)])
    row = array.astype(np.float64)
    size = sum(p.numel() for p in parameters)
    if row.shape != (size,):
        law = f"one number for each of the {size} trained parameters, in one row"
        raise InputError([Mistake(name, row.shape, law, f"give an array of shape ({size},)")])
    return row


def _joined(name: str, parts: Sequence[Any], parameters: Sequence[nn.Parameter]) -> Tensor:
    found = [tuple(p.shape) if isinstance(p, Tensor) else type(p).__name__ for p in parts]
    wanted = [tuple(p.shape) for p in parameters]
    if found != wanted:
        law = f"a list must have the shapes of the trained parameters, {wanted}"
        remedy = "give one tensor for each parameter, in the order of module.parameters()"
        raise InputError([Mistake(name, found, law, remedy)])
    return torch.cat([part.detach().cpu().double().reshape(-1) for part in parts])
