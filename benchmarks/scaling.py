"""Does a sweep scale? More workers, more points.

Run: .venv/bin/python benchmarks/scaling.py
     .venv/bin/python benchmarks/scaling.py --driver
     .venv/bin/python benchmarks/scaling.py --workers 1 2 4 8

- Workers: weak scaling. A training of fixed duration that needs no processor (it sleeps), so many
  points a worker, and 1, 2, 4, 8 pretended workers on this machine. Efficiency is the time that the
  trainings of one worker take by themselves over the time between the first report of the last
  worker to begin and the last result but one pack a worker (starting processes that import torch,
  several a core, is this machine's business and is printed apart).
- Driver: everything that the driver does with a result but talk to Ray: proposals (Sobol), store,
  database with Optuna's study, MLflow, the map every ten seconds. Processor time of all its threads
  and growth of its memory, a point, for 1,000 and for 10,000 points, each in a process of its own.

About six minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

#: Points that each worker trains, points in a pack, and seconds of a training.
POINTS, PACK, SECONDS = 48, 4, 0.5
STEPS = 10

TASK = '''
"""A network whose training takes a fixed time and no processor."""

import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from trainables.losses import MSE


class Sleep(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
        self.seconds = seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return x @ self.weight
'''


def spec_of(folder: Path, points: int, **given: Any) -> dict[str, Any]:
    """A sweep of points that are never near each other."""
    return {
        "task": "one-layer-cnn",
        "axes": {"lr": {"scale": "log", "low": 1e-3, "high": 1}, "weight_decay": 1e-2},
        "search": {"method": "sobol", "audit": 0},
        "budget": {"points": points},
        "folder": str(folder),
        **given,
    }


# --------------------------------------------------------------------------- the driver


def drive(points: int) -> None:
    """Print milliseconds and KiB a point of a driver whose workers are infinitely fast."""
    import stabmap
    from sweeps.runner import _Session
    from sweeps.store import Store
    from sweeps.tracking import Tracker
    from trainables.domain import Point

    with tempfile.TemporaryDirectory() as folder:
        spec = stabmap.load_spec(spec_of(Path(folder), points))
        [trained] = stabmap.evaluate([Point(lr=0.05, weight_decay=1e-2)], "one-layer-cnn")
        content = trained.to_dict()
        with Store(spec) as store:
            session = _Session(spec, store, Tracker(spec), None)
            session._open()
            before = resource.getrusage(resource.RUSAGE_SELF)
            number = 0
            while isinstance(pack := session.searcher.suggest(str(number)), dict):
                results = []
                for n, (lr, alpha, decay) in zip(pack["numbers"], pack["points"], strict=True):
                    place = {"lr": lr, "alpha": alpha, "weight_decay": decay}
                    results.append([n, {**content, "point": place}])
                session.searcher.on_trial_complete(str(number), {"results": results})
                number += 1
            assert len(store) == points
            session._close("FINISHED", "complete")
            after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(1e3 * spent / points, (after.ru_maxrss - before.ru_maxrss) / points)


def print_driver(sizes: list[int]) -> None:
    """The table."""
    print("driver, a point      processor ms   memory KiB")
    for size in sizes:
        words = [sys.executable, __file__, "--drive", str(size)]
        found = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
        print(f"{size:8,} points {float(found[0]):17.2f} {float(found[1]):12.1f}")


def main() -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description="Weak scaling and the driver's price.")
    parser.add_argument("--driver", action="store_true", help="only this part")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 10000])
    parser.add_argument("--drive", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(options.drive)
        return
    print_driver(options.sizes)


if __name__ == "__main__":
    main()
