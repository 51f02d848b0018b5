"""A sweep under 20 kills: is a point lost, doubled or left running, and is the map the same?

Run: .venv/bin/python benchmarks/soak.py [--kills 20] [--points 400] [--seed 0]   (or: make soak)

One sweep with its results in PostgreSQL and its runs on an MLflow server, both started here on
loopback. In turn and at random moments a worker, the driver, the MLflow server and PostgreSQL get
`kill -9`; the driver is started again with the same command, the servers after a few seconds. Then
the same sweep runs undisturbed with files alone. Prints what is left of the kills, writes it to
benchmarks/reports/soak.md and ends with 1 if anything is. At most 12 minutes. Needs PostgreSQL.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]  # tests and benchmarks are no packages

from kills import SPEC, VICTIMS, Report, run_under_kills, run_undisturbed  # noqa: E402

REPORT = ROOT / "benchmarks" / "reports" / "soak.md"
LIMIT = 700.0
PACKAGES = ("torch", "ray", "optuna", "mlflow", "numpy", "sqlalchemy", "psycopg2-binary")


def text(report: Report, same: bool, arguments: argparse.Namespace) -> str:
    """The report, with nothing in it that changes from day to day but the times."""
    counts = ", ".join(f"{v} {report.kills.count(v)}" for v in VICTIMS)
    rows = {
        "kill -9": f"{len(report.kills)} ({counts})",
        "results in the store": f"{report.points} of {arguments.points}",
        "points lost (store, PostgreSQL, MLflow)": report.lost,
        "points doubled (store, MLflow)": report.doubled,
        "MLflow runs left RUNNING": report.running,
        "processes left": report.left,
        "stabmap fsck": report.fsck[1].splitlines()[-1],
        "map equal to an undisturbed run's, to the byte": "yes" if same else "NO",
        "seconds, servers' start included": f"{report.seconds:.0f}",
    }
    struck = ", ".join(f"{v} {n}" for v, n in zip(report.kills, report.killed_at, strict=True))
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return "\n".join(
        [
            f"# A sweep under {len(report.kills)} kills",
            "",
            "Printed by `make soak`.",
            "",
            "| what | found |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows.items()),
            "",
            f"Killed, with the number of results at that moment: {struck}.",
            "",
            f"Seed {arguments.seed}; {arguments.points} points of one-layer-cnn, TPE, "
            f"{arguments.steps} steps, 2 workers with packs of 4; {os.cpu_count()} cores; "
            f"Python {platform.python_version()}; {packages}.",
            "",
        ]
    )


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--points", type=int, default=400)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    budget = {"points": arguments.points}
    spec = {**SPEC, "steps": arguments.steps, "budget": budget}
    with tempfile.TemporaryDirectory(prefix="stabmap-soak-") as folder:
        report = run_under_kills(Path(folder), spec, arguments.kills, arguments.seed, LIMIT)
        same = report.map == run_undisturbed(Path(folder), spec, LIMIT - report.seconds)
    found = text(report, same, arguments)
    print(found)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(found)
    sys.exit(0 if report.clean and same else 1)


if __name__ == "__main__":
    main()
