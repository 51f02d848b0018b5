"""Verbs for sweeps that run elsewhere: in another process, or on a cluster."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stabmap.cli_parts import (
    AsJson,
    Home,
    Insecure,
    Overrides,
    SpecPath,
    TaskFiles,
    plain_errors,
    read_spec,
)
from trainables.domain import InputError, Mistake, StabmapError, UnreachableError

if TYPE_CHECKING:
    from sweeps.cluster import Cluster
    from sweeps.health import Node, Problem
    from sweeps.spec import SweepSpec
    from sweeps.status import SweepStatus

verbs = typer.Typer()

#: Seconds between two looks: on a terminal here, on one at a cluster, and between lines elsewhere.
LOOK, FAR_LOOK, LINE = 1.0, 2.0, 10.0
#: Seconds for which a cluster may be away before `watch` gives up: a laptop that was closed.
AWAY = 60.0
#: What this machine knows of MLflow and does not tell a cluster.
MLFLOW = tuple(f"MLFLOW_TRACKING_{part}" for part in ("URI", "USERNAME", "PASSWORD", "TOKEN"))

Sweep = Annotated[
    str, typer.Argument(help="Hash or its beginning, MLflow id, title or folder of a sweep.")
]
Far = Annotated[
    str | None,
    typer.Option("--address", help="Dashboard of a cluster, such as http://localhost:8265."),
]
Timeout = Annotated[float, typer.Option(help="Seconds that the sweep is given to end.")]


def find_here(sweep: str, folder: Path | None) -> SweepStatus:
    """The sweep of this machine that a text names."""
    from analysis.load import home
    from sweeps.status import find_sweep

    return find_sweep(sweep, home() if folder is None else folder.expanduser())


def kept_spec(found: SweepStatus) -> SweepSpec:
    """The spec in a sweep's folder, which may have been moved since it was written there."""
    from sweeps.spec import load_spec

    assert found.folder is not None
    path, task = found.folder / "spec.yaml", found.folder / "task.py"
    try:
        loaded = load_spec(path, {"folder": str(found.folder.resolve().parent.parent)})
    except InputError as error:
        unknown = [mistake for mistake in error.mistakes if mistake.field == "task"]
        if not unknown or not task.exists():
            raise
        law = "is a task from a file, which is executed only if you name it"
        remedy = f"add --tasks {shlex.quote(str(task))}"
        raise InputError([Mistake("task", unknown[0].value, law, remedy)]) from error
    if loaded.hash != found.hash:
        raise StabmapError(
            f"sweep {found.hash} was begun by another version of stabmap, whose results do not mix "
            f"with this one's; begin anew with: {shlex.join(['stabmap', 'run', str(path)])}"
        )
    return loaded


def _cluster(address: str, insecure: bool) -> Cluster:
    from sweeps.access import head_url

    head_url(address)  # before Ray is loaded, which takes seconds
    from sweeps.cluster import Cluster

    return Cluster(address, insecure)


# --------------------------------------------------------------------------- status and watch


@verbs.command()
@plain_errors
def status(
    sweep: Annotated[str | None, typer.Argument(help="A sweep; without it, all there are.")] = None,
    folder: Home = None,
    address: Far = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """How a sweep is doing, or all of them: state, points, regimes, time left.

    With --address those that were submitted to a cluster.
    """
    from analysis.load import home
    from sweeps.status import find_sweeps

    if sweep is not None:
        one = _cluster(address, insecure).find(sweep) if address else find_here(sweep, folder)
        print(json.dumps(one.to_dict()) if as_json else _card(one))
        return
    place = home() if folder is None else folder.expanduser()
    found = _cluster(address, insecure).sweeps() if address else find_sweeps(place)
    if as_json:
        print(json.dumps({"sweeps": [each.to_dict() for each in found]}))
    elif found:
        _table(found)
    else:
        print(f"no sweeps {f'on {address}' if address else f'in {place}'}")


def _card(one: SweepStatus) -> str:
    """Everything known about a sweep, a line each."""
    from sweeps.progress import clock

    counts = "  ".join(f"{regime} {count}" for regime, count in one.counts.items())
    driver = f"process {one.pid} on {one.host}" if one.pid else None
    rows = {
        "sweep": f"{one.title}  {one.hash}".strip(),
        "state": one.state,
        "points": f"{one.done}  {counts}".strip(),
        "left": f"about {clock(one.left)}" if one.alive and one.left is not None else None,
        "workers": str(one.workers) if one.alive and one.workers is not None else None,
        "heard of": f"{_ago(one.updated)} ago" if one.updated else None,
        "driver": driver if one.alive else None,
        "waits": one.note if one.alive else None,
        "error": one.error,
        "MLflow": f"{one.sweep} in {one.tracking}" if one.sweep else None,
        "job": one.job,
        "folder": str(one.folder) if one.folder else None,
    }
    return "\n".join(f"{name:<9} {text}" for name, text in rows.items() if text)


def _ago(then: float) -> str:
    from sweeps.progress import clock

    return clock(max(time.time() - then, 0.0))


def _table(sweeps: Sequence[SweepStatus]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sweeps.progress import clock

    table = Table(box=None, pad_edge=False)
    for name in ("sweep", "hash", "state", "points", "stable", "restrained", "divergent", "left"):
        table.add_column(name, justify="left" if name in ("sweep", "hash", "state") else "right")
    table.add_column("heard of", justify="right")
    for one in sweeps:
        counts = [str(one.counts.get(name, "")) for name in ("stable", "restrained", "divergent")]
        left = clock(one.left) if one.alive and one.left is not None else ""
        heard = f"{_ago(one.updated)} ago" if one.updated else ""
        # As Text: a title in brackets is not a colour.
        cells = [one.title, one.hash, one.state, one.done, *counts, left, heard]
        table.add_row(*map(Text, cells))
    # A pipe has no width, so that nothing is cut there.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@verbs.command()
@plain_errors
def watch(
    sweep: Sweep, folder: Home = None, address: Far = None, insecure: Insecure = False
) -> None:
    """Follow a sweep to its end; Ctrl-C ends the watching, not the sweep.

    Exit code: 0 where the sweep is complete, 3 where it ended before, 1 where it failed.
    """
    if address:
        cluster = _cluster(address, insecure)
        first = cluster.find(sweep)
        last = _follow(_patient(lambda: cluster.find(first.hash)), FAR_LOOK)
    else:
        from sweeps.status import read_status

        here = find_here(sweep, folder).folder
        assert here is not None
        last = _follow(lambda: read_status(here), LOOK)
    code = {"complete": 0, "failed": 1, "died": 1}.get(last.state, 3)
    if code:
        raise typer.Exit(code)


def _follow(read: Callable[[], SweepStatus], look: float) -> SweepStatus:
    """Print how a sweep is doing until it ends: a line that is redrawn, or one each 10 s."""
    terminal, printed = sys.stdout.isatty(), -math.inf
    try:
        while (now := read()).alive:
            if terminal:
                print(f"\r\x1b[K{now.line()}", end="", flush=True)
            elif time.monotonic() - printed >= LINE:
                printed = time.monotonic()
                print(now.line(), flush=True)
            time.sleep(look)
    except KeyboardInterrupt:
        print("\nthe sweep goes on" if terminal else "the sweep goes on", file=sys.stderr)
        raise
    print(f"\r\x1b[K{now.line()}" if terminal else now.line(), flush=True)
    return now


def _patient(read: Callable[[], SweepStatus]) -> Callable[[], SweepStatus]:
    """Reads again while a cluster that has answered before is away for a short time."""

    def patiently() -> SweepStatus:
        until = time.monotonic() + AWAY
        while True:
            try:
                return read()
            except UnreachableError:
                if time.monotonic() >= until:
                    raise
                time.sleep(FAR_LOOK)

    return patiently


# --------------------------------------------------------------------------- pause and stop


@verbs.command()
@plain_errors
def pause(
    sweep: Sweep,
    folder: Home = None,
    timeout: Timeout = 60.0,
    address: Far = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """End a sweep for now: everything is kept, its workers are free, `resume` goes on."""
    _ask(sweep, "pause", folder, timeout, address, insecure, as_json)


@verbs.command()
@plain_errors
def stop(
    sweep: Sweep,
    folder: Home = None,
    timeout: Timeout = 60.0,
    address: Far = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """End a sweep: everything is kept, the map is drawn from what there is."""
    _ask(sweep, "stop", folder, timeout, address, insecure, as_json)


def _ask(
    sweep: str,
    request: str,
    folder: Path | None,
    timeout: float,
    address: str | None,
    insecure: bool,
    as_json: bool,
) -> None:
    if not (timeout > 0 and math.isfinite(timeout)):
        raise InputError([Mistake("--timeout", timeout, "seconds > 0", "leave it out for 60")])
    if address:
        cluster = _cluster(address, insecure)
        found = cluster.find(sweep)
        said = cluster.ask(found, request, timeout)
        found = cluster.find(found.hash)
    else:
        from sweeps.status import ask

        found, said = ask(find_here(sweep, folder), request, timeout)
    print(json.dumps(found.to_dict()) if as_json else said)


# --------------------------------------------------------------------------- submit


@verbs.command()
@plain_errors
def submit(
    spec: SpecPath,
    address: Annotated[
        str, typer.Option(help="Dashboard of the cluster, such as http://localhost:8265.")
    ],
    override: Overrides = None,
    tasks: TaskFiles = None,
    insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Run a sweep on a cluster, which goes on when this machine is closed.

    The spec is checked here first; it travels with the code of stabmap. Passwords do not travel:
    what the sweep needs belongs into the environment of the cluster's nodes.
    """
    from sweeps.access import head_url

    head_url(address)
    loaded = read_spec(spec, override, tasks)
    cluster = _cluster(address, insecure)
    sent = cluster.submit(loaded)
    for note in loaded.notes:
        print(f"note: {note}", file=sys.stderr)
    if known := [name for name in MLFLOW if os.environ.get(name)]:
        kept = f"{', '.join(known)} of this machine {'is' if len(known) == 1 else 'are'} not sent"
        print(f"note: {kept}; the cluster's nodes use their own", file=sys.stderr)
    _sent(sent, cluster, insecure, as_json)


def _sent(sent: SweepStatus, cluster: Cluster, insecure: bool, as_json: bool) -> None:
    """The id of the job, and what may be done with it."""
    if as_json:
        facts = {"submission": sent.job, "spec": sent.hash, "title": sent.title}
        print(json.dumps(facts | {"points": sent.limit, "address": cluster.address}))
        return
    print(f"submitted {sent.job}")
    last = ["--address", cluster.address, *(["--insecure"] if insecure else [])]
    for verb in ("watch", "pause", "resume", "stop"):
        print(f"{verb:<9} {shlex.join(['stabmap', verb, sent.hash, *last])}")


def resume_job(sweep: str, address: str, insecure: bool, as_json: bool) -> None:
    """Go on with a sweep of a cluster, as a job there."""
    cluster = _cluster(address, insecure)
    _sent(cluster.resume(cluster.find(sweep)), cluster, insecure, as_json)


# --------------------------------------------------------------------------- doctor


def print_nodes(address: str, insecure: bool, folder: Path | None, as_json: bool) -> None:
    """Examine every node of a cluster; the exit code is 1 where something is wrong."""
    if "://" in address:
        report = _examined_there(address, insecure, folder)
    else:
        report = _examined(address, insecure, folder)
    if as_json:
        print(json.dumps(report))
    else:
        _print_report(report)
    if report["problems"]:
        raise typer.Exit(1)


def _examined(address: str, insecure: bool, folder: Path | None) -> dict[str, Any]:
    """What is found from a machine of the cluster."""
    from analysis.load import home
    from sweeps.access import check_access
    from sweeps.health import Node, examine, judge, judge_mlflow

    check_access(address, insecure)
    from sweeps.cluster import ask_nodes

    place = str(home() if folder is None else folder)
    here = examine(place)
    nodes = [
        Node(a.node, a.gpus, a.found, a.error, a.skew, a.within)
        for a in ask_nodes(address, examine, [place])
    ]
    return _as_report(nodes, judge(nodes, here, insecure) + judge_mlflow(None))


def _as_report(nodes: Sequence[Node], problems: Sequence[Problem]) -> dict[str, Any]:
    from dataclasses import asdict

    return {"nodes": list(map(asdict, nodes)), "problems": list(map(asdict, problems))}


def _examined_there(address: str, insecure: bool, folder: Path | None) -> dict[str, Any]:
    """What a job on the head of the cluster finds."""
    cluster = _cluster(address, insecure)
    words = ["doctor", "--address", "auto", "--json", *(["--insecure"] if insecure else [])]
    words += ["--folder", str(folder)] if folder else []
    done = cluster.helper(words, 180.0)
    for line in reversed(done.log.splitlines()):
        if line.startswith('{"nodes"'):
            report: dict[str, Any] = json.loads(line)
            return report
    raise cluster.failure(done)


def _print_report(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = ("python", "torch", "ray", "driver", "stabmap")
    table = Table(box=None, pad_edge=False)
    for name in ("node", *columns, "GPUs", "clock"):
        table.add_column(name)
    for node in report["nodes"]:
        found = node["found"] or {}
        gpus = ", ".join(found.get("gpus", ())) or "none"
        ahead = f"{node['skew']:+.3f} s" if found else ""
        versions = [found.get(name) or "" for name in columns]
        table.add_row(*map(Text, [node["name"], *versions, gpus if found else "", ahead]))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    for problem in report["problems"]:
        print(f"problem: {problem['node']}: {problem['what']}; {problem['remedy']}")
    if not report["problems"]:
        print("nothing is wrong")
