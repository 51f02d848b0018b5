"""When is a training's label settled before its last step?

Three things settle it: the state repeats to the bit, so that the whole future is known; the loss
blows up at a pace that does not slacken; or everything the verdict looks at keeps clear of its
threshold even where its present trend goes on. A loss that has risen settles nothing by itself:
such runs do come back. What is close to a boundary runs on to the end.

The rule and how often it is right are in `docs/verdict.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trainables.domain import Margins, Reason, Regime, Verdict
from trainables.verdict import (
    ASCENT_SHARE,
    LN10,
    NOISE,
    UPWARD,
    UPWARD_SHARE,
    Evidence,
    Observations,
    judge,
)

Array = NDArray[np.float64]

#: Checks are made at multiples of 1/32 of the training, ...
CHECKS = 32
#: ... the sharpness, which costs as much as dozens of steps, is looked at in every second one, ...
LOOKS = 16
#: ... and by plain descent, whose sharpness moves slowly, in every second one of these.
SPARSE = 2
#: Fewer steps than these, or fewer observations of the loss, show no trend.
FEWEST = 32
FEWEST_LOSSES = 12
#: Logarithms go on at this many times their present pace: growth that speeds up is covered too.
WARINESS = 2.0
#: Share of the way to growth by ten that a trend of the loss may take.
SLACK = 0.5
#: Restrained is clear where oscillation exceeds its threshold this many times, ...
CLEAR = 4.0
#: ... or the amplification is at least this; 1 is full separation, 0 the threshold.
AMPLIFIED = 0.25
#: Stable is clear where the amplification stays below minus this, ...
CALM = 0.05
#: ... and the sharpness below this share of its threshold.
BLUNT = 0.95
#: Ratios of sharpness to threshold below this count as equal.
FLAT = 0.01
#: A training whose parameters will move by less than this, relative to themselves, is at rest.
STILL = 0.01
#: Share of the training before which nothing that moves is called stable: on a plateau all is calm,
#: and what follows it is not. The sharpness gives some warning.
LATE = 0.5
#: The same where the sharpness is not known.
LATE_BLIND = 0.75
#: Share of the training before which no trend is called restrained: what is wild at the start may
#: still blow up, or come to rest.
SOON = 3 / 16
#: A loss this many times above max(L at the start, 1), still rising, is a blow-up. Catapults
#: come back from 1e2 to 1e3.
LOST = 1e6
#: Periods that are looked for in a training that repeats itself.
PERIODS = (1, 2, 4, 8)


def check_steps(steps: int) -> tuple[int, ...]:
    """Numbers of updates after which to ask, for a training of `steps` updates."""
    return _multiples(steps, CHECKS)


def look_steps(steps: int) -> tuple[int, ...]:
    """Those of them whose sharpness may be asked for later."""
    return _multiples(steps, LOOKS)


def _multiples(steps: int, parts: int) -> tuple[int, ...]:
    multiples = sorted({-(-steps * i // parts) for i in range(1, parts)})
    return tuple(t for t in multiples if FEWEST <= t < steps)


def settled(
    seen: Observations, sharpness: Callable[[int], float] | None = None
) -> tuple[Verdict, Evidence] | None:
    """Verdict of the full training, if more steps cannot change its label.

    Args:
        seen: what was observed so far. `steps` is T; the arrays hold the first t steps, t one of
            `check_steps(T)`.
        sharpness: sharpness over its threshold after this many updates, t or an earlier one of
            `look_steps(T)`. It is asked only where the verdict would otherwise be stable. None
            where the verdict of this training does not look at the sharpness.

    Returns:
        Verdict and evidence, with t as the verdict's step; None if the training must go on.
    """
    now = len(seen.change)
    checks = check_steps(seen.steps)
    if seen.ended is not None or now not in checks:
        return None
    repeated = _repeated(seen, sharpness)
    if repeated is not None:
        return repeated
    blow_up = _blow_up(seen)
    if blow_up is not None:
        return blow_up
    earlier = checks[checks.index(now) - 1]
    if now == checks[0] or (seen.loss_steps < earlier).sum() < FEWEST_LOSSES:
        return None
    return _followed(seen, now, earlier, sharpness)


def until(seen: Observations, steps: int) -> Observations:
    """The first `steps` steps as a training of their own, without its sharpness."""
    observed = seen.loss_steps < steps
    return replace(
        seen,
        steps=steps,
        loss_steps=seen.loss_steps[observed],
        loss=seen.loss[observed],
        change=seen.change[:steps],
        separation=seen.separation[:, :steps],
        ascent=None if seen.ascent is None else seen.ascent[:steps],
        sharpness=np.empty(0),
    )


# --------------------------------------------------------------------------- the state repeats


def _repeated(
    seen: Observations, sharpness: Callable[[int], float] | None
) -> tuple[Verdict, Evidence] | None:
    """Verdict where all that is observed repeats to the bit; the rest is filled in.

    Only plain descent on full batches: elsewhere a buffer can move while the parameters rest.
    """
    now = len(seen.change)
    if seen.ascent is not None or not seen.descends:
        return None
    rows = np.vstack([seen.loss, seen.change, seen.separation])
    half = rows[:, now // 2 :]
    period = next((p for p in PERIODS if np.array_equal(half[:, p:], half[:, :-p])), None)
    if period is None:
        return None
    more = -(-(seen.steps - now) // period)
    whole = np.hstack([rows, np.tile(rows[:, now - period :], more)])[:, : seen.steps]
    future = replace(
        seen,
        loss_steps=np.arange(float(seen.steps)),
        loss=whole[0],
        change=whole[1],
        separation=whole[2:],
        sharpness=np.empty(0),
    )
    verdict, evidence = judge(future)
    if verdict.regime is Regime.STABLE and sharpness is not None:
        verdict, evidence = judge(replace(future, sharpness=np.array([sharpness(now)])))
    return replace(verdict, step=now), evidence


# --------------------------------------------------------------------------- blow-ups


def _blow_up(seen: Observations) -> tuple[Verdict, Evidence] | None:
    """Divergent where the loss is out of reach and its pace does not slacken."""
    now = len(seen.change)
    begun = until(seen, now)
    windows = [begun.window(i / 8, (i + 1) / 8) for i in range(4, 8)]
    if not all(len(w) and np.isfinite(w).all() for w in windows):
        return None
    levels = np.array([_ln_median(w) for w in windows])
    if levels[-1] < math.log(LOST * max(float(seen.loss[0]), 1.0)):
        return None
    rises = np.diff(levels)
    if rises.min() <= 0 or (rises[1:] < 0.9 * rises[:-1]).any():
        return None
    growth = float(rises[-1]) * 0.4 * seen.steps / (now / 8)
    if growth * SLACK < LN10:
        return None
    evidence: Evidence = {
        "initial_loss": float(seen.loss[0]),
        "final_loss": float(seen.loss[-1]),
        "growth": growth,
    }
    return Verdict(Margins(-1.0, (LN10 - growth) / LN10), Reason.GROWING, now), evidence


# --------------------------------------------------------------------------- trends


@dataclass(frozen=True)
class Trend:
    """A logarithm in the third and in the last quarter of what was run.

    Args:
        before: its value in the third quarter.
        now: its value in the last quarter.
        reach: by how many times their difference it may still move until the end.
    """

    before: float
    now: float
    reach: float

    @property
    def highest(self) -> float:
        """Where it ends if a rise goes on."""
        return self.now + self.reach * max(self.now - self.before, 0.0)

    @property
    def lowest(self) -> float:
        """Where it ends if a fall goes on."""
        return self.now + self.reach * min(self.now - self.before, 0.0)


class Trends:
    """The trends of a training after its first steps, followed to its end at `steps`."""

    def __init__(self, begun: Observations, steps: int) -> None:
        self.begun = begun
        self.steps = steps
        self.reach = _reach(begun.steps * 5 / 8, begun.steps * 7 / 8, steps)
        self.loss = self._of(_mean_ln)
        self.up = self._of(self._ups)

    def _of(self, measure: Callable[[Array], float]) -> Trend:
        third, last = self.begun.window(0.5, 0.75), self.begun.window(0.75, 1.0)
        return Trend(measure(third), measure(last), self.reach)

    def _ups(self, loss: Array) -> float:
        # Below the noise a move is not counted: from there to a little above it is no rise.
        return math.log(max(_upward(self.begun, loss)[0], NOISE * self.begun.roundoff))

    @property
    def amplification(self) -> tuple[float, float]:
        """Lowest and highest amplification that the training may end with."""
        begun = self.begun
        now = begun.steps
        rate = 2 * begun.roundoff * (1 + 3 * begun.change)
        ahead = float(rate[now * 3 // 4 :].mean()) * (self.steps - now)
        bound = min(float(rate.sum()) + ahead, 1.0)
        quarters = [self._parting(row, 4) for row in begun.separation]
        # Twins that have begun to come together show it in the last eighth first.
        eighths = [self._parting(row, 8) for row in begun.separation]
        low = max(min(q.lowest, e.lowest) for q, e in zip(quarters, eighths, strict=True))
        high = max(q.highest for q in quarters)
        scale = math.log(2 / bound)
        return (low - math.log(bound)) / scale, (high - math.log(bound)) / scale

    def _parting(self, row: Array, parts: int) -> Trend:
        """Trend of a separation over the last two of so many parts."""
        size = len(row) // parts
        before, now = (
            math.log(max(float(np.median(w)), self.begun.roundoff))
            for w in (row[-2 * size : -size], row[-size:])
        )
        return Trend(before, now, self.reach * parts / 4)

    @property
    def restrained(self) -> bool:
        """Whether it stays bounded and clearly on the other side of some threshold."""
        begun = self.begun
        if self.loss.highest - self.loss.now > SLACK * LN10:
            return False
        levels = [_ln_median(begun.window(i / 10, (i + 1) / 10)) for i in range(5, 10)]
        if max(levels) - min(levels) > SLACK * LN10:
            return False  # bursts as large as the growth that makes a run divergent
        dead = self.loss.lowest - math.log(max(float(self.begun.loss[0]), 1e-300))
        return self.amplification[0] >= AMPLIFIED or self._oscillates or dead > (1 + SLACK) * LN10

    @property
    def _oscillates(self) -> bool:
        begun = self.begun
        if begun.ascent is not None:
            return begun.descends and min(self._ascents) > CLEAR * ASCENT_SHARE
        if begun.momentum or self.loss.now - self.loss.lowest > SLACK * LN10:
            return False  # ringing, or a loss that settles, ripples and all
        shares = [_upward(begun, begun.window(a, a + 0.25))[1] for a in (0.5, 0.75)]
        return self.up.lowest > math.log(CLEAR * UPWARD) and min(shares) > CLEAR * UPWARD_SHARE

    @property
    def _ascents(self) -> tuple[float, float]:
        assert self.begun.ascent is not None
        now = self.begun.steps
        third, last = self.begun.ascent[now // 2 : now * 3 // 4], self.begun.ascent[now * 3 // 4 :]
        return float(np.mean(third)), float(np.mean(last))

    @property
    def stable(self) -> bool:
        """Whether nothing comes near any threshold; the sharpness is not looked at."""
        start = math.log(max(float(self.begun.loss[0]), 1e-300))
        return (
            self.loss.highest - min(self.loss.now, self.loss.before) <= SLACK * LN10
            and self.loss.highest <= start  # above it, a catapult may be on its way down
            and self.amplification[1] <= -CALM
            and self._smooth
        )

    @property
    def at_rest(self) -> bool:
        """Whether the parameters hardly move any more."""
        begun = self.begun
        quarter = begun.steps // 4
        third, last = (
            math.log(max(float(np.mean(w)), 1e-300))
            for w in (begun.change[-2 * quarter : -quarter], begun.change[-quarter:])
        )
        fastest = min(Trend(third, last, self.reach).highest, 0.0)
        return (self.steps - begun.steps) * math.exp(fastest) <= STILL

    @property
    def _smooth(self) -> bool:
        begun = self.begun
        if begun.ascent is not None:
            return not begun.descends or max(self._ascents) <= ASCENT_SHARE / CLEAR
        return self.up.highest < math.log(UPWARD / CLEAR)


def _followed(
    seen: Observations, now: int, earlier: int, sharpness: Callable[[int], float] | None
) -> tuple[Verdict, Evidence] | None:
    """Verdict where the trends of this check and of the one before leave only one label."""
    begun = until(seen, now)
    if not np.isfinite(begun.loss).all():
        return None
    trends = [Trends(until(seen, t), seen.steps) for t in (now, earlier)]
    if all(t.restrained for t in trends):
        return _judged(begun, Regime.RESTRAINED) if now >= SOON * seen.steps else None
    if not all(t.stable for t in trends):
        return None
    late = now >= (LATE_BLIND if sharpness is None else LATE) * seen.steps
    if not late and not all(t.at_rest for t in trends):
        return None
    if sharpness is None:
        return _judged(begun, Regime.STABLE)
    return _by_sharpness(begun, seen.steps, sharpness)


def _by_sharpness(
    begun: Observations, steps: int, sharpness: Callable[[int], float]
) -> tuple[Verdict, Evidence] | None:
    """Verdict where all but the sharpness is calm.

    It must have been low at every look since half of what was run, and its rise since then, gone
    on, must leave it low.
    """
    now = begun.steps
    looks = [t for t in look_steps(steps) if now / 2 <= t <= now][::-1]
    moves = begun.momentum or not begun.descends or len(looks) == 2
    asked = looks[:: 1 if moves else SPARSE]
    if len(asked) < 2 or asked[0] != now:
        return None
    ratios = []
    for t in asked:
        ratios.append(sharpness(t))
        if not ratios[-1] < BLUNT:
            break
    seen = replace(begun, sharpness=np.array(ratios[::-1]))
    if ratios[-1] < BLUNT:
        reach = _reach(asked[-1], now, steps)
        levels = np.log(np.maximum(ratios, FLAT))
        if levels[0] + reach * (levels[0] - levels.min()) < math.log(BLUNT):
            return _judged(seen, Regime.STABLE)
    if begun.momentum or len(ratios) > 1 or looks[1] < steps / 2:
        return None
    # Plain descent above its threshold, twice where the verdict looks. Momentum may be on its way
    # to a spike, which counts as growth.
    above = min(ratios[0], sharpness(looks[1])) > 1
    return _judged(seen, Regime.RESTRAINED) if above else None


def _judged(begun: Observations, label: Regime) -> tuple[Verdict, Evidence] | None:
    """The verdict of what was run so far, if it has this label."""
    verdict, evidence = judge(begun)
    return (verdict, evidence) if verdict.regime is label else None


def _mean_ln(values: Array) -> float:
    """Mean logarithm: a median jumps between the branches of an orbit that alternates."""
    return float(np.log(np.maximum(values, 1e-300)).mean())


def _upward(begun: Observations, loss: Array) -> tuple[float, float]:
    """Mean upward move over the median, and share of the ups in all movement."""
    moves = np.diff(loss)
    moves[np.abs(moves) <= NOISE * begun.roundoff * np.abs(loss[:-1]) + begun.floor] = 0.0
    rise, travelled = float(np.maximum(moves, 0).sum()), float(np.abs(moves).sum())
    upward = rise / (max(len(moves), 1) * max(float(np.median(loss)), 1e-300))
    return upward, rise / travelled if travelled else 0.0


def _reach(before: float, now: float, end: float) -> float:
    """By how many times its move from `before` to `now` a quantity may still move until `end`."""
    return WARINESS * (end - now) / (now - before)


def _ln_median(values: Array) -> float:
    return math.log(max(float(np.median(values)), 1e-300))
