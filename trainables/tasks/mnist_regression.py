"""LeNet-5 with one output that names the digit: the setting of the stabilisation paper.

Fang et al. (ACCV 2022), section 4.1, with the details of their program: images resized to 32 x 32
and normalised, mini-batches of 100, absolute error, plain SGD; a prediction counts as right
within 0.45 of the digit. The metric is measured every 20 updates (`evaluate_every: 20`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainables.domain import InputError, Mistake
from trainables.losses import ABSOLUTE_ERROR, MEAN_SQUARED_ERROR, Loss
from trainables.options import choice, whole
from trainables.tasks.lenet import lenet
from trainables.tasks.mnist import Images, mnist, root_mistakes

#: A prediction is right within this distance of the digit (the authors' program; not 0.5).
TOLERANCE = 0.45


@dataclass(frozen=True)
class MnistRegression:
    """Digit regression with LeNet-5; weights start as PyTorch's defaults.

    Args:
        samples: number of training images, at most 4,000 (60,000 with a data root).
        batch_size: mini-batch size, or None for full-batch gradient descent.
        loss_name: `absolute-error` (the paper's runs) or `mean-squared-error`.
        tolerance: distance from the digit within which a prediction is right.
        data_root: folder with the full MNIST, or None for the images that come along.
    """

    samples: int = 4000
    batch_size: int | None = 100
    loss_name: str = "absolute-error"
    tolerance: float = TOLERANCE
    data_root: str | None = None

    name: ClassVar[str] = "mnist-regression"
    source: ClassVar[str] = "Fang et al. 2022, section 4.1"
    needs: ClassVar[str | None] = "all of MNIST, in data_root"
    metric_name: ClassVar[str] = "share of held-out images within the tolerance of the digit"
    regularised_layer: ClassVar[str] = "fc3"
    stand_in: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        most = 4000 if self.data_root is None else 60000
        mistakes: list[Mistake] = [
            *whole("task.samples", self.samples, 1, most),
            *choice("task.loss_name", self.loss_name, ("absolute-error", "mean-squared-error")),
            *tolerance_mistakes(self.tolerance),
            *root_mistakes(self.data_root),
        ]
        if self.batch_size is not None and not mistakes:
            mistakes += whole("task.batch_size", self.batch_size, 1, self.samples)
        if mistakes:
            raise InputError(mistakes)

    @property
    def loss(self) -> Loss:
        """Absolute or mean squared error."""
        return ABSOLUTE_ERROR if self.loss_name == "absolute-error" else MEAN_SQUARED_ERROR

    @property
    def batch(self) -> int | None:
        """Mini-batch size."""
        return self.batch_size

    def module(self, seed: int) -> nn.Module:
        """The network with initial weights from the seed."""
        return lenet(1, seed)

    def train_data(self) -> tuple[Tensor, Tensor]:
        """The first `samples` training images and their digits."""
        (images, labels), _ = mnist(self.data_root)
        return self._tensors((images[: self.samples], labels[: self.samples]))

    def test_data(self) -> tuple[Tensor, Tensor]:
        """The held-out images and their digits."""
        return self._tensors(mnist(self.data_root)[1])

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Share of predictions within the tolerance of the digit."""
        return within(outputs, targets, self.tolerance)

    def _tensors(self, data: Images) -> tuple[Tensor, Tensor]:
        images, labels = data
        small = torch.from_numpy(images)[:, None]
        large = nn.functional.interpolate(small, (32, 32), mode="bilinear", align_corners=False)
        return (large - 0.1307) / 0.3081, torch.from_numpy(labels).double()[:, None]


def within(outputs: Tensor, targets: Tensor, tolerance: float) -> float:
    """Share of outputs that are no further than this from their targets."""
    return float(((outputs - targets).abs() <= tolerance).double().mean())


def tolerance_mistakes(tolerance: object) -> Iterator[Mistake]:
    """A mistake where `tolerance` is no positive number."""
    number = isinstance(tolerance, (int, float)) and not isinstance(tolerance, bool)
    if not number or not 0 < tolerance < float("inf"):  # type: ignore[operator]
        yield Mistake("task.tolerance", tolerance, "a number > 0", f"use {TOLERANCE}")
