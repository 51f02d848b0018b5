"""Trajectories of one seed share data, their order and initial weights: checked by hash."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainables import sharing
from trainables.domain import NotReproducibleError, Point, Training
from trainables.evaluate import checked_training, evaluate
from trainables.losses import MEAN_SQUARED_ERROR, Loss
from trainables.pack import PackRun
from trainables.sharing import digest, shared
from trainables.tasks import Task
from trainables.trajectory import Bench


@pytest.fixture(autouse=True)
def forget() -> None:
    """No test lives on what another one has found."""
    sharing._known.clear()


@dataclass(frozen=True)
class Line:
    """A linear fit; its data or weights may be drawn anew at each call."""

    data: str = "seeded"
    weights: str = "seeded"
    noise: int = 0

    name: ClassVar[str] = "line"
    metric_name: ClassVar[str] = "error"
    regularised_layer: ClassVar[str] = ""
    stand_in: ClassVar[str | None] = None
    loss: ClassVar[Loss] = MEAN_SQUARED_ERROR
    batch: ClassVar[int | None] = 2

    def module(self, seed: int) -> nn.Module:
        layer = nn.Linear(3, 1).double()
        with torch.no_grad():
            layer.weight.copy_(drawn(self.weights, (1, 3), seed))
            layer.bias.zero_()
        return layer

    def train_data(self) -> tuple[Tensor, Tensor]:
        return drawn(self.data, (6, 3), self.noise), torch.ones(6, 1, dtype=torch.float64)

    def test_data(self) -> tuple[Tensor, Tensor]:
        return self.train_data()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        return float((outputs - targets).abs().mean())


def drawn(how: str, shape: tuple[int, int], seed: int) -> Tensor:
    """Random numbers, from a seed or from one of the global generators."""
    if how == "torch":
        return torch.randn(shape, dtype=torch.float64)
    if how == "numpy":
        return torch.from_numpy(np.random.randn(*shape))
    if how == "python":
        return torch.full(shape, random.random(), dtype=torch.float64)
    return torch.from_numpy(np.random.RandomState(seed).randn(*shape))


@pytest.mark.parametrize("how", ["torch", "numpy", "python"])
@pytest.mark.parametrize("backend", ["loop", "auto"])
def test_a_task_that_draws_anew_is_named(how: str, backend: str) -> None:
    """The method, and the way out; before anything is trained."""
    tasks: list[tuple[Task, str]] = [
        (Line(data=how), r"line: train_data\(\) gives other data when .* a fixed seed$"),
        (
            Line(weights=how),
            r"line: module\(seed\) gives other weights when .* seed of the argument$",
        ),
    ]
    for task, message in tasks:
        with pytest.raises(NotReproducibleError, match=message):
            evaluate([Point(0.01)], task, steps=20, backend=backend)


def test_what_is_shared() -> None:
    """The hashes tell data, order and weights apart, and follow the seed."""
    bench = Bench.of(Line(), Training())
    found = shared(bench, 1)
    assert found == shared(bench, 1)
    other, noisy = shared(bench, 2), shared(Bench.of(Line(noise=1), Training()), 1)
    differs = [{k for k in found if found[k] != one[k]} for one in (other, noisy)]
    assert differs == [{"order", "weights"}, {"data"}]


def test_a_hash_is_of_shape_dtype_and_bits() -> None:
    zeros = torch.zeros(2, 3)
    different: list[Any] = [zeros, zeros.T, zeros.double(), -zeros, zeros.to(torch.bfloat16)]
    assert len({digest([t]) for t in different}) == len(different)
    assert digest([torch.arange(6.0).reshape(2, 3).T]) == digest(
        [torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]])]
    )


def test_global_random_numbers_stay_where_they_were() -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    shared(Bench.of(Line(), Training()), 1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    assert random.getstate() == before[2]


def test_a_pack_that_goes_on_with_other_data_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """As where a file was changed, or is another one on another machine."""
    training, points = checked_training({"steps": 20}), [Point(0.01)]
    pack = PackRun(points, Line(), training)
    pack.advance(0.0)
    state = pack.state_dict()
    PackRun(points, Line(), training).load_state_dict(state)
    assert not caplog.records
    with caplog.at_level("WARNING", "stabmap"):
        PackRun(points, Line(noise=1), training).load_state_dict(state)
    assert "task line: data not as they were when this pack was stopped" in caplog.text


def test_data_are_asked_for_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    original = Line.train_data

    def counted(self: Line) -> tuple[Tensor, Tensor]:
        nonlocal asked
        asked += 1
        return original(self)

    monkeypatch.setattr(Line, "train_data", counted)
    for expected in (2, 3):  # a pack loads its data once in any case
        pack = PackRun([Point(0.01 * expected)], Line(), checked_training({"steps": 20}))
        pack.advance(0.0)
        assert asked == expected


def test_the_order_has_a_seed_of_its_own() -> None:
    """Where several orders are tried with one set of initial weights."""
    bench = Bench.of(Line(), Training())
    one, other = shared(bench, 1), shared(bench, 1, 2)
    assert {what for what in one if one[what] != other[what]} == {"order"}
