"""What the verbs of the command line share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from trainables.domain import InputError, StabmapError
from trainables.messages import printable, redacted

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
