"""The split of the final metric's variance: `StabilityMap.variance`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.components import Component, MeanSquares
from analysis.variance import Spread, spread
from trainables.domain import AXIS_NAMES, InputError, Mistake, metric_names, odd_part

if TYPE_CHECKING:
    from analysis.map import StabilityMap

Array = NDArray[np.float64]

#: The sources of variance, by the names they have in words.
SOURCES = {
    "floating_point": "floating point (k)",
    "seed": "seed",
    "order": "data order",
    "both": "seed x data order",
}
COLUMNS = ["number", *AXIS_NAMES, "seed", "order", "k", "metric"]


@dataclass(frozen=True)
class Variance:
    """Where the scatter of the final metric comes from.

    Args:
        floating_point: variance over k of one and the same training: rounding alone.
        seed: variance over seeds: initial weights, and the data order too unless `order` has it.
        order: variance over data orders that all initial weights were trained with; where there is
            one seed a point, of that seed alone.
        both: what data orders do to some initial weights and not to others.
        points: points that were looked at.
        confidence: of the intervals.
        finals: the numbers behind it, one row a trajectory.
        notes: what is missing and how to get it, what was left out, which estimates were cut off.

    A component is None where the trainings cannot tell it.
    """

    floating_point: Component | None
    seed: Component | None
    order: Component | None
    both: Component | None
    points: int
    confidence: float
    finals: pd.DataFrame
    notes: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """One row a source that is known.

        Columns: variance, its share of their sum, the standard deviation in the metric's unit with
        its interval, and the degrees of freedom.

        Example:
            >>> from stabmap import example_map
            >>> example_map(seeds=3).variance().table()["source"].tolist()
            ['floating point (k)', 'seed']
        """
        known = {name: c for name in SOURCES if (c := getattr(self, name)) is not None}
        whole = sum(c.variance for c in known.values())
        rows = [
            {
                "source": SOURCES[name],
                "variance": c.variance,
                "share": c.variance / whole if whole else np.nan,
                "sd": c.sd,
                "sd_low": np.sqrt(c.low),
                "sd_high": np.sqrt(c.high),
                "degrees": c.degrees,
            }
            for name, c in known.items()
        ]
        columns = ["source", "variance", "share", "sd", "sd_low", "sd_high", "degrees"]
        return pd.DataFrame(rows, columns=columns)

    @property
    def spread(self) -> Spread:
        """The table of Sun et al. 2024 for one point: population deviations over ks and seeds.

        Raises:
            InputError: several points, or fewer than 2 ks x 2 seeds.

        Example:
            >>> from stabmap import example_map
            >>> found = example_map(seeds=4).variance(number=0).spread
            >>> len(found.over_ks), len(found.over_seeds)
            (4, 2)
        """
        if self.points != 1:
            law = "such a table is that of one point"
            raise InputError([Mistake("points", self.points, law, "ask with number=...")])
        columns = self.finals.pivot(index="k", columns=["seed", "order"], values="metric")
        return spread(columns.to_numpy())

    def __str__(self) -> str:
        lines = [f"final metric of {len(self.finals)} trajectories at {self.points} points"]
        for row in self.table().itertuples():
            lines.append(
                f"{row.source:<19} sd {row.sd:.4g} ({row.sd_low:.4g} to {row.sd_high:.4g} with "
                f"{self.confidence:.4g} confidence, {row.degrees} degrees of freedom)"
            )
        return "\n".join([*lines, *self.notes])


def variance_of(found: StabilityMap, rows: pd.DataFrame, confidence: float) -> Variance:
    """The components over some rows of a map's evidence.

    Raises:
        InputError: no training there has a final metric of a k.
    """
    training = found.about.get("training", {})
    ks = _distinct(training.get("ks", (1, 3)))
    orders = int(training.get("orders", 1))
    finals = _finals(rows, training.get("ks", (1, 3)), ks)
    tables, left_out = _tables(finals, ks, orders)
    if not tables:
        law = f"none of the {len(rows)} points there has a final metric of each k"
        remedy = "ask where trainings do not diverge; maps of earlier versions have none"
        if training.get("early") == "base":  # the others end with their label
            remedy = "sweep with `early: false`, which trains every k to the end"
        raise InputError([Mistake("points", len(rows), law, remedy)])
    squares = MeanSquares(list(tables.values()))
    parts = {
        "floating_point": squares.within("k", confidence),
        "seed": squares.component("w", confidence),
        "order": squares.component("o", confidence),
        "both": squares.component("wo", confidence),
    }
    shortened = int((finals["steps"] < _full_steps(finals, training)).sum()) // len(ks)
    notes = [
        *_missing(parts, orders),
        *_remarks(parts, left_out, shortened, len(finals) // len(ks)),
    ]
    places = {table for table, *_ in tables}
    kept = finals.loc[finals["table"].isin(places) & finals["metric"].notna(), COLUMNS]
    return Variance(
        **parts,
        points=len(places),
        confidence=confidence,
        finals=kept.reset_index(drop=True),
        notes=tuple(notes),
    )


def _full_steps(finals: pd.DataFrame, training: Mapping[str, Any]) -> Any:
    """Updates of a training to its end: fewer at larger rates where `steps_at_lr` is given."""
    steps, rate = training.get("steps", 0), training.get("steps_at_lr")
    return steps if rate is None else (steps * rate / finals["lr"]).round()


def _distinct(ks: Sequence[int]) -> list[int]:
    """Those that give trainings of their own: a power of two changes no bit."""
    return list({odd_part(int(k)): int(k) for k in reversed(ks)}.values())[::-1]


def _finals(rows: pd.DataFrame, named: Sequence[int], ks: Sequence[int]) -> pd.DataFrame:
    """One row a trajectory of each k, with the place that it belongs to."""
    names = dict(zip(named, metric_names(named), strict=True))
    found = []
    for row in rows[["number", *AXIS_NAMES, "trainings"]].to_dict("records"):
        place = {name: row[name] for name in ("number", *AXIS_NAMES)}
        for training in _read(row["trainings"]):
            for k in ks:
                value = training.get(names[k])
                metric = float("nan") if value is None else float(value)
                which = {name: training[name] for name in ("seed", "order", "steps")}
                found.append({**place, **which, "k": k, "metric": metric})
    frame = pd.DataFrame(found, columns=[*COLUMNS, "steps"])
    frame["table"] = frame.groupby(list(AXIS_NAMES), sort=False).ngroup()
    return frame.drop_duplicates(["table", "seed", "order", "k"])


def _read(text: str) -> list[Any]:
    try:
        found = json.loads(text)
        assert all({"seed", "order", "steps"} <= training.keys() for training in found)
    except (ValueError, TypeError, AttributeError, AssertionError) as error:
        law = "is no description of trainings"
        raise InputError([Mistake("trainings", text, law, "export the map again")]) from error
    return list(found)


def _tables(
    finals: pd.DataFrame, ks: Sequence[int], orders: int
) -> tuple[dict[tuple[int, ...], Array], int]:
    """(seeds, orders, ks) numbers of each place, and how many replicates are not among them.

    A seed counts if all its trajectories have a final metric: tables without holes can be solved
    exactly. Where each seed has an order of its own, both are one factor.
    """
    found: dict[tuple[int, ...], list[Array]] = {}
    for (table, _), one in finals.groupby(["table", "seed"], sort=False):
        values = one.pivot(index="order", columns="k", values="metric").reindex(columns=list(ks))
        numbers = values.sort_index().to_numpy(np.float64)
        if numbers.shape == (orders, len(ks)) and np.isfinite(numbers).all():
            # In a merged map two sweeps may have trained a place with orders of their own.
            shared = sorted(one["order"].unique()) if orders > 1 else []
            found.setdefault((int(table), *shared), []).append(numbers)
    kept = orders * sum(map(len, found.values()))
    return {key: np.stack(rows) for key, rows in found.items()}, len(finals) // len(ks) - kept


def _missing(parts: Mapping[str, Component | None], orders: int) -> list[str]:
    """What the trainings cannot tell, and what would tell it."""
    found = []
    if parts["seed"] is None:
        found.append(
            "seed: not known, because every point of these has one seed with a final metric; "
            "sweep with `seeds: 3` or more"
        )
    if orders == 1:
        found.append(
            "data order: not told apart from the seed, which sets both; sweep a task that has "
            "mini-batches with `orders: 3` (a full batch has no order)"
        )
    elif parts["seed"] is None:
        found.append("data order: what it does to one seed, not told from what it does to all")
    return found


def _remarks(
    parts: Mapping[str, Component | None], left_out: int, shortened: int, count: int
) -> list[str]:
    found = [
        f"{SOURCES[name]}: the estimate came out below 0, which is shown as 0"
        for name, part in parts.items()
        if part is not None and part.truncated
    ]
    if left_out:
        found.append(f"{left_out} of {count} trainings left out: no final metric (divergent ones)")
    if shortened:
        found.append(
            f"{shortened} of {count} trainings ended before their last step, with the metric they "
            "had then; sweep with `early: false` for that of the full length"
        )
    return found
