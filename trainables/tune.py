"""The Ray Tune Trainable around `evaluate`: a pack of points a trial, results as they come."""

from __future__ import annotations

import errno
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from ray import tune

from trainables.allocator import keep_freed_memory
from trainables.domain import InputError, NotReproducibleError, Point, Training
from trainables.evaluate import check_reproducible
from trainables.hardware import hardware
from trainables.pack import PackRun
from trainables.tasks import get_task
from trainables.tasks.checks import check_parts
from trainables.tasks.from_files import Source, register
from trainables.usage import Meter

#: Wall time between two reports of a pack; results are durable once reported.
REPORT_SECONDS = 1.0
#: Errors of the operating system that pass, or that another machine does not have.
PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM)


class PackTrainable(tune.Trainable):
    """Trains the points of one pack and reports each result once.

    The configuration holds plain JSON values: `task` (name and options), `source` (the file of a
    task that is not installed, as `Source.to_dict` writes it, or None), `training` (the fields of
    `Training`), `points` (lists of lr, alpha, weight_decay), `first` (number of each point's first
    replicate), `numbers` (the points' numbers in the sweep) and `check` (whether to check first
    that the training repeats itself to the bit).

    Each report has `results`, a list of `[number, result]`, `worker_pid`, `hardware`, what trained
    them, and now and then `usage`: the machine's name and what it is busy with. An error in the
    task is reported too, as `error`, and ends the pack; an error of the machine is raised, so that
    Tune starts the pack again elsewhere. An actor that is reused starts each pack from nothing.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first pack; the process is a worker of Ray, and does nothing else."""
        keep_freed_memory()
        self._pack: PackRun | None = None
        self._file: str | None = None
        self._meter = Meter()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another pack in the same process."""
        self._pack = None
        return True

    def _begin(self) -> PackRun:
        """The pack, made when it is first needed: a task that cannot be made is to be reported."""
        if self._pack is None:
            config: dict[str, Any] = self.config
            if config.get("source"):
                register(Source(**config["source"]))
            options = dict(config["task"])
            task = get_task(options.pop("name"), **options)
            self._file = getattr(sys.modules[type(task).__module__], "__file__", None)
            training = Training(**config["training"])
            points = [Point(*values) for values in config["points"]]
            if config.get("check"):
                check_parts(task)
                # The smallest rate: a training that blows up at once would prove little.
                check_reproducible(min(points), task, training)
            self._pack = PackRun(points, task, training, config["first"])
        return self._pack

    def step(self) -> dict[str, Any]:
        """Train for a while and report the points that were completed."""
        try:
            pack = self._begin()
            known = len(pack.results)
            results = pack.advance(REPORT_SECONDS)
        except Exception as error:
            if is_infrastructure(error):
                raise
            return {"results": [], "error": describe(error, self._file), "done": True}
        numbers = self.config["numbers"][known : known + len(results)]
        device = self.config["training"].get("device", "cpu")
        usage = self._meter.sample(device)
        return {
            "results": [[n, r.to_dict()] for n, r in zip(numbers, results, strict=True)],
            "worker_pid": os.getpid(),
            "hardware": hardware(device),
            "usage": [socket.gethostname(), usage] if usage else None,
            "done": pack.done,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write all that the rest of the pack depends on."""
        torch.save(self._begin().state_dict(), Path(checkpoint_dir) / "pack.pt")

    def load_checkpoint(self, checkpoint_dir: Any) -> None:
        """Go on from the folder of a checkpoint, to the bit."""
        state = torch.load(Path(checkpoint_dir) / "pack.pt", map_location="cpu", weights_only=True)
        self._begin().load_state_dict(state)


def is_infrastructure(error: BaseException) -> bool:
    """Whether an error is the machine's (no memory, a broken GPU, a full disk), not the task's."""
    if isinstance(error, OSError):
        return error.errno in PASSING or isinstance(error, ConnectionError)
    # After an error of CUDA every further call in the process fails: it needs a new one.
    passing = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
    return isinstance(error, passing) or "CUDA error" in str(error)


def describe(error: BaseException, file: str | None = None) -> tuple[str, str, str]:
    """An error in plain values: its kind, its text and the place that led to it.

    No mapping: Tune flattens those that it passes on.

    Args:
        error: the error.
        file: the task's. Its last line on the way is the place; where there is none, the line
            that raised the error.
    """
    frames = traceback.extract_tb(error.__traceback__)
    frame = ([frame for frame in frames if frame.filename == file] or frames)[-1]
    kind = "not reproducible" if isinstance(error, NotReproducibleError) else type(error).__name__
    text = str(error).strip()
    place = "" if isinstance(error, InputError) else f"{Path(frame.filename).name}:{frame.lineno}"
    return kind, text, place
