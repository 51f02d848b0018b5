"""MLflow away for a minute: does the sweep slow down, and is anything missing afterwards?

Run: .venv/bin/python benchmarks/away.py [--seconds 60] [--report]   (or: make soak)

The same sweep twice on one MLflow server with PostgreSQL, both started here on loopback: once
undisturbed, once with `kill -9` to the server in the middle, which is started again later.
Trainings take a fixed time and no processor. Compared are the times from the first to the last
result; afterwards `stabmap fsck` has to find every point once, finished. `--report` keeps what is
printed in benchmarks/reports/away.md. About seven minutes. Needs PostgreSQL.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]  # tests and benchmarks are no packages

from servers import Server, mlflow_server, postgresql  # noqa: E402

TASK = Path(__file__).with_name("_sleeper.py")
REPORT = ROOT / "benchmarks" / "reports" / "away.md"
#: Updates of a training, seconds of a training, points of the sweep, workers.
STEPS, SECONDS, POINTS, WORKERS = 20, 4.0, 80, 2
#: Results after which the server is killed.
KILL_AFTER = 16
#: What the minute may cost.
ALLOWED = 1.05


def begin(folder: Path, server: Server, seed: int) -> subprocess.Popen[str]:
    """Start the sweep; its seed tells it from the other one."""
    spec: dict[str, Any] = {
        "task": {"name": "sleeper", "seconds": SECONDS / (2 * STEPS)},  # two k
        "axes": {"lr": {"scale": "log", "low": 1e-3, "high": 1}, "weight_decay": 1e-2},
        "search": {"method": "sobol", "audit": 0, "batch": 16},
        "budget": {"points": POINTS},
        "resources": {"workers": WORKERS, "pack": 2},
        "tracking": {"address": server.url, "experiment": "away"},
        "folder": str(folder),
        "steps": STEPS,
        "seed": seed,
        "backend": "loop",
        **dict.fromkeys(("lyapunov", "sharpness", "early"), False),
    }
    path = folder / f"sweep-{seed}.json"
    path.write_text(json.dumps(spec))
    words = [sys.executable, "-m", "stabmap", "run", str(path), "--json", "--tasks", str(TASK)]
    environment = {**os.environ, **server.environment, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)


def results(folder: Path, known: set[Path]) -> list[float]:
    """When the results of the sweep that is not known came in."""
    logs = set(folder.glob("sweeps/*/results.jsonl")) - known
    return [json.loads(line)["finished_at"] for log in logs for line in log.open()]


def sweep(folder: Path, server: Server, seed: int, away: float) -> tuple[float, str]:
    """Seconds from the first to the last result, and the sweep's hash."""
    known = set(folder.glob("sweeps/*/results.jsonl"))
    process = begin(folder, server, seed)
    if away:
        while len(results(folder, known)) < KILL_AFTER:
            time.sleep(0.1)
        server.kill()
        time.sleep(away)
        server.start()
    out, _ = process.communicate()
    assert process.returncode == 0, process.returncode
    ends = results(folder, known)
    assert len(ends) == POINTS
    return max(ends) - min(ends), json.loads(out.splitlines()[-1])["spec"]


def disagreements(folder: Path, server: Server, sweep: str) -> str:
    """What fsck says in the end."""
    words = [sys.executable, "-m", "stabmap", "fsck", sweep, "--folder", str(folder)]
    environment = {**os.environ, **server.environment}
    done = subprocess.run(
        [*words, "--tasks", str(TASK)], env=environment, capture_output=True, text=True
    )
    return (done.stdout.splitlines() or done.stderr.splitlines() or ["nothing"])[-1]


def main() -> None:
    """Print, and end with 1 where a minute without MLflow cost too much."""
    parser = argparse.ArgumentParser(description="A sweep with MLflow away.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stabmap-away-") as name:
        folder = Path(name)
        for part in ("db", "ml"):
            (folder / part).mkdir()
        with (
            postgresql(folder / "db") as database,
            mlflow_server(folder / "ml", database) as server,
        ):
            calm, _ = sweep(folder, server, 0, 0.0)
            disturbed, spec = sweep(folder, server, 1, options.seconds)
            said = disagreements(folder, server, spec)
    found = "\n".join(
        [
            f"# MLflow away for {options.seconds:.0f} s",
            "",
            "Printed by `make soak` (benchmarks/away.py).",
            "",
            f"- {POINTS} points of {SECONDS:g} s, {WORKERS} workers; the server killed after "
            f"{KILL_AFTER} results.",
            f"- From the first to the last result: {calm:.1f} s undisturbed, {disturbed:.1f} s "
            f"disturbed, ratio {disturbed / calm:.3f} (at most {ALLOWED}).",
            f"- Afterwards: {said}.",
            "",
        ]
    )
    print(found)
    if options.report:
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(found)
    sys.exit(0 if disturbed / calm <= ALLOWED and "the records agree" in said else 1)


if __name__ == "__main__":
    main()
