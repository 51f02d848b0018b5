"""Curvature of a loss at given parameters: sharpness, Hessian trace, curvature along a direction.

Every estimator says what it found, how far off that may be, and how many gradient evaluations it
cost; it never costs more than its budget.

All are computed in float64. Of a network, inputs or targets in a lower precision, copies in float64
are taken, so the result is that of `module.double()`; float32 would not do, since its rounding
errors hide what Lanczos and differences look for, and the whole budget would go. The network itself
is left as it is: parameters, `.grad`, buffers and torch's random numbers.

A network in training mode is measured in training mode: batch normalisation takes the statistics of
the inputs, and dropout one mask, drawn from `seed`, the same for all products. Call `.eval()` first
for the deterministic network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from trainables.domain import InputError, Mistake
from trainables.dynamics.float64_loss import Loss, problem_mistakes, refuse, trained_parameters
from trainables.dynamics.hessian_products import (
    PRICE,
    ROUNDOFF,
    Array,
    Curvature,
    Products,
    unit_vector,
)
from trainables.dynamics.lanczos import Lanczos
from trainables.dynamics.parameter_row import parameter_row

#: Length of the random numbers that a start is mixed with, over the length of the start.
NOISE = 0.1

NUMBER = (int, float, np.integer, np.floating)

#: A row of numbers for all trained parameters, or a list of tensors shaped like them.
Row = Array | Tensor | Sequence[Tensor]

#: Probability that the error of `sharpness` bounds the truth, where the caller names none.
CONFIDENCE = 0.999
#: Share of its distance from a level that `sharpness` may err by, below the level.
CLEAR = 0.5


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
    scaling: Row | None = None,
    decay: float = 0.0,
    *,
    rtol: float = 1e-3,
    level: float | None = None,
    confidence: float | None = CONFIDENCE,
    budget: int = 128,
    start: Row | Literal["random", "gradient"] = "random",
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

    So `error <= rtol * abs(value)` says that the tolerance was reached. Where all that matters is
    on which side of a level the truth lies, far below it a few products say so.

    Args:
        module: the network at the parameters in question.
        loss: mean loss of (outputs, targets), without weight decay.
        inputs: all inputs.
        targets: all targets.
        scaling: diagonal of D, (parameters,), or a list of tensors shaped like the parameters; None
            for the identity. P^(-1/2) gives the preconditioned sharpness of Adam (Cohen et al.
            2022).
        decay: coupled weight decay that the preconditioner scales too; 0 elsewhere.
        rtol: stop where the error is at most this share of the value.
        level: stop as well where the value lies below this and the error is at most half of what it
            lacks; None for no level. With one the error is always the bound, where there is no
            confidence that at 0.999.
        confidence: probability that the error bounds the truth; None for the residual.
        budget: gradient evaluations that may be spent, at least 1 + the price of a product.
        start: `random`; `gradient`, which has much of the top eigenvector while training oscillates
            along it; or a direction, (parameters,), in the coordinates of D H D, such as the
            `vector` of an earlier estimate. Random numbers of a tenth of its length are added to
            either, so that a direction without the top eigenvector cannot hide it for good.
        seed: of the random numbers, dropout's included. The same seed gives the same bits.
        products: `exact`, or `difference` for a difference of two gradients, which costs one
            gradient. That is only for losses with two smooth derivatives: each kink of a ReLU or an
            absolute error that lies between the two points adds curvature that is not there.

    Returns:
        The eigenvalue; `vector` is its eigenvector in the coordinates of D H D.

    Raises:
        InputError: an argument breaks its law.
        StabmapError: curvlinops is not installed.
    """
    refuse(problem_mistakes(module, loss, inputs, targets))
    scale, scaling_mistakes = _row("scaling", scaling, module)
    hint, start_mistakes = _direction("start", start, module, ("random", "gradient"))
    refuse(
        [
            *_product_mistakes(products, budget, least=1),
            *scaling_mistakes,
            *start_mistakes,
            *_range_mistakes(rtol, confidence, decay),
            *_level_mistakes(level),
            *_seed_mistakes(seed),
        ]
    )
    curvature = Curvature(module, loss, inputs, targets, products, scale, decay, seed)
    first = noise = np.random.default_rng(seed).standard_normal(curvature.size)
    if isinstance(start, str) and start == "gradient":
        hint = curvature.gradient
    if hint is not None:
        first = noise + float(np.linalg.norm(noise)) / NOISE * unit_vector(hint)
    lanczos = Lanczos(first)
    # A normal number exceeds this in size with the probability asked for; the known part of the
    # start only helps.
    least = NormalDist().inv_cdf(1 - (CONFIDENCE if confidence is None else confidence) / 2)
    overlap = least / float(np.linalg.norm(first))
    above = -math.inf if level is None else level
    while True:
        image = curvature.product(lanczos.basis[-1])
        if not math.isfinite(np.linalg.norm(image)):
            return _unknown(curvature)
        lanczos.extend(image)
        value, residual, weights = lanczos.top()
        whole = lanczos.exhausted
        plain = confidence is None and level is None
        error = residual if whole or plain else lanczos.bound(overlap) - value
        error += lanczos.unevenness
        if whole or error <= max(rtol * abs(value), CLEAR * (above - value)):
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
        module: the network at the parameters in question.
        loss: mean loss of (outputs, targets).
        inputs: all inputs.
        targets: all targets.
        budget: gradient evaluations that may be spent, at least 1 + four products.
        seed: as for `sharpness`.
        products: as for `sharpness`.

    Returns:
        The trace; `error` is its standard error over the random signs, 0 where none were needed.

    Raises:
        InputError: an argument breaks its law.
        StabmapError: curvlinops is not installed.
    """
    refuse(problem_mistakes(module, loss, inputs, targets))
    refuse([*_product_mistakes(products, budget, least=4), *_seed_mistakes(seed)])
    curvature = Curvature(module, loss, inputs, targets, products, seed=seed)
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
    direction: Row,
    *,
    seed: int = 0,
    products: Products = "exact",
) -> Estimate:
    """Curvature along a direction, d^T H d / d^T d, for one product.

    Along the gradient g of a batch it foretells what a step of gradient descent gains: the loss
    falls by lr ||g||^2 (1 - lr s / 2), so a step descends where lr s < 2.

    Args:
        module: the network at the parameters in question.
        loss: mean loss of (outputs, targets).
        inputs: all inputs, or those of a batch.
        targets: their targets.
        direction: a gradient, an update: an array or tensor, (parameters,), in the order of
            `module.parameters()`, or a list of tensors shaped like these.
        seed: of dropout's random numbers.
        products: as for `sharpness`.

    Returns:
        The curvature; `vector` is the direction, of length 1. `error` is the size of the rounding
        error; with `difference` the step adds about 1e-8 of the third derivative to it.

    Raises:
        InputError: an argument breaks its law: the direction is zero, not finite or of the wrong
            shape, the network takes no such inputs, the loss is not one number.
        StabmapError: curvlinops is not installed.
    """
    refuse(problem_mistakes(module, loss, inputs, targets))
    row, mistakes = _direction("direction", direction, module)
    enough = 1 + max(PRICE.values())
    refuse([*_product_mistakes(products, enough, least=1), *mistakes, *_seed_mistakes(seed)])
    assert row is not None
    curvature = Curvature(module, loss, inputs, targets, products, seed=seed)
    unit = unit_vector(row)
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


def _product_mistakes(products: str, budget: int, least: int) -> list[Mistake]:
    if products not in PRICE:
        law = "must be one of exact, difference"
        return [Mistake("products", products, law, "choose one")]
    price = PRICE["exact" if products == "exact" else "difference"]
    if not isinstance(budget, NUMBER) or not budget >= 1 + least * price:
        what = "one product" if least == 1 else f"{least} products"
        law = f"the gradient and {what} cost {1 + least * price} gradient evaluations"
        return [Mistake("budget", budget, law, "raise it")]
    return []


def _row(name: str, value: Any, module: nn.Module) -> tuple[Array | None, list[Mistake]]:
    """The value as (parameters,), and what is wrong with it."""
    try:
        return (
            None if value is None else parameter_row(name, value, trained_parameters(module))
        ), []
    except InputError as error:
        return None, list(error.mistakes)


def _direction(
    name: str, value: Any, module: nn.Module, words: tuple[str, ...] = ()
) -> tuple[Array | None, list[Mistake]]:
    """The same for a direction, which words may stand for."""
    if isinstance(value, str) or value is None:
        law = f"must be {', '.join(words)}{' or ' if words else ''}an array"
        return None, [] if value in words else [Mistake(name, value, law, "choose one")]
    row, mistakes = _row(name, value, module)
    if row is not None and (not np.isfinite(row).all() or not np.any(row)):
        what = "0" if np.isfinite(row).all() else "not finite"
        mistakes = [Mistake(name, what, "a direction must be finite and not 0", "give another")]
    return row, mistakes


def _range_mistakes(rtol: Any, confidence: Any, decay: Any) -> list[Mistake]:
    mistakes = []
    if not isinstance(rtol, NUMBER) or not rtol > 0:
        mistakes.append(Mistake("rtol", rtol, "must be > 0", "give a share such as 0.01"))
    if confidence is not None and not (isinstance(confidence, NUMBER) and 0 < confidence < 1):
        law = "a probability, 0 < confidence < 1, or None"
        mistakes.append(Mistake("confidence", confidence, law, "give a number such as 0.99"))
    if not isinstance(decay, NUMBER) or not math.isfinite(decay):
        mistakes.append(Mistake("decay", decay, "must be a finite number", "give 0 for none"))
    return mistakes


def _level_mistakes(level: Any) -> list[Mistake]:
    if level is None or (isinstance(level, NUMBER) and not math.isnan(level)):
        return []
    return [Mistake("level", level, "must be a number, or None", "leave it out")]


def _seed_mistakes(seed: Any) -> list[Mistake]:
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if whole and 0 <= seed < 2**63:
        return []
    return [Mistake("seed", seed, "must be a whole number from 0 to 2^63 - 1", "give 0")]
