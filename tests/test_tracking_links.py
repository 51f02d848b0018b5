"""Links from a map to MLflow: only to web addresses, only where the run is known."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from analysis.tracking import Tracking, find_tracking

RUN = "c" * 32


@pytest.mark.parametrize(
    ("address", "base"),
    [
        ("http://localhost:5000", "http://localhost:5000"),
        ("https://me:secret@mlflow.example.org/x/", "https://mlflow.example.org/x"),
        ("http://[::1]:5000/?a=b#c", "http://[::1]:5000"),
        ("javascript:alert(1)", None),
        ("sqlite:///mlflow.db", None),
        ("databricks", None),
        ("http://host:port", None),
        ("http://", None),
        (None, None),
    ],
)
def test_only_web_addresses_are_linked(address: str | None, base: str | None) -> None:
    assert Tracking(address).base == base
    link = Tracking(address, experiment="7").link(RUN)
    assert link == (f"{base}/#/experiments/7/runs/{RUN}" if base else None)


@pytest.mark.parametrize("run", [None, "", "a/b", "a b", '"><script>', "a" * 65])
def test_only_ids_are_linked(run: str | None) -> None:
    assert Tracking("http://localhost", experiment="7").link(run) is None
    assert Tracking("http://localhost", experiment=run).link(RUN) is None


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, dict[int, str]]:
    """A sweep in a database: its address, its id, and the runs of its points."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("one", artifact_location=folder.as_uri())
    parent = client.create_run(experiment, tags={"git_commit": "abc"}).info.run_id
    runs = {}
    for number in (0, 3, 12):
        child = client.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id
        client.log_param(child, "number", number)
        runs[number] = child
    client.create_run(experiment)  # of somebody else
    return uri, parent, runs


def test_runs_of_a_sweep_are_found(
    kept: tuple[str, str, dict[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import mlflow

    uri, parent, runs = kept
    client = mlflow.MlflowClient(uri)
    monkeypatch.setattr(mlflow, "MlflowClient", lambda _: client)
    found = find_tracking(parent, "http://me:secret@localhost:5000")
    assert found.sweep == parent and found.runs == runs
    assert found.tags["git_commit"] == "abc"
    assert found.address is not None and "secret" not in found.address
    assert str(found.link(runs[3])).endswith(f"/runs/{runs[3]}")
    folder = tmp_path / "sweeps" / "0123456789abcdef"
    (folder / "map").mkdir(parents=True)
    facts = {"sweep": parent, "tracking": "http://localhost:5000"}
    (folder / "sweep.json").write_text(json.dumps(facts))
    monkeypatch.setenv("STABMAP_HOME", str(tmp_path))
    for name in (folder, folder / "map", "0123456789abcdef"):
        assert find_tracking(name).runs == runs


def test_a_bare_database_gives_tags_and_no_links(kept: tuple[str, str, dict[int, str]]) -> None:
    uri, parent, _ = kept
    found = find_tracking(parent, uri)
    assert found.tags["git_commit"] == "abc"
    assert found.address is None and not found.runs


def test_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert find_tracking("d" * 32, "http://127.0.0.1:9").sweep == "d" * 32
    assert time.monotonic() - begun < 20
    assert find_tracking("d" * 32, f"sqlite:///{tmp_path}/none.db").tags == {}
    assert not (tmp_path / "none.db").exists()
    assert find_tracking(tmp_path).sweep is None
    (tmp_path / "sweep.json").write_text("[]")
    assert find_tracking(tmp_path) == Tracking()
