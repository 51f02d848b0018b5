"""What a point of a sweep costs beyond its training: stabmap against the script written today.

Run: .venv/bin/python benchmarks/overhead.py [--points 256] [--script-points 24]

Both sides train the same task, which takes milliseconds, with two workers on one machine, and keep
their runs in a sqlite file of MLflow. The script is a Ray Tune function that trains one point,
OptunaSearch and Ray's MLflowLoggerCallback; by default Tune starts a process for each of its
trials, and most of its cost is that process's imports, so it runs once more with reuse_actors=True.
Each side runs in a process and a Ray of its own.

A point's cost is the wall time from the first report that came in to the last, MLflow and the
database included, by the points that came in between, less half the time that the training of a
point takes alone in a Ray worker (there are two). The time until the first report (imports, Ray,
the workers' imports, a database for MLflow) and after the last (map, picture) is a cost a sweep
and printed apart, and with the rest by the number of points. The processor time of the process that
plans beside the driver counts from its beginning, with its imports. Other load on the machine makes
everything larger: the processor time of the driver is printed too, and the load. About two minutes
on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

BEGIN = time.perf_counter()
WORKERS = 2
TRAINING: dict[str, Any] = {"steps": 20, "sharpness": False, "lyapunov": False}
TASK: dict[str, Any] = {"name": "one-layer-cnn", "image": 8, "kernel": 4}
LR, DECAY = (0.003, 0.5), (4.0, 256.0)
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
}

Report = dict[str, float]


# --------------------------------------------------------------------------- both sides


def start_ray(folder: Path) -> None:
    """A Ray of its own."""
    import ray

    ray.init(
        address="local",
        num_cpus=WORKERS,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=str(folder / "ray"),
    )


def training_alone(points: list[list[float]], pack: int) -> float:
    """Seconds that the training of a point takes in a Ray worker that has nothing else to do."""
    import ray

    def train() -> float:
        from stabmap import Point, evaluate, get_task

        task = get_task(**TASK)
        packs = [points[i : i + pack] for i in range(0, len(points), pack)]
        evaluate([Point(*values) for values in packs[0]], task, **TRAINING)  # imports
        begin = time.perf_counter()
        for values in packs:
            evaluate([Point(*v) for v in values], task, **TRAINING)
        return (time.perf_counter() - begin) / len(points)

    return float(ray.get(ray.remote(train).remote()))


class Clock:
    """Wall and processor time of the driver at each report."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []
        self.count: list[int] = []

    def tick(self, count: int) -> None:
        """A report of so many points is through."""
        self.wall.append(time.perf_counter())
        self.processor.append(time.process_time())
        self.count.append(count)

    def report(self, extra: float = 0.0) -> Report:
        """Seconds a point after the first report, and until it."""
        points = sum(self.count[1:])
        return {
            "points": sum(self.count),
            "wall": (self.wall[-1] - self.wall[0] + extra) / points,
            "processor": (self.processor[-1] - self.processor[0]) / points,
            "start": self.wall[0] - BEGIN,
            "total": (time.perf_counter() - BEGIN) / sum(self.count),
        }


# --------------------------------------------------------------------------- stabmap


class Shares:
    """Where the driver spends its time, from the first report to the last."""

    #: What a point is not through without: it counts after the last report too. Maps do not, they
    #: are a cost of the sweep.
    LATE = ("MLflow", "database")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        #: Of each call: its share, when it ended, its wall time and the time that it counts as.
        self._calls: list[tuple[str, float, float, float]] = []

    def watch(self, owner: Any, name: str, share: str) -> None:
        """Add the processor time (of the store: the wall time) of a method to a share."""
        method: Callable[..., Any] = getattr(owner, name)
        now = time.perf_counter if share == "store" else time.thread_time

        def timed(*arguments: Any, **keywords: Any) -> Any:
            begin, wall = now(), time.perf_counter()
            try:
                return method(*arguments, **keywords)
            finally:
                if self._clock.wall:
                    end = time.perf_counter()
                    self._calls.append((share, end, end - wall, now() - begin))

        setattr(owner, name, timed)

    def seconds(self) -> dict[str, float]:
        """Seconds of each share."""
        found: dict[str, float] = defaultdict(float)
        for share, end, _, spent in self._calls:
            if share in self.LATE or end <= self._clock.wall[-1]:
                found[share] += spent
        return found

    def late(self) -> float:
        """Wall time of what points needed after the last report."""
        last = self._clock.wall[-1]
        return sum(
            min(wall, end - last)
            for s, end, wall, _ in self._calls
            if s in self.LATE and end > last
        )


def sweep(folder: Path, points: int) -> Report:
    """stabmap: the default search."""
    from stabmap import load_spec
    from sweeps.mirror import Mirror
    from sweeps.rounds import Rounds
    from sweeps.runner import _Session, execute
    from sweeps.store import Store
    from sweeps.tracking import Tracker

    clock = Clock()
    shares = Shares(clock)
    shares.watch(Rounds, "propose", "proposals")
    shares.watch(Tracker, "_write_points", "MLflow")
    shares.watch(Tracker, "_write_map", "maps on the way")
    shares.watch(Mirror, "_write", "database")
    shares.watch(Store, "extend", "store")
    take, plan_with = _Session._take, Rounds.plan_with
    beside: list[Any] = []
    second = 0.0

    def timed(session: Any, results: list[Any]) -> None:
        nonlocal second
        take(session, results)
        clock.tick(len(results))
        if beside and sum(clock.count) == points:
            second = beside[0].submit(time.process_time).result()

    def noted(rounds: Rounds, executor: Any) -> None:
        beside.append(executor)
        plan_with(rounds, executor)

    _Session._take = timed  # type: ignore[method-assign]
    Rounds.plan_with = noted  # type: ignore[method-assign]
    axes = {"lr": LR, "weight_decay": DECAY}
    spec = load_spec(
        {
            "task": TASK,
            "axes": {n: {"scale": "log", "low": a, "high": b} for n, (a, b) in axes.items()},
            **TRAINING,
            "budget": {"points": points},
            "resources": {"workers": WORKERS},
            "folder": str(folder / "home"),
        }
    )
    start_ray(folder)
    outcome = execute(spec)
    # Points that MLflow and the database take after the last report.
    found = clock.report(extra=shares.late())
    after = points - clock.count[0]
    found |= {f"share {name}": value / after for name, value in shares.seconds().items()}
    found["second"] = second / after
    lines = (outcome.folder / "results.jsonl").read_text("utf-8").splitlines()
    trained = [json.loads(line)["result"]["point"] for line in lines]
    given = [[p["lr"], p["alpha"], p["weight_decay"]] for p in trained]
    return found | {"training": training_alone(given, spec.resources.pack)}


# --------------------------------------------------------------------------- the script


def script(folder: Path, points: int, reuse: bool = False) -> Report:
    """Ray Tune, OptunaSearch and the MLflow callback, as their manuals show them.

    By default Tune starts a process a trial; `reuse` gives a process one trial after the other.
    """
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search.optuna import OptunaSearch

    class Ticks(tune.Callback):
        """Called after the callbacks before it."""

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            clock.tick(1)
            trained.append([trial.config["lr"], 0.0, trial.config["weight_decay"]])

    def train(config: dict[str, Any]) -> None:
        from stabmap import Point, evaluate, get_task

        [result] = evaluate([Point(**config)], get_task(**TASK), **TRAINING)
        margins = result.verdict.margins
        stable, bounded = margins.stable, margins.bounded
        tune.report({"distance": min(abs(stable), abs(bounded)), "stable": stable})

    clock, trained = Clock(), list[list[float]]()
    start_ray(folder)
    address = f"sqlite:///{folder / 'mlflow.db'}"
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space={"lr": tune.loguniform(*LR), "weight_decay": tune.loguniform(*DECAY)},
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(),
            metric="distance",
            mode="min",
            num_samples=points,
            max_concurrent_trials=WORKERS,
            reuse_actors=reuse,
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder / "tune"),
            callbacks=[MLflowLoggerCallback(tracking_uri=address, experiment_name="x"), Ticks()],
            verbose=0,
        ),
    )
    tuner.fit()
    return clock.report() | {"training": training_alone(trained, 1)}


# --------------------------------------------------------------------------- the table


def alone(side: str, points: int) -> Report:
    """One side in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="ov-") as folder:  # socket paths must stay short
        answer = Path(folder) / "answer.json"
        command = [sys.executable, __file__, "--side", side, "--points", str(points)]
        subprocess.run(
            [*command, "--answer", str(answer)],
            check=True,
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        found: Report = json.loads(answer.read_text("utf-8"))
    return found


def cost(found: Report) -> float:
    """Seconds a point beyond its training."""
    return found["wall"] - found["training"] / WORKERS


def show(ours: Report, *theirs: Report) -> None:
    """Print the table."""
    rows = {
        "points": lambda r: f"{r['points']:.0f}",
        "ms a point: wall time": lambda r: f"{r['wall'] * 1e3:.1f}",
        "  training alone, in one worker": lambda r: f"{r['training'] * 1e3:.1f}",
        "  cost beyond the training": lambda r: f"{cost(r) * 1e3:.1f}",
        "  processor time of the driver": lambda r: f"{r['processor'] * 1e3:.1f}",
        "  and of its second process": lambda r: f"{r.get('second', 0.0) * 1e3:.1f}",
        "s until the first report": lambda r: f"{r['start']:.1f}",
        "ms a point with start and end": lambda r: f"{r['total'] * 1e3:.0f}",
        "cost / cost of stabmap": lambda r: f"{cost(r) / cost(ours):.1f}",
        "load of the machine, before": lambda r: f"{r['load']:.1f}",
    }
    print(f"{'':34}{'stabmap':>10}{'script':>10}{'reusing':>10}")
    for name, of in rows.items():
        print(f"{name:34}" + "".join(f"{of(found):>10}" for found in (ours, *theirs)))
    print("\nstabmap, ms a point of the driver (the store: wall time, it waits for the disk)")
    shares = {k.removeprefix("share "): v for k, v in ours.items() if k.startswith("share ")}
    known = sum(value for name, value in shares.items() if name != "store")
    for name, value in (*shares.items(), ("Tune and the rest", ours["processor"] - known)):
        print(f"  {name:32}{value * 1e3:>10.1f}")
    print(f"\n{len(os.sched_getaffinity(0))} cores; reusing: the script with reuse_actors=True")


def main() -> None:
    """Run all sides and print the table."""
    sides = {"sweep": sweep, "script": script, "reusing": partial(script, reuse=True)}
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=256)
    parser.add_argument("--script-points", type=int, default=24)
    parser.add_argument("--side", choices=list(sides), help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        found = {"load": os.getloadavg()[0], **sides[given.side](given.answer.parent, given.points)}
        given.answer.write_text(json.dumps(found), encoding="utf-8")
    else:
        counts = {"sweep": given.points, "script": given.script_points}
        show(*(alone(side, counts.get(side, given.script_points)) for side in sides))


if __name__ == "__main__":
    main()
