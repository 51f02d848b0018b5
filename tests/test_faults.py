"""Machines that are lost are forgiven, errors of a task are not; no point is lost or doubled."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import DECAY, LR, measure, spec_of
from test_user_tasks import TASK

from sweeps import searcher as module
from sweeps.rounds import Rounds
from sweeps.runner import _not_kept
from sweeps.searcher import PackSearcher
from sweeps.spec import SweepSpec
from trainables.domain import NotReproducibleError, Point
from trainables.tasks import from_files
from trainables.tune import PackTrainable, describe, is_infrastructure

POINTS = 40


def spec() -> SweepSpec:
    return spec_of(
        {"lr": LR, "weight_decay": DECAY},
        budget={"points": POINTS},
        resources={"pack": 3, "workers": 4},
    )


class Cluster:
    """A sweep's searcher, and what its workers do: no Ray."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.rounds = Rounds(spec())
        self.searcher = PackSearcher(spec(), self.rounds, lambda *_: None, self._take)
        self.packs: dict[str, dict[str, Any]] = {}
        self.trials = 0

    def _take(self, results: list[tuple[int, Any]]) -> None:
        self.taken += [number for number, _ in results]

    def begin(self) -> str | None:
        """Ask for a pack; None where there is none now, or no more."""
        name = f"trial-{self.trials}"
        pack = self.searcher.suggest(name)
        if not isinstance(pack, dict):
            return None if pack is None else str(pack)
        self.trials += 1
        self.packs[name] = pack
        return name

    def report(self, name: str, share: float = 1.0, final: bool = True) -> None:
        """The first results of a pack, as its last report or as one on the way."""
        pack = self.packs[name]
        count = round(share * len(pack["numbers"]))
        results = [
            [number, measure(Point(*values)).to_dict()]
            for number, values in zip(pack["numbers"][:count], pack["points"], strict=False)
        ]
        if final:
            self.searcher.on_trial_complete(name, {"results": results})
        else:
            self.searcher.on_trial_result(name, {"results": results})

    def lose(self, name: str) -> None:
        self.searcher.on_trial_complete(name, None, error=True)

    def fail(self, name: str, kind: str = "ValueError", place: str = "a.py:3") -> None:
        error = (kind, "it is\nwrong", place)
        self.searcher.on_trial_complete(name, {"results": [], "error": error})


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.0,) * 1000)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), loss=st.floats(0, 0.6))
def test_every_point_once_however_many_packs_are_lost(seed: int, loss: float) -> None:
    """Packs end in any order; some are lost on the way, some of them when nothing else is left."""
    random = np.random.default_rng(seed)
    undisturbed = Cluster()
    while (name := undisturbed.begin()) != "FINISHED":
        assert name is not None
        undisturbed.report(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PAUSES", (0.0,) * 1000)
        patch.setattr(module, "BLINK", None)
        cluster, running = Cluster(), list[str]()
        while True:
            name = cluster.begin() if len(running) < 4 else None
            if name == "FINISHED":
                break
            if name is not None:
                running.append(name)
                continue
            ended = running.pop(random.integers(len(running)))
            if random.random() < loss:
                cluster.report(ended, random.random(), final=False)
                cluster.lose(ended)
            else:
                cluster.report(ended)
    assert cluster.searcher.failure is None and running == []
    assert sorted(cluster.taken) == list(range(POINTS))
    assert cluster.rounds.complete
    assert {n: r.point for n, r in cluster.rounds.results.items()} == {
        n: r.point for n, r in undisturbed.rounds.results.items()
    }


def test_the_pause_grows_until_something_works(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("sweeps.searcher.time.monotonic", lambda: now)
    monkeypatch.setattr(module, "PAUSES", (1.0, 2.0, 4.0))
    cluster = Cluster()
    for pause in (1.0, 2.0):
        name = cluster.begin()
        assert name is not None
        cluster.lose(name)
        now += pause - 0.01
        assert cluster.begin() is None
        now += 0.02
    name = cluster.begin()
    assert name is not None
    cluster.report(name, 0.4, final=False)  # a result: the machines are well
    cluster.lose(name)
    now += 1.01
    assert cluster.begin() is not None


def test_packs_that_are_lost_together_are_one_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that goes takes all its workers with it."""
    now = 100.0
    monkeypatch.setattr("sweeps.searcher.time.monotonic", lambda: now)
    monkeypatch.setattr(module, "PAUSES", (1.0, 2.0))
    cluster = Cluster()
    names = [cluster.begin() for _ in range(2)]
    for name in names:
        assert name is not None
        cluster.lose(name)
        now += 0.1
    assert cluster.begin() is None and cluster.searcher.failure is None
    now += 0.9
    again = cluster.begin()
    assert again is not None
    cluster.lose(again)
    now += 1.9
    assert cluster.begin() is None
    now += 0.2
    assert cluster.begin() not in (None, "FINISHED")


def test_machines_that_never_work_end_the_sweep(no_pauses: None) -> None:
    cluster = Cluster()
    for _ in range(1001):
        name = cluster.begin()
        assert name is not None and name != "FINISHED"
        cluster.lose(name)
        cluster.searcher.cause = "MemoryError: no room"
    assert cluster.begin() == "FINISHED"
    told = str(_not_kept(cluster.searcher.failure or KeyError(), spec(), 7))
    assert told == (
        "workers died 1001 times in a row without a result; the last of: MemoryError: no room; "
        "7 points are kept"
    )


def test_the_third_identical_error_ends_the_sweep() -> None:
    """Errors of other kinds or from other places count by themselves; divergence is no error."""
    cluster = Cluster()
    for kind, place in (
        ("ValueError", "a.py:3"),
        ("ValueError", "a.py:4"),
        ("KeyError", "a.py:3"),
        ("ValueError", "a.py:3"),
    ):
        name = cluster.begin()
        assert name is not None
        cluster.fail(name, kind, place)
        assert cluster.searcher.failure is None
    name = cluster.begin()
    assert name is not None
    cluster.fail(name)
    assert cluster.begin() == "FINISHED"
    told = str(_not_kept(cluster.searcher.failure or KeyError(), spec(), 0))
    assert told == (
        "task one-layer-cnn fails: ValueError: it is wrong (a.py:3); 0 points are kept; mend the "
        "task and run the same command to go on"
    )


def test_a_training_that_does_not_repeat_itself_ends_the_sweep_at_once() -> None:
    cluster = Cluster()
    name = cluster.begin()
    assert name is not None
    cluster.fail(name, "not reproducible", "")
    assert cluster.begin() == "FINISHED"
    assert isinstance(cluster.searcher.failure, NotReproducibleError)


def test_the_check_is_made_again_where_it_was_lost() -> None:
    """Exactly one pack at a time checks, until one has passed."""
    cluster = Cluster()
    first, second = cluster.begin(), cluster.begin()
    assert first is not None and second is not None
    assert [cluster.packs[name]["check"] for name in (first, second)] == [True, False]
    cluster.lose(first)
    cluster.searcher._not_before = 0.0
    cluster.report(second)  # it did not check
    assert not cluster.searcher.checked
    third = cluster.begin()
    assert third is not None and cluster.packs[third]["check"]
    assert cluster.packs[third]["numbers"] == cluster.packs[first]["numbers"]
    cluster.report(third)
    assert cluster.searcher.checked
    fourth = cluster.begin()
    assert fourth is not None and not cluster.packs[fourth]["check"]


# --------------------------------------------------------------------------- on the worker


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (ConnectionResetError(errno.ECONNRESET, "reset"), True),
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (NotReproducibleError("bits differ"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_of_machines_and_of_tasks(error: Exception, passing: bool) -> None:
    assert is_infrastructure(error) is passing


def config(**task: Any) -> dict[str, Any]:
    return {
        "task": {"name": "one-layer-cnn", **task},
        "training": {"steps": 20},
        "numbers": [0],
        "points": [[0.05, 0.0, 20.0]],
        "first": [0],
    }


def test_a_worker_reports_errors_of_the_task_and_raises_those_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = PackTrainable(config(image=64, kernel=99)).step()
    kind, text, place = report["error"]
    assert (kind, place, report["done"]) == ("InputError", "", True)
    assert "task.kernel = 99" in text
    worker = PackTrainable(config())

    def full(seconds: float) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker._begin(), "advance", full)
    with pytest.raises(OSError, match="No space"):
        worker.step()


def test_an_error_is_described_by_its_own_line() -> None:
    try:
        [][1]
    except IndexError as error:
        kind, text, place = describe(error)
    assert (kind, text) == ("IndexError", "list index out of range")
    assert place.startswith("test_faults.py:")


def test_an_error_deep_in_a_library_is_placed_in_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch raises it; the line of the task is the one to mend."""
    text = TASK.replace("float(outputs[0, 0])", "float(torch.nn.Linear(2, 1)(outputs))")
    path = tmp_path / "mine.py"
    monkeypatch.setattr(from_files, "_REGISTERED", {})
    source = {"path": str(path), "text": text}
    worker = PackTrainable(config() | {"task": {"name": "parabola"}, "source": source})
    while "error" not in (report := worker.step()):
        pass
    kind, _, place = report["error"]
    line = next(n for n, line in enumerate(text.splitlines(), 1) if "torch.nn.Linear" in line)
    assert (kind, place) == ("RuntimeError", f"mine.py:{line}")
