"""Ensembles: the same results, to the bit, whatever is trained together; and those of the loop."""

from __future__ import annotations

import io
import itertools
import math
import random
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainables.domain import InputError, Point, PointResult, Training, UnreachableError
from trainables.dynamics.ensembles import choose as module_under_test
from trainables.dynamics.ensembles import wide as wide_under_test
from trainables.dynamics.ensembles.backend import Backend, Chunks, Loop, Stack
from trainables.dynamics.ensembles.batched import SAMPLES, Batched
from trainables.dynamics.ensembles.choose import choose
from trainables.dynamics.ensembles.memory import most_trajectories
from trainables.dynamics.ensembles.vectorised import Vectorised
from trainables.dynamics.ensembles.wide import Wide, shared_product
from trainables.ensemble_run import EnsembleRun
from trainables.evaluate import checked_training, evaluate
from trainables.losses import (
    ABSOLUTE_ERROR,
    BINARY_CROSS_ENTROPY,
    CROSS_ENTROPY,
    MEAN_SQUARED_ERROR,
    SQUARED_ERROR,
    Loss,
)
from trainables.pack import PackRun
from trainables.record import Record
from trainables.tasks import Task, get_task
from trainables.trajectory import Bench, cast, deterministic


@pytest.fixture(autouse=True)
def forget() -> None:
    """No test lives on what another one has chosen."""
    module_under_test._known.clear()


CNN: dict[str, Any] = {"image": 10, "kernel": 4}
MLP: dict[str, Any] = {"samples": 24, "width": 4}
IMAGES: dict[str, Any] = {"samples": 8, "batch_size": 4}

#: Task, its options, and the backends that are sound for it on a processor.
TASKS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("one-layer-cnn", CNN, ("exact",)),
    ("mnist-mlp", MLP, ("wide", "batched", "vmap")),
    ("mnist-mlp", {**MLP, "batch_size": 8}, ("batched",)),
    ("mnist-regression", IMAGES, ("batched",)),
]
SOUND = [(name, options, backend) for name, options, backends in TASKS for backend in backends]
SQUARES: dict[str, Any] = {**MLP, "loss_name": "squared-error"}
#: With a loss for which the stability regulariser is analytic; as `mnist-regression` has.
ANALYTIC = [
    ("mnist-mlp", SQUARES, "wide"),
    ("mnist-mlp", SQUARES, "batched"),
    ("mnist-mlp", SQUARES, "vmap"),
    ("mnist-mlp", {**SQUARES, "batch_size": 8}, "batched"),
]
#: Those that suit every task.
STABILISERS: list[dict[str, Any]] = [
    {"name": "stability"},
    {"name": "stability", "anchor": 5},
    {"name": "clip-norm"},
    {"name": "clip-spectral-norm"},
    {"name": "orthogonal-gradient"},
    {"name": "spectra"},
    {"name": "stable-spam", "reset_every": 7},
]


def points_of(name: str, count: int, seed: int, alpha: float = 0.0) -> list[Point]:
    """Rates from calm to explosive, every third with the stabiliser if it has a strength."""
    chance = random.Random(seed)
    top = 0.5 if name == "one-layer-cnn" else 30.0
    return [
        Point(
            top * 10 ** chance.uniform(-4, 0),
            alpha if i % 3 == 2 else 0.0,
            chance.choice([0.0, 1e-3, 5.0]),
        )
        for i in range(count)
    ]


def interrupted(
    points: list[Point], task: Task, training: Training, together: int, seed: int
) -> list[PointResult]:
    """The pack, saved and read back in a new object at random steps."""
    chance, pack = random.Random(seed), PackRun(points, task, training, together=together)
    while not pack.done:
        pack.advance(0.0)
        if chance.random() < 0.2:
            file = io.BytesIO()
            torch.save(pack.state_dict(), file)
            file.seek(0)
            pack = PackRun(points, task, training, together=together)
            pack.load_state_dict(torch.load(file, weights_only=True))
    return pack.results


# --------------------------------------------------------------------------- to the bit


OPTIMISERS = [
    {},
    {"momentum": 0.9, "seeds": 2},
    {"optimiser": "nesterov", "lyapunov": False},
    {"optimiser": "adamw", "ks": (1, 3, 5)},
    {"optimiser": "rmsprop", "momentum": 0.5},
    {"optimiser": "adadelta"},
]


@settings(max_examples=12)
@given(
    which=st.sampled_from([*SOUND, *ANALYTIC]),
    stabiliser=st.sampled_from(STABILISERS),
    options=st.sampled_from(OPTIMISERS),
    dtype=st.sampled_from(["float32", "float64"]),
    alpha=st.sampled_from([0.0, 0.5]),
    together=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_packed_equals_alone_to_the_bit(
    which: tuple[str, dict[str, Any], str],
    stabiliser: dict[str, Any],
    options: dict[str, Any],
    dtype: str,
    alpha: float,
    together: int,
    seed: int,
) -> None:
    """In any order, with any number of places, saved and restored; with a stabiliser too."""
    name, task_options, backend = which
    task = get_task(name, **task_options)
    dtype = "float32" if backend == "wide" else dtype  # it is for nothing else
    given = {"steps": 20, "dtype": dtype, "backend": backend, "sharpness": seed % 4 == 0, **options}
    given["stabiliser"] = stabiliser
    training = checked_training(given)
    points = points_of(name, 3, seed, alpha)
    alone = [evaluate([point], task, **given)[0] for point in points]
    assert {r.replicates[0].backend for r in alone} == {backend}
    assert evaluate(points, task, **given) == alone
    assert evaluate(points[::-1], task, **given) == alone[::-1]
    found = interrupted(points, task, training, together, seed)
    assert found == alone
    assert repr(found) == repr(alone)


def test_freed_places_are_filled() -> None:
    """Explosions end early; their places go to the next points, and nothing else changes."""
    task = get_task("one-layer-cnn", **CNN)
    points = [Point(0.5, 0.0, 50.0), Point(0.01, 0.0, 20.0)] * 3 + [Point(0.02, 0.0, 20.0)]
    training = checked_training({"steps": 60, "lyapunov": False, "sharpness": False})
    pack, most = PackRun(points, task, training, together=4), 0
    while not pack.done:
        pack.advance(0.0)
        most = max(most, len(pack._parts[0].run.records))
    assert most == 2
    assert pack.results == evaluate(points, task, steps=60, lyapunov=False, sharpness=False)


# --------------------------------------------------------------------------- against the loop


@pytest.mark.parametrize(("name", "options", "backend"), [s for s in SOUND if s[2] != "wide"])
@pytest.mark.parametrize("settings", OPTIMISERS)
def test_results_are_those_of_the_loop(
    name: str, options: dict[str, Any], backend: str, settings: dict[str, Any]
) -> None:
    """In float64, at rates where nothing amplifies rounding errors."""
    task = get_task(name, **options)
    rate = 0.01 if name == "one-layer-cnn" else 1e-3
    points = [Point(rate, 0.0, 0.1), Point(rate / 3), Point(1e200)]
    given = {"steps": 24, "dtype": "float64", "seed": 3, **settings}
    mine = evaluate(points, task, backend=backend, **given)
    loop = evaluate(points, task, backend="loop", **given)
    for one, other in zip(mine, loop, strict=True):
        assert one.verdict.regime is other.verdict.regime
        for a, b in zip(one.replicates, other.replicates, strict=True):
            assert (a.backend, b.backend) == (backend, "loop")
            assert (a.seed, a.steps_run, a.verdict.step) == (b.seed, b.steps_run, b.verdict.step)
            assert a.curves.keys() == b.curves.keys()
            assert a.evidence.keys() == b.evidence.keys()
            if one.point.lr < 1:
                losses = (r.curves["loss"].values for r in (a, b))
                assert next(losses) == pytest.approx(next(losses), rel=1e-9)
                for key in a.evidence.keys() - {"separation", "amplification", "upward_share"}:
                    x, y = a.evidence[key], b.evidence[key]
                    assert x == y or x == pytest.approx(y, rel=2e-3, abs=1e-4)


def test_distances_of_float32_runs_are_of_the_same_size() -> None:
    task = get_task("mnist-mlp", **MLP)
    found = [
        evaluate([Point(0.1)], task, steps=60, backend=b)[0].replicates[0] for b in ("wide", "loop")
    ]
    sizes = [r.evidence["separation"] for r in found]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.5)


REGULARISED: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9, "ks": (1, 3, 5)},
    {"optimiser": "adamw", "stabiliser": {"name": "stability", "anchor": 5}},
    {
        "decay": "decoupled",
        "stabiliser": {"name": "stability", "order": "right", "track_decay": True},
    },
    {"stabiliser": {"name": "stability", "layers": ["hidden", "output"]}},
    {"stabiliser": "stability-reference", "lyapunov": False},
]


@pytest.mark.parametrize("settings", REGULARISED)
def test_a_regulariser_in_a_stack_does_what_it_does_alone(settings: dict[str, Any]) -> None:
    """In float64, beside points of other strengths; to the bit the same in other company."""
    task = get_task("mnist-mlp", **MLP, batch_size=None if settings else 8)
    points = [Point(0.01, 2.0, 0.1), Point(0.003), Point(0.02, 20.0), Point(1e200, 1.0)]
    given = {"steps": 24, "dtype": "float64", "seed": 3, "early": False, **settings}
    mine = evaluate(points, task, **given)
    loop = evaluate(points, task, backend="loop", **given)
    plain = evaluate([Point(p.lr, 0.0, p.weight_decay) for p in points], task, **given)
    for one, other, without in zip(mine, loop, plain, strict=True):
        a, b, c = (r.replicates[0] for r in (one, other, without))
        assert (a.backend, b.backend) == ("batched", "loop")
        assert a.steps_run == b.steps_run
        losses, expected, unlike = (r.curves["loss"].values for r in (a, b, c))
        if one.point.lr < 1:
            assert losses == pytest.approx(expected, rel=1e-11)
            exponents = [r.evidence.get("lyapunov_exponent", 0.0) for r in (a, b)]
            assert exponents[0] == pytest.approx(exponents[1], rel=1e-3, abs=1e-7)
            if one.point.alpha:
                assert losses != pytest.approx(unlike, rel=1e-6)
    training = checked_training(given)
    for together in (1, 7):
        assert interrupted(points, task, training, together, together) == mine
    assert evaluate(points[::-1], task, **given) == mine[::-1]


TRACKED = {"name": "stability", "order": "right", "track_decay": True}
LENET: dict[str, Any] = {"samples": 4, "batch_size": 2}
#: Task, its options, stabiliser, settings of the training, backend.
STACKED: list[tuple[str, dict[str, Any], Any, dict[str, Any], str]] = [
    ("mnist-mlp", SQUARES, {"name": "stability", "anchor": 5}, {"optimiser": "adamw"}, "batched"),
    ("mnist-mlp", SQUARES, TRACKED, {"decay": "decoupled"}, "batched"),
    ("mnist-mlp", SQUARES, "stability", {"momentum": 0.9, "backend": "vmap"}, "vmap"),
    ("mnist-mlp", {**SQUARES, "batch_size": 8}, "stability", {"ks": (1, 3, 5)}, "batched"),
    ("mnist-mlp", MLP, "stablemax", {"momentum": 0.9}, "batched"),
    ("mnist-mlp", {**MLP, "batch_size": 8}, "stablemax", {"backend": "vmap"}, "vmap"),
    ("mnist-mlp", MLP, "clip-norm", {}, "batched"),
    ("mnist-mlp", SQUARES, "clip-spectral-norm", {"optimiser": "nesterov"}, "batched"),
    ("mnist-mlp", MLP, "orthogonal-gradient", {}, "batched"),
    ("mnist-mlp", MLP, "spectra", {"momentum": 0.9, "lyapunov": False}, "batched"),
    ("mnist-mlp", MLP, {"name": "stable-spam", "reset_every": 7}, {"optimiser": "adam"}, "batched"),
    ("mnist-regression", LENET, "stability", {"steps": 20, "lyapunov": False}, "batched"),
    ("convolved", {}, "orthogonal-convolution", {}, "batched"),
]


@pytest.mark.parametrize(("name", "options", "stabiliser", "settings", "backend"), STACKED)
def test_a_stabiliser_in_a_stack_does_what_it_does_alone(
    name: str, options: dict[str, Any], stabiliser: Any, settings: dict[str, Any], backend: str
) -> None:
    """In float64, beside points of other strengths; to the bit the same in other company."""
    task = Convolved() if name == "convolved" else get_task(name, **options)
    points = [Point(0.003, 0.5, 0.1), Point(0.003), Point(0.006, 1.0), Point(1e200, 0.9)]
    given = {"steps": 24, "dtype": "float64", "seed": 3, "early": False, "sharpness": False}
    given |= {"stabiliser": stabiliser, **settings}
    mine = evaluate(points, task, **given)
    loop = evaluate(points, task, **{**given, "backend": "loop"})
    for one, other in zip(mine[:3], loop[:3], strict=True):
        a, b = one.replicates[0], other.replicates[0]
        assert (a.backend, b.backend) == (backend, "loop")
        assert a.curves["loss"].values == pytest.approx(b.curves["loss"].values, rel=1e-11)
        exponents = [r.evidence.get("lyapunov_exponent", 0.0) for r in (a, b)]
        assert exponents[0] == pytest.approx(exponents[1], rel=1e-3, abs=1e-7)
    plain = evaluate([Point(0.006)], task, **given)[0].replicates[0].curves["loss"].values
    assert mine[2].replicates[0].curves["loss"].values != pytest.approx(plain, rel=1e-6)
    assert mine[3].replicates[0].steps_run == loop[3].replicates[0].steps_run
    assert interrupted(points, task, checked_training(given), 5, 1) == mine
    assert evaluate(points[::-1], task, **given) == mine[::-1]


def test_which_stabilisers_are_stacked() -> None:
    """All but the analytic regulariser where its two passes or a last layer are in the way."""
    squares = get_task("mnist-mlp", **SQUARES)
    for task, stabiliser, expected in (
        (get_task("mnist-mlp", **MLP), "stability-reference", "wide"),
        (squares, "stability", "wide"),
        (squares, "stability-reference", "loop"),
        (squares, {"name": "stability-reference", "mode": "generic"}, "wide"),
        (Convolved(), "stability", "loop"),
        (Convolved(), "clip-norm", "batched"),
        (get_task("one-layer-cnn", **CNN), "stability", "exact"),
    ):
        (with_it, without) = evaluate(
            [Point(0.01, 0.5), Point(0.01)], task, steps=20, stabiliser=stabiliser
        )
        assert with_it.replicates[0].backend == expected
        assert without.replicates[0].backend != "loop"


@pytest.mark.parametrize("optimiser", ["sgd", "nesterov", "adam", "rmsprop"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_momentum_may_differ_from_row_to_row(optimiser: str, dtype: str) -> None:
    """A stack of two momenta does with each what a stack of one does, to the bit."""
    task = get_task("mnist-mlp", **MLP)
    settings: dict[str, Any] = {"steps": 20, "optimiser": optimiser, "dtype": dtype, "early": False}
    benches = [bench_of(task, momentum=m, **settings) for m in (0.5, 0.9)]
    found: dict[str, list[list[Tensor]]] = {}
    with deterministic("cpu"):
        backend, _ = choose(benches[0])
        assert backend is not None
        for name, chosen in {"both": benches, "0": benches[:1], "1": benches[1:]}.items():
            run = EnsembleRun(chosen[0], backend)
            run.add([Record(bench, Point(0.05, 0.0, 0.1), 7) for bench in chosen])
            for _ in range(10):
                run.advance()
            rows = run.state_dict()["parameters"]
            found[name] = [[p[3 * i : 3 * i + 3] for p in rows] for i in range(len(chosen))]
    for i in (0, 1):
        for one, other in zip(found["both"][i], found[str(i)][0], strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(found["0"][0][0], found["1"][0][0])


# --------------------------------------------------------------------------- backends


def stack_of(task: Task, count: int, dtype: torch.dtype) -> Stack:
    rows = zip(*(task.module(seed).to(dtype).parameters() for seed in range(count)), strict=True)
    return [torch.stack([p.detach() for p in row]) for row in rows]


@dataclass(frozen=True)
class Chain:
    """A chain of every layer that `Batched` knows, and a sigmoid."""

    name: ClassVar[str] = "chain"
    metric_name: ClassVar[str] = "error"
    regularised_layer: ClassVar[str] = ""
    stand_in: ClassVar[str | None] = None
    loss: ClassVar[Loss] = MEAN_SQUARED_ERROR
    batch: ClassVar[int | None] = None

    def module(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.ReLU()),
                nn.MaxPool2d(2),
                nn.Conv2d(3, 4, 2, stride=2, dilation=1, groups=1),
                nn.SiLU(),
                nn.Flatten(),
                nn.Linear(16, 5, bias=False),
                nn.Sigmoid(),
                nn.Linear(5, 3),
                nn.Tanh(),
            ).double()

    def train_data(self) -> tuple[Tensor, Tensor]:
        random = torch.Generator().manual_seed(0)
        shapes = (7, 2, 8, 8), (7, 3)
        one, two = (torch.randn(s, generator=random, dtype=torch.float64) for s in shapes)
        return one, two

    def test_data(self) -> tuple[Tensor, Tensor]:
        return self.train_data()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        return float(F.mse_loss(outputs, targets))


@dataclass(frozen=True)
class Convolved(Chain):
    """Its last layer is a convolution."""

    name: ClassVar[str] = "convolved"
    regularised_layer: ClassVar[str] = "last"

    def module(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: OrderedDict[str, nn.Module] = OrderedDict(
                first=nn.Conv2d(2, 2, 3), last=nn.Conv2d(2, 1, 3)
            )
            return nn.Sequential(layers).double()

    def train_data(self) -> tuple[Tensor, Tensor]:
        inputs = super().train_data()[0]
        return inputs, torch.ones(len(inputs), 1, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d((3, 2), (3, 2)),
        nn.MaxPool2d(3),
        nn.MaxPool2d(3, 2),
        nn.MaxPool2d(2, padding=1),
        nn.MaxPool2d(2, ceil_mode=True),
    ],
    ids=repr,
)
@pytest.mark.parametrize("samples", [1, SAMPLES, 2 * SAMPLES + 3])
def test_losses_of_convolutions_in_float64_are_those_of_the_network(
    pool: nn.MaxPool2d, samples: int
) -> None:
    """Its samples pass in parts, and pooling has a way of its own, also of what is not finite."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 2, 13, 14, generator=random, dtype=torch.float64)
    torch.manual_seed(0)
    networks = [
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), pool, nn.Conv2d(3, 2, 2), nn.Tanh(), pool
        ).double()
        for _ in range(2)
    ]
    targets = torch.zeros_like(networks[0](inputs))
    backend = Batched(networks[0], MEAN_SQUARED_ERROR)

    def losses(pair: list[nn.Sequential], inputs: Tensor) -> Tensor:
        rows = zip(*(network.parameters() for network in pair), strict=True)
        stack = [torch.stack([p.detach() for p in row]) for row in rows]
        return backend.losses(stack, inputs, targets, each=False)

    found = losses(networks, inputs)
    for network, loss in zip(networks, found, strict=True):
        expected = float((network(inputs).detach() ** 2).mean())
        assert float(loss) == pytest.approx(expected, rel=1e-13)
        assert torch.equal(losses([network], inputs)[0], loss)
    inputs[-1, 0, 0, 0] = math.nan
    assert losses(networks, inputs).isnan().all()


@pytest.mark.parametrize("kind", [Batched, Vectorised])
@pytest.mark.parametrize(
    "task",
    [Chain(), get_task("mnist-mlp", **MLP), get_task("mnist-regression", samples=6, batch_size=6)],
    ids=lambda task: task.name,
)
def test_gradients_are_those_of_autograd(kind: Any, task: Task) -> None:
    module, stack = task.module(0), stack_of(task, 5, torch.float64)
    inputs, targets = task.train_data()
    for backend in (kind(module, task.loss), Chunks(kind(module, task.loss), 2)):
        for each in (False, True):
            batch = (inputs, targets)
            if each:
                rows = torch.arange(5)[:, None] + torch.arange(len(inputs) - 4)
                batch = inputs[rows], targets[rows]
            losses, gradients = backend.gradients(stack, *batch, each)
            expected = Loop(module, task.loss).gradients(stack, *batch, each)
            torch.testing.assert_close(losses, expected[0], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(list(gradients), expected[1], rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(backend.losses(stack, *batch, each), losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distinct", [True, False])
def test_the_exact_program_of_the_one_layer_cnn(dtype: torch.dtype, distinct: bool) -> None:
    """Against autograd through every patch of the image."""
    task = get_task("one-layer-cnn", **CNN, distinct=distinct)
    plain = get_task("one-layer-cnn", **CNN, distinct=False)
    stack = stack_of(task, 6, dtype)
    inputs, targets = (t.to(dtype) for t in task.train_data())
    losses, [gradient] = task.ensemble().gradients(stack, inputs, targets, False)  # type: ignore[attr-defined]
    wide = [p.double() for p in stack]
    reference = Loop(plain.module(0), plain.loss).gradients(wide, *plain.train_data(), False)
    rtol, atol = (1e-12, 1e-12) if dtype == torch.float64 else (1e-5, 1e-6)
    torch.testing.assert_close(losses.double(), reference[0], rtol=rtol, atol=atol)
    torch.testing.assert_close(gradient.double(), reference[1][0], rtol=rtol, atol=atol)


LOSSES = [
    MEAN_SQUARED_ERROR,
    SQUARED_ERROR,
    ABSOLUTE_ERROR,
    CROSS_ENTROPY,
    BINARY_CROSS_ENTROPY,
]


def layered(*sizes: int, bias: bool = True) -> nn.Module:
    """Linear layers with every activation between them that `Wide` knows."""
    layers: list[nn.Module] = [nn.Flatten()]
    activations = itertools.cycle([nn.Tanh, nn.SiLU, nn.Sigmoid, nn.ReLU, nn.Identity])
    for (a, b), activation in zip(itertools.pairwise(sizes), activations, strict=False):
        layers += [nn.Linear(a, b, bias=bias), activation()]
    return nn.Sequential(*layers).double()


def drawn(count: int, sizes: Sequence[int], bias: bool) -> Stack:
    """Parameters of some networks."""
    torch.manual_seed(3)
    rows = zip(*(layered(*sizes, bias=bias).parameters() for _ in range(count)), strict=True)
    return [torch.stack([p.detach() for p in row]) for row in rows]


def data_for(loss: Loss, samples: int, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(4)
    inputs = torch.randn(samples, sizes[0], generator=random, dtype=torch.float64)
    if loss is CROSS_ENTROPY:
        return inputs, torch.randint(sizes[-1], (samples,), generator=random)
    return inputs, torch.rand(samples, sizes[-1], generator=random, dtype=torch.float64)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_wide_gradients_are_those_of_autograd(loss: Loss, bias: bool, count: int) -> None:
    sizes = (7, 6, 5, 4, 3, 2)
    module, stack = layered(*sizes, bias=bias), drawn(count, sizes, bias)
    inputs, targets = data_for(loss, 11, sizes)
    assert Wide.suits(module, torch.float32, inputs.reshape(11, 7, 1))
    found = Wide(module, loss).gradients(stack, inputs.reshape(11, 7, 1), targets, False)
    expected = Loop(module, loss).gradients(stack, inputs, targets, False)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=0)
    for one, other in zip(found[1], expected[1], strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12 * float(other.abs().max()))


@settings(max_examples=20)
@given(
    loss=st.sampled_from(LOSSES[:4]),
    features=st.sampled_from([3, 33, 200]),
    width=st.sampled_from([1, 5]),
    samples=st.sampled_from([1, 5, 24, 131]),
    chunk=st.integers(1, 20),
    rows=st.lists(st.integers(0, 19), min_size=1, max_size=40),
)
@example(MEAN_SQUARED_ERROR, 33, 1, 24, 1, [4])  # one matrix with one row goes another way
def test_wide_trajectories_do_not_see_each_other(
    loss: Loss, features: int, width: int, samples: int, chunk: int, rows: list[int]
) -> None:
    """To the bit: any of them, as often and in whatever order, in chunks of any size."""
    sizes = (features, width, 9, 3, 4)
    stack = [p.float() for p in drawn(20, sizes, True)]
    inputs, targets = (cast(t, torch.float32) for t in data_for(loss, samples, sizes))
    wide = Wide(layered(*sizes), loss)
    losses, gradients = wide.gradients(stack, inputs, targets, False)
    part = Chunks(wide, chunk).gradients([p[rows] for p in stack], inputs, targets, False)
    assert torch.equal(part[0], losses[rows])
    for one, other in zip(part[1], gradients, strict=True):
        assert torch.equal(one, other[rows])


def test_products_are_the_same_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor or a PyTorch that has none."""
    random = torch.Generator().manual_seed(0)
    stacked = torch.randn(3, 4, 50, generator=random)
    shared = torch.randn(6, 50, generator=random).T
    expected = stacked.double() @ shared.double()
    torch.testing.assert_close(
        shared_product(stacked, shared).double(), expected, atol=1e-5, rtol=0
    )
    monkeypatch.setattr(wide_under_test, "_ONE_DNN", None)
    torch.testing.assert_close(
        shared_product(stacked, shared).double(), expected, atol=1e-5, rtol=0
    )


def test_what_wide_does_not_suit() -> None:
    rows, images = torch.zeros(5, 3), torch.zeros(5, 3, 1)
    one = nn.Linear(3, 3)
    for module, dtype, inputs in (
        (nn.Sequential(one), torch.float64, rows),
        (nn.Sequential(one), torch.float32, images),
        (nn.Sequential(one, nn.Softmax(1)), torch.float32, rows),
        (nn.Sequential(nn.Tanh(), one), torch.float32, rows),
        (nn.Sequential(nn.Flatten()), torch.float32, images),
        (nn.Sequential(nn.Flatten(0), one), torch.float32, images),
        (nn.Sequential(), torch.float32, rows),
        (nn.Sequential(one, one), torch.float32, rows),
        (one, torch.float64, rows),
    ):
        assert not Wide.suits(module, dtype, inputs)
    assert Wide.suits(one, torch.float32, rows)
    assert Wide.suits(nn.Sequential(nn.Flatten(), one), torch.float32, images)


def test_what_batched_layers_do_not_fit() -> None:
    class Mine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    def tied() -> nn.Module:
        one = nn.Linear(3, 3)
        return nn.Sequential(one, one)

    hooked = nn.Linear(3, 3)
    hooked.register_forward_hook(lambda *_: None)
    frozen = nn.Linear(3, 3)
    frozen.weight.requires_grad_(False)
    for module in (
        nn.Sequential(nn.Linear(3, 3), Mine()),
        nn.Sequential(nn.Linear(3, 3), nn.Dropout()),
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)),
        nn.Sequential(nn.Conv2d(1, 1, 3, padding_mode="circular")),
        nn.Sequential(nn.Linear(3, 3), nn.Flatten(0)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
        tied(),
        nn.Sequential(hooked),
        nn.Sequential(frozen),
    ):
        assert not Batched.fits(module)
    assert Batched.fits(Chain().module(0))


# --------------------------------------------------------------------------- the choice


def bench_of(task: Task, **given: Any) -> Bench:
    return Bench.of(task, Training(**given))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "options", "backends"), TASKS)
def test_the_first_sound_backend_is_chosen(
    name: str, options: dict[str, Any], backends: tuple[str, ...], dtype: str
) -> None:
    with deterministic("cpu"):
        backend, struck = choose(bench_of(get_task(name, **options), dtype=dtype))
    assert backend is not None
    expected = backends[1] if (backends[0], dtype) == ("wide", "float64") else backends[0]
    assert backend.name == expected
    assert struck == {}


class Leaky(Batched):
    """Adds a little of all losses to each."""

    def gradients(
        self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool
    ) -> tuple[Tensor, list[Tensor]]:
        losses, gradients = super().gradients(stack, inputs, targets, each)
        return losses + 1e-12 * losses.sum(), gradients


class LeakyAtTheEnd(Batched):
    """Only where something is done at the outputs."""

    def gradients_of(self, *given: Any) -> tuple[Tensor, list[Tensor]]:
        losses, gradients = super().gradients_of(*given)
        return losses, [g + 1e-12 * g.sum(0) for g in gradients]


class Broken(Batched):
    def losses(self, *_: Any) -> Tensor:
        raise RuntimeError("no kernel\nfor this")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(Leaky, "results change where"), (Broken, "fails: RuntimeError: no kern")],
)
def test_an_unsound_backend_is_not_used_and_the_log_says_why(
    kind: Any, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module_under_test, "Batched", kind)
    bench = bench_of(get_task("mnist-mlp", **MLP), dtype="float64")
    with caplog.at_level("INFO", "stabmap"):
        backend, struck = choose(bench)
    assert backend is not None
    assert backend.name == "vmap"
    assert list(struck) == ["batched"]
    assert re.search(reason, struck["batched"])
    assert re.search(reason, caplog.text)
    with pytest.raises(InputError, match=r"backend = 'batched': .*; use auto or loop"):
        choose(bench, "batched")


def test_a_backend_that_mixes_rows_at_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain points do not mind; those with a stabiliser are left to the loop."""
    monkeypatch.setattr(module_under_test, "Batched", LeakyAtTheEnd)
    task, given = get_task("mnist-mlp", **SQUARES), {"dtype": "float64", "sharpness": False}
    backend, struck = choose(bench_of(task, **given))
    assert backend is not None
    assert backend.name == "batched"
    assert "results change" in struck["batched with a stabiliser"]
    found = evaluate([Point(0.01), Point(0.01, 0.5)], task, steps=20, **given)
    assert [r.replicates[0].backend for r in found] == ["batched", "loop"]


class Other(Batched):
    """Trains something else, the same for all stacks."""

    def gradients(
        self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool
    ) -> tuple[Tensor, list[Tensor]]:
        losses, gradients = super().gradients(stack, inputs, targets, each)
        return losses, [1.001 * g for g in gradients]


def test_a_backend_that_trains_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_under_test, "Batched", Other)
    backend, struck = choose(bench_of(get_task("mnist-mlp", **MLP), dtype="float64"))
    assert backend is not None
    assert backend.name == "vmap"
    assert struck == {"batched": "its losses or gradients are not those of the loop"}


@pytest.mark.parametrize("ignored", [False, True])
def test_cross_entropy_of_many_is_torch_s_own(ignored: bool) -> None:
    """Class numbers, of which some may be left out; and shares of classes."""
    module = nn.Sequential(nn.Linear(3, 5)).double()
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 3, generator=random, dtype=torch.float64)
    numbers = torch.tensor([0, 4, -100 if ignored else 2, 1, 3])
    shares = torch.softmax(torch.randn(5, 5, generator=random, dtype=torch.float64), 1)
    rows = zip(*(nn.Linear(3, 5).double().parameters() for _ in range(3)), strict=True)
    stack = [torch.stack([p.detach() for p in row]) for row in rows]
    for targets in (numbers, shares):
        found = Batched(module, CROSS_ENTROPY).losses(stack, inputs, targets, False)
        expected = [F.cross_entropy(inputs @ w.T + b, targets) for w, b in zip(*stack, strict=True)]
        torch.testing.assert_close(found, torch.stack(expected))


def test_a_slow_backend_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_under_test, "SLOWER", 0.0)
    backend, struck = choose(bench_of(get_task("mnist-mlp", **MLP)))
    assert backend is None
    assert all("times as long as the loop" in reason for reason in struck.values())
    [result] = evaluate([Point(0.1)], get_task("mnist-mlp", **MLP), steps=20)
    assert result.replicates[0].backend == "loop"


class Clocked(Loop):
    """A backend whose steps take what they are told to, on a clock of their own."""

    def __init__(self, inner: Loop, now: list[float], cost: Callable[[int], float]) -> None:
        self.inner, self.now, self.cost = inner, now, cost

    def gradients(self, stack: Any, *rest: Any) -> Any:
        self.now[0] += self.cost(len(stack[0]))
        return self.inner.gradients(stack, *rest)

    def losses(self, *given: Any) -> Tensor:
        return self.inner.losses(*given)


def test_backends_are_timed_at_the_size_that_they_are_used_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fixed cost a call, which five trajectories cannot carry, is little for those of a sweep."""
    bench, now = bench_of(get_task("mnist-mlp", **MLP)), [0.0]
    trial = module_under_test.Trial.of(bench)
    inner = Loop(bench.network(0, torch.float64), bench.task.loss)
    monkeypatch.setattr("time.process_time", lambda: now[0])
    one_each = Clocked(inner, now, float)
    monkeypatch.setattr(module_under_test.Trial, "pace", trial.seconds(one_each, 5))
    assert trial.seconds(one_each, 5) == trial.seconds(one_each, 16) == 1.0
    # 40 s a call are eight times the loop for five trajectories, and 2.5 times for sixteen.
    assert trial.judged(Clocked(inner, now, lambda _: 40.0), True) is None
    slow = trial.judged(Clocked(inner, now, lambda _: 64.0), True)
    assert slow == "it takes 4.0 times as long as the loop"


def test_a_backend_that_a_task_does_not_have() -> None:
    with pytest.raises(InputError, match="backend = 'exact': the task has no such backend; use"):
        evaluate([Point(0.1)], get_task("mnist-mlp", **MLP), steps=20, backend="exact")
    with pytest.raises(InputError, match="backend = 'wide': the task has no such backend; use"):
        evaluate([Point(0.1)], get_task("mnist-mlp", **MLP), backend="wide", dtype="float64")
    with pytest.raises(InputError, match="backend = 'fast'"):
        evaluate([Point(0.1)], get_task("mnist-mlp", **MLP), steps=20, backend="fast")


@dataclass(frozen=True)
class Remembering(Chain):
    """Its network has a state that each step changes."""

    name: ClassVar[str] = "remembering"

    def module(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(128, 3), nn.BatchNorm1d(3)).double()


def test_a_network_with_a_state_is_trained_by_the_loop() -> None:
    [result] = evaluate([Point(0.01)], Remembering(), steps=20)
    assert result.replicates[0].backend == "loop"


class _Scaled(nn.Module):
    """A linear layer and one number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(128, 3), nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)) * self.scale  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Scaled(Chain):
    """Its network has a parameter without dimensions."""

    name: ClassVar[str] = "scaled"

    def module(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return _Scaled().double()


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_a_parameter_without_dimensions(backend: str) -> None:
    (result,) = evaluate([Point(1e-3)], Scaled(), steps=20, backend=backend)
    assert result.verdict.margins.bounded > 0


# --------------------------------------------------------------------------- memory


def out_of_memory_above(limit: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device that holds `limit` replicates; the numbers that were tried."""
    tried: list[int] = []
    advance = EnsembleRun.advance

    def limited(self: EnsembleRun) -> None:
        tried.append(len(self.records))
        if len(self.records) > limit and self.records[0].step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        advance(self)

    monkeypatch.setattr(EnsembleRun, "advance", limited)
    return tried


def test_out_of_memory_halves_the_pack_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    task = get_task("one-layer-cnn", **CNN)
    points = points_of("one-layer-cnn", 9, 5)
    expected = evaluate(points, task, steps=20)
    tried = out_of_memory_above(2, monkeypatch)
    assert evaluate(points, task, steps=20) == expected
    assert set(tried) >= {9, 4, 2}
    out_of_memory_above(0, monkeypatch)
    with pytest.raises(UnreachableError, match="does not hold one replicate of task one-layer-cnn"):
        evaluate(points, task, steps=20)


@pytest.mark.parametrize("where", ["add", "take_finished"])
def test_out_of_memory_anywhere_loses_nothing(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When replicates come in beside others, and when one of them is judged."""
    task = get_task("one-layer-cnn", **CNN)
    points = [Point(0.5, 0.0, 50.0), *points_of("one-layer-cnn", 8, 5)]
    expected = evaluate(points, task, steps=20)
    original, calls = getattr(EnsembleRun, where), 0

    def limited(self: EnsembleRun, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (1, 2, 4) and len(self.records) + sum(map(len, given)) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, *given)

    monkeypatch.setattr(EnsembleRun, where, limited)
    pack = PackRun(points, task, checked_training({"steps": 20}), together=15)
    pack.advance()
    assert pack.results == expected


def test_a_pack_goes_on_with_the_backend_it_began_with() -> None:
    """Though this process would choose another one."""
    task, training = get_task("mnist-mlp", **MLP), checked_training({"steps": 40})
    points = [Point(0.1), Point(1.0)]
    expected = evaluate(points, task, steps=40)
    first = PackRun(points, task, training)
    for _ in range(9):
        first.advance(0.0)
    state = first.state_dict()
    [known] = [key for key in module_under_test._known if key[3] == "auto"]
    module_under_test._known[known] = (None, {"wide": "slow today"})
    again = PackRun(points, task, training)
    again.load_state_dict(state)
    again.advance()
    assert again.results == expected
    other = PackRun(points, task, training)
    other.advance()
    assert {r.replicates[0].backend for r in other.results} == {"loop"}


def test_how_many_fit() -> None:
    bench = bench_of(get_task("mnist-mlp", **MLP))
    backend: Backend = Batched(bench.network(0, torch.float64), bench.task.loss)
    assert most_trajectories(bench, backend) == 64
    large = bench_of(get_task("mnist-mlp", samples=2, width=2000))
    numbers = 2000 * 795 + 10
    found = most_trajectories(large, Batched(large.network(0, torch.float64), large.task.loss))
    assert found == 2**30 // (8 * 16 * numbers) == 5
