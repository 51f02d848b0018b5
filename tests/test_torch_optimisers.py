"""The perturbation of torch's own optimisers: laws of k, what is let through, what is refused."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, StepLR

from trainables.domain import InputError, StabmapError
from trainables.dynamics.dry_run import dry_run
from trainables.dynamics.perturbed_k import PerturbedK
from trainables.dynamics.torch_rule import TorchRule

Options = dict[str, Any]

#: Every class that takes dense gradients and no closure, with the branches that write differently.
CASES: tuple[tuple[str, Options], ...] = (
    ("SGD", {"lr": 0.05}),
    ("SGD", {"lr": 0.05, "weight_decay": 0.1, "maximize": False}),
    ("SGD", {"lr": 0.03, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.03, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("SGD", {"lr": torch.tensor(0.05)}),
    ("Adam", {"lr": 0.03}),
    ("Adam", {"lr": 0.03, "amsgrad": True, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.03, "weight_decay": 0.1}),
    ("NAdam", {"lr": 0.03}),
    ("NAdam", {"lr": 0.03, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("RAdam", {"lr": 0.03}),
    ("RAdam", {"lr": 0.03, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adamax", {"lr": 0.03, "weight_decay": 0.1}),
    ("Adagrad", {"lr": 0.3, "lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    ("Adadelta", {"lr": 2.0}),
    ("RMSprop", {"lr": 1e-3}),
    ("RMSprop", {"lr": 1e-3, "centered": True, "momentum": 0.5, "weight_decay": 0.1}),
    ("Rprop", {"lr": 0.013}),
    ("ASGD", {"lr": 0.05, "lambd": 0.01, "t0": 50.0, "weight_decay": 0.1}),
    ("Adafactor", {"lr": 0.05, "weight_decay": 0.1}),
    ("Muon", {"lr": 0.05, "momentum": 0.9}),
)
DTYPES = (torch.float32, torch.float64)
SHAPE = (10, 5)


def label(value: Any) -> str | None:
    if isinstance(value, dict):
        return "-".join(f"{key}={float(v):g}" for key, v in value.items())
    return str(value).removeprefix("torch.")


each_case = pytest.mark.parametrize(("name", "options"), CASES, ids=label)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=label)


def bowl(
    dtype: torch.dtype, seed: int = 0, device: str = "cpu"
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A start and the gradient of a convex function of 50 numbers that is no quadratic."""
    random = torch.Generator().manual_seed(seed)
    start = torch.randn(SHAPE, generator=random, dtype=torch.float64)
    root = torch.randn(50, 50, generator=random, dtype=torch.float64) / 50**0.5
    hessian, start = (root @ root.T).to(device, dtype), start.to(device, dtype)
    return start, lambda p: (hessian @ p.reshape(-1)).reshape(SHAPE) + torch.sin(p)


def optimiser_of(name: str, options: Options, parameters: Any) -> torch.optim.Optimizer:
    kind: Callable[..., torch.optim.Optimizer] = getattr(torch.optim, name)
    return kind(parameters, **options)


def path(
    name: str,
    options: Options,
    k: int,
    dtype: torch.dtype,
    steps: int,
    seed: int = 0,
    device: str = "cpu",
) -> Tensor:
    """Parameters after each step; k = 0 is the bare optimiser."""
    start, gradient = bowl(dtype, seed, device)
    parameter = start.clone().requires_grad_()
    inner = optimiser_of(name, options, [parameter])
    optimiser = PerturbedK(inner, k) if k else inner
    values = []
    for _ in range(steps):
        parameter.grad = gradient(parameter.detach())
        optimiser.step()
        values.append(parameter.detach().clone())
    return torch.stack(values)


def bits(tree: Any) -> Any:
    """Tensors of a state or group as bytes, so that == compares bits."""
    if isinstance(tree, Tensor):
        return tree.detach().cpu().numpy().tobytes()
    if isinstance(tree, dict):
        return {key: bits(value) for key, value in tree.items()}
    return [bits(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


class Custom(torch.optim.Optimizer):
    """An optimiser as a user writes it: `write(parameter, gradient, lr)` changes the parameter."""

    def __init__(
        self, parameters: Any, write: Callable[[Tensor, Tensor, float], Any], lr: float = 0.037
    ) -> None:
        super().__init__(parameters, {"lr": lr})
        self.write = write

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.write(p, p.grad, group["lr"])
        return loss


def vectors(dtype: torch.dtype = torch.float32, count: int = 1000) -> tuple[Tensor, Tensor]:
    """A parameter with a gradient that is not tied to it."""
    random = torch.Generator().manual_seed(5)
    p, g = torch.randn(2, count, generator=random, dtype=torch.float64).to(dtype)
    return p.clone(), g.clone()


def one_step(
    write: Callable[[Tensor, Tensor, float], Any],
    k: int,
    values: Tensor,
    gradient: Tensor,
    lr: float = 0.037,
) -> Tensor:
    """The parameter after one step of a user's optimiser."""
    parameter = torch.nn.Parameter(values.clone())
    parameter.grad = gradient.clone()
    PerturbedK(Custom([parameter], write, lr), k).step()
    return parameter.detach()


# --------------------------------------------------------------------------- laws of k


def test_all_optimisers_of_torch_are_looked_at() -> None:
    known = {n for n in dir(torch.optim) if isinstance(getattr(torch.optim, n), type)}
    assert known >= {name for name, _ in CASES}
    others = {"Optimizer", "LBFGS", "SparseAdam"}
    assert known - others == {name for name, _ in CASES}, "a new optimiser: add it to CASES"


@each_dtype
@each_case
def test_powers_of_two_change_no_bit_and_three_does(
    name: str, options: Options, dtype: torch.dtype
) -> None:
    """Acceptance row 5, for torch's optimisers: 200 steps, 50 numbers."""
    one, three = (path(name, options, k, dtype, 200) for k in (1, 3))
    for k in (2, 4, 1024):
        assert torch.equal(path(name, options, k, dtype, 200), one)
    assert torch.equal(path(name, options, 6, dtype, 200), three)
    assert bool(one.isfinite().all())
    assert not torch.equal(one, three)


@settings(max_examples=25)
@given(
    case=st.sampled_from(CASES),
    dtype=st.sampled_from(DTYPES),
    k=st.sampled_from([1, 3, 5, 7]),
    power=st.integers(1, 12),
    lr=st.floats(1e-4, 0.3),
    seed=st.integers(0, 2**31),
)
def test_k_and_its_doubles_agree(
    case: tuple[str, Options], dtype: torch.dtype, k: int, power: int, lr: float, seed: int
) -> None:
    name, options = case[0], {**case[1], "lr": lr}
    ours, other = (path(name, options, i, dtype, 8, seed) for i in (k, 2**power * k))
    assert bits(ours) == bits(other)


@each_dtype
@each_case
def test_one_step_is_one_rounding_apart_and_the_state_knows_no_k(
    name: str, options: Options, dtype: torch.dtype
) -> None:
    """From the tenth step of the bare optimiser, one step with each k and one without."""
    start, gradient = bowl(dtype)
    parameter = start.clone().requires_grad_()
    bare = optimiser_of(name, options, [parameter])

    def step(optimiser: PerturbedK | torch.optim.Optimizer, p: Tensor) -> Tensor:
        p.grad = gradient(p.detach())
        optimiser.step()
        return p.detach().clone()

    for _ in range(10):
        before = step(bare, parameter)
    saved = bare.state_dict()

    def resumed(k: int) -> tuple[Tensor, Any]:
        """Parameter and state after one more step."""
        p = before.clone().requires_grad_()
        inner = optimiser_of(name, options, [p])
        inner.load_state_dict(copy.deepcopy(saved))
        new = step(PerturbedK(inner, k) if k else inner, p)
        state = inner.state_dict()["state"].get(0, {})
        # ASGD keeps an average of the parameters, and those do see k.
        return new, bits({key: value for key, value in state.items() if key != "ax"})

    expected, state = resumed(0)
    unit = torch.finfo(dtype).eps * torch.maximum(before.abs(), (expected - before).abs())
    for k in (1, 3, 7, 1024):
        new, ours = resumed(k)
        assert bool(((new - expected).abs() <= 3 * unit).all())
        assert ours == state


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@each_dtype
def test_lbfgs_obeys_the_laws_of_k(dtype: torch.dtype, search: str | None) -> None:
    """Its line search adds, looks and puts back; the way back is exact."""

    def end(k: int) -> Tensor:
        start, gradient = bowl(dtype)
        p = start.clone().requires_grad_()
        inner = torch.optim.LBFGS([p], lr=0.3, max_iter=4, line_search_fn=search)
        optimiser = PerturbedK(inner, k) if k else inner

        def closure() -> Tensor:
            g = gradient(p.detach())
            p.grad = g
            return (p.detach() * g).sum() / 2

        losses = [float(optimiser.step(closure)) for _ in range(4)]
        assert losses[-1] < losses[0]
        return p.detach()

    one, three = end(1), end(3)
    assert all(torch.equal(end(k), one) for k in (2, 4, 1024))
    assert torch.equal(end(6), three)
    assert not torch.equal(one, three)
    assert float((end(0) - one).abs().max()) < 1e4 * torch.finfo(dtype).eps


def test_lbfgs_without_a_closure_is_refused() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimiser = PerturbedK(torch.optim.LBFGS([p]), 3)
    with pytest.raises(InputError, match=r"LBFGS needs a closure; call step\(closure\)"):
        optimiser.step()
    with pytest.raises(InputError, match="LBFGS needs a closure; use an optimiser without one"):
        dry_run(optimiser)


@pytest.mark.parametrize("k", [1, 3, 7, 12])
@pytest.mark.parametrize(
    "write",
    [
        lambda p, g, lr: p.add_(g, alpha=-lr),
        lambda p, g, lr: p.sub_(g, alpha=lr),
        lambda p, g, lr: p.data.add_(g, alpha=-lr),
        lambda p, g, lr: p.view(10, -1).add_(g.view(10, -1), alpha=-lr),
        lambda p, g, lr: [
            p[half].add_(g[half], alpha=-lr) for half in (slice(500), slice(500, None))
        ],
        lambda p, g, lr: p.addcmul_(g, torch.ones_like(g), value=-lr),
        lambda p, g, lr: p.addcdiv_(g, torch.ones(()), value=-lr),
        lambda p, g, lr: p.add_(g, alpha=-torch.tensor(lr, dtype=torch.float64)),
        lambda p, g, lr: torch.ops.aten.add_.Tensor(p.detach(), g, alpha=-lr),
    ],
)
def test_each_product_is_rounded_on_its_own(
    write: Callable[[Tensor, Tensor, float], Any], k: int
) -> None:
    """p - (lr / k) (k g) in float32, against numpy, to the bit, however it is written."""
    f = np.float32
    p, g = vectors()
    expected = p.numpy() - f(0.037 / k) * (f(k) * g.numpy())
    assert np.array_equal(one_step(write, k, p, g).numpy(), expected)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_a_product_or_quotient_or_difference_can_be_the_direction(k: int) -> None:
    f = np.float32
    p, g = vectors()
    pn, gn = p.numpy(), g.numpy()
    w = gn * gn + f(0.1)

    def apart(write: Callable[[Tensor, Tensor, float], Any], value: float, direction: Any) -> bool:
        expected = pn + f(value / k) * (f(k) * direction)
        return not np.array_equal(one_step(write, k, p, g).numpy(), expected)

    weight = torch.from_numpy(w)
    assert not apart(lambda p, g, lr: p.addcmul_(g, weight, value=-lr), -0.037, gn * w)
    assert not apart(lambda p, g, lr: p.addcdiv_(g, weight, value=-lr), -0.037, gn / w)
    assert not apart(lambda p, g, lr: p.sub_(lr * g), -1.0, f(0.037) * gn)
    assert not apart(lambda p, g, lr: p.lerp_(g, lr), 0.037, gn - pn)
    assert not apart(lambda p, g, lr: p.lerp_(g, lr * torch.ones(())), 0.037, gn - pn)
    assert not apart(lambda p, g, lr: p.add_(0.1), 1.0, f(0.1))


def test_a_coarse_direction_is_widened_before_it_is_multiplied() -> None:
    """Else 7 x direction would be rounded to the 8 bits of bfloat16."""
    p, g = vectors()
    coarse = g.bfloat16()
    ours = one_step(lambda p, g, lr: p.add_(coarse, alpha=-lr), 7, p, g)
    f = np.float32
    expected = p.numpy() - f(0.037 / 7) * (f(7) * coarse.float().numpy())
    assert np.array_equal(ours.numpy(), expected)


def test_two_groups_have_two_learning_rates() -> None:
    p, g = vectors()
    ours = [torch.nn.Parameter(p.clone()) for _ in range(2)]
    for one in ours:
        one.grad = g.clone()
    groups: list[Options] = [{"params": ours[:1]}, {"params": ours[1:], "lr": 0.0071}]
    PerturbedK(torch.optim.SGD(groups, lr=0.31), 3).step()
    f = np.float32
    for parameter, lr in zip(ours, (0.31, 0.0071), strict=True):
        expected = p.numpy() - f(lr / 3) * (f(3) * g.numpy())
        assert np.array_equal(parameter.detach().numpy(), expected)


# --------------------------------------------------------------------------- limits of the laws


def plain(p: Tensor, g: Tensor, lr: float) -> None:
    p.add_(g, alpha=-lr)


def test_a_subnormal_gradient_does_no_harm_here() -> None:
    """(lr k)(g / k) loses bits at g = 1.2345e-38, k = 1024; (lr / k)(k g) does not."""
    g = torch.tensor([1.2345e-38])
    assert float(0.5 * 1024 * (g / 1024)) != float(0.5 * g), "subnormals are flushed"
    one, many = (one_step(plain, k, torch.zeros(1), g, lr=0.5) for k in (1, 1024))
    assert torch.equal(one, many)
    assert float(one) == -float(0.5 * g)


def test_numbers_out_of_range_break_the_law_of_powers_of_two() -> None:
    """The mirror image of the counter-example: here value / k must be a normal number."""
    start, large = torch.zeros(1), torch.tensor([0.77e35])
    one, many = (one_step(plain, k, start, large, lr=1.2345e-38) for k in (1, 1024))
    assert float(one) != float(many)
    assert float(one) == pytest.approx(float(many), rel=1e-3)
    assert float(one_step(plain, 1, start, torch.tensor([1e38]), lr=1.0)) == pytest.approx(-1e38)
    assert float(one_step(plain, 4, start, torch.tensor([1e38]), lr=1.0)) == -np.inf


def test_a_sign_for_a_direction_hides_k_at_most_learning_rates() -> None:
    """(lr / 3) x 3 is lr again for some and not for others; signs add no bits of their own."""
    p, g = torch.zeros(50, dtype=torch.float64), vectors(torch.float64, 50)[1]
    seen = []
    for lr in np.linspace(0.01, 0.5, 200):
        write = partial(lambda p, g, lr: p.add_(g.sign(), alpha=-lr))
        one, three = (one_step(write, k, p, g, float(lr)) for k in (1, 3))
        seen.append(not torch.equal(one, three))
    assert 0 < sum(seen) < 50


def test_why_a_finished_step_cannot_be_perturbed_afterwards() -> None:
    """(1 / 3)(3 U) with U = new - old is U nearly always; the perturbed addition shows far more."""
    p, g = vectors(count=100_000)
    bare = p - 1e-3 * g
    late = p + (1 / 3) * (3 * (bare - p))
    one, three = (one_step(plain, k, p, g, 1e-3) for k in (1, 3))
    assert 5 * int((late != bare).sum()) < int((one != three).sum())


# --------------------------------------------------------------------------- what goes through


@pytest.mark.parametrize(
    "decay",
    [
        lambda p, lr: p.mul_(1 - lr * 0.3),
        lambda p, lr: p.mul_(torch.tensor(1 - lr * 0.3, dtype=torch.float64)),
        lambda p, lr: p.add_(p, alpha=-lr * 0.3),
        lambda p, lr: p.data.sub_(p, alpha=lr * 0.3),
        lambda p, lr: p.addcmul_(p, torch.ones(()), value=-lr * 0.3),
        lambda p, lr: p.div_(1 + lr * 0.3),
        lambda p, lr: p.clamp_(-1, 1),
    ],
)
def test_decoupled_decay_and_clamping_know_no_k(decay: Callable[[Tensor, float], Any]) -> None:
    """What torch itself makes of them is what is there before the addition."""
    p, g = vectors()

    def write(p: Tensor, g: Tensor, lr: float) -> None:
        decay(p, lr)
        p.add_(g, alpha=-lr)

    shrunk = p.clone()
    decay(shrunk, 0.037)
    f = np.float32
    assert not torch.equal(shrunk, p)
    for k in (1, 3):
        expected = shrunk.numpy() - f(0.037 / k) * (f(k) * g.numpy())
        assert np.array_equal(one_step(write, k, p, g).numpy(), expected)


def test_a_look_ahead_may_be_put_back() -> None:
    """Sharpness-aware steps add, look and restore before the real addition."""
    p, g = vectors()

    def write(p: Tensor, g: Tensor, lr: float) -> None:
        old = p.clone()
        for _ in range(2):
            p.add_(g, alpha=0.5)
            p.copy_(old)
        p.add_(g, alpha=-lr)

    assert torch.equal(one_step(write, 3, p, g), one_step(plain, 3, p, g))


def test_a_start_may_be_put_back_after_several_additions() -> None:
    p, g = vectors()

    def write(p: Tensor, g: Tensor, lr: float) -> None:
        old = p.clone()
        p.add_(g).add_(g)
        p.copy_(old)
        p.add_(g).add_(g, alpha=-lr)

    expected = one_step(lambda p, g, lr: p.add_(g).add_(g, alpha=-lr), 3, p, g)
    assert torch.equal(one_step(write, 3, p, g), expected)


@pytest.mark.parametrize(
    "decay", [lambda p: p.mul_(0.9), lambda p: p.add_(p, alpha=-0.1), lambda p: p.add_(1.0)]
)
def test_what_was_there_before_the_last_addition_may_be_put_back(
    decay: Callable[[Tensor], Any],
) -> None:
    """Of the parameter and of a view of it, after it was changed in this step."""
    p, g = vectors()

    def write(p: Tensor, g: Tensor, lr: float) -> None:
        decay(p)
        for part in (p, p[:10]):
            old = part.clone()
            part.add_(torch.ones(()))
            part.copy_(old)
        p.add_(g, alpha=-lr)

    def short(p: Tensor, g: Tensor, lr: float) -> None:
        decay(p)
        p.add_(g, alpha=-lr)

    assert torch.equal(one_step(write, 3, p, g), one_step(short, 3, p, g))


def test_a_look_ahead_of_a_part_may_be_put_back() -> None:
    p, g = vectors()

    def write(p: Tensor, g: Tensor, lr: float) -> None:
        old = p[:10].clone()
        p[:10].add_(g[:10]).copy_(old)
        p.add_(g, alpha=-lr)

    assert torch.equal(one_step(write, 3, p, g), one_step(plain, 3, p, g))


def test_a_closure_runs_outside_the_perturbation() -> None:
    """It may even write to parameters; only the optimiser's own additions are perturbed."""
    values, g = vectors()
    parameter = torch.nn.Parameter(values.clone())

    def closure() -> float:
        with torch.no_grad():
            parameter.copy_(2 * values)
            torch._foreach_add_([parameter], [g])
        parameter.grad = g.clone()
        return 1.5

    def write(p: Tensor, g: Tensor, lr: float) -> None:
        old = p.clone()
        p.add_(g).copy_(old)
        p.add_(g, alpha=-lr)

    assert PerturbedK(Custom([parameter], write), 3).step(closure) == 1.5
    assert torch.equal(parameter.detach(), one_step(plain, 3, 2 * values + g, g))


def test_a_closure_that_fails_leaves_the_next_step_perturbed() -> None:
    values, g = vectors()
    parameter = torch.nn.Parameter(values.clone())
    parameter.grad = g.clone()
    optimiser = PerturbedK(Custom([parameter], plain), 3)
    with pytest.raises(ZeroDivisionError):
        optimiser.step(lambda: 1 / 0)
    assert torch.equal(parameter.detach(), values)
    optimiser.step()
    assert torch.equal(parameter.detach(), one_step(plain, 3, values, g))


def test_parameters_without_a_gradient_or_without_numbers_rest() -> None:
    p = [torch.nn.Parameter(torch.full((3,), value)) for value in (1.0, torch.nan, torch.inf)]
    p.append(torch.nn.Parameter(torch.zeros(0)))
    p[0].grad, p[3].grad = torch.ones(3), torch.zeros(0)
    PerturbedK(torch.optim.SGD(p, lr=0.1), 3).step()
    assert torch.equal(
        p[0].detach(), torch.full((3,), float(1 - np.float32(0.1 / 3) * np.float32(3)))
    )
    assert bool(p[1].isnan().all())
    assert bool(p[2].isinf().all())


def test_a_parameter_without_numbers_is_not_taken_for_a_state_without_numbers() -> None:
    """Both lie at address 0, and Rprop copies into its state."""
    p = torch.nn.Parameter(torch.zeros(0))
    p.grad = torch.zeros(0)
    PerturbedK(torch.optim.Rprop([p]), 3).step()


def test_complex_parameters() -> None:
    ends = []
    for k in (1, 2, 3):
        random = torch.Generator().manual_seed(1)
        start, g = torch.randn(2, 300, generator=random, dtype=torch.complex64)
        p = torch.nn.Parameter(start.clone())
        p.grad = g
        optimiser = PerturbedK(torch.optim.RMSprop([p], lr=0.37), k)
        for _ in range(3):
            optimiser.step()
        ends.append(p.detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("option", ["foreach", "fused"])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_foreach_and_fused_are_switched_off(name: str, option: str) -> None:
    ours = path(name, {"lr": 0.03, option: True}, 3, torch.float32, 5)
    assert torch.equal(ours, path(name, {"lr": 0.03}, 3, torch.float32, 5))


# --------------------------------------------------------------------------- what is refused


def swap(p: Tensor, g: Tensor, lr: float) -> None:
    p.data = p.data - lr * g


def swap_late(p: Tensor, g: Tensor, lr: float) -> None:
    p.add_(g, alpha=-lr)
    p.data = p.data * 2


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p, g, lr: torch._foreach_add_([p], [g], alpha=-lr), "_foreach_add_.*foreach=False"),
        (lambda p, g, lr: p.copy_(p - lr * g), r"aten\.copy_.*write the update as p\.add_"),
        (lambda p, g, lr: p.add_(g).copy_(p + g), r"aten\.copy_"),
        (lambda p, g, lr: p.__setitem__(slice(3), 0.5), r"aten\.fill_"),
        (lambda p, g, lr: p.zero_(), r"aten\.zero_"),
        (lambda p, g, lr: torch.sub(p, lr * g, out=p.data), r"aten\.sub\.out"),
        (lambda p, g, lr: torch.add(g, g, out=p.data), r"aten\.add\.out"),
        (lambda p, g, lr: p.index_add_(0, torch.tensor([0]), g[:1]), r"aten\.index_add_"),
        (lambda p, g, lr: p.data.set_(g), r"aten\.set_"),
        (lambda p, g, lr: p.add_(torch.ones(1000).to_sparse(), alpha=-lr), "sparse"),
        (lambda p, g, lr: p.mul_((-lr * g).exp()), "without an in-place addition"),
        (lambda p, g, lr: np.subtract(p.numpy(), 1, p.numpy()), "without an in-place addition"),
        (swap, "without an in-place addition"),
        (swap_late, "without an in-place addition"),
    ],
)
def test_writes_that_k_cannot_enter_are_named(
    write: Callable[[Tensor, Tensor, float], Any], message: str
) -> None:
    p, g = vectors()
    with pytest.raises(StabmapError, match=f"(?s)Custom.*{message}"):
        one_step(write, 3, p, g)


def test_each_parameter_is_looked_at_on_its_own() -> None:
    """One perturbed parameter does not speak for the other."""
    p, g = vectors(count=4)
    ours = [torch.nn.Parameter(p.clone()) for _ in range(2)]
    for one in ours:
        one.grad = g.clone()

    def write(p: Tensor, g: Tensor, lr: float) -> None:
        p.add_(g) if p is ours[0] else p.mul_(0.5)

    with pytest.raises(StabmapError, match="without an in-place addition"):
        PerturbedK(Custom(ours, write), 1).step()


def test_sparse_gradients_are_refused() -> None:
    table = torch.nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1, 3])).sum().backward()
    before = table.weight.detach().clone()
    with pytest.raises(StabmapError, match="SGD: sparse gradients cannot be perturbed"):
        PerturbedK(torch.optim.SGD(table.parameters(), lr=0.1), 3).step()
    assert torch.equal(table.weight.detach(), before)
    with pytest.raises(InputError, match=r"SparseAdam.*sparse gradients"):
        PerturbedK(torch.optim.SparseAdam(table.parameters()), 3)


@pytest.mark.parametrize("k", [0, -3, 1.0, True, "3", None])
def test_k_is_an_integer_from_one(k: Any) -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(InputError, match="k is an integer >= 1"):
        PerturbedK(optimiser, k)
    with pytest.raises(InputError, match="k is an integer >= 1"):
        TorchRule("SGD", k=k)


def test_only_optimisers_are_wrapped_and_only_once() -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    for wrong in (PerturbedK(optimiser, 3), torch.ones(3), None):
        with pytest.raises(InputError, match="not an optimiser of PyTorch"):
            PerturbedK(wrong, 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not an optimiser of PyTorch"):
        dry_run(None)  # type: ignore[arg-type]


# --------------------------------------------------------------------------- delegation


def test_the_rest_is_the_inner_optimisers() -> None:
    p = torch.nn.Parameter(torch.ones(4))
    inner = torch.optim.Adam([p], lr=0.1)
    optimiser = PerturbedK(inner, 3)
    p.grad = torch.ones(4)
    optimiser.step()
    assert optimiser.param_groups is inner.param_groups
    assert optimiser.state is inner.state
    assert bits(optimiser.state_dict()) == bits(inner.state_dict())
    optimiser.zero_grad(set_to_none=False)
    assert torch.equal(p.grad, torch.zeros(4))
    optimiser.zero_grad()
    assert p.grad is None
    other = PerturbedK(torch.optim.Adam([torch.nn.Parameter(torch.ones(4))]), 5)
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    assert bits(other.state_dict()) == bits(inner.state_dict())
    optimiser.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.2})
    assert [group["lr"] for group in inner.param_groups] == [0.1, 0.2]


def test_schedulers_are_built_on_the_inner_optimiser() -> None:
    p, g = vectors()
    parameter = torch.nn.Parameter(p.clone())
    optimiser = PerturbedK(torch.optim.SGD([parameter], lr=0.5), 3)
    with pytest.raises(TypeError, match="not an Optimizer"):
        StepLR(optimiser, 1)  # type: ignore[arg-type]
    expected, f = p.numpy(), np.float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "lr_scheduler.step() before optimizer.step()"
        scheduler: LRScheduler = StepLR(optimiser.optimiser, 1, gamma=0.3)
        for step in range(3):
            parameter.grad = g.clone()
            optimiser.step()
            scheduler.step()
            expected = expected - f(0.5 * 0.3**step / 3) * (f(3) * g.numpy())
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-6, atol=1e-6)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.5 * 0.3**3)


# --------------------------------------------------------------------------- dry runs


def snapshot(optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> Any:
    return bits(
        [
            [[p, p.grad, p._version] for p in parameters],
            copy.deepcopy(optimiser.state_dict()),
            torch.get_rng_state(),
        ]
    )


@pytest.mark.parametrize("k", [0, 3])
@each_case
def test_a_dry_run_is_the_next_step_and_touches_nothing(
    name: str, options: Options, k: int
) -> None:
    start, gradient = bowl(torch.float32)
    p = [torch.nn.Parameter(start.clone()), torch.nn.Parameter(2 * start)]
    groups = [{"params": p[:1]}, {"params": p[1:], "lr": 0.0123}]
    inner = optimiser_of(name, options, groups)
    optimiser = PerturbedK(inner, k) if k else inner
    for step in range(3):
        for one in p:
            one.grad = gradient(one.detach())
        before = snapshot(inner, p)
        predicted = dry_run(optimiser)
        (last,) = dry_run(optimiser, p[1:])
        assert snapshot(inner, p) == before, step
        old = [one.detach().clone() for one in p]
        optimiser.step()
        for one, was, change in zip(p, old, predicted, strict=True):
            assert torch.equal(one.detach() - was, change)
            assert not change.requires_grad
        assert torch.equal(last, predicted[1])
        assert float(last.abs().max()) > 0


def test_a_dry_run_draws_the_noise_of_the_next_step() -> None:
    """From the global generator and from one of the optimiser's own; both are then set back."""
    own = torch.Generator().manual_seed(1)

    def write(p: Tensor, g: Tensor, lr: float) -> None:
        p.add_(torch.randn_like(p), alpha=lr)

    class Noisy(Custom):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, write)
            self.random = own

        def step(self, closure: Any = None) -> Any:
            with torch.no_grad():
                for p in self.param_groups[0]["params"]:
                    p.add_(torch.randn(p.shape, generator=self.random), alpha=-0.1)
            return super().step(closure)

    p, g = vectors()
    parameter = torch.nn.Parameter(p.clone())
    parameter.grad = g
    optimiser = PerturbedK(Noisy([parameter]), 3)
    before = bits([own.get_state(), torch.get_rng_state()])
    (change,) = dry_run(optimiser)
    assert bits([own.get_state(), torch.get_rng_state()]) == before
    optimiser.step()
    assert torch.equal(parameter.detach() - p, change)


def test_a_dry_run_between_forward_and_backward() -> None:
    """The graph of the loss survives, which an in-place step and its undoing would not allow."""
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    loss = (p**3).sum()
    (p.grad,) = torch.autograd.grad(loss, p, retain_graph=True)
    (change,) = dry_run(torch.optim.SGD([p], lr=0.1))
    torch.testing.assert_close(change, -0.1 * 3 * p.detach() ** 2)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(p.grad, 6 * p.detach() ** 2)


def test_a_dry_run_leaves_gradients_that_an_optimiser_overwrites() -> None:
    p, g = vectors()
    parameter = torch.nn.Parameter(p.clone())
    parameter.grad = g.clone()

    def write(p: Tensor, g: Tensor, lr: float) -> None:
        p.add_(g.add_(p, alpha=0.3), alpha=-lr)

    optimiser = PerturbedK(Custom([parameter], write), 3)
    (change,) = dry_run(optimiser)
    assert torch.equal(parameter.grad, g)
    optimiser.step()
    assert torch.equal(parameter.detach() - p, change)


def test_a_dry_run_without_a_gradient_adds_nothing() -> None:
    p = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    p[0].grad = torch.ones(2)
    moved, rested = dry_run(torch.optim.SGD(p, lr=0.5))
    assert torch.equal(moved, torch.full((2,), -0.5))
    assert torch.equal(rested, torch.zeros(2))


def test_a_dry_run_steps_no_scheduled_optimiser_and_calls_no_hook() -> None:
    p, g = vectors()
    parameter = torch.nn.Parameter(p.clone())
    parameter.grad = g
    optimiser = PerturbedK(torch.optim.SGD([parameter], lr=0.5), 3)
    StepLR(optimiser.optimiser, 1)
    called = []
    optimiser.optimiser.register_step_pre_hook(lambda *_: called.append("before"))
    optimiser.optimiser.register_step_post_hook(lambda *_: called.append("after"))
    (change,) = dry_run(optimiser)
    assert torch.equal(parameter.detach(), p)
    assert called == []
    optimiser.step()
    assert called == ["before", "after"]
    assert torch.equal(parameter.detach() - p, change)


def test_a_dry_run_knows_attributes_and_marks() -> None:
    """A user's optimiser may keep lists of its own and look at marks on the parameters."""

    class Marked(Custom):
        def __init__(self, parameters: list[Tensor]) -> None:
            super().__init__(parameters, plain)
            self.mine = parameters
            self.move = self.all_of_mine

        def all_of_mine(self) -> None:
            for p in self.mine:
                if getattr(p, "trained", False):
                    assert isinstance(p, torch.nn.Parameter)
                    p.add_(1.0)

        def step(self, closure: Any = None) -> Any:
            with torch.no_grad():
                self.move()

    ours: list[Tensor] = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    ours[0].trained = True  # type: ignore[attr-defined]
    changes = dry_run(Marked(ours))
    assert [float(change) for change in changes] == [1.0, 0.0]
    assert [float(p.detach()) for p in ours] == [0.0, 0.0]


def test_dry_runs_that_cannot_be_are_refused() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimiser = torch.optim.SGD([p], lr=0.1)
    with pytest.raises(InputError, match="the optimiser holds no such parameter"):
        dry_run(optimiser, [p, torch.nn.Parameter(torch.ones(2))])
    locked = Custom([p], plain)
    locked.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(StabmapError, match="Custom cannot be copied for a dry run"):
        dry_run(locked)


# --------------------------------------------------------------------------- rules by name


@pytest.mark.parametrize("k", [1, 3])
@each_case
def test_a_rule_by_name_makes_the_same_steps(name: str, options: Options, k: int) -> None:
    start, gradient = bowl(torch.float64)
    rule = TorchRule(name, options, k)
    parameter, slots = start, rule.init(start)
    values = []
    for count in range(12):
        g = gradient(parameter)
        kept = bits([parameter, g, slots])
        new, later = rule.step(parameter, g, slots, count)
        assert bits([parameter, g, slots]) == kept
        assert [(s.shape, s.dtype) for s in later] == [(s.shape, s.dtype) for s in slots]
        assert not new.requires_grad
        parameter, slots = new, later
        values.append(parameter)
    assert bits(torch.stack(values)) == bits(path(name, options, k, torch.float64, 12))


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4)])
def test_a_rule_takes_parameters_of_any_shape(shape: tuple[int, ...]) -> None:
    rule = TorchRule("Adafactor", {"lr": 0.1})
    parameter = torch.ones(shape)
    new, slots = rule.step(parameter, torch.ones(shape), rule.init(parameter), 0)
    again, _ = rule.step(new, torch.ones(shape), slots, 1)
    assert again.shape == shape
    assert bool((again < new).all())


def test_the_state_of_a_rule_is_sorted_by_name() -> None:
    """Adam's: exp_avg, exp_avg_sq, step."""
    rule = TorchRule("Adam", {"betas": (0.5, 0.75)})
    parameter, gradient = torch.zeros(3), torch.full((3,), 2.0)
    assert [slot.shape for slot in rule.init(parameter)] == [(3,), (3,), ()]
    assert all(not slot.any() for slot in rule.init(parameter))
    first, second, count = rule.step(parameter, gradient, rule.init(parameter), 0)[1]
    assert (float(first[0]), float(second[0]), float(count)) == (1.0, 1.0, 1.0)


def test_rules_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match=r"no such optimiser in torch.optim; did you mean RMSprop"):
        TorchRule("RMSProp")
    with pytest.raises(InputError, match=r"no such optimiser in torch.optim; use one of ASGD, "):
        TorchRule("Optimizer" * 5)
    for name in ("Optimizer", "lr_scheduler", "swa_utils", "Any", ""):
        with pytest.raises(InputError, match=f"name = '{name}': no such optimiser in torch.optim"):
            TorchRule(name)
    with pytest.raises(InputError, match="it needs a closure"):
        TorchRule("LBFGS")
    with pytest.raises(InputError, match="it needs sparse gradients"):
        TorchRule("SparseAdam")
    with pytest.raises(InputError, match=r"SGD refuses them.*unexpected keyword argument 'eta'"):
        TorchRule("SGD", {"eta": 0.1})
    with pytest.raises(InputError, match=r"SGD refuses them.*Invalid learning rate: -1"):
        TorchRule("SGD", {"lr": -1.0})
    with pytest.raises(InputError, match=r"SGD refuses them.*in-place"):
        TorchRule("SGD", {"differentiable": True})
    with pytest.raises(InputError, match=r"Muon refuses them for shape \(3,\)"):
        TorchRule("Muon").init(torch.ones(3))
    with pytest.raises(InputError, match="Muon refuses them for shape"):
        TorchRule("Muon").step(torch.ones(3), torch.ones(3), (), 0)


# --------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_case
def test_the_laws_hold_on_a_gpu(name: str, options: Options) -> None:
    """There torch takes foreach by itself, and kernels may fuse multiply and add."""
    run = partial(path, name, options, dtype=torch.float32, steps=20, device="cuda")
    one, three = run(k=1), run(k=3)
    assert all(torch.equal(run(k=k), one) for k in (2, 4, 1024))
    assert torch.equal(run(k=6), three)
    assert float((run(k=0) - one).abs().max()) < 1e-3
