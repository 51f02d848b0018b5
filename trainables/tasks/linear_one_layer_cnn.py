"""The linearised one-layer CNN on a checkerboard (Sun et al. 2024, section 5.3, Tables 2 and 9).

Near K * I = 0 gradient descent on the kernel K is linear: with the error a = prediction - label
held and a Swish of steepness beta,

    K <- K - lr [a beta / 2 (K * I) * I + weight_decay K]                              (eq. 11).

The paper's constant term, a / 2 times the mean of the image in its program, is 0 on a checkerboard.
For a < 0 too small a weight decay diverges; too large a one, 2 / lr for gradient descent, does for
every a (`analysis.theory.linear_cnn_decay_range`). `one-layer-cnn` is the same network without the
linearisation.

What is descended on, a beta / 4 sum_p <K, patch_p>^2, has no lower bound for a < 0: a loss that
falls for ever looks calm. So the loss has that gradient and those curvatures, and the absolute
value of it as its value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trainables.domain import InputError, Mistake
from trainables.losses import Loss
from trainables.options import flag, number_from, whole
from trainables.tasks.one_layer_cnn import checkerboard


class Convolution(nn.Module):
    """<K, patch_p>: a valid correlation of patches with one kernel.

    Args:
        kernel: initial kernel as a row, (1, w * w).
    """

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.kernel = nn.Parameter(kernel)

    def forward(self, patches: Tensor) -> Tensor:
        """Responses, (batch, patches), of patches (batch, patches, w * w)."""
        return patches @ self.kernel[0]


@dataclass(frozen=True)
class LinearOneLayerCNN:
    """The linearised one-layer CNN; the kernel starts as N(0, 1).

    A checkerboard has two distinct patches, +c and -c, which count alike here: one is kept with the
    number of its places. Nesterov's method is an optimiser (`optimiser: nesterov`); a time step dt
    of the paper's scheme is lr = dt^2 (1 + momentum) / 2 (`analysis.theory.nesterov_lr`).

    Args:
        image: side of the image, even (256 in the paper).
        kernel: side w of the kernel (16, 32 and 64 in the paper).
        error: a, prediction minus label (-1/2 in the paper).
        steepness: beta of the Swish, > 0.
        periodic: whether the image goes on at its edges: then every pixel is a place, and with
            `kernel` as large as `image` this is the paper's kernel without edges.
    """

    image: int = 256
    kernel: int = 16
    error: float = -0.5
    steepness: float = 1.0
    periodic: bool = False

    name: ClassVar[str] = "linear-one-layer-cnn"
    source: ClassVar[str] = "Sun et al. 2024, section 5.3, Tables 2 and 9"
    needs: ClassVar[str | None] = None
    metric_name: ClassVar[str] = "size of the response to the image (0 at the fixed point)"
    regularised_layer: ClassVar[str | None] = ""
    stand_in: ClassVar[str | None] = None
    batch: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        mistakes = [
            *whole("task.image", self.image, 2, 4096),
            *whole("task.kernel", self.kernel, 1, 512),
            *number_from("task.error", self.error, -1, 1),
            *number_from("task.steepness", self.steepness, 1e-6, 1e6),
            *flag("task.periodic", self.periodic),
        ]
        if not mistakes:
            mistakes += whole("task.kernel", self.kernel, 1, self.image - (not self.periodic))
            if self.image % 2:
                law = "even, so that the checkerboard has a mean of 0"
                mistakes.append(Mistake("task.image", self.image, law, f"use {self.image + 1}"))
        if mistakes:
            raise InputError(mistakes)

    @property
    def loss(self) -> Loss:
        """|a| beta / 4 times the sum of squared responses, with the gradient of a in place of |a|.

        Targets are how often each patch occurs.
        """
        return Loss("linearised", self._energy)

    def module(self, seed: int) -> nn.Module:
        """Kernel entries N(0, 1) from numpy's legacy generator, as in the authors' program."""
        kernel = np.random.RandomState(seed).randn(self.kernel, self.kernel)
        return Convolution(torch.from_numpy(kernel.reshape(1, -1)))

    def train_data(self) -> tuple[Tensor, Tensor]:
        """The one patch, (1, 1, w * w), and how often it and its negative occur, (1, 1)."""
        side = self.image if self.periodic else self.image - self.kernel + 1
        return checkerboard(self.kernel).reshape(1, 1, -1), torch.full((1, 1), side**2).double()

    def test_data(self) -> tuple[Tensor, Tensor]:
        """The training data: there are no others."""
        return self.train_data()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Size of the kernel's response to a patch."""
        return float(outputs.abs().max())

    def _energy(self, responses: Tensor, counts: Tensor) -> Tensor:
        squares = (counts * responses**2).sum() / len(responses)
        energy = self.error * self.steepness / 4 * squares
        return energy.detach().abs() + (energy - energy.detach())
