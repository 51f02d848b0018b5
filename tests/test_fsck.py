"""Store, database, Optuna's study and MLflow: every disagreement is found and mended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sql
from mlflow import MlflowClient
from mlflow.entities import Metric
from recorded import POINTS, spec_in, sweep
from synthetic import measure
from typer.testing import CliRunner

from stabmap.cli import app
from sweeps import backlog, fsck, runs, tracking
from sweeps.database import Database
from sweeps.mirror import Mirror
from sweeps.rounds import Rounds, distance_to_boundary
from sweeps.search.space import to_point
from sweeps.spec import SweepSpec
from sweeps.store import Entry, Store
from sweeps.tracking import Tracker
from trainables.domain import Point, StabmapError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow and Optuna take seconds to make their tables: once is enough."""
    folder = tmp_path_factory.mktemp("original")
    sweep(spec_in(folder))
    return folder


@pytest.fixture
def done(original: Path, tmp_path: Path) -> SweepSpec:
    copy = tmp_path / "copy"
    shutil.copytree(original, copy)
    return spec_in(copy)


def texts(report: fsck.Report) -> list[str]:
    return [str(finding) for finding in report.findings]


def client_of(spec: SweepSpec) -> MlflowClient:
    return MlflowClient(f"sqlite:///{Path(spec.folder) / 'mlflow.db'}")


def runs_of(spec: SweepSpec) -> list[Any]:
    client = client_of(spec)
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return [run for run in found if "stabmap.point" in run.data.tags]


def execute(spec: SweepSpec, text: str, **values: Any) -> None:
    with sql.create_engine(f"sqlite:///{Path(spec.folder) / 'stabmap.db'}").begin() as connection:
        assert connection.execute(sql.text(text), values).rowcount > 0


# --------------------------------------------------------------------------- what is written


def test_study_in_the_database_is_that_of_the_search(done: SweepSpec) -> None:
    """Read with Optuna alone: complete trials, in order, with the values of the results."""
    storage = f"sqlite:///{Path(done.folder) / 'stabmap.db'}"
    [name] = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    rounds, expected = Rounds(done), list[Point]()
    while proposed := rounds.propose():
        expected += [point for _, point in proposed]
        for number, point in proposed:
            rounds.record(number, measure(point))
    assert [trial.number for trial in study.trials] == list(range(POINTS))
    for trial, point in zip(study.trials, expected, strict=True):
        assert to_point(done.space, trial.params) == point
        margins = measure(point).verdict.margins
        assert trial.value == distance_to_boundary(margins)
        assert trial.user_attrs["margins"] == [margins.stable, margins.bounded]
        assert trial.state.name == "COMPLETE"


def test_results_out_of_order_wait_for_their_turn(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    points = [point for _, point in Rounds(spec).propose() or ()]
    database = Database(spec)
    database.open()
    numbered = [(n, Entry(measure(point), 0, 1.0)) for n, point in enumerate(points[:4])]
    database.tell([numbered[2], numbered[1]])
    assert database.study().trials == []
    database.tell([numbered[0]])
    assert len(database.study().trials) == 3
    database.tell([numbered[0], numbered[3]])  # told again after an error that came too late
    keys = [trial.user_attrs["key"] for trial in database.study().trials]
    assert keys == [entry.key for _, entry in numbered]
    database.close()


def test_a_sweep_goes_on_from_the_database_of_another_machine(tmp_path: Path) -> None:
    """Folder lost, database kept: the results come back to the bit, and the MLflow run."""
    here, there = tmp_path / "here", tmp_path / "there"
    shared = {
        "database": f"sqlite:///{tmp_path / 'shared.db'}",
        "tracking": {"address": f"sqlite:///{tmp_path / 'mlflow.db'}"},
    }
    first, second = spec_in(here, **shared), spec_in(there, **shared)
    assert first.hash == second.hash
    sweep(first)
    with Store(first) as known, Store(second) as store:
        mirror = Mirror(second, store)
        assert mirror.open(begun=False) == known.recall()["sweep"]
        assert dict(store.entries) == dict(known.entries)
        assert (store.folder / "results.jsonl").read_bytes() == (
            known.folder / "results.jsonl"
        ).read_bytes()
        mirror.close(1.0)


def test_a_transaction_whose_answer_was_lost_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's database took the runs, and the connection ended before it could say so."""
    together = runs.write_together

    def lossy(*given: Any) -> None:
        together(*given)
        raise ConnectionError("the answer is lost")

    monkeypatch.setattr(tracking, "write_together", lossy)
    spec = spec_in(tmp_path)
    sweep(spec)
    assert len(runs_of(spec)) == POINTS
    assert fsck.check(spec).findings == ()


def test_the_sweep_is_not_over_before_its_points_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "PAUSES", (0.01,))
    spec = spec_in(tmp_path)

    def away(*_: Any) -> None:
        raise ConnectionError("MLflow went away")

    monkeypatch.setattr(tracking, "write_together", away)
    monkeypatch.setattr(tracking, "write_run", away)
    tracker, proposed = Tracker(spec), Rounds(spec).propose()
    assert proposed
    number, point = proposed[0]
    run = tracker.open()
    tracker.log_point(number, Entry(measure(point), 0, 1.0))
    assert not tracker.close("FINISHED", 0.1)
    assert client_of(spec).get_run(run).info.status == "RUNNING"


# --------------------------------------------------------------------------- what is found


def lose_rows(spec: SweepSpec) -> None:
    execute(spec, "delete from stabmap_results where key like '%lr=1%'")


def change_a_row(spec: SweepSpec) -> None:
    execute(
        spec,
        "update stabmap_results set finished_at = 3 where key = "
        "(select min(key) from stabmap_results)",
    )


def lose_trials(spec: SweepSpec) -> None:
    study = Database(spec).study()
    optuna.delete_study(study_name=study.study_name, storage=study._storage)


def add_a_trial(spec: SweepSpec) -> None:
    study = Database(spec).study()
    study.add_trial(study.trials[0])


def leave_a_trial_running(spec: SweepSpec) -> None:
    Database(spec).study().ask()


def lose_runs(spec: SweepSpec) -> None:
    for run in runs_of(spec)[:5]:
        client_of(spec).delete_run(run.info.run_id)


def double_a_run(spec: SweepSpec) -> None:
    run = runs_of(spec)[0]
    new = client_of(spec).create_run(run.info.experiment_id, tags=run.data.tags)
    client_of(spec).log_batch(new.info.run_id, metrics=[Metric("lr", 1.0, 0, 0)])
    client_of(spec).set_terminated(new.info.run_id)


def leave_a_run_running(spec: SweepSpec) -> None:
    client_of(spec).update_run(runs_of(spec)[0].info.run_id, status="RUNNING")


def change_a_regime(spec: SweepSpec) -> None:
    run = runs_of(spec)[0]
    other = "stable" if run.data.tags["regime"] != "stable" else "divergent"
    client_of(spec).set_tag(run.info.run_id, "regime", other)


def leave_the_sweep_running(spec: SweepSpec) -> None:
    with Store(spec) as store:
        client_of(spec).update_run(store.recall()["sweep"], status="RUNNING")
        store.remember(state="running")


def lose_the_parent(spec: SweepSpec) -> None:
    with Store(spec) as store:
        client_of(spec).delete_run(store.recall()["sweep"])


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lose_rows, ["database: 3 results are missing"]),
        (change_a_row, ["database: 1 results are not those of the store"]),
        (lose_trials, [f"Optuna: {POINTS} trials are missing"]),
        (add_a_trial, ["Optuna: 1 trials are not those of the store"]),
        (
            leave_a_trial_running,
            ["Optuna: 1 trials are not those of the store", "Optuna: 1 trials are left running"],
        ),
        (lose_runs, ["MLflow: 5 trainings are missing"]),
        (double_a_run, ["MLflow: 1 runs are doubled"]),
        (
            leave_a_run_running,
            ["MLflow: 1 trainings are missing", "MLflow: 1 runs are left running"],
        ),
        (change_a_regime, ["MLflow: 1 runs have another regime than the store"]),
        (
            leave_the_sweep_running,
            [
                "store: the sweep says that it runs, and no process runs it",
                "MLflow: the sweep's run is left running",
            ],
        ),
        (lose_the_parent, ["MLflow: the sweep's run is not there"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_damage_is_found_and_mended(
    done: SweepSpec, damage: Callable[[SweepSpec], None], found: list[str]
) -> None:
    assert texts(fsck.check(done)) == []
    damage(done)
    assert texts(fsck.check(done)) == found
    assert texts(fsck.check(done)) == found  # looking changes nothing
    before, after = fsck.repair(done)
    assert texts(before) == found
    assert texts(after) == []
    with Store(done) as store:
        parent = store.recall()["sweep"]
    mine = [run for run in runs_of(done) if run.data.tags["mlflow.parentRunId"] == parent]
    assert len(mine) == POINTS


def test_an_unfinished_sweep_agrees_with_itself(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    sweep(spec, points=5, state="interrupted")
    report = fsck.check(spec)
    assert (report.points, texts(report)) == (5, [])


def test_a_sweep_that_runs_is_left_alone(done: SweepSpec) -> None:
    with Store(done), pytest.raises(StabmapError, match="being run by another process"):
        fsck.check(done)


def test_a_damaged_line_is_named(done: SweepSpec) -> None:
    path = Path(done.folder) / "sweeps" / done.hash / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b'{"finished_at": 1\n', *lines[4:]]))
    with pytest.raises(StabmapError, match=r"line 4 of .*results.jsonl is damaged .*delete that"):
        fsck.check(done)


def test_the_verb(done: SweepSpec) -> None:
    """By the sweep's folder: exit code and words, then mended."""
    folder = str(Path(done.folder) / "sweeps" / done.hash)
    result = CliRunner().invoke(app, ["fsck", folder])
    assert result.exit_code == 0, result.output
    assert f"sweep {done.hash}: {POINTS} points; the records agree" in result.output
    lose_runs(done)
    result = CliRunner().invoke(app, ["fsck", folder, "--json"])
    assert result.exit_code == 1
    told = json.loads(result.stdout.splitlines()[0])
    assert told["findings"] == [{"where": "MLflow", "text": "5 trainings are missing"}]
    assert result.stderr.endswith(f"mend with: stabmap fsck {folder} --repair\n")
    result = CliRunner().invoke(app, ["fsck", folder, "--repair"])
    assert result.exit_code == 0
    assert "was MLflow: 5 trainings are missing" in result.stdout


def test_a_parent_run_whose_id_was_not_kept_is_found_again(tmp_path: Path) -> None:
    """A kill between MLflow's answer and the store: no second parent, none left running."""
    spec = spec_in(tmp_path)
    found = []
    for origin in ("here", "here", "elsewhere"):
        tracker = Tracker(spec)
        tracker.origin = origin
        found.append(tracker.open())
        assert tracker.close("FINISHED", 60.0)
    assert found[0] == found[1] != found[2]
    for run in map(client_of(spec).get_run, found):
        assert run.info.status == "FINISHED" and run.data.params
