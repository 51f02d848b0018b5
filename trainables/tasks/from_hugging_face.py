"""A task from a model of Hugging Face's transformers: its logits against labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from trainables.domain import InputError, Mistake
from trainables.losses import Loss
from trainables.tasks.from_functions import task_from

#: Labels that count for nothing, as in transformers.
IGNORED = -100


def hugging_face_task(
    name: str,
    model: Callable[..., nn.Module],
    data: Callable[..., Any],
    *,
    next_token: bool = False,
    batch_size: int | None = None,
    regularised_layer: str | None = None,
    stand_in: str | None = None,
    source: str = "",
    needs: str | None = None,
) -> type[Any]:
    """A task class for any model whose output has `logits`, trained with cross-entropy.

    Nothing is downloaded: build the model from a configuration, or from a local folder. Its dropout
    is switched off, because rounding errors could not be told from chance. Attention is PyTorch's
    own where the configuration says `attn_implementation="eager"`; fused kernels may not repeat
    themselves to the bit on a GPU.

    Args:
        name: of the task.
        model: called as model(seed, **options), as `module` in `task_from`.
        data: called as data(**options); ((inputs, labels), (held-out inputs, labels)): token
            numbers, or pixels for models of images; labels of -100 count for nothing.
        next_token: whether the labels are the tokens themselves, of which each is to be foretold
            from those before it (causal language models).
        batch_size: as in `task_from`; so are the others.
        regularised_layer: name of a submodule of the model, such as `classifier`.
        stand_in: what the data stand in for.
        source: where the setting comes from.
        needs: data that must be there first.

    Returns:
        A task class, as `task_from` does. Its metric is the accuracy on the held-out data.

    Raises:
        InputError: as in `task_from`; at the first use, if the model's output has no logits.
    """

    def build(seed: int, **options: Any) -> nn.Module:
        return _Logits(name, model(seed, **options))

    build.__signature__ = inspect.signature(model)  # type: ignore[attr-defined]
    build.__module__, build.__doc__ = model.__module__, inspect.getdoc(model)
    layer = None if regularised_layer is None else f"inner.{regularised_layer}".rstrip(".")

    def pairs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if next_token:
            logits, labels = logits[:, :-1], labels[:, 1:]
        return logits.flatten(0, -2), labels.flatten()

    def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(*pairs(logits, labels), ignore_index=IGNORED)

    def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
        scores, truth = pairs(logits, labels)
        counted = truth != IGNORED
        return (scores.argmax(-1) == truth)[counted].double().mean()

    return task_from(
        name,
        build,
        data,
        Loss("cross-entropy", cross_entropy),
        accuracy,
        batch_size=batch_size,
        regularised_layer=layer,
        stand_in=stand_in,
        source=source,
        needs=needs,
    )


class _Logits(nn.Module):
    """A model that returns its logits alone."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self._name = name
        self.inner = inner
        for part in inner.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, (samples, ..., classes)."""
        logits = getattr(self.inner(inputs), "logits", None)
        if not isinstance(logits, Tensor):
            law = f"the output of {type(self.inner).__name__} has no logits"
            remedy = "use a model with a head, or task_from with a network of your own"
            raise InputError([Mistake("task", self._name, law, remedy)])
        return logits
