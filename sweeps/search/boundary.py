"""A sampler that learns where training stops being stable, and where it begins to diverge."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor
from dataclasses import dataclass
from itertools import islice, product
from operator import itemgetter
from typing import Any, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from analysis.lookahead import Outlook, choose
from analysis.surface import Fitted, Surface, fitted, regime_probabilities, remember
from sweeps.search.encoding import Encoding, Params
from trainables.domain import InputError, Mistake, Regime

Array = NDArray[np.float64]

PLAN = "stabmap:plan"
#: Sobol points to begin with, for each axis.
STARTUP = 8
#: Points that stand for the box; candidates that are drawn; those of them that are looked at.
BOX = 512
POOL = 768
CANDIDATES = 192
#: Standard deviation, in unit coordinates, of the half of the pool that is drawn near boundaries.
NEAR = 0.06
#: A label that is less probable than this, itself considered, calls for a replicate.
DOUBTED = 0.8
#: Ranges of a space whose corners are tried, at most: of more there are too many.
CORNERED = 3
#: Attempts to find a point that was not proposed yet, where chance alone proposes.
ATTEMPTS = 64


class BoundarySampler(BaseSampler):
    """Proposes the points from which a map of two boundaries gains most.

    Each finished trial says in `trial.set_user_attr("margins", [stable, bounded])` how far it is
    from either boundary, positive on the calm side: it is divergent where bounded < 0, else
    restrained where stable < 0, else stable. Signs decide; sizes say how far away a boundary is. A
    margin that is not a number counts as negative. Objective values are ignored, and so are trials
    without margins; failed ones with margins count, because a training that diverges to NaN fails
    in Optuna's eyes.

    The first trials are a scrambled Sobol sequence. Then two Gaussian processes with a rotated
    metric learn both boundaries (`analysis.surface`), and points are taken by the expected drop of
    the misclassified volume, in the light of those that are still running, `batch` at a time: a
    plan is kept in the study, so that other processes and a resumed study go on with it. Proposals
    depend on the seed and on the study alone. No point is proposed twice, except as a replicate,
    where all points of a finite space were proposed, or to workers that ask at the same moment.

    Args:
        seed: of all random numbers; None for one from the system.
        space: the axes, if they are known: then the first trial is a Sobol point already. Otherwise
            those are searched that all completed trials, and all with margins, have in common.
        startup: Sobol points at the beginning; None for 8 an axis, numeric or categorical.
        batch: points that are planned at once. Plans end at multiples of it: trials
            `i * batch ... (i + 1) * batch - 1` are planned together.
        zero: `{axis: switch}` for axes with an extra level at 0; see `Encoding`.
        facets: whether the choices of categorical parameters share one model of the boundaries, in
            which they may differ by an offset and in shape, or have separate ones.
        replicates: how often a point is evaluated at most. With more than 1, a point with a label
            that the model doubts may be proposed again, for another seed: `replicate` tells which.
        sizes: whether sizes of margins near a boundary count, where they help to forecast the
            labels of later points (`Surface.fit`); otherwise only signs do.
        executor: makes the plans, in a process of its own on this machine; None for plans that are
            made here. They are the same to the bit, so where that process is lost the search goes
            on without it (`BrokenExecutor`). Not pickled with the sampler. Choices of categorical
            parameters have to equal their copies in another process.

    Raises:
        InputError: an argument breaks a law; in `sample_*`, a trial's margins do.
        ValueError: the study has several objectives.
    """

    def __init__(
        self,
        seed: int | None = None,
        *,
        space: Mapping[str, BaseDistribution] | None = None,
        startup: int | None = None,
        batch: int = 8,
        zero: Mapping[str, str] | None = None,
        facets: Literal["shared", "separate"] = "shared",
        replicates: int = 1,
        sizes: bool = True,
        executor: Executor | None = None,
    ) -> None:
        counts = {"seed": (seed, 0), "startup": (startup, 1), "batch": (batch, 1)}
        mistakes = [
            Mistake(name, given, f"a whole number >= {least}", "leave it out")
            for name, (given, least) in (counts | {"replicates": (replicates, 1)}).items()
            if given is not None and not (_whole(given) and given >= least)
        ]
        if facets not in ("shared", "separate"):
            mistakes.append(Mistake("facets", facets, "shared or separate", "use shared"))
        if not isinstance(sizes, bool):
            mistakes.append(Mistake("sizes", sizes, "True or False", "leave it out"))
        if space is not None:
            mistakes += _unsearchable(Encoding(space, zero or {}))
        if mistakes:
            raise InputError(mistakes)
        self._seed = secrets.randbits(63) if seed is None else int(seed)
        self._space = dict(space) if space is not None else None
        self._startup = startup
        self._batch = batch
        self._zero = dict(zero or {})
        self._separate = facets == "separate"
        self._replicates = replicates
        self._sizes = sizes
        self.executor = executor

    def __getstate__(self) -> dict[str, Any]:
        """Without the executor, to whose process the sampler itself is sent."""
        return self.__dict__ | {"executor": None}

    # ----------------------------------------------------------------- Optuna's interface

    def reseed_rng(self) -> None:
        """Nothing to do: proposals differ by the trial's number, not by a generator's state."""

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The given space, or the parameters that the trials have in common."""
        return self._searched(study)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next point of the Sobol sequence, or of the plan."""
        self._raise_error_if_multi_objective(study)
        if not search_space:
            return {}
        planned = _planned(study, search_space, trial.number, self._batch)
        if planned is not None:
            return planned
        history = _History(study, self._encoding(search_space), trial.number)
        startup = STARTUP * history.encoding.free if self._startup is None else self._startup
        if len(history.points) < startup:
            return self._start(history, trial.number)
        count = self._batch - trial.number % self._batch
        plan = self._plan_elsewhere(history, count, trial.number)
        if plan is None:
            plan = self._plan(history, count, trial.number)
        internal = [
            {name: given.to_internal_repr(p[name]) for name, given in search_space.items()}
            for p in plan
        ]
        study._storage.set_trial_system_attr(trial._trial_id, PLAN, internal)
        return plan[0]

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """A random value, for parameters that not all trials have."""
        self._raise_error_if_multi_objective(study)
        random = np.random.default_rng([self._seed, trial.number, crc32(param_name.encode())])
        encoding = Encoding({param_name: param_distribution}, {})
        return encoding.decode(random.random((1, 1)))[0][param_name]

    # ----------------------------------------------------------------- what is known

    def surfaces(self, study: Study) -> dict[tuple[Any, ...], Surface]:
        """The fitted model for each combination of separate facets; one, with key (), if shared.

        Raises:
            InputError: no finished trial has margins, or those that have share no axis.
        """
        return self._model(self._known(study)).surfaces

    def predict_proba(self, study: Study, points: Sequence[Params]) -> Array:
        """(n, 3) probabilities of stable, restrained, divergent at parameters.

        Raises:
            InputError: no finished trial has margins, those that have share no axis, or a point
                lacks a parameter or has one that is no number or no choice.
        """
        history = self._known(study)
        model = self._model(history)
        mistakes = [
            mistake
            for index, params in enumerate(points)
            for mistake in history.encoding.mistakes(params, f"points[{index}]")
        ]
        if mistakes:
            raise InputError(mistakes)
        return model.probabilities(points)

    def replicate(self, study: Study, trial: FrozenTrial) -> int:
        """How many earlier trials have all parameters of a trial: 0 for a new point."""
        earlier = [t for t in study.get_trials(deepcopy=False) if t.number < trial.number]
        return sum(t.params == trial.params for t in earlier)

    def _known(self, study: Study) -> _History:
        number = len(study.get_trials(deepcopy=False))
        return _History(study, self._encoding(self._searched(study)), number)

    def _searched(self, study: Study) -> dict[str, BaseDistribution]:
        if self._space is not None:
            return dict(self._space)
        return _common(study.get_trials(deepcopy=False))

    def _encoding(self, space: Mapping[str, BaseDistribution]) -> Encoding:
        zero = {a: s for a, s in self._zero.items() if a in space and s in space}
        return Encoding(space, zero)

    def _model(self, history: _History) -> _Model:
        return _Model.fit(history, self._separate, self._sizes)

    # ----------------------------------------------------------------- proposals

    def _start(self, history: _History, number: int) -> dict[str, Any]:
        """Point `number` of the Sobol sequence; another one if it was proposed already."""
        encoding = history.encoding
        sobol = qmc.Sobol(encoding.draws, scramble=True, rng=self._seed)
        if number:
            sobol.fast_forward(number)
        random = np.random.default_rng([self._seed, number])
        draws = np.concatenate([sobol.random(1), random.random((ATTEMPTS, encoding.draws))])
        points = encoding.decode(draws)
        return (history.new(points) or points)[0]

    def _plan_elsewhere(
        self, history: _History, count: int, number: int
    ) -> list[dict[str, Any]] | None:
        """`_plan` in the other process; None where there is none, or none any more."""
        executor, separate = self.executor, self._separate
        if executor is None:
            return None
        stable, bounded = 0, 1
        try:
            there = executor.submit(_fit_for, history, separate, bounded, self._sizes)
            here = _fit_for(history, separate, stable, self._sizes)
            plan = executor.submit(_plan_for, self, history, count, number, here).result()
            remember(there.result())
        except BrokenExecutor:
            return None
        return plan

    def _plan(self, history: _History, count: int, number: int) -> list[dict[str, Any]]:
        """The next points; fewer where there are no more candidates."""
        random = np.random.default_rng([self._seed, number])
        model = self._model(history)
        corners = self._corners(history, model, random)
        asked = {history.encoding.key(p) for p in corners}
        pool = self._pool(history, model, random)
        pool = [p for p in pool if history.encoding.key(p) not in asked]
        box = history.encoding.decode(
            qmc.Sobol(history.encoding.draws, scramble=True, rng=random).random(BOX)
        )
        parts: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for point in pool:
            parts.setdefault(model.group(point), []).append(point)
        # A facet of which nothing is known yet comes first.
        plan = [points[0] for group, points in parts.items() if group not in model.surfaces]
        plan = [*plan, *corners][:count]
        known = [(group, points) for group, points in parts.items() if group in model.surfaces]
        taken = [*history.pending, *corners]
        outlooks = [model.outlook(group, points, box, taken) for group, points in known]
        chosen = choose(outlooks, count - len(plan)) if outlooks else []
        return plan + [known[part][1][index] for part, index in chosen]

    def _corners(
        self, history: _History, model: _Model, random: np.random.Generator
    ) -> list[dict[str, Any]]:
        """The corners of the box, the most doubtful first, while a label was never seen.

        A model without an example of a label trusts the one that it knows, and looks for the other
        nowhere. What is rare lies at an end of the ranges more often than anywhere else: a first
        divergent training at the largest learning rates.
        """
        encoding = history.encoding
        count = len(encoding.ranges)
        complete = all(not (s.stable.only or s.bounded.only) for s in model.surfaces.values())
        if complete or not 1 <= count <= CORNERED:
            return []
        ends = np.array(list(product((0.0, 1.0), repeat=count))).reshape(-1, count)
        facets = random.random((len(ends), encoding.draws - count))
        corners = encoding.decode(np.concatenate([ends, facets], axis=1))
        new = [p for p in corners if encoding.key(p) not in history.proposed]
        sure = model.probabilities(new).max(1) if new else []
        return [point for _, point in sorted(zip(sure, new, strict=True), key=itemgetter(0))]

    def _pool(
        self, history: _History, model: _Model, random: np.random.Generator
    ) -> list[dict[str, Any]]:
        """The candidates that are worth a look: the most doubtful ones of many."""
        encoding = history.encoding
        signs = model.signs(history.points)
        doubt = 1 - regime_probabilities(*signs.T).max(1)
        nearest = np.argsort(-doubt, kind="stable")[: max(16, len(doubt) // 4)]
        draws = [random.random((POOL // 2, encoding.draws))]
        shifts = NEAR * random.normal(size=(POOL // 2, len(encoding.ranges)))
        around, near = random.choice(nearest, POOL // 2), np.empty((POOL // 2, encoding.draws))
        for index in np.unique(around):
            rows = around == index
            near[rows] = encoding.draws_near(history.points[index], shifts[rows])
        draws.append(near)
        if encoding.size is not None and encoding.size <= POOL:
            points = list(encoding.everything())
        else:
            points = encoding.decode(np.concatenate(draws))
        new, again = history.new(points), self._doubted(history, signs)
        if not new and not again:  # every point of a finite space was proposed
            new = points
        order = np.argsort(model.probabilities(new).max(1), kind="stable")[:CANDIDATES]
        return [new[i] for i in order] + again

    def _doubted(self, history: _History, signs: Array) -> list[dict[str, Any]]:
        """Evaluated points with a doubtful label, for a further replicate.

        Args:
            history: what is known.
            signs: (n, 2) probabilities of positive margins at the evaluated points.
        """
        if self._replicates == 1:
            return []
        seen = history.margins >= 0
        seen[:, 0] &= seen[:, 1]
        doubted = np.where(seen, signs, 1 - signs).min(1) < DOUBTED
        again = [dict(history.points[i]) for i in np.flatnonzero(doubted)]
        found = {history.encoding.key(p): p for p in again}
        return [p for key, p in found.items() if history.proposed[key] < self._replicates]


def _fit_for(history: _History, separate: bool, field: int, sizes: bool) -> Fitted:
    """One field's part of what a plan has to fit."""
    found: Fitted = {}
    for x, margins in _Model.parts(history, separate).values():
        found |= fitted(x, margins, history.encoding.indicators, field, sizes=sizes)
    return found


def _plan_for(
    sampler: BoundarySampler, history: _History, count: int, number: int, known: Fitted
) -> list[dict[str, Any]]:
    """A plan by a process that is told what was fitted elsewhere."""
    remember(known)
    return sampler._plan(history, count, number)


def _whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _common(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """The parameters of more than one value that trials share: failed ones if they have margins."""
    spaces = [t.distributions for t in trials if t.state == TrialState.COMPLETE or _teaches(t)]
    return {
        name: given
        for name, given in sorted(spaces[0].items() if spaces else ())
        if not given.single() and all(other.get(name) == given for other in spaces)
    }


def _teaches(trial: FrozenTrial) -> bool:
    return trial.state.is_finished() and "margins" in trial.user_attrs


def _unsearchable(encoding: Encoding) -> list[Mistake]:
    if all(given.single() for given in encoding.space.values()):
        law = "every range holds a single value, so there is nothing to search"
        return [Mistake("space", sorted(encoding.space), law, "widen a range")]
    return []


def _planned(
    study: Study, space: Mapping[str, BaseDistribution], number: int, batch: int
) -> dict[str, Any] | None:
    """The point that an earlier trial's plan holds for a trial."""
    for trial in study.get_trials(deepcopy=False):
        ahead = number - trial.number
        if not 0 < ahead < batch:
            continue
        plan = trial.system_attrs.get(PLAN, [])
        point = plan[ahead] if ahead < len(plan) else {}
        if set(point) == set(space) and all(space[n]._contains(v) for n, v in point.items()):
            return {name: given.to_external_repr(point[name]) for name, given in space.items()}
    return None


class _History:
    """What a study knows before a trial.

    Args:
        study: the study.
        encoding: the space that is searched.
        number: number of the trial.
    """

    def __init__(self, study: Study, encoding: Encoding, number: int) -> None:
        self.encoding = encoding
        self.points: list[Params] = []
        self.pending: list[Params] = []
        #: How often each point was proposed.
        self.proposed: dict[tuple[Any, ...], int] = {}
        margins = []
        for trial in study.get_trials(deepcopy=False):
            if trial.number == number or not encoding.holds(trial.params):
                continue
            key = encoding.key(trial.params)
            self.proposed[key] = self.proposed.get(key, 0) + 1
            if trial.state == TrialState.RUNNING:
                self.pending.append(trial.params)
            elif _teaches(trial):
                self.points.append(trial.params)
                margins.append(_margins(trial))
        self.margins = np.array(margins, dtype=np.float64).reshape(len(margins), 2)

    def new(self, points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of some points that were not proposed yet, each once; else others, if any are."""
        found = {self.encoding.key(p): p for p in points}
        new = [p for key, p in found.items() if key not in self.proposed]
        if new or self.encoding.size is None:
            return new
        others = self.encoding.everything()
        new_others = (p for p in others if self.encoding.key(p) not in self.proposed)
        return list(islice(new_others, CANDIDATES))


def _margins(trial: FrozenTrial) -> list[float]:
    """The margins of a finished trial."""
    given = trial.user_attrs["margins"]
    field = f"trial {trial.number}: margins"
    try:
        stable, bounded = given
        margins = [float(stable), float(bounded)]
    except (TypeError, ValueError):
        law, remedy = "two numbers, stable and bounded", 'set_user_attr("margins", [0.5, 1.0])'
        raise InputError([Mistake(field, given, law, remedy)]) from None
    regime, label = trial.user_attrs.get("regime"), _regime(margins)
    if regime is not None and regime != label:
        law = f"the trial says {regime}, but these margins say {label}: positive is the calm side"
        raise InputError([Mistake(field, margins, law, "turn the margins' signs")])
    return margins


def _regime(margins: Sequence[float]) -> str:
    stable, bounded = margins
    regime = Regime.STABLE if stable >= 0 else Regime.RESTRAINED
    return str((regime if bounded >= 0 else Regime.DIVERGENT).value)


@dataclass(frozen=True)
class _Model:
    """A fitted surface for all points, or one for each combination of facets."""

    encoding: Encoding
    separate: bool
    surfaces: dict[tuple[Any, ...], Surface]

    @classmethod
    def fit(cls, history: _History, separate: bool, sizes: bool) -> _Model:
        encoding = history.encoding
        if not len(history.points) or not encoding.space:
            law = "a model needs finished trials that have margins, and an axis in common"
            remedy = 'trial.set_user_attr("margins", [stable, bounded]) before a trial ends'
            raise InputError([Mistake("study", len(history.points), law, remedy)])
        surfaces = {
            group: Surface.fit(x, margins, encoding.indicators, sizes=sizes)
            for group, (x, margins) in cls.parts(history, separate).items()
        }
        return cls(encoding, separate, surfaces)

    @classmethod
    def parts(cls, history: _History, separate: bool) -> dict[tuple[Any, ...], tuple[Array, Array]]:
        """Unit coordinates and margins that each surface is fitted to."""
        x = history.encoding.encode(history.points)
        rows = cls(history.encoding, separate, {})._rows(history.points)
        return {group: (x[i], history.margins[i]) for group, i in rows.items()}

    def group(self, params: Params) -> tuple[Any, ...]:
        """Which surface a point belongs to."""
        return tuple(params[name] for name in self.encoding.facets) if self.separate else ()

    def _rows(self, points: Sequence[Params]) -> dict[tuple[Any, ...], list[int]]:
        """Indices of points by their surface."""
        found: dict[tuple[Any, ...], list[int]] = {}
        for index, params in enumerate(points):
            found.setdefault(self.group(params), []).append(index)
        return found

    def probabilities(self, points: Sequence[Params]) -> Array:
        """(n, 3) probabilities of the regimes; even ones where no surface is known yet."""
        found = regime_probabilities(*self.signs(points).T)
        unknown = [self.group(params) not in self.surfaces for params in points]
        found[unknown] = 1 / 3
        return found

    def signs(self, points: Sequence[Params]) -> Array:
        """(n, 2) probabilities of stable, and of bounded; even ones where no surface is known."""
        found = np.full((len(points), 2), 0.5)
        for group, rows in self._rows(points).items():
            if group in self.surfaces:
                x = self.encoding.encode([points[i] for i in rows])
                found[rows] = self.surfaces[group].signs(x)
        return found

    def outlook(
        self,
        group: tuple[Any, ...],
        candidates: Sequence[Params],
        box: Sequence[Params],
        pending: Sequence[Params],
    ) -> Outlook:
        """What candidates of one surface would tell, once the pending points are known."""
        encode = self.encoding.encode
        waiting = [p for p in pending if self.group(p) == group]
        facets = dict(zip(self.encoding.facets, group, strict=False))
        here = encode([{**p, **facets} for p in box])
        outlook = Outlook(self.surfaces[group], encode([*candidates, *waiting]), here)
        for index in range(len(waiting)):
            outlook.take(len(candidates) + index)
        return outlook
