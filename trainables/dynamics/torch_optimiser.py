"""Optimisers of `torch.optim` in the place of the built-in rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from trainables.domain import TORCH_OPTIMISER, InputError, Mistake, Point, Training
from trainables.dynamics.optimisers import Optimiser, Slots
from trainables.dynamics.torch_rule import TorchRule, optimiser_arguments
from trainables.tasks import Task


@dataclass(frozen=True)
class TorchOptimiser(Optimiser):
    """Any optimiser of `torch.optim` that takes dense gradients and no closure.

    Learning rate, weight decay (0 included) and a momentum that is given go to its constructor;
    everything else is its own default. It cannot be differentiated and has no known threshold of
    stability, so trainings with it are judged without the sharpness criterion.

    Args:
        given_momentum: momentum for the constructor; None leaves it out.

    Raises:
        InputError: there is no such optimiser, or it refuses its arguments.
    """

    given_momentum: float | None = None

    def __post_init__(self) -> None:
        self.rule  # noqa: B018 - reports what is wrong before anything is trained

    @cached_property
    def rule(self) -> TorchRule:
        """The optimiser as a pure function."""
        name = self.name.removeprefix(TORCH_OPTIMISER)
        known = optimiser_arguments(name)
        mistakes = list(self._unknown_arguments(known)) if known else []
        if mistakes:
            raise InputError(mistakes)
        options: dict[str, Any] = {"lr": self.lr}
        # AdamW and others decay unless they are told not to.
        if "weight_decay" in known:
            options["weight_decay"] = self.weight_decay
        if self.given_momentum is not None:
            options["momentum"] = self.given_momentum
        return TorchRule(name, options, self.k)

    def _unknown_arguments(self, known: Sequence[str]) -> Iterable[Mistake]:
        law = f"{self.name} takes no argument "
        if self.given_momentum is not None and "momentum" not in known:
            yield Mistake("momentum", self.given_momentum, law + "momentum", "leave it out")
        if self.weight_decay and "weight_decay" not in known:
            yield Mistake("weight_decay", self.weight_decay, law + "weight_decay", "set it to 0")

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
    name, momentum = training.optimiser, training.momentum
    if not name.startswith(TORCH_OPTIMISER):
        return Optimiser.of(training, lr, weight_decay, k)
    try:
        return TorchOptimiser(name, lr, weight_decay, k, momentum or 0.0, given_momentum=momentum)
    except InputError as error:
        raise _renamed(name, error) from error


def optimiser_mistakes(task: Task, training: Training, point: Point) -> list[Mistake]:
    """Why the optimiser cannot train a task at a point: only PyTorch's own can refuse."""
    if not training.optimiser.startswith(TORCH_OPTIMISER):
        return []
    try:
        rule = optimiser_of(training, point.lr, point.weight_decay, training.ks[0])
        for parameter in task.module(0).parameters():
            rule.init(parameter.detach())
    except InputError as error:
        return list(_renamed(training.optimiser, error).mistakes)
    return []


def _renamed(name: str, error: InputError) -> InputError:
    """What torch refuses, under the field that the user wrote."""
    return InputError(
        [
            Mistake("optimiser", name, m.law, m.remedy) if m.field in ("name", "options") else m
            for m in error.mistakes
        ]
    )
