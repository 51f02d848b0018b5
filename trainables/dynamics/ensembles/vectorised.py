"""Any network, by `torch.func`: the same program mapped over the trajectories."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import grad, grad_and_value, vmap

from trainables.dynamics.ensembles.backend import Ending, Stack, ended, network, objective
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
        self._run = network(module)

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

    def opens(self, layer: str | None) -> bool:
        """Any layer: a hook on it shows what enters."""
        return True

    @torch.no_grad()
    def outputs(self, stack: Stack, inputs: Tensor, each: bool) -> Tensor:
        """See `Open`."""
        return self._ends(stack, inputs, each, None)[0]

    def gradients_of(
        self,
        ending: Ending,
        layer: str | None,
        stack: Stack,
        inputs: Tensor,
        targets: Tensor,
        each: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Open`. The network is run once for its outputs and once more for the gradients."""
        rows, batch = tuple(p.detach() for p in stack), 0 if each else None
        with torch.no_grad():
            outputs, *entered = self._ends(rows, inputs, each, layer)
        seen = entered[0] if entered else None
        losses, *values = ended(ending, len(rows[0]), outputs, seen, targets, each)
        handed = tuple(v for v in values if v is not None)

        def weighted(row: Stack, x: Tensor, by: tuple[Tensor, ...]) -> Tensor:
            found = self._run(row, x, layer)
            return sum((f * v).sum() for f, v in zip(found, by, strict=False))  # type: ignore[return-value]

        gradients = vmap(grad(weighted), (0, batch, 0))(rows, inputs, handed)
        return losses, list(gradients)

    def _ends(
        self, stack: Stack, inputs: Tensor, each: bool, layer: str | None
    ) -> tuple[Tensor, ...]:
        run = vmap(lambda row, x: self._run(row, x, layer), (0, 0 if each else None))
        found: tuple[Tensor, ...] = run(tuple(stack), inputs)
        return found
