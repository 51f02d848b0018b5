"""What the verbs of the command line share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainables.domain import InputError, StabmapError
from trainables.messages import printable, redacted

if TYPE_CHECKING:
    from sweeps.spec import SweepSpec

SpecPath = Annotated[str, typer.Argument(help="YAML file, or the name of a preset.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", help="A value by its path, such as -o budget.points=128."),
]
TaskFiles = Annotated[
    list[str] | None,
    typer.Option("--tasks", help="A Python file with tasks of your own; it is executed."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON line for programs.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Allow a cluster that asks nobody for a token.")
]
Home = Annotated[
    Path | None, typer.Option("--folder", help="Where sweeps are kept, if not STABMAP_HOME.")
]


def read_spec(spec: str, override: list[str] | None, tasks: list[str] | None) -> SweepSpec:
    """The spec that a command names, with the tasks that it may ask for."""
    from sweeps.spec import load_spec, parse_overrides

    load_task_files(tasks)
    return load_spec(spec, parse_overrides(override or ()))


def load_task_files(tasks: list[str] | None) -> None:
    """Make the tasks of files known."""
    if tasks:
        from trainables.tasks import load_tasks

        for path in tasks:
            load_tasks(path)


def task_words(tasks: list[str] | None) -> list[str]:
    """The options that name the same files again."""
    return [word for path in tasks or () for word in ("--tasks", path)]


def plain_errors(command: Callable[..., None]) -> Callable[..., None]:
    """One line a mistake and an exit code instead of a stack trace."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except InputError as error:
            for mistake in error.mistakes:
                print(f"error: {mistake}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except StabmapError as error:
            print(f"error: {printable(redacted(str(error)))}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    return wrapped
