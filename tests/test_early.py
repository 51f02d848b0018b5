"""Early verdicts: closed forms on both sides, the traps, and what repeats for ever."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainables.domain import Reason, Regime, Verdict
from trainables.early import check_steps, look_steps, settled
from trainables.verdict import Observations, judge

Array = NDArray[np.float64]
T = 160
U = 2.0**-24
STEPS = np.arange(float(T))


def seen(**changes: Any) -> Observations:
    """A full-batch training that came to rest, but for the changes."""
    fields: dict[str, Any] = {
        "steps": T,
        "roundoff": U,
        "loss_steps": STEPS,
        "loss": np.ones(T),
        "change": np.full(T, 1e-9),
        "separation": np.full((1, T), 1e-8),
    }
    return Observations(**{**fields, **changes})


def begun(whole: Observations, steps: int) -> Observations:
    """What had been seen of it after so many steps."""
    early = whole.loss_steps < steps
    return replace(
        whole,
        loss_steps=whole.loss_steps[early],
        loss=whole.loss[early],
        change=whole.change[:steps],
        separation=whole.separation[:, :steps],
        ascent=None if whole.ascent is None else whole.ascent[:steps],
    )


def early(whole: Observations, sharpness: Callable[[int], float] | None = None) -> Verdict | None:
    """The first early verdict."""
    for step in check_steps(whole.steps):
        answer = settled(begun(whole, step), sharpness)
        if answer is not None:
            assert answer[0].step == step
            return answer[0]
    return None


def never(step: int) -> float:
    raise AssertionError("the sharpness is asked for")


def rel_l1(x: NDArray[Any], y: NDArray[Any]) -> float:
    size = np.abs(x) + np.abs(y)
    return float(2 * np.mean(np.abs(x - y) / np.where(size > 0, size, 1)))


def descent(
    gradient: Callable[[Any], Any], loss: Callable[[Array], float], start: Array, lr: float
) -> Observations:
    """Plain descent in float32, with k = 1 and k = 3."""
    single = np.float32
    pair = [start.astype(single), start.astype(single)]
    losses, changes, separations = [], [], []
    for _ in range(T):
        old = pair[0]
        losses.append(loss(old.astype(float)))
        pair = [
            (w - single(lr / k) * (single(k) * gradient(w).astype(single))).astype(single)
            for w, k in zip(pair, (1, 3), strict=True)
        ]
        changes.append(rel_l1(pair[0], old))
        separations.append(rel_l1(pair[0], pair[1]))
    return seen(loss=np.array(losses), change=np.array(changes), separation=np.array([separations]))


def quadratic(lr: float, rest: float = 0.1) -> Observations:
    """A bowl of curvatures 1 and 0.7 about (1, 2): descent converges for lr < 2."""
    curvature, minimiser = np.array([1.0, 0.7]), np.array([1.0, 2.0])
    return descent(
        lambda w: curvature * (w - minimiser),
        lambda w: rest + float((curvature * (w - minimiser) ** 2).sum()) / 2,
        np.array([3.0, -1.0]),
        lr,
    )


# ------------------------------------------------------------------ when it may be asked


@pytest.mark.parametrize("steps", [20, 33, 100, 160, 400, 1000])
def test_checks_are_parts_of_the_training(steps: int) -> None:
    checks = check_steps(steps)
    assert all(32 <= t < steps for t in checks)
    assert set(checks) == {t for i in range(32) if 32 <= (t := math.ceil(steps * i / 32)) < steps}
    assert list(checks) == sorted(set(checks))
    looks = look_steps(steps)
    assert set(looks) == {t for i in range(16) if 32 <= (t := math.ceil(steps * i / 16)) < steps}
    assert set(looks) <= set(checks)


def test_nothing_is_said_between_checks_or_after_a_blow_up() -> None:
    rest = seen(change=np.zeros(T))
    step = check_steps(T)[-1]
    assert settled(begun(rest, step)) is not None
    assert settled(begun(rest, step - 1)) is None
    ended = replace(begun(rest, step), ended=step, ended_by=Reason.EXPLODED)
    assert settled(ended) is None


# ------------------------------------------------------------------ known fates


def test_a_fixed_point_is_settled_at_once() -> None:
    rest = seen(loss=np.where(STEPS < 5, 3.0, 1.0), change=np.where(STEPS < 5, 0.1, 0.0))
    verdict = early(rest)
    assert verdict is not None
    assert verdict.step == check_steps(T)[0]
    assert verdict.margins == judge(rest)[0].margins


@pytest.mark.parametrize("lr", [0.2, 0.5, 1.0, 1.5])
def test_below_the_edge_a_quadratic_is_stable_early(lr: float) -> None:
    whole = quadratic(lr)
    verdict = early(whole, lambda step: lr / 2)
    assert verdict is not None
    assert verdict.regime is judge(whole)[0].regime is Regime.STABLE
    assert verdict.step < T / 2


@pytest.mark.parametrize("lr", [2.02, 2.06, 2.2, 2.5])
def test_above_the_edge_a_quadratic_is_divergent_or_runs_on(lr: float) -> None:
    whole = quadratic(lr)
    assert judge(whole)[0].regime is Regime.DIVERGENT
    verdict = early(whole, lambda step: lr / 2)
    assert verdict is None or verdict.regime is Regime.DIVERGENT
    assert verdict is not None or lr < 2.2


def test_the_sharpness_decides_last() -> None:
    whole = seen(loss=1 / (1 + STEPS / 20))
    assert early(whole, lambda step: 0.96) is None
    assert early(whole, lambda step: math.nan) is None
    verdict = early(whole, lambda step: 0.5)
    assert verdict is not None
    assert verdict.regime is Regime.STABLE


# ------------------------------------------------------------------ traps


def catapult(lr: float) -> Observations:
    """u v fitted to 0 over many units; above 2 / curvature the loss rises, flattens and falls.

    Lewkowycz et al. 2020: with f = u.v / sqrt(n) and K = (u^2 + v^2) / n, lr K in (2, 4) returns.
    """
    n = 400
    random = np.random.RandomState(0)
    start = random.randn(2 * n)

    def output(w: Array) -> float:
        return float(w[:n].astype(float) @ w[n:].astype(float)) / math.sqrt(n)

    def gradient(w: Array) -> Array:
        return output(w) / math.sqrt(n) * np.concatenate([w[n:], w[:n]])

    curvature = float(start @ start) / n
    return descent(gradient, lambda w: output(w) ** 2 / 2, start, lr / curvature)


@pytest.mark.parametrize("lr", [2.4, 2.7, 3.0, 3.4])
def test_a_catapult_that_comes_back_is_not_ended_as_divergent(lr: float) -> None:
    whole = catapult(lr)
    assert whole.loss.max() > 10 * whole.loss[0]
    assert whole.loss[-1] < 1e-6 * whole.loss[0]
    full = judge(whole)[0].regime
    assert full is not Regime.DIVERGENT
    verdict = early(whole, lambda step: 0.5)
    assert verdict is None or verdict.regime is full


def test_a_thousandfold_rise_that_comes_back_is_waited_for() -> None:
    loss = np.where(STEPS < 70, np.exp(0.1 * STEPS), np.exp(7 - 0.5 * (STEPS - 70)))
    verdict = early(seen(loss=loss))
    assert verdict is None or verdict.regime is not Regime.DIVERGENT


def test_a_blow_up_whose_pace_slackens_is_not_called_divergent() -> None:
    loss = np.exp(30 * (1 - np.exp(-STEPS / 30)))
    assert judge(seen(loss=loss))[0].margins.bounded > 0
    verdict = early(seen(loss=loss))
    assert verdict is None or verdict.regime is not Regime.DIVERGENT


def test_a_high_loss_that_grows_too_slowly_is_not_called_divergent() -> None:
    loss = np.where(STEPS < 3, 1.0, 1e8 * np.exp(0.01 * STEPS))
    assert judge(seen(loss=loss))[0].margins.bounded > 0
    verdict = early(seen(loss=loss))
    assert verdict is None or verdict.reason is not Reason.GROWING


def test_above_its_start_nothing_is_called_stable() -> None:
    loss = np.where(STEPS < 3, 1.0, 2.5 - 1e-4 * STEPS)
    assert early(seen(loss=loss)) is None


@given(
    rate=st.floats(1.01, 8.0), start=st.floats(-20, 20), swing=st.floats(0, 0.3), far=st.booleans()
)
@settings(max_examples=40, deadline=None)
def test_slow_growth_is_never_called_bounded(
    rate: float, start: float, swing: float, far: bool
) -> None:
    """Exponential growth by more than ten over 0.4 T, with or without oscillation on top."""
    pace = rate * math.log(10) / (0.4 * T)
    loss = np.exp(start + pace * STEPS) * (1 + swing * (-1.0) ** STEPS)
    separation = np.full((1, T), 1.9 if far else 1e-8)
    verdict = early(seen(loss=loss, separation=separation), lambda step: 0.1)
    assert verdict is None or verdict.regime is Regime.DIVERGENT


@settings(max_examples=40, deadline=None)
@given(first=st.floats(0.05, 0.85), last=st.floats(1.001, 1.5), power=st.floats(0.5, 2.0))
def test_progressive_sharpening_is_not_called_stable(
    first: float, last: float, power: float
) -> None:
    loss = 1 / (1 + STEPS / 20)
    answer = early(
        seen(loss=loss, change=0.01 / (1 + STEPS)),
        lambda step: first + (last - first) * (step / T) ** power,
    )
    assert answer is None or answer.regime is Regime.RESTRAINED


def test_low_sharpness_that_stays_is_stable() -> None:
    verdict = early(seen(loss=1 / (1 + STEPS / 20)), lambda step: 0.5)
    assert verdict is not None
    assert verdict.regime is Regime.STABLE


@pytest.mark.parametrize("measured", [True, False])
def test_what_still_moves_is_stable_only_late(measured: bool) -> None:
    moving = seen(loss=1 / (1 + STEPS / 20), change=np.full(T, 1e-3))
    verdict = early(moving, (lambda step: 0.5) if measured else None)
    assert verdict is not None
    assert verdict.regime is Regime.STABLE
    assert verdict.step == (T / 2 if measured else 3 * T / 4)


@settings(max_examples=40, deadline=None)
@given(start=st.floats(0.02, 0.3), end=st.floats(1.001, 5.0))
def test_a_plateau_whose_sharpness_grows_exponentially_is_not_called_stable(
    start: float, end: float
) -> None:
    """LeNet-5 sits at the mean of its targets while its features, and its sharpness, begin."""
    moving = seen(loss=1 - 1e-4 * STEPS, change=np.full(T, 1e-3))
    answer = early(moving, lambda step: start * (end / start) ** (step / T))
    assert answer is None or answer.regime is Regime.RESTRAINED


def test_sharpness_above_the_threshold_settles_plain_descent_in_the_second_half() -> None:
    whole = seen(loss=1 / (1 + STEPS / 20))
    verdict = early(whole, lambda step: 1.1)
    assert verdict is not None
    assert verdict.reason is Reason.SHARP
    assert verdict.step > T / 2
    assert early(replace(whole, momentum=0.5), lambda step: 1.1) is None


def test_a_sharpness_that_was_high_in_the_second_half_is_not_forgotten() -> None:
    """Adam comes back below its threshold after every spike."""
    whole = seen(loss=np.where(STEPS < 100, 1 + 0.3 * np.sin(STEPS), 0.5), momentum=0.9)
    assert early(whole, lambda step: 1.05 if step == 110 else 0.5) is None
    assert early(whole, lambda step: 0.5) is not None


def test_twins_that_part_are_not_called_stable() -> None:
    """At 6 % a step a rounding error passes the accumulation bound late, and only there."""
    separation = np.minimum(1e-8 * np.exp(0.06 * STEPS), 0.5)[None]
    assert judge(seen(separation=separation))[0].reason is Reason.AMPLIFIED
    verdict = early(seen(separation=separation))
    assert verdict is None or verdict.regime is Regime.RESTRAINED


def test_twins_that_come_together_again_are_not_called_restrained() -> None:
    separation = np.where(STEPS < 35, 1.0, np.exp(-(STEPS - 35) / 5))[None]
    whole = seen(separation=separation, loss=1 + np.exp(-STEPS / 10))
    assert judge(whole)[0].regime is Regime.STABLE
    verdict = early(whole)
    assert verdict is None or verdict.regime is Regime.STABLE


def test_a_loss_that_settles_in_ripples_is_not_called_oscillating() -> None:
    loss = np.exp(-STEPS / 15) * (1 + 0.5 * (-1.0) ** STEPS)
    assert judge(seen(loss=loss))[0].regime is Regime.STABLE
    verdict = early(seen(loss=loss))
    assert verdict is None or verdict.regime is Regime.STABLE


# ------------------------------------------------------------------ what looks like a trend


def test_rounding_at_rest_is_not_taken_for_a_beginning_oscillation() -> None:
    """Moves below the noise count as none, so the first one above it seems to rise from nothing."""
    loss = np.full(T, 1.0)
    loss[33:38:2] += 10 * 8 * U
    verdict = early(seen(loss=loss, change=np.full(T, 1e-6)), lambda step: 0.5)
    assert verdict is not None
    assert verdict.regime is Regime.STABLE
    assert verdict.step < T / 2


@pytest.mark.parametrize("swing", [1e-5, 1e-4, 1e-3])
def test_an_oscillation_that_grows_out_of_the_noise_is_not_called_stable(swing: float) -> None:
    loss = 1 + np.minimum(swing * np.exp(0.05 * (STEPS - 60)), 0.3) * (-1.0) ** STEPS
    assert judge(seen(loss=loss))[0].regime is Regime.RESTRAINED
    verdict = early(seen(loss=loss), lambda step: 0.9)
    assert verdict is None or verdict.regime is Regime.RESTRAINED


def test_an_orbit_of_two_far_branches_is_restrained_early() -> None:
    """The median of an odd number of losses lies on one branch, that of the next on the other."""
    verdict = early(seen(loss=np.where(STEPS % 2, 1.0, 1.5)), never)
    assert verdict is not None
    assert verdict.reason is Reason.OSCILLATING
    assert verdict.step <= check_steps(T)[2]


def test_plain_descent_looks_at_the_sharpness_where_it_must() -> None:
    asked: list[int] = []

    def low(step: int) -> float:
        asked.append(step)
        return 0.5

    whole = seen(loss=1 / (1 + STEPS / 20), change=np.full(T, 1e-3))
    assert early(whole, low) is not None
    assert asked == [80, 60, 40]
    asked.clear()
    assert early(replace(whole, momentum=0.5), low) is not None
    assert asked == [80, 70, 60, 50, 40]


# ------------------------------------------------------------------ restrained


def test_a_period_two_orbit_is_restrained_early() -> None:
    verdict = early(seen(loss=1 + 0.1 * (-1.0) ** STEPS), never)
    assert verdict is not None
    assert verdict.reason is Reason.OSCILLATING
    assert verdict.step < T / 2


def test_saturated_separation_is_restrained_early() -> None:
    random = np.random.RandomState(0)
    loss = 1 + 0.2 * random.rand(T)
    verdict = early(seen(loss=loss, separation=np.full((1, T), 1.0), momentum=0.9), never)
    assert verdict is not None
    assert verdict.reason is Reason.AMPLIFIED


def test_bursts_run_on() -> None:
    """A loss that jumps by tens may end a decade higher, which is divergent."""
    loss = np.exp(3 * np.sin(STEPS / 6))
    assert early(seen(loss=loss, separation=np.full((1, T), 1.0)), never) is None


def test_one_check_is_not_enough() -> None:
    """Twins that part at step 62: the medians show it at step 75, and once more at step 80."""
    loss = 1 + 0.2 * np.random.RandomState(0).rand(T)
    verdict = early(
        seen(loss=loss, separation=np.where(STEPS < 62, 1e-8, 1.0)[None], momentum=0.9), never
    )
    assert verdict is not None
    assert verdict.step == 80


def test_a_dead_network_is_restrained_early() -> None:
    loss = np.where(STEPS < 3, 1.0, 200.0)
    verdict = early(seen(loss=loss, ascent=np.zeros(T)), never)
    assert verdict is not None
    assert verdict.reason is Reason.DEAD


@pytest.mark.parametrize(
    ("share", "label"), [(0.0, Regime.STABLE), (0.05, None), (0.6, Regime.RESTRAINED)]
)
def test_batches_settle_only_what_is_clear(share: float, label: Regime | None) -> None:
    ascent = (np.random.RandomState(1).rand(T) < share).astype(float)
    verdict = early(seen(ascent=ascent))
    assert (None if verdict is None else verdict.regime) is label


# ------------------------------------------------------------------ what repeats


@given(
    tail=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=2),
    part=st.sampled_from([0.0, 1e-8, 1e-4, 1.5]),
    rise=st.floats(0.1, 50),
    ratio=st.sampled_from([0.3, 0.999, 1.2]),
)
@settings(max_examples=100, deadline=None)
def test_the_verdict_of_what_repeats_is_that_of_the_full_length(
    tail: list[float], part: float, rise: float, ratio: float
) -> None:
    loss = np.where(STEPS < 8, rise * tail[0], np.resize(tail, T))
    change = np.full(T, 0.0 if len(tail) == 1 else 1e-3)
    whole = seen(loss=loss, change=change, separation=np.full((1, T), part))
    verdict = early(whole, lambda step: ratio)
    assume(verdict is not None)
    assert verdict is not None
    full = judge(replace(whole, sharpness=np.full(8, ratio)))[0]
    assert verdict.regime is full.regime
    assert verdict.step <= 0.3 * T


def test_a_buffer_that_moves_while_the_parameters_rest_is_waited_for() -> None:
    rest = seen(change=np.zeros(T), descends=False, momentum=0.9)
    assert settled(begun(rest, check_steps(T)[0])) is None
