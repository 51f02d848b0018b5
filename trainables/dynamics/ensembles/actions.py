"""Stabilisers in a stack: one for each trajectory, that sees the rows of this one alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from trainables.domain import Point
from trainables.dynamics.ensembles.backend import Backend, End, Ending, Stack
from trainables.dynamics.lyapunov import pulled
from trainables.dynamics.optimisers import Optimiser, Slots
from trainables.dynamics.stabilisers import Action, Setting, Step
from trainables.losses import Loss
from trainables.trajectory import Bench

State = dict[str, Tensor]
#: What acts along a trajectory, and the loss that it is trained on.
Acting = tuple[Action | None, Loss]


@dataclass(frozen=True)
class States:
    """Parameters of a stack, what their optimisers remember, and how many steps these have seen."""

    parameters: Stack
    slots: Sequence[Slots]
    ages: Sequence[int]

    def step(
        self, row: int, loss: Tensor, outputs: Tensor, targets: Tensor, known: Sequence[Tensor] = ()
    ) -> KnownStep:
        """What the stabiliser of one row looks at."""
        mine = [tuple(s[row] for s in each) for each in self.slots]
        now = [p[row] for p in self.parameters]
        return KnownStep(loss, now, mine, self.ages[row], outputs, targets, known=tuple(known))


def _row(stack: Stack, row: int) -> list[Tensor]:
    """One row, laid out in one way whatever the stack's layout: sums must not depend on it."""
    return [t[row].contiguous() for t in stack]


def _overrides(action: Action | None, name: str) -> bool:
    return action is not None and getattr(type(action), name) is not getattr(Action, name)


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
        bench: with the stabiliser.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._actions: list[Action | None] = []
        self._losses: list[Loss] = []
        #: What is added to the gradients of a row's parameters beyond those of the outputs.
        self._added: dict[int, Mapping[int, Tensor]] = {}

    @cached_property
    def _setting(self) -> tuple[torch.nn.Module, list[Tensor]]:
        module = self._bench.network(0, self._bench.dtype)
        return module, list(module.parameters())

    def start(self, point: Point, rules: Sequence[Optimiser]) -> None:
        """Begin further trajectories of one point, each with its own rule."""
        self._actions += [self._started(point, rule) for rule in rules]
        self._losses += [self._bench.loss(point.alpha)] * len(rules)

    def _started(self, point: Point, rule: Optimiser) -> Action | None:
        bench = self._bench
        if point.alpha == 0:
            return None
        layer, loss = bench.task.regularised_layer, bench.loss(point.alpha)
        setting = Setting(*self._setting, layer, loss, rule, bench.steps_per_epoch, runs=False)
        return bench.stabiliser.start(setting, point.alpha)

    def follow(self, rules: Sequence[Optimiser]) -> None:
        """Take over the rules of the next step, where the learning rates have a schedule."""
        for action, rule in zip(self._actions, rules, strict=True):
            if action is not None:
                action.follow(rule)

    def keep(self, rows: Sequence[int]) -> None:
        """Let all other trajectories go."""
        self._actions = [self._actions[row] for row in rows]
        self._losses = [self._losses[row] for row in rows]

    def take(self, row: int) -> Acting:
        """What acts along one trajectory, for another stack."""
        return self._actions[row], self._losses[row]

    def give(self, acting: Acting) -> None:
        """Go on with a trajectory of another stack."""
        self._actions.append(acting[0])
        self._losses.append(acting[1])

    def begin(self, steps: Sequence[int]) -> list[int]:
        """Begin a step.

        Args:
            steps: that each trajectory has made.

        Returns:
            Rows whose optimiser's state is to be forgotten now.
        """
        pairs = enumerate(zip(self._actions, steps, strict=True))
        return [row for row, (action, made) in pairs if action is not None and action.begin(made)]

    def gradients(
        self,
        backend: Backend,
        states: States,
        inputs: Tensor,
        targets: Tensor,
        each: bool,
    ) -> tuple[Tensor, list[Tensor]]:
        """(trajectories,) losses, and the gradients that each optimiser gets.

        Rows whose stabiliser acts at the outputs are trained apart from the others, so that these
        do not depend on whether there are any.

        Args:
            backend: one that `opens` the layer that the stabiliser looks at.
            states: before the step.
            inputs: as a backend gets them.
            targets: likewise.
            each: likewise.
        """
        acting = self._acting if self._bench.at_outputs else []
        if not acting:
            losses, gradients = backend.gradients(states.parameters, inputs, targets, each)
            self._correct(self._acting, states, gradients)
            return losses, gradients
        others = [row for row, action in enumerate(self._actions) if action is None]

        def batch(rows: Sequence[int]) -> tuple[Stack, Tensor, Tensor, bool]:
            one, two = (t[rows] if each else t for t in (inputs, targets))
            return [p[rows] for p in states.parameters], one, two, each

        opened: Any = backend
        ending = self._ending(acting, states)
        found = [opened.gradients_of(ending, self._bench.last_layer, *batch(acting))]
        if others:
            found.append(backend.gradients(*batch(others)))
        back = torch.tensor([*acting, *others]).argsort().to(inputs.device)
        gradients = [torch.cat(g)[back] for g in zip(*(g for _, g in found), strict=True)]
        for row, added in self._added.items():
            for index, part in added.items():
                gradients[index][row] += part
        self._added = {}
        return torch.cat([loss for loss, _ in found])[back], gradients

    @property
    def _acting(self) -> list[int]:
        """Rows that a stabiliser acts on."""
        return [row for row, action in enumerate(self._actions) if action is not None]

    def _ending(self, rows: Sequence[int], states: States) -> Ending:
        """What the stabilisers of some rows make of their outputs."""

        def ending(i: int, outputs: Tensor, entered: Tensor | None, targets: Tensor) -> End:
            row, action = rows[i], self._actions[rows[i]]
            assert action is not None
            outputs = outputs.requires_grad_()
            with torch.enable_grad():
                loss = self._losses[row].value(outputs, targets)
                found = action.at_outputs(states.step(row, loss, outputs, targets), entered)
            self._added[row] = found.parameters
            return End(loss.detach(), found.outputs, found.entered)

        return ending

    def _correct(self, rows: Sequence[int], states: States, gradients: Stack) -> None:
        """Change gradients of the loss alone, in place, to what each optimiser gets."""
        none = torch.empty(0)
        for row in rows:
            action = self._actions[row]
            assert action is not None
            known = _row(gradients, row)
            step = states.step(row, none, none, none, known)
            for stacked, old, new in zip(gradients, known, action.gradients(step), strict=True):
                if new is not old:
                    stacked[row] = new

    def redirect(self, directions: list[Tensor]) -> list[Tensor]:
        """What becomes of the directions of the updates."""
        rows = [row for row in self._acting if _overrides(self._actions[row], "directions")]
        if not rows:
            return directions
        found = [d.clone() for d in directions]  # they may be parts of the optimisers' states
        for row in rows:
            action = self._actions[row]
            assert action is not None
            for stacked, new in zip(found, action.directions(_row(directions, row)), strict=True):
                stacked[row] = new
        return found

    def moved(self, before: Stack, after: Stack) -> None:
        """Take note of what the updates did."""
        for row, action in enumerate(self._actions):
            if action is not None and _overrides(action, "moved"):
                action.moved(_row(before, row), _row(after, row))

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


def losses_of(
    backend: Backend,
    changed: Mapping[int, Loss],
    stack: Stack,
    inputs: Tensor,
    targets: Tensor,
    each: bool,
) -> Tensor:
    """(trajectories,) losses, without a graph, of rows that may have losses of their own.

    Args:
        backend: an `Open` one where there are such rows.
        changed: these, by row.
        stack: parameters.
        inputs: as a backend gets them.
        targets: likewise.
        each: likewise.
    """
    if not changed:
        return backend.losses(stack, inputs, targets, each)

    def batch(rows: Sequence[int]) -> tuple[Stack, Tensor, Tensor]:
        one, two = (t[rows] if each else t for t in (inputs, targets))
        return [p[rows] for p in stack], one, two

    found = torch.empty(len(stack[0]), dtype=stack[0].dtype, device=stack[0].device)
    others = [row for row in range(len(found)) if row not in changed]
    if others:
        found[others] = backend.losses(*batch(others), each)
    opened: Any = backend
    part, x, y = batch(list(changed))
    outputs = opened.outputs(part, x, each)
    for i, (row, loss) in enumerate(changed.items()):
        found[row] = loss.value(outputs[i].contiguous(), y[i] if each else y)
    return found
