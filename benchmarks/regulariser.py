"""What the stability regulariser costs a training step, closed form against the reference.

Run: .venv/bin/python benchmarks/regulariser.py

LeNet-5 with one output on batches of 100 digits, as in the stabilisation paper, with 10 (the
paper's), 84, 512 and 2048 units before the output. Printed is the processor time of a training step
with the closed form and with the reference (full matrix, singular value decomposition, second
backward pass), each over the same step without a regulariser, all timed in turns in one run. "None
again" is the same step a second time: how far it lies from 1 is the noise. Processor time of one
thread, so that other work on the machine counts little. About two minutes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainables.domain import Point, Training
from trainables.tasks.mnist_regression import MnistRegression
from trainables.trajectory import Bench, Trajectory, deterministic

WIDTHS = (10, 84, 512, 2048)
VARIANTS: dict[str, tuple[float, Any]] = {
    "none": (0.0, "stability"),
    "none again": (0.0, "stability"),
    "closed form": (1.0, "stability"),
    "reference": (1.0, "stability-reference"),
}


@dataclass(frozen=True)
class Lenet(MnistRegression):
    """The paper's network with another number of units before the output."""

    units: int = 10

    def module(self, seed: int) -> nn.Module:
        """LeNet-5 with its last two layers replaced."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: OrderedDict[str, nn.Module] = OrderedDict(super().module(seed).named_children())
            layers["fc2"] = nn.Linear(84, self.units)
            layers["fc3"] = nn.Linear(self.units, 1)
            return nn.Sequential(layers).double()


def times(width: int, loss: str, turns: int) -> dict[str, float]:
    """Median processor time of a step of each variant, in seconds."""
    task = Lenet(samples=1000, loss_name=loss, units=width)
    runs = {}
    for name, (alpha, stabiliser) in VARIANTS.items():
        bench = Bench.of(task, Training(stabiliser=stabiliser))
        runs[name] = Trajectory(bench, Point(1e-3, alpha), 1, 0)
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns):
        for name, run in runs.items():
            if name == "reference" and width > 512 and turn % 10:
                continue  # seconds a step
            rows = run.bench.batch(0, turn)
            begin = time.thread_time()
            run.step(rows)
            spent[name].append(time.thread_time() - begin)
    return {name: statistics.median(values[1:]) for name, values in spent.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Cost of the stability regulariser.")
    parser.add_argument("--turns", type=int, default=80)
    turns = parser.parse_args().turns
    print("loss                 width  none, ms  none again  closed form  reference   (over none)")
    with deterministic("cpu"):
        for loss in ("absolute-error", "mean-squared-error"):
            for width in WIDTHS:
                found = times(width, loss, turns)
                plain = found["none"]
                again, closed = found["none again"] / plain, found["closed form"] / plain
                print(
                    f"{loss:20s} {width:5d}  {plain * 1e3:8.2f}  {again:10.3f}  {closed:11.3f}"
                    f"  {found['reference'] / plain:9.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
