"""Sharpness: the top Hessian eigenvalue of the training loss, against the optimiser's threshold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.domain import StabmapError
from trainables.dynamics.optimisers import Optimiser

#: Residual asked of Lanczos, relative; the eigenvalue itself is then good to about four digits.
TOLERANCE = 1e-3


class _Mean(nn.Module):
    """A loss as curvlinops wants it: a callable that says how it reduces."""

    reduction = "mean"

    def __init__(self, value: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.value = value

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.value(outputs, targets)
        return loss


def sharpness(
    module: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    scaling: NDArray[np.float64] | None = None,
    decay: float = 0.0,
) -> float:
    """Largest eigenvalue of D (H + decay I) D, with H the Hessian of the full-batch loss.

    Lanczos (scipy) on curvlinops' Hessian-vector products.

    Args:
        module: the network at the parameters in question, float64.
        loss: mean loss of (outputs, targets), without weight decay.
        inputs: all inputs.
        targets: all targets.
        scaling: diagonal of D, (parameters,); None for the identity. P^(-1/2) gives the
            preconditioned sharpness of Adam (Cohen et al. 2022).
        decay: coupled weight decay that the preconditioner scales too; 0 elsewhere.

    Returns:
        The most positive eigenvalue; NaN where the Hessian is not finite.

    Raises:
        StabmapError: curvlinops is not installed.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    try:
        from curvlinops import HessianLinearOperator
    except ImportError as error:
        raise StabmapError(
            "sharpness needs the package curvlinops-for-pytorch: install it, or set "
            "sharpness: false and live without the sharpness criterion"
        ) from error

    parameters = [p for p in module.parameters() if p.requires_grad]
    hessian = HessianLinearOperator(
        module, _Mean(loss), parameters, [(inputs, targets)], check_deterministic=False
    ).to_scipy()
    size = hessian.shape[0]
    scale = np.ones(size) if scaling is None else scaling

    def product(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        inner = scale * vector.ravel()
        return np.asarray(scale * (hessian @ inner + decay * inner), dtype=np.float64)

    start = np.random.RandomState(0).randn(size)
    image = product(start)
    shift = 2 * float(np.linalg.norm(image) / np.linalg.norm(start))
    if not np.isfinite(shift):
        return float("nan")
    if shift == 0:
        return 0.0
    if size < 3:
        dense = np.stack([product(e) for e in np.eye(size)])
        return float(np.linalg.eigvalsh((dense + dense.T) / 2)[-1])
    # Shifted by twice its own size: ARPACK stops with an error where a Hessian of low rank maps a
    # restart to 0.
    operator = LinearOperator(
        (size, size), dtype=np.float64, matvec=lambda v: product(v) + shift * v.ravel()
    )
    try:
        top = eigsh(
            operator,
            k=1,
            which="LA",
            tol=TOLERANCE,
            v0=start,
            ncv=min(size, 8),
            return_eigenvectors=False,
            rng=np.random.default_rng(0),
        )
    except ArpackNoConvergence as error:
        top = error.eigenvalues if len(error.eigenvalues) else [float("nan")]
    return float(top[0]) - shift


def stability_ratio(optimiser: Optimiser, eigenvalue: float) -> float:
    """Sharpness over the largest that a quadratic bowl allows: above 1 the minimum repels.

    Linear stability of the optimiser on a quadratic with this curvature: eta (h + lambda) <= 2 for
    gradient descent; Cohen et al. 2021 (appendix B) with momentum, and with coupled or decoupled
    weight decay lambda.

    Args:
        optimiser: the update rule (lr, momentum, weight decay).
        eigenvalue: top Hessian eigenvalue of the loss without decay; for Adam of the
            preconditioned Hessian, the decay included where it is coupled.
    """
    lr, decay, beta = optimiser.lr, optimiser.weight_decay, optimiser.momentum
    coupled = optimiser.decay == "coupled"
    if optimiser.name == "adam":
        curvature = (1 - beta) * lr * eigenvalue
        return (curvature + (0 if coupled else (1 + beta) * lr * decay)) / (2 + 2 * beta)
    if optimiser.name == "nesterov":
        if coupled:
            return lr * (1 + 2 * beta) * (eigenvalue + decay) / (2 + 2 * beta)
        return (lr * (1 + 2 * beta) * eigenvalue / (1 + beta) + lr * decay) / 2
    if coupled:
        return lr * (eigenvalue + decay) / (2 + 2 * beta)
    return lr * (eigenvalue + (1 + beta) * decay) / (2 + 2 * beta)


def adam_scaling(optimiser: Optimiser, second_moment: Tensor, count: int) -> NDArray[np.float64]:
    """P^(-1/2) of Adam after `count` steps, P = diag(sqrt(v_hat) + eps).

    Args:
        optimiser: Adam's constants.
        second_moment: v, all parameters in one row.
        count: steps made so far, >= 1.
    """
    corrected = second_moment.double() / (1 - optimiser.beta2**count)
    scale = (torch.sqrt(corrected) + optimiser.eps) ** -0.5
    return np.asarray(scale.cpu().numpy(), dtype=np.float64)
