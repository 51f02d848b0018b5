"""Many finished MLflow runs at once: in one transaction where MLflow keeps them in a database.

MLflow's client takes six transactions a run, and each waits for the disk. Where the client writes
to a database itself, the same rows go in by MLflow's own tables, all runs or none. Everywhere else,
and where that fails, the client writes one run after the other.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweeps.dataset import Dataset

#: MLflow takes this many metrics in one request.
BATCH = 1000
#: What MLflow says of the user where nobody says more.
USER = "unknown"
#: Tag of those data that are not a stand-in for others.
THE_REAL_THING = "none"


@dataclass(frozen=True)
class FinishedRun:
    """A run that is over when it is first written.

    Args:
        name: its name.
        time: of its beginning and its end, milliseconds since the epoch.
        tags: its tags.
        params: its params.
        metrics: its metrics (`mlflow.entities.Metric`), finite, no two with one key and step.
    """

    name: str
    time: int
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Sequence[Any]


def log_batch(
    client: Any,
    run_id: str,
    metrics: Sequence[Any],
    params: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Log metrics, params and tags in as few requests as MLflow allows."""
    from mlflow.entities import Param, RunTag

    entries = [Param(k, v) for k, v in (params or {}).items()]
    named = [RunTag(k, v) for k, v in (tags or {}).items()]
    rest = list(metrics)
    while True:
        client.log_batch(run_id, metrics=rest[:BATCH], params=entries, tags=named)
        rest, entries, named = rest[BATCH:], [], []
        if not rest:
            return


def write_run(client: Any, experiment_id: str, run: FinishedRun) -> str:
    """Write a run through the client, which works wherever the runs are kept.

    Returns:
        Its id.
    """
    opened = client.create_run(
        experiment_id, start_time=run.time, run_name=run.name, tags=dict(run.tags)
    )
    log_batch(client, opened.info.run_id, run.metrics, run.params)
    client.set_terminated(opened.info.run_id, "FINISHED", end_time=run.time)
    return str(opened.info.run_id)


def log_dataset(client: Any, run_id: str, data: Dataset) -> None:
    """Put it with a run: as MLflow's input, and as tags, by which runs can be searched."""
    from mlflow.entities import Dataset as Entity
    from mlflow.entities import DatasetInput, InputTag

    stand_in = data.stand_in or THE_REAL_THING
    train, test = data.examples
    profile = {"training examples": train, "test examples": test, "stand-in for": stand_in}
    entity = Entity(
        data.name,
        data.digest,
        "task",
        json.dumps(data.source, default=str),
        profile=json.dumps(profile),
    )
    tags = [InputTag("mlflow.data.context", "training"), InputTag("stand_in", stand_in)]
    client.log_inputs(run_id, [DatasetInput(entity, tags)])
    client.set_tag(run_id, "data_hash", data.digest)
    client.set_tag(run_id, "stand_in", stand_in[:500])


def database_of(client: Any) -> Any | None:
    """MLflow's store behind a client that writes to a database itself; else None."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = getattr(getattr(client, "_tracking_client", None), "store", None)
    # A subclass may ask for more columns than are known here.
    return store if type(store) is SqlAlchemyStore else None


def write_together(store: Any, experiment_id: str, runs: Sequence[FinishedRun]) -> list[str]:
    """Write runs in one transaction.

    Args:
        store: from `database_of`.
        experiment_id: where they belong.
        runs: the runs.

    Returns:
        Their ids, in this order.

    Raises:
        Exception: nothing was written.
    """
    from mlflow.store.tracking.dbmodels import models

    location = _location(store, experiment_id)
    identities = [uuid.uuid4().hex for _ in runs]
    named = list(zip(identities, runs, strict=True))
    rows: dict[Any, list[dict[str, Any]]] = {
        models.SqlRun: [_row(i, run, experiment_id, location) for i, run in named],
        models.SqlTag: [
            {"run_uuid": i, "key": k, "value": v}
            for i, run in named
            for k, v in {**run.tags, "mlflow.runName": run.name}.items()
        ],
        models.SqlParam: [
            {"run_uuid": i, "key": k, "value": v} for i, run in named for k, v in run.params.items()
        ],
        models.SqlMetric: [_measured(i, m) for i, run in named for m in run.metrics],
        models.SqlLatestMetric: [_measured(i, m) for i, run in named for m in _latest(run)],
    }
    with store.ManagedSessionMaker(read_only=False) as session:
        for model, content in rows.items():
            if content:
                session.execute(model.__table__.insert(), content)
    return identities


def _location(store: Any, experiment_id: str) -> str:
    """Where the artifacts of an experiment lie."""
    experiment = store.get_experiment(experiment_id)
    if experiment.lifecycle_stage != "active":
        raise ValueError(f"experiment {experiment_id} was deleted")
    return str(experiment.artifact_location)


def _row(identity: str, run: FinishedRun, experiment_id: str, location: str) -> dict[str, Any]:
    from mlflow.utils.uri import append_to_uri_path

    place: Any = append_to_uri_path
    return {
        "run_uuid": identity,
        "name": run.name,
        "source_type": "UNKNOWN",
        "source_name": "",
        "entry_point_name": "",
        "user_id": USER,
        "status": "FINISHED",
        "start_time": run.time,
        "end_time": run.time,
        "deleted_time": None,
        "source_version": "",
        "lifecycle_stage": "active",
        "artifact_uri": place(location, identity, "artifacts"),
        "experiment_id": int(experiment_id),
    }


def _measured(identity: str, metric: Any) -> dict[str, Any]:
    return {
        "run_uuid": identity,
        "key": metric.key,
        "value": metric.value,
        "timestamp": metric.timestamp,
        "step": metric.step,
        "is_nan": False,
    }


def _latest(run: FinishedRun) -> list[Any]:
    """The metric of the largest step of each key."""
    latest: dict[str, Any] = {}
    for metric in run.metrics:
        if metric.key not in latest or metric.step >= latest[metric.key].step:
            latest[metric.key] = metric
    return list(latest.values())
