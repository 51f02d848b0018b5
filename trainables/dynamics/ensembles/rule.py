"""One update rule for a stack: every trajectory with its own rate, decay, momentum, k and age."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from trainables.dynamics.optimisers import Optimiser


@dataclass(frozen=True)
class StackedOptimiser(Optimiser):
    """An `Optimiser` on tensors of shape (trajectories, ...), all of the same number of dimensions.

    `lr`, `weight_decay`, `momentum` and `k` are tensors of shape (trajectories, 1, ...) in the
    dtype of the training; whatever is computed from them was computed in float64 and rounded once,
    as Python numbers are. Decay is applied to all trajectories, with strength 0 too, so that none
    of them depends on what the others do.
    """

    rates: Any = None
    shrinks: Any = None
    bias_corrections: Any = None
    shares: Any = None
    #: Whether there is momentum: in all trajectories, or in none, for it needs a buffer in each.
    buffered: bool = False

    @classmethod
    def of_rules(cls, rules: Sequence[Optimiser], ages: Sequence[int], like: Tensor) -> Self:
        """From one rule and the number of steps made for each trajectory.

        Args:
            rules: equal but for lr, weight_decay, k and momentum, which is 0 in all or in none.
            ages: steps made before the next one.
            like: a stacked tensor: number of dimensions, dtype and device.
        """
        first = rules[0]

        def column(values: Sequence[float]) -> Tensor:
            rounded = torch.tensor(values, dtype=torch.float64).to(like.device, like.dtype)
            return rounded.reshape(-1, *[1] * (like.ndim - 1))

        adam = []
        if first.name == "adam":
            adam = [rule.corrections(age) for rule, age in zip(rules, ages, strict=True)]
        return cls(
            first.name,
            column([rule.lr for rule in rules]),  # type: ignore[arg-type]
            column([rule.weight_decay for rule in rules]),  # type: ignore[arg-type]
            column([rule.k for rule in rules]),  # type: ignore[arg-type]
            column([rule.momentum for rule in rules]),  # type: ignore[arg-type]
            first.decay,
            first.beta2,
            first.eps,
            rates=column([rule.rate for rule in rules]),
            shrinks=column([rule.shrink for rule in rules]),
            bias_corrections=tuple(map(column, zip(*adam, strict=True))),
            shares=column([rule.share for rule in rules]),
            buffered=first.remembers,
        )

    @property
    def remembers(self) -> bool:
        """Whether there is any momentum."""
        return self.buffered

    @property
    def share(self) -> Any:
        """1 - momentum, (trajectories, 1, ...)."""
        return self.shares

    @property
    def decays(self) -> bool:
        """Yes, whatever the strengths."""
        return True

    @property
    def rate(self) -> Any:
        """The quotient lr / k, (trajectories, 1, ...)."""
        return self.rates

    @property
    def shrink(self) -> Any:
        """1 - lr x weight_decay, (trajectories, 1, ...)."""
        return self.shrinks

    def corrections(self, count: int) -> tuple[Any, Any]:
        """Of the trajectories' own ages; `count` has no meaning here."""
        first, second = self.bias_corrections
        return first, second
