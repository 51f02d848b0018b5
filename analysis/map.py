"""The stability map: evidence, fitted surface, questions and answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis import exports
from analysis.boundary import level_set
from analysis.evidence import COLUMNS as COLUMNS
from analysis.evidence import EVIDENCE as EVIDENCE
from analysis.evidence import MAP_FILE as MAP_FILE
from analysis.evidence import REGIMES as REGIMES
from analysis.evidence import evidence_frame as evidence_frame
from analysis.evidence import evidence_row as evidence_row
from analysis.geometry import Geometry, Mesh
from analysis.grid import as_grid
from analysis.merging import merged
from analysis.metric_variance import Variance, variance_of
from analysis.nearest import nearest_rows
from analysis.quality import (
    BOX,
    Audit,
    Quality,
    audit_level,
    box_points,
    misclassified,
    notes,
)
from analysis.shapes import geometry_of, mesh_of
from analysis.suggest import Suggestion, suggestions
from analysis.surface import Surface, columns
from analysis.table import Tables
from analysis.uncertainty import KINDS, entropy, wrong
from analysis.volume import PARTS, POINTS, Volume, volume
from trainables.domain import (
    AXIS_NAMES,
    Axis,
    InputError,
    Mistake,
    PointResult,
    unknown_axis,
)

if TYPE_CHECKING:
    from xarray import Dataset

    from analysis.slices import MapSlice

Array = NDArray[np.float64]

#: Places of one question from which on the model is looked up in a table.
MANY = 200_000
#: Values that `max_stable` tries along an axis.
RESOLUTION = 512


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

    @property
    def stand_in(self) -> str | None:
        """What the data stand in for and what they are; None where they are the real thing.

        Example:
            >>> from stabmap import example_map
            >>> example_map().stand_in is None
            True
        """
        given = self.about.get("stand_in")
        return None if given is None else str(given)

    @classmethod
    def of(
        cls,
        about: Mapping[str, Any],
        results: Iterable[tuple[int, PointResult]],
        audits: Mapping[int, int] | None = None,
    ) -> StabilityMap:
        """The map of numbered results; `about` has the axes under `axes`.

        Example:
            >>> from stabmap import example_map
            >>> StabilityMap.of(example_map().about, []).counts()
            {'stable': 0, 'restrained': 0, 'divergent': 0}
        """
        axes = tuple(Axis(name=name, **about["axes"][name]) for name in AXIS_NAMES)
        return cls(axes, evidence_frame(results, audits), about)

    def __repr__(self) -> str:
        """What was swept and found, in one line."""
        axes = ", ".join(map(_shown, self.axes))
        counts = ", ".join(f"{count} {regime}" for regime, count in self.counts().items())
        task = self.about.get("task", {}).get("name", "?")
        return f"StabilityMap({task}, {axes}; {len(self.frame)} points: {counts})"

    def _repr_html_(self) -> str:
        """What a notebook shows: a picture, what was found, how sure it is."""
        from analysis.notebook import map_html

        return map_html(self)

    # ----------------------------------------------------------------- questions

    @cached_property
    def surface(self) -> Surface:
        """The fitted model of both margins, in unit coordinates (`unit`).

        Example:
            >>> from stabmap import example_map
            >>> found = example_map()
            >>> found.surface.probabilities(found.unit(np.array([[0.1, 0.0, 0.01]]))).shape
            (1, 3)
        """
        return self._fit(self.frame)

    @cached_property
    def quality(self) -> Quality:
        """How much of the box the map is expected to have wrong, and what the last audit found.

        Example:
            >>> from stabmap import example_map
            >>> 0 < example_map().quality.misclassified < 0.1
            True
        """
        x = self.unit(box_points(self.axes, BOX))
        share, interval = misclassified(self.surface, x)
        return Quality(share, interval, self.audit(), notes(self.surface, x))

    def audit(self, number: int | None = None) -> Audit | None:
        """An audit's points against the map of all points before them.

        Args:
            number: which audit; None for the last one.

        Returns:
            None where there was no such audit, or nothing before it.

        Example:
            >>> from stabmap import example_map
            >>> print(example_map().audit())
            None
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
            would do. From 200,000 places on they come from a table of the model, each right to
            0.005 (docs/maps.md); the first such question makes the table.

        Raises:
            InputError: an axis is missing, unknown, or asked for outside what was swept.

        Example:
            >>> from stabmap import example_map
            >>> found = example_map().classify(lr=[0.01, 100], weight_decay=1e-2)
            >>> found["stable"].round(1).tolist(), found["divergent"].round(1).tolist()
            ([1.0, 0.0], [0.0, 1.0])
        """
        given = self._columns(values)
        shape = np.broadcast_shapes(*(column.shape for column in given))
        points = np.stack([np.broadcast_to(c, shape).ravel() for c in given], axis=1)
        many = len(points) >= MANY
        answer = self._tables.probabilities if many else self.surface.probabilities
        probabilities = answer(self.unit(points)).reshape(*shape, 3)
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

        Example:
            >>> from stabmap import example_map
            >>> found = example_map()
            >>> sure = found.max_stable("lr", weight_decay=1e-2)
            >>> sure < found.max_stable("lr", weight_decay=1e-2, confidence=0.5)
            True
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

        Example:
            >>> from stabmap import example_map
            >>> line = example_map().boundary("stable")
            >>> list(line.columns)
            ['lr', 'alpha', 'weight_decay', 'low', 'high']
            >>> bool((line.low < line.lr).any())
            True
        """
        probability = self._probability(kind, *_confidence_mistakes(confidence))
        return level_set(self.axes, probability, confidence)

    def boundary_mesh(self, kind: str, *, count: int = 32) -> Mesh:
        """A boundary of a map with three free axes, as a surface of triangles.

        Extra levels at 0 are no part of it: `slice` there.

        Args:
            kind: `stable` or `divergent`, as for `boundary`.
            count: places of the model's grid along each axis, 2 to 128.

        Returns:
            Vertices in the axes' units, faces, and the area in unit coordinates; empty where the
            boundary is not in the box.

        Raises:
            InputError: an unknown kind, a count outside its range, or not three free axes.

        Example:
            >>> from stabmap import example_map
            >>> found = example_map("lr", "alpha", "weight_decay")
            >>> mesh = found.boundary_mesh("divergent", count=8)
            >>> mesh.vertices.shape[1], mesh.faces.shape[1], 0.9 < mesh.area < 1.3
            (3, 3, True)
        """
        return mesh_of(self.axes, self._probability(kind), count)

    def boundary_geometry(self, kind: str, *, count: int = 256) -> Geometry:
        """Length, roughness and box-counting dimension of a boundary of a map with two free axes.

        All in unit coordinates, in which the box is the unit square. They describe the fitted
        boundary, which is smooth where no points lie: a dimension is given only for sizes above the
        typical distance from the boundary to the nearest point, and only where these span a factor
        of four. An extra level at 0 is no part of it.

        Args:
            kind: `stable` or `divergent`, as for `boundary`.
            count: places of the model's grid along each axis, 8 to 1024.

        Raises:
            InputError: an unknown kind, a count outside its range, or not two free axes.

        Example:
            >>> from stabmap import example_map
            >>> shape = example_map().boundary_geometry("divergent")
            >>> 0.9 < shape.length < 1.3, shape.pieces, shape.roughness < 0.05
            (True, 1, True)
        """
        return geometry_of(self.axes, self._probability(kind), self._evidence.frame, count)

    def slice(self, **fixed: float) -> MapSlice:
        """The map at fixed values of some of its axes: the same model, fewer free axes.

        Args:
            **fixed: values of free axes.

        Returns:
            A map that answers the same questions. Its `frame` has the points at these values only;
            the model draws on all points.

        Raises:
            InputError: no axis, an unknown or fixed one, or a value outside what was swept.

        Example:
            >>> from stabmap import example_map
            >>> whole = example_map()
            >>> line = whole.slice(weight_decay=0.01)
            >>> line.classify(lr=0.1) == whole.classify(lr=0.1, weight_decay=0.01)
            True
        """
        from analysis.slices import slice_mistakes, sliced

        for name in fixed:
            self._axis(name)
        if mistakes := slice_mistakes(self.axes, fixed):
            raise InputError(mistakes)
        for name, value in fixed.items():
            mistakes += value_mistakes(self._axis(name), value)
        if mistakes:
            raise InputError(mistakes)
        return sliced(self, {name: float(value) for name, value in fixed.items()})

    def volume(self, regime: str, *, confidence: float = 0.9) -> Volume:
        """Share of the box that belongs to a regime, with an interval.

        The box is measured along the axes' scales; an extra level at 0 counts as 1/8 of its axis.
        2,000 courses of both boundaries are drawn from the model's posterior, and the share of each
        taken at 512 points that cover the box evenly. The interval is the model's own.

        Args:
            regime: stable, restrained, divergent; or bounded, for stable and restrained together.
            confidence: of the interval, in (0, 1).

        Raises:
            InputError: an unknown regime, a confidence outside (0, 1), or a map without a point.

        Example:
            >>> from stabmap import example_map
            >>> found = example_map().volume("stable")
            >>> found.low < found.share < found.high
            True
            >>> print(found)  # doctest: +ELLIPSIS
            stable: ...% of the box (...% to ...%)
        """
        mistakes = _confidence_mistakes(confidence)
        if regime not in PARTS:
            remedy = f"use one of {', '.join(PARTS)}"
            mistakes.append(Mistake("regime", regime, "no such regime", remedy))
        if mistakes:
            raise InputError(mistakes)
        return volume(self.surface, self.unit(box_points(self.axes, POINTS)), regime, confidence)

    def nearest(self, n: int = 5, **place: float) -> pd.DataFrame:
        """The evidence nearest to a place.

        Args:
            n: how many points.
            **place: lr, alpha, weight_decay; an axis that the sweep held fixed may be left out.

        Returns:
            The rows of `to_frame`, nearest first, with their `distance` in unit coordinates (1 is
            the width of the box). `number` finds the MLflow run of a row: it is the child of the
            sweep's run with `params.number = '17'`.

        Raises:
            InputError: as `classify`, an array, or n below 1.

        Example:
            >>> from stabmap import example_map
            >>> rows = example_map().nearest(2, lr=0.1, weight_decay=0.01)
            >>> rows[["number", "regime"]].values.tolist()
            [[28, 'stable'], [8, 'stable']]
        """
        return nearest_rows(self._seen, self._evidence.frame, self._place(place), n)

    def uncertainty(self, *, kind: str = "bits", **values: ArrayLike) -> Any:
        """How unsure the map is of the regime.

        Args:
            kind: `bits`, the entropy of the three probabilities (0 where sure, at most 1.58); or
                `wrong`, the probability that the most likely regime is not the one.
            **values: as for `classify`.

        Returns:
            A float for numbers, an array for arrays.

        Raises:
            InputError: as `classify`, or an unknown kind.

        Example:
            >>> from stabmap import example_map
            >>> found = example_map()
            >>> edge = found.max_stable("lr", weight_decay=0.01, confidence=0.5)
            >>> found.uncertainty(lr=edge, weight_decay=0.01) > 0.9
            True
            >>> found.uncertainty(lr=0.01, weight_decay=0.01, kind="wrong") < 0.05
            True
        """
        if kind not in KINDS:
            law, remedy = "no such kind of uncertainty", f"use one of {', '.join(KINDS)}"
            raise InputError([Mistake("kind", kind, law, remedy)])
        found = self.classify(**values)
        stacked = np.stack([np.asarray(found[name]) for name in REGIMES], axis=-1)
        answer = (entropy if kind == "bits" else wrong)(stacked)
        return answer if answer.shape else float(answer)

    def variance(
        self,
        *,
        number: int | None = None,
        confidence: float = 0.9,
        **region: float | tuple[float, float],
    ) -> Variance:
        """The split of the final metric's variance into floating point, seed and data order.

        Floating point is what k alone changes: trainings that are equal in mathematics. The table
        of Sun et al. (2024) for any task: over the whole map, a region of it, or one point. It
        needs what the sweep trained: at least two `ks` for floating point, `seeds: 3` or more for
        the seed, and for the data order mini-batches with `orders: 3` or more. What is missing is
        None in the answer, and its notes say how to get it.

        Args:
            number: one point, by its number in the evidence; None for all of the region.
            confidence: of the intervals, in (0, 1).
            **region: for an axis one value, or a pair (low, high); all values if left out.

        Returns:
            Components, as variances and as standard deviations in the metric's unit, with
            intervals. They are averages over the points; differences between points are no part of
            them (`analysis.components` has the estimator).

        Raises:
            InputError: no such number, no point in the region, none of them with a final metric, or
                a confidence outside (0, 1).

        Example:
            >>> from stabmap import example_map
            >>> found = example_map(seeds=4).variance(lr=(0.01, 0.1), confidence=0.95)
            >>> found.seed.sd > found.floating_point.sd > 0
            True
            >>> found.floating_point.low < 0.002**2 < found.floating_point.high
            True
            >>> found.order is None, found.notes[0][:40]
            (True, 'data order: not told apart from the seed')
        """
        if mistakes := _confidence_mistakes(confidence):
            raise InputError(mistakes)
        return variance_of(self, self._rows(number, region), confidence)

    def suggest_next(self, n: int = 1, **fixed: float) -> list[Suggestion]:
        """The points whose training would tell the map most.

        They are taken by the expected drop of the misclassified volume, as the search takes its
        own, each in the light of those before it. Candidates are 256 of 1,024 points that cover the
        box, or what `fixed` leaves of it, evenly: those of which the map is least sure. The same
        map gives the same points.

        Args:
            n: how many, 1 to 64. Fewer are good: after eight labels the map is another.
            **fixed: values that the points must have, such as alpha=0. The drop is still that of
                the whole box; `slice(alpha=0).suggest_next()` looks at the slice alone.

        Returns:
            Suggestions with `point` and `drop`, best first; fewer than n where there are no more
            untrained points.

        Raises:
            InputError: n is no such number, a value is none of the map's or an array, or the map
                has no free axis or no point.

        Example:
            >>> from stabmap import example_map
            >>> best, second = example_map().suggest_next(2)
            >>> best.drop > second.drop > 0
            True
            >>> example_map().suggest_next(weight_decay=0)[0].point.weight_decay
            0.0
        """
        if mistakes := self._fixed_mistakes(fixed):
            raise InputError(mistakes)
        return suggestions(self, n, {name: float(value) for name, value in fixed.items()})

    def merge(self, other: StabilityMap) -> StabilityMap:
        """One map of the points of two sweeps of the same task, training and axes.

        The two may differ in how they searched, and in the seed. A point that both trained with the
        same seed is taken once, from the sweep with more replicates of it; with another seed it has
        a row for each. Numbers of the other map's points are raised above those of this one. The
        merged map has no audit: the points of both count as evidence alone.

        Raises:
            InputError: anything else differs; all fields that do are listed.

        Example:
            >>> from stabmap import example_map
            >>> first, second = example_map(seed=0), example_map(seed=1)
            >>> len(first.merge(second).frame)
            128
        """
        return merged(self, other)

    # ----------------------------------------------------------------- the model

    @cached_property
    def _tables(self) -> Tables:
        """The model for very many places."""
        free = [axis for axis in self.axes if axis.free]
        zeros = [i for i, axis in enumerate(free) if axis.zero]
        return Tables(self.surface.quantiles, max(len(free), 1), zeros, self.surface.points)

    def unit(self, points: Array) -> Array:
        """Places, (n, 3) values of the axes, in the unit coordinates of `surface`, (n, d).

        Example:
            >>> from stabmap import example_map
            >>> example_map().unit(np.array([[1.0, 0.0, 0.01]])).tolist()
            [[0.5, 0.5, 0.5]]
        """
        return columns(self._seen, points)[0]

    @property
    def _seen(self) -> tuple[Axis, ...]:
        """The axes as the model knows them."""
        return self.axes

    @property
    def _evidence(self) -> StabilityMap:
        """The map whose points the model is fitted to."""
        return self

    def _probability(self, kind: str, *mistakes: Mistake) -> Callable[[Array], Array]:
        """Probability of the calm side of a boundary, at (n, 3) values of the axes."""
        found = list(mistakes)
        if kind not in ("stable", "divergent"):
            law = "there are two boundaries"
            found.append(Mistake("kind", kind, law, "use stable or divergent"))
        if not any(axis.free for axis in self.axes):
            law = "a sweep of a single point has no boundary"
            found.append(Mistake("axes", [], law, "sweep an axis"))
        if found:
            raise InputError(found)

        def probability(points: Array) -> Array:
            regimes = self.surface.probabilities(self.unit(points))
            return regimes[:, 0] if kind == "stable" else 1 - regimes[:, 2]

        return probability

    def _place(self, values: Mapping[str, ArrayLike]) -> Array:
        """One place, (3,) values, for questions that take no arrays."""
        given = self._columns(values)
        if mistakes := [
            Mistake(axis.name, list(column.shape), "one place is asked for", "give a number")
            for axis, column in zip(self.axes, given, strict=True)
            if column.shape
        ]:
            raise InputError(mistakes)
        return np.array(given)

    def _fixed_mistakes(self, fixed: Mapping[str, float]) -> list[Mistake]:
        """What is wrong with single values of some axes."""
        found = []
        for name, value in fixed.items():
            wrong_here = value_mistakes(self._axis(name), value)
            if not wrong_here and np.ndim(value):
                law = "one value is asked for"
                wrong_here = [Mistake(name, np.shape(value), law, "give a number")]
            found += wrong_here
        return found

    def _rows(self, number: int | None, region: Mapping[str, Any]) -> pd.DataFrame:
        """The evidence of one point, or of a region."""
        rows = self.frame
        if number is not None:
            rows = rows[rows["number"] == number]
            if rows.empty:
                remedy = "take one of to_frame()['number']"
                raise InputError([Mistake("number", number, "no point has this number", remedy)])
        for name, value in region.items():
            self._axis(name)
            if not all(map(_is_number, ends := np.ravel(value).tolist())) or len(ends) > 2:
                law, remedy = "a value or a pair (low, high)", "write lr=(0.01, 0.1)"
                raise InputError([Mistake(name, value, law, remedy)])
            slack = 1e-9 * max(map(abs, ends))
            rows = rows[rows[name].between(min(ends) - slack, max(ends) + slack)]
        if rows.empty:
            law, remedy = "no trained point lies there", "ask for a wider region: lr=(0.01, 0.1)"
            raise InputError([Mistake("region", dict(region), law, remedy)])
        return rows

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
                assert axis.value is not None
                given = axis.value
            wrong_here = value_mistakes(axis, given)
            mistakes += wrong_here
            if not wrong_here:
                columns.append(np.asarray(given, dtype=np.float64))
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
        """A copy of the evidence, one row a point (columns: `docs/map-format.md`).

        Example:
            >>> from stabmap import example_map
            >>> example_map().to_frame()["replicates"].sum().item()
            64
        """
        return self.frame.copy()

    def counts(self) -> dict[str, int]:
        """Number of points in each regime.

        Example:
            >>> from stabmap import example_map
            >>> sum(example_map().counts().values())
            64
        """
        return {regime: int((self.frame["regime"] == regime).sum()) for regime in REGIMES}

    def to_xarray(self, count: int | None = None) -> Dataset:
        """The fitted model over a grid of the free axes, as an `xarray.Dataset`.

        Variables: `probability` of each regime; `most_likely`, the index of the regime of the
        largest one; `uncertainty`, its entropy in bits; `latent_mean` and `latent_sd`, mean and
        standard deviation of the model's two latent functions (docs/map-format.md). Coordinates
        follow the axes' scales, so those of a log axis are log-spaced; an extra level at 0 comes
        first. Fixed axes are coordinates without a dimension.

        Args:
            count: places along each free axis; None for 512, 128 or 32, for one, two or three axes.

        Raises:
            InputError: a count below 2 or too large, or a map without a point.

        Example:
            >>> from stabmap import example_map
            >>> grid = example_map().to_xarray(count=5)
            >>> dict(grid.sizes)
            {'regime': 3, 'lr': 5, 'weight_decay': 6, 'margin': 2}
            >>> grid.lr.values.round(3).tolist()
            [0.01, 0.1, 1.0, 10.0, 100.0]
            >>> likely = grid.most_likely.sel(weight_decay=0.01, method="nearest")
            >>> [REGIMES[i] for i in likely.values]
            ['stable', 'stable', 'restrained', 'divergent', 'divergent']
        """
        return as_grid(self.axes, self._seen, self.surface, count)

    def write_parquet(self, path: Path) -> None:
        """The evidence with `about` in the file's metadata: the same map, the same bytes.

        Example:
            >>> from pathlib import Path
            >>> from tempfile import TemporaryDirectory
            >>> from stabmap import example_map
            >>> with TemporaryDirectory() as folder:
            ...     path = Path(folder, "map.parquet")
            ...     example_map().write_parquet(path)
            ...     StabilityMap.read_parquet(path).counts() == example_map().counts()
            True
        """
        exports.write_parquet(path, self.about, self.frame)

    @classmethod
    def read_parquet(cls, path: Path) -> StabilityMap:
        """Inverse of `write_parquet`.

        Raises:
            InputError: the file is no map.
            StabmapError: it is one of another schema.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> from stabmap import example_map
            >>> with TemporaryDirectory() as folder:
            ...     (path,) = example_map().export(folder, ["parquet"])
            ...     len(StabilityMap.read_parquet(path).frame)
            64
        """
        return cls._made(path, *exports.read_parquet(path))

    @classmethod
    def read(cls, path: Path) -> StabilityMap:
        """The map in a file of any format that `export` writes; `load_map` finds the file too.

        Raises:
            InputError: the file is no map.
            StabmapError: it is one of another schema.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> from stabmap import example_map
            >>> with TemporaryDirectory() as folder:
            ...     (path,) = example_map().export(folder, ["json"])
            ...     len(StabilityMap.read(path).frame)
            64
        """
        return cls._made(path, *exports.read(path))

    @classmethod
    def _made(cls, path: Path, about: dict[str, Any], frame: pd.DataFrame) -> StabilityMap:
        try:
            axes = tuple(Axis(name=name, **about["axes"][name]) for name in AXIS_NAMES)
        except exports.BROKEN as error:
            raise exports.no_map(path, error) from error
        return cls(axes, frame, about)

    def export(
        self, folder: str | Path, formats: Sequence[str] = tuple(exports.FILES)
    ) -> list[Path]:
        """Write the map to a folder; `load_map` reads the same map back from any of the files.

        Args:
            folder: made where it does not exist.
            formats: some of parquet (`map.parquet`), json (`map.json`), csv (`map.csv`) and netcdf
                (`map.nc`, which has the grid of `to_xarray` too).

        Returns:
            The files written.

        Raises:
            InputError: an unknown format, or the folder cannot be written.

        Example:
            >>> from tempfile import TemporaryDirectory
            >>> from stabmap import example_map, load_map
            >>> found = example_map()
            >>> with TemporaryDirectory() as folder:
            ...     (path,) = found.export(folder, ["csv"])
            ...     again = load_map(path)
            >>> again.classify(lr=0.3, weight_decay=0) == found.classify(lr=0.3, weight_decay=0)
            True
        """
        if unknown := [name for name in formats if name not in exports.FILES]:
            known = f"use some of {', '.join(exports.FILES)}"
            raise InputError([Mistake("formats", n, "unknown format", known) for n in unknown])
        root = Path(folder).expanduser()
        paths = [root / exports.FILES[name] for name in formats]
        try:
            root.mkdir(parents=True, exist_ok=True)
            for name, path in zip(formats, paths, strict=True):
                self._write(name, path)
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

    def _write(self, name: str, path: Path) -> None:
        if name == "parquet":
            self.write_parquet(path)
        elif name == "netcdf":
            exports.write_netcdf(path, self.about, self.frame, self.to_xarray())
        else:
            text = self.to_json() if name == "json" else exports.as_csv(self.about, self.frame)
            path.write_text(text, encoding="utf-8")

    def to_json(self) -> str:
        """`about` and the evidence as JSON; null where nothing was measured.

        Example:
            >>> from stabmap import example_map
            >>> import json
            >>> len(json.loads(example_map().to_json())["points"])
            64
        """
        return exports.as_json(self.about, self.frame)


def _shown(axis: Axis) -> str:
    if not axis.free:
        return f"{axis.name} {axis.value:g}"
    return f"{axis.name} {axis.low:g} to {axis.high:g} {axis.scale}{' or 0' if axis.zero else ''}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _confidence_mistakes(confidence: float) -> list[Mistake]:
    if 0 < confidence < 1:
        return []
    return [Mistake("confidence", confidence, "0 < confidence < 1", "use 0.95")]


def value_mistakes(axis: Axis, values: ArrayLike) -> list[Mistake]:
    """What is wrong with values of an axis: no numbers, or where the sweep did not look."""
    try:
        values = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return [Mistake(axis.name, values, "must be a number", "give a number")]
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
