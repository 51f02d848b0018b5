"""Optimisers of `torch.optim` in the place of the built-in rules."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from trainables.domain import TORCH_OPTIMISER, InputError, Mistake, Training
from trainables.dynamics.optimisers import Optimiser, Slots
from trainables.dynamics.torch_rule import TorchRule


@dataclass(frozen=True)
class TorchOptimiser(Optimiser):
    """Any optimiser of `torch.optim` that takes dense gradients and no closure.

    Learning rate, and where they are not 0 weight decay and momentum, go to its constructor;
    everything else is its own default. It cannot be differentiated and has no known threshold of
    stability, so trainings with it are judged without the sharpness criterion.

    Raises:
        InputError: there is no such optimiser, or it refuses its arguments.
    """

    def __post_init__(self) -> None:
        self.rule  # noqa: B018 - reports what is wrong before anything is trained

    @cached_property
    def rule(self) -> TorchRule:
        """The optimiser as a pure function."""
        options: dict[str, Any] = {"lr": self.lr}
        options |= {"weight_decay": self.weight_decay} if self.weight_decay else {}
        options |= {"momentum": self.momentum} if self.momentum else {}
        return TorchRule(self.name.removeprefix(TORCH_OPTIMISER), options, self.k)

    @property
    def splits(self) -> bool:
        """No: only whole steps can be had."""
        return False

    @property
    def linear(self) -> float | None:
        """None: nothing is known about its steps."""
        return None

    def init(self, parameter: Tensor) -> Slots:
        """State before the first step."""
        return self.rule.init(parameter)

    def step(
        self, parameter: Tensor, gradient: Tensor, slots: Slots, count: int
    ) -> tuple[Tensor, Slots]:
        """One update; see `Optimiser.step`."""
        return self.rule.step(parameter, gradient, slots, count)

    def increment(
        self, parameter: Tensor, gradient: Tensor, slots: Slots, count: int, decays: bool = True
    ) -> Tensor:
        """What a step would add: a dry run on copies of parameter and state."""
        return self.step(parameter, gradient, slots, count)[0] - parameter


def optimiser_of(training: Training, lr: float, weight_decay: float, k: int) -> Optimiser:
    """The rule that a training prescribes at one point, for one k.

    Raises:
        InputError: an optimiser of `torch.optim` that does not exist or refuses its arguments.
    """
    if not training.optimiser.startswith(TORCH_OPTIMISER):
        return Optimiser.of(training, lr, weight_decay, k)
    try:
        return TorchOptimiser.of(training, lr, weight_decay, k)
    except InputError as error:
        raise InputError(
            [Mistake("optimiser", training.optimiser, m.law, m.remedy) for m in error.mistakes]
        ) from error
