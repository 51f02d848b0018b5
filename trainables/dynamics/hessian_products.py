"""Products of a loss's Hessian with vectors, and what they cost in gradient evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.domain import StabmapError
from trainables.dynamics.float64_loss import Float64Loss, Loss

Array = NDArray[np.float64]
Products = Literal["exact", "difference"]

#: Gradient evaluations that one Hessian-vector product counts for. An exact one is a backward pass
#: through the graph of the gradient: twice the gradient's matrix products at most, and measured at
#: 0.4 to 1.9 gradients on the built-in tasks (`benchmarks/curvature.py` prints it for one network).
#: The larger number is counted, so that a budget is never exceeded.
PRICE: dict[Products, int] = {"exact": 2, "difference": 1}

ROUNDOFF = float(np.finfo(np.float64).eps)


class Curvature:
    """The loss's gradient and products with D (H + decay I) D; counts what they cost."""

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        inputs: Tensor,
        targets: Tensor,
        products: Products,
        scaling: Array | None = None,
        decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        objective = Float64Loss(module, loss, inputs, targets, seed)
        self.size = sum(p.numel() for p in objective.parameters)
        self.scale = scaling
        self.decay = decay
        self.price = PRICE[products]
        make = _kept_graph if products == "exact" else _differences
        gradient, self._hessian, self.step = make(objective)
        self.gradient = self._scaled(gradient)
        self.spent = 1

    def product(self, vector: Array) -> Array:
        """D (H + decay I) D times a vector."""
        self.spent += self.price
        inner = self._scaled(vector)
        image = self._hessian(inner)
        return self._scaled(image + self.decay * inner if self.decay else image)

    def _scaled(self, vector: Array) -> Array:
        return vector if self.scale is None else self.scale * vector


_Made = tuple[Array, Callable[[Array], Array], float]


def _kept_graph(objective: Float64Loss) -> _Made:
    """Gradient, and exact products through its graph, which is built once.

    curvlinops' own product builds the graph anew for each vector and pushes the vector forward
    through it, for three to four gradients. Its operator remains, with the product replaced.
    """
    try:
        from curvlinops import HessianLinearOperator
    except ImportError as error:
        raise StabmapError(
            "sharpness needs the package curvlinops-for-pytorch: install it, or set "
            "sharpness: false and live without the sharpness criterion"
        ) from error

    parameters = objective.parameters
    gradients = torch.autograd.grad(
        objective(parameters), parameters, create_graph=True, materialize_grads=True
    )
    # A gradient that does not depend on the parameters has no graph, and no curvature.
    curved = [i for i, gradient in enumerate(gradients) if gradient.requires_grad]

    class KeptGraph(HessianLinearOperator):  # type: ignore[misc]
        def _matmat_batch(self, X: Any, y: Any, M: list[Tensor]) -> list[Tensor]:
            if not curved:
                return [torch.zeros_like(m) for m in M]
            columns = [
                torch.autograd.grad(
                    [gradients[i] for i in curved],
                    parameters,
                    [M[i][..., column] for i in curved],
                    retain_graph=True,
                    materialize_grads=True,
                )
                for column in range(M[0].shape[-1])
            ]
            return [torch.stack(parts, -1) for parts in zip(*columns, strict=True)]

    # Network and loss are in the graph already, so the operator needs none of either.
    data = [(objective.inputs, objective.targets)]
    operator = KeptGraph(
        None,
        _Mean(),
        parameters,
        data,
        check_deterministic=False,
        num_data=1,
        batch_size_fn=lambda _: 1,
    ).to_scipy()
    return _row(gradients), lambda vector: np.asarray(operator @ vector), 0.0


def _differences(objective: Float64Loss) -> _Made:
    """Gradient, and products as the difference of two gradients a small step apart."""
    here = [p.detach() for p in objective.parameters]
    sizes = [p.numel() for p in here]

    def gradient(shift: Array) -> Array:
        parts = torch.split(torch.from_numpy(shift), sizes)
        moved = [
            (p + part.view_as(p).to(p.device)).requires_grad_()
            for p, part in zip(here, parts, strict=True)
        ]
        return _row(torch.autograd.grad(objective(moved), moved, materialize_grads=True))

    base = gradient(np.zeros(sum(sizes)))
    # The square root of the roundoff balances rounding against the third derivative.
    length = math.sqrt(ROUNDOFF) * (1 + float(np.linalg.norm(_row(here))))

    def product(vector: Array) -> Array:
        norm = float(np.linalg.norm(vector))
        if norm == 0 or not math.isfinite(norm):
            return norm * vector
        step = length / norm
        with np.errstate(invalid="ignore"):  # infinity less infinity is a result, NaN
            return np.asarray((gradient(step * vector) - base) / step)

    return base, product, length


class _Mean:
    """What curvlinops asks a loss: how it reduces."""

    reduction = "mean"


def _row(tensors: Any) -> Array:
    flat = torch.cat([t.detach().reshape(-1) for t in tensors])
    return np.asarray(flat.cpu().numpy(), dtype=np.float64)


def unit_vector(vector: Array) -> Array:
    """The vector's direction with length 1; zeros where it has none."""
    peak = float(np.abs(vector).max())  # first, so that squares neither vanish nor overflow
    if peak == 0 or not math.isfinite(peak):
        return np.zeros_like(vector)
    scaled = vector / peak
    return np.asarray(scaled / np.linalg.norm(scaled))
