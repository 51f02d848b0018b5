"""What must not get lost or out: results that cannot be kept, passwords."""

from __future__ import annotations

import pytest

from analysis.load import redacted
from stabmap import load_spec
from sweeps.rounds import Rounds
from sweeps.searcher import PackSearcher
from trainables.domain import Margins, Point, PointResult, Reason, Replicate, Verdict


def test_a_result_that_cannot_be_kept_ends_the_sweep() -> None:
    """Tune swallows errors of a searcher: the sweep would wait for ever for the lost result."""
    spec = load_spec("one-layer-cnn", {"budget.points": 4})
    rounds = Rounds(spec)

    def full(number: int, result: PointResult) -> None:
        raise OSError(28, "No space left on device")

    searcher = PackSearcher(spec, rounds, lambda number, point: None, full)
    pack = searcher.suggest("a")
    verdict = Verdict(Margins(1.0, 1.0), Reason.SETTLED, 400)
    result = PointResult(Point(*pack["points"][0]), (Replicate(0, verdict, 400),))
    searcher.on_trial_result("a", {"results": [[pack["numbers"][0], result.to_dict()]]})
    assert isinstance(searcher.failure, OSError)
    assert searcher.suggest("b") == "FINISHED"
    assert rounds.results == {}


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("http://user:hunter2@host:5000/x", "hunter2"),
        ("postgresql://u:p@ss@h/db", "ss@"),
        ("http://token@host", "token"),
        ("postgresql://h/db?user=u&password=hunter2&x=1", "hunter2"),
    ],
)
def test_addresses_are_shown_without_secrets(text: str, secret: str) -> None:
    shown = redacted(f"cannot reach {text} today")
    assert secret not in shown
    assert "ho" in shown or "h/db" in shown
    assert shown.endswith(" today")
