"""A sweep on one page: what was swept, what was found, how sure it is, how to repeat it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from analysis.boundary import LINES
from analysis.document import (
    Block,
    Code,
    Heading,
    Items,
    Paragraph,
    Picture,
    Table,
    as_html,
    as_markdown,
)
from analysis.map import REGIMES, StabilityMap
from analysis.plot import plot_map
from analysis.quality import BOX, box_points
from analysis.tracking import Tracking
from trainables.domain import AXIS_NAMES, Axis, InputError, Mistake

#: Endings of a report's file.
ENDINGS = (".html", ".md")
#: Confidence of what is reported, and what counts as sure on the map.
CONFIDENCE = 0.95
SURE = 0.8
#: Places along every other axis, in unit coordinates.
PLACES = (0.0, 0.5, 1.0)
#: Tags of the parent run that say where a result comes from.
TAGS = (
    "git_commit", "device", "hardware", "data_hash", "python", "torch", "ray", "optuna", "mlflow",
    "numpy",
)  # fmt: skip
#: Of the training, what a short description says.
DESCRIBED = ("optimiser", "momentum", "stabiliser", "steps", "dtype", "device", "ks", "seeds")


@dataclass(frozen=True)
class Source:
    """What a report says beside what the map holds.

    Args:
        sweep: how commands name the sweep.
        tracking: what MLflow knows of it.
        data: what is known of the data, in a sentence, such as what they stand in for.
    """

    sweep: str = "SWEEP"
    tracking: Tracking = field(default_factory=Tracking)
    data: str = "Whether the data stand in for others is not known."


#: Of a map alone.
NOT_KNOWN = Source()


def about_data(stand_in: str | None) -> str:
    """What a task's data are, in a sentence."""
    if stand_in is None:
        return "The data are the task's own: they stand in for no others."
    return f"The data are a stand-in for {stand_in}."


def write_report(
    stability_map: StabilityMap,
    path: str | Path,
    source: Source = NOT_KNOWN,
    picture: Path | None = None,
) -> Path:
    """Write a report of a sweep.

    Args:
        stability_map: what was found.
        path: file to write; its ending, .html or .md, decides the form. HTML holds the picture.
        source: what is known of the sweep beside its map.
        picture: the map's picture, if it is there already (PNG); None draws it.

    Returns:
        The path.

    Raises:
        InputError: another ending, or the file cannot be written.
    """
    target = Path(path).expanduser()
    ending = target.suffix.lower()
    if ending not in ENDINGS:
        law, remedy = "is no report that can be written", f"end it in {' or '.join(ENDINGS)}"
        raise InputError([Mistake("path", str(path), law, remedy)])
    blocks = report(stability_map, source, ending == ".html", picture)
    text = as_markdown(blocks) if ending == ".md" else as_html(blocks, _title(stability_map))
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        law = f"cannot be written ({error.strerror or error})"
        remedy = "choose a folder that exists and that you may write to"
        raise InputError([Mistake("path", str(path), law, remedy)]) from error
    return target


def report(
    stability_map: StabilityMap,
    source: Source = NOT_KNOWN,
    pictures: bool = True,
    picture: Path | None = None,
) -> list[Block]:
    """The report's parts, in order."""
    free = [axis for axis in stability_map.axes if axis.free]
    return [
        Heading(_title(stability_map), 1),
        Paragraph(_summary(stability_map)),
        *([_picture(stability_map, picture)] if free and pictures else []),
        *_swept(stability_map),
        *_found(stability_map),
        *_trust(stability_map),
        *_uncertain(stability_map, source),
        *_provenance(stability_map, source),
        *_repeat(stability_map, source),
    ]


def description(stability_map: StabilityMap, source: Source = NOT_KNOWN) -> str:
    """What was swept, what was found and what is uncertain, in short, as Markdown."""
    about = stability_map.about
    parts = [f"{axis.name} {_range(axis)}" for axis in stability_map.axes]
    training = ", ".join(f"{name} {_words(about['training'][name])}" for name in DESCRIBED)
    search = ", ".join(f"{k} {_words(v)}" for k, v in about["search"].items() if v is not None)
    return as_markdown(
        [
            Paragraph(_summary(stability_map)),
            Heading("What was swept"),
            Items([f"task: {about['task']['name']}", *parts, training, f"search: {search}"]),
            *_found(stability_map),
            *_uncertain(stability_map, source),
        ]
    )


def _title(stability_map: StabilityMap) -> str:
    return f"Stability of {stability_map.about['task']['name']}"


def _summary(stability_map: StabilityMap) -> str:
    counts = ", ".join(f"{count} {regime}" for regime, count in stability_map.counts().items())
    text = f"{len(stability_map.frame)} points were trained: {counts}."
    free = [axis for axis in stability_map.axes if axis.free]
    if free:
        text += f" About {stability_map.quality.misclassified:.1%} of the map may be wrong"
        audit = stability_map.quality.audit
        text += f"; an audit bounds it by {audit.bound:.1%}." if audit else "; no audit checked it."
    return text


def _picture(stability_map: StabilityMap, drawn: Path | None) -> Picture:
    with tempfile.TemporaryDirectory() as folder:
        content = (drawn or plot_map(stability_map, Path(folder) / "map.png")).read_bytes()
    address = f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
    return Picture(address, f"Map of the regimes: {_summary(stability_map)}")


# --------------------------------------------------------------------------- what was swept


def _swept(stability_map: StabilityMap) -> Iterator[Block]:
    about = stability_map.about
    task = {f"task: {key}": value for key, value in about["task"].items() if key != "name"}
    yield Heading("What was swept")
    yield Table((), [(axis.name, _range(axis)) for axis in stability_map.axes])
    shown = {"task": about["task"]["name"], **task, **about["training"]}
    shown |= {f"search: {key}": value for key, value in about["search"].items()}
    yield Table((), [(key, _words(value)) for key, value in shown.items() if value is not None])


def _range(axis: Axis) -> str:
    if not axis.free:
        return f"{axis.value:g}, fixed"
    return f"{axis.low:g} to {axis.high:g}, {axis.scale}{', or 0' if axis.zero else ''}"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        first, *rest = (_words(v) if k == "name" else f"{k} {_words(v)}" for k, v in value.items())
        return f"{first} ({', '.join(rest)})" if rest else first
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)


# --------------------------------------------------------------------------- what was found


def _found(stability_map: StabilityMap) -> Iterator[Block]:
    frame, counts = stability_map.frame, stability_map.counts()
    yield Heading("What was found")
    reasons = {name: frame.loc[frame["regime"] == name, "reason"] for name in REGIMES}
    rows = [
        (name, str(counts[name]), ", ".join(f"{r} {n}" for r, n in found.value_counts().items()))
        for name, found in reasons.items()
    ]
    yield Table(("regime", "points", "because"), rows)
    free = [axis for axis in stability_map.axes if axis.free]
    if not free:
        return
    along, *others = free
    yield Paragraph(
        f"Along {along.name}, at a few places. Up to the largest stable value training is "
        f"stable with probability {CONFIDENCE:.0%} or more; boundaries come with the interval in "
        f"which the model has them with {CONFIDENCE:.0%}."
    )
    places = list(itertools.product(*(_places(axis, len(others)) for axis in others)))
    head = [*(a.name for a in others), f"largest stable {along.name}", "stable ends", "divergence"]
    limits = {
        kind: stability_map.boundary(kind, confidence=CONFIDENCE)
        for kind in ("stable", "divergent")
    }
    table: list[tuple[str, ...]] = []
    for place in places:
        held = dict(zip((axis.name for axis in others), place, strict=True))
        largest = stability_map.max_stable(along.name, confidence=CONFIDENCE, **held)
        sure = f"{largest:.3g}" if largest is not None else "none"
        crossings = [_crossings(limits[kind], along, others, held) for kind in limits]
        table.append((*(f"{value:.3g}" for value in place), sure, *crossings))
    yield Table(head, table)


def _places(axis: Axis, others: int) -> list[float]:
    """A few values, all of them among those where `boundary` looks."""
    steps = LINES[others] - 1
    units = [round(unit * steps) / steps for unit in PLACES]
    return [*([0.0] if axis.zero else []), *map(float, axis.from_unit(np.array(units)))]


def _crossings(limits: Any, along: Axis, others: Sequence[Axis], held: Mapping[str, float]) -> str:
    """A boundary at a place: each crossing with its interval."""
    here = np.ones(len(limits), dtype=bool)
    for axis in others:
        distance = axis.to_unit(limits[axis.name]) - axis.to_unit(held[axis.name])
        here &= np.abs(distance) < 1e-6
    found = []
    for row in limits[here].to_dict("records"):
        low = f"{row['low']:.3g}" if np.isfinite(row["low"]) else "below the range"
        high = f"{row['high']:.3g}" if np.isfinite(row["high"]) else "beyond the range"
        found.append(f"{row[along.name]:.3g} ({low} to {high})")
    return "; ".join(found) or "not in the range"


# --------------------------------------------------------------------------- how sure it is


def _trust(stability_map: StabilityMap) -> Iterator[Block]:
    yield Heading("How good the map is")
    if not any(axis.free for axis in stability_map.axes):
        yield Paragraph("A single point: there is no map to be wrong.")
        return
    notes = stability_map.quality.notes
    yield Items([t for t in str(stability_map.quality).splitlines() if t not in notes])
    yield Paragraph(
        "The expected share is the model's own estimate, good to a factor of two or three. An "
        "audit's bound does not rest on the model: its points are random, and were not used to "
        "draw the map that they check."
    )


def _uncertain(stability_map: StabilityMap, source: Source) -> Iterator[Block]:
    frame = stability_map.frame
    split = sum((frame[f"replicates_{regime}"] > 0).astype(int) for regime in REGIMES) > 1
    single = frame["replicates"] == 1
    found = [*stability_map.quality.notes] if len(frame) else []
    if any(axis.free for axis in stability_map.axes):
        box = box_points(stability_map.axes, BOX)
        chances = stability_map.classify(**dict(zip(AXIS_NAMES, box.T, strict=True)))
        pale = np.max([chances[name] for name in REGIMES], axis=0) < SURE
        found.append(f"In {pale.mean():.1%} of the box no regime has {SURE:.0%}: pale on the map.")
    found.append(
        f"{int(split.sum())} of {int((~single).sum())} points with replicates have replicates in "
        f"different regimes; {int(single.sum())} points were trained once."
    )
    training = stability_map.about["training"]
    found.append(
        f"All of it is for {training['steps']} steps in {training['dtype']}: longer trainings, "
        "other precisions and other data may lie elsewhere."
    )
    yield Heading("What is uncertain")
    yield Items([*found, source.data])


# --------------------------------------------------------------------------- where it comes from


def spec_hash(about: Mapping[str, Any]) -> str:
    """The hash of the spec that a map was made from."""
    text = json.dumps(dict(about), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _provenance(stability_map: StabilityMap, source: Source) -> Iterator[Block]:
    about, training = stability_map.about, stability_map.about["training"]
    rows = [
        ("spec hash", spec_hash(about)),
        ("MLflow run", source.tracking.sweep or "not known"),
        ("stabmap of the trainings", str(about["stabmap"])),
        ("stabmap of this report", version("stabmap")),
        ("seeds", f"{training['seeds']} a point, from seed {training['seed']}"),
        ("k", _words(training["ks"])),
    ]
    tags = {"device": training["device"], **source.tracking.tags}
    rows += [(name.replace("_", " "), str(tags.get(name, "not known"))) for name in TAGS]
    if "source" in about:
        rows.append(("hash of the task's file", str(about["source"])))
    rows.append(("data", source.data))
    yield Heading("Provenance")
    yield Table((), rows)
    if not source.tracking.tags:
        yield Paragraph("MLflow was not asked, or does not know this sweep: versions are missing.")


def spec_of(stability_map: StabilityMap) -> dict[str, Any]:
    """A spec that asks for the same points, as far as a map knows it."""
    about = stability_map.about
    frame, training = stability_map.frame, about["training"]
    axes = {
        name: axis["value"]
        if axis["scale"] == "fixed"
        else {k: v for k, v in axis.items() if v is not None and v is not False}
        for name, axis in about["axes"].items()
    }
    search = {key: value for key, value in about["search"].items() if value is not None}
    if not about["search"].get("tolerance"):
        search["audit"] = int((frame["audit"] > 0).sum())
    trainings = math.ceil(frame["replicates"].sum() / training["seeds"])
    rest = {key: value for key, value in training.items() if value is not None}
    return {
        "task": dict(about["task"]),
        "axes": axes,
        "budget": {"points": trainings},
        "search": search,
        **rest,
    }


def _repeat(stability_map: StabilityMap, source: Source) -> Iterator[Block]:
    own = ["--tasks", "FILE"] if "source" in stability_map.about else []
    named = shlex.quote(source.sweep)
    yield Heading("How to repeat it")
    yield Paragraph(
        "Keep the spec below as sweep.yaml. The same spec, version and kind of device give the "
        "same points and the same map."
    )
    yield Code(
        "\n".join(
            [
                shlex.join(["stabmap", "run", "sweep.yaml", *own]),
                f"stabmap plot {named} -O map.html",
                f"stabmap report {named} -O report.html",
                f"stabmap export {named} folder/",
            ]
        )
    )
    yield Code(yaml.safe_dump(spec_of(stability_map), sort_keys=False, default_flow_style=None))
