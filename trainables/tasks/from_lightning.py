"""A task from a LightningModule: its own training step gives the loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from trainables.domain import InputError, Mistake
from trainables.losses import OWN_LOSS
from trainables.tasks.from_functions import Pair, keywords, read_pairs, task_from


def lightning_task(
    name: str,
    module: Callable[..., nn.Module],
    data: Callable[..., Any],
    *,
    batch_size: int | None = None,
    regularised_layer: str | None = None,
    stand_in: str | None = None,
    source: str = "",
    needs: str | None = None,
) -> type[Any]:
    """A task class whose loss is a LightningModule's `training_step((inputs, targets), 0)`.

    Lightning's Trainer takes no part: stabmap owns the updates. So `configure_optimizers`,
    callbacks and `automatic_optimization = False` have no meaning here, and what the module logs
    goes nowhere. The metric is the mean loss on the held-out data.

    Args:
        name: of the task.
        module: called as module(seed, **options), as in `task_from`; a LightningModule.
        data: called as data(**options); ((inputs, targets), (held-out inputs, targets)).
        batch_size: as in `task_from`; so are the others.
        regularised_layer: name of a submodule of the LightningModule.
        stand_in: what the data stand in for.
        source: where the setting comes from.
        needs: data that must be there first.

    Returns:
        A task class, as `task_from` does.

    Raises:
        InputError: as in `task_from`; at the first use, if the module is no LightningModule, or its
            training step returns neither a number nor a mapping with a `loss`.

    Example:
        >>> import lightning, torch
        >>> class Line(lightning.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(1, 1)
        ...     def training_step(self, batch, index):
        ...         inputs, targets = batch
        ...         return ((self.layer(inputs) - targets) ** 2).mean()
        >>> def points():
        ...     x = torch.linspace(-1, 1, 8)[:, None]
        ...     return (x, 2 * x), (x, 2 * x)
        >>> LineTask = lightning_task("line", lambda seed: Line(), points)
        >>> [result] = stabmap.evaluate([stabmap.Point(lr=0.1)], LineTask())
        >>> result.verdict.regime.value
        'stable'
    """
    # A network sees inputs alone, and a training step wants targets too: the inputs of this task
    # are numbers of rows, and the rows themselves are looked up.
    of_module, of_data = keywords(module, 1), keywords(data, 0)
    rows = Rows(name, data, tuple(of_data))

    def build(seed: int, **options: Any) -> nn.Module:
        inner = module(seed, **{key: options[key] for key in of_module})
        return Stepping(name, inner, rows.of(options))

    def numbers(**options: Any) -> Any:
        (inputs, _), (held_out, _) = rows.of(options)
        first = torch.arange(len(inputs))
        second = torch.arange(len(inputs), len(inputs) + len(held_out))
        return (first, first), (second, second)

    seed = inspect.Parameter("seed", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    every = list({**of_module, **of_data}.values())
    build.__signature__ = inspect.Signature([seed, *every])  # type: ignore[attr-defined]
    numbers.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
    build.__module__, build.__doc__ = module.__module__, inspect.getdoc(module)
    layer = None if regularised_layer is None else f"inner.{regularised_layer}".rstrip(".")
    return task_from(
        name,
        build,
        numbers,
        OWN_LOSS,
        lambda outputs, _: outputs.mean(),
        metric_name="loss on held-out data",
        batch_size=batch_size,
        regularised_layer=layer,
        stand_in=stand_in,
        source=source,
        needs=needs,
    )


@dataclass(frozen=True)
class Rows:
    """The data of a task by its options, and by dtype and device.

    Args:
        name: of the task.
        data: has the data.
        keys: its options.
    """

    name: str
    data: Callable[..., Any]
    keys: tuple[str, ...]

    def of(self, options: Mapping[str, Any]) -> tuple[Pair, Pair]:
        """Training and held-out pairs."""
        return self._read(*(options[key] for key in self.keys))

    @lru_cache(maxsize=2)  # noqa: B019 - lives as long as the task's class
    def _read(self, *values: Any) -> tuple[Pair, Pair]:
        return read_pairs(self.name, self.data, dict(zip(self.keys, values, strict=True)))


class Stepping(nn.Module):
    """A LightningModule that is called with numbers of rows and returns its loss on them.

    Args:
        name: of the task, for messages.
        inner: the LightningModule.
        pairs: training and held-out data; the latter's rows follow the former's.
    """

    def __init__(self, name: str, inner: nn.Module, pairs: tuple[Pair, Pair]) -> None:
        super().__init__()
        if not callable(getattr(inner, "training_step", None)):
            law = f"its module is a {type(inner).__name__} without a training_step"
            remedy = "return a LightningModule, or use task_from for a plain network"
            raise InputError([Mistake("task", name, law, remedy)])
        self._name, self._pairs = name, pairs
        self.inner = inner

    def forward(self, numbers: Tensor) -> Tensor:
        """The loss of one batch, a scalar."""
        like = next(self.inner.parameters())
        batch = tuple(
            _part(first, second, numbers, like) for first, second in zip(*self._pairs, strict=True)
        )
        found = self.inner.training_step(batch, 0)  # type: ignore[operator]
        loss = found.get("loss") if isinstance(found, Mapping) else found
        if not isinstance(loss, Tensor) or loss.ndim:
            law = "training_step returns neither one number nor a mapping with a loss"
            raise InputError([Mistake("task", self._name, law, "return the mean of the batch")])
        return loss


def _part(first: Tensor, second: Tensor, numbers: Tensor, like: Tensor) -> Tensor:
    """Rows of two tensors as if one followed the other, where and as the network computes."""
    late = bool((numbers >= len(first)).all())
    rows = (second if late else first)[(numbers - len(first) if late else numbers).cpu()]
    return rows.to(like.device, like.dtype if rows.is_floating_point() else None)
