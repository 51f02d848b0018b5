"""The protocol of stabilisers: options, and what acts along one training.

A stabiliser's options are a frozen dataclass, found by name (`stabiliser` in a spec). The axis
alpha is its strength; at strength 0 nothing of it runs, so the training is the plain one to the
bit. `start` gives the object that acts along one training: it may change the loss, the gradients
and the update's directions, and it sees what each update really did.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
        runs: whether `module` itself is trained, so that hooks on it see each step; in a stack it
            only shows how the network is built.
    """

    module: nn.Module
    parameters: Sequence[Tensor]
    default_layer: str | None
    loss: Loss
    optimiser: Optimiser
    steps_per_epoch: int
    runs: bool = True


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
        moving: for each parameter whether this update trains it; None where it trains all.
    """

    loss: Tensor
    parameters: Sequence[Tensor]
    slots: Sequence[Slots]
    count: int
    outputs: Tensor
    targets: Tensor
    moving: Sequence[bool] | None = None

    def plain_gradients(self) -> tuple[Tensor, ...]:
        """Gradients of the loss alone, one a parameter; 0 for those that are not trained now."""
        if self.moving is None:
            return torch.autograd.grad(self.loss, list(self.parameters))
        trained = [p for p, moves in zip(self.parameters, self.moving, strict=True) if moves]
        found = iter(torch.autograd.grad(self.loss, trained))
        return tuple(
            next(found) if moves else torch.zeros_like(p)
            for p, moves in zip(self.parameters, self.moving, strict=True)
        )


@dataclass(frozen=True)
class AtOutputs:
    """Gradients of what is trained, at the end of the network.

    Args:
        outputs: by what leaves the network.
        entered: by what entered the last layer, beyond what reaches it through that layer; None
            for nothing.
        parameters: what is added to the gradients of single parameters, by their index.
    """

    outputs: Tensor
    entered: Tensor | None = None
    parameters: Mapping[int, Tensor] = field(default_factory=dict)


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

    def at_outputs(self, step: Step, entered: Tensor | None) -> AtOutputs:
        """In place of `gradients`, in a stack, where `Stabiliser.acts_at_outputs`.

        Args:
            step: its loss has a graph that ends at its outputs.
            entered: what entered `Stabiliser.last_layer`, if that is one.
        """
        return AtOutputs(torch.autograd.grad(step.loss, step.outputs)[0])

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

    @property
    def changes_loss(self) -> bool:
        """Whether `loss` gives another one than the task's."""
        return False

    def acts_at_outputs(self, task: Task, module: nn.Module, inputs: Tensor) -> bool:
        """Whether the gradients of the task's loss by the parameters are not enough for it.

        Then a stack asks `Action.at_outputs` for the gradients by the outputs of each trajectory.

        Args:
            task: the task.
            module: its network, to look at.
            inputs: a batch.
        """
        return False

    def last_layer(self, task: Task) -> str | None:
        """Name of the last layer, if `Action.at_outputs` looks at what entered it."""
        return None

    @property
    def stacks(self) -> bool:
        """Whether what acts at the outputs may do so in a stack."""
        return True

    def mistakes(self, task: Task, training: Training) -> Iterable[Mistake]:
        """Why this stabiliser cannot act on this task with this training."""
        return ()

    def loss(self, loss: Loss, alpha: float) -> Loss:
        """The loss that is trained, and watched, in place of the task's."""
        return loss

    def start(self, setting: Setting, alpha: float) -> Action:
        """Begin to act along one training with strength alpha > 0."""
        return Action()
