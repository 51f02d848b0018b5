"""Rounds: the proposals depend on the results, never on who delivers them, when or in what order.

The training is a pure function here, and the worker pool a list from which results are taken in
any order.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from synthetic import DECAY, LR, margins_at, measure, spec_of

from sweeps.rounds import Rounds, distance_to_boundary
from sweeps.spec import SweepSpec, load_spec
from trainables.domain import AXIS_NAMES, Margins, Point, PointResult

#: The training of a numbered point.
Oracle = Callable[[int, Point], PointResult]
METHODS = ["sobol", "grid", "tpe", "boundary"]
#: Those that go where the results send them.
ADAPTIVE = ["tpe", "boundary"]
START = [{"lr": 0.5, "weight_decay": 0.01}, {"lr": 20.0, "weight_decay": 0.0}]


def spec_with(method: str, points: int | None = 22, batch: int = 5, **changes: Any) -> SweepSpec:
    """A sweep of two axes, without an audit unless it is asked for."""
    plain = {"method": method, "batch": batch, "levels": 5, "startup": 6, "audit": 0}
    search = plain | changes.pop("search", {})
    budget = {"points": points} if points else {"wall_time": "1h"}
    axes = {"lr": LR, "weight_decay": DECAY}
    return spec_of(axes, search=search, budget=budget, **changes)


def alone(number: int, point: Point) -> PointResult:
    """A training that depends on its point only."""
    return measure(point)


def in_order(rounds: Rounds, train: Oracle = alone) -> list[list[tuple[int, Point]]]:
    """The plain way: each round is evaluated at once, in order."""
    proposals = []
    while proposed := rounds.propose():
        proposals.append(proposed)
        for number, point in proposed:
            rounds.record(number, train(number, point))
    return proposals


def in_any_order(
    rounds: Rounds, choice: random.Random, train: Oracle = alone
) -> list[list[tuple[int, Point]]]:
    """A pool that asks or delivers as chance has it, and delivers what chance picks."""
    proposals, running = [], list[tuple[int, Point]]()
    while True:
        if running and choice.random() < 0.7:
            number, point = running.pop(choice.randrange(len(running)))
            rounds.record(number, train(number, point))
            continue
        proposed = rounds.propose()
        if proposed:
            proposals.append(proposed)
            running += proposed
        elif proposed == [] and not running:
            return proposals


def flat(proposals: list[list[tuple[int, Point]]]) -> list[Point]:
    return [point for proposed in proposals for _, point in proposed]


# --------------------------------------------------------------------------- order


@settings(max_examples=16)
@given(seed=st.integers(0, 2**32), method=st.sampled_from(METHODS), start=st.booleans())
def test_proposals_do_not_depend_on_the_order_of_results(
    seed: int, method: str, start: bool
) -> None:
    spec = spec_with(method, search={"start": START if start else []})
    expected = in_order(Rounds(spec))
    assert in_any_order(Rounds(spec), random.Random(seed)) == expected
    assert [number for proposed in expected for number, _ in proposed] == list(range(22))
    assert [len(proposed) for proposed in expected] == [5, 5, 5, 5, 2]


@pytest.mark.parametrize("method", METHODS)
def test_other_results_and_other_seeds(method: str) -> None:
    """Results move TPE and the model, not the designs; the seed moves all of them."""

    def elsewhere(rounds: Rounds) -> list[Point]:
        points = []
        while proposed := rounds.propose():
            for number, point in proposed:
                points.append(point)
                rounds.record(number, measure(Point(point.lr / 30, 0.0, point.weight_decay)))
        return points

    spec = spec_with(method)
    expected = flat(in_order(Rounds(spec)))
    assert (elsewhere(Rounds(spec)) != expected) == (method in ADAPTIVE)
    assert flat(in_order(Rounds(spec_with(method, seed=1)))) != expected


@pytest.mark.parametrize("method", METHODS)
def test_a_round_waits_for_all_rounds_before_the_last_one(method: str) -> None:
    """Two rounds at once; round r needs the last result of r - 2 and none of r - 1."""
    rounds = Rounds(spec_with(method, points=25))
    earlier, latest = rounds.propose(), rounds.propose()
    assert earlier and latest
    while True:
        # Results of the latest round come in early, and do not help.
        ahead, latest = latest[:3], latest[3:]
        for number, point in ahead:
            rounds.record(number, measure(point))
        for number, point in earlier:
            if not rounds.exhausted:
                assert rounds.propose() is None
            rounds.record(number, measure(point))
        proposed = rounds.propose()
        if rounds.proposed == 25 and not proposed:
            assert proposed == []
            return
        assert proposed is not None and len(proposed) == 5
        earlier, latest = latest, proposed


def own_distributions() -> dict[str, BaseDistribution]:
    return {
        "lr": FloatDistribution(0.01, 100.0, log=True),
        "weight_decay": FloatDistribution(1e-4, 1.0, log=True),
        "weight_decay_is_zero": CategoricalDistribution([False, True]),
    }


def plain_optuna(seed: int, batch: int, points: int, start: list[dict[str, float]]) -> list[Point]:
    """Rounds of TPE written straight on Optuna: tell round r - 2, then ask for round r."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=batch, multivariate=True, constant_liar=True
        )
    study = optuna.create_study(sampler=sampler)
    for place in start:
        zero = place["weight_decay"] == 0
        decay = 1e-4 if zero else place["weight_decay"]
        study.enqueue_trial(
            {"lr": place["lr"], "weight_decay": decay, "weight_decay_is_zero": zero}
        )
    asked: list[list[tuple[optuna.Trial, Point]]] = []
    while (done := sum(map(len, asked))) < points:
        if len(asked) >= 2:
            for trial, point in asked[-2]:
                margins = margins_at(point)
                study.tell(trial, min(abs(margins.stable), abs(margins.bounded)))
        trials = [study.ask(own_distributions()) for _ in range(min(batch, points - done))]
        asked.append([])
        for trial in trials:
            p = trial.params
            decay = 0.0 if p["weight_decay_is_zero"] else p["weight_decay"]
            asked[-1].append((trial, Point(p["lr"], 0.0, decay)))
    return [point for each in asked for _, point in each]


@pytest.mark.parametrize(("seed", "batch", "points"), [(0, 5, 33), (1, 8, 30), (2, 1, 7)])
@pytest.mark.parametrize("start", [[], START])
def test_tpe_sees_exactly_the_rounds_it_should(
    seed: int, batch: int, points: int, start: list[dict[str, float]]
) -> None:
    spec = spec_with("tpe", points, batch, seed=seed, search={"start": start})
    expected = plain_optuna(seed, batch, points, start)
    assert flat(in_order(Rounds(spec))) == expected
    assert flat(in_any_order(Rounds(spec), random.Random(seed))) == expected
    assert len(set(expected)) == points


# --------------------------------------------------------------------------- budgets and ends


@pytest.mark.parametrize("method", METHODS)
def test_a_larger_budget_goes_on_with_the_points_of_a_smaller_one(method: str) -> None:
    """Also where the smaller budget ends in the middle of a round."""
    whole = flat(in_order(Rounds(spec_with(method, 24))))
    assert len(whole) == 24
    for points in (1, 4, 5, 9, 10, 13, 17):
        assert flat(in_order(Rounds(spec_with(method, points)))) == whole[:points]


@pytest.mark.parametrize("method", METHODS)
def test_replay(method: str) -> None:
    """Known results are recorded at once, as on resuming: the proposals stay what they were."""
    spec = spec_with(method)
    first = Rounds(spec)
    expected = in_order(first)
    for known in (0, 3, 7, 14, 22):
        rounds, running = Rounds(spec), list[tuple[int, Point]]()
        proposals = []
        while (proposed := rounds.propose()) != []:
            if proposed is None:
                number, point = running.pop()
                rounds.record(number, measure(point))
                continue
            proposals.append(proposed)
            for number, point in proposed:
                if number < known:
                    rounds.record(number, first.results[number])
                else:
                    running.append((number, point))
        assert proposals == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_start_points_come_first(method: str, batch: int) -> None:
    """In the order of the spec, and before the design, which loses none of its points to them."""
    start = [*START, {"lr": 0.01, "weight_decay": 1e-4}]
    found = flat(in_order(Rounds(spec_with(method, 12, batch, search={"start": start}))))
    expected = [Point(s["lr"], 0.0, s["weight_decay"]) for s in start]
    assert found[:3] == expected
    if method not in ADAPTIVE:
        assert found[3:] == flat(in_order(Rounds(spec_with(method, 9, batch))))
    few = flat(in_order(Rounds(spec_with(method, 2, batch, search={"start": start}))))
    assert few == expected[:2]


@pytest.mark.parametrize("start", [[], START])
def test_a_grid_ends_by_itself(start: list[dict[str, float]]) -> None:
    """Without a budget of points: five levels, six with zero, and the start points."""
    rounds = Rounds(spec_with("grid", None, search={"start": start}))
    assert rounds.limit == 30 + len(start)
    found = flat(in_order(rounds))
    assert len(found) == 30 + len(start)
    assert len(set(found[len(start) :])) == 30
    assert rounds.exhausted
    assert rounds.propose() == []
    larger = Rounds(spec_with("grid", 1000, search={"start": start}))
    assert larger.limit == 30 + len(start)
    assert flat(in_order(larger)) == found
    assert Rounds(spec_with("grid", 7)).limit == 7


@pytest.mark.parametrize("method", ["sobol", *ADAPTIVE])
def test_without_a_budget_of_points_there_is_no_end(method: str) -> None:
    rounds = Rounds(spec_with(method, None))
    assert rounds.limit is None
    for count in range(1, 8):
        proposed = rounds.propose()
        assert proposed is not None and len(proposed) == 5
        assert rounds.proposed == 5 * count
        assert not rounds.exhausted
        for number, point in proposed:
            rounds.record(number, measure(point))


def test_fixed_axes_are_part_of_every_point() -> None:
    axes = {"lr": LR, "alpha": 0.75, "weight_decay": 0.01}
    for method in METHODS:
        spec = spec_of(axes, search={"method": method, "batch": 4}, budget={"points": 7})
        points = flat(in_order(Rounds(spec)))
        assert {(p.alpha, p.weight_decay) for p in points} == {(0.75, 0.01)}
        assert len({p.lr for p in points}) == 7


# --------------------------------------------------------------------------- the study


@pytest.mark.parametrize("method", METHODS)
def test_study_after_the_end(method: str) -> None:
    """All complete, with a finite value and both margins: divergence is a finding."""
    rounds = Rounds(spec_with(method, search={"start": START}))
    proposals = in_any_order(rounds, random.Random(0))
    rounds.finish()
    trials = rounds.study.trials
    assert [t.number for t in trials] == list(range(22))
    for trial, point in zip(trials, flat(proposals), strict=True):
        margins = margins_at(point)
        assert trial.state is optuna.trial.TrialState.COMPLETE
        assert trial.user_attrs["margins"] == [margins.stable, margins.bounded]
        assert trial.user_attrs["regime"] == margins.regime.value
        assert trial.value == min(abs(margins.stable), abs(margins.bounded))
        assert math.isfinite(trial.value)
    assert {t.user_attrs["regime"] for t in trials} == {"stable", "restrained", "divergent"}
    assert rounds.results == {n: measure(p) for each in proposals for n, p in each}


def test_what_nobody_evaluated_is_dropped() -> None:
    """A sweep that is interrupted: the study keeps what is known and has nothing left running."""
    rounds = Rounds(spec_with("sobol"))
    first, second = rounds.propose(), rounds.propose()
    assert first and second
    for number, point in [*first[:2], *second[3:]]:
        rounds.record(number, measure(point))
    rounds.finish()
    states = [t.state.name for t in rounds.study.trials]
    complete = {number for number, _ in [*first[:2], *second[3:]]}
    assert states == ["COMPLETE" if n in complete else "FAIL" for n in range(10)]
    rounds.finish()  # once more does no harm
    assert [t.state.name for t in rounds.study.trials] == states


@given(stable=st.floats(-1, 1), bounded=st.floats(-1e6, 1))
def test_distance_to_boundary(stable: float, bounded: float) -> None:
    found = distance_to_boundary(Margins(stable, bounded))
    assert found in (abs(stable), abs(bounded))
    assert 0 <= found <= min(abs(stable), abs(bounded))


def test_points_are_made_of_the_axes_alone() -> None:
    """Optuna's switch for the zero level never shows in a point."""
    points = flat(in_order(Rounds(spec_with("tpe", 22))))
    assert any(p.weight_decay == 0 for p in points)
    assert all(1e-4 <= p.weight_decay <= 1 for p in points if p.weight_decay)
    assert all(set(vars(p)) == set(AXIS_NAMES) for p in points)


def test_a_sweep_without_a_free_axis_is_one_point() -> None:
    for method in (*METHODS, "gp"):
        spec = load_spec(
            {
                "task": "one-layer-cnn",
                "axes": {"lr": 0.05, "weight_decay": 20},
                "budget": {"points": 64},
                "search": {"method": method},
            }
        )
        rounds = Rounds(spec)
        assert [point for _, point in rounds.propose() or ()] == [Point(0.05, 0.0, 20.0)]
        assert rounds.exhausted


def test_gp_depends_on_results_alone_too() -> None:
    """Optuna's own process is slow, so a small sweep has to do."""
    spec = spec_with("gp", 9, 3)
    expected = in_order(Rounds(spec))
    assert in_any_order(Rounds(spec), random.Random(1)) == expected
    assert len(set(flat(expected))) == 9
