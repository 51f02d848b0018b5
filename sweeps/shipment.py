"""What a job takes along to a cluster: the code of stabmap, one spec, and the file of its task."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from sweeps.spec import SweepSpec
from trainables.tasks.from_files import source_of

#: The packages that make up stabmap; they lie beside one another.
PACKAGES = ("stabmap", "sweeps", "analysis", "trainables")
#: What stays behind, wherever it lies in them.
LEFT_BEHIND = ("__pycache__", "*.py[co]", ".*", "tests")
#: Environment of every job. It is shown to whoever may see the dashboard: no secret belongs here.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PYTHONUNBUFFERED": "1",  # else the log of a job lags behind
    "RAY_USAGE_STATS_ENABLED": "0",
}
#: Name of the spec on the cluster.
SPEC_FILE = "spec.yaml"
#: Name, on the cluster, of the file that the spec's task came from.
TASKS_FILE = "tasks_of_the_user.py"


def portable(spec: SweepSpec) -> dict[str, Any]:
    """A spec for another machine: the same sweep, in that machine's home unless a folder is named.

    Args:
        spec: the spec.

    Returns:
        Plain values that `load_spec` reads.
    """
    content = spec.resolved()
    if "folder" not in spec.model_fields_set:
        del content["folder"]
    return content


def words(spec: SweepSpec) -> list[str]:
    """What `stabmap` is told to run what was packed."""
    tasks = ["--tasks", TASKS_FILE] if source_of(spec.task_name) else []
    return ["run", SPEC_FILE, *tasks, "--address", "auto"]


@contextmanager
def packed(spec: SweepSpec | None = None) -> Iterator[Path]:
    """A folder with the code, and with the spec where there is one; gone afterwards."""
    here = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(prefix="stabmap-") as made:
        folder = Path(made) / "code"
        for name in PACKAGES:
            ignored = shutil.ignore_patterns(*LEFT_BEHIND)
            shutil.copytree(here / name, folder / name, ignore=ignored)
        if spec is not None:
            text = yaml.safe_dump(portable(spec), sort_keys=False)
            (folder / SPEC_FILE).write_text(text, "utf-8")
            if source := source_of(spec.task_name):
                (folder / TASKS_FILE).write_text(source.text, "utf-8")
        yield folder
