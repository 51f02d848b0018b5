"""Colour images of CIFAR's shape without a download: patches of photographs that packages ship.

A patch is labelled by the photograph it was cut from. A classifier learns colours and textures from
them, so numbers on these patches say nothing about CIFAR-10 itself.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainables.domain import UnreachableError

Patches = tuple[NDArray[np.uint8], NDArray[np.int64]]

#: Package, file below it. Of a pair of stereo photographs one is taken.
PHOTOGRAPHS = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("sklearn", "datasets/images/china.jpg"),
    ("skimage", "data/coffee.png"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("skimage", "data/hubble_deep_field.jpg"),
    ("skimage", "data/ihc.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/retina.jpg"),
    ("skimage", "data/rocket.jpg"),
)
SIDE = 32
#: Blocks of a photograph are this wide; patches lie in one block each.
BLOCK = 96
#: Pixels between neighbouring patches of a block.
STRIDE = 8
#: Patches of each photograph.
TRAIN, HELD_OUT = 500, 100


def patches() -> tuple[Patches, Patches]:
    """5,000 training and 1,000 held-out patches, in an order that is shuffled once.

    Each photograph is cut into blocks of 96 x 96 pixels. One in four of them, drawn with a fixed
    seed, gives the held-out patches, so no pixel is in a training and a held-out patch.

    Returns:
        ((images, labels), (images, labels)); images (n, 3, 32, 32), 0 to 255.

    Raises:
        UnreachableError: a package with photographs is not installed.
    """
    random = np.random.RandomState(0)
    parts: tuple[list[Patches], list[Patches]] = ([], [])
    for label, (package, file) in enumerate(PHOTOGRAPHS):
        photograph = _read(package, file)
        blocks = random.permutation(_corners(photograph.shape[0], photograph.shape[1], BLOCK))
        held_out = len(blocks) // 4
        halves = (blocks[held_out:], TRAIN), (blocks[:held_out], HELD_OUT)
        for part, (chosen, count) in zip(parts, halves, strict=True):
            part.append((_cut(photograph, chosen, count, random), np.full(count, label)))
    train, test = (_shuffled(part, random) for part in parts)
    return train, test


def _read(package: str, file: str) -> NDArray[np.uint8]:
    from PIL import Image

    spec = find_spec(package)  # not imported: the files are all that is needed
    places = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(places[0], file) if places else None
    if path is None or not path.is_file():
        name = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        raise UnreachableError(
            f"{name} is not installed, or its {file} is missing: colour images stand on its "
            "photographs; install it, or give data_root"
        )
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _corners(rows: int, columns: int, step: int, room: int | None = None) -> NDArray[np.int64]:
    """Upper left corners of squares in a grid, as far as they are whole."""
    room = step if room is None else room
    grid = np.meshgrid(
        np.arange(0, rows - room + 1, step), np.arange(0, columns - room + 1, step), indexing="ij"
    )
    return np.stack(grid, -1).reshape(-1, 2)


def _cut(
    photograph: NDArray[np.uint8],
    blocks: NDArray[np.int64],
    count: int,
    random: np.random.RandomState,
) -> NDArray[np.uint8]:
    """So many patches from these blocks, none twice."""
    within = _corners(BLOCK, BLOCK, STRIDE, SIDE)
    corners = (blocks[:, None] + within[None]).reshape(-1, 2)
    chosen = corners[random.permutation(len(corners))[:count]]
    found = [photograph[i : i + SIDE, j : j + SIDE] for i, j in chosen]
    return np.stack(found).transpose(0, 3, 1, 2)


def _shuffled(parts: list[Patches], random: np.random.RandomState) -> Patches:
    images, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = random.permutation(len(labels))
    return np.ascontiguousarray(images[order]), labels[order].astype(np.int64)
