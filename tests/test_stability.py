"""The stability regulariser against singular value decompositions and double backpropagation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from toys import Bowl

from trainables.domain import InputError, Point, Training
from trainables.dynamics.layers import as_matrix, from_matrix, largest_singular_value
from trainables.dynamics.optimisers import Optimiser
from trainables.dynamics.stabilisers import (
    Action,
    Setting,
    Step,
    get_stabiliser,
    strength_mistakes,
)
from trainables.dynamics.stabilisers.stability import Product, excess, one_step_matrix
from trainables.dynamics.stabilisers.stability_reference import FullProduct
from trainables.losses import (
    ABSOLUTE_ERROR,
    CROSS_ENTROPY,
    MEAN_SQUARED_ERROR,
    SQUARED_ERROR,
    Loss,
)
from trainables.tasks import Task, get_task
from trainables.tasks.mnist_regression import MnistRegression
from trainables.trajectory import Bench, Trajectory

Order = Literal["left", "right"]
Decay = Literal["coupled", "decoupled"]
Rule = tuple[Literal["sgd", "nesterov", "adam", "rmsprop", "adadelta"], float]
RULES: tuple[Rule, ...] = (
    ("sgd", 0.0),
    ("sgd", 0.9),
    ("nesterov", 0.9),
    ("adam", 0.9),
    ("rmsprop", 0.9),
    ("adadelta", 0.0),
)
#: Every combination of product order and program: all the same where d = 1.
VARIANTS: tuple[dict[str, Any], ...] = (
    {"name": "stability"},
    {"name": "stability", "order": "right"},
    {"name": "stability-reference", "order": "left"},
    {"name": "stability-reference"},
)


def naming(value: object) -> str:
    """Ids of parametrised tests."""
    if isinstance(value, dict):
        return "-".join(str(part) for part in value.values())
    if isinstance(value, tuple):
        return f"{value[0]}-{value[1]}"
    return str(getattr(value, "name", value))


# ------------------------------------------------------------------ the closed form


def block(a: float, s: Tensor) -> Tensor:
    """[[a I, S], [0, I]]."""
    m, n = s.shape
    eye = torch.eye(m + n, dtype=s.dtype)
    return torch.cat([torch.cat([a * eye[:m, :m], s], 1), eye[m:]])


def random_products() -> list[tuple[float, Tensor, Tensor]]:
    """400 products of one-step matrices, new factors on the left: (a, S, whole product)."""
    random = np.random.RandomState(0)
    cases = []
    for _ in range(400):
        m, n = random.randint(1, 40), random.randint(1, 6)
        d = random.choice([1.0, 0.999, 0.9, 0.5, 0.0, 1.05])
        scale = 10 ** random.uniform(-4, 2)
        product = torch.eye(m + n, dtype=torch.float64)
        for _ in range(random.randint(1, 30)):
            product = block(d, torch.from_numpy(scale * random.randn(m, n))) @ product
        cases.append((float(product[0, 0]), product[:m, m:], product))
    return cases


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-5)], ids=["f64", "f32"]
)
def test_norm_of_400_random_products(dtype: torch.dtype, tolerance: float) -> None:
    """Acceptance row 1: sigma_1 from a and S alone, against the decomposition of all of C."""
    seen = set()
    for a, s, product in random_products():
        sigma = 1 + excess(largest_singular_value(s.to(dtype)), a)
        assert sigma.dtype == dtype
        exact = float(torch.linalg.svdvals(product)[0])
        assert float(sigma) == pytest.approx(exact, rel=tolerance, abs=0)
        seen.add((a > 1) - (a < 1))
    assert seen == {-1, 0, 1}


def exact_excess(s: float, a: float) -> Decimal:
    with localcontext() as context:
        context.prec = 60
        big_s, big_a = Decimal(s), Decimal(a)
        wide = ((1 + big_a) ** 2 + big_s**2).sqrt()
        narrow = ((1 - big_a) ** 2 + big_s**2).sqrt()
        return (wide + narrow) / 2 - 1


@given(s=st.floats(1e-9, 1e4), a=st.one_of(st.just(1.0), st.floats(-3, 3), st.floats(0.999, 1.001)))
def test_excess_keeps_its_digits(s: float, a: float) -> None:
    """Also where lr x weight_decay > 1 makes a alternate in sign."""
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-5)):
        rounded = float(torch.tensor(s, dtype=dtype))
        value = float(excess(torch.tensor(rounded, dtype=dtype), a))
        assert value == pytest.approx(float(exact_excess(rounded, a)), rel=tolerance, abs=0)


def test_excess_of_a_small_displacement_in_float32() -> None:
    """Acceptance row 2: the plain difference sigma_1 - 1 would be 7% or 100% wrong here."""
    assert float(excess(torch.tensor(1e-5))) == pytest.approx(5.0000125e-6, rel=1e-6)
    assert float(excess(torch.tensor(1e-7))) == pytest.approx(5.0e-8, rel=1e-6)


@pytest.mark.parametrize("a", [0.0, 0.5, 1.0, -1.0])
def test_without_displacement_nothing_is_in_excess(a: float) -> None:
    assert float(excess(torch.tensor(0.0), a)) == 0


@pytest.mark.parametrize("a", [1e200, -1e200, math.inf])
def test_a_decay_that_overflows_is_infinite(a: float) -> None:
    """lr x weight_decay > 2 blows up; that is for the verdict to say, not for an exception."""
    assert float(excess(torch.tensor(1.0), a)) == math.inf


def test_gradient_of_the_norm() -> None:
    """Acceptance row 3: by V, against autograd through the singular values of C, in float64."""
    random = np.random.RandomState(1)
    for _ in range(100):
        m, n = random.randint(1, 20), random.randint(1, 6)
        a = random.choice([1.0, 0.9, 0.5, 0.0, 1.05])
        s = torch.from_numpy(10 ** random.uniform(-2, 2) * random.randn(m, n))
        ours, theirs = s.clone().requires_grad_(), s.clone().requires_grad_()
        excess(largest_singular_value(ours), a).backward()  # type: ignore[no-untyped-call]
        torch.linalg.svdvals(block(a, theirs))[0].backward()
        assert ours.grad is not None
        assert theirs.grad is not None
        error = torch.linalg.norm(ours.grad - theirs.grad) / torch.linalg.norm(theirs.grad)
        assert float(error) < 1e-7


@pytest.mark.parametrize("shape", [(11, 1), (33, 10)])
def test_at_zero_displacement_the_gradient_is_zero(shape: tuple[int, int]) -> None:
    update = torch.zeros(shape, requires_grad=True)
    value = Product("left", 1.0).penalty([update.T])
    (gradient,) = torch.autograd.grad(value, update)
    assert float(value.detach()) == 0
    assert torch.equal(gradient, torch.zeros(shape))
    for decay in (1.0, 0.5, 0.0, -1.0):
        assert torch.equal(Product("left", decay).pull([update.T])[0].T, torch.zeros(shape))


def test_one_step_matrix() -> None:
    theta, update = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.5], [-4.0]])
    state = torch.cat([theta, torch.ones(1, 1)])
    moved = one_step_matrix(update, 0.9) @ state
    assert torch.equal(moved, torch.tensor([[1.4], [-2.2], [1.0]]))
    assert torch.equal(one_step_matrix(update) @ state, torch.tensor([[1.5], [-2.0], [1.0]]))


@given(
    order=st.sampled_from(["left", "right"]),
    d=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.0, 1.05, -0.5, -1.2]),
    m=st.integers(1, 7),
    n=st.integers(1, 9),
    length=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
def test_product_of_updates(order: Order, d: float, m: int, n: int, length: int, seed: int) -> None:
    """Pair (a, S) and whole matrix alike follow the explicit product, n > m included.

    So do their values and derivatives one update ahead.
    """
    random = np.random.RandomState(seed)
    updates = [torch.from_numpy(random.randn(m, n)) for _ in range(length)]
    pair, full = Product(order, d), FullProduct(order, d)
    c = torch.eye(m + n, dtype=torch.float64)
    for update in updates:
        leaf = update.clone().requires_grad_()
        one = block(d, leaf)
        ahead = one @ c if order == "left" else c @ one
        sigma = torch.linalg.svdvals(ahead)[0]
        (slope,) = torch.autograd.grad(sigma, leaf)
        c = ahead.detach()
        expected = max(float(sigma.detach()) - 1, 0.0)
        for product in (pair, full):
            assert float(product.penalty([update.T])) == pytest.approx(
                expected, rel=1e-11, abs=1e-14
            )
            (pull,) = product.pull([update.T], 2.5)
            torch.testing.assert_close(pull.T, 2.5 * slope, rtol=1e-6, atol=1e-9)
            product.accumulate([update.T])
        torch.testing.assert_close(
            pair.state()["displacement.0"].T, c[:m, m:], rtol=1e-12, atol=1e-12
        )
        assert float(pair.state()["factor"]) == pytest.approx(float(c[0, 0]), rel=1e-12)
        torch.testing.assert_close(full.state()["product"], c, rtol=1e-12, atol=1e-12)


def test_left_fades_old_updates_and_right_fades_new_ones() -> None:
    first, second = torch.tensor([[1.0]]), torch.tensor([[16.0]])
    found = {}
    for order in ("left", "right"):
        product = Product(order, 0.5)
        for update in (first, second):
            product.accumulate([update])
        found[order] = float(product.state()["displacement.0"])
    assert found == {"left": 0.5 * 1 + 16, "right": 1 + 0.5 * 16}


@pytest.mark.parametrize("order", ["left", "right"])
@pytest.mark.parametrize("kind", [Product, FullProduct])
def test_a_blown_up_update_gives_no_number(kind: type[Product], order: Order) -> None:
    """A decomposition of it would raise instead."""
    update = torch.ones(3, 2)
    update[1, 1] = math.inf
    assert math.isnan(float(kind(order, 1.0).penalty([update.T])))


# ------------------------------------------------------------------ one step, by hand


class Net(nn.Module):
    """Two layers with a tanh between them."""

    def __init__(self, hidden: nn.Module, output: nn.Module, inputs: tuple[int, ...]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.hidden, self.output = hidden.double(), output.double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.inputs = torch.randn(6, *inputs, generator=generator, dtype=torch.float64)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.output(torch.tanh(self.hidden(inputs)))
        return outputs


def dense(outputs: int, bias: bool = True) -> Net:
    """4 - 5 - outputs."""
    return Net(nn.Linear(4, 5), nn.Linear(5, outputs, bias=bias), (4,))


def convolutional(**options: Any) -> Net:
    """Two convolutions on 6 x 7 images; `options` are those of the last."""
    output = nn.Conv2d(4, 3 if options.get("groups", 1) == 1 else 2, (3, 2), **options)
    return Net(nn.Conv2d(1, 4, 2), output, (1, 6, 7))


def updated(rule: Optimiser, parameter: Tensor, gradient: Tensor, slots: list[Tensor]) -> Tensor:
    """The optimisers of torch written out once more, for the second step of a training."""
    lam = rule.weight_decay
    shrink = 1.0
    if rule.decay == "coupled":
        gradient = gradient + lam * parameter
    else:
        shrink = 1 - rule.lr * lam
    direction = gradient
    b1, b2, eps = rule.momentum, rule.beta2 or 0.0, rule.eps or 0.0
    if rule.name == "adam":
        m = (b1 * slots[0] + (1 - b1) * gradient) / (1 - b1**2)
        v = (b2 * slots[1] + (1 - b2) * gradient**2) / (1 - b2**2)
        direction = m / (v**0.5 + eps)
    elif rule.name == "rmsprop":
        v = b2 * slots[0] + (1 - b2) * gradient**2
        direction = b1 * slots[1] + gradient / (v**0.5 + eps)
    elif rule.name == "adadelta":
        v = b2 * slots[0] + (1 - b2) * gradient**2
        direction = ((slots[1] + eps) / (v + eps)) ** 0.5 * gradient
    elif rule.momentum:
        buffer = rule.momentum * slots[0] + gradient
        direction = gradient + rule.momentum * buffer if rule.name == "nesterov" else buffer
    return shrink * parameter - rule.lr * direction


def random_like(tensors: Sequence[Tensor], scale: float, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in tensors]


def started(net: nn.Module, loss: Loss, rule: Optimiser, alpha: float, **options: Any) -> Action:
    """A regulariser at its anchor, on the layer `output` unless told otherwise."""
    setting = Setting(net, list(net.parameters()), "output", loss, rule, 4)
    return get_stabiliser(**{"name": "stability", **options}).start(setting, alpha)


def second_step(net: Net, loss: Loss, rule: Optimiser) -> tuple[Step, list[Tensor]]:
    """What the regulariser sees at the second step, and what the first one added."""
    parameters = list(net.parameters())
    outputs = net(net.inputs)
    if loss is CROSS_ENTROPY:
        targets = torch.arange(6) % outputs.shape[1]
    else:
        (targets,) = random_like([outputs], 1.0, 6)
    slots = [
        tuple(abs(t) for t in random_like([p] * len(rule.init(p)), 0.3, 7 + i))
        for i, p in enumerate(parameters)
    ]
    step = Step(loss.value(outputs, targets), parameters, slots, 1, outputs, targets)
    return step, random_like(parameters, 0.1, 8)


def regularised(
    net: Net, loss: Loss, rule: Optimiser, alpha: float, **options: Any
) -> tuple[Tensor, ...]:
    """Gradients at the second step."""
    action = started(net, loss, rule, alpha, **options)
    step, way = second_step(net, loss, rule)
    action.moved([torch.zeros_like(p) for p in way], way)
    return action.gradients(step)


def joint(order: Order, d: float, first: Tensor, second: Tensor) -> Tensor:
    """The product of the first two updates of a layer."""
    old, new = block(d, first), block(d, second)
    return new @ old if order == "left" else old @ new


def tall(tensors: Sequence[Tensor]) -> Tensor:
    """Weight and bias as rows of input features."""
    return torch.cat([t.reshape(len(t), -1).T if t.ndim > 1 else t[None] for t in tensors])


def through_svd(
    net: Net, loss: Loss, rule: Optimiser, alpha: float, order: Order = "left", d: float = 1.0
) -> list[Tensor]:
    """Gradients of L + alpha (sigma_1(C) - 1) by double backpropagation through everything."""
    step, way = second_step(net, loss, rule)
    parameters = list(step.parameters)
    first = torch.autograd.grad(step.loss, parameters, create_graph=True)
    layer = range(2, len(parameters))
    moves = [
        updated(rule, parameters[i], first[i], list(step.slots[i])) - d * parameters[i]
        for i in layer
    ]
    c = joint(order, d, tall([way[i] for i in layer]), tall(moves))
    total = step.loss + alpha * (torch.linalg.svdvals(c)[0] - 1)
    return list(torch.autograd.grad(total, parameters, materialize_grads=True))


def assert_all_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


ANALYTIC = [
    (MEAN_SQUARED_ERROR, 1),
    (MEAN_SQUARED_ERROR, 3),
    (SQUARED_ERROR, 3),
    (SQUARED_ERROR, 9),  # n > m
    (ABSOLUTE_ERROR, 1),
    (ABSOLUTE_ERROR, 3),
]


@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[-1]], ids=naming)
@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
@pytest.mark.parametrize("rule", RULES, ids=naming)
@pytest.mark.parametrize(("loss", "outputs"), ANALYTIC, ids=naming)
def test_gradients_equal_double_backpropagation(
    loss: Loss, outputs: int, rule: Rule, decay: Decay, variant: dict[str, Any]
) -> None:
    """The update as a function of all parameters, at a step with momentum and history.

    One backward pass or two, pair on the left or whole matrix on the right: the same gradient.
    """
    optimiser = Optimiser(rule[0], 0.05, 0.4, 1, rule[1], decay)
    found = regularised(dense(outputs), loss, optimiser, 2.5, mode="analytic", **variant)
    assert_all_close(found, through_svd(dense(outputs), loss, optimiser, 2.5))


@pytest.mark.parametrize("variant", VARIANTS, ids=naming)
@pytest.mark.parametrize("rule", RULES, ids=naming)
def test_tracked_decay_equals_double_backpropagation(rule: Rule, variant: dict[str, Any]) -> None:
    """d = 1 - lr x weight_decay: V is the rest of the step, and the orders differ."""
    optimiser = Optimiser(rule[0], 0.05, 6.0, 1, rule[1], "decoupled")
    order: Order = variant.get("order", "left" if variant["name"] == "stability" else "right")
    found = regularised(dense(3), SQUARED_ERROR, optimiser, 2.5, track_decay=True, **variant)
    assert_all_close(found, through_svd(dense(3), SQUARED_ERROR, optimiser, 2.5, order, 0.7))
    other: Order = "right" if order == "left" else "left"
    swapped = through_svd(dense(3), SQUARED_ERROR, optimiser, 2.5, other, 0.7)
    assert not torch.allclose(found[2], swapped[2], rtol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"stride": 2},
        {"stride": (1, 2), "padding": (2, 1)},
        {"dilation": 2},
        {"stride": 2, "padding": 1, "dilation": (1, 2)},
    ],
    ids=lambda o: ",".join(o) or "plain",
)
@pytest.mark.parametrize("rule", RULES[:4], ids=naming)
@pytest.mark.parametrize("loss", [MEAN_SQUARED_ERROR, ABSOLUTE_ERROR], ids=naming)
def test_convolutional_last_layer(loss: Loss, rule: Rule, options: dict[str, Any]) -> None:
    """V from the patches under the kernel, against autograd through the convolution itself."""
    optimiser = Optimiser(rule[0], 0.05, 0.4, 1, rule[1])
    found = regularised(convolutional(**options), loss, optimiser, 2.5)
    assert_all_close(found, through_svd(convolutional(**options), loss, optimiser, 2.5))


def test_linear_last_layer_without_bias() -> None:
    found = regularised(dense(3, bias=False), SQUARED_ERROR, Optimiser("sgd", 0.05, 0.4), 2.5)
    expected = through_svd(dense(3, bias=False), SQUARED_ERROR, Optimiser("sgd", 0.05, 0.4), 2.5)
    assert_all_close(found, expected)


FALLBACKS: list[dict[str, Any]] = [
    {"groups": 2},
    {"padding": 1, "padding_mode": "circular"},
    {"padding": "same", "dilation": 2},
]


@pytest.mark.parametrize("options", FALLBACKS, ids=lambda o: "-".join(map(str, o.values())))
def test_other_convolutions_take_the_generic_mode(options: dict[str, Any]) -> None:
    rule = Optimiser("adam", 0.05, momentum=0.9)
    runs = [
        regularised(convolutional(**options), MEAN_SQUARED_ERROR, rule, alpha, mode=mode)
        for alpha, mode in ((2.5, "auto"), (2.5, "generic"), (1e-9, "generic"))
    ]
    for auto, generic, none in zip(*runs, strict=True):
        assert torch.equal(auto, generic)
        upstream = auto is runs[0][0] or auto is runs[0][1]
        assert torch.allclose(auto, none) == upstream


def test_absolute_error_leaves_the_layer_itself_alone() -> None:
    """The sign of the error is locally constant, so the penalty reaches only earlier layers."""
    for loss, touched in ((ABSOLUTE_ERROR, False), (MEAN_SQUARED_ERROR, True)):
        weak, strong = (
            regularised(dense(1), loss, Optimiser("sgd", 0.05), alpha) for alpha in (1e-9, 10.0)
        )
        for i, (a, b) in enumerate(zip(weak, strong, strict=True)):
            layer = i in (2, 3)
            assert torch.allclose(a, b, rtol=1e-7) == (layer and not touched)


@pytest.mark.parametrize("layers", [("output",), ("hidden", "output")], ids=["one", "two"])
@pytest.mark.parametrize("order", ["left", "right"])
@pytest.mark.parametrize("d", [1.0, 0.7])
@pytest.mark.parametrize("rule", RULES, ids=naming)
@pytest.mark.parametrize("kind", ["dense", "convolutional", "reference"])
def test_generic_mode_by_hand(
    kind: str, rule: Rule, d: float, order: Order, layers: tuple[str, ...]
) -> None:
    """alpha dsigma_1/dV on each layer alone, V from a dry run of the step on the plain gradient."""
    loss = SQUARED_ERROR if kind == "convolutional" else CROSS_ENTROPY

    def make() -> Net:
        return convolutional() if kind == "convolutional" else dense(3)

    optimiser = Optimiser(rule[0], 0.05, 6.0, 1, rule[1], "decoupled")
    step, way = second_step(make(), loss, optimiser)
    plain = step.plain_gradients()
    expected = [g.clone() for g in plain]
    for name in layers:
        own = (0, 1) if name == "hidden" else (2, 3)
        moves = []
        for i in own:
            p = step.parameters[i].detach()
            moves.append(updated(optimiser, p, plain[i], list(step.slots[i])) - d * p)
        v = tall(moves).requires_grad_()
        c = joint(order, d, tall([way[i] for i in own]), v)
        (pull,) = torch.autograd.grad(torch.linalg.svdvals(c)[0], v)
        for i, part in zip(own, from_matrix(1.7 * pull, moves), strict=True):
            expected[i] += part
    options: dict[str, Any] = {
        "name": "stability-reference" if kind == "reference" else "stability",
        "mode": "generic",
        "layers": layers,
        "order": order,
        "track_decay": d < 1,
    }
    assert_all_close(regularised(make(), loss, optimiser, 1.7, **options), expected)


def test_several_layers_are_pulled_one_by_one() -> None:
    """In any order, and even where one of them alone would be analytic."""
    both, turned, first, last = (
        regularised(dense(3), SQUARED_ERROR, Optimiser("sgd", 0.05), 2.0, mode=mode, layers=layers)
        for mode, layers in (
            ("auto", ["hidden", "output"]),
            ("auto", ["output", "hidden"]),
            ("generic", "hidden"),
            ("generic", "output"),
        )
    )
    assert all(torch.equal(a, b) for a, b in zip(both, turned, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(both[:2], first[:2], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(both[2:], last[2:], strict=True))
    assert not any(torch.allclose(a, b) for a, b in zip(first, last, strict=True))


@pytest.mark.parametrize("variant", VARIANTS, ids=naming)
def test_adam_with_a_feature_that_is_zero_for_the_whole_batch(variant: dict[str, Any]) -> None:
    """A dead unit: gradient and second moment of its weight are 0, where sqrt has no slope."""
    net = dense(1)
    with torch.no_grad():
        for tensor in (net.hidden.weight, net.hidden.bias):
            assert isinstance(tensor, Tensor)
            tensor[0] = 0.0
    optimiser = Optimiser("adam", 0.05, momentum=0.9)
    action = started(net, MEAN_SQUARED_ERROR, optimiser, 1.0, **variant)
    step, _ = second_step(net, MEAN_SQUARED_ERROR, optimiser)
    zeros = [(torch.zeros_like(p), torch.zeros_like(p)) for p in net.parameters()]
    fresh = Step(step.loss, step.parameters, zeros, 0, step.outputs, step.targets)
    for gradient in action.gradients(fresh):
        assert bool(torch.isfinite(gradient).all())


# ------------------------------------------------------------------ along a training


def bench(task: Task, **settings: Any) -> Bench:
    return Bench.of(task, Training(**settings))


def flat(trajectory: Trajectory) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in trajectory.parameters])


def end(task: Task, point: Point, steps: int, **settings: Any) -> Tensor:
    """All parameters after some steps."""
    table = bench(task, **settings)
    trajectory = Trajectory(table, point, 1, seed=3)
    for step in range(steps):
        trajectory.step(table.batch(3, step))
    return flat(trajectory)


def small_mlp() -> Task:
    return get_task("mnist-mlp", samples=24, batch_size=6, loss_name="squared-error", width=8)


def small_tasks() -> list[Task]:
    return [
        get_task("mnist-regression", samples=24, batch_size=6),
        get_task("mnist-regression", samples=24, batch_size=6, loss_name="mean-squared-error"),
        small_mlp(),
    ]


@pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": 0.9}, {"optimiser": "nesterov"}, {"optimiser": "adam"}],
    ids=["sgd", "heavy-ball", "nesterov", "adam"],
)
@pytest.mark.parametrize("task", small_tasks(), ids=lambda t: f"{t.name}-{t.loss.name}")
def test_closed_form_repeats_the_reference(task: Task, settings: dict[str, Any]) -> None:
    """12 steps (3 epochs, never reset) with either program end at the same place."""
    lr = 1e-3 if settings.get("optimiser") == "adam" else 1e-2
    ours, reference, none = (
        end(task, Point(lr, alpha, 1e-3), 12, dtype="float64", stabiliser=name, **settings)
        for name, alpha in (("stability", 5.0), ("stability-reference", 5.0), ("stability", 0.0))
    )
    scale = float((ours - none).abs().max())
    assert scale > 1e-4
    assert float((ours - reference).abs().max()) < 1e-7 * scale


@pytest.mark.parametrize("mode", ["analytic", "generic"])
def test_orders_differ_only_with_tracked_decay(mode: str) -> None:
    def run(order: str, **options: Any) -> Tensor:
        stabiliser = {"name": "stability", "order": order, "mode": mode, **options}
        point = Point(0.1, 3.0, 1.0)
        return end(small_mlp(), point, 12, decay="decoupled", stabiliser=stabiliser)

    assert torch.equal(run("left"), run("right"))
    left, right = run("left", track_decay=True), run("right", track_decay=True)
    assert not torch.allclose(left, right)
    assert not torch.allclose(left, run("left"))


@pytest.mark.parametrize("order", ["left", "right"])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_closed_form_repeats_the_reference_with_tracked_decay(optimiser: str, order: str) -> None:
    ends = []
    for name, alpha in (("stability", 5.0), ("stability-reference", 5.0), ("stability", 0.0)):
        stabiliser = {"name": name, "order": order, "track_decay": True}
        settings = {"optimiser": optimiser, "decay": "decoupled", "stabiliser": stabiliser}
        ends.append(end(small_mlp(), Point(0.01, alpha, 5.0), 12, dtype="float64", **settings))
    scale = float((ends[0] - ends[2]).abs().max())
    assert scale > 1e-5
    assert float((ends[0] - ends[1]).abs().max()) < 1e-7 * scale


def displacement(state: dict[str, Tensor], layer: int = 0) -> Tensor:
    """S of a layer as a matrix."""
    return as_matrix([t for name, t in state.items() if name.startswith(f"{layer}.displacement")])


def layer_state(trajectory: Trajectory, name: str) -> NDArray[np.float64]:
    layer = trajectory.module.get_submodule(name)
    return np.vstack([layer.weight.detach().numpy().T, layer.bias.detach().numpy()[None]])  # type: ignore[operator]


@pytest.mark.parametrize("name", ["stability", "stability-reference"])
@pytest.mark.parametrize(("anchor", "period"), [("never", 100), ("epoch", 4), (3, 3), (1, 1)])
def test_displacement_is_the_way_from_the_anchor(anchor: str | int, period: int, name: str) -> None:
    """The actual steps, the regulariser's own pull included; an epoch has 4 steps here."""
    # The reference decomposes (m + n) x (m + n) matrices: too slow for 785 inputs.
    layers = ["hidden", "output"] if name == "stability" else ["output"]
    stabiliser = {"name": name, "anchor": anchor, "layers": layers}
    table = bench(small_mlp(), dtype="float64", stabiliser=stabiliser, momentum=0.9)
    trajectory = Trajectory(table, Point(0.05, 3.0, 0.01), 1, seed=1)
    anchors: list[NDArray[np.float64]] = []
    for step in range(11):
        if step % period == 0:
            anchors = [layer_state(trajectory, layer) for layer in layers]
        trajectory.step(table.batch(1, step))
        assert trajectory.action is not None
        state = trajectory.action.state_dict()
        for i, layer in enumerate(layers):
            expected = layer_state(trajectory, layer) - anchors[i]
            m, n = expected.shape
            if name == "stability":
                found = displacement(state, i).numpy()
                assert float(state[f"{i}.factor"]) == 1
            else:
                product = state[f"{i}.product"].numpy()
                found = product[:m, m:]
                rest = product.copy()
                rest[:m, m:] = 0
                np.testing.assert_array_equal(rest, np.eye(m + n))
            np.testing.assert_allclose(found, expected, atol=1e-14)


@pytest.mark.parametrize("order", ["left", "right"])
def test_tracked_decay_multiplies_up_the_explicit_matrices(order: str) -> None:
    """Every step theta <- d theta + V of a training with adamw, d = 1 - lr x weight_decay."""
    lr, lam = 0.01, 30.0
    stabiliser = {"name": "stability", "order": order, "track_decay": True}
    table = bench(small_mlp(), dtype="float64", stabiliser=stabiliser, optimiser="adamw")
    trajectory = Trajectory(table, Point(lr, 3.0, lam), 1, seed=1)
    c = torch.eye(19, dtype=torch.float64)
    for step in range(8):
        before = torch.from_numpy(layer_state(trajectory, "output"))
        trajectory.step(table.batch(1, step))
        after = torch.from_numpy(layer_state(trajectory, "output"))
        one = block(1 - lr * lam, after - (1 - lr * lam) * before)
        c = one @ c if order == "left" else c @ one
        # The matrices act on the parameters as the training does.
        if order == "left":
            start = torch.from_numpy(layer_state(Trajectory(table, Point(lr), 1, 1), "output"))
            state = torch.cat([start, torch.eye(10, dtype=torch.float64)])
            torch.testing.assert_close((c @ state)[:9], after, rtol=1e-12, atol=1e-13)
    assert trajectory.action is not None
    found = trajectory.action.state_dict()
    torch.testing.assert_close(displacement(found), c[:9, 9:], rtol=1e-12, atol=1e-13)
    assert float(found["0.factor"]) == pytest.approx(0.7**8, rel=1e-12)


@pytest.mark.parametrize(
    ("alpha", "expected"), [(1.0, -3.231), (1.9, -0.095), (2.1, 0.0096), (0.0, -20.0)]
)
def test_sticky_threshold(alpha: float, expected: float) -> None:
    """Unit gradient, rate 0.01, 2000 steps: above alpha = 2 the layer cannot leave its anchor."""
    net = nn.Sequential()
    net.output = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    weight = net.output.weight
    rule = Optimiser("sgd", 0.01)
    with torch.no_grad():
        weight.zero_()
    action = started(net, CROSS_ENTROPY, rule, alpha)
    for count in range(2000):
        step = Step(weight.sum(), [weight], [()], count, weight, weight)
        (gradient,) = action.gradients(step)
        before = weight.detach().clone()
        with torch.no_grad():
            weight.copy_(rule.step(weight, gradient, (), count)[0])
        action.moved([before], [weight.detach()])
    if alpha > 2:
        assert abs(float(weight.detach())) <= 0.01 * alpha
    else:
        assert float(weight.detach()) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("variant", VARIANTS, ids=naming)
def test_state_goes_on(variant: dict[str, Any]) -> None:
    rule = Optimiser("sgd", 0.05)

    def gradients(action: Action, net: Net) -> Tensor:
        step, _ = second_step(net, SQUARED_ERROR, rule)
        return torch.cat([g.reshape(-1) for g in action.gradients(step)])

    nets = [dense(2) for _ in range(3)]
    one, other, fresh = (
        started(net, SQUARED_ERROR, rule, 2.0, anchor=2, **variant) for net in nets
    )
    way = random_like(list(nets[0].parameters()), 0.1, 8)
    one.moved([torch.zeros_like(p) for p in way], way)
    other.load_state_dict(one.state_dict())
    found = [gradients(a, n) for a, n in zip((one, other, fresh), nets, strict=True)]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    assert not one.begin(3)
    assert torch.equal(gradients(one, nets[0]), found[0])
    assert not one.begin(4)  # the anchor is due; the optimiser keeps its state
    assert torch.equal(gradients(one, nets[0]), found[2])


class _Wrapped(nn.Module):
    """A linear layer whose output is not the network's: a tanh comes after it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc3 = nn.Linear(784, 1, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(self.fc3(images.flatten(1)[:, :784]))


class _NotLast(MnistRegression):
    def module(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return _Wrapped()


@pytest.mark.parametrize("name", ["stability", "stability-reference"])
def test_a_layer_that_is_not_last_has_no_analytic_update(name: str) -> None:
    """The closed form of V would be wrong there: the generic mode takes over, exactly."""
    task = _NotLast(samples=20, batch_size=None)
    table = bench(task, dtype="float64", stabiliser=name)
    run = Trajectory(table, Point(0.01, 2.0), 1, 0)
    plain = Trajectory(table, Point(0.01, 0.0), 1, 0)
    before = flat(run).clone()
    plain.step(slice(None))
    run.step(slice(None))
    dry = flat(plain) - before
    s = dry.norm()
    pull = 0.5 * (1 + s / torch.sqrt(4 + s * s)) * dry / s
    expected = dry - 0.01 * 2.0 * pull
    torch.testing.assert_close(flat(run) - before, expected, rtol=1e-9, atol=1e-14)


def test_an_optimiser_that_cannot_be_differentiated_takes_the_generic_mode() -> None:
    auto, generic = (
        end(
            small_mlp(),
            Point(0.05, 2.0),
            8,
            optimiser="torch.optim.SGD",
            stabiliser={"name": "stability", "mode": mode},
        )
        for mode in ("auto", "generic")
    )
    assert torch.equal(auto, generic)


# ------------------------------------------------------------------ what is refused


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"mode": "magic"}, "stabiliser.mode = 'magic': unknown choice; use one of auto, analytic"),
    ({"order": "up"}, "stabiliser.order = 'up': unknown choice; use one of left, right"),
    ({"track_decay": 1}, "stabiliser.track_decay = 1: true or false"),
    ({"anchor": 0}, "stabiliser.anchor = 0: never, epoch or a number of steps >= 1; use never"),
    ({"anchor": "monthly"}, "stabiliser.anchor = 'monthly': never, epoch or a number of steps"),
    ({"anchor": True}, "stabiliser.anchor = True: never, epoch or a number of steps >= 1"),
    ({"anchor": 2.0}, "stabiliser.anchor = 2.0: never, epoch or a number of steps >= 1"),
    ({"layers": []}, "stabiliser.layers = (): names of layers, each once; leave it out"),
    ({"layers": 3}, "stabiliser.layers = 3: names of layers, each once; leave it out"),
    ({"layers": [3]}, "stabiliser.layers = (3,): names of layers, each once; leave it out"),
    ({"layers": ["a", "a"]}, "stabiliser.layers = ('a', 'a'): names of layers, each once"),
    ({"anchr": 2}, "stabiliser.anchr = 2: stability has no such option; did you mean anchor?"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS, ids=str)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        get_stabiliser("stability", **options)
    assert str(caught.value).startswith(message)


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        get_stabiliser("stability-reference", mode="a", order="b", anchor=-1, track_decay=None)
    fields = {mistake.field.removeprefix("stabiliser.") for mistake in caught.value.mistakes}
    assert fields == {"mode", "order", "anchor", "track_decay"}


@dataclass(frozen=True)
class _Pictures(Bowl):
    """A last layer that is a convolution."""

    options: tuple[tuple[str, Any], ...] = ()

    name: ClassVar[str] = "pictures"
    regularised_layer: ClassVar[str] = "output"

    def module(self, seed: int) -> nn.Module:
        return convolutional(**dict(self.options))

    def train_data(self) -> tuple[Tensor, Tensor]:
        return convolutional().inputs, torch.zeros(6, 3, 3, 5, dtype=torch.float64)


NOT_LAST = "not a linear or convolutional layer whose output is the network's; use mode: generic"
MISFITS: list[tuple[Task, dict[str, Any], str]] = [
    (
        get_task("mnist-mlp"),
        {"mode": "analytic"},
        "stabiliser.mode = 'analytic': the loss cross-entropy has no closed-form output gradient; "
        "use mode: generic, or a task with an absolute or squared error",
    ),
    (
        small_mlp(),
        {"mode": "analytic", "layers": "hidden"},
        f"stabiliser.mode = 'analytic': hidden: {NOT_LAST}",
    ),
    (
        small_mlp(),
        {"mode": "analytic", "layers": ["hidden", "output"]},
        f"stabiliser.mode = 'analytic': hidden, output: {NOT_LAST}",
    ),
    (
        _NotLast(samples=20, batch_size=None),
        {"mode": "analytic"},
        f"stabiliser.mode = 'analytic': fc3: {NOT_LAST}",
    ),
    *[
        (
            _Pictures(options=tuple(options.items())),
            {"mode": "analytic"},
            f"stabiliser.mode = 'analytic': output: {NOT_LAST}",
        )
        for options in FALLBACKS
    ],
    (
        small_mlp(),
        {"layers": ["output", "hiden", "tanh"]},
        "stabiliser.layers = 'hiden': the network has no Linear/Conv1d/Conv2d/Conv3d layer of this "
        "name; did you mean hidden? it has: hidden, output\n"
        "stabiliser.layers = 'tanh': the network has no Linear/Conv1d/Conv2d/Conv3d layer of this "
        "name; it has: hidden, output",
    ),
    (
        small_mlp(),
        {"track_decay": True},
        "stabiliser.track_decay = True: only decoupled weight decay is a factor on the parameters; "
        "set decay: decoupled, or leave track_decay out",
    ),
]


def complaints(task: Task, options: dict[str, Any], **settings: Any) -> str:
    training = Training(stabiliser={"name": "stability", **options}, **settings)
    return "\n".join(map(str, strength_mistakes("alpha", 1e9, task, training)))


@pytest.mark.parametrize(("task", "options", "message"), MISFITS, ids=naming)
def test_what_a_task_does_not_allow(task: Task, options: dict[str, Any], message: str) -> None:
    assert complaints(task, options) == message


@pytest.mark.parametrize(
    ("task", "options", "settings"),
    [
        (small_mlp(), {"mode": "analytic"}, {}),
        (small_mlp(), {"mode": "analytic", "layers": "output"}, {}),
        (small_mlp(), {"layers": ["hidden", "output"]}, {}),
        (_Pictures(), {"mode": "analytic"}, {}),
        (_Pictures(options=(("groups", 2),)), {}, {}),
        (Bowl(), {"mode": "analytic"}, {}),
        (get_task("one-layer-cnn"), {}, {}),
        (small_mlp(), {"track_decay": True}, {"decay": "decoupled"}),
        (small_mlp(), {"track_decay": True}, {"optimiser": "adamw"}),
    ],
    ids=naming,
)
def test_what_a_task_allows(task: Task, options: dict[str, Any], settings: dict[str, Any]) -> None:
    """Any strength is allowed too: alpha is the factor of a penalty."""
    assert complaints(task, options, **settings) == ""


def test_layer_matrix_of_the_product() -> None:
    """`moved` reads a layer as the matrix of its rows; a convolution's too."""
    net = convolutional()
    action = started(net, MEAN_SQUARED_ERROR, Optimiser("sgd", 0.1), 1.0)
    _, way = second_step(net, MEAN_SQUARED_ERROR, Optimiser("sgd", 0.1))
    action.moved([torch.zeros_like(p) for p in way], way)
    found = displacement(action.state_dict())
    assert torch.equal(found, as_matrix(way[2:]))
    assert found.shape == (4 * 3 * 2 + 1, 3)


@pytest.mark.parametrize("name", ["stability", "stability-reference"])
def test_a_network_of_one_layer_under_an_absolute_error(name: str) -> None:
    """Nothing is upstream and a sign has no slope: the penalty has no gradient at all."""
    task = Absolute((1.0, 0.5))
    ends = []
    for alpha in (0.0, 5.0):
        table = bench(task, dtype="float64", stabiliser={"name": name, "mode": "analytic"})
        trajectory = Trajectory(table, Point(0.01, alpha), 1, seed=1)
        for step in range(5):
            trajectory.step(table.batch(1, step))
        ends.append(torch.cat([p.detach().reshape(-1) for p in trajectory.parameters]))
    assert torch.equal(*ends)


class Absolute(Bowl):
    """A bowl with straight walls."""

    loss = ABSOLUTE_ERROR
