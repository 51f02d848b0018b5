"""Rounds of proposals from an Optuna study, independent of who evaluates them and how fast.

Round r is asked for when all results of the rounds up to r - 2 are known, and sees exactly these:
round r - 1 is still running in the study's eyes, even where its results have come in. So workers
never wait for one straggler, and the proposals depend on nothing but the spec and the results.
Replaying the same results gives the same proposals, which is all that resuming takes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import TrialState

from sweeps.search.designs import DesignSampler, GridDesign, SobolDesign
from sweeps.search.space import distributions, to_params, to_point
from sweeps.spec import SweepSpec
from trainables.domain import Margins, Point, PointResult

#: What Optuna minimises: the distance to the nearer boundary. A divergent point has one too.
Objective = Callable[[Margins], float]


def distance_to_boundary(margins: Margins) -> float:
    """The smaller margin in absolute value: finite, and least on a boundary."""
    return min(abs(margins.stable), abs(margins.bounded))


def make_sampler(spec: SweepSpec) -> tuple[BaseSampler, int | None]:
    """The sampler that a spec names, and how many points it has to give (None: no end)."""
    offset = len(spec.start)
    if not any(axis.free for axis in spec.space):  # one point is all there is
        return DesignSampler(spec.space, SobolDesign(spec.space, spec.seed), offset), offset or 1
    if spec.search.method == "grid":
        grid = GridDesign(spec.space, spec.search.levels, spec.seed)
        assert grid.size is not None
        return DesignSampler(spec.space, grid, offset), offset + grid.size
    if spec.search.method == "sobol":
        return DesignSampler(spec.space, SobolDesign(spec.space, spec.seed), offset), None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = TPESampler(
            seed=spec.seed % 2**32,
            n_startup_trials=spec.search.batch,
            multivariate=True,
            constant_liar=True,
        )
    return sampler, None


class Rounds:
    """An Optuna study asked in rounds.

    Every trial ends as COMPLETE with a finite value and the user attribute `margins` = [stable,
    bounded]: divergence is a finding, and samplers ignore what failed.

    Args:
        spec: the sweep.
    """

    def __init__(self, spec: SweepSpec) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._spec = spec
        sampler, self._size = make_sampler(spec)
        self.study = optuna.create_study(study_name=spec.title, sampler=sampler)
        for point in spec.start:
            self.study.enqueue_trial(to_params(spec.space, point))
        self._distributions = distributions(spec.space)
        self._rounds: list[list[tuple[optuna.Trial, Point]]] = []
        self._results: dict[int, PointResult] = {}
        self._told = 0

    @property
    def limit(self) -> int | None:
        """Points there are to evaluate: the budget, or the end of a grid; None for no end."""
        ends = [end for end in (self._spec.budget.points, self._size) if end is not None]
        return min(ends) if ends else None

    @property
    def proposed(self) -> int:
        """Number of points proposed so far."""
        return sum(map(len, self._rounds))

    @property
    def exhausted(self) -> bool:
        """Whether no further point will be proposed."""
        return self.limit is not None and self.proposed >= self.limit

    @property
    def results(self) -> dict[int, PointResult]:
        """Results so far, by the number of the trial."""
        return self._results

    def propose(self) -> list[tuple[int, Point]] | None:
        """The next round, as numbered points.

        Returns:
            None while the results that it depends on are not all in; an empty list at the end.
        """
        if self.exhausted:
            return []
        if not all(self._complete(finished) for finished in self._rounds[:-1]):
            return None
        while self._told < len(self._rounds) - 1:
            self._tell(self._rounds[self._told])
            self._told += 1
        size = self._spec.search.batch
        if self.limit is not None:
            size = min(size, self.limit - self.proposed)
        asked = [self.study.ask(self._distributions) for _ in range(size)]
        self._rounds.append([(t, to_point(self._spec.space, t.params)) for t in asked])
        return [(trial.number, point) for trial, point in self._rounds[-1]]

    def record(self, number: int, result: PointResult) -> None:
        """Take note of a result; the study hears of it when its round is due."""
        self._results[number] = result

    def finish(self) -> None:
        """Tell the study all that is known, and drop trials that nobody evaluated."""
        for finished in self._rounds[self._told :]:
            self._tell(finished)
        self._told = len(self._rounds)

    def _complete(self, trials: list[tuple[optuna.Trial, Point]]) -> bool:
        return all(trial.number in self._results for trial, _ in trials)

    def _tell(self, trials: list[tuple[optuna.Trial, Point]]) -> None:
        for trial, _ in trials:
            result = self._results.get(trial.number)
            if result is None:
                self.study.tell(trial, state=TrialState.FAIL)
                continue
            margins = result.verdict.margins
            trial.set_user_attr("margins", [margins.stable, margins.bounded])
            trial.set_user_attr("regime", margins.regime.value)
            self.study.tell(trial, distance_to_boundary(margins))
