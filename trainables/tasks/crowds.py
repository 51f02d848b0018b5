"""Pictures of crowds: NWPU-Crowd folders, density maps, and made-up crowds in the same layout.

A folder of NWPU-Crowd (Wang et al. 2021) has `images/0001.jpg`, `mats/0001.mat` with `annPoints`,
an (n, 2) array of x and y of the heads, and the lists `train.txt` and `val.txt`, whose lines begin
with the number of a picture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainables.domain import InputError, Mistake

Array = NDArray[np.float64]

#: Width of a head's Gaussian over the mean distance to its neighbours, and how many of these count
#: (Zhang et al. 2016, section 2.2).
BETA, NEIGHBOURS = 0.3, 3
#: Width in pixels of a head that is alone, and the widest; narrower ones would fall between pixels.
ALONE, WIDEST, NARROWEST = 8.0, 20.0, 1.0
#: Means and deviations of ImageNet's channels, which the programs for NWPU-Crowd use.
MEANS, DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Crowd:
    """A picture and where its heads are.

    Args:
        image: (height, width, 3) in [0, 1].
        heads: (n, 2) x and y in pixels.
    """

    image: Array
    heads: Array


# --------------------------------------------------------------------------- density maps


def density(heads: Array, height: int, width: int) -> Array:
    """A density whose sum is the number of heads: a Gaussian a head, the narrower the denser.

    Each Gaussian is cut off at four widths and at the edges, and scaled to sum to 1.

    Args:
        heads: (n, 2) x and y in pixels; those outside the picture are left out.
        height: of the picture.
        width: of the picture.
    """
    found = np.zeros((height, width))
    inside = (heads >= 0).all(1) & (heads[:, 0] < width) & (heads[:, 1] < height)
    heads = heads[inside]
    for (x, y), sigma in zip(heads, _widths(heads), strict=True):
        reach = int(np.ceil(4 * sigma))
        rows = slice(max(int(y) - reach, 0), min(int(y) + reach + 1, height))
        columns = slice(max(int(x) - reach, 0), min(int(x) + reach + 1, width))
        down = np.exp(-(((np.arange(height)[rows] + 0.5 - y) / sigma) ** 2) / 2)
        across = np.exp(-(((np.arange(width)[columns] + 0.5 - x) / sigma) ** 2) / 2)
        spot = np.outer(down, across)
        found[rows, columns] += spot / spot.sum()
    return found


def _widths(heads: Array) -> Array:
    """Width of each head's Gaussian in pixels."""
    from scipy.spatial import cKDTree

    if len(heads) < 2:
        return np.full(len(heads), ALONE)
    near, _ = cKDTree(heads).query(heads, k=min(NEIGHBOURS + 1, len(heads)))
    widths: Array = np.clip(BETA * near[:, 1:].mean(1), NARROWEST, WIDEST)
    return widths


def pooled(values: Array, factor: int) -> Array:
    """Sums over squares of `factor` pixels: the number of heads stays what it is."""
    height, width = (side // factor for side in values.shape)
    cut = values[: height * factor, : width * factor]
    found: Array = cut.reshape(height, factor, width, factor).sum((1, 3))
    return found


# --------------------------------------------------------------------------- folders


def read_crowds(data_root: str, part: str, most: int) -> list[Crowd]:
    """The first pictures of a part of an NWPU-Crowd folder.

    Args:
        data_root: the folder.
        part: `train` or `val`.
        most: how many.

    Raises:
        InputError: there are fewer, or a file is missing or damaged; it is named.
    """
    numbers = _numbers(data_root, part)
    if len(numbers) < most:
        law = f"{part}.txt lists {len(numbers)} pictures, fewer than {most}"
        remedy = "ask for fewer: samples to train with, held_out to test with"
        raise InputError([Mistake("task.data_root", data_root, law, remedy)])
    return [_read_crowd(data_root, number) for number in numbers[:most]]


def root_mistakes(data_root: object) -> list[Mistake]:
    """What is missing from a folder, found without reading a picture."""
    if data_root is None:
        return []
    root = Path(os.path.expanduser(str(data_root)))
    missing = [n for n in ("images", "mats", "train.txt", "val.txt") if not (root / n).exists()]
    if not missing:
        return []
    law = f"the folder holds no NWPU-Crowd: it has no {', '.join(missing)}"
    remedy = "put images/, mats/, train.txt and val.txt there, or leave data_root out"
    return [Mistake("task.data_root", data_root, law, remedy)]


def _numbers(data_root: str, part: str) -> list[str]:
    path = Path(os.path.expanduser(data_root)) / f"{part}.txt"
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    return [line.split()[0] for line in lines if line.strip()]


def _read_crowd(data_root: str, number: str) -> Crowd:
    root = Path(os.path.expanduser(data_root))
    return Crowd(_read_image(root / "images", number), _read_heads(root / "mats" / f"{number}.mat"))


def _read_image(folder: Path, number: str) -> Array:
    from PIL import Image

    path = next((p for end in ("jpg", "png") if (p := folder / f"{number}.{end}").exists()), None)
    path = folder / f"{number}.jpg" if path is None else path
    try:
        with Image.open(path) as picture:
            pixels: Array = np.asarray(picture.convert("RGB"), dtype=np.float64) / 255.0
            return pixels
    except (OSError, SyntaxError, ValueError) as error:
        raise _unreadable(path, error) from error


def _read_heads(path: Path) -> Array:
    from scipy.io import loadmat

    try:
        found = loadmat(str(path))["annPoints"]
        heads = np.asarray(found, dtype=np.float64).reshape(-1, 2)
    except KeyError as error:
        law, remedy = f"{path} holds no annPoints", "use the .mat files of NWPU-Crowd"
        raise InputError([Mistake("task.data_root", str(path.parent), law, remedy)]) from error
    except Exception as error:  # scipy raises whatever a damaged file leads to
        raise _unreadable(path, error) from error
    if not np.isfinite(heads).all():
        law, remedy = f"{path} has heads at places that are no numbers", "mend that file"
        raise InputError([Mistake("task.data_root", str(path.parent), law, remedy)])
    return heads


def _unreadable(path: Path, error: Exception) -> InputError:
    what = "there is no such file" if isinstance(error, FileNotFoundError) else "is damaged"
    law = f"{path}: {what}"
    remedy = "fetch that file again, or take its number off the list"
    return InputError([Mistake("task.data_root", str(path.parent.parent), law, remedy)])


# --------------------------------------------------------------------------- made-up crowds


def made_crowds(count: int, size: int, seed: int) -> list[Crowd]:
    """Made-up pictures: heads on a ground, the farther up the smaller and the denser.

    One in eight has nobody in it, as about 7 % of NWPU-Crowd.

    Args:
        count: how many.
        size: sides of a picture in pixels.
        seed: of the random numbers.
    """
    return [_made(np.random.RandomState([seed, i]), size) for i in range(count)]


def _made(random: np.random.RandomState, size: int) -> Crowd:
    depth = np.linspace(0, 1, size)[:, None, None]
    ground = random.uniform(0.3, 0.9, 3) * (0.6 + 0.4 * depth)
    image = ground + 0.04 * random.standard_normal((size, size, 3))
    most = size * size / 64
    people = 0 if random.rand() < 1 / 8 else int(np.exp(random.uniform(np.log(3), np.log(most))))
    # Far away, near the top, there are more people to a pixel.
    heads = np.stack([random.rand(people), random.beta(1.2, 2.0, people)], 1) * (size - 1)
    for x, y in heads[np.argsort(heads[:, 1])]:
        radius = size * (0.01 + 0.03 * y / size)
        _paint(image, x, y, radius, random.uniform(0.05, 0.5, 3))
    return Crowd(np.round(np.clip(image, 0, 1) * 255) / 255, heads)


def _paint(image: Array, x: float, y: float, radius: float, colour: Array) -> None:
    size, reach = len(image), int(np.ceil(radius)) + 1
    rows = slice(max(int(y) - reach, 0), min(int(y) + reach + 1, size))
    columns = slice(max(int(x) - reach, 0), min(int(x) + reach + 1, size))
    down, across = (np.arange(size)[part] + 0.5 for part in (rows, columns))
    distance = np.hypot(down[:, None] - y, across[None] - x)
    cover = np.clip(radius - distance + 0.5, 0, 1)[..., None]
    image[rows, columns] = (1 - cover) * image[rows, columns] + cover * colour


def write_crowds(folder: str | Path, train: int, val: int, size: int = 128, seed: int = 0) -> None:
    """Write made-up crowds in the layout of NWPU-Crowd.

    Args:
        folder: where to; its parts must not exist yet.
        train: pictures to train with.
        val: pictures that are held out.
        size: sides of a picture in pixels.
        seed: of the random numbers.

    Raises:
        InputError: the folder holds a part of such a folder already.
    """
    root = Path(folder)
    taken = [n for n in ("images", "mats", "train.txt", "val.txt") if (root / n).exists()]
    if taken:
        law, remedy = f"holds {', '.join(taken)} already", "name an empty folder"
        raise InputError([Mistake("folder", str(folder), law, remedy)])
    for name in ("images", "mats", "jsons"):
        (root / name).mkdir(parents=True, exist_ok=True)
    crowds = [*made_crowds(train, size, seed), *made_crowds(val, size, seed + 1)]
    numbers = [f"{i + 1:04d}" for i in range(len(crowds))]
    for number, crowd in zip(numbers, crowds, strict=True):
        _write(root, number, crowd)
    for name, part in (("train", numbers[:train]), ("val", numbers[train:])):
        # NWPU's lists name the light and the crowd's level too.
        (root / f"{name}.txt").write_text("".join(f"{n} 1 1\n" for n in part), "utf-8")


def _write(root: Path, number: str, crowd: Crowd) -> None:
    from PIL import Image
    from scipy.io import savemat

    pixels = np.round(crowd.image * 255).astype(np.uint8)
    Image.fromarray(pixels).save(root / "images" / f"{number}.jpg", quality=100, subsampling=0)
    savemat(str(root / "mats" / f"{number}.mat"), {"annPoints": crowd.heads})
    said = {
        "img_id": f"{number}.jpg",
        "human_num": len(crowd.heads),
        "points": crowd.heads.tolist(),
    }
    (root / "jsons" / f"{number}.json").write_text(json.dumps(said), "utf-8")


# --------------------------------------------------------------------------- what a network sees


@lru_cache(maxsize=4)
def crowd_tensors(
    data_root: str | None, part: str, most: int, size: int, factor: int
) -> tuple[Array, Array]:
    """Pictures and density maps of one size.

    A picture is enlarged where it is smaller than `size`, and a square is cut out of it at a place
    that its number on the list decides.

    Args:
        data_root: folder of NWPU-Crowd, or None for made-up crowds.
        part: `train` or `val`.
        most: pictures at most.
        size: sides of the squares, a multiple of `factor`.
        factor: pixels of a picture along one pixel of its density map.

    Returns:
        (n, 3, size, size) in ImageNet's normalisation, and (n, 1, size / factor, size / factor).

    Raises:
        InputError: as in `read_crowds`.
    """
    crowds = (
        made_crowds(most, size, 0 if part == "train" else 1)
        if data_root is None
        else read_crowds(data_root, part, most)
    )
    pairs = list(_squares(crowds, size, factor))
    pictures = np.stack([image for image, _ in pairs])
    maps = np.stack([spots for _, spots in pairs])
    normal = (pictures - np.array(MEANS)) / np.array(DEVIATIONS)
    return np.ascontiguousarray(normal.transpose(0, 3, 1, 2)), maps[:, None]


def _squares(crowds: list[Crowd], size: int, factor: int) -> Iterator[tuple[Array, Array]]:
    for number, crowd in enumerate(crowds):
        image, heads = _enlarged(crowd, size)
        height, width = image.shape[:2]
        random = np.random.RandomState([number, height, width])
        top, left = random.randint(height - size + 1), random.randint(width - size + 1)
        square = image[top : top + size, left : left + size]
        yield square, pooled(density(heads - [left, top], size, size), factor)


def _enlarged(crowd: Crowd, size: int) -> tuple[Array, Array]:
    from PIL import Image

    height, width = crowd.image.shape[:2]
    scale = max(size / height, size / width, 1.0)
    if scale == 1.0:
        return crowd.image, crowd.heads
    shape = (max(round(width * scale), size), max(round(height * scale), size))
    pixels = Image.fromarray(np.round(crowd.image * 255).astype(np.uint8))
    large = np.asarray(pixels.resize(shape, Image.Resampling.BILINEAR), dtype=np.float64) / 255.0
    return large, crowd.heads * [shape[0] / width, shape[1] / height]
