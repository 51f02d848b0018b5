"""SNGAN on 32 x 32 colour images: residual networks, the discriminator spectrally normalised.

Miyato et al. (ICLR 2018), table 4. Fang et al. (ACCV 2022), section 4.3, train it on CIFAR-10 with
plain SGD, the hinge loss and, where regularised, an anchor every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from trainables.domain import Mistake
from trainables.options import whole
from trainables.tasks.adversarial import NOISE, AdversarialTask


@dataclass(frozen=True)
class SNGAN(AdversarialTask):
    """SNGAN, without classes.

    At full width the generator has 4,276,739 parameters and the discriminator 1,053,825, counted
    from table 4 of Miyato et al. with biases and affine batch normalisation.

    Args:
        generator_width: channels of the generator.
    """

    batch_size: int | None = 64
    generator_width: int = 256

    name: ClassVar[str] = "sngan"
    source: ClassVar[str] = "Fang et al. 2022, section 4.3; Miyato et al. 2018, table 4"
    needs: ClassVar[str | None] = "CIFAR-10 (data_root), Inception's weights for an FID (inception)"
    set_name: ClassVar[str] = "cifar-10"
    classes: ClassVar[int] = 10

    def _mistakes(self) -> Iterator[Mistake]:
        yield from whole("task.generator_width", self.generator_width, 1, 4096)
        yield from super()._mistakes()

    def players(self) -> tuple[nn.Module, nn.Module]:
        """Generator and discriminator."""
        generator = Generator(self.generator_width, _Norm)
        _xavier(generator)
        return generator, Discriminator(self.width)


class Generator(nn.Module):
    """Noise, and classes where `norm` knows them, to images in [-1, 1].

    Args:
        width: channels.
        norm: makes a normalisation of so many channels, which takes inputs and classes.
    """

    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first = nn.Linear(NOISE, 16 * width)
        self.blocks = nn.ModuleList([_Up(width, norm) for _ in range(3)])
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

    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norms = nn.ModuleList([norm(width) for _ in range(2)])
        self.layers = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])
        self.shortcut = nn.Conv2d(width, width, 1)

    def forward(self, inputs: Tensor, classes: Tensor) -> Tensor:
        hidden = self.layers[0](_twice(F.relu(self.norms[0](inputs, classes))))
        hidden = self.layers[1](F.relu(self.norms[1](hidden, classes)))
        found: Tensor = hidden + self.shortcut(_twice(inputs))
        return found


class _Norm(nn.BatchNorm2d):
    """Batch normalisation that knows nothing of classes."""

    def forward(self, inputs: Tensor, _classes: Tensor) -> Tensor:  # type: ignore[override]
        found: Tensor = super().forward(inputs)
        return found


class Discriminator(nn.Module):
    """Images to scores; every layer is normalised by its largest singular value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = down_blocks(width)
        self.output = nn.Linear(width, 1)
        _xavier(self)
        normalise(self)

    def forward(self, images: Tensor, _classes: Tensor) -> Tensor:
        """(n,)."""
        features = F.relu(self.blocks(images)).sum((2, 3))
        scores: Tensor = self.output(features)[:, 0]
        return scores


def down_blocks(width: int) -> nn.Sequential:
    """The residual blocks of a discriminator: (n, 3, 32, 32) images to (n, width, 8, 8)."""
    return nn.Sequential(
        _Down(3, width, halves=True, first=True),
        _Down(width, width, halves=True),
        _Down(width, width, halves=False),
        _Down(width, width, halves=False),
    )


class _Down(nn.Module):
    """A residual block of a discriminator.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        halves: whether rows and columns are halved.
        first: whether it sees the image itself, which is not rectified.
    """

    def __init__(self, inputs: int, outputs: int, halves: bool, first: bool = False) -> None:
        super().__init__()
        self._halves, self._first = halves, first
        self.layers = nn.ModuleList(
            [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)]
        )
        learns = halves or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if learns else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """Half the rows and columns, or all."""
        hidden = self.layers[0](inputs if self._first else F.relu(inputs))
        hidden = self.layers[1](F.relu(hidden))
        found: Tensor
        if not self._halves:
            found = hidden + self.shortcut(inputs)
        elif self._first:  # pooled before: one product for four pixels
            found = F.avg_pool2d(hidden, 2) + self.shortcut(F.avg_pool2d(inputs, 2))
        else:
            found = F.avg_pool2d(hidden + self.shortcut(inputs), 2)
        return found


def normalise(module: nn.Module) -> None:
    """Divide every weight by its largest singular value, found by one power iteration a pass."""
    for part in list(module.modules()):
        if isinstance(part, (nn.Conv2d, nn.Linear, nn.Embedding)):
            spectral_norm(part)


def _twice(images: Tensor) -> Tensor:
    """Each pixel as two by two."""
    return images.repeat_interleave(2, 2).repeat_interleave(2, 3)


def _xavier(module: nn.Module) -> None:
    """Uniform weights by Glorot and Bengio, wider in the residual paths; biases 0."""
    for name, part in module.named_modules():
        if isinstance(part, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(part.weight, 2.0**0.5 if ".layers." in name else 1.0)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
