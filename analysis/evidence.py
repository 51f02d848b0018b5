"""The evidence of a map: one row a point, with the columns that every export has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from trainables.domain import AXIS_NAMES, Point, PointResult, Regime

#: Version of the columns below; `docs/map-format.md` documents them.
SCHEMA_VERSION = 4
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
    "trainings",
]


def evidence_frame(
    results: Iterable[tuple[int, PointResult]], audits: Mapping[int, int] | None = None
) -> pd.DataFrame:
    """One row a point, in the order in which points were first trained.

    Columns: number of the point's first training, the three axes, regime, reason, step, the two
    margins, how many replicates there are and how many of them fell in each regime, the audit that
    the point belongs to (0: none), the evidence of the replicates as medians, and what tells the
    replicates apart (`described_trainings`).

    Args:
        results: numbered results; those of one point are replicates of it.
        audits: the audit of each training that belongs to one, by number.
    """
    trained: dict[Point, list[tuple[int, PointResult]]] = {}
    for number, result in sorted(results, key=lambda pair: pair[0]):
        trained.setdefault(result.point, []).append((number, result))
    rows = []
    for found in trained.values():
        first, merged = found[0][0], PointResult.merged([result for _, result in found])
        rows.append(evidence_row(first, merged, (audits or {}).get(first, 0)))
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
    row["trainings"] = described_trainings(result)
    return row


def described_trainings(result: PointResult) -> str:
    """Each replicate's seeds, its steps and the final metric of each k, as one text of JSON.

    A text goes through every format of a map as it is, and few questions ask for it.
    """
    return json.dumps(
        [
            {
                "seed": replicate.seed,
                "order": replicate.seed if replicate.order is None else replicate.order,
                "steps": replicate.steps_run,
                **{n: v for n, v in replicate.evidence.items() if n.startswith("metric")},
            }
            for replicate in result.replicates
        ]
    )


def _median(values: list[float]) -> float | None:
    if len(values) < 2:  # nearly always, and NumPy takes a hundred times longer
        return float(values[0]) if values else None
    return float(np.median(values))
