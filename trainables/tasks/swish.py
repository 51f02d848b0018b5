"""Activations that classifiers may have."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NAMES = ("relu", "swish")


class Swish(nn.Module):
    """x / (1 + exp(-slope x)): the larger the slope, the closer to ReLU.

    Args:
        slope: beta in Sun et al. 2024.
    """

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """Entry by entry."""
        return x * torch.sigmoid(self.slope * x)


def activation(name: str, slope: float) -> nn.Module:
    """ReLU, or Swish of a slope."""
    return nn.ReLU() if name == "relu" else Swish(slope)
