"""Maps from where they were kept: an exported folder, a parquet file, or MLflow."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.evidence import MAP_FILE
from analysis.exports import FILES
from analysis.map import StabilityMap
from trainables.domain import InputError, Mistake, StabmapError, UnreachableError
from trainables.domain import redacted as redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: Folder that holds the map: of the parent run's artifacts, and in the folder of a sweep.
ARTIFACT_FOLDER = "map"
#: Ids go into addresses and folder names of MLflow's, titles between quotes in its filters.
IDS = "[0-9A-Za-z_-]{1,64}"
TITLES = r"[\w .,:;=+@()#&-]{1,200}"


def home() -> Path:
    """The user's folder: STABMAP_HOME, or ~/.stabmap."""
    return Path(os.path.expanduser(os.environ.get("STABMAP_HOME") or "~/.stabmap"))


def default_tracking_uri(folder: Path | None = None) -> str:
    """MLFLOW_TRACKING_URI, or a sqlite file in the user's folder."""
    named = os.environ.get("MLFLOW_TRACKING_URI")
    return named or f"sqlite:///{(folder or home()) / 'mlflow.db'}"


def load_map(sweep: str | Path, tracking_uri: str | None = None) -> StabilityMap:
    """The map of a sweep, also while it runs.

    Args:
        sweep: id of a sweep (its MLflow parent run); its title, where one sweep alone has it here,
            or else in MLflow; its hash, or the folder of its results: a sweep that runs renews its
            map there every ten seconds; or a folder or file that `export` wrote, in any format.
        tracking_uri: MLflow address; None takes MLFLOW_TRACKING_URI, else the sqlite file in the
            user's folder.

    Returns:
        The map as far as it is known.

    Raises:
        InputError: no such sweep, several of that title, no results yet, or the file is no map.
        UnreachableError: MLflow does not answer.
        StabmapError: the file is a map of another version.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from stabmap import example_map
        >>> with TemporaryDirectory() as folder:
        ...     _ = example_map().export(folder)
        ...     load_map(folder).counts() == example_map().counts()
        True
    """
    path = Path(os.path.expanduser(sweep))
    if not os.path.exists(path):
        path = _kept(str(sweep)) or path
    for place in _map_files(path) if os.path.isdir(path) else ():
        if place.exists():
            return StabilityMap.read(place)
    if os.path.isfile(path):
        return StabilityMap.read(path)
    if os.path.isdir(path) or os.sep in str(sweep):
        raise InputError([_no_sweep(str(sweep), f"there is no {MAP_FILE} there")])
    if not re.fullmatch(f"{IDS}|{TITLES}", str(sweep)):
        raise InputError([_no_sweep(str(sweep), "no sweep has such an id or title")])
    return _from_mlflow(str(sweep), tracking_uri or default_tracking_uri())


def _map_files(folder: Path) -> list[Path]:
    """Where a folder may have a map: exported to it, or that of the sweep that is kept there."""
    names = FILES.values()
    return [place / name for place in (folder, folder / ARTIFACT_FOLDER) for name in names]


def _kept(name: str) -> Path | None:
    """The folder of the sweep of this machine that has a hash or a title.

    Raises:
        InputError: several have the title.
    """
    root = home() / "sweeps"
    if re.fullmatch("[0-9a-f]{16}", name) and (root / name).is_dir():
        return root / name
    found = sorted(p.parent for p in root.glob("*/sweep.json") if name and _title(p) == name)
    if len(found) > 1:
        law = f"{len(found)} sweeps have this title"
        remedy = f"use a hash: {', '.join(folder.name for folder in found[:5])}"
        raise InputError([Mistake("sweep", name, law, remedy)])
    return found[0] if found else None


def _title(facts: Path) -> object:
    """The title in a sweep's facts; None where they cannot be read."""
    try:
        content = json.loads(facts.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("title") if isinstance(content, dict) else None


def _no_sweep(sweep: str, why: str) -> Mistake:
    return Mistake(
        "sweep",
        sweep,
        why,
        "give the id that `stabmap run` printed, or a folder that `stabmap export` wrote",
    )


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """MLflow's bars for a file of some kilobytes, unless the user asks for them."""
    name = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
    if name in os.environ:
        yield
        return
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]


def _run_of(client: MlflowClient, sweep: str) -> str:
    """The id of the parent run that has an id, or else a title.

    Raises:
        InputError: several have the title.
        MlflowException: there is none, or MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

    try:
        if re.fullmatch(IDS, sweep):
            client.get_run(sweep)
            return sweep
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    where = [experiment.experiment_id for experiment in client.search_experiments()]
    asked = f"tags.`stabmap.kind` = 'sweep' and tags.`mlflow.runName` = '{sweep}'"
    found = [run.info.run_id for run in client.search_runs(where, asked, max_results=5)]
    if len(found) > 1:
        remedy = f"use an id: {', '.join(found)}"
        raise InputError([Mistake("sweep", sweep, "several sweeps have this title", remedy)])
    if not found or not re.fullmatch(IDS, found[0]):
        raise MlflowException("no such sweep", RESOURCE_DOES_NOT_EXIST)
    return str(found[0])


def _from_mlflow(run_id: str, tracking_uri: str) -> StabilityMap:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    scheme, _, database = tracking_uri.partition(":///")
    if scheme == "sqlite" and not Path(database).exists():
        # MLflow would create the file; asking a question leaves nothing behind.
        raise InputError([_no_sweep(run_id, f"no sweep was kept in {redacted(tracking_uri)}")])
    # A server that is away must be noticed in seconds; the stock settings wait for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    shown = redacted(tracking_uri)
    try:
        client = MlflowClient(tracking_uri)
        run_id = _run_of(client, run_id)
        with tempfile.TemporaryDirectory() as folder, _without_progress_bars():
            local = client.download_artifacts(run_id, f"{ARTIFACT_FOLDER}/{MAP_FILE}", folder)
            if not Path(local).resolve().is_relative_to(Path(folder).resolve()):
                raise UnreachableError(f"MLflow at {shown} put {MAP_FILE} where it does not belong")
            return StabilityMap.read_parquet(Path(local))
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise InputError([_no_sweep(run_id, f"no such sweep in {shown}")]) from error
        raise UnreachableError(
            f"MLflow at {shown} does not answer; start it, or set MLFLOW_TRACKING_URI"
        ) from error
    except OSError as error:
        raise InputError([_no_sweep(run_id, "the sweep has no results yet")]) from error
    except StabmapError:
        raise
    except Exception as error:  # a scheme without a driver, a file that is no database, ...
        raise UnreachableError(
            f"MLflow at {shown} cannot be used ({type(error).__name__}); mend the address"
        ) from error
