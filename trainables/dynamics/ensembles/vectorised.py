"""Any network, by `torch.func`: the same program mapped over the trajectories."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from trainables.dynamics.ensembles.backend import Stack, objective
from trainables.losses import Loss


class Vectorised:
    """vmap over trajectories.

    Args:
        module: the network; its own parameters are not used.
        loss: the loss, a mean over the batch.
    """

    name: ClassVar[str] = "vmap"

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        value = objective(module, loss)
        self._value, self._both = value, grad_and_value(value)

    @torch.no_grad()
    def losses(self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool) -> Tensor:
        """See `Backend`."""
        batch = 0 if each else None
        found: Tensor = vmap(self._value, (0, batch, batch))(tuple(stack), inputs, targets)
        return found

    def gradients(
        self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Backend`."""
        batch = 0 if each else None
        rows = tuple(p.detach() for p in stack)
        gradients, losses = vmap(self._both, (0, batch, batch))(rows, inputs, targets)
        return losses, list(gradients)
