"""Gradient clipping: the norm of the gradient is held below 1 / alpha."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from trainables.dynamics.layers import largest_singular_value
from trainables.dynamics.stabilisers.base import Action, Setting, Stabiliser, Step


def clip_factor(norm: Tensor, alpha: float) -> Tensor:
    """Factor <= 1 that brings a norm down to 1 / alpha; exactly 1 below it.

    The same arithmetic as PyTorch's `clip_grad_norm_`, so that runs can be repeated with it.
    """
    return torch.clamp(1 / alpha / (norm + 1e-6), max=1.0)


@dataclass(frozen=True)
class ClipNorm(Stabiliser):
    """All gradients together are scaled down to a Euclidean norm of at most 1 / alpha.

    Pascanu, Mikolov and Bengio 2013. The stabilisation paper compares with it at norm 1.
    """

    name: ClassVar[str] = "clip-norm"

    def start(self, setting: Setting, alpha: float) -> Action:
        """Nothing is remembered between steps."""
        return _ClipNorm(alpha)


class _ClipNorm(Action):
    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def gradients(self, step: Step) -> tuple[Tensor, ...]:
        gradients = step.plain_gradients()
        factor = clip_factor(get_total_norm(gradients), self.alpha)
        return tuple(factor * g for g in gradients)


@dataclass(frozen=True)
class ClipSpectralNorm(Stabiliser):
    """Each gradient is scaled down to a spectral norm of at most 1 / alpha, tensor by tensor.

    A weight counts as the matrix (inputs x outputs), a bias as a vector with its Euclidean norm.
    Directions within a tensor are kept; `spectra` caps the singular values one by one instead.
    """

    name: ClassVar[str] = "clip-spectral-norm"

    def start(self, setting: Setting, alpha: float) -> Action:
        """Nothing is remembered between steps."""
        return _ClipSpectralNorm(alpha)


class _ClipSpectralNorm(Action):
    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def gradients(self, step: Step) -> tuple[Tensor, ...]:
        return tuple(self._clipped(g) for g in step.plain_gradients())

    def _clipped(self, gradient: Tensor) -> Tensor:
        rows = gradient.reshape(gradient.shape[0] if gradient.ndim > 1 else 1, -1)
        return clip_factor(largest_singular_value(rows), self.alpha) * gradient
