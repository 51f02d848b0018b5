"""The boundary sampler: in any Optuna study, the same whoever asks, and with few points."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)
from optuna.trial import Trial, TrialState, create_trial
from scipy.stats import qmc
from synthetic import forget_fits

import sweeps.search.boundary as boundary
from analysis import surface
from analysis.surface import Surface, columns
from sweeps.search.boundary import PLAN, BoundarySampler
from sweeps.search.space import distributions, switches, to_params
from trainables.domain import Axis, InputError, Point

Array = NDArray[np.float64]
Space = Mapping[str, BaseDistribution]
Params = Mapping[str, Any]
Margins = Callable[[Params], Sequence[float]]

RATE = FloatDistribution(1e-3, 1.0, log=True)
DECAY = FloatDistribution(1e-4, 1.0, log=True)
PLANE: Space = {"lr": RATE, "decay": DECAY}
SWITCH = CategoricalDistribution([False, True])
ACT = CategoricalDistribution(["relu", "tanh"])
GRID: Space = {"x": IntDistribution(0, 9), "y": IntDistribution(0, 9)}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    yield
    optuna.logging.set_verbosity(before)


# --------------------------------------------------------------------------- helpers


def place(params: Params) -> Array:
    """Coordinates of (lr, decay) in [0, 1], worked out by hand."""
    return np.array([1 + np.log10(params["lr"]) / 3, 1 + np.log10(params["decay"]) / 4])


def slanted(params: Params) -> list[float]:
    """Two slanted straight boundaries."""
    x, y = place(params)
    return [float(0.55 - x - 0.4 * y), float(0.9 - x - 0.4 * y)]


def signs(params: Params) -> list[float]:
    """The same without sizes that say how far away they are."""
    return [math.copysign(1, margin) for margin in slanted(params)]


def on_grid(params: Params) -> list[float]:
    """Two slanted boundaries over ten times ten whole numbers."""
    across = params["x"] + 0.4 * params["y"]
    return [5.2 - across, 8.3 - across]


def advance(study: Study, space: Space, count: int, margins: Margins | None = slanted) -> None:
    """Ask and tell; without margins, values alone."""
    for _ in range(count):
        trial = study.ask(dict(space))
        if margins is not None:
            trial.set_user_attr("margins", list(margins(trial.params)))
        study.tell(trial, 0.0)


def study_of(sampler: BoundarySampler, storage: str | None = None) -> Study:
    return optuna.create_study(
        sampler=sampler, storage=storage, study_name="one", load_if_exists=True
    )


def points(study: Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


def distinct(study: Study) -> int:
    return len({tuple(p.items()) for p in points(study)})


def add(study: Study, space: Space, params: Params, margins: Any = None, **attrs: Any) -> None:
    """A finished trial that some other sampler proposed."""
    if margins is not None:
        attrs["margins"] = margins
    study.add_trial(
        create_trial(params=dict(params), distributions=dict(space), value=0.0, user_attrs=attrs)
    )


def messages(call: Callable[[], object]) -> list[str]:
    with pytest.raises(InputError) as error:
        call()
    return str(error.value).split("\n")


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'study.db'}"


# --------------------------------------------------------------------------- another process


class Counted(ProcessPoolExecutor):
    """A process of its own, and how often it was asked."""

    def __init__(self) -> None:
        super().__init__(1, mp_context=multiprocessing.get_context("spawn"))
        self.calls = 0

    def submit(self, function: Callable[..., Any], /, *given: Any, **more: Any) -> Future[Any]:
        self.calls += 1
        return super().submit(function, *given, **more)


class Failing(Executor):
    """An executor whose process is lost at some call."""

    def __init__(self, at: int) -> None:
        self.calls, self._at = 0, at

    def submit(self, function: Callable[..., Any], /, *given: Any, **more: Any) -> Future[Any]:
        self.calls += 1
        answer: Future[Any] = Future()
        if self.calls < self._at:
            try:
                answer.set_result(function(*given, **more))
            except Exception as error:
                answer.set_exception(error)
        elif self.calls % 2:
            raise BrokenExecutor("lost")
        else:
            answer.set_exception(BrokenExecutor("lost"))
        return answer


@pytest.fixture(scope="module")
def alone() -> list[dict[str, Any]]:
    """What is proposed without another process."""
    study = study_of(BoundarySampler(seed=1, space=PLANE))
    advance(study, PLANE, 80)
    return points(study)


def test_plans_by_signs_of_another_process_are_the_same(alone: list[dict[str, Any]]) -> None:
    forget_fits()
    study = study_of(BoundarySampler(seed=1, space=PLANE, sizes=False))
    advance(study, PLANE, 72)
    forget_fits()
    with Counted() as executor:
        other = study_of(BoundarySampler(seed=1, space=PLANE, sizes=False, executor=executor))
        advance(other, PLANE, 72)
    assert points(other) == points(study) != alone[:72]


def test_plans_of_another_process_are_the_same(alone: list[dict[str, Any]]) -> None:
    forget_fits()
    with Counted() as executor:
        study = study_of(BoundarySampler(seed=1, space=PLANE, executor=executor))
        advance(study, PLANE, 80)
    assert points(study) == alone
    assert executor.calls == 2 * 8  # a fit and a plan in each round after the first two


@pytest.mark.parametrize("sizes", [False, True])
def test_what_was_fitted_elsewhere_is_not_fitted_again(
    sizes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map of the points that a plan was made from needs no more fits."""
    study = study_of(BoundarySampler(seed=1, space=PLANE, sizes=sizes))
    advance(study, PLANE, 24)
    forget_fits()
    with Counted() as executor:
        study.sampler = BoundarySampler(seed=1, space=PLANE, sizes=sizes, executor=executor)
        study.ask(dict(PLANE))
    # With sizes, those of fewer points too, which say whether sizes count.
    assert executor.calls == 2
    assert len(surface._FITTED) > 2 if sizes else len(surface._FITTED) == 2
    monkeypatch.setattr(surface, "fit", None)
    study.sampler.surfaces(study)


@pytest.mark.parametrize("at", [1, 2, 5, 6])
def test_a_search_goes_on_where_the_other_process_is_lost(
    at: int, alone: list[dict[str, Any]]
) -> None:
    executor = Failing(at)
    study = study_of(BoundarySampler(seed=1, space=PLANE, executor=executor))
    advance(study, PLANE, 64)
    assert points(study) == alone[:64] and executor.calls > at


def test_an_error_of_the_plan_itself_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(BoundarySampler(seed=1, space=PLANE, executor=Failing(99)))
    advance(study, PLANE, 16)
    tried = list[int]()

    def broken(*given: Any) -> Any:
        tried.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(boundary, "choose", broken)
    with pytest.raises(ZeroDivisionError):
        study.ask(dict(PLANE))
    assert tried == [1]  # once: what fails there would fail here


def test_a_sampler_is_pickled_without_its_executor() -> None:
    with ThreadPoolExecutor(1) as executor:
        sampler = BoundarySampler(seed=1, space=PLANE, executor=executor)
        copy = pickle.loads(pickle.dumps(sampler))
        assert (copy.executor, sampler.executor) == (None, executor)


# --------------------------------------------------------------------------- Optuna's own tests


class TestOptuna(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: BoundarySampler(seed=3)


# --------------------------------------------------------------------------- the first points


def test_starts_with_a_scrambled_sobol_sequence() -> None:
    study = study_of(BoundarySampler(5, space=PLANE))
    advance(study, PLANE, 16)
    expected = qmc.Sobol(2, scramble=True, rng=5).random(16)
    np.testing.assert_allclose([place(p) for p in points(study)], expected, atol=1e-12)
    assert not any(PLAN in trial.system_attrs for trial in study.trials)
    advance(study, PLANE, 1)
    assert PLAN in study.trials[16].system_attrs


def test_startup_is_eight_points_an_axis() -> None:
    """Single values and the switches of extra zeros are no axes; a category is one."""
    space = {"lr": RATE, "decay": DECAY, "off": SWITCH, "act": ACT, "n": IntDistribution(3, 3)}
    study = study_of(BoundarySampler(0, space=space, zero={"decay": "off"}))
    advance(study, space, 25)
    assert [PLAN in trial.system_attrs for trial in study.trials] == [False] * 24 + [True]


def test_startup_counts_points_with_margins() -> None:
    study = study_of(BoundarySampler(0, space=PLANE, startup=4))
    advance(study, PLANE, 7, margins=None)
    advance(study, PLANE, 5)
    planned = [PLAN in trial.system_attrs for trial in study.trials]
    assert planned == [False] * 11 + [True]


def test_fixed_axes_stay() -> None:
    """One value of a range or a category; the other axis is searched all the same."""
    space: Space = {
        "lr": RATE,
        "decay": FloatDistribution(0.01, 0.01, log=True),
        "n": IntDistribution(4, 4),
        "act": CategoricalDistribution(["relu"]),
    }
    study = study_of(BoundarySampler(0, space=space))
    advance(study, space, 24)
    assert {(p["decay"], p["n"], p["act"]) for p in points(study)} == {(0.01, 4, "relu")}
    assert distinct(study) == 24
    line = [{**points(study)[0], "lr": float(rate)} for rate in np.geomspace(1e-3, 1, 101)]
    found = study.sampler.predict_proba(study, line).argmax(1)  # type: ignore[union-attr]
    truth = [labelled(slanted(p)) for p in line]
    assert (found != truth).mean() <= 0.02


def test_extra_zero() -> None:
    """An eighth of the Sobol points; later as many as it takes to tell it from the rest."""
    space: Space = {"lr": RATE, "decay": DECAY, "off": SWITCH}

    def margins(params: Params) -> list[float]:
        return [1.0, 1.0] if params["off"] else slanted(params)

    sampler = BoundarySampler(1, space=space, zero={"decay": "off"})
    study = study_of(sampler)
    advance(study, space, 16, margins)
    assert sum(p["off"] for p in points(study)) == 2
    advance(study, space, 32, margins)
    assert {p["decay"] for p in points(study) if p["off"]} == {1e-4}
    at_zero = sampler.predict_proba(study, [{"lr": 0.9, "decay": 1e-4, "off": True}])
    beside = sampler.predict_proba(study, [{"lr": 0.9, "decay": 1e-4, "off": False}])
    assert at_zero[0].argmax() == 0
    assert beside[0].argmax() == 2


# --------------------------------------------------------------------------- seeds


def fresh_every_trial(storage: Study, seed: int, count: int) -> None:
    for _ in range(count):
        storage.sampler = BoundarySampler(seed, space=PLANE, startup=8)
        advance(storage, PLANE, 1)


def test_the_same_seed_and_results_give_the_same_proposals(tmp_path: Path) -> None:
    """One instance; a new one every trial; a study that is loaded again from its file."""
    one = study_of(BoundarySampler(7, space=PLANE, startup=8))
    advance(one, PLANE, 20)
    other = study_of(BoundarySampler(7, space=PLANE, startup=8))
    fresh_every_trial(other, 7, 20)
    assert points(one) == points(other)
    for count in (11, 6, 3):  # in the middle of plans
        stored = study_of(BoundarySampler(7, space=PLANE, startup=8), sqlite(tmp_path))
        advance(stored, PLANE, count)
    assert points(stored) == points(one)
    assert distinct(one) == 20


def test_other_seeds_propose_otherwise() -> None:
    """From the first point on, and also where everything known is the same."""
    first, second = (study_of(BoundarySampler(s, space=PLANE, startup=8)) for s in (0, 1))
    advance(first, PLANE, 16)
    advance(second, PLANE, 16)
    assert not {tuple(p.items()) for p in points(first)} & {
        tuple(p.items()) for p in points(second)
    }
    plans = []
    for seed in (0, 1):
        study = study_of(BoundarySampler(seed, space=PLANE, startup=8))
        for params in points(first):
            add(study, PLANE, params, slanted(params))
        advance(study, PLANE, 1)
        plans.append(points(study)[-1])
    assert plans[0] != plans[1]


def test_without_a_seed_studies_differ() -> None:
    found = set()
    for _ in range(2):
        study = study_of(BoundarySampler(space=PLANE))
        advance(study, PLANE, 1)
        found.add(study.trials[0].params["lr"])
    assert len(found) == 2


def test_results_matter_and_values_do_not() -> None:
    """Other signs and, if they count, other sizes change the plan; objective values do not."""

    def plan(margins: Margins, value: float, sizes: bool = True) -> list[dict[str, Any]]:
        study = study_of(BoundarySampler(0, space=PLANE, startup=16, sizes=sizes))
        for _ in range(24):
            trial = study.ask(dict(PLANE))
            trial.set_user_attr("margins", list(margins(trial.params)))
            study.tell(trial, value)
        return points(study)[16:]

    usual = plan(slanted, 0.0)
    assert plan(slanted, -3.0) == usual
    assert plan(lambda p: [slanted(p)[0] + 0.2, slanted(p)[1]], 0.0) != usual
    assert plan(signs, 0.0) == plan(slanted, -3.0, sizes=False) != usual


# --------------------------------------------------------------------------- plans


def test_plans_end_at_multiples_of_the_batch() -> None:
    study = study_of(BoundarySampler(0, space=PLANE, startup=5, batch=4))
    advance(study, PLANE, 17)
    sizes = {t.number: len(t.system_attrs[PLAN]) for t in study.trials if PLAN in t.system_attrs}
    assert sizes == {5: 3, 8: 4, 12: 4, 16: 4}


def test_another_instance_goes_on_with_a_plan() -> None:
    """Whatever its seed; the plan is in the study, also for points that are not told yet."""
    study = study_of(BoundarySampler(0, space=PLANE, startup=8))
    advance(study, PLANE, 9)
    plan = study.trials[8].system_attrs[PLAN]
    assert len(plan) == 8
    for ahead in range(1, 8):
        study.sampler = BoundarySampler(100 + ahead, space=PLANE, startup=8)
        trial = study.ask(dict(PLANE))
        assert trial.params == plan[ahead]
    assert distinct(study) == 16


def test_a_plan_for_another_space_is_dropped() -> None:
    study = study_of(BoundarySampler(0, space=PLANE, startup=8))
    advance(study, PLANE, 9)
    narrow: Space = {"lr": FloatDistribution(1e-3, 2e-3, log=True), "decay": DECAY}
    study.sampler = BoundarySampler(0, space=narrow, startup=1)
    advance(study, narrow, 2)
    assert max(p["lr"] for p in points(study)[9:]) <= 2e-3


def test_a_plan_holds_categories_and_steps() -> None:
    """What another instance reads from the study is what the first one meant."""
    space: Space = {
        "act": ACT,
        "n": IntDistribution(1, 300, log=True),
        "x": FloatDistribution(0, 1, step=0.05),
    }
    study = study_of(BoundarySampler(0, space=space, startup=8))
    advance(study, space, 16, lambda p: [0.5 - p["x"], 150 - p["n"]])
    for trial in study.trials[8:]:
        assert type(trial.params["n"]) is int
        assert type(trial.params["act"]) is str
    assert [PLAN in t.system_attrs for t in study.trials[8:]] == [True] + [False] * 7
    assert distinct(study) == 16


def least_distance(found: Sequence[Array]) -> float:
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(found, 2))


@pytest.mark.parametrize(
    ("told", "margins", "apart"), [(0, slanted, 0.03), (24, signs, 0.03), (24, slanted, 0.001)]
)
def test_running_points_count(told: int, margins: Margins, apart: float) -> None:
    """Eight asked and none told, twice over: all differ and keep apart, with Sobol or a plan.

    Where sizes leave little in doubt, what is left lies close together.
    """
    study = study_of(BoundarySampler(0, space=PLANE))
    advance(study, PLANE, told, margins)
    asked = [place(study.ask(dict(PLANE)).params) for _ in range(16)]
    assert distinct(study) == told + 16
    assert least_distance(asked[:8]) > apart
    assert least_distance(asked) > apart / 3


def test_a_batch_may_be_larger_than_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary, "CANDIDATES", 6)
    study = study_of(BoundarySampler(0, space=PLANE, startup=8, batch=16))
    advance(study, PLANE, 32)
    assert distinct(study) == 32
    sizes = {t.number: len(t.system_attrs[PLAN]) for t in study.trials if PLAN in t.system_attrs}
    assert sizes == {8: 6, 14: 2, 16: 6, 22: 6, 28: 4}


# --------------------------------------------------------------------------- any study


def test_define_by_run() -> None:
    """No space is given: all that completed trials share is searched, Sobol points first."""

    def objective(trial: Trial) -> float:
        trial.suggest_float("lr", 1e-3, 1.0, log=True)
        trial.suggest_float("decay", 1e-4, 1.0, log=True)
        trial.suggest_float("constant", 2.0, 2.0)
        trial.set_user_attr("margins", slanted(trial.params))
        return 1.0

    sampler = BoundarySampler(0)
    study = study_of(sampler)
    study.optimize(objective, n_trials=24)
    sobol = qmc.Sobol(2, scramble=True, rng=0).random(16)[1:]
    # Parameters are in the order of their names.
    found = [place(p)[::-1] for p in points(study)[1:16]]
    np.testing.assert_allclose(found, sobol, atol=1e-12)
    assert PLAN in study.trials[16].system_attrs
    assert set(study.trials[16].system_attrs[PLAN][0]) == {"decay", "lr"}
    assert distinct(study) == 24


def test_conditional_parameters() -> None:
    """Those that all have are searched, the others drawn at random inside their ranges."""

    def objective(trial: Trial) -> float:
        rate = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        if trial.suggest_categorical("act", ["relu", "leaky"]) == "leaky":
            assert 0.1 <= trial.suggest_float("slope", 0.1, 0.3) <= 0.3
        trial.set_user_attr("margins", [0.03 - rate, 0.3 - rate])
        return 0.0

    study = study_of(BoundarySampler(0))
    study.optimize(objective, n_trials=24)
    planned = [t.system_attrs[PLAN] for t in study.trials if PLAN in t.system_attrs]
    assert planned
    assert set(planned[0][0]) == {"lr", "act"}
    slopes = [p["slope"] for p in points(study) if "slope" in p]
    assert len(set(slopes)) == len(slopes) > 3


def test_dynamic_ranges() -> None:
    """A range that changes is no axis; the points lie in the range of their own trial."""

    def objective(trial: Trial) -> float:
        high = 1.0 + trial.number % 3
        x = trial.suggest_float("x", 0.0, high)
        assert 0 <= x <= high
        rate = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        trial.set_user_attr("margins", [0.03 - rate, 0.3 - rate])
        return 0.0

    study = study_of(BoundarySampler(0))
    study.optimize(objective, n_trials=20)
    planned = [t.system_attrs[PLAN] for t in study.trials if PLAN in t.system_attrs]
    assert set(planned[-1][0]) == {"lr"}


def test_a_given_space_may_be_wider_than_the_trials() -> None:
    """Points outside the range that a trial asks for are replaced by ones inside."""
    wide = BoundarySampler(0, space=PLANE, startup=8)
    study = study_of(wide)
    narrow = {"lr": FloatDistribution(1e-3, 1e-2, log=True), "decay": DECAY}
    advance(study, narrow, 20)
    assert max(p["lr"] for p in points(study)) <= 1e-2


def test_without_margins_it_goes_on_with_the_sobol_sequence() -> None:
    study = study_of(BoundarySampler(2, space=PLANE))
    advance(study, PLANE, 40, margins=None)
    expected = qmc.Sobol(2, scramble=True, rng=2).random(64)[:40]
    np.testing.assert_allclose([place(p) for p in points(study)], expected, atol=1e-12)


def test_trials_without_margins_teach_nothing() -> None:
    """Their points are not proposed again, but probabilities stay as they were."""
    sampler = BoundarySampler(0, space=PLANE)
    study = study_of(sampler)
    advance(study, PLANE, 20)
    asked = [{"lr": 0.03, "decay": 0.01}, {"lr": 0.5, "decay": 0.5}]
    before = sampler.predict_proba(study, asked)
    advance(study, PLANE, 3, margins=None)
    np.testing.assert_array_equal(sampler.predict_proba(study, asked), before)


def test_failed_trials() -> None:
    """With margins they count, although Optuna calls a value of NaN a failure; else they do not."""

    def objective(trial: Trial) -> float:
        rate = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        if trial.number % 5 == 4:
            raise RuntimeError("lost")
        trial.suggest_float("decay", 1e-4, 1.0, log=True)
        margins = slanted(trial.params)
        trial.set_user_attr("margins", margins)
        return rate if margins[1] >= 0 else math.nan

    sampler = BoundarySampler(0, startup=16)
    study = study_of(sampler)
    study.optimize(objective, n_trials=48, catch=(RuntimeError,))
    states = Counter(trial.state for trial in study.trials)
    assert states[TrialState.FAIL] > 9
    found = sampler.predict_proba(study, [{"lr": 1.0, "decay": 1.0}])
    assert found[0, 2] > 0.9
    assert any(PLAN in trial.system_attrs for trial in study.trials)


def test_a_study_in_which_every_trial_fails() -> None:
    """Margins alone are enough to search, also for the axes."""

    def objective(trial: Trial) -> float:
        trial.suggest_float("lr", 1e-3, 1.0, log=True)
        trial.suggest_float("decay", 1e-4, 1.0, log=True)
        trial.set_user_attr("margins", slanted(trial.params))
        return math.nan

    sampler = BoundarySampler(0)
    study = study_of(sampler)
    study.optimize(objective, n_trials=17)
    assert {trial.state for trial in study.trials} == {TrialState.FAIL}
    assert PLAN in study.trials[16].system_attrs


def test_pruned_trials_with_margins_count() -> None:
    def objective(trial: Trial) -> float:
        rate = trial.suggest_float("lr", 1e-3, 1.0, log=True)
        trial.set_user_attr("margins", [0.03 - rate, 0.3 - rate])
        raise optuna.TrialPruned

    study = study_of(BoundarySampler(0))
    study.optimize(objective, n_trials=9)
    assert PLAN in study.trials[8].system_attrs


def test_enqueued_trials() -> None:
    """They are run as they are, also in the middle of a plan, and not proposed again."""
    study = study_of(BoundarySampler(0, space=GRID, startup=16))
    study.enqueue_trial({"x": 5, "y": 0})
    advance(study, GRID, 20, on_grid)
    study.enqueue_trial({"x": 0, "y": 0})
    study.enqueue_trial({"x": 9})
    advance(study, GRID, 28, on_grid)
    assert points(study)[0] == {"x": 5, "y": 0}
    assert points(study)[20] == {"x": 0, "y": 0}
    assert points(study)[21]["x"] == 9
    assert points(study).count({"x": 5, "y": 0}) == 1
    assert distinct(study) >= 47  # half of 21 was enqueued, half planned


def test_added_trials_of_another_sampler() -> None:
    """A study that began elsewhere: its points count as the start, and are not repeated."""
    study = study_of(BoundarySampler(0, space=PLANE))
    for x, y in np.random.default_rng(0).random((20, 2)):
        params = {"lr": float(1e-3 ** (1 - x)), "decay": float(1e-4 ** (1 - y))}
        add(study, PLANE, params, slanted(params))
    advance(study, PLANE, 4)
    assert PLAN in study.trials[20].system_attrs
    assert distinct(study) == 24


def test_threads() -> None:
    def objective(trial: Trial) -> float:
        trial.suggest_float("lr", 1e-3, 1.0, log=True)
        trial.suggest_float("decay", 1e-4, 1.0, log=True)
        trial.set_user_attr("margins", slanted(trial.params))
        return 0.0

    study = study_of(BoundarySampler(0, space=PLANE))
    study.optimize(objective, n_trials=32, n_jobs=2)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert len(study.trials) == distinct(study) == 32


def test_two_samplers_share_a_study(tmp_path: Path) -> None:
    """Each sees what the other one asked and told; neither repeats a point or a plan."""
    workers = [
        study_of(BoundarySampler(0, space=PLANE, startup=8), sqlite(tmp_path)) for _ in range(2)
    ]
    for _ in range(10):
        trials = [worker.ask(dict(PLANE)) for worker in workers]
        for worker, trial in zip(workers, trials, strict=True):
            trial.set_user_attr("margins", slanted(trial.params))
            worker.tell(trial, 0.0)
    assert distinct(workers[0]) == 20
    planned = [t.number for t in workers[0].trials if PLAN in t.system_attrs]
    assert planned == [8, 16]


def _work(storage: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    advance(study_of(BoundarySampler(0, space=PLANE, startup=8), storage), PLANE, 10)


def test_two_processes_share_a_study(tmp_path: Path) -> None:
    storage = sqlite(tmp_path)
    study = study_of(BoundarySampler(0, space=PLANE, startup=8), storage)
    other = multiprocessing.get_context("spawn").Process(target=_work, args=(storage,))
    other.start()
    while other.is_alive() and not study.trials:
        other.join(0.02)
    advance(study, PLANE, 14)
    other.join()
    assert other.exitcode == 0
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE}
    assert len(study.trials) == distinct(study) == 24


# --------------------------------------------------------------------------- finite spaces

FINITE: Space = {
    "n": IntDistribution(1, 4, log=True),
    "x": FloatDistribution(0, 0.4, step=0.2),
    "act": ACT,
}


@pytest.mark.parametrize("margins", [None, lambda p: [p["n"] - 2.5, p["x"] - 0.1]])
@pytest.mark.parametrize("replicates", [1, 3])
def test_a_finite_space_is_used_up_before_points_repeat(
    margins: Margins | None, replicates: int
) -> None:
    """24 points; after them it still answers."""
    study = study_of(BoundarySampler(0, space=FINITE, startup=8, replicates=replicates))
    advance(study, FINITE, 24, margins)
    # Labels are right: there is nothing to evaluate again.
    assert distinct(study) == 24
    advance(study, FINITE, 12, margins)
    assert distinct(study) == 24


def test_a_finite_space_with_an_extra_zero() -> None:
    """At 0 the axis does not count: 3 + 1 levels, twice a category."""
    space: Space = {"x": FloatDistribution(0.2, 0.6, step=0.2), "off": SWITCH, "act": ACT}
    study = study_of(BoundarySampler(0, space=space, startup=4, zero={"x": "off"}))
    advance(study, space, 10, lambda p: [p["x"] - 0.3, 1.0])
    assert distinct(study) == 8


def test_the_last_points_of_a_large_finite_space() -> None:
    """Three of 900 are left, where no random draw would find them soon."""
    space: Space = {"x": IntDistribution(0, 29), "y": IntDistribution(0, 29)}
    study = study_of(BoundarySampler(0, space=space))
    left = {(3, 7), (20, 20), (29, 0)}
    for x, y in itertools.product(range(30), repeat=2):
        if (x, y) not in left:
            add(study, space, {"x": x, "y": y})
    advance(study, space, 4, on_grid)
    assert {(p["x"], p["y"]) for p in points(study)[-4:-1]} == left


def test_the_last_points_of_a_planned_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where a plan looks at fewer candidates than there are points."""
    monkeypatch.setattr(boundary, "POOL", 16)
    study = study_of(BoundarySampler(0, space=GRID, startup=16))
    left = {(3, 7), (9, 0), (0, 9)}
    for x, y in itertools.product(range(10), repeat=2):
        if (x, y) not in left:
            params = {"x": x, "y": y}
            add(study, GRID, params, on_grid(params))
    advance(study, GRID, 5, on_grid)
    assert {(p["x"], p["y"]) for p in points(study)[-5:-2]} == left


# --------------------------------------------------------------------------- facets

FACETS: Space = {"lr": RATE, "decay": DECAY, "act": ACT}
ASKED = [{"lr": r, "decay": 0.01, "act": "relu"} for r in (0.003, 0.03, 0.1, 0.8)]


def by_facet(params: Params) -> list[float]:
    """For tanh both boundaries lie elsewhere."""
    shift = 0.0 if params["act"] == "relu" else 0.1
    return [margin + shift for margin in slanted(params)]


def probabilities_after(facets: Any, act: str) -> tuple[Array, Array]:
    """Probabilities for relu before and after ten labels of a facet, all divergent."""
    sampler = BoundarySampler(0, space=FACETS, facets=facets)
    study = study_of(sampler)
    advance(study, FACETS, 24, by_facet)
    before = sampler.predict_proba(study, ASKED)
    for rate in np.geomspace(2e-3, 0.5, 10):
        add(study, FACETS, {"lr": float(rate), "decay": 0.02, "act": act}, [-1.0, -1.0])
    return before, sampler.predict_proba(study, ASKED)


def test_separate_facets_learn_nothing_of_each_other() -> None:
    before, after = probabilities_after("separate", "tanh")
    np.testing.assert_array_equal(before, after)
    before, after = probabilities_after("separate", "relu")
    assert np.abs(before - after).max() > 0.1


def test_shared_facets_learn_of_each_other() -> None:
    before, after = probabilities_after("shared", "tanh")
    assert np.abs(before - after).max() > 0.01


@pytest.mark.parametrize("facets", ["shared", "separate"])
def test_both_facets_are_mapped(facets: Any) -> None:
    sampler = BoundarySampler(0, space=FACETS, facets=facets, startup=16)
    study = study_of(sampler)
    advance(study, FACETS, 64, by_facet)
    keys = sampler.surfaces(study).keys()
    assert set(keys) == ({()} if facets == "shared" else {("relu",), ("tanh",)})
    shares = Counter(p["act"] for p in points(study))
    assert min(shares.values()) >= 20
    for act in ("relu", "tanh"):
        asked = [{**params, "act": act} for params in plane_grid(32)]
        truth = np.array([labelled(by_facet(p)) for p in asked])
        found = sampler.predict_proba(study, asked).argmax(1)
        assert (found != truth).mean() < 0.06


def test_a_facet_of_which_nothing_is_known_comes_first() -> None:
    study = study_of(BoundarySampler(0, space=FACETS, facets="separate", startup=8))
    for x, y in qmc.Sobol(2, rng=0).random(8):
        params = {"lr": 1e-3 ** (1 - x), "decay": 1e-4 ** (1 - y), "act": "relu"}
        add(study, FACETS, params, slanted(params))
    sampler = study.sampler
    assert isinstance(sampler, BoundarySampler)
    unknown = sampler.predict_proba(study, [{"lr": 0.1, "decay": 0.1, "act": "tanh"}])
    np.testing.assert_allclose(unknown, 1 / 3)
    advance(study, FACETS, 1, by_facet)
    assert points(study)[-1]["act"] == "tanh"


def test_several_facets() -> None:
    """Three categories and two; all kinds of choices; a combination each if separate."""
    space: Space = {
        "lr": RATE,
        "act": CategoricalDistribution(["relu", None, 3]),
        "bias": CategoricalDistribution([True, False]),
    }
    for facets in ("shared", "separate"):
        sampler = BoundarySampler(0, space=space, facets=facets, startup=16)
        study = study_of(sampler)
        advance(study, space, 24, lambda p: [0.03 - p["lr"], 0.3 - p["lr"]])
        assert distinct(study) == 24
        surfaces = sampler.surfaces(study)
        assert len(surfaces) == (1 if facets == "shared" else 6)


# --------------------------------------------------------------------------- odd margins


def test_margins_that_are_not_finite() -> None:
    """NaN counts as negative, infinities by their signs: the same proposals as with ones."""

    def odd(params: Params) -> list[float]:
        stable, bounded = slanted(params)
        if bounded < 0:
            return [math.nan, -math.inf if params["lr"] < 0.5 else math.nan]
        return [math.inf if stable >= 0 else math.nan, bounded]

    found = []
    for margins in (signs, odd):
        sampler = BoundarySampler(0, space=PLANE)
        study = study_of(sampler)
        advance(study, PLANE, 25, margins)
        found.append((points(study), sampler.predict_proba(study, [{"lr": 0.1, "decay": 0.1}])))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_margins_survive_a_file(tmp_path: Path) -> None:
    """NaN and infinity come back from a database."""
    study = study_of(BoundarySampler(0, space=PLANE, startup=4), sqlite(tmp_path))
    odd = itertools.cycle([[math.nan, math.nan], [math.inf, math.inf], [-math.inf, 1.0]])
    advance(study, PLANE, 6, lambda p: next(odd))
    assert distinct(study) == 6


@pytest.mark.parametrize(
    ("margins", "regime"), [([1.0, 1.0], 0), ([-1.0, 1.0], 1), ([-1.0, -1.0], 2)]
)
def test_one_regime_everywhere(margins: list[float], regime: int) -> None:
    """No boundary in sight: it says so, and goes on looking in different places."""
    sampler = BoundarySampler(0, space=PLANE)
    study = study_of(sampler)
    advance(study, PLANE, 32, lambda p: margins)
    assert sampler.predict_proba(study, plane_grid(8))[:, regime].min() > 0.8
    assert distinct(study) == 32
    # Corners, where a boundary could still be, come first.
    planned = np.array([place(p) for p in points(study)[16:20]]).round(9)
    assert sorted(map(tuple, planned)) == list(itertools.product([0, 1], repeat=2))


def rare(params: Params) -> list[float]:
    """A stable boundary through the middle; one place in 50, in a corner, diverges."""
    x, y = place(params)
    return [float(0.55 - x - 0.1 * y), float(1.8 - x - y)]


@pytest.mark.parametrize("seed", range(3))
def test_a_rare_regime_in_a_corner_is_found(seed: int) -> None:
    """A boundary that is known already must not keep the search from what was never seen."""
    sampler = BoundarySampler(seed, space=PLANE)
    study = study_of(sampler)
    advance(study, PLANE, 64, rare)
    grid = plane_grid(32)
    found = sampler.predict_proba(study, grid).argmax(1)
    truth = [2 if rare(p)[1] < 0 else 0 if rare(p)[0] >= 0 else 1 for p in grid]
    assert (found != np.array(truth)).mean() < 0.02
    seen = [rare(p)[1] < 0 for p in points(study)]
    if not any(seen[:16]):
        assert any(seen[16:20])


def test_corners_of_a_finite_space_are_tried_once() -> None:
    """And with an extra zero they are those of its ends: no level, and the largest value."""
    space = {
        "x": IntDistribution(1, 5),
        "y": IntDistribution(1, 5),
        "zero": CategoricalDistribution([False, True]),
    }
    sampler = BoundarySampler(0, space=space, zero={"y": "zero"}, startup=4)
    study = study_of(sampler)
    advance(study, space, 30, lambda p: [1.0, 1.0])
    assert distinct(study) == 30
    begun = points(study)[:8]
    ends = [(p["x"], 0 if p["zero"] else p["y"]) for p in begun]
    assert {(1, 0), (1, 5), (5, 0), (5, 5)} <= set(ends)


def test_many_ranges_have_too_many_corners() -> None:
    space = {f"x{i}": FloatDistribution(0, 1) for i in range(4)}
    study = study_of(BoundarySampler(0, space=space, startup=4))
    advance(study, space, 8, lambda p: [1.0, 1.0])
    assert all(0 < v < 1 for p in points(study) for v in p.values())


def test_no_restrained_region() -> None:
    """Both margins change their signs together."""
    sampler = BoundarySampler(0, space=PLANE)
    study = study_of(sampler)
    advance(study, PLANE, 48, lambda p: [slanted(p)[0]] * 2)
    grid = plane_grid(32)
    found = sampler.predict_proba(study, grid).argmax(1)
    truth = np.array([0 if slanted(p)[0] >= 0 else 2 for p in grid])
    assert (found != truth).mean() < 0.02


# --------------------------------------------------------------------------- replicates


def noisy(width: float, seed: int) -> Margins:
    """Margins on the grid with noise of so many whole numbers."""
    random = np.random.default_rng(seed)

    def margins(params: Params) -> Sequence[float]:
        found: list[float] = (np.array(on_grid(params)) + width * random.normal(size=2)).tolist()
        return found

    return margins


def times(study: Study) -> list[int]:
    """How often each point was evaluated."""
    return sorted(Counter(tuple(p.items()) for p in points(study)).values())


@pytest.mark.parametrize("seed", [0, 1])
def test_doubtful_labels_are_evaluated_again(seed: int) -> None:
    """Where labels are mixed some points come again, never more than three times in all."""
    sampler = BoundarySampler(seed, space=GRID, replicates=3)
    study = study_of(sampler)
    advance(study, GRID, 64, noisy(1.0, seed))
    counts = times(study)
    assert counts[-1] in (2, 3)
    assert distinct(study) <= 61
    found = [sampler.replicate(study, trial) for trial in study.trials]
    assert found == [points(study)[:i].count(p) for i, p in enumerate(points(study))]
    assert Counter(found) == Counter(i for count in counts for i in range(count))
    repeated = [t.params for t, i in zip(study.trials, found, strict=True) if i]
    # Most lie where the noise, of deviation 1, can turn a sign.
    assert np.median([min(map(abs, on_grid(params))) for params in repeated]) < 1.5


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("sizes", "least"), [(False, 63), (True, 58)])
def test_sure_labels_are_not_evaluated_again(seed: int, sizes: bool, least: int) -> None:
    """By sizes, labels next to a boundary are not sure."""
    study = study_of(BoundarySampler(seed, space=GRID, replicates=3, sizes=sizes))
    advance(study, GRID, 64, lambda p: [margin + 0.1 for margin in on_grid(p)])
    assert distinct(study) >= least
    counts = Counter((p["x"], p["y"]) for p in points(study))
    repeated = [{"x": x, "y": y} for (x, y), count in counts.items() if count > 1]
    assert all(min(abs(margin + 0.1) for margin in on_grid(p)) < 0.5 for p in repeated)
    continuous = study_of(BoundarySampler(seed, space=PLANE, replicates=3))
    advance(continuous, PLANE, 32)
    assert distinct(continuous) >= 31


def test_one_replicate_never_repeats() -> None:
    study = study_of(BoundarySampler(0, space=GRID))
    advance(study, GRID, 64, noisy(1.0, 0))
    assert distinct(study) == 64


def test_running_replicates_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point that is being evaluated for the last time is not proposed again."""
    monkeypatch.setattr(boundary, "DOUBTED", 1.0)
    study = study_of(BoundarySampler(0, space=GRID, replicates=2, startup=16))
    advance(study, GRID, 16, noisy(1.0, 0))
    for _ in range(48):
        study.ask(dict(GRID))
    assert max(times(study)) == 2


def test_replicate_of_a_first_trial(tmp_path: Path) -> None:
    """Counted by number, whatever became of the trials, for running trials too."""
    sampler = BoundarySampler(0, space=GRID, replicates=3)
    study = study_of(sampler, sqlite(tmp_path))
    for _ in range(3):
        study.enqueue_trial({"x": 1, "y": 2})
    trials = [study.ask(dict(GRID)) for _ in range(4)]
    study.tell(trials[1], state=TrialState.FAIL)
    assert [sampler.replicate(study, t) for t in study.trials] == [0, 1, 2, 0]


# --------------------------------------------------------------------------- what is learnt


def plane_grid(side: int) -> list[dict[str, float]]:
    """Centres of side x side cells of the plane."""
    centres = (np.arange(side) + 0.5) / side
    return [
        {"lr": float(1e-3 ** (1 - x)), "decay": float(1e-4 ** (1 - y))}
        for x, y in itertools.product(centres, centres)
    ]


def labelled(margins: Sequence[float]) -> int:
    return 2 if margins[1] < 0 else 1 if margins[0] < 0 else 0


@pytest.mark.parametrize("seed", [0, 1])
def test_two_boundaries_are_found_with_few_points(seed: int) -> None:
    """By signs 3 % of a 64 x 64 grid is wrong after 72 trials, or less; of Sobol points, more is.

    By sizes that are distances, less than half of that after 40.
    """
    grid = plane_grid(64)
    truth = np.array([labelled(slanted(params)) for params in grid])
    assert min(Counter(truth.tolist()).values()) > 0.15 * len(grid)
    sampler = BoundarySampler(seed, space=PLANE)
    study = study_of(sampler)
    advance(study, PLANE, 72, signs)
    wrong = (sampler.predict_proba(study, grid).argmax(1) != truth).mean()
    assert wrong <= 0.03

    plain = study_of(BoundarySampler(seed, space=PLANE, startup=72))
    advance(plain, PLANE, 72, signs)
    assert wrong < (sampler.predict_proba(plain, grid).argmax(1) != truth).mean()

    sized = study_of(BoundarySampler(seed, space=PLANE))
    advance(sized, PLANE, 40)
    assert (sampler.predict_proba(sized, grid).argmax(1) != truth).mean() <= 0.015


def test_wrong_labels_are_lived_with() -> None:
    """5 % of the labels are those of another regime."""
    random = np.random.default_rng(0)

    def margins(params: Params) -> list[float]:
        other = [[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]]
        return other[random.integers(3)] if random.random() < 0.075 else slanted(params)

    sampler = BoundarySampler(0, space=PLANE)
    study = study_of(sampler)
    advance(study, PLANE, 64, margins)
    grid = plane_grid(32)
    truth = np.array([labelled(slanted(params)) for params in grid])
    assert (sampler.predict_proba(study, grid).argmax(1) != truth).mean() < 0.08


def test_probabilities_are_those_of_a_fresh_fit() -> None:
    """To the bit: a map of the same points, as `analysis` fits it, holds the same model."""
    axes = (
        Axis("lr", "log", 1e-3, 1.0),
        Axis("alpha", "linear", 0.5, 2.0, zero=True),
        Axis("weight_decay", "log", 1e-4, 1.0, zero=True),
    )
    space = distributions(axes)
    sampler = BoundarySampler(0, space=space, zero=switches(axes))
    study = study_of(sampler)
    margins = lambda p: [0.03 - p["lr"] * p["alpha"], 0.3 - p["lr"]]  # noqa: E731
    advance(study, space, 36, margins)
    zeros = [(p["alpha_is_zero"], p["weight_decay_is_zero"]) for p in points(study)]
    assert len(set(zeros)) >= 3

    def values(params: Params) -> list[float]:
        return [0.0 if params.get(f"{a.name}_is_zero") else params[a.name] for a in axes]

    x, indicators = columns(axes, np.array([values(p) for p in points(study)]))
    signs = np.array([trial.user_attrs["margins"] for trial in study.trials])
    surface = Surface.fit(x, signs, indicators)
    asked = [Point(0.02, 0.0, 1e-3), Point(0.2, 1.5, 0.0), Point(0.9, 0.6, 0.9)]
    there = columns(axes, np.array([[p.lr, p.alpha, p.weight_decay] for p in asked]))[0]
    np.testing.assert_array_equal(
        sampler.predict_proba(study, [to_params(axes, p) for p in asked]),
        surface.probabilities(there),
    )
    at_all = sampler.predict_proba(study, points(study))
    assert at_all.shape == (36, 3)
    np.testing.assert_allclose(at_all.sum(1), 1)
    assert sampler.predict_proba(study, []).shape == (0, 3)


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed = -1: a whole number >= 0; leave it out"),
        ({"seed": 0.5}, "seed = 0.5: a whole number >= 0; leave it out"),
        ({"startup": 0}, "startup = 0: a whole number >= 1; leave it out"),
        ({"batch": 0}, "batch = 0: a whole number >= 1; leave it out"),
        ({"batch": True}, "batch = True: a whole number >= 1; leave it out"),
        ({"replicates": 0}, "replicates = 0: a whole number >= 1; leave it out"),
        ({"facets": "x"}, "facets = 'x': shared or separate; use shared"),
        ({"sizes": "yes"}, "sizes = 'yes': True or False; leave it out"),
        (
            {"space": {"lr": RATE, "wd": [0, 1]}},
            "space.wd = [0, 1]: an axis is a numeric range (FloatDistribution, IntDistribution) "
            "or a facet (CategoricalDistribution) of Optuna; "
            "write FloatDistribution(low, high, log=True)",
        ),
        (
            {"space": {"lr": RATE, "act": ACT, "off": SWITCH}, "zero": {"act": "off"}},
            "zero = 'act': an axis with an extra zero is a numeric range; name one",
        ),
        (
            {"space": {"lr": RATE, "act": ACT}, "zero": {"lr": "act"}},
            "zero.lr = 'act': the switch of an extra zero is categorical; "
            "use CategoricalDistribution([False, True])",
        ),
        (
            {"space": {"n": IntDistribution(3, 3), "act": CategoricalDistribution(["relu"])}},
            "space = ['act', 'n']: every range holds a single value, so there is nothing to "
            "search; widen a range",
        ),
        (
            {"space": {}},
            "space = []: every range holds a single value, so there is nothing to search; "
            "widen a range",
        ),
    ],
)
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    assert messages(lambda: BoundarySampler(**arguments)) == [message]


def test_all_mistakes_are_told_at_once() -> None:
    found = messages(lambda: BoundarySampler(-1, batch=0, replicates=-2, facets="x"))  # type: ignore[arg-type]
    assert [line.split(" = ")[0] for line in found] == ["seed", "batch", "replicates", "facets"]


@pytest.mark.parametrize(
    "margins", [[1.0], [1.0, 2.0, 3.0], ["calm", 1.0], [None, 1.0], 0.5, None, {}]
)
def test_margins_that_are_no_two_numbers(margins: Any) -> None:
    study = study_of(BoundarySampler(0, space=PLANE))
    advance(study, PLANE, 2)
    trial = study.ask(dict(PLANE))
    trial.set_user_attr("margins", margins)
    study.tell(trial, 0.0)
    assert messages(lambda: study.ask(dict(PLANE))) == [
        f"trial 2: margins = {margins!r}: two numbers, stable and bounded; "
        'set_user_attr("margins", [0.5, 1.0])'
    ]


@pytest.mark.parametrize(
    ("margins", "right", "wrong"),
    [
        ([0.5, 1.0], "stable", "divergent"),
        ([-0.5, 1.0], "restrained", "stable"),
        ([math.nan, 1.0], "restrained", "divergent"),
        ([1.0, -1.0], "divergent", "stable"),
        ([-1.0, math.nan], "divergent", "restrained"),
    ],
)
def test_margins_that_contradict_the_trial(margins: list[float], right: str, wrong: str) -> None:
    study = study_of(BoundarySampler(0, space=PLANE))
    add(study, PLANE, {"lr": 0.1, "decay": 0.1}, margins, regime=right)
    advance(study, PLANE, 1)
    add(study, PLANE, {"lr": 0.2, "decay": 0.1}, margins, regime=wrong)
    assert messages(lambda: study.ask(dict(PLANE))) == [
        f"trial 2: margins = {margins!r}: the trial says {wrong}, but these margins say {right}: "
        "positive is the calm side; turn the margins' signs"
    ]


def test_several_objectives() -> None:
    study = optuna.create_study(
        directions=["minimize", "maximize"], sampler=BoundarySampler(0, space=PLANE)
    )
    with pytest.raises(ValueError, match="multi-objective"):
        study.ask(dict(PLANE))


def test_probabilities_without_margins() -> None:
    """No trial at all, none with margins, and none finished; axes given or not."""
    law = "a model needs finished trials that have margins, and an axis in common"
    remedy = 'trial.set_user_attr("margins", [stable, bounded]) before a trial ends'
    for sampler in (BoundarySampler(0), BoundarySampler(0, space=PLANE)):
        study = study_of(sampler)
        for _ in range(2):
            asked = [{"lr": 0.1, "decay": 0.1}]
            expected = [f"study = 0: {law}; {remedy}"]
            assert messages(lambda: sampler.predict_proba(study, asked)) == expected  # noqa: B023
            assert messages(lambda: sampler.surfaces(study)) == expected  # noqa: B023
            advance(study, PLANE, 3, margins=None)
            study.ask(dict(PLANE)).set_user_attr("margins", [1.0, 1.0])


def test_probabilities_without_an_axis_in_common() -> None:
    sampler = BoundarySampler(0)
    study = study_of(sampler)
    for high in (1.0, 2.0):
        add(study, {"x": FloatDistribution(0, high)}, {"x": 0.5}, [1.0, 1.0])
    [message] = messages(lambda: sampler.predict_proba(study, [{"x": 0.5}]))
    assert message.startswith("study = 2: a model needs finished trials that have margins")


def test_probabilities_of_points_that_are_none() -> None:
    sampler = BoundarySampler(0, space=FACETS)
    study = study_of(sampler)
    advance(study, FACETS, 3, by_facet)
    good = {"lr": 0.1, "decay": 0.1, "act": "relu"}
    bad = [good, {"lr": 0.1, "act": "relu"}, {**good, "lr": 0}, {**good, "act": "gelu"}]
    assert messages(lambda: sampler.predict_proba(study, bad)) == [
        "points[1].decay = None: the search varied this axis; give its value",
        "points[2].lr = 0: > 0 must hold on a log scale; raise it",
        "points[3].act = 'gelu': one of ['relu', 'tanh']; choose one",
    ]
