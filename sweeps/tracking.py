"""MLflow as the record: a parent run a sweep, a child run a point.

All writing happens on a thread of its own and may fail: the store keeps the results. While the
server is away the sweep goes on, and what was missed is written in order when it is back.
Non-finite numbers are never sent (MLflow would turn infinity into 1.8e308 and NaN into 0).
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import platform
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from analysis.load import ARTIFACT_FOLDER, default_tracking_uri
from analysis.map import EVIDENCE, MAP_FILE, StabilityMap, evidence_row
from analysis.tracking import Tracking
from sweeps.backlog import Backlog
from sweeps.dataset import Dataset, dataset_of
from sweeps.machines import Machines
from sweeps.pace import Pace
from sweeps.runs import (
    FinishedRun,
    database_of,
    log_batch,
    log_dataset,
    write_run,
    write_together,
)
from sweeps.spec import SweepSpec
from sweeps.store import Entry
from trainables import __version__
from trainables.domain import AXIS_NAMES, Curve, PointResult, UnreachableError
from trainables.messages import first_line, redacted

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

PARENT_TAG = "mlflow.parentRunId"
POINT_TAG = "stabmap.point"
HASH_TAG = "stabmap.spec"
ORIGIN_TAG = "stabmap.origin"
PACKAGES = ("torch", "ray", "optuna", "mlflow", "numpy")
#: What MLflow answers where a record is wrong and the server is not.
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")
#: Points kept of a curve of any replicate but the first, of which all are.
OTHER_CURVES = 16
#: Verdict and metric of each replicate, with its number as the step.
BY_REPLICATE = ("margin_stable", "margin_bounded", "metric")

_log = logging.getLogger("stabmap")


@dataclass(frozen=True)
class _Trained:
    """A training of a point that is to be recorded."""

    number: int
    entry: Entry


@dataclass(frozen=True)
class _Shown:
    """A map that is to be shown.

    Args:
        content: the map.
        picture: its picture, if it was drawn already.
        last: whether the sweep is over.
    """

    content: StabilityMap
    picture: Path | None
    last: bool


Record = Callable[[], None] | _Trained


@dataclass(frozen=True)
class Child:
    """What MLflow has of a training.

    Args:
        key: its key in the store.
        finished: whether its run is over.
        regime: the regime that it shows.
    """

    key: str
    finished: bool
    regime: str


@dataclass(frozen=True)
class Survey:
    """What MLflow has of a sweep.

    Args:
        running: whether the parent run says that it is being run.
        children: its runs of points.
    """

    running: bool
    children: tuple[Child, ...]


def tracking_uri(spec: SweepSpec) -> str:
    """The address that a sweep writes to."""
    return spec.tracking.address or default_tracking_uri(Path(spec.folder).expanduser())


def review_command(uri: str) -> str:
    """How to look at the runs."""
    uri = redacted(uri)
    if uri.startswith(("http://", "https://")):
        return f"open {uri}"
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


class Tracker:
    """Writes one sweep to MLflow, in the background.

    Args:
        spec: the sweep.
        known: id of the parent run of an earlier call, if there was one. Such a sweep goes on even
            where MLflow is away.

    Raises:
        UnreachableError: the address does not answer; nothing was created.
    """

    def __init__(self, spec: SweepSpec, known: str | None = None) -> None:
        self.uri = tracking_uri(spec)
        self._spec = spec
        self.known = known
        #: What tells the parent run of this store from all others, before its id is known.
        self.origin: str | None = None
        self._records = Backlog[Record]("MLflow", self._write, _is_refusal)
        self._recorded: set[str] = set()
        self._doubtful = False
        self._latest: _Shown | None = None
        self._dataset: Dataset | None = None
        self._machines = Machines()
        self._pace = Pace()
        self._experiment_id = ""
        self.sweep_id = ""
        # A server that is away must be noticed in seconds; the stock settings wait for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self.away = False
        self._client = self._connect()

    def _connect(self) -> Any:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        for noisy in ("alembic", "mlflow", "mlflow.store.db.utils"):
            logging.getLogger(noisy).setLevel(logging.ERROR)

        try:
            if self.uri.startswith("sqlite:///"):
                Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            with self._alone():
                client = MlflowClient(self.uri)
                try:
                    client.search_experiments(max_results=1)
                except MlflowException as error:
                    if self.known is None or not self._remote or _is_denial(error):
                        raise
                    self.away = True
        except Exception as error:  # every scheme has its own kinds of failure
            raise UnreachableError(
                f"tracking.address = {redacted(self.uri)!r}: MLflow cannot be reached there "
                f"({type(error).__name__}: {first_line(error, 160)}); start the server, mend "
                "tracking.address or MLFLOW_TRACKING_URI, or leave both out to use a local "
                "sqlite file"
            ) from error
        return client

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time: two that begin together would both make the same tables."""
        if not self.uri.startswith("sqlite:///"):
            yield
            return
        with Path(self.uri.removeprefix("sqlite:///") + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # ----------------------------------------------------------------- the parent run

    @property
    def _remote(self) -> bool:
        """Whether a server stands between here and the runs."""
        return self.uri.startswith(("http://", "https://"))

    def open(self) -> str:
        """Begin or go on with the parent run.

        Returns:
            Id of the parent run: the sweep's id.

        Raises:
            UnreachableError: MLflow refuses (a deleted experiment, artifacts that cannot be
                written).
        """
        from mlflow.exceptions import MlflowException

        try:
            self._open()
        except (OSError, RuntimeError, MlflowException) as error:
            raise UnreachableError(
                f"tracking.address = {redacted(self.uri)!r}: MLflow cannot open a run there "
                f"({type(error).__name__}: {first_line(error, 160)}); mend it, or use another "
                "tracking.experiment or folder"
            ) from error
        self._records.start()
        self._records.put(self._write_dataset)
        return self.sweep_id

    def _open(self) -> None:
        if self.away:
            assert self.known is not None
            self.sweep_id, self._doubtful = self.known, True
            return
        with self._alone():
            self._experiment_id = self._experiment()
        if self.known is not None and self._exists(self.known):
            self.sweep_id = self.known
            self._go_on()
            self._recorded = self._finished_children()
            return
        self.sweep_id = self._begun() or self._create()
        log_batch(self._client, self.sweep_id, [], self._parent_params())
        self._client.log_text(
            self.sweep_id, yaml.safe_dump(self._spec.resolved(), sort_keys=False), "spec.yaml"
        )

    def _create(self) -> str:
        tags, name = self._parent_tags(), self._spec.title
        run = self._client.create_run(self._experiment_id, run_name=name, tags=tags)
        return str(run.info.run_id)

    def _begun(self) -> str | None:
        """The parent run of an earlier call that was killed before it could keep the id."""
        if self.origin is None:
            return None
        mine = f"tags.`{ORIGIN_TAG}` = '{self.origin}'"
        runs = self._client.search_runs([self._experiment_id], mine, max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _go_on(self) -> None:
        self._experiment_id = self._client.get_run(self.sweep_id).info.experiment_id
        self._client.update_run(self.sweep_id, status="RUNNING")

    def _experiment(self) -> str:
        name = self._spec.tracking.experiment
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        folder = Path(self._spec.folder).expanduser().resolve() / "artifacts"
        # A server knows where its artifacts go; with a bare database the client must say.
        place = None if self._remote else folder.as_uri()
        return str(self._client.create_experiment(name, artifact_location=place))

    def _exists(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException:
            return False

    def _parent_tags(self) -> dict[str, str]:
        training = self._spec.training
        tags = {
            "stabmap.kind": "sweep",
            HASH_TAG: self._spec.hash,
            "task": self._spec.task_name,
            "optimiser": training.optimiser,
            "stabiliser": self._spec.about()["training"]["stabiliser"]["name"],
            "device": training.device,
            "dtype": training.dtype,
            "git_commit": git_commit(),
            "python": platform.python_version(),
            "stabmap": __version__,
        }
        if self.origin is not None:
            tags[ORIGIN_TAG] = self.origin
        return tags | {package: version(package) for package in PACKAGES}

    def _parent_params(self) -> dict[str, str]:
        about = self._spec.about()
        flat = {f"task.{k}" if k != "name" else "task": v for k, v in about["task"].items()}
        flat |= about["training"] | {f"search.{k}": v for k, v in about["search"].items()}
        for axis in self._spec.space:
            text = f"{axis.scale} {axis.low:g} to {axis.high:g}" if axis.free else f"{axis.value:g}"
            flat[f"axis.{axis.name}"] = text + (" or 0" if axis.zero else "")
        return {k: str(v)[:500] for k, v in flat.items()}

    def _write_dataset(self) -> None:
        """What was trained on: name, digest, what it stands in for."""
        try:
            self._dataset = self._dataset or dataset_of(self._spec)
        except Exception as error:  # the task's, which says so itself where it is trained
            _log.warning("the data are not recorded: %s", first_line(error))
            return
        log_dataset(self._client, self.sweep_id, self._dataset)

    # ----------------------------------------------------------------- children

    def _children(self) -> list[Any]:
        """All runs of points that MLflow has of this sweep."""
        runs: list[Any] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                f"tags.`{PARENT_TAG}` = '{self.sweep_id}'",
                max_results=1000,
                page_token=token,
            )
            runs += list(page)
            token = page.token
            if not token:
                return runs

    def _finished_children(self) -> set[str]:
        """Points that are recorded in full; half-written runs and doubles are taken out."""
        finished: set[str] = set()
        for run in self._children():
            key = run.data.tags.get(POINT_TAG, "")
            if run.info.status == "FINISHED" and key not in finished:
                finished.add(key)
            else:
                self._client.set_terminated(run.info.run_id, "KILLED")
                self._client.delete_run(run.info.run_id)
        return finished

    def take_out(self, sweep_id: str | None, regimes: Mapping[str, str]) -> None:
        """Take out runs of points that show another regime than their results.

        Args:
            sweep_id: the parent run.
            regimes: the regime of each key.
        """
        if self.survey(sweep_id) is None:
            return
        for run in self._children():
            key = run.data.tags.get(POINT_TAG, "")
            if run.data.tags.get("regime") != regimes.get(key):
                self._client.delete_run(run.info.run_id)

    def survey(self, sweep_id: str | None) -> Survey | None:
        """What MLflow has of a sweep; None where it has nothing.

        Raises:
            UnreachableError: it does not answer.
        """
        from mlflow.exceptions import MlflowException

        try:
            if sweep_id is None or not self._exists(sweep_id):
                return None
            parent = self._client.get_run(sweep_id).info
            self.sweep_id, self._experiment_id = sweep_id, parent.experiment_id
            children = tuple(
                Child(
                    run.data.tags.get(POINT_TAG, ""),
                    run.info.status == "FINISHED",
                    run.data.tags.get("regime", ""),
                )
                for run in self._children()
            )
        except MlflowException as error:
            raise UnreachableError(
                f"tracking.address = {redacted(self.uri)!r}: MLflow does not answer "
                f"({first_line(error, 160)})"
            ) from error
        return Survey(parent.status == "RUNNING", children)

    def tag(self, key: str, value: str) -> None:
        """Put a tag on the parent run."""
        self._records.put(lambda: self._client.set_tag(self.sweep_id, key, value))

    def log_point(self, number: int, entry: Entry) -> None:
        """Record a training of a point, unless it is recorded already."""
        if entry.key not in self._recorded:
            self._records.put(_Trained(number, entry))

    def _run_of(self, trained: _Trained) -> FinishedRun:
        result, verdict = trained.entry.result, trained.entry.result.verdict
        point, now = result.point, int(trained.entry.finished_at * 1000)
        found = [replicate.verdict.regime.value for replicate in result.replicates]
        tags = {
            PARENT_TAG: self.sweep_id,
            POINT_TAG: trained.entry.key,
            "repetition": str(trained.entry.repetition),
            "stabmap.kind": "point",
            "regime": verdict.regime.value,
            "reason": verdict.reason.value,
            "sweep": self._spec.title,
            "task": self._spec.task_name,
            "optimiser": self._spec.training.optimiser,
            "dtype": self._spec.training.dtype,
            "stabiliser": self._spec.training.stabiliser_name if point.alpha else "none",
            "replicates": " ".join(found),
            "replicates_agree": "yes" if len(set(found)) == 1 else "no",
        }
        params = {name: repr(getattr(point, name)) for name in AXIS_NAMES}
        params |= {"number": str(trained.number), "ks": " ".join(map(str, self._spec.ks))}
        params["seeds"] = " ".join(str(r.seed) for r in result.replicates)
        name = f"{self._spec.title}-{trained.number}"
        return FinishedRun(name, now, tags, params, list(_metrics(result, now)))

    def _write(self, records: Sequence[Record]) -> None:
        """Write records; after an error only those that are not there."""
        if self._doubtful:
            if self.away:
                self._go_on()
                self.away = False
            self._recorded = self._finished_children()
        self._doubtful = True
        self._write_points([r for r in records if isinstance(r, _Trained)])
        for record in records:  # after the points: the last one says that the sweep is over
            if not isinstance(record, _Trained):
                record()
        self._doubtful = False

    def _write_points(self, points: Sequence[_Trained]) -> None:
        """Those that are not there: all at once where that can be done, else one by one."""
        points = [point for point in points if point.entry.key not in self._recorded]
        if points and (store := database_of(self._client)):
            try:
                write_together(store, self._experiment_id, [self._run_of(p) for p in points])
                self._recorded |= {point.entry.key for point in points}
            except Exception:  # the client then says what is wrong, if it was not the answer alone
                self._recorded = self._finished_children()
        for point in points:
            if point.entry.key not in self._recorded:
                write_run(self._client, self._experiment_id, self._run_of(point))
                self._recorded.add(point.entry.key)

    # ----------------------------------------------------------------- the map

    def log_map(
        self, stability_map: StabilityMap, picture: Path | None = None, last: bool = False
    ) -> None:
        """Put the map with the parent run: as parquet, and now and then to be looked at.

        Args:
            stability_map: the map as known now.
            picture: its picture, if it was drawn already.
            last: whether no further map will come: then picture, page, report and description are
                written in any case.
        """
        self._latest = _Shown(stability_map, picture, last)
        self._records.put(self._write_map)

    def _write_map(self) -> None:
        """The latest map; those before it, that a server missed, are of no use to anyone."""
        from mlflow.entities import Metric

        if self._latest is None:
            return
        latest = self._latest
        counts = latest.content.counts()
        step = sum(counts.values())
        metrics = [Metric(f"points_{k}", v, step, step) for k, v in counts.items()]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MAP_FILE
            latest.content.write_parquet(path)
            self._client.log_artifact(self.sweep_id, str(path), ARTIFACT_FOLDER)
            log_batch(self._client, self.sweep_id, metrics)
            if latest.last or self._pace.due:
                self._show(latest, Path(folder))
        if self._latest is latest:
            self._latest = None

    def _show(self, latest: _Shown, folder: Path) -> None:
        """Picture, page, report and description."""
        from analysis.report import Source
        from sweeps import review

        begin = time.monotonic()
        source = Source(self.sweep_id, self._tracking(latest.last), review.data_of(self._spec))
        try:
            files = review.draw(latest.content, folder, source, latest.picture, latest.last)
            note = review.describe(latest.content, source, files)
        except Exception as error:  # the map itself is there
            _log.warning("the map is not shown in MLflow: %s", first_line(error))
            return
        finally:
            self._pace.took(time.monotonic() - begin)
        for file in files:
            self._client.log_artifact(self.sweep_id, str(file), ARTIFACT_FOLDER)
        self._client.set_tag(self.sweep_id, "mlflow.note.content", note)

    def _tracking(self, links: bool) -> Tracking:
        """What page and report say of the runs; their ids only where a browser can open them."""
        runs: dict[int, str] = {}
        if links and self._remote:
            for run in self._children():
                number = run.data.params.get("number", "")
                if number.isdecimal() and run.data.tags.get("repetition", "0") == "0":
                    runs[int(number)] = run.info.run_id
        address = redacted(self.uri) if self._remote else None
        tags = self._parent_tags()
        if self._dataset is not None:
            tags["data_hash"] = self._dataset.digest
        return Tracking(address, self.sweep_id, self._experiment_id, runs, tags)

    # ----------------------------------------------------------------- machines

    def log_usage(self, machine: str, usage: Sequence[tuple[str, float]]) -> None:
        """Note what a machine is busy with; written together, every few seconds.

        Args:
            machine: its name.
            usage: names and values (`trainables.usage`).
        """
        if self._machines.add(machine, usage):
            self._records.put(self._write_usage)

    def _write_usage(self) -> None:
        from mlflow.entities import Metric

        with self._machines.waiting() as samples:
            if samples:
                # The step is the time: it goes on where the sweep does.
                metrics = [Metric(s.name, s.value, int(s.at * 1000), int(s.at)) for s in samples]
                log_batch(self._client, self.sweep_id, metrics)

    # ----------------------------------------------------------------- the end

    @property
    def behind(self) -> int:
        """Number of records that MLflow has not taken yet."""
        return len(self._records)

    def close(self, status: str, patience: float) -> bool:
        """Write what is waiting and end the parent run.

        Args:
            status: MLflow's word: FINISHED, KILLED or FAILED.
            patience: seconds to wait for a server that is away.

        Returns:
            Whether MLflow took everything.
        """
        self._records.put(self._write_usage)
        self._records.put(lambda: self._client.set_terminated(self.sweep_id, status))
        return self._records.close(patience) == 0


def _is_refusal(error: Exception) -> bool:
    """Whether MLflow says that a record is wrong, rather than being away."""
    return getattr(error, "error_code", None) in REFUSALS


def _is_denial(error: Exception) -> bool:
    """Whether MLflow answers, and keeps us out."""
    return getattr(error, "error_code", None) in ("UNAUTHENTICATED", "PERMISSION_DENIED")


def _metrics(result: PointResult, now: int) -> Iterable[Any]:
    """Everything finite about a point, axis values included: filters compare only metrics."""
    from mlflow.entities import Metric

    verdict = result.verdict
    values: dict[str, float | None] = {name: getattr(result.point, name) for name in AXIS_NAMES}
    values |= {
        "margin_stable": verdict.margins.stable,
        "margin_bounded": verdict.margins.bounded,
        "decided_step": verdict.step,
    }
    row = evidence_row(0, result)  # the same medians as in the map
    values |= {name: row[name] for name in EVIDENCE}
    for name, value in values.items():
        if value is not None and math.isfinite(value):
            yield Metric(name, float(value), now, 0)
    for number, replicate in enumerate(result.replicates):
        for name, curve in replicate.curves.items():
            key = f"curve/{name}" if number == 0 else f"curve/{name}/replicate {number + 1}"
            for step, value in _thinned(curve, number):
                if math.isfinite(value):
                    yield Metric(key, value, now, step)
    if len(result.replicates) > 1:
        yield from _by_replicate(result, now)


def _thinned(curve: Curve, number: int) -> Iterator[tuple[int, float]]:
    """All that is kept of the first replicate's curve; fewer of the others, which are many."""
    count = len(curve.steps)
    stride = 1 if number == 0 else max(1, math.ceil((count - 1) / (OTHER_CURVES - 1)))
    kept = sorted({*range(0, count, stride), count - 1} & set(range(count)))
    return ((curve.steps[i], curve.values[i]) for i in kept)


def _by_replicate(result: PointResult, now: int) -> Iterator[Any]:
    """Margins and metric of each replicate: a curve whose step is the replicate."""
    from mlflow.entities import Metric

    for number, replicate in enumerate(result.replicates, 1):
        margins = replicate.verdict.margins
        values: dict[str, float | None] = {
            "margin_stable": margins.stable,
            "margin_bounded": margins.bounded,
        }
        values["metric"] = replicate.evidence.get("metric")
        for name in BY_REPLICATE:
            value = values[name]
            if value is not None and math.isfinite(value):
                yield Metric(f"replicate/{name}", float(value), now, number)


def git_commit() -> str:
    """Commit of the code that runs, or `unknown` outside a checkout."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        ).stdout.strip()
    return "unknown"
