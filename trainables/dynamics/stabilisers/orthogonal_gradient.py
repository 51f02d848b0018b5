"""Orthogonal gradients: no update along the parameters (Prieto et al. 2025, on grokking).

Growing the parameters along themselves lowers a cross-entropy without changing a prediction, up
to softmax collapse; this projection takes that direction out of each gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainables.dynamics.stabilisers.base import Action, Setting, Stabiliser, Step

TINY = 1e-30


def orthogonal_gradient(parameter: Tensor, gradient: Tensor, alpha: float = 1.0) -> Tensor:
    """G - alpha (w.g / w.w) w, brought back to the norm of g.

    Args:
        parameter: w, any shape.
        gradient: g, like w.
        alpha: share of the component along w that is taken out; 1 makes the result orthogonal.

    Returns:
        Something like g; g itself where w is a single number.
    """
    if parameter.numel() == 1:
        return gradient  # nothing is orthogonal to it but 0, whose rounding would be blown up
    along = (parameter * gradient).sum() / ((parameter * parameter).sum() + TINY)
    rest = gradient - (alpha * along) * parameter
    norms = torch.linalg.vector_norm(gradient), torch.linalg.vector_norm(rest)
    # Divided first: norm / TINY may be infinite in float32.
    result: Tensor = rest / (norms[1] + TINY) * norms[0]
    return result


@dataclass(frozen=True)
class OrthogonalGradient(Stabiliser):
    """Each gradient loses the share alpha of its component along its parameter, not its norm."""

    name: ClassVar[str] = "orthogonal-gradient"
    strongest: ClassVar[float] = 1.0

    @property
    def keeps_threshold(self) -> bool:
        """Its gradients are no linear function of the plain ones."""
        return False

    def start(self, setting: Setting, alpha: float) -> Action:
        """Nothing is remembered between steps."""
        return _OrthogonalGradient(alpha)


class _OrthogonalGradient(Action):
    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    @torch.no_grad()
    def gradients(self, step: Step) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            plain = step.plain_gradients()
        return tuple(
            orthogonal_gradient(p, g, self.alpha)
            for p, g in zip(step.parameters, plain, strict=True)
        )
