"""Run a sweep, or go on with one: Ray Tune evaluates, Optuna proposes, MLflow records."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from uuid import uuid4

# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints a table even at verbose 0
os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C is handled here

import ray
from ray import tune

from analysis.load import ARTIFACT_FOLDER
from analysis.map import MAP_FILE, StabilityMap
from analysis.plot import plot_map
from sweeps.access import check_access, knock
from sweeps.database import VARIABLE, Database
from sweeps.heartbeat import Heartbeat
from sweeps.mirror import Mirror
from sweeps.progress import Progress
from sweeps.rounds import Rounds
from sweeps.search.boundary import BoundarySampler
from sweeps.searcher import PackSearcher, TaskError
from sweeps.second_process import SecondProcess
from sweeps.spec import SweepSpec
from sweeps.store import FULL, Entry, Store, facts_in, folder_of, key_of, unwritable
from sweeps.tracking import Tracker, review_command
from sweeps.workers import KeepWorkers
from trainables.allocator import keep_freed_memory
from trainables.domain import (
    NotReproducibleError,
    Point,
    PointResult,
    StabmapError,
    UnreachableError,
)
from trainables.messages import first_line, redacted
from trainables.tune import PackTrainable
from trainables.usage import Meter

Ending = Literal["complete", "short", "interrupted", "paused", "stopped"]

#: Reports of a pack between two checkpoints of it; packs that are done sooner write none.
CHECKPOINT_REPORTS = 5
#: How often Tune starts a pack again where its worker died, from its last checkpoint; after that
#: its points are handed out anew.
RETRIES = 2
#: Seconds between two tries to write to a full disk.
DISK_SECONDS = 2.0
#: Seconds without a report of any worker after which it is said what they may wait for.
IDLE_SECONDS = 60.0
#: Seconds to wait at the end for a server that is away: after a full budget, and otherwise.
PATIENCE = 60.0
IMPATIENCE = 10.0
#: Parts of Tune that complain at the end: of files that it was told not to write, and of lost packs
#: whose points were trained in others.
UNFOUNDED = ("analysis.experiment_analysis", "tune")
#: What asks for an end: Ctrl-C, a scheduler, a terminal that closes.
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Points from which on a search has a process of its own: fewer take less time than its start.
MANY = 96
#: Freed memory that the driver's process keeps for the next fit, whose matrices are no larger.
MATRIX, FREED = 8 * 2**20, 64 * 2**20
#: Least time between two maps on the way; the last one is always recorded.
MAP_SECONDS = 10.0


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended.

    Args:
        sweep: id of the sweep: its MLflow parent run.
        ending: `complete`, `short` (of its budget of points), `interrupted`, `paused` or `stopped`.
        points: number of points with a result.
        folder: where results, spec and map lie.
        review: how to look at the runs in MLflow.
        recorded: whether MLflow and the database took everything.
        stability_map: the map; None where there is no result.
        picture: the map's picture; None where no axis is free.
    """

    sweep: str
    ending: Ending
    points: int
    folder: Path
    review: str
    recorded: bool
    stability_map: StabilityMap | None
    picture: Path | None


def run_sweep(spec: SweepSpec, address: str = "local", insecure: bool = False) -> str:
    """Run a sweep to the end of its budget; a sweep that was interrupted goes on.

    Args:
        spec: from `load_spec`.
        address: `local` starts Ray on this machine; `auto` or `host:port` joins a cluster. A
            Ray that this process has started already is used as it is.
        insecure: whether a cluster beyond this machine may be one that asks nobody for a token.

    Returns:
        Id of the sweep, for `load_map`.

    Raises:
        InputError: the address is malformed.
        UnreachableError: folder, GPU, MLflow or Ray cannot be used; nothing was trained.
        NotReproducibleError: the task does not repeat itself to the bit.
        KeyboardInterrupt: after Ctrl-C, with everything kept.
        StabmapError: a training failed for good; what was finished is kept.
    """
    outcome = execute(spec, address, insecure=insecure)
    if outcome.ending == "interrupted":
        raise KeyboardInterrupt(f"sweep {outcome.sweep}: {outcome.points} points kept")
    return outcome.sweep


def execute(
    spec: SweepSpec,
    address: str = "local",
    stream: IO[str] | None = None,
    insecure: bool = False,
) -> Outcome:
    """`run_sweep` with a progress line and with all that there is to say at the end."""
    check_surroundings(spec, address, insecure)
    known = facts_in(folder_of(spec)).get("sweep")
    # Before the store: where they cannot be reached nothing is left behind.
    if known is None:
        Database(spec).knock()
    tracker = Tracker(spec, known)
    with Store(spec) as store:
        session = _Session(spec, store, tracker, stream)
        return session.run(address)


def check_surroundings(spec: SweepSpec, address: str, insecure: bool = False) -> None:
    """Raise for an address, a folder or a device that cannot be used; leaves nothing behind."""
    check_access(address, insecure)
    if address not in ("local", "auto"):
        knock(address)
    if address == "local" and spec.device.startswith("cuda"):
        from trainables.trajectory import require_gpu

        require_gpu(spec.device)
    folder = Path(spec.folder).expanduser()
    _check_files(spec)
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        # The only test that holds for root, for read-only mounts and for files in the way.
        tempfile.TemporaryDirectory(dir=existing).cleanup()
    except OSError as error:
        raise unwritable(spec, error) from error


def _check_files(spec: SweepSpec) -> None:
    """Raise for a sqlite file whose folder is not there; the sweep's own folder is made later."""
    for field, given, variable in (
        ("tracking.address", spec.tracking.address, "MLFLOW_TRACKING_URI"),
        ("database", spec.database, VARIABLE),
    ):
        address = given or os.environ.get(variable) or ""
        place = Path(address.removeprefix("sqlite:///")).parent
        if not address.startswith("sqlite:///") or place.is_dir():
            continue
        if place.absolute() != Path(spec.folder).expanduser().absolute():
            raise UnreachableError(
                f"{field if given else variable} = {redacted(address)!r}: there is no folder "
                f"{str(place)!r}; make it, or leave the address out to use a local sqlite file"
            )


class _Session:
    """One call of a sweep: the pieces and how they are wired."""

    def __init__(
        self, spec: SweepSpec, store: Store, tracker: Tracker, stream: IO[str] | None
    ) -> None:
        self.spec = spec
        self.store = store
        self.tracker = tracker
        self.mirror = Mirror(spec, store)
        self.rounds = Rounds(spec)
        self.progress = Progress(self.rounds.limit, spec.budget.wall_time, stream)
        self.searcher = PackSearcher(spec, self.rounds, self._known, self._take)
        self.searcher.meter = tracker.log_usage
        self.searcher.trained_on = tracker.log_hardware
        self._meter = Meter(process=True)
        self.heartbeat = Heartbeat(store, self._facts, self._end)
        self.ended: Ending | None = None
        self._hang_up: Any = None
        self._address = "local"
        self._begin = time.monotonic()
        self._mapped = time.monotonic()

    def run(self, address: str) -> Outcome:
        """Train until the budget, an interrupt or a failure ends it; keep everything."""
        self._address = address
        keep_freed_memory(MATRIX, FREED)
        self._open()
        status, error = "FAILED", None
        stability_map = picture = None
        try:
            with self.heartbeat:
                self._run(address)
            status = "KILLED" if self.ended else "FINISHED"
        except KeyboardInterrupt:  # the second one
            self.ended, status = "interrupted", "KILLED"
        except Exception as caught:
            error = str(caught)
            raise
        finally:
            state = "failed" if status == "FAILED" else self._ending()
            with suppress(OSError):  # a disk that is still full
                self.store.remember(
                    **self._facts()
                    | {"state": state, "error": error and redacted(error), "workers": 0}
                )
            try:
                if self.rounds.results:
                    stability_map, picture = self._write_map()
            finally:
                recorded = self._close(status, state)
                if self._hang_up is not None:
                    signal.signal(signal.SIGHUP, self._hang_up)
        return Outcome(
            self.tracker.sweep_id,
            self._ending(),
            len(self.rounds.results),
            self.store.folder,
            review_command(self.tracker.uri),
            recorded,
            stability_map,
            picture,
        )

    def _open(self) -> None:
        """Begin with MLflow and the database, or go on with what they know."""
        before = self.store.recall()
        begun, origin = before.get("sweep"), before.get("origin", uuid4().hex)
        goes_on = {"state": "running", "error": None} if "state" in before else {}
        self.store.remember(origin=origin, **goes_on)
        try:
            elsewhere = self.mirror.open(begun is not None)
            self.tracker.known, self.tracker.origin = begun or elsewhere, origin
            sweep = self.tracker.open()
        except BaseException:
            self.store.remember(**{name: before.get(name) for name in goes_on})
            raise
        self.mirror.remember_run(sweep)
        facts = {"sweep": sweep, "tracking": redacted(self.tracker.uri), "title": self.spec.title}
        self.store.remember(**facts)

    def _run(self, address: str) -> None:
        try:
            with self._interruptible() as listen:
                # Where all results are known there is nothing to wait for: Ray is not needed.
                if self.searcher.fill() is not None:
                    with _ray(self.spec, address) as scratch:
                        listen()  # Ray has a handler of its own for SIGTERM
                        if not self.searcher.closed:
                            self._train(scratch)
                elif self.searcher.failure is not None:
                    raise _not_kept(self.searcher.failure, self.spec, len(self.rounds.results))
        finally:
            self.searcher.close()  # the map is made from what its thread writes
        self.rounds.finish()

    def _close(self, status: str, state: str) -> bool:
        """Let MLflow and the database have what they miss; whether they took it."""
        patience = PATIENCE if status == "FINISHED" else IMPATIENCE
        if self.searcher.checked:
            self.tracker.tag("k_check", "k repeated and k doubled agree to the bit")
        self.tracker.tag("state", state)
        try:
            recorded = self.tracker.close(status, patience)
            return self.mirror.close(patience) and recorded
        except KeyboardInterrupt:  # who asked for an end need not wait for a server
            self.mirror.close(0.0)
            return False

    def _facts(self) -> dict[str, Any]:
        """What other processes may want to know of a sweep that runs."""
        self._look_for_workers()
        self.tracker.log_usage("driver", self._meter.sample())
        return {
            "state": "running",
            "error": None,
            "note": self.progress.note,
            "points": len(self.rounds.results),
            "limit": self.rounds.limit,
            "counts": self.progress.counts(),
            "left": self.progress.left(),
            "workers": self.searcher.running,
            "behind": self.tracker.behind,
            "updated": time.time(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }

    def _end(self, word: str) -> None:
        """Another process asks for an end."""
        self.ended = self.ended or ("paused" if word == "pause" else "stopped")
        self.searcher.closed = True

    def _look_for_workers(self) -> None:
        """Say what workers may wait for, where none has reported for long."""
        heard = max(self._begin, self.searcher.heard_at)
        if not self.searcher.running or time.monotonic() - heard < IDLE_SECONDS:
            return
        have: dict[str, float] = ray.cluster_resources() if ray.is_initialized() else {}  # type: ignore[no-untyped-call]
        self.progress.say(
            f"no worker has reported for {IDLE_SECONDS:.0f} s: a pack needs "
            f"{self.spec.resources.cpus:g} CPUs and {self.spec.gpus:g} GPUs, the cluster has "
            f"{have.get('CPU', 0):g} and {have.get('GPU', 0):g}"
        )

    def _train(self, scratch: Path) -> None:
        self._begin = time.monotonic()
        self.progress.start()
        try:
            self._fit(scratch)
        finally:
            self.progress.stop()

    def _ending(self) -> Ending:
        if self.ended:
            return self.ended
        limit = self.rounds.limit
        return "short" if limit is not None and len(self.rounds.results) < limit else "complete"

    # ----------------------------------------------------------------- results

    def _known(self, number: int, point: Point) -> PointResult | None:
        """The result of an earlier call, which then costs nothing."""
        entry = self.store.entries.get(key_of(point, self.rounds.repetition(number)))
        if entry is None:
            return None
        self.progress.add(entry.result, trained=False)
        self._record(number, entry)
        return entry.result

    def _take(self, results: list[tuple[int, PointResult]]) -> None:
        """New results: to disk first, then to everyone else."""
        now = time.time()
        new = [(n, Entry(r, self.rounds.repetition(n), now)) for n, r in results]
        self._keep([entry for _, entry in new])
        for number, entry in new:
            self.progress.add(entry.result, trained=True)
            self._record(number, entry)
        if time.monotonic() - self._mapped >= MAP_SECONDS and self.rounds.results:
            self._mapped = time.monotonic()
            self._map_on_the_way()

    def _record(self, number: int, entry: Entry) -> None:
        self.tracker.log_point(number, entry)
        self.mirror.add(number, entry)

    def _keep(self, entries: list[Entry]) -> None:
        """To disk; where that is full, as soon as somebody has made space."""
        while True:
            try:
                self.store.extend(entries)
            except OSError as error:
                if error.errno not in FULL or self.ended:
                    raise
                self.progress.say(disk_full(self.store.folder, len(entries)))
                self.searcher.heard_at = time.monotonic()  # no worker is to blame
                time.sleep(DISK_SECONDS)
            else:
                self.progress.say(None)
                return

    def _map_on_the_way(self) -> None:
        """The map as known now, for those who ask before the end."""
        stability_map = self._map()
        with suppress(OSError):  # a full disk: the results matter more
            whole = self.store.folder / ARTIFACT_FOLDER / MAP_FILE
            whole.parent.mkdir(exist_ok=True)
            partial = whole.with_name(f"{MAP_FILE}.partial")
            stability_map.write_parquet(partial)
            partial.replace(whole)
        self.tracker.log_map(stability_map)

    def _map(self) -> StabilityMap:
        return self.rounds.map()

    def _write_map(self) -> tuple[StabilityMap, Path | None]:
        """The map as known now, to the sweep's folder and to MLflow."""
        stability_map, folder = self._map(), self.store.folder / ARTIFACT_FOLDER
        stability_map.export(folder, ("parquet", "json"))
        picture = None
        if any(axis.free for axis in stability_map.axes):
            picture = plot_map(stability_map, folder / "map.png")
        self.tracker.log_map(stability_map, picture, last=True)
        return stability_map, picture

    # ----------------------------------------------------------------- Tune

    def _fit(self, scratch: Path) -> None:
        part = self.spec.resources
        resources = {"cpu": part.cpus, "gpu": self.spec.gpus}
        tuner = tune.Tuner(
            tune.with_resources(PackTrainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=self.searcher,
                num_samples=-1,
                max_concurrent_trials=part.workers,
                reuse_actors=True,
                scheduler=KeepWorkers(),
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=self._checkpoints(scratch),
                stop=_Stop(self._over),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                checkpoint_config=tune.CheckpointConfig(
                    num_to_keep=1,
                    checkpoint_frequency=CHECKPOINT_REPORTS if self._shared else 0,
                    checkpoint_at_end=False,  # else Tune writes down all trials at the end of each
                ),
                verbose=0,
            ),
        )
        try:
            with _no_files(), _one_line(self._lost), self._second_process():
                results = tuner.fit()
        except (tune.TuneError, ray.exceptions.RayError) as error:
            raise _ray_failed(error, len(self.rounds.results)) from error
        if self.searcher.failure is not None:
            raise _not_kept(self.searcher.failure, self.spec, len(self.rounds.results))
        if results.errors and not self.searcher.closed and not self.rounds.complete:
            raise _ray_failed(results.errors[0], len(self.rounds.results))

    @contextmanager
    def _second_process(self) -> Iterator[None]:
        """A process that plans beside the one that hears workers, where there is much to plan."""
        limit = self.rounds.limit
        if self.spec.search.method != "boundary" or (limit is not None and limit < MANY):
            yield
            return
        process = SecondProcess(BoundarySampler.__module__, ready=self.rounds.plan_with)
        try:
            yield
        finally:
            process.shutdown()  # what it is planning nobody needs
            self.rounds.plan_with(None)

    def _lost(self, cause: str) -> None:
        """A pack was lost with its worker."""
        self.searcher.cause = cause
        self.progress.say(f"a worker was lost ({cause}); its pack is begun again")

    @property
    def _shared(self) -> bool:
        """Whether all workers can write where checkpoints are kept."""
        return self.spec.resources.checkpoints is not None or self._address == "local"

    def _checkpoints(self, scratch: Path) -> str:
        named = self.spec.resources.checkpoints
        return str(scratch) if named is None else f"{named.rstrip('/')}/{self.spec.hash}"

    def _over(self) -> bool:
        """Whether no further training should be begun or continued."""
        limit = self.spec.budget.wall_time
        late = limit is not None and time.monotonic() - self._begin >= limit
        if late:
            self.searcher.closed = True
        return self.searcher.closed

    @contextmanager
    def _interruptible(self) -> Iterator[Callable[[], None]]:
        """Ctrl-C, SIGTERM or a lost terminal end the sweep in good order; a second one at once.

        Yields:
            What listens again after somebody else has begun to.
        """
        if threading.current_thread() is not threading.main_thread():
            yield lambda: None
            return
        former = {s: signal.getsignal(s) for s in ENDINGS}
        if former[signal.SIGHUP] is signal.SIG_IGN:  # started by nohup
            del former[signal.SIGHUP]
        # A terminal that closes says so twice and more, and cuts nothing short: not the map either.
        self._hang_up = former.get(signal.SIGHUP)
        after = {s: signal.SIG_IGN if s == signal.SIGHUP else h for s, h in former.items()}

        def listen_no_more() -> None:
            for each, handler in after.items():
                signal.signal(each, handler)

        def interrupt(number: int, _frame: object) -> None:
            self.ended = "interrupted"
            self.searcher.closed = True
            listen_no_more()
            with suppress(OSError):  # the terminal is gone
                print("\nstopping; everything finished is kept", file=sys.stderr, flush=True)

        def listen() -> None:
            if self.ended != "interrupted":
                for each in former:
                    signal.signal(each, interrupt)

        listen()
        try:
            yield listen
        finally:
            listen_no_more()


class _Stop(tune.Stopper):
    """Ends all trials when the sweep is over."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self._over = over

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """A single trial ends when its pack is done."""
        return False

    def stop_all(self) -> bool:
        """Whether the sweep is over."""
        return self._over()

    def __getstate__(self) -> dict[str, Any]:
        """Pickled by Tune for a restore that is never made."""
        return {}


#: Of Tune: each report of a trial goes to three files, and every ten seconds all trials to one, for
#: a restore that is never made. Nobody reads them.
FILES_OF_TUNE = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_GLOBAL_CHECKPOINT_S": "inf"}


@contextmanager
def _no_files() -> Iterator[None]:
    """Without files of Tune that grow with the trials, and what it says of that."""
    former = {name: os.environ.get(name) for name in FILES_OF_TUNE}
    os.environ |= FILES_OF_TUNE
    loggers = [logging.getLogger(f"ray.tune.{part}") for part in UNFOUNDED]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in former.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


@contextmanager
def _one_line(say: Callable[[str], None]) -> Iterator[None]:
    """Tune shows the whole stack of what a worker died of; here it is said in one line."""

    def shorten(record: logging.LogRecord) -> bool:
        error = record.exc_info and record.exc_info[1]
        if error:
            cause = getattr(error, "cause", None) or error  # what Ray has wrapped
            say(f"{type(cause).__name__}: {first_line(cause)}"[:200])
        return not error

    log = logging.getLogger("ray.tune.execution.tune_controller")
    log.addFilter(shorten)
    try:
        yield
    finally:
        log.removeFilter(shorten)


@contextmanager
def _ray(spec: SweepSpec, address: str) -> Iterator[Path]:
    """A connection to Ray and a scratch folder; what was started here ends here."""
    scratch = Path(tempfile.mkdtemp(prefix="stabmap-"))
    started = not ray.is_initialized()
    try:
        if started:
            _start_ray(spec, address, scratch)
        yield scratch
    finally:
        if started:
            ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def _start_ray(spec: SweepSpec, address: str, scratch: Path) -> None:
    options: dict[str, Any] = {
        "address": address,
        "log_to_driver": False,
        "logging_level": "ERROR",
    }
    if address == "local":
        cpus = len(os.sched_getaffinity(0))
        wanted = math.ceil((spec.resources.workers or 1) * spec.resources.cpus)
        options |= {
            "num_cpus": max(cpus, wanted),
            "include_dashboard": False,
            "_temp_dir": str(scratch / "ray"),
        }
    try:
        with _deaf_to_hang_ups():
            ray.init(**options)
    except Exception as error:
        first = first_line(error) or repr(error)[:200]
        raise UnreachableError(
            f"address = {address!r}: Ray cannot be reached ({first}); use --address local, "
            "or start the cluster first"
        ) from error


@contextmanager
def _deaf_to_hang_ups() -> Iterator[None]:
    """Processes that begin here outlive their terminal: the driver hears of it, and ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def disk_full(folder: Path, results: int) -> str:
    """What to say where results wait for space on a disk."""
    free = shutil.disk_usage(folder).free / 2**20
    return (
        f"the disk of {folder} is full ({free:.1f} MiB free): {results} results wait; make space "
        "there and the sweep goes on"
    )


def _not_kept(error: Exception, spec: SweepSpec, points: int) -> StabmapError:
    """What to say where a result could not be written, or the task failed."""
    if isinstance(error, OSError):
        return unwritable(spec, error)
    if isinstance(error, NotReproducibleError):
        return error
    remedy = "; mend the task and run the same command to go on"
    if isinstance(error, StabmapError):
        return StabmapError(
            f"{error}; {points} points are kept{remedy if isinstance(error, TaskError) else ''}"
        )
    return StabmapError(
        f"a result could not be kept ({type(error).__name__}: {error}); {points} points are kept"
    )


def _ray_failed(error: BaseException, points: int) -> StabmapError:
    """Ray itself gave up."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return UnreachableError(
        f"Ray failed ({lines[-1].strip()[:300]}); {points} points are kept; run the same command "
        "to go on"
    )
