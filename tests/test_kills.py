"""Worker, driver, MLflow and PostgreSQL killed once each; `make soak` does it twenty times."""

from __future__ import annotations

from pathlib import Path

import pytest
from kills import SPEC, VICTIMS, evaluate_all, run_under_kills

pytestmark = [pytest.mark.ray, pytest.mark.slow]

#: MLflow goes first, so that it is away while the driver begins again.
SEED = 16


def test_four_kills_leave_no_trace(tmp_path: Path) -> None:
    """No point lost or doubled, no run left running, all records agree, the same map."""
    spec = {**SPEC, "steps": 1000, "budget": {"points": 40}}
    report = run_under_kills(tmp_path, spec, len(VICTIMS), seed=SEED, limit=200)
    assert sorted(report.kills) == sorted(VICTIMS)
    assert report.points == 40
    assert (report.lost, report.doubled, report.running, report.left) == (0, 0, 0, 0)
    assert report.fsck[0] == 0, report.fsck[1]
    assert report.clean
    assert report.map == evaluate_all(tmp_path, spec)
