"""How the learning rate of a point changes along its training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from trainables.domain import InputError, Mistake, named_mistakes
from trainables.options import construct, fraction, unknown_name


@dataclass(frozen=True)
class Schedule:
    """A factor on the learning rate of a point, a function of the share of the training made.

    Args:
        warmup: share of the training in [0, 1) in which the factor also rises linearly from near 0.
    """

    warmup: float = 0.0

    name: ClassVar[str] = "constant"

    def __post_init__(self) -> None:
        mistakes = list(self._mistakes())
        if mistakes:
            raise InputError(mistakes)

    def _mistakes(self) -> Iterator[Mistake]:
        yield from fraction("schedule.warmup", self.warmup)

    def factor(self, step: int, steps: int) -> float:
        """Factor on the learning rate in the update after `step` others, of `steps` in all."""
        rising = math.ceil(self.warmup * steps)
        return self._after_warmup(step / steps) * min((step + 1) / max(rising, 1), 1.0)

    def smallest(self, steps: int) -> float:
        """The smallest factor in a training of `steps` updates."""
        return min(self.factor(0, steps), self.factor(steps - 1, steps))

    @property
    def constant(self) -> bool:
        """Whether the factor is 1 throughout."""
        return type(self) is Schedule and self.warmup == 0

    def _after_warmup(self, _share: float) -> float:
        return 1.0


@dataclass(frozen=True)
class StepDecay(Schedule):
    """Multiplies the learning rate by `factor` after every share `every` of the training.

    The defaults are a tenth every 40 of 200 epochs (Sun et al. 2024, section 3).

    Args:
        every: share of the training in (0, 1).
        gamma: what the learning rate is multiplied by, in (0, 1).
    """

    every: float = 0.2
    gamma: float = 0.1

    name: ClassVar[str] = "step-decay"

    def _mistakes(self) -> Iterator[Mistake]:
        yield from super()._mistakes()
        yield from fraction("schedule.every", self.every, zero=False)
        yield from fraction("schedule.gamma", self.gamma, zero=False)

    def _after_warmup(self, share: float) -> float:
        # A share like 0.6 is 3 times 0.2 only up to its last bit.
        return float(self.gamma ** math.floor(share / self.every + 1e-9))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 towards 0 (Loshchilov and Hutter 2017, without restarts)."""

    name: ClassVar[str] = "cosine"

    def _after_warmup(self, share: float) -> float:
        return (1 + math.cos(math.pi * share)) / 2


SCHEDULES: dict[str, type[Schedule]] = {s.name: s for s in (Schedule, StepDecay, Cosine)}


def get_schedule(name: str, **options: Any) -> Schedule:
    """A schedule by its name: `constant`, `step-decay` or `cosine`.

    Raises:
        InputError: unknown name, unknown option, or an option that breaks its law.
    """
    if name not in SCHEDULES:
        raise unknown_name("schedule", "schedule", name, tuple(SCHEDULES))
    return construct("schedule", name, SCHEDULES[name], options)  # type: ignore[no-any-return]


def schedule_of(given: str | Mapping[str, Any]) -> Schedule:
    """The schedule behind a name, or behind a mapping with a name and options.

    Raises:
        InputError: neither of these, or as in `get_schedule`.
    """
    if mistakes := list(named_mistakes("schedule", given, "step-decay")):
        raise InputError(mistakes)
    return get_schedule(**({"name": given} if isinstance(given, str) else given))
