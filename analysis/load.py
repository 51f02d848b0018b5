"""Maps from where they were kept: an exported folder, a parquet file, or MLflow."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from analysis.map import MAP_FILE, StabilityMap
from trainables.domain import InputError, Mistake, StabmapError, UnreachableError
from trainables.domain import redacted as redacted

#: Folder that holds the map: of the parent run's artifacts, and in the folder of a sweep.
ARTIFACT_FOLDER = "map"


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
        sweep: id of a sweep (its MLflow parent run); its hash, or the folder of its results, for
            the map as its last run left it; or a folder or parquet file that `export` wrote.
        tracking_uri: MLflow address; None takes MLFLOW_TRACKING_URI, else the sqlite file in the
            user's folder.

    Returns:
        The map as far as it is known.

    Raises:
        InputError: no such sweep, no results yet, or the file is no map.
        UnreachableError: MLflow does not answer.
        StabmapError: the file is a map of another version.
    """
    path = Path(os.path.expanduser(sweep))
    if not os.path.exists(path) and re.fullmatch("[0-9a-f]{16}", str(sweep)):
        kept = home() / "sweeps" / str(sweep)
        path = kept if kept.is_dir() else path
    for place in (path / MAP_FILE, path / ARTIFACT_FOLDER / MAP_FILE):
        if os.path.isdir(path) and place.exists():
            return StabilityMap.read_parquet(place)
    if os.path.isfile(path):
        return StabilityMap.read_parquet(path)
    if os.path.isdir(path) or os.sep in str(sweep):
        raise InputError([_no_sweep(str(sweep), f"there is no {MAP_FILE} there")])
    if not re.fullmatch("[0-9A-Za-z_-]{1,64}", str(sweep)):
        # It goes into addresses and folder names of MLflow's.
        raise InputError([_no_sweep(str(sweep), "ids have letters, digits, _ and - only")])
    return _from_mlflow(str(sweep), tracking_uri or default_tracking_uri())


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
        client.get_run(run_id)
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
