"""A point is one run in MLflow, however often and in whatever order it is trained."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH
from recorded import spec_in, sweep

from analysis.map import StabilityMap
from sweeps import backlog, fsck, runs, tracking
from sweeps.point_runs import Trained, tags_of
from sweeps.spec import SweepSpec
from sweeps.store import Entry
from sweeps.tracking import Tracker
from trainables.domain import Curve, Margins, Point, PointResult, Reason, Replicate, Verdict

POINT = Point(0.1, 0.0, 0.01)
#: Margins of three trainings: two are stable, of which the first, and one is divergent.
STABLE = (0.5, -1.0, 0.25)


def training(repetition: int, seeds: int = 1) -> tuple[int, Entry]:
    """A training of the point, with the number of its trial."""
    made = []
    for seed in range(seeds):
        stable = STABLE[repetition] + 0.01 * seed
        reason = Reason.SETTLED if stable > 0 else Reason.EXPLODED
        verdict = Verdict(Margins(stable, stable), reason, 7 + repetition)
        curve = Curve((0, 5, 10), (3.0, 2.0, 1.0 + repetition))
        evidence = {"metric": 0.1 * (repetition + 1) + seed}
        made.append(Replicate(10 * repetition + seed, verdict, 10, evidence, {"loss": curve}))
    entry = Entry(PointResult(POINT, tuple(made)), repetition, 100.0 + repetition)
    return 4 * repetition + 3, entry


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('database') / 'mlflow.db'}"


@pytest.fixture
def spec(tmp_path: Path, database: str) -> SweepSpec:
    return spec_in(tmp_path, name="a sweep", tracking={"address": database})


@pytest.fixture(autouse=True)
def one_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread beside it waits until the end: `record` writes before."""
    monkeypatch.setattr(backlog, "GATHER", 60.0)


def record(
    spec: SweepSpec, groups: Sequence[Sequence[tuple[int, Entry]]], known: str | None = None
) -> str:
    """Groups of trainings, each written together; nothing that one call knows is forgotten."""
    tracker = Tracker(spec, known)
    run = tracker.open()
    for group in groups:
        for number, entry in group:
            tracker.log_point(number, entry)
        tracker._write_points(list(tracker._trained.values()))
    assert tracker.close("FINISHED", 60.0)
    return run


def points_of(spec: SweepSpec, run: str) -> list[Any]:
    client = MlflowClient(str(spec.tracking.address))
    experiment = client.get_run(run).info.experiment_id
    return list(client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run}'"))


def said(spec: SweepSpec, run: str) -> tuple[Any, ...]:
    """All that MLflow's user finds of the only point, but how its summary came about."""
    [found] = points_of(spec, run)
    client = MlflowClient(str(spec.tracking.address))
    tags = {k: v for k, v in found.data.tags.items() if k != "mlflow.parentRunId"}
    curves = {
        name: sorted((m.step, m.value, m.timestamp) for m in client.get_metric_history(id_, name))
        for id_ in [found.info.run_id]
        for name in found.data.metrics
        if "/" in name
    }
    latest = {k: v for k, v in found.data.metrics.items() if not k.startswith("replicate/")}
    for name in ("metric", "margin_stable", "trainings"):
        history = client.get_metric_history(found.info.run_id, name)
        assert max(m.step for m in history) == latest["trainings"] - 1
    return found.info.run_name, found.info.status, tags, found.data.params, latest, curves


def expected_of(trainings: Sequence[tuple[int, Entry]], spec: SweepSpec) -> dict[str, Any]:
    """The point's row in the map of these trainings."""
    made = StabilityMap.of(spec.about(), [(n, e.result) for n, e in trainings])
    row: dict[str, Any] = made.to_frame().iloc[0].to_dict()
    return row


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("together", [True, False], ids=["database", "client"])
def test_any_order_gives_the_run_of_all_at_once(
    spec: SweepSpec, order: Sequence[int], together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not together:
        monkeypatch.setattr(tracking, "database_of", lambda client: None)
    whole = said(spec, record(spec, [[training(i) for i in range(3)]]))
    assert said(spec, record(spec, [[training(i)] for i in order])) == whole
    name, status, tags, params, latest, curves = whole
    row = expected_of([training(i) for i in range(3)], spec)
    assert (name, status, params["number"]) == ("a sweep-3", "FINISHED", "3")
    assert tags["stabmap.trainings"] == "0 1 2"
    assert (tags["regime"], tags["reason"]) == (row["regime"], row["reason"])
    assert tags["replicates"] == "stable divergent stable"
    assert (tags["replicates_agree"], tags["seeds"]) == ("no", "0 10 20")
    assert (latest["trainings"], latest["metric"]) == (3.0, row["metric"])
    assert latest["margin_stable"] == row["margin_stable"] == 0.25
    assert [(s, v) for s, v, _ in curves["replicate/margin_stable"]] == [
        (1, 0.5), (2, -1.0), (3, 0.25)
    ]  # fmt: skip
    assert [v for _, v, _ in curves["curve/loss/replicate 2"]] == [3.0, 2.0, 2.0]


def test_seeds_and_trainings_are_numbered_through(spec: SweepSpec) -> None:
    found = said(spec, record(spec, [[training(0, 2)], [training(1, 2)]]))
    assert [(s, round(v, 9)) for s, v, _ in found[-1]["replicate/metric"]] == [
        (1, 0.1), (2, 1.1), (3, 0.2), (4, 1.2)
    ]  # fmt: skip
    assert found[2]["seeds"] == "0 1 10 11"
    assert "curve/loss/replicate 4" in found[-1]


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(plan=st.lists(st.sets(st.integers(0, 2)), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_interruptions_do_not_show(plan: list[set[int]], seed: int, spec: SweepSpec) -> None:
    """Calls that each end after some write, and one that sees the end."""
    run, known = None, set[int]()
    for some in plan:
        known |= some
        order = random.Random(seed).sample(sorted(known), len(known))
        run = record(spec, [[training(i)] for i in order], run)
    run = record(spec, [[training(i) for i in range(3)]], run)
    assert said(spec, run) == said(spec, record(spec, [[training(i) for i in range(3)]]))


def test_an_addition_that_broke_off_is_written_again(
    spec: SweepSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metrics came in, the tags did not: the training is missing, and then not doubled."""
    monkeypatch.setattr(backlog, "PAUSES", (0.01,))
    run, batch = record(spec, [[training(0)]]), runs.log_batch
    calls: list[str] = []

    def breaking(client: Any, run_id: str, metrics: Any, *rest: Any, **more: Any) -> None:
        calls.extend([run_id] if run_id != run else [])
        if len(calls) == 2:
            calls.append("away")
            raise ConnectionError("away")
        batch(client, run_id, metrics, *rest, **more)

    monkeypatch.setattr(tracking, "log_batch", breaking)
    tracker = Tracker(spec, run)
    tracker.open()
    for repetition in range(3):
        tracker.log_point(*training(repetition))
    assert tracker.close("FINISHED", 60.0)
    assert "away" in calls
    assert said(spec, run) == said(spec, record(spec, [[training(i) for i in range(3)]]))


def test_a_run_of_another_number_is_written_anew(spec: SweepSpec) -> None:
    """With a larger budget the points of an audit come later; no two points have one number."""
    run = record(spec, [[training(0)]])
    (_, first), (_, second) = training(0), training(1)
    assert record(spec, [[(13, first)], [(17, second)]], run) == run
    [found] = points_of(spec, run)
    assert (found.info.run_name, found.data.params["number"]) == ("a sweep-13", "13")
    assert found.data.tags["stabmap.trainings"] == "0 1"


def test_a_training_that_is_known_no_more(spec: SweepSpec) -> None:
    """Its result was lost and comes again, after the next one: nothing is there twice."""
    run = record(spec, [[training(0), training(1)]])
    record(spec, [[training(0)], [training(2)], [training(1)]], run)
    whole = record(spec, [[training(i) for i in range(3)]])
    assert said(spec, run) == said(spec, whole)


def test_texts_of_many_seeds_fit(spec: SweepSpec) -> None:
    number, entry = training(0)
    [one] = entry.result.replicates
    many = tuple(replace(one, seed=2**31 - 1 - i) for i in range(1000))
    crowd = Entry(PointResult(POINT, many), 0, 100.0)
    tags = tags_of(Trained(((number, crowd),)))
    assert MAX_TAG_VAL_LENGTH >= len(tags["seeds"]) > MAX_TAG_VAL_LENGTH - 20
    assert tags["seeds"].endswith(" ..") and tags["seeds"].startswith("2147483647 2147483646 ")
    assert max(map(len, tags["seeds"].split())) == 10


def test_a_map_finds_the_run_of_a_point(spec: SweepSpec) -> None:
    """By the number that the map gives it, which is that of its first training."""
    run = record(spec, [[training(1)], [training(0)], [training(2)]])
    [found] = points_of(spec, run)
    row = expected_of([training(i) for i in range(3)], spec)
    assert found.data.params["number"] == str(row["number"])


def test_fsck_counts_trainings(tmp_path: Path) -> None:
    """One that is missing within a run is found and put there."""
    spec = spec_in(tmp_path, search={"start": [{"lr": 0.1, "weight_decay": 0.01}] * 3, "batch": 3})
    sweep(spec)
    assert fsck.check(spec).findings == ()
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    [first] = client.search_runs(["1"], "params.number = '0'")
    kept = first.data.tags["stabmap.trainings"].split()
    assert kept[:3] == ["0", "1", "2"]
    client.set_tag(first.info.run_id, "stabmap.trainings", " ".join(kept[:1] + kept[2:]))
    assert [str(f) for f in fsck.check(spec).findings] == ["MLflow: 1 trainings are missing"]
    before, after = fsck.repair(spec)
    assert len(before.findings) == 1 and after.findings == ()
    [again] = client.search_runs(["1"], "params.number = '0'")
    assert again.data.tags["stabmap.trainings"].split() == kept
