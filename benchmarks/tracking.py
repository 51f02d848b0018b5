"""What recording a point in MLflow costs: one transaction against one request a value.

Run: .venv/bin/python benchmarks/tracking.py

Writes the same points to two fresh sqlite files: as stabmap does (all in one transaction) and value
by value through log_metric and log_param, as stock callbacks do. Prints both times a point and
their ratio, and how much of a sweep's training time the first is, for one point of the preset
mnist-mlp trained in the same run. About a minute.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from mlflow import MlflowClient

from stabmap import Point, PointResult, evaluate, load_spec
from sweeps.point_runs import Trained, metrics_of
from sweeps.store import Entry
from sweeps.tracking import Tracker

POINTS = 5


def trained(number: int, result: PointResult) -> Trained:
    """A point that was trained once."""
    return Trained(((number, Entry(result, 0, 0.0)),))


def by_value(client: MlflowClient, experiment: str, result: PointResult) -> None:
    """One request a value."""
    run = client.create_run(experiment).info.run_id
    for metric in metrics_of(trained(0, result)):
        client.log_metric(run, metric.key, metric.value, metric.timestamp, metric.step)
    for name in ("lr", "alpha", "weight_decay"):
        client.log_param(run, name, getattr(result.point, name))
    client.set_terminated(run)


def main() -> None:
    """Print the table."""
    begin = time.perf_counter()
    points = [Point(lr=0.1 + 0.01 * i, weight_decay=1e-3) for i in range(POINTS)]
    results = evaluate(points, "mnist-mlp", steps=200)
    training = (time.perf_counter() - begin) / POINTS
    with tempfile.TemporaryDirectory() as folder:
        spec = load_spec("mnist-mlp", {"folder": folder})
        tracker = Tracker(spec)
        tracker.open()
        begin = time.perf_counter()
        tracker._write_points([trained(n, result) for n, result in enumerate(results)])
        batched = (time.perf_counter() - begin) / POINTS
        tracker.close("FINISHED", 60.0)
        client = MlflowClient(f"sqlite:///{Path(folder) / 'other.db'}")
        experiment = client.create_experiment("other", Path(folder).as_uri())
        begin = time.perf_counter()
        for result in results:
            by_value(client, experiment, result)
        single = (time.perf_counter() - begin) / POINTS
    values = sum(1 for _ in metrics_of(trained(0, results[0])))
    print(f"values a point                 {values}")
    print(f"batched, ms a point            {batched * 1e3:.0f}")
    print(f"value by value, ms a point     {single * 1e3:.0f}")
    print(f"ratio value by value / batched {single / batched:.1f}")
    print(f"batched / training time        {batched / training:.3f}")


if __name__ == "__main__":
    main()
