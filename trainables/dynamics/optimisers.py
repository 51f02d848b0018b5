"""Perturbed-k update rules: pure functions of (parameter, gradient, state).

The update is written (lr / k) x (k d) where d is the optimiser's direction: equal for every k in
real arithmetic, one rounding apart in floating point (Sun et al. 2024, section 3). k and 2^n k
agree to the bit, because scaling by a power of two rounds nothing (outside subnormal numbers).
The state (momentum, Adam's moments) never sees k.

The functions are differentiable, so that a stabiliser can ask what a step would do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainables.domain import Training

#: State of one parameter tensor: the momentum buffer, or Adam's two moments.
Slots = tuple[Tensor, ...]


@dataclass(frozen=True)
class Optimiser:
    """SGD with heavy-ball or Nesterov momentum, or Adam, with the perturbed-k update.

    Args:
        name: `sgd`, `nesterov` or `adam`.
        lr: learning rate.
        weight_decay: strength of the weight decay.
        k: perturbation integer; 1 is the unperturbed update.
        momentum: decay rate of the momentum buffer; for Adam beta_1.
        decay: `coupled` adds weight_decay x parameter to the gradient before the momentum;
            `decoupled` scales the parameter by 1 - lr x weight_decay, unperturbed by k.
        beta2: decay rate of Adam's second moment.
        eps: Adam's eps, outside the square root.
    """

    name: Literal["sgd", "nesterov", "adam"]
    lr: float
    weight_decay: float = 0.0
    k: int = 1
    momentum: float = 0.0
    decay: Literal["coupled", "decoupled"] = "coupled"
    beta2: float = 0.999
    eps: float = 1e-8

    @classmethod
    def of(cls, training: Training, lr: float, weight_decay: float, k: int) -> Optimiser:
        """The rule that a training prescribes at one point, for one k."""
        assert training.momentum is not None
        return cls(training.optimiser, lr, weight_decay, k, training.momentum, training.decay)

    def init(self, parameter: Tensor) -> Slots:
        """State before the first step: zeros."""
        if self.name == "adam":
            return (torch.zeros_like(parameter), torch.zeros_like(parameter))
        return (torch.zeros_like(parameter),) if self.momentum else ()

    def step(
        self, parameter: Tensor, gradient: Tensor, slots: Slots, count: int
    ) -> tuple[Tensor, Slots]:
        """One update.

        Args:
            parameter: current values, any shape.
            gradient: gradient of the loss without weight decay, same shape.
            slots: state from `init` or from the step before.
            count: number of steps made before this one, from 0.

        Returns:
            New parameter and new state; the arguments are left as they were.
        """
        if self.weight_decay and self.decay == "coupled":
            gradient = gradient + self.weight_decay * parameter
        direction, slots = self._direction(gradient, slots, count)
        if self.weight_decay and self.decay == "decoupled":
            parameter = parameter * (1 - self.lr * self.weight_decay)
        # The product is rounded on its own before the subtraction: a fused multiply-add would
        # make k = 1 differ from its powers of two on some devices.
        update = (self.lr / self.k) * (self.k * direction)
        return parameter - update, slots

    def _direction(self, gradient: Tensor, slots: Slots, count: int) -> tuple[Tensor, Slots]:
        if self.name == "adam":
            return self._adam(gradient, slots, count)
        if not self.momentum:
            return gradient, ()
        buffer = self.momentum * slots[0] + gradient
        return (gradient + self.momentum * buffer if self.name == "nesterov" else buffer), (buffer,)

    def _adam(self, gradient: Tensor, slots: Slots, count: int) -> tuple[Tensor, Slots]:
        first = self.momentum * slots[0] + (1 - self.momentum) * gradient
        second = self.beta2 * slots[1] + (1 - self.beta2) * gradient * gradient
        first_hat = first / (1 - self.momentum ** (count + 1))
        second_hat = second / (1 - self.beta2 ** (count + 1))
        # The root of 0 has no derivative; a stabiliser may ask for it where a gradient is 0.
        alive = second_hat > 0
        root = torch.where(alive, second_hat, 1.0).sqrt() * alive
        return first_hat / (root + self.eps), (first, second)
