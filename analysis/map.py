"""The stability map: evidence, fitted surface, questions and answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from analysis.boundary import level_set
from analysis.quality import (
    BOX,
    Audit,
    Quality,
    audit_level,
    box_points,
    misclassified,
    notes,
)
from analysis.surface import Surface, columns
from trainables.domain import (
    AXIS_NAMES,
    Axis,
    InputError,
    Mistake,
    Point,
    PointResult,
    Regime,
    StabmapError,
    unknown_axis,
)

Array = NDArray[np.float64]

#: Version of the columns below; `docs/map-format.md` documents them.
SCHEMA_VERSION = 3
REGIMES = tuple(regime.value for regime in Regime)
#: Evidence that has a column of its own; empty where it was not measured.
EVIDENCE = (
    "initial_loss",
    "final_loss",
    "metric",
    "growth",
    "separation",
    "amplification",
    "upward",
    "upward_share",
    "ascent_share",
    "sharpness_ratio",
    "rise",
    "lyapunov_exponent",
)
MAP_FILE = "map.parquet"
#: Values that `max_stable` tries along an axis.
RESOLUTION = 512


def evidence_frame(
    results: Iterable[tuple[int, PointResult]], audits: Mapping[int, int] | None = None
) -> pd.DataFrame:
    """One row a point, in the order in which points were first trained.

    Columns: number of the point's first training, the three axes, regime, reason, step, the two
    margins, how many replicates there are and how many of them fell in each regime, the audit that
    the point belongs to (0: none), and the evidence of the replicates as medians.

    Args:
        results: numbered results; those of one point are replicates of it.
        audits: the audit of each training that belongs to one, by number.
    """
    merged: dict[Point, tuple[int, PointResult]] = {}
    for number, result in sorted(results, key=lambda pair: pair[0]):
        first, before = merged.get(result.point, (number, None))
        replicates = (before.replicates if before else ()) + result.replicates
        merged[result.point] = first, PointResult(result.point, replicates)
    rows = [
        evidence_row(number, result, (audits or {}).get(number, 0))
        for number, result in merged.values()
    ]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.astype({name: "float64" for name in EVIDENCE})


def evidence_row(number: int, result: PointResult, audit: int = 0) -> dict[str, Any]:
    """One row of `evidence_frame`; None where evidence was not measured."""
    verdict = result.verdict
    regimes = [replicate.verdict.regime for replicate in result.replicates]
    row: dict[str, Any] = {"number": number}
    row |= {name: getattr(result.point, name) for name in AXIS_NAMES}
    row |= {
        "regime": verdict.regime.value,
        "reason": verdict.reason.value,
        "step": verdict.step,
        "margin_stable": verdict.margins.stable,
        "margin_bounded": verdict.margins.bounded,
        "replicates": len(regimes),
    }
    row |= {f"replicates_{regime.value}": regimes.count(regime) for regime in Regime}
    row["audit"] = audit
    for name in EVIDENCE:
        values = [v for r in result.replicates if (v := r.evidence.get(name)) is not None]
        row[name] = _median(values)
    return row


def _median(values: list[float]) -> float | None:
    if len(values) < 2:  # nearly always, and NumPy takes a hundred times longer
        return float(values[0]) if values else None
    return float(np.median(values))


def _no_map(path: Path, error: Exception) -> InputError:
    law = f"not a stability map ({type(error).__name__})"
    remedy = "give a folder or file that export wrote, or the id of a sweep"
    return InputError([Mistake("sweep", str(path), law, remedy)])


COLUMNS = [
    "number",
    *AXIS_NAMES,
    "regime",
    "reason",
    "step",
    "margin_stable",
    "margin_bounded",
    "replicates",
    *(f"replicates_{regime}" for regime in REGIMES),
    "audit",
    *EVIDENCE,
]


@dataclass(frozen=True, repr=False)
class StabilityMap:
    """What a sweep knows about where training is stable.

    Args:
        axes: lr, alpha, weight_decay.
        frame: one row a finished point (`evidence_frame`).
        about: what was swept: task, training, axes, search, spec hash, stabmap version.
    """

    axes: tuple[Axis, ...]
    frame: pd.DataFrame
    about: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        about: Mapping[str, Any],
        results: Iterable[tuple[int, PointResult]],
        audits: Mapping[int, int] | None = None,
    ) -> StabilityMap:
        """The map of numbered results; `about` has the axes under `axes`."""
        axes = tuple(Axis(name=name, **about["axes"][name]) for name in AXIS_NAMES)
        return cls(axes, evidence_frame(results, audits), about)

    def __repr__(self) -> str:
        """What was swept and found, in one line."""
        axes = ", ".join(map(_shown, self.axes))
        counts = ", ".join(f"{count} {regime}" for regime, count in self.counts().items())
        task = self.about.get("task", {}).get("name", "?")
        return f"StabilityMap({task}, {axes}; {len(self.frame)} points: {counts})"

    # ----------------------------------------------------------------- questions

    @cached_property
    def surface(self) -> Surface:
        """The fitted model of both margins."""
        return self._fit(self.frame)

    @cached_property
    def quality(self) -> Quality:
        """How much of the box the map is expected to have wrong, and what the last audit found."""
        x, _ = columns(self.axes, box_points(self.axes, BOX))
        share, interval = misclassified(self.surface, x)
        return Quality(share, interval, self.audit(), notes(self.axes, self.surface))

    def audit(self, number: int | None = None) -> Audit | None:
        """An audit's points against the map of all points before them.

        Args:
            number: which audit; None for the last one.

        Returns:
            None where there was no such audit, or nothing before it.
        """
        which = int(self.frame["audit"].max()) if number is None else number
        asked = self.frame["audit"] == which
        before = self.frame["number"] < self.frame.loc[asked, "number"].min()
        if which < 1 or not asked.any() or not before.any():
            return None
        places = self.frame.loc[asked, list(AXIS_NAMES)].to_numpy(np.float64)
        found = self._fit(self.frame[before]).probabilities(columns(self.axes, places)[0])
        shown = np.array(REGIMES)[found.argmax(1)]
        errors = int((shown != self.frame.loc[asked, "regime"].to_numpy()).sum())
        tolerance = self.about.get("search", {}).get("tolerance")
        return Audit(int(asked.sum()), errors, audit_level(which, tolerance))

    def _fit(self, frame: pd.DataFrame) -> Surface:
        x, indicators = columns(self.axes, frame[list(AXIS_NAMES)].to_numpy(np.float64))
        margins = frame[["margin_stable", "margin_bounded"]].to_numpy(np.float64)
        return Surface.fit(x, margins, indicators)

    def classify(self, **values: ArrayLike) -> dict[str, Any]:
        """Probabilities of the three regimes, from the fitted model of the margins.

        Args:
            **values: lr, alpha, weight_decay as numbers or arrays that broadcast together. An axis
                that the sweep held fixed may be left out.

        Returns:
            `{"stable": p, "restrained": p, "divergent": p}`; floats for numbers, arrays of the
            broadcast shape for arrays. They say how sure the model is of what a training here
            would do.

        Raises:
            InputError: an axis is missing, unknown, or asked for outside what was swept.
        """
        given = self._columns(values)
        shape = np.broadcast_shapes(*(column.shape for column in given))
        points = np.stack([np.broadcast_to(c, shape).ravel() for c in given], axis=1)
        probabilities = self.surface.probabilities(columns(self.axes, points)[0])
        probabilities = probabilities.reshape(*shape, 3)
        if shape == ():
            return {name: float(p) for name, p in zip(REGIMES, probabilities, strict=True)}
        return {name: probabilities[..., i] for i, name in enumerate(REGIMES)}

    def max_stable(self, axis: str, *, confidence: float = 0.95, **fixed: float) -> float | None:
        """Largest value of an axis up to which training is stable with the given confidence.

        Every value from the low end of the axis up to the answer is stable with at least this
        probability: an island of stability beyond a gap does not count.

        Args:
            axis: the axis to go along; a free one.
            confidence: probability asked for, in (0, 1).
            **fixed: values of the other free axes.

        Returns:
            The value, in the axis's units; None where not even the low end is that surely stable.

        Raises:
            InputError: as `classify`, or a confidence outside (0, 1).
        """
        if mistakes := _confidence_mistakes(confidence):
            raise InputError(mistakes)
        along = self._axis(axis)
        if not along.free:
            raise InputError(
                [Mistake(axis, along.value, "the sweep held this axis fixed", "ask for a free one")]
            )
        if axis in fixed:
            raise InputError(
                [Mistake(axis, fixed[axis], "this is the axis asked for", "leave its value out")]
            )
        values = along.from_unit(np.linspace(0, 1, RESOLUTION))
        if along.zero:
            values = np.concatenate([[0.0], values])
        calm = self.classify(**{axis: values}, **fixed)["stable"] >= confidence
        count = len(values) if calm.all() else int(np.argmin(calm))
        return float(values[count - 1]) if count else None

    def boundary(self, kind: str, *, confidence: float = 0.9) -> pd.DataFrame:
        """A boundary as the level set where the fitted probability passes one half.

        Args:
            kind: `stable`, where training stops being stable, or `divergent`, where it begins to
                diverge.
            confidence: of the interval, in (0, 1).

        Returns:
            One row a place: lr, alpha, weight_decay in the axes' units, and `low` and `high`, an
            interval along the first free axis in which the model has the boundary with this
            confidence (not a number where it reaches beyond the range). No row where the boundary
            is not in the box.

        Raises:
            InputError: an unknown kind, a confidence outside (0, 1), or no free axis.
        """
        mistakes = _confidence_mistakes(confidence)
        if kind not in ("stable", "divergent"):
            law = "there are two boundaries"
            mistakes.append(Mistake("kind", kind, law, "use stable or divergent"))
        if not any(axis.free for axis in self.axes):
            law = "a sweep of a single point has no boundary"
            mistakes.append(Mistake("axes", [], law, "sweep an axis"))
        if mistakes:
            raise InputError(mistakes)

        def probability(points: Array) -> Array:
            found = self.surface.probabilities(columns(self.axes, points)[0])
            return found[:, 0] if kind == "stable" else 1 - found[:, 2]

        return level_set(self.axes, probability, confidence)

    def _axis(self, name: str) -> Axis:
        for axis in self.axes:
            if axis.name == name:
                return axis
        raise InputError([unknown_axis(name, name, None)])

    def _columns(self, values: Mapping[str, ArrayLike]) -> list[Array]:
        for name in values:
            self._axis(name)
        columns: list[Array] = []
        mistakes: list[Mistake] = []
        for axis in self.axes:
            given = values.get(axis.name)
            if given is None:
                if axis.free:
                    mistakes.append(
                        Mistake(axis.name, None, "the sweep varied this axis", "give its value")
                    )
                    continue
                given = axis.value
            try:
                column = np.asarray(given, dtype=np.float64)
            except (TypeError, ValueError):
                mistakes.append(Mistake(axis.name, given, "must be a number", "give a number"))
                continue
            mistakes += _outside(axis, column)
            columns.append(column)
        if mistakes:
            raise InputError(mistakes)
        try:
            np.broadcast_shapes(*(column.shape for column in columns))
        except ValueError as error:
            shapes = {a.name: c.shape for a, c in zip(self.axes, columns, strict=True) if c.shape}
            raise InputError(
                [
                    Mistake(name, list(shape), "the shapes do not broadcast", "give equal shapes")
                    for name, shape in shapes.items()
                ]
            ) from error
        return columns

    # ----------------------------------------------------------------- forms

    def to_frame(self) -> pd.DataFrame:
        """A copy of the evidence, one row a point (columns: `docs/map-format.md`)."""
        return self.frame.copy()

    def counts(self) -> dict[str, int]:
        """Number of points in each regime."""
        return {regime: int((self.frame["regime"] == regime).sum()) for regime in REGIMES}

    def write_parquet(self, path: Path) -> None:
        """The evidence with `about` in the file's metadata: the same map, the same bytes."""
        table = pa.Table.from_pandas(self.frame, preserve_index=False)
        about = {"schema_version": SCHEMA_VERSION, **self.about}
        text = json.dumps(about, sort_keys=True)
        pq.write_table(table.replace_schema_metadata({"stabmap": text}), path)

    @classmethod
    def read_parquet(cls, path: Path) -> StabilityMap:
        """Inverse of `write_parquet`.

        Raises:
            InputError: the file is no map.
            StabmapError: it is one of another schema.
        """
        # Anybody may have written the file: whatever is wrong with it, it is no map.
        broken = (OSError, KeyError, ValueError, TypeError, AttributeError)
        try:
            table = pq.read_table(path)
            about = json.loads((table.schema.metadata or {})[b"stabmap"])
            version = about.pop("schema_version")
        except broken as error:
            raise _no_map(path, error) from error
        if version != SCHEMA_VERSION:
            raise StabmapError(
                f"{path}: map schema {version}, but this stabmap reads {SCHEMA_VERSION}; "
                "use the stabmap version that wrote it"
            )
        try:
            axes = tuple(Axis(name=name, **about["axes"][name]) for name in AXIS_NAMES)
            table.select(COLUMNS)
            return cls(axes, table.to_pandas(), about)
        except broken as error:
            raise _no_map(path, error) from error

    def export(self, folder: str | Path) -> list[Path]:
        """Write the map to a folder, as `map.parquet` (for `load_map`) and `map.json`.

        Args:
            folder: made where it does not exist.

        Returns:
            The files written.

        Raises:
            InputError: the folder cannot be written.
        """
        root = Path(folder).expanduser()
        paths = [root / MAP_FILE, root / "map.json"]
        try:
            root.mkdir(parents=True, exist_ok=True)
            self.write_parquet(paths[0])
            paths[1].write_text(self.to_json(), encoding="utf-8")
        except OSError as error:
            raise InputError(
                [
                    Mistake(
                        "folder",
                        str(folder),
                        f"cannot be written ({error.strerror or error})",
                        "choose a folder that you may write to",
                    )
                ]
            ) from error
        return paths

    def to_json(self) -> str:
        """`about` and the evidence as JSON; null where nothing was measured."""
        records = self.frame.astype(object).where(self.frame.notna(), None).to_dict("records")
        content = {"schema_version": SCHEMA_VERSION, "about": dict(self.about), "points": records}
        return json.dumps(content, indent=1, sort_keys=True, allow_nan=False)


def _shown(axis: Axis) -> str:
    if not axis.free:
        return f"{axis.name} {axis.value:g}"
    return f"{axis.name} {axis.low:g} to {axis.high:g} {axis.scale}{' or 0' if axis.zero else ''}"


def _confidence_mistakes(confidence: float) -> list[Mistake]:
    if 0 < confidence < 1:
        return []
    return [Mistake("confidence", confidence, "0 < confidence < 1", "use 0.95")]


def _outside(axis: Axis, values: Array) -> list[Mistake]:
    """Whether values lie where the sweep did not look."""
    if not values.size:
        return []
    shown: Any = values.item() if values.ndim == 0 else [float(values.min()), float(values.max())]
    if not np.isfinite(values).all():
        return [Mistake(axis.name, shown, "must be finite", "give a number")]
    if not axis.free:
        assert axis.value is not None
        if (values != axis.value).any():
            return [
                Mistake(axis.name, shown, f"the sweep held it at {axis.value:g}", "leave it out")
            ]
        return []
    assert axis.low is not None and axis.high is not None
    low = axis.smallest
    slack = 1e-9 * (axis.high - low)
    if (values < low - slack).any() or (values > axis.high + slack).any():
        return [
            Mistake(
                axis.name,
                shown,
                f"the sweep looked at {low:g} to {axis.high:g} only",
                "ask inside the range, or sweep a wider one",
            )
        ]
    return []
