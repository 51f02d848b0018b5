"""The benchmark of early verdicts asks what a training asks, at the same steps."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from trainables.domain import Point, Training
from trainables.evaluate import evaluate
from trainables.tasks.one_layer_cnn import OneLayerCNN
from trainables.trajectory import Bench

CNN = OneLayerCNN(16, 4)
STEPS = 160


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    # A script beside the package: its own folder has to be on the path.
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    yield importlib.import_module("early_verdicts")
    sys.modules.pop("early_verdicts", None)


@pytest.mark.parametrize(
    ("lr", "optimiser", "momentum"),
    [(0.03, "sgd", None), (0.3, "sgd", None), (0.03, "sgd", 0.5), (0.01, "adam", None)],
)
def test_early_label_and_step_are_those_of_a_training_that_ends_there(
    benchmark: Any, lr: float, optimiser: str, momentum: float | None
) -> None:
    settings: dict[str, Any] = {"steps": STEPS, "lyapunov": False, "backend": "loop"}
    settings |= {"optimiser": optimiser, "momentum": momentum}
    point = Point(lr, 0.0, 2.0)
    row = benchmark.train(Bench.of(CNN, Training(early=False, **settings)), point, "uniform")
    [whole] = evaluate([point], CNN, early=False, **settings)
    [ended] = evaluate([point], CNN, early=True, **settings)
    assert row.full == whole.verdict
    assert row.length == STEPS
    assert row.early is not None
    assert row.early[0] == ended.verdict
    assert row.early[0].step < STEPS
    assert row.right
