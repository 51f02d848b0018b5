"""What sharpness to 1 % costs, in gradient evaluations, against power iteration.

Run: .venv/bin/python benchmarks/curvature.py

A tanh network 784-200-200-10 with squared error on the first 256 MNIST images, measured at
initialisation and at the edge of stability: after 400 to 600 steps of full-batch gradient descent
at lr 0.04, where lr x sharpness hovers around 2. Five initial weights; three moments of each at the
edge. The truth comes from scipy's eigsh to 1e-10 on curvlinops' own Hessian.

A gradient evaluation is one forward and one backward pass over all images. An exact product counts
for the time that it takes, measured beside a gradient in the same run and printed; the gradient
whose graph it uses counts for one. A difference of gradients counts for one gradient a product.

"needed": from here on the value lies within 1 % of the truth; known only to who knows the truth.
"spent": where the estimator itself stops at a tolerance of 1 %; "worst": its largest error then.
"time": of that call, all of it, over the time of a gradient. Times are processor times.
A warm start is the eigenvector found ten steps before; what that cost is not counted again.
The limits of 15 and 8 hold for Lanczos from the gradient, on average over the places.
About three minutes on one core.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from trainables.dynamics.curvature import sharpness
from trainables.dynamics.hessian_products import PRICE, Curvature
from trainables.tasks.mnist import mnist

Array = NDArray[np.float64]
#: Module, loss, inputs, targets.
Problem = tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]
#: Gradients needed, gradients spent, time over that of a gradient, relative error.
Row = tuple[float, float, float, float]

SIZES = (784, 200, 200, 10)
IMAGES = 256
LR = 0.04
EDGE = (400, 500, 600)
WARM = 10
SEEDS = 5
RTOL = 0.01
#: Products after which a method is given up; counted as that many.
MOST = 60
LIMITS = {"initialisation": 15, "edge of stability": 8}


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared error, summed over outputs."""
    return 0.5 * ((outputs - targets) ** 2).sum(1).mean()


def data() -> tuple[Tensor, Tensor]:
    """The images as rows, the digits one-hot."""
    (images, labels), _ = mnist(None)
    inputs = torch.from_numpy(images[:IMAGES].reshape(IMAGES, -1))
    return inputs, nn.functional.one_hot(torch.from_numpy(labels[:IMAGES]), 10).double()


def network(seed: int) -> nn.Sequential:
    """Weights N(0, 1 / fan_in), biases 0."""
    random = np.random.default_rng((seed, 1))
    layers: list[nn.Module] = []
    for fan_in, width in itertools.pairwise(SIZES):
        layer = nn.Linear(fan_in, width, dtype=torch.float64)
        with torch.no_grad():
            weight = random.standard_normal((width, fan_in)) / np.sqrt(fan_in)
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.zero_()
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def curvlinops(module: nn.Module, inputs: Tensor, targets: Tensor) -> Any:
    """The library's Hessian, as it comes."""
    from curvlinops import HessianLinearOperator

    class Reduced(nn.Module):
        reduction = "mean"

        def forward(self, outputs: Tensor, goals: Tensor) -> Tensor:
            return loss(outputs, goals)

    return HessianLinearOperator(
        module, Reduced(), list(module.parameters()), [(inputs, targets)], check_deterministic=False
    ).to_scipy()


def prices(inputs: Tensor, targets: Tensor) -> tuple[float, float, float]:
    """Seconds of a gradient, of a product as stabmap makes it, and of curvlinops' own."""
    module = network(0)
    parameters = list(module.parameters())
    curvature = Curvature(module, loss, inputs, targets, "exact")
    plain = curvlinops(module, inputs, targets)
    vector = np.random.default_rng(0).standard_normal(curvature.size)
    calls: tuple[Callable[[], object], ...] = (
        lambda: torch.autograd.grad(loss(module(inputs), targets), parameters),
        lambda: curvature.product(vector),
        lambda: plain @ vector,
    )
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(40):
        for call, spent in zip(calls, times, strict=True):
            begin = time.process_time()
            call()
            spent.append(time.process_time() - begin)
    gradient, kept, rebuilt = (statistics.median(spent[5:]) for spent in times)
    return gradient, kept, rebuilt


def descend(module: nn.Module, inputs: Tensor, targets: Tensor, steps: int) -> None:
    """Full-batch gradient descent."""
    parameters = list(module.parameters())
    for _ in range(steps):
        gradients = torch.autograd.grad(loss(module(inputs), targets), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= LR * gradient


def states(
    seed: int, inputs: Tensor, targets: Tensor
) -> Iterator[tuple[str, nn.Module, Array | None]]:
    """Where to measure: the place's name, the network there, the eigenvector ten steps before."""
    module = network(seed)
    yield "initialisation", module, None
    step = 0
    for edge in EDGE:
        descend(module, inputs, targets, edge - WARM - step)
        before = sharpness(module, loss, inputs, targets)
        descend(module, inputs, targets, WARM)
        step = edge
        yield "edge of stability", module, before.vector


def needed_products(problem: Problem, truth: float, start: Any) -> int:
    """Products after which Lanczos stays within 1 % of the truth, for four more at least."""
    needed = MOST
    for products in range(1, MOST):
        budget = 1 + PRICE["exact"] * products
        value = sharpness(*problem, start=start, budget=budget, rtol=1e-12).value
        if abs(value - truth) > RTOL * truth:
            needed = MOST
        else:
            needed = min(needed, products)
            if products >= needed + 4:
                break
    return needed


def power_iteration(problem: Problem, truth: float, price: float, start: Array | None) -> Row:
    """Stops by itself where the Rayleigh quotient changes by less than 1 %."""
    curvature = Curvature(*problem, "exact")
    vector = np.random.default_rng(0).standard_normal(curvature.size)
    if start is not None:
        vector = vector / np.linalg.norm(vector) + start / np.linalg.norm(start)
    values: list[float] = []
    for _ in range(MOST):
        vector = vector / np.linalg.norm(vector)
        image = curvature.product(vector)
        values.append(float(vector @ image))
        vector = image
    off = np.abs(np.array(values) / truth - 1)
    late = np.flatnonzero(off > RTOL)
    needed = min(MOST, late[-1] + 2 if len(late) else 1)
    change = np.abs(np.diff(values)) <= RTOL * np.abs(values[1:])
    own = int(np.argmax(change)) + 2 if change.any() else MOST
    return 1 + price * needed, 1 + price * own, float("nan"), float(off[own - 1])


def measure(
    problem: Problem, truth: float, second: float, price: float, warm: Array | None
) -> Iterator[tuple[str, Row]]:
    """All methods at one place; `second` is the time of a gradient."""
    gradient = Curvature(*problem, "exact").gradient
    starts: dict[str, tuple[Any, Array | None]] = {
        "random": ("random", None),
        "gradient": ("gradient", gradient),
    }
    if warm is not None:
        starts["warm"] = (warm, warm)
    for name, (start, vector) in starts.items():
        needed = needed_products(problem, truth, start)
        for kind, bound, confidence in (
            ("exact", "residual", None),
            ("difference", "residual", None),
            ("exact", "99.9 %", 0.999),
        ):
            begin = time.process_time()
            own = sharpness(
                *problem, start=start, rtol=RTOL, confidence=confidence, products=kind, budget=500
            )
            taken = (time.process_time() - begin) / second
            each = price if kind == "exact" else 1.0
            spent = (own.gradients - 1) // PRICE[kind]
            off = abs(own.value / truth - 1)
            method = f"Lanczos, {name:8s}  {kind:10s}  {bound}"
            yield method, (1 + each * needed, 1 + each * spent, taken, off)
        yield (
            f"power iteration, {name:8s}  exact",
            power_iteration(problem, truth, price, vector),
        )


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    inputs, targets = data()
    second, kept, rebuilt = prices(inputs, targets)
    price = kept / second
    print(
        f"time of an exact product / time of a gradient   {price:.2f}"
        f" (curvlinops' {rebuilt / second:.2f})"
    )
    results: dict[str, dict[str, list[Row]]] = {place: defaultdict(list) for place in LIMITS}
    ratios = defaultdict(list)
    for seed in range(SEEDS):
        for place, module, warm in states(seed, inputs, targets):
            hessian = curvlinops(module, inputs, targets)
            start = np.random.default_rng((seed, 2)).standard_normal(hessian.shape[0])
            (truth,) = eigsh(
                hessian, 1, which="LA", tol=1e-10, ncv=20, v0=start, return_eigenvectors=False
            )
            ratios[place].append(LR * truth)
            problem = (module, loss, inputs, targets)
            for name, result in measure(problem, float(truth), second, price, warm):
                results[place][name].append(result)
    for place, limit in LIMITS.items():
        low, high = min(ratios[place]), max(ratios[place])
        print(f"\n{place}: lr x sharpness {low:.2f} to {high:.2f}; the limit is {limit} gradients")
        print(f"{'method':41s}  needed, mean  most  spent, mean  most  time, mean  worst error, %")
        for name, rows in results[place].items():
            needed, spent, taken, error = np.array(rows).T
            time_text = "" if np.isnan(taken).all() else f"{taken.mean():.1f}"
            print(
                f"{name:41s}  {needed.mean():12.1f}  {needed.max():4.1f}"
                f"  {spent.mean():11.1f}  {spent.max():4.1f}  {time_text:>10s}"
                f"  {100 * error.max():14.2f}"
            )


if __name__ == "__main__":
    main()
