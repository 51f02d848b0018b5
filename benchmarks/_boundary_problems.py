"""Five problems with known maps, for `boundary.py`: where do two margins change their signs?

Each is a box of two or three axes, all logarithmic, that is searched in unit coordinates. A run at
a point gives two margins, both positive on the calm side: `stable` (it comes to rest) and `bounded`
(it does not blow up). They jump, bend and saturate as those of trainings do.

- `amplifier`: Fourier modes of a linearised one-layer network, some of them anti-diffusive. Both
  edges are closed formulas; the restrained band narrows into a corner.
- `deep-linear`: gradient descent on a product of three scalars. Everything depends on
  lr target^(4/3) alone, so that all edges are parallel and oblique, one sliver very thin.
- `heavy-ball`: momentum with a saturating gradient, weight decay and a cubic term. Three axes.
- `tanh-network`: full-batch training of a tiny network with one learning rate per layer, whose edge
  is a fractal (Sohl-Dickstein, arXiv 2402.06184).
- `one-layer-cnn`: real trainings of the task of that name, judged by `stabmap.evaluate`; its map is
  exact theory (Sun et al., JMLR 2024, section 5.4).

The first four cost microseconds a run and get normal noise on both margins, so that labels near an
edge can be wrong. Trainings are deterministic and get none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from analysis.theory import one_layer_cnn_phases
from stabmap import Point, evaluate, get_task

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

REGIMES = ("stable", "restrained", "divergent")
#: Points on which curves are scored.
SUBSAMPLE = 8192
#: Points that are computed at once.
CHUNK = 20_000


def labels(margins: Array) -> Labels:
    """Numbers of the `REGIMES` of (n, 2) margins."""
    stable, bounded = margins.T
    return np.where(bounded < 0, 2, np.where(stable < 0, 1, 0))


@dataclass(frozen=True)
class Problem:
    """A box whose two boundaries are searched.

    Args:
        name: what it is called in tables.
        axes: names of the axes.
        low: log10 of the smallest value of each axis.
        high: log10 of the largest.
        side: cells a side of the grid on which the truth is known.
        respond: axis values (n, d) to noiseless margins (n, 2).
        regime: axis values (n, d) to exact labels (n,); None where the noiseless margins tell.
        noise: standard deviation of the noise on both margins.
        costly: whether a run takes a tenth of a second rather than microseconds.
    """

    name: str
    axes: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    side: int
    respond: Callable[[Array], Array]
    regime: Callable[[Array], Labels] | None = None
    noise: float = 0.03
    costly: bool = False

    @property
    def dimension(self) -> int:
        """Number of axes."""
        return len(self.axes)

    def values(self, unit: Array) -> Array:
        """Axis values (n, d) of unit coordinates (n, d)."""
        low, high = np.array(self.low), np.array(self.high)
        return np.asarray(10 ** (low + (high - low) * unit))

    def margins(self, unit: Array) -> Array:
        """Noiseless margins, stable then bounded, (n, 2), at unit coordinates (n, d)."""
        return self.respond(self.values(unit))

    def observe(self, unit: Array, random: np.random.Generator) -> Array:
        """Margins as runs report them: with noise drawn from `random`."""
        found = self.margins(unit)
        return found + self.noise * random.normal(size=found.shape) if self.noise else found

    @cached_property
    def truth(self) -> tuple[Array, Labels]:
        """Centres of a grid's cells in unit coordinates, (side^d, d), and their exact labels."""
        centres = (np.arange(self.side) + 0.5) / self.side
        mesh = np.meshgrid(*[centres] * self.dimension, indexing="ij")
        grid = np.stack(mesh, -1).reshape(-1, self.dimension)
        return grid, np.concatenate(
            [self._exact(grid[at : at + CHUNK]) for at in range(0, len(grid), CHUNK)]
        )

    @cached_property
    def sample(self) -> tuple[Array, Labels]:
        """The same `SUBSAMPLE` points of the truth for everyone."""
        grid, exact = self.truth
        chosen = np.random.default_rng(8192).choice(len(grid), SUBSAMPLE, replace=False)
        return grid[chosen], exact[chosen]

    def _exact(self, unit: Array) -> Labels:
        return self.regime(self.values(unit)) if self.regime else labels(self.margins(unit))


# --------------------------------------------------------------------------- amplifier

#: Steps after which a run of the amplifier is judged, and the growth that ends it.
AMPLIFIER_STEPS = 200
AMPLIFIER_GROWTH = 1e3
#: Share of its pull that a saturated amplifier keeps.
SATURATED = 0.08


def mode_curvatures() -> Array:
    """Curvature of the loss along each of 64 Fourier modes, weight decay left out.

    Modes below 0.6 pi diffuse (positive curvature), the others anti-diffuse; both are the weaker
    the faster they oscillate.
    """
    frequency = np.linspace(0, np.pi, 64)
    power = 1 / (1 + 4 * frequency**2) * 8.0
    return 0.5 * np.where(frequency < 0.6 * np.pi, 1.0, -1.0) * power


def amplifier(values: Array) -> Array:
    """Margins of (lr, weight decay): each mode is multiplied by 1 - lr (decay + curvature) a step.

    Stable: minus the largest growth exponent of a mode, per step or per unit of lr x steps,
    whichever is larger. Bounded: the growing mode saturates at `SATURATED` of its pull; if it
    overshoots even so, log10 of the time to blow up over the length of the run, at most 1.
    """
    lr, decay = values[:, :1], values[:, 1:]
    curvature = mode_curvatures()
    exponent = np.log(np.abs(1 - lr * (decay + curvature)) + 1e-12).max(axis=1)
    overshoot = lr[:, 0] * (decay[:, 0] + SATURATED * curvature.max())
    growth = np.where(overshoot > 1, np.log(np.abs(1 - overshoot) + 1e-12), -1.0)
    ratio = AMPLIFIER_STEPS * growth / np.log(AMPLIFIER_GROWTH)  # length over time to blow up
    bounded = np.where(growth > 0, -np.log10(np.maximum(ratio, 0.1)), 1.0)
    return np.stack([-exponent / np.minimum(1.0, lr[:, 0]), bounded], axis=1)


# --------------------------------------------------------------------------- simulated training


def _judged(
    ripple: Array, peak: Array, ended: Array, *, steps: int, decades: int, jump: int
) -> Array:
    """Margins of simulated trainings.

    Args:
        ripple: stable margin of those that reached the end.
        peak: largest size relative to the start; a training ends at 10^decades.
        ended: step at which it ended, infinite if it did not.
        steps: length of a full training.
        decades: see `peak`.
        jump: how far the stable margin lies below the bounded one where a training ended.
    """
    alive = np.isinf(ended)
    headroom = 1 - np.log10(np.maximum(peak, 1e-3)) / decades
    early = -np.log10(steps / np.clip(ended, 1, steps)) - 0.05
    bounded = np.where(alive, headroom, early)
    return np.stack([np.where(alive, ripple, bounded - jump), bounded], axis=1)


def deep_linear(values: Array) -> Array:
    """Margins of (lr, target): gradient descent on 1/2 (w1 w2 w3 - target)^2, 400 steps.

    The weights start at 0.55, 0.65 and 0.75 of target^(1/3). Stable: the residual moves by less
    than 1 % of its first size a step, root mean square over the last 50, in decades. Bounded: it
    stays below 1000 times its first size.
    """
    steps, window, layers = 400, 50, 3
    lr, target = values[:, :1], values[:, 1]
    w = (0.55 + 0.1 * np.arange(layers)) * target[:, None] ** (1 / layers)
    first = np.abs(w.prod(axis=1) - target)
    before, peak, tail = (np.zeros(len(values)) for _ in range(3))
    ended = np.full(len(values), np.inf)
    with np.errstate(all="ignore"):
        for step in range(steps):
            product = w.prod(axis=1)
            residual = product - target
            size = np.abs(residual) / first
            ended = np.where(np.isinf(ended) & ~(size < 1e3), step, ended)
            alive = np.isinf(ended)
            peak = np.where(alive, np.maximum(peak, size), peak)
            if step >= steps - window:
                tail += np.where(alive, ((residual - before) / first) ** 2, 0) / window
            before = residual
            pull = residual[:, None] * (product[:, None] / w)
            w = np.where(alive[:, None], w - lr * pull, w)
    ripple = -2 - np.log10(np.sqrt(tail) + 1e-6)
    return _judged(ripple, peak, ended, steps=steps, decades=3, jump=3)


#: Curvatures, place of saturation, momentum and start of the heavy ball.
CURVATURES = np.array([0.3, 1.0, 3.0, 6.0])
SATURATION = 0.3
MOMENTUM = 0.8
BALL_START = np.array([1.0, -0.7, 0.5, 0.4])


def heavy_ball(values: Array) -> Array:
    """Margins of (lr, alpha, weight decay): heavy ball on four separate coordinates, 300 steps.

    The gradient is h s tanh(x / s) + weight_decay x + alpha x^3. Stable: a step, over the last 40,
    is below 1 % of the start's norm, in decades, at most 4. Bounded: step plus place stay below
    1000 times that norm.
    """
    steps, window = 300, 40
    lr, alpha, decay = (column[:, None] for column in values.T)
    x = np.tile(BALL_START, (len(values), 1))
    v = np.zeros_like(x)
    scale = np.linalg.norm(BALL_START)
    peak, tail = np.zeros(len(values)), np.zeros(len(values))
    ended = np.full(len(values), np.inf)
    with np.errstate(all="ignore"):
        for step in range(steps):
            pull = CURVATURES * SATURATION * np.tanh(x / SATURATION) + decay * x + alpha * x**3
            alive = np.isinf(ended)
            v = np.where(alive[:, None], MOMENTUM * v - lr * pull, v)
            x = np.where(alive[:, None], x + v, x)
            size = np.abs(v).max(axis=1) / scale + np.abs(x).max(axis=1) / scale
            ended = np.where(alive & ~(size < 1e3), step, ended)
            alive = np.isinf(ended)
            peak = np.where(alive, np.maximum(peak, size), peak)
            if step >= steps - window:
                tail += np.where(alive, (v**2).sum(axis=1), 0) / window
    ripple = np.clip(-2 - np.log10(np.sqrt(tail) / scale + 1e-8), -4, 4)
    return _judged(ripple, peak, ended, steps=steps, decades=3, jump=2)


# --------------------------------------------------------------------------- tanh network

WIDTH = 4


def tanh_data() -> tuple[Array, Array, Array, Array]:
    """First layer (4, 4), second (4, 1), inputs (20, 4) and targets (20, 1): normal numbers."""
    random = np.random.default_rng(0)
    first, second = random.normal(size=(WIDTH, WIDTH)), random.normal(size=(WIDTH, 1))
    samples = WIDTH * WIDTH + WIDTH  # as many as parameters
    return first, second, random.normal(size=(samples, WIDTH)), random.normal(size=(samples, 1))


def tanh_losses(values: Array, steps: int) -> Array:
    """Mean squared errors before each step, (steps, n), at learning rates (n, 2) of both layers.

    The network is mean_j second_j tanh(sqrt(2) z_j) with z = x first / sqrt(width).
    """
    first, second, x, y = tanh_data()
    first, second = (np.tile(layer, (len(values), 1, 1)) for layer in (first, second))
    gain, root, samples = np.sqrt(2), np.sqrt(WIDTH), len(y)
    losses = []
    with np.errstate(all="ignore"):
        for _ in range(steps):
            hidden = np.tanh(gain * (x @ first / root))
            error = hidden @ second / WIDTH - y
            losses.append((error**2).mean(axis=(1, 2)))
            outer = np.swapaxes(hidden, 1, 2) @ error * 2 / samples / WIDTH
            back = 2 / samples / WIDTH * error @ np.swapaxes(second, 1, 2)
            inner = x.T @ (back * (1 - hidden**2) * gain) / root
            first = first - values[:, 0, None, None] * inner
            second = second - values[:, 1, None, None] * outer
    return np.array(losses)


def tanh_network(values: Array) -> Array:
    """Margins of (lr of the first layer, lr of the second): 200 steps of `tanh_losses`.

    Stable: the loss changes by less than 1 % of its mean a step, root mean square over the last
    40, in decades. Bounded: it stays below 10^4 times its first value.
    """
    steps, window = 200, 40
    loss = tanh_losses(values, steps)
    loss = loss / loss[0]
    over = ~(loss < 1e4)
    ended = np.where(over.any(axis=0), over.argmax(axis=0), np.inf)
    loss = np.where(np.isfinite(loss), np.minimum(loss, 1e4), 1e4)
    tail = loss[-window:]
    change = np.sqrt((np.diff(tail, axis=0) ** 2).mean(axis=0))
    ripple = -2 - np.log10(change / np.maximum(tail.mean(axis=0), 1e-12) + 1e-5)
    return _judged(ripple, loss.max(axis=0), ended, steps=steps, decades=4, jump=4)


# --------------------------------------------------------------------------- one-layer CNN

#: 63 - 32 + 1 positions a side: an even number, so that both signs of the pattern weigh the same
#: and the phases are the same whichever minimum the seed leads to.
IMAGE = 63


def one_layer_cnn(values: Array) -> Array:
    """Margins of (lr, weight decay): 400 steps of the task in float64, judged by stabmap.

    The Lyapunov exponent, which decides nothing, is left out to save time.
    """
    points = [Point(lr=float(lr), weight_decay=float(decay)) for lr, decay in values]
    task = get_task("one-layer-cnn", image=IMAGE)
    results = evaluate(points, task, steps=400, dtype="float64", lyapunov=False)
    found = [(r.verdict.margins.stable, r.verdict.margins.bounded) for r in results]
    return np.array(found).reshape(-1, 2)


def one_layer_cnn_regimes(values: Array) -> Labels:
    """Exact labels of (lr, weight decay) from theory."""
    regime = one_layer_cnn_phases(values[:, 0], values[:, 1]).regime
    return np.array([REGIMES.index(name) for name in regime], dtype=np.int64)


_SWEEP = np.log10([[0.003, 4.0], [0.5, 256.0]])  # the range of the preset of the same name

PROBLEMS: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        Problem("amplifier", ("lr", "weight_decay"), (-3, -3), (1, 2), 256, amplifier),
        Problem("deep-linear", ("lr", "target"), (-3, -1), (0.5, 2), 256, deep_linear),
        Problem(
            "heavy-ball",
            ("lr", "alpha", "weight_decay"),
            (-2.5, -3, -2),
            (1, 1, 2),
            48,
            heavy_ball,
        ),
        Problem("tanh-network", ("lr_1", "lr_2"), (-0.5, 0.6), (2, 1.9), 128, tanh_network),
        Problem(
            "one-layer-cnn",
            ("lr", "weight_decay"),
            tuple(_SWEEP[0]),
            tuple(_SWEEP[1]),
            256,
            one_layer_cnn,
            one_layer_cnn_regimes,
            noise=0.0,
            costly=True,
        ),
    )
}
