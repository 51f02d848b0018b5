"""Perturbed-k update rules: pure functions of (parameter, gradient, state).

The update is written (lr / k) x (k d) where d is the optimiser's direction: equal for every k in
real arithmetic, one rounding apart in floating point (Sun et al. 2024, section 3). k and 2^n k
agree to the bit, because scaling by a power of two rounds nothing (outside subnormal numbers).
The state (momentum, second moments) never sees k.

The functions are differentiable, so that a stabiliser can ask what a step would do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from trainables.domain import ADAPTIVE, DecayName, OptimiserName, Training

#: State of one parameter tensor: a momentum buffer, Adam's two moments, and so on.
Slots = tuple[Tensor, ...]


@dataclass(frozen=True)
class Optimiser:
    """SGD with heavy-ball or Nesterov momentum, Adam, RMSprop or AdaDelta, as PyTorch has them.

    AdamW is `adam` with decoupled weight decay.

    Args:
        name: `sgd`, `nesterov`, `adam`, `rmsprop` or `adadelta`.
        lr: learning rate.
        weight_decay: strength of the weight decay.
        k: perturbation integer; 1 is the unperturbed update.
        momentum: decay rate of the momentum buffer; for Adam beta_1; none for AdaDelta.
        decay: `coupled` adds weight_decay x parameter to the gradient before the momentum;
            `decoupled` scales the parameter by 1 - lr x weight_decay, unperturbed by k.
        beta2: decay rate of the second moment: Adam's beta_2, RMSprop's alpha, AdaDelta's rho.
            None takes PyTorch's default.
        eps: added outside the square root (Adam, RMSprop) or inside (AdaDelta). None takes
            PyTorch's default.
    """

    name: OptimiserName | str
    lr: float
    weight_decay: float = 0.0
    k: int = 1
    momentum: float = 0.0
    decay: DecayName | None = "coupled"
    beta2: float | None = None
    eps: float | None = None

    def __post_init__(self) -> None:
        if self.name in ADAPTIVE:
            beta2, eps = ADAPTIVE[self.name]
            object.__setattr__(self, "beta2", beta2 if self.beta2 is None else self.beta2)
            object.__setattr__(self, "eps", eps if self.eps is None else self.eps)

    @classmethod
    def of(cls, training: Training, lr: float, weight_decay: float, k: int) -> Self:
        """The rule that a training prescribes at one point, for one k."""
        assert training.momentum is not None
        return cls(
            training.optimiser,
            lr,
            weight_decay,
            k,
            training.momentum,
            training.decay,
            training.beta2,
            training.eps,
        )

    @property
    def coupled(self) -> bool:
        """Whether weight decay enters through the gradient."""
        return self.decay == "coupled"

    @property
    def splits(self) -> bool:
        """Whether a step can be had in two parts, `direction` and `apply`."""
        return True

    @property
    def remembers(self) -> bool:
        """Whether there is any momentum."""
        return bool(self.momentum)

    @property
    def share(self) -> Any:
        """1 - momentum: Adam's share of a new gradient."""
        return 1 - self.momentum

    @property
    def decays(self) -> bool:
        """Whether there is any weight decay."""
        return bool(self.weight_decay)

    @property
    def rate(self) -> Any:
        """The quotient lr / k."""
        return self.lr / self.k

    @property
    def shrink(self) -> Any:
        """Factor of decoupled weight decay on the parameters."""
        return 1 - self.lr * self.weight_decay

    def corrections(self, count: int) -> tuple[Any, Any]:
        """What Adam's two moments are divided by in the step after `count` others."""
        assert self.beta2 is not None
        return 1 - self.momentum ** (count + 1), 1 - self.beta2 ** (count + 1)

    @property
    def linear(self) -> float | None:
        """Derivative of the update by the gradient where it is one number; else None."""
        if self.name in ADAPTIVE:
            return None
        return -self.lr * (1 + self.momentum if self.name == "nesterov" else 1)

    def init(self, parameter: Tensor) -> Slots:
        """State before the first step: zeros."""
        count = {"adam": 2, "adadelta": 2, "rmsprop": 1 + self.remembers}
        size = count.get(self.name, int(self.remembers))
        return tuple(torch.zeros_like(parameter) for _ in range(size))

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
        direction, slots = self.direction(parameter, gradient, slots, count)
        return self.apply(parameter, direction), slots

    def direction(
        self, parameter: Tensor, gradient: Tensor, slots: Slots, count: int
    ) -> tuple[Tensor, Slots]:
        """Direction d of the update -lr d, coupled weight decay included, and the new state."""
        if self.decays and self.coupled:
            gradient = gradient + self.weight_decay * parameter
        return getattr(self, f"_{self.name}")(gradient, slots, count)  # type: ignore[no-any-return]

    def apply(self, parameter: Tensor, direction: Tensor) -> Tensor:
        """The parameter after an update along `direction`, decoupled weight decay included."""
        if self.decays and not self.coupled:
            parameter = parameter * self.shrink
        # The product is rounded on its own before the subtraction: a fused multiply-add would
        # make k = 1 differ from its powers of two on some devices.
        update = self.rate * (self.k * direction)
        after: Tensor = parameter - update
        return after

    def increment(
        self, parameter: Tensor, gradient: Tensor, slots: Slots, count: int, decays: bool = True
    ) -> Tensor:
        """What a step would add to the parameter, differentiable, before k rounds it.

        Args:
            parameter: as for `step`; so are gradient, slots and count.
            gradient: gradient of the loss without weight decay.
            slots: state.
            count: number of steps made before.
            decays: whether decoupled weight decay is part of it.
        """
        direction, _ = self.direction(parameter, gradient, slots, count)
        update = -self.lr * direction
        if decays and self.weight_decay and not self.coupled:
            update = update - self.lr * self.weight_decay * parameter
        return update

    def _sgd(self, gradient: Tensor, slots: Slots, _count: int) -> tuple[Tensor, Slots]:
        if not self.remembers:
            return gradient, ()
        buffer = self.momentum * slots[0] + gradient
        return buffer, (buffer,)

    def _nesterov(self, gradient: Tensor, slots: Slots, count: int) -> tuple[Tensor, Slots]:
        buffer, slots = self._sgd(gradient, slots, count)
        return (gradient + self.momentum * buffer if self.remembers else gradient), slots

    def _adam(self, gradient: Tensor, slots: Slots, count: int) -> tuple[Tensor, Slots]:
        assert self.beta2 is not None and self.eps is not None
        first = self.momentum * slots[0] + self.share * gradient
        second = self.beta2 * slots[1] + (1 - self.beta2) * gradient * gradient
        by_first, by_second = self.corrections(count)
        first_hat, second_hat = first / by_first, second / by_second
        return first_hat / (_root(second_hat) + self.eps), (first, second)

    def _rmsprop(self, gradient: Tensor, slots: Slots, _count: int) -> tuple[Tensor, Slots]:
        assert self.beta2 is not None and self.eps is not None
        second = self.beta2 * slots[0] + (1 - self.beta2) * gradient * gradient
        direction = gradient / (_root(second) + self.eps)
        if not self.remembers:
            return direction, (second,)
        buffer = self.momentum * slots[1] + direction
        return buffer, (second, buffer)

    def _adadelta(self, gradient: Tensor, slots: Slots, _count: int) -> tuple[Tensor, Slots]:
        assert self.beta2 is not None and self.eps is not None
        second = self.beta2 * slots[0] + (1 - self.beta2) * gradient * gradient
        scale = torch.sqrt(slots[1] + self.eps) / torch.sqrt(second + self.eps)
        direction = scale * gradient
        moved = self.beta2 * slots[1] + (1 - self.beta2) * direction * direction
        return direction, (second, moved)


def _root(second: Tensor) -> Tensor:
    """Square root whose derivative at 0 is 0: a stabiliser may ask for it where a gradient is 0."""
    alive = second > 0
    return torch.where(alive, second, 1.0).sqrt() * alive
