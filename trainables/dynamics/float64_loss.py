"""The loss of a network in float64, computed on copies: nothing of the network is changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from trainables.domain import InputError, Mistake, StabmapError
from trainables.messages import first_line

Loss = Callable[[Tensor, Tensor], Tensor]

#: Functions of two tensors, by name without underscores, in which a wrong shape of the targets
#: goes unnoticed.
BROADCASTING = {"sub", "rsub", "subtract", "mul", "rmul", "multiply"} | {
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
}


class Float64Loss:
    """Loss of (outputs, targets) as a function of the trained parameters.

    Parameters, buffers, inputs and targets that are floating-point numbers enter in float64. Each
    evaluation starts from the buffers as they are and from random numbers of one seed, so that a
    network in training mode is one fixed function too: with one mask of dropout.

    Args:
        module: the network; in float32 its values are taken as they are, and computed with in
            float64.
        loss: from outputs and targets to one number.
        inputs: all inputs.
        targets: all targets.
        seed: of torch's random numbers within an evaluation.

    Raises:
        InputError: the network, the loss or the data do not fit each other.
    """

    def __init__(
        self, module: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, seed: int = 0
    ) -> None:
        refuse(problem_mistakes(module, loss, inputs, targets))
        self.inputs, self.targets = _float64(inputs), _float64(targets)
        named = dict(module.named_parameters())
        self._names = [name for name, p in named.items() if p.requires_grad]
        self._still = {name: _float64(p) for name, p in named.items() if not p.requires_grad}
        #: Copies of the trained parameters, in the order of `module.parameters()`.
        self.parameters = [_float64(named[name]).requires_grad_() for name in self._names]
        self._module, self._loss, self._seed = module, loss, seed
        places = {t.device for t in (*self.parameters, self.inputs)}
        self._cards = sorted({p.index or 0 for p in places if p.type == "cuda"})

    def __call__(self, parameters: Sequence[Tensor]) -> Tensor:
        """The loss at these values of the trained parameters.

        Raises:
            InputError: the module refuses the inputs, the loss the targets, or the loss is not one
                number in float64 that depends on the parameters.
        """
        with torch.enable_grad(), _random_numbers(self._seed, self._cards):
            value: Tensor = self._value(self._outputs(parameters))
        refuse(_value_mistakes(value))
        return value

    def _outputs(self, parameters: Sequence[Tensor]) -> Any:
        buffers = {name: _float64(b).clone() for name, b in self._module.named_buffers()}
        values = self._still | buffers | dict(zip(self._names, parameters, strict=True))
        remedy = "give inputs of another shape or dtype, or write a forward for any dtype"
        law = f"the module cannot take these {self.inputs.dtype} numbers in float64"
        with _explained("inputs", self.inputs, law, remedy):
            return functional_call(self._module, values, (self.inputs,))

    def _value(self, outputs: Any) -> Any:
        remedy = "give targets of the shape and dtype that the loss wants"
        shape = tuple(getattr(outputs, "shape", ()))
        law = f"the loss cannot compare these {self.targets.dtype} targets with outputs {shape}"
        uneven = len(self.inputs.shape[:1] + self.targets.shape[:1]) == 2 and (
            self.inputs.shape[0] != self.targets.shape[0]
        )
        with _explained("targets", self.targets, law, remedy), _NoBroadcast(self.targets, uneven):
            return self._loss(outputs, self.targets)


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that the Hessian is taken by."""
    return [p for p in module.parameters() if p.requires_grad]


def refuse(mistakes: Sequence[Mistake]) -> None:
    """InputError where there are mistakes."""
    if mistakes:
        raise InputError(mistakes)


# --------------------------------------------------------------------------- laws


def problem_mistakes(module: Any, loss: Any, inputs: Any, targets: Any) -> list[Mistake]:
    """What can be said against a network, its loss and its data before anything is computed."""
    mistakes = []
    if not isinstance(module, nn.Module):
        law = "must be a torch.nn.Module"
        mistakes.append(Mistake("module", _kind(module), law, "give the network"))
    elif not trained_parameters(module):
        law = "has no parameter that is trained"
        remedy = "set requires_grad of those whose curvature is asked for"
        mistakes.append(Mistake("module", _kind(module), law, remedy))
    elif any(p.is_complex() for p in module.parameters()):
        law = "has complex parameters"
        mistakes.append(Mistake("module", _kind(module), law, "use real and imaginary parts"))
    if not callable(loss):
        remedy = "give one such as torch.nn.functional.cross_entropy"
        law = "must be a function of (outputs, targets)"
        mistakes.append(Mistake("loss", _kind(loss), law, remedy))
    for name, data in (("inputs", inputs), ("targets", targets)):
        if not isinstance(data, Tensor):
            remedy = "convert them with torch.as_tensor"
            mistakes.append(Mistake(name, _kind(data), "must be a torch.Tensor", remedy))
    return mistakes


def _value_mistakes(value: Any) -> list[Mistake]:
    if not isinstance(value, Tensor):
        law, remedy = "must return a tensor", "return it without .item() or float()"
        return [Mistake("loss", _kind(value), law, remedy)]
    if value.numel() != 1:
        law = "must return one number"
        return [Mistake("loss", tuple(value.shape), law, "reduce it with .mean()")]
    if value.dtype != torch.float64:
        law = "must stay in float64, in which curvature is computed"
        return [Mistake("loss", str(value.dtype), law, "convert nothing to a lower precision")]
    if not value.requires_grad:
        law = "must depend on the trained parameters"
        remedy = "detach nothing, and compute it with torch"
        return [Mistake("loss", "no gradient", law, remedy)]
    return []


class _NoBroadcast(TorchFunctionMode):
    """Refuses that targets are stretched: (n,) against (n, 1) would give all n x n differences.

    Torch only warns of it, if at all.
    """

    def __init__(self, targets: Tensor, uneven: bool) -> None:
        super().__init__()
        self._targets, self._uneven = targets, uneven

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        given = [*args, *(kwargs or {}).values()]
        name = str(getattr(func, "__name__", "")).strip("_")
        if name in BROADCASTING and any(one is self._targets for one in given):
            for other in given:
                if isinstance(other, Tensor):
                    self._check(other)
        return func(*args, **(kwargs or {}))

    def _check(self, other: Tensor) -> None:
        here, there = tuple(self._targets.shape), tuple(other.shape)
        try:
            size = math.prod(np.broadcast_shapes(here, there))
        except ValueError:
            return  # torch says it itself
        least = self._targets.numel() if self._uneven else max(self._targets.numel(), other.numel())
        if size > least:
            law = f"compared with outputs {there} they would be repeated"
            remedy = "reshape the targets, or the outputs in the loss"
            raise InputError([Mistake("targets", here, law, remedy)])


# --------------------------------------------------------------------------- helpers


@contextmanager
def _random_numbers(seed: int, cards: list[int]) -> Iterator[None]:
    """Torch's random numbers from a seed; those of the caller go on afterwards as if unused."""
    with torch.random.fork_rng(devices=cards):
        torch.default_generator.manual_seed(seed)
        for card in cards:
            torch.cuda.default_generators[card].manual_seed(seed)
        yield


@contextmanager
def _explained(name: str, data: Tensor, law: str, remedy: str) -> Iterator[None]:
    """What torch says against data, as one clear mistake."""
    try:
        yield
    except (StabmapError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = first_line(error) or type(error).__name__
        mistake = Mistake(name, tuple(data.shape), f"{law} ({reason})", remedy)
        raise InputError([mistake]) from error


def _float64(tensor: Tensor) -> Tensor:
    values = tensor.detach()
    return values.double() if values.is_floating_point() else values


def _kind(value: Any) -> str:
    return type(value).__name__
