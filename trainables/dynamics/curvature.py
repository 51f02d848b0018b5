"""Sharpness: the top Hessian eigenvalue of the training loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.domain import StabmapError

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
