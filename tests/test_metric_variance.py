"""The split of the final metric's variance: estimator, intervals, and what trainings must give."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chi2, f_oneway
from synthetic import LR, spec_of
from test_variance import PRINTED_OVER_KS, PRINTED_OVER_SEEDS, TABLE
from toys import Bowl

import stabmap
from analysis.components import FACTORS, MeanSquares
from analysis.map import StabilityMap
from trainables.domain import (
    InputError,
    Margins,
    Point,
    PointResult,
    Reason,
    Replicate,
    Training,
    Verdict,
    metric_names,
    replicate_seed,
)

Array = NDArray[np.float64]

SETTLED = Verdict(Margins(1.0, 1.0), Reason.SETTLED, 40)


def map_of(
    tables: dict[Point, Array], ks: tuple[int, ...], steps: int = 40, **training: Any
) -> StabilityMap:
    """A map whose points have the given final metrics, (seeds, orders, ks)."""
    results = []
    for number, (point, table) in enumerate(tables.items()):
        replicates = []
        for i, j in np.ndindex(*table.shape[:2]):
            values = (None if np.isnan(v) else float(v) for v in table[i, j])
            evidence = dict(zip(metric_names(ks), values, strict=True))
            order = 1000 + j if table.shape[1] > 1 else None
            replicates.append(Replicate(100 + i, SETTLED, steps, evidence, order=order))
        results.append((number, PointResult(point, tuple(replicates))))
    about = spec_of({"lr": LR}, steps=40).about()
    about["training"] |= {"ks": list(ks), **training}
    return StabilityMap.of(about, results)


def made_up(
    random: np.random.Generator, shape: tuple[int, int, int], sds: dict[str, float]
) -> Array:
    """A table with independent normal effects of given standard deviations."""
    table = np.full(shape, 0.9)
    for effect, sd in sds.items():
        size = [n if name in effect else 1 for n, name in zip(shape, FACTORS, strict=True)]
        table = table + sd * random.normal(size=size)
    return table


# --------------------------------------------------------------------------- mean squares


def by_projection(table: Array, effect: str) -> tuple[float, int]:
    """Sum of squares of an effect: what its indicator columns explain beyond those of its parts."""
    places = np.stack(np.unravel_index(np.arange(table.size), table.shape), axis=1)

    def indicators(part: tuple[str, ...]) -> Array:
        keys = [tuple(row[[FACTORS.index(name) for name in part]]) for row in places]
        levels = sorted(set(keys))
        return np.array([[float(key == level) for level in levels] for key in keys])

    parts = [p for n in range(len(effect)) for p in itertools.combinations(effect, n)]
    below = np.concatenate([indicators(p) for p in parts], axis=1)
    whole = np.concatenate([below, indicators(tuple(effect))], axis=1)
    residual, rank = [], []
    for design in (below, whole):
        fitted = design @ np.linalg.lstsq(design, table.ravel(), rcond=None)[0]
        residual.append(float(np.square(table.ravel() - fitted).sum()))
        rank.append(int(np.linalg.matrix_rank(design)))
    return residual[0] - residual[1], rank[1] - rank[0]


@pytest.mark.parametrize("shape", [(3, 4, 2), (2, 2, 3), (4, 1, 3), (1, 1, 2)])
def test_mean_squares_are_those_of_least_squares(shape: tuple[int, int, int]) -> None:
    table = np.random.default_rng(1).normal(size=shape)
    found = MeanSquares([table])
    for effect in found.effects:
        square, degrees = by_projection(table, effect)
        assert found.squares[effect] == pytest.approx(square, abs=1e-10)
        assert found.degrees[effect] == degrees
    assert sum(found.squares.values()) == pytest.approx(table.var() * table.size)


def test_two_factors_in_closed_form() -> None:
    """The usual two-way formulas, and the F of a one-way table that SciPy gives."""
    y = np.array(TABLE).T  # (seeds, ks)
    a, c = y.shape
    rows, columns = y.mean(1, keepdims=True), y.mean(0, keepdims=True)
    by_seed = c * np.square(rows - y.mean()).sum() / (a - 1)
    rest = np.square(y - rows - columns + y.mean()).sum() / ((a - 1) * (c - 1))
    found = MeanSquares([y[:, None]])
    seed, rounding = found.component("w", 0.9), found.within("k", 0.9)
    assert seed is not None and rounding is not None
    assert seed.variance == pytest.approx(max((by_seed - rest) / c, 0))
    assert rounding.variance == pytest.approx(y.var(axis=1, ddof=1).mean())
    assert by_seed / rounding.variance == pytest.approx(f_oneway(*y).statistic)
    low, high = (a * (c - 1) * rounding.variance / chi2.ppf(p, a * (c - 1)) for p in (0.95, 0.05))
    assert (rounding.low, rounding.high) == pytest.approx((low, high))


# --------------------------------------------------------------------------- known components

SDS = {"w": 1.0, "o": 0.5, "wo": 0.3, "k": 0.0, "wk": 0.0, "ok": 0.0, "wok": 0.2}


def covered(
    shape: tuple[int, int, int], tables: int, effect: str, true: float
) -> tuple[float, float]:
    """Share of 90 % intervals that hold the true variance, and the mean of estimates over it."""
    random = np.random.default_rng(7)
    hits, estimates = 0, []
    for _ in range(300):
        found = MeanSquares([made_up(random, shape, SDS) for _ in range(tables)])
        part = found.within("k", 0.9) if effect == "k" else found.component(effect, 0.9)
        assert part is not None
        hits += part.low <= true <= part.high
        estimates.append(part.variance)
    return hits / 300, float(np.mean(estimates)) / true


@pytest.mark.parametrize(("effect", "true"), [("k", 0.04), ("w", 1.0), ("o", 0.25), ("wo", 0.09)])
def test_intervals_cover_and_estimates_are_right(effect: str, true: float) -> None:
    """Three standard errors of a share of 0.9 in 300 are 0.052."""
    share, ratio = covered((5, 4, 3), 2, effect, true)
    assert 0.848 < share < 0.965
    assert ratio == pytest.approx(1.0, abs=0.12)


def test_intervals_of_few_seeds_cover() -> None:
    share, _ = covered((3, 1, 2), 1, "w", 1.09 + 0.25)
    assert 0.848 < share <= 1.0


def test_what_k_does_to_all_seeds_alike_is_floating_point_too() -> None:
    random = np.random.default_rng(0)
    sds = {"w": 1.0, "k": 0.3, "wk": 0.4}
    tables = [made_up(random, (6, 1, 6), sds) for _ in range(400)]
    found = MeanSquares(tables)
    rounding, seed = found.within("k", 0.9), found.component("w", 0.9)
    assert rounding is not None and rounding.variance == pytest.approx(0.25, rel=0.1)
    assert seed is not None and seed.variance == pytest.approx(1.0, rel=0.1)


# --------------------------------------------------------------------------- of a map


def test_the_published_table_from_a_map() -> None:
    """The deviations that Sun et al. print, from a map with one point of their accuracies."""
    table = np.array(TABLE).T[:, None]
    found = map_of({Point(0.1): table}, (1, 3, 5, 7, 9, 11), seeds=6).variance(lr=0.1)
    assert found.points == 1 and len(found.finals) == 36
    np.testing.assert_allclose(found.spread.over_ks, PRINTED_OVER_KS, rtol=0, atol=0.01)
    np.testing.assert_allclose(found.spread.over_seeds, PRINTED_OVER_SEEDS, rtol=0, atol=0.01)
    assert found.floating_point is not None
    squares = np.square(found.spread.over_ks) * 6 / 5
    assert found.floating_point.variance == pytest.approx(squares.mean())
    # Seeds scatter hardly more than rounding alone makes them: the paper's finding.
    assert found.seed is not None and found.seed.low == 0
    assert found.seed.variance < 0.1 * found.floating_point.variance


def test_points_are_pooled_and_their_own_levels_do_not_count() -> None:
    random = np.random.default_rng(3)
    sds = {"w": 0.01, "wk": 0.002}
    tables = {
        Point(lr): made_up(random, (4, 1, 3), sds) + level
        for lr, level in zip(np.geomspace(0.1, 10, 30), random.random(30), strict=True)
    }
    known = map_of(tables, (1, 3, 5))
    whole, part = known.variance(), known.variance(lr=(0.1, 1.0))
    assert whole.floating_point is not None and whole.seed is not None
    assert whole.floating_point.sd == pytest.approx(0.002, rel=0.15)
    assert whole.seed.sd == pytest.approx(0.01, rel=0.2)
    assert (whole.points, part.points) == (30, 15)
    assert part.floating_point is not None
    assert part.floating_point.degrees == whole.floating_point.degrees // 2 == 15 * 8
    one = known.variance(number=4)
    assert one.points == 1 and set(one.finals["number"]) == {4}
    shares = whole.table()["share"]
    assert shares.sum() == pytest.approx(1) and list(whole.table()["source"])[1] == "seed"
    assert str(whole).startswith("final metric of 360 trajectories at 30 points\nfloating point")


def test_data_order_is_told_apart_where_it_was_crossed() -> None:
    random = np.random.default_rng(5)
    sds = {"w": 0.01, "o": 0.02, "wok": 0.001}
    tables = {Point(float(lr)): made_up(random, (3, 4, 2), sds) for lr in range(1, 41)}
    found = map_of(tables, (1, 3), seeds=3, orders=4).variance()
    assert found.seed is not None and found.order is not None and found.both is not None
    assert found.seed.sd == pytest.approx(0.01, rel=0.25)
    assert found.order.sd == pytest.approx(0.02, rel=0.2)
    assert found.both.sd < 0.002
    assert not any("data order" in note and "told apart" in note for note in found.notes)


def test_what_is_missing_is_said_with_the_way_to_get_it() -> None:
    alone = map_of({Point(0.1): np.array([[[0.9, 1.0]]])}, (1, 3)).variance()
    assert alone.seed is None and alone.order is None and alone.both is None
    assert alone.floating_point is not None and alone.floating_point.degrees == 1
    text = "\n".join(alone.notes)
    assert "sweep with `seeds: 3` or more" in text and "with `orders: 3`" in text
    crossed = map_of({Point(0.1): np.random.default_rng(0).random((1, 3, 2))}, (1, 3), orders=3)
    found = crossed.variance()
    assert found.order is not None and found.seed is None
    assert "data order: what it does to one seed" in "\n".join(found.notes)


def test_an_estimate_below_0_is_shown_as_0_and_said() -> None:
    """Rows with the same mean: seeds differ less than rounding would make them."""
    table = np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [2.0, 3.0, 1.0]])[:, None]
    found = map_of({Point(0.1): table}, (1, 3, 5)).variance()
    assert found.seed is not None and found.seed.truncated
    assert (found.seed.variance, found.seed.low, found.seed.degrees) == (0.0, 0.0, 2)
    assert "seed: the estimate came out below 0, which is shown as 0" in found.notes


def test_trainings_without_a_metric_are_left_out_with_their_seed() -> None:
    table = np.random.default_rng(0).random((3, 1, 2))
    table[1, 0, 1] = np.nan
    found = map_of({Point(0.1): table}, (1, 3)).variance()
    whole = map_of({Point(0.1): table[[0, 2]]}, (1, 3)).variance()
    assert (found.seed, found.floating_point) == (whole.seed, whole.floating_point)
    assert "1 of 3 trainings left out: no final metric (divergent ones)" in found.notes


def test_early_ends_are_said() -> None:
    found = map_of({Point(0.1): np.random.default_rng(0).random((2, 1, 2))}, (1, 3), steps=20)
    text = "2 of 2 trainings ended before their last step"
    assert any(text in note and "`early: false`" in note for note in found.variance().notes)


def test_steps_that_depend_on_the_rate_are_no_early_ends() -> None:
    tables = {Point(0.4): np.random.default_rng(0).random((2, 1, 2))}
    whole = map_of(tables, (1, 3), steps=40, steps_at_lr=0.2).variance()
    assert not any("ended before" in note for note in whole.notes)  # 40 x 0.2 / 0.4 are 20
    cut = map_of(tables, (1, 3), steps=40, steps_at_lr=0.5).variance()
    assert any("2 of 2 trainings ended before" in note for note in cut.notes)


def test_a_power_of_two_says_nothing_new() -> None:
    """k = 2 repeats k = 1 to the bit: counted as a draw of its own it would halve the variance."""
    table = np.random.default_rng(0).random((3, 1, 2))
    doubled = np.concatenate([table[..., :1], table], axis=2)
    assert (
        map_of({Point(0.1): doubled}, (1, 2, 3)).variance().floating_point
        == map_of({Point(0.1): table}, (1, 3)).variance().floating_point
    )


def test_it_comes_through_every_file_and_through_merging(tmp_path: Any) -> None:
    random = np.random.default_rng(0)
    known = map_of({Point(float(i)): random.random((2, 1, 2)) for i in range(1, 9)}, (1, 3))
    for path in known.export(tmp_path):
        again = stabmap.load_map(path).variance()
        assert (again.seed, again.notes) == (known.variance().seed, known.variance().notes)
        assert again.finals.equals(known.variance().finals)
    assert known.merge(known).variance().seed == known.variance().seed


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"lr": (0.2, 0.3)}, "no trained point lies there; ask for a wider region"),
        ({"number": 77}, "no point has this number"),
        ({"lr": (1, 2, 3)}, "a value or a pair (low, high)"),
        ({"lr": "all"}, "a value or a pair (low, high)"),
        ({"decay": 1.0}, "no such axis"),
        ({"confidence": 1.0}, "0 < confidence < 1"),
    ],
)
def test_bad_questions_are_named(asked: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as caught:
        map_of({Point(0.1): np.ones((2, 1, 2))}, (1, 3)).variance(**asked)
    assert text in str(caught.value)


def test_no_metric_at_all_is_an_error() -> None:
    with pytest.raises(InputError, match="none of the 1 points there has a final metric"):
        map_of({Point(0.1): np.full((2, 1, 2), np.nan)}, (1, 3)).variance()
    with pytest.raises(InputError, match="that of one point; ask with number="):
        _ = stabmap.example_map(seeds=2).variance().spread


def test_a_broken_description_is_named() -> None:
    known = map_of({Point(0.1): np.ones((2, 1, 2))}, (1, 3))
    known.frame["trainings"] = "[3]"
    with pytest.raises(InputError, match="is no description of trainings; export the map again"):
        known.variance()


# --------------------------------------------------------------------------- trainings

MLP = stabmap.get_task("mnist-mlp", samples=30, batch_size=10, width=4)
BARE: dict[str, Any] = {"steps": 20, "early": False, "sharpness": False, "lyapunov": False}


@pytest.mark.parametrize("backend", ["loop", "auto"])
def test_each_k_has_its_final_metric(backend: Any) -> None:
    """A sweep that has another k as its base finds the same metric for it, to the bit."""
    point, task = Point(2.1), Bowl((1.0, 0.7, 0.3))  # beyond 2 / 1.0: rounding grows
    [found] = stabmap.evaluate([point], task, ks=(1, 3, 5, 7), backend=backend, **BARE)
    metrics = [found.replicates[0].evidence[name] for name in metric_names((1, 3, 5, 7))]
    assert len(set(metrics)) == 4
    for k, metric in zip((3, 5, 7), metrics[1:], strict=True):
        [alone] = stabmap.evaluate([point], task, ks=(k, 1), backend=backend, **BARE)
        assert metric == alone.replicates[0].evidence["metric"]


@pytest.mark.parametrize("backend", ["loop", "auto"])
def test_orders_are_crossed_with_initial_weights(backend: Any) -> None:
    """Against a plain loop with the weights of one seed and the batches of another."""
    point = Point(0.3)
    [found] = stabmap.evaluate([point], MLP, seeds=2, orders=2, backend=backend, **BARE)
    pairs = [(r.seed, r.order) for r in found.replicates]
    seeds, orders = sorted({s for s, _ in pairs}), sorted({o or 0 for _, o in pairs})
    assert sorted(pairs) == sorted(itertools.product(seeds, orders)) and len(pairs) == 4
    assert seeds == sorted(replicate_seed(0, point, i) for i in (0, 1))
    inputs, targets = MLP.train_data()
    for replicate in found.replicates:
        assert replicate.order is not None
        module = MLP.module(replicate.seed).to(torch.float32)
        optimiser = torch.optim.SGD(module.parameters(), lr=0.3)
        for step in range(19):
            epoch, position = divmod(step, 3)
            order = np.random.RandomState([replicate.order, epoch]).permutation(30)
            rows = order[position * 10 : (position + 1) * 10]
            optimiser.zero_grad()
            outputs = module(inputs[rows].to(torch.float32))
            loss = torch.nn.functional.cross_entropy(outputs, targets[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        loss = torch.nn.functional.cross_entropy(module(inputs.to(torch.float32)), targets)
        assert replicate.evidence["final_loss"] == pytest.approx(float(loss.detach()), rel=1e-4)


def test_one_order_changes_nothing() -> None:
    """The seeds of a sweep without the option stay what they were."""
    [one] = stabmap.evaluate([Point(0.3)], MLP, seeds=2, **BARE)
    assert [r.seed for r in one.replicates] == [replicate_seed(0, Point(0.3), i) for i in (0, 1)]
    assert [r.order for r in one.replicates] == [None, None]
    assert PointResult.from_dict(one.to_dict()) == one


def test_orders_come_back_from_the_store() -> None:
    [found] = stabmap.evaluate([Point(0.3)], MLP, seeds=1, orders=2, **BARE)
    assert PointResult.from_dict(found.to_dict()) == found
    assert Training(seeds=3, orders=2).replicates == 6


def test_orders_of_a_full_batch_are_refused() -> None:
    full = stabmap.get_task("mnist-mlp", samples=30, width=4)
    with pytest.raises(InputError, match="orders = 2: task mnist-mlp trains on the full batch"):
        stabmap.evaluate([Point(0.3)], full, orders=2)
    with pytest.raises(InputError, match=r"orders = 2: .* leave it out, or give the task mini-bat"):
        spec_of({"lr": LR}, orders=2)
    with pytest.raises(InputError, match="orders = 0: number of data orders >= 1"):
        Training(orders=0)
    with pytest.raises(InputError, match="seeds x orders at most"):
        Training(seeds=1000, orders=1000)
