"""Fully connected tanh networks on 5,000 images of CIFAR-10, at the edge of stability.

Cohen et al. 2021, figure 5, and Sun et al. 2024, figure 8: 200 units a layer, full-batch gradient
descent at lr 2 / 150, cross-entropy. With two hidden layers the sharpness stays below 2 / lr, with
four it passes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trainables.domain import Mistake
from trainables.losses import CROSS_ENTROPY, Loss
from trainables.options import whole
from trainables.tasks.image_task import ImageTask
from trainables.tasks.images import load


@dataclass(frozen=True)
class TanhNetwork(ImageTask):
    """Linear layers with tanh between; weights start as PyTorch's defaults.

    Every pixel is centred and divided by its standard deviation over all training images of the
    set, as in the program of Cohen et al.

    Args:
        samples: number of training images, or None for all there are.
        batch_size: mini-batch size, or None for full-batch gradient descent.
        layers: hidden layers, 2 or 4 in the papers.
        width: units of each.
    """

    samples: int | None = 5000
    batch_size: int | None = None
    layers: int = 2
    width: int = 200

    name: ClassVar[str] = "cifar-tanh"
    source: ClassVar[str] = "Cohen et al. 2021, figure 5; Sun et al. 2024, figure 8"
    needs: ClassVar[str | None] = "CIFAR-10, in data_root"
    metric_name: ClassVar[str] = "accuracy on held-out images"
    regularised_layer: ClassVar[str] = "output"
    loss: ClassVar[Loss] = CROSS_ENTROPY

    @property
    def _data(self) -> str:
        return "cifar-10"

    def _mistakes(self) -> Iterator[Mistake]:
        yield from super()._mistakes()
        yield from whole("task.layers", self.layers, 1, 16)
        yield from whole("task.width", self.width, 1, 65536)

    def module(self, seed: int) -> nn.Module:
        """The network with initial weights from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = nn.Sequential()
            before = int(np.prod(self.image_set.shape))
            for number in range(1, self.layers + 1):
                net.add_module(f"hidden{number}", nn.Linear(before, self.width))
                net.add_module(f"tanh{number}", nn.Tanh())
                before = self.width
            net.add_module("output", nn.Linear(before, 10))
            return net.double()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Share of images whose largest output is the right one."""
        return float((outputs.argmax(1) == targets).double().mean())

    def _inputs(self, images: Tensor) -> Tensor:
        mean, deviation = _pixels(self._data, self.data_root)
        return (images.flatten(1).double() / 255 - mean) / deviation


@lru_cache(maxsize=2)
def _pixels(data: str, data_root: str | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each pixel of images in [0, 1]."""
    images = load(data, data_root)[0][0]
    rows = images.reshape(len(images), -1)
    columns = np.array_split(rows, 64, axis=1)  # all of CIFAR-10 in float64 is a gigabyte
    mean = np.concatenate([c.mean(0, dtype=np.float64) for c in columns])
    deviation = np.concatenate([c.std(0, dtype=np.float64) for c in columns])
    return torch.from_numpy(mean / 255), torch.from_numpy(np.maximum(deviation, 1) / 255)
