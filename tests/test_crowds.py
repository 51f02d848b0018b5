"""Crowds: density maps, folders in NWPU's layout, the two networks, and what can be wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.io import loadmat, savemat
from scipy.ndimage import gaussian_filter
from torch import nn

import stabmap
from trainables.domain import InputError, Point
from trainables.tasks import get_task
from trainables.tasks.crowd_counting import MCNN, CSRNet
from trainables.tasks.crowds import (
    Crowd,
    crowd_tensors,
    density,
    made_crowds,
    pooled,
    read_crowds,
    write_crowds,
)

# ------------------------------------------------------------------ density maps


@settings(max_examples=30)
@given(arrays(np.float64, st.tuples(st.integers(0, 40), st.just(2)), elements=st.floats(0, 47.5)))
def test_the_sum_of_a_map_is_the_number_of_heads(heads: Any) -> None:
    found = density(heads, 48, 48)
    assert found.min() >= 0
    assert found.sum() == pytest.approx(len(heads), abs=1e-9)
    assert pooled(found, 4).sum() == pytest.approx(len(heads), abs=1e-9)


def test_a_head_that_is_alone_is_a_gaussian() -> None:
    """Against scipy's filter, far from the edges; both cut off at four widths."""
    point = np.zeros((129, 129))
    point[64, 64] = 1.0
    expected = gaussian_filter(point, 8.0, truncate=4.0)
    np.testing.assert_allclose(density(np.array([[64.5, 64.5]]), 129, 129), expected, atol=2e-6)


def test_widths_follow_the_neighbours() -> None:
    """0.3 times the mean distance to the three nearest: heads on a grid of ten pixels."""
    grid: Any = np.stack(np.meshgrid(np.arange(5), np.arange(5)), -1).reshape(-1, 2) * 10.0 + 60
    found = density(grid, 160, 160)
    # In the middle all three neighbours are 10 away: 3 pixels wide.
    single = np.zeros((160, 160))
    rows = np.arange(160) + 0.5
    for x, y in grid:
        sides = sum(abs(v - 80) > 19 for v in (x, y))
        width = 0.3 * {0: 10.0, 1: 10.0, 2: (20 + 10 * math.sqrt(2)) / 3}[sides]
        spot = np.outer(np.exp(-(((rows - y) / width) ** 2) / 2),
                        np.exp(-(((rows - x) / width) ** 2) / 2))  # fmt: skip
        single += spot / spot.sum()
    np.testing.assert_allclose(found, single, atol=1e-4)


def test_heads_outside_do_not_count() -> None:
    heads = np.array([[5.0, 5.0], [-1.0, 5.0], [5.0, 32.0], [40.0, 2.0]])
    assert density(heads, 32, 32).sum() == pytest.approx(1.0)


# ------------------------------------------------------------------ folders


def test_a_folder_is_read_as_it_was_made(tmp_path: Path) -> None:
    write_crowds(tmp_path, train=4, val=2, size=48, seed=3)
    layout = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*"))
    assert layout[:2] == ["images/0001.jpg", "images/0002.jpg"]
    assert {"mats/0006.mat", "jsons/0006.json", "train.txt", "val.txt"} <= set(layout)
    assert (tmp_path / "val.txt").read_text().split()[0] == "0005"
    for made, read in zip(
        made_crowds(4, 48, 3), read_crowds(str(tmp_path), "train", 4), strict=True
    ):
        np.testing.assert_allclose(read.heads, made.heads)
        assert np.abs(read.image - made.image).mean() < 0.02  # JPEG
    facts = json.loads((tmp_path / "jsons" / "0002.json").read_text())
    assert facts["human_num"] == len(loadmat(str(tmp_path / "mats" / "0002.mat"))["annPoints"])


def test_crowds_are_of_all_sizes() -> None:
    counts = [len(crowd.heads) for crowd in made_crowds(64, 64, 0)]
    assert 2 <= sum(count == 0 for count in counts) <= 16
    assert max(counts) > 30
    assert len({count for count in counts}) > 15


def test_squares_of_large_pictures_and_enlarged_small_ones(tmp_path: Path) -> None:
    write_crowds(tmp_path, train=3, val=1, size=48)
    pictures, maps = crowd_tensors(str(tmp_path), "train", 3, 32, 4)
    assert (pictures.shape, maps.shape) == ((3, 3, 32, 32), (3, 1, 8, 8))
    large, spread = crowd_tensors(str(tmp_path), "train", 3, 96, 8)
    assert (large.shape, spread.shape) == ((3, 3, 96, 96), (3, 1, 12, 12))
    counts = [len(crowd.heads) for crowd in read_crowds(str(tmp_path), "train", 3)]
    np.testing.assert_allclose(spread.sum((1, 2, 3)), counts, atol=1e-9)
    assert (maps.sum((1, 2, 3)) <= np.array(counts) + 1e-9).all()


def test_a_folder_that_is_full_is_left_alone(tmp_path: Path) -> None:
    write_crowds(tmp_path, 1, 1, 16)
    with pytest.raises(InputError, match=r"holds images, mats, train\.txt, val\.txt already"):
        write_crowds(tmp_path, 1, 1, 16)


def spoil(folder: Path, kind: str) -> None:
    picture, heads = folder / "images" / "0002.jpg", folder / "mats" / "0002.mat"
    if kind == "no picture":
        picture.unlink()
    elif kind == "half a picture":
        picture.write_bytes(picture.read_bytes()[:200])
    elif kind == "half a mat":
        heads.write_bytes(heads.read_bytes()[:150])
    elif kind == "other mat":
        savemat(str(heads), {"points": np.ones((2, 2))})
    elif kind == "odd heads":
        savemat(str(heads), {"annPoints": np.ones(3)})
    elif kind == "no number":
        savemat(str(heads), {"annPoints": np.array([[1.0, np.nan]])})
    elif kind == "no list":
        (folder / "train.txt").unlink()
    elif kind == "no mat":
        heads.unlink()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no picture", "0002.jpg: there is no such file"),
        ("half a picture", "0002.jpg: is damaged"),
        ("half a mat", "0002.mat: is damaged"),
        ("other mat", "0002.mat holds no annPoints"),
        ("odd heads", "0002.mat: is damaged"),
        ("no number", "0002.mat has heads at places that are no numbers"),
        ("no mat", "0002.mat: there is no such file"),
        ("no list", "it has no train.txt"),
    ],
)
def test_what_is_wrong_in_a_folder_is_named(tmp_path: Path, kind: str, words: str) -> None:
    write_crowds(tmp_path, train=2, val=1, size=32)
    spoil(tmp_path, kind)
    with pytest.raises(InputError, match=words):
        get_task(
            "crowd-mcnn", samples=2, held_out=1, size=16, batch_size=2, data_root=str(tmp_path)
        ).train_data()


def test_a_folder_with_too_few_pictures(tmp_path: Path) -> None:
    write_crowds(tmp_path, train=2, val=1, size=32)
    task = get_task("crowd-mcnn", samples=5, size=16, held_out=1, data_root=str(tmp_path),
                    batch_size=None)  # fmt: skip
    with pytest.raises(InputError, match=r"train\.txt lists 2 pictures, fewer than 5"):
        task.train_data()


@pytest.mark.parametrize(
    ("option", "value"),
    [("size", 20), ("size", 8), ("samples", 0), ("held_out", 0), ("metric_kind", "rmse"),
     ("width", 0), ("batch_size", 99), ("data_root", "/nowhere")],
)  # fmt: skip
def test_options_obey_their_laws(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"task.{option}"):
        get_task("crowd-mcnn", **{option: value})


# ------------------------------------------------------------------ networks and metrics


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_sizes() -> None:
    """Li et al. 2018, table 2: 16.26 M; reviews list 0.13 M for MCNN."""
    assert parameters(CSRNet().module(0)) == 16_263_489
    assert parameters(MCNN().module(0)) == 133_705


@pytest.mark.parametrize("kind", [MCNN, CSRNet])
def test_outputs_are_maps(kind: Any) -> None:
    task = kind(samples=2, held_out=1, size=32, batch_size=2, width=0.125)
    inputs, targets = task.train_data()
    outputs = task.module(0)(inputs)
    assert outputs.shape == targets.shape == (2, 1, 32 // task.factor, 32 // task.factor)
    half = 0.5 * ((outputs - targets) ** 2).flatten(1).sum(1).mean()
    torch.testing.assert_close(task.loss.value(outputs, targets), half)


def test_metrics_are_those_of_counts() -> None:
    truth = torch.zeros(3, 1, 2, 2).double()
    truth[0, 0, 0, 0], truth[1, 0, 1, 1] = 10.0, 2.0
    found = truth.clone()
    found[0, 0, 1, 0], found[1, 0, 0, 0], found[2, 0, 0, 0] = 2.0, -1.0, 4.0
    expected = {"mae": 7 / 3, "mse": math.sqrt(21 / 3), "nae": (0.2 + 0.5) / 2}
    for kind, figure in expected.items():
        assert MCNN(metric_kind=kind).metric(found, truth) == pytest.approx(figure)


def test_a_stand_in_is_named(tmp_path: Path) -> None:
    assert "made-up crowds" in str(MCNN().stand_in)
    write_crowds(tmp_path, 1, 1, 16)
    task = MCNN(samples=1, held_out=1, size=16, batch_size=1, data_root=str(tmp_path))
    assert task.stand_in is None


def test_counting_is_learnt() -> None:
    """With Adam a small network soon does better than to find nobody, as it does at first."""
    task = MCNN(samples=16, held_out=32, size=32, width=0.25)
    settings: dict[str, Any] = {"steps": 60, "optimiser": "adam", "lyapunov": False}
    [result] = stabmap.evaluate([Point(lr=3e-3)], task, **settings)
    nobody = float(task.test_data()[1].flatten(1).sum(1).mean())
    assert float(result.replicates[0].evidence["metric"] or math.inf) < 0.8 * nobody
    assert result.verdict.regime != "divergent"


def test_pictures_are_normalised_as_for_imagenet() -> None:
    crowd = Crowd(np.full((16, 16, 3), 0.485), np.zeros((0, 2)))
    assert crowd.image.shape == (16, 16, 3)
    pictures, _ = crowd_tensors(None, "train", 4, 16, 4)
    raw = np.stack([c.image for c in made_crowds(4, 16, 0)])
    np.testing.assert_allclose(
        pictures.transpose(0, 2, 3, 1) * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406], raw
    )
