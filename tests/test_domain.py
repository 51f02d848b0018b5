"""Axes, points, trainings, margins and results: their laws and their messages."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pickle
import re
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from trainables.domain import (
    TORCH_ONLY,
    ZERO_LEVEL,
    Axis,
    Curve,
    InputError,
    Margins,
    Mistake,
    NotReproducibleError,
    OptimiserName,
    Point,
    PointResult,
    Reason,
    Regime,
    Replicate,
    StabmapError,
    Training,
    UnreachableError,
    Verdict,
    nearest,
    odd_part,
    replicate_seed,
)

nonnegative = st.floats(0, allow_infinity=False, allow_nan=False)
finite = st.floats(allow_infinity=False, allow_nan=False)


# ------------------------------------------------------------------ axes


@st.composite
def ranges(draw: st.DrawFn) -> Axis:
    """Free axes of every kind."""
    name = draw(st.sampled_from(["lr", "alpha", "weight_decay"]))
    scale = draw(st.sampled_from(["log", "linear"]))
    low = draw(st.floats(1e-12, 1e3))
    if scale == "linear" and name != "lr" and draw(st.booleans()):
        low = 0.0
    high = draw(st.floats(max(low * 1.01, 1e-9), max(low, 1e-9) * 1e8))
    zero = name != "lr" and low > 0 and draw(st.booleans())
    return Axis(name, scale, low, high, zero=zero)  # type: ignore[arg-type]


@given(ranges(), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_unit_coordinates_and_back(axis: Axis, units: list[float]) -> None:
    assert axis.low is not None
    assert axis.high is not None
    values = axis.from_unit(units)
    assert np.all((axis.low <= values) & (values <= axis.high))
    assert np.all(np.argsort(units, kind="stable") == np.argsort(values, kind="stable")) or len(
        set(values.tolist())
    ) < len(units)
    # Near a small range's low end a coordinate may be finer than the spacing of values.
    spacing = np.spacing(axis.high) / (axis.high - axis.low) if axis.scale == "linear" else 0.0
    np.testing.assert_allclose(axis.to_unit(values), units, atol=1e-12 + 4 * spacing, rtol=0)
    again = axis.from_unit(axis.to_unit(values))
    np.testing.assert_allclose(again, values, rtol=1e-12, atol=1e-15 * axis.high)


@given(ranges())
def test_the_ends_are_exact(axis: Axis) -> None:
    assert axis.from_unit([0.0, 1.0]).tolist() == [axis.low, axis.high]
    assert axis.from_unit(0.0).shape == ()
    ends = np.array([axis.low, axis.high], dtype=np.float64)
    np.testing.assert_allclose(axis.to_unit(ends), [0.0, 1.0], atol=1e-15)


@given(ranges())
def test_the_extra_level(axis: Axis) -> None:
    if axis.zero:
        assert axis.to_unit(0.0) == ZERO_LEVEL
        assert axis.from_unit([ZERO_LEVEL, -1e-9]).tolist() == [0.0, 0.0]
        assert axis.smallest == 0.0
    else:
        assert axis.smallest == axis.low
        assert axis.from_unit(ZERO_LEVEL) != 0.0


def test_scales() -> None:
    log, linear = Axis("lr", "log", 1e-4, 1.0), Axis("alpha", "linear", 0.0, 10.0)
    np.testing.assert_allclose(log.to_unit([1e-4, 1e-3, 1e-2, 1.0]), [0, 0.25, 0.5, 1])
    np.testing.assert_allclose(log.to_unit([1e-5, 10.0]), [-0.25, 1.25])
    np.testing.assert_allclose(log.from_unit([0.25, 1.25]), [1e-3, 10.0])
    np.testing.assert_allclose(linear.to_unit([0.0, 2.5, 20.0]), [0, 0.25, 2])
    np.testing.assert_allclose(linear.from_unit([0.25, 2]), [2.5, 20.0])


def test_values_below_a_log_range_never_lie_beyond_zero() -> None:
    axis = Axis("weight_decay", "log", 1e-4, 1.0, zero=True)
    np.testing.assert_allclose(
        axis.to_unit([9e-5, 1e-30, 0.0]), [-0.01144, -0.15, -0.15], rtol=1e-3
    )


def test_a_fixed_axis() -> None:
    axis = Axis("weight_decay", value=0.0)
    assert not axis.free
    assert axis.smallest == 0.0
    assert axis.to_unit([0.0, 7.0]).tolist() == [0.0, 0.0]
    assert Axis("lr", value=0.1).from_unit([0.0, 0.5, 1.0]).tolist() == [0.1] * 3
    assert Axis("lr", "log", 0.1, 1.0).free


# ------------------------------------------------------------------ messages

Build = Callable[[], object]

#: What is wrong, then field, value, law and remedy as they must appear, in this order.
MESSAGES: list[tuple[Build, tuple[str, str, str, str]]] = [
    (
        lambda: Axis("momentum", value=1.0),
        ("axes.momentum", "'momentum'", "no such axis", "lr, alpha, weight_decay"),
    ),
    (
        lambda: Axis("lr", "log", 1e-3, 1.0, value=0.1),
        ("axes.lr.value", "0.1", "a log axis has no single value", "set scale: fixed"),
    ),
    (
        lambda: Axis("lr", "log", None, 1.0),
        ("axes.lr.low", "None", "a log axis needs a finite low", "write low: <number>"),
    ),
    (
        lambda: Axis("alpha", "linear", 0.0, math.inf),
        ("axes.alpha.high", "inf", "a linear axis needs a finite high", "write high: <number>"),
    ),
    (
        lambda: Axis("alpha", "linear", 1.0, 1.0),
        ("axes.alpha", "[1.0, 1.0]", "low < high must hold", "swap or widen"),
    ),
    (
        lambda: Axis("weight_decay", "log", 0.0, 1.0),
        ("axes.weight_decay.low", "0.0", "low > 0 must hold on a log scale", "add zero: true"),
    ),
    (
        lambda: Axis("lr", "log", -1.0, 1.0),
        ("axes.lr.low", "-1.0", "low > 0 must hold", "use a positive low, or scale: linear"),
    ),
    (
        lambda: Axis("alpha", "linear", -1.0, 1.0),
        ("axes.alpha.low", "-1.0", "alpha >= 0 must hold", "raise low"),
    ),
    (
        lambda: Axis("lr", "linear", 0.0, 1.0),
        ("axes.lr.low", "0.0", "lr > 0 must hold", "raise low"),
    ),
    (
        lambda: Axis("lr", "log", 1e-3, 1.0, zero=True),
        ("axes.lr.zero", "True", "a learning rate of 0 trains nothing", "remove zero"),
    ),
    (
        lambda: Axis("alpha", "linear", 0.0, 1.0, zero=True),
        ("axes.alpha.zero", "True", "0 already belongs", "remove zero or raise low"),
    ),
    (
        lambda: Axis("lr"),
        ("axes.lr.value", "None", "a fixed axis needs a value", "write its value"),
    ),
    (
        lambda: Axis("lr", value=0.0),
        ("axes.lr.value", "0.0", "lr > 0 must hold", "use a finite value"),
    ),
    (
        lambda: Axis("alpha", value=-2.0),
        ("axes.alpha.value", "-2.0", "alpha >= 0 must hold", "use a finite value"),
    ),
    (
        lambda: Axis("alpha", value=math.nan),
        ("axes.alpha.value", "nan", "alpha >= 0 must hold", "use a finite value"),
    ),
    (
        lambda: Axis("alpha", value=1.0, high=3.0),
        ("axes.alpha.high", "3.0", "a fixed axis has no range", "set scale: log or linear"),
    ),
    (
        lambda: Axis("alpha", value=1.0, zero=True),
        ("axes.alpha.zero", "True", "a fixed axis has one level", "give a range"),
    ),
    (lambda: Point(0.0), ("lr", "0.0", "must be finite and > 0", "choose such a value")),
    (lambda: Point(-0.0), ("lr", "-0.0", "must be finite and > 0", "choose such a value")),
    (lambda: Point(math.inf), ("lr", "inf", "must be finite and > 0", "choose such a value")),
    (
        lambda: Point(0.1, math.nan),
        ("alpha", "nan", "must be finite and >= 0", "choose such a value"),
    ),
    (
        lambda: Point(0.1, 0.0, -1e-300),
        ("weight_decay", "-1e-300", "must be finite and >= 0", "choose such a value"),
    ),
    (
        lambda: Point("0.1"),  # type: ignore[arg-type]
        ("lr", "'0.1'", "must be a number", "give a number"),
    ),
    (lambda: Point(0.1, True), ("alpha", "True", "must be a number", "give a number")),
    (lambda: Training(ks=(1, 0)), ("ks", "0", "k is an integer >= 1", "use odd numbers")),
    (
        lambda: Training(ks=(1, 3.0)),  # type: ignore[arg-type]
        ("ks", "3.0", "k is an integer >= 1", "use odd numbers"),
    ),
    (lambda: Training(ks=(True, 3)), ("ks", "True", "k is an integer >= 1", "use odd numbers")),
    (
        lambda: Training(ks=(1, 6)),
        ("ks", "6", "k is odd (2^n is allowed, though it changes nothing)", "use 3, which gives"),
    ),
    (
        lambda: Training(ks=(1, 3, 3)),
        ("ks", "[1, 3, 3]", "each k is listed once", "remove the repeated"),
    ),
    (
        lambda: Training(ks=(1, 4)),
        ("ks", "[1, 4]", "must differ by more than a power of two", "use ks: [1, 3]"),
    ),
    (lambda: Training(ks=()), ("ks", "[]", "must differ", "use ks: [1, 3]")),
    (lambda: Training(seeds=0), ("seeds", "0", "number of replicates >= 1", "use seeds: 1")),
    (lambda: Training(seed=2**63), ("seed", str(2**63), "64 bits", "use seed: 0")),
    (lambda: Training(steps=19), ("steps", "19", "steps >= 20", "a few hundred")),
    (
        lambda: Training(steps=1e3),  # type: ignore[arg-type]
        ("steps", "1000.0", "steps >= 20", "a few hundred"),
    ),
    (lambda: Training(momentum=1.0), ("momentum", "1.0", "0 <= momentum < 1", "use 0, or 0.9")),
    (
        lambda: Training(momentum=math.nan),
        ("momentum", "nan", "0 <= momentum < 1", "use 0, or 0.9"),
    ),
    (
        lambda: Training(dtype="float16"),  # type: ignore[arg-type]
        ("dtype", "'float16'", "unknown choice", "use one of float32, float64, bfloat16, tfloat32"),
    ),
    (
        lambda: Training(optimiser="lbfgs"),
        ("optimiser", "'lbfgs'", "unknown choice", "use one of sgd, nesterov, adam, adamw"),
    ),
    (
        lambda: Training(decay="l1"),  # type: ignore[arg-type]
        ("decay", "'l1'", "unknown choice", "use one of coupled, decoupled"),
    ),
    (
        lambda: Training(lyapunov="often"),  # type: ignore[arg-type]
        ("lyapunov", "'often'", "unknown choice", "use one of False, True"),
    ),
    (
        lambda: Training(stabiliser={"mode": "analytic"}),
        ("stabiliser", "{'mode': 'analytic'}", "a mapping with name", "use stabiliser: stability"),
    ),
    (
        lambda: Training(optimiser="adam", beta2=1.0),
        ("beta2", "1.0", "0 <= beta2 < 1", "use 0.999"),
    ),
    (lambda: Training(optimiser="adam", eps=0.0), ("eps", "0.0", "eps >= 1.18e-38", "use 1e-8")),
    (lambda: Training(beta2=0.9), ("beta2", "0.9", "sgd has no second moment", "use adam")),
    (
        lambda: Training(optimiser="adadelta", momentum=0.5),
        ("momentum", "0.5", "adadelta has no momentum", "rmsprop"),
    ),
    (
        lambda: Training(optimiser="adamw", decay="coupled"),
        ("decay", "'coupled'", "adamw decouples its weight decay", "use optimiser: adam"),
    ),
    (
        lambda: Training(optimiser="adam", eps=1e-60),
        ("eps", "1e-60", "eps >= 1.18e-38, the smallest normal number of float32", "use 1e-8"),
    ),
    (lambda: Training(ks=(1, 3**800)), ("ks", str(3**800), "at most 1048576", "such as 1, 3, 5")),
    (
        lambda: Training(stabiliser={"name": "stability", 5: 1}),  # type: ignore[dict-item]
        ("stabiliser", "{'name': 'stability', 5: 1}", "a mapping with name", "use stabiliser"),
    ),
    (lambda: Training(device="cuda:²"), ("device", "'cuda:²'", "unknown device", "use cpu, cuda")),
    (lambda: Training(device="cpu:7"), ("device", "'cpu:7'", "unknown device", "use cpu, cuda")),
    (lambda: Point(10**400), ("lr", str(10**400), "must be finite and > 0", "choose such a value")),
    (lambda: Training(seeds=True), ("seeds", "True", "number of replicates >= 1", "use seeds: 1")),
    (lambda: Training(device="tpu"), ("device", "'tpu'", "unknown device", "use cpu, cuda")),
    (lambda: Training(device="cuda:x"), ("device", "'cuda:x'", "unknown device", "use cpu, cuda")),
    (lambda: Margins(math.nan, 0.0), ("stable", "nan", "a margin is finite", "report this")),
    (lambda: Margins(0.0, math.inf), ("bounded", "inf", "a margin is finite", "report this")),
    (
        lambda: PointResult(Point(0.1), ()),
        ("replicates", "()", "a result has at least one", "train the point"),
    ),
]


@pytest.mark.parametrize(
    ("build", "parts"), MESSAGES, ids=lambda x: "-".join(x[:3:2]) if isinstance(x, tuple) else ""
)
def test_messages_name_field_value_law_and_remedy(
    build: Build, parts: tuple[str, str, str, str]
) -> None:
    field, value, law, remedy = map(re.escape, parts)
    pattern = rf"^{field} = {value}: (.* )?{law}.*; .*{remedy}"
    with pytest.raises(InputError, match=pattern) as caught:
        build()
    assert len(caught.value.mistakes) == 1
    assert caught.value.mistakes[0].field == parts[0]


def test_all_mistakes_are_listed_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Training(ks=(2, 4), seeds=0, dtype="half", device="gpu")  # type: ignore[arg-type]
    assert [m.field for m in caught.value.mistakes] == ["ks", "seeds", "dtype", "device"]
    assert str(caught.value).count("\n") == 3
    with pytest.raises(InputError) as caught:
        Point(-1.0, -1.0, -1.0)
    assert [m.field for m in caught.value.mistakes] == ["lr", "alpha", "weight_decay"]


def test_errors_cross_processes_and_carry_exit_codes() -> None:
    error = InputError([Mistake("a", 1, "law", "remedy"), Mistake("b", "x", "law", "remedy")])
    back = pickle.loads(pickle.dumps(error))
    assert isinstance(back, InputError)
    assert back.mistakes == error.mistakes
    assert str(back) == str(error) == "a = 1: law; remedy\nb = 'x': law; remedy"
    assert isinstance(error, ValueError)
    codes = {e.exit_code for e in (StabmapError, NotReproducibleError)}
    assert (codes, InputError.exit_code, UnreachableError.exit_code) == ({1}, 2, 4)


# ------------------------------------------------------------------ points and seeds


def test_points() -> None:
    point = Point(np.float32(0.5), 1, -0.0)  # type: ignore[arg-type]
    assert point.key == "lr=0.5,alpha=1.0,weight_decay=0.0"
    assert all(type(v) is float for v in (point.lr, point.alpha, point.weight_decay))
    assert math.copysign(1, point.weight_decay) == 1
    assert Point(0.1) < Point(0.2) < Point(0.2, 1.0)


positive = st.floats(0, exclude_min=True, allow_infinity=False)


points = st.builds(Point, positive, nonnegative, nonnegative)


@given(points, points, st.sampled_from(["lr", "alpha", "weight_decay"]))
def test_keys_are_equal_exactly_where_the_numbers_are(one: Point, other: Point, name: str) -> None:
    assert (one.key == other.key) == (one == other)
    assert dataclasses.replace(one).key == one.key
    value = getattr(one, name)
    assume(value < 1e308)
    assert dataclasses.replace(one, **{name: math.nextafter(value, math.inf)}).key != one.key


def test_replicate_seeds_depend_on_what_is_trained_alone() -> None:
    points = [Point(0.1), Point(0.1 + 2**-56), Point(0.1, 1.0), Point(0.1, 0.0, 1.0)]
    cases = list(itertools.product((0, 1, -5, 2**62), points, (0, 1, 2)))
    seeds = [replicate_seed(*case) for case in cases]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    backwards = [replicate_seed(*case) for case in reversed(cases)]
    assert backwards[::-1] == seeds
    # Fixed for ever: a resumed sweep must find its own seeds again, on any machine.
    assert replicate_seed(0, Point(0.05, 0.0, 20.0), 0) == 474754795


# ------------------------------------------------------------------ trainings


def test_defaults_of_momentum() -> None:
    assert Training().momentum == 0.0
    assert Training(optimiser="nesterov").momentum == 0.9
    assert Training(optimiser="adam").momentum == 0.9
    assert Training(optimiser="adam", momentum=0.0).momentum == 0.0
    assert Training(ks=[1, 3]).ks == (1, 3)  # type: ignore[arg-type]


def test_powers_of_two_are_allowed_and_remarked_upon() -> None:
    assert Training().notes == ()
    (note,) = Training(ks=(1, 3, 8)).notes
    assert "k=8 repeats k=1" in note
    assert [odd_part(k) for k in (1, 2, 3, 12, 40, 1024)] == [1, 1, 3, 3, 5, 1]


def test_smallest_learning_rate() -> None:
    for dtype in (np.float32, np.float64):
        training = Training(ks=(1, 3, 7), dtype=dtype.__name__)  # type: ignore[arg-type]
        least = training.smallest_lr
        assert least / 7 >= np.finfo(dtype).tiny
        assert least * 0.99 / 7 < np.finfo(dtype).tiny


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Adam", "adam"),
        ("SGD", "sgd"),
        ("sdg", "sgd"),
        ("AdamW", "adamw"),
        ("NAdam", "torch.optim.NAdam"),
        ("torch.NAdam", "torch.optim.NAdam"),
        ("radam", "torch.optim.RAdam"),
    ],
)
def test_a_misspelt_optimiser(written: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"did you mean {re.escape(meant)}\\?.*as torch.optim.NAd"):
        Training(optimiser=written)


def test_optimisers_to_suggest_are_those_without_a_rule_of_their_own() -> None:
    built_in = {name.lower() for name in get_args(OptimiserName)}
    assert all(hasattr(torch.optim, name) for name in TORCH_ONLY)
    assert not built_in & {name.lower() for name in TORCH_ONLY}


def test_nearest() -> None:
    assert nearest("Clip-Norm", ["stability", "clip-norm"]) == "clip-norm"
    assert nearest("nadam", ["Adam", "NAdam"]) == "NAdam"
    assert nearest("weigth_decay", ["lr", "weight_decay"]) == "weight_decay"
    assert nearest("xyz", ["lr", "weight_decay"]) is None


# ------------------------------------------------------------------ verdicts and results

margins = st.builds(Margins, finite, finite)


@given(margins)
def test_regime_of_margins(pair: Margins) -> None:
    """Boundedness is asked first; a margin of 0 is still on the calm side."""
    if pair.bounded < 0:
        assert pair.regime is Regime.DIVERGENT
    elif pair.stable < 0:
        assert pair.regime is Regime.RESTRAINED
    else:
        assert pair.regime is Regime.STABLE


@pytest.mark.parametrize(
    ("stable", "bounded", "regime"),
    [
        (0.0, 0.0, "stable"),
        (-1e-9, 0.0, "restrained"),
        (1.0, -1e-9, "divergent"),
        (-1.0, -1.0, "divergent"),
    ],
)
def test_regimes_at_the_boundaries(stable: float, bounded: float, regime: str) -> None:
    assert Margins(stable, bounded).regime == regime
    assert len({r.meaning for r in Regime}) == 3


curves = st.lists(st.tuples(st.integers(0, 10**6), finite), max_size=5).map(
    lambda pairs: Curve(tuple(s for s, _ in pairs), tuple(v for _, v in pairs))
)
replicates = st.builds(
    Replicate,
    seed=st.integers(0, 2**31 - 1),
    verdict=st.builds(Verdict, margins, st.sampled_from(Reason), st.integers(0, 10**6)),
    steps_run=st.integers(0, 10**6),
    evidence=st.dictionaries(st.text(max_size=8), st.one_of(st.none(), finite), max_size=4),
    curves=st.dictionaries(st.text(max_size=8), curves, max_size=3),
)
results = st.builds(
    PointResult,
    point=points,
    replicates=st.lists(replicates, min_size=1, max_size=4).map(tuple),
)


@given(results)
def test_results_survive_json_to_the_bit(result: PointResult) -> None:
    text = json.dumps(result.to_dict(), allow_nan=False)
    back = PointResult.from_dict(json.loads(text))
    assert back == result
    assert repr(back) == repr(result)  # tells 0.0 from -0.0, and texts from enum members


def made_of_plain_values(value: Any) -> bool:
    if type(value) is dict:
        return all(type(k) is str and made_of_plain_values(v) for k, v in value.items())
    if type(value) in (list, tuple):
        return all(map(made_of_plain_values, value))
    return value is None or type(value) in (bool, int, float, str)


@given(results)
def test_dictionaries_hold_plain_values_only(result: PointResult) -> None:
    """An enum member would pass for a text until a checkpoint is read with `weights_only`."""
    assert made_of_plain_values(result.to_dict())


def replicate(seed: int, stable: float, bounded: float, reason: Reason) -> Replicate:
    return Replicate(seed, Verdict(Margins(stable, bounded), reason, 100 + seed), 400)


def test_one_replicate_speaks_for_itself() -> None:
    only = replicate(1, -0.5, 1.0, Reason.SHARP)
    assert PointResult(Point(0.1), (only,)).verdict == only.verdict


def test_the_median_replicate_decides() -> None:
    calm = replicate(1, 0.4, 1.0, Reason.SETTLED)
    wild = replicate(2, -0.6, 1.1, Reason.AMPLIFIED)
    gone = replicate(3, -1.0, -50.0, Reason.EXPLODED)

    def verdict(*of: Replicate) -> Verdict:
        return PointResult(Point(0.1), of).verdict

    assert verdict(calm, calm, wild) == Verdict(Margins(0.4, 1.0), Reason.SETTLED, 101)
    assert verdict(calm, wild) == Verdict(Margins(-0.6, 1.0), Reason.AMPLIFIED, 102)
    assert verdict(calm, gone) == Verdict(Margins(-1.0, -50.0), Reason.EXPLODED, 103)
    assert verdict(calm, wild, gone) == Verdict(Margins(-0.6, 1.0), Reason.AMPLIFIED, 102)
    assert verdict(calm, gone, gone).regime is Regime.DIVERGENT


@given(st.permutations(range(3)))
def test_a_bounded_verdict_never_gives_the_reason_of_a_blow_up(order: list[int]) -> None:
    """One seed of three blows up, another has the smallest margin there is."""
    trio = [
        replicate(1, 0.4, 1.0, Reason.SETTLED),
        replicate(2, -1.0, 1.1, Reason.OSCILLATING),
        replicate(3, -1.0, -50.0, Reason.EXPLODED),
    ]
    verdict = PointResult(Point(0.1), tuple(trio[i] for i in order)).verdict
    assert verdict.regime is Regime.RESTRAINED
    assert verdict.reason is Reason.OSCILLATING
    assert verdict.step == 102


def test_nesterov_without_momentum_is_gradient_descent() -> None:
    assert Training(optimiser="nesterov", momentum=0.0) == Training()
