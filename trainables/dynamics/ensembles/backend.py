"""The protocol of ensemble backends, and the one that all others are held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol

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


@dataclass(frozen=True)
class End:
    """A trajectory's loss, and its gradients by what leaves and what enters the last layer.

    Args:
        loss: scalar, without a graph.
        outputs: gradient by the outputs.
        entered: gradient by what entered the last layer, beyond what comes through that layer; None
            for nothing.
    """

    loss: Tensor
    outputs: Tensor
    entered: Tensor | None = None


#: Of the number of a row, its outputs, what entered its last layer (None where nobody asked), and
#: its targets; all of them without a graph.
Ending = Callable[[int, Tensor, Tensor | None, Tensor], End]


class Open(Protocol):
    """A backend that lets others work on what leaves the network, row by row.

    Its rows may depend on each other as little as those of `Backend`. The layer that is named in
    `layer` must be one that it `opens`; None asks for none.
    """

    def opens(self, layer: str | None) -> bool:
        """Whether it can say what enters a layer, the last one of the network."""

    def outputs(self, stack: Stack, inputs: Tensor, each: bool) -> Tensor:
        """(trajectories, batch, ...) outputs, without a graph."""

    def gradients_of(
        self,
        ending: Ending,
        layer: str | None,
        stack: Stack,
        inputs: Tensor,
        targets: Tensor,
        each: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """As `Backend.gradients`, of what `ending` says at the end of each row."""


def opens(backend: Any, layer: str | None) -> bool:
    """Whether a backend is an `Open` one, for this layer."""
    return hasattr(backend, "opens") and bool(backend.opens(layer))


def ended(
    ending: Ending,
    count: int,
    outputs: Tensor,
    entered: Tensor | None,
    targets: Tensor,
    each: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`Ending` row by row: stacked losses and gradients by outputs and by what entered.

    Args:
        ending: what is asked.
        count: of rows that count; the others repeat them.
        outputs: (trajectories, batch, ...).
        entered: (trajectories, batch, ...).
        targets: one batch, or one for each trajectory.
        each: which of the two.
    """
    ends = []
    for i in range(count):
        # In one layout, whatever a backend makes of it: sums must not depend on that.
        seen = None if entered is None else entered[i].detach().contiguous()
        mine = targets[i] if each else targets
        ends.append(ending(i, outputs[i].detach().contiguous(), seen, mine))
    ends += ends[: len(outputs) - count]
    by_entered = [end.entered for end in ends if end.entered is not None]
    return (
        torch.stack([end.loss for end in ends[:count]]),
        torch.stack([end.outputs for end in ends]),
        torch.stack(by_entered) if by_entered else None,
    )


def network(module: nn.Module) -> Callable[[Stack, Tensor, str | None], tuple[Tensor, ...]]:
    """The outputs as a function of one trajectory's parameters and inputs.

    What enters a layer comes with them where one is named. Buffers take the dtype and the device of
    the parameters.
    """
    names = [name for name, _ in module.named_parameters()]

    @lru_cache(maxsize=4)
    def buffers(dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        return {
            name: b.to(device, dtype if b.is_floating_point() else None)
            for name, b in module.named_buffers()
        }

    def run(row: Stack, inputs: Tensor, layer: str | None = None) -> tuple[Tensor, ...]:
        state = {**dict(zip(names, row, strict=True)), **buffers(row[0].dtype, row[0].device)}
        if layer is None:
            return (functional_call(module, state, (inputs,)),)
        entered: list[Tensor] = []

        def remember(_layer: nn.Module, given: tuple[Any, ...], _outputs: Any) -> None:
            entered.append(given[0])

        hook = module.get_submodule(layer).register_forward_hook(remember)
        try:
            outputs = functional_call(module, state, (inputs,))
        finally:
            hook.remove()
        return outputs, entered[-1]

    return run


def objective(module: nn.Module, loss: Loss) -> Callable[[Stack, Tensor, Tensor], Tensor]:
    """The loss as a function of one trajectory's parameters, inputs and targets."""
    run = network(module)

    def value(row: Stack, inputs: Tensor, targets: Tensor) -> Tensor:
        return loss.value(run(row, inputs, None)[0], targets)

    return value


class Loop:
    """One trajectory after the other: the reference.

    Args:
        module: the network; its own parameters are not used.
        loss: the loss, a mean over the batch.
    """

    name: ClassVar[str] = "loop"

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        self._value, self._run = objective(module, loss), network(module)

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

    def opens(self, layer: str | None) -> bool:
        """Any layer."""
        return True

    @torch.no_grad()
    def outputs(self, stack: Stack, inputs: Tensor, each: bool) -> Tensor:
        """See `Open`."""
        rows = zip(*stack, strict=True)
        batches = _batches(len(stack[0]), inputs, inputs, each)
        pairs = zip(rows, batches, strict=True)
        return torch.stack([self._run(row, batch[0], None)[0] for row, batch in pairs])

    def gradients_of(
        self,
        ending: Ending,
        layer: str | None,
        stack: Stack,
        inputs: Tensor,
        targets: Tensor,
        each: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Open`."""
        losses, gradients = [], []
        batches = _batches(len(stack[0]), inputs, targets, each)
        for i, (row, batch) in enumerate(zip(zip(*stack, strict=True), batches, strict=True)):
            leaves = [p.clone().requires_grad_() for p in row]
            with torch.enable_grad():
                places = self._run(leaves, batch[0], layer)
            outputs, *entered = (x.detach() for x in places)
            end = ending(i, outputs, entered[0] if entered else None, batch[1])
            pairs = [(places[0], end.outputs)]
            if end.entered is not None and places[1].requires_grad:
                pairs.append((places[1], end.entered))
            ends, handed = zip(*pairs, strict=True)
            gradients.append(torch.autograd.grad(ends, leaves, handed))
            losses.append(end.loss)
        return torch.stack(losses), [torch.stack(g) for g in zip(*gradients, strict=True)]


def _batches(
    count: int, inputs: Tensor, targets: Tensor, each: bool
) -> Sequence[tuple[Tensor, Tensor]]:
    if not each:
        return [(inputs, targets)] * count
    return list(zip(inputs, targets, strict=True))


class Closed:
    """A backend whose losses and gradients alone are used.

    Args:
        inner: the backend.
    """

    def __init__(self, inner: Backend) -> None:
        self.name = inner.name
        self.losses, self.gradients = inner.losses, inner.gradients


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

    def opens(self, layer: str | None) -> bool:
        """See `Open`."""
        return opens(self._inner, layer)

    def outputs(self, stack: Stack, inputs: Tensor, each: bool) -> Tensor:
        """See `Open`."""
        inner: Any = self._inner
        parts = self._parts(stack, inputs, inputs, each)
        return torch.cat([inner.outputs(rows, seen, each) for rows, seen, _ in parts])

    def gradients_of(
        self,
        ending: Ending,
        layer: str | None,
        stack: Stack,
        inputs: Tensor,
        targets: Tensor,
        each: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Open`."""
        inner: Any = self._inner
        found = []
        for number, part in enumerate(self._parts(stack, inputs, targets, each)):

            def shifted(i: int, *seen: Any, first: int = number * self._size) -> End:
                return ending(first + i, *seen)

            found.append(inner.gradients_of(shifted, layer, *part, each))
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
