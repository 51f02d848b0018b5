"""Least squares with a minimum of loss 0: the task of the study of SGD's trace criterion."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stabmap import task_from
from trainables.losses import SQUARED_ERROR

Array = NDArray[np.float64]


def rows(samples: int, dimensions: int, equal: bool) -> Array:
    """(samples, dimensions) normal numbers; with `equal` every row has length sqrt(dimensions)."""
    found = np.random.RandomState(0).randn(samples, dimensions)
    if equal:
        found *= np.sqrt(dimensions) / np.linalg.norm(found, axis=1, keepdims=True)
    return found


def network(seed: int, dimensions: int = 4) -> nn.Module:
    """A linear function; weights N(0, 1)."""
    line = nn.Linear(dimensions, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        line.weight.copy_(torch.from_numpy(np.random.RandomState(seed).randn(1, dimensions)))
    return line


def data(samples: int = 64, dimensions: int = 4, equal: bool = False) -> object:
    """The rows, and targets of 0: weights that die out keep all their digits on the way."""
    inputs = torch.from_numpy(rows(samples, dimensions, equal))
    pair = (inputs, torch.zeros(samples, 1, dtype=torch.float64))
    return pair, pair


def largest_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Over all samples."""
    return (outputs - targets).abs().max()


LeastSquares = task_from(
    "least-squares",
    network,
    data,
    SQUARED_ERROR,
    largest_error,
    batch_size=1,
    source="Wu and Su 2023: the trace criterion, where it is exact",
)
