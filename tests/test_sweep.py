"""Whole sweeps on Ray with MLflow: the same map whatever the workers, packs and interruptions."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from ray.tune.execution import experiment_state
from ray.tune.execution.tune_controller import TuneController

import stabmap
from sweeps.runner import _Session, execute
from sweeps.spec import SweepSpec
from sweeps.store import Store
from sweeps.tracking import Tracker
from trainables.domain import Point, PointResult, Training
from trainables.evaluate import evaluate
from trainables.hardware import hardware

pytestmark = pytest.mark.ray

SMALL: dict[str, Any] = {
    "task": {"name": "one-layer-cnn", "image": 64},
    "axes": {
        "lr": {"scale": "log", "low": 0.003, "high": 0.5},
        "weight_decay": {"scale": "log", "low": 4, "high": 256},
    },
    "steps": 60,
    "search": {"method": "tpe", "batch": 6},
    "budget": {"points": 20},
    "resources": {"pack": 3, "workers": 2},
}


def spec_in(folder: Path, **overrides: Any) -> SweepSpec:
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return stabmap.load_spec(SMALL, {"folder": str(folder), **dotted})


def children(folder: Path, sweep: str) -> list[Any]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    return list(
        client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{sweep}'", max_results=1000)
    )


def test_workers_and_packs_do_not_change_the_map(cluster: None, tmp_path: Path) -> None:
    """TPE feeds on results, so any dependence on who finishes first would show."""
    files = []
    for workers, pack in ((1, 5), (2, 2)):
        folder = tmp_path / str(workers)
        outcome = execute(spec_in(folder, resources__workers=workers, resources__pack=pack))
        assert outcome.ending == "complete"
        files.append((outcome.folder / "map" / "map.parquet").read_bytes())
    assert files[0] == files[1]


@pytest.fixture(scope="module")
def finished(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """One sweep in which all three regimes occur."""
    folder = tmp_path_factory.mktemp("finished")
    outcome = execute(spec_in(folder, search__method="sobol", seeds=2))
    return folder, outcome


def test_results_are_those_of_evaluate(finished: tuple[Path, Any]) -> None:
    """Ray adds nothing: the same points without it, in this process, one by one."""
    _, outcome = finished
    frame = pq.read_table(outcome.folder / "map" / "map.parquet").to_pandas()
    assert set(frame["regime"]) == {"stable", "restrained", "divergent"}
    lines = (outcome.folder / "results.jsonl").read_text().splitlines()
    kept = [PointResult.from_dict(json.loads(line)["result"]) for line in lines]
    assert len(kept) == 20
    task = stabmap.get_task("one-layer-cnn", image=64)
    for result in kept[::5]:
        assert evaluate([result.point], task, steps=60, seeds=2) == [result]


def test_study_hears_of_every_point(cluster: None, tmp_path: Path) -> None:
    """Optuna ends with complete trials of finite value only, divergence included."""
    spec = spec_in(tmp_path, search__method="sobol", budget__points=12)
    tracker = Tracker(spec)
    with Store(spec) as store:
        session = _Session(spec, store, tracker, None)
        session.run("local")
    trials = session.rounds.study.trials
    assert len(trials) == 12
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert all(trial.value is not None and math.isfinite(trial.value) for trial in trials)
    assert any(trial.user_attrs["margins"][1] < 0 for trial in trials)


def test_tune_writes_down_all_trials_at_the_ends_alone(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself it does so every ten seconds; here an hour passes whenever it looks at the time."""
    saved, hours = list[int](), itertools.count()
    save: Any = TuneController.save_to_dir

    def watched(self: TuneController) -> None:
        saved.append(next(hours))
        save(self)

    clock = SimpleNamespace(monotonic=lambda: 3600.0 * next(hours))
    monkeypatch.setattr(TuneController, "save_to_dir", watched)
    monkeypatch.setattr(experiment_state, "time", clock)
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "7")
    execute(spec_in(tmp_path, search__method="sobol", budget__points=6))
    assert 1 <= len(saved) <= 2 and next(hours) > 5
    assert os.environ["TUNE_GLOBAL_CHECKPOINT_S"] == "7"
    assert "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS" not in os.environ


def test_mlflow_children(finished: tuple[Path, Any]) -> None:
    """A finished child a point: axis values as params and metrics, regime as tag, all finite."""
    folder, outcome = finished
    runs = children(folder, outcome.sweep)
    frame = pq.read_table(outcome.folder / "map" / "map.parquet").to_pandas()
    assert len(runs) == len(frame) == 20
    by_number = {int(run.data.params["number"]): run for run in runs}
    for _, row in frame.iterrows():
        run = by_number[row["number"]]
        assert run.info.status == "FINISHED"
        assert run.data.tags["regime"] == row["regime"]
        assert run.data.tags["reason"] == row["reason"]
        assert run.data.tags["stabiliser"] == ("none" if row["alpha"] == 0 else "stability")
        if not np.isnan(row["lyapunov_exponent"]):
            assert run.data.metrics["lyapunov_exponent"] == row["lyapunov_exponent"]
        for name in ("lr", "alpha", "weight_decay"):
            assert float(run.data.params[name]) == run.data.metrics[name] == row[name]
        # MLflow stores infinity as the largest double, which is finite: look for that too.
        assert all(abs(v) < 1e300 for v in run.data.metrics.values())
        assert run.data.metrics["margin_bounded"] == row["margin_bounded"]
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    stable = next(run for run in runs if run.data.tags["regime"] == "stable")
    loss = client.get_metric_history(stable.info.run_id, "curve/loss")
    assert len(loss) > 20
    assert loss[-1].value < loss[0].value


def test_mlflow_parent(finished: tuple[Path, Any]) -> None:
    """The parent carries the map, the spec and where everything comes from."""
    folder, outcome = finished
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    run = client.get_run(outcome.sweep)
    assert run.info.status == "FINISHED"
    assert run.data.tags["stabiliser"] == "none"  # alpha is held at 0
    for tag in ("git_commit", "torch", "ray", "optuna", "mlflow", "device", "data_hash", "k_check"):
        assert run.data.tags[tag]
    assert run.data.tags["hardware"] == hardware("cpu")
    assert run.data.tags["stabmap.spec"] == spec_in(folder, search__method="sobol", seeds=2).hash
    names = {artifact.path for artifact in client.list_artifacts(outcome.sweep, "map")}
    files = ("map.parquet", "map.png", "map-small.png", "map.html", "report.html")
    assert names == {f"map/{file}" for file in files}
    assert "points were trained" in run.data.tags["mlflow.note.content"]
    assert run.inputs is not None
    [data] = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("one-layer-cnn", run.data.tags["data_hash"])
    assert any(name.startswith("system/driver/") for name in run.data.metrics)
    kept = stabmap.load_map(outcome.sweep, uri)
    local = stabmap.load_map(outcome.folder / "map")
    pd.testing.assert_frame_equal(kept.to_frame(), local.to_frame(), check_exact=True)
    assert kept.classify(lr=0.003, weight_decay=20.0)["stable"] > 0.5
    assert kept.classify(lr=0.4, weight_decay=200.0)["divergent"] > 0.9


def test_finished_sweep_runs_again_for_nothing(finished: tuple[Path, Any]) -> None:
    """The same call again trains nothing, doubles nothing and gives the same id."""
    folder, outcome = finished
    before = (outcome.folder / "results.jsonl").read_bytes()
    again = execute(spec_in(folder, search__method="sobol", seeds=2))
    assert again.sweep == outcome.sweep
    assert (outcome.folder / "results.jsonl").read_bytes() == before
    assert len(children(folder, outcome.sweep)) == 20


def test_larger_budget_goes_on(cluster: None, tmp_path: Path) -> None:
    """Points of a smaller budget are part of the larger one and are not trained again."""
    first = execute(spec_in(tmp_path, budget__points=8))
    lines = (first.folder / "results.jsonl").read_text().splitlines()
    second = execute(spec_in(tmp_path, budget__points=14))
    assert second.sweep == first.sweep
    grown = (second.folder / "results.jsonl").read_text().splitlines()
    assert grown[:8] == lines
    assert len(grown) == 14
    whole = execute(spec_in(tmp_path / "at-once", budget__points=14))
    assert (whole.folder / "map" / "map.parquet").read_bytes() == (
        second.folder / "map" / "map.parquet"
    ).read_bytes()


def test_wall_time_ends_a_sweep_short(cluster: None, tmp_path: Path) -> None:
    """Out of time: what is finished is kept and the ending says so."""
    spec = spec_in(tmp_path, budget__wall_time=1.0, budget__points=5000, search__method="sobol")
    outcome = execute(spec)
    assert outcome.ending == "short"
    assert outcome.points < 5000
    kept = (outcome.folder / "results.jsonl").read_text().splitlines()
    assert len(kept) == outcome.points


def test_failing_task_ends_with_its_own_error(cluster: None, tmp_path: Path) -> None:
    """A bug in a task is one clear line, and nothing of it is recorded as a result."""
    spec = spec_in(tmp_path)
    tracker = Tracker(spec)
    with Store(spec) as store:
        session = _Session(spec, store, tracker, None)
        session.searcher._spec = spec.model_copy(  # a kernel that no check lets through
            update={"task": spec.task.model_copy(update={"kernel": 99})}
        )
        with pytest.raises(stabmap.StabmapError, match=r"one-layer-cnn.*task.kernel = 99"):
            session.run("local")
    assert MlflowClient(tracker.uri).get_run(tracker.sweep_id).info.status == "FAILED"


def test_replicates_and_audits(cluster: None, tmp_path: Path) -> None:
    """The default search, with a point that is trained three times and an audit at the end."""
    again = {"lr": 0.05, "weight_decay": 20.0}
    spec = spec_in(tmp_path, search={"batch": 6, "start": [again] * 3}, budget__points=18)
    outcome = execute(spec)
    assert (outcome.ending, outcome.points) == ("complete", 18)
    found = stabmap.load_map(outcome.folder / "map")
    frame = found.to_frame()
    assert frame["replicates"].sum() == 18
    assert frame["replicates"][0] >= 3
    assert frame["number"][frame["audit"] == 1].tolist() == [16, 17]
    audit = found.audit()
    assert audit is not None and audit.points == 2
    lines = [json.loads(e) for e in (outcome.folder / "results.jsonl").read_text().splitlines()]
    [known] = evaluate(
        [Point(**again)], stabmap.get_task("one-layer-cnn", image=64), steps=60, seeds=3
    )
    trained = {
        e["repetition"]: PointResult.from_dict(e["result"]).replicates
        for e in lines
        if e["result"]["point"]["lr"] == 0.05
    }
    assert [trained[i] for i in range(3)] == [(replicate,) for replicate in known.replicates]
    runs = children(tmp_path, outcome.sweep)
    assert {int(run.data.params["number"]) for run in runs} == set(frame["number"])
    assert len(runs) == len(frame) < sum(run.data.metrics["trainings"] for run in runs) == 18
    [here] = [run for run in runs if float(run.data.params["lr"]) == 0.05]
    assert here.data.tags["stabmap.trainings"].startswith("0 1 2")
    assert here.data.tags["regime"] == frame["regime"][0]
    assert execute(spec).sweep == outcome.sweep
    assert len(children(tmp_path, outcome.sweep)) == len(frame)


# --------------------------------------------------------------------------- interruptions


def command(folder: Path, *more: str) -> list[str]:
    path = folder / "sweep.yaml"
    path.write_text(json.dumps({**SMALL, "steps": 250, "budget": {"points": 30}}))
    return [sys.executable, "-m", "stabmap", "run", str(path), "--json", *more]


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(folder),
        env={**os.environ, "STABMAP_HOME": str(folder / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_points(folder: Path, count: int) -> None:
    """Until that many results are on disk."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        files = list((folder / "home" / "sweeps").glob("*/results.jsonl"))
        if files and len(files[0].read_text().splitlines()) >= count:
            return
        time.sleep(0.05)
    pytest.fail("the sweep finished no point in two minutes")


@pytest.mark.slow
def test_interrupted_sweep_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Ctrl-C as a terminal sends it, then kill -9, then to the end: the map of an unbroken run."""
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    broken.mkdir()
    whole.mkdir()

    process = start(broken)
    wait_for_points(broken, 3)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert re.search(r"go on with: \S*stabmap run", err)
    assert "Traceback" not in err
    said = json.loads(out.splitlines()[-1])
    assert said["ending"] == "interrupted"
    kept = said["points"]
    assert 3 <= kept < 30

    process = start(broken)
    wait_for_points(broken, kept + 3)
    process.kill()
    process.communicate()

    process = start(broken)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    final = json.loads(out.splitlines()[-1])
    assert final["sweep"] == said["sweep"]
    assert final["points"] == 30

    home = broken / "home"
    runs = children(home, final["sweep"])
    assert len(runs) == 30
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len({run.data.tags["stabmap.point"] for run in runs}) == 30
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    assert client.get_run(final["sweep"]).info.status == "FINISHED"

    process = start(whole)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    other = json.loads(out.splitlines()[-1])
    assert (Path(other["folder"]) / "map" / "map.parquet").read_bytes() == (
        Path(final["folder"]) / "map" / "map.parquet"
    ).read_bytes()


def test_trainable_restores_to_the_bit(tmp_path: Path) -> None:
    """Checkpoint in the middle of a pack, go on in another object, reuse for another pack."""
    from trainables import tune

    config = {
        "task": {"name": "one-layer-cnn", "image": 64},
        "training": dataclasses.asdict(Training(steps=60)),
        "numbers": [7, 9],
        "points": [[0.05, 0.0, 20.0], [0.01, 0.0, 20.0]],
        "first": [0, 0],
    }
    expected = evaluate(
        [Point(0.05, 0.0, 20.0), Point(0.01, 0.0, 20.0)],
        stabmap.get_task("one-layer-cnn", image=64),
        steps=60,
    )
    first = tune.PackTrainable(config)
    for _ in range(20):  # a part of both points
        first._begin().advance(0.0)
    first.save_checkpoint(str(tmp_path))

    second = tune.PackTrainable(
        {**config, "numbers": [1], "points": [[0.3, 0.0, 50.0]], "first": [4]}
    )
    second.step()
    assert second.reset(dict(config))  # type: ignore[no-untyped-call]
    second.load_checkpoint(str(tmp_path))
    reports: list[Any] = []
    while not second._begin().done:
        reports += second.step()["results"]
    assert [number for number, _ in reports] == [7, 9]
    assert second._begin().results == expected
