"""MLflow as the record: a parent run a sweep, a child run a point.

All writing happens on a thread of its own and may fail: the store keeps the results, and whatever
MLflow missed is written on the next call. Non-finite numbers are never sent (MLflow would turn
infinity into 1.8e308 and NaN into 0).
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import platform
import queue
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from analysis.load import ARTIFACT_FOLDER, default_tracking_uri, redacted
from analysis.map import EVIDENCE, MAP_FILE, StabilityMap, evidence_row
from sweeps.runs import FinishedRun, database_of, log_batch, write_run, write_together
from sweeps.spec import SweepSpec
from sweeps.store import key_of
from trainables import __version__
from trainables.domain import AXIS_NAMES, PointResult, UnreachableError

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

_log = logging.getLogger("stabmap")

PARENT_TAG = "mlflow.parentRunId"
POINT_TAG = "stabmap.point"
HASH_TAG = "stabmap.spec"
PACKAGES = ("torch", "ray", "optuna", "mlflow", "numpy")
#: Failures in a row after which nothing more is sent: a server that is away costs seconds a try,
#: and the store has everything for the next call.
PATIENCE = 3
#: Seconds that a record waits for others: a transaction costs more than what it holds.
GATHER = 0.5
#: Records that are written together, at most.
TOGETHER = 256


@dataclass(frozen=True)
class _Trained:
    """A training of a point that is to be recorded."""

    number: int
    result: PointResult
    finished_at: float
    repetition: int


Record = Callable[[], None] | _Trained


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

    Raises:
        UnreachableError: the address does not answer; nothing was created.
    """

    def __init__(self, spec: SweepSpec) -> None:
        self.uri = tracking_uri(spec)
        self._spec = spec
        self._tasks: queue.Queue[Record | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._children: dict[str, str] = {}
        self._experiment_id = ""
        self.sweep_id = ""
        self.missed = 0
        self._failures = 0
        # A server that is away must be noticed in seconds; the stock settings wait for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self._client = self._connect()

    def _connect(self) -> Any:
        from mlflow import MlflowClient

        for noisy in ("alembic", "mlflow", "mlflow.store.db.utils"):
            logging.getLogger(noisy).setLevel(logging.ERROR)

        try:
            if self.uri.startswith("sqlite:///"):
                Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            with self._alone():
                client = MlflowClient(self.uri)
                client.search_experiments(max_results=1)
        except Exception as error:  # every scheme has its own kinds of failure
            first = redacted(str(error).strip().splitlines()[0] if str(error).strip() else "")
            raise UnreachableError(
                f"tracking.address = {redacted(self.uri)!r}: MLflow cannot be reached there "
                f"({type(error).__name__}: {first[:160]}); start the server, mend tracking.address "
                "or MLFLOW_TRACKING_URI, or leave both out to use a local sqlite file"
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

    def open(self, known: str | None) -> str:
        """Begin or go on with the parent run.

        Args:
            known: id of the parent run of an earlier call, if there was one.

        Returns:
            Id of the parent run: the sweep's id.

        Raises:
            UnreachableError: MLflow refuses (a deleted experiment, artifacts that cannot be
                written).
        """
        from mlflow.exceptions import MlflowException

        try:
            with self._alone():
                self._experiment_id = self._experiment()
            return self._open(known)
        except (OSError, RuntimeError, MlflowException) as error:
            first = redacted((str(error).strip().splitlines() or [""])[0])
            raise UnreachableError(
                f"tracking.address = {redacted(self.uri)!r}: MLflow cannot open a run there "
                f"({type(error).__name__}: {first[:160]}); mend it, or use another "
                "tracking.experiment or folder"
            ) from error

    def _open(self, known: str | None) -> str:
        if known is not None and self._exists(known):
            self.sweep_id = known
            self._experiment_id = self._client.get_run(known).info.experiment_id
            self._client.update_run(known, status="RUNNING")
            self._children = self._finished_children()
        else:
            run = self._client.create_run(
                self._experiment_id, run_name=self._spec.title, tags=self._parent_tags()
            )
            self.sweep_id = run.info.run_id
            log_batch(self._client, self.sweep_id, [], self._parent_params())
            self._client.log_text(
                self.sweep_id, yaml.safe_dump(self._spec.resolved(), sort_keys=False), "spec.yaml"
            )
        self._thread = threading.Thread(target=self._work, name="stabmap-mlflow", daemon=True)
        self._thread.start()
        self._submit(lambda: self._client.set_tag(self.sweep_id, "data_hash", self._data_hash()))
        return self.sweep_id

    def _experiment(self) -> str:
        name = self._spec.tracking.experiment
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        folder = Path(self._spec.folder).expanduser().resolve() / "artifacts"
        # A server knows where its artifacts go; with a bare database the client must say.
        place = None if self.uri.startswith(("http://", "https://")) else folder.as_uri()
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
        return tags | {package: version(package) for package in PACKAGES}

    def _parent_params(self) -> dict[str, str]:
        about = self._spec.about()
        flat = {f"task.{k}" if k != "name" else "task": v for k, v in about["task"].items()}
        flat |= about["training"] | {f"search.{k}": v for k, v in about["search"].items()}
        for axis in self._spec.space:
            text = f"{axis.scale} {axis.low:g} to {axis.high:g}" if axis.free else f"{axis.value:g}"
            flat[f"axis.{axis.name}"] = text + (" or 0" if axis.zero else "")
        return {k: str(v)[:500] for k, v in flat.items()}

    def _data_hash(self) -> str:
        import hashlib

        from trainables.tasks import get_task

        task = get_task(self._spec.task_name, **self._spec.task_options)
        digest = hashlib.sha256()
        for tensor in (*task.train_data(), *task.test_data()):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    # ----------------------------------------------------------------- children

    def _finished_children(self) -> dict[str, str]:
        """Points that are recorded in full; half-written runs are taken out."""
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
                break
        finished: dict[str, str] = {}
        for run in runs:  # only now: deleting while paging would skip some
            key = run.data.tags.get(POINT_TAG, "")
            if run.info.status == "FINISHED" and key not in finished:
                finished[key] = run.info.run_id
            else:
                self._client.set_terminated(run.info.run_id, "KILLED")
                self._client.delete_run(run.info.run_id)
        return finished

    def tag(self, key: str, value: str) -> None:
        """Put a tag on the parent run."""
        self._submit(lambda: self._client.set_tag(self.sweep_id, key, value))

    def log_point(
        self, number: int, result: PointResult, finished_at: float, repetition: int = 0
    ) -> None:
        """Record a training of a point, unless it is recorded already."""
        key = key_of(result.point, repetition)
        if key not in self._children:
            self._children[key] = ""
            self._tasks.put(_Trained(number, result, finished_at, repetition))

    def _run_of(self, trained: _Trained) -> FinishedRun:
        result, verdict = trained.result, trained.result.verdict
        point, now = result.point, int(trained.finished_at * 1000)
        tags = {
            PARENT_TAG: self.sweep_id,
            POINT_TAG: key_of(point, trained.repetition),
            "repetition": str(trained.repetition),
            "stabmap.kind": "point",
            "regime": verdict.regime.value,
            "reason": verdict.reason.value,
            "task": self._spec.task_name,
            "stabiliser": self._spec.training.stabiliser_name if point.alpha else "none",
            "replicates": " ".join(r.verdict.regime.value for r in result.replicates),
        }
        params = {name: repr(getattr(point, name)) for name in AXIS_NAMES}
        params |= {"number": str(trained.number), "ks": " ".join(map(str, self._spec.ks))}
        params["seeds"] = " ".join(str(r.seed) for r in result.replicates)
        name = f"{self._spec.title}-{trained.number}"
        return FinishedRun(name, now, tags, params, list(_metrics(result, now)))

    def _write_points(self, points: list[_Trained]) -> None:
        """All at once where that can be done, else one after the other."""
        if points and self._failures < PATIENCE and (store := database_of(self._client)):
            with suppress(Exception):  # the client then says what is wrong
                write_together(store, self._experiment_id, [self._run_of(p) for p in points])
                self._failures = 0
                return
        for point in points:
            self._try(partial(self._write_point, point))

    def _write_point(self, point: _Trained) -> None:
        write_run(self._client, self._experiment_id, self._run_of(point))

    # ----------------------------------------------------------------- the map

    def log_map(self, stability_map: StabilityMap, picture: Path | None = None) -> None:
        """Put the map with the parent run, as parquet and, where there is one, as a picture."""
        self._submit(lambda: self._write_map(stability_map, picture))

    def _write_map(self, stability_map: StabilityMap, picture: Path | None) -> None:
        from mlflow.entities import Metric

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MAP_FILE
            stability_map.write_parquet(path)
            self._client.log_artifact(self.sweep_id, str(path), ARTIFACT_FOLDER)
        if picture is not None:
            self._client.log_artifact(self.sweep_id, str(picture), ARTIFACT_FOLDER)
        counts = stability_map.counts()
        step = sum(counts.values())
        metrics = [Metric(f"points_{k}", v, step, step) for k, v in counts.items()]
        log_batch(self._client, self.sweep_id, metrics)
        found = ", ".join(f"{count} {regime}" for regime, count in counts.items())
        note = f"Stability map of **{self._spec.task_name}**: {step} points ({found})."
        self._client.set_tag(self.sweep_id, "mlflow.note.content", note)

    # ----------------------------------------------------------------- the thread

    def _submit(self, task: Callable[[], None]) -> None:
        self._tasks.put(task)

    def _work(self) -> None:
        records: list[Record | None] = []
        while None not in records:
            records = self._gather()
            self._write_points([r for r in records if isinstance(r, _Trained)])
            for record in records:
                if record is not None and not isinstance(record, _Trained):
                    self._try(record)

    def _gather(self) -> list[Record | None]:
        """What is to be written next: what comes within a moment; None at the end of all."""
        records = [self._tasks.get()]
        until = time.monotonic() + GATHER
        while records[-1] is not None and len(records) < TOGETHER:
            try:
                records.append(self._tasks.get(timeout=max(0.0, until - time.monotonic())))
            except queue.Empty:
                break
        return records

    def _try(self, task: Callable[[], None]) -> None:
        if self._failures >= PATIENCE:
            self.missed += 1
            return
        try:
            task()
            self._failures = 0
        except Exception as error:  # the record must never stop the sweep
            self.missed += 1
            self._failures += 1
            _log.warning("MLflow did not take a record: %s", redacted(str(error).split("\n")[0]))

    def close(self, status: str) -> bool:
        """Write what is waiting and end the parent run.

        Args:
            status: MLflow's word: FINISHED, KILLED or FAILED.

        Returns:
            Whether MLflow took everything.
        """
        if self._thread is not None:
            self._tasks.put(None)
            self._thread.join()
        try:
            self._client.set_terminated(self.sweep_id, status)
        except Exception as error:
            self.missed += 1
            _log.warning("MLflow did not take a record: %s", redacted(str(error).split("\n")[0]))
        return self.missed == 0


def _metrics(result: PointResult, now: int) -> Iterable[Any]:
    """Everything finite about a point, axis values included: filters compare only metrics."""
    from mlflow.entities import Metric

    verdict = result.verdict
    first = result.replicates[0]
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
    for name, curve in first.curves.items():
        for step, value in zip(curve.steps, curve.values, strict=True):
            if math.isfinite(value):
                yield Metric(f"curve/{name}", value, now, step)


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
