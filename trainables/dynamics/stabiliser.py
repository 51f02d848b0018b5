r"""The stability regulariser of Fang et al. (ACCV 2022) on the last layer.

Let theta be the layer's parameters as an m x n matrix (a row an input feature, the bias last; a
column an output). One update theta <- d theta + V is the matrix A = [[d I, V], [0, I]], and the
product C of all updates since the anchor keeps the form [[a I, S], [0, I]] with a <- d a and
S <- d S + V: for d = 1, which is used here, S is the net displacement from the anchor. The
regularised loss is

    L + alpha * relu(sigma_1(C) - 1)                                     (Fang et al., eq. 17)

and with s the largest singular value of S,

    sigma_1(C) = 1/2 [ sqrt((1 + a)^2 + s^2) + sqrt((1 - a)^2 + s^2) ].

So no singular value decomposition of C is needed. For a <= 1 the relu is never inactive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from trainables.domain import StabmapError
from trainables.dynamics.optimisers import Optimiser, Slots


def excess(s: Tensor, a: float = 1.0) -> Tensor:
    """sigma_1(C) - 1 without cancellation.

    Subtracting 1 from sigma_1 loses everything at small s: at s = 1e-7 in float32 the plain
    difference is 0 where the truth is 5e-8.

    Args:
        s: largest singular value of S, >= 0, any shape.
        a: accumulated decay factor, >= 0; 1 where weight decay is part of the update.

    Returns:
        A tensor like `s`; its derivative is (s / 2)(1 / sqrt((1 + a)^2 + s^2) + 1 / sqrt((1 -
        a)^2 + s^2)), which for a = 1 lies in [1/2, 1).
    """
    square = s * s
    wide = square / (torch.sqrt((1 + a) ** 2 + square) + (1 + a))
    gap = abs(1 - a)
    narrow = s if gap == 0 else square / (torch.sqrt(gap**2 + square) + gap)
    return 0.5 * (wide + narrow) + max(a - 1.0, 0.0)


def largest_singular_value(matrix: Tensor) -> Tensor:
    """||S||_2 of an m x n matrix with few columns, differentiable with gradient p q^T.

    (p, q) is the top singular pair, from the n x n Gram matrix. At S = 0 the norm has no
    derivative: the gradient is 0 there, not an arbitrary direction.
    """
    fixed = matrix.detach()
    largest = fixed.abs().max()
    if not bool(torch.isfinite(largest)):
        return matrix.sum() * math.nan
    # Scaled first: squares of very small or large entries would leave the dtype's range.
    scaled = fixed / largest if largest > 0 else fixed
    if fixed.shape[1] == 1:
        q = fixed.new_ones(1)
    else:
        q = torch.linalg.eigh(scaled.T @ scaled).eigenvectors[:, -1]
    image = scaled @ q
    norm = torch.linalg.vector_norm(image)
    p = image / norm if norm > 0 else torch.zeros_like(image)
    return p @ matrix @ q


def as_matrix(tensors: Sequence[Tensor]) -> Tensor:
    """Weight (out, in, ...) and optional bias (out,) of a layer as the m x n matrix theta."""
    rows = [tensors[0].reshape(tensors[0].shape[0], -1).T]
    rows += [bias.reshape(1, -1) for bias in tensors[1:]]
    return torch.cat(rows)


def from_matrix(matrix: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Inverse of `as_matrix`."""
    weight = like[0]
    features = weight.numel() // weight.shape[0]
    parts = [matrix[:features].T.reshape(weight.shape)]
    parts += [matrix[features].reshape(bias.shape) for bias in like[1:]]
    return tuple(parts)


#: Gradient of the loss with respect to the outputs, written as a differentiable function of them.
OutputGradient = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """What a regulariser may look at before an update.

    Args:
        loss: loss of the batch, with its graph.
        parameters: all parameters.
        layer: positions in `parameters` of the regularised layer (weight, then bias if any).
        slots: optimiser state, one entry a parameter.
        optimiser: the update rule.
        count: number of steps made before.
        features: what entered the layer, (batch, in), with its graph; None for other layers
            than linear ones.
        outputs: what left the network, with its graph.
        targets: targets of the batch.
        output_gradient: closed form of dloss/doutputs; None where the loss has none.
    """

    loss: Tensor
    parameters: Sequence[Tensor]
    layer: Sequence[int]
    slots: Sequence[Slots]
    optimiser: Optimiser
    count: int
    features: Tensor | None
    outputs: Tensor
    targets: Tensor
    output_gradient: OutputGradient | None


class Regulariser(Protocol):
    """State of a stability regulariser along one training."""

    def gradients(self, step: Step) -> tuple[Tensor, ...]:
        """Gradients of the regularised loss, one a parameter."""

    def accumulate(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        """Take note of the layer's actual step: never of the predicted one."""

    def reset(self) -> None:
        """Make the present parameters the anchor."""

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on later."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""


def plain_gradients(step: Step) -> tuple[Tensor, ...]:
    """Gradients of the loss alone."""
    return torch.autograd.grad(step.loss, list(step.parameters))


def predicted_update(step: Step) -> Tensor:
    """V as a differentiable function of all parameters (the analytic mode).

    The gradient of the layer is written in closed form from its features and the outputs, then
    sent through the optimiser's own rule, so momentum, Adam and weight decay are in V as they
    will be in the step. Nothing of second order is needed from autograd.
    """
    if step.features is None or step.output_gradient is None:
        raise StabmapError(
            "the reference variant of the regulariser needs a linear last layer and a loss with a "
            "closed-form output gradient; use regulariser: closed-form"
        )
    by_output = step.output_gradient(step.outputs, step.targets).reshape(len(step.outputs), -1)
    gradients = (by_output.T @ step.features, by_output.sum(0))
    moved = []
    for index, gradient in zip(step.layer, gradients, strict=False):
        parameter = step.parameters[index]
        new, _ = step.optimiser.step(
            parameter, gradient.reshape(parameter.shape), step.slots[index], step.count
        )
        moved.append(new - parameter)
    return as_matrix(moved)


@dataclass
class ClosedForm:
    """The regulariser with sigma_1 in closed form, left order, one backward pass.

    Where the loss has a closed-form output gradient and the layer is linear, the predicted update
    V is differentiated analytically: the penalty then acts on the features (all upstream layers)
    and, through the outputs, on the layer itself (for an absolute error not on the layer: the
    sign is locally constant). For every other loss the generic mode is used: V is the dry-run
    step, and its derivative with respect to the layer is taken as the identity (constant gradient
    nearby), so that the penalty's gradient is alpha sigma_1' p q^T on the layer alone.

    Args:
        alpha: strength, > 0.
    """

    alpha: float
    displacement: Tensor | None = field(default=None)

    def gradients(self, step: Step) -> tuple[Tensor, ...]:
        """Gradients of the regularised loss from one backward pass."""
        if step.output_gradient is not None and step.features is not None:
            penalty = excess(largest_singular_value(self._ahead(predicted_update(step), step)))
            loss = step.loss + self.alpha * penalty
            return torch.autograd.grad(loss, list(step.parameters))
        return self._generic(step)

    def _ahead(self, update: Tensor, step: Step) -> Tensor:
        if self.displacement is None:
            self.displacement = torch.zeros_like(update, requires_grad=False).detach()
        return self.displacement + update

    def _generic(self, step: Step) -> tuple[Tensor, ...]:
        gradients = list(plain_gradients(step))
        with torch.no_grad():
            update = as_matrix(
                [
                    step.optimiser.step(
                        step.parameters[i], gradients[i], step.slots[i], step.count
                    )[0]
                    - step.parameters[i]
                    for i in step.layer
                ]
            )
            ahead = self._ahead(update, step)
        ahead.requires_grad_(True)
        (pull,) = torch.autograd.grad(excess(largest_singular_value(ahead)), ahead)
        layer = [step.parameters[i] for i in step.layer]
        for i, part in zip(step.layer, from_matrix(pull, layer), strict=True):
            gradients[i] = gradients[i] + self.alpha * part
        return tuple(gradients)

    def accumulate(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        """S <- S + (actual step)."""
        update = as_matrix([b - a for a, b in zip(before, after, strict=True)])
        self.displacement = update if self.displacement is None else self.displacement + update

    def reset(self) -> None:
        """Make the present parameters the anchor."""
        self.displacement = None

    def state_dict(self) -> dict[str, Any]:
        """The displacement since the anchor."""
        return {"displacement": self.displacement}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.displacement = state["displacement"]


@dataclass
class Reference:
    """The regulariser as the authors' program computes it: full matrix, right order, two passes.

    C <- C A with explicit (m + n) x (m + n) matrices, sigma_1 from a singular value
    decomposition, and a second backward pass for the penalty. Kept to repeat their runs; it costs
    O((m + n)^3) a step, and at small displacements loses the penalty's digits in float32. Needs a
    linear layer and a loss with a closed-form output gradient, as in their program.

    Args:
        alpha: strength, > 0.
    """

    alpha: float
    product: Tensor | None = field(default=None)

    def gradients(self, step: Step) -> tuple[Tensor, ...]:
        """Gradients of the loss, then those of the penalty, in two backward passes."""
        update = predicted_update(step)
        before = self.product if self.product is not None else _identity(update)
        ahead = before @ one_step_matrix(update)
        if bool(torch.isfinite(ahead).all()):
            penalty = torch.relu(torch.linalg.svd(ahead)[1][0] - 1)
        else:  # the training has blown up, and a decomposition would only raise
            penalty = ahead.sum() * math.nan
        parameters = list(step.parameters)
        first = torch.autograd.grad(step.loss, parameters, retain_graph=True)
        second = torch.autograd.grad(
            self.alpha * penalty, parameters, allow_unused=True, materialize_grads=True
        )
        return tuple(g + h for g, h in zip(first, second, strict=True))

    def accumulate(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        """C <- C A(actual step)."""
        update = as_matrix([b - a for a, b in zip(before, after, strict=True)])
        product = self.product if self.product is not None else _identity(update)
        self.product = product @ one_step_matrix(update)

    def reset(self) -> None:
        """Make the present parameters the anchor."""
        self.product = None

    def state_dict(self) -> dict[str, Any]:
        """The product of all steps since the anchor."""
        return {"product": self.product}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.product = state["product"]


def one_step_matrix(update: Tensor, decay: float = 1.0) -> Tensor:
    """A = [[d I, V], [0, I]] of one update (Fang et al., eq. 9)."""
    m, n = update.shape
    top = torch.cat([decay * torch.eye(m, dtype=update.dtype, device=update.device), update], 1)
    bottom = torch.eye(m + n, dtype=update.dtype, device=update.device)[m:]
    return torch.cat([top, bottom])


def _identity(update: Tensor) -> Tensor:
    return torch.eye(sum(update.shape), dtype=update.dtype, device=update.device)


VARIANTS: dict[str, Callable[[float], Regulariser]] = {
    "closed-form": ClosedForm,
    "reference": Reference,
}
