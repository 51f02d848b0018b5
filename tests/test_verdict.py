"""Verdicts of made-up observations: every reason, every threshold, both margins."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainables.domain import Reason, Regime, Verdict
from trainables.verdict import Observations, judge

Array = NDArray[np.float64]
T = 100
U = 2.0**-24


def seen(**changes: Any) -> Observations:
    """A full-batch training that came to rest: loss 1, no movement, no separation."""
    steps = changes.get("steps", T)
    fields: dict[str, Any] = {
        "steps": steps,
        "roundoff": U,
        "loss_steps": np.arange(float(steps)),
        "loss": np.ones(steps),
        "change": np.zeros(steps),
        "separation": np.zeros((1, steps)),
    }
    return Observations(**{**fields, **changes})


def verdict_of(**changes: Any) -> Verdict:
    return judge(seen(**changes))[0]


def where(*steps: int, value: float, otherwise: float = 0.0) -> Array:
    row = np.full(T, otherwise)
    row[list(steps)] = value
    return row


# ------------------------------------------------------------------ one verdict a reason


def test_settled() -> None:
    verdict, evidence = judge(seen())
    assert verdict.reason is Reason.SETTLED
    assert verdict.regime is Regime.STABLE
    assert verdict.step == T
    assert verdict.margins.bounded == pytest.approx(1.0)
    assert verdict.margins.stable > 0
    assert evidence["initial_loss"] == evidence["final_loss"] == 1.0
    assert evidence["growth"] == 0.0
    assert evidence["sharpness_ratio"] is None


def test_amplified() -> None:
    verdict = verdict_of(separation=np.full((1, T), 0.5))
    assert verdict.reason is Reason.AMPLIFIED
    assert verdict.regime is Regime.RESTRAINED
    assert verdict.margins.bounded == pytest.approx(1.0)


def test_oscillating() -> None:
    verdict = verdict_of(loss=1 + 0.1 * (np.arange(T) % 2))
    assert verdict.reason is Reason.OSCILLATING
    assert verdict.regime is Regime.RESTRAINED


def test_sharp() -> None:
    verdict = verdict_of(sharpness=np.array([0.4, 1.2, 0.5]))
    assert verdict.reason is Reason.SHARP
    assert verdict.regime is Regime.RESTRAINED
    assert verdict.margins.stable == pytest.approx(-0.2)


def test_dead() -> None:
    """The perturbation has died out and the loss is flat, a hundred times above its start."""
    loss = where(0, value=1.0, otherwise=100.0)
    verdict, evidence = judge(seen(loss=loss, separation=np.zeros((2, T)), sharpness=np.zeros(8)))
    assert verdict.reason is Reason.DEAD
    assert verdict.regime is Regime.RESTRAINED
    assert verdict.margins.stable == -1.0
    assert verdict.margins.bounded == pytest.approx(1.0)
    assert evidence["rise"] == pytest.approx(math.log(100))


def test_growing() -> None:
    verdict = verdict_of(loss=np.exp(0.1 * np.arange(T)))
    assert verdict.reason is Reason.GROWING
    assert verdict.regime is Regime.DIVERGENT
    assert verdict.step == T
    assert verdict.margins.stable == -1.0


@pytest.mark.parametrize("reason", [Reason.NON_FINITE, Reason.EXPLODED])
def test_ended(reason: Reason) -> None:
    loss = np.array([1.0, 1e3, 1e6, math.inf])
    short = {"loss": loss, "loss_steps": np.arange(4.0), "change": np.ones(3)}
    verdict, evidence = judge(seen(**short, separation=np.ones((1, 3)), ended=4, ended_by=reason))
    assert verdict.reason is reason
    assert verdict.regime is Regime.DIVERGENT
    assert verdict.step == 4
    assert verdict.margins.stable == -1.0
    assert evidence["final_loss"] == 1e6


# ------------------------------------------------------------------ blow-up


def ended(loss: Sequence[float], steps: int, reason: Reason = Reason.EXPLODED) -> Verdict:
    run = len(loss)
    return verdict_of(
        steps=steps,
        loss=np.array(loss),
        loss_steps=np.arange(float(run)),
        change=np.ones(run - 1),
        separation=np.ones((1, run - 1)),
        ended=run,
        ended_by=reason,
    )


@pytest.mark.parametrize("loss", [1.0, math.inf, math.nan, 0.0, 1e300])
def test_a_blow_up_in_the_first_step_has_a_finite_margin(loss: float) -> None:
    verdict = ended([loss], 400, Reason.NON_FINITE)
    assert -1e6 < verdict.margins.bounded < -1
    assert verdict.step == 1


@given(
    run=st.integers(1, 400),
    pace=st.floats(-3, 600),
    noise=st.integers(0, 2**31),
)
def test_every_blow_up_has_a_negative_finite_margin(run: int, pace: float, noise: int) -> None:
    """Even one at the last step, or after a fall of the loss."""
    random = np.random.RandomState(noise)
    with np.errstate(over="ignore"):
        loss = np.exp(pace * np.arange(run) + random.randn(run))
    verdict = ended(loss.tolist(), 400)
    assert math.isfinite(verdict.margins.bounded)
    assert verdict.margins.bounded < 0
    assert verdict.regime is Regime.DIVERGENT


def test_a_faster_blow_up_lies_further_out() -> None:
    margins = [
        ended(np.exp(pace * np.arange(40)).tolist(), 400).margins.bounded
        for pace in (1.0, 2.0, 4.0)
    ]
    assert margins[0] > margins[1] > margins[2]
    flat = [ended([1.0] * n, 400).margins.bounded for n in (1, 2, 4, 10, 300)]
    assert flat == sorted(flat)
    assert len(set(flat)) == len(flat)
    assert flat[-1] < 0


def test_the_pace_of_a_blow_up_is_that_of_its_second_half() -> None:
    """A slope of ln 1e12 in the last 20 of 40 steps, over 0.45 of the 400 steps asked for."""
    slope = math.log(1e12) / 20
    loss = np.exp(slope * np.maximum(np.arange(41) - 20.0, 0))
    expected = 1 - slope * 0.45 * 400 / math.log(10)
    assert ended(loss.tolist(), 400).margins.bounded == pytest.approx(expected, rel=0.05)


def test_growth_is_taken_between_tenths_of_the_second_half() -> None:
    """ln of the medians' ratio; tenfold growth is the boundary, and one spike is no growth."""
    for factor in (1.0, 9.9, 10.1, 0.01):
        loss = np.ones(T)
        loss[90:] = factor
        loss[:50] = 1e-9  # the first half does not count
        loss[60:90] = 7.0
        verdict = verdict_of(loss=loss)
        assert verdict.margins.bounded == pytest.approx(1 - math.log10(factor))
        assert (verdict.regime is Regime.DIVERGENT) == (factor > 10)
    assert verdict_of(loss=where(95, value=1e9, otherwise=1.0)).regime is not Regime.DIVERGENT


@pytest.mark.parametrize(("steps", "zero"), [(400, 0.100361), (1000, 0.100144)])
def test_boundary_of_decaying_parameters(steps: int, zero: float) -> None:
    """Weight decay 20 alone multiplies the loss by (1 - 20 lr)^2: a known zero of the margin."""
    loss = 9498.0 * (1 - 20 * zero) ** (2 * np.arange(steps))
    assert verdict_of(steps=steps, loss=loss).margins.bounded == pytest.approx(0, abs=4e-3)
    for lr, regime in ((0.1, False), (0.101, True)):
        loss = 9498.0 * (1 - 20 * lr) ** (2 * np.arange(steps))
        assert (verdict_of(steps=steps, loss=loss).regime is Regime.DIVERGENT) == regime


def test_a_loss_of_zero() -> None:
    loss = np.zeros(T)
    loss[0] = 1.0
    verdict = verdict_of(loss=loss)
    assert verdict.regime is Regime.STABLE
    assert math.isfinite(verdict.margins.bounded)


# ------------------------------------------------------------------ amplification


@pytest.mark.parametrize("change", [0.0, 0.5])
@pytest.mark.parametrize("u", [2.0**-24, 2.0**-53])
def test_scale_of_amplification(u: float, change: float) -> None:
    """0 where rounding errors add up linearly, 1 where the trainings have nothing in common."""
    linear = 2 * u * T * (1 + 3 * change)

    def margin(separation: float) -> float:
        of: dict[str, Any] = {"roundoff": u, "change": np.full(T, change)}
        _, evidence = judge(seen(**of, separation=np.full((1, T), separation)))
        found = evidence["amplification"]
        assert found is not None
        return found

    assert margin(linear) == pytest.approx(0.0, abs=1e-12)
    assert margin(2.0) == pytest.approx(1.0)
    assert margin(math.sqrt(2 * linear)) == pytest.approx(0.5)
    assert margin(0.0) == pytest.approx(math.log(u / linear) / math.log(2 / linear))


def test_in_a_coarse_precision_accumulated_rounding_never_exceeds_a_separation_of_one() -> None:
    coarse: dict[str, Any] = {"roundoff": 2.0**-5, "change": np.full(T, 2.0)}
    for separation, expected in ((2.0, 1.0), (1.0, 0.0), (0.5, -1.0)):
        _, evidence = judge(seen(**coarse, separation=np.full((1, T), separation)))
        assert evidence["amplification"] == pytest.approx(expected, abs=1e-12)


def test_amplification_decides_at_linear_accumulation() -> None:
    linear = 2 * U * T
    for factor, regime in ((0.9, Regime.STABLE), (1.1, Regime.RESTRAINED)):
        verdict = verdict_of(separation=np.full((1, T), factor * linear))
        assert verdict.regime is regime


def test_a_spike_of_the_separation_is_no_amplification() -> None:
    """An entry that crosses zero adds 2/N to RelL1 for one step, also among the last ones."""
    spiky = where(93, 97, value=1e-2)[None]
    assert verdict_of(separation=spiky).reason is Reason.SETTLED
    lasting = where(*range(92, 100), value=1e-2)[None]
    assert verdict_of(separation=lasting).reason is Reason.AMPLIFIED


def test_only_the_tail_of_the_separation_counts() -> None:
    """A transient difference that has gone again was amplified no further."""
    early = where(*range(20, 90), value=1.0)[None]
    assert verdict_of(separation=early).reason is Reason.SETTLED


def test_one_separated_pair_is_enough() -> None:
    quiet, apart = np.zeros(T), np.ones(T)
    for pairs in ([quiet, apart, quiet], [apart, quiet], [quiet, quiet, apart]):
        assert verdict_of(separation=np.stack(pairs)).reason is Reason.AMPLIFIED
    # The median is over time, not over pairs and time together.
    half = [where(*range(90, 94), value=1.0), where(*range(94, 98), value=1.0)]
    assert verdict_of(separation=np.stack(half)).reason is Reason.SETTLED


# ------------------------------------------------------------------ oscillation


def test_margin_of_oscillation() -> None:
    """log10(1e-4 / upward) / 4, where upward is the mean rise a step over the median loss."""
    for size, expected in ((1e-2, -0.42), (1e-4, 0.07), (1e-6, 0.57)):
        loss = 3 * (1 + size * (np.arange(T) % 2))
        verdict, evidence = judge(seen(loss=loss))
        moves = [b - a for a, b in itertools.pairwise(loss[50:].tolist())]
        rise = sum(max(move, 0.0) for move in moves)
        assert evidence["upward"] == pytest.approx(rise / 49 / np.median(loss[50:]))
        margin = math.log10(1e-4 / (rise / 49 / np.median(loss[50:]))) / 4
        assert margin == pytest.approx(expected, abs=0.02)
        # Without separation the other margins are near .16 here.
        assert verdict.margins.stable == pytest.approx(min(margin, verdict_of().margins.stable))


def cnn_losses(lr: float, steps: int) -> Array:
    """The one-layer CNN with a 64 x 64 image, weight decay 20, along the pattern."""
    p, x, loss = 545 / 1089, -0.0360371765, []
    for _ in range(steps):
        s = 1 / (1 + math.exp(-x))
        bend = x * s * (1 - s)
        g = p * x * s - (1 - p) * x * (1 - s)
        slope = p * (s + bend) - (1 - p) * (1 - s - bend)
        loss.append(math.log1p(math.exp(-g)) + 10 * x * x / 1024)
        x -= lr * (-1024 * slope / (1 + math.exp(g)) + 20 * x)
    return np.array(loss)


@pytest.mark.parametrize(
    ("lr", "expected"),
    [(0.0322, 0.310), (0.03225, 0.115), (0.0323, -0.035), (0.0324, -0.213), (0.033, -0.493)],
)
def test_oscillation_across_the_exact_boundary(lr: float, expected: float) -> None:
    """The exact boundary is 0.03226; at 400 steps the margin's zero lies 3e-5 above it."""
    _, evidence = judge(seen(steps=400, loss=cnn_losses(lr, 400), roundoff=2.0**-53))
    upward = evidence["upward"]
    assert upward is not None
    assert math.log10(1e-4 / upward) / 4 == pytest.approx(expected, abs=2e-3)


def test_ripples_on_a_descent_are_no_oscillation() -> None:
    """Ups that make at most a twentieth of all movement: the loss still falls."""
    for ups, reason in ((2, Reason.SETTLED), (8, Reason.OSCILLATING)):
        moves = np.full(T, -0.01)
        moves[60 : 60 + 3 * ups : 3] = 0.01
        loss = 3 + np.cumsum(moves)
        verdict, evidence = judge(seen(loss=loss))
        assert evidence["upward_share"] == pytest.approx(ups / 49)
        assert verdict.reason is reason


def test_a_loss_that_falls_tenfold_is_settling_whatever_its_ripples() -> None:
    """Momentum about a loss of 0: every swing rises by a good part of a loss that dies out."""
    swing = 1.0 + 0.5 * (np.arange(T) % 2)
    for fade, reason in ((1.0, Reason.OSCILLATING), (1e-14, Reason.SETTLED)):
        verdict, evidence = judge(seen(loss=swing * fade ** (np.arange(T) / T)))
        assert evidence["upward_share"] is not None
        assert evidence["upward_share"] > 0.1
        assert verdict.reason is reason
    # A loss that falls by 10^1.3 between the two windows has margin 0.3 on that account alone.
    loss = np.array(swing * 10.0 ** (-1.3 / 0.4 * np.arange(T) / T), np.float64)
    assert verdict_of(loss=loss).margins.stable == pytest.approx(0.3, abs=0.02)
    # Spikes that come once and go do not make a loss settle.
    spiked = np.where((np.arange(T) > T // 2) & (np.arange(T) < 0.65 * T), 5.0 * swing, 1.0)
    assert verdict_of(loss=spiked).reason is Reason.OSCILLATING


@pytest.mark.parametrize("offset", [0.0, 3.0])
@pytest.mark.parametrize("momentum", [0.97, 0.99])
def test_ringing_in_a_momentum_buffer_is_no_edge_of_stability(
    momentum: float, offset: float
) -> None:
    """A ringing fades as momentum^t: less than tenfold in a short training, on any offset.

    Without the momentum the same loss oscillates; so does one that does not fade, with it.
    """
    steps = 400
    time = np.arange(float(steps))
    swing = 1 + np.cos(0.5 * time)
    fading = offset + swing * momentum**time
    common = {"steps": steps, "loss_steps": time, "change": np.full(steps, 1e-6)}
    common["separation"] = np.full((1, steps), 1e-16)
    for loss, beta, reason in (
        (fading, momentum, Reason.SETTLED),
        (fading, 0.0, Reason.OSCILLATING),
        (offset + swing, momentum, Reason.OSCILLATING),
    ):
        if loss is fading and beta == 0 and momentum < 0.98:
            continue  # falls tenfold as it is
        assert verdict_of(**common, loss=loss, momentum=beta).reason is reason


def test_loss_moves_that_rounding_of_the_parameters_causes_are_not_counted() -> None:
    loss = 1e-14 * (1.0 + np.arange(T) % 2)
    assert verdict_of(loss=loss).reason is Reason.OSCILLATING
    assert verdict_of(loss=loss, floor=1.1e-14).reason is Reason.SETTLED
    assert verdict_of(loss=loss, floor=0.9e-14).reason is Reason.OSCILLATING


def test_ascents_of_other_rules_than_plain_sgd_decide_nothing() -> None:
    climbing = np.ones(T)
    assert verdict_of(ascent=climbing).reason is Reason.OSCILLATING
    verdict, evidence = judge(seen(ascent=climbing, descends=False))
    assert verdict.reason is Reason.SETTLED
    assert evidence["ascent_share"] is None


def test_oscillation_of_the_first_half_is_forgiven() -> None:
    loss = np.ones(T)
    loss[:50:2] = 5.0
    assert verdict_of(loss=loss).reason is Reason.SETTLED


def test_rounding_noise_of_the_loss_is_no_oscillation() -> None:
    noise = np.arange(T) % 2
    assert judge(seen(loss=1 + 8 * U * noise))[1]["upward"] == 0.0
    upward = judge(seen(loss=1 + 9 * U * noise))[1]["upward"]
    assert upward is not None
    assert upward > 0


@pytest.mark.parametrize(("ascents", "margin"), [(0, 1.0), (2, 0.2), (3, -0.2), (50, -1.0)])
def test_mini_batches_oscillate_where_steps_climb_their_own_batch(
    ascents: int, margin: float
) -> None:
    """More than a twentieth of the steps of the second half."""
    ascent = where(*range(50, 50 + ascents), value=1.0)
    ascent[:50] = 1.0
    jumpy = 1 + 0.5 * (np.arange(T) % 2)  # what the probe loss does is no matter
    verdict, evidence = judge(seen(ascent=ascent, loss=jumpy))
    assert evidence["ascent_share"] == pytest.approx(ascents / 50)
    assert verdict.margins.stable == pytest.approx(min(margin, verdict_of().margins.stable))
    assert (verdict.reason is Reason.OSCILLATING) == (margin < 0)


# ------------------------------------------------------------------ sharpness and death


@pytest.mark.parametrize(
    ("ratios", "margin"),
    [([0.9, 0.98, 0.9], 0.02), ([0.1] * 7 + [1.01], -0.01), ([5.0], -1.0)],
)
def test_the_largest_sharpness_counts(ratios: list[float], margin: float) -> None:
    """At the edge it hovers about its threshold; below it a run may rest however close."""
    verdict, evidence = judge(seen(sharpness=np.array(ratios)))
    assert verdict.margins.stable == pytest.approx(margin)
    assert evidence["sharpness_ratio"] == max(ratios)


@pytest.mark.parametrize("ratios", [[], [0.5, math.nan], [math.inf]])
def test_a_sharpness_that_could_not_be_measured_decides_nothing(ratios: list[float]) -> None:
    verdict, evidence = judge(seen(sharpness=np.array(ratios)))
    assert verdict.margins.stable == verdict_of().margins.stable
    assert evidence["sharpness_ratio"] is None


@pytest.mark.parametrize(("factor", "dead"), [(9.5, False), (10.5, True), (1e6, True)])
def test_death_begins_at_ten_times_the_first_loss(factor: float, dead: bool) -> None:
    verdict = verdict_of(loss=where(0, value=2.0, otherwise=2 * factor))
    assert verdict.margins.stable == pytest.approx(max(1 - math.log10(factor), -1.0))
    assert (verdict.reason is Reason.DEAD) == dead
    assert verdict.regime is (Regime.RESTRAINED if dead else Regime.STABLE)


def test_a_transient_rise_is_no_death() -> None:
    """A catapult: high at first, back at the end."""
    loss = where(*range(1, 12), value=1e3, otherwise=1.0)
    assert verdict_of(loss=loss).reason is Reason.SETTLED


def test_the_smallest_margin_names_the_reason() -> None:
    apart = np.full((1, T), 1e-4)
    mild = verdict_of(separation=apart)
    assert mild.reason is Reason.AMPLIFIED
    worse = verdict_of(separation=apart, sharpness=np.array([1.9]))
    assert worse.reason is Reason.SHARP
    assert worse.margins.stable < mild.margins.stable < 0


SIGNALS: dict[str, Callable[[np.random.RandomState], Array]] = {
    "loss": lambda random: np.exp(random.randn(T) * random.choice([1e-9, 1e-3, 3.0])),
    "change": lambda random: 2 * random.rand(T),
    "separation": lambda random: 2 * random.rand(2, T) ** random.choice([1, 30]),
    "sharpness": lambda random: 3 * random.rand(random.randint(0, 9)),
}


@given(st.integers(0, 2**31))
def test_margins_are_finite_and_agree_with_the_regime(seed: int) -> None:
    random = np.random.RandomState(seed)
    verdict = verdict_of(**{name: make(random) for name, make in SIGNALS.items()})
    assert -1 <= verdict.margins.stable <= 1
    calm = verdict.reason is Reason.SETTLED
    assert calm == (verdict.regime is Regime.STABLE)
    assert (verdict.reason is Reason.GROWING) == (verdict.regime is Regime.DIVERGENT)
