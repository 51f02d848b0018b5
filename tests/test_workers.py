"""Workers that wait for the next round are kept, for a while."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.tune.utils.object_cache import _ObjectCache

from stabmap import load_spec
from sweeps.rounds import Rounds
from sweeps.runner import execute
from sweeps.workers import IDLE_SECONDS, KeepWorkers

SPEC: dict[str, Any] = {
    "task": {"name": "one-layer-cnn", "image": 16, "kernel": 4},
    "axes": {"lr": {"scale": "log", "low": 0.003, "high": 0.5}, "weight_decay": 20},
    "steps": 20,
    "lyapunov": False,
    "search": {"method": "tpe", "batch": 4, "audit": 0},
    "budget": {"points": 24},
    "resources": {"workers": 2, "pack": 2},
}


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_in_rounds_keeps_its_workers(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every round is slow to come, so all workers wait again and again."""
    begun = list[Any]()
    add, propose = RayActorManager.add_actor, Rounds.propose

    def watched(self: Any, *given: Any, **more: Any) -> Any:
        begun.append(add(self, *given, **more))
        return begun[-1]

    def slow(self: Rounds) -> Any:
        time.sleep(0.7)
        return propose(self)

    monkeypatch.setattr(RayActorManager, "add_actor", watched)
    monkeypatch.setattr(Rounds, "propose", slow)
    monkeypatch.setattr(Rounds, "ready", property(lambda self: self.exhausted or settled(self)))
    outcome = execute(load_spec(SPEC, {"folder": str(tmp_path)}))
    assert (outcome.ending, outcome.points) == ("complete", 24)
    # Which worker takes the first packs depends on which is there first: one more may begin.
    assert len(begun) <= 3


def settled(rounds: Rounds) -> bool:
    """Whether nothing is being trained."""
    return len(rounds.results) == rounds.proposed


class Controller:
    """As much of Tune's as is looked at."""

    def __init__(self) -> None:
        self.over = False
        self._actor_cache: Any = _ObjectCache(may_keep_one=True)
        self._tune_controller = self
        self.search_alg = SimpleNamespace(is_finished=lambda: self.over)

    def get_trials(self) -> list[Any]:
        return []

    def left(self, actors: int) -> int:
        """How many of so many workers stay that have just become idle."""
        for i in range(actors):
            self._actor_cache.cache_object("a core", i)
        list(self._actor_cache.flush_cached_objects())
        return int(self._actor_cache.num_cached_objects)


def test_idle_workers_are_let_go_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds after the last pack all but the one that Tune keeps; at the end, all."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    controller, scheduler = Controller(), KeepWorkers()
    trial: Any = SimpleNamespace(placement_group_factory="a core")
    assert scheduler.choose_trial_to_run(controller) is None  # before the first trial
    assert controller.left(3) == 1
    controller._actor_cache.pop_cached_object("a core")
    scheduler.on_trial_add(controller, trial)
    scheduler.choose_trial_to_run(controller)
    scheduler.on_trial_complete(controller, trial, {})
    assert controller.left(3) == 3
    now += IDLE_SECONDS
    scheduler.choose_trial_to_run(controller)
    assert controller.left(0) == 3
    now += 0.1
    scheduler.choose_trial_to_run(controller)
    assert controller.left(0) == 1
    scheduler.on_trial_complete(controller, trial, {})  # the last of a round, long after the others
    assert controller.left(1) == 2
    scheduler.choose_trial_to_run(controller)
    assert controller.left(0) == 2
    controller.over = True
    scheduler.choose_trial_to_run(controller)
    assert controller._actor_cache.total_max_objects == 0  # Tune ends all then


def test_where_a_worker_was_lost_idle_ones_are_not_trusted() -> None:
    """They may be lost with it: Tune does not see that before it gives them a pack."""
    controller, scheduler = Controller(), KeepWorkers()
    trial: Any = SimpleNamespace(placement_group_factory="a core")
    scheduler.on_trial_add(controller, trial)
    scheduler.choose_trial_to_run(controller)
    scheduler.on_trial_complete(controller, trial, {})
    assert controller.left(9) == 9
    scheduler.on_trial_error(controller, trial)
    scheduler.choose_trial_to_run(controller)
    assert controller.left(0) == 1
