"""The sweep spec: one YAML file, checked as a whole, hashed by what it asks for."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, ValidationError

from analysis.load import home
from sweeps.plain_values import plain
from sweeps.plain_yaml import DEEPEST, NotPlain, parse, read_text
from trainables import __version__
from trainables.domain import (
    AXIS_NAMES,
    Axis,
    BackendName,
    DecayName,
    DtypeName,
    EarlyEnd,
    InputError,
    Mistake,
    Point,
    Training,
    nearest,
    unknown_axis,
)
from trainables.messages import listed, redacted, shown

if TYPE_CHECKING:
    from trainables.dynamics.stabilisers import Stabiliser
    from trainables.tasks import Task
    from trainables.tasks.from_files import Source

#: One point in so many of a budget belongs to the audit, unless the spec says otherwise.
AUDIT_SHARE = 8
#: How the address of a database begins.
DATABASES = r"sqlite:///.|postgresql(\+(psycopg2|psycopg|pg8000))?://."
#: The stabiliser of a sweep whose alpha is held at 0, where each of them does nothing.
NO_STABILISER = "none"

#: Characters of a name; MLflow's databases cut longer ones.
LONGEST_TITLE = 200
#: Beyond these a sweep would fill the memory before it begins.
MOST_POINTS = 2**53
MOST_AT_ONCE = 10_000
MOST_ON_GRID = 1_000_000
#: More mistakes than these are counted instead of listed.
MOST_MISTAKES = 50

Built = TypeVar("Built")


def _seconds(value: Any) -> Any:
    """90, "90s", "5m" and "2h" as seconds."""
    units = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    found = (
        re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*([smhd]?)", value.strip())
        if isinstance(value, str)
        else None
    )
    return float(found[1]) * units[found[2]] if found else value


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _stabiliser(value: Any) -> Any:
    """Options without a name are those of the stability regulariser."""
    value = _named(value)
    return {"name": "stability", **value} if isinstance(value, dict) else value


def _method(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


def _fixed(value: Any) -> Any:
    number = isinstance(value, (int, float, str)) and not isinstance(value, bool)
    return {"value": value} if number else value


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AxisPart(_Part):
    """An axis: `0.1` (fixed), or a scale with its range."""

    scale: Literal["log", "linear", "fixed"] = "fixed"
    low: float | None = None
    high: float | None = None
    value: float | None = None
    zero: bool = False


AxisField = Annotated[AxisPart, BeforeValidator(_fixed)]


class AxesPart(_Part):
    """The three axes; alpha and weight_decay are held at 0 unless given."""

    lr: AxisField | None = None
    alpha: AxisField = AxisPart(value=0.0)
    weight_decay: AxisField = AxisPart(value=0.0)


class NamedPart(BaseModel):
    """A name and the options of what it names."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str | None = None


class SearchPart(_Part):
    """How the next points are chosen, and how the map is checked."""

    method: Literal["boundary", "tpe", "gp", "sobol", "grid"] = "boundary"
    batch: int = 8
    startup: int | None = None
    replicates: int = 3
    levels: int | dict[str, int] = 8
    start: tuple[dict[str, float], ...] = ()
    audit: int | None = None
    tolerance: float | None = None


class BudgetPart(_Part):
    """When the sweep ends: a number of points, a wall time in seconds ("90s", "5m", "2h"), both."""

    points: int | None = None
    wall_time: Annotated[float | None, BeforeValidator(_seconds)] = None


class ResourcesPart(_Part):
    """What one pack of points gets. None: as many workers as fit; a GPU where the device is one.

    `checkpoints` is a folder or address that all machines of a cluster share: a pack whose machine
    is lost goes on from there. Without it such a pack begins again.
    """

    workers: int | None = None
    cpus: float = 1.0
    gpus: float | None = None
    pack: int = 4
    checkpoints: str | None = None


class TrackingPart(_Part):
    """Where MLflow keeps the runs. None: MLFLOW_TRACKING_URI, else sqlite in the folder."""

    address: str | None = None
    experiment: str = "stabmap"


class SweepSpec(_Part):
    """Everything that a sweep is: built by `load_spec`, which checks all its laws at once.

    The fields from `ks` to `backend` are those of `Training`. What only decides where and for
    how long a sweep runs (name, budget, resources, tracking,
    database, folder) is not part of its hash: a
    sweep with a larger budget goes on with the points it has.
    """

    name: str | None = None
    task: Annotated[NamedPart, BeforeValidator(_named)] = NamedPart()
    axes: AxesPart = AxesPart()
    ks: tuple[StrictInt, ...] = (1, 3)
    seeds: int = 1
    seed: int = 0
    orders: int = 1
    steps: int = 400
    steps_at_lr: float | None = None
    schedule: Annotated[NamedPart, BeforeValidator(_named)] = NamedPart(name="constant")
    dtype: DtypeName = "float32"
    device: str = "cpu"
    optimiser: str = "sgd"
    momentum: float | None = None
    decay: DecayName | None = None
    beta2: float | None = None
    eps: float | None = None
    stabiliser: Annotated[NamedPart, BeforeValidator(_stabiliser)] = NamedPart(name="stability")
    sharpness: bool = True
    lyapunov: bool = True
    evaluate_every: int | None = None
    early: EarlyEnd = True
    backend: BackendName = "auto"
    search: Annotated[SearchPart, BeforeValidator(_method)] = SearchPart()
    budget: BudgetPart = BudgetPart()
    resources: ResourcesPart = ResourcesPart()
    tracking: TrackingPart = TrackingPart()
    database: str | None = None
    folder: str = Field(default_factory=lambda: str(home()))

    @cached_property
    def training(self) -> Training:
        """How every point is trained."""
        from trainables.options import plain_options

        named = plain_options(_get_stabiliser(**self.stabiliser.model_dump()))
        return Training(**self._settings() | {"stabiliser": named})

    def _settings(self) -> dict[str, Any]:
        """The fields of `Training` as given, the stabiliser without its defaults."""
        settings = {f.name: getattr(self, f.name) for f in fields(Training)}
        parts = ("stabiliser", "schedule")
        return settings | {name: getattr(self, name).model_dump() for name in parts}

    @cached_property
    def space(self) -> tuple[Axis, ...]:
        """The three axes, in the order lr, alpha, weight_decay."""
        return tuple(
            Axis(name=name, **getattr(self.axes, name).model_dump()) for name in AXIS_NAMES
        )

    @property
    def task_name(self) -> str:
        """Name of the task."""
        assert self.task.name is not None
        return self.task.name

    @cached_property
    def source(self) -> Source | None:
        """The file of the task, as `load_tasks` read it; None for a task that is installed."""
        from trainables.tasks.from_files import source_of

        return source_of(self.task_name)

    @property
    def task_options(self) -> dict[str, Any]:
        """The task's own options as given."""
        return dict(self.task.model_extra or {})

    @property
    def title(self) -> str:
        """The sweep's name, or its task's."""
        return self.name or self.task_name

    @property
    def stabilised(self) -> bool:
        """Whether a stabiliser acts anywhere: alpha is not held at 0."""
        alpha = self.space[AXIS_NAMES.index("alpha")]
        return alpha.free or alpha.value != 0

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on what is allowed but has no effect."""
        from trainables.options import plain_options

        notes = [*self.training.notes]
        given = self.training.stabiliser
        if not self.stabilised and given != plain_options(_get_stabiliser(NO_STABILISER)):
            name = self.stabiliser.name
            notes.append(f"stabiliser {name} does nothing at alpha 0: give axes.alpha a range")
        if self.stand_in is not None:
            notes.append(f"the data are a stand-in for {self.stand_in}")
        return tuple(notes)

    @property
    def stand_in(self) -> str | None:
        """What the data stand in for and what they are; None where they are the real thing."""
        from trainables.tasks import get_task

        return get_task(self.task_name, **self.task_options).stand_in

    @property
    def gpus(self) -> float:
        """GPUs a pack."""
        given = self.resources.gpus
        return (1.0 if self.device.startswith("cuda") else 0.0) if given is None else given

    def audit(self, size: int | None) -> int:
        """Random points at the end that check the map, for a search of so many points at most."""
        if not any(axis.free for axis in self.space):
            return 0
        if self.search.audit is not None:
            return self.search.audit
        ends = [end for end in (self.budget.points, size) if end is not None]
        return min(ends, default=0) // AUDIT_SHARE

    @cached_property
    def start(self) -> tuple[Point, ...]:
        """The points to begin with."""
        held: dict[str, float] = {a.name: a.smallest for a in self.space if not a.free}
        return tuple(Point(**{**held, **point}) for point in self.search.start)

    def resolved(self) -> dict[str, Any]:
        """The spec with all defaults filled in, as plain values; loads back to itself."""
        content: dict[str, Any] = self.model_dump(mode="json", exclude={"task", "axes"})
        content |= self._trained()
        if self.stabiliser.name == NO_STABILISER:
            content["stabiliser"] = {"name": NO_STABILISER}
        axes = {}
        for name in AXIS_NAMES:
            part = getattr(self.axes, name).model_dump(exclude_defaults=True)
            axes[name] = part["value"] if set(part) == {"value"} else part
        return {"task": self._task(), "axes": axes, **content}

    def _task(self) -> dict[str, Any]:
        """The task's name and all its options."""
        from trainables.tasks import get_task

        return {"name": self.task_name, **asdict(get_task(self.task_name, **self.task_options))}  # type: ignore[call-overload]

    def _trained(self) -> dict[str, Any]:
        """The fields of the training, the stabiliser with all its options."""
        settings: dict[str, Any] = json.loads(json.dumps(asdict(self.training)))
        return settings

    def about(self) -> dict[str, Any]:
        """What is swept, without where and for how long: this is what the hash covers.

        The stabiliser is `none` where alpha is held at 0, whatever stabiliser is named.
        """
        none = {} if self.stabilised else {"stabiliser": {"name": NO_STABILISER}}
        file = {"source": self.source.hash} if self.source else {}
        axes = {a.name: {k: v for k, v in asdict(a).items() if k != "name"} for a in self.space}
        data = {"stand_in": self.stand_in} if self.stand_in is not None else {}
        # A budget that grows begins with the same search, and its longer audit like the shorter.
        unused = {"audit"}
        unused |= set() if self.search.method == "grid" else {"levels"}
        unused |= set() if self.search.method == "boundary" else {"startup", "replicates"}
        return {
            "task": self._task(),
            "axes": axes,
            "training": self._trained() | none,
            "search": self.search.model_dump(mode="json", exclude=unused),
            "stabmap": __version__,
            **file,
            **data,
        }

    @cached_property
    def hash(self) -> str:
        """Sixteen hex digits that are equal for specs that ask for the same points."""
        text = json.dumps(self.about(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_spec(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> SweepSpec:
    """Read a spec and check all its laws.

    Args:
        source: path of a YAML file, the name of a preset, or a mapping.
        overrides: values by dotted path, such as `{"budget.points": 64}`.

    Returns:
        The spec.

    Raises:
        InputError: with every mistake that was found, each with field, value, law and remedy.
    """
    given, echoes = plain(source if isinstance(source, Mapping) else _read(source))
    mistakes = [m for path, v in (overrides or {}).items() for m in _override(given, path, v)]
    raw, found = plain(given)
    mistakes = [*echoes, *mistakes, *found]
    left_out = {".".join(m.field.split(".")[:2]) for m in (*echoes, *found)}
    spec, found, unread = _parse(raw)
    unread |= left_out
    mistakes += found
    # A law about a part of which something could not be read would only echo that mistake.
    laws = (m for m in _laws(spec) if not any(_related(m.field, p) for p in unread))
    mistakes += [_as_written(m, raw) for m in laws]
    if len(mistakes) > MOST_MISTAKES:
        law, remedy = f"only the first {MOST_MISTAKES} are shown", "mend these first"
        more = Mistake("spec", f"{len(mistakes)} mistakes", law, remedy)
        mistakes = [*mistakes[:MOST_MISTAKES], more]
    if mistakes:
        raise InputError(mistakes)
    spec.source  # noqa: B018 - as it is now: the file may be loaded again before the sweep begins
    return spec


def _related(field: str, other: str) -> bool:
    """Whether one field is the other or lies in it."""
    field = field.replace("[", ".").replace("]", "")
    return (field + ".").startswith(other + ".") or (other + ".").startswith(field + ".")


def _as_written(mistake: Mistake, raw: Mapping[str, Any]) -> Mistake:
    """With `axes.lr` for `axes.lr.value`, where the axis was written as a number."""
    axes, name, last = [*mistake.field.split("."), "", ""][:3]
    if (axes, last) == ("axes", "value") and not isinstance(raw["axes"][name], Mapping):
        return replace(mistake, field=f"axes.{name}")
    return mistake


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """`["a.b=c"]` as `{"a.b": c}`, the values read as YAML.

    Raises:
        InputError: a text has no "=".
    """
    overrides: dict[str, Any] = {}
    mistakes = []
    for text in texts:
        path, separator, value = text.partition("=")
        if not separator or not path.strip():
            mistakes.append(
                Mistake("-o", text, "an override reads path=value", "write -o budget.points=64")
            )
            continue
        try:
            overrides[path.strip()] = parse(value)
        except NotPlain as error:
            law = "the value is no YAML" if error.__cause__ else f"the value: {error.law}"
            mistakes.append(Mistake("-o", text, law, "quote it"))
    if mistakes:
        raise InputError(mistakes)
    return overrides


def preset_names() -> tuple[str, ...]:
    """Names of the presets that come along."""
    folder = resources.files("sweeps") / "presets"
    return tuple(sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml")))


def _read(source: str | Path) -> dict[str, Any]:
    try:
        if not os.path.isfile(os.path.expanduser(source)) and str(source) in preset_names():
            text = (resources.files("sweeps") / "presets" / f"{source}.yaml").read_text("utf-8")
        else:
            text = read_text(source)
        raw = parse(text)
    except OSError as error:
        law = "cannot be read as a file"
        guess = nearest(str(source), preset_names())
        meant = f"did you mean {guess}? " if guess else ""
        known = listed(preset_names(), "README.md")
        remedy = f"{meant}give the path of a YAML file, or a preset: {known}"
        raise InputError([Mistake("spec", str(source), law, remedy)]) from error
    except NotPlain as error:
        raise InputError([Mistake("spec", str(source), error.law, error.remedy)]) from error
    if not isinstance(raw, dict):
        law, remedy = "holds no mapping", "begin with task: and axes:"
        raise InputError([Mistake("spec", str(source), law, remedy)])
    return raw


def _override(raw: dict[str, Any], path: str, value: Any) -> list[Mistake]:
    *parents, last = path.split(".")
    if not all((*parents, last)) or len(parents) >= DEEPEST:
        law, remedy = "a path is names with single dots between", "write -o budget.points=64"
        return [Mistake(path, value, law, remedy)]
    place = raw
    for depth, parent in enumerate(parents):
        inner = place.get(parent)
        if inner is None:
            inner = place[parent] = {}
        elif parent in ("task", "stabiliser", "schedule") and isinstance(inner, str):
            inner = place[parent] = {"name": inner}
        if not isinstance(inner, dict):
            here = ".".join(parents[: depth + 1])
            return [
                Mistake(
                    path,
                    value,
                    f"{here} is {shown(inner)}, which has no parts",
                    f"override {here} as a whole",
                )
            ]
        place = inner
    place[last] = value
    return []


def _parse(raw: Mapping[str, Any]) -> tuple[SweepSpec, list[Mistake], set[str]]:
    """The spec without the entries that cannot be read, their mistakes, and where they stand."""
    try:
        return SweepSpec(**raw), [], set()
    except ValidationError as error:
        rest = copy.deepcopy(dict(raw))
        found: dict[str, Mistake] = {}
        unread = set()
        for detail in error.errors():
            place = _place(detail["loc"], raw)
            field = ".".join(place)
            found.setdefault(field, _unreadable(detail, place))
            if detail["type"] != "extra_forbidden":
                # What remains of an axis is judged only when all of it can be read.
                unread.add(".".join(place[:2]) if place[0] == "axes" else field)
            _drop(rest, place)
        # A choice of types gives a mistake a type: the one that came furthest says most.
        parts = {f[:i] for f in found for i, c in enumerate(f) if c == "."}
        mistakes = [m for f, m in found.items() if f not in parts]
        spec, more, parts = _parse(rest)
        return spec, [*mistakes, *more], unread | parts


def _place(loc: Iterable[int | str], raw: Any) -> list[str]:
    """Where a mistake stands in the YAML: pydantic's own names of branches are left out."""
    place = []
    for part in loc:
        if isinstance(raw, dict) and part in raw:  # noqa: SIM114
            raw = raw[part]
        elif isinstance(raw, list) and isinstance(part, int):
            raw = raw[part]
        else:
            continue
        place.append(str(part))
    return place


def _drop(raw: Any, place: list[str]) -> None:
    """Remove the entry at a place; an entry of a list goes with its list."""
    *parents, last = place
    for key in parents:
        if key not in raw:
            return
        if not isinstance(raw[key], dict):
            del raw[key]
            return
        raw = raw[key]
    raw.pop(last, None)


def _unreadable(detail: Any, place: list[str]) -> Mistake:
    field = ".".join(place)
    if detail["type"] == "extra_forbidden":
        known = _known_keys(place[:-1])
        guess = nearest(place[-1], known)
        meant = f"did you mean {guess}? " if guess else ""
        return Mistake(
            field, detail["input"], "no such key", f"{meant}known here: {', '.join(known)}"
        )
    law = re.sub(r" or instance of \w+", "", detail["msg"]).replace("valid dictionary", "mapping")
    law = law.replace("valid tuple", "list").replace("Input should be", "must be")
    short = {"task": "name", "stabiliser": "name", "schedule": "name"} | {
        f"axes.{a}": "number" for a in AXIS_NAMES
    }
    if field in short:
        law = re.sub("a (valid )?mapping", f"a {short[field]} or a mapping", law)
    return Mistake(field, detail["input"], law, f"write {_example(place)}")


_AN_AXIS = {"": "0.1, or {scale: log, low: 0.01, high: 10}", "scale": "log", "low": "0.01"}
_AN_AXIS |= {"high": "10", "value": "0.1", "zero": "true"}

#: What may be written in each place.
EXAMPLES = {
    "name": "my-sweep",
    "task": "mnist-mlp, or {name: mnist-mlp, samples: 500}",
    "axes": "{lr: {scale: log, low: 0.01, high: 10}}",
    **{f"axes.{axis}.{key}".rstrip("."): v for axis in AXIS_NAMES for key, v in _AN_AXIS.items()},
    "ks": "[1, 3]",
    "seeds": "1",
    "seed": "0",
    "orders": "1",
    "steps": "400",
    "steps_at_lr": "0.1",
    "schedule": "cosine, or {name: step-decay, every: 0.2, gamma: 0.1}",
    "dtype": "float32",
    "device": "cpu",
    "optimiser": "sgd",
    "momentum": "0.9",
    "decay": "coupled",
    "beta2": "0.999",
    "eps": "1e-8",
    "stabiliser": "clip-norm, or {name: stability, anchor: epoch}, or none",
    "sharpness": "true",
    "lyapunov": "true",
    "evaluate_every": "20",
    "early": "true, or base",
    "backend": "auto",
    "search": "boundary, or {method: boundary, batch: 8}",
    "search.method": "boundary",
    "search.batch": "8",
    "search.startup": "16",
    "search.replicates": "3",
    "search.audit": "16",
    "search.tolerance": "0.05",
    "search.levels": "8, or {lr: 8, weight_decay: 4}",
    "search.start": "[{lr: 0.1, weight_decay: 0}]",
    "budget": "{points: 64}",
    "budget.points": "64",
    "budget.wall_time": "10m",
    "resources": "{workers: 2}",
    "resources.workers": "2",
    "resources.cpus": "1",
    "resources.gpus": "0.5",
    "resources.pack": "4",
    "resources.checkpoints": "/shared/checkpoints",
    "tracking": "{experiment: stabmap}",
    "tracking.address": "http://localhost:5000",
    "tracking.experiment": "stabmap",
    "database": "postgresql://host/stabmap",
    "folder": "~/.stabmap",
}


def _example(place: list[str]) -> str:
    """What may be written there, or around it."""
    while ".".join(place) not in EXAMPLES:
        place = place[:-1]
    return f"{place[-1]}: {EXAMPLES['.'.join(place)]}"


def _known_keys(place: list[str]) -> list[str]:
    model: type[BaseModel] = SweepSpec
    parts: dict[str, type[BaseModel]] = {
        "axes": AxesPart,
        "search": SearchPart,
        "budget": BudgetPart,
        "resources": ResourcesPart,
        "tracking": TrackingPart,
        "lr": AxisPart,
        "alpha": AxisPart,
        "weight_decay": AxisPart,
    }
    for part in place:
        model = parts.get(part, model)
    return list(model.model_fields)


# --------------------------------------------------------------------------- laws


def _laws(spec: SweepSpec) -> Iterable[Mistake]:
    training, wrong = _training_of(spec)
    yield from wrong
    axes = {axis.name: axis for axis in (yield from _axes_laws(spec))}
    task, wrong_task = _task_of(spec)
    yield from wrong_task
    if training is not None and "lr" in axes and not any(m.field == "ks" for m in wrong):
        yield from _underflow(axes["lr"], training)
        yield from _lengths(axes["lr"], training)
    if training is not None and task is not None:
        from trainables.evaluate import order_mistakes

        yield from order_mistakes(task, training)
        yield from _optimiser_laws(task, training, axes)
    if "alpha" in axes:
        yield from _stabiliser_laws(spec, axes["alpha"], task, training, [*wrong, *wrong_task])
    yield from _search_laws(spec, list(axes.values()))
    yield from _budget_laws(spec)
    yield from _name_laws(spec)
    yield from _database_laws(spec)
    yield from _resource_laws(spec)


def _name_laws(spec: SweepSpec) -> Iterable[Mistake]:
    """Names that become those of runs and files: none may lead out of a folder."""
    names = {"name": spec.name, "tracking.experiment": spec.tracking.experiment}
    for field, name in names.items():
        if name is None or (field == "name" and not name):
            continue  # the task's name is taken
        if not 0 < len(name) <= LONGEST_TITLE:
            law = f"1 to {LONGEST_TITLE} characters"
            yield Mistake(field, name, law, f"write {_example(field.split('.'))}")
        elif ".." in re.split(r"[/\\]", name) or (field == "name" and re.search(r"[/\\]", name)):
            law = "a name is no path" if field == "name" else "no part of the name is .."
            yield Mistake(field, name, law, f"write {_example(field.split('.'))}")
    if not spec.folder or os.path.expanduser(spec.folder).startswith("~"):
        law = "names no folder" if not spec.folder else "there is no such user"
        yield Mistake("folder", spec.folder, law, "write the path of a folder, or leave it out")


def _database_laws(spec: SweepSpec) -> Iterable[Mistake]:
    if spec.database is not None:
        yield from database_mistakes("database", spec.database)


def database_mistakes(field: str, address: str) -> Iterable[Mistake]:
    """What is wrong with the address of a database."""
    if not re.match(DATABASES, address):
        law = "is no address of a sqlite file or of PostgreSQL (drivers: psycopg2, psycopg, pg8000)"
        remedy = "write sqlite:////path/file.db or postgresql://user@host/name"
        yield Mistake(field, redacted(address), law, remedy)


def _axes_laws(spec: SweepSpec) -> Any:
    """Yield the axes' mistakes; return the axes that have none."""
    axes = []
    for name in AXIS_NAMES:
        part = getattr(spec.axes, name)
        if part is None:
            yield Mistake(
                f"axes.{name}",
                None,
                "every sweep needs a learning rate",
                "write lr: {scale: log, low: 0.01, high: 10}",
            )
            continue
        try:
            axes.append(Axis(name=name, **part.model_dump()))
        except InputError as error:
            yield from error.mistakes
    return axes


def _task_of(spec: SweepSpec) -> tuple[Task | None, list[Mistake]]:
    from trainables.tasks import get_task, task_names

    name = spec.task.name
    if name is None:
        known = listed(task_names(), "stabmap tasks")
        return None, [Mistake("task", None, "every sweep needs a task", f"use one of {known}")]
    if ".py:" in name:  # a spec may come from anybody, and reading it must not execute a file
        path, _, inner = name.rpartition(":")
        remedy = f"write task: {inner}, and name the file on the command line: --tasks {path}"
        return None, [Mistake("task", name, "a spec names no file", remedy)]
    return _built(lambda **options: get_task(name, **options), spec.task_options, "task.")


def _training_of(spec: SweepSpec) -> tuple[Training | None, list[Mistake]]:
    from trainables.options import plain_options

    settings, name = spec._settings(), spec.stabiliser.name
    if name is None:
        return _built(Training, settings)
    stabiliser, wrong = _built(
        lambda **options: _get_stabiliser(name, **options),
        dict(spec.stabiliser.model_extra or {}),
        "stabiliser.",
    )
    settings["stabiliser"] = {"name": name} if stabiliser is None else plain_options(stabiliser)
    training, others = _built(Training, settings)
    return training, [*wrong, *others]


def _get_stabiliser(name: str, **options: Any) -> Stabiliser:
    """A stabiliser by its name; for `none` the default one, which is idle at alpha 0 like all."""
    from trainables.dynamics.stabilisers import get_stabiliser

    if name != NO_STABILISER:
        return get_stabiliser(name, **options)
    if options:
        law, remedy = "none has no options", "leave it out, or name a stabiliser"
        raise InputError([Mistake(f"stabiliser.{k}", v, law, remedy) for k, v in options.items()])
    return get_stabiliser("stability")


def _built(
    build: Callable[..., Built], options: Mapping[str, Any], prefix: str = ""
) -> tuple[Built | None, list[Mistake]]:
    """What comes of the options that obey their laws, so that others can be checked with it.

    Args:
        build: raises `InputError`.
        options: its keyword arguments.
        prefix: what stands before an option in the field of a mistake.

    Returns:
        What was built, or None where no option is to blame; and the mistakes with all options. One
        that appears only because others were left out would be an echo.
    """
    first: list[Mistake] | None = None
    while True:
        try:
            return build(**options), first or []
        except InputError as error:
            first = list(error.mistakes) if first is None else first
            blamed = {m.field.removeprefix(prefix).partition(".")[0] for m in error.mistakes}
        rest = {key: value for key, value in options.items() if key not in blamed}
        if len(rest) == len(options):
            return None, first
        options = rest


def _underflow(lr: Axis, training: Training) -> Iterable[Mistake]:
    if lr.smallest < training.smallest_lr:
        field = "axes.lr.low" if lr.free else "axes.lr"
        yield Mistake(
            field,
            lr.smallest,
            f"lr / {max(training.ks)} underflows {training.dtype}",
            f"use lr >= {training.smallest_lr:.3g}, or dtype: float64",
        )


def _lengths(lr: Axis, training: Training) -> Iterable[Mistake]:
    """Whether a training has a fair number of updates at both ends of the axis."""
    if not lr.free:
        yield from training.steps_mistakes("axes.lr", lr.smallest)
        return
    assert lr.low is not None and lr.high is not None
    for end in ("low", "high"):
        yield from training.steps_mistakes(f"axes.lr.{end}", getattr(lr, end))


def _optimiser_laws(task: Task, training: Training, axes: Mapping[str, Axis]) -> Iterable[Mistake]:
    """Whether an optimiser of PyTorch's own exists and takes what it will be given."""
    from trainables.dynamics.torch_optimiser import optimiser_mistakes

    def largest(name: str, fallback: float) -> float:
        axis = axes.get(name)
        return fallback if axis is None else (axis.high or axis.value or 0.0)

    point = Point(lr=largest("lr", 1.0), weight_decay=largest("weight_decay", 0.0))
    for mistake in optimiser_mistakes(task, training, point):
        on_axis = mistake.field in AXIS_NAMES
        yield replace(mistake, field=f"axes.{mistake.field}") if on_axis else mistake


def _stabiliser_laws(
    spec: SweepSpec,
    alpha: Axis,
    task: Task | None,
    training: Training | None,
    known: list[Mistake],
) -> Iterable[Mistake]:
    """Whether the stabiliser can act; `known` are the mistakes of task and training."""
    from trainables.dynamics.stabilisers import strength_mistakes

    strongest = (alpha.high if alpha.free else alpha.value) or 0.0
    if strongest == 0:
        return
    if spec.stabiliser.name == NO_STABILISER:
        law, remedy = "alpha > 0 needs one", "hold axes.alpha at 0, or name a stabiliser"
        yield Mistake("stabiliser", NO_STABILISER, law, remedy)
        return
    if task is None or training is None or any(m.field == "stabiliser" for m in known):
        return
    field = "axes.alpha.high" if alpha.free else "axes.alpha"
    # With a default in the place of a mistake only these two say what holds without it.
    certain = ("stabiliser.layers", field)
    for mistake in strength_mistakes(field, strongest, task, training):
        if not known or mistake.field in certain:
            yield mistake


def _search_laws(spec: SweepSpec, axes: list[Axis]) -> Iterable[Mistake]:
    search = spec.search
    yield from _count("search.batch", search.batch, "points a round", "use 8")
    yield from _count("search.startup", search.startup, "points", "leave it out")
    yield from _count("search.replicates", search.replicates, "trainings a point", "use 3")
    yield from _audit_laws(spec)
    levels = search.levels if isinstance(search.levels, dict) else {"lr": search.levels}
    for name, count in levels.items():
        field = f"search.levels.{name}" if isinstance(search.levels, dict) else "search.levels"
        if name not in AXIS_NAMES:
            yield unknown_axis(field, name, count)
        elif not 2 <= count <= MOST_AT_ONCE:
            law = f"grid levels of a free axis >= 2, and at most {MOST_AT_ONCE}"
            yield Mistake(field, count, law, "use 8")
    if search.method == "grid":
        yield from _grid_laws(spec, axes)
    for number, point in enumerate(search.start):
        yield from _start_laws(f"search.start[{number}]", point, axes)


def _count(field: str, value: int | None, meaning: str, remedy: str) -> Iterable[Mistake]:
    """A mistake where so many at once cannot be."""
    if value is not None and not 1 <= value <= MOST_AT_ONCE:
        yield Mistake(field, value, f"{meaning} >= 1, and at most {MOST_AT_ONCE}", remedy)


def _grid_laws(spec: SweepSpec, axes: list[Axis]) -> Iterable[Mistake]:
    levels = spec.search.levels
    counts = [
        (levels if isinstance(levels, int) else levels.get(a.name, 8)) + a.zero
        for a in axes
        if a.free
    ]
    if math.prod(counts) > MOST_ON_GRID and all(1 < c <= MOST_AT_ONCE + 1 for c in counts):
        law = f"a grid has at most {MOST_ON_GRID} points"
        yield Mistake("search.levels", math.prod(counts), law, "use 8")


def _audit_laws(spec: SweepSpec) -> Iterable[Mistake]:
    audit, tolerance, points = spec.search.audit, spec.search.tolerance, spec.budget.points
    most = MOST_POINTS if points is None or points < 1 else min(points, MOST_POINTS)
    if audit is not None and not 0 <= audit < most:
        law = "points >= 0, and fewer than budget.points"
        yield Mistake("search.audit", audit, law, "leave it out for one in eight")
    if tolerance is None:
        return
    if not 0 < tolerance < 1:
        law = "a share of the box: 0 < tolerance < 1"
        yield Mistake("search.tolerance", tolerance, law, "use 0.05")
    elif spec.search.method == "grid":
        law = "a grid is searched to its end"
        yield Mistake("search.tolerance", tolerance, law, "leave it out, or use method: boundary")


def _start_laws(field: str, point: Mapping[str, float], axes: list[Axis]) -> Iterable[Mistake]:
    for name in point:
        if name not in AXIS_NAMES:
            yield unknown_axis(f"{field}.{name}", name, point[name])
    for axis in axes:
        value = point.get(axis.name)
        if value is None:
            if axis.free:
                yield Mistake(
                    f"{field}.{axis.name}",
                    None,
                    "a start point gives every free axis",
                    "write its value",
                )
            continue
        if axis.free:
            assert axis.low is not None and axis.high is not None
            inside = axis.low <= value <= axis.high or (axis.zero and value == 0)
            span = f"{axis.low:g} to {axis.high:g}" + (" or 0" if axis.zero else "")
        else:
            inside, span = value == axis.value, f"{axis.value:g}"
        if not inside:
            yield Mistake(
                f"{field}.{axis.name}",
                value,
                f"lies outside the axis ({span})",
                "move the point, or widen the axis",
            )


def _budget_laws(spec: SweepSpec) -> Iterable[Mistake]:
    points, wall_time = spec.budget.points, spec.budget.wall_time
    if points is None and wall_time is None:
        yield Mistake(
            "budget", None, "a sweep needs an end", "write budget: {points: 64} or {wall_time: 10m}"
        )
    if points is not None and not 1 <= points <= MOST_POINTS:
        law = f"points >= 1, and at most {MOST_POINTS}"
        yield Mistake("budget.points", points, law, "use 64")
    if wall_time is not None and not (wall_time > 0 and math.isfinite(wall_time)):
        yield Mistake("budget.wall_time", wall_time, "seconds > 0", "use 10m")


def _resource_laws(spec: SweepSpec) -> Iterable[Mistake]:
    part = spec.resources
    yield from _count("resources.workers", part.workers, "workers", "leave it out")
    yield from _count("resources.pack", part.pack, "points a pack", "use 4")
    if not 0 < part.cpus <= MOST_AT_ONCE:
        law = f"CPUs a pack, finite and > 0, and at most {MOST_AT_ONCE}"
        yield Mistake("resources.cpus", part.cpus, law, "use 1")
    gpus, cuda = spec.gpus, spec.device.startswith("cuda")
    if re.fullmatch(r"cuda:0*[1-9][0-9]*", spec.device):
        yield Mistake(
            "device",
            spec.device,
            "Ray shows each pack the GPU that it may use as cuda:0",
            "use device: cuda",
        )
    if cuda and gpus <= 0:
        yield Mistake(
            "resources.gpus", gpus, f"device {spec.device} needs a GPU a pack", "leave it out"
        )
    elif not cuda and gpus != 0:
        yield Mistake(
            "resources.gpus", gpus, f"device {spec.device} uses no GPU", "set device: cuda"
        )
    elif not gpus <= MOST_AT_ONCE or (gpus > 1 and gpus != int(gpus)):
        law = f"more than one GPU is a whole number, and at most {MOST_AT_ONCE}"
        yield Mistake("resources.gpus", gpus, law, "use 1")
    elif 0 < gpus < 1 and not math.isclose(1 / gpus, round(1 / gpus)):
        yield Mistake(
            "resources.gpus",
            gpus,
            "a share of a GPU is 1/n (others make Ray wait for ever)",
            f"use {1 / math.ceil(1 / gpus):.4g}",
        )
