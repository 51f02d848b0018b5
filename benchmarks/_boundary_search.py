"""One search with the boundary sampler, for the parts of `boundary.py`."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import optuna
from _boundary_problems import Array, Labels, Problem, labels
from _boundary_rivals import BATCH, Measure, axes_of

from stabmap import BoundarySampler


def measured(problem: Problem, seed: int) -> Measure:
    """Runs of a problem, with noise of their own."""
    random = np.random.default_rng(seed)

    def measure(unit: Array) -> tuple[Array, Labels]:
        margins = problem.observe(unit, random)
        return margins, labels(margins)

    return measure


class Search:
    """A search with the boundary sampler: ask 8, tell 8.

    Args:
        problem: what is searched.
        seed: of the sampler and of the noise.
        sizes: whether sizes of margins count.
    """

    def __init__(self, problem: Problem, seed: int, sizes: bool = True) -> None:
        self._space = axes_of(problem.dimension)
        self._measure = measured(problem, seed)
        self._sampler = BoundarySampler(seed=seed, space=self._space, sizes=sizes)
        self._study = optuna.create_study(sampler=self._sampler)
        at, self.truth = problem.sample
        self._at = [dict(zip(self._space, map(float, place), strict=True)) for place in at]

    @property
    def runs(self) -> int:
        """Finished runs."""
        return len(self._study.get_trials(deepcopy=False))

    def advance(self) -> list[float]:
        """Run one batch. Returns the processor time of each proposal in seconds."""
        trials, spent = [], []
        for _ in range(BATCH):
            begin = time.process_time()
            trials.append(self._study.ask(self._space))
            spent.append(time.process_time() - begin)
        unit = np.array([[trial.params[name] for name in self._space] for trial in trials])
        for trial, margins in zip(trials, self._measure(unit)[0], strict=True):
            trial.set_user_attr("margins", [float(value) for value in margins])
            self._study.tell(trial, float(np.abs(margins).min()))
        return spent

    def probabilities(self) -> Array:
        """Probabilities of the regimes at the points that are scored, (m, 3)."""
        return np.asarray(self._sampler.predict_proba(self._study, self._at))

    def curve(self, limit: int) -> Iterator[tuple[int, float]]:
        """Misclassified share every 8 runs, from 16 on."""
        while self.runs < limit:
            self.advance()
            if self.runs > BATCH:
                yield self.runs, float((self.probabilities().argmax(axis=1) != self.truth).mean())
