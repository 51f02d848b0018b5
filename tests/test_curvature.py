"""Sharpness against dense Hessians, thresholds against spectral radii of the step's matrix."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from trainables.domain import StabmapError
from trainables.dynamics.curvature import sharpness

Array = NDArray[np.float64]


# ------------------------------------------------------------------ sharpness


class Diagonal(nn.Module):
    """A row of parameters that passes through, so that the loss alone sets the Hessian."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.ones(1, size, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.row


def quadratic(matrix: Array) -> Callable[[Tensor, Tensor], Tensor]:
    """1/2 o^T H o, whatever the targets."""
    hessian = torch.from_numpy(matrix)
    return lambda outputs, targets: 0.5 * (outputs @ hessian @ outputs.T).sum()


def of_quadratic(
    matrix: Array, scaling: Array | None = None, decay: float = 0.0, start: float = 1.0
) -> float:
    size = len(matrix)
    module = Diagonal(size)
    with torch.no_grad():
        module.row.fill_(start)
    one = torch.ones(1, size, dtype=torch.float64)
    return sharpness(module, quadratic(matrix), one, one, scaling, decay)


def dense_hessian(module: nn.Module, loss: Callable[[Tensor], Tensor], inputs: Tensor) -> Array:
    """By torch.autograd.functional, over all parameters in one row."""
    names = [name for name, _ in module.named_parameters()]
    values = [p.detach() for p in module.parameters()]

    def objective(row: Tensor) -> Tensor:
        parts = torch.split(row, [v.numel() for v in values])
        filled = {
            name: part.view(v.shape) for name, part, v in zip(names, parts, values, strict=True)
        }
        return loss(functional_call(module, filled, (inputs,)))

    flat = torch.cat([v.reshape(-1) for v in values])
    hessian = torch.autograd.functional.hessian(objective, flat)  # type: ignore[no-untyped-call]
    return np.asarray(hessian.numpy(), dtype=np.float64)


def tiny_net() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    inputs = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    return net, inputs, torch.arange(7) % 2


@pytest.mark.parametrize("decay", [0.0, 0.7])
@pytest.mark.parametrize("scaled", [False, True])
def test_sharpness_of_a_network(scaled: bool, decay: float) -> None:
    """D (H + decay) D, from products alone, to the four digits that are promised."""
    net, inputs, targets = tiny_net()
    hessian = dense_hessian(net, lambda o: nn.functional.cross_entropy(o, targets), inputs)
    scaling = np.random.RandomState(0).uniform(0.5, 3, len(hessian)) if scaled else None
    d = np.diag(np.ones(len(hessian)) if scaling is None else scaling)
    expected = np.linalg.eigvalsh(d @ (hessian + decay * np.eye(len(d))) @ d)[-1]
    found = sharpness(net, nn.functional.cross_entropy, inputs, targets, scaling, decay)
    assert found == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 30])
def test_sharpness_is_the_most_positive_eigenvalue(size: int) -> None:
    """Not the largest in size, for which a negative one would do."""
    random = np.random.RandomState(size)
    basis = np.linalg.qr(random.randn(size, size))[0]
    values = np.linspace(-10, 3, size) if size > 1 else np.array([3.0])
    assert of_quadratic(basis @ np.diag(values) @ basis.T) == pytest.approx(3.0, rel=2e-4)
    assert of_quadratic(-np.diag(np.arange(1.0, size + 1))) == pytest.approx(-1.0, rel=2e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000])
def test_sharpness_of_a_flat_loss_is_0(size: int) -> None:
    """A saturated or dead network has a Hessian of exact zeros."""
    assert of_quadratic(np.zeros((size, size))) == 0.0


@pytest.mark.parametrize("size", [2, 3, 10, 100])
@pytest.mark.parametrize("curvature", [-1.0, 1.0])
def test_sharpness_where_all_directions_are_alike(curvature: float, size: int) -> None:
    """Every vector is an eigenvector: Lanczos ends after one product."""
    assert of_quadratic(curvature * np.eye(size)) == pytest.approx(curvature, rel=1e-9)


@pytest.mark.parametrize("size", [3, 1000])
def test_sharpness_of_a_hessian_of_rank_one(size: int) -> None:
    """Lanczos ends after two products here: the one-layer CNN has such a Hessian."""
    c = np.where(np.arange(size) % 2 == 0, -1.0, 1.0)
    assert of_quadratic(np.outer(c, c) * 5 / size) == pytest.approx(5.0, rel=2e-4)


@pytest.mark.parametrize("size", [1, 2, 10])
def test_sharpness_where_the_hessian_is_not_finite(size: int) -> None:
    assert math.isnan(of_quadratic(np.full((size, size), math.nan)))


@pytest.mark.parametrize("curvature", [5.0, -5.0])
def test_sharpness_repeats_itself(curvature: float) -> None:
    """Also where Lanczos runs out of directions and goes on with a random one."""
    net, inputs, targets = tiny_net()
    found = {sharpness(net, nn.functional.cross_entropy, inputs, targets) for _ in range(3)}
    assert len(found) == 1
    c = np.where(np.arange(16) % 2 == 0, -1.0, 1.0)
    for matrix in (np.outer(c, c), np.eye(4), np.eye(30), np.eye(100)):
        assert len({of_quadratic(curvature * matrix) for _ in range(6)}) == 1


def test_sharpness_without_curvlinops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "curvlinops", None)
    with pytest.raises(StabmapError, match=r"curvlinops-for-pytorch.*install it.*sharpness: false"):
        of_quadratic(np.eye(3))
