"""Does a sweep scale? More workers, more points.

Run: .venv/bin/python benchmarks/scaling.py
     .venv/bin/python benchmarks/scaling.py --workers 1 8
     .venv/bin/python benchmarks/scaling.py --sizes 1000 10000

- Workers: weak scaling. The training of a point takes a fixed time and no processor (it sleeps);
  each of 1, 2, 4, 8 pretended workers on this machine gets as many points. Efficiency is the rate
  of results over that of so many workers that do nothing but train, from the time when every worker
  has had two packs until four fifths of the points are done: starting processes that import torch,
  several a core, says nothing of a cluster. The time of the whole command is printed beside it.
- Driver: everything that the driver does with a result but talk to Ray: proposals (Sobol), store,
  database with Optuna's study, MLflow, the map every ten seconds. Processor time of all its threads
  and growth of its memory, a point, in a process of its own for each size.

About six minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

#: Points that each worker trains, points in a pack, and seconds of a training.
POINTS, PACK, SECONDS = 32, 4, 1.0
#: Updates of a training, and times that a training asks its network for outputs in all.
STEPS = 20

#: The task: `--tasks` ships it to the workers.
TASK = Path(__file__).with_name("_sleeper.py")


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


# --------------------------------------------------------------------------- the workers


def work(workers: int) -> tuple[float, float]:
    """Efficiency with so many workers, and seconds of the whole command."""
    with tempfile.TemporaryDirectory() as name:
        folder, points = Path(name), POINTS * workers
        spec = spec_of(folder, points, steps=STEPS, lyapunov=False, sharpness=False, early=False)
        spec["task"] = {"name": "sleeper", "seconds": SECONDS / (2 * STEPS)}  # two k
        spec["search"]["batch"] = PACK * workers
        spec["resources"] = {"workers": workers, "pack": PACK}
        (folder / "sweep.json").write_text(json.dumps(spec | {"backend": "loop"}))
        words = [sys.executable, "-m", "stabmap", "run", str(folder / "sweep.json"), "-q"]
        begin = time.monotonic()
        subprocess.run([*words, "--tasks", str(TASK)], check=True, stdout=subprocess.DEVNULL)
        whole = time.monotonic() - begin
        [log] = folder.glob("sweeps/*/results.jsonl")
        ends = sorted(json.loads(line)["finished_at"] for line in log.read_text().splitlines())
        assert len(ends) == points
    first, last = 2 * PACK * workers, round(0.8 * points)
    rate = (last - first) / (ends[last - 1] - ends[first - 1])
    return rate * SECONDS / workers, whole


def print_workers(counts: list[int]) -> None:
    """The table."""
    print(f"weak scaling: {POINTS} points a worker, {SECONDS:g} s each, packs of {PACK}")
    print("workers   of pure training   of the first line   seconds of the whole command")
    first = None
    for count in counts:
        efficiency, whole = work(count)
        first = first or efficiency
        row = f"{count:7d} {efficiency:18.2f} {efficiency / first:19.2f} {whole:30.0f}"
        print(row, flush=True)


def main() -> None:
    """Print the tables that are asked for; without any, both."""
    parser = argparse.ArgumentParser(description="Weak scaling and the driver's price.")
    parser.add_argument("--workers", type=int, nargs="+", help="only this part, with so many")
    parser.add_argument("--sizes", type=int, nargs="+", help="only the driver, with so many points")
    parser.add_argument("--drive", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(options.drive)
        return
    if options.workers or not options.sizes:
        print_workers(options.workers or [1, 2, 4, 8])
    if options.sizes or not options.workers:
        print_driver(options.sizes or [1000, 10000])


if __name__ == "__main__":
    main()
