"""Replicates of many points side by side: one program for all of their trajectories.

Row r x m + j of a stacked tensor is trajectory j of replicate r: first all k, then, where the
Lyapunov exponent is measured, the neighbour of the first. Every operation treats each row by
itself, so what happens to a replicate does not depend on the others, to the bit. Base trajectories
that go on alone are rows of a stack of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainables.domain import Replicate
from trainables.dynamics.distance import rel_l1_each
from trainables.dynamics.ensembles.actions import Acting, Actions, States, losses_of
from trainables.dynamics.ensembles.backend import Backend
from trainables.dynamics.ensembles.rule import StackedOptimiser
from trainables.dynamics.lyapunov import pulled, random_like
from trainables.dynamics.optimisers import Optimiser, Slots
from trainables.dynamics.thresholds import preconditioner_scaling
from trainables.record import Record
from trainables.trajectory import PROBE_SAMPLES, Bench


@dataclass
class _Gap:
    """A replicate's neighbour: at which distance it is, and how fast that grew at each step."""

    distance: float = math.nan
    restarts: int = 0
    rates: list[float] = field(default_factory=list)


@dataclass
class _Base:
    """A base trajectory on its way from one stack to another, with all that belongs to it."""

    record: Record
    parameters: list[Tensor]
    slots: list[Slots]
    gap: _Gap
    forgotten: int
    action: Acting


class EnsembleRun:
    """Replicates that are trained together, a step at a time; they come and go.

    Args:
        bench: task, training and data; an optimiser whose steps are made entry by entry.
        backend: gives losses and gradients.
        alone: whether only base trajectories are trained, whose labels are settled.
    """

    def __init__(self, bench: Bench, backend: Backend, alone: bool = False) -> None:
        self.bench, self.backend = bench, backend
        self._records: list[Record] = []
        training = bench.training
        #: Trajectories that count, and all trajectories, of a replicate.
        self._ks = 1 if alone else len(training.ks)
        self._rows = 1 if alone else self._ks + training.lyapunov
        self._alone = alone
        self._parameters: list[Tensor] = []
        self._slots: list[Slots] = []
        self._gaps: list[_Gap] = []
        #: Step of each replicate at which its optimisers' states were last forgotten.
        self._forgotten: list[int] = []
        self._actions = Actions(bench)
        self._rules: dict[int, StackedOptimiser] = {}
        self._size = math.sqrt(bench.roundoff)

    @property
    def records(self) -> list[Record]:
        """Those that are trained, in the order of their rows."""
        return self._records

    # ------------------------------------------------------------- coming and going

    def add(self, records: Sequence[Record]) -> None:
        """Begin replicates: their weights come from their seeds."""
        networks = [self.bench.network(record.seed, self.bench.dtype) for record in records]
        starts = zip(*([p.detach() for p in n.parameters()] for n in networks), strict=True)
        fresh = [torch.stack(s).repeat_interleave(self._rows, 0) for s in starts]
        slots = [records[0].rule(0).init(p) for p in fresh]
        first = len(self.records)
        self._append(fresh, slots)
        self._records = [*self._records, *records]
        self._gaps += [_Gap() for _ in records]
        self._forgotten += [0] * len(records)
        self._start_actions(records)
        self._rules = {}
        if self.bench.training.lyapunov:
            self._restart(range(first, len(self.records)))

    def _append(self, parameters: list[Tensor], slots: list[Slots]) -> None:
        """Put rows below those that there are; before their records are known."""
        if self.records:
            parameters = [
                torch.cat(pair) for pair in zip(self._parameters, parameters, strict=True)
            ]
            slots = [
                tuple(torch.cat(pair) for pair in zip(*both, strict=True))
                for both in zip(self._slots, slots, strict=True)
            ]
        self._parameters, self._slots = parameters, slots

    def _start_actions(self, records: Sequence[Record]) -> None:
        for record in records:
            self._actions.start(record.point, self._rules_of(record))

    def _rules_of(self, record: Record) -> list[Optimiser]:
        """The update rule of each row of a replicate."""
        training = record.bench.training
        ks = [*training.ks[: self._ks], *[training.ks[0]] * (self._rows - self._ks)]
        return [record.bench.rule(record.point, k, record.step) for k in ks]

    def _all_rules(self) -> list[Optimiser]:
        return [rule for record in self.records for rule in self._rules_of(record)]

    def take_finished(self) -> list[tuple[Record, Replicate]]:
        """Judge the replicates that are done, and let them go."""
        done = [i for i, record in enumerate(self.records) if record.done]
        found = []
        for i in done:
            rows = range(i * self._rows, i * self._rows + self._ks)
            ends = [[p[row].clone() for p in self._parameters] for row in rows]
            record = self.records[i]
            rates = self._gaps[i].rates
            found.append((record, record.result(ends, rates, self.backend.name)))
        if done:
            self._keep([i for i in range(len(self.records)) if i not in done])
        return found

    def _keep(self, kept: Sequence[int]) -> None:
        numbers = [i * self._rows + j for i in kept for j in range(self._rows)]
        rows = torch.tensor(numbers).long().to(self._parameters[0].device)
        self._parameters = [p[rows] for p in self._parameters]
        self._slots = [tuple(s[rows] for s in slots) for slots in self._slots]
        self._records = [self._records[i] for i in kept]
        self._gaps = [self._gaps[i] for i in kept]
        self._forgotten = [self._forgotten[i] for i in kept]
        self._actions.keep(numbers)
        self._rules = {}

    def release(self) -> list[_Base]:
        """Let the replicates go whose base goes on alone."""
        found = []
        for i, record in enumerate(self.records):
            if record.alone:
                row = i * self._rows
                slots = [tuple(s[[row]] for s in slots) for slots in self._slots]
                mine = [p[[row]] for p in self._parameters]
                gap, forgotten = self._gaps[i], self._forgotten[i]
                found.append(_Base(record, mine, slots, gap, forgotten, self._actions.take(row)))
        if found:
            self._keep([i for i, record in enumerate(self.records) if not record.alone])
        return found

    def adopt(self, bases: Sequence[_Base]) -> None:
        """Go on with what another run has released."""
        for base in bases:
            self._append(base.parameters, base.slots)
            self._records = [*self._records, base.record]
            self._gaps.append(base.gap)
            self._forgotten.append(base.forgotten)
            self._actions.give(base.action)
        self._rules = {}

    # ------------------------------------------------------------- a step

    @torch.no_grad()
    def advance(self) -> None:
        """One update of every trajectory."""
        rows = [self.bench.batch(record.order, record.step) for record in self.records]
        steps = [record.step for record in self.records for _ in range(self._rows)]
        rules = self._all_rules() if self._rules_change else None
        if rules is not None and not self.bench.training.rates.constant:
            self._actions.follow(rules)
        self._forget(self._actions.begin(steps))
        before, states = self._parameters, States(self._parameters, self._slots, self._ages())
        with torch.enable_grad():
            losses, gradients = self._actions.gradients(self.backend, states, *self._batch(rows))
        self._update(gradients, rules)
        self._actions.moved(before, self._parameters)
        if self._alone:
            self._go_on(losses)
            return
        if self.bench.training.lyapunov:
            self._pull_back()
        self._observe(before, losses, rows)

    def _go_on(self, losses: Tensor) -> None:
        """The little that is still observed of base trajectories that are alone."""
        objectives = losses.double()
        if any(record.point.weight_decay for record in self.records):
            objectives += self._decay_terms(self._parameters, range(len(self.records)))
        for i, (record, value) in enumerate(zip(self.records, objectives.tolist(), strict=True)):
            record.go_on(value)
            if record.measures:
                record.measure(self._base(i, 0)[0])

    def _forget(self, rows: Sequence[int]) -> None:
        """Begin anew with the optimisers' states of some trajectories."""
        for row in rows:
            replicate = row // self._rows
            self._forgotten[replicate] = self.records[replicate].step
            for slots in self._slots:
                for s in slots:
                    s[row] = 0.0

    def _batch(self, rows: Sequence[Any]) -> tuple[Tensor, Tensor, bool]:
        bench = self.bench
        if bench.full_batch:
            return bench.inputs, bench.targets, False
        inputs, targets = self._own_batches(rows, range(len(rows)), False)
        repeats = self._rows
        return inputs.repeat_interleave(repeats, 0), targets.repeat_interleave(repeats, 0), True

    def _own_batches(
        self, rows: Sequence[Any], replicates: Sequence[int], wide: bool
    ) -> tuple[Tensor, Tensor]:
        """The mini-batches of replicates, (replicates, batch, ...)."""
        chosen = [(rows[i], self.records[i]) for i in replicates]
        pairs = [self.bench.data(r, record.order, record.step, wide) for r, record in chosen]
        inputs, targets = zip(*pairs, strict=True)
        return torch.stack(inputs), torch.stack(targets)

    def _update(self, gradients: Sequence[Tensor], now: Sequence[Optimiser] | None) -> None:
        rules = self._stacked_rules(now)
        moves = [
            rules[p.ndim].direction(p, g, slots, 0)
            for p, g, slots in zip(self._parameters, gradients, self._slots, strict=True)
        ]
        directions = self._actions.redirect([direction for direction, _ in moves])
        pairs = zip(self._parameters, directions, strict=True)
        self._parameters = [rules[p.ndim].apply(p, d) for p, d in pairs]
        self._slots = [slots for _, slots in moves]

    @property
    def _rules_change(self) -> bool:
        """Whether the update rules are others at each step."""
        training = self.bench.training
        return training.optimiser == "adam" or not training.rates.constant

    def _stacked_rules(self, now: Sequence[Optimiser] | None) -> dict[int, StackedOptimiser]:
        """One rule for each number of dimensions, of the rules now; None where they stay."""
        if now is None and self._rules:
            return self._rules
        rules = self._all_rules() if now is None else now
        ages = self._ages()
        likes = {p.ndim: p for p in self._parameters}
        self._rules = {n: StackedOptimiser.of_rules(rules, ages, like) for n, like in likes.items()}
        return self._rules

    def _ages(self) -> list[int]:
        """Steps that the optimiser's state of each row has seen."""
        pairs = zip(self.records, self._forgotten, strict=True)
        return [record.step - since for record, since in pairs for _ in range(self._rows)]

    # ------------------------------------------------------------- neighbours

    def _parts(self, tensors: Sequence[Tensor], j: int) -> list[Tensor]:
        """Trajectory j of every replicate, (replicates, ...)."""
        return [t[j :: self._rows] for t in tensors]

    def _distances(self, replicates: Sequence[int] | slice = slice(None)) -> Tensor:
        base, other = (self._parts(self._parameters, j) for j in (0, self._ks))
        pairs = zip(base, other, strict=True)
        gaps = [b[replicates].double() - a[replicates].double() for a, b in pairs]
        return _norms(gaps)

    def _restart(self, replicates: Sequence[int]) -> None:
        """Put neighbours at random points at the right distance from their base."""
        base, other = (self._parts(self._parameters, j) for j in (0, self._ks))
        for i in replicates:
            gap = self._gaps[i]
            mine = [p[i] for p in base]
            generator = torch.Generator().manual_seed(self.records[i].seed + gap.restarts)
            gap.restarts += 1
            noise = random_like(mine, generator)
            factor = self._size * _norm(mine) / _norm(noise)
            for p, q, d in zip(mine, other, noise, strict=True):
                q[i] = p.double() + factor * d
            for slots in self._slots:
                for s in slots:
                    s[i * self._rows + self._ks] = s[i * self._rows]
            self._actions.pull(i * self._rows, i * self._rows + self._ks, 0.0)
            gap.distance = float(self._distances([i])[0])

    def _pull_back(self) -> None:
        """Measure how far each neighbour went, and bring it back to its distance."""
        size = _norms(self._parts(self._parameters, 0))
        moved = self._distances()
        sizes, moves = size.tolist(), moved.tolist()
        lost = []
        for i, (gap, s, d) in enumerate(zip(self._gaps, sizes, moves, strict=True)):
            if not math.isfinite(s) or gap.distance == 0:
                gap.rates.append(math.nan)
            elif d == 0 or not math.isfinite(d):
                lost.append(i)
                gap.rates.append(math.inf)
            else:
                gap.rates.append(math.log(d / gap.distance))
        factor = self._size * size / moved
        for tensors in (self._parameters, *zip(*self._slots, strict=True)):
            for t in tensors:
                t[self._ks :: self._rows] = pulled(
                    t[:: self._rows], t[self._ks :: self._rows], factor
                )
        for i, f in enumerate(factor.tolist()):
            if math.isfinite(f):  # else it has blown up, or begins again below
                self._actions.pull(i * self._rows, i * self._rows + self._ks, f)
        for gap, distance in zip(self._gaps, self._distances().tolist(), strict=True):
            if math.isfinite(gap.rates[-1]):
                gap.distance = distance
        self._restart(lost)

    # ------------------------------------------------------------- observations

    def _observe(self, before: Sequence[Tensor], losses: Tensor, rows: Sequence[Any]) -> None:
        base = self._parts(before, 0)
        after = self._parts(self._parameters, 0)
        watchers = [i for i, record in enumerate(self.records) if record.watches]
        objectives = self._objectives(base, losses[:: self._rows], watchers)
        change = rel_l1_each(after, base)
        others = [self._parts(self._parameters, j) for j in range(1, self._ks)]
        separation = [rel_l1_each(after, other) for other in others]
        losses = losses.double().reshape(-1, self._rows)[:, : self._ks]
        columns = torch.cat([losses, torch.stack([change, *separation], 1)], 1).tolist()
        watched = dict(zip(watchers, objectives.tolist(), strict=True))
        compared = self._compared(base, after, rows)
        for i, (record, column) in enumerate(zip(self.records, columns, strict=True)):
            if i in watched:
                record.watch(watched[i])
            if i in compared:
                record.compare(*compared[i])
            if record.photographs:
                record.photograph(*self._base(i))
            record.move(column[: self._ks], column[self._ks], column[self._ks + 1 :])
            if record.asks:  # the step is over
                record.ask(*self._base(i, 0))
            if record.measures:
                record.measure(self._base(i, 0)[0])

    def _objectives(self, base: list[Tensor], losses: Tensor, watchers: list[int]) -> Tensor:
        """Objectives in float64 before the update, of those replicates that are watched."""
        bench = self.bench
        if bench.full_batch:
            if bench.training.dtype == "float64":
                return losses + self._decay_terms(base, watchers)
            data = bench.inputs64, bench.targets64
        else:
            data = bench.inputs64[:PROBE_SAMPLES], bench.targets64[:PROBE_SAMPLES]
            base = [p[watchers] for p in base]
        return self._objective(base, watchers, *data, False)

    def _compared(
        self, base: list[Tensor], after: list[Tensor], rows: Sequence[Any]
    ) -> dict[int, list[float]]:
        """Objectives of each replicate's own mini-batch, before and after, where they count."""
        chosen = [i for i, record in enumerate(self.records) if record.compares]
        if not chosen:
            return {}
        batch = self._own_batches(rows, chosen, True)
        pair = [
            self._objective([p[chosen] for p in parameters], chosen, *batch, True)
            for parameters in (base, after)
        ]
        return dict(zip(chosen, torch.stack(pair, 1).tolist(), strict=True))

    def _objective(
        self,
        parameters: list[Tensor],
        replicates: Sequence[int],
        inputs: Tensor,
        targets: Tensor,
        each: bool,
    ) -> Tensor:
        if not replicates:
            return torch.empty(0)
        wide = [p.double() for p in parameters]
        changed = {}
        if self.bench.stabiliser.changes_loss:
            pairs = enumerate(self.records[i] for i in replicates)
            changed = {row: record.loss for row, record in pairs if record.point.alpha > 0}
        found = losses_of(self.backend, changed, wide, inputs, targets, each)
        return found + self._decay_terms(parameters, replicates)

    def _decay_terms(self, parameters: list[Tensor], replicates: Sequence[int]) -> Tensor:
        decays = [self.records[i].point.weight_decay for i in replicates]
        strengths = torch.tensor(decays, dtype=torch.float64, device=parameters[0].device)
        # Where there is no decay an infinite parameter must not matter.
        return torch.where(strengths > 0, 0.5 * strengths * _squares(parameters), 0.0)

    def _base(self, i: int, more: int = 1) -> tuple[list[Tensor], Tensor | None]:
        """Parameters and preconditioner of a base trajectory, `more` steps after its record's."""
        record, row = self.records[i], i * self._rows
        slots = [tuple(s[row] for s in slots) for slots in self._slots]
        age = record.step + more - self._forgotten[i]
        scaling = preconditioner_scaling(record.rule(0), slots, age)
        return [p[row] for p in self._parameters], scaling

    # ------------------------------------------------------------- interruptions

    def state_dict(self) -> dict[str, Any]:
        """Everything the rest of the run depends on."""
        return {
            "parameters": [p.clone() for p in self._parameters],
            "slots": [tuple(s.clone() for s in slots) for slots in self._slots],
            "gaps": [[g.distance, g.restarts, list(g.rates)] for g in self._gaps],
            "forgotten": list(self._forgotten),
            "actions": self._actions.state_dict(),
            "records": [record.state_dict() for record in self.records],
        }

    def load_state_dict(self, state: Mapping[str, Any], records: Sequence[Record]) -> None:
        """Go on from `state_dict`, to the bit, with new records of the same replicates."""
        device = self.bench.training.device
        self._parameters = [p.to(device, copy=True) for p in state["parameters"]]
        self._slots = [tuple(s.to(device, copy=True) for s in slots) for slots in state["slots"]]
        self._gaps = [_Gap(d, n, list(rates)) for d, n, rates in state["gaps"]]
        self._forgotten = list(state["forgotten"])
        self._records = list(records)
        self._start_actions(records)
        self._actions.load_state_dict(state["actions"])
        self._rules = {}
        for record, saved in zip(self.records, state["records"], strict=True):
            record.load_state_dict(saved)


class TwoStacks:
    """Replicates in a stack and, once their labels are settled, their bases in another.

    See `trainables.pack.Run`.

    Args:
        bench: see `EnsembleRun`.
        backend: likewise.
    """

    def __init__(self, bench: Bench, backend: Backend) -> None:
        self._whole = EnsembleRun(bench, backend)
        self._bases = EnsembleRun(bench, backend, alone=True)

    @property
    def records(self) -> list[Record]:
        """Those that are trained."""
        return [*self._whole.records, *self._bases.records]

    def add(self, records: Sequence[Record]) -> None:
        """Begin replicates."""
        self._whole.add(records)

    def advance(self) -> None:
        """One update of every trajectory."""
        for run in (self._whole, self._bases):
            if run.records:
                run.advance()
        self._bases.adopt(self._whole.release())

    def take_finished(self) -> list[tuple[Record, Replicate]]:
        """Judge the replicates that are done, and let them go."""
        return [*self._whole.take_finished(), *self._bases.take_finished()]

    def state_dict(self) -> dict[str, Any]:
        """Everything the rest of the run depends on."""
        return {"whole": self._whole.state_dict(), "bases": self._bases.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], records: Sequence[Record]) -> None:
        """Go on from `state_dict`, to the bit, with new records of the same replicates."""
        count = len(state["whole"]["records"])
        self._whole.load_state_dict(state["whole"], records[:count])
        self._bases.load_state_dict(state["bases"], records[count:])


def _squares(tensors: Sequence[Tensor]) -> Tensor:
    """(rows,) sums of squares over all tensors of shape (rows, ...), in float64."""
    found: Tensor = sum((t.double() ** 2).reshape(len(t), -1).sum(1) for t in tensors)  # type: ignore[assignment]
    return found


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    return _squares(tensors).sqrt()


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(_norms([t[None] for t in tensors])[0])
