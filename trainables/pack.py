"""A pack of points on one device: what trains together, what waits, what is done."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch

from trainables.domain import (
    TORCH_OPTIMISER,
    Point,
    PointResult,
    Replicate,
    Training,
    UnreachableError,
    replicate_seeds,
)
from trainables.dynamics.ensembles.backend import opens
from trainables.dynamics.ensembles.choose import LOOP, choose
from trainables.dynamics.ensembles.memory import most_trajectories
from trainables.ensemble_run import EnsembleRun, TwoStacks
from trainables.record import Record
from trainables.replicate_run import LoopRun
from trainables.sharing import shared, warn_of_changes
from trainables.tasks import Task
from trainables.trajectory import Bench

log = logging.getLogger("stabmap")

#: A replicate of the pack: index of its point, index among the replicates of this pack.
Job = tuple[int, int]


class Run(Protocol):
    """Replicates that are trained together."""

    @property
    def records(self) -> list[Record]:
        """Those that are trained."""

    def add(self, records: Sequence[Record]) -> None:
        """Begin replicates."""

    def advance(self) -> None:
        """One update of every trajectory."""

    def take_finished(self) -> list[tuple[Record, Replicate]]:
        """Judge the replicates that are done, and let them go."""

    def state_dict(self) -> dict[str, Any]:
        """Everything the rest of the run depends on."""

    def load_state_dict(self, state: Mapping[str, Any], records: Sequence[Record]) -> None:
        """Go on from `state_dict`, to the bit, with new records of the same replicates."""


@dataclass
class _Part:
    """A run, what waits for a place in it, and how many places there are."""

    run: Run
    places: int
    backend: str
    waiting: deque[Job] = field(default_factory=deque)


class PackRun:
    """A pack of points, trained side by side; may be stopped and continued to the bit.

    A point's result depends neither on the other points of the pack nor on where it was stopped.

    Args:
        points: the points, in order.
        task: the task.
        training: how each point is trained.
        first: number of the first replicate of each point, where earlier ones were trained before.
        together: trajectories that are trained together at most; None takes as many as fit.
    """

    def __init__(
        self,
        points: Sequence[Point],
        task: Task,
        training: Training,
        first: Sequence[int] | None = None,
        together: int | None = None,
    ) -> None:
        self.points = tuple(points)
        #: Results of the first points, as far as they are complete.
        self.results: list[PointResult] = []
        self._first = tuple(first or [0] * len(self.points))
        self._bench = Bench.of(task, training)
        self._together = together
        self._wanted = training.backend
        #: Hashes of what a pack that is continued had when it was stopped.
        self._shared: dict[str, str] = {}
        self._found: dict[Job, Replicate] = {}

    @property
    def done(self) -> bool:
        """Whether every point has its result."""
        return len(self.results) == len(self.points)

    def advance(self, seconds: float | None = None) -> list[PointResult]:
        """Train until the pack is done or, at a step boundary, until `seconds` have passed.

        Returns:
            The results that were completed in this call, in the order of the points. One is
            handed out when those of all points before it are complete.

        Raises:
            UnreachableError: not even one replicate fits into the memory.
            NotReproducibleError: the task's data or initial weights change from call to call.
        """
        start = time.monotonic()
        known = len(self.results)
        with self._bench.deterministic():
            while not self.done:
                for part in self._parts:
                    self._advance_part(part)
                self._collect()
                if seconds is not None and time.monotonic() - start >= seconds:
                    break
        return self.results[known:]

    def _advance_part(self, part: _Part) -> None:
        room = max(min(part.places - len(part.run.records), len(part.waiting)), 0)
        new = [part.waiting.popleft() for _ in range(room)]
        jobs = [*(record.job for record in part.run.records), *new]
        failure = None
        try:
            if new:
                part.run.add([self._record(job) for job in new])
            if part.run.records:
                part.run.advance()
            for record, replicate in part.run.take_finished():
                self._found[record.job] = replicate
        except torch.OutOfMemoryError as error:
            failure = str(error)
        if failure is not None:  # outside of the handler, whose traceback holds the memory
            self._halve(part, jobs, failure)

    def _halve(self, part: _Part, jobs: list[Job], failure: str) -> None:
        """Begin again with half as many places: no point is lost, and none of its bits changes."""
        if len(jobs) <= 1:
            raise UnreachableError(
                f"device {self._bench.training.device}: its memory does not hold one replicate of "
                f"task {self._bench.task.name} ({failure}); use fewer ks, or a smaller network"
            )
        part.places = len(jobs) // 2
        log.warning("out of memory: %d replicates together instead of %d", part.places, len(jobs))
        part.waiting.extendleft(reversed(jobs))
        part.run = self._new_run(part.backend)
        torch.cuda.empty_cache()

    def _collect(self) -> None:
        seeds = range(self._bench.training.replicates)
        while not self.done:
            jobs = [(len(self.results), j) for j in seeds]
            if not all(job in self._found for job in jobs):
                break
            replicates = tuple(self._found.pop(job) for job in jobs)
            self.results.append(PointResult(self.points[len(self.results)], replicates))

    # ------------------------------------------------------------- what trains where

    @cached_property
    def _parts(self) -> list[_Part]:
        """What is trained in a stack, and what one after the other."""
        self._check_sharing()
        numbers = range(self._bench.training.replicates)
        jobs = [(i, j) for i in range(len(self.points)) for j in numbers]
        stacked = [job for job in jobs if self._stacks(self.points[job[0]])]
        parts = []
        if stacked and self._backend is not None:
            rows = len(self._bench.training.ks) + self._bench.training.lyapunov
            together = self._together or most_trajectories(self._bench, self._backend)
            name = self._backend.name
            places = max(together // rows, 1)
            parts.append(_Part(self._new_run(name), places, name, deque(stacked)))
            jobs = [job for job in jobs if not self._stacks(self.points[job[0]])]
        return [*parts, _Part(self._new_run(LOOP), 1, LOOP, deque(jobs))]

    def _check_sharing(self) -> None:
        """Once a pack, for its first replicate; the others come from the same methods."""
        if not self.points:
            return
        record = self._record((0, 0))
        found = shared(self._bench, record.seed, record.order)
        warn_of_changes(self._bench.task, self._shared, found)
        self._shared = found

    def _stacks(self, point: Point) -> bool:
        """Whether nothing stands in the way of training a point in a stack."""
        training = self._bench.training
        built_in = not training.optimiser.startswith(TORCH_OPTIMISER)
        # In bfloat16 a learning rate in a tensor would be rounded to three digits.
        free = built_in and training.dtype != "bfloat16" and not self._bench.alternates
        return free and (point.alpha == 0 or self._stabiliser_stacks)

    @cached_property
    def _stabiliser_stacks(self) -> bool:
        bench = self._bench
        if not bench.at_outputs:
            return True
        return bench.stabiliser.stacks and opens(self._backend, bench.last_layer)

    @cached_property
    def _backend(self) -> Any:
        return choose(self._bench, self._wanted)[0]

    def _new_run(self, backend: str) -> Run:
        if backend == LOOP:
            return LoopRun()
        two = self._bench.training.early == "base"
        return (TwoStacks if two else EnsembleRun)(self._bench, self._backend)

    def _record(self, job: Job) -> Record:
        index, number = job
        point = self.points[index]
        number += self._first[index]
        seed, order = replicate_seeds(self._bench.training, point, number)
        return Record(self._bench, point, seed, job, order)

    # ------------------------------------------------------------- interruptions

    def state_dict(self) -> dict[str, Any]:
        """Everything the rest of the pack depends on: tensors, numbers, texts, lists, dicts."""
        found = [
            [*job, PointResult(self.points[job[0]], (replicate,)).to_dict()]
            for job, replicate in self._found.items()
        ]
        return {
            "results": [result.to_dict() for result in self.results],
            "found": found,
            "parts": [_saved(part) for part in self._begun()],
            "shared": dict(self._shared),
        }

    def _begun(self) -> list[_Part]:
        with self._bench.deterministic():
            return self._parts

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, to the bit, with the backend that it began with.

        Raises:
            InputError: that backend is not sound here.
        """
        self.results = [PointResult.from_dict(d) for d in state["results"]]
        self._found = {(i, j): PointResult.from_dict(d).replicates[0] for i, j, d in state["found"]}
        self._wanted, self._shared = state["parts"][0]["backend"], dict(state["shared"])
        for built in ("_parts", "_backend", "_stabiliser_stacks"):
            self.__dict__.pop(built, None)
        for part, saved in zip(self._begun(), state["parts"], strict=True):
            part.waiting = deque((i, j) for i, j in saved["waiting"])
            records = [self._record((i, j)) for i, j in saved["jobs"]]
            part.run.load_state_dict(saved["run"], records)


def _saved(part: _Part) -> dict[str, Any]:
    return {
        "backend": part.backend,
        "waiting": [list(job) for job in part.waiting],
        "jobs": [list(record.job) for record in part.run.records],
        "run": part.run.state_dict(),
    }
