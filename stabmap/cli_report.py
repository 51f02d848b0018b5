"""The verb that writes a sweep's report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stabmap.cli_parts import TaskFiles, load_task_files, plain_errors
from trainables.domain import InputError

verbs = typer.Typer()


@verbs.command()
@plain_errors
def report(
    sweep: Annotated[
        str, typer.Argument(help="Id or hash of a sweep, its folder, or one that export wrote.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-O", help="File: .html (with the picture) or .md.")
    ] = Path("report.html"),
    tasks: TaskFiles = None,
    tracking: Annotated[
        str | None, typer.Option("--tracking", help="MLflow address, if not the usual one.")
    ] = None,
) -> None:
    """Write what was swept and found, how sure it is, and how to repeat it, on one page.

    Examples: stabmap report 5bc55bf8a1b2c3d4; stabmap report folder/ -O report.md
    """
    from analysis.load import load_map
    from analysis.report import Source, write_report
    from analysis.tracking import find_tracking

    found = load_map(sweep, tracking)
    data = _about_data(found.stand_in, found.about["task"], tasks)
    print(write_report(found, output, Source(sweep, find_tracking(sweep, tracking), data)))


def _about_data(recorded: str | None, task: dict[str, Any], files: list[str] | None) -> str:
    """What a task's data are, in a sentence, as far as the task is installed."""
    from analysis.report import about_data
    from trainables.tasks import get_task

    if recorded is not None:
        return about_data(recorded)
    load_task_files(files)
    options = {key: value for key, value in task.items() if key != "name"}
    try:
        stand_in = get_task(task["name"], **options).stand_in
    except InputError:
        return "The task is not installed here: whether its data stand in for others is not known."
    return about_data(stand_in)
