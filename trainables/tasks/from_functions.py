"""A task from two functions: one builds the network, one has the data."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.domain import InputError, Mistake
from trainables.losses import Loss
from trainables.options import flag, whole
from trainables.tasks.from_files import NAME

Pair = tuple[Tensor, Tensor]


def task_from(
    name: str,
    module: Callable[..., nn.Module],
    data: Callable[..., Any],
    loss: Loss | Callable[[Tensor, Tensor], Tensor],
    metric: Callable[[Tensor, Tensor], Any],
    *,
    metric_name: str | None = None,
    batch_size: int | None = None,
    regularised_layer: str | None = None,
    stand_in: str | None = None,
    source: str = "",
    needs: str | None = None,
) -> type[Any]:
    """A task class from functions.

    Their keyword parameters with defaults (numbers, texts, true, false, None) become the options of
    the task, beside `batch_size`: `task: {name: mine, width: 64}` in a spec.

    Args:
        name: of the task.
        module: called as module(seed, **options) with PyTorch's random numbers seeded by seed; the
            network, in any dtype. Its initial weights must depend on nothing else.
        data: called as data(**options); ((inputs, targets), (held-out inputs, held-out targets)),
            each a tensor or an array with the samples along the first dimension.
        loss: scalar of (outputs, targets), a mean over the batch; one of `trainables.losses`, or a
            function.
        metric: number of (outputs, targets) on the held-out data.
        metric_name: what it measures; the function's name unless it is given.
        batch_size: mini-batch size unless the spec has another; None is the full batch.
        regularised_layer: name of the submodule that the stability regulariser acts on: "" for the
            whole network. None takes the last linear layer, or the whole network.
        stand_in: what the data stand in for; None where they are the real thing.
        source: where the setting comes from.
        needs: data that must be there first.

    Returns:
        A frozen dataclass: `stabmap.evaluate(points, Mine(width=64))`. In a file of its own, put it
        into a variable and name the file: `stabmap run sweep.yaml --tasks mine.py`.

    Raises:
        InputError: the functions do not have the parameters that they need.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from trainables.losses import MEAN_SQUARED_ERROR
        >>> def line(seed, width=1):
        ...     return nn.Linear(1, width)
        >>> def points(count=8):
        ...     x = torch.linspace(-1, 1, count)[:, None]
        ...     return (x, 2 * x), (x, 2 * x)
        >>> def worst(outputs, targets):
        ...     return (outputs - targets).abs().max()
        >>> Line = task_from("line", line, points, MEAN_SQUARED_ERROR, worst)
        >>> [result] = stabmap.evaluate([stabmap.Point(lr=0.1)], Line(count=4))
        >>> result.verdict.regime.value
        'stable'
    """
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        law, remedy = "is no name for a task", "use letters, digits, points, _ and -"
        raise InputError([Mistake("name", name, law, remedy)])
    options = _options(name, module, data)
    parts = _Parts(name, module, data, tuple(options["module"]), tuple(options["data"]))
    known = {**options["data"], **options["module"], "batch_size": batch_size}
    fields = [(key, Any, dataclasses.field(default=value)) for key, value in known.items()]
    members = {
        "name": name,
        "metric_name": metric_name or str(getattr(metric, "__name__", "metric")).replace("_", " "),
        "regularised_layer": property(lambda task: _layer(task, regularised_layer)),
        "stand_in": stand_in,
        "source": source,
        "needs": needs,
        "loss": loss if isinstance(loss, Loss) else Loss(f"loss of {name}", loss),
        "batch": property(lambda task: task.batch_size),
        "module": lambda task, seed: parts.network(task, seed),
        "train_data": lambda task: parts.pairs(task)[0],
        "test_data": lambda task: parts.pairs(task)[1],
        "metric": lambda task, outputs, targets: float(_plain(metric(outputs, targets))),
        "__post_init__": lambda task: _check(task, known),
        "__doc__": inspect.getdoc(module) or f"The task {name}.",
        "__module__": module.__module__,  # the file that it is a task of
    }
    words = re.findall("[A-Za-z0-9]+", name)
    title = "".join(word[0].upper() + word[1:] for word in words)
    return dataclasses.make_dataclass(title, fields, namespace=members, frozen=True)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The two functions, and which options are whose."""

    name: str
    module: Callable[..., nn.Module]
    data: Callable[..., Any]
    of_module: tuple[str, ...]
    of_data: tuple[str, ...]

    def network(self, task: Any, seed: int) -> nn.Module:
        """The network in float64."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.module(seed, **{key: getattr(task, key) for key in self.of_module})
        return network.double() if isinstance(network, nn.Module) else network

    def pairs(self, task: Any) -> tuple[Pair, Pair]:
        """Training and held-out data; read once for each set of options."""
        return self._read(*(getattr(task, key) for key in self.of_data))

    @lru_cache(maxsize=2)  # noqa: B019 - lives as long as the task's class
    def _read(self, *values: Any) -> tuple[Pair, Pair]:
        return read_pairs(self.name, self.data, dict(zip(self.of_data, values, strict=True)))


def read_pairs(
    name: str, data: Callable[..., Any], options: Mapping[str, Any]
) -> tuple[Pair, Pair]:
    """Training and held-out data as tensors, in float64 where they are not whole numbers.

    Raises:
        InputError: there are no two pairs.
    """
    with torch.random.fork_rng(devices=[]):
        found = data(**options)
    try:
        (x, y), (x_test, y_test) = found
    except (TypeError, ValueError) as error:
        law = f"{data.__name__} does not return two pairs"
        remedy = "return (inputs, targets), (held-out inputs, held-out targets)"
        raise InputError([Mistake("task", name, law, remedy)]) from error
    return (_tensor(x), _tensor(y)), (_tensor(x_test), _tensor(y_test))


def keywords(function: Callable[..., Any], skip: int) -> dict[str, inspect.Parameter]:
    """The parameters after the first `skip`, which are options."""
    return dict(list(inspect.signature(function).parameters.items())[skip:])


def _tensor(values: Any) -> Tensor:
    """In float64 where it is not whole numbers."""
    found: Tensor = torch.as_tensor(
        np.asarray(values) if not isinstance(values, Tensor) else values
    )
    return found.double() if found.is_floating_point() else found


def _plain(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


@lru_cache(maxsize=64)
def _layer(task: Any, named: str | None) -> str:
    if named is not None:
        return named
    linear = [key for key, part in task.module(0).named_modules() if isinstance(part, nn.Linear)]
    return linear[-1] if linear else ""


def _options(name: str, module: Any, data: Any) -> dict[str, dict[str, Any]]:
    """Parameters with defaults of each function."""
    found: dict[str, dict[str, Any]] = {}
    for role, function, free in (("module", module, 1), ("data", data, 0)):
        given = {key: p.default for key, p in keywords(function, free).items()}
        bare = [key for key, default in given.items() if default is inspect.Parameter.empty]
        if len(inspect.signature(function).parameters) < free or bare:
            law = f"{role} is called as {role}({'seed, ' * free}**options)"
            what = f"{', '.join(bare)} has no default" if bare else "it takes no seed"
            raise InputError(
                [Mistake(role, function.__name__, f"{law}, but {what}", "give it one")]
            )
        found[role] = given
    for key, value in {**found["module"], **found["data"]}.items():
        both = [given[key] for given in found.values() if key in given]
        plain = value is None or isinstance(value, (bool, int, float, str))
        if key == "batch_size" or not plain or len({repr(v) for v in both}) > 1:
            law = (
                "batch_size is an option of every task"
                if key == "batch_size"
                else "an option has one default: a number, a text, true, false or None"
            )
            raise InputError([Mistake(key, value, law, "rename it, or change its default")])
    return found


def _check(task: Any, defaults: Mapping[str, Any]) -> None:
    mistakes = [m for key, default in defaults.items() for m in _wrong(task, key, default)]
    if mistakes:
        raise InputError(mistakes)


def _wrong(task: Any, key: str, default: Any) -> Iterator[Mistake]:
    """An option of another kind than its default."""
    value, field = getattr(task, key), f"task.{key}"
    if key == "batch_size":
        yield from whole(field, value, 1) if value is not None else ()
    elif isinstance(default, bool):
        yield from flag(field, value)
    elif isinstance(default, int):
        yield from whole(field, value, -(2**63))
    elif isinstance(default, (float, str)):
        kinds = (int, float) if isinstance(default, float) else (str,)
        if isinstance(value, bool) or not isinstance(value, kinds):
            kind = "a number" if isinstance(default, float) else "a text"
            yield Mistake(field, value, f"{kind}, like its default {default!r}", "give such a one")
