"""The perturbed-k update (Sun et al. 2024, section 3) for any optimiser of PyTorch.

An optimiser ends its step by adding value x direction to a parameter in place. Here that addition
is carried out as (value / k) x (k direction), the product rounded before it is added: equal in
mathematics for every k, one rounding apart in floating point, as in
`trainables.dynamics.optimisers`. Everything else that the optimiser computes is left alone, so
its state never sees k.

Taking U = new - old of a finished step and adding (1 / k)(k U) would not do. U lies on the coarse
grid of the parameter's last bits, has few bits of its own, and (1 / 3)(3 U) is then U nearly
always: the perturbation would be lost.

k and 2^n k agree to the bit as long as nothing leaves the range of normal numbers: k x direction
overflows to infinity for large directions (1e38 x 4 in float32), and value / k loses bits below
1.2e-38. A small direction does no harm, since it is multiplied by k and not divided.

A direction that is only a sign (Lion) can hide k: the update is then (value / k) x k, the same
for all entries, and for k = 3 that is `value` to the bit at about 92 of 100 values in float64 and
69 of 100 in float32. Other k or another learning rate may show there what one k does not.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from trainables.domain import InputError, Mistake, StabmapError

Closure = Callable[[], Any]

#: In-place operations that decay a parameter or project it: they know nothing of k.
_UNPERTURBED = frozenset(
    f"aten::{name}_" for name in ("mul", "div", "clamp", "clamp_min", "clamp_max")
)
_PLAIN = "write the update as p.add_(direction, alpha=-lr)"
_TOGETHER = "build the optimiser with foreach=False and fused=False"


class PerturbedK:
    """An optimiser whose updates are written (value / k) x (k direction).

    In-place `add_`, `sub_`, `addcmul_`, `addcdiv_` and `lerp_` on parameters are perturbed, also
    through views and `.data`. Scaling (`mul_`, `div_`, or `p.add_(p, alpha=c)`, all of them
    decoupled weight decay), clamping, and a `copy_` that puts back the values from before the last
    addition or from the start of the step (LBFGS's line search) go through as they are. A decay
    that is first computed into a tensor of its own and then added counts as part of the update.
    `foreach` and `fused` are set to False in the parameter groups at every step, because those
    kernels hide the addition.

    This is not an `Optimizer`. Learning-rate schedulers demand one: build them on the inner
    optimiser, `StepLR(perturbed.optimiser, 10)`, and call `perturbed.step()` before
    `scheduler.step()` as usual.

    Args:
        optimiser: the inner optimiser; any class but SparseAdam.
        k: perturbation integer >= 1; 1 is the unperturbed update, with the same rounding of the
            product as every other k.

    Raises:
        InputError: if `optimiser` is no such optimiser or k no integer >= 1.
    """

    def __init__(self, optimiser: Optimizer, k: int) -> None:
        mistakes = [*optimiser_mistakes(optimiser), *k_mistakes(k)]
        if mistakes:
            raise InputError(mistakes)
        self.optimiser = optimiser
        self.k = k

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the inner optimiser."""
        return self.optimiser.param_groups

    @property
    def state(self) -> Any:
        """State of the inner optimiser."""
        return self.optimiser.state

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the inner optimiser does."""
        self.optimiser.zero_grad(set_to_none)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """As the inner optimiser does."""
        self.optimiser.add_param_group(group)

    def state_dict(self) -> dict[str, Any]:
        """That of the inner optimiser; k is no part of it."""
        return self.optimiser.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the inner optimiser does."""
        self.optimiser.load_state_dict(state_dict)

    def step(self, closure: Closure | None = None) -> Any:
        """One step of the inner optimiser with perturbed updates.

        Args:
            closure: evaluates the loss anew; runs outside the perturbation.

        Returns:
            What the inner step returns.

        Raises:
            InputError: if the optimiser needs a closure and there is none.
            StabmapError: a gradient is sparse, or a parameter is written to in a way that k
                cannot enter. Where that shows in the middle of the step, parameters and state
                are left half updated.
        """
        if closure is None and needs_closure(self.optimiser):
            raise InputError([closure_mistake("closure", closure, self.optimiser)])
        parameters = list(parameters_of(self.optimiser))
        name = type(self.optimiser).__name__
        if any(p.grad is not None and p.grad.layout != torch.strided for p in parameters):
            raise StabmapError(
                f"{name}: sparse gradients cannot be perturbed; use dense ones (sparse=False)"
            )
        for group in self.optimiser.param_groups:
            group.update({key: False for key in ("foreach", "fused") if key in group})
        mode = _PerturbAdditions(name, self.k, parameters)
        with mode:
            if closure is None:
                result = self.optimiser.step()
            else:
                result = self.optimiser.step(mode.outside(closure))
        mode.check()
        return result


class _PerturbAdditions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Carries out additions to the given parameters as p + (value / k) x (k direction).

    Args:
        owner: name of the optimiser, for messages.
        k: perturbation integer.
        parameters: what the optimiser trains.
    """

    def __init__(self, owner: str, k: int, parameters: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owner = owner
        self.k = float(k)
        self.paused = False
        self.parameters = [p for p in parameters if p.numel()]
        self.starts = [p.detach().clone() for p in self.parameters]
        # Holding on to the memory keeps its address from being given to another tensor.
        self.memory = {_address(p): p.untyped_storage() for p in self.parameters}
        self.perturbed: set[int] = set()
        self.touched: set[int] = set()
        self.earlier = {
            _view(p): [start] for p, start in zip(self.parameters, self.starts, strict=True)
        }

    def outside(self, closure: Closure) -> Closure:
        """The closure, run as if there were no perturbation."""

        def run() -> Any:
            before, self.paused = self.paused, True
            try:
                return closure()
            finally:
                self.paused = before
                self.touched.update(self.memory)  # nobody looked at what it wrote

        return run

    def check(self) -> None:
        """Raises: StabmapError: a parameter changed, and no perturbed addition was seen."""
        for parameter, start in zip(self.parameters, self.starts, strict=True):
            if _address(parameter) not in self.perturbed and not _same_bits(parameter, start):
                raise StabmapError(
                    f"{self.owner} changed a parameter of shape {tuple(parameter.shape)} without "
                    f"an in-place addition, so that k did not enter; {_PLAIN}"
                )

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused or not any(map(self._is_ours, _written(func, args, kwargs))):
            return func(*args, **kwargs)
        name = func._schema.name
        addition = _ADDITIONS.get(name)
        if addition is not None:
            self._carry_out(func, args, kwargs, addition)
            return args[0]
        if name in _UNPERTURBED or (name == "aten::copy_" and self._puts_back(*args[:2])):
            self.touched.add(_address(args[0]))
            return func(*args, **kwargs)
        several = name.startswith(("aten::_foreach_", "aten::_fused_"))
        raise StabmapError(
            f"{self.owner} writes to a parameter with {func}, where k cannot enter; "
            f"{f'{_TOGETHER}, or ' if several else ''}{_PLAIN}"
        )

    def _carry_out(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        addition: Callable[..., tuple[Any, Any]],
    ) -> None:
        target = args[0]
        operands = [a for a in args[1:] if isinstance(a, Tensor)]
        if any(_view(operand) == _view(target) for operand in operands):
            func(*args, **kwargs)  # p + c p is a decay
            self.touched.add(_address(target))
            return
        if any(operand.layout != torch.strided for operand in operands):
            raise StabmapError(f"{self.owner} adds a sparse tensor, which cannot be perturbed")
        # The direction may have fewer bits than the parameter (Muon's bfloat16); k x direction
        # would then be rounded much more coarsely than the update.
        wide = [_widened(a, target) if isinstance(a, Tensor) else a for a in args[1:]]
        value, direction = addition(target, *wide, **kwargs)
        if not isinstance(direction, Tensor):
            direction = target.new_full((), direction)
        # The product is rounded on its own before the addition: a fused multiply-add would make
        # k = 1 differ from its powers of two on some devices.
        update = (value / self.k) * (self.k * direction)
        self._remember(target)
        target.add_(update)
        self.touched.add(_address(target))
        self.perturbed.add(_address(target))

    def _remember(self, target: Tensor) -> None:
        """Keep the values before an addition, unless they are those of the start."""
        kept = self.earlier.setdefault(_view(target), [])
        if not kept or _address(target) in self.touched:
            kept[1:] = [target.clone()]

    def _puts_back(self, target: Tensor, source: Tensor) -> bool:
        """Whether values are restored that the target had before: no update, but a way back."""
        if source.shape != target.shape or source.dtype != target.dtype:
            return False
        source = source.to(target.device)
        return any(_same_bits(kept, source) for kept in self.earlier.get(_view(target), ()))

    def _is_ours(self, tensor: Tensor) -> bool:
        return tensor.layout == torch.strided and _address(tensor) in self.memory


def _add(target: Tensor, other: Any, alpha: Any = 1) -> tuple[Any, Any]:
    return alpha, other


def _sub(target: Tensor, other: Any, alpha: Any = 1) -> tuple[Any, Any]:
    return -alpha, other


def _addcmul(target: Tensor, one: Tensor, two: Tensor, value: Any = 1) -> tuple[Any, Any]:
    return value, one * two


def _addcdiv(target: Tensor, one: Tensor, two: Tensor, value: Any = 1) -> tuple[Any, Any]:
    return value, one / two


def _lerp(target: Tensor, end: Tensor, weight: Any) -> tuple[Any, Any]:
    return weight, end - target


#: From the arguments of an in-place addition to value and direction.
_ADDITIONS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "aten::add_": _add,
    "aten::sub_": _sub,
    "aten::addcmul_": _addcmul,
    "aten::addcdiv_": _addcdiv,
    "aten::lerp_": _lerp,
}


@functools.cache
def _mutable(func: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of the arguments that an operation writes to."""
    return tuple(
        (place, argument.name)
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors that an operation writes to, those in lists included."""
    for place, name in _mutable(func):
        value = args[place] if place < len(args) else kwargs.get(name)
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(tensor, Tensor):
                yield tensor


def _widened(operand: Tensor, target: Tensor) -> Tensor:
    return operand.to(torch.result_type(target, operand))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _view(tensor: Tensor) -> tuple[Any, ...]:
    """Which numbers in memory a tensor shows."""
    if tensor.layout != torch.strided:
        return (id(tensor),)
    return (_address(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)


def _same_bits(one: Tensor, two: Tensor) -> bool:
    """Equality in which NaN equals NaN."""
    return bool(((one == two) | ((one != one) & (two != two))).all())


def parameters_of(optimiser: Optimizer) -> Iterator[Tensor]:
    """All parameters, in the order of the groups."""
    for group in optimiser.param_groups:
        yield from group["params"]


def needs_closure(optimiser: Optimizer) -> bool:
    """Whether a step cannot be made without a closure."""
    closure = inspect.signature(type(optimiser).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def closure_mistake(where: str, value: Any, optimiser: Optimizer) -> Mistake:
    """The mistake of using an optimiser that needs a closure without one."""
    name = type(optimiser).__name__
    remedy = "call step(closure)" if where == "closure" else "use an optimiser without one"
    return Mistake(where, value, f"{name} needs a closure", remedy)


def optimiser_mistakes(optimiser: Any) -> Iterable[Mistake]:
    """Why something is no optimiser whose steps can be perturbed."""
    if not isinstance(optimiser, Optimizer):
        law = "not an optimiser of PyTorch"
        yield Mistake("optimiser", type(optimiser).__name__, law, "pass a torch.optim.Optimizer")
    elif isinstance(optimiser, torch.optim.SparseAdam):
        law = "it needs sparse gradients, which cannot be perturbed"
        yield Mistake("optimiser", "SparseAdam", law, "use Adam with dense gradients")


def k_mistakes(k: Any) -> Iterable[Mistake]:
    """Why something is no perturbation integer."""
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        yield Mistake("k", k, "k is an integer >= 1", "use odd numbers such as 1, 3, 5")
