"""All stabilisers by name: what each does to gradients, directions and the loss, and their state.

The stability regulariser has a file of its own (`test_stability.py`).
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from toys import Bowl

from trainables.domain import InputError, Point, Training
from trainables.dynamics.optimisers import Optimiser, Slots
from trainables.dynamics.stabilisers import (
    Setting,
    Stabiliser,
    Step,
    get_stabiliser,
    stabiliser_names,
    stabiliser_of,
    strength_mistakes,
)
from trainables.dynamics.stabilisers.clipping import clip_factor
from trainables.dynamics.stabilisers.orthogonal_convolution import orthogonality_penalty
from trainables.dynamics.stabilisers.orthogonal_gradient import orthogonal_gradient
from trainables.dynamics.stabilisers.spectra import soft_spectral_clip
from trainables.dynamics.stabilisers.stable_spam import EPS
from trainables.dynamics.stabilisers.stablemax import collapsed_share, stablemax_cross_entropy
from trainables.dynamics.torch_optimiser import optimiser_of
from trainables.evaluate import evaluate
from trainables.losses import CROSS_ENTROPY, MEAN_SQUARED_ERROR, SQUARED_ERROR, Loss
from trainables.options import as_names, construct, layer_names, plain_options, unknown_name
from trainables.tasks import Task, get_task
from trainables.trajectory import Bench, Trajectory

Array = NDArray[np.float64]


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


# ------------------------------------------------------------------ a task for all of them


@dataclass(frozen=True)
class Pictures:
    """12 random images in 3 classes, two convolutions and a linear layer, in batches of 4."""

    batch_size: int | None = 4

    name: ClassVar[str] = "pictures"
    metric_name: ClassVar[str] = "accuracy"
    regularised_layer: ClassVar[str] = "output"
    stand_in: ClassVar[str | None] = None
    loss: ClassVar[Loss] = CROSS_ENTROPY

    @property
    def batch(self) -> int | None:
        return self.batch_size

    def module(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        net = nn.Sequential()
        net.first = nn.Conv2d(1, 3, 3)
        net.tanh1 = nn.Tanh()
        net.second = nn.Conv2d(3, 2, 2, stride=2)
        net.tanh2 = nn.Tanh()
        net.flat = nn.Flatten()
        net.output = nn.Linear(8, 3)
        return net.double()

    def train_data(self) -> tuple[Tensor, Tensor]:
        return normal(12, 1, 6, 6, seed=1), torch.arange(12) % 3

    def test_data(self) -> tuple[Tensor, Tensor]:
        return self.train_data()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        return float((outputs.argmax(1) == targets).double().mean())


#: Every stabiliser with the options that add state to it, and a strength.
ACTIVE: tuple[tuple[dict[str, Any], float], ...] = (
    ({"name": "stability"}, 1.0),
    ({"name": "stability", "anchor": 4, "layers": ["second", "output"]}, 1.0),
    ({"name": "stability", "track_decay": True}, 1.0),
    ({"name": "stability", "track_decay": True, "order": "right", "anchor": "epoch"}, 1.0),
    ({"name": "stability-reference"}, 1.0),
    ({"name": "stability-reference", "track_decay": True}, 1.0),
    ({"name": "clip-norm"}, 5.0),
    ({"name": "clip-spectral-norm"}, 20.0),
    ({"name": "spectra"}, 5.0),
    ({"name": "spectra", "iterations": 10, "aspect": True}, 5.0),
    ({"name": "stablemax"}, 1.0),
    ({"name": "stablemax"}, 0.5),
    ({"name": "orthogonal-gradient"}, 1.0),
    ({"name": "orthogonal-gradient"}, 0.5),
    ({"name": "stable-spam", "reset_every": 5}, 1.0),
    ({"name": "stable-spam", "reset_every": 0}, 0.5),
    ({"name": "orthogonal-convolution"}, 0.3),
    ({"name": "orthogonal-convolution", "layers": "second"}, 0.3),
)
OPTIMISERS: tuple[dict[str, Any], ...] = (
    {"optimiser": "sgd"},
    {"optimiser": "sgd", "momentum": 0.9, "decay": "decoupled"},
    {"optimiser": "nesterov"},
    {"optimiser": "adam"},
    {"optimiser": "adamw"},
    {"optimiser": "rmsprop", "momentum": 0.5},
    {"optimiser": "adadelta"},
    {"optimiser": "torch.optim.NAdam"},
)


def naming(value: object) -> str:
    """Ids of parametrised tests."""
    if isinstance(value, dict):
        return ",".join(str(part) for part in value.values())
    return str(getattr(value, "name", value))


def bench(task: Task, **settings: Any) -> Bench:
    return Bench.of(task, Training(**settings))


def advance(trajectory: Trajectory, steps: int) -> list[Tensor]:
    """Go on for some steps; the losses."""
    table = trajectory.bench
    return [trajectory.step(table.batch(trajectory.seed, trajectory.count)) for _ in range(steps)]


def run(task: Task, point: Point, steps: int, **settings: Any) -> Trajectory:
    trajectory = Trajectory(bench(task, **settings), point, 1, 3)
    advance(trajectory, steps)
    return trajectory


def plain_loop(
    table: Bench, point: Point, k: int, seed: int, steps: int
) -> tuple[list[Tensor], list[Slots]]:
    """The optimiser's rule on the gradients of the task's loss, and nothing else."""
    rule = optimiser_of(table.training, point.lr, point.weight_decay, k)
    module = table.network(seed, getattr(torch, table.training.dtype))
    parameters = list(module.parameters())
    slots = [rule.init(p.detach()) for p in parameters]
    for count in range(steps):
        rows = table.batch(seed, count)
        loss = table.task.loss.value(module(table.inputs[rows]), table.targets[rows])
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                new, slots[i] = rule.step(parameter, gradient, slots[i], count)
                parameter.copy_(new)
    return [p.detach() for p in parameters], slots


def same(first: Iterable[Tensor], second: Iterable[Tensor]) -> bool:
    """Whether all tensors are equal to the bit."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def distance(first: Trajectory, second: Trajectory) -> float:
    """Largest difference of two parameters."""
    pairs = zip(first.parameters, second.parameters, strict=True)
    return max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs)


# ------------------------------------------------------------------ laws of all stabilisers


@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=naming)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_strength_0_is_the_plain_training_to_the_bit(dtype: str, optimiser: dict[str, Any]) -> None:
    """Acceptance row 4: for every stabiliser and its options, k = 3 too."""
    point = Point(0.05, 0.0, 0.1)
    for k in (1, 3):
        expected, slots = plain_loop(bench(Pictures(), dtype=dtype, **optimiser), point, k, 3, 20)
        start = Trajectory(bench(Pictures(), dtype=dtype), point, k, 3)
        assert not same((p.detach() for p in start.parameters), expected)
        for options, _ in ACTIVE:
            table = bench(Pictures(), dtype=dtype, stabiliser=options, **optimiser)
            trajectory = Trajectory(table, point, k, 3)
            advance(trajectory, 20)
            assert trajectory.action is None
            assert same((p.detach() for p in trajectory.parameters), expected)
            for ours, theirs in zip(trajectory.slots, slots, strict=True):
                assert same(ours, theirs)


@pytest.mark.parametrize(("options", "alpha"), ACTIVE, ids=naming)
def test_a_stabiliser_acts_and_fades_with_its_strength(
    options: dict[str, Any], alpha: float
) -> None:
    """A tiny alpha is close to none at all: the map has no jump at alpha = 0."""
    settings: dict[str, Any] = {"dtype": "float64", "optimiser": "sgd", "decay": "decoupled"}
    if options["name"] == "spectra":
        options = {**options, "aspect": False}  # the program's factor is there for any alpha
    if options["name"] == "stable-spam":
        options = {**options, "reset_every": 0}  # and so are the resets
    ends = [
        run(Pictures(), Point(0.1, a, 0.5), 10, stabiliser=options, **settings)
        for a in (0.0, 1e-9, 1e-5, alpha)
    ]
    assert distance(ends[0], ends[1]) < 1e-7
    assert distance(ends[0], ends[2]) < 1e-3
    assert distance(ends[0], ends[3]) > 1e-3


#: The last one takes its own steps, whose directions and decay are not to be had.
RESTARTED = [
    (optimiser, options, alpha)
    for optimiser in ("sgd", "adamw", "torch.optim.NAdam")
    for options, alpha in ACTIVE
    if not optimiser.startswith("torch")
    or (options["name"] != "spectra" and "track_decay" not in options)
]


@pytest.mark.parametrize(("optimiser", "options", "alpha"), RESTARTED, ids=naming)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_goes_on_from_a_file_to_the_bit(
    optimiser: str, dtype: str, options: dict[str, Any], alpha: float
) -> None:
    """Saved after 7 of 16 steps by torch.save, whose files hold tensors and numbers alone."""
    point = Point(0.03, alpha, 0.5)
    settings: dict[str, Any] = {"optimiser": optimiser, "dtype": dtype}
    if not optimiser.startswith("torch"):
        settings["decay"] = "decoupled"
    whole = run(Pictures(), point, 7, stabiliser=options, **settings)
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    losses = advance(whole, 9)
    file.seek(0)
    other = Trajectory(whole.bench, point, 1, 3)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert same(advance(other, 9), losses)
    assert distance(whole, other) == 0
    assert (other.count, other.age) == (whole.count, whole.age)
    for ours, theirs in zip(other.slots, whole.slots, strict=True):
        assert same(ours, theirs)
    mine, theirs = other.state_dict()["action"], whole.state_dict()["action"]
    assert list(mine) == list(theirs)
    assert same(mine.values(), theirs.values())
    assert all(t.is_floating_point() for t in mine.values())


@pytest.mark.parametrize("options", [o for o, _ in ACTIVE], ids=naming)
def test_a_state_that_is_kept_is_not_changed_later(options: dict[str, Any]) -> None:
    trajectory = run(Pictures(), Point(0.05, 0.5, 0.5), 3, stabiliser=options, decay="decoupled")
    kept = trajectory.state_dict()
    copies = {name: t.clone() for name, t in kept["action"].items()}
    advance(trajectory, 3)
    assert same(kept["action"].values(), copies.values())


@pytest.mark.parametrize(("options", "alpha"), ACTIVE, ids=naming)
def test_a_blown_up_training_raises_nothing(options: dict[str, Any], alpha: float) -> None:
    """NaN and infinity are for the verdict to see."""
    trajectory = run(Pictures(), Point(0.05, alpha, 0.5), 2, stabiliser=options, decay="decoupled")
    for bad in (math.inf, math.nan):
        with torch.no_grad():
            trajectory.parameters[0].fill_(bad)
        for loss in advance(trajectory, 3):
            assert not math.isfinite(float(loss))


# ------------------------------------------------------------------ the registry


def test_registry() -> None:
    assert stabiliser_names() == (
        "stability",
        "stability-reference",
        "clip-norm",
        "clip-spectral-norm",
        "spectra",
        "stablemax",
        "orthogonal-gradient",
        "stable-spam",
        "orthogonal-convolution",
    )
    assert {options["name"] for options, _ in ACTIVE} == set(stabiliser_names())
    for name in stabiliser_names():
        found = get_stabiliser(name)
        assert isinstance(found, Stabiliser)
        assert found.name == name
        assert stabiliser_of(Training(stabiliser=name)) == found
        with pytest.raises(dataclasses.FrozenInstanceError):
            found.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("options", [o for o, _ in ACTIVE], ids=naming)
def test_options_go_through_json_and_back(options: dict[str, Any]) -> None:
    found = get_stabiliser(**options)
    plain = json.loads(json.dumps(plain_options(found)))
    assert plain == plain_options(found)
    assert get_stabiliser(**plain) == found
    assert plain_options(get_stabiliser(**plain)) == plain
    assert plain["name"] == options["name"]
    assert set(options) <= set(plain)


def test_options_have_the_papers_defaults() -> None:
    assert plain_options(get_stabiliser("stable-spam")) == {
        "name": "stable-spam",
        "maximum_decay": 0.999,
        "norm_decay": 0.7,
        "square_decay": 0.9,
        "reset_every": 1000,
    }
    assert plain_options(get_stabiliser("stability")) == {
        "name": "stability",
        "mode": "auto",
        "order": "left",
        "layers": None,
        "anchor": "never",
        "track_decay": False,
    }
    assert plain_options(get_stabiliser("stability-reference"))["order"] == "right"
    assert plain_options(get_stabiliser("spectra")) == {
        "name": "spectra",
        "iterations": None,
        "aspect": False,
    }


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"name": "clip-nrm"},
        "stabiliser = 'clip-nrm': no such stabiliser; did you mean clip-norm? known: stability, "
        "stability-reference, clip-norm, clip-spectral-norm, spectra, stablemax, "
        "orthogonal-gradient, stable-spam, orthogonal-convolution",
    ),
    ({"name": "12345"}, "stabiliser = '12345': no such stabiliser; known: stability, "),
    (
        {"name": "stable-spam", "norm_decey": 0.5},
        "stabiliser.norm_decey = 0.5: stable-spam has no such option; did you mean norm_decay? "
        "known: maximum_decay, norm_decay, square_decay, reset_every",
    ),
    (
        {"name": "clip-norm", "norm": 1},
        "stabiliser.norm = 1: clip-norm has no such option; known: none",
    ),
    (
        {"name": "spectra", "iterations": 0},
        "stabiliser.iterations = 0: an integer from 1 to 100; choose one of these",
    ),
    ({"name": "spectra", "iterations": 1.5}, "stabiliser.iterations = 1.5: an integer from 1"),
    ({"name": "spectra", "iterations": True}, "stabiliser.iterations = True: an integer from 1"),
    (
        {"name": "spectra", "aspect": "yes"},
        "stabiliser.aspect = 'yes': true or false; write one of these",
    ),
    (
        {"name": "stable-spam", "maximum_decay": 1.0},
        "stabiliser.maximum_decay = 1.0: a number in [0, 1); choose such a number",
    ),
    ({"name": "stable-spam", "norm_decay": -0.1}, "stabiliser.norm_decay = -0.1: a number in [0"),
    ({"name": "stable-spam", "square_decay": "a"}, "stabiliser.square_decay = 'a': a number in"),
    ({"name": "stable-spam", "square_decay": math.nan}, "stabiliser.square_decay = nan: a number"),
    ({"name": "stable-spam", "square_decay": False}, "stabiliser.square_decay = False: a number"),
    (
        {"name": "stable-spam", "reset_every": -1},
        "stabiliser.reset_every = -1: an integer >= 0; choose one of these",
    ),
    ({"name": "stable-spam", "reset_every": 2.0}, "stabiliser.reset_every = 2.0: an integer >= 0"),
    (
        {"name": "orthogonal-convolution", "layers": []},
        "stabiliser.layers = (): names of layers, each once; leave it out",
    ),
    ({"name": "orthogonal-convolution", "layers": {}}, "stabiliser.layers = {}: names of layers"),
    ({"name": "orthogonal-convolution", "layers": [1]}, "stabiliser.layers = (1,): names of"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=str)
def test_wrong_names_and_options(options: dict[str, Any], message: str) -> None:
    attempts: tuple[Callable[[], Stabiliser], ...] = (
        lambda: get_stabiliser(**options),
        lambda: stabiliser_of(Training(stabiliser=options)),
    )
    for attempt in attempts:
        with pytest.raises(InputError) as caught:
            attempt()
        assert str(caught.value).startswith(message)


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        get_stabiliser("stable-spam", maximum_decay=2, norm_decay=2, square_decay=2, reset_every=-1)
    assert len(caught.value.mistakes) == 4
    with pytest.raises(InputError) as caught:
        get_stabiliser("spectra", iteration=3, aspct=True)
    assert [m.field for m in caught.value.mistakes] == ["stabiliser.iteration", "stabiliser.aspct"]


def test_building_blocks_of_options() -> None:
    assert as_names("a") == ("a",)
    assert as_names(["a", "b"]) == ("a", "b")
    assert as_names(None) is None
    assert not list(layer_names("f", None))
    assert not list(layer_names("f", ("", "a")))
    assert str(unknown_name("task", "task", "zzz", ["a", "b"])) == (
        "task = 'zzz': no such task; known: a, b"
    )

    @dataclass(frozen=True)
    class Thing:
        size: int = 1

    assert construct("thing", "it", Thing, {"size": 2}) == Thing(2)


def complaints(task: Task, alpha: float, options: Any) -> str:
    training = Training(stabiliser=options)
    return "\n".join(map(str, strength_mistakes("axes.alpha.high", alpha, task, training)))


MIXTURES = ("stablemax", "orthogonal-gradient", "stable-spam")


@pytest.mark.parametrize("name", stabiliser_names())
def test_a_mixture_has_strength_1_at_most(name: str) -> None:
    """And a factor or a bound may be as large as one likes."""
    assert complaints(Pictures(), 1.0, name) == ""
    expected = f"axes.alpha.high = 1.5: alpha <= 1 for the stabiliser {name}; lower it"
    assert complaints(Pictures(), 1.5, name) == (expected if name in MIXTURES else "")
    if name in MIXTURES:
        with pytest.raises(InputError, match=f"alpha = 1.5: alpha <= 1 for the stabiliser {name}"):
            evaluate([Point(0.1, 1.5)], Pictures(), steps=20, stabiliser=name)


class _Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(1, 2, (2, 3))
        self.uneven = nn.Conv2d(2, 2, 2, stride=(1, 2))
        self.grouped = nn.Conv2d(2, 2, 2, groups=2)
        self.dilated = nn.Conv2d(2, 2, 2, dilation=2)
        self.good = nn.Conv2d(2, 2, 2, stride=2)


class _OddPictures(Pictures):
    def module(self, seed: int) -> nn.Module:
        return _Odd()


def test_what_a_task_does_not_allow() -> None:
    assert complaints(get_task("mnist-mlp", loss_name="squared-error"), 0.5, "stablemax") == (
        "stabiliser = 'stablemax': replaces a cross-entropy, and the task's loss is squared-error; "
        "use a task with cross-entropy, or another stabiliser"
    )
    assert "the task's loss is binary-cross-entropy" in complaints(
        get_task("one-layer-cnn"), 0.5, "stablemax"
    )
    assert complaints(get_task("mnist-mlp"), 0.5, "orthogonal-convolution") == (
        "stabiliser = 'orthogonal-convolution': the task mnist-mlp has no convolutional layer; "
        "use another stabiliser"
    )
    options = {"name": "orthogonal-convolution", "layers": ["secnd", "output"]}
    assert complaints(Pictures(), 0.5, options) == (
        "stabiliser.layers = 'secnd': the network has no Conv2d layer of this name; did you mean "
        "second? it has: first, second\n"
        "stabiliser.layers = 'output': the network has no Conv2d layer of this name; it has: "
        "first, second"
    )
    wrong = complaints(_OddPictures(), 0.5, "orthogonal-convolution").splitlines()
    assert [line.split(":")[0] for line in wrong] == [
        f"stabiliser.layers = '{name}'" for name in ("wide", "uneven", "grouped", "dilated")
    ]
    for line in wrong:
        assert line.endswith(
            ": needs a square kernel, one stride, no groups and no dilation; name other layers"
        )
    good = {"name": "orthogonal-convolution", "layers": "good"}
    assert complaints(_OddPictures(), 0.5, good) == ""


# ------------------------------------------------------------------ one step with given gradients


def driven(
    stabiliser: Stabiliser, alpha: float, parameters: list[Tensor], gradients: list[list[Tensor]]
) -> list[tuple[Tensor, ...]]:
    """What a stabiliser makes of these gradients, step by step; the parameters stay put."""
    leaves = [p.detach().clone().requires_grad_() for p in parameters]
    rule = Optimiser("sgd", 0.1)
    setting = Setting(nn.Module(), leaves, "", MEAN_SQUARED_ERROR, rule, 1)
    action = stabiliser.start(setting, alpha)
    found = []
    for count, wanted in enumerate(gradients):
        action.begin(count)
        loss = torch.stack([(p * g).sum() for p, g in zip(leaves, wanted, strict=True)]).sum()
        step = Step(loss, leaves, [() for _ in leaves], count, loss, loss)
        found.append(tuple(g.detach() for g in action.gradients(step)))
    return found


# ------------------------------------------------------------------ clipping


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("alpha", [1.4, 3.0, 50.0])
def test_clip_norm_repeats_pytorch_to_the_bit(alpha: float, dtype: str) -> None:
    """`clip_grad_norm_` and a plain gradient step; some steps are clipped, and not all at 1.4."""
    lr = 0.3
    table = bench(Pictures(), dtype=dtype, stabiliser="clip-norm")
    trajectory = Trajectory(table, Point(lr, alpha), 1, 3)
    module = table.network(3, getattr(torch, dtype))
    parameters = list(module.parameters())
    clipped = []
    for count in range(20):
        rows = table.batch(3, count)
        module.zero_grad()
        F.cross_entropy(module(table.inputs[rows]), table.targets[rows]).backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1 / alpha)
        clipped.append(float(norm) > 1 / alpha)
        with torch.no_grad():
            for p in parameters:
                assert p.grad is not None
                p.sub_(lr * p.grad)
        trajectory.step(rows)
        assert same(trajectory.parameters, parameters)
    assert any(clipped)
    assert all(clipped) == (alpha > 2)


@given(
    alpha=st.floats(1e-3, 1e3),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**31),
)
def test_clip_norm_is_the_norm_of_all_tensors(alpha: float, scale: float, seed: int) -> None:
    gradients = [scale * normal(3, 2, seed=seed), scale * normal(4, seed=seed + 1)]
    (found,) = driven(get_stabiliser("clip-norm"), alpha, gradients, [gradients])
    before = float(np.sqrt(sum((g.numpy() ** 2).sum() for g in gradients)))
    after = float(np.sqrt(sum((g.numpy() ** 2).sum() for g in found)))
    if before < (1 - 1e-12) / alpha - 1e-6:
        assert same(found, gradients)
    else:
        assert after == pytest.approx(1 / alpha * before / (before + 1e-6), rel=1e-12)
        assert after < 1 / alpha
    for ours, theirs in zip(found, gradients, strict=True):
        torch.testing.assert_close(ours, theirs * (after / before), rtol=1e-12, atol=0)


@given(alpha=st.floats(1e-2, 1e2), seed=st.integers(0, 2**31))
def test_clip_spectral_norm(alpha: float, seed: int) -> None:
    """Tensor by tensor: a kernel as outputs x rest, a bias with its Euclidean norm."""
    shapes = [(3, 5), (5, 3), (2, 3, 2, 2), (4,), (1,), ()]
    gradients = [normal(*shape, seed=seed + i) for i, shape in enumerate(shapes)]
    (found,) = driven(get_stabiliser("clip-spectral-norm"), alpha, gradients, [gradients])
    for ours, plain in zip(found, gradients, strict=True):
        rows = plain.numpy().reshape(len(plain) if plain.ndim > 1 else 1, -1)
        top = np.linalg.svd(rows, compute_uv=False)[0]
        factor = min(1.0, 1 / alpha / (top + 1e-6))
        torch.testing.assert_close(ours, factor * plain, rtol=1e-12, atol=0)
        if top < (1 - 1e-9) / alpha - 1e-6:
            assert torch.equal(ours, plain)


def test_clip_factor_of_nothing() -> None:
    assert float(clip_factor(torch.tensor(0.0), 1e5)) == 1
    assert float(clip_factor(torch.tensor(2.0), 1e-320)) == 1


# ------------------------------------------------------------------ SPECTRA


def of_spectrum(m: int, n: int, sigma: Array, seed: int) -> tuple[Tensor, Array, Array]:
    """A matrix with these singular values, and its singular vectors."""
    random = np.random.RandomState(seed)
    u = np.linalg.qr(random.randn(m, len(sigma)))[0]
    v = np.linalg.qr(random.randn(n, len(sigma)))[0]
    return torch.from_numpy(u * sigma @ v.T), u, v


def clipped_by_svd(sigma: Array, u: Array, v: Array, alpha: float) -> Array:
    result: Array = (u * (sigma / np.sqrt(1 + (alpha * sigma) ** 2))) @ v.T
    return result


def spectral_error(found: Tensor, exact: Array) -> float:
    """Relative error in the spectral norm."""
    return float(np.linalg.norm(found.numpy() - exact, 2) / np.linalg.norm(exact, 2))


@given(
    m=st.integers(1, 10),
    n=st.integers(1, 10),
    top=st.floats(-3, 3),
    spread=st.floats(0, 6),
    log_alpha=st.floats(-2, 1),
    seed=st.integers(0, 2**31),
)
def test_soft_clip_is_that_of_the_singular_values(
    m: int, n: int, top: float, spread: float, log_alpha: float, seed: int
) -> None:
    """sigma / sqrt(1 + alpha^2 sigma^2) for values up to 1e3 and down a million times smaller."""
    random = np.random.RandomState(seed)
    sigma = 10 ** (top - spread * random.rand(min(m, n)))
    alpha = 10**log_alpha
    update, u, v = of_spectrum(m, n, sigma, seed)
    found = soft_spectral_clip(update, alpha)
    assert spectral_error(found, clipped_by_svd(sigma, u, v, alpha)) < 1e-8
    assert float(torch.linalg.svdvals(found)[0]) <= (1 + 1e-9) / alpha
    if alpha * sigma.max() <= 10:
        ten = soft_spectral_clip(update, alpha, 10)
        assert spectral_error(ten, clipped_by_svd(sigma, u, v, alpha)) < 1e-8


def test_ten_iterations_are_not_enough_for_small_singular_values() -> None:
    """The 5.7e-14 of c = 5 up to sigma = 926 needs singular values of one size.

    With small ones beside them the paper's 10 iterations stop early, and the default goes on.
    """
    alpha = 1 / 5
    spectra = {
        "one size": np.linspace(800, 926, 8),
        "spread": np.logspace(-2, math.log10(926), 8),
    }
    errors = {}
    for name, sigma in spectra.items():
        update, u, v = of_spectrum(8, 64, sigma, 0)
        exact = clipped_by_svd(sigma, u, v, alpha)
        for iterations in (10, None):
            found = soft_spectral_clip(update, alpha, iterations)
            error = np.linalg.norm(found.numpy() - exact) / np.linalg.norm(exact)
            errors[name, iterations] = error
    assert errors["one size", 10] < 5.7e-14
    assert errors["one size", None] < 5.7e-14
    assert errors["spread", 10] == pytest.approx(0.233, abs=0.01)
    assert errors["spread", None] < 1e-11


def test_soft_clip_in_float32() -> None:
    sigma = np.array([20.0, 3.0, 0.5])
    update, u, v = of_spectrum(6, 3, sigma, 1)
    found = soft_spectral_clip(update.float(), 1.0)
    assert found.dtype == torch.float32
    assert spectral_error(found.double(), clipped_by_svd(sigma, u, v, 1.0)) < 1e-4


def test_soft_clip_of_nothing_and_of_what_is_not_finite() -> None:
    assert torch.equal(soft_spectral_clip(torch.zeros(3, 2), 2.0), torch.zeros(3, 2))
    for bad in (math.nan, math.inf):
        matrix = torch.ones(3, 2)
        matrix[1, 1] = bad
        assert bool(soft_spectral_clip(matrix, 2.0).isnan().any())


def test_soft_clip_refuses() -> None:
    with pytest.raises(InputError) as caught:
        soft_spectral_clip(torch.ones(3), 0.0, 0)
    assert str(caught.value) == (
        "iterations = 0: an integer >= 1; choose one of these\n"
        "update = (3,): m x n; reshape it\n"
        "alpha = 0.0: 0 < alpha < infinity; use alpha > 0"
    )
    for alpha in (-1.0, math.inf, math.nan):
        with pytest.raises(InputError, match="0 < alpha < infinity"):
            soft_spectral_clip(torch.ones(3, 2), alpha)


@pytest.mark.parametrize("aspect", [False, True])
@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_spectra_clips_the_direction_of_the_update(
    momentum: float, decay: str, aspect: bool
) -> None:
    """X <- (1 - lr wd) X - lr H(d): decoupled weight decay is left out of d, coupled is in it."""
    lr, wd, alpha = 0.1, 0.7, 4.0
    stabiliser = {"name": "spectra", "aspect": aspect}
    settings = {"momentum": momentum, "decay": decay, "dtype": "float64"}
    table = bench(Pictures(), stabiliser=stabiliser, **settings)
    trajectory = Trajectory(table, Point(lr, alpha, wd), 1, 3)
    buffers = [np.zeros(p.shape) for p in trajectory.parameters]
    for count in range(4):
        rows = table.batch(3, count)
        before = [p.detach().clone() for p in trajectory.parameters]
        loss = F.cross_entropy(trajectory.module(table.inputs[rows]), table.targets[rows])
        gradients = torch.autograd.grad(loss, trajectory.parameters)
        trajectory.step(rows)
        for i, (x, g, new) in enumerate(zip(before, gradients, trajectory.parameters, strict=True)):
            d = (g + wd * x if decay == "coupled" else g).numpy()
            buffers[i] = momentum * buffers[i] + d
            matrix = buffers[i].reshape(len(x), -1)
            u, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
            clipped = u * (sigma / np.sqrt(1 + (alpha * sigma) ** 2)) @ vt
            if aspect and x.ndim > 1:
                clipped *= math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1]))
            shrink = 1 - lr * wd if decay == "decoupled" else 1.0
            expected = shrink * x.numpy() - lr * clipped.reshape(x.shape)
            np.testing.assert_allclose(new.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------ StableMax


def grown(x: Array) -> Array:
    return np.where(x >= 0, x + 1, 1 / (1 - np.minimum(x, 0)))


def stablemax_by_hand(logits: Array, targets: NDArray[np.int64]) -> float:
    s = grown(logits)
    return float(-np.log(s[np.arange(len(s)), targets] / s.sum(1)).mean())


@given(
    scale=st.floats(-3, 4),
    batch=st.integers(1, 5),
    classes=st.integers(2, 6),
    seed=st.integers(0, 2**31),
)
def test_stablemax_value_and_gradient(scale: float, batch: int, classes: int, seed: int) -> None:
    """Against the formula in numpy, and central differences of it."""
    random = np.random.RandomState(seed)
    logits = 10**scale * random.randn(batch, classes)
    targets = random.randint(0, classes, batch)
    leaf = torch.from_numpy(logits).requires_grad_()
    value = stablemax_cross_entropy(leaf, torch.from_numpy(targets))
    assert float(value.detach()) == pytest.approx(stablemax_by_hand(logits, targets), rel=1e-12)
    (gradient,) = torch.autograd.grad(value, leaf)
    for entry in np.ndindex(batch, classes):
        width = 1e-6 * max(1.0, float(abs(logits[entry])))
        ends = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[entry] += sign * width
            ends.append(stablemax_by_hand(moved, targets))
        slope = (ends[0] - ends[1]) / (2 * width)
        assert float(gradient[entry]) == pytest.approx(slope, rel=1e-4, abs=1e-8)


def test_stablemax_is_smooth_at_zero_and_far_out() -> None:
    """Both branches meet with value and slope 1; the branch not taken leaves no NaN."""
    for x in (0.0, 1e-300, -1e-300, 1e300, -1e300):
        leaf = torch.tensor([[x, 0.0]], dtype=torch.float64, requires_grad=True)
        value = stablemax_cross_entropy(leaf, torch.tensor([0]))
        (gradient,) = torch.autograd.grad(value, leaf)
        assert bool(torch.isfinite(gradient).all())
        if abs(x) < 1:
            assert gradient.tolist() == [[-0.5, 0.5]]


def test_stablemax_is_computed_in_float64() -> None:
    """A lead of 1e9 leaves float32 nothing to learn from with 1 + 1e-9, and this a loss."""
    logits = torch.tensor([[1e9, 0.0]], requires_grad=True)
    value = stablemax_cross_entropy(logits, torch.tensor([0]))
    assert value.dtype == torch.float64
    assert float(value.detach()) == pytest.approx(1e-9, rel=1e-6)
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient.dtype == torch.float32
    assert bool((gradient != 0).all())


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_stablemax_mixture_is_trained_and_watched(alpha: float) -> None:
    """The loss in the results is what is minimised, not the cross-entropy."""
    table = bench(Pictures(None), dtype="float64", stabiliser="stablemax")
    trajectory = Trajectory(table, Point(0.2, alpha), 1, 3)
    expected = []
    for _ in range(20):
        before = [p.detach().clone() for p in trajectory.parameters]
        outputs = trajectory.module(table.inputs)
        stable = stablemax_cross_entropy(outputs, table.targets)
        loss = alpha * stable + (1 - alpha) * F.cross_entropy(outputs, table.targets)
        expected.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, trajectory.parameters)
        trajectory.step(slice(None))
        for old, g, new in zip(before, gradients, trajectory.parameters, strict=True):
            torch.testing.assert_close(new.detach(), old - 0.2 * g, rtol=1e-12, atol=1e-14)
    (result,) = evaluate(
        [Point(0.2, alpha)],
        _Seeded(None),
        steps=20,
        dtype="float64",
        stabiliser="stablemax",
        lyapunov=False,
    )
    curve = result.replicates[0].curves["loss"]
    assert curve.values == pytest.approx(expected, rel=1e-12)


class _Seeded(Pictures):
    """Starts from seed 3, whatever the seed."""

    def module(self, seed: int) -> nn.Module:
        return super().module(3)


def test_stablemax_alone_forgets_an_infinite_cross_entropy() -> None:
    """Its weight of 0 would make NaN of it."""
    logits = torch.tensor([[-1e39, 0.0]], dtype=torch.float64)
    loss = get_stabiliser("stablemax").loss(
        Loss("cross-entropy", lambda o, t: o.sum() * math.inf), 1.0
    )
    assert loss.name == "stablemax-cross-entropy"
    assert loss.output_gradient is None
    value = loss.value(logits, torch.tensor([0]))
    assert float(value) == pytest.approx(math.log(1e39), rel=1e-12)


def test_collapse_begins_at_24_ln_2() -> None:
    """Acceptance row 24: the gap of the logits from which float32's softmax is one-hot."""
    for dtype, gap in ((torch.float32, 16.6355), (torch.float64, 36.7368), (torch.float16, 7.6246)):
        for lead, expected in ((gap - 2e-3, 0.0), (gap + 6e-3, 1.0)):
            assert collapsed_share(torch.tensor([[lead, 0.0]], dtype=dtype)) == expected
    # To the last bit of the gap: 24 ln 2 = 16.635532...
    low, high = 16.0, 17.0
    for _ in range(40):
        middle = (low + high) / 2
        if collapsed_share(torch.tensor([[0.0, middle]])):
            high = middle
        else:
            low = middle
    assert high == pytest.approx(24 * math.log(2), abs=2e-6)
    assert high == pytest.approx(16.6355, abs=5e-5)


def test_a_collapsed_sample_has_no_gradient() -> None:
    """Brute force: the share of the rows on which cross-entropy's gradient is exactly 0."""
    random = np.random.RandomState(0)
    logits = torch.from_numpy(10 * random.randn(400, 4)).float().requires_grad_()
    winners = logits.detach().argmax(1)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, winners, reduction="sum"), logits)
    softmax = torch.softmax(logits.detach(), 1)
    one_hot = (softmax.gather(1, winners[:, None])[:, 0] == 1).double().mean()
    share = collapsed_share(logits)
    assert 0.05 < share < 0.95
    assert share == float(one_hot)
    dead = (gradient.gather(1, winners[:, None])[:, 0] == 0).double().mean()
    assert share == float(dead)


def test_stablemax_refuses() -> None:
    for logits, targets in (
        (torch.ones(3), torch.ones(3, dtype=torch.int64)),
        (torch.ones(3, 2), torch.ones(2, dtype=torch.int64)),
        (torch.ones(3, 2), torch.ones(3, 2)),
    ):
        with pytest.raises(InputError, match=r"^logits, targets = .*\(batch, classes\) and"):
            stablemax_cross_entropy(logits, targets)
    for shape in ((3,), (3, 1), (0, 3), (2, 3, 4)):
        with pytest.raises(InputError, match=r"^logits = .*: \(batch, classes\), 2 or more; resh"):
            collapsed_share(torch.ones(shape))


# ------------------------------------------------------------------ orthogonal gradients


@given(
    size=st.integers(2, 12),
    scale=st.floats(-3, 3),
    alpha=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_orthogonal_gradient(size: int, scale: float, alpha: float, seed: int) -> None:
    """Norm kept; at alpha = 1 orthogonal and the formula of the paper; at 0 the gradient."""
    random = np.random.RandomState(seed)
    w, g = 10**scale * random.randn(size), random.randn(size)
    found = orthogonal_gradient(torch.from_numpy(w), torch.from_numpy(g), alpha).numpy()
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(g), rel=1e-12)
    rest = g - alpha * (w @ g) / (w @ w) * w
    np.testing.assert_allclose(
        found, rest * np.linalg.norm(g) / np.linalg.norm(rest), rtol=1e-9, atol=1e-9
    )
    full = orthogonal_gradient(torch.from_numpy(w), torch.from_numpy(g)).numpy()
    cosine = full @ w / np.linalg.norm(full) / np.linalg.norm(w)
    assert abs(cosine) < 1e-9
    g_o = g - (w @ g) / (w @ w + 1e-30) * w
    expected = g_o * np.linalg.norm(g) / (np.linalg.norm(g_o) + 1e-30)
    np.testing.assert_allclose(full, expected, rtol=1e-12, atol=1e-14)
    none = orthogonal_gradient(torch.from_numpy(w), torch.from_numpy(g), 0.0).numpy()
    np.testing.assert_allclose(none, g, rtol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orthogonal_gradient_at_the_edges(dtype: torch.dtype) -> None:
    """A zero parameter has no direction to take out; a zero gradient stays zero."""
    w, g = torch.tensor([3.0, 4.0], dtype=dtype), torch.tensor([1.0, 2.0], dtype=dtype)
    zero = torch.zeros(2, dtype=dtype)
    assert torch.equal(orthogonal_gradient(zero, g), g)
    assert torch.equal(orthogonal_gradient(w, zero), zero)
    for factor in (2.0, 2.0**30):  # exact in binary: nothing is left over
        assert torch.equal(orthogonal_gradient(w, factor * w), zero)
    half = orthogonal_gradient(w, 2 * w, 0.5)  # and with a part of it left, the norm comes back
    torch.testing.assert_close(half, 2 * w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_gradient_along_its_parameter_stays_finite_and_no_longer(
    size: int, dtype: torch.dtype
) -> None:
    """What rounding leaves of it is all there is to bring back to the norm of g."""
    for seed in range(50):
        w = normal(size, seed=seed).to(dtype)
        for scale in (1e-3, 1.0, 1e3):
            g = scale * w
            found = orthogonal_gradient(w, g)
            assert bool(torch.isfinite(found).all())
            norm = float(torch.linalg.vector_norm(g))
            assert float(torch.linalg.vector_norm(found)) <= norm * (1 + 1e-5)


def test_orthogonal_gradient_is_taken_tensor_by_tensor() -> None:
    parameters = [normal(3, 2, seed=1), normal(4, seed=2)]
    gradients = [normal(3, 2, seed=3), normal(4, seed=4)]
    (found,) = driven(get_stabiliser("orthogonal-gradient"), 1.0, parameters, [gradients])
    for p, g, new in zip(parameters, gradients, found, strict=True):
        assert abs(float((p * new).sum())) < 1e-12
        assert float(new.norm()) == pytest.approx(float(g.norm()), rel=1e-12)


# ------------------------------------------------------------------ Stable-SPAM


class ByHand:
    """The three parts of Stable-SPAM for one tensor, written from its description."""

    def __init__(self, maximum: float = 0.999, norm: float = 0.7, square: float = 0.9) -> None:
        self.rates = (maximum, norm, square)
        self.means = [0.0, 0.0, 0.0]
        self.t = 0

    def corrected(self, which: int, value: float) -> float:
        rate = self.rates[which]
        self.means[which] = rate * self.means[which] + (1 - rate) * value
        return self.means[which] / (1 - rate**self.t)

    def __call__(self, gradient: Array) -> Array:
        self.t += 1
        gradient = gradient.copy()
        largest = float(np.abs(gradient).max())
        bound = self.corrected(0, largest)
        for i in np.ndindex(gradient.shape):
            if abs(gradient[i]) > bound:
                gradient[i] = gradient[i] / largest * bound
        norm = math.sqrt(float((gradient**2).sum()))
        mean, square = self.corrected(1, norm), self.corrected(2, norm**2)
        if norm == 0:
            return gradient
        return gradient / norm * mean / (math.sqrt(square) + EPS)


@pytest.mark.parametrize("alpha", [1.0, 0.4])
@pytest.mark.parametrize(
    "options",
    [{}, {"maximum_decay": 0.9, "norm_decay": 0.85, "square_decay": 0.99999}, {"norm_decay": 0.0}],
    ids=naming,
)
def test_stable_spam_step_by_step(options: dict[str, float], alpha: float) -> None:
    """30 gradients of two tensors with spikes, and steps at which one of them is all zero."""
    random = np.random.RandomState(0)
    gradients = []
    for step in range(30):
        first, second = random.randn(3, 4), random.randn(5)
        if step in (0, 7, 8, 21):
            first[1, 2] = 300.0 * (-1) ** step
        if step in (3, 21):
            second[[0, 4]] = -40.0, 90.0
        if step in (2, 15):
            second[:] = 0.0
        gradients.append([torch.from_numpy(first), torch.from_numpy(second)])
    zeros = [torch.zeros(3, 4, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)]
    found = driven(get_stabiliser("stable-spam", **options), alpha, zeros, gradients)
    names = {"maximum_decay": "maximum", "norm_decay": "norm", "square_decay": "square"}
    rates = {names[key]: value for key, value in options.items()}
    rules = [ByHand(**rates), ByHand(**rates)]
    spikes = 0
    for step, (wanted, ours) in enumerate(zip(gradients, found, strict=True)):
        for rule, g, new in zip(rules, wanted, ours, strict=True):
            plain = g.numpy()
            expected = (1 - alpha) * plain + alpha * rule(plain)
            np.testing.assert_allclose(new.numpy(), expected, rtol=1e-12, atol=1e-15)
            ratio = np.abs(new.numpy()).max() / max(np.median(np.abs(new.numpy())), 1e-300)
            spikes += alpha == 1 and step in (7, 8, 21) and ratio > 200
    assert spikes == 0


def test_a_spike_is_held_at_the_running_maximum() -> None:
    """Only the entries above it: the others keep their size relative to each other."""
    calm = torch.tensor([1.0, -0.5, 0.25], dtype=torch.float64)
    spike = torch.tensor([1.0, -0.5, 100.0], dtype=torch.float64)
    found = driven(get_stabiliser("stable-spam"), 1.0, [calm], [[calm]] * 9 + [[spike]])
    last = found[-1][0].numpy()
    # After nine maxima of 1, the tenth mean is (1 - 0.999^9 + ...) / (1 - 0.999^10).
    bound = (0.999 * (1 - 0.999**9) + 0.001 * 100) / (1 - 0.999**10)
    np.testing.assert_allclose(last / last[0], [1, -0.5, bound], rtol=1e-12)
    np.testing.assert_allclose(found[0][0] / found[0][0][0], calm, rtol=1e-12)


def least_squares() -> tuple[Array, Array]:
    """Eight samples of three features; one is an outlier."""
    random = np.random.RandomState(5)
    inputs = random.randn(8, 3)
    inputs[4] *= 30
    return inputs, random.randn(8, 1)


@dataclass(frozen=True)
class Line(Bowl):
    """Linear regression, two samples at a time."""

    name: ClassVar[str] = "line"
    batch: ClassVar[int | None] = 2

    def module(self, seed: int) -> nn.Module:
        layer = nn.Linear(3, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[0.3, -0.2, 0.1]]))
        return layer

    def train_data(self) -> tuple[Tensor, Tensor]:
        inputs, targets = least_squares()
        return torch.from_numpy(inputs), torch.from_numpy(targets)


def test_stable_spam_resets_at_whole_periods() -> None:
    setting = Setting(nn.Module(), [], "", MEAN_SQUARED_ERROR, Optimiser("sgd", 0.1), 1)
    for period, expected in ((0, []), (1, [1, 2, 3, 4, 5, 6]), (3, [3, 6])):
        action = get_stabiliser("stable-spam", reset_every=period).start(setting, 1.0)
        assert [step for step in range(7) if action.begin(step)] == expected


@pytest.mark.parametrize("reset_every", [0, 1, 7])
def test_stable_spam_with_adamw(reset_every: int) -> None:
    """30 steps in numpy: spikes, decoupled decay, and moments with their bias begun anew."""
    lr, wd, b1, b2 = 0.02, 0.5, 0.9, 0.999
    stabiliser = {"name": "stable-spam", "reset_every": reset_every}
    table = bench(Line(), dtype="float64", optimiser="adamw", stabiliser=stabiliser)
    trajectory = Trajectory(table, Point(lr, 1.0, wd), 1, 3)
    inputs, targets = least_squares()
    w = np.array([[0.3, -0.2, 0.1]], dtype=np.float32).astype(np.float64)
    rule = ByHand()
    m, v, age = np.zeros_like(w), np.zeros_like(w), 0
    for step in range(30):
        if reset_every and step and step % reset_every == 0:
            m, v, age = np.zeros_like(w), np.zeros_like(w), 0
        rows = table.batch(3, step)
        assert isinstance(rows, Tensor)
        x, y = inputs[rows.numpy()], targets[rows.numpy()]
        g = rule(2 / 2 * (x @ w.T - y).T @ x)
        m, v, age = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2, age + 1
        d = m / (1 - b1**age) / (np.sqrt(v / (1 - b2**age)) + 1e-8)
        w = (1 - lr * wd) * w - lr * d
        trajectory.step(rows)
        found = trajectory.parameters[0].detach().numpy()
        np.testing.assert_allclose(found, w, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(trajectory.slots[0][0].numpy(), m, rtol=1e-9, atol=1e-12)
        assert (trajectory.count, trajectory.age) == (step + 1, age)


# ------------------------------------------------------------------ orthogonal convolutions


def shifted_correlations(kernel: Array, stride: int) -> float:
    """Sum over shifts by the stride of ||<K_i, shifted K_j> - [shift = 0, i = j]||^2."""
    outputs, inputs, side, _ = kernel.shape
    total = 0.0
    for a in range(-side + 1, side):
        for b in range(-side + 1, side):
            if a % stride or b % stride:
                continue
            for i in range(outputs):
                for j in range(outputs):
                    inner = 0.0
                    for r in range(side):
                        for s in range(side):
                            if 0 <= r + a < side and 0 <= s + b < side:
                                inner += float(kernel[i, :, r, s] @ kernel[j, :, r + a, s + b])
                    total += (inner - float(a == b == 0 and i == j)) ** 2
    surplus: int = max(outputs - inputs * stride * stride, 0)
    return total - surplus


def circular_matrix(kernel: Array, size: int, stride: int) -> Array:
    """The layer on size x size images with circular padding, as a matrix."""
    outputs, inputs, side, _ = kernel.shape
    places = size // stride
    matrix = np.zeros((outputs, places, places, inputs, size, size))
    for p in range(places):
        for q in range(places):
            for r in range(side):
                for s in range(side):
                    y, x = (p * stride + r) % size, (q * stride + s) % size
                    matrix[:, p, q, :, y, x] += kernel[:, :, r, s]
    return matrix.reshape(outputs * places**2, inputs * size**2)


SHAPES = [
    (2, 3, 3, 1),
    (3, 3, 2, 1),
    (5, 2, 3, 1),
    (3, 1, 3, 2),
    (4, 2, 2, 2),
    (6, 1, 3, 2),  # more outputs than C S^2 = 4
    (2, 2, 1, 2),
    (3, 1, 1, 1),
    (2, 1, 4, 3),
]


@pytest.mark.parametrize(("m", "c", "k", "s"), SHAPES)
def test_penalty_is_the_distance_from_an_orthogonal_matrix(m: int, c: int, k: int, s: int) -> None:
    """||A A^T - I||^2 of the whole circular layer, or of its columns where there are fewer."""
    kernel = np.random.RandomState(m + 10 * k).randn(m, c, k, k) / 2
    found = float(orthogonality_penalty(torch.from_numpy(kernel), s))
    assert found == pytest.approx(shifted_correlations(kernel, s), rel=1e-11)
    size = s * math.ceil((2 * k - 1) / s)  # no kernel meets itself around the corner
    matrix = circular_matrix(kernel, size, s)
    places = (size // s) ** 2
    rows, columns = matrix.shape
    square = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    distance_ = ((square - np.eye(len(square))) ** 2).sum() / places
    assert found == pytest.approx(distance_, rel=1e-9)


def delta(m: int, c: int, k: int, places: list[tuple[int, int, int]]) -> Tensor:
    """Kernel i is 1 at (channel, row, column) and 0 elsewhere."""
    kernel = torch.zeros(m, c, k, k, dtype=torch.float64)
    for i, (channel, row, column) in enumerate(places):
        kernel[i, channel, row, column] = 1
    return kernel


def orthogonal(m: int, c: int) -> Tensor:
    """(m, c) with orthonormal rows, or columns where m > c."""
    q: Tensor = torch.linalg.qr(normal(max(m, c), min(m, c))).Q
    return (q if m >= c else q.T)[:, :, None, None]


ORTHOGONAL: dict[str, tuple[Tensor, int]] = {
    "1 x 1": (orthogonal(3, 3), 1),
    "1 x 1, wide": (orthogonal(2, 5), 1),
    "1 x 1, tall": (orthogonal(5, 2), 1),
    "identity": (delta(2, 2, 3, [(0, 1, 1), (1, 1, 1)]), 1),
    "permuted and shifted": (delta(3, 3, 3, [(2, 0, 2), (0, 1, 1), (1, 2, 0)]), 1),
    "fewer outputs": (delta(2, 3, 2, [(2, 0, 1), (0, 1, 1)]), 1),
    "space to depth": (delta(4, 1, 2, [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)]), 2),
    "1 x 1, then a shift": (
        torch.einsum(
            "ij,jcrs->icrs",
            orthogonal(3, 3)[..., 0, 0],
            delta(3, 3, 3, [(2, 0, 2), (0, 1, 1), (1, 2, 0)]),
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", ORTHOGONAL)
def test_an_orthogonal_layer_has_no_penalty(name: str) -> None:
    """And any other has one: twice the kernel, and half of it."""
    kernel, stride = ORTHOGONAL[name]
    assert abs(float(orthogonality_penalty(kernel, stride))) < 1e-12
    matrix = circular_matrix(kernel.numpy(), 6, stride)
    square = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(square, np.eye(len(square)), atol=1e-12)
    for factor in (0.5, 0.99, 1.01, 2.0):
        assert float(orthogonality_penalty(factor * kernel, stride)) > 1e-5


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    scale=st.floats(-2, 0.5),
    seed=st.integers(0, 2**31),
)
def test_penalty_is_never_negative(
    shape: tuple[int, int, int], stride: int, scale: float, seed: int
) -> None:
    m, c, k = shape
    kernel = 10**scale * normal(m, c, k, k, seed=seed)
    assert float(orthogonality_penalty(kernel, stride)) >= -1e-12 * m


def test_orthogonal_convolution_adds_the_penalty_of_each_layer() -> None:
    """Layer `first` has stride 1 and `second` 2; the linear layer is left alone."""
    point = Point(0.1, 0.7, 0.0)
    for layers in (None, ["second"]):
        stabiliser = {"name": "orthogonal-convolution", "layers": layers}
        table = bench(Pictures(), dtype="float64", stabiliser=stabiliser)
        trajectory = Trajectory(table, point, 1, 3)
        rows = table.batch(3, 0)
        before = [p.detach().clone() for p in trajectory.parameters]
        loss = F.cross_entropy(trajectory.module(table.inputs[rows]), table.targets[rows])
        gradients = torch.autograd.grad(loss, trajectory.parameters)
        reported = trajectory.step(rows)
        assert float(reported) == float(loss.detach())
        for i, (old, g, new) in enumerate(
            zip(before, gradients, trajectory.parameters, strict=True)
        ):
            expected = old - 0.1 * g
            if i == 2 or (i == 0 and layers is None):
                expected = expected - 0.1 * 0.7 * slope_of_penalty(old, 1 if i == 0 else 2)
            torch.testing.assert_close(new.detach(), expected, rtol=1e-7, atol=1e-9)


def slope_of_penalty(kernel: Tensor, stride: int) -> Tensor:
    """Central differences of the brute-force sum, which is a polynomial of degree 4."""
    result = torch.zeros_like(kernel)
    for entry in np.ndindex(*kernel.shape):
        ends = []
        for sign in (1, -1):
            moved = kernel.numpy().copy()
            moved[entry] += sign * 1e-4
            ends.append(shifted_correlations(moved, stride))
        result[entry] = (ends[0] - ends[1]) / 2e-4
    return result


def test_penalty_refuses() -> None:
    for shape in ((2, 3), (2, 3, 3), (2, 3, 3, 2), (1, 1, 1, 1, 1)):
        with pytest.raises(InputError, match=r"^kernel = .*: \(M, C, k, k\), square; use another"):
            orthogonality_penalty(torch.ones(shape))
    with pytest.raises(InputError, match="stride = 0: stride >= 1; use 1"):
        orthogonality_penalty(torch.ones(1, 1, 2, 2), 0)


def test_a_single_number_has_no_orthogonal_direction() -> None:
    """Its projected gradient is a rounding error, which would come back with the norm of g."""
    gradient = torch.tensor([0.3])
    assert torch.equal(orthogonal_gradient(torch.tensor([0.7]), gradient), gradient)


def test_squared_error_of_a_convolution_has_the_gradient_of_its_value() -> None:
    """The mean goes over samples and positions alike."""
    generator = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(2, 2, 3, 4, 5, generator=generator, dtype=torch.float64)
    outputs.requires_grad_()
    (expected,) = torch.autograd.grad(SQUARED_ERROR.value(outputs, targets), outputs)
    assert SQUARED_ERROR.output_gradient is not None
    torch.testing.assert_close(SQUARED_ERROR.output_gradient(outputs, targets), expected)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_spectra_in_float32_with_a_wide_spectrum(size: float) -> None:
    """A Gram matrix in float32 loses the identity beside its largest entries."""
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(20, 12, generator=generator, dtype=torch.float64))
    sigma = size * torch.logspace(0, -8, 12, dtype=torch.float64)
    found = soft_spectral_clip((left @ torch.diag(sigma) @ right.T).float(), 1.0)
    expected = left @ torch.diag(sigma / torch.sqrt(1 + sigma**2)) @ right.T
    assert found.dtype == torch.float32
    # The matrix itself is rounded to float32, which moves singular values by size x roundoff.
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6 + 3e-7 * size)


@pytest.mark.parametrize(
    ("stabiliser", "known"),
    [
        ("stability", True),
        ("clip-norm", True),
        ("spectra", True),
        ({"name": "spectra", "aspect": True}, False),
        ("stable-spam", False),
        ("orthogonal-gradient", False),
    ],
)
def test_sharpness_decides_only_where_its_threshold_holds(stabiliser: Any, known: bool) -> None:
    task = get_task("mnist-mlp", samples=20, width=4)
    plain, stabilised = evaluate(
        [Point(0.05, 0.0), Point(0.05, 0.5)], task, steps=20, stabiliser=stabiliser
    )
    assert plain.replicates[0].evidence["sharpness_ratio"] is not None
    assert (stabilised.replicates[0].evidence["sharpness_ratio"] is not None) == known
