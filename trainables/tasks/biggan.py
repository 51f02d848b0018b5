"""BigGAN on 32 x 32 colour images: classes in both players, spectral normalisation in both.

Brock et al. (ICLR 2019); the network for 32 x 32 images is that of its authors' PyTorch program
(64 channels, three blocks of four times as many, one embedding a batch normalisation). Fang et al.
(ACCV 2022), section 4.3 and table 2, train it on CIFAR-100 with Adam at rates of 2e-4 and 6e-4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.domain import Mistake
from trainables.options import whole
from trainables.tasks.adversarial import NOISE, AdversarialTask
from trainables.tasks.sngan import Down, normalise, twice


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
            Generator(4 * self.generator_width, self.classes),
            Discriminator(4 * self.width, self.classes),
        )
        for player in made:
            _orthogonal(player)
            normalise(player)
        return made


class Generator(nn.Module):
    """Noise and classes to images in [-1, 1]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(NOISE, 16 * width)
        self.blocks = nn.ModuleList([_Up(width, classes) for _ in range(3)])
        self.norm = nn.BatchNorm2d(width)
        self.output = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, noise: Tensor, classes: Tensor) -> Tensor:
        """(n, 3, 32, 32)."""
        hidden = self.first(noise).reshape(len(noise), -1, 4, 4)
        for block in self.blocks:
            hidden = block(hidden, classes)
        images: Tensor = self.output(F.relu(self.norm(hidden))).tanh()
        return images


class _Up(nn.Module):
    """A residual block that doubles rows and columns."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([_ClassNorm(width, classes) for _ in range(2)])
        self.layers = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])
        self.shortcut = nn.Conv2d(width, width, 1)

    def forward(self, inputs: Tensor, classes: Tensor) -> Tensor:
        hidden = self.layers[0](twice(F.relu(self.norms[0](inputs, classes))))
        hidden = self.layers[1](F.relu(self.norms[1](hidden, classes)))
        found: Tensor = hidden + self.shortcut(twice(inputs))
        return found


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
        self.blocks = nn.ModuleList(
            [
                Down(3, width, halves=True, first=True),
                Down(width, width, halves=True),
                Down(width, width, halves=False),
                Down(width, width, halves=False),
            ]
        )
        self.classes = nn.Embedding(classes, width)
        self.output = nn.Linear(width, 1)

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        """(n,)."""
        hidden = images
        for block in self.blocks:
            hidden = block(hidden)
        features = F.relu(hidden).sum((2, 3))
        scores: Tensor = self.output(features)[:, 0] + (self.classes(classes) * features).sum(1)
        return scores


def _orthogonal(module: nn.Module) -> None:
    """Orthogonal weights; all else as it was."""
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.Linear, nn.Embedding)):
            nn.init.orthogonal_(part.weight)
