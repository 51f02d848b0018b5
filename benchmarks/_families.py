"""Trainings whose regime is known exactly, of three kinds that no threshold was chosen on.

A `Case` is a task, how it is trained, a range of learning rates and the exact fate at each of them:
what the update does for ever, without rounding errors. Stable: it comes to rest. Divergent: it
leaves every bound. Restrained: neither. Two fates are named by the product's own definitions: at
rest on a plateau (flat) is stable, at rest more than ten times above the first loss (dead) is
restrained. Where rounding errors decide the fate it is `UNKNOWN`: a nudge of 1e-6 changes it, or it
creeps towards a saddle.

- `quadratics`: a squared error of a linear model; the spectral radius of the update matrix decides.
- `deep_linear_nets`: square layers that start as multiples of the identity, and a symmetric target.
  Layers and target stay diagonal in one basis, so that eigenvalues are trained each on their own
  (Nar & Sastry, residual networks, propositions 1 and 2).
- `two_layer_relu_nets`: scalar inputs. All samples of one sign meet the same active units, so that
  the data enter through four numbers and a net of m units is a map of 2m numbers.

The maps are iterated for `HORIZON` steps; the reductions themselves are held against trainings of
the full networks in `tests/test_verdict_families.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.domain import Regime
from trainables.losses import SQUARED_ERROR, Loss

Array = NDArray[np.float64]
#: One step of a map: states (lanes, ...) and learning rates (lanes,) to states.
StepRule = Callable[[Array, Array], Array]


@dataclass(frozen=True)
class Map:
    """What a family comes down to. States are (lanes, ...).

    Args:
        start: first state, without lanes.
        step: (states, learning rates) to states.
        objective: loss with its decay term, (lanes,).
        flat: whether a state is so far from any minimum that, at rest there, it sits on a plateau
            or a saddle, (lanes,).
    """

    start: Array
    step: StepRule
    objective: Callable[[Array], Array]
    flat: Callable[[Array], NDArray[np.bool_]]


#: Steps after which a map has shown what it does.
HORIZON = 20_000
#: A state this large never comes back.
ESCAPE = 1e15
#: Movement over the last `REST_STEPS` steps below which a map is at rest, relative to its size.
REST = 1e-7
REST_STEPS = 64
#: Relative size of the nudges to a start that must leave its fate as it is, or it is `UNKNOWN`.
NUDGE = 1e-6
NUDGES = 6
UNKNOWN = "unknown"
#: Spacing in ln lr at which boundaries are looked for.
GRID = 0.004
#: Movement below which a map that is not at rest creeps along a plateau or towards a saddle.
CREEP = 1e-3
#: Movement that ends the iteration at once.
STILL = 1e-13


# --------------------------------------------------------------------------- tasks


@dataclass(frozen=True)
class _Known:
    """What the three tasks share: full batches, 1/2 of the squared error, nothing held out."""

    metric_name: ClassVar[str] = "loss"
    regularised_layer: ClassVar[str] = ""
    stand_in: ClassVar[str | None] = None
    loss: ClassVar[Loss] = SQUARED_ERROR
    batch: ClassVar[int | None] = None

    def train_data(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets."""
        raise NotImplementedError

    def test_data(self) -> tuple[Tensor, Tensor]:
        """The training data once more."""
        return self.train_data()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """The loss."""
        return float(self.loss.value(outputs, targets))


@dataclass(frozen=True)
class Quadratic(_Known):
    """`rest` + 1/2 (w - minimiser)^T H (w - minimiser), H of given eigenvalues in a random basis.

    Args:
        curvatures: eigenvalues of H.
        rest: loss at the minimum.
        rotated: whether the basis is random; else H is diagonal.
        draw: seed of basis, minimiser and start, which are normal random numbers.
    """

    curvatures: tuple[float, ...]
    rest: float = 0.0
    rotated: bool = True
    draw: int = 0

    name: ClassVar[str] = "quadratic"

    def _drawn(self) -> tuple[Array, Array, Array]:
        random = np.random.RandomState(self.draw)
        size = len(self.curvatures)
        basis = np.linalg.qr(random.randn(size, size))[0] if self.rotated else np.eye(size)
        return basis, random.randn(size), random.randn(size)

    def module(self, seed: int) -> nn.Module:
        """A linear layer at the drawn start, whatever the seed."""
        layer = nn.Linear(len(self.curvatures), 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(self._drawn()[2])[None])
        return layer

    def train_data(self) -> tuple[Tensor, Tensor]:
        """A sample for each eigenvector, and one without input that only adds `rest`."""
        basis, minimiser, _ = self._drawn()
        count = len(self.curvatures) + 1
        rows = np.zeros((count, count - 1))
        rows[:-1] = np.sqrt(count * np.array(self.curvatures))[:, None] * basis.T
        targets = rows @ minimiser
        targets[-1] = np.sqrt(2 * count * self.rest)
        return torch.from_numpy(rows), torch.from_numpy(targets)[:, None]


@dataclass(frozen=True)
class DeepLinear(_Known):
    """1/2 ||W_L ... W_1 - R||^2 (Frobenius), R symmetric with given eigenvalues.

    Args:
        eigenvalues: of R.
        scales: layer i starts as scales[i] times the identity; its length is the depth.
        rotated: whether R is diagonal in a random basis; else it is diagonal.
        draw: seed of the basis.
    """

    eigenvalues: tuple[float, ...]
    scales: tuple[float, ...]
    rotated: bool = True
    draw: int = 0

    name: ClassVar[str] = "deep-linear"

    def module(self, seed: int) -> nn.Module:
        """Linear layers without biases."""
        size = len(self.eigenvalues)
        layers = []
        for scale in self.scales:
            layer = nn.Linear(size, size, bias=False, dtype=torch.float64)
            with torch.no_grad():
                layer.weight.copy_(scale * torch.eye(size, dtype=torch.float64))
            layers.append(layer)
        return nn.Sequential(*layers)

    def train_data(self) -> tuple[Tensor, Tensor]:
        """Inputs of unit second moment: (1 / N) sum x x^T = I."""
        size = len(self.eigenvalues)
        random = np.random.RandomState(self.draw)
        basis = np.linalg.qr(random.randn(size, size))[0] if self.rotated else np.eye(size)
        target = (basis * np.array(self.eigenvalues)) @ basis.T
        scale = np.sqrt(size)
        return torch.eye(size, dtype=torch.float64) * scale, torch.from_numpy(target * scale)


@dataclass(frozen=True)
class TwoLayerReLU(_Known):
    """sum_j out_j relu(in_j x), fitted to scalar samples.

    Args:
        inward: weights into the units at the start.
        outward: weights out of them.
        inputs: x of the samples; positive, or of both signs.
        targets: y of the samples.
    """

    inward: tuple[float, ...]
    outward: tuple[float, ...]
    inputs: tuple[float, ...]
    targets: tuple[float, ...]

    name: ClassVar[str] = "two-layer-relu"

    def module(self, seed: int) -> nn.Module:
        """Two linear layers without biases and a ReLU between them."""
        size = len(self.inward)
        first = nn.Linear(1, size, bias=False, dtype=torch.float64)
        second = nn.Linear(size, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            first.weight.copy_(torch.tensor(self.inward, dtype=torch.float64)[:, None])
            second.weight.copy_(torch.tensor(self.outward, dtype=torch.float64)[None])
        return nn.Sequential(first, nn.ReLU(), second)

    def train_data(self) -> tuple[Tensor, Tensor]:
        """The samples, as columns."""
        x = torch.tensor(self.inputs, dtype=torch.float64)[:, None]
        return x, torch.tensor(self.targets, dtype=torch.float64)[:, None]


# --------------------------------------------------------------------------- truths


def update_radius(
    lr: float | Array, curvature: float, optimiser: str, beta: float, decay: float, decoupled: bool
) -> Array:
    """Largest modulus of the eigenvalues of one update, in (parameter, momentum buffer).

    Constant terms (the minimiser) shift the fixed point and leave the matrix alone. The buffer
    becomes beta v + g; heavy ball steps along it, Nesterov along g + beta (beta v + g).

    Args:
        lr: learning rates, of any shape, which is that of the result.
        curvature: Hessian eigenvalue of the loss without decay.
        optimiser: `sgd` or `nesterov`.
        beta: momentum.
        decay: weight decay.
        decoupled: whether the decay scales the parameter instead of entering the gradient.
    """
    slope = curvature if decoupled else curvature + decay
    rates = np.asarray(lr, np.float64)
    buffer = np.array([slope, beta])
    along = np.array([slope, 0.0]) + beta * buffer if optimiser == "nesterov" else buffer
    matrix = np.empty((*rates.shape, 2, 2))
    matrix[..., 0, :] = np.array([1.0, 0.0]) - rates[..., None] * along
    matrix[..., 0, 0] -= rates * decay if decoupled else 0.0
    matrix[..., 1, :] = buffer
    return np.asarray(np.abs(np.linalg.eigvals(matrix)).max(-1))


def deep_linear_map(task: DeepLinear, decay: float) -> Map:
    """The map that the layers' eigenvalues follow.

    With the product P of the w_i and the target's eigenvalue lambda, layer i goes
    w_i <- w_i - lr ((P / w_i) (P - lambda) + decay w_i). Layers that start alike stay alike: then
    this is the scalar map w <- w - lr (w^(L-1) (w^L - lambda) + decay w). States are (lanes,
    eigenvalues, layers).
    """
    target = np.array(task.eigenvalues)
    depth = len(task.scales)
    start = np.tile(np.array(task.scales), (len(target), 1))

    def step(w: Array, lr: Array) -> Array:
        error = w.prod(-1) - target
        others = np.stack([np.delete(w, i, axis=-1).prod(-1) for i in range(depth)], -1)
        return np.asarray(w - lr[:, None, None] * (others * error[..., None] + decay * w))

    def objective(w: Array) -> Array:
        loss = 0.5 * ((w.prod(-1) - target) ** 2).sum(-1)
        return np.asarray(loss + 0.5 * decay * (w**2).sum((-1, -2)))

    def flat(w: Array) -> NDArray[np.bool_]:
        """Without decay the minima have no error; with decay any rest but a saddle is one."""
        wrong = np.abs(w.prod(-1) - target).max(-1) > 1e-3 * np.abs(target).max()
        return np.asarray(wrong & (decay == 0))

    return Map(start, step, objective, flat)


def matrix_map(task: DeepLinear, decay: float) -> Map:
    """The layers themselves, in the target's basis. States are (lanes, layers, size, size).

    The exact training keeps them diagonal (`deep_linear_map`); rounding errors need not.
    """
    target = np.diag(np.array(task.eigenvalues))
    eye = np.eye(len(target))
    start = np.array(task.scales)[:, None, None] * eye

    def product(w: Array) -> Array:
        whole = w[:, 0]
        for i in range(1, w.shape[1]):
            whole = w[:, i] @ whole
        return np.asarray(whole)

    def step(w: Array, lr: Array) -> Array:
        below = [np.broadcast_to(eye, w[:, 0].shape)]
        for i in range(w.shape[1]):
            below.append(w[:, i] @ below[-1])
        back = below.pop() - target
        new = np.empty_like(w)
        for i in reversed(range(w.shape[1])):
            gradient = back @ below[i].swapaxes(-1, -2)
            new[:, i] = w[:, i] - lr[:, None, None] * (gradient + decay * w[:, i])
            back = w[:, i].swapaxes(-1, -2) @ back
        return new

    def objective(w: Array) -> Array:
        loss = 0.5 * ((product(w) - target) ** 2).sum((-1, -2))
        return np.asarray(loss + 0.5 * decay * (w**2).sum((-1, -2, -3)))

    def flat(w: Array) -> NDArray[np.bool_]:
        wrong = np.abs(product(w) - target).max((-1, -2)) > 1e-3 * target.max()
        return np.asarray(wrong & (decay == 0))

    return Map(start, step, objective, flat)


def relu_map(task: TwoLayerReLU, decay: float) -> Map:
    """The map that the 2m weights follow.

    A unit with in_j > 0 is active on all x > 0 and on nothing else; in_j < 0 the other way round.
    So on the samples of one sign the net is (sum over its units of out_j in_j) x, and with
    S = sum x^2 / N and the least-squares slope b of those samples the gradient of out_j is
    S (sum - b) in_j, that of in_j the same with out_j. While no in_j changes sign, (out + in) and
    (out - in) of a side keep their directions, and each side is a map of their two lengths.
    States are (lanes, 2, units): inward and outward weights.
    """
    x, y = np.array(task.inputs), np.array(task.targets)
    sides = []
    rest = float((y**2).sum()) / 2 / len(x)
    for sign in (1.0, -1.0):
        mine = sign * x > 0
        moment = float((x[mine] ** 2).sum()) / len(x)
        slope = float((x[mine] * y[mine]).sum() / max((x[mine] ** 2).sum(), 1e-300))
        sides.append((sign, moment, slope))
        rest -= moment * slope**2 / 2
    start = np.stack([np.array(task.inward), np.array(task.outward)])

    def forces(state: Array) -> tuple[Array, Array]:
        """Of every unit its side's S (sum - b), and the loss."""
        inward, outward = state[:, 0], state[:, 1]
        force, loss = np.zeros_like(inward), np.full(len(state), rest)
        for sign, moment, slope in sides:
            mine = sign * inward > 0
            error = np.where(mine, inward * outward, 0.0).sum(-1) - slope
            force = np.where(mine, (moment * error)[:, None], force)
            loss = loss + moment * error**2 / 2
        return force, loss

    def step(state: Array, lr: Array) -> Array:
        force = forces(state)[0]
        return np.asarray(
            state - lr[:, None, None] * (force[:, None] * state[:, ::-1] + decay * state)
        )

    def objective(state: Array) -> Array:
        return np.asarray(forces(state)[1] + 0.5 * decay * (state**2).sum((-1, -2)))

    def flat(state: Array) -> NDArray[np.bool_]:
        """A side with data and without an active unit."""
        lost = [(sign * state[:, 0] <= 0).all(-1) & (moment > 0) for sign, moment, _ in sides]
        return np.asarray(np.any(lost, axis=0))

    return Map(start, step, objective, flat)


@dataclass(frozen=True)
class Fates:
    """What a map did at each learning rate, (lanes,) each.

    Args:
        escaped: step at which the bound was passed; -1 where it never was.
        resting: whether the state came to rest.
        creeping: whether it nears rest slower than any power of a number below 1.
        flat: whether the last state lies on a plateau or a saddle.
        rise: final over first objective.
        final: last states, (lanes, ...).
    """

    escaped: NDArray[np.int64]
    resting: NDArray[np.bool_]
    creeping: NDArray[np.bool_]
    flat: NDArray[np.bool_]
    rise: Array
    final: Array

    @property
    def names(self) -> NDArray[np.str_]:
        """The fates, as at the top of this file."""
        calm = np.where(self.rise > 10, "dead", np.where(self.flat, "flat", "stable"))
        moving = np.where(self.creeping, UNKNOWN, "restrained")
        return np.where(self.escaped >= 0, "divergent", np.where(self.resting, calm, moving))


def iterate(rule: Map, start: Array, lrs: Array, horizon: int = HORIZON) -> Fates:
    """Run a map from one start at many learning rates side by side.

    Lanes that have left every bound, or stand still to `STILL`, are finished early.
    """
    final = np.array(np.broadcast_to(start, (len(lrs), *rule.start.shape)))
    first = rule.objective(final)
    axes = tuple(range(1, final.ndim))
    escaped = np.full(len(lrs), -1)
    moved = np.full(len(lrs), np.inf)
    lanes = np.arange(len(lrs))
    with np.errstate(over="ignore", invalid="ignore"):
        for begin in range(0, horizon, REST_STEPS):
            state, rates = final[lanes], lrs[lanes]
            low, high = state, state
            for t in range(begin, begin + REST_STEPS):
                state = rule.step(state, rates)
                low, high = np.minimum(low, state), np.maximum(high, state)
                new = ~(np.abs(state).max(axis=axes) < ESCAPE) & (escaped[lanes] < 0)
                escaped[lanes[new]] = t + 1
            span = (high - low).max(axis=axes) / np.maximum(np.abs(high).max(axis=axes), 1)
            final[lanes] = state
            moved[lanes] = span
            lanes = lanes[(escaped[lanes] < 0) & ~(span <= STILL)]
            if not len(lanes):
                break
        rise, flat = rule.objective(final) / first, rule.flat(final)
    resting = (moved <= REST) & (escaped < 0)
    creeping = (moved <= CREEP) & (escaped < 0) & ~resting
    return Fates(escaped, resting, creeping, flat, rise, final)


# --------------------------------------------------------------------------- cases


@dataclass(frozen=True)
class Case:
    """A task, how it is trained, the learning rates worth a look, and the exact regimes.

    Args:
        family: name of its kind.
        name: what is special about it.
        task: what is trained.
        reach: smallest and largest learning rate worth a look.
        truth: exact fates at learning rates, (n,) to (n,).
        sketch: the same, cheaper: of one start only and over fewer steps.
        weight_decay: of the point.
        training: settings other than steps and dtype.
    """

    family: str
    name: str
    task: Any
    reach: Callable[[], tuple[float, float]]
    truth: Callable[[Array], NDArray[np.str_]]
    sketch: Callable[[Array], NDArray[np.str_]]
    weight_decay: float = 0.0
    training: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def ends(self) -> tuple[float, float]:
        """`reach`, looked for once and only where it is asked for: it takes up to a second."""
        return self.reach()

    def look(self, lrs: Array) -> tuple[NDArray[np.str_], Array]:
        """Exact fates at learning rates and |ln(lr / nearest boundary)|, (n,) each.

        The boundaries are looked for on a grid of spacing `GRID`, wider than the range.
        """
        low, high = np.log(self.ends)
        grid = np.arange(low - 0.1, high + 0.1, GRID)
        names = self.sketch(np.exp(grid))
        edges = grid[np.flatnonzero(names[1:] != names[:-1])] + GRID / 2
        return self.truth(lrs), np.abs(np.log(lrs)[:, None] - edges).min(1)

    def sample(self, count: int, seed: int) -> Array:
        """Learning rates drawn log-uniformly from the range, sorted, (count,)."""
        low, high = np.log(self.ends)
        return np.sort(np.exp(np.random.RandomState(seed).uniform(low, high, count)))


def _map_case(
    family: str, name: str, task: DeepLinear | TwoLayerReLU, weight_decay: float = 0.0
) -> Case:
    """A case whose truth is a map; from a third of its first edge to 3/2 of its last."""
    random = np.random.RandomState(0)
    if isinstance(task, DeepLinear):
        rule, full = deep_linear_map(task, weight_decay), matrix_map(task, weight_decay)
        # Off the diagonal of a diagonal target all numbers are exactly zero and stay so.
        noise = random.randn(NUDGES, *full.start.shape) * (1.0 if task.rotated else full.start != 0)
    else:
        rule = full = relu_map(task, weight_decay)
        noise = full.start * random.randn(NUDGES, *full.start.shape)
    nudged = full.start + NUDGE * noise

    def truth(lrs: Array) -> NDArray[np.str_]:
        names = iterate(rule, rule.start, lrs).names
        # A fate that the smallest nudge changes is none: rounding errors decide it.
        for start in nudged:
            names = np.where(iterate(full, start, lrs, HORIZON // 5).names == names, names, UNKNOWN)
        # A saddle, which rounding errors leave; a net without active units rests where it is.
        return np.where((names == "flat") & isinstance(task, DeepLinear), UNKNOWN, names)

    def sketch(lrs: Array) -> NDArray[np.str_]:
        return iterate(rule, rule.start, lrs, HORIZON // 5).names

    def reach() -> tuple[float, float]:
        wide = np.geomspace(1e-2, 1e2, 300)
        names = sketch(wide)
        changes = np.flatnonzero(names[1:] != names[:-1])
        first = next(i for i in changes if names[i] == "stable")
        return float(wide[first]) / 3, float(wide[changes[-1]]) * 1.5

    return Case(family, name, task, reach, truth, sketch, weight_decay)


def quadratics() -> list[Case]:
    """Plain gradient descent, heavy ball, Nesterov; every kind of decay; even and uneven bowls."""
    spectra = (
        (1.0, 0.5),
        (3.0, 1.0, 0.3, 0.1),
        (10.0, 1.0, 0.1, 0.01),
        tuple(np.geomspace(2.0, 2e-3, 12).tolist()),
        (0.2,),
    )
    rules = [("sgd", 0.0)]
    rules += [(name, beta) for name in ("sgd", "nesterov") for beta in (0.5, 0.9, 0.99)]
    decays = [(0.0, "coupled"), (0.1, "coupled"), (0.1, "decoupled")]
    pairs = [(rule, decay) for rule in rules for decay in decays]
    cases = []
    for i, (rule, decay) in enumerate(pairs):
        task = Quadratic(spectra[i % 5], float(i % 2), i % 3 > 0, i)
        name = f"{rule[0] if rule[1] else 'plain'} {rule[1]:g}, decay {decay[0]:g} {decay[1]}"
        cases.append(_quadratic_case(name, rule, decay, task))
    return cases


def _quadratic_case(
    name: str, rule: tuple[str, float], decay: tuple[float, str], task: Quadratic
) -> Case:
    """A case whose truth is the update's spectral radius; a fifth to five times the threshold."""

    def truth(lrs: Array) -> NDArray[np.str_]:
        settings = (*rule, decay[0], decay[1] == "decoupled")
        radii = [update_radius(lrs, curvature, *settings) for curvature in task.curvatures]
        return np.where(np.max(radii, 0) < 1, str(Regime.STABLE), str(Regime.DIVERGENT))

    def reach() -> tuple[float, float]:
        wide = np.geomspace(1e-3, 1e3, 4000)
        edge = float(wide[truth(wide) == str(Regime.DIVERGENT)][0])
        return edge / 5, edge * 5

    settings = {"optimiser": rule[0], "momentum": rule[1], "decay": decay[1]}
    return Case("quadratic", name, task, reach, truth, truth, decay[0], settings)


def deep_linear_nets() -> list[Case]:
    """Depths two to five, from the identity and from unlike layers, with and without decay."""
    wide, narrow, weak = (4.0, 2.0, 1.0, 0.5, 0.1), (2.0, 0.5), (0.6, 0.3, 0.1)
    chosen = [
        ("two layers", DeepLinear(wide, (1.0,) * 2), 0.0),
        ("three layers", DeepLinear(wide, (1.0,) * 3), 0.0),
        ("three layers, diagonal", DeepLinear(wide, (1.0,) * 3, rotated=False), 0.0),
        ("five layers", DeepLinear(wide, (1.0,) * 5), 0.0),
        ("four layers, narrow", DeepLinear(narrow, (1.0,) * 4, draw=1), 0.0),
        ("two layers, one eigenvalue", DeepLinear((3.0,), (1.0,) * 2), 0.0),
        ("three layers, weak target", DeepLinear(weak, (1.0,) * 3, draw=2), 0.0),
        ("five layers, weak target", DeepLinear(weak, (1.0,) * 5, draw=3), 0.0),
        ("two layers, decay", DeepLinear(wide, (1.0,) * 2, draw=4), 0.3),
        ("three layers, decay", DeepLinear(narrow, (1.0,) * 3, draw=5), 0.1),
        ("four layers, decay", DeepLinear(weak, (1.0,) * 4, draw=6), 0.02),
        ("two unlike layers", DeepLinear(narrow, (0.5, 1.5), draw=7), 0.0),
        ("three unlike layers", DeepLinear(wide, (0.8, 1.0, 1.3), draw=8), 0.0),
        ("three unlike layers, decay", DeepLinear(narrow, (0.5, 1.0, 2.0), draw=9), 0.05),
    ]
    return [_map_case("deep linear", name, task, decay) for name, task, decay in chosen]


def two_layer_relu_nets() -> list[Case]:
    """One and several units, data of one and both signs, even and uneven starts, dead units."""
    positive = (0.2, 0.5, 0.9, 1.1, 1.4, 1.9)
    both = (-1.5, -0.8, -0.3, 0.4, 1.0, 1.7)
    random = np.random.RandomState(5)

    def units(count: int, spread: float, signs: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        inward = spread * (0.2 + random.rand(count))
        if signs == "both":
            inward[::2] *= -1
        outward = spread * random.randn(count)
        return tuple(inward.tolist()), tuple(outward.tolist())

    def net(
        count: int, spread: float, x: tuple[float, ...], slopes: tuple[float, float], noise: float
    ) -> TwoLayerReLU:
        signs = "both" if min(x) < 0 else "one"
        y = [slopes[v < 0] * v + noise * random.randn() for v in x]
        return TwoLayerReLU(*units(count, spread, signs), x, tuple(y))

    slopes = (1.0, -0.5)
    chosen = [
        ("one even unit", TwoLayerReLU((0.5,), (0.5,), positive, positive), 0.0),
        ("one uneven unit", TwoLayerReLU((2.0,), (0.1,), positive, positive), 0.0),
        ("four units, small start", net(4, 0.2, positive, slopes, 0.0), 0.0),
        ("four units", net(4, 0.7, positive, slopes, 0.0), 0.0),
        ("four units, noisy data", net(4, 0.7, positive, slopes, 0.3), 0.0),
        ("eight units, large start", net(8, 1.5, positive, slopes, 0.0), 0.0),
        ("six units, two signs", net(6, 0.7, both, slopes, 0.0), 0.0),
        ("six units, two signs, noisy data", net(6, 0.5, both, slopes, 0.3), 0.0),
        ("ten units, two signs, steep target", net(10, 0.4, both, (3.0, 2.0), 0.1), 0.0),
        ("four units, decay", net(4, 0.7, positive, slopes, 0.0), 0.1),
        ("six units, two signs, decay", net(6, 0.7, both, slopes, 0.2), 0.05),
        (
            "three units and two that never act",
            TwoLayerReLU(
                (0.6, 0.9, 0.3, -0.5, -1.0), (0.4, 0.8, -0.2, 0.7, -0.3), positive, positive
            ),
            0.0,
        ),
    ]
    return [_map_case("two-layer ReLU", name, task, decay) for name, task, decay in chosen]


FAMILIES: dict[str, Callable[[], list[Case]]] = {
    "quadratic": quadratics,
    "deep-linear": deep_linear_nets,
    "two-layer-relu": two_layer_relu_nets,
}
