"""Any optimiser of `torch.optim` as a function of (parameter, gradient, state)."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainables.domain import InputError, Mistake, nearest
from trainables.dynamics.perturbed_k import PerturbedK, k_mistakes, parameters_of


@dataclass(frozen=True)
class TorchRule:
    """An optimiser of PyTorch by name, as a function of (parameter, gradient, state).

    It has the form of `trainables.dynamics.optimisers.Optimiser`, but cannot be differentiated.

    Args:
        name: a class of `torch.optim`, such as `RMSprop`. LBFGS (needs a closure) and SparseAdam
            (needs sparse gradients) are refused.
        options: keyword arguments of that class, such as `{"lr": 0.01}`.
        k: perturbation integer.

    Raises:
        InputError: if there is no such class, if it is refused, or if it refuses the options.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    k: int = 1
    _keys: dict[int, tuple[str, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        mistakes = [*self._name_mistakes(), *k_mistakes(self.k)]
        if mistakes:
            raise InputError(mistakes)
        self._build(torch.zeros(2, 2))

    def init(self, parameter: Tensor) -> tuple[Tensor, ...]:
        """State before the first step: zeros in the shapes that the state has later.

        The step with count 0 starts from the optimiser's own initial state, not from these.

        Raises:
            InputError: if the optimiser refuses the parameter (Muon takes matrices only).
        """
        optimiser = self._build(torch.zeros_like(parameter))
        return tuple(torch.zeros_like(slot) for slot in _slots(optimiser).values())

    def step(
        self, parameter: Tensor, gradient: Tensor, slots: Sequence[Tensor], count: int
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One update.

        Args:
            parameter: current values.
            gradient: gradient of the loss without weight decay, same shape.
            slots: state from the step before, or from `init`; sorted by name.
            count: number of steps made before this one, from 0.

        Returns:
            New parameter and new state; the arguments are left as they were.

        Raises:
            InputError: if the optimiser refuses the parameter.
        """
        if parameter.ndim not in self._keys:
            probe = self._build(parameter.new_zeros((2,) * parameter.ndim))
            self._keys[parameter.ndim] = tuple(_slots(probe))
        optimiser = self._build(parameter.detach().clone(), gradient.detach().clone(), step=False)
        (new,) = parameters_of(optimiser.optimiser)
        if count:
            keys = self._keys[parameter.ndim]
            copies = (slot.detach().clone() for slot in slots)
            optimiser.state[new] = dict(zip(keys, copies, strict=True))
        optimiser.step()
        return new.detach(), tuple(_slots(optimiser).values())

    def _build(
        self, values: Tensor, gradient: Tensor | None = None, step: bool = True
    ) -> PerturbedK:
        """The optimiser on one parameter, after a step (with gradient 0 where none is given)."""
        parameter = values.requires_grad_()
        parameter.grad = torch.zeros_like(values) if gradient is None else gradient
        try:
            inner = getattr(torch.optim, self.name)([parameter], **self.options)
            optimiser = PerturbedK(inner, self.k)
            if step:
                optimiser.step()
        except (TypeError, ValueError, RuntimeError) as error:
            law = f"torch.optim.{self.name} refuses them for shape {tuple(values.shape)} ({error})"
            remedy = "mend the options, or use another optimiser for this shape"
            raise InputError([Mistake("options", dict(self.options), law, remedy)]) from error
        return optimiser

    def _name_mistakes(self) -> Iterable[Mistake]:
        known = [name for name in dir(torch.optim) if optimiser_arguments(name)]
        if self.name not in known:
            guess = nearest(str(self.name), known)
            remedy = f"did you mean {guess}?" if guess else f"use one of {', '.join(known)}"
            yield Mistake("name", self.name, "no such optimiser in torch.optim", remedy)
        elif self.name in ("LBFGS", "SparseAdam"):
            need = "a closure" if self.name == "LBFGS" else "sparse gradients"
            yield Mistake("name", self.name, f"it needs {need}", "use another optimiser")


def _slots(optimiser: PerturbedK) -> dict[str, Tensor]:
    """State of the one parameter, sorted by name."""
    (parameter,) = parameters_of(optimiser.optimiser)
    return dict(sorted(optimiser.state[parameter].items()))


def optimiser_arguments(name: str) -> tuple[str, ...]:
    """Names that an optimiser of `torch.optim` takes; none where there is no such optimiser.

    `torch.optim` holds other things too, such as the module `lr_scheduler`.
    """
    kind = getattr(torch.optim, name, None)
    if not isinstance(kind, type) or not issubclass(kind, Optimizer) or kind is Optimizer:
        return ()
    return tuple(inspect.signature(kind).parameters)
