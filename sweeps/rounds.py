"""Rounds of proposals from an Optuna study, independent of who evaluates them and how fast.

Round r is asked for when all results of the rounds up to r - 2 are known, and sees exactly these:
round r - 1 is still running in the study's eyes, even where its results have come in. So workers
never wait for one straggler, and the proposals depend on nothing but the spec and the results.
Replaying the same results gives the same proposals, which is all that resuming takes.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import TrialState

from analysis.map import StabilityMap
from analysis.quality import audit_level, audit_size
from sweeps.search.boundary import BoundarySampler
from sweeps.search.designs import DesignSampler, GridDesign, SobolDesign
from sweeps.search.encoding import Encoding
from sweeps.search.space import distributions, switches, to_params, to_point
from sweeps.spec import SweepSpec
from trainables.domain import Margins, Point, PointResult

#: What Optuna minimises: the distance to the nearer boundary. A divergent point has one too.
Objective = Callable[[Margins], float]


#: Tells the random numbers of audits from all others that a spec's seed gives.
AUDIT = 0xA0D17
#: Rounds in a row that must expect no more error than the tolerance before an audit begins.
CALM_ROUNDS = 2


def distance_to_boundary(margins: Margins) -> float:
    """The smaller margin in absolute value: finite, and least on a boundary."""
    return min(abs(margins.stable), abs(margins.bounded))


def make_sampler(spec: SweepSpec) -> tuple[BaseSampler, int | None]:
    """The sampler that a spec names, and how many points it has to give (None: no end)."""
    offset, method = len(spec.start), spec.search.method
    if not any(axis.free for axis in spec.space):  # one point is all there is
        return DesignSampler(spec.space, SobolDesign(spec.space, spec.seed), offset), offset or 1
    if method == "grid":
        grid = GridDesign(spec.space, spec.search.levels, spec.seed)
        assert grid.size is not None
        return DesignSampler(spec.space, grid, offset), offset + grid.size
    if method == "sobol":
        return DesignSampler(spec.space, SobolDesign(spec.space, spec.seed), offset), None
    if method == "boundary":
        return _boundary_sampler(spec), None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if method == "gp":
            return GPSampler(seed=spec.seed % 2**32, n_startup_trials=spec.search.batch), None
        return TPESampler(
            seed=spec.seed % 2**32,
            n_startup_trials=spec.search.batch,
            multivariate=True,
            constant_liar=True,
        ), None


def _boundary_sampler(spec: SweepSpec) -> BoundarySampler:
    return BoundarySampler(
        abs(spec.seed),
        space=distributions(spec.space),
        startup=spec.search.startup,
        batch=spec.search.batch,
        zero=switches(spec.space),
        replicates=spec.search.replicates,
    )


class Rounds:
    """An Optuna study asked in rounds, and the audits of what it has found.

    Every trial ends as COMPLETE with a finite value and the user attribute `margins` = [stable,
    bounded]: divergence is a finding, and samplers ignore what failed.

    A point that is proposed again is a replicate: it is trained with further seeds. The last points
    of a budget are an audit: random ones, from a sequence that is fixed by the spec's seed. With a
    tolerance, an audit begins as soon as the fitted model expects to have less of the box wrong; if
    it agrees, the sweep ends, otherwise the search goes on with the audit's points.

    Args:
        spec: the sweep.
    """

    def __init__(self, spec: SweepSpec) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._spec = spec
        sampler, self._size = make_sampler(spec)
        self._audit = spec.audit(self._size)
        self.study = optuna.create_study(study_name=spec.title, sampler=sampler)
        for point in spec.start:
            self.study.enqueue_trial(to_params(spec.space, point))
        self._distributions = distributions(spec.space)
        self._rounds: list[list[tuple[optuna.Trial, Point]]] = []
        self._results: dict[int, PointResult] = {}
        self._repetitions: dict[int, int] = {}
        self._times: Counter[Point] = Counter()
        self._audits: dict[int, int] = {}
        self._random = _random_points(spec)
        self._auditing = 0
        self._unasked = 0
        self._calm_rounds = 0
        self._agreed = False
        self._told = 0

    @property
    def limit(self) -> int | None:
        """Trainings there are to do: the budget, or the end of a grid; None for no end."""
        if self._agreed:
            return self.proposed
        size = None if self._size is None else self._size + self._audit
        ends = [end for end in (self._spec.budget.points, size) if end is not None]
        return min(ends) if ends else None

    @property
    def proposed(self) -> int:
        """Number of trainings proposed so far."""
        return len(self._repetitions)

    @property
    def exhausted(self) -> bool:
        """Whether nothing more will be proposed."""
        return self.limit is not None and self.proposed >= self.limit

    @property
    def complete(self) -> bool:
        """Whether all that there is to do has a result."""
        return self.exhausted and len(self._results) == self.proposed

    @property
    def results(self) -> dict[int, PointResult]:
        """Results so far, by the number of the trial."""
        return self._results

    @property
    def audits(self) -> dict[int, int]:
        """Which audit a trial belongs to, by its number."""
        return self._audits

    def repetition(self, number: int) -> int:
        """How often the point of a trial was proposed before it."""
        return self._repetitions[number]

    def plan_with(self, executor: Executor | None) -> None:
        """Have plans made by an executor from now on; None for here."""
        if isinstance(self.study.sampler, BoundarySampler):
            self.study.sampler.executor = executor

    def map(self) -> StabilityMap:
        """The map of all results so far."""
        return StabilityMap.of(self._spec.about(), self._results.items(), self._audits)

    @property
    def _needed(self) -> tuple[int, bool]:
        """How many rounds the next one depends on, and whether no audit waits to be judged."""
        # Whether an audit ends the sweep is known when all of it is in.
        judged = self._auditing == 0 or self._unasked > 0
        return (max(0, len(self._rounds) - 1) if judged else len(self._rounds)), judged

    @property
    def ready(self) -> bool:
        """Whether the results are in that the next round depends on."""
        waited_for = range(self._told, self._needed[0])  # those before were told when complete
        return self.exhausted or all(self._complete(self._rounds[i]) for i in waited_for)

    def propose(self) -> list[tuple[int, Point]] | None:
        """The next round, as numbered points.

        Returns:
            None while the results that it depends on are not all in; an empty list at the end.
        """
        if self.exhausted:
            return []
        if not self.ready:
            return None
        needed, judged = self._needed
        while self._told < needed:
            self._tell(self._rounds[self._told])
            self._told += 1
        if not judged:
            self._judge()
        if not self._auditing:
            self._unasked = self._next_audit()
            self._auditing = 1 + max(self._audits.values(), default=0) if self._unasked else 0
        return [] if self.exhausted else self._ask()

    def _ask(self) -> list[tuple[int, Point]]:
        """A round of the search, or of an audit."""
        size = self._spec.search.batch
        if self._auditing:
            size = min(size, self._unasked)
            self._unasked -= size
            for _ in range(size):
                self.study.enqueue_trial(to_params(self._spec.space, next(self._random)))
        elif self.limit is not None:
            size = min(size, self.limit - self._audit - self.proposed)
        asked = [self.study.ask(self._distributions) for _ in range(size)]
        self._rounds.append([(t, to_point(self._spec.space, t.params)) for t in asked])
        for trial, point in self._rounds[-1]:
            self._repetitions[trial.number] = self._times[point]
            self._times[point] += 1
            if self._auditing:
                self._audits[trial.number] = self._auditing
        return [(trial.number, point) for trial, point in self._rounds[-1]]

    def _next_audit(self) -> int:
        """How many points an audit that begins now has: 0 where none does."""
        left = None if self.limit is None else self.limit - self.proposed
        if left is not None and left <= self._audit:
            return left
        tolerance = self._spec.search.tolerance
        if tolerance is None or not self._told:
            return 0
        expected = self._told_map().quality.interval[1] <= tolerance
        self._calm_rounds = self._calm_rounds + 1 if expected else 0
        level = audit_level(1 + max(self._audits.values(), default=0), tolerance)
        size = audit_size(tolerance, level)
        return size if self._calm_rounds >= CALM_ROUNDS and (left is None or size <= left) else 0

    def _judge(self) -> None:
        """After an audit: the sweep ends if it agrees, otherwise the search goes on."""
        tolerance, found = self._spec.search.tolerance, self._told_map().audit()
        self._agreed = tolerance is not None and found is not None and found.bound <= tolerance
        self._auditing = self._calm_rounds = 0

    def _told_map(self) -> StabilityMap:
        """The map of the rounds that the next one may depend on."""
        numbers = [t.number for finished in self._rounds[: self._told] for t, _ in finished]
        results = [(number, self._results[number]) for number in numbers]
        return StabilityMap.of(self._spec.about(), results, self._audits)

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


def _random_points(spec: SweepSpec) -> Iterator[Point]:
    """Points at random in the box, fixed by the spec's seed: a longer audit begins like a short."""
    encoding = Encoding(distributions(spec.space), switches(spec.space))
    random = np.random.default_rng([abs(spec.seed), AUDIT])
    while True:
        [params] = encoding.decode(random.random((1, encoding.draws)))
        yield to_point(spec.space, params)
