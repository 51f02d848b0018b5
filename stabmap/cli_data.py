"""The verb that looks for data sets, and fetches them where a person asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stabmap.cli_parts import AsJson, plain_errors
from trainables.domain import InputError
from trainables.options import choice

verbs = typer.Typer()


@verbs.command()
@plain_errors
def data(
    name: Annotated[str, typer.Argument(help="mnist, fashion-mnist, cifar-10 or cifar-100.")],
    root: Annotated[Path, typer.Argument(help="Folder for the task's option data_root.")],
    download: Annotated[
        bool, typer.Option("--download", help="Fetch it first. Nothing else ever downloads.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say whether a data set is in a folder, whole and readable.

    Examples: stabmap data cifar-10 data; stabmap data cifar-10 data --download
    """
    import json

    from trainables.tasks import images

    mistakes = list(choice("name", name, tuple(images.SETS)))
    if mistakes:
        raise InputError(mistakes)
    if download:
        images.download(name, str(root))
    train, test = images.load(name, str(root))
    found = {"name": name, "root": str(root), "train": len(train[1]), "held_out": len(test[1])}
    if as_json:
        print(json.dumps(found))
    else:
        title = images.SETS[name].title
        print(f"{title}: {len(train[1]):,} training and {len(test[1]):,} held-out images in {root}")
