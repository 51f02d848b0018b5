"""What can be wrong with a node of a cluster: asked on the node, judged by whoever asked.

`examine` and what it calls travel to the nodes without the rest of stabmap, which may be missing
over there: they use the standard library, and what cannot be found is part of the answer.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainables.domain import InputError, StabmapError

#: Clocks further apart than this, in seconds, mix up the order of records.
SKEW = 1.0
#: Free space below which a disk is about to be full, in bytes.
FREE = 2**30
#: What has to be the same everywhere, and what to do where it is not.
SAME = {
    "python": "install the same Python on every node",
    "torch": "install the same requirements.txt on every node",
    "ray": "install the same requirements.txt on every node",
    "driver": "update the NVIDIA driver, or start all nodes from one image",
    "stabmap": "install the same stabmap on every node",
}
#: An MLflow run that there never is.
NO_RUN = "0" * 32


@dataclass(frozen=True)
class Problem:
    """Something wrong: where, what, and the way out."""

    node: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.node}: {self.what}; {self.remedy}"


def examine(folder: str) -> dict[str, Any]:
    """What a node has: versions, GPUs, and what it can write.

    Args:
        folder: where sweeps are kept.

    Returns:
        Plain values, for `judge`.
    """
    query = "--query-gpu=name,driver_version", "--format=csv,noheader"
    cards = [line.split(", ") for line in _output("nvidia-smi", *query).splitlines()]
    places = {"folder": Path(folder), "temp": Path(tempfile.gettempdir())}
    return {
        "python": platform.python_version(),
        "torch": _installed("torch"),
        "ray": _installed("ray"),
        "stabmap": _ours(),
        "driver": cards[0][-1] if cards else None,
        "gpus": [card[0] for card in cards],
        "usable": _usable() if cards else 0,
        "places": {name: str(place) for name, place in places.items()},
        "unwritable": {name: why for name, p in places.items() if (why := _unwritable(p))},
        "free": {name: shutil.disk_usage(_existing(p)).free for name, p in places.items()},
        "token": os.environ.get("RAY_AUTH_MODE", "").lower() == "token",
    }


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _ours() -> str | None:
    """Version and digest of the code: an editable checkout changes under one version."""
    digest = hashlib.sha256()
    for name in ("stabmap", "sweeps", "analysis", "trainables"):
        found = find_spec(name)
        if found is None or found.origin is None:
            return None
        root = Path(found.origin).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    from trainables import __version__

    return f"{__version__} ({digest.hexdigest()[:8]})"


def _usable() -> int:
    """GPUs that torch can use, asked in a new process: Ray hides them from whoever wants none."""
    seen = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    count = "import torch; print(torch.cuda.device_count())"
    counted = _output(sys.executable, "-c", count, env=seen)
    return int(counted) if counted.isdecimal() else 0


def _output(*command: str, env: dict[str, str] | None = None) -> str:
    """What a program prints; nothing where it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True, env=env
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _existing(place: Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    return next(p for p in (place, *place.parents) if p.exists())


def _unwritable(place: Path) -> str | None:
    """Why a folder cannot be written; None where it can."""
    try:
        # The only test that holds for root, for read-only mounts and for files in the way.
        tempfile.TemporaryDirectory(dir=_existing(place)).cleanup()
    except OSError as error:
        return str(error.strerror or error)
    return None


@dataclass(frozen=True)
class Node:
    """A node of a cluster and what is known of it.

    Args:
        name: as Ray knows it.
        gpus: GPUs that Ray gives out there.
        found: what `examine` returned; None where it failed.
        error: why it failed.
        skew: seconds by which its clock is ahead of ours.
        within: seconds that `skew` may be wrong by.
    """

    name: str
    gpus: float
    found: Mapping[str, Any] | None
    error: str | None = None
    skew: float = 0.0
    within: float = 0.0


def judge(nodes: Sequence[Node], here: Mapping[str, Any], insecure: bool) -> list[Problem]:
    """What is wrong with the nodes of a cluster.

    Args:
        nodes: the nodes.
        here: what `examine` returns where the sweeps' drivers run.
        insecure: whether a cluster without a token is allowed.
    """
    if not nodes:
        return [Problem("cluster", "it has no living node", "start one with ray start")]
    return [problem for node in nodes for problem in _judge(node, here, insecure)]


def _judge(node: Node, here: Mapping[str, Any], insecure: bool) -> Iterable[Problem]:
    if node.found is None:
        remedy = "install stabmap's requirements there, and see the node's log"
        yield Problem(node.name, f"it cannot be examined ({node.error})", remedy)
        return
    found = node.found
    for name, remedy in SAME.items():
        if name == "driver" and None in (found[name], here[name]):
            continue  # a head without GPUs
        if found[name] != here[name]:
            what = f"{name} {found[name] or 'is missing'}, but {here[name]} on the head"
            yield Problem(node.name, what, remedy)
    yield from _gpus(node, found)
    for place, why in found["unwritable"].items():
        what = f"cannot write {found['places'][place]} ({why})"
        remedy = "set TMPDIR there" if place == "temp" else "set STABMAP_HOME there"
        yield Problem(node.name, what, f"give it to the user that runs Ray, or {remedy}")
    for place, free in found["free"].items():
        if free < FREE:
            what = f"only {free / 2**20:.0f} MiB are free for {found['places'][place]}"
            yield Problem(node.name, what, "make space there")
    if abs(node.skew) - node.within > SKEW:
        ahead = "ahead of" if node.skew > 0 else "behind"
        what = f"its clock is {abs(node.skew):.1f} s {ahead} the head's (+- {node.within:.3f} s)"
        yield Problem(node.name, what, "run a time service there, such as chrony")
    if not found["token"] and not insecure:
        remedy = "start Ray there with RAY_AUTH_MODE=token, or allow it with --insecure"
        yield Problem(node.name, "Ray's token mode is off", remedy)


def _gpus(node: Node, found: Mapping[str, Any]) -> Iterable[Problem]:
    seen, usable = len(found["gpus"]), found["usable"]
    if usable < seen:
        what = f"torch can use {usable} of its {seen} GPUs"
        yield Problem(node.name, what, "update the NVIDIA driver to one that serves torch's CUDA")
    if seen < node.gpus:
        what = f"Ray gives out {node.gpus:g} GPUs, but the driver shows {seen}"
        yield Problem(node.name, what, "start Ray there with --num-gpus set to what there is")
    elif node.gpus < seen:
        what = f"Ray gives out {node.gpus:g} of its {seen} GPUs"
        yield Problem(node.name, what, "start Ray there without --num-gpus")


def judge_mlflow(uri: str | None) -> list[Problem]:
    """Whether MLflow can be reached from here.

    Args:
        uri: its address; None takes MLFLOW_TRACKING_URI, else the sqlite file.
    """
    from analysis.load import default_tracking_uri, load_map
    from trainables.messages import redacted

    try:
        load_map(NO_RUN, uri)
    except InputError:
        return []  # it has answered that it knows no such run
    except StabmapError as error:
        remedy = "start it, or set MLFLOW_TRACKING_URI where the sweep's driver runs"
        shown = redacted(uri or default_tracking_uri())
        return [Problem("head", f"MLflow at {shown} is out of reach ({_cause(error)})", remedy)]
    return []


def _cause(error: BaseException) -> str:
    from trainables.messages import first_line

    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {first_line(cause)}"[:160]
