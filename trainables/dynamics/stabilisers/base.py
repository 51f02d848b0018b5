"""The protocol of stabilisers: options, and what acts along one training.

A stabiliser's options are a frozen dataclass, found by name (`stabiliser` in a spec). The axis
alpha is its strength; at strength 0 nothing of it runs, so the training is the plain one to the
bit. `start` gives the object that acts along one training: it may change the loss, the gradients
and the update's directions, and it sees what each update really did.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainables.domain import Mistake, Training
from trainables.dynamics.optimisers import Optimiser, Slots
from trainables.losses import Loss
from trainables.tasks import Task


@dataclass(frozen=True)
class Setting:
    """What one training offers a stabiliser.

    Args:
        module: the network.
        parameters: its parameters, in the order of the optimiser.
        default_layer: name of the layer that the task wants to be regularised, if any.
        loss: the loss that is trained.
        optimiser: the update rule.
        steps_per_epoch: updates in one pass through the data.
    """

    module: nn.Module
    parameters: Sequence[Tensor]
    default_layer: str | None
    loss: Loss
    optimiser: Optimiser
    steps_per_epoch: int


@dataclass(frozen=True)
class Step:
    """What a stabiliser may look at before an update.

    Args:
        loss: loss of the batch, with its graph.
        parameters: all parameters.
        slots: optimiser state, one entry a parameter.
        count: number of steps made before, as the optimiser counts them.
        outputs: what left the network, with its graph.
        targets: targets of the batch.
    """

    loss: Tensor
    parameters: Sequence[Tensor]
    slots: Sequence[Slots]
    count: int
    outputs: Tensor
    targets: Tensor

    def plain_gradients(self) -> tuple[Tensor, ...]:
        """Gradients of the loss alone, one a parameter."""
        return torch.autograd.grad(self.loss, list(self.parameters))


class Action:
    """A stabiliser at work along one training. This one does nothing; each overrides its part."""

    def begin(self, step: int) -> bool:
        """Called before each update with the number of updates made before.

        Returns:
            Whether the optimiser's state is to be forgotten now.
        """
        return False

    def follow(self, optimiser: Optimiser) -> None:
        """Take over the update rule of the next step, where the learning rate has a schedule."""

    def gradients(self, step: Step) -> tuple[Tensor, ...]:
        """Gradients that the optimiser gets, one a parameter."""
        return step.plain_gradients()

    def directions(self, directions: list[Tensor]) -> list[Tensor]:
        """Directions d of the updates -lr d, one a parameter, without decoupled weight decay."""
        return directions

    def moved(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        """Take note of what an update did to each parameter."""

    def state_dict(self) -> dict[str, Tensor]:
        """The state as tensors by name; all of them float, so that a perturbation of it scales."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state_dict`, to the bit."""


class Stabiliser:
    """Options of a stabiliser; the subclasses are frozen dataclasses."""

    #: Name in specs.
    name: ClassVar[str]
    #: Largest strength; 1 where alpha mixes the plain training with the stabilised one.
    strongest: ClassVar[float] = math.inf

    @property
    def keeps_threshold(self) -> bool:
        """Whether the sharpness of the watched loss still has the optimiser's own threshold.

        It has where the stabiliser leaves small steps near a minimum as they are, or adds a convex
        penalty. Elsewhere the verdict does without the sharpness.
        """
        return True

    def follows_gradients(self, loss: Loss) -> bool:
        """Whether it looks at nothing but parameters, gradients of the loss, and updates.

        Then a trajectory that it acts on can be trained in a stack. It must neither forget the
        optimiser's state nor change directions.

        Args:
            loss: the task's.
        """
        return False

    def mistakes(self, task: Task, training: Training) -> Iterable[Mistake]:
        """Why this stabiliser cannot act on this task with this training."""
        return ()

    def loss(self, loss: Loss, alpha: float) -> Loss:
        """The loss that is trained, and watched, in place of the task's."""
        return loss

    def start(self, setting: Setting, alpha: float) -> Action:
        """Begin to act along one training with strength alpha > 0."""
        return Action()
