"""StableMax: a softmax that cannot round its losers away (Prieto et al. 2025, on grokking).

In floating point, softmax assigns exactly 1 to the largest logit once it leads by about p ln 2
with p the bits of the significand (16.6355 in float32); the gradient of that sample is then 0
("softmax collapse"). StableMax grows linearly instead of exponentially, so the loss goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainables.domain import InputError, Mistake, Training
from trainables.dynamics.stabilisers.base import Stabiliser
from trainables.losses import CROSS_ENTROPY, Loss
from trainables.tasks import Task


def _grown(logits: Tensor) -> Tensor:
    """s(x) = x + 1 for x >= 0, 1 / (1 - x) below; the tiny number guards the division."""
    below = torch.clamp(logits, max=0.0)
    return torch.where(logits >= 0, logits + 1, 1 / (1 - below + 1e-30))


def stablemax_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log(s(x_target) / sum s(x)), in float64 as in the authors' program.

    Args:
        logits: (batch, classes).
        targets: class numbers, (batch,).

    Raises:
        InputError: other shapes.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        shapes = (tuple(logits.shape), tuple(targets.shape))
        raise InputError(
            [Mistake("logits, targets", shapes, "(batch, classes) and (batch,)", "reshape them")]
        )
    grown = _grown(logits.double())
    chosen = grown.gather(1, targets[:, None]).squeeze(1)
    return (torch.log(grown.sum(1)) - torch.log(chosen)).mean()


def collapsed_share(logits: Tensor) -> float:
    """Share of samples whose softmax is exactly one-hot in the logits' own dtype.

    Their cross-entropy has gradient 0, whatever their class: nothing more is learned from them.

    Args:
        logits: (batch, classes), floating point.

    Raises:
        InputError: another shape.
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or not len(logits):
        raise InputError(
            [Mistake("logits", tuple(logits.shape), "(batch, classes), 2 or more", "reshape them")]
        )
    total = torch.exp(logits - logits.amax(1, keepdim=True)).sum(1)
    return float((total == 1).double().mean())


@dataclass(frozen=True)
class StableMax(Stabiliser):
    """(1 - alpha) cross-entropy + alpha StableMax cross-entropy; alpha = 1 is the paper's.

    The mixture is also the loss that the verdict watches, since it is what is minimised.
    """

    name: ClassVar[str] = "stablemax"
    strongest: ClassVar[float] = 1.0

    def mistakes(self, task: Task, training: Training) -> Iterable[Mistake]:
        """A loss other than cross-entropy."""
        if task.loss.name != CROSS_ENTROPY.name:
            yield Mistake(
                "stabiliser",
                self.name,
                f"replaces a cross-entropy, and the task's loss is {task.loss.name}",
                "use a task with cross-entropy, or another stabiliser",
            )

    @property
    def changes_loss(self) -> bool:
        """It is another loss."""
        return True

    def acts_at_outputs(self, task: Task, module: nn.Module, inputs: Tensor) -> bool:
        """Its loss is a function of the outputs."""
        return True

    def loss(self, loss: Loss, alpha: float) -> Loss:
        """The mixture."""

        def value(outputs: Tensor, targets: Tensor) -> Tensor:
            stable = alpha * stablemax_cross_entropy(outputs, targets)
            # Left out at weight 0: it may be infinite.
            return stable if alpha == 1 else stable + (1 - alpha) * loss.value(outputs, targets)

        return Loss(f"{self.name}-{loss.name}", value)
