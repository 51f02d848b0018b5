"""Runs that are written together: what MLflow then says of them is what its client would have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from stabmap import load_spec
from sweeps.runs import FinishedRun, database_of, write_run, write_together
from sweeps.tracking import Tracker
from trainables.domain import UnreachableError


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('runs') / 'mlflow.db'}")


def some(count: int, metrics: int = 5) -> list[FinishedRun]:
    curve = [Metric("curve/loss", 1.0 / (s + 1), 1000, 3 * s) for s in range(metrics)]
    return [
        FinishedRun(
            f"run-{i}",
            1000 + i,
            {"regime": "stable", "mlflow.parentRunId": "p"},
            {"lr": repr(0.1 * i), "number": str(i)},
            [Metric("lr", 0.1 * i, 1000, 0), *curve, Metric("rise", -1e-300, 1000, 0)],
        )
        for i in range(count)
    ]


def content(client: MlflowClient, experiment: str) -> list[Any]:
    """All that MLflow says of the runs of an experiment, without their random names."""
    found = []
    for run in client.search_runs([experiment], order_by=["attributes.start_time"]):
        identity, said = run.info.run_id, run.to_dictionary()
        assert said["info"].pop("experiment_id") == experiment
        assert said["info"].pop("run_id") == identity
        said["info"]["artifact_uri"] = said["info"]["artifact_uri"].replace(identity, "ID")
        histories = {k: client.get_metric_history(identity, k) for k in run.data.metrics}
        steps = {k: [(m.step, m.value, m.timestamp) for m in h] for k, h in histories.items()}
        found.append((said, {k: sorted(values) for k, values in steps.items()}))
    return found


def experiment(client: MlflowClient, name: str, folder: Path) -> str:
    return str(client.create_experiment(name, artifact_location=folder.as_uri()))


@pytest.mark.parametrize("metrics", [0, 5, 1200])
def test_together_is_one_after_the_other(
    client: MlflowClient, tmp_path: Path, metrics: int
) -> None:
    runs = some(3 if metrics < 1000 else 1, metrics)
    one = experiment(client, f"one {metrics}", tmp_path)
    for run in runs:
        write_run(client, one, run)
    together = experiment(client, f"together {metrics}", tmp_path)
    write_together(database_of(client), together, runs)
    assert content(client, together) == content(client, one)
    assert len(content(client, one)) == len(runs)


def test_all_or_none(client: MlflowClient, tmp_path: Path) -> None:
    """Two values of a metric at one step break a law of the database: nothing is left behind."""
    bad = FinishedRun("bad", 1, {}, {}, [Metric("a", 1.0, 0, 0), Metric("a", 1.0, 0, 0)])
    where = experiment(client, "none", tmp_path)
    with pytest.raises(Exception, match="UNIQUE"):
        write_together(database_of(client), where, [*some(2), bad])
    assert content(client, where) == []


def test_nothing_goes_to_a_deleted_experiment(client: MlflowClient, tmp_path: Path) -> None:
    where = experiment(client, "deleted", tmp_path)
    client.delete_experiment(where)
    with pytest.raises(ValueError, match="deleted"):
        write_together(database_of(client), where, some(1))


def test_a_server_is_no_database() -> None:
    """Its client only speaks HTTP, so there is nothing to write to."""
    assert database_of(MlflowClient("http://127.0.0.1:1")) is None


# --------------------------------------------------------------------------- the parent run


def test_a_deleted_experiment_is_one_clear_error(tmp_path: Path) -> None:
    spec = load_spec("one-layer-cnn", {"folder": str(tmp_path), "tracking.experiment": "gone"})
    client = Tracker(spec)._client
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(UnreachableError, match=r"MLflow cannot open a run there .* use another"):
        Tracker(spec).open()


BEGIN = """
import sys
from stabmap import load_spec
from sweeps.tracking import Tracker
tracker = Tracker(load_spec("one-layer-cnn", {"folder": sys.argv[1]}))
tracker.open()
tracker.close("FINISHED", 60.0)
"""


def test_sweeps_that_begin_together_in_a_fresh_folder(tmp_path: Path) -> None:
    """Both make MLflow's tables and the experiment; neither fails."""
    words = [sys.executable, "-c", BEGIN, str(tmp_path)]
    both = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
