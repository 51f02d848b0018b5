"""Do store, database, Optuna's study and MLflow tell the same story about a sweep?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sweeps.database import Database
from sweeps.mirror import Mirror
from sweeps.point_runs import PointRun
from sweeps.rounds import Rounds
from sweeps.spec import SweepSpec
from sweeps.store import Entry, Store, key_of
from sweeps.tracking import Tracker
from trainables.domain import PointResult
from trainables.messages import redacted

#: Seconds that a repair waits for a service that does not answer.
PATIENCE = 30.0


@dataclass(frozen=True)
class Finding:
    """Something that is not as the store has it.

    Args:
        where: `store`, `database`, `Optuna` or `MLflow`.
        text: what is wrong.
    """

    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True)
class Report:
    """What was found about one sweep.

    Args:
        sweep: its hash.
        points: results in its store.
        findings: what does not agree; empty where everything does.
    """

    sweep: str
    points: int
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        found = [{"where": f.where, "text": f.text} for f in self.findings]
        return {"sweep": self.sweep, "points": self.points, "findings": found}


def check(spec: SweepSpec) -> Report:
    """Compare everything that is known about a sweep; changes none of it.

    Tables that the database lacks are made.

    Args:
        spec: the sweep; no process may be running it.

    Raises:
        UnreachableError: MLflow or the database does not answer.
        StabmapError: the sweep is being run.
    """
    with Store(spec) as store:
        return _check(spec, store)


def repair(spec: SweepSpec) -> tuple[Report, Report]:
    """Write what is missing from the store to the database, to Optuna and to MLflow.

    What another machine has put into the database comes into the store first. Doubles and
    half-written runs in MLflow are taken out; a study that disagrees is written anew.

    Returns:
        What was wrong before, and what still is.
    """
    with Store(spec) as store:
        before = _check(spec, store)
        _repair(spec, store, before)
        return before, _check(spec, store)


def _replay(spec: SweepSpec, store: Store) -> tuple[Rounds, dict[int, Entry]]:
    """The sweep again, from its results alone: which training has which number."""
    rounds, numbered = Rounds(spec), dict[int, Entry]()
    while proposed := rounds.propose():
        for number, point in proposed:
            entry = store.entries.get(key_of(point, rounds.repetition(number)))
            if entry is not None:
                rounds.record(number, entry.result)
                numbered[number] = entry
    return rounds, numbered


def _check(spec: SweepSpec, store: Store) -> Report:
    _, numbered = _replay(spec, store)
    findings = [*_in_store(store, numbered), *_in_database(spec, store, numbered)]
    findings += _in_mlflow(spec, store, numbered)
    return Report(spec.hash, len(store), tuple(findings))


def _in_store(store: Store, numbered: dict[int, Entry]) -> Iterator[Finding]:
    proposed = {entry.key for entry in numbered.values()}
    # A sweep whose budget was larger before has more than the search proposes now.
    surplus = len(store.entries.keys() - proposed)
    facts = store.recall()
    state = facts.get("state")
    if state == "running":
        yield Finding("store", "the sweep says that it runs, and no process runs it")
    if surplus and state == "complete" and facts.get("limit") == len(proposed):
        yield Finding("store", f"{surplus} results are of points that the search does not propose")


def _in_database(spec: SweepSpec, store: Store, numbered: dict[int, Entry]) -> Iterator[Finding]:
    database = Database(spec)
    try:
        database.open()
        here, there = store.entries.keys(), database.keys()
        if missing := len(here - there):
            yield Finding("database", f"{missing} results are missing")
        if new := len(there - here):
            yield Finding("database", f"{new} results are not in this machine's store")
        if other := len(_different(database, store)):
            yield Finding("database", f"{other} results are not those of the store")
        yield from _in_study(database, numbered)
    finally:
        database.close()


def _different(database: Database, store: Store) -> list[str]:
    """Keys of which the database has another result than the store."""
    kept = database.read(database.keys() & store.entries.keys())
    return [entry.key for entry in kept if entry != store.entries[entry.key]]


def _in_study(database: Database, numbered: dict[int, Entry]) -> Iterator[Finding]:
    expected = _in_order(numbered)
    trials = database.study().get_trials(deepcopy=False)
    if missing := max(0, len(expected) - len(trials)):
        yield Finding("Optuna", f"{missing} trials are missing")
    pairs = zip(trials, expected, strict=False)
    wrong = sum(trial.user_attrs.get("key") != entry.key for trial, entry in pairs)
    if wrong := wrong + max(0, len(trials) - len(expected)):
        yield Finding("Optuna", f"{wrong} trials are not those of the store")
    if running := sum(not trial.state.is_finished() for trial in trials):
        yield Finding("Optuna", f"{running} trials are left running")


def _in_order(numbered: dict[int, Entry]) -> list[Entry]:
    """The results up to the first that is missing: those that a study can have."""
    found: list[Entry] = []
    while len(found) in numbered:
        found.append(numbered[len(found)])
    return found


def _in_mlflow(spec: SweepSpec, store: Store, numbered: dict[int, Entry]) -> Iterator[Finding]:
    found = Tracker(spec).survey(store.recall().get("sweep"))
    if found is None:
        yield Finding("MLflow", "the sweep's run is not there")
        return
    finished = [run for run in found.points if run.finished]
    recorded = {(run.point, repetition) for run in finished for repetition in run.repetitions}
    if missing := len({_training(entry) for entry in numbered.values()} - recorded):
        yield Finding("MLflow", f"{missing} trainings are missing")
    if doubled := len(finished) - len({run.point for run in finished}):
        yield Finding("MLflow", f"{doubled} runs are doubled")
    kept = _by_training(store)
    if strange := len(recorded - kept.keys()):
        yield Finding("MLflow", f"{strange} trainings have no result in the store")
    if left := len(found.points) - len(finished):
        yield Finding("MLflow", f"{left} runs are left running")
    if wrong := sum(_regime(run, kept) not in (run.regime, None) for run in finished):
        yield Finding("MLflow", f"{wrong} runs have another regime than the store")
    if found.running:
        yield Finding("MLflow", "the sweep's run is left running")


def _training(entry: Entry) -> tuple[str, int]:
    """What tells a training from all others of its sweep."""
    return entry.result.point.key, entry.repetition


def _by_training(store: Store) -> dict[tuple[str, int], PointResult]:
    return {_training(entry): entry.result for entry in store.entries.values()}


def _regime(run: PointRun, kept: Mapping[tuple[str, int], PointResult]) -> str | None:
    """That which a run must show; None where the store lacks one of its trainings."""
    results = [kept.get((run.point, repetition)) for repetition in sorted(run.repetitions)]
    known = [result for result in results if result is not None]
    if not known or len(known) < len(results):
        return None
    return PointResult.merged(known).verdict.regime.value


def _repair(spec: SweepSpec, store: Store, before: Report) -> None:
    wrong = {finding.where for finding in before.findings}
    database = Database(spec)
    database.open()
    database.remove(_different(database, store))
    if "Optuna" in wrong:
        database.remove_study()
    database.close()
    mirror = Mirror(spec, store)
    mirror.open(begun=False)
    rounds, numbered = _replay(spec, store)  # with what the database knew
    tracker = Tracker(spec, store.recall().get("sweep"))
    kept = _by_training(store)
    tracker.take_out(tracker.known, lambda run: _regime(run, kept) != run.regime)
    sweep = tracker.open()
    mirror.remember_run(sweep)
    for number, entry in numbered.items():
        mirror.add(number, entry)
        tracker.log_point(number, entry)
    if rounds.results:
        tracker.log_map(rounds.map(), last=True)
    facts = store.recall()
    state = facts.get("state", "running")
    if state == "running":
        state = "complete" if rounds.complete else "interrupted"
    store.remember(sweep=sweep, tracking=redacted(tracker.uri), state=state, points=len(numbered))
    tracker.close("FINISHED" if state in ("complete", "short") else "KILLED", PATIENCE)
    mirror.close(PATIENCE)
