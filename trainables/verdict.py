"""From what was observed along a training to its margins, its regime and the reason.

Two questions are kept apart, each with a signed margin, positive on the calm side:

- bounded or divergent: does the loss blow up, or grow more than tenfold over the second half?
- stable or restrained: is a rounding-sized perturbation amplified, does the loss oscillate, is the
  sharpness above what the optimiser tolerates, did the network die?

None of the second group sees every restrained run: a period-2 orbit damps perturbations and a
saturated network hides oscillation, so the margin is the smallest of all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trainables.domain import Margins, Reason, Verdict

Array = NDArray[np.float64]

LN10 = math.log(10.0)
#: Loss beyond this many times max(initial loss, 1) is a blow-up at once: no run came back from it.
EXPLOSION = 1e12
#: Mean upward move of the loss, relative to its median, that counts as oscillation.
UPWARD = 1e-4
#: Share of upward moves in all movement below which ups are ripples on a descent.
UPWARD_SHARE = 0.05
#: Share of mini-batch steps that raise their own batch's loss, above which a run oscillates.
ASCENT_SHARE = 0.05
#: A momentum whose ringing fades by less than exp(-2 x this) over a training rings through it: then
#: medians of tenths show the phase of a slow ringing, not its decay.
RINGING = 6.0
#: Loss changes below this many units roundoff of the loss are rounding noise.
NOISE = 8.0


@dataclass(frozen=True)
class Observations:
    """What was seen along the trajectories of one seed. T is the number of steps asked for.

    Args:
        steps: T.
        roundoff: unit roundoff u of the training's dtype.
        loss_steps: steps at which the loss was observed, before the update, increasing.
        loss: the objective (task loss plus coupled or decoupled decay term, without the
            regulariser) there, evaluated in float64 from the parameters.
        change: RelL1 between the parameters after and before each update, (steps run,).
        separation: RelL1 between the base trajectory and each other k after each update,
            (pairs, steps run).
        ascent: for mini-batches, whether an update raised the loss of its own batch, (steps run,);
            None for the full batch. What lies before the second half is not looked at; nothing is
            where the optimiser does not descend.
        floor: loss moves that rounding of the parameters alone can cause; they are not counted.
        descends: whether a stable run of this optimiser lowers the loss of each batch. Plain SGD
            does; momentum and Adam step along older gradients, so for them `ascent` would decide
            nothing.
        momentum: decay rate of the momentum buffer; what rings in it fades by that factor a step.
        sharpness: sharpness over its threshold at several steps of the second half; empty where
            it was not measured.
        ended: step of the blow-up, or None for a run of full length.
        ended_by: why it ended, with `ended`.
    """

    steps: int
    roundoff: float
    loss_steps: Array
    loss: Array
    change: Array
    separation: Array
    ascent: Array | None = None
    floor: float = 0.0
    descends: bool = True
    momentum: float = 0.0
    sharpness: Array = field(default_factory=lambda: np.empty(0))
    ended: int | None = None
    ended_by: Reason | None = None

    def window(self, begin: float, end: float) -> Array:
        """Losses observed at steps in [begin T, end T)."""
        inside = (self.loss_steps >= begin * self.steps) & (self.loss_steps < end * self.steps)
        return self.loss[inside]


Evidence = dict[str, float | None]


def judge(seen: Observations) -> tuple[Verdict, Evidence]:
    """Verdict of one seed, with the numbers behind it.

    The formulas, and what each criterion misses, are in `docs/verdict.md`.
    """
    evidence: Evidence = {
        "initial_loss": _finite(seen.loss[0]),
        "final_loss": _finite(_last_finite(seen.loss)),
    }
    if seen.ended is not None:
        assert seen.ended_by is not None
        margin = (LN10 - _blow_up_growth(seen)) / LN10
        evidence["growth"] = _finite(_blow_up_growth(seen))
        return Verdict(Margins(-1.0, margin), seen.ended_by, seen.ended), evidence
    growth = _growth(seen)
    if _rings_through(seen):
        # What swings back is below what was there before; what diverges is above all of it.
        before = float(seen.window(0.0, 0.6).max())
        growth = min(growth, _log_median(seen.window(0.9, 1.0)) - math.log(max(before, 1e-300)))
    evidence["growth"] = growth
    bounded = (LN10 - growth) / LN10
    if bounded < 0:
        return Verdict(Margins(-1.0, bounded), Reason.GROWING, seen.steps), evidence
    margins = {
        Reason.AMPLIFIED: _amplification_margin(seen, evidence),
        Reason.OSCILLATING: _oscillation_margin(seen, evidence),
        Reason.SHARP: _sharpness_margin(seen, evidence),
        Reason.DEAD: _dead_margin(seen, evidence),
    }
    reason, stable = min(margins.items(), key=lambda item: item[1])
    verdict = Verdict(
        Margins(stable, bounded), reason if stable < 0 else Reason.SETTLED, seen.steps
    )
    return verdict, evidence


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _last_finite(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else math.nan


def _log_median(values: Array) -> float:
    return math.log(max(float(np.median(values)), 1e-300))


def _growth(seen: Observations) -> float:
    """Ln of the loss's growth from the first to the last tenth of the run's second half."""
    return _log_median(seen.window(0.9, 1.0)) - _log_median(seen.window(0.5, 0.6))


def _pace(seen: Observations) -> float:
    """Ln of the factor by which a ringing in the momentum buffer fades over half the training."""
    return -math.log(seen.momentum) * seen.steps / 2 if seen.momentum else math.inf


def _rings_through(seen: Observations) -> bool:
    """Whether the training is too short for its momentum to ring down."""
    return _pace(seen) < RINGING


def _blow_up_growth(seen: Observations) -> float:
    """Growth that a run which blew up would have shown over 0.45 T at its last pace.

    The pace is the slope of ln loss over the second half of what there is, and at least that of
    one explosion within the steps run, which keeps the margin negative.
    """
    assert seen.ended is not None
    ended = max(seen.ended, 1)
    usable = np.isfinite(seen.loss) & (seen.loss > 0) & (seen.loss_steps >= ended / 2)
    slope = math.log(EXPLOSION) / ended
    if usable.sum() >= 2:
        fitted = np.polyfit(seen.loss_steps[usable], np.log(seen.loss[usable]), 1)[0]
        slope = max(slope, float(fitted))
    return slope * 0.45 * seen.steps


def _amplification_margin(seen: Observations, evidence: Evidence) -> float:
    """-a, where a = 0 is linear accumulation of rounding errors and a = 1 full separation."""
    # One rounding of the parameters a step and up to three of the update, added up.
    accumulated = 2 * seen.roundoff * float(np.sum(1 + 3 * seen.change))
    accumulated = min(accumulated, 1.0)
    tail = seen.separation[:, seen.change.shape[0] - max(seen.steps // 10, 1) :]
    # The median over time: one entry that crosses zero adds 2 / N to RelL1 for one step, which is
    # far above accumulated rounding, so a maximum would report amplification where there is none.
    separation = float(np.median(tail, axis=1).max())
    amplification = math.log(max(separation, seen.roundoff) / accumulated) / math.log(
        2 / accumulated
    )
    evidence["separation"] = separation
    evidence["amplification"] = amplification
    return float(np.clip(-amplification, -1.0, 1.0))


def _oscillation_margin(seen: Observations, evidence: Evidence) -> float:
    if seen.ascent is not None:
        if not seen.descends:
            evidence["ascent_share"] = None
            return 1.0
        share = float(np.mean(seen.ascent[seen.steps // 2 :]))
        evidence["ascent_share"] = share
        return float(np.clip((ASCENT_SHARE - share) / ASCENT_SHARE, -1.0, 1.0))
    loss = seen.window(0.5, 1.0)
    moves = np.diff(loss)
    moves[np.abs(moves) <= NOISE * seen.roundoff * np.abs(loss[:-1]) + seen.floor] = 0.0
    rise = float(np.maximum(moves, 0).sum())
    travelled = float(np.abs(moves).sum())
    share = rise / travelled if travelled else 0.0
    upward = rise / (len(moves) * max(float(np.median(loss)), 1e-300))
    evidence["upward"] = upward
    evidence["upward_share"] = share
    if share <= UPWARD_SHARE or upward == 0:
        return 1.0
    if _rings_through(seen) and len(seen.sharpness):
        return 1.0  # a ringing looks like this too; the sharpness knows better
    calm = max(math.log10(UPWARD / upward) / 4, _settling(seen, np.maximum(moves, 0)))
    return float(np.clip(calm, -1.0, 1.0))


def _settling(seen: Observations, rises: Array) -> float:
    """Margin of a run whose ripples die out by themselves; positive where they do.

    A loss that falls tenfold and more from the first to the last tenth of the window is settling,
    whatever its ripples: momentum about a minimum of loss 0 rises by much of its loss in every
    swing. What rings in a momentum buffer fades as momentum^t, which for a momentum near 1 is less
    than tenfold within a short training: then half of that pace will do, in the loss itself or in
    its rises from the first to the second half of the window.
    """
    pace = _pace(seen)
    settling = -_growth(seen) / min(LN10, 0.4 * pace) - 1.0
    if not seen.momentum:
        return settling
    half = len(rises) // 2
    early, late = (max(float(part.mean()), 1e-300) for part in (rises[:half], rises[half:]))
    return max(settling, math.log(early / late) / (0.25 * pace) - 1.0)


def _sharpness_margin(seen: Observations, evidence: Evidence) -> float:
    """Largest sharpness in the second half against the threshold of linear stability.

    At the edge of stability the sharpness hovers about the threshold, so its maximum is taken: the
    median is a coin flip there, and lowering the threshold instead would condemn runs that have
    come to rest in a bowl just below it.
    """
    if not len(seen.sharpness) or not np.isfinite(seen.sharpness).all():
        evidence["sharpness_ratio"] = None
        return 1.0
    ratio = float(seen.sharpness.max())
    evidence["sharpness_ratio"] = ratio
    return float(np.clip(1.0 - ratio, -1.0, 1.0))


def _dead_margin(seen: Observations, evidence: Evidence) -> float:
    """A loss that ends more than tenfold above its start, though nothing moves any more."""
    start = math.log(max(float(seen.loss[0]), 1e-300))
    rise = _log_median(seen.window(0.9, 1.0)) - start
    evidence["rise"] = rise
    return float(np.clip((LN10 - rise) / LN10, -1.0, 1.0))
