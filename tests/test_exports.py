"""Four formats, one map: each comes back to the bit, and what is no map is refused."""

from __future__ import annotations

import csv
import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from synthetic import ALPHA, DECAY, LR, map_of

from analysis import exports
from analysis.exports import FILES
from analysis.grid import PLACES
from analysis.load import load_map
from analysis.map import COLUMNS, REGIMES, StabilityMap
from trainables.domain import InputError, Margins, Mistake, Point, StabmapError

FORMATS = tuple(FILES)


@pytest.fixture(scope="module")
def plane() -> StabilityMap:
    """Learning rate and weight decay, with the extra level at 0."""
    return map_of({"lr": LR, "weight_decay": DECAY}, 48)


@pytest.fixture(scope="module")
def line() -> StabilityMap:
    return map_of({"lr": LR}, 8)


def refusal(ask: Any, *args: Any, **kwargs: Any) -> tuple[Mistake, ...]:
    with pytest.raises(InputError) as caught:
        ask(*args, **kwargs)
    assert all(mistake.law and mistake.remedy for mistake in caught.value.mistakes)
    return caught.value.mistakes


def written(found: StabilityMap, name: str, folder: Path) -> Path:
    (path,) = found.export(folder, [name])
    assert path == folder / FILES[name]
    return path


def same(one: StabilityMap, two: StabilityMap) -> None:
    """Equal to the bit: evidence, description, axes."""
    pd.testing.assert_frame_equal(one.frame, two.frame, check_exact=True, check_dtype=False)
    for name in COLUMNS:
        if one.frame[name].dtype == np.float64:
            assert two.frame[name].dtype == np.float64
            a, b = (f.frame[name].to_numpy().view(np.int64) for f in (one, two))
            there = one.frame[name].notna().to_numpy()
            np.testing.assert_array_equal(a[there], b[there], err_msg=name)
    assert two.axes == one.axes
    assert json.dumps(dict(two.about), sort_keys=True) == json.dumps(
        dict(one.about), sort_keys=True
    )


# --------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", FORMATS)
def test_comes_back_from_file_and_folder(plane: StabilityMap, name: str, tmp_path: Path) -> None:
    path = written(plane, name, tmp_path)
    for source in (path, str(path), tmp_path):
        same(plane, load_map(source))


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_known_by_its_content(line: StabilityMap, name: str, tmp_path: Path) -> None:
    path = written(line, name, tmp_path).rename(tmp_path / "mine")
    same(line, load_map(path))


#: Numbers that differ in their last bits, and all whose text is long.
NUMBERS = st.floats(1e-300, 1e300) | st.floats(1.0, 1.0 + 1e-13)


@settings(max_examples=15)
@given(
    points=st.lists(
        st.tuples(st.floats(0.01, 100), st.floats(1e-4, 1), NUMBERS, st.booleans()),
        min_size=1, max_size=12, unique_by=lambda row: row[:2],
    )
)  # fmt: skip
def test_every_format_classifies_identically(
    tmp_path_factory: pytest.TempPathFactory, points: list[tuple[float, float, float, bool]]
) -> None:
    """`load_map(export(m))` gives m's probabilities to the bit, whatever the numbers."""
    margins = {
        Point(lr, 0.0, decay): Margins(size if calm else -size, size)
        for lr, decay, size, calm in points
    }
    found = map_of({"lr": LR, "weight_decay": DECAY}, list(margins), lambda p: margins[p])
    where = {"lr": [0.02, 0.7, 40.0], "weight_decay": [0.0, 0.1, 0.3]}
    expected = found.classify(**where)
    folder = tmp_path_factory.mktemp("out")
    for path in found.export(folder):
        again = load_map(path)
        same(found, again)
        for regime, p in again.classify(**where).items():
            np.testing.assert_array_equal(p, expected[regime], err_msg=path.name)


@pytest.mark.parametrize("name", FORMATS)
def test_three_axes_and_none(name: str, tmp_path: Path) -> None:
    cube = map_of({"lr": LR, "alpha": ALPHA, "weight_decay": DECAY}, 16)
    same(cube, load_map(written(cube, name, tmp_path / "cube")))
    point = map_of({"lr": 0.1}, [Point(0.1)])
    same(point, load_map(written(point, name, tmp_path / "point")))


def test_same_map_same_files(plane: StabilityMap, tmp_path: Path) -> None:
    """Except NetCDF, whose library promises no such thing."""
    for name in ("parquet", "json", "csv"):
        path = written(plane, name, tmp_path)
        before = path.read_bytes()
        written(load_map(path), name, tmp_path)
        assert path.read_bytes() == before


# --------------------------------------------------------------------------- what is in the files


def test_csv_is_read_by_others(plane: StabilityMap, tmp_path: Path) -> None:
    path = written(plane, "csv", tmp_path)
    first, *rest = path.read_text("utf-8").splitlines()
    about = json.loads(first.removeprefix("# stabmap "))
    assert about["schema_version"] == 4
    assert about["task"]["name"] == "one-layer-cnn"
    rows = list(csv.DictReader(rest))
    assert list(rows[0]) == COLUMNS
    assert [float(row["lr"]) for row in rows] == plane.frame["lr"].tolist()
    assert {row["metric"] for row in rows} == {""}
    assert list(pd.read_csv(path, comment="#").columns) == COLUMNS


def test_netcdf_has_grid_and_evidence(plane: StabilityMap, tmp_path: Path) -> None:
    path = written(plane, "netcdf", tmp_path)
    with xarray.open_dataset(path, engine="h5netcdf") as grid:
        xarray.testing.assert_identical(
            grid.drop_attrs().load(), plane.to_xarray().drop_attrs().load()
        )
        assert json.loads(grid.attrs["stabmap"])["schema_version"] == 4
        assert grid.most_likely.attrs["flag_meanings"] == "stable restrained divergent"
    with xarray.open_dataset(path, engine="h5netcdf", group="evidence") as evidence:
        assert list(evidence.data_vars) == COLUMNS
        assert evidence["regime"].values.tolist() == plane.frame["regime"].tolist()


def test_export_writes_all_formats(line: StabilityMap, tmp_path: Path) -> None:
    paths = line.export(tmp_path)
    assert [p.name for p in paths] == ["map.parquet", "map.json", "map.csv", "map.nc"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_unknown_format(line: StabilityMap, tmp_path: Path) -> None:
    (found,) = refusal(line.export, tmp_path / "new", ["parquet", "hdf4"])
    assert (found.field, found.value, found.law) == ("formats", "hdf4", "unknown format")
    assert "netcdf" in found.remedy
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_folder_that_cannot_be_written(line: StabilityMap, name: str, tmp_path: Path) -> None:
    (tmp_path / FILES[name]).mkdir()
    (found,) = refusal(line.export, tmp_path, [name])
    assert found.field == "folder"
    assert "cannot be written" in found.law


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", FORMATS)
def test_a_later_schema(
    line: StabilityMap, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(exports, "SCHEMA_VERSION", 5)
        path = written(line, name, tmp_path)
    with pytest.raises(StabmapError, match="map schema 5, but this stabmap reads 4"):
        load_map(path)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_file_that_was_cut(line: StabilityMap, name: str, kept: float, tmp_path: Path) -> None:
    path = written(line, name, tmp_path)
    content = path.read_bytes()
    if name == "csv" and kept == 0.9:
        content = content.replace(b",restrained,", b",restrainde,")  # rows may end anywhere
        kept = 1.0
    path.write_bytes(content[: int(kept * len(content))])
    (found,) = refusal(load_map, path)
    assert "not a stability map" in found.law
    assert found.value == str(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"schema_version": 4}',
        '{"schema_version": 4, "about": {}, "points": [[1, 2]]}',
        '{"schema_version": 4, "about": {"axes": {}}, "points": []}',
        '{"schema_version": 4, "about": 7, "points": []}',
        "[" * 5000,
        "{" + '"a":[' * 200000,
        '# stabmap {"schema_version": 4}\nlr\n0.1\n',
        "# stabmap nothing\n",
        "# stabmap 3\nlr\n0.1\n",
    ],
)
def test_texts_that_are_no_map(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    (found,) = refusal(load_map, tmp_path / "file")
    assert "not a stability map" in found.law


def test_netcdf_that_points_elsewhere(line: StabilityMap, tmp_path: Path) -> None:
    """HDF5 can take numbers from any file of the reader's: never here."""
    secret = tmp_path / "secret"
    secret.write_bytes(np.arange(8.0).tobytes())
    for way in ("external", "link", "soft", "virtual"):
        path = written(line, "netcdf", tmp_path)
        with h5py.File(path, "a") as file:
            group = file["evidence"]
            del group["growth"]
            if way == "external":
                group.create_dataset(
                    "growth", (8,), "float64", external=[(str(secret), 0, h5py.h5f.UNLIMITED)]
                )
            elif way == "link":
                group["growth"] = h5py.ExternalLink(str(path), "/evidence/lr")
            elif way == "soft":
                group["growth"] = h5py.SoftLink("/evidence/lr")
            else:
                layout = h5py.VirtualLayout((8,), "float64")
                layout[:] = h5py.VirtualSource(str(path), "evidence/lr", (8,))
                group.create_virtual_dataset("growth", layout)
        (found,) = refusal(load_map, path)
        assert "not a stability map" in found.law, way


# --------------------------------------------------------------------------- the grid


def test_grid_says_what_classify_says(plane: StabilityMap) -> None:
    grid = plane.to_xarray(count=9)
    assert grid.probability.dims == ("regime", "lr", "weight_decay")
    lr, decay = np.meshgrid(grid.lr, grid.weight_decay, indexing="ij")
    expected = plane.classify(lr=lr, weight_decay=decay)
    for name in REGIMES:
        np.testing.assert_array_equal(grid.probability.sel(regime=name), expected[name])
    stacked = np.stack([expected[name] for name in REGIMES])
    np.testing.assert_array_equal(grid.most_likely, stacked.argmax(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -np.where(stacked > 0, stacked * np.log2(stacked), 0).sum(0)
    np.testing.assert_allclose(grid.uncertainty, bits, atol=1e-12)


def test_latent_functions_give_the_probabilities(plane: StabilityMap) -> None:
    """Bounded where the latent function is positive and the label is not a slip: probit of both."""
    grid = plane.to_xarray(count=9)
    mean, deviation = (part.sel(margin="bounded") for part in (grid.latent_mean, grid.latent_sd))
    bounded = 1 - grid.probability.sel(regime="divergent")
    assert (np.sign(mean) == np.sign(bounded - 0.5)).all()
    assert (deviation > 0).all()
    sure = ndtr(mean / deviation)
    # Labels can be wrong, so that no probability is surer than the latent function alone.
    assert (np.abs(bounded - 0.5) <= np.abs(sure - 0.5) + 1e-9).all()


def test_coordinates_follow_the_scales(plane: StabilityMap) -> None:
    grid = plane.to_xarray()
    assert dict(grid.sizes) == {
        "regime": 3, "margin": 2, "lr": PLACES[2], "weight_decay": PLACES[2] + 1
    }  # fmt: skip
    np.testing.assert_allclose(grid.lr, np.geomspace(0.01, 100, PLACES[2]), rtol=1e-12)
    assert (grid.lr[0], grid.lr[-1]) == (0.01, 100)
    assert grid.weight_decay[0] == 0
    np.testing.assert_allclose(grid.weight_decay[1:], np.geomspace(1e-4, 1, PLACES[2]), rtol=1e-12)
    assert grid.alpha.dims == ()
    assert float(grid.alpha) == 0
    assert grid.lr.attrs | {"long_name": ""} == {
        "long_name": "", "units": "1", "scale": "log", "low": 0.01, "high": 100, "zero": 0
    }  # fmt: skip
    assert grid.weight_decay.attrs["zero"] == 1
    assert grid.alpha.attrs["scale"] == "fixed"
    linear = map_of({"alpha": ALPHA, "lr": 0.1}, 8).to_xarray(count=5)
    assert linear.alpha.values.tolist() == [0, 0.5, 1, 1.5, 2]


@pytest.mark.parametrize("count", [1, 0, -3, True, 2.5, 10**4, "9"])
def test_counts_that_are_refused(plane: StabilityMap, count: Any) -> None:
    (found,) = refusal(plane.to_xarray, count=count)
    assert (found.field, found.value) == ("count", count)


def test_a_map_without_points(plane: StabilityMap, tmp_path: Path) -> None:
    """It has no grid, and no format fails on it but the one that holds a grid."""
    empty = replace(plane, frame=plane.frame.iloc[:0])
    refusal(empty.to_xarray)
    for name in ("parquet", "json", "csv"):
        assert len(load_map(written(empty, name, tmp_path / name)).frame) == 0


# --------------------------------------------------------------------------- sweeps by name


def kept(home: Path, name: str, facts: str, found: StabilityMap | None) -> Path:
    folder = home / "sweeps" / name
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(facts)
    if found is not None:
        (folder / "map").mkdir()
        found.write_parquet(folder / "map" / "map.parquet")
    return folder


def test_load_map_by_title(
    line: StabilityMap, plane: StabilityMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STABMAP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    title = "my sweep: 5 % of lr"
    folder = kept(tmp_path, "0123456789abcdef", json.dumps({"title": title}), line)
    kept(tmp_path, "1123456789abcdef", json.dumps({"title": "other"}), plane)
    kept(tmp_path, "2123456789abcdef", "[]", plane)
    kept(tmp_path, "3123456789abcdef", "{broken", plane)
    same(line, load_map(title))
    # While it runs, the driver replaces the file.
    plane.write_parquet(folder / "map" / "partial")
    (folder / "map" / "partial").replace(folder / "map" / "map.parquet")
    same(plane, load_map(title))
    kept(tmp_path, "4123456789abcdef", json.dumps({"title": title}), line)
    (found,) = refusal(load_map, title)
    assert found.law == "2 sweeps have this title"
    assert "0123456789abcdef, 4123456789abcdef" in found.remedy
    kept(tmp_path, "5123456789abcdef", json.dumps({"title": "begun"}), None)
    (found,) = refusal(load_map, "begun")
    assert "there is no map.parquet there" in found.law
    refusal(load_map, "")


def test_load_map_by_title_from_mlflow(
    line: StabilityMap, plane: StabilityMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("STABMAP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(uri)

    def logged(found: StabilityMap, title: str, kind: str) -> str:
        experiment = client.create_experiment(
            f"{title} {kind} {len(client.search_experiments())}",
            artifact_location=(tmp_path / "files").as_uri(),
        )
        run = client.create_run(experiment, run_name=title, tags={"stabmap.kind": kind})
        client.log_artifact(run.info.run_id, str(written(found, "parquet", tmp_path)), "map")
        return str(run.info.run_id)

    logged(line, "my sweep", "sweep")
    logged(plane, "plain-title", "sweep")
    logged(plane, "my sweep", "point")  # a child that happens to be called so
    same(line, load_map("my sweep", uri))
    same(plane, load_map("plain-title", uri))
    second = logged(plane, "my sweep", "sweep")
    (found,) = refusal(load_map, "my sweep", uri)
    assert found.law == "several sweeps have this title"
    assert second in found.remedy
    for title in ("no such", "nosuch"):
        (found,) = refusal(load_map, title, uri)
        assert "no such sweep in sqlite" in found.law
    for title in ("a' or 'b", 'a"b', "a`b", "a\nb", "x" * 300):
        (found,) = refusal(load_map, title, uri)
        assert "no sweep has such an id or title" in found.law


def test_a_big_map_is_read_soon(tmp_path: Path) -> None:
    """Every format of 10,000 points: nobody waits for a file."""
    small = map_of({"lr": LR}, 16)
    frame = pd.concat([small.frame] * 625, ignore_index=True)
    frame["number"] = np.arange(len(frame))
    frame["growth"] = np.random.default_rng(0).random(len(frame))
    big = replace(small, frame=frame)
    for name in ("parquet", "json", "csv"):
        path = written(big, name, tmp_path)
        start = time.process_time()
        again = load_map(path)
        assert time.process_time() - start < 3, name
        same(big, again)
    assert os.path.getsize(tmp_path / "map.parquet") < 1e6
    assert math.isfinite(frame["growth"].sum())
