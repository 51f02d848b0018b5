"""What the tasks on small images share: data, batches, loss and metric."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainables.domain import InputError, Mistake
from trainables.losses import CROSS_ENTROPY, Loss
from trainables.options import choice, flag, whole
from trainables.tasks.augmentation import cropped_and_flipped
from trainables.tasks.images import SETS, Images, ImageSet, load, root_mistakes


@dataclass(frozen=True)
class ImageTask:
    """Images of one of `SETS`.

    Args:
        samples: number of training images, or None for all there are.
        batch_size: mini-batch size, or None for full-batch gradient descent.
        data_root: folder with the full data set, or None for what comes along.
    """

    samples: int | None = None
    batch_size: int | None = 128
    data_root: str | None = None

    @property
    def image_set(self) -> ImageSet:
        """Where the images come from."""
        return SETS[self._data]

    @property
    def _data(self) -> str:
        raise NotImplementedError

    def __post_init__(self) -> None:
        mistakes = list(self._mistakes())
        if mistakes:
            raise InputError(mistakes)

    def _mistakes(self) -> Iterator[Mistake]:
        most = self._most
        found: list[Mistake] = []
        if self.samples is not None:
            found += whole("task.samples", self.samples, 1, most)
        yield from found
        if self.batch_size is not None and not found:
            yield from whole("task.batch_size", self.batch_size, 1, self.samples or most)
        yield from root_mistakes(self._data, self.data_root)

    @property
    def _most(self) -> int:
        """Training images that there are."""
        return self.image_set.most_samples(self.data_root)

    @property
    def stand_in(self) -> str | None:
        """What the images stand in for, where no data root is given."""
        return self.image_set.stand_in(self.data_root)

    @property
    def batch(self) -> int | None:
        """Mini-batch size."""
        return self.batch_size

    def train_data(self) -> tuple[Tensor, Tensor]:
        """The first `samples` training images, normalised, and their targets."""
        images, labels = self._kept(load(self._data, self.data_root)[0])
        count = len(labels) if self.samples is None else self.samples
        if max(count, self.batch_size or 0) > len(labels):
            law = f"the folder has {len(labels):,} training images only"
            remedy = "ask for no more samples, nor larger batches"
            raise InputError([Mistake("task.data_root", self.data_root, law, remedy)])
        return self._inputs(torch.from_numpy(images[:count])), self._targets(labels[:count])

    def test_data(self) -> tuple[Tensor, Tensor]:
        """The held-out images, normalised, and their targets."""
        images, labels = self._kept(load(self._data, self.data_root)[1])
        return self._inputs(torch.from_numpy(images)), self._targets(labels)

    def _kept(self, images: Images) -> Images:
        """Those images that the task is about."""
        return images

    def _inputs(self, images: Tensor) -> Tensor:
        mean, deviation = (_column(c) for c in (self.image_set.mean, self.image_set.deviation))
        return (images.double() / 255 - mean) / deviation

    def _targets(self, labels: object) -> Tensor:
        return torch.as_tensor(labels)


@dataclass(frozen=True)
class ImageClassifier(ImageTask):
    """A classifier of images in ten classes, trained by cross-entropy.

    Args:
        data: `cifar-10`, `fashion-mnist` or `mnist`.
        augment_data: whether each image of a mini-batch is shifted by up to four pixels at random
            and mirrored every second time.
    """

    data: str = "cifar-10"
    augment_data: bool = True

    metric_name: ClassVar[str] = "accuracy on held-out images"
    needs: ClassVar[str | None] = "all of CIFAR-10, Fashion-MNIST or MNIST, in data_root"
    loss: ClassVar[Loss] = CROSS_ENTROPY

    @property
    def _data(self) -> str:
        return self.data

    def _mistakes(self) -> Iterator[Mistake]:
        known = list(choice("task.data", self.data, ("cifar-10", "fashion-mnist", "mnist")))
        yield from known
        yield from flag("task.augment_data", self.augment_data)
        if not known:
            yield from super()._mistakes()

    def augment(self, inputs: Tensor, seed: int, step: int) -> Tensor:
        """Images shifted and mirrored, with black at the edges."""
        if not self.augment_data:
            return inputs
        found = self.image_set
        black = [-m / d for m, d in zip(found.mean, found.deviation, strict=True)]
        return cropped_and_flipped(inputs, black, (seed, step, 1))

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Share of images whose largest output is the right one."""
        return float((outputs.argmax(1) == targets).double().mean())


def _column(numbers: tuple[float, ...]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64).reshape(-1, 1, 1)
