"""Orthogonality penalty for convolutional layers (Achour, Malgouyres and Mamalet 2022).

A convolution preserves norms, and so neither amplifies nor damps, where the correlation of its
kernels with each other is 1 at shift 0 for a kernel with itself and 0 everywhere else (Wang et
al. 2020, "Orthogonal convolutional neural networks").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.domain import InputError, Mistake, Training
from trainables.dynamics.layers import layer_mistakes, named_layers
from trainables.dynamics.stabilisers.base import Action, Setting, Stabiliser, Step
from trainables.options import as_names, layer_names
from trainables.tasks import Task


def orthogonality_penalty(kernel: Tensor, stride: int = 1) -> Tensor:
    """||conv(K, K, padding P, stride S) - I||_F^2 - max(M - C S^2, 0), P = floor((k-1)/S) S.

    It is 0 exactly where the layer with circular padding is orthogonal (in its rows where
    M <= C S^2, in its columns else), and grows with the distance from that.

    Args:
        kernel: (M, C, k, k), a square kernel.
        stride: S >= 1, the same in both directions.

    Returns:
        A scalar >= 0.

    Raises:
        InputError: another shape, or stride < 1.
    """
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
        raise InputError(
            [Mistake("kernel", tuple(kernel.shape), "(M, C, k, k), square", "use another layer")]
        )
    if stride < 1:
        raise InputError([Mistake("stride", stride, "stride >= 1", "use 1")])
    outputs, inputs, side, _ = kernel.shape
    padding = (side - 1) // stride * stride
    correlation = F.conv2d(kernel, kernel, stride=stride, padding=padding)
    centre = padding // stride
    target = torch.zeros_like(correlation)
    target[:, :, centre, centre] = torch.eye(outputs, dtype=kernel.dtype, device=kernel.device)
    surplus = max(outputs - inputs * stride**2, 0)
    return ((correlation - target) ** 2).sum() - surplus


@dataclass(frozen=True)
class OrthogonalConvolution(Stabiliser):
    """L + alpha sum over convolutions of `orthogonality_penalty`.

    Args:
        layers: names of two-dimensional convolutions with square kernels; None takes all of them.
    """

    layers: tuple[str, ...] | None = None

    name: ClassVar[str] = "orthogonal-convolution"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", as_names(self.layers))
        mistakes = list(layer_names("stabiliser.layers", self.layers))
        if mistakes:
            raise InputError(mistakes)

    def mistakes(self, task: Task, training: Training) -> Iterable[Mistake]:
        """Layers that there are not, that the penalty is not defined for, or none at all."""
        module = task.module(0)
        wrong = layer_mistakes("stabiliser.layers", self.layers or (), module, (nn.Conv2d,))
        yield from wrong
        chosen = {} if wrong else self._chosen(module)
        if not chosen and not wrong:
            yield Mistake(
                "stabiliser",
                self.name,
                f"the task {task.name} has no convolutional layer",
                "use another stabiliser",
            )
        for name, layer in chosen.items():
            if not _plain(layer):
                yield Mistake(
                    "stabiliser.layers",
                    name,
                    "needs a square kernel, one stride, no groups and no dilation",
                    "name other layers",
                )

    def _chosen(self, module: nn.Module) -> dict[str, nn.Conv2d]:
        found = named_layers(module, (nn.Conv2d,))
        return {
            name: layer
            for name, layer in found.items()
            if isinstance(layer, nn.Conv2d) and (self.layers is None or name in self.layers)
        }

    @property
    def keeps_threshold(self) -> bool:
        """The penalty bends the loss too, and not convexly."""
        return False

    def start(self, setting: Setting, alpha: float) -> Action:
        """Nothing is remembered between steps."""
        position = {id(p): i for i, p in enumerate(setting.module.parameters())}
        layers = self._chosen(setting.module).values()
        kernels = [(position[id(layer.weight)], layer.stride[0]) for layer in layers]
        return _OrthogonalConvolution(kernels, alpha)


def _plain(layer: nn.Conv2d) -> bool:
    square = layer.kernel_size[0] == layer.kernel_size[1] and layer.stride[0] == layer.stride[1]
    return square and layer.groups == 1 and layer.dilation == (1, 1)


class _OrthogonalConvolution(Action):
    def __init__(self, kernels: list[tuple[int, int]], alpha: float) -> None:
        #: Index of each kernel among the parameters, and stride.
        self.kernels, self.alpha = kernels, alpha

    def gradients(self, step: Step) -> tuple[Tensor, ...]:
        gradients = list(step.plain_gradients())
        for index, stride in self.kernels:
            kernel = step.parameters[index].detach().requires_grad_()
            with torch.enable_grad():
                penalty = self.alpha * orthogonality_penalty(kernel, stride)
            gradients[index] = gradients[index] + torch.autograd.grad(penalty, kernel)[0]
        return tuple(gradients)
