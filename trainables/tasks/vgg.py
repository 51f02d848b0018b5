"""VGG16 with batch normalisation for small images, as in Sun et al. 2024, appendix C."""

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
from trainables.tasks.resnet import slope_mistakes
from trainables.tasks.swish import NAMES, activation

#: Convolutions before each of the five poolings, and their channels over those of the first.
STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))


@dataclass(frozen=True)
class VGG16(ImageClassifier):
    """Thirteen convolutions with batch normalisation, five poolings, one linear layer.

    This is configuration D of Simonyan and Zisserman 2014 with one linear layer of 512 x 10 in
    place of its three, as is usual for 32 x 32 pixels: 14,728,266 parameters with 3 channels (the
    count of the public program pytorch-cifar). Images of 28 x 28 pixels get an edge of two pixels
    of black, since five poolings need 32. Weights start as PyTorch's defaults.

    Args:
        width: channels of the first convolution, 64 in the paper; the others follow.
        activation: `relu` or `swish`.
        swish_slope: of x sigmoid(slope x); 5 in the authors' program for residual networks.
    """

    width: int = 64
    activation: str = "relu"
    swish_slope: float = 5.0

    name: ClassVar[str] = "vgg16-bn"
    source: ClassVar[str] = "Sun et al. 2024, section 4 and appendix C"
    regularised_layer: ClassVar[str] = "output"

    def _mistakes(self) -> Iterator[Mistake]:
        yield from super()._mistakes()
        yield from whole("task.width", self.width, 1, 1024)
        yield from choice("task.activation", self.activation, NAMES)
        yield from slope_mistakes(self.swish_slope)

    def module(self, seed: int) -> nn.Module:
        """The network with initial weights from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = nn.Sequential()
            before = self.image_set.shape[0]
            for stage, (count, times) in enumerate(STAGES, 1):
                for number in range(1, count + 1):
                    after, place = self.width * times, f"{stage}_{number}"
                    net.add_module(f"conv{place}", nn.Conv2d(before, after, 3, padding=1))
                    net.add_module(f"norm{place}", nn.BatchNorm2d(after))
                    net.add_module(f"act{place}", activation(self.activation, self.swish_slope))
                    before = after
                net.add_module(f"pool{stage}", nn.MaxPool2d(2))
            net.add_module("flatten", nn.Flatten())
            net.add_module("output", nn.Linear(before, 10))
            return net.double()

    def _inputs(self, images: Tensor) -> Tensor:
        edge = (32 - images.shape[-1]) // 2
        return super()._inputs(F.pad(images, (edge,) * 4))
