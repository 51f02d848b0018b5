"""What the stability regulariser costs a training step, closed form against the reference.

Run: .venv/bin/python benchmarks/regulariser.py

Prints, for three widths of the last hidden layer, the time of a step with the closed form and with
the reference (full matrix, singular value decomposition, second backward pass), each as a ratio to
the same step without a regulariser, timed in turns in the same run. About a minute on one core.
"""

from __future__ import annotations

import statistics
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainables.domain import Point, Training
from trainables.losses import MEAN_SQUARED_ERROR, Loss
from trainables.trajectory import Bench, Trajectory, deterministic

TURNS = 30


@dataclass(frozen=True)
class Regression:
    """A tanh network with one output on random data; only its speed matters."""

    width: int
    name: ClassVar[str] = "regression"
    metric_name: ClassVar[str] = "none"
    regularised_layer: ClassVar[str] = "output"
    stand_in: ClassVar[str | None] = None
    loss: ClassVar[Loss] = MEAN_SQUARED_ERROR
    batch: ClassVar[int | None] = 100

    def module(self, seed: int) -> nn.Module:
        """784 - 256 - width - 1."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: OrderedDict[str, nn.Module] = OrderedDict(
                first=nn.Linear(784, 256),
                tanh1=nn.Tanh(),
                second=nn.Linear(256, self.width),
                tanh2=nn.Tanh(),
                output=nn.Linear(self.width, 1),
            )
            return nn.Sequential(layers).double()

    def train_data(self) -> tuple[Tensor, Tensor]:
        """1,000 random rows."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(1000, 784, generator=generator).double(), torch.ones(1000, 1).double()

    def test_data(self) -> tuple[Tensor, Tensor]:
        """The same."""
        return self.train_data()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Nothing."""
        return 0.0


def main() -> None:
    """Print the table."""
    print("width  step without, ms  closed form / without  reference / without")
    with deterministic("cpu"):
        for width in (10, 84, 512):
            runs = []
            for variant, alpha in (("closed-form", 0.0), ("closed-form", 1.0), ("reference", 1.0)):
                training = Training(regulariser=variant)  # type: ignore[arg-type]
                bench = Bench.of(Regression(width), training)
                runs.append(Trajectory(bench, Point(1e-3, alpha), 1, 0))
            times: list[list[float]] = [[] for _ in runs]
            for turn in range(TURNS):
                for run, spent in zip(runs, times, strict=True):
                    begin = time.perf_counter()
                    run.step(run.bench.batch(0, turn))
                    spent.append(time.perf_counter() - begin)
            plain, closed, reference = (statistics.median(spent[2:]) for spent in times)
            print(
                f"{width:5d}  {plain * 1e3:16.3f}  {closed / plain:21.2f}"
                f"  {reference / plain:19.2f}"
            )


if __name__ == "__main__":
    main()
