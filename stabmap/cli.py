"""The command line. Results go to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stabmap.cli_cluster import find_here, kept_spec, print_nodes, resume_job
from stabmap.cli_cluster import verbs as cluster_verbs
from stabmap.cli_compare import verbs as compare_verbs
from stabmap.cli_data import verbs as data_verbs
from stabmap.cli_parts import (
    AsJson,
    Home,
    Insecure,
    Overrides,
    SpecPath,
    TaskFiles,
    load_task_files,
    read_spec,
    task_words,
)
from stabmap.cli_parts import plain_errors as _plain_errors
from stabmap.cli_report import verbs as report_verbs
from stabmap.cli_service import verbs as service_verbs
from stabmap.cli_tasks import verbs as task_verbs
from trainables import __version__
from trainables.domain import AXIS_NAMES, InputError, Mistake, unknown_axis

if TYPE_CHECKING:
    from sweeps.spec import SweepSpec

app = typer.Typer(
    help="Maps of where training is stable, restrained or divergent.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Sweep = Annotated[
    str, typer.Argument(help="Id, hash or title of a sweep, its folder, or one that export wrote.")
]
Tracking = Annotated[
    str | None, typer.Option("--tracking", help="MLflow address, if not the usual one.")
]

Address = Annotated[
    str, typer.Option(help="Where Ray runs: local, auto, or host:port of a cluster.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]

#: Endings of a picture's file, and of the interactive page.
PICTURES = (".png", ".svg", ".pdf", ".html")


def _show_version(asked: bool) -> None:
    if asked:
        print(f"stabmap {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    """What comes before a command."""


@app.command()
@_plain_errors
def run(
    spec: SpecPath,
    override: Overrides = None,
    tasks: TaskFiles = None,
    address: Address = "local",
    insecure: Insecure = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a sweep, or go on with one that was interrupted: the same command again.

    Examples: stabmap run mnist-mlp; stabmap run sweep.yaml -o budget.points=256 -o steps=800
    """
    loaded = read_spec(spec, override, tasks)
    again = ["run", spec, *(word for text in override or () for word in ("-o", text))]
    again += task_words(tasks)
    _run(loaded, again, address, insecure, as_json, quiet)


@app.command()
@_plain_errors
def resume(
    sweep: Annotated[str, typer.Argument(help="Hash, MLflow id, title or folder of a sweep.")],
    folder: Home = None,
    tasks: TaskFiles = None,
    address: Annotated[
        str, typer.Option(help="Where Ray runs: local, auto, host:port, or http://host:8265.")
    ] = "local",
    insecure: Insecure = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a sweep that was paused, stopped or interrupted.

    Examples: stabmap resume 5bc55bf8; stabmap resume 5bc55bf8 --address http://localhost:8265
    """
    if "://" in address:
        resume_job(sweep, address, insecure, as_json)
        return
    load_task_files(tasks)
    loaded = kept_spec(find_here(sweep, folder))
    again = ["resume", sweep, *(["--folder", str(folder)] if folder else [])]
    again += task_words(tasks)
    _run(loaded, again, address, insecure, as_json, quiet)


def _run(
    loaded: SweepSpec,
    again: Sequence[str],
    address: str,
    insecure: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run a sweep in the foreground; `again` are the words that go on with it."""
    from sweeps.access import check_access

    check_access(address, insecure)
    if not quiet:
        for note in loaded.notes:
            print(f"note: {note}", file=sys.stderr)
        print(f"sweep {loaded.title} ({loaded.hash}): starting Ray", file=sys.stderr, flush=True)
    from sweeps.runner import execute

    outcome = execute(loaded, address, None if quiet else sys.stderr, insecure)
    again = [_program("stabmap"), *again, *(["--address", address] if address != "local" else [])]
    again += ["--insecure"] if insecure else []
    if not as_json:
        _report(outcome)
    if not outcome.recorded:
        print("warning: MLflow missed some records; the same command writes them", file=sys.stderr)
    if outcome.ending != "complete":
        kept = f"{outcome.points} points are kept; go on with: {shlex.join(again)}"
        word = "out of time" if outcome.ending == "short" else outcome.ending
        print(f"{word}: {kept}", file=sys.stderr)
    if as_json:
        print(
            json.dumps(
                {
                    "sweep": outcome.sweep,
                    "ending": outcome.ending,
                    "points": outcome.points,
                    "spec": loaded.hash,
                    "folder": str(outcome.folder),
                }
            )
        )
    # Paused and stopped sweeps have ended short of their budget too.
    code = {"complete": 0, "interrupted": 130}.get(outcome.ending, 3)
    if code:
        raise typer.Exit(code)


def _report(outcome: Any) -> None:
    """What was found and where it lies."""
    from analysis.text import as_text

    found = outcome.stability_map
    if found is not None:
        print(as_text(found))
        counts = "  ".join(f"{regime} {count}" for regime, count in found.counts().items())
        print(f"\n{len(found.frame)} points: {counts}")
        print(found.quality)
    if outcome.picture is not None:
        print(f"picture   {outcome.picture}")
    print(f"results   {outcome.folder}")
    name, _, rest = outcome.review.partition(" ")
    print(f"review    {shlex.quote(_program(name))} {rest}")
    print(f"sweep     {outcome.sweep}")


def _program(name: str) -> str:
    """How to call a program that came with this Python: by name where the shell finds it so."""
    beside = Path(sys.executable).parent / name
    found = shutil.which(name)
    if not beside.exists() or (found and Path(found).absolute() == beside):
        return name
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)


@app.command()
@_plain_errors
def show(
    spec: SpecPath,
    override: Overrides = None,
    tasks: TaskFiles = None,
    as_json: AsJson = False,
) -> None:
    """Check a spec; print it with all defaults, its hash and what it will cost. Runs nothing."""
    import yaml

    from trainables.cost import estimate
    from trainables.tasks import get_task

    loaded = read_spec(spec, override, tasks)
    task = get_task(loaded.task_name, **loaded.task_options)
    cost = estimate(task, loaded.training, loaded.budget.points, _workers(loaded))
    if as_json:
        found = {"spec": loaded.resolved(), "hash": loaded.hash, "cost": cost.to_dict()}
        print(json.dumps(found | {"notes": loaded.notes}))
        return
    print(yaml.safe_dump(loaded.resolved(), sort_keys=False).rstrip())
    print(f"\nhash  {loaded.hash}")
    print(f"cost  {cost}")
    for note in loaded.notes:
        print(f"note  {note}")


@app.command()
@_plain_errors
def doctor(
    spec: Annotated[str, typer.Argument(help="YAML file, or the name of a preset.")] = "mnist-mlp",
    isolation: Annotated[
        bool, typer.Option("--isolation", help="Train points alone and in company, and compare.")
    ] = False,
    override: Overrides = None,
    tasks: TaskFiles = None,
    address: Annotated[
        str | None,
        typer.Option(help="Cluster to examine: auto, host:port, or http://host:8265."),
    ] = None,
    insecure: Insecure = False,
    folder: Home = None,
    as_json: AsJson = False,
) -> None:
    """Say what is installed here; with --isolation, whether results depend on their neighbours.

    With --address every node of a cluster is examined: versions, GPUs, clocks, folders, MLflow.
    """
    if address is not None:
        print_nodes(address, insecure, folder, as_json)
        return
    load_task_files(tasks)
    found: dict[str, Any] = {"versions": _versions(), "gpus": _gpus()}
    checked = _isolation(spec, override, tasks) if isolation else None
    if checked is not None:
        found["isolation"] = checked.to_dict()
    if as_json:
        print(json.dumps(found))
    else:
        for name, number in found["versions"].items():
            print(f"{name:10s} {number}")
        print(f"{'GPUs':10s} {', '.join(found['gpus']) or 'none'}")
    if checked is not None:
        if not as_json:
            _print_isolation(checked)
        if not checked.sound:
            raise typer.Exit(1)


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import version

    names = ("torch", "ray", "optuna", "mlflow")
    ours = {"stabmap": __version__, "python": platform.python_version()}
    return ours | {name: version(name) for name in names}


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _isolation(spec: str, override: list[str] | None, tasks: list[str] | None) -> Any:
    from sweeps.search.designs import SobolDesign
    from trainables.isolation import check_isolation

    loaded = read_spec(spec, override, tasks)
    design = SobolDesign(loaded.space, loaded.seed)
    points = list(dict.fromkeys(design[i] for i in range(4)))
    return check_isolation(loaded.task_name, loaded.task_options, loaded.training, points)


def _print_isolation(found: Any) -> None:
    print(f"\nbackend    {found.backend}")
    for name, reason in found.struck.items():
        print(f"not {name}: {reason}")
    for way, points in found.differences.items():
        print(f"{way}: {'the same to the bit as alone' if not points else 'DIFFERENT from alone'}")
        for point in points:
            print(f"  {point}")


def _workers(spec: Any) -> int:
    cpus = len(os.sched_getaffinity(0))
    return int(spec.resources.workers or max(1, cpus // spec.resources.cpus))


@app.command()
@_plain_errors
def query(
    sweep: Sweep,
    at: Annotated[
        list[str] | None, typer.Argument(help="Where: lr=0.1 weight_decay=5e-4 ...")
    ] = None,
    largest: Annotated[
        str | None, typer.Option("--max", help="Axis whose largest stable value is asked for.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Probability asked for with --max.")] = 0.95,
    suggest: Annotated[
        int | None, typer.Option(help="How many points to name that would tell the map most.")
    ] = None,
    tracking: Tracking = None,
    as_json: AsJson = False,
) -> None:
    """Ask a map: how likely is each regime here, how large may an axis be, what to train next?

    Examples: stabmap query ID lr=0.1 weight_decay=0.001; stabmap query ID --max lr weight_decay=0;
    stabmap query ID --suggest 4 weight_decay=0
    """
    from analysis.load import load_map

    values = _values(at or ())
    if suggest is not None and largest is not None:
        law = "one question at a time"
        raise InputError([Mistake("--suggest", suggest, law, "leave out --suggest or --max")])
    found = load_map(sweep, tracking)
    if suggest is not None:
        chosen = found.suggest_next(suggest, **values)
        answer: dict[str, Any] = {
            "suggestions": [{**asdict(s.point), "drop": s.drop} for s in chosen]
        }
        text = "\n".join(map(str, chosen))
    elif largest is None:
        answer = found.classify(**values)
        text = "\n".join(f"{regime:<11} {p:.3f}" for regime, p in answer.items())
    else:
        value = found.max_stable(largest, confidence=confidence, **values)
        answer = {"axis": largest, "max_stable": value, "confidence": confidence}
        text = (
            f"{largest} <= {value:.4g} is stable with probability >= {confidence:g}"
            if value is not None
            else f"no {largest} of this map is stable with probability >= {confidence:g} there"
        )
    print(json.dumps(answer) if as_json else text)


def _values(texts: Any) -> dict[str, float]:
    values: dict[str, float] = {}
    mistakes = []
    for text in texts:
        name, equals, number = text.partition("=")
        if equals and name not in AXIS_NAMES:
            mistakes.append(unknown_axis(name, name, None))
            continue
        try:
            values[name] = float(number)
        except ValueError:
            mistakes.append(
                Mistake("at", text, "a place reads axis=number",
                        f"write lr=0.1 (axes: {', '.join(AXIS_NAMES)})")
            )  # fmt: skip
    if mistakes:
        raise InputError(mistakes)
    return values


@app.command()
@_plain_errors
def plot(
    sweep: Sweep,
    output: Annotated[
        Path, typer.Option("--output", "-O", help=f"File: {', '.join(PICTURES)}.")
    ] = Path("map.png"),
    theory: Annotated[bool, typer.Option(help="Draw the closed-form bounds.")] = True,
    tracking: Tracking = None,
) -> None:
    """Draw a map to a file; .html is an interactive page that needs no network.

    Examples: stabmap plot ID; stabmap plot ID -O map.svg; stabmap plot ID -O map.html
    """
    from analysis.load import load_map

    if output.suffix.lower() not in PICTURES:
        law, remedy = "is no picture that can be drawn", f"end it in {', '.join(PICTURES)}"
        raise InputError([Mistake("path", str(output), law, remedy)])
    if output.suffix.lower() == ".html":
        from analysis.page import write_page
        from analysis.tracking import find_tracking

        found = load_map(sweep, tracking)
        print(write_page(found, output, find_tracking(sweep, tracking), theory))
        return
    from analysis.plot import plot_map

    print(plot_map(load_map(sweep, tracking), output, theory))


@app.command()
@_plain_errors
def export(
    sweep: Sweep,
    folder: Annotated[Path, typer.Argument(help="Folder to write to.")],
    tracking: Tracking = None,
) -> None:
    """Write a map to a folder, as parquet, JSON, CSV and NetCDF."""
    from analysis.load import load_map

    for path in load_map(sweep, tracking).export(folder):
        print(path)


app.add_typer(compare_verbs)
app.add_typer(cluster_verbs)
app.add_typer(data_verbs)
app.add_typer(report_verbs)
app.add_typer(service_verbs)
app.add_typer(task_verbs)


def main() -> None:
    """Entry point of the `stabmap` command."""
    app()
