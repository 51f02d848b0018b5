"""Classifiers and CIFAR's regression: sizes as published, networks by hand, and their options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.domain import InputError, Point, Regime
from trainables.evaluate import evaluate
from trainables.tasks import Task, get_task
from trainables.tasks.images import load
from trainables.tasks.swish import Swish


def count(task: Task) -> int:
    return sum(p.numel() for p in task.module(0).parameters() if p.requires_grad)


# ------------------------------------------------------------------ residual networks and VGG


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("resnet", {"depth": 20}, 269_722),
        ("resnet", {"depth": 56}, 853_018),
        ("resnet", {"depth": 110}, 1_727_962),
        ("resnet", {"depth": 56, "data": "fashion-mnist"}, 853_018 - 2 * 9 * 16),
        ("vgg16-bn", {}, 14_728_266),
        ("cifar-tanh", {}, 3072 * 200 + 200 + 200 * 200 + 200 + 2010),
        ("cifar-tanh", {"layers": 4}, 3072 * 200 + 200 + 3 * (200 * 200 + 200) + 2010),
        ("cifar-regression", {}, 61_706 + 2 * 6 * 25 + 11),
        ("mnist-cnn", {"layers": 3}, 27),
        ("modular-addition", {}, 226 * 200 + 200 + 200 * 200 + 200 + 200 * 113 + 113),
    ],
)
def test_parameters_as_published(name: str, options: dict[str, Any], parameters: int) -> None:
    """ResNet: 0.27, 0.85 and 1.7 million in He et al. 2016, table 6; LeNet-5's usual 61,706."""
    assert count(get_task(name, **options)) == parameters


def residual_by_hand(net: nn.Module, x: Tensor) -> Tensor:
    """ResNet-8 with ReLU and the statistics of the batch, from the weights alone."""
    w = dict(net.named_parameters())

    def norm(values: Tensor, name: str) -> Tensor:
        mean = values.mean((0, 2, 3), keepdim=True)
        variance = values.var((0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = (w[f"{name}.{part}"].reshape(1, -1, 1, 1) for part in ("weight", "bias"))
        return (values - mean) / (variance + 1e-5).sqrt() * scale + shift

    x = norm(F.conv2d(x, w["conv.weight"], padding=1), "norm").relu()
    for i, stride in enumerate((1, 2, 2)):
        name = f"blocks.{i}"
        inner = F.conv2d(x, w[f"{name}.conv1.weight"], padding=1, stride=stride)
        inner = norm(inner, f"{name}.norm1").relu()
        inner = norm(F.conv2d(inner, w[f"{name}.conv2.weight"], padding=1), f"{name}.norm2")
        short = torch.zeros_like(inner)
        short[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
        x = (inner + short).relu()
    return x.mean((2, 3)) @ w["output.weight"].T + w["output.bias"]


def test_a_residual_network_by_hand() -> None:
    task = get_task("resnet", depth=8, width=3)
    net = task.module(4)
    x = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(net(x), residual_by_hand(net, x))
    wide = dict(get_task("resnet", depth=8, width=64).module(0).named_parameters())
    deviation = float(wide["blocks.0.conv1.weight"].detach().std())
    assert deviation == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


def test_vgg_is_configuration_d() -> None:
    net = get_task("vgg16-bn").module(0)
    layers = [m.out_channels if isinstance(m, nn.Conv2d) else "M" for m in net.children()
              if isinstance(m, (nn.Conv2d, nn.MaxPool2d))]  # fmt: skip
    assert layers == [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512,
                      512, "M"]  # fmt: skip
    from torchvision.models import vgg16_bn

    theirs = vgg16_bn(weights=None, init_weights=False).features
    features = sum(p.numel() for p in theirs.parameters())
    assert count(get_task("vgg16-bn")) == features + 512 * 10 + 10
    small = get_task("vgg16-bn", width=2, activation="swish", swish_slope=2)
    assert [m.slope for m in small.module(0).children() if isinstance(m, Swish)] == [2] * 13


@pytest.mark.parametrize("slope", [1.0, 5.0])
def test_swish(slope: float) -> None:
    x = torch.linspace(-40, 40, 101, dtype=torch.float64, requires_grad=True)
    values = Swish(slope)(x)
    torch.testing.assert_close(values, x / (1 + torch.exp(-slope * x)))
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert bool(gradient.isfinite().all())
    if slope == 1:
        torch.testing.assert_close(values, F.silu(x))


def test_augmentation_belongs_to_mini_batches_and_can_be_left_out() -> None:
    task: Any = get_task("resnet", samples=8, batch_size=8)
    inputs = task.train_data()[0]
    changed = task.augment(inputs, 3, 5)
    assert not torch.equal(changed, inputs)
    black = [-m / s for m, s in zip((0.507, 0.487, 0.441), (0.267, 0.256, 0.276), strict=True)]
    edges = {tuple(image[:, 0, 0].tolist()) for image in changed}
    assert any(np.allclose(edge, black) for edge in edges)
    plain: Any = get_task("resnet", samples=8, batch_size=8, augment_data=False)
    assert torch.equal(plain.augment(inputs, 3, 5), inputs)


# ------------------------------------------------------------------ the other networks


def test_one_channel_network_by_hand() -> None:
    task = get_task("mnist-cnn", layers=2)
    inputs, targets = task.train_data()
    assert inputs.shape == (793, 1, 28, 28)  # of the 4,000 that come along
    assert set(targets.tolist()) == {0.0, 1.0}
    assert float(inputs.min()) == 0
    assert float(inputs.max()) == 1
    first, second = (p.detach() for p in task.module(5).parameters())
    expected = F.silu(F.conv2d(F.silu(F.conv2d(inputs, first)), second)).mean((1, 2, 3))
    torch.testing.assert_close(task.module(5)(inputs).detach(), expected)
    assert task.metric(torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 0.0, 0.0])) == 2 / 3
    assert task.regularised_layer == "conv2"


def test_tanh_networks_see_standardised_pixels() -> None:
    task = get_task("cifar-tanh", samples=5000)
    inputs, targets = task.train_data()
    assert (inputs.shape, targets.shape) == ((5000, 3072), (5000,))
    torch.testing.assert_close(inputs.mean(0), torch.zeros(3072).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(inputs.std(0, unbiased=False), torch.ones(3072).double())
    few, held_out = get_task("cifar-tanh", samples=10).train_data()[0], task.test_data()[0]
    assert torch.equal(few, inputs[:10])
    raw = load("cifar-10", None)
    mean, std = raw[0][0].mean(0), raw[0][0].std(0)
    expected = (raw[1][0][7] - mean) / std
    np.testing.assert_allclose(held_out[7].numpy(), expected.ravel(), rtol=1e-9)


def test_convex_pairs_are_convex_less_convex() -> None:
    task = get_task("mnist-convex-pairs", filters=1, depth=3)
    net: Any = task.module(2)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(200, 36, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    with torch.no_grad():
        ends, middle = (net.convex(a) + net.convex(b)) / 2, net.convex((a + b) / 2)
        assert middle.shape == (200, 20)
        assert bool((middle <= ends + 1e-12).all())
        assert bool((middle < ends - 1e-6).any(0).all())  # none is affine
        images = task.train_data()[0][:5]
        features = F.max_pool2d(net.filters(images), 4).flatten(1)
        z = features[:, None].expand(-1, 20, -1).clone()
        for roots, thresholds in zip(net.convex.roots, net.convex.thresholds, strict=True):
            z = torch.stack([
                z[:, k] + (z[:, k] - thresholds[k]).relu() @ (roots[k] ** 2).T for k in range(20)
            ], 1)  # fmt: skip
        values = (z * net.convex.ends**2).sum(2)
        expected = net.affine(features) + values[:, :10] - values[:, 10:]
        torch.testing.assert_close(net(images), expected)


def test_modular_addition() -> None:
    task = get_task("modular-addition", modulus=7, train_share=0.4)
    (x, y), (u, v) = task.train_data(), task.test_data()
    assert (len(x), len(u)) == (19, 30)
    pairs = [tuple(row.nonzero()[:, 0].tolist()) for row in torch.cat([x, u])]
    assert len(set(pairs)) == 49
    assert [(a + b - 7) % 7 for a, b in pairs] == torch.cat([y, v]).tolist()
    assert all(0 <= a < 7 <= b < 14 for a, b in pairs)
    assert len(get_task("modular-addition").train_data()[0]) == int(0.4 * 113**2)


@pytest.mark.parametrize("name", ["cifar-regression", "mnist-regression"])
def test_the_tolerance_of_a_regression(name: str) -> None:
    outputs, digits = torch.tensor([[3.44], [2.4], [3.0]]), torch.tensor([[3.0]] * 3)
    assert get_task(name).metric(outputs, digits) == pytest.approx(2 / 3)
    assert get_task(name, tolerance=0.7).metric(outputs, digits) == 1
    assert get_task(name, tolerance=0.1).metric(outputs, digits) == pytest.approx(1 / 3)


def test_one_convolution_is_calm_at_30_and_not_at_300() -> None:
    """Figure 9: with weight decay 5e-4 its boundary lies between 90 and 100; here from 60 to 90."""
    task = get_task("mnist-cnn", layers=1, samples=100)
    points = [Point(lr=lr, weight_decay=5e-4) for lr in (30.0, 300.0)]
    calm, wild = evaluate(points, task, steps=150, dtype="float64")
    assert calm.verdict.regime is Regime.STABLE
    assert wild.verdict.regime is not Regime.STABLE


# ------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet", {"depth": 57}, r"task\.depth = 57: 6 n \+ 2 layers.*use 20, 56"),
        ("resnet", {"depth": "deep"}, r"task\.depth"),
        ("resnet", {"width": 0}, r"task\.width = 0: an integer from 1"),
        ("resnet", {"data": "svhn"}, r"task\.data = 'svhn': unknown choice; use one of cifar-10"),
        ("resnet", {"activation": "gelu"}, r"task\.activation = 'gelu'.*use one of relu, swish"),
        ("resnet", {"swish_slope": 0}, r"task\.swish_slope = 0: a number in \(0, 1000\]"),
        ("resnet", {"samples": 5001}, r"task\.samples = 5001: an integer from 1 to 5000"),
        ("resnet", {"samples": 10, "batch_size": 11}, r"task\.batch_size = 11: .* 1 to 10"),
        ("resnet", {"augment_data": 1}, r"task\.augment_data = 1: true or false"),
        ("resnet", {"data": "mnist", "samples": 4001}, r"task\.samples = 4001: .* 1 to 4000"),
        ("vgg16-bn", {"width": 2000}, r"task\.width"),
        ("cifar-tanh", {"layers": 0}, r"task\.layers = 0"),
        ("mnist-cnn", {"layers": 4}, r"task\.layers = 4: an integer from 1 to 3"),
        ("mnist-cnn", {"samples": 794}, r"task\.samples = 794: an integer from 1 to 793"),
        ("mnist-convex-pairs", {"loss_name": "l2"}, r"task\.loss_name = 'l2'"),
        ("mnist-convex-pairs", {"depth": 0}, r"task\.depth = 0"),
        ("cifar-regression", {"loss_name": "l2"}, r"task\.loss_name = 'l2'"),
        ("cifar-regression", {"tolerance": 0}, r"task\.tolerance = 0: a number > 0; use 0\.45"),
        ("mnist-regression", {"tolerance": "x"}, r"task\.tolerance = 'x': a number > 0"),
        ("modular-addition", {"modulus": 1}, r"task\.modulus = 1"),
        ("modular-addition", {"train_share": 1}, r"task\.train_share = 1: a number in \(0, 1\)"),
        ("modular-addition", {"modulus": 2, "train_share": 0.1}, r"leaves 0 of 4 pairs"),
        ("modular-addition", {"modulus": 3, "batch_size": 4}, r"task\.batch_size = 4: .* 1 to 3"),
    ],
)
def test_messages(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        get_task(name, **options)


def test_all_mistakes_of_a_task_are_listed_at_once() -> None:
    with pytest.raises(InputError) as caught:
        get_task("resnet", samples=0, depth=9, width=0, data_root="/nowhere", swish_slope="x")
    fields = [m.field.removeprefix("task.") for m in caught.value.mistakes]
    assert sorted(fields) == ["data_root", "depth", "samples", "swish_slope", "width"]
