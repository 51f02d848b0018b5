"""Linear layers and activations on one batch for all, with the backward pass written out.

Without a graph nothing is kept that is not needed, and the first layer reads the data once: its
products, nearly all of the work of a small network, are those of one layer with the outputs of all
trajectories.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.dynamics.ensembles.backend import Ending, Stack, ended
from trainables.dynamics.ensembles.batched import Batched, at_least_two, chain, parameters_of
from trainables.losses import Loss


@dataclass(frozen=True)
class Activation:
    """A function of single numbers.

    Args:
        value: of the inputs.
        pulled: gradient by the inputs, of the one by the outputs, of inputs and outputs.
        apart: whether a processor rounds the last few entries of a tensor otherwise than the
            others, so that each trajectory needs a tensor of its own.
    """

    value: Callable[[Tensor], Tensor]
    pulled: Callable[[Tensor, Tensor, Tensor], Tensor]
    apart: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of a stack."""
        return torch.stack([self.value(part) for part in x]) if self.apart else self.value(x)

    def backward(self, gradient: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Gradient by the inputs of a stack."""
        if not self.apart:
            return self.pulled(gradient, x, y)
        return torch.stack([self.pulled(*parts) for parts in zip(gradient, x, y, strict=True)])


_ATEN = torch.ops.aten
ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Identity: Activation(lambda x: x, lambda g, _, __: g),
    nn.ReLU: Activation(torch.relu, lambda g, _, y: _ATEN.threshold_backward(g, y, 0)),
    nn.Tanh: Activation(torch.tanh, lambda g, _, y: _ATEN.tanh_backward(g, y)),
    nn.Sigmoid: Activation(torch.sigmoid, lambda g, _, y: _ATEN.sigmoid_backward(g, y), True),
    nn.SiLU: Activation(F.silu, lambda g, x, _: _ATEN.silu_backward(g, x), True),
}


class Wide(Batched):
    """A chain of linear layers and activations, trained on full batches in float32.

    Losses, and batches of each trajectory's own, are those of `Batched`: in float64 the product of
    odd sizes is rounded otherwise where there are more trajectories.

    Args:
        module: the network, an `nn.Sequential`, possibly of such; see `suits`.
        loss: the loss, a mean over the batch.
    """

    name: ClassVar[str] = "wide"

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__(module, loss)
        self._trained = [layer for layer in chain(module) if not isinstance(layer, nn.Flatten)]

    @staticmethod
    def suits(module: nn.Module, dtype: torch.dtype, inputs: Tensor) -> bool:
        """Whether a network is such a chain, its samples are rows, and it is worth a trial."""
        layers = list(chain(module))
        flat = inputs.ndim == 2 or isinstance(next(iter(layers), None), nn.Flatten)
        kinds = [type(layer) for layer in layers if not isinstance(layer, nn.Flatten)]
        known = kinds[:1] == [nn.Linear] and all(k in (nn.Linear, *ACTIVATIONS) for k in kinds)
        return dtype == torch.float32 and flat and known and Batched.fits(module)

    def gradients(
        self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Backend`."""
        if each:
            return super().gradients(stack, inputs, targets, each)
        count = len(stack[0])
        stack = at_least_two(stack, inputs, targets, each)[0]
        with torch.no_grad():
            seen = self._forward(stack, inputs.flatten(1))
        outputs = seen[-1].detach().requires_grad_()
        with torch.enable_grad():
            losses = self._values(outputs.transpose(1, 2), targets, each)
            (gradient,) = torch.autograd.grad(losses.sum(), outputs)
        with torch.no_grad():
            # In one layout, whatever the loss made of it.
            gradients = self._backward(stack, seen, gradient.contiguous())
        return losses.detach()[:count], [g[:count] for g in gradients]

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
        if each or self._last is None or len(self._trained) == 1:
            return super().gradients_of(ending, layer, stack, inputs, targets, each)
        count = len(stack[0])
        stack = at_least_two(stack, inputs, targets, each)[0]
        with torch.no_grad():
            seen = self._forward(stack, inputs.flatten(1))
        outputs, entered = (x.transpose(1, 2) for x in (seen[-1], seen[-2]))
        shown = None if layer is None else entered
        losses, *values = ended(ending, count, outputs, shown, targets, each)
        gradient, more = (v if v is None else v.transpose(1, 2).contiguous() for v in values)
        assert gradient is not None
        with torch.no_grad():
            gradients = self._backward(stack, seen, gradient, more)
        return losses, [g[:count] for g in gradients]

    def _forward(self, stack: Stack, x: Tensor) -> list[Tensor]:
        """The data (samples, features), and what leaves each layer: (trajectories, n, samples)."""
        rows, seen = iter(stack), [x]
        for layer in self._trained:
            y = seen[-1]
            if not isinstance(layer, nn.Linear):
                seen.append(ACTIVATIONS[type(layer)].forward(y))
                continue
            weight, bias = parameters_of(layer, rows)
            y = shared_product(weight, x.T) if len(seen) == 1 else torch.bmm(weight, y)
            seen.append(y if bias is None else y.add_(bias[:, :, None]))
        return seen

    def _backward(
        self, stack: Stack, seen: list[Tensor], gradient: Tensor, more: Tensor | None = None
    ) -> list[Tensor]:
        """Gradients like the stack, of the one by the outputs and by what entered the last layer.

        Args:
            stack: parameters.
            seen: what `_forward` gave.
            gradient: by the outputs.
            more: by what entered the last layer, a linear one, beyond what comes through it.
        """
        weights, found = list(stack), []
        for i in reversed(range(len(self._trained))):
            layer, x, y = self._trained[i], seen[i], seen[i + 1]
            if not isinstance(layer, nn.Linear):
                gradient = ACTIVATIONS[type(layer)].backward(gradient, x, y)
                continue
            if layer.bias is not None:
                weights.pop()
                found.append(gradient.sum(2))
            weight = weights.pop()
            if i == 0:
                found.append(shared_product(gradient, x))
            else:
                found.append(torch.bmm(gradient, x.transpose(1, 2)))
                gradient = torch.bmm(weight.transpose(1, 2), gradient)
                if more is not None:
                    gradient, more = gradient + more, None
        return found[::-1]


#: oneDNN's product with a transposed matrix. It uses the widest vectors of any processor, MKL those
#: of one maker's: twice as fast where that is the other. It is not public, so it may go away.
_ONE_DNN: Any = getattr(getattr(torch.ops, "mkldnn", None), "_linear_pointwise", None)


def shared_product(stacked: Tensor, shared: Tensor) -> Tensor:
    """(trajectories, n, q) of (trajectories, n, p) and one (p, q) for all."""
    rows = stacked.flatten(0, 1)
    if _takes_one_dnn(rows):
        found: Tensor = _ONE_DNN(rows, shared.T, None, "none", [], "")
    else:
        found = rows @ shared
    return found.reshape(*stacked.shape[:2], -1)


def _takes_one_dnn(rows: Tensor) -> bool:
    one_dnn: Any = torch.backends.mkldnn
    there = _ONE_DNN is not None and one_dnn.is_available() and one_dnn.enabled
    return there and rows.device.type == "cpu" and rows.dtype == torch.float32
