"""Is the verdict right on trainings that its thresholds were not chosen on?

Run: .venv/bin/python benchmarks/verdict_validation.py
     .venv/bin/python benchmarks/verdict_validation.py --quick
     .venv/bin/python benchmarks/verdict_validation.py --families deep-linear --steps 1000

Trains at learning rates drawn log-uniformly (pinned seeds) around the exact boundaries of the three
families in `_families.py` and compares the labels with the exact regimes: per family and dtype the
confusion matrix, the agreement outside and inside a band of 2 % of a boundary in ln lr, and every
disagreement with its evidence. Some eight minutes on one core that has
nothing else to do; `--quick` takes under two.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from _families import FAMILIES, UNKNOWN, Case

from trainables.domain import Point, Verdict
from trainables.evaluate import evaluate

BAND = 0.02
#: Learning rates a case, so that each family has about 200 trainings in a dtype.
COUNTS = {"quadratic": 10, "deep-linear": 14, "two-layer-relu": 16}
LABELS = ("stable", "restrained", "divergent")
#: What the product's own definitions call each fate.
REGIME_OF = {name: name for name in LABELS} | {"flat": "stable", "dead": "restrained"}


@dataclass(frozen=True)
class Row:
    """One training: where, how far from a boundary in ln lr, its exact fate and its verdict."""

    case: Case
    dtype: str
    lr: float
    away: float
    fate: str
    verdict: Verdict
    evidence: dict[str, float | None]

    @property
    def right(self) -> bool:
        """Whether the label is the exact regime."""
        return REGIME_OF[self.fate] == self.verdict.regime.value

    def __str__(self) -> str:
        names = ("growth", "amplification", "upward", "upward_share", "sharpness_ratio", "rise")
        numbers = [f"{n} {v:.3g}" for n in names if (v := self.evidence.get(n)) is not None]
        return (
            f"{self.case.name}; {self.dtype}; lr {self.lr:.6g}, {self.away:.3f} off; "
            f"{self.fate} called {self.verdict.regime.value} ({self.verdict.reason.value}, "
            f"step {self.verdict.step}); {', '.join(numbers)}"
        )


def train(case: Case, count: int, seed: int, dtypes: Iterable[str], steps: int) -> list[Row]:
    """Train a case at `count` learning rates in each dtype."""
    lrs = case.sample(count, seed)
    fates, away = case.look(lrs)
    points = [Point(float(lr), 0.0, case.weight_decay) for lr in lrs]
    rows = []
    for dtype in dtypes:
        results = evaluate(points, case.task, steps=steps, dtype=dtype, **case.training)
        for lr, far, fate, result in zip(lrs, away, fates, results, strict=True):
            replicate = result.replicates[0]
            rows.append(
                Row(
                    case,
                    dtype,
                    float(lr),
                    float(far),
                    str(fate),
                    replicate.verdict,
                    replicate.evidence,
                )
            )
    return rows


def report(title: str, rows: list[Row]) -> None:
    """Print confusion matrix, agreement and disagreements."""
    known = [row for row in rows if row.fate != UNKNOWN]
    outside = [row for row in known if row.away >= BAND]
    print(f"\n== {title}: {len(rows)} trainings")
    for name, some in (("outside the band", outside), ("inside", _without(known, outside))):
        right = sum(row.right for row in some)
        share = f"{right / len(some):.2%}" if some else "-"
        print(f"{name}: {right} of {len(some)} agree ({share})")
    close = [row for row in outside if row.away < 0.25]
    print(f"of those outside, within 0.25: {sum(r.right for r in close)} of {len(close)} agree")
    unknown = Counter(row.verdict.regime.value for row in rows if row.fate == UNKNOWN)
    if unknown:
        print("not counted, fate hangs on rounding errors: called", dict(unknown))
    counts = Counter((row.fate, row.verdict.regime.value) for row in outside)
    print(f"{'exact, outside':>16} " + " ".join(f"{label:>11}" for label in LABELS))
    for fate in REGIME_OF:
        if any(counts[fate, label] for label in LABELS):
            print(f"{fate:>16} " + " ".join(f"{counts[fate, label]:11d}" for label in LABELS))
    for row in outside:
        if not row.right:
            print("  ", row)


def _without(rows: list[Row], others: list[Row]) -> list[Row]:
    gone = {id(row) for row in others}
    return [row for row in rows if id(row) not in gone]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Verdicts against exact regimes.")
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="learning rates a case")
    parser.add_argument("--quick", action="store_true", help="two learning rates a case")
    options = parser.parse_args()
    begin = time.perf_counter()
    for family in options.families:
        count = 2 if options.quick else options.count or COUNTS[family]
        rows: list[Row] = []
        for number, case in enumerate(FAMILIES[family]()):
            seed = 1000 * options.seed + number
            rows += train(case, count, seed, options.dtypes, options.steps)
        for dtype in options.dtypes:
            mine = [row for row in rows if row.dtype == dtype]
            report(f"{family}, {dtype}, {options.steps} steps", mine)
    print(f"\n{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
