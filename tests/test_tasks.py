"""The tasks against plain PyTorch, their data, their messages and the way they are found."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from toys import Bowl

from trainables import tasks
from trainables.domain import InputError
from trainables.losses import (
    ABSOLUTE_ERROR,
    BINARY_CROSS_ENTROPY,
    CROSS_ENTROPY,
    MEAN_SQUARED_ERROR,
    SQUARED_ERROR,
    Loss,
    summed_squares,
)
from trainables.tasks import get_task, task_class, task_names
from trainables.tasks.mnist import mnist
from trainables.tasks.one_layer_cnn import OneLayerCNN, checkerboard

ALL = tuple(sorted(tasks.BUILT_IN))


# ------------------------------------------------------------------ one-layer CNN


def convolution(size: int, kernel: Tensor) -> Tensor:
    """The network as it is drawn: convolve, Swish, mean."""
    side = int(kernel.numel() ** 0.5)
    image = torch.empty(size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(size):
            image[i, j] = -1.0 if (i + j) % 2 == 0 else 1.0
    response = nn.functional.conv2d(image[None, None], kernel.view(1, 1, side, side))
    return nn.functional.silu(response).mean()


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize(("size", "side"), [(7, 3), (8, 3), (9, 4), (12, 4), (5, 1), (6, 5)])
def test_one_layer_cnn_is_a_convolution(size: int, side: int, distinct: bool) -> None:
    """Values and gradients, with odd and even numbers of patches."""
    task = OneLayerCNN(size, side, distinct)
    module = task.module(3)
    (kernel,) = module.parameters()
    inputs, targets = task.train_data()
    expected = convolution(size, kernel)
    logits = module(inputs)
    assert logits.shape == targets.shape == (1,)
    torch.testing.assert_close(logits[0], expected, rtol=1e-13, atol=1e-13)
    ours = torch.autograd.grad(task.loss.value(logits, targets), kernel)[0]
    theirs = torch.autograd.grad(nn.functional.softplus(-expected), kernel)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


def test_distinct_patches_only_are_kept() -> None:
    assert OneLayerCNN().train_data()[0].shape == (1, 2, 1024)
    assert OneLayerCNN(64, 32, distinct=False).train_data()[0].shape == (1, 33 * 33, 1024)
    weights = dict(OneLayerCNN().module(0).named_buffers())["weights"]
    np.testing.assert_allclose(weights.numpy(), [25313 / 50625, 25312 / 50625], rtol=1e-15)


def test_checkerboard() -> None:
    assert torch.equal(
        checkerboard(3), torch.tensor([[-1, 1, -1], [1, -1, 1], [-1, 1, -1]]).double()
    )


@pytest.mark.parametrize("image", [64, 256])
def test_initial_loss_of_the_papers_seed(image: int) -> None:
    """Acceptance row 12: seed 7, weight decay 20, the decay term included."""
    task = OneLayerCNN(image)
    module = task.module(7)
    kernel = next(module.parameters()).detach()
    inputs, targets = task.train_data()
    squares = float((kernel**2).sum())
    assert squares == pytest.approx(949.7490816, abs=1e-7)
    pattern = checkerboard(32).reshape(1, -1)
    assert abs(float((kernel * pattern).sum())) == pytest.approx(0.0360371765, abs=1e-9)
    loss = float(task.loss.value(module(inputs), targets).detach()) + 10 * squares
    assert loss == pytest.approx(9498.18380, abs=1e-5)


# ------------------------------------------------------------------ MNIST


def test_built_in_images() -> None:
    (images, labels), (held_out, held_out_labels) = mnist(None)
    assert images.shape == (4000, 28, 28)
    assert held_out.shape == (1000, 28, 28)
    assert images.min() == 0.0
    assert images.max() == 1.0
    both = np.concatenate([labels, held_out_labels])
    assert np.bincount(both).tolist() == [500] * 10
    assert min(np.bincount(labels[:500])) > 25  # shuffled, so that a prefix has all digits
    pixels = np.concatenate([images, held_out]).reshape(5000, -1)
    assert len(np.unique(pixels, axis=0)) > 4990  # nothing is held out that was trained on


def test_mlp() -> None:
    task = get_task("mnist-mlp", samples=50, width=16)
    module = task.module(0)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes == {
        "hidden.weight": (16, 784),
        "hidden.bias": (16,),
        "output.weight": (10, 16),
        "output.bias": (10,),
    }
    inputs, targets = task.train_data()
    assert (inputs.shape, targets.shape) == ((50, 784), (50,))
    values = dict(module.named_parameters())
    hidden = torch.tanh(inputs @ values["hidden.weight"].T + values["hidden.bias"])
    expected = hidden @ values["output.weight"].T + values["output.bias"]
    torch.testing.assert_close(module(inputs), expected)
    wide = dict(get_task("mnist-mlp", width=2000).module(1).named_parameters())
    assert float(wide["hidden.weight"].detach().std()) == pytest.approx(784**-0.5, rel=0.01)
    assert float(wide["output.weight"].detach().std()) == pytest.approx(2000**-0.5, rel=0.03)
    assert not bool(wide["hidden.bias"].any())
    one_hot = get_task("mnist-mlp", samples=50, loss_name="squared-error").train_data()[1]
    assert torch.equal(one_hot.argmax(1), targets)
    assert bool((one_hot.sum(1) == 1).all())


def test_lenet() -> None:
    task = get_task("mnist-regression", samples=30, batch_size=10)
    module = task.module(0)
    assert sum(p.numel() for p in module.parameters()) == 156 + 2416 + 48120 + 10164 + 850 + 11
    last = module.get_submodule(str(task.regularised_layer))
    assert isinstance(last, nn.Linear)
    assert (last.in_features, last.out_features) == (10, 1)
    inputs, targets = task.train_data()
    assert (inputs.shape, targets.shape) == ((30, 1, 32, 32), (30, 1))
    assert float(inputs.min()) == pytest.approx(-0.1307 / 0.3081)
    assert float(inputs.max()) < (1 - 0.1307) / 0.3081 + 1e-9
    assert module(inputs).shape == (30, 1)
    assert torch.equal(targets[:, 0].long(), torch.from_numpy(mnist(None)[0][1][:30]))


def test_metrics() -> None:
    digits = torch.tensor([[3.0], [3.0], [3.0], [3.0]])
    answers = torch.tensor([[3.44], [2.56], [3.46], [2.54]])
    assert get_task("mnist-regression").metric(answers, digits) == 0.5
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert get_task("mnist-mlp").metric(scores, torch.tensor([1, 1, 1])) == pytest.approx(2 / 3)
    one_hot = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    assert get_task("mnist-mlp").metric(scores, one_hot) == pytest.approx(2 / 3)
    assert get_task("one-layer-cnn").metric(torch.zeros(1), torch.ones(1)) == 0.5


# ------------------------------------------------------------------ losses


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(
    "loss",
    [MEAN_SQUARED_ERROR, SQUARED_ERROR, ABSOLUTE_ERROR, summed_squares(0.7)],
    ids=lambda loss: loss.name,
)
def test_output_gradients_in_closed_form(loss: Loss, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    o, t = torch.randn(2, 5, outputs, generator=generator, dtype=torch.float64)
    o.requires_grad_()
    (expected,) = torch.autograd.grad(loss.value(o, t), o)
    assert loss.output_gradient is not None
    torch.testing.assert_close(loss.output_gradient(o, t), expected)


def test_losses_by_hand() -> None:
    o, t = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    values = [loss.value(o, t) for loss in (MEAN_SQUARED_ERROR, SQUARED_ERROR, ABSOLUTE_ERROR)]
    assert [float(v) for v in values] == [17 / 4, 17 / 4, 5 / 4]  # (1 + 16)/4, /2/2, (1 + 4)/4
    assert float(summed_squares(0.5).value(o, t)) == 17 / 4
    assert float(summed_squares(1.0).value(o[None], t[None])) == 17
    classes = CROSS_ENTROPY.value(torch.zeros(2, 10), torch.tensor([3, 7]))
    assert float(classes) == pytest.approx(np.log(10))
    label = BINARY_CROSS_ENTROPY.value(torch.zeros(1), torch.ones(1))
    assert float(label) == pytest.approx(np.log(2))
    assert CROSS_ENTROPY.output_gradient is BINARY_CROSS_ENTROPY.output_gradient is None


# ------------------------------------------------------------------ messages

BAD_OPTIONS: list[tuple[Callable[[], object], tuple[str, str, str, str]]] = [
    (
        lambda: get_task("one-layer-cn"),
        ("task", "'one-layer-cn'", "no such task", "did you mean one-layer-cnn? known: beltrami"),
    ),
    (lambda: get_task("xyz"), ("task", "'xyz'", "no such task", "known: beltrami, biggan, cifar-")),
    (
        lambda: get_task("mnist-mlp", widht=3),
        ("task.widht", "3", "mnist-mlp has no such option", "did you mean width? known: samples"),
    ),
    (
        lambda: get_task("one-layer-cnn", kernel=256),
        ("task.kernel", "256", "an integer from 1 to 255", "choose one of these"),
    ),
    (
        lambda: get_task("one-layer-cnn", image=1),
        ("task.image", "1", "an integer from 2 to 4096", "choose one of these"),
    ),
    (
        lambda: get_task("one-layer-cnn", kernel=True),
        ("task.kernel", "True", "an integer from 1 to 512", "choose one of these"),
    ),
    (
        lambda: get_task("mnist-mlp", samples=4001),
        ("task.samples", "4001", "an integer from 1 to 4000", "choose one of these"),
    ),
    (
        lambda: get_task("mnist-mlp", batch_size=501),
        ("task.batch_size", "501", "an integer from 1 to 500", "choose one of these"),
    ),
    (
        lambda: get_task("mnist-mlp", width=0),
        ("task.width", "0", "an integer from 1 to 65536", "choose one of these"),
    ),
    (
        lambda: get_task("mnist-mlp", loss_name="l2"),
        ("task.loss_name", "'l2'", "unknown choice", "use one of cross-entropy, squared-error"),
    ),
    (
        lambda: get_task("mnist-regression", loss_name="l2"),
        ("task.loss_name", "'l2'", "unknown choice", "use one of absolute-error, mean-squared"),
    ),
    (
        lambda: get_task("mnist-regression", samples=10, batch_size=100),
        ("task.batch_size", "100", "an integer from 1 to 10", "choose one of these"),
    ),
    (
        lambda: get_task("mnist-regression", samples=1.5),
        ("task.samples", "1.5", "an integer from 1 to 4000", "choose one of these"),
    ),
    (
        lambda: get_task("mnist-mlp", data_root="/nowhere"),
        ("task.data_root", "'/nowhere'", "the folder holds no MNIST", "5,000 built-in images"),
    ),
    (
        lambda: get_task("mnist-regression", data_root="/nowhere"),
        ("task.data_root", "'/nowhere'", "the folder holds no MNIST", "fetch it with stabmap data"),
    ),
]


@pytest.mark.parametrize(
    ("build", "parts"), BAD_OPTIONS, ids=lambda x: "-".join(x[:2]) if isinstance(x, tuple) else ""
)
def test_messages_name_field_value_law_and_remedy(
    build: Callable[[], object], parts: tuple[str, str, str, str]
) -> None:
    field, value, law, remedy = map(re.escape, parts)
    with pytest.raises(InputError, match=rf"^{field} = {value}: {law}.*; .*{remedy}"):
        build()


def test_all_mistakes_are_listed_at_once() -> None:
    with pytest.raises(InputError) as caught:
        get_task("mnist-mlp", samples=0, width=0, loss_name="l2", data_root="/nowhere")
    fields = [mistake.field.removeprefix("task.") for mistake in caught.value.mistakes]
    assert fields == ["samples", "width", "loss_name", "data_root"]
    with pytest.raises(InputError, match=r"task\.a(.|\n)*task\.b"):
        get_task("mnist-mlp", a=1, b=2)


# ------------------------------------------------------------------ the full MNIST


def write_idx(path: Path, array: NDArray[np.int64]) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """A folder with a small MNIST as torchvision lays it out."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.RandomState(0)
    for part, count in (("train", 12), ("t10k", 4)):
        pixels = random.randint(0, 256, (count, 28, 28))
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path


def test_full_mnist_from_a_local_folder(data_root: Path) -> None:
    task = get_task("mnist-mlp", samples=12, data_root=str(data_root))
    inputs, targets = task.train_data()
    assert inputs.shape == (12, 784)
    assert targets.tolist() == [*range(10), 0, 1]
    raw = np.random.RandomState(0).randint(0, 256, (12, 28, 28))
    np.testing.assert_allclose(inputs.numpy(), raw.reshape(12, -1) / 255)
    assert task.test_data()[1].tolist() == [0, 1, 2, 3]
    with pytest.raises(InputError, match="an integer from 1 to 60000"):
        get_task("mnist-mlp", samples=60001, data_root=str(data_root))


@pytest.mark.parametrize(
    "lost", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte"]
)
def test_an_incomplete_folder_is_refused_at_once(data_root: Path, lost: str) -> None:
    (data_root / "MNIST" / "raw" / lost).unlink()
    with pytest.raises(InputError, match="holds no MNIST"):
        get_task("mnist-regression", data_root=str(data_root))


def test_a_folder_that_loses_files_later_is_refused_when_read(data_root: Path) -> None:
    (data_root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match=r"task\.data_root = .*the folder holds no MNIST"):
        mnist(str(data_root))


# ------------------------------------------------------------------ entry points


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A task of another package, found through its entry point."""
    entries = [EntryPoint("bowl", "toys:Bowl", tasks.GROUP)]
    monkeypatch.setattr(
        tasks, "entry_points", lambda group: entries if group == "stabmap.tasks" else []
    )
    tasks._installed.cache_clear()
    yield
    tasks._installed.cache_clear()


@pytest.mark.usefixtures("foreign")
def test_tasks_of_other_packages() -> None:
    assert task_names() == tuple(sorted(("bowl", *ALL)))
    assert task_class("bowl") is Bowl
    assert get_task("bowl", start=3.0) == Bowl(start=3.0)
    with pytest.raises(InputError, match="did you mean bowl"):
        get_task("bowls")
    with pytest.raises(InputError, match="bowl has no such option"):
        get_task("bowl", colour="red")


def test_built_in_tasks_need_no_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "entry_points", lambda group: [])
    tasks._installed.cache_clear()
    assert task_names() == ALL
    assert all(task_class(name).name == name for name in ALL)
    tasks._installed.cache_clear()
