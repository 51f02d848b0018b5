"""A process beside the driver: it answers what the driver would, and may be lost at any time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from pathlib import Path
from threading import Event, Lock
from typing import Any

import pytest

from stabmap import load_spec
from sweeps import second_process as module_under_test
from sweeps.rounds import Rounds
from sweeps.runner import MANY, _Session
from sweeps.search import boundary as boundary_module
from sweeps.search.boundary import BoundarySampler
from sweeps.second_process import SecondProcess
from sweeps.store import Store
from sweeps.tracking import Tracker

pytestmark = pytest.mark.ray


class Beside:
    """A second process, once it is ready."""

    def __init__(self, module: str = "operator") -> None:
        self._known, self.told = Event(), list[Executor]()
        self.process = SecondProcess(module, self._ready)

    def _ready(self, process: Executor) -> None:
        self.told.append(process)
        self._known.set()

    def wait(self) -> SecondProcess:
        assert self._known.wait(60)
        return self.process


@pytest.fixture
def beside(cluster: None) -> Iterator[SecondProcess]:
    process = Beside().wait()
    yield process
    process.shutdown()


def ask(process: SecondProcess, function: Callable[..., Any], *arguments: Any) -> Any:
    return process.submit(function, *arguments).result(60)


def test_it_calls_functions_in_one_process_of_its_own(beside: SecondProcess) -> None:
    pids = {ask(beside, os.getpid) for _ in range(3)}
    assert len(pids) == 1 and pids != {os.getpid()}
    assert beside.submit(int, "ff", base=16).result(60) == 255


def test_it_has_the_priority_of_the_driver(beside: SecondProcess) -> None:
    """Where that is allowed: Ray's workers have a lower one, and they wait for what it computes."""
    driver = os.getpriority(os.PRIO_PROCESS, 0)
    if ask(beside, os.getpriority, os.PRIO_PROCESS, 0) != driver:
        with pytest.raises(PermissionError):
            ask(beside, os.setpriority, os.PRIO_PROCESS, 0, driver)
        pytest.skip("only root may raise the priority of a process")


def test_an_error_of_the_function_is_told_as_it_is(beside: SecondProcess) -> None:
    error = beside.submit(int, "x").exception(60)
    assert type(error) is ValueError and "'x'" in str(error)
    assert ask(beside, int, "7") == 7


def test_a_process_that_dies_is_a_broken_executor(beside: SecondProcess) -> None:
    pid, answer = ask(beside, os.getpid), beside.submit(time.sleep, 60)
    os.kill(pid, signal.SIGKILL)
    assert isinstance(answer.exception(60), BrokenExecutor)
    assert isinstance(beside.submit(int).exception(60), BrokenExecutor)


def test_what_is_not_answered_at_the_end_is_cancelled(cluster: None) -> None:
    """At once: who waits for it is the search, whose thread the end of a sweep waits for."""
    process = Beside().wait()
    answer = process.submit(time.sleep, 60)
    process.shutdown()
    with pytest.raises(CancelledError):
        answer.result(1)
    with pytest.raises(CancelledError):
        process.submit(int)
    process.shutdown()


def test_what_cannot_be_sent_is_a_broken_executor(beside: SecondProcess) -> None:
    with pytest.raises(BrokenExecutor, match=r"(?i)lock"):
        beside.submit(print, Lock())
    assert ask(beside, int, "7") == 7


def test_a_process_with_other_libraries_is_never_ready(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plans might differ in their last bits."""
    monkeypatch.setattr(module_under_test, "LIBRARIES", ("numpy",))
    beside = Beside()
    assert beside.process.submit(int).result(60) == 0  # it has answered what came before
    assert beside.told == []
    beside.process.shutdown()


def test_surroundings_name_the_files_that_are_computed_with() -> None:
    import numpy as np

    found = module_under_test.surroundings("sweeps.search.boundary")
    assert np.__file__ in found and boundary_module.__file__ in found
    assert found == module_under_test.surroundings("sweeps.search.boundary")


SPEC: dict[str, Any] = {
    "task": {"name": "one-layer-cnn", "image": 8, "kernel": 4},
    "axes": {
        "lr": {"scale": "log", "low": 0.003, "high": 0.5},
        "weight_decay": {"scale": "log", "low": 4.0, "high": 256.0},
    },
    "steps": 20,
    "lyapunov": False,
    "sharpness": False,
    "search": {"startup": 8, "audit": 0},
    "resources": {"workers": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("lost", [False, True])
def test_a_sweep_plans_what_it_would_alone(
    lost: bool, cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, also where the process is killed on the way."""
    planned = list[tuple[int, bool]]()
    begin, plan = Rounds.plan_with, BoundarySampler._plan_elsewhere

    def told(self: Rounds, executor: Executor | None) -> None:
        begin(self, executor)
        ready.set()

    def watched(self: BoundarySampler, history: Any, count: int, number: int) -> Any:
        if number >= 16:  # the first rounds are there before the process is
            assert ready.wait(60)
        if lost and number == 48 and self.executor is not None:
            os.kill(self.executor.submit(os.getpid).result(60), signal.SIGKILL)
        found = plan(self, history, count, number)
        planned.append((number, found is not None))
        return found

    ready = Event()
    monkeypatch.setattr(Rounds, "plan_with", told)
    monkeypatch.setattr(BoundarySampler, "_plan_elsewhere", watched)
    spec = load_spec(SPEC, {"budget.points": MANY, "folder": str(tmp_path)})
    tracker = Tracker(spec)
    with Store(spec) as store:
        session = _Session(spec, store, tracker, None)
        outcome = session.run("local")
    assert (outcome.ending, outcome.points) == ("complete", MANY)
    there = [number for number, elsewhere in planned if elsewhere]
    assert [number for number in there if number < 48] == list(range(16, 48, 8))
    assert bool([number for number in there if number >= 48]) is not lost

    monkeypatch.undo()
    alone = Rounds(spec)
    while asked := alone.propose():
        for number, _ in asked:
            alone.record(number, session.rounds.results[number])
    trials = session.rounds.study.trials
    assert [t.params for t in alone.study.trials] == [t.params for t in trials]


def test_an_interrupt_leaves_nobody_waiting(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is ended whatever ends the sweep, and a plan in flight with it."""
    ready, sharing = Event(), list[Executor | None]()

    def told(self: Rounds, executor: Executor | None) -> None:
        sharing.append(executor)
        ready.set()

    monkeypatch.setattr(Rounds, "plan_with", told)
    spec = load_spec(SPEC, {"budget.points": MANY, "folder": str(tmp_path)})
    with Store(spec) as store:
        answers = list[Future[Any]]()
        session = _Session(spec, store, Tracker(spec), None)

        def train() -> None:
            with session._second_process():
                assert ready.wait(60) and sharing[0] is not None
                answers.append(sharing[0].submit(time.sleep, 60))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train()
    assert answers[0].cancelled() and sharing[1:] == [None]
