"""`init` and `tasks`: what can be trained, and how to begin with a task of one's own."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from stabmap.cli_parts import AsJson, TaskFiles, load_task_files, plain_errors
from trainables.domain import InputError, Mistake

verbs = typer.Typer()
FILES = ("task.py", "sweep.yaml")


@verbs.command()
@plain_errors
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to write to.")] = Path(),
) -> None:
    """Write a task of your own, task.py, and its sweep, sweep.yaml: both work as they are."""
    taken = [folder / name for name in FILES if (folder / name).exists()]
    if taken:
        law, remedy = "is there already", "name another folder, or move it away"
        raise InputError([Mistake("folder", str(path), law, remedy) for path in taken])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            text = (resources.files("stabmap") / "templates" / name).read_text("utf-8")
            (folder / name).write_text(text, "utf-8")
            print(folder / name)
    except OSError as error:
        law, remedy = f"cannot be written to ({error.strerror})", "name a folder of yours"
        raise InputError([Mistake("folder", str(folder), law, remedy)]) from error
    print(f"next: stabmap run {folder / 'sweep.yaml'} --tasks {folder / 'task.py'}")


@verbs.command()
@plain_errors
def tasks(
    check: Annotated[
        str | None, typer.Option("--check", help="Try this task as a sweep would use it.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("-o", "--option", help="An option of the task that is checked, key=value."),
    ] = None,
    data_root: Annotated[
        str | None, typer.Option(help="Look for the data of the tasks in this folder.")
    ] = None,
    files: TaskFiles = None,
    as_json: AsJson = False,
) -> None:
    """List the tasks: where they come from, how large they are, whether their data is there.

    With --check say whether one is deterministic, batchable and resumable, and how fast. Exit code
    1: something must be mended.
    """
    load_task_files(files)
    if check is not None:
        _check(check, option, as_json)
        return
    from trainables.tasks.listing import listing

    found = listing(data_root)
    if as_json:
        print(json.dumps({"tasks": [line.to_dict() for line in found]}))
        return
    for line in found:
        print(f"{line.name}: {line.parameters:,} parameters. {line.source}")
        print(f"    {line.data}")


def _check(name: str, option: list[str] | None, as_json: bool) -> None:
    from stabmap.testing import check_task
    from sweeps.spec import parse_overrides

    given: dict[str, Any] = parse_overrides(option or ())
    report = check_task(name, **given)
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        print(report)
    if not report.ok:
        raise typer.Exit(1)
