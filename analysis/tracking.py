"""Where MLflow shows the runs behind a map."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from analysis.load import ARTIFACT_FOLDER, default_tracking_uri, home
from trainables.domain import redacted

#: What ids of runs and experiments are made of.
ID = re.compile(r"[0-9A-Za-z_-]{1,64}")


@dataclass(frozen=True)
class Tracking:
    """What MLflow knows of a sweep beside its map.

    Args:
        address: of the server, for links; None where the runs are in a bare database, which no
            browser can open.
        sweep: id of the parent run.
        experiment: id of the experiment.
        runs: id of each point's first run, by the point's number.
        tags: of the parent run, such as `git_commit`.
    """

    address: str | None = None
    sweep: str | None = None
    experiment: str | None = None
    runs: Mapping[int, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def base(self) -> str | None:
        """The address as links may begin: http or https, without user name and password."""
        if self.address is None:
            return None
        try:
            parts = urlsplit(self.address)
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            return None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return None
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"

    def link(self, run: str | None) -> str | None:
        """Address of a run's page; None where it is not known."""
        known = (self.experiment, run)
        if self.base is None or not all(name and ID.fullmatch(name) for name in known):
            return None
        return f"{self.base}/#/experiments/{self.experiment}/runs/{run}"


def find_tracking(sweep: str | Path, tracking_uri: str | None = None) -> Tracking:
    """What MLflow knows of a sweep that `load_map` can load.

    A server that is away or does not know the sweep is no error: the map is there all the same, and
    what is missing are links.

    Args:
        sweep: as for `load_map`.
        tracking_uri: MLflow address; None takes the one that the sweep wrote to, else the usual.
    """
    run, kept = _named(sweep)
    uri = tracking_uri or kept or default_tracking_uri()
    remote = uri.startswith(("http://", "https://"))
    known = Tracking(redacted(uri) if remote else None, run)
    scheme, _, database = uri.partition(":///")
    if run is None or (scheme == "sqlite" and not Path(database).exists()):
        return known
    # A server that is away must be noticed in seconds; the stock settings wait for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    try:
        return _asked(known, uri, remote)
    except Exception:  # every scheme has its own kinds of failure, and none of them matters here
        return known


def _named(sweep: str | Path) -> tuple[str | None, str | None]:
    """Id of the parent run and the address that a sweep wrote to."""
    path = Path(sweep).expanduser()
    if not path.exists() and re.fullmatch("[0-9a-f]{16}", str(sweep)):
        path = home() / "sweeps" / str(sweep)
    folder = path.parent if path.name == ARTIFACT_FOLDER else path
    if path.exists():
        try:
            facts = json.loads((folder / "sweep.json").read_text("utf-8"))
            return facts.get("sweep"), facts.get("tracking")
        except (OSError, ValueError, AttributeError):
            return None, None
    return (str(sweep) if ID.fullmatch(str(sweep)) else None), None


def _asked(known: Tracking, uri: str, links: bool) -> Tracking:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    assert known.sweep is not None
    parent = client.get_run(known.sweep)
    found = replace(known, experiment=str(parent.info.experiment_id), tags=dict(parent.data.tags))
    return replace(found, runs=dict(_runs(client, found))) if links else found


def _runs(client: Any, known: Tracking) -> Iterator[tuple[int, str]]:
    """Number and id of every child run."""
    children = f"tags.`mlflow.parentRunId` = '{known.sweep}'"
    token = None
    while True:
        page = client.search_runs([known.experiment], children, max_results=1000, page_token=token)
        for run in page:
            if (number := run.data.params.get("number", "")).isdecimal():
                yield int(number), str(run.info.run_id)
        token = page.token
        if not token:
            return
