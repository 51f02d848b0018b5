"""Generative adversarial networks as tasks: two players in one network, who train in turns.

The hinge loss is mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(z))) for the discriminator and
-mean D(G(z)) for the generator. Each player's parameters get the gradient of its own part alone,
and only the player whose turn it is moves.

Noise and classes of the generated images are part of the inputs. They are drawn anew for each
mini-batch from seed and step, the same for all k; each image has fixed ones for diagnostics.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from trainables.domain import InputError, Mistake
from trainables.losses import Loss
from trainables.options import choice, whole
from trainables.tasks.frechet import frechet_distance, small_features, weights_mistakes
from trainables.tasks.image_task import ImageTask

PLAYERS = ("discriminator", "generator")
#: Entries of the generator's noise.
NOISE = 128


def _hinge(outputs: Tensor, _targets: Tensor) -> Tensor:
    real, fake, fooled = outputs.unbind(1)
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean() - fooled.mean()


#: Both players' parts added up. The regulariser uses its generic mode.
HINGE = Loss("hinge", _hinge)


class Game(nn.Module):
    """Both players.

    Args:
        generator: images of (noise, class numbers).
        discriminator: scores of (images, class numbers), (n,).
        shape: of an image.
    """

    def __init__(
        self, generator: nn.Module, discriminator: nn.Module, shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.generator, self.discriminator, self._shape = generator, discriminator, shape

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores of real images, of generated ones for the discriminator, and for the generator.

        In evaluation mode generated images, (n, pixels).

        Args:
            inputs: (n, pixels + noise + 2): an image, noise, the image's class, the class to draw.
        """
        pixels = int(np.prod(self._shape))
        images, noise = inputs[:, :pixels], inputs[:, pixels:-2]
        classes, wanted = inputs[:, -2].long(), inputs[:, -1].long()
        drawn: Tensor = self.generator(noise, wanted)
        if not self.training:
            return drawn.flatten(1)
        real = self.discriminator(images.reshape(-1, *self._shape), classes)
        fake = self.discriminator(drawn.detach(), wanted)
        held = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        fooled = functional_call(self.discriminator, held, (drawn, wanted))
        return torch.stack([real, fake, fooled], 1)


@dataclass(frozen=True)
class AdversarialTask(ImageTask):
    """What both networks share.

    Args:
        discriminator_steps: updates of the discriminator before each one of the generator.
        regularised: whose last layer the stability regulariser acts on: `discriminator` or
            `generator`.
        width: channels of the discriminator.
        generated: images that are generated for the metric, and as many held-out ones.
        inception: file with the weights of Inception-v3 for torchmetrics (needs torch-fidelity), or
            None: then the features are those of a small network trained here, and the metric is no
            FID.
    """

    discriminator_steps: int = 5
    regularised: str = "discriminator"
    width: int = 128
    generated: int = 256
    inception: str | None = None

    loss: ClassVar[Loss] = HINGE
    #: The data set.
    set_name: ClassVar[str]
    #: Its number of classes.
    classes: ClassVar[int]

    @property
    def _data(self) -> str:
        return self.set_name

    def _mistakes(self) -> Iterator[Mistake]:
        known = [
            *whole("task.discriminator_steps", self.discriminator_steps, 1, 100),
            *choice("task.regularised", self.regularised, PLAYERS),
            *whole("task.width", self.width, 1, 4096),
            *whole("task.generated", self.generated, 2, 50_000),
            *weights_mistakes(self.inception),
        ]
        yield from known
        if self.batch_size is None:
            law = "an adversarial task needs mini-batches: each has noise of its own"
            yield Mistake("task.batch_size", None, law, "use 64")
        yield from super()._mistakes()

    @property
    def metric_name(self) -> str:
        """What the metric measures."""
        if self.inception is not None:
            return "FID (Inception-v3)"
        return "Frechet distance of the features of a small network trained here (no FID)"

    @property
    def regularised_layer(self) -> str:
        """The last layer of one player."""
        return f"{self.regularised}.output"

    def trained(self, step: int) -> tuple[str, ...]:
        """The player whose turn it is."""
        turn = step % (self.discriminator_steps + 1)
        return (PLAYERS[turn == self.discriminator_steps],)

    def players(self) -> tuple[nn.Module, nn.Module]:
        """Generator and discriminator, with initial weights from PyTorch's random numbers."""
        raise NotImplementedError

    def module(self, seed: int) -> nn.Module:
        """Both players with initial weights from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Game(*self.players(), self.image_set.shape).double()

    def train_data(self) -> tuple[Tensor, Tensor]:
        """Images with noise and classes, in [-1, 1]; their class numbers."""
        images, labels = super().train_data()
        return self._packed(images, labels, 0), labels

    def test_data(self) -> tuple[Tensor, Tensor]:
        """Noise and classes to generate from, and held-out images to compare with."""
        images, labels = super().test_data()
        if self.generated > len(images):
            law = f"there are {len(images):,} held-out images only"
            raise InputError([Mistake("task.generated", self.generated, law, "ask for fewer")])
        images, labels = images[: self.generated], labels[: self.generated]
        return self._packed(images, labels, 1), images.flatten(1)

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Frechet distance between generated and held-out images."""
        shape = (-1, *self.image_set.shape)
        real, fake = ((values.double().reshape(shape) + 1) / 2 for values in (targets, outputs))
        features = None if self.inception else small_features(self.set_name, self.data_root)
        return frechet_distance(real, fake, features, self.inception)

    def augment(self, inputs: Tensor, seed: int, step: int) -> Tensor:
        """The mini-batch with noise and classes of its own."""
        fresh = self._drawn(len(inputs), (seed, step, 2)).to(inputs.device, inputs.dtype)
        kept = inputs[:, : -NOISE - 2]
        return torch.cat([kept, fresh[:, :-1], inputs[:, -2:-1], fresh[:, -1:]], 1)

    def _packed(self, images: Tensor, labels: Tensor, part: int) -> Tensor:
        drawn = self._drawn(len(images), (part, 3))
        return torch.cat([images.flatten(1), drawn[:, :-1], labels[:, None], drawn[:, -1:]], 1)

    def _drawn(self, count: int, key: tuple[int, ...]) -> Tensor:
        """Noise and a class for each of so many images, from numbers that decide all of it."""
        random = np.random.RandomState(list(key))
        noise = random.standard_normal((count, NOISE))
        wanted = random.randint(0, self.classes, (count, 1))
        return torch.from_numpy(np.concatenate([noise, wanted], 1))

    def _inputs(self, images: Tensor) -> Tensor:
        return images.double() / 127.5 - 1
