"""The Ray Tune searcher: rounds of proposals in, packs of points out, results back."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from typing import Any, Literal

from ray.tune.search import Searcher

from sweeps.rounds import Rounds
from sweeps.spec import SweepSpec
from trainables.domain import NotReproducibleError, Point, PointResult, StabmapError

Known = Callable[[int, Point], PointResult | None]
Sink = Callable[[list[tuple[int, PointResult]]], None]
Numbered = tuple[int, Point]

#: How often a task may fail in the same place with the same error before the sweep ends.
SAME_ERRORS = 3
#: Seconds for which a round that is not there yet keeps Tune from hearing of results.
BLINK = 0.005
#: Seconds before the next pack after so many packs in a row that machines lost; more end the sweep.
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0, 60.0)


class NoProposal(StabmapError):
    """The search could not say where to train next."""

    def __init__(self, cause: Exception) -> None:
        kind = type(cause).__name__
        super().__init__(f"no further point could be proposed ({kind}: {cause})")


class TaskError(StabmapError):
    """The task itself fails, again and again."""


class PackSearcher(Searcher):
    """Hands out packs of points as Tune trials and takes every result once.

    Points of a pack that was lost with its machine are handed out again, after a pause that grows;
    points of a pack that ended with an error of the task too, until the error has come three times.

    Points whose result is known already (an earlier run of the same spec) are not trained again.
    A round is proposed on a thread of its own as soon as the results are there that it depends on,
    so workers seldom wait for it. What is proposed does not depend on when: `Rounds` sees to that.

    Args:
        spec: the sweep.
        rounds: the proposals.
        known: looks up the result of a numbered point from an earlier run.
        sink: is told the new results of a report, numbered, before the study is.
    """

    def __init__(self, spec: SweepSpec, rounds: Rounds, known: Known, sink: Sink) -> None:
        super().__init__(metric="training_iteration", mode="max")
        self._spec = spec
        self._rounds = rounds
        self._known = known
        self._sink = sink
        self._queue: deque[Numbered] = deque()
        self._running: dict[str, dict[int, Point]] = {}
        self._checker: str | None = None
        #: Whether a pack that began with the check has brought results.
        self.checked = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stabmap-proposals")
        self._next: Future[list[Numbered] | None] | None = None
        self._errors: Counter[tuple[str, str]] = Counter()
        self._lost = 0
        self._not_before = 0.0
        #: When the last report came, on the monotonic clock.
        self.heard_at = 0.0
        #: Is told what a worker's machine is busy with.
        self.meter: Callable[[str, Sequence[tuple[str, float]]], None] = lambda *_: None
        #: Is told what a worker trains on.
        self.trained_on: Callable[[str], None] = lambda _: None
        #: What the last lost worker died of.
        self.cause = "nothing is known of why"
        self.closed = False
        self.failure: Exception | None = None

    def suggest(self, trial_id: str) -> Any:
        """The next pack; None to wait for results; FINISHED when there will be no more."""
        # Tune hears of no result while it waits here.
        waiting = None if self.closed else self.fill(BLINK if self._running else None)
        if self.closed or (waiting is None and not self._running):
            return str(Searcher.FINISHED)
        if waiting != "points" or time.monotonic() < self._not_before:
            return None  # also at the end: what still runs may be lost
        count = min(self._spec.resources.pack, len(self._queue))
        pack = [self._queue.popleft() for _ in range(count)]
        self._running[trial_id] = dict(pack)
        self._look_ahead()
        check = self._checker is None
        self._checker = self._checker or trial_id
        return {
            "task": {"name": self._spec.task_name, **self._spec.task_options},
            "source": self._spec.source and self._spec.source.to_dict(),
            "training": asdict(self._spec.training),
            "numbers": [number for number, _ in pack],
            "points": [[p.lr, p.alpha, p.weight_decay] for _, p in pack],
            "first": [self._rounds.repetition(n) * self._spec.training.replicates for n, _ in pack],
            "check": check,
        }

    @property
    def running(self) -> int:
        """Number of packs that were handed out and are not done."""
        return len(self._running)

    def fill(self, patience: float | None = None) -> Literal["points", "results"] | None:
        """Propose until there is a point to train.

        Args:
            patience: seconds to wait for a round that is being proposed; None for no end.

        Returns:
            What there is to wait for: `points` to be trained, `results` that the next round needs,
            or else the round; None at the end. A sweep whose results are all known gets there
            without any training.
        """
        while not self._queue:
            if self.closed:
                return None
            self._look_ahead()
            if self._next is not None and not wait([self._next], patience).done:
                return "results"
            try:
                proposed, self._next = self._next and self._next.result(), None
            except Exception as error:  # Tune would show its own stack, and ours below it
                self.failure, self.closed = NoProposal(error), True
                return None
            if proposed is None:
                return "results"
            if not proposed:
                return None
            self._queue.extend(p for p in proposed if not self._is_known(*p))
        return "points"

    def _look_ahead(self) -> None:
        """Have the next round proposed, if that is possible and was not begun yet."""
        if self._next is None and self._rounds.ready:
            self._next = self._thread.submit(self._rounds.propose)

    def close(self) -> None:
        """Wait for the proposals that are being made; nobody else may use the study before."""
        self.closed = True
        self._thread.shutdown(cancel_futures=True)

    def _is_known(self, number: int, point: Point) -> bool:
        result = self._known(number, point)
        if result is not None:
            self._rounds.record(number, result)
        return result is not None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take the results that a pack reports."""
        self.heard_at = time.monotonic()
        waiting = self._running.get(trial_id, {})
        if hardware := result.get("hardware"):
            self.trained_on(hardware)
        if usage := result.get("usage"):
            self.meter(*usage)
        found = {
            number: PointResult.from_dict(content)
            for number, content in result.get("results") or ()
            if number in waiting  # a pack that was restored reports some points again
        }
        try:
            if found:
                self._sink(list(found.items()))
        except Exception as error:  # Tune would log it and go on without the results
            self.failure, self.closed = error, True
            return
        for number, known in found.items():
            del waiting[number]
            self._rounds.record(number, known)
            self._lost = 0
            self.checked |= trial_id == self._checker
        if "error" in result:
            self._note(*result["error"])
        if not self.closed:
            self._look_ahead()

    def _note(self, kind: str, text: str, place: str) -> None:
        """An error of the task: the third of its kind ends the sweep."""
        if kind == "not reproducible":
            self.failure, self.closed = NotReproducibleError(text), True
            return
        self._errors[kind, place] += 1
        if self._errors[kind, place] >= SAME_ERRORS:
            first, where = " ".join(text.split())[:300], f" ({place})" if place else ""
            told = f"task {self._spec.task_name} fails: {kind}: {first}{where}"
            self.failure, self.closed = TaskError(told), True

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take the last results of a pack; what it leaves is handed out again."""
        if result and not error:
            self.on_trial_result(trial_id, result)
        left = self._running.pop(trial_id, {})
        if trial_id == self._checker and not self.checked:
            self._checker = None
        self._queue.extendleft(reversed(left.items()))
        if error and not self.closed:
            self._pause()

    def _pause(self) -> None:
        """A machine lost a pack more often than Tune starts it again: wait before the next."""
        if time.monotonic() < self._not_before:  # lost at the same time as the one before
            return
        if self._lost == len(PAUSES):
            times = f"{self._lost + 1} times in a row without a result"
            told = f"workers died {times}; the last of: {self.cause}"
            self.failure, self.closed = StabmapError(told), True
            return
        self._not_before = time.monotonic() + PAUSES[self._lost]
        self._lost += 1

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher for `Tuner.restore`; resuming here goes by the store alone."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the store is the truth, and resuming replays it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

    def get_state(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing to save."""
