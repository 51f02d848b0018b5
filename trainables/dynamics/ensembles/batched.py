"""Chains of common layers, batched by hand: one matrix product for all trajectories of a layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn, vmap

from trainables.dynamics.ensembles.backend import Ending, Stack, ended
from trainables.losses import CROSS_ENTROPY, Loss

#: Layers whose result at an entry depends on neither its place nor the number of entries. (A
#: sigmoid is none of them: on a CPU the last few entries of a tensor are rounded otherwise.)
ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.Identity)


#: The class number of samples that a cross-entropy leaves out.
IGNORED = -100


class Batched:
    """A chain of linear layers, plain convolutions and layers without parameters.

    The matrices of a linear layer are multiplied in one product for all trajectories. Convolutions
    come one after the other: a grouped one rounds otherwise for one trajectory than for two. One
    backward pass serves all.

    Args:
        module: the network, an `nn.Sequential`, possibly of such; see `fits`.
        loss: the loss, a mean over the batch.
    """

    name: ClassVar[str] = "batched"
    #: Trajectories at a time on a processor, so that what a layer keeps stays in its cache.
    chunk: ClassVar[int] = 16

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        self._layers = _pooled_first(list(chain(module)))
        self._loss = loss
        last = self._layers[-1] if self._layers else None
        #: Name of the last layer if that is linear.
        self._last = next(
            (n for n, m in module.named_modules() if m is last and isinstance(m, nn.Linear)), None
        )

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether a network is such a chain, each layer of it used once."""
        layers = list(chain(module))
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
        count = len(stack[0])
        return self._losses(*at_least_two(stack, inputs, targets, each), each)[:count]

    def gradients(
        self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """See `Backend`."""
        count = len(stack[0])
        stack, inputs, targets = at_least_two(stack, inputs, targets, each)
        leaves = [p.detach().requires_grad_() for p in stack]
        losses = self._losses(leaves, inputs, targets, each)
        gradients = torch.autograd.grad(losses.sum(), leaves)
        return losses.detach()[:count], [g[:count] for g in gradients]

    def opens(self, layer: str | None) -> bool:
        """Whether a layer is the last one, and linear."""
        return layer is None or bool(layer == self._last)

    @torch.no_grad()
    def outputs(self, stack: Stack, inputs: Tensor, each: bool) -> Tensor:
        """See `Open`."""
        count = len(stack[0])
        stack, inputs, _ = at_least_two(stack, inputs, inputs, each)
        return self._outputs(stack, inputs if each else inputs[None])[:count]

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
        count = len(stack[0])
        stack, inputs, targets = at_least_two(stack, inputs, targets, each)
        leaves = [p.detach().requires_grad_() for p in stack]
        with torch.enable_grad():
            outputs, entered = self._ends(leaves, inputs if each else inputs[None])
        seen = None if layer is None or entered is None else entered
        if seen is not None:
            seen = seen.expand(len(outputs), *seen.shape[1:])
        losses, *values = ended(ending, count, outputs, seen, targets, each)
        pairs = [(outputs, values[0])]
        if values[1] is not None and entered is not None and entered.requires_grad:
            pairs.append((entered, values[1]))
        places, handed = zip(*pairs, strict=True)
        gradients = torch.autograd.grad(places, leaves, handed)
        return losses, [g[:count] for g in gradients]

    def _losses(self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool) -> Tensor:
        outputs = self._outputs(stack, inputs if each else inputs[None])
        if len(outputs) == 1 < len(stack[0]):  # nothing of it is trained
            outputs = outputs.expand(len(stack[0]), *outputs.shape[1:])
        return self._values(outputs, targets, each)

    def _values(self, outputs: Tensor, targets: Tensor, each: bool) -> Tensor:
        """(trajectories,) losses of (trajectories, batch, ...) outputs."""
        if self._loss is CROSS_ENTROPY and outputs.ndim == 3 and not targets.is_floating_point():
            # Classes before samples, as the last layer left them: faster than ten at a time.
            numbers = targets if each else targets.expand(len(outputs), -1)
            terms = F.cross_entropy(outputs.transpose(1, 2), numbers, reduction="none")
            return terms.sum(1) / (numbers != IGNORED).sum(1)
        found: Tensor = vmap(self._loss.value, (0, 0 if each else None))(outputs, targets)
        return found

    def _outputs(self, stack: Stack, x: Tensor) -> Tensor:
        """(trajectories, batch, ...) from inputs of that shape, or (1, batch, ...) for all."""
        return self._ends(stack, x)[0]

    def _ends(self, stack: Stack, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What leaves the last layer, and what entered it if it comes after all convolutions."""
        rows, entered = iter(stack), None
        layers = self._layers
        if any(isinstance(layer, nn.Conv2d) for layer in layers):
            x, layers = _front(layers, rows, x.expand(len(stack[0]), *x.shape[1:]))
        for layer in layers:
            entered = x
            if isinstance(layer, nn.Linear):
                x = _linear(x, *parameters_of(layer, rows))
            elif isinstance(layer, nn.Conv2d):
                x = _convolutions(layer, x, *parameters_of(layer, rows))
            elif isinstance(layer, nn.Flatten):
                x = x.flatten(2)
            elif isinstance(layer, ELEMENTWISE):
                x = layer(x)
            else:
                x = torch.stack([layer(part) for part in x])
        return x, entered


def at_least_two(
    stack: Stack, inputs: Tensor, targets: Tensor, each: bool
) -> tuple[Stack, Tensor, Tensor]:
    """A single trajectory twice: products of one matrix round otherwise than those of several."""
    if len(stack[0]) > 1:
        return stack, inputs, targets
    if each:
        inputs, targets = torch.cat([inputs, inputs]), torch.cat([targets, targets])
    return [torch.cat([p, p]) for p in stack], inputs, targets


# --------------------------------------------------------------------------- chains


def chain(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested `nn.Sequential`s in the order of their use."""
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from chain(child)
    else:
        yield module


def _pooled_first(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """With ReLUs after the maxima that followed them: the same to the bit, for a quarter of it."""
    found = list(layers)
    for i, (one, two) in enumerate(itertools.pairwise(layers)):
        if isinstance(one, nn.ReLU) and isinstance(two, nn.MaxPool2d) and not two.return_indices:
            found[i : i + 2] = [two, nn.ReLU()]
    return found


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


def parameters_of(layer: nn.Module, rows: Iterator[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, if there is one, of the next layer of a stack."""
    weight = next(rows)
    return weight, next(rows) if layer.bias is not None else None


# --------------------------------------------------------------------------- linear layers


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(trajectories, ..., outputs) of (trajectories, ..., inputs)."""
    shape = x.shape[1:-1]
    # Outputs before samples in memory: faster in float64, and for what a loss does with classes.
    columns = x.reshape(len(x), -1, x.shape[-1]).expand(len(weight), -1, -1).transpose(1, 2)
    if bias is None:
        y = torch.bmm(weight, columns)
    else:
        y = torch.baddbmm(bias[:, :, None], weight, columns)
    y = y.transpose(1, 2)
    return y if len(shape) == 1 else y.reshape(len(y), *shape, y.shape[-1])


# --------------------------------------------------------------------------- convolutions


def _front(
    layers: list[nn.Module], rows: Iterator[Tensor], x: Tensor
) -> tuple[Tensor, list[nn.Module]]:
    """Convolutions and what lies between them; and the layers that are left.

    Each trajectory goes through all of them before the next one begins, so that what a layer hands
    to the following one stays in the cache.
    """
    first = x[0]
    given: list[_Step] = []
    for layer in layers:
        if isinstance(layer, nn.Linear | nn.Flatten) or _covers(layer, first):
            break
        trained = isinstance(layer, nn.Conv2d)
        given.append((layer, *(parameters_of(layer, rows) if trained else (None, None))))
        with torch.no_grad():  # one sample tells the shape
            first = _passed(first[:1], given[-1], 0)
    most = SAMPLES if _diagnoses(x) else len(x[0])
    found = [
        torch.cat([_through(part, given, member) for part in samples.split(most)])
        for member, samples in enumerate(x)
    ]
    return torch.stack(found), layers[len(given) :]


#: Samples that go through convolutions together in float64: more leave the cache, where PyTorch
#: unfolds all of them at once.
SAMPLES = 16


def _diagnoses(x: Tensor) -> bool:
    """Whether only losses are asked for, in float64 on a CPU: its convolutions are plain loops."""
    return x.device.type == "cpu" and x.dtype is torch.float64 and not torch.is_grad_enabled()


def _through(x: Tensor, steps: list[_Step], member: int) -> Tensor:
    """What layers make of the samples of one trajectory."""
    for step in steps:
        x = _passed(x, step, member)
    return x.contiguous()


#: A layer with its stacked weight and bias, if it has any.
_Step = tuple[nn.Module, Tensor | None, Tensor | None]


def _passed(x: Tensor, step: _Step, member: int) -> Tensor:
    """What a layer makes of the samples of one trajectory."""
    layer, weight, bias = step
    if weight is None:
        sides = _windows(layer) if _diagnoses(x) else None
        found: Tensor = layer(x) if sides is None else _largest(x, *sides)
        return found
    return _convolved(layer, x, weight[member], None if bias is None else bias[member])


def _windows(layer: nn.Module) -> tuple[int, int] | None:
    """Height and width of max pooling's windows, if none overlaps another or leaves the image."""
    if type(layer) is not nn.MaxPool2d or layer.kernel_size != layer.stride:
        return None
    rest = layer.padding, layer.dilation, layer.return_indices, layer.ceil_mode
    if rest != (0, 1, False, False):
        return None
    size = layer.kernel_size
    return (size, size) if isinstance(size, int) else size


def _largest(x: Tensor, height: int, width: int) -> Tensor:
    """Max pooling without the places of the maxima, which a gradient needs and which cost most."""
    high, wide = (n // side * side for n, side in zip(x.shape[-2:], (height, width), strict=True))
    x = reduce(torch.maximum, (x[..., i:wide:width] for i in range(width)))
    return reduce(torch.maximum, (x[..., i:high:height, :] for i in range(height)))


def _covers(layer: nn.Module, x: Tensor) -> bool:
    """Whether a layer is a convolution whose kernel covers all that it sees: a linear layer."""
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1:
        return False
    return layer.padding == (0, 0) and tuple(x.shape[-2:]) == tuple(layer.kernel_size)


def _convolved(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.device.type == "cpu" and not _diagnoses(x):  # pooling is far faster so
        x = x.contiguous(memory_format=torch.channels_last)
        weight = weight.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _convolutions(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if _covers(layer, x):
        return _linear(x.flatten(2), weight.flatten(2), bias)[..., None, None]
    biases: Sequence[Tensor | None] = [None] * len(weight) if bias is None else list(bias)
    parts = zip(x.expand(len(weight), *x.shape[1:]), weight, biases, strict=True)
    return torch.stack([_convolved(layer, *part) for part in parts])
