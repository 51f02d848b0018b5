"""The verb that holds two maps against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stabmap.cli_parts import AsJson, plain_errors
from trainables.domain import AXIS_NAMES, InputError, Mistake, unknown_axis

verbs = typer.Typer()

Sweep = Annotated[
    str, typer.Argument(help="Id, hash or title of a sweep, its folder, or one that export wrote.")
]


@verbs.command()
@plain_errors
def compare(
    first: Sweep,
    second: Sweep,
    at: Annotated[
        list[str] | None, typer.Option("--at", help="Slice the first map here: alpha=0.")
    ] = None,
    second_at: Annotated[
        list[str] | None, typer.Option("--second-at", help="Slice the second map here.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-O", help="Picture to draw: .png, .svg or .pdf.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.9,
    tracking: Annotated[
        str | None, typer.Option("--tracking", help="MLflow address, if not the usual one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how much more of the box is stable in the second map than in the first, and where.

    Examples: stabmap compare PLAIN CLIPPED -O gain.png;
    stabmap compare ID ID --at alpha=0 --second-at alpha=1
    """
    from analysis.compare import compare as compare_maps
    from analysis.load import load_map

    values = [_values("at", at), _values("second-at", second_at)]
    maps = [load_map(name, tracking) for name in (first, second)]
    if first == second:  # slices of one map share its model
        maps[1] = maps[0]
    maps = [m.slice(**fixed) if fixed else m for m, fixed in zip(maps, values, strict=True)]
    found = compare_maps(maps[0], maps[1], confidence=confidence)
    picture = None
    if output is not None:
        from analysis.plot import plot_comparison

        picture = str(plot_comparison(found, output))
    if as_json:
        print(json.dumps(found.to_dict() | {"picture": picture}))
        return
    print(found)
    print("\nshare of the box by regime in the first (rows) and in the second (columns)")
    print(found.table().map("{:.1%}".format).to_string())
    if picture:
        print(f"\npicture   {picture}")


def _values(field: str, texts: list[str] | None) -> dict[str, float]:
    """Places that read axis=number."""
    values: dict[str, float] = {}
    mistakes = []
    for text in texts or ():
        name, _, number = text.partition("=")
        if name not in AXIS_NAMES:
            mistakes.append(unknown_axis(field, name, text))
            continue
        try:
            values[name] = float(number)
        except ValueError:
            law = "a place reads axis=number"
            mistakes.append(Mistake(field, text, law, "write alpha=0"))
    if mistakes:
        raise InputError(mistakes)
    return values
