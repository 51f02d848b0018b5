"""A cluster without workers grows for a sweep and shrinks after it (Ray's fake node provider)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from servers import free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]

WORKERS = 4
#: The id that the fake provider gives to the head, in Ray's own tests too.
HEAD = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"

WATCH = """
import sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
while True:
    print(sum(node["Alive"] for node in ray.nodes()) - 1, flush=True)
    time.sleep(0.5)
"""


def config(port: int) -> dict[str, Any]:
    """Workers of one processor each, from none to four; an idle one goes after seconds."""
    worker = {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0}
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    setup = ("initialization", "setup", "head_setup", "worker_setup")
    commands = (*setup, "head_start_ray", "worker_start_ray")
    return {
        **{f"{name}_commands": [] for name in commands},
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "upscaling_speed": 4.0,
        "file_mounts_sync_continuously": False,
        "cluster_name": "fake",
        "max_workers": WORKERS,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{port}",
            "head_node_id": HEAD,
            "launch_multiple": True,
        },
        "available_node_types": {"worker": {**worker, "max_workers": WORKERS}, "head": head},
        "head_node_type": "head",
    }


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    token = tmp_path / "token"
    token.write_text("a" * 64)
    token.chmod(0o600)
    mine = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "RAY_NODE_TYPE_NAME": "head",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "STABMAP_HOME": str(tmp_path / "home"),
    }
    return {**os.environ, **mine}


@pytest.fixture
def head(tmp_path: Path, environment: dict[str, str]) -> Iterator[str]:
    """The address of a Ray that starts nodes by itself."""
    port, scratch = free_port(), tempfile.mkdtemp(prefix="st-", dir="/tmp")  # short, for sockets
    (tmp_path / "cluster.json").write_text(json.dumps(config(port)))
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    words += [f"--port={port}", "--node-ip-address=127.0.0.1", f"--temp-dir={scratch}"]
    words += ["--num-cpus=0", "--num-gpus=0", "--include-dashboard=false"]
    words += [f"--autoscaling-config={tmp_path / 'cluster.json'}", "--dashboard-host=127.0.0.1"]
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(
            words, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        end(process, scratch)


def end(process: subprocess.Popen[bytes], scratch: str) -> None:
    """The head, and the nodes that its autoscaler has started: they name its folder."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
    for _ in range(3):
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if scratch.encode() in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)
        time.sleep(0.3)
    subprocess.run(["rm", "-rf", scratch], check=True)


def spec_file(folder: Path) -> Path:
    path = folder / "sweep.json"
    spec = {
        "task": {"name": "one-layer-cnn", "image": 64},
        "axes": {"lr": {"scale": "log", "low": 0.003, "high": 0.5}, "weight_decay": 20},
        "steps": 60,
        "search": {"method": "sobol", "audit": 0, "batch": 8},
        "budget": {"points": 400},
        "resources": {"workers": WORKERS, "pack": 1},
    }
    path.write_text(json.dumps(spec))
    return path


def wait_for(path: Path, wanted: int, limit: float) -> None:
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        lines = path.read_text().split()
        if lines and int(lines[-1]) == wanted:
            return
        time.sleep(0.2)
    pytest.fail(f"{wanted} workers in {limit:.0f} s: saw {path.read_text().split()[-5:]}")


def test_from_none_to_four_and_back(tmp_path: Path, head: str, environment: dict[str, str]) -> None:
    seen = tmp_path / "seen.txt"
    words = [sys.executable, "-m", "stabmap", "run", str(spec_file(tmp_path)), "--json"]
    with seen.open("w") as file:
        time.sleep(8.0)
        watch = subprocess.Popen([sys.executable, "-c", WATCH, head], env=environment, stdout=file)
        try:
            wait_for(seen, 0, 60)
            sweep = subprocess.run(
                [*words, "--address", head],
                env=environment,
                capture_output=True,
                text=True,
                timeout=240,
            )
            assert sweep.returncode == 0, sweep.stderr
            assert json.loads(sweep.stdout.splitlines()[-1])["points"] == 400
            counts = [int(line) for line in seen.read_text().split()]
            assert counts[0] == 0 and max(counts) == WORKERS, counts
            wait_for(seen, 0, 120)
        finally:
            watch.kill()
            watch.wait()
