"""Chains of common layers, batched by hand: one matrix product for all trajectories of a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn, vmap

from trainables.dynamics.ensembles.backend import Stack
from trainables.losses import Loss

#: Layers without parameters whose result at a sample depends on neither its place nor the number of
#: samples. (A sigmoid is none of them: on a CPU the last few entries of a tensor are rounded
#: otherwise than those before.)
PLAIN = (nn.ReLU, nn.Tanh, nn.Identity, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool2d)


class Batched:
    """A chain of linear layers, plain convolutions and layers without parameters.

    The matrices of a linear layer are multiplied in one batched product, convolutions one after the
    other (a grouped convolution rounds otherwise for one trajectory than for two). One backward
    pass serves all.

    Args:
        module: the network, an `nn.Sequential`, possibly of such; see `fits`.
        loss: the loss, a mean over the batch.
    """

    name: ClassVar[str] = "batched"

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        self._layers = list(_chain(module))
        self._loss = loss

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether a network is such a chain, each layer of it used once."""
        layers = list(_chain(module))
        trained = [p for layer in layers for p in layer.parameters(recurse=False)]
        return (
            all(_known(layer) for layer in layers)
            and [id(p) for p in trained] == [id(p) for p in module.parameters()]
            and all(p.requires_grad for p in trained)
            and not any(True for _ in module.buffers())
            and not _hooked(module)
        )

    @torch.no_grad()
    def losses(self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool) -> Tensor:
        """See `Backend`."""
        return self._losses(stack, inputs, targets, each)

    def gradients(
        self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Backend`."""
        leaves = [p.detach().requires_grad_() for p in stack]
        losses = self._losses(leaves, inputs, targets, each)
        return losses.detach(), list(torch.autograd.grad(losses.sum(), leaves))

    def _losses(self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool) -> Tensor:
        outputs = self._outputs(stack, inputs if each else inputs[None])
        if len(outputs) == 1 < len(stack[0]):  # nothing of it is trained
            outputs = outputs.expand(len(stack[0]), *outputs.shape[1:])
        found: Tensor = vmap(self._loss.value, (0, 0 if each else None))(outputs, targets)
        return found

    def _outputs(self, stack: Stack, x: Tensor) -> Tensor:
        """(trajectories, batch, ...) from inputs of that shape, or (1, batch, ...) for all."""
        rows = iter(stack)
        for layer in self._layers:
            if isinstance(layer, nn.Linear):
                x = _linear(x, *_parameters(layer, rows))
            elif isinstance(layer, nn.Conv2d):
                x = _convolution(layer, x, *_parameters(layer, rows))
            elif isinstance(layer, nn.Flatten):
                x = x.flatten(2)
            elif isinstance(layer, PLAIN):
                y = layer(x.flatten(0, 1))
                x = y.reshape(*x.shape[:2], *y.shape[1:])
            else:
                x = torch.stack([layer(part) for part in x])
        return x


def _chain(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _chain(child)
    else:
        yield module


def _known(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        return True
    if isinstance(layer, nn.Conv2d):
        return layer.padding_mode == "zeros"
    if isinstance(layer, nn.Flatten):
        return (layer.start_dim, layer.end_dim) == (1, -1)
    # Built-in layers alone: one of a user's may draw random numbers or remember something.
    built_in = type(layer).__module__.startswith("torch.nn.modules.")
    silent = not any(True for _ in layer.parameters()) and not list(layer.children())
    return built_in and silent and not isinstance(layer, _RANDOM)


_RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


def _hooked(module: nn.Module) -> bool:
    """Whether something is called along with a layer, such as a parametrisation."""
    return any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in module.modules()
    )


def _parameters(layer: nn.Module, rows: Iterator[Tensor]) -> tuple[Tensor, Tensor | None]:
    weight = next(rows)
    return weight, next(rows) if layer.bias is not None else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # Other ways to write this product are faster here and there, but round otherwise for one
    # trajectory than for two: one wide matrix for all, or outputs before samples.
    shape = x.shape[1:-1]
    x = x.reshape(len(x), -1, x.shape[-1]).expand(len(weight), -1, -1)
    if bias is None:
        y = torch.bmm(x, weight.transpose(1, 2))
    else:
        y = torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))
    return y.reshape(len(y), *shape, y.shape[-1])


def _convolution(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    biases: Sequence[Tensor | None] = [None] * len(weight) if bias is None else list(bias)
    shared = x.expand(len(weight), *x.shape[1:])
    return torch.stack(
        [
            F.conv2d(part, w, b, layer.stride, layer.padding, layer.dilation, layer.groups)
            for part, w, b in zip(shared, weight, biases, strict=True)
        ]
    )
