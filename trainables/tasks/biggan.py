"""BigGAN on 32 x 32 colour images: classes in both players, spectral normalisation in both.

Brock et al. (ICLR 2019); the network for 32 x 32 images is that of its authors' PyTorch program
(64 channels, three blocks of four times as many, one embedding a batch normalisation). Fang et al.
(ACCV 2022), section 4.3 and table 2, train it on CIFAR-100 with Adam at rates of 2e-4 and 6e-4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.domain import Mistake
from trainables.options import whole
from trainables.tasks.adversarial import AdversarialTask
from trainables.tasks.sngan import Generator, down_blocks, normalise


@dataclass(frozen=True)
class BigGAN(AdversarialTask):
    """BigGAN, 64 channels.

    With 100 classes the generator has 4,580,867 parameters and the discriminator 4,230,401, counted
    from that program's configuration for CIFAR; the paper itself gives counts for ImageNet alone.

    Args:
        generator_width: a quarter of the channels of the generator; `width` is that of the
            discriminator.
    """

    batch_size: int | None = 50
    discriminator_steps: int = 4
    width: int = 64
    generator_width: int = 64

    name: ClassVar[str] = "biggan"
    source: ClassVar[str] = "Fang et al. 2022, section 4.3, table 2; Brock et al. 2019"
    needs: ClassVar[str | None] = (
        "CIFAR-100 (data_root), Inception's weights for an FID (inception)"
    )
    set_name: ClassVar[str] = "cifar-100"
    classes: ClassVar[int] = 100

    def _mistakes(self) -> Iterator[Mistake]:
        yield from whole("task.generator_width", self.generator_width, 1, 1024)
        yield from super()._mistakes()

    def players(self) -> tuple[nn.Module, nn.Module]:
        """Generator and discriminator."""
        made = (
            Generator(4 * self.generator_width, partial(_ClassNorm, classes=self.classes)),
            Discriminator(4 * self.width, self.classes),
        )
        for player in made:
            _orthogonal(player)
            normalise(player)
        return made


class _ClassNorm(nn.Module):
    """Batch normalisation with a gain and a bias for each class."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False)
        self.gain = _Table(classes, width)
        self.bias = _Table(classes, width)

    def forward(self, inputs: Tensor, classes: Tensor) -> Tensor:
        gain, bias = (table(classes)[:, :, None, None] for table in (self.gain, self.bias))
        found: Tensor = (1 + gain) * self.norm(inputs) + bias
        return found


class _Table(nn.Module):
    """Numbers of each class, 0 at first; unlike an embedding's they are not normalised."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width))

    def forward(self, classes: Tensor) -> Tensor:
        return self.weight[classes]


class Discriminator(nn.Module):
    """Images and classes to scores, by the projection of Miyato and Koyama (2018)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.blocks = down_blocks(width)
        self.classes = nn.Embedding(classes, width)
        self.output = nn.Linear(width, 1)

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        """(n,)."""
        features = F.relu(self.blocks(images)).sum((2, 3))
        scores: Tensor = self.output(features)[:, 0] + (self.classes(classes) * features).sum(1)
        return scores


def _orthogonal(module: nn.Module) -> None:
    """Orthogonal weights; all else as it was."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear, nn.Embedding)):
            nn.init.orthogonal_(part.weight)
