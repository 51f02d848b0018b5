"""What MLflow is given beside the results: pictures, words, data, replicates, machines."""

from __future__ import annotations

import json
import logging
import math
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from recorded import spec_in
from synthetic import margins_at, measure

from analysis.report import Source
from sweeps import machines, point_runs, review, tracking
from sweeps.machines import Machines
from sweeps.pace import Pace
from sweeps.point_runs import Trained, metrics_of, thinned
from sweeps.rounds import Rounds
from sweeps.spec import SweepSpec
from sweeps.store import Entry
from sweeps.tracking import Tracker
from trainables import usage
from trainables.domain import Curve, Point, PointResult, Replicate, Verdict
from trainables.hardware import _processor, hardware
from trainables.usage import Meter


def rounds_of(spec: SweepSpec, count: int = 12) -> Rounds:
    rounds = Rounds(spec)
    for number, point in (rounds.propose() or [])[:count]:
        rounds.record(number, measure(point))
    return rounds


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('database') / 'mlflow.db'}"


@pytest.fixture
def spec(tmp_path: Path, database: str) -> SweepSpec:
    """A sweep with an experiment of its own: a database of its own would take seconds."""
    where = {"address": database, "experiment": tmp_path.name}
    return spec_in(tmp_path, name="a sweep", tracking=where)


def client_of(spec: SweepSpec) -> MlflowClient:
    return MlflowClient(spec.tracking.address)


def files_of(client: MlflowClient, run: str) -> set[str]:
    return {Path(file.path).name for file in client.list_artifacts(run, "map")}


# --------------------------------------------------------------------------- the parent run


def test_a_map_on_the_way_is_drawn_now_and_then(
    spec: SweepSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, found = Tracker(spec), rounds_of(spec).map()
    run, client = tracker.open(), client_of(spec)
    tracker.log_map(found)
    assert tracker.close("RUNNING", 60.0)
    assert files_of(client, run) == {"map.parquet"}
    monkeypatch.setattr("sweeps.pace.DRAW_SECONDS", 0.0)
    second = Tracker(spec, run)
    second.open()
    second.log_map(found)
    assert second.close("RUNNING", 60.0)
    assert files_of(client, run) == {"map.parquet", "map.png", "map-small.png", "map.html"}
    note = client.get_run(run).data.tags["mlflow.note.content"]
    assert "report.html" not in note and f"run_uuid={run}" in note


def test_drawing_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("sweeps.pace.time.monotonic", lambda: clock[0])
    pace, drawn = Pace(), 0.0
    assert not pace.due
    for _ in range(10_000):
        clock[0] += 10.0
        if pace.due:
            clock[0] += 30.0
            drawn += 30.0
            pace.took(30.0)
    assert 0.03 < drawn / (clock[0] - 1000.0) < 0.05
    pace.took(0.1)
    clock[0] += 59.0
    assert not pace.due
    clock[0] += 2.0
    assert pace.due


def test_a_map_that_cannot_be_drawn_harms_nothing(
    spec: SweepSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space for http://me:hunter2@host")

    monkeypatch.setattr(review, "draw", fail)
    tracker = Tracker(spec)
    run = tracker.open()
    with caplog.at_level(logging.WARNING):
        tracker.log_map(rounds_of(spec).map(), last=True)
        assert tracker.close("FINISHED", 60.0)
    assert client_of(spec).get_run(run).info.status == "FINISHED"
    assert files_of(client_of(spec), run) == {"map.parquet"}
    [said] = [m for m in caplog.messages if "not shown" in m]
    assert "hunter2" not in said


def test_data_that_cannot_be_read_harm_nothing(
    spec: SweepSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The task's error is no reason to think that MLflow is away, and to try for ever."""

    def fail(_: SweepSpec) -> None:
        raise OSError("no such file")

    monkeypatch.setattr(tracking, "dataset_of", fail)
    tracker = Tracker(spec)
    tracker.open()
    with caplog.at_level(logging.WARNING):
        assert tracker.close("FINISHED", 60.0)
    assert "the data are not recorded: no such file" in caplog.messages


def test_data_and_what_they_stand_in_for(spec: SweepSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainables.tasks.one_layer_cnn import OneLayerCNN

    for stand_in, tag in ((None, "none"), ("CIFAR-10", "CIFAR-10")):
        monkeypatch.setattr(OneLayerCNN, "stand_in", stand_in)
        tracker = Tracker(spec)
        run = tracker.open()
        tracker._records.put(tracker._write_dataset)  # twice is once
        assert tracker.close("FINISHED", 60.0)
        kept = client_of(spec).get_run(run)
        assert kept.inputs is not None
        [data] = kept.inputs.dataset_inputs
        assert data.dataset.digest == kept.data.tags["data_hash"]
        assert {t.key: t.value for t in data.tags}["stand_in"] == kept.data.tags["stand_in"] == tag


def test_long_descriptions_end_at_a_line(spec: SweepSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rounds_of(spec).map()
    whole = review.describe(found, Source("r"), [])
    assert "What is uncertain" in whole and len(whole) < review.LONGEST
    monkeypatch.setattr(review, "LONGEST", 900)
    cut = review.describe(found, Source("r"), [])
    assert len(cut) < 950 and cut.endswith("(More in the report.)\n")
    assert set(cut.splitlines()) - {"(More in the report.)"} <= set(whole.splitlines())


def test_the_picture_in_the_description_is_small(spec: SweepSpec, tmp_path: Path) -> None:
    files = review.draw(rounds_of(spec).map(), tmp_path, Source("r"))
    assert [file.name for file in files[:2]] == ["map.png", "map-small.png"]
    with Image.open(files[0]) as whole, Image.open(files[1]) as shrunk:
        wide, small = whole.size, shrunk.size
    assert small[0] == 720 < wide[0]
    assert small[0] / small[1] == pytest.approx(wide[0] / wide[1], rel=0.01)


# --------------------------------------------------------------------------- a point


def replicated(seeds: int, points: int) -> PointResult:
    point = Point(0.1, 0.0, 0.01)
    margins = margins_at(point)
    verdict = measure(point).replicates[0].verdict
    curve = Curve(tuple(range(points)), tuple(1.0 + i for i in range(points)))
    made = [
        Replicate(
            i, Verdict(margins, verdict.reason, 3), points, {"metric": 0.5 + i}, {"loss": curve}
        )
        for i in range(seeds)
    ]
    return PointResult(point, tuple(made))


def test_replicates_are_curves_of_one_run() -> None:
    found: dict[str, list[tuple[int, float]]] = {}
    logged = list(metrics_of(Trained(((0, Entry(replicated(3, 64), 0, 0.0)),))))
    for metric in logged:
        found.setdefault(metric.key, []).append((metric.step, metric.value))
    assert len(found["curve/loss"]) == 64
    for name in ("curve/loss/replicate 2", "curve/loss/replicate 3"):
        assert 10 <= len(found[name]) <= point_runs.OTHER_CURVES + 1
        assert found[name][0] == (0, 1.0) and found[name][-1] == (63, 64.0)
        assert found[name] == sorted(found[name])
    assert found["replicate/metric"] == [(1, 0.5), (2, 1.5), (3, 2.5)]
    keys = [(m.key, m.step) for m in logged]
    assert len(set(keys)) == len(keys)  # the database takes no two


@pytest.mark.parametrize("points", [0, 1, 2, 15, 16, 17, 31, 64])
def test_thinned_curves_keep_their_ends(points: int) -> None:
    curve = Curve(tuple(range(points)), tuple(map(float, range(points))))
    assert list(thinned(curve, 1)) == [(i, float(i)) for i in range(points)]
    kept = list(thinned(curve, 2))
    assert len(kept) <= point_runs.OTHER_CURVES + 1
    if points:
        assert (kept[0], kept[-1]) == ((0, 0.0), (points - 1, points - 1.0))


def test_one_line_filters(spec: SweepSpec) -> None:
    """Those of docs/maps.md, against the results themselves."""
    tracker, rounds = Tracker(spec), Rounds(spec)
    run, seen = tracker.open(), []
    for number, point in rounds.propose() or []:
        entry = Entry(measure(point), 0, 1000.0 + number)
        seen.append(entry.result)
        tracker.log_point(number, entry)
    assert tracker.close("FINISHED", 60.0)
    client = client_of(spec)
    experiment = client.get_run(run).info.experiment_id

    def count(text: str) -> int:
        return len(client.search_runs([experiment], text))

    regimes = [result.verdict.regime.value for result in seen]
    assert 0 < regimes.count("restrained") < len(seen)
    assert count("tags.regime = 'restrained'") == regimes.count("restrained")
    assert count("tags.sweep = 'a sweep'") == len(seen)
    low = sum(r.verdict.regime.value == "stable" and r.point.lr < 0.1 for r in seen)
    assert count("tags.regime = 'stable' and metrics.lr < 0.1") == low
    assert count("tags.replicates_agree = 'no'") == 0
    assert count("metrics.trainings > 1") == 0
    assert count("metrics.trainings > 0") == len(seen)
    assert count("tags.stabmap.kind = 'sweep'") == 1
    near = sum(abs(r.verdict.margins.stable) < 0.5 for r in seen)
    assert count("metrics.margin_stable < 0.5 and metrics.margin_stable > -0.5") == near


# --------------------------------------------------------------------------- machines

Usage = Sequence[tuple[str, float]]


def test_samples_are_written_together(spec: SweepSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reports, a machine has one sample of a kind in ten seconds."""
    clock = [0.0]
    monkeypatch.setattr("sweeps.machines.time.monotonic", lambda: clock[0])
    busy = Machines()
    assert busy.add("one", [("cpu", 5.0), ("bad", math.nan)])
    assert not busy.add("one", [("cpu", 6.0)])
    assert not busy.add("two/../x", [("cpu", 7.0)])
    with pytest.raises(ConnectionError), busy.waiting():
        raise ConnectionError
    with busy.waiting() as written:
        assert [(s.name, s.value) for s in written] == [
            ("system/one/cpu", 5.0),
            ("system/two_.._x/cpu", 7.0),
        ]
    clock[0] += machines.SAMPLE_SECONDS
    assert busy.add("one", [("cpu", 8.0)])
    with busy.waiting() as written:
        assert [s.value for s in written] == [8.0]


def test_usage_reaches_the_parent(spec: SweepSpec) -> None:
    tracker = Tracker(spec)
    run = tracker.open()
    tracker.log_usage("node-1", [("cpu_utilization_percentage", 40.0)])
    tracker.log_usage("node-2", [("cpu_utilization_percentage", 60.0)])
    assert tracker.close("FINISHED", 60.0)
    found = client_of(spec).get_run(run).data.metrics
    assert found["system/node-1/cpu_utilization_percentage"] == 40.0
    assert found["system/node-2/cpu_utilization_percentage"] == 60.0


def test_what_trains_is_named_and_unlike_machines_bring_a_warning(
    spec: SweepSpec, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(spec)
    run = tracker.open()
    for _ in range(3):
        tracker.log_hardware("Opteron, AVX2")
    assert tracker.close("FINISHED", 60.0)
    assert client_of(spec).get_run(run).data.tags["hardware"] == "Opteron, AVX2"
    assert not caplog.messages
    again = Tracker(spec, run)  # another call, perhaps from another machine
    again.open()
    again.log_hardware("Athlon, AVX512")
    again.log_hardware("Opteron, AVX2")
    assert again.close("FINISHED", 60.0)
    names = "Athlon, AVX512; Opteron, AVX2"
    assert client_of(spec).get_run(run).data.tags["hardware"] == names
    [warning] = caplog.messages
    assert warning.startswith(f"trained on different hardware ({names}): ")
    third = Tracker(spec, run)
    third.open()  # all is known already: nothing is trained
    third.log_map(rounds_of(spec).map(), last=True)
    assert third.close("FINISHED", 60.0)
    assert len(caplog.messages) == 1
    report = Path(client_of(spec).download_artifacts(run, "map/report.html")).read_text()
    assert names in report


def test_a_processor_goes_by_its_name_and_its_vector_instructions() -> None:
    told = subprocess.run(["lscpu", "--json"], capture_output=True, check=True, env={"LC_ALL": "C"})
    fields = {field["field"]: field["data"] for field in json.loads(told.stdout)["lscpu"]}
    name = " ".join(fields.get("Model name:", platform.machine()).split())
    [instructions] = re.findall(r"CPU capability usage: (.*)$", torch.__config__.show(), re.M)
    assert hardware() == hardware("cpu") == f"{name}, {instructions.strip()}"


def test_a_processor_without_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("trainables.hardware.Path", lambda _: tmp_path / "missing")
    monkeypatch.setattr("trainables.hardware.platform.processor", lambda: "")
    monkeypatch.setattr("trainables.hardware.platform.machine", lambda: "aarch64")
    assert _processor() == "aarch64"


def test_a_meter_says_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("trainables.usage.time.monotonic", lambda: clock[0])
    meter = Meter(process=True)
    assert meter.sample() == []
    clock[0] += usage.FIRST_SECONDS
    found = dict(meter.sample())
    assert meter.sample() == []
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal")) * 1024
    used = found["system_memory_usage_megabytes"] * 1e6
    assert found["system_memory_usage_percentage"] == pytest.approx(100 * used / total, rel=0.01)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert found["process_memory_megabytes"] == pytest.approx(pages * 4096 / 1e6, rel=0.2)
    assert 0 <= found["cpu_utilization_percentage"] <= 100


def test_without_psutil_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "psutil", None)
    clock = [0.0]
    monkeypatch.setattr("trainables.usage.time.monotonic", lambda: clock[0])
    meter = Meter()
    clock[0] += 100.0
    assert meter.sample() == []
