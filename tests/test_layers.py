"""Layers as matrices: shapes, patches and the largest singular value with its derivative."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trainables.domain import InputError
from trainables.dynamics.layers import (
    CONVOLUTIONS,
    as_matrix,
    by_feature_row,
    features_of,
    from_matrix,
    largest_singular_value,
    layer_mistakes,
    named_layers,
    top_singular_pair,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------ matrices


def test_layer_as_matrix() -> None:
    """One row an input feature, the bias last, one column an output."""
    weight, bias = torch.arange(6.0).reshape(2, 3), torch.tensor([10.0, 20.0])
    expected = torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0], [10.0, 20.0]])
    assert torch.equal(as_matrix([weight, bias]), expected)
    assert torch.equal(as_matrix([weight]), expected[:3])


@given(
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    bias=st.booleans(),
)
def test_from_matrix_is_the_inverse(shape: list[int], bias: bool) -> None:
    tensors = [normal(*shape)] + ([normal(shape[0])] if bias else [])
    matrix = as_matrix(tensors)
    assert matrix.shape == (math.prod(shape[1:]) + bias, shape[0])
    back = from_matrix(matrix, tensors)
    assert len(back) == len(tensors)
    assert all(torch.equal(a, b) for a, b in zip(back, tensors, strict=True))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (5, 4)),
    "linear, no bias": (lambda: nn.Linear(4, 3, bias=False), (5, 4)),
    "linear on sequences": (lambda: nn.Linear(4, 3), (5, 7, 4)),
    "convolution": (lambda: nn.Conv2d(2, 3, 3), (4, 2, 6, 7)),
    "no bias": (lambda: nn.Conv2d(2, 3, 3, bias=False), (4, 2, 6, 7)),
    "stride": (lambda: nn.Conv2d(2, 3, 3, stride=(2, 1)), (4, 2, 6, 7)),
    "padding": (lambda: nn.Conv2d(2, 3, 3, padding=(1, 2)), (4, 2, 6, 7)),
    "dilation": (lambda: nn.Conv2d(2, 3, 2, dilation=(2, 3)), (4, 2, 6, 7)),
    "all of them": (
        lambda: nn.Conv2d(2, 5, (3, 2), stride=2, padding=1, dilation=2),
        (4, 2, 8, 9),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_features_times_matrix_is_the_output(name: str) -> None:
    """The layer's own forward pass, row by row, is features @ theta with a last feature of 1."""
    make, shape = LAYERS[name]
    layer = make().double()
    inputs = normal(*shape)
    features = features_of(layer, inputs)
    assert features is not None
    matrix = as_matrix([p.detach() for p in layer.parameters()])
    if len(matrix) > features.shape[1]:
        features = torch.cat([features, features.new_ones(len(features), 1)], 1)
    outputs = by_feature_row(layer(inputs).detach(), layer)
    torch.testing.assert_close(features @ matrix, outputs, rtol=1e-12, atol=1e-12)


def test_features_carry_the_gradient() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1).double()
    inputs = normal(2, 2, 4, 4).requires_grad_()
    features = features_of(layer, inputs)
    assert features is not None
    (gradient,) = torch.autograd.grad(features.sum(), inputs)
    # Each entry counts once for every patch that it lies in: 9 inside, 6 at an edge, 4 in a corner.
    edge = torch.tensor([2.0, 3.0, 3.0, 2.0], dtype=torch.float64)
    assert torch.equal(gradient, torch.outer(edge, edge).expand(2, 2, 4, 4))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(2, 4, 3, groups=2), (1, 2, 6, 6)),
        (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (1, 2, 6, 6)),
        (nn.Conv2d(2, 4, 3, padding="same"), (1, 2, 6, 6)),
        (nn.Conv1d(2, 4, 3), (1, 2, 6)),
        (nn.Conv3d(2, 4, 3), (1, 2, 6, 6, 6)),
        (nn.Tanh(), (1, 2)),
    ],
    ids=["groups", "circular", "same", "conv1d", "conv3d", "tanh"],
)
def test_other_layers_have_no_features(layer: nn.Module, shape: tuple[int, ...]) -> None:
    assert features_of(layer, torch.ones(shape)) is None


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_output_rows_are_samples_then_positions(dimensions: int) -> None:
    layer = CONVOLUTIONS[dimensions - 1](1, 3, 1)
    outputs = normal(2, 3, *[4, 5, 6][:dimensions])
    rows = by_feature_row(outputs, layer)
    positions = math.prod(outputs.shape[2:])
    assert rows.shape == (2 * positions, 3)
    for row in (0, positions - 1, positions, 2 * positions - 1):
        sample, position = divmod(row, positions)
        assert torch.equal(rows[row], outputs[sample].reshape(3, -1)[:, position])


# ------------------------------------------------------------------ names


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def test_layers_by_name_in_the_order_of_the_network() -> None:
    net = _Net()
    assert list(named_layers(net, (nn.Linear, *CONVOLUTIONS))) == ["first", "body.0", "body.2"]
    assert list(named_layers(net, (nn.Conv2d,))) == ["first"]
    assert named_layers(net.body, (nn.Linear,))["2"] is net.body[2]


def test_a_layer_that_there_is_not() -> None:
    """The mistake names the nearest layer and all there are; layers of other kinds do not count."""
    names = ["first", "body.3", "body.1", "xyz"]
    wrong = layer_mistakes("stabiliser.layers", names, _Net(), (nn.Linear, nn.Conv2d))
    assert [mistake.value for mistake in wrong] == ["body.3", "body.1", "xyz"]
    assert str(wrong[0]) == (
        "stabiliser.layers = 'body.3': the network has no Linear/Conv2d layer of this name; "
        "did you mean body.2? it has: first, body.0, body.2"
    )
    assert wrong[2].remedy == "it has: first, body.0, body.2"
    (none,) = layer_mistakes("f", ["first"], nn.ReLU(), (nn.Conv2d,))
    assert none.remedy == "it has: none"
    assert not layer_mistakes("f", ["first", "body.0"], _Net(), (nn.Linear, nn.Conv2d))


# ------------------------------------------------------------------ the largest singular value


@given(
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    exponent=st.integers(-12, 12),
    seed=st.integers(0, 2**31),
)
def test_norm_and_its_gradient(m: int, n: int, exponent: int, seed: int) -> None:
    """Tall and wide, against the singular value decomposition and autograd through it."""
    ours = (10.0**exponent * normal(m, n, seed=seed)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    value, exact = largest_singular_value(ours), torch.linalg.svdvals(theirs)[0]
    assert float(value.detach()) == pytest.approx(float(exact.detach()), rel=1e-13)
    (found,) = torch.autograd.grad(value, ours)
    (expected,) = torch.autograd.grad(exact, theirs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", [(11, 1), (1, 11), (33, 10), (10, 33)])
def test_at_zero_the_gradient_is_zero(shape: tuple[int, int]) -> None:
    matrix = torch.zeros(shape, requires_grad=True)
    value = largest_singular_value(matrix)
    (gradient,) = torch.autograd.grad(value, matrix)
    assert float(value.detach()) == 0
    assert torch.equal(gradient, torch.zeros(shape))


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
@pytest.mark.parametrize("shape", [(7, 1), (7, 3), (3, 7)])
def test_norm_of_very_small_and_very_large_matrices(shape: tuple[int, int], scale: float) -> None:
    """Squares of the outer two would under- or overflow in float32."""
    matrix = (scale * normal(*shape)).float()
    exact = float(torch.linalg.svdvals(matrix.double())[0])
    assert float(largest_singular_value(matrix)) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_norm_of_a_non_finite_matrix_is_not_a_number(n: int, bad: float) -> None:
    matrix = torch.ones(4, n)
    matrix[2, 0] = bad
    assert math.isnan(float(largest_singular_value(matrix)))


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), (0, 3), (3, 0), ()])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^matrix = .*m x n with m, n >= 1; reshape it$"):
        largest_singular_value(torch.ones(shape))


@pytest.mark.parametrize("shape", [(7, 1), (7, 3), (3, 7)])
def test_the_pair_is_the_norm_and_its_gradient(shape: tuple[int, int]) -> None:
    """Also for numbers below the smallest normal one of float32."""
    for scale in (1.0, 1e-40):
        matrix = (scale * normal(*shape)).float()
        u, s, vt = torch.linalg.svd(matrix.double() / scale)
        norm, direction = top_singular_pair(matrix)
        assert float(norm) == pytest.approx(scale * float(s[0]), rel=1e-3 if scale < 1 else 1e-6)
        expected = torch.outer(u[:, 0], vt[0]).float()
        torch.testing.assert_close(direction, expected, rtol=0, atol=2e-3 if scale < 1 else 1e-5)
