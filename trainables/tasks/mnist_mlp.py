"""A one-hidden-layer tanh network on MNIST, full batch or mini-batch."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trainables.domain import InputError, Mistake
from trainables.losses import CROSS_ENTROPY, SQUARED_ERROR, Loss
from trainables.options import choice, whole
from trainables.tasks.mnist import Images, mnist, root_mistakes


@dataclass(frozen=True)
class MnistMLP:
    """784 - width - 10 tanh network; weights start as N(0, 1 / fan_in), biases at 0.

    Args:
        samples: number of training images, at most 4,000 (60,000 with a data root).
        batch_size: mini-batch size, or None for full-batch gradient descent.
        loss_name: `cross-entropy`, or `squared-error` (1/2 sum over outputs) on one-hot targets.
        width: hidden units.
        data_root: folder with the full MNIST, or None for the images that come along.
    """

    samples: int = 500
    batch_size: int | None = None
    loss_name: str = "cross-entropy"
    width: int = 32
    data_root: str | None = None

    name: ClassVar[str] = "mnist-mlp"
    source: ClassVar[str] = "own: a small network as in Cohen et al. 2021, on MNIST"
    needs: ClassVar[str | None] = None
    metric_name: ClassVar[str] = "accuracy on held-out images"
    regularised_layer: ClassVar[str] = "output"
    stand_in: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        most = 4000 if self.data_root is None else 60000
        mistakes: list[Mistake] = [
            *whole("task.samples", self.samples, 1, most),
            *whole("task.width", self.width, 1, 65536),
            *choice("task.loss_name", self.loss_name, ("cross-entropy", "squared-error")),
            *root_mistakes(self.data_root),
        ]
        if self.batch_size is not None and not mistakes:
            mistakes += whole("task.batch_size", self.batch_size, 1, self.samples)
        if mistakes:
            raise InputError(mistakes)

    @property
    def loss(self) -> Loss:
        """Cross-entropy, or the squared error."""
        return CROSS_ENTROPY if self.loss_name == "cross-entropy" else SQUARED_ERROR

    @property
    def batch(self) -> int | None:
        """Mini-batch size."""
        return self.batch_size

    def module(self, seed: int) -> nn.Module:
        """The network with initial weights from the seed."""
        random = np.random.RandomState(seed)
        with torch.random.fork_rng(devices=[]):  # PyTorch's own starting values are not wanted
            net = nn.Sequential(
                OrderedDict(
                    hidden=nn.Linear(784, self.width, dtype=torch.float64),
                    tanh=nn.Tanh(),
                    output=nn.Linear(self.width, 10, dtype=torch.float64),
                )
            )
        with torch.no_grad():
            for layer in (net.hidden, net.output):
                assert isinstance(layer, nn.Linear)
                weight = random.randn(layer.out_features, layer.in_features)
                layer.weight.copy_(torch.from_numpy(weight / np.sqrt(layer.in_features)))
                layer.bias.zero_()
        return net

    def train_data(self) -> tuple[Tensor, Tensor]:
        """The first `samples` training images, as rows, and their targets."""
        (images, labels), _ = mnist(self.data_root)
        return self._tensors((images[: self.samples], labels[: self.samples]))

    def test_data(self) -> tuple[Tensor, Tensor]:
        """The held-out images, as rows, and their targets."""
        return self._tensors(mnist(self.data_root)[1])

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Share of images whose largest output is the right one."""
        right = targets if targets.ndim == 1 else targets.argmax(1)
        return float((outputs.argmax(1) == right).double().mean())

    def _tensors(self, data: Images) -> tuple[Tensor, Tensor]:
        images, labels = data
        rows = torch.from_numpy(images.reshape(len(images), -1))
        targets = torch.from_numpy(labels)
        if self.loss_name == "squared-error":
            targets = nn.functional.one_hot(targets, 10).double()
        return rows, targets
