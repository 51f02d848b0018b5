"""Soft spectral clipping of the update (SPECTRA), by Newton-Schulz iterations.

"Enhancing LLM training via spectral clipping": each singular value sigma of the update's direction
becomes sigma / sqrt(1 + sigma^2 / c^2), here with c = 1 / alpha, before the learning rate and
without decoupled weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainables.domain import TORCH_OPTIMISER, InputError, Mistake, Training
from trainables.dynamics.stabilisers.base import Action, Setting, Stabiliser
from trainables.options import flag, whole
from trainables.tasks import Task


def soft_spectral_clip(update: Tensor, alpha: float, iterations: int | None = None) -> Tensor:
    """H(U) = (I + alpha^2 U U^T)^(-1/2) U, so that no singular value exceeds 1 / alpha.

    The inverse root comes from coupled Newton-Schulz iterations on the Gram matrix of the smaller
    side, first scaled by min(Gershgorin, Frobenius) bounds to eigenvalues in (0, 1].

    Args:
        update: m x n.
        alpha: 1 / c, > 0.
        iterations: Newton-Schulz iterations. None takes as many as all singular values need: the
            smallest eigenvalue of the scaled Gram matrix grows by 9/4 an iteration until it is
            near 1. The paper's program makes 10, which leaves small singular values far off where
            alpha sigma_1 exceeds 10.

    Returns:
        A matrix like `update`; NaN where it is not finite.

    Raises:
        InputError: not a matrix, alpha <= 0, or fewer than one iteration.
    """
    mistakes = [] if iterations is None else [*whole("iterations", iterations, 1)]
    if update.ndim != 2:
        mistakes.append(Mistake("update", tuple(update.shape), "m x n", "reshape it"))
    if not 0 < alpha < math.inf:
        mistakes.append(Mistake("alpha", alpha, "0 < alpha < infinity", "use alpha > 0"))
    if mistakes:
        raise InputError(mistakes)
    if update.shape[0] > update.shape[1]:
        return soft_spectral_clip(update.T, alpha, iterations).T
    # In float64 whatever the dtype: the identity is lost beside a large Gram matrix, eigenvalues
    # round below 0, and the iterations would amplify them.
    scaled = alpha * update.double()
    gram = scaled @ scaled.T
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    bound = 1 + torch.minimum(gram.abs().sum(1).max(), torch.linalg.matrix_norm(gram))
    y, z = (identity + gram) / bound, identity
    for _ in range(_needed(bound) if iterations is None else iterations):
        t = 1.5 * identity - 0.5 * (z @ y)
        y, z = y @ t, t @ z
    return ((z @ update.double()) / torch.sqrt(bound)).to(update.dtype)


def _needed(bound: Tensor) -> int:
    size = float(bound)
    return 6 + math.ceil(math.log(size, 9 / 4)) if math.isfinite(size) else 1


@dataclass(frozen=True)
class Spectra(Stabiliser):
    """Every weight's update direction goes through `soft_spectral_clip`, with c = 1 / alpha.

    A bias is scaled by 1 / sqrt(1 + alpha^2 ||u||^2), which is the same for a single column.

    Args:
        iterations: Newton-Schulz iterations; None takes as many as needed, 10 repeats the paper's
            program (`soft_spectral_clip`).
        aspect: multiply weights' directions by sqrt(max(1, outputs / inputs)), as the program
            does. False keeps the map continuous at alpha = 0.
    """

    iterations: int | None = None
    aspect: bool = False

    name: ClassVar[str] = "spectra"

    def __post_init__(self) -> None:
        mistakes = [*flag("stabiliser.aspect", self.aspect)]
        if self.iterations is not None:
            mistakes += whole("stabiliser.iterations", self.iterations, 1, 100)
        if mistakes:
            raise InputError(mistakes)

    @property
    def keeps_threshold(self) -> bool:
        """Small updates pass unchanged, unless the aspect ratio scales them."""
        return not self.aspect

    def mistakes(self, task: Task, training: Training) -> Iterable[Mistake]:
        """An optimiser whose directions cannot be had."""
        if training.optimiser.startswith(TORCH_OPTIMISER):
            yield Mistake(
                "stabiliser",
                self.name,
                f"clips the direction of an update, which {training.optimiser} does not give away",
                "use a built-in optimiser, or another stabiliser",
            )

    def start(self, setting: Setting, alpha: float) -> Action:
        """Nothing is remembered between steps."""
        return _Spectra(self, alpha)


class _Spectra(Action):
    def __init__(self, options: Spectra, alpha: float) -> None:
        self.options, self.alpha = options, alpha

    def directions(self, directions: list[Tensor]) -> list[Tensor]:
        return [self._clipped(d) for d in directions]

    def _clipped(self, direction: Tensor) -> Tensor:
        if direction.ndim < 2:
            return direction / torch.sqrt(1 + self.alpha**2 * (direction * direction).sum())
        matrix = direction.reshape(direction.shape[0], -1)
        clipped = soft_spectral_clip(matrix, self.alpha, self.options.iterations)
        if self.options.aspect:
            clipped = math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1])) * clipped
        return clipped.reshape(direction.shape)
