"""What the next step of a PyTorch optimiser would add, found on copies."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainables.domain import InputError, Mistake, StabmapError
from trainables.dynamics.perturbed_k import (
    PerturbedK,
    closure_mistake,
    needs_closure,
    optimiser_mistakes,
    parameters_of,
)


def dry_run(
    optimiser: Optimizer | PerturbedK, parameters: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """What the next step would add to each parameter, without making it.

    The step is made on copies of parameters, gradients and the whole of the optimiser, state
    included. The originals, their version counters and the random generators stay as they are.
    Hooks on the step are not called, since they may act on the originals.

    Args:
        optimiser: an optimiser of PyTorch, perturbed or bare.
        parameters: of which the addition is wanted; all, in the order of the groups, where None.

    Returns:
        New minus old values, one tensor a parameter; zeros where there is no gradient.

    Raises:
        InputError: if the optimiser needs a closure (LBFGS), or does not hold a parameter.
        StabmapError: if the optimiser cannot be copied, or as in `PerturbedK.step`.
    """
    inner = optimiser.optimiser if isinstance(optimiser, PerturbedK) else optimiser
    mistakes = list(optimiser_mistakes(inner))
    if not mistakes and needs_closure(inner):
        mistakes.append(closure_mistake("optimiser", type(inner).__name__, inner))
    if mistakes:
        raise InputError(mistakes)
    originals = list(parameters_of(inner))
    wanted = originals if parameters is None else list(parameters)
    places = {id(parameter): place for place, parameter in enumerate(originals)}
    strange = [tuple(p.shape) for p in wanted if id(p) not in places]
    if strange:
        law = "the optimiser holds no such parameter"
        raise InputError([Mistake("parameters", strange, law, "pass the ones it was built with")])
    twin = _twin(inner, originals)
    stepper = PerturbedK(twin, optimiser.k) if isinstance(optimiser, PerturbedK) else twin
    devices = sorted({p.device.index for p in originals if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        stepper.step()
    news = list(parameters_of(twin))
    return tuple(news[places[id(p)]].detach() - p.detach() for p in wanted)


def _twin(optimiser: Optimizer, originals: Sequence[Tensor]) -> Optimizer:
    """A copy of an optimiser that works on copies of its parameters.

    Not `copy.deepcopy(optimiser)`: an optimiser hands out only groups and state to be copied,
    without attributes such as LBFGS's, and a parameter's copy has no gradient.
    """
    twin: Optimizer = object.__new__(type(optimiser))
    memo: dict[int, Any] = {id(optimiser): twin}
    for original in originals:
        memo[id(original)] = _copied(original)
        if original.grad is not None:
            memo[id(original.grad)] = memo[id(original)].grad
    attributes = dict(vars(optimiser))
    # A scheduler puts its own `step` on the object, which would step the original.
    attributes.pop("step", None)
    attributes.update({name: OrderedDict() for name in attributes if name.endswith("_hooks")})
    with _copy_errors(type(optimiser).__name__):
        vars(twin).update(copy.deepcopy(attributes, memo))
    return twin


def _copied(parameter: Tensor) -> Tensor:
    """With its gradient, and with the marks that some optimisers look for."""
    new = parameter.detach().clone()
    if isinstance(parameter, torch.nn.Parameter):
        new = torch.nn.Parameter(new)
    vars(new).update(vars(parameter))
    new.requires_grad_(parameter.requires_grad)
    new.grad = None if parameter.grad is None else parameter.grad.detach().clone()
    return new


@contextmanager
def _copy_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise StabmapError(f"{name} cannot be copied for a dry run: {error}") from error
