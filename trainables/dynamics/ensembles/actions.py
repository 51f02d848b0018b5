"""Stabilisers in a stack: one for each trajectory, that sees the rows of this one alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trainables.domain import Point
from trainables.dynamics.ensembles.backend import Stack
from trainables.dynamics.lyapunov import pulled
from trainables.dynamics.optimisers import Optimiser, Slots
from trainables.dynamics.stabilisers import Action, Setting, Step
from trainables.trajectory import Bench

State = dict[str, Tensor]


@dataclass(frozen=True)
class KnownStep(Step):
    """A step whose plain gradients a backend has computed; it has no graph."""

    known: tuple[Tensor, ...] = ()

    def plain_gradients(self) -> tuple[Tensor, ...]:
        """See `Step`."""
        return self.known


class Actions:
    """What acts along each trajectory of a stack; nothing where alpha is 0.

    Args:
        bench: with a stabiliser that `follows_gradients`.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._actions: list[Action | None] = []

    @cached_property
    def _setting(self) -> tuple[torch.nn.Module, list[Tensor]]:
        module = self._bench.network(0, self._bench.dtype)
        return module, list(module.parameters())

    def start(self, point: Point, rules: Sequence[Optimiser]) -> None:
        """Begin further trajectories of one point, each with its own rule."""
        self._actions += [self._started(point, rule) for rule in rules]

    def _started(self, point: Point, rule: Optimiser) -> Action | None:
        bench = self._bench
        if point.alpha == 0:
            return None
        layer, loss = bench.task.regularised_layer, bench.loss(point.alpha)
        setting = Setting(*self._setting, layer, loss, rule, bench.steps_per_epoch)
        return bench.stabiliser.start(setting, point.alpha)

    def follow(self, rules: Sequence[Optimiser]) -> None:
        """Take over the rules of the next step, where the learning rates have a schedule."""
        for action, rule in zip(self._actions, rules, strict=True):
            if action is not None:
                action.follow(rule)

    def keep(self, rows: Sequence[int]) -> None:
        """Let all other trajectories go."""
        self._actions = [self._actions[row] for row in rows]

    def correct(
        self, ages: Sequence[int], parameters: Stack, gradients: Stack, slots: Sequence[Slots]
    ) -> None:
        """Change the gradients of a stack, in place, to what each optimiser gets.

        Args:
            ages: steps that each trajectory has made.
            parameters: before the step.
            gradients: of the loss alone.
            slots: states of the optimisers.
        """
        none = torch.empty(0)
        for row, (action, age) in enumerate(zip(self._actions, ages, strict=True)):
            if action is None:
                continue
            action.begin(age)
            known = tuple(g[row] for g in gradients)
            mine = [tuple(s[row] for s in each) for each in slots]
            now = [p[row] for p in parameters]
            step = KnownStep(none, now, mine, age, none, none, known)
            for old, new in zip(known, action.gradients(step), strict=True):
                if new is not old:
                    old.copy_(new)

    def moved(self, before: Stack, after: Stack) -> None:
        """Take note of what the updates did."""
        for row, action in enumerate(self._actions):
            if action is not None:
                action.moved([p[row] for p in before], [p[row] for p in after])

    def pull(self, base: int, other: int, factor: float) -> None:
        """Bring a neighbour's state as near to its base's as its parameters are brought; 0: to it.

        Args:
            base: a row.
            other: the row of its neighbour.
            factor: of all distances.
        """
        one, two = self._actions[base], self._actions[other]
        if one is None or two is None:
            return
        mine, theirs = one.state_dict(), two.state_dict()
        if factor:
            mine = {name: pulled(mine[name], theirs[name], factor) for name in mine}
        two.load_state_dict(mine)

    def state_dict(self) -> list[State]:
        """The state of each, empty where there is none."""
        return [
            {} if action is None else {n: t.clone() for n, t in action.state_dict().items()}
            for action in self._actions
        ]

    def load_state_dict(self, states: Sequence[State]) -> None:
        """Go on from `state_dict`, to the bit; the trajectories have been started."""
        device = self._bench.training.device
        for action, state in zip(self._actions, states, strict=True):
            if action is not None:
                action.load_state_dict({name: t.to(device) for name, t in state.items()})
