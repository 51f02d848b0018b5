"""The Ray Tune searcher: rounds of proposals in, packs of points out, results back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from ray.tune.search import Searcher

from sweeps.rounds import Rounds
from sweeps.spec import SweepSpec
from trainables.domain import Point, PointResult

Known = Callable[[int, Point], PointResult | None]
Sink = Callable[[int, PointResult], None]
Numbered = tuple[int, Point]


class PackSearcher(Searcher):
    """Hands out packs of points as Tune trials and takes every result once.

    Points whose result is known already (an earlier run of the same spec) are not trained again.

    Args:
        spec: the sweep.
        rounds: the proposals.
        known: looks up the result of a numbered point from an earlier run.
        sink: is told each new result before the study is: number of the point, result.
    """

    def __init__(self, spec: SweepSpec, rounds: Rounds, known: Known, sink: Sink) -> None:
        super().__init__(metric="training_iteration", mode="max")
        self._spec = spec
        self._rounds = rounds
        self._known = known
        self._sink = sink
        self._queue: deque[Numbered] = deque()
        self._running: dict[str, dict[int, Point]] = {}
        self._checked = False
        self.closed = False
        self.failure: Exception | None = None

    def suggest(self, trial_id: str) -> Any:
        """The next pack; None to wait for results; FINISHED when there will be no more."""
        if self.closed or not (waiting := self.fill()):
            return str(Searcher.FINISHED)
        if waiting == "results":
            return None
        count = min(self._spec.resources.pack, len(self._queue))
        pack = [self._queue.popleft() for _ in range(count)]
        self._running[trial_id] = dict(pack)
        check, self._checked = not self._checked, True
        return {
            "task": {"name": self._spec.task_name, **self._spec.task_options},
            "training": asdict(self._spec.training),
            "numbers": [number for number, _ in pack],
            "points": [[p.lr, p.alpha, p.weight_decay] for _, p in pack],
            "first": [self._rounds.repetition(n) * self._spec.training.seeds for n, _ in pack],
            "check": check,
        }

    def fill(self) -> Literal["points", "results"] | None:
        """Propose until there is a point to train.

        Returns:
            What there is to wait for: `points` to be trained, `results` that the next round needs;
            None at the end. A sweep whose results are all known gets there without any training.
        """
        while not self._queue:
            proposed = self._rounds.propose()
            if proposed is None:
                return "results"
            if not proposed:
                return None
            self._queue.extend(p for p in proposed if not self._is_known(*p))
        return "points"

    def _is_known(self, number: int, point: Point) -> bool:
        result = self._known(number, point)
        if result is not None:
            self._rounds.record(number, result)
        return result is not None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Take the results that a pack reports."""
        waiting = self._running.get(trial_id, {})
        for number, content in result.get("results") or ():
            if number in waiting:  # a pack that was restored reports some points again
                found = PointResult.from_dict(content)
                try:
                    self._sink(number, found)
                except Exception as error:  # Tune would log it and go on without the result
                    self.failure, self.closed = error, True
                    return
                del waiting[number]
                self._rounds.record(number, found)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take the last results of a pack; one that failed for good ends the sweep."""
        if result and not error:
            self.on_trial_result(trial_id, result)
        left = self._running.pop(trial_id, {})
        if left:
            self.closed = True

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
