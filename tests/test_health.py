"""What doctor finds on a node, and what it says of nodes that differ."""

from __future__ import annotations

import os
import platform
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from sweeps.health import Node, examine, judge, judge_mlflow

HERE: dict[str, Any] = {
    "python": "3.11.9",
    "torch": "2.13.0",
    "ray": "2.60.0",
    "stabmap": "0.1.0 (abcd1234)",
    "driver": "580.1",
    "gpus": ["A", "A"],
    "usable": 2,
    "places": {"folder": "/data", "temp": "/tmp"},
    "unwritable": {},
    "free": {"folder": 2**40, "temp": 2**40},
    "token": True,
}
NODE = Node("worker", 2.0, HERE, None, 0.01, 0.002)


def found(**values: Any) -> Node:
    return replace(NODE, found=HERE | values)


def test_this_machine(tmp_path: Path) -> None:
    seen = examine(str(tmp_path / "new" / "folder"))
    assert seen["python"] == platform.python_version()
    assert seen["torch"] == version("torch")
    assert seen["unwritable"] == {}
    assert seen["places"]["folder"] == str(tmp_path / "new" / "folder")
    # As another program counts it, up to what was written meanwhile.
    space = os.statvfs(tmp_path)
    assert abs(seen["free"]["folder"] - space.f_bavail * space.f_frsize) < 2**28
    assert not (tmp_path / "new").exists()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert set(examine(str(tmp_path / "file" / "folder"))["unwritable"]) == {"folder"}


def test_nothing_is_wrong() -> None:
    assert judge([NODE, replace(NODE, name="other", skew=-0.9)], HERE, insecure=False) == []
    without: dict[str, Any] = {"driver": None, "gpus": [], "usable": 0}
    head = replace(NODE, gpus=0.0, found=HERE | without)
    assert judge([head, NODE], HERE | without, insecure=False) == []  # a head without GPUs


@pytest.mark.parametrize(
    ("node", "what"),
    [
        (found(python="3.12.1"), "python 3.12.1, but 3.11.9 on the head; install the same Python"),
        (found(torch=None), "torch is missing, but 2.13.0 on the head; install the same require"),
        (found(ray="2.59.0"), "ray 2.59.0, but 2.60.0 on the head"),
        (found(stabmap="0.1.0 (ffff0000)"), "stabmap 0.1.0 (ffff0000), but 0.1.0 (abcd1234)"),
        (found(driver="570.1"), "driver 570.1, but 580.1 on the head; update the NVIDIA driver"),
        (found(usable=0), "torch can use 0 of its 2 GPUs; update the NVIDIA driver"),
        (replace(NODE, gpus=4.0), "Ray gives out 4 GPUs, but the driver shows 2"),
        (replace(NODE, gpus=1.0), "Ray gives out 1 of its 2 GPUs; start Ray there without"),
        (found(unwritable={"folder": "No"}), "cannot write /data (No); give it to the user that"),
        (found(unwritable={"temp": "No"}), "cannot write /tmp (No)"),
        (found(free={"folder": 2**20}), "only 1 MiB are free for /data; make space there"),
        (replace(NODE, skew=2.5), "its clock is 2.5 s ahead of the head's (+- 0.002 s); run a"),
        (replace(NODE, skew=-2.5), "its clock is 2.5 s behind the head's"),
        (found(token=False), "Ray's token mode is off; start Ray there with RAY_AUTH_MODE=token"),
        (replace(NODE, found=None, error="boom"), "it cannot be examined (boom); install stabmap"),
    ],
)
def test_what_is_wrong(node: Node, what: str) -> None:
    (problem,) = judge([node], HERE, insecure=False)
    assert str(problem).startswith(f"worker: {what}")
    assert problem.remedy


def test_what_is_not_held_against_a_node() -> None:
    assert judge([found(token=False)], HERE, insecure=True) == []
    # A slow exchange says little about a clock.
    assert judge([replace(NODE, skew=2.5, within=2.0)], HERE, insecure=False) == []
    (problem,) = judge([], HERE, insecure=False)
    assert "no living node" in problem.what


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert judge_mlflow(f"sqlite:///{tmp_path / 'new.db'}") == []
    assert not list(tmp_path.iterdir())
    (problem,) = judge_mlflow("http://me:secret@127.0.0.1:1")
    assert "MLflow at http://***@127.0.0.1:1 is out of reach" in problem.what
    assert "secret" not in str(problem)
