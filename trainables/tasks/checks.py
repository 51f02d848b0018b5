"""What a task's author may have got wrong, told by the method that is to blame."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from trainables.domain import InputError, Mistake
from trainables.messages import first_line
from trainables.tasks import Task
from trainables.tasks.from_files import source_of

Made = TypeVar("Made")


def check_parts(task: Task) -> None:
    """Build a task's network and data, and make one step's worth of gradients, on the processor.

    Args:
        task: a task whose class was found, so that it has all methods.

    Raises:
        InputError: with what the first method that does not do its part did instead.
    """
    module = _called(task, "module", lambda: task.module(0))
    _settle(task, "module", _module_mistakes(module))
    _settle(task, "regularised_layer", _layer_mistakes(task.regularised_layer, module))
    data = {}
    for method in ("train_data", "test_data"):
        data[method] = _called(task, method, getattr(task, method))
        _settle(task, method, _data_mistakes(data[method]))
    inputs, targets = data["train_data"]
    _settle(task, "batch", _batch_mistakes(task.batch, len(inputs)))
    outputs = _called(task, "module", lambda: module.double()(_few(task, inputs)))
    loss = _called(task, "loss", lambda: task.loss.value(outputs, _few(task, targets)))
    _settle(task, "loss", _loss_mistakes(loss))
    parameters = list(module.parameters())
    used = torch.autograd.grad(loss, parameters, allow_unused=True)
    if all(gradient is None for gradient in used):
        _settle(task, "loss", [("depends on none of the parameters", "do not detach the outputs")])
    with torch.no_grad():
        module.eval()  # as the metric is measured
        held_out = _called(task, "module", lambda: module(data["test_data"][0]))
        figure = _called(task, "metric", lambda: task.metric(held_out, data["test_data"][1]))
    _settle(task, "metric", _metric_mistakes(figure))


#: A law that is broken, and the way out.
Broken = tuple[str, str]


def _few(task: Task, rows: Tensor) -> Tensor:
    return rows if task.batch is None else rows[: task.batch]


def _called(task: Task, method: str, call: Callable[[], Made]) -> Made:
    try:
        with torch.random.fork_rng(devices=[]):
            return call()
    except InputError:
        raise  # an option or a data root, told by the task itself
    except Exception as error:
        raise _mistake(task, method, f"fails: {first_line(error)}", "mend it") from error


def _settle(task: Task, method: str, broken: Iterator[Broken] | list[Broken]) -> None:
    for law, remedy in broken:
        raise _mistake(task, method, law, remedy)


def _mistake(task: Task, method: str, law: str, remedy: str) -> InputError:
    source = source_of(task.name)
    where = f"{method}()" if source is None else f"{method}() in {source.path}"
    return InputError([Mistake("task", task.name, f"{where} {law}", remedy)])


def _module_mistakes(module: Any) -> Iterator[Broken]:
    if not isinstance(module, nn.Module):
        yield f"returns {type(module).__name__}, not a torch.nn.Module", "return the network"
        return
    parameters = list(module.parameters())
    if not parameters:
        yield "has no parameters", "there is nothing to train without them"
    if not all(bool(torch.isfinite(p).all()) for p in parameters):
        yield "has parameters that are not finite at the start", "initialise all of them"


def _layer_mistakes(name: str | None, module: nn.Module) -> Iterator[Broken]:
    known = [each for each, _ in module.named_modules() if each]
    if name and name not in known:
        law = f"is {name!r}, and the network has no submodule of that name"
        has = ", ".join(known[:10]) or "none"
        yield law, f"name one (it has {has}), '' for the network itself or None"


def _data_mistakes(data: Any) -> Iterator[Broken]:
    pair = isinstance(data, (tuple, list)) and len(data) == 2
    if not pair or not all(isinstance(part, Tensor) for part in data):
        yield "does not return two tensors", "return inputs, targets"
        return
    inputs, targets = data
    if not inputs.ndim or not targets.ndim or len(inputs) != len(targets) or not len(inputs):
        law = f"has {_size(inputs)} inputs for {_size(targets)} targets"
        yield law, "return one target an input, along the first dimension"
        return
    for name, part in (("inputs", inputs), ("targets", targets)):
        if not bool(torch.isfinite(part).all()):
            yield f"has {name} that are not finite", "leave out what is missing"
        if part.is_floating_point() and part.dtype != torch.float64:
            law = f"has {name} in {str(part.dtype).removeprefix('torch.')}"
            yield law, "return float64: each training rounds them to its own dtype"


def _size(part: Tensor) -> str:
    return str(len(part)) if part.ndim else "no dimension of"


def _batch_mistakes(batch: Any, count: int) -> Iterator[Broken]:
    whole = isinstance(batch, int) and not isinstance(batch, bool)
    if batch is not None and not (whole and 1 <= batch <= count):
        law = f"is {batch!r}, which must be None or from 1 to {count}, the training samples"
        yield law, "None is the full batch"


def _loss_mistakes(loss: Any) -> Iterator[Broken]:
    if not isinstance(loss, Tensor):
        yield f"returns {type(loss).__name__}, not a tensor", "return a tensor of one number"
    elif loss.ndim:
        law = f"returns a tensor of shape {tuple(loss.shape)}, not one number"
        yield law, "take the mean over the batch"
    elif not loss.requires_grad:
        yield "cannot be differentiated", "do not detach the outputs, nor turn them into numbers"


def _metric_mistakes(figure: Any) -> Iterator[Broken]:
    try:
        float(figure)
    except (TypeError, ValueError):
        yield f"returns {type(figure).__name__}, not a number", "return a float"
