"""Pairs of residual networks, one convex function less another, on MNIST.

Nar and Sastry 2018 ("Residual networks: Lyapunov stability and convex decomposition"). Every smooth
function on a bounded domain is a convex one less a convex one, so each of ten outputs is g - h with
a residual network for each: twenty networks on the features of one convolution with max pooling.
What the text at hand does not say is chosen here: sizes, loss, start, and how signs are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.domain import Mistake
from trainables.losses import CROSS_ENTROPY, SQUARED_ERROR, Loss
from trainables.options import choice, whole
from trainables.tasks.image_task import ImageTask

CLASSES = 10
#: Side of the filters, and of the windows that the maximum is taken over.
FILTER, WINDOW = 5, 4


class ConvexNetworks(nn.Module):
    """Convex functions of the same features, each a residual network of its own.

    z_0 is the features, z_(l+1) = z_l + W_l [z_l - b_l]_+, the value is a . z_L. All entries of W
    and a are squares of what is trained, so none is negative: every coordinate of z_l, and the
    value, is convex in the features.

    Args:
        count: number of functions.
        size: number of features.
        depth: L.
    """

    def __init__(self, count: int, size: int, depth: int) -> None:
        super().__init__()
        self.roots = nn.Parameter(torch.randn(depth, count, size, size) / (size * depth) ** 0.5)
        self.thresholds = nn.Parameter(2 * torch.rand(depth, count, size) - 1)
        self.ends = nn.Parameter(torch.randn(count, size) / size**0.5)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, count) from (batch, size)."""
        z = features[:, None].expand(-1, len(self.ends), -1)
        for roots, thresholds in zip(self.roots, self.thresholds, strict=True):
            z = z + torch.einsum("bkn,kmn->bkm", F.relu(z - thresholds), roots**2)
        return (z * self.ends**2).sum(2)


class PairedNetwork(nn.Module):
    """Filters, maxima over windows, then an affine function + g - h for each class."""

    def __init__(self, filters: int, side: int, depth: int) -> None:
        super().__init__()
        self.filters = nn.Conv2d(1, filters, FILTER)
        size = filters * ((side - FILTER + 1) // WINDOW) ** 2
        self.convex = ConvexNetworks(2 * CLASSES, size, depth)
        self.affine = nn.Linear(size, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """(batch, size)."""
        return F.max_pool2d(self.filters(images), WINDOW).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 10)."""
        features = self.features(images)
        upper, lower = self.convex(features).split(CLASSES, 1)
        found: Tensor = self.affine(features) + upper - lower
        return found


@dataclass(frozen=True)
class ConvexPairs(ImageTask):
    """Ten pairs of residual networks.

    Thresholds b start uniform in [-1, 1], about the range of the features; filters and the affine
    part as PyTorch's defaults.

    Args:
        batch_size: mini-batch size, or None for full-batch gradient descent.
        filters: number of 5 x 5 filters; each gives 36 features.
        depth: layers of each residual network.
        loss_name: `cross-entropy`, or `squared-error` (1/2 sum over outputs) on one-hot targets.
    """

    batch_size: int | None = 100
    filters: int = 2
    depth: int = 3
    loss_name: str = "cross-entropy"

    name: ClassVar[str] = "mnist-convex-pairs"
    source: ClassVar[str] = "Nar and Sastry 2018 (residual networks), the section on MNIST"
    needs: ClassVar[str | None] = "all of MNIST, in data_root"
    metric_name: ClassVar[str] = "accuracy on held-out images"
    regularised_layer: ClassVar[str] = "affine"

    @property
    def _data(self) -> str:
        return "mnist"

    def _mistakes(self) -> Iterator[Mistake]:
        yield from super()._mistakes()
        yield from whole("task.filters", self.filters, 1, 64)
        yield from whole("task.depth", self.depth, 1, 64)
        yield from choice("task.loss_name", self.loss_name, ("cross-entropy", "squared-error"))

    @property
    def loss(self) -> Loss:
        """Cross-entropy, or the squared error."""
        return CROSS_ENTROPY if self.loss_name == "cross-entropy" else SQUARED_ERROR

    def module(self, seed: int) -> nn.Module:
        """The network with initial weights from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return PairedNetwork(self.filters, self.image_set.shape[1], self.depth).double()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Share of images whose largest output is the right one."""
        right = targets if targets.ndim == 1 else targets.argmax(1)
        return float((outputs.argmax(1) == right).double().mean())

    def _inputs(self, images: Tensor) -> Tensor:
        return images.double() / 255

    def _targets(self, labels: object) -> Tensor:
        numbers = torch.as_tensor(labels)
        one_hot = self.loss_name == "squared-error"
        return F.one_hot(numbers, CLASSES).double() if one_hot else numbers
