"""Residual networks for small images, as in "Restrained numerical instabilities" (Sun et al. 2024).

The networks are those of He et al. 2016, section 4.2: a first convolution, three groups of blocks
of two convolutions each with 16, 32 and 64 channels, global mean pooling and a linear layer.
Shortcuts have no parameters (option A): where the image halves, every second pixel is taken and the
channels that are new are zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.domain import Mistake
from trainables.options import choice, whole
from trainables.tasks.image_task import ImageClassifier
from trainables.tasks.swish import NAMES, activation


class Block(nn.Module):
    """Two convolutions with batch normalisation, and a shortcut without parameters around them."""

    def __init__(self, before: int, after: int, stride: int, act: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.act = act
        self._stride, self._new = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, rows, columns)."""
        inner = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        short = x[:, :, :: self._stride, :: self._stride]
        found: Tensor = self.act(inner + F.pad(short, (0, 0, 0, 0, 0, self._new)))
        return found


class ResidualNetwork(nn.Module):
    """A network of 6 n + 2 layers.

    Args:
        channels: of the images.
        blocks: n, blocks of each of the three groups.
        width: channels of the first group; the second has twice and the third four times as many.
        act: activation.
    """

    def __init__(self, channels: int, blocks: int, width: int, act: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = act
        parts, before = [], width
        for group in range(3):
            for number in range(blocks):
                after = width * 2**group
                parts.append(Block(before, after, 2 if group and not number else 1, act))
                before = after
        self.blocks = nn.Sequential(*parts)
        self.output = nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (batch, 10)."""
        features = self.blocks(self.act(self.norm(self.conv(x)))).mean((2, 3))
        logits: Tensor = self.output(features)
        return logits


@dataclass(frozen=True)
class ResNet(ImageClassifier):
    """A residual network; weights start as in He et al. 2015: N(0, 2 / fan_in).

    With 10 classes and 3 channels, 20 layers have 269,722 parameters and 56 layers 853,018: the
    0.27 and 0.85 million of table 6 in He et al. 2016. (855,770 is the count with the convolutions
    of option B in its two shortcuts.)

    Args:
        depth: number of layers, 6 n + 2.
        width: channels of the first group of blocks; 16 in the papers.
        activation: `relu` or `swish`.
        swish_slope: 5 in the authors' program, which the paper does not say: x sigmoid(5 x).
    """

    depth: int = 56
    width: int = 16
    activation: str = "relu"
    swish_slope: float = 5.0

    name: ClassVar[str] = "resnet"
    source: ClassVar[str] = "Sun et al. 2024, section 4, table 1 and appendix C"
    regularised_layer: ClassVar[str] = "output"

    def _mistakes(self) -> Iterator[Mistake]:
        yield from super()._mistakes()
        if self.depth not in range(8, 1203, 6):
            law = "6 n + 2 layers for a whole n from 1 to 200"
            yield Mistake("task.depth", self.depth, law, "use 20, 56 or, to be quick, 8")
        yield from whole("task.width", self.width, 1, 1024)
        yield from choice("task.activation", self.activation, NAMES)
        yield from slope_mistakes(self.swish_slope)

    def module(self, seed: int) -> nn.Module:
        """The network with initial weights from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            act = activation(self.activation, self.swish_slope)
            channels = self.image_set.shape[0]
            net = ResidualNetwork(channels, (self.depth - 2) // 6, self.width, act)
            for part in net.modules():
                if isinstance(part, (nn.Conv2d, nn.Linear)):
                    nn.init.kaiming_normal_(part.weight)
            return net.double()


def slope_mistakes(slope: object) -> Iterator[Mistake]:
    """A mistake where `slope` is no positive number."""
    number = isinstance(slope, (int, float)) and not isinstance(slope, bool)
    if not number or not 0 < slope <= 1000:  # type: ignore[operator]
        yield Mistake("task.swish_slope", slope, "a number in (0, 1000]", "use 5 or 1")
