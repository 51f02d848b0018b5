"""What must not get lost or out: results that cannot be kept, passwords."""

from __future__ import annotations

import time
from threading import Event

import pytest

from analysis.load import redacted
from stabmap import load_spec
from sweeps import searcher as searcher_module
from sweeps.rounds import Rounds
from sweeps.runner import _not_kept
from sweeps.searcher import PackSearcher
from trainables.domain import Margins, Point, PointResult, Reason, Replicate, Verdict


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer of a searcher depends on how fast a round is proposed."""
    monkeypatch.setattr(searcher_module, "BLINK", None)


def test_a_result_that_cannot_be_kept_ends_the_sweep() -> None:
    """Tune swallows errors of a searcher: the sweep would wait for ever for the lost result."""
    spec = load_spec("one-layer-cnn", {"budget.points": 4})
    rounds = Rounds(spec)

    def full(results: list[tuple[int, PointResult]]) -> None:
        raise OSError(28, "No space left on device")

    searcher = PackSearcher(spec, rounds, lambda number, point: None, full)
    pack = searcher.suggest("a")
    verdict = Verdict(Margins(1.0, 1.0), Reason.SETTLED, 400)
    result = PointResult(Point(*pack["points"][0]), (Replicate(0, verdict, 400),))
    searcher.on_trial_result("a", {"results": [[pack["numbers"][0], result.to_dict()]]})
    assert isinstance(searcher.failure, OSError)
    assert searcher.suggest("b") == "FINISHED"
    assert rounds.results == {}


def test_a_search_that_fails_ends_the_sweep_with_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = load_spec("one-layer-cnn", {"budget.points": 4})
    rounds = Rounds(spec)
    searcher = PackSearcher(spec, rounds, lambda *_: None, lambda results: None)

    def broken() -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(rounds, "propose", broken)
    assert searcher.suggest("a") == "FINISHED"
    assert searcher.failure is not None
    told = str(_not_kept(searcher.failure, spec, 7))
    assert told == (
        "no further point could be proposed (ZeroDivisionError: by zero); 7 points are kept"
    )


def test_results_of_a_report_are_kept_together_and_once() -> None:
    """One call for a report, which then starts the round that waited for it."""
    given = {"budget.points": 24, "search.audit": 0, "resources.pack": 8}
    spec = load_spec("one-layer-cnn", given)
    rounds, kept = Rounds(spec), list[list[int]]()
    searcher = PackSearcher(
        spec, rounds, lambda *_: None, lambda results: kept.append([n for n, _ in results])
    )
    pack = searcher.suggest("a")
    assert searcher.suggest("b")["numbers"] == list(range(8, 16))
    assert searcher.suggest("c") is None and not rounds.ready
    verdict = Verdict(Margins(1.0, 1.0), Reason.SETTLED, 400)
    results = [
        [number, PointResult(Point(*values), (Replicate(0, verdict, 400),)).to_dict()]
        for number, values in zip(pack["numbers"], pack["points"], strict=True)
    ]
    for _ in range(2):
        searcher.on_trial_result("a", {"results": results})
        assert kept == [list(range(8))]
    assert searcher.suggest("c")["numbers"] == list(range(16, 24))
    searcher.close()
    assert searcher.suggest("d") == "FINISHED"


def test_results_are_heard_of_while_a_round_is_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune is kept waiting only where no result can come."""
    monkeypatch.setattr(searcher_module, "BLINK", 0.01)
    spec = load_spec("one-layer-cnn", {"budget.points": 24, "resources.pack": 8})
    rounds, slow, asked = Rounds(spec), Event(), list[float]()
    propose = rounds.propose

    def slowly() -> list[tuple[int, Point]] | None:
        asked.append(time.monotonic())
        slow.wait(0.3 if len(asked) == 1 else 60)
        return propose()

    monkeypatch.setattr(rounds, "propose", slowly)
    searcher = PackSearcher(spec, rounds, lambda *_: None, lambda results: None)
    first = searcher.suggest("a")
    assert first["numbers"] == list(range(8)) and time.monotonic() - asked[0] >= 0.3
    begin = time.monotonic()
    assert searcher.suggest("b") is None
    assert time.monotonic() - begin < 30
    slow.set()
    monkeypatch.setattr(searcher_module, "BLINK", None)
    assert searcher.suggest("b")["numbers"] == list(range(8, 16))
    searcher.close()


@pytest.mark.parametrize("seeds", [1, 3])
def test_replicates_go_on_with_the_seeds_after_those_of_the_first(seeds: int) -> None:
    """A point that was proposed n times before begins with seed number n * seeds."""
    again = {"lr": 0.3, "weight_decay": 0.01}
    other = {"lr": 1.0, "weight_decay": 0.01}
    spec = load_spec(
        {
            "task": "one-layer-cnn",
            "axes": {"lr": {"scale": "log", "low": 0.01, "high": 100}, "weight_decay": 0.01},
            "seeds": seeds,
            "search": {"method": "sobol", "batch": 4, "start": [again, other, again, again]},
            "resources": {"pack": 3},
            "budget": {"points": 6},
        }
    )
    searcher = PackSearcher(spec, Rounds(spec), lambda number, point: None, lambda *_: None)
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert first["numbers"] == [0, 1, 2] and second["numbers"] == [3]
    assert first["points"][0] == first["points"][2] == second["points"][0] == [0.3, 0.0, 0.01]
    assert first["first"] == [0, 0, seeds]
    assert second["first"] == [2 * seeds]
    assert searcher.suggest("c")["first"] == [0, 0]


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
