"""A sweep on three hosts, of which one is cut off and one is lost: nothing of that shows.

The hosts share what machines of a cluster share: code, but no temporary folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hosts import PORT, ROOT, hosts
from mlflow import MlflowClient

from stabmap import load_spec, load_tasks
from sweeps import fsck
from trainables.tasks import from_files

pytestmark = [pytest.mark.ray, pytest.mark.slow]

POINTS = 200
SPEC: dict[str, Any] = {
    "task": {"name": "patient", "image": 64},
    "axes": {
        "lr": {"scale": "log", "low": 0.003, "high": 0.5},
        "weight_decay": {"scale": "log", "low": 4, "high": 256},
    },
    "steps": 1000,
    # Its proposals depend on the results, so a result that differs or is missing would show.
    "search": {"method": "tpe", "batch": 32},
    "budget": {"points": POINTS},
    "resources": {"pack": 4, "workers": 6},
}
#: The one-layer CNN, whose workers wait for a file: none is done before the last one has come.
TASK = """
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from trainables.tasks.one_layer_cnn import OneLayerCNN


@dataclass(frozen=True)
class Patient(OneLayerCNN):
    name: ClassVar[str] = "patient"

    def train_data(self):
        deadline = time.monotonic() + 600
        while not Path("GO").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        return super().train_data()
"""
#: Runs a sweep whose packs take a GPU each, though they train on the CPU: no spec may ask for that.
DRIVER = """
import sys
from stabmap import load_spec, load_tasks
from sweeps.runner import execute
path, tasks, folder, address = sys.argv[1:]
load_tasks(tasks)
spec = load_spec(path, {"folder": folder})
resources = spec.resources.model_copy(update={"gpus": 1.0})
print(execute(spec.model_copy(update={"resources": resources}), address).ending)
"""


def kept(home: Path) -> list[dict[str, Any]]:
    """The results on disk."""
    return [
        json.loads(line)
        for log in (home / "sweeps").glob("*/results.jsonl")
        for line in log.read_text().splitlines(keepends=True)
        if line.endswith("\n")
    ]


def wait(
    what: Callable[[], bool], driver: subprocess.Popen[bytes], log: Path, limit: float
) -> None:
    """Until it holds; fails with the driver's last words where it does not."""
    deadline = time.monotonic() + limit
    while not what():
        if driver.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"driver: {driver.poll()}\n{log.read_text()[-3000:]}")
        time.sleep(0.05)


def run(path: Path, tasks: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """The sweep on this machine alone."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "stabmap", "run", str(path), "-o", f"folder={folder}"]
    command += ["-o", "resources.workers=2", "--tasks", str(tasks)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_lost_hosts_do_not_change_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of it: no point is lost or doubled, and the map is that of one machine."""
    path, tasks, go, home, whole, log = (
        tmp_path / name for name in ("sweep.yaml", "task.py", "go", "home", "whole", "driver.log")
    )
    path.write_text(json.dumps(SPEC))
    tasks.write_text(TASK.replace("GO", str(go)))
    with hosts() as (head, second, third):
        words = [str(path), str(tasks), str(home), f"{head.address}:{PORT}"]
        driver = head.popen([sys.executable, "-c", DRIVER, *words], log)

        def cut_off_in_training() -> bool:
            if not second.training():
                return False
            second.cut_off()
            if second.training():
                return True
            second.join()  # its last results were on their way: nothing would wait for it
            return False

        wait(lambda: all(h.training() for h in (head, second, third)), driver, log, 300)
        go.touch()
        wait(lambda: len(kept(home)) >= 60, driver, log, 300)
        wait(cut_off_in_training, driver, log, 60)
        third.lose()
        struck = len(kept(home))
        assert struck < POINTS - 60
        # The sweep cannot end before Ray gives the host up: a pack of it is still out.
        wait(lambda: f"address: {second.address} " in log.read_text(), driver, log, 120)
        wait(lambda: len(kept(home)) >= struck + 40, driver, log, 120)
        second.join()
        assert driver.wait(240) == 0, log.read_text()
    said = log.read_text()
    assert said.splitlines()[-1] == "complete"
    lost = {host.address for host in (head, second, third) if f"address: {host.address} " in said}
    assert lost == {second.address, third.address}  # Ray says which hosts it took for dead

    keys = [(r["result"]["point"]["lr"], r["result"]["point"]["weight_decay"]) for r in kept(home)]
    assert len(keys) == len(set(keys)) == POINTS
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert Counter(run.info.status for run in runs) == {"FINISHED": POINTS + 1}
    monkeypatch.setattr(from_files, "_REGISTERED", {})
    load_tasks(tasks)
    report = fsck.check(load_spec(SPEC, {"folder": str(home)}))
    assert (report.points, report.findings) == (POINTS, ())

    done = run(path, tasks, whole)
    assert done.returncode == 0, done.stderr
    [one], [other] = (list(place.glob("sweeps/*/map/map.parquet")) for place in (home, whole))
    assert one.read_bytes() == other.read_bytes()
