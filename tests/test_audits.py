"""Audits, a tolerance and replicates: what rounds do beyond asking the sampler."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, kstest
from synthetic import LR, keep, kept_in, margins_at, measure, result_of, spec_of
from test_rounds import METHODS, START, Oracle, flat, in_any_order, in_order, spec_with

import stabmap
from analysis.map import REGIMES, StabilityMap, evidence_frame
from analysis.quality import Audit, audit_size
from analysis.surface import Surface, columns
from sweeps.rounds import Rounds
from sweeps.spec import SweepSpec
from sweeps.store import Store
from trainables.domain import AXIS_NAMES, Margins, Point, PointResult, Training
from trainables.evaluate import evaluate
from trainables.pack import PackRun

ASKED: Mapping[str, Any] = {"audit": None}
#: Boundaries at 10^-0.5 and 10^0.7, well inside the box.
RATES: Mapping[str, Any] = {"lr": LR, "weight_decay": 0.01}


def turned(point: Point) -> PointResult:
    """A result with another regime than the true one."""
    calm = margins_at(point).stable >= 0
    return result_of(point, Margins(-1, -1) if calm else Margins(1, 1))


def elsewhere(number: int, point: Point) -> PointResult:
    return measure(Point(point.lr / 30, 0.0, point.weight_decay))


def split(rounds: Rounds, train: Oracle | None = None) -> tuple[list[Point], list[Point]]:
    """The points of the search and those of the audits."""
    proposals = in_order(rounds, train) if train else in_order(rounds)
    search: list[Point] = []
    audit: list[Point] = []
    for number, point in (pair for proposed in proposals for pair in proposed):
        (audit if number in rounds.audits else search).append(point)
    return search, audit


# --------------------------------------------------------------------------- the last points


@pytest.mark.parametrize("method", METHODS)
def test_the_last_points_are_an_audit(method: str) -> None:
    """One in eight; random, whatever the results; others with another seed."""

    def moved(number: int, point: Point) -> PointResult:
        return elsewhere(number, point)

    rounds = Rounds(spec_with(method, 24, search=ASKED))
    search, audit = split(rounds)
    assert rounds.audits == dict.fromkeys(range(21, 24), 1)
    assert (len(search), len(audit)) == (21, 3)
    assert split(Rounds(spec_with(method, 24, search=ASKED)), moved)[1] == audit
    assert split(Rounds(spec_with("sobol", 24, 7, search=ASKED)))[1] == audit
    other = split(Rounds(spec_with(method, 24, seed=1, search=ASKED)))[1]
    assert not set(other) & set(audit)
    assert not set(search) & set(audit)


@pytest.mark.parametrize(("audit", "points", "count"), [(None, 7, 0), (None, 8, 1), (13, 20, 13)])
def test_how_many_points_an_audit_has(audit: int | None, points: int, count: int) -> None:
    """Also where it takes several rounds."""
    rounds = Rounds(spec_with("sobol", points, search={"audit": audit}))
    proposals = in_order(rounds)
    assert rounds.audits == dict.fromkeys(range(points - count, points), 1)
    assert len(flat(proposals)) == rounds.proposed == rounds.limit == points
    for proposed in proposals:  # no round is of both kinds
        assert len({number in rounds.audits for number, _ in proposed}) == 1


def test_audits_are_spread_evenly_over_the_box() -> None:
    """Logarithms are uniform, and one point in eight has no weight decay."""
    spec = spec_with("sobol", 1001, 250, search={"audit": 1000})
    _, audit = split(Rounds(spec))
    rate = [np.log10(p.lr) for p in audit]
    assert kstest(rate, "uniform", (-2, 4)).pvalue > 0.01
    decay = np.array([p.weight_decay for p in audit])
    assert binomtest(int((decay == 0).sum()), 1000, 1 / 8).pvalue > 0.01
    assert kstest(np.log10(decay[decay > 0]), "uniform", (-4, 4)).pvalue > 0.01
    assert kstest(np.array(rate)[decay == 0], "uniform", (-2, 4)).pvalue > 0.01
    assert abs(np.corrcoef(rate, decay)[0, 1]) < 0.1


@pytest.mark.parametrize("method", METHODS)
def test_a_larger_budget_begins_like_a_smaller_one(method: str) -> None:
    """Search and audit each for themselves; the search's last round may be cut anywhere."""
    search, audit = split(Rounds(spec_with(method, 32, search=ASKED)))
    assert len(search) + len(audit) == 32
    for points in (10, 17, 24):
        some, few = split(Rounds(spec_with(method, points, search=ASKED)))
        assert some == search[: len(some)]
        assert few == audit[: points // 8]


@pytest.mark.parametrize("method", METHODS)
def test_the_search_never_sees_the_audit(method: str) -> None:
    """With every label of the audit wrong the points are the same, in any order of results."""
    spec = spec_with(method, 26, search={"audit": 8})
    expected = in_order(Rounds(spec))
    for seed in range(3):
        rounds = Rounds(spec)

        def train(number: int, point: Point, rounds: Rounds = rounds) -> PointResult:
            return turned(point) if number in rounds.audits else measure(point)

        assert in_any_order(rounds, random.Random(seed), train) == expected


@pytest.mark.parametrize("method", METHODS)
def test_what_an_audit_finds(method: str) -> None:
    """The map of the points before it, from the surface itself."""
    rounds = Rounds(spec_with(method, 40, search={"audit": 16}))
    in_order(rounds, lambda n, p: turned(p) if n in (30, 33) else measure(p))
    found = rounds.map()
    assert found.frame["audit"].tolist() == [0] * 24 + [1] * 16
    x, indicators = columns(found.axes, found.frame[list(AXIS_NAMES)].to_numpy())
    margins = found.frame[["margin_stable", "margin_bounded"]].to_numpy()
    shown = Surface.fit(x[:24], margins[:24], indicators).probabilities(x[24:]).argmax(1)
    seen = [REGIMES.index(regime) for regime in found.frame["regime"][24:]]
    assert found.audit() == Audit(16, int((shown != seen).sum()), 0.05)
    assert found.quality.audit == found.audit()


# --------------------------------------------------------------------------- where there is none


def test_a_sweep_without_a_free_axis_has_no_audit() -> None:
    rounds = Rounds(spec_of({"lr": 0.1}, search={"audit": 3}))
    assert flat(in_order(rounds)) == [Point(0.1)]
    assert rounds.audits == {}
    assert rounds.map().quality.audit is None


@pytest.mark.parametrize("method", ["sobol", "boundary"])
def test_a_budget_of_time_alone_has_no_audit(method: str) -> None:
    """Nobody knows where its end will be, even where an audit is asked for."""
    rounds = Rounds(spec_with(method, None, search={"audit": 8}))
    for _ in range(6):
        for number, point in rounds.propose() or ():
            rounds.record(number, measure(point))
    assert rounds.proposed == 30
    assert rounds.limit is None and rounds.audits == {}


@pytest.mark.parametrize(("start", "count"), [([], 3), (START, 4)])
def test_the_audit_of_a_grid_is_not_part_of_its_levels(
    start: list[dict[str, float]], count: int
) -> None:
    rounds = Rounds(spec_with("grid", None, search={"start": start, **ASKED}))
    search, audit = split(rounds)
    assert rounds.limit == 30 + len(start) + count
    assert len(set(search[len(start) :])) == 30
    assert len(audit) == count
    assert not set(search) & set(audit)
    more = Rounds(spec_with("grid", None, search={"start": start, "audit": 11}))
    assert split(more)[0] == search
    assert split(Rounds(spec_with("grid", 1000, search={"start": start, **ASKED}))) == (
        search,
        audit,
    )
    cut = split(Rounds(spec_with("grid", 20, search={"start": start, **ASKED})))
    assert cut == (search[:18], audit[:2])


@pytest.mark.parametrize("method", METHODS)
def test_start_points_are_no_audit(method: str) -> None:
    expected = [Point(s["lr"], 0.0, s["weight_decay"]) for s in START]
    search, audit = split(Rounds(spec_with(method, 16, search={"start": START, **ASKED})))
    assert search[:2] == expected
    assert audit == split(Rounds(spec_with(method, 16, search=ASKED)))[1]


# --------------------------------------------------------------------------- tolerance


def easy(points: int | None = 160, tolerance: float = 0.1, **search: Any) -> SweepSpec:
    """A line with two boundaries: a model has it within the tolerance after a few rounds."""
    budget = {"points": points} if points else {"wall_time": "1h"}
    given = {"batch": 8, "startup": 8, "tolerance": tolerance, **search}
    return spec_of(RATES, search=given, budget=budget)


def prefix(rounds: Rounds, count: int) -> StabilityMap:
    results = [(n, r) for n, r in rounds.results.items() if n < count]
    return StabilityMap.of(spec_of(RATES).about(), results)


@pytest.mark.parametrize("points", [300, None])
def test_a_sweep_ends_when_an_audit_agrees(points: int | None) -> None:
    """Not before the model expects it in two rounds in a row, and with an audit large enough."""
    rounds = Rounds(easy(points))
    proposals = in_order(rounds)
    size = audit_size(0.1, 0.025)
    assert rounds.exhausted and rounds.limit == rounds.proposed < 100
    assert set(rounds.audits.values()) == {1}
    assert len(rounds.audits) == size == 36
    found = rounds.map().audit()
    assert found == Audit(size, 0, 0.025)
    assert found.bound <= 0.1
    # A round is asked for when the results of all but the latest are in.
    first = next(i for i, proposed in enumerate(proposals) if proposed[0][0] in rounds.audits)
    starts = [proposed[0][0] for proposed in proposals]
    calm = [prefix(rounds, starts[i - 1]).quality.interval[1] <= 0.1 for i in range(2, first + 1)]
    assert calm[-2:] == [True, True]
    assert not any(a and b for a, b in pairwise(calm[:-1]))


@pytest.mark.parametrize(("tolerance", "size"), [(0.2, 17), (0.07, 51)])
def test_a_smaller_tolerance_takes_a_larger_audit(tolerance: float, size: int) -> None:
    rounds = Rounds(easy(tolerance=tolerance))
    in_order(rounds)
    assert len(rounds.audits) == audit_size(tolerance, 0.025) == size
    found = rounds.map().audit()
    assert found is not None and found.bound <= tolerance


def test_an_audit_that_disagrees_lets_the_search_go_on() -> None:
    """The next one has fresh points and half the level, and may end the sweep."""
    rounds = Rounds(easy(tolerance=0.2))
    wrong: list[int] = []

    def train(number: int, point: Point) -> PointResult:
        near = abs(math.log10(point.lr) - 0.7) < 0.15
        if rounds.audits.get(number) == 1 and near and not wrong:
            wrong.append(number)
        return turned(point) if number in wrong else measure(point)

    proposals = in_order(rounds, train)
    by_number = {number: point for proposed in proposals for number, point in proposed}
    assert wrong
    groups = [{by_number[n] for n, a in rounds.audits.items() if a == i} for i in (1, 2)]
    assert [len(group) for group in groups] == [audit_size(0.2, 0.025), audit_size(0.2, 0.0125)]
    assert not groups[0] & groups[1]
    last = max(n for n, a in rounds.audits.items() if a == 1)
    first = min(n for n, a in rounds.audits.items() if a == 2)
    assert first > last + 8  # the search had a say in between
    found = rounds.map()
    assert found.audit(1) == Audit(17, 1, 0.025)
    assert found.audit() == Audit(20, 0, 0.0125)
    assert rounds.limit == rounds.proposed < 160


def test_the_budget_ends_a_sweep_that_never_agrees() -> None:
    """Every audit finds the opposite of what the map says; the last points are one all the same."""
    rounds = Rounds(easy(120))
    proposals = in_order(rounds, lambda n, p: turned(p) if n in rounds.audits else measure(p))
    assert rounds.limit == len(flat(proposals)) == 120
    numbers = Counter(rounds.audits.values())
    assert numbers[1] == 36
    assert sorted(n for n, a in rounds.audits.items() if a == max(numbers)) == list(
        range(120 - numbers[max(numbers)], 120)
    )
    assert numbers[max(numbers)] >= 15
    found = rounds.map().audit()
    assert found is not None and found.level == 0.05 / 2 ** max(numbers)


def test_a_budget_too_small_for_the_proof() -> None:
    """It is used for the search instead, but for the audit at the end."""
    rounds = Rounds(easy(48))
    in_order(rounds)
    assert rounds.audits == dict.fromkeys(range(42, 48), 1)


# --------------------------------------------------------------------------- replicates


def noisy(rounds: Rounds, share: float = 0.1) -> Oracle:
    """Some trainings are flukes: point and repetition decide, as they decide the seed."""

    def train(number: int, point: Point) -> PointResult:
        digits = np.frombuffer(np.float64(point.lr).tobytes(), np.uint32).tolist()
        chance = np.random.default_rng([*digits, rounds.repetition(number)]).random()
        return turned(point) if chance < share else measure(point)

    return train


def line(points: int, **search: Any) -> SweepSpec:
    given = {"batch": 6, "startup": 8, "audit": 0, **search}
    return spec_of(RATES, search=given, budget={"points": points})


def test_doubted_points_are_trained_again() -> None:
    """Repetition 1, 2: how often the point came before; never more than `replicates` in all."""
    rounds = Rounds(line(72))
    points = flat(in_order(rounds, noisy(rounds, 0.05)))
    times: Counter[Point] = Counter()
    for number, point in enumerate(points):
        assert rounds.repetition(number) == times[point]
        times[point] += 1
    assert 1 < max(times.values()) <= 3
    frame = rounds.map().frame
    assert len(frame) == len(times) < 72
    assert frame["replicates"].tolist() == [times[p] for p in dict.fromkeys(points)]
    once = Rounds(line(56, replicates=1))
    assert len(set(flat(in_order(once, noisy(once, 0.15))))) == 56


@pytest.mark.parametrize("method", METHODS)
def test_start_points_that_are_given_again_are_replicates(method: str) -> None:
    start = [START[0], START[1], START[0], START[0]]
    rounds = Rounds(spec_with(method, 9, search={"start": start, "replicates": 1}))
    in_order(rounds, noisy(rounds, 0.5))
    assert [rounds.repetition(number) for number in range(9)] == [0, 0, 1, 2, 0, 0, 0, 0, 0]
    assert rounds.map().frame["replicates"].tolist() == [3, 1, 1, 1, 1, 1, 1]


def test_without_noise_there_is_little_to_repeat() -> None:
    rounds = Rounds(line(40))
    points = flat(in_order(rounds))
    assert len(set(points)) > 36


margins = st.builds(Margins, st.floats(-1, 1), st.floats(-9, 9))


@given(
    trainings=st.lists(
        st.tuples(st.integers(0, 3), st.lists(margins, min_size=1, max_size=2)), max_size=12
    ),
    order=st.randoms(use_true_random=False),
)
def test_replicates_of_a_point_are_one_row(
    trainings: list[tuple[int, list[Margins]]], order: random.Random
) -> None:
    """The lower median of each margin over all its seeds, whatever the order they come in."""
    places = [Point(0.1 * (i + 1)) for i in range(4)]
    numbered = [
        (
            10 * number,
            PointResult(
                places[place],
                tuple(r for m in each for r in result_of(places[place], m).replicates),
            ),
        )
        for number, (place, each) in enumerate(trainings)
    ]
    audits = {number: 7 for number, _ in numbered[1:]}
    given = list(numbered)
    order.shuffle(given)
    frame = evidence_frame(given, audits)
    seen: dict[Point, list[Margins]] = {}
    first: dict[Point, int] = {}
    for (number, result), (_, each) in zip(numbered, trainings, strict=True):
        seen.setdefault(result.point, []).extend(each)
        first.setdefault(result.point, number)
    assert frame["number"].tolist() == list(first.values())
    for row, (point, every) in zip(frame.to_dict("records"), seen.items(), strict=True):
        assert row["lr"] == point.lr
        middle = (len(every) - 1) // 2
        stable = sorted(m.stable for m in every)[middle]
        bounded = sorted(m.bounded for m in every)[middle]
        assert (row["margin_stable"], row["margin_bounded"]) == (stable, bounded)
        assert row["regime"] == Margins(stable, bounded).regime.value
        assert row["replicates"] == len(every)
        counts = Counter(m.regime.value for m in every)
        assert [row[f"replicates_{regime}"] for regime in REGIMES] == [counts[r] for r in REGIMES]
        assert row["audit"] == (7 if first[point] in audits else 0)


def test_resuming_trains_no_replicate_again(tmp_path: Path) -> None:
    """Broken off three times, then the same again: the map of a sweep in one go."""
    again = {"lr": 0.3, "weight_decay": 0.01}
    spec = line(40, start=[again] * 3).model_copy(update={"folder": str(tmp_path)})
    trained: Counter[tuple[Point, int]] = Counter()

    def session(most: int) -> Rounds:
        rounds = Rounds(spec)
        train = noisy(rounds)
        with Store(spec) as store:
            while proposed := rounds.propose():
                for number, point in proposed:
                    repetition = rounds.repetition(number)
                    known = kept_in(store, point, repetition)
                    if known is None:
                        if not most:
                            return rounds
                        most -= 1
                        known = train(number, point)
                        trained[point, repetition] += 1
                        keep(store, known, 0.0, repetition)
                    rounds.record(number, known)
        return rounds

    for most in (9, 13, 8, 100):
        rounds = session(most)
    whole = Rounds(spec)
    in_order(whole, noisy(whole))
    assert rounds.results == whole.results
    assert set(trained.values()) == {1}
    assert sum(trained.values()) == 40
    assert max(repetition for _, repetition in trained) == 2
    session(0)
    assert sum(trained.values()) == 40


@pytest.mark.parametrize("first", [0, 1, 2])
def test_further_seeds_are_those_of_a_longer_training(first: int) -> None:
    """To the bit, and points that were trained before mix with new ones in a pack."""
    task = stabmap.get_task("one-layer-cnn", image=64)
    points = [Point(0.05, 0.0, 20.0), Point(0.01, 0.0, 20.0)]
    [known, new] = evaluate(points, task, steps=20, seeds=4)
    pack = PackRun(points, task, Training(steps=20, seeds=2), first=[first, 0])
    pack.advance()
    assert pack.results[0].replicates == known.replicates[first : first + 2]
    assert pack.results[1].replicates == new.replicates[:2]
    assert len({replicate.seed for replicate in known.replicates}) == 4


def test_a_pack_goes_on_with_the_same_seeds() -> None:
    """Restored in the middle of the second of two further seeds."""
    task, training = stabmap.get_task("one-layer-cnn", image=64), Training(steps=20, seeds=2)
    point = Point(0.05, 0.0, 20.0)
    [known] = evaluate([point], task, steps=20, seeds=4)
    pack = PackRun([point], task, training, first=[2])
    for _ in range(30):
        pack.advance(0.0)
    again = PackRun([point], task, training, first=[2])
    again.load_state_dict(pack.state_dict())
    again.advance()
    assert again.results[0].replicates == known.replicates[2:]


# --------------------------------------------------------------------------- all at once


@settings(max_examples=3)
@given(seed=st.integers(0, 2**32), doubt=st.sampled_from([0.0, 0.1]))
def test_the_order_of_results_does_not_matter(seed: int, doubt: float) -> None:
    """With audits, a tolerance and replicates; some audits disagree where labels are noisy."""
    start = [{"lr": 0.3}] * 2
    spec = easy(56, 0.2, start=start)
    first, second = Rounds(spec), Rounds(spec)
    expected = in_order(first, noisy(first, doubt))
    assert in_any_order(second, random.Random(seed), noisy(second, doubt)) == expected
    assert first.audits == second.audits
    assert first.limit == second.limit == len(flat(expected))
    assert first.audits
