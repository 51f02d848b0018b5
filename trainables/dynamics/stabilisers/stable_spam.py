"""Spike-aware clipping, gradient norm control and momentum reset (Stable-SPAM, 2025).

"Stable-SPAM: how to train in 4-bit more stably than 16-bit Adam": entries far above their running
maximum are spikes and scaled back, the norm of each gradient follows its own running mean, and
the optimiser's moments are forgotten from time to time. The paper decouples weight decay (use
adamw).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainables.domain import InputError
from trainables.dynamics.stabilisers.base import Action, Setting, Stabiliser, Step
from trainables.options import fraction, whole

EPS = 1e-8


@dataclass(frozen=True)
class StableSpam(Stabiliser):
    """Gradients become (1 - alpha) g + alpha g', g' the clipped and normalised one.

    Args:
        maximum_decay: decay rate of the running mean of the largest entry.
        norm_decay: decay rate of the running mean of the norm.
        square_decay: decay rate of the running mean of the squared norm.
        reset_every: steps between two resets of the optimiser's state; 0 for none.
    """

    maximum_decay: float = 0.999
    norm_decay: float = 0.7
    square_decay: float = 0.9
    reset_every: int = 1000

    name: ClassVar[str] = "stable-spam"
    strongest: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        mistakes = [
            *fraction("stabiliser.maximum_decay", self.maximum_decay),
            *fraction("stabiliser.norm_decay", self.norm_decay),
            *fraction("stabiliser.square_decay", self.square_decay),
            *whole("stabiliser.reset_every", self.reset_every, 0),
        ]
        if mistakes:
            raise InputError(mistakes)

    @property
    def keeps_threshold(self) -> bool:
        """Its gradients do not shrink towards a minimum."""
        return False

    def start(self, setting: Setting, alpha: float) -> Action:
        """Running means at 0, one set a tensor."""
        return SpikeControl(self, alpha)


class SpikeControl(Action):
    """The running means along one training."""

    def __init__(self, options: StableSpam, alpha: float) -> None:
        self.options, self.alpha = options, alpha
        self._means: dict[str, Tensor] = {}
        self._made = 0

    def begin(self, step: int) -> bool:
        """Whether the moments are to be forgotten before this step."""
        period = self.options.reset_every
        return bool(period) and step > 0 and step % period == 0

    @torch.no_grad()
    def gradients(self, step: Step) -> tuple[Tensor, ...]:
        """The mixture of plain and controlled gradients."""
        with torch.enable_grad():
            plain = step.plain_gradients()
        self._made += 1
        controlled = [self._controlled(str(i), g) for i, g in enumerate(plain)]
        if self.alpha == 1:
            return tuple(controlled)
        return tuple(
            (1 - self.alpha) * g + self.alpha * c for g, c in zip(plain, controlled, strict=True)
        )

    def _controlled(self, key: str, gradient: Tensor) -> Tensor:
        options = self.options
        size = gradient.abs()
        largest = self._mean(f"{key}.maximum", size.max(), options.maximum_decay)
        spike = size > largest
        if bool(spike.any()):
            gradient = torch.where(spike, gradient / size.max() * largest, gradient)
        norm = torch.linalg.vector_norm(gradient)
        mean = self._mean(f"{key}.norm", norm, options.norm_decay)
        square = self._mean(f"{key}.square", norm * norm, options.square_decay)
        if norm == 0:
            return gradient
        controlled: Tensor = gradient / norm * (mean / (torch.sqrt(square) + EPS))
        return controlled

    def _mean(self, key: str, value: Tensor, decay: float) -> Tensor:
        """Running mean of a scalar, corrected for its start at 0."""
        old = self._means.get(key)
        new = (1 - decay) * value if old is None else decay * old + (1 - decay) * value
        self._means[key] = new
        corrected: Tensor = new / (1 - decay**self._made)
        return corrected

    def state_dict(self) -> dict[str, Tensor]:
        """The running means and the number of steps they cover."""
        return {**self._means, "made": torch.tensor(float(self._made), dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state_dict`."""
        self._means = {key: value for key, value in state.items() if key != "made"}
        self._made = round(float(state["made"]))
