"""Workers of Tune that wait for their next pack, instead of being ended and begun anew."""

from __future__ import annotations

import time
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

#: How long after the last pack idle workers are kept: about as long as a new one takes to start, so
#: that neither way costs more than twice what the better one would have.
IDLE_SECONDS = 10.0
#: More workers than any cluster has.
ALL = 1_000_000


class KeepWorkers(FIFOScheduler):
    """Trials in their order; workers without one are kept for a while, and then one of them.

    With `reuse_actors` Tune keeps one idle worker and ends the others as soon as no trial is
    pending. In a search by rounds that is the case again and again, each time the next round waits
    for results, and each time new workers would have to be started.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._resources: Any = None
        self._cache: Any = None
        self._kept = 0
        self._until = 0.0

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """All trials of a sweep ask for the same resources."""
        self._resources = trial.placement_group_factory
        super().on_trial_add(tune_controller, trial)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """A worker is about to be idle: from now on all that are have their time."""
        self._until = time.monotonic() + IDLE_SECONDS
        if self._cache is not None:
            self._keep(ALL)
        super().on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A worker was lost; idle ones may be lost with it, unseen, and new ones are surer."""
        self._until = 0.0
        super().on_trial_error(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The first that waits; asked in every turn of Tune's loop."""
        # Tune has no setting for this, and shows its cache to nobody.
        self._cache = tune_controller._tune_controller._actor_cache
        over = tune_controller.search_alg.is_finished()
        self._keep(0 if over else ALL if time.monotonic() <= self._until else 1)
        return super().choose_trial_to_run(tune_controller)

    def _keep(self, wanted: int) -> None:
        """Let Tune keep so many idle workers."""
        if self._resources is not None:
            self._cache.increase_max(self._resources, wanted - self._kept)
            self._kept = wanted
