"""Submit, follow, pause, resume and stop on a real Ray head that asks for a token.

One head for the whole file, a process group of its own with its own ports and folders. The verbs
run as a user runs them: in processes that are over when the next one begins.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from stabmap.cli import app
from sweeps.spec import load_spec

#: What Ray's jobs server needs beside Ray.
SERVER = ("aiohttp_cors", "colorful", "grpc", "opencensus", "prometheus_client", "smart_open")
# A module that another test has loaded already may have no spec any more.
MISSING = [name for name in SERVER if name not in sys.modules and find_spec(name) is None]

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"ray[default] is not installed: no {MISSING[:1]}"),
]

SMALL = {"task.image": 16, "task.kernel": 4, "steps": 60, "search.start": [], "search.audit": 0}
SMALL |= {"search.method": "sobol", "resources.workers": 1, "lyapunov": False}
SHORT = {**SMALL, "budget.points": 8, "name": "short"}
LONG = {**SMALL, "budget.points": 100_000, "name": "long", "seed": 1}
LONG |= {"steps": 10_000, "early": False, "resources.pack": 1}  # few points, soon drawn

#: Ports that Ray would otherwise choose, or take from whoever has them.
PORTS = (
    *("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"),
    *("runtime-env-agent-port", "metrics-export-port", "object-manager-port", "node-manager-port"),
)


@dataclass(frozen=True)
class Head:
    """A running head: its dashboard, the address of its GCS, and where things lie."""

    url: str
    gcs: str
    place: Path
    token_file: Path
    pid: int

    @property
    def home(self) -> Path:
        return self.place / "home"


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for each in sockets:
        each.close()
    return ports


def status_of(url: str, token: str | None = None) -> int:
    """HTTP status of a look at the jobs."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        request = urllib.request.Request(f"{url}/api/jobs/", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


def descendants(mark: str) -> list[int]:
    """Processes that have a text in their environment: the head's, their parents gone or not."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    place = Path(tempfile.mkdtemp(prefix="sm-"))  # short: the paths of sockets may not be long
    token_file = place / "token"
    token_file.write_text(secrets.token_hex(24))
    token_file.chmod(stat.S_IRUSR | stat.S_IWUSR)
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    words += ["--num-cpus=2", "--dashboard-host=127.0.0.1", f"--temp-dir={place / 'ray'}"]
    words += ["--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "STABMAP_HOME": str(place / "home"),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            [*words, *(f"--{name}={port}" for name, port in ports.items())],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=place,
        )
    url = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        until = time.monotonic() + 60
        while status_of(url) != 401:
            assert process.poll() is None, (place / "log").read_text()[-2000:]
            assert time.monotonic() < until, (place / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield Head(url, f"127.0.0.1:{ports['port']}", place, token_file, process.pid)
    finally:
        for pid in descendants(f"STABMAP_HOME={place / 'home'}"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(autouse=True)
def laptop(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another home than the head's, and the token."""
    for name in ("RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STABMAP_HOME", str(tmp_path / "laptop"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(head.token_file))
    # Ray would rather take these than what is asked for.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")


def stabmap(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def in_process(*words: str, **environment: str) -> subprocess.Popen[str]:
    """The real thing, as a shell runs it."""
    return subprocess.Popen(
        [sys.executable, "-m", "stabmap", *words],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(done: Result) -> dict[str, Any]:
    """The JSON line of a verb that went well."""
    assert done.exit_code == 0, done.output
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def refusal(done: Result) -> str:
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def overrides(values: dict[str, Any]) -> list[str]:
    return [word for key, value in values.items() for word in ("-o", f"{key}={json.dumps(value)}")]


@pytest.fixture(scope="module")
def submitted(head: Head) -> Any:
    """Both sweeps, sent by processes that are over."""
    found = {}
    clients = {
        values["name"]: in_process(
            "submit",
            "one-layer-cnn",
            "--address",
            head.url,
            "--json",
            *overrides(values),
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN_PATH=str(head.token_file),
            MLFLOW_TRACKING_URI="http://me:secret@nowhere",
        )
        for values in (SHORT, LONG)
    }
    for name, client in clients.items():
        output, errors = client.communicate(timeout=60)
        assert client.returncode == 0, errors
        assert errors == (
            "note: MLFLOW_TRACKING_URI of this machine is not sent; the cluster's nodes use "
            "their own\n"
        )
        found[name] = json.loads(output)
    return found


def wait_for(head: Head, sweep: str, held: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The status of a sweep as soon as something holds of it."""
    until = time.monotonic() + 180  # a slow machine starts a job in more than a minute
    while not held(now := said(stabmap("status", sweep, "--address", head.url, "--json"))):
        assert time.monotonic() < until, now
        assert now["state"] != "failed", now
        time.sleep(0.5)
    return now


def log_of(head: Head, job: str) -> str:
    """What a job wrote, for whoever reads a failure."""
    logs = head.place / "ray" / "session_latest" / "logs"
    return (logs / f"job-driver-{job}.log").read_text()[-3000:]


# The tests below run in this order; what needs no sweep comes while the sweeps start.


def test_submit_says_what_it_sent(submitted: Any, head: Head) -> None:
    for values in (SHORT, LONG):
        sent = submitted[values["name"]]
        spec = load_spec("one-layer-cnn", values)
        assert sent == {
            "submission": f"stabmap-{spec.hash}-1",
            "spec": spec.hash,
            "title": values["name"],
            "points": values["budget.points"],
            "address": head.url,
        }


def test_no_secret_is_sent(submitted: Any, head: Head) -> None:
    """Whoever may see the dashboard sees what Ray keeps of a job."""
    request = urllib.request.Request(
        f"{head.url}/api/jobs/", headers={"Authorization": f"Bearer {head.token_file.read_text()}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        text = answer.read().decode()
    ours = [j for j in json.loads(text) if (j["submission_id"] or "").startswith("stabmap-")]
    assert len(ours) >= 2
    for job in ours:
        assert set(job["runtime_env"]) <= {"working_dir", "env_vars", "_ray_commit"}
        assert set(job["runtime_env"]["env_vars"]) == {
            *("MLFLOW_DISABLE_TELEMETRY", "PYTHONUNBUFFERED", "RAY_USAGE_STATS_ENABLED"),
        }
    assert "secret" not in text
    assert head.token_file.read_text() not in text


def test_a_sweep_that_runs_there_is_not_sent_again(submitted: Any, head: Head) -> None:
    done = stabmap("submit", "one-layer-cnn", "--address", head.url, *overrides(LONG))
    assert done.exit_code == 1
    sent = submitted["long"]
    assert f"sweep {sent['spec']} runs on the cluster already, as job {sent['submission']}" in (
        refusal(done)
    )


def test_strangers_are_turned_away(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    assert status_of(head.url) == 401
    assert status_of(head.url, "wrong") == 403
    assert status_of(head.url, head.token_file.read_text()) == 200
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    for verb in ("status", "watch x", "pause x", "stop x", "resume x", "doctor"):
        done = stabmap(*verb.split(), "--address", head.url)
        assert done.exit_code == 4
        expected = "the head refuses this token, or there is none; put the cluster's token into"
        assert expected in refusal(done)
    # Ray reads the mode once a process.
    client = in_process("status", "--address", head.url, RAY_AUTH_MODE="disabled")
    _, errors = client.communicate(timeout=60)
    assert client.returncode == 4
    assert "there is none; set RAY_AUTH_MODE=token and the cluster's token" in errors
    assert errors.count("\n") == 1


def test_addresses_where_no_head_is(head: Head) -> None:
    (port,) = free_ports(1)
    for address in (f"http://127.0.0.1:{port}", f"http://{head.gcs}"):
        done = stabmap("status", "--address", address)
        assert done.exit_code == 4
        assert "nothing answers there" in refusal(done)


def test_unknown_sweeps(head: Head) -> None:
    for verb in ("status", "watch", "pause", "stop", "resume"):
        done = stabmap(verb, "nowhere", "--address", head.url)
        assert done.exit_code == 2
        assert f"sweep = 'nowhere': no such sweep on {head.url}" in refusal(done)


def test_doctor_looks_at_every_node(submitted: Any, head: Head) -> None:
    report = json.loads(stabmap("doctor", "--address", head.url, "--json").stdout)
    (node,) = report["nodes"]
    assert node["error"] is None
    assert node["found"]["token"]
    assert node["found"]["places"]["folder"] == str(head.home)
    assert abs(node["skew"]) <= node["within"] + 0.05  # it is the same clock
    assert report["problems"] == []


def test_watch_to_the_end(submitted: Any, head: Head) -> None:
    """The client that sent it is long gone."""
    sweep = submitted["short"]["spec"]
    done = stabmap("watch", "short", "--address", head.url)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].startswith("complete  points 8/8  stable ")
    one = said(stabmap("status", sweep, "--address", head.url, "--json"))
    assert (one["state"], one["points"], one["limit"]) == ("complete", 8, 8)
    assert sum(one["counts"].values()) == 8
    # On the head, by its own word; nothing was written here.
    results = (head.home / "sweeps" / sweep / "results.jsonl").read_text().splitlines()
    assert len(results) == 8
    assert not Path(os.environ["STABMAP_HOME"]).exists()


def test_pause_resume_and_stop(submitted: Any, head: Head) -> None:
    sweep = submitted["long"]["spec"]
    wait_for(head, sweep, lambda now: now["points"] > 0)
    done = stabmap("pause", sweep[:8], "--address", head.url)
    assert done.exit_code == 0, done.output
    log = log_of(head, submitted["long"]["submission"])
    assert done.stdout.startswith(f"sweep {sweep} is paused: "), log
    paused = said(stabmap("status", "long", "--address", head.url, "--json"))
    assert paused["state"] == "paused"
    kept = (head.home / "sweeps" / sweep / "results.jsonl").read_text().splitlines()
    assert len(kept) == paused["points"] > 0

    resumed = said(stabmap("resume", "long", "--address", head.url, "--json"))
    assert resumed["submission"] == f"stabmap-{sweep}-2"
    assert stabmap("resume", "long", "--address", head.url).exit_code == 1  # it runs already
    wait_for(head, sweep, lambda now: now["state"] == "running" and now["points"] >= len(kept))

    done = stabmap("stop", "long", "--address", head.url)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"sweep {sweep} is stopped: ")
    assert stabmap("watch", "long", "--address", head.url).exit_code == 3
    lines = (head.home / "sweeps" / sweep / "results.jsonl").read_text().splitlines()
    assert lines[: len(kept)] == kept
    table = stabmap("status", "--address", head.url).stdout.splitlines()
    assert {(line.split()[0], line.split()[2]) for line in table[1:]} == {
        *(("short", "complete"), ("long", "stopped")),
    }
    refused = stabmap("pause", "long", "--address", head.url)
    assert refused.exit_code == 1
    assert f"sweep {sweep} is stopped: there is nothing to pause" in refusal(refused)
