"""The protocol of ensemble backends, and the one that all others are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainables.losses import Loss

#: Stacked parameters, one tensor of shape (trajectories, ...) for each of the network's.
Stack = Sequence[Tensor]


class Backend(Protocol):
    """Losses and gradients of a stack.

    Inputs and targets are those of one batch that all trajectories share, or, with `each`, have one
    batch for each trajectory in their first dimension.
    """

    @property
    def name(self) -> str:
        """What results are marked with."""

    def losses(self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool) -> Tensor:
        """(trajectories,) losses, without a graph, in the dtype of the stack."""

    def gradients(
        self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """(trajectories,) losses, and gradients shaped like the stack."""


def objective(module: nn.Module, loss: Loss) -> Callable[[Stack, Tensor, Tensor], Tensor]:
    """The loss as a function of one trajectory's parameters, inputs and targets.

    Buffers take the dtype and the device of the parameters.
    """
    names = [name for name, _ in module.named_parameters()]

    @lru_cache(maxsize=4)
    def buffers(dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        return {
            name: b.to(device, dtype if b.is_floating_point() else None)
            for name, b in module.named_buffers()
        }

    def value(row: Stack, inputs: Tensor, targets: Tensor) -> Tensor:
        state = {**dict(zip(names, row, strict=True)), **buffers(row[0].dtype, row[0].device)}
        return loss.value(functional_call(module, state, (inputs,)), targets)

    return value


class Loop:
    """One trajectory after the other: the reference.

    Args:
        module: the network; its own parameters are not used.
        loss: the loss, a mean over the batch.
    """

    name: ClassVar[str] = "loop"

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        self._value = objective(module, loss)

    @torch.no_grad()
    def losses(self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool) -> Tensor:
        """See `Backend`."""
        rows = zip(*stack, strict=True)
        batches = _batches(len(stack[0]), inputs, targets, each)
        return torch.stack([self._value(r, *b) for r, b in zip(rows, batches, strict=True)])

    def gradients(
        self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Backend`."""
        losses, gradients = [], []
        batches = _batches(len(stack[0]), inputs, targets, each)
        for row, batch in zip(zip(*stack, strict=True), batches, strict=True):
            leaves = [p.clone().requires_grad_() for p in row]
            loss = self._value(leaves, *batch)
            gradients.append(torch.autograd.grad(loss, leaves))
            losses.append(loss.detach())
        return torch.stack(losses), [torch.stack(g) for g in zip(*gradients, strict=True)]


def _batches(
    count: int, inputs: Tensor, targets: Tensor, each: bool
) -> Sequence[tuple[Tensor, Tensor]]:
    if not each:
        return [(inputs, targets)] * count
    return list(zip(inputs, targets, strict=True))


class Chunks:
    """A backend on a few trajectories at a time: a working set beyond the cache is slow.

    Args:
        inner: the backend.
        size: trajectories at a time.
    """

    def __init__(self, inner: Backend, size: int) -> None:
        self.name = inner.name
        self._inner, self._size = inner, size

    def losses(self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool) -> Tensor:
        """See `Backend`."""
        parts = self._parts(stack, inputs, targets, each)
        return torch.cat([self._inner.losses(*part, each) for part in parts])

    def gradients(
        self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Backend`."""
        if len(stack[0]) <= self._size:
            return self._inner.gradients(stack, inputs, targets, each)
        parts = self._parts(stack, inputs, targets, each)
        found = [self._inner.gradients(*part, each) for part in parts]
        losses = torch.cat([loss for loss, _ in found])
        return losses, [torch.cat(g) for g in zip(*(g for _, g in found), strict=True)]

    def _parts(
        self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool
    ) -> Sequence[tuple[Stack, Tensor, Tensor]]:
        found = []
        for i in range(0, len(stack[0]), self._size):
            rows = slice(i, i + self._size)
            batch = (inputs[rows], targets[rows]) if each else (inputs, targets)
            found.append(([p[rows] for p in stack], *batch))
        return found
