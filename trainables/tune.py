"""The Ray Tune Trainable around `evaluate`: a pack of points a trial, results as they come."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from ray import tune

from trainables.domain import Point, Training
from trainables.evaluate import check_reproducible
from trainables.pack import PackRun
from trainables.tasks import get_task

#: Wall time between two reports of a pack; results are durable once reported.
REPORT_SECONDS = 1.0


class PackTrainable(tune.Trainable):
    """Trains the points of one pack and reports each result once.

    The configuration holds plain JSON values: `task` (name and options), `training` (the fields of
    `Training`), `points` (lists of lr, alpha, weight_decay), `first` (number of each point's first
    replicate), `numbers` (the points' numbers in the sweep) and `check` (whether to check first
    that the training repeats itself to the bit).

    Each report has `results`, a list of `[number, result]`, and `pid`. An actor that is reused
    starts each pack from nothing.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the first pack."""
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another pack in the same process."""
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        options = dict(config["task"])
        task = get_task(options.pop("name"), **options)
        training = Training(**config["training"])
        points = [Point(*values) for values in config["points"]]
        if config.get("check"):
            # The smallest rate: a training that blows up at once would prove little.
            check_reproducible(min(points), task, training)
        self._numbers = list(config["numbers"])
        self._pack = PackRun(points, task, training, config["first"])

    def step(self) -> dict[str, Any]:
        """Train for a while and report the points that were completed."""
        known = len(self._pack.results)
        results = self._pack.advance(REPORT_SECONDS)
        numbers = self._numbers[known : known + len(results)]
        return {
            "results": [[n, r.to_dict()] for n, r in zip(numbers, results, strict=True)],
            "worker_pid": os.getpid(),
            "done": self._pack.done,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write all that the rest of the pack depends on."""
        torch.save(self._pack.state_dict(), Path(checkpoint_dir) / "pack.pt")

    def load_checkpoint(self, checkpoint_dir: Any) -> None:
        """Go on from the folder of a checkpoint, to the bit."""
        state = torch.load(Path(checkpoint_dir) / "pack.pt", map_location="cpu", weights_only=True)
        self._pack.load_state_dict(state)
