"""Which backend trains a task: the first of a fixed list that is sound, and fast enough.

The list is in the order of preference, and a trial run can only strike entries off it: those that
fail, those whose results depend on what they are stacked with, and those much slower than the loop.
A choice by the fastest time of the day would give another map another day.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from trainables.domain import InputError, Mistake
from trainables.dynamics.ensembles.backend import Backend, Chunks, Closed, End, Loop, Stack, opens
from trainables.dynamics.ensembles.batched import Batched
from trainables.dynamics.ensembles.vectorised import Vectorised
from trainables.dynamics.ensembles.wide import Wide
from trainables.messages import first_line
from trainables.trajectory import PROBE_SAMPLES, Bench, cast

log = logging.getLogger("stabmap")

#: Trajectories of the trial, how they are stacked in it, and on a GPU how many of them once.
TRIAL = 5
LARGE = 64
STACKINGS = ([0], [4], [1, 3], [3, 1, 0], [4, 3, 2, 1, 0])
#: How far a backend's gradients in float64 may lie from the loop's, relative to the largest.
AGREEMENT = 1e-6
#: Times as slow as the loop that a backend is struck off for. With as many trajectories as are
#: trained together none of the built-in tasks comes near it, or a busy machine would sway the
#: choice.
SLOWER = 3.0
#: Trajectories at a time on a processor, whose cache is small; a GPU takes all.
CHUNK = 16

#: Trajectories one after the other.
LOOP = "loop"


def candidates(bench: Bench) -> Iterator[Backend]:
    """The backends that may suit a task, the preferred ones first."""
    task = bench.task
    exact = getattr(task, "ensemble", None)
    if exact is not None:
        yield exact()
    module = bench.network(0, torch.float64)
    if bench.full_batch and Wide.suits(module, bench.dtype, bench.inputs):
        yield Wide(module, task.loss)
    if Batched.fits(module):
        yield Batched(module, task.loss)
    yield Vectorised(module, task.loss)


def choose(bench: Bench, wanted: str = "auto") -> tuple[Backend | None, dict[str, str]]:
    """The backend that trains a task.

    Args:
        bench: the task, its data and how it is trained.
        wanted: the name of a backend, `loop` or `auto`; see `Training`.

    Returns:
        The backend, None for trajectories one after the other; and for each backend that was struck
        off its name and why.

    Raises:
        InputError: the wanted backend does not suit the task, or is not sound here.
    """
    if wanted == LOOP:
        return None, {}
    end = (bench.at_outputs, bench.last_layer) if bench.at_outputs else ()
    key = (bench.task, bench.training.dtype, bench.training.device, wanted, end)
    try:
        hash(key)
    except TypeError:  # a task that has no hash
        return _choose(bench, wanted)
    if key not in _known:
        _known[key] = _choose(bench, wanted)
        if len(_known) > MOST_KNOWN:
            del _known[next(iter(_known))]
    return _known[key]


#: What was chosen in this process before: a trial takes as long as hundreds of steps.
_known: dict[Any, tuple[Backend | None, dict[str, str]]] = {}
MOST_KNOWN = 8


def _choose(bench: Bench, wanted: str) -> tuple[Backend | None, dict[str, str]]:
    struck: dict[str, str] = {}
    if bench.keeps_state:
        law = "the network changes its buffers, as batch normalisation does"
        if wanted == "auto":
            return None, {"all": law}
        raise InputError([Mistake("backend", wanted, law, "use auto or loop")])
    trial = Trial.of(bench)
    for backend in candidates(bench):
        if wanted not in ("auto", backend.name):
            continue
        reason = trial.judged(backend, wanted == "auto")
        if reason is None:
            if bench.at_outputs and opens(backend, bench.last_layer):
                closed = replace(trial, at_end=True).judged(backend, False)
                if closed is not None:  # plain points do not mind
                    struck[f"{backend.name} with a stabiliser"] = closed
                    log.info(
                        "task %s: %s with a stabiliser: %s", bench.task.name, backend.name, closed
                    )
                    backend = Closed(backend)
            if bench.inputs.device.type == "cpu":
                backend = Chunks(backend, _chunk(backend))
            return backend, struck
        struck[backend.name] = reason
        log.info("task %s: no ensemble backend %s: %s", bench.task.name, backend.name, reason)
    if wanted == "auto":
        return None, struck
    law = struck.get(wanted, "the task has no such backend")
    raise InputError([Mistake("backend", wanted, law, "use auto or loop")])


def _chunk(backend: Backend) -> int:
    """Trajectories at a time on a processor."""
    return int(getattr(backend, "chunk", CHUNK))


def _ending(_row: int, outputs: Tensor, entered: Tensor | None, _targets: Tensor) -> End:
    """Something like a stabiliser at the outputs: it looks at one row alone."""
    return End(outputs.sum(), outputs.cos(), None if entered is None else entered.cos())


@dataclass(frozen=True)
class Trial:
    """One step of a few trajectories.

    Args:
        bench: the task, its data and how it is trained.
        stack: parameters of `TRIAL` trajectories in the training's dtype.
        inputs: one batch, or for mini-batches one for each trajectory, in float64.
        targets: likewise.
        at_end: whether something is done at the outputs, as a stabiliser may.
    """

    bench: Bench
    stack: Stack
    inputs: Tensor
    targets: Tensor
    at_end: bool = False

    @classmethod
    def of(cls, bench: Bench) -> Self:
        """With initial weights from several seeds and the first rows of the data."""
        networks = [bench.network(seed, bench.dtype) for seed in range(TRIAL)]
        rows = zip(*([p.detach() for p in n.parameters()] for n in networks), strict=True)
        inputs, targets = bench.inputs64, bench.targets64
        if bench.task.batch is not None:
            chosen = torch.arange(TRIAL * bench.task.batch) % len(inputs)
            chosen = chosen.reshape(TRIAL, -1).to(inputs.device)
            inputs, targets = inputs[chosen], targets[chosen]
        return cls(bench, [torch.stack(row) for row in rows], inputs, targets)

    def judged(self, backend: Backend, timed: bool) -> str | None:
        """Why a backend is not to be used; None if it may be.

        Args:
            backend: the backend.
            timed: whether it must be fast too.
        """
        try:
            reason = self.dependence(backend) or self.disagreement(backend)
            if reason is None and timed:
                times = self.seconds(backend, self.together(backend)) / self.pace
                slow = f"it takes {times:.1f} times as long as the loop"
                reason = slow if times > SLOWER else None
        except Exception as error:  # whatever a user's network cannot do
            reason = f"it fails: {type(error).__name__}: {first_line(error)}"
        return reason

    def dependence(self, backend: Backend) -> str | None:
        """What differs, to the bit, when trajectories are stacked otherwise; None if nothing."""
        everything = list(range(TRIAL))
        whole = self.results(backend, everything)
        crowd = [i % TRIAL for i in range(self.together(backend))]
        many = self.results(backend, crowd)
        last = crowd[-TRIAL:]
        if not all(torch.equal(a[-TRIAL:], b[last]) for a, b in zip(many, whole, strict=True)):
            return f"results change where {len(crowd)} trajectories are together"
        for rows in STACKINGS:
            part = self.results(backend, rows)
            if not all(torch.equal(a, b[rows]) for a, b in zip(part, whole, strict=True)):
                return f"results change where trajectories {rows} of {everything} are alone"
        return None

    def disagreement(self, backend: Backend) -> str | None:
        """Whether losses and gradients in float64 are not those of the loop; None if they are."""
        loop = Loop(self.bench.network(0, torch.float64), self.bench.task.loss)
        wide = [p.double() for p in self.stack]
        each = not self.bench.full_batch
        for rows in ([0, 1], [2]):
            stack = [p[rows] for p in wide]
            batch = [t[rows] if each else t for t in (self.inputs, self.targets)]
            pairs = [self.step(b, stack, batch[0], batch[1]) for b in (backend, loop)]
            mine, theirs = ([losses, *gradients] for losses, gradients in pairs)
            for one, other in zip(mine, theirs, strict=True):
                scale = float(other.abs().max())
                if not torch.allclose(one, other, rtol=0, atol=AGREEMENT * scale, equal_nan=True):
                    return "its losses or gradients are not those of the loop"
        return None

    def results(self, backend: Backend, rows: list[int]) -> list[Tensor]:
        """Losses and gradients, and losses in float64."""
        each = not self.bench.full_batch
        inputs, targets = (t[rows] if each else t for t in (self.inputs, self.targets))
        stack = [p[rows] for p in self.stack]
        dtype = stack[0].dtype
        losses, gradients = self.step(backend, stack, cast(inputs, dtype), cast(targets, dtype))
        wide = [p.double() for p in stack]
        few = self.bench.inputs64[:PROBE_SAMPLES], self.bench.targets64[:PROBE_SAMPLES]
        watched = [self.watched(backend, wide, inputs, targets, each)]
        watched.append(self.watched(backend, wide, *few, False))
        return [losses, *watched, *gradients]

    def step(
        self, backend: Any, stack: Stack, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Losses and gradients."""
        each, layer = not self.bench.full_batch, self.bench.last_layer
        found: tuple[Tensor, list[Tensor]] = (
            backend.gradients_of(_ending, layer, stack, inputs, targets, each)
            if self.at_end
            else backend.gradients(stack, inputs, targets, each)
        )
        return found

    def watched(
        self, backend: Any, stack: Stack, inputs: Tensor, targets: Tensor, each: bool
    ) -> Tensor:
        """What is looked at beside the training: losses, or outputs."""
        if self.at_end:
            return backend.outputs(stack, inputs, each)  # type: ignore[no-any-return]
        return backend.losses(stack, inputs, targets, each)  # type: ignore[no-any-return]

    def together(self, backend: Backend) -> int:
        """How many trajectories are stacked: as many as on this processor, or as in a sweep."""
        return max(_chunk(backend), TRIAL) if self.stack[0].device.type == "cpu" else LARGE

    @property
    def pace(self) -> float:
        """Seconds of the loop for each trajectory."""
        module = self.bench.network(0, torch.float64)
        return self.seconds(Loop(module, self.bench.task.loss), TRIAL)

    def seconds(self, backend: Backend, count: int) -> float:
        """Of one step for each of `count` trajectories, the shorter of two."""
        rows, each = [i % TRIAL for i in range(count)], not self.bench.full_batch
        stack = [p[rows] for p in self.stack]
        dtype = stack[0].dtype
        batch = [cast(t[rows] if each else t, dtype) for t in (self.inputs, self.targets)]
        # Other processes must not sway the choice.
        clock = time.process_time if self.stack[0].device.type == "cpu" else time.perf_counter
        times = []
        for _ in range(2):
            begin = clock()
            losses, _ = backend.gradients(stack, batch[0], batch[1], each)
            float(losses.sum())  # waits for a GPU
            times.append(clock() - begin)
        return min(times) / count
