"""One to three convolutions of one channel on the digits 0 and 1 (Sun et al. 2024, section 6).

Its figures 7 and 9: 3 x 3 kernels, Swish, full-batch gradient descent, cross-entropy. The paper
gives neither the start of the kernels, nor the pooling, nor the scale of the images. Here, as in
its one-layer model: no edges, no bias, a mean over all pixels at the end, kernels N(0, 1 / 9),
images in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trainables.domain import Mistake
from trainables.losses import BINARY_CROSS_ENTROPY, Loss
from trainables.options import whole
from trainables.tasks.image_task import ImageTask
from trainables.tasks.images import Images
from trainables.tasks.swish import Swish

#: Zeros and ones among the training images: that come along, and of the full MNIST.
BUILT_IN, FULL = 793, 12665


class MeanPool(nn.Module):
    """The mean over all channels and pixels, (batch,)."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, rows, columns)."""
        return x.flatten(1).mean(1)


@dataclass(frozen=True)
class OneChannelCNN(ImageTask):
    """Is it a one? The mean of Swish of 3 x 3 correlations is the logit.

    Args:
        samples: number of training images of a zero or a one, or None for all there are.
        batch_size: mini-batch size, or None for full-batch gradient descent.
        layers: convolutions, 1 to 3.
    """

    batch_size: int | None = None
    layers: int = 1

    name: ClassVar[str] = "mnist-cnn"
    source: ClassVar[str] = "Sun et al. 2024, section 6, figures 7 and 9"
    needs: ClassVar[str | None] = "MNIST, in data_root, for all 12,665 zeros and ones"
    metric_name: ClassVar[str] = "accuracy on held-out images"
    loss: ClassVar[Loss] = BINARY_CROSS_ENTROPY

    @property
    def regularised_layer(self) -> str:
        """The last convolution."""
        return f"conv{self.layers}"

    @property
    def _data(self) -> str:
        return "mnist"

    def _mistakes(self) -> Iterator[Mistake]:
        yield from super()._mistakes()
        yield from whole("task.layers", self.layers, 1, 3)

    @property
    def _most(self) -> int:
        return BUILT_IN if self.data_root is None else FULL

    def module(self, seed: int) -> nn.Module:
        """The network with kernels from the seed."""
        random = np.random.RandomState(seed)
        net = nn.Sequential()
        for number in range(1, self.layers + 1):
            with torch.random.fork_rng(devices=[]):  # PyTorch's own start is not wanted
                conv = nn.Conv2d(1, 1, 3, bias=False, dtype=torch.float64)
            with torch.no_grad():
                conv.weight.copy_(torch.from_numpy(random.randn(1, 1, 3, 3) / 3))
            net.add_module(f"conv{number}", conv)
            net.add_module(f"swish{number}", Swish(1.0))
        net.add_module("pool", MeanPool())
        return net

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Share of images on the right side of 0."""
        return float(((outputs > 0) == (targets > 0.5)).double().mean())

    def _kept(self, images: Images) -> Images:
        pixels, labels = images
        return pixels[labels < 2], labels[labels < 2]

    def _inputs(self, images: Tensor) -> Tensor:
        return images.double() / 255

    def _targets(self, labels: object) -> Tensor:
        return torch.as_tensor(labels).double()
