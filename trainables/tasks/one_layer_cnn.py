"""The non-linear one-layer CNN on a checkerboard (Sun et al. 2024, section 5.4, Figs. 5 and 6).

One kernel K, valid correlation with a checkerboard image of entries -1 and +1, Swish, mean pooling,
sigmoid, binary cross-entropy with label 1. Its phases are known exactly (`analysis.theory`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from trainables.domain import InputError, Mistake
from trainables.losses import BINARY_CROSS_ENTROPY, Loss
from trainables.options import whole


class PooledConvolution(nn.Module):
    """sum_p weight_p swish(<K, patch_p>): a valid correlation, Swish and a mean pool in one.

    Args:
        kernel: initial kernel as a row, (1, w * w).
        weights: share of the image that each patch covers, (patches,), summing to 1.
    """

    weights: Tensor

    def __init__(self, kernel: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.kernel = nn.Parameter(kernel)
        self.register_buffer("weights", weights)

    def forward(self, patches: Tensor) -> Tensor:
        """Logits, (batch,), of patches (batch, patches, w * w)."""
        response = patches @ self.kernel[0]
        return (response * torch.sigmoid(response)) @ self.weights


class PooledConvolutions:
    """`PooledConvolution` for many kernels at once, with the gradient in closed form.

    An ensemble backend (`trainables.dynamics.ensembles`). With z_p = <K, patch_p>, s the logistic
    function and y = sum_p weight_p z_p s(z_p), the gradient of the loss l(y, label) by K is
    (s(y) - label) sum_p weight_p s(z_p) (1 + z_p (1 - s(z_p))) patch_p.

    Args:
        weights: share of the image that each patch covers, (patches,).
    """

    name: ClassVar[str] = "exact"

    def __init__(self, weights: Tensor) -> None:
        self._weights = weights

    def losses(
        self, stack: Sequence[Tensor], inputs: Tensor, targets: Tensor, each: bool
    ) -> Tensor:
        """(kernels,) losses of kernels (kernels, 1, w * w) on one image, which all share."""
        (kernels,) = stack
        responses = self._responses(kernels, inputs)
        logits = self._logits(responses, _logistic(responses), kernels)
        return torch.log1p(torch.exp(-logits.abs())) + logits.clamp_min(0) - logits * targets

    def gradients(
        self, stack: Sequence[Tensor], inputs: Tensor, targets: Tensor, each: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """These losses and their gradients, (kernels, 1, w * w)."""
        (kernels,) = stack
        z = self._responses(kernels, inputs)
        s = _logistic(z)
        logits = self._logits(z, s, kernels)
        by_logit = _logistic(logits) - targets
        slopes = s * (1 + z * (1 - s)) * self._weights.to(kernels) * by_logit[:, None]
        patches = inputs.expand(len(kernels), -1, -1)
        losses = torch.log1p(torch.exp(-logits.abs())) + logits.clamp_min(0) - logits * targets
        return losses, [torch.bmm(slopes[:, None], patches)]

    def _responses(self, kernels: Tensor, inputs: Tensor) -> Tensor:
        """(kernels, patches)."""
        patches = inputs.expand(len(kernels), -1, -1)
        return torch.bmm(kernels, patches.transpose(1, 2))[:, 0]

    def _logits(self, responses: Tensor, logistic: Tensor, kernels: Tensor) -> Tensor:
        return (responses * logistic * self._weights.to(kernels)).sum(1)


#: Of all patches together where none are summed up: 1 GiB.
MOST_ENTRIES = 2**27


def _logistic(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)): on a CPU torch's sigmoid rounds the last few entries otherwise."""
    return 1 / (1 + torch.exp(-x))


def checkerboard(size: int) -> Tensor:
    """(size, size) image of -1 where row + column is even and +1 elsewhere, float64."""
    index = torch.arange(size)
    return torch.where((index[:, None] + index[None, :]) % 2 == 0, -1.0, 1.0).double()


@dataclass(frozen=True)
class OneLayerCNN:
    """The one-layer CNN.

    A checkerboard has just two distinct patches, +c and -c, so the network is a weighted sum over
    two patches: the same function with up to 25,000 times less work. `distinct=False` keeps every
    patch, for checking.

    Args:
        image: side of the image; mean pooling makes it nearly irrelevant (256 in the paper).
        kernel: side w of the kernel.
        distinct: whether equal patches are summed up first.
    """

    image: int = 256
    kernel: int = 32
    distinct: bool = True

    name: ClassVar[str] = "one-layer-cnn"
    source: ClassVar[str] = "Sun et al. 2024, section 5.4, Figs. 5 and 6"
    needs: ClassVar[str | None] = None
    metric_name: ClassVar[str] = "probability of the label"
    regularised_layer: ClassVar[str] = ""
    stand_in: ClassVar[str | None] = None
    loss: ClassVar[Loss] = BINARY_CROSS_ENTROPY
    batch: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        mistakes = [
            *whole("task.image", self.image, 2, 4096),
            *whole("task.kernel", self.kernel, 1, 512),
        ]
        if not mistakes:
            mistakes += whole("task.kernel", self.kernel, 1, self.image - 1)
        if not mistakes and not self.distinct:
            entries = ((self.image - self.kernel + 1) * self.kernel) ** 2
            if entries > MOST_ENTRIES:
                law = f"every patch apart makes {entries:,} numbers, more than {MOST_ENTRIES:,}"
                mistakes.append(Mistake("task.distinct", False, law, "use distinct: true"))
        if mistakes:
            raise InputError(mistakes)

    def module(self, seed: int) -> nn.Module:
        """Kernel entries N(0, 1) from numpy's legacy generator, as in the authors' program."""
        kernel = np.random.RandomState(seed).randn(self.kernel, self.kernel)
        return PooledConvolution(torch.from_numpy(kernel.reshape(1, -1)), self._patches()[1])

    def ensemble(self) -> PooledConvolutions:
        """The exact program for many kernels."""
        return PooledConvolutions(self._patches()[1])

    def train_data(self) -> tuple[Tensor, Tensor]:
        """Patches (1, patches, w * w) of the image and its label."""
        return self._patches()[0][None], torch.ones(1, dtype=torch.float64)

    def test_data(self) -> tuple[Tensor, Tensor]:
        """The training image: there is no other."""
        return self.train_data()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Mean probability given to the label."""
        return float(torch.sigmoid(outputs).mean())

    def _patches(self) -> tuple[Tensor, Tensor]:
        side = self.image - self.kernel + 1
        if not self.distinct:
            image = checkerboard(self.image)
            patches = image.unfold(0, self.kernel, 1).unfold(1, self.kernel, 1)
            count = side * side
            return (
                patches.reshape(count, -1),
                torch.full((count,), 1 / count, dtype=torch.float64),
            )
        pattern = checkerboard(self.kernel).reshape(1, -1)
        even = (side * side + 1) // 2  # patches whose corner lies on an even square
        counts = torch.tensor([even, side * side - even], dtype=torch.float64)
        return torch.cat([pattern, -pattern]), counts / (side * side)
