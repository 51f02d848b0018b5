"""Curvature of a loss at given parameters: sharpness, Hessian trace, curvature along a direction.

Every estimator says what it found, how far off that may be, and how many gradient evaluations it
cost; it never costs more than its budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from trainables.domain import InputError, Mistake
from trainables.dynamics.hessian_products import (
    PRICE,
    ROUNDOFF,
    Array,
    Curvature,
    Loss,
    Products,
    trained_parameters,
    unit_vector,
)
from trainables.dynamics.lanczos import Lanczos

#: Length of the random numbers that a start is mixed with, over the length of the start.
NOISE = 0.1

#: Probability that the error of `sharpness` bounds the truth, where the caller names none.
CONFIDENCE = 0.999


@dataclass(frozen=True)
class Estimate:
    """A curvature, and what is known of it.

    Attributes:
        value: the estimate; NaN where the Hessian is not finite.
        error: how far the truth may lie from it; each estimator says in which sense.
        gradients: gradient evaluations spent, the loss's own gradient included; a product counts as
            `PRICE` says.
        vector: the direction that `value` belongs to, (parameters,), of length 1, where there is
            one. A good start for the same measurement a few steps later.
    """

    value: float
    error: float
    gradients: int
    vector: Array | None = field(default=None, repr=False, compare=False)


# --------------------------------------------------------------------------- estimators


def sharpness(
    module: nn.Module,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    scaling: Array | None = None,
    decay: float = 0.0,
    *,
    rtol: float = 1e-3,
    confidence: float | None = CONFIDENCE,
    budget: int = 128,
    start: Array | Literal["random", "gradient"] = "random",
    seed: int = 0,
    products: Products = "exact",
) -> Estimate:
    """Largest (most positive) eigenvalue of D (H + decay I) D, H the Hessian of the loss.

    Lanczos with full reorthogonalisation. The value never exceeds the truth but for rounding. The
    error is one of two:

    - With a `confidence`, the truth lies in [value, value + error] with that probability over the
      random part of the start, whatever the matrix: a larger eigenvalue would have shown, unless
      the start were almost blind to it (van Dorsselaer, Hochstenbach and van der Vorst 2000).
    - Without, `error` is the residual ||A v - value v||: some eigenvalue lies within it. That this
      is the largest one is likely, not certain: two eigenvalues a few percent apart are sometimes
      taken for one, and an eigenvector of a smaller eigenvalue as `start` looks converged at once.
      Takes about two thirds of the products, with a good start far fewer. Where the budget ends
      the search before `rtol` is reached, the error is the bound, at a confidence of 0.999.

    So `error <= rtol * abs(value)` says that the tolerance was reached.

    Args:
        module: the network at the parameters in question, float64.
        loss: mean loss of (outputs, targets), without weight decay.
        inputs: all inputs.
        targets: all targets.
        scaling: diagonal of D, (parameters,); None for the identity. P^(-1/2) gives the
            preconditioned sharpness of Adam (Cohen et al. 2022).
        decay: coupled weight decay that the preconditioner scales too; 0 elsewhere.
        rtol: stop where the error is at most this share of the value.
        confidence: probability that the error bounds the truth; None for the residual.
        budget: gradient evaluations that may be spent, at least 1 + the price of a product.
        start: `random`; `gradient`, which has much of the top eigenvector while training oscillates
            along it; or a direction, (parameters,), in the coordinates of D H D, such as the
            `vector` of an earlier estimate. Random numbers of a tenth of its length are added to
            either, so that a direction without the top eigenvector cannot hide it for good.
        seed: of the random numbers. The same seed gives the same bits.
        products: `exact`, or `difference` for a difference of two gradients, which costs one
            gradient. That is only for losses with two smooth derivatives: each kink of a ReLU or an
            absolute error that lies between the two points adds curvature that is not there.

    Returns:
        The eigenvalue; `vector` is its eigenvector in the coordinates of D H D.

    Raises:
        InputError: an argument breaks its law.
        StabmapError: curvlinops is not installed.
    """
    parameters = trained_parameters(module)
    size = sum(p.numel() for p in parameters)
    _refuse(
        *_product_mistakes(products, parameters, budget, least=1),
        *_vector_mistakes("scaling", scaling, size),
        *_start_mistakes(start, size),
        *_range_mistakes(rtol, confidence),
    )
    curvature = Curvature(module, loss, inputs, targets, products, scaling, decay)
    first = noise = np.random.default_rng(seed).standard_normal(size)
    if not isinstance(start, str) or start == "gradient":
        known = curvature.gradient if isinstance(start, str) else start
        first = noise + float(np.linalg.norm(noise)) / NOISE * unit_vector(known)
    lanczos = Lanczos(first)
    # A normal number exceeds this in size with the probability asked for; the known part of the
    # start only helps.
    least = NormalDist().inv_cdf(1 - (CONFIDENCE if confidence is None else confidence) / 2)
    overlap = least / float(np.linalg.norm(first))
    while True:
        image = curvature.product(lanczos.basis[-1])
        if not math.isfinite(np.linalg.norm(image)):
            return _unknown(curvature)
        lanczos.extend(image)
        value, residual, weights = lanczos.top()
        whole = lanczos.exhausted
        error = residual if whole or confidence is None else lanczos.bound(overlap) - value
        error += lanczos.unevenness
        if whole or error <= rtol * abs(value):
            break
        if curvature.spent + PRICE[products] > budget:
            error = lanczos.bound(overlap) - value + lanczos.unevenness
            break
    vector = sum(w * q for w, q in zip(weights, lanczos.basis, strict=False))
    return Estimate(value, error, curvature.spent, np.asarray(vector))


def hessian_trace(
    module: nn.Module,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    *,
    budget: int = 61,
    seed: int = 0,
    products: Products = "exact",
) -> Estimate:
    """Trace of the Hessian of the loss, by Hutch++ (Meyer, Musco, Musco and Woodruff 2021).

    A third of the products finds the directions in which the Hessian is large, a third takes the
    trace there exactly, and the rest estimates what is left with random signs. Unbiased, and exact
    where the rank is at most a third of the products. With as many products as parameters the
    diagonal itself is added up. All of the budget is spent, but for what would not make a product.

    Args:
        module: the network at the parameters in question, float64.
        loss: mean loss of (outputs, targets).
        inputs: all inputs.
        targets: all targets.
        budget: gradient evaluations that may be spent, at least 1 + four products.
        seed: of the random numbers. The same seed gives the same bits.
        products: as for `sharpness`.

    Returns:
        The trace; `error` is its standard error over the random signs, 0 where none were needed.

    Raises:
        InputError: an argument breaks its law.
        StabmapError: curvlinops is not installed.
    """
    parameters = trained_parameters(module)
    _refuse(*_product_mistakes(products, parameters, budget, least=4))
    curvature = Curvature(module, loss, inputs, targets, products)
    count = (budget - 1) // PRICE[products]
    if curvature.size <= count:
        trace = float(sum(curvature.product(unit) @ unit for unit in np.eye(curvature.size)))
        return (
            Estimate(trace, 0.0, curvature.spent) if math.isfinite(trace) else _unknown(curvature)
        )
    random = np.random.default_rng(seed)

    def signs() -> Array:
        return random.choice([-1.0, 1.0], curvature.size)

    sketch = np.stack([curvature.product(signs()) for _ in range(count // 3)], axis=1)
    if not np.isfinite(sketch).all():
        return _unknown(curvature)
    basis = np.linalg.qr(sketch)[0]
    inside = float(sum(curvature.product(column) @ column for column in basis.T))
    rest = []
    for _ in range(count - 2 * (count // 3)):
        probe = signs()
        probe -= basis @ (basis.T @ probe)
        rest.append(curvature.product(probe) @ probe)
    error = float(np.std(rest, ddof=1)) / math.sqrt(len(rest))
    value = inside + float(np.mean(rest))
    return Estimate(value, error, curvature.spent) if math.isfinite(value) else _unknown(curvature)


def directional_sharpness(
    module: nn.Module,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    direction: Array,
    *,
    products: Products = "exact",
) -> Estimate:
    """Curvature along a direction, d^T H d / d^T d, for one product.

    Along the gradient g of a batch it foretells what a step of gradient descent gains: the loss
    falls by lr ||g||^2 (1 - lr s / 2), so a step descends where lr s < 2.

    Args:
        module: the network at the parameters in question, float64.
        loss: mean loss of (outputs, targets).
        inputs: all inputs, or those of a batch.
        targets: their targets.
        direction: (parameters,), in the order of `module.parameters()`: a gradient, an update.
        products: as for `sharpness`.

    Returns:
        The curvature; `vector` is the direction, of length 1. `error` is the size of the rounding
        error; with `difference` the step adds about 1e-8 of the third derivative to it.

    Raises:
        InputError: the direction is zero, not finite or of the wrong shape.
        StabmapError: curvlinops is not installed.
    """
    parameters = trained_parameters(module)
    _refuse(
        *_product_mistakes(products, parameters, 1 + PRICE.get(products, 0), least=1),
        *_start_mistakes(direction, sum(p.numel() for p in parameters), "direction"),
    )
    curvature = Curvature(module, loss, inputs, targets, products)
    unit = unit_vector(direction)
    image = curvature.product(unit)
    if not np.isfinite(image).all():
        return _unknown(curvature)
    # What was rounded: the product itself, or gradients that were then divided by a small step.
    rounded = image if products == "exact" else curvature.gradient / curvature.step
    error = ROUNDOFF * math.sqrt(curvature.size) * float(np.linalg.norm(rounded))
    return Estimate(float(unit @ image), error, curvature.spent, unit)


def _unknown(curvature: Curvature) -> Estimate:
    return Estimate(math.nan, math.nan, curvature.spent)


# --------------------------------------------------------------------------- laws


def _refuse(*mistakes: Mistake) -> None:
    if mistakes:
        raise InputError(mistakes)


def _product_mistakes(
    products: str, parameters: list[nn.Parameter], budget: int, least: int
) -> list[Mistake]:
    if products not in PRICE:
        law = "must be one of exact, difference"
        return [Mistake("products", products, law, "choose one")]
    mistakes = []
    if products == "difference" and any(p.dtype != torch.float64 for p in parameters):
        kinds = ", ".join(sorted({str(p.dtype) for p in parameters}))
        law = "a difference of gradients needs float64 parameters"
        mistakes.append(Mistake("module", kinds, law, "convert the module with .double()"))
    price = PRICE["exact" if products == "exact" else "difference"]
    if not budget >= 1 + least * price:
        what = "one product" if least == 1 else f"{least} products"
        law = f"the gradient and {what} cost {1 + least * price} gradient evaluations"
        mistakes.append(Mistake("budget", budget, law, "raise it"))
    return mistakes


def _vector_mistakes(name: str, vector: Array | None, size: int) -> list[Mistake]:
    if vector is None or np.shape(vector) == (size,):
        return []
    law = f"one number for each of the {size} trained parameters, in one row"
    return [Mistake(name, np.shape(vector), law, f"give an array of shape ({size},)")]


def _start_mistakes(start: Array | str, size: int, name: str = "start") -> list[Mistake]:
    if isinstance(start, str):
        words = ("random", "gradient") if name == "start" else ()
        law = f"must be {', '.join(words)}{' or ' if words else ''}an array"
        known = start in words
        return [] if known else [Mistake(name, start, law, "choose one")]
    mistakes = _vector_mistakes(name, start, size)
    if not mistakes and (not np.isfinite(start).all() or not np.any(start)):
        what = "0" if np.isfinite(start).all() else "not finite"
        mistakes = [Mistake(name, what, "a direction must be finite and not 0", "give another")]
    return mistakes


def _range_mistakes(rtol: float, confidence: float | None) -> list[Mistake]:
    mistakes = []
    if not rtol > 0:
        mistakes.append(Mistake("rtol", rtol, "must be > 0", "give a share such as 0.01"))
    if confidence is not None and not 0 < confidence < 1:
        law = "a probability, 0 < confidence < 1, or None"
        mistakes.append(Mistake("confidence", confidence, law, "give a number such as 0.99"))
    return mistakes
