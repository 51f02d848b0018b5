"""A cluster without workers grows for a sweep and shrinks after it (Ray's fake node provider)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import (
    FAKE_HEAD_NODE_ID,
    FAKE_HEAD_NODE_TYPE,
    FakeMultiNodeProvider,
)
from servers import LOOPBACK, Program, free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Process = subprocess.Popen[str]

WORKERS = 4
POINTS = 16

#: Prints the number of workers, twice a second, from when the head can be joined.
WATCH = """
import sys, time, ray
seen = open(sys.argv[2], "w")
while not ray.is_initialized():
    try:
        ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    except Exception:
        time.sleep(0.2)
while True:
    print(sum(node["Alive"] for node in ray.nodes()) - 1, file=seen, flush=True)
    time.sleep(0.5)
"""

#: A parabola whose workers wait for a file: none is done before the last one has come.
TASK = """
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from trainables.losses import MEAN_SQUARED_ERROR


@dataclass(frozen=True)
class Patient:
    batch: int | None = None

    name = "patient"
    metric_name = "output"
    regularised_layer = ""
    stand_in = None
    loss = MEAN_SQUARED_ERROR

    def module(self, seed):
        layer = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.fill_(2.0 + 0.01 * (seed % 7))
        return layer

    def train_data(self):
        deadline = time.monotonic() + 300
        while not Path("GO").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        return torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)

    test_data = train_data

    def metric(self, outputs, targets):
        return float(outputs[0, 0])
"""


def config(port: int) -> dict[str, Any]:
    """Workers of one processor each, from none to four; an idle one goes after seconds."""
    worker = {"resources": {"CPU": 1}, "node_config": {}, "max_workers": WORKERS}
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    setup = ("initialization", "setup", "head_setup", "worker_setup")
    commands = (*setup, "head_start_ray", "worker_start_ray")
    return {
        **{f"{name}_commands": [] for name in commands},
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "upscaling_speed": WORKERS,
        "file_mounts_sync_continuously": False,
        "cluster_name": "fake",
        "max_workers": WORKERS,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__qualname__}",
            "gcs_address": f"{LOOPBACK}:{port}",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,  # nothing is installed by ssh on nodes that are fake
        },
        # The provider calls the type of its head so, whatever it is called here.
        "available_node_types": {"worker": worker, FAKE_HEAD_NODE_TYPE: head},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
    }


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of the head, of its nodes and of the sweep."""
    token = tmp_path / "token"
    token.write_text("a" * 64)
    token.chmod(0o600)
    theirs = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    return theirs | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
        "STABMAP_HOME": str(tmp_path / "home"),
    }


@pytest.fixture
def head(tmp_path: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of a Ray that starts nodes by itself."""
    port, scratch = free_port(), tempfile.mkdtemp(prefix="st-", dir="/tmp")  # short, for sockets
    (tmp_path / "cluster.json").write_text(json.dumps(config(port)))
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    words += [f"--port={port}", f"--node-ip-address={LOOPBACK}", f"--temp-dir={scratch}"]
    words += ["--num-cpus=0", "--num-gpus=0", "--include-dashboard=false"]
    words += [f"--autoscaling-config={tmp_path / 'cluster.json'}"]
    fake = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    program = Program(
        words, lambda: listens(port), tmp_path / "head.log", environment | fake, tmp_path
    )
    try:
        program.start()
        yield f"{LOOPBACK}:{port}"
    finally:
        program.kill()  # asked to end, it would first wait for its nodes
        end_stragglers(scratch)
        shutil.rmtree(scratch, ignore_errors=True)


def listens(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True


def end_stragglers(scratch: str) -> None:
    """A node that was being started when the head was killed: its processes name its folder."""
    quiet = 0
    while quiet < 2:
        quiet += 1
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if scratch.encode() in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    quiet = 0
        time.sleep(0.2)


@pytest.fixture
def seen(tmp_path: Path, head: str, environment: dict[str, str]) -> Iterator[Path]:
    """A file with the numbers of workers that the cluster has had, from when it is there."""
    path = tmp_path / "seen.txt"
    path.touch()
    # Not its standard output, to which Ray also prints what its autoscaler has to say.
    watch = subprocess.Popen([sys.executable, "-c", WATCH, head, str(path)], env=environment)
    try:
        yield path
    finally:
        watch.kill()
        watch.wait()


@pytest.fixture
def sweep(tmp_path: Path, head: str) -> list[str]:
    """The command of a sweep whose points wait for the file `go`."""
    (tmp_path / "task.py").write_text(TASK.replace("GO", str(tmp_path / "go")))
    spec = {
        "task": {"name": "patient"},
        "axes": {"lr": {"scale": "log", "low": 0.1, "high": 4}},
        "steps": 40,
        "search": {"method": "sobol", "audit": 0},
        "budget": {"points": POINTS},
        "resources": {"workers": WORKERS, "pack": 1},
    }
    (tmp_path / "sweep.json").write_text(json.dumps(spec))
    words = [sys.executable, "-m", "stabmap", "run", str(tmp_path / "sweep.json"), "--json"]
    return [*words, "--tasks", str(tmp_path / "task.py"), "--address", head]


def wait_for(seen: Path, wanted: int, limit: float, sweep: Process | None = None) -> None:
    """Until there are as many workers as wanted; fails late, or when the sweep has ended."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline and (sweep is None or sweep.poll() is None):
        if counts(seen)[-1:] == [wanted]:
            return
        time.sleep(0.2)
    pytest.fail(f"no {wanted} workers within {limit:.0f} s: saw {counts(seen)}")


def counts(seen: Path) -> list[int]:
    """All whole lines."""
    return [int(line) for line in seen.read_text().split("\n")[:-1]]


def test_from_none_to_four_and_back(
    tmp_path: Path, seen: Path, sweep: list[str], environment: dict[str, str]
) -> None:
    wait_for(seen, 0, 120)
    with subprocess.Popen(sweep, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_for(seen, WORKERS, 150, process)
            (tmp_path / "go").touch()
            told, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 0
    assert json.loads(told.splitlines()[-1])["points"] == POINTS
    wait_for(seen, 0, 120)
    assert counts(seen)[0] == 0 and max(counts(seen)) == WORKERS
