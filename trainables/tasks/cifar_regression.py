"""LeNet-5 with one output that names the class of a colour image (Fang et al. 2022, section 4).

The paper shows CIFAR-10 at a learning rate of 0.2 and alpha 10 (its figure 4) and does not name the
network; the one of its MNIST runs is taken, with three channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainables.domain import Mistake
from trainables.losses import ABSOLUTE_ERROR, MEAN_SQUARED_ERROR, Loss
from trainables.options import choice
from trainables.tasks.image_task import ImageTask
from trainables.tasks.lenet import lenet
from trainables.tasks.mnist_regression import TOLERANCE, tolerance_mistakes, within


@dataclass(frozen=True)
class CIFARRegression(ImageTask):
    """Class numbers of CIFAR-10 by regression.

    Args:
        batch_size: mini-batch size, or None for full-batch gradient descent; 100 on MNIST.
        loss_name: `absolute-error` (the authors' program) or `mean-squared-error`.
        tolerance: distance from the class number within which a prediction is right.
    """

    batch_size: int | None = 100
    loss_name: str = "absolute-error"
    tolerance: float = TOLERANCE

    name: ClassVar[str] = "cifar-regression"
    source: ClassVar[str] = "Fang et al. 2022, section 4, figure 4 (bottom)"
    needs: ClassVar[str | None] = "CIFAR-10, in data_root"
    metric_name: ClassVar[str] = "share of held-out images within the tolerance of the class"
    regularised_layer: ClassVar[str] = "fc3"

    @property
    def _data(self) -> str:
        return "cifar-10"

    def _mistakes(self) -> Iterator[Mistake]:
        yield from super()._mistakes()
        names = (ABSOLUTE_ERROR.name, MEAN_SQUARED_ERROR.name)
        yield from choice("task.loss_name", self.loss_name, names)
        yield from tolerance_mistakes(self.tolerance)

    @property
    def loss(self) -> Loss:
        """Absolute or mean squared error."""
        return ABSOLUTE_ERROR if self.loss_name == "absolute-error" else MEAN_SQUARED_ERROR

    def module(self, seed: int) -> nn.Module:
        """The network with initial weights from the seed."""
        return lenet(3, seed)

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Share of predictions within the tolerance of the class number."""
        return within(outputs, targets, self.tolerance)

    def _targets(self, labels: object) -> Tensor:
        return torch.as_tensor(labels).double()[:, None]
