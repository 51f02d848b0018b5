"""A guard for training loops: asks a map whether the settings in use are stable."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from trainables.domain import AXIS_NAMES, InputError, Mistake, StabmapError

if TYPE_CHECKING:
    from analysis.map import StabilityMap

Action = Literal["warn", "stop", "lower"]
#: Axes that an optimiser's parameter groups have.
OF_OPTIMISER = ("lr", "weight_decay")


class UnstableError(StabmapError):
    """A training was stopped because its settings lie beyond the stable boundary."""


@dataclass(frozen=True)
class Advice:
    """What a map says of settings.

    Args:
        lr: the learning rate asked about.
        largest: the largest learning rate that is stable with the guard's confidence; None where
            not even the smallest of the map is.
        known: whether the map reaches there: False where only values off the map could tell.
        text: the same in words.
    """

    lr: float
    largest: float | None
    known: bool
    text: str

    @property
    def stable(self) -> bool:
        """Whether the settings are stable, as far as the map reaches."""
        return self.known and self.largest is not None and self.lr <= self.largest


class MapGuard:
    """Asks a map before and during a training, and warns, stops it, or lowers the learning rate.

    In a loop of your own call the guard with the optimiser, before or after each step; with
    Lightning give `guard.lightning()` to the trainer's callbacks. The map is asked again only when
    a learning rate or weight decay has changed.

    Args:
        stability_map: from `load_map`. It should be of the same task and optimiser.
        action: `warn` (once for each setting), `stop` (raise `UnstableError`), or `lower` (set the
            rate to the largest stable one, with a warning).
        confidence: probability of stability that is asked for, in (0, 1).
        **fixed: values of the map's other free axes, such as alpha=10.0. A weight decay given here
            overrides the optimiser's.

    Raises:
        InputError: an unknown action or axis, a confidence outside (0, 1), a free axis without a
            value, or a map over no learning rates.

    Example:
        >>> import torch
        >>> from stabmap import MapGuard, example_map
        >>> optimiser = torch.optim.SGD([torch.zeros(1)], lr=0.01, weight_decay=0.01)
        >>> guard = MapGuard(example_map(), action="stop")
        >>> for step in range(3):
        ...     _ = guard(optimiser)
    """

    def __init__(
        self,
        stability_map: StabilityMap,
        action: Action = "warn",
        confidence: float = 0.95,
        **fixed: float,
    ) -> None:
        axes = {axis.name: axis for axis in stability_map.axes}
        if mistakes := list(_mistakes(axes, action, confidence, fixed)):
            raise InputError(mistakes)
        self._map = stability_map
        self._action = action
        self._confidence = confidence
        self._fixed = fixed
        self._axes = axes
        self._asked: dict[tuple[float, float], Advice] = {}
        self._told: set[str] = set()

    def ask(self, lr: float, weight_decay: float = 0.0) -> Advice:
        """What the map says of a learning rate, at a weight decay.

        Example:
            >>> from stabmap import MapGuard, example_map
            >>> guard = MapGuard(example_map())
            >>> guard.ask(0.01, 0.01).stable, guard.ask(10.0, 0.01).stable
            (True, False)
            >>> print(guard.ask(10.0, 0.01).text)  # doctest: +ELLIPSIS
            learning rate 10 is ... times the largest one that is stable with probability 0.95, ...
        """
        key = lr, weight_decay
        if key not in self._asked:
            self._asked[key] = self._ask(lr, weight_decay)
        return self._asked[key]

    def __call__(self, optimizer: Any) -> tuple[Advice, ...]:
        """Look at an optimiser's parameter groups and act.

        Args:
            optimizer: a `torch.optim.Optimizer`, or whatever has its `param_groups`.

        Returns:
            What the map says of each group.

        Raises:
            UnstableError: the action is `stop` and a group is not stable.

        Example:
            >>> import torch
            >>> from stabmap import MapGuard, UnstableError, example_map
            >>> optimiser = torch.optim.SGD([torch.zeros(1)], lr=10.0)
            >>> try:
            ...     _ = MapGuard(example_map(), action="stop")(optimiser)
            ... except UnstableError:
            ...     print("stopped")
            stopped
        """
        groups = optimizer.param_groups
        found = tuple(self.ask(float(g["lr"]), float(g.get("weight_decay", 0.0))) for g in groups)
        for group, advice in zip(groups, found, strict=True):
            if not advice.stable:
                self._act(group, advice)
        return found

    def lightning(self) -> Any:
        """A callback for Lightning's trainer, which looks before each batch.

        Raises:
            StabmapError: Lightning is not installed.

        Example:
            >>> from contextlib import suppress
            >>> from stabmap import MapGuard, StabmapError, example_map
            >>> with suppress(StabmapError):  # without Lightning there is nothing to call back
            ...     callbacks = [MapGuard(example_map()).lightning()]
        """
        return _lightning(self)

    def _act(self, group: dict[str, Any], advice: Advice) -> None:
        if self._action == "stop" and advice.known:
            raise UnstableError(advice.text)
        text = advice.text
        if self._action == "lower" and advice.known and advice.largest is not None:
            group["lr"] = advice.largest
            text = f"{text}; lowered to {advice.largest:.4g}"
        if text not in self._told:
            self._told.add(text)
            warnings.warn(f"stabmap: {text}", stacklevel=3)

    def _place(self, weight_decay: float) -> dict[str, float]:
        given = {"weight_decay": weight_decay, **self._fixed}
        return {name: value for name, value in given.items() if self._axes[name].free}

    def _ask(self, lr: float, weight_decay: float) -> Advice:
        axis, place = self._axes["lr"], self._place(weight_decay)
        held = self._axes["weight_decay"]
        decay = self._fixed.get("weight_decay", weight_decay)
        if not held.free and held.value != decay:
            text = f"the map holds weight_decay at {held.value:g}, this training has {decay:g}"
            return Advice(lr, None, False, text)
        try:
            largest = self._map.max_stable("lr", confidence=self._confidence, **place)
        except InputError as error:  # a weight decay that was not swept
            return Advice(lr, None, False, f"the map cannot tell: {error.mistakes[0]}")
        at = "".join(f", {name} {value:g}" for name, value in place.items())
        sure = f"with probability {self._confidence:g}"
        if largest is None:
            text = f"no learning rate from {axis.low:g} on is stable {sure}{at}"
            return Advice(lr, None, lr >= (axis.low or 0.0), text)
        assert axis.high is not None
        if lr > axis.high and largest >= axis.high:
            text = f"learning rate {lr:g} is off the map, which is stable up to its end {largest:g}"
            return Advice(lr, largest, False, text + at)
        if lr <= largest:
            return Advice(lr, largest, True, f"learning rate {lr:g} is stable {sure}{at}")
        text = (
            f"learning rate {lr:g} is {lr / largest:.3g} times the largest one that is stable "
            f"{sure}, {largest:.4g}{at}"
        )
        return Advice(lr, largest, True, text)


def _mistakes(
    axes: dict[str, Any], action: str, confidence: float, fixed: dict[str, float]
) -> Iterator[Mistake]:
    if action not in get_args(Action):
        known = ", ".join(get_args(Action))
        yield Mistake("action", action, "the guard cannot do that", f"use one of {known}")
    if not 0 < confidence < 1:
        yield Mistake("confidence", confidence, "0 < confidence < 1", "use 0.95")
    if not axes["lr"].free:
        yield Mistake("lr", axes["lr"].value, "the map has one rate", "sweep learning rates")
    for name in fixed:
        if name not in AXIS_NAMES or name == "lr":
            others = ", ".join(n for n in AXIS_NAMES if n != "lr")
            yield Mistake(name, fixed[name], "is no other axis of a map", f"use {others}")
    for name, axis in axes.items():
        if axis.free and name not in (*OF_OPTIMISER, *fixed):
            law = "the map varied this axis, and no optimiser has it"
            yield Mistake(name, None, law, f"give its value: MapGuard(..., {name}=0.0)")


def _lightning(guard: MapGuard) -> Any:
    for name in ("lightning.pytorch", "pytorch_lightning"):  # its new name and its old one
        with suppress(ImportError):
            callback = importlib.import_module(name).Callback
            break
    else:
        raise StabmapError("Lightning is not installed; pip install lightning")

    class LightningGuard(callback):  # type: ignore[misc, valid-type]
        """Looks at the trainer's optimisers before each batch."""

        def on_train_batch_start(self, trainer: Any, *_: Any, **__: Any) -> None:
            for optimizer in trainer.optimizers:
                guard(optimizer)

    return LightningGuard()
