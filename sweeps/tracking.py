"""MLflow as the record: a parent run a sweep, a child run a point.

All writing happens on a thread of its own and may fail: the store keeps the results. While the
server is away the sweep goes on, and what was missed is written in order when it is back.
Non-finite numbers are never sent (MLflow would turn infinity into 1.8e308 and NaN into 0).
"""

from __future__ import annotations

import logging
import os
import platform
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from analysis.load import ARTIFACT_FOLDER, default_tracking_uri
from analysis.lock import alone
from analysis.map import MAP_FILE, StabilityMap
from analysis.tracking import Tracking
from sweeps.backlog import Backlog
from sweeps.dataset import Dataset, dataset_of
from sweeps.machines import Machines
from sweeps.pace import Pace
from sweeps.point_runs import (
    PARENT_TAG,
    PointRun,
    Trained,
    finished_run,
    metrics_of,
    tags_of,
)
from sweeps.runs import (
    database_of,
    log_batch,
    log_dataset,
    write_run,
    write_together,
)
from sweeps.spec import SweepSpec
from sweeps.store import Entry
from trainables import __version__
from trainables.domain import UnreachableError
from trainables.messages import first_line, redacted

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

HASH_TAG = "stabmap.spec"
#: What the sweep was trained on; several kinds are one after the other, with this in between.
HARDWARE_TAG, BETWEEN = "hardware", "; "
ORIGIN_TAG = "stabmap.origin"
PACKAGES = ("torch", "ray", "optuna", "mlflow", "numpy")
#: What MLflow answers where a record is wrong and the server is not.
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")

_log = logging.getLogger("stabmap")


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


Record = Callable[[], None] | Trained


@dataclass(frozen=True)
class Survey:
    """What MLflow has of a sweep.

    Args:
        running: whether the parent run says that it is being run.
        points: its runs of points.
    """

    running: bool
    points: tuple[PointRun, ...]


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
        self._trained: dict[str, Trained] = {}
        self._recorded: dict[str, PointRun] = {}
        self._doubtful = False
        self._latest: _Shown | None = None
        self._dataset: Dataset | None = None
        self._machines = Machines()
        self._seen: set[str] = set()
        self._hardware = ""
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
            with alone(self.uri):
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
        self._records.put(self._write_hardware)  # what earlier calls were trained on
        return self.sweep_id

    def _open(self) -> None:
        if self.away:
            assert self.known is not None
            self.sweep_id, self._doubtful = self.known, True
            return
        with alone(self.uri):
            self._experiment_id = self._experiment()
        if self.known is not None and self._exists(self.known):
            self.sweep_id = self.known
            self._go_on()
            self._recorded = self._finished_points()
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

    def _points(self) -> list[PointRun]:
        """All runs of points that MLflow has of this sweep."""
        runs: list[PointRun] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id],
                f"tags.`{PARENT_TAG}` = '{self.sweep_id}'",
                max_results=1000,
                page_token=token,
            )
            runs += map(PointRun.of, page)
            token = page.token
            if not token:
                return runs

    def _finished_points(self) -> dict[str, PointRun]:
        """Points that are recorded, by their key; half-written runs and doubles are taken out."""
        finished: dict[str, PointRun] = {}
        for one in sorted(self._points(), key=lambda one: -len(one.repetitions)):
            if one.finished and one.repetitions and one.point not in finished:
                finished[one.point] = one
            else:
                self._client.set_terminated(one.run, "KILLED")
                self._client.delete_run(one.run)
        return finished

    def take_out(self, sweep_id: str | None, wrong: Callable[[PointRun], bool]) -> None:
        """Take out runs of points.

        Args:
            sweep_id: the parent run.
            wrong: which of them.
        """
        survey = self.survey(sweep_id)
        for run in survey.points if survey else ():
            if wrong(run):
                self._client.delete_run(run.run)

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
            points = tuple(self._points())
        except MlflowException as error:
            raise UnreachableError(
                f"tracking.address = {redacted(self.uri)!r}: MLflow does not answer "
                f"({first_line(error, 160)})"
            ) from error
        return Survey(parent.status == "RUNNING", points)

    def tag(self, key: str, value: str) -> None:
        """Put a tag on the parent run."""
        self._records.put(lambda: self._client.set_tag(self.sweep_id, key, value))

    def log_point(self, number: int, entry: Entry) -> None:
        """Record a training of a point, unless it is recorded already.

        Args:
            number: of the trial.
            entry: the result.
        """
        key = entry.result.point.key
        before = self._trained.get(key)
        trained = before.with_also(number, entry) if before else Trained(((number, entry),))
        self._trained[key] = trained
        self._records.put(trained)

    def _write(self, records: Sequence[Record]) -> None:
        """Write records; after an error only those that are not there."""
        if self._doubtful:
            if self.away:
                self._go_on()
                self.away = False
            self._recorded = self._finished_points()
        self._doubtful = True
        self._write_points([r for r in records if isinstance(r, Trained)])
        for record in records:  # after the points: the last one says that the sweep is over
            if not isinstance(record, Trained):
                record()
        self._doubtful = False

    def _write_points(self, points: Sequence[Trained]) -> None:
        """What is not there: new runs all at once where that can be done, else one by one."""
        latest = {point.point.key: point for point in points}  # the last of a point has all
        for key, point in latest.items():
            self._take_out_other(key, point)
        new = [point for key, point in latest.items() if key not in self._recorded]
        if new and (store := database_of(self._client)):
            try:
                runs = [finished_run(self._spec, self.sweep_id, point) for point in new]
                self._note(write_together(store, self._experiment_id, runs), new)
            except Exception:  # the client then says what is wrong, if it was not the answer alone
                self._recorded = self._finished_points()
        for key, point in latest.items():
            if key not in self._recorded:
                run = finished_run(self._spec, self.sweep_id, point)
                self._note([write_run(self._client, self._experiment_id, run)], [point])
            elif not point.repetitions <= self._recorded[key].repetitions:
                self._add(self._recorded[key], point)

    def _take_out_other(self, key: str, point: Trained) -> None:
        """A run to which the point cannot be added.

        Params never change, so it has the number of the first training, or is another's; and what
        is said of all trainings has to be known of all.
        """
        known = self._recorded.get(key)
        if known is None:
            return
        more = not point.repetitions <= known.repetitions
        if known.number != point.number or (more and not known.repetitions <= point.repetitions):
            self._client.delete_run(known.run)
            del self._recorded[key]

    def _note(self, runs: Sequence[str], points: Sequence[Trained]) -> None:
        """These points have these runs."""
        pairs = zip(runs, points, strict=True)
        self._recorded |= {p.point.key: PointRun.written(run, p) for run, p in pairs}

    def _add(self, known: PointRun, point: Trained) -> None:
        """Further trainings of a point to its run; the tags last, which say that they are there."""
        log_batch(self._client, known.run, metrics_of(point, known.repetitions))
        log_batch(self._client, known.run, [], tags=tags_of(point))
        self._note([known.run], [point])

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
        found = self._points() if links and self._remote else []
        runs = {point.number: point.run for point in found}
        address = redacted(self.uri) if self._remote else None
        tags = self._parent_tags()
        if self._hardware:
            tags[HARDWARE_TAG] = self._hardware
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

    def log_hardware(self, name: str) -> None:
        """Note what a worker trains on; a sweep on several kinds of it is warned about.

        Args:
            name: see `trainables.hardware`.
        """
        if name not in self._seen:
            self._seen.add(name)
            self._records.put(self._write_hardware)

    def _write_hardware(self) -> None:
        """All kinds that are known, also from earlier calls and other machines."""
        tags = self._client.get_run(self.sweep_id).data.tags
        before = set(filter(None, tags.get(HARDWARE_TAG, "").split(BETWEEN)))
        known = before | self._seen
        self._hardware = BETWEEN.join(sorted(known))
        if known == before:
            return
        self._client.set_tag(self.sweep_id, HARDWARE_TAG, self._hardware)
        if len(known) > 1:
            _log.warning(
                "trained on different hardware (%s): where rounding grows, a result depends on "
                "which of them trained it; for the same map again use machines of one kind",
                self._hardware,
            )

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
