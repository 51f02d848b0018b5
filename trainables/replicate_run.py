"""One replicate trained by itself, a trajectory after the other: any network, any optimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trainables.domain import Replicate
from trainables.dynamics.distance import rel_l1
from trainables.dynamics.lyapunov import Neighbour
from trainables.dynamics.thresholds import preconditioner_scaling
from trainables.record import Record
from trainables.trajectory import PROBE_SAMPLES, Trajectory

#: Parameters and buffers of a trajectory.
_State = tuple[list[Tensor], list[Tensor]]


class ReplicateRun:
    """All k of one point and one seed, side by side, a step at a time.

    Args:
        record: of nothing yet.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.bench, self.point = record.bench, record.point
        training = self.bench.training
        self.trajectories = [
            Trajectory(self.bench, self.point, k, record.seed, record.order) for k in training.ks
        ]
        self._neighbour = Neighbour(self.trajectories[0]) if training.lyapunov else None

    @property
    def done(self) -> bool:
        """Whether the verdict is settled."""
        return self.record.done

    def advance(self) -> None:
        """One update of every trajectory."""
        record, bench = self.record, self.bench
        base, *others = self.trajectories
        rows = bench.batch(record.order, record.step)
        if record.alone:
            loss, after = float(base.step(rows)), [p.detach() for p in base.parameters]
            record.go_on(loss + self._decay_term(after))
            if record.measures:
                record.measure(after, base.buffers)
            return
        before = base.snapshot(), [b.clone() for b in base.buffers]
        losses = [float(base.step(rows))]
        losses += [float(other.step(rows)) for other in others]
        if self._neighbour is not None:
            self._neighbour.step(rows)
        after = [p.detach() for p in base.parameters]
        self._observe_loss(before, (after, base.buffers), rows, losses[0])
        change = rel_l1(after, before[0])
        separation = [rel_l1(after, [p.detach() for p in o.parameters]) for o in others]
        if record.photographs:
            record.photograph(after, self._scaling(), base.buffers)
        record.move(losses, change, separation)
        if record.asks:
            record.ask(after, self._scaling(), base.buffers)
        if record.measures:
            record.measure(after, base.buffers)

    def _scaling(self) -> Tensor | None:
        base = self.trajectories[0]
        return preconditioner_scaling(base.optimiser, base.slots, base.age)

    def _observe_loss(
        self, before: _State, after: _State, rows: Tensor | slice, loss: float
    ) -> None:
        """Record the objective before the update, in float64; for mini-batches on a probe set."""
        bench, record = self.bench, self.record
        if bench.full_batch:
            if bench.training.dtype == "float64":
                record.watch(loss + self._decay_term(before[0]))
            else:
                record.watch(self._objective(before, bench.inputs64, bench.targets64))
            return
        if record.watches:
            probe = bench.inputs64[:PROBE_SAMPLES], bench.targets64[:PROBE_SAMPLES]
            record.watch(self._objective(before, *probe))
        if record.compares:
            batch = bench.data(rows, record.order, record.step, wide=True)
            record.compare(self._objective(before, *batch), self._objective(after, *batch))

    @torch.no_grad()
    def _objective(self, state: _State, inputs: Tensor, targets: Tensor) -> float:
        outputs = self.record.network(*state)(inputs)
        return float(self.record.loss.value(outputs, targets)) + self._decay_term(state[0])

    def _decay_term(self, parameters: list[Tensor]) -> float:
        if not self.point.weight_decay:
            return 0.0
        squares = sum(float((p.detach().double() ** 2).sum()) for p in parameters)
        return 0.5 * self.point.weight_decay * squares

    def result(self) -> Replicate:
        """Judge what was seen. Call it when `done`."""
        rates = self._neighbour.rates if self._neighbour is not None else []
        ends = [[p.detach() for p in t.parameters] for t in self.trajectories]
        return self.record.result(ends, rates, buffers=[t.buffers for t in self.trajectories])

    def state_dict(self) -> dict[str, Any]:
        """Everything the rest of the run depends on."""
        return {
            "trajectories": [t.state_dict() for t in self.trajectories],
            "neighbour": self._neighbour.state_dict() if self._neighbour else None,
            "record": self.record.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, to the bit."""
        for trajectory, saved in zip(self.trajectories, state["trajectories"], strict=True):
            trajectory.load_state_dict(saved)
        if self._neighbour is not None:
            self._neighbour.load_state_dict(state["neighbour"])
        self.record.load_state_dict(state["record"])


class LoopRun:
    """Replicates one after the other; see `trainables.pack.Run`."""

    def __init__(self) -> None:
        self._runs: list[ReplicateRun] = []

    @property
    def records(self) -> list[Record]:
        """Those that are trained."""
        return [run.record for run in self._runs]

    def add(self, records: Sequence[Record]) -> None:
        """See `trainables.pack.Run`."""
        self._runs += [ReplicateRun(record) for record in records]

    def advance(self) -> None:
        """See `trainables.pack.Run`."""
        for run in self._runs:
            run.advance()

    def take_finished(self) -> list[tuple[Record, Replicate]]:
        """See `trainables.pack.Run`."""
        done = [run for run in self._runs if run.record.done]
        self._runs = [run for run in self._runs if not run.record.done]
        return [(run.record, run.result()) for run in done]

    def state_dict(self) -> dict[str, Any]:
        """See `trainables.pack.Run`."""
        return {"runs": [run.state_dict() for run in self._runs]}

    def load_state_dict(self, state: Mapping[str, Any], records: Sequence[Record]) -> None:
        """See `trainables.pack.Run`."""
        self._runs = [ReplicateRun(record) for record in records]
        for run, saved in zip(self._runs, state["runs"], strict=True):
            run.load_state_dict(saved)
