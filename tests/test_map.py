"""The map: questions about known boundaries, files that come back to the bit, clear refusals."""

from __future__ import annotations

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import ALPHA, DECAY, LR, boundaries, map_of, margins_at, result_of, signs_at, spec_of

from analysis import exports
from analysis.load import default_tracking_uri, home, load_map
from analysis.map import COLUMNS, REGIMES, StabilityMap, evidence_frame
from trainables.domain import (
    InputError,
    Margins,
    Mistake,
    Point,
    PointResult,
    StabmapError,
    UnreachableError,
)


@pytest.fixture(scope="module")
def plane() -> StabilityMap:
    """Learning rate and weight decay, with the extra level at 0."""
    return map_of({"lr": LR, "weight_decay": DECAY})


@pytest.fixture(scope="module")
def line() -> StabilityMap:
    """Learning rate alone, at weight decay 0.01."""
    return map_of({"lr": LR, "weight_decay": 0.01}, 24)


def refusal(ask: Any, *args: Any, **kwargs: Any) -> tuple[Mistake, ...]:
    with pytest.raises(InputError) as caught:
        ask(*args, **kwargs)
    for mistake in caught.value.mistakes:
        assert mistake.law
        assert mistake.remedy
    return caught.value.mistakes


# --------------------------------------------------------------------------- classify


def test_classify_knows_the_regions(plane: StabilityMap) -> None:
    """Right at half a decade from both boundaries, at every weight decay, 0 included."""
    for decay in (0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0):
        stable, bounded = boundaries(decay)
        places = {
            "stable": stable - 0.5,
            "restrained": (stable + bounded) / 2,
            "divergent": bounded + 0.5,
        }
        for regime, place in places.items():
            if -2 <= place <= 2:
                found = plane.classify(lr=10**place, weight_decay=decay)
                assert list(found) == ["stable", "restrained", "divergent"]
                assert max(found, key=lambda name: found[name]) == regime, (decay, place, found)
                assert sum(found.values()) == pytest.approx(1)


def test_numbers_give_floats(plane: StabilityMap) -> None:
    for value in (0.1, np.float64(0.1), np.array(0.1)):
        found = plane.classify(lr=value, weight_decay=0)
        assert [type(p) for p in found.values()] == [float] * 3
    json.dumps(found)


def test_arrays_broadcast(plane: StabilityMap) -> None:
    """Each entry is what the numbers alone would give."""
    lr = np.array([[0.02, 0.5, 9.0]])
    decay = np.array([[0.0], [0.3]])
    found = plane.classify(lr=lr, alpha=0.0, weight_decay=decay)
    for name in REGIMES:
        assert found[name].shape == (2, 3)
    for row in range(2):
        for column in range(3):
            alone = plane.classify(lr=lr[0, column], weight_decay=decay[row, 0])
            for name in REGIMES:
                assert found[name][row, column] == pytest.approx(alone[name], abs=1e-9)
    assert plane.classify(lr=[0.1], weight_decay=0)["stable"].shape == (1,)
    assert plane.classify(lr=[0.1, 0.2], weight_decay=[0, 0.1])["divergent"].shape == (2,)


def test_fixed_axes_may_be_left_out(line: StabilityMap) -> None:
    expected = line.classify(lr=0.1)
    assert line.classify(lr=0.1, weight_decay=0.01) == expected
    assert line.classify(lr=0.1, alpha=0, weight_decay=0.01) == expected
    many = line.classify(lr=0.1, weight_decay=[0.01, 0.01])["stable"]
    np.testing.assert_allclose(many, expected["stable"])


def test_no_free_axis() -> None:
    found = map_of({"lr": 0.1}, [Point(0.1)])
    assert found.classify()["stable"] > 0.75  # one training is no proof
    assert found.classify(lr=0.1) == found.classify()


def test_the_ends_of_the_range_belong_to_it(plane: StabilityMap) -> None:
    for lr in (0.01, 100.0):
        for decay in (0.0, 1e-4, 1.0):
            plane.classify(lr=lr, weight_decay=decay)
    plane.classify(lr=100 * (1 + 1e-12), weight_decay=0)  # an end that was computed


REFUSALS: list[tuple[dict[str, Any], str, str, str]] = [
    ({"weight_decay": 0}, "lr", "the sweep varied this axis", "give its value"),
    ({"lr": None, "weight_decay": 0}, "lr", "the sweep varied this axis", "give its value"),
    ({"lr": 0.1, "weight_decy": 0}, "weight_decy", "no such axis", "did you mean weight_decay?"),
    ({"lr": 0.1, "zzz": 0}, "zzz", "no such axis", "use one of lr, alpha, weight_decay"),
    ({"lr": 101, "weight_decay": 0}, "lr", "looked at 0.01 to 100 only", "wider"),
    ({"lr": 0.0099, "weight_decay": 0}, "lr", "looked at 0.01 to 100 only", "inside"),
    ({"lr": [0.1, 200], "weight_decay": 0}, "lr", "looked at 0.01 to 100 only", "inside"),
    ({"lr": 0.1, "weight_decay": 2}, "weight_decay", "looked at 0 to 1 only", "inside"),
    ({"lr": 0.1, "weight_decay": -0.1}, "weight_decay", "looked at 0 to 1 only", "inside"),
    ({"lr": 0.1, "weight_decay": 0, "alpha": 0.1}, "alpha", "held it at 0", "leave it out"),
    ({"lr": 0.1, "weight_decay": 0, "alpha": [0, 1]}, "alpha", "held it at 0", "leave it out"),
    ({"lr": math.nan, "weight_decay": 0}, "lr", "must be finite", "give a number"),
    ({"lr": math.inf, "weight_decay": 0}, "lr", "must be finite", "give a number"),
    ({"lr": 0.1, "weight_decay": 0, "alpha": math.nan}, "alpha", "must be finite", "number"),
    ({"lr": [0.1, math.nan], "weight_decay": 0}, "lr", "must be finite", "give a number"),
]


@pytest.mark.parametrize(("values", "field", "law", "remedy"), REFUSALS)
def test_classify_refuses(
    plane: StabilityMap, values: dict[str, Any], field: str, law: str, remedy: str
) -> None:
    (found,) = refusal(plane.classify, **values)
    assert found.field == field
    assert law in found.law
    assert remedy in found.remedy


def test_classify_names_all_that_is_wrong(plane: StabilityMap) -> None:
    found = refusal(plane.classify, alpha=3, weight_decay=7)
    assert [m.field for m in found] == ["lr", "alpha", "weight_decay"]
    assert "7.0" in str(found[2])


def test_no_places_give_no_answers(plane: StabilityMap) -> None:
    assert plane.classify(lr=[], weight_decay=0)["stable"].shape == (0,)


@pytest.mark.parametrize("values", [{"lr": "fast"}, {"lr": [1, 2, 3]}])
def test_what_is_no_number_and_what_does_not_broadcast(
    plane: StabilityMap, values: dict[str, Any]
) -> None:
    found = refusal(plane.classify, **{"weight_decay": [0.1, 0.2], **values})
    assert "lr" in {m.field for m in found}


# --------------------------------------------------------------------------- max_stable


def by_hand(found: StabilityMap, confidence: float, decay: float, count: int) -> float | None:
    """Walk up the learning rates and stop at the first that is not stable."""
    best = None
    lrs = np.geomspace(0.01, 100, count).clip(0.01, 100)
    for lr, p in zip(lrs, found.classify(lr=lrs, weight_decay=decay)["stable"], strict=True):
        if p < confidence:
            break
        best = float(lr)
    return best


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95, 0.99999])
@pytest.mark.parametrize("decay", [0.0, 1e-3, 1.0])
def test_max_stable_is_what_walking_finds(
    plane: StabilityMap, confidence: float, decay: float
) -> None:
    expected = by_hand(plane, confidence, decay, 300)
    found = plane.max_stable("lr", confidence=confidence, weight_decay=decay)
    assert expected is not None and found is not None
    assert abs(math.log10(found / expected)) < 4 / 300 + 4 / 400  # a step of either walk
    assert plane.classify(lr=found, weight_decay=decay)["stable"] >= confidence - 1e-9
    assert abs(math.log10(found) - boundaries(decay)[0]) < (0.7 if decay == 0 else 0.4)


@pytest.mark.parametrize("decay", [0.0, 1e-3, 1.0])
def test_nothing_is_surer_than_few_signs_make_it(decay: float) -> None:
    found = map_of({"lr": LR, "weight_decay": DECAY}, 64, signs_at)
    assert by_hand(found, 0.99999, decay, 300) is None
    assert found.max_stable("lr", confidence=0.99999, weight_decay=decay) is None


def test_more_confidence_less_room(plane: StabilityMap) -> None:
    found = [plane.max_stable("lr", confidence=c, weight_decay=0.01) for c in (0.3, 0.6, 0.9, 0.99)]
    assert found == sorted(found, key=lambda v: -1 if v is None else -v)
    assert plane.max_stable("lr", weight_decay=0.01) == plane.max_stable(
        "lr", weight_decay=0.01, confidence=0.95
    )


def test_max_stable_along_the_other_axis(plane: StabilityMap) -> None:
    """The zero level is where that axis begins."""
    found = plane.max_stable("weight_decay", lr=0.2, confidence=0.9)
    assert found is not None
    assert boundaries(found)[0] == pytest.approx(math.log10(0.2), abs=0.3)
    assert plane.classify(lr=0.2, weight_decay=0.0)["stable"] >= 0.9
    assert plane.max_stable("weight_decay", lr=20.0) is None


def test_nothing_and_everything_stable() -> None:
    def calm(point: Point) -> Margins:
        return Margins(1.0, 1.0)

    def wild(point: Point) -> Margins:
        return Margins(-1.0, -3.0)

    everything, nothing = (map_of({"lr": LR}, 16, margins) for margins in (calm, wild))
    assert everything.max_stable("lr", confidence=0.9) == 100.0
    assert nothing.max_stable("lr") is None


def test_only_the_zero_level_is_stable() -> None:
    def margins(point: Point) -> Margins:
        calm = 1.0 if point.weight_decay == 0 else -1.0
        return Margins(calm, 1.0)

    found = map_of({"lr": LR, "weight_decay": DECAY}, 96, margins)
    assert found.max_stable("weight_decay", lr=1.0, confidence=0.6) == 0.0


def test_an_island_beyond_a_gap_does_not_count() -> None:
    """Stable up to 0.3, not up to 3, stable again up to 30."""

    def margins(point: Point) -> Margins:
        here = math.log10(point.lr)
        inside = min(abs(here - edge) for edge in (-0.5, 0.5, 1.5))
        return Margins(inside if here < -0.5 or 0.5 < here < 1.5 else -inside, 1.0)

    found = map_of({"lr": LR}, 64, margins)
    assert found.classify(lr=10.0)["stable"] > 0.9
    assert found.classify(lr=1.0)["stable"] < 0.1
    best = found.max_stable("lr", confidence=0.9)
    assert best is not None
    assert math.log10(best) == pytest.approx(-0.5, abs=0.15)


@pytest.mark.parametrize("confidence", [0, 1, -0.1, 95, math.nan])
def test_confidence_outside_its_range(plane: StabilityMap, confidence: float) -> None:
    (found,) = refusal(plane.max_stable, "lr", confidence=confidence, weight_decay=0)
    assert found.field == "confidence"
    assert "0 < confidence < 1" in found.law


def test_max_stable_refuses(plane: StabilityMap, line: StabilityMap) -> None:
    (found,) = refusal(plane.max_stable, "weightdecay", lr=1)
    assert (found.field, found.law) == ("weightdecay", "no such axis")
    assert "weight_decay" in found.remedy
    (found,) = refusal(line.max_stable, "weight_decay", lr=1)
    assert "held this axis fixed" in found.law
    (found,) = refusal(plane.max_stable, "lr", lr=1, weight_decay=0)
    assert "leave its value out" in found.remedy
    (found,) = refusal(plane.max_stable, "lr")
    assert found.field == "weight_decay"
    (found,) = refusal(plane.max_stable, "lr", weight_decay=9)
    assert "looked at 0 to 1 only" in found.law


# --------------------------------------------------------------------------- evidence


def test_evidence_frame() -> None:
    """A row a point in the order of the numbers; medians of what was measured."""
    points = [Point(0.01), Point(10.0), Point(100.0)]
    first, second, third = (result_of(p, margins_at(p), 3, growth=float(p.lr)) for p in points)
    odd, even = (
        result_of(p, margins_at(p), growth=None if p.lr < 1 else 4.0, metric=m).replicates[0]
        for p, m in ((points[0], 1.0), (points[1], 2.0))
    )
    second = PointResult(second.point, (*second.replicates, odd, even))
    frame = evidence_frame([(7, third), (2, first), (5, second)])
    assert list(frame.columns) == COLUMNS
    assert list(frame["number"]) == [2, 5, 7]
    assert list(frame["lr"]) == [0.01, 10.0, 100.0]
    assert list(frame["regime"]) == ["stable", "restrained", "divergent"]
    assert list(frame["replicates"]) == [3, 5, 3]
    assert list(frame["replicates_stable"]) == [3, 1, 0]
    assert list(frame["replicates_restrained"]) == [0, 4, 0]
    assert list(frame["replicates_divergent"]) == [0, 0, 3]
    assert list(frame["growth"]) == [0.01, 10.0, 100.0]  # median of 10, 10, 10, 4
    assert frame["metric"].isna().tolist() == [True, False, True]
    assert frame["metric"][1] == 1.5
    for _, row in frame.iterrows():
        margins = margins_at(Point(row["lr"]))
        assert (row["margin_stable"], row["margin_bounded"]) == (margins.stable, margins.bounded)
        assert row["step"] == 37
    assert set(frame["reason"]) == {"settled", "perturbation amplified", "loss exploded"}


def test_counts(plane: StabilityMap) -> None:
    points = [margins_at(Point(r.lr, r.alpha, r.weight_decay)) for r in plane.frame.itertuples()]
    regimes = [margins.regime.value for margins in points]
    assert plane.counts() == {name: regimes.count(name) for name in REGIMES}
    assert sum(plane.counts().values()) == 64
    assert list(plane.counts()) == list(REGIMES)


def test_to_frame_is_a_copy(line: StabilityMap) -> None:
    before = line.to_frame().copy()
    changed = line.to_frame()
    changed["lr"] = -1.0
    pd.testing.assert_frame_equal(line.to_frame(), before, check_exact=True)


# --------------------------------------------------------------------------- files


def test_parquet_comes_back_to_the_bit(plane: StabilityMap, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    plane.write_parquet(path)
    again = StabilityMap.read_parquet(path)
    pd.testing.assert_frame_equal(again.frame, plane.frame, check_exact=True, check_dtype=False)
    assert dict(again.about) == dict(plane.about)
    assert again.axes == plane.axes
    where = {"lr": [0.02, 0.7, 40.0], "weight_decay": [0.0, 0.1, 0.3]}
    for name, p in plane.classify(**where).items():
        np.testing.assert_array_equal(again.classify(**where)[name], p)
    assert plane.max_stable("lr", weight_decay=0) == again.max_stable("lr", weight_decay=0)


def test_same_map_same_bytes(plane: StabilityMap, tmp_path: Path) -> None:
    """Written twice, read and written, or made of results that came in another order."""
    paths = [tmp_path / f"{i}.parquet" for i in range(4)]
    plane.write_parquet(paths[0])
    plane.write_parquet(paths[1])
    StabilityMap.read_parquet(paths[0]).write_parquet(paths[2])
    spec = spec_of({"lr": LR, "weight_decay": DECAY})
    results = [
        (row.number, result_of(p, margins_at(p), growth=0.5))
        for row in plane.frame.itertuples()
        for p in [Point(row.lr, row.alpha, row.weight_decay)]
    ]
    random.Random(0).shuffle(results)
    StabilityMap.of(spec.about(), results).write_parquet(paths[3])
    assert len({path.read_bytes() for path in paths}) == 1


def test_metadata_says_what_was_swept(plane: StabilityMap, tmp_path: Path) -> None:
    plane.write_parquet(tmp_path / "a.parquet")
    raw = pq.read_schema(tmp_path / "a.parquet").metadata
    about = json.loads(raw[b"stabmap"])
    assert about["schema_version"] == 4
    assert about["task"]["name"] == "one-layer-cnn"
    assert about["task"]["image"] == 256
    assert about["axes"]["lr"]["low"] == 0.01
    assert about["axes"]["weight_decay"]["zero"] is True
    assert about["training"]["ks"] == [1, 3]
    assert about["search"]["method"] == "boundary"


@given(
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5),
)
def test_any_margins_survive_the_file(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    points = [Point(0.1 + i) for i in range(len(values))]
    margins = {p: Margins(v, -v) for p, v in zip(points, values, strict=True)}
    found = map_of({"lr": LR}, points, lambda p: margins[p])
    path = tmp_path_factory.mktemp("map") / "map.parquet"
    found.write_parquet(path)
    again = StabilityMap.read_parquet(path).frame
    assert again["margin_stable"].tolist() == values
    assert again["margin_bounded"].tolist() == [-v for v in values]


def not_finite(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def test_export(plane: StabilityMap, tmp_path: Path) -> None:
    """Both files, the JSON strict, with null for what was not measured."""
    folder = tmp_path / "new" / "deep"
    paths = plane.export(folder, ["parquet", "json"])
    assert paths == [folder / "map.parquet", folder / "map.json"]
    assert sorted(folder.iterdir()) == sorted(paths)
    content = json.loads(paths[1].read_text("utf-8"), parse_constant=not_finite)
    assert content["schema_version"] == 4
    assert content["about"] == json.loads(json.dumps(dict(plane.about)))
    assert len(content["points"]) == 64
    for written, row in zip(content["points"], plane.frame.to_dict("records"), strict=True):
        assert set(written) == set(COLUMNS)
        assert written["lr"] == row["lr"]
        assert written["margin_bounded"] == row["margin_bounded"]
        assert written["growth"] == 0.5
        assert written["metric"] is None
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in plane.export(folder)[:2]] == before


@pytest.mark.parametrize("place", ["file/below", "/proc/stabmap"])
def test_export_to_a_folder_that_cannot_be_written(
    line: StabilityMap, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("")
    (found,) = refusal(line.export, tmp_path / place)
    assert found.field == "folder"
    assert found.value == str(tmp_path / place)
    assert "cannot be written" in found.law
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_that_are_no_map(line: StabilityMap, tmp_path: Path) -> None:
    text, table, empty = (tmp_path / name for name in ("text", "table.parquet", "empty"))
    text.write_text("lr,regime\n0.1,stable\n")
    pq.write_table(pa.table({"lr": [0.1]}), table)
    empty.write_bytes(b"")
    line.write_parquet(tmp_path / "cut")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-40])
    for path in (text, table, empty, tmp_path / "cut"):
        with pytest.raises(InputError, match="not a stability map") as caught:
            load_map(path)
        assert str(path) in str(caught.value)
        assert "export" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="not a stability map"):
        StabilityMap.read_parquet(tmp_path / "missing")


def test_map_of_a_later_schema(
    line: StabilityMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(exports, "SCHEMA_VERSION", 5)
        line.export(tmp_path)
    with pytest.raises(StabmapError, match="map schema 5, but this stabmap reads 4") as caught:
        load_map(tmp_path)
    assert str(tmp_path) in str(caught.value)


# --------------------------------------------------------------------------- load_map


def test_load_map_from_files(line: StabilityMap, tmp_path: Path) -> None:
    parquet, *_ = line.export(tmp_path / "out")
    for source in (tmp_path / "out", str(tmp_path / "out"), parquet, str(parquet)):
        pd.testing.assert_frame_equal(
            load_map(source).frame, line.frame, check_exact=True, check_dtype=False
        )


def test_load_map_from_the_folder_of_a_sweep(
    line: StabilityMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that `stabmap run` names, and the hash that it is called by."""
    monkeypatch.setenv("STABMAP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    name = "0123456789abcdef"
    folder = tmp_path / "home" / "sweeps" / name
    folder.mkdir(parents=True)
    for source in (folder, name):  # begun, but without a map
        (found,) = refusal(load_map, source)
        assert "there is no map.parquet there" in found.law
    line.export(folder / "map")
    for source in (folder, str(folder), name):
        pd.testing.assert_frame_equal(
            load_map(source).frame, line.frame, check_exact=True, check_dtype=False
        )
    (found,) = refusal(load_map, "fedcba9876543210")
    assert "no sweep was kept" in found.law


@pytest.mark.parametrize("asked", [None, "true"])
def test_load_map_from_mlflow_prints_nothing(
    asked: str | None,
    line: StabilityMap,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Unless bars are asked for; the setting is left as it was."""
    from mlflow import MlflowClient

    name = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
    monkeypatch.delenv(name, raising=False)
    if asked is not None:
        monkeypatch.setenv(name, asked)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("x", artifact_location=(tmp_path / "files").as_uri())
    run = client.create_run(experiment).info.run_id
    parquet, *_ = line.export(tmp_path / "out")
    client.log_artifact(run, str(parquet), "map")
    capfd.readouterr()
    assert len(load_map(run, uri).frame) == len(line.frame)
    assert ("Downloading" in capfd.readouterr().err) == (asked is not None)
    assert os.environ.get(name) == asked


def test_load_map_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to give instead, and asking leaves nothing behind."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("STABMAP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for source, law in [
        (tmp_path, "there is no map.parquet there"),
        ("some/where", "there is no map.parquet there"),
        ("0123abcd", "no sweep was kept in sqlite:///"),
    ]:
        (found,) = refusal(load_map, source)
        assert found.field == "sweep"
        assert found.value == str(source)
        assert law in found.law
        assert "stabmap run" in found.remedy
    assert not list(tmp_path.iterdir())


def test_unknown_sweep_in_a_database(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = MlflowClient(uri).create_run("0")
    (found,) = refusal(load_map, "0" * 32, uri)
    assert "no such sweep" in found.law
    (found,) = refusal(load_map, run.info.run_id, uri)  # a run, but without a map
    assert found.field == "sweep"
    assert found.value == run.info.run_id


def test_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UnreachableError, match="does not answer") as caught:
        load_map("0123abcd", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9" in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_server_that_is_away_is_noticed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES
    from mlflow.exceptions import MlflowException

    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    setting: Any = MLFLOW_HTTP_REQUEST_MAX_RETRIES
    retries: list[int] = []

    def get_run(client: MlflowClient, run_id: str) -> None:
        retries.append(int(setting.get()))
        raise MlflowException("away")

    monkeypatch.setattr(MlflowClient, "get_run", get_run)
    with pytest.raises(UnreachableError):
        load_map("0123abcd", "http://127.0.0.1:9")
    assert retries == [min(retries[0], 3)]


def test_where_things_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("STABMAP_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / ".stabmap"
    assert default_tracking_uri() == f"sqlite:///{tmp_path}/.stabmap/mlflow.db"
    monkeypatch.setenv("STABMAP_HOME", "/elsewhere")
    assert home() == Path("/elsewhere")
    assert default_tracking_uri() == "sqlite:////elsewhere/mlflow.db"
    assert default_tracking_uri(Path("/third")) == "sqlite:////third/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert default_tracking_uri(Path("/third")) == "http://server:5000"


def test_axes_of_all_kinds(tmp_path: Path) -> None:
    """Three free axes, one of them linear: through a file and back."""
    found = map_of({"lr": LR, "alpha": ALPHA, "weight_decay": DECAY}, 32)
    found.export(tmp_path)
    again = load_map(tmp_path)
    assert again.axes == found.axes
    place = {"lr": 0.1, "alpha": 1.5, "weight_decay": 0.01}
    assert again.classify(**place) == found.classify(**place)
