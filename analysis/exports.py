"""A map as a file: parquet, JSON, CSV or NetCDF, all with one schema (`docs/map-format.md`).

Numbers are written so that they come back to the bit, hence a map that was read classifies as the
one that was written.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.csv import read_csv

from analysis.evidence import COLUMNS, EVIDENCE, MAP_FILE, REGIMES, SCHEMA_VERSION
from trainables.domain import AXIS_NAMES, InputError, Mistake, StabmapError

if TYPE_CHECKING:
    from xarray import Dataset

About = Mapping[str, Any]

#: What opens the first line of a CSV file, before `about` as JSON.
CSV_HEAD = "# stabmap "
#: The key of `about` in the metadata of parquet and NetCDF, and the group of the evidence there.
KEY, GROUP = "stabmap", "evidence"
TEXTS = ("regime", "reason", "trainings")
FLOATS = (*AXIS_NAMES, "margin_stable", "margin_bounded", *EVIDENCE)
#: Files of an export by format; those that `load_map` looks for in a folder, in this order.
FILES = {"parquet": MAP_FILE, "json": "map.json", "csv": "map.csv", "netcdf": "map.nc"}
#: Anybody may have written a file: whatever is wrong with it, it is no map.
BROKEN = (OSError, KeyError, ValueError, TypeError, AttributeError, RecursionError)


def described(about: About) -> str:
    """`about` with the version of the schema, as JSON."""
    return json.dumps({"schema_version": SCHEMA_VERSION, **about}, sort_keys=True)


# --------------------------------------------------------------------------- writing


def write_parquet(path: Path, about: About, frame: pd.DataFrame) -> None:
    """The evidence with `about` in the file's metadata: the same map, the same bytes."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({KEY: described(about)}), path)


def as_json(about: About, frame: pd.DataFrame) -> str:
    """`about` and the evidence as JSON; null where nothing was measured."""
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    content = {"schema_version": SCHEMA_VERSION, "about": dict(about), "points": records}
    return json.dumps(content, indent=1, sort_keys=True, allow_nan=False)


def as_csv(about: About, frame: pd.DataFrame) -> str:
    """A line that begins with # and holds `about`, the names of the columns, one line a point."""
    rows: str = frame.to_csv(index=False, lineterminator="\n")
    return f"{CSV_HEAD}{described(about)}\n{rows}"


def write_netcdf(path: Path, about: About, frame: pd.DataFrame, grid: Dataset) -> None:
    """The grid at the root, the evidence in a group of its own."""
    import xarray

    columns = {
        name: ("point", frame[name].to_numpy(object if name in TEXTS else None))
        for name in frame.columns
    }
    grid.assign_attrs({KEY: described(about)}).to_netcdf(path, mode="w", engine="h5netcdf")
    evidence = xarray.Dataset(columns)
    evidence.to_netcdf(path, mode="a", group=GROUP, engine="h5netcdf")


# --------------------------------------------------------------------------- reading


def read(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """`about` and the evidence from a file of any of the formats, told apart by its first bytes.

    Raises:
        InputError: the file is no map.
        StabmapError: it is one of another schema.
    """
    try:
        with path.open("rb") as file:
            head = file.read(len(CSV_HEAD))
        return _read(path, _format(head))
    except BROKEN as error:
        raise no_map(path, error) from error


def read_parquet(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """As `read`, for a file that is to be parquet."""
    try:
        return _read(path, _from_parquet)
    except BROKEN as error:
        raise no_map(path, error) from error


Reader = Callable[[Path], tuple[dict[str, Any], pd.DataFrame]]


def _format(head: bytes) -> Reader:
    if head.startswith(b"\x89HDF"):
        return _from_netcdf
    if head == CSV_HEAD.encode():
        return _from_csv
    return _from_json if head.startswith(b"{") else _from_parquet


def _read(path: Path, reader: Reader) -> tuple[dict[str, Any], pd.DataFrame]:
    about, frame = reader(path)
    version = about.pop("schema_version")
    if version != SCHEMA_VERSION:
        raise StabmapError(
            f"{path}: map schema {version}, but this stabmap reads {SCHEMA_VERSION}; "
            "use the stabmap version that wrote it"
        )
    frame = frame[COLUMNS]
    whole = [name for name in COLUMNS if name not in (*FLOATS, *TEXTS)]
    frame = frame.astype(dict.fromkeys(FLOATS, "float64") | dict.fromkeys(whole, "int64"))
    if not frame["regime"].isin(REGIMES).all():
        raise ValueError("regime")
    return about, frame


def _from_parquet(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    table = pq.read_table(path)
    about: dict[str, Any] = json.loads((table.schema.metadata or {})[KEY.encode()])
    return about, table.to_pandas()


def _from_json(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    content = json.loads(path.read_text("utf-8"))
    about = {**content["about"], "schema_version": content["schema_version"]}
    for record in content["points"]:
        record.keys()  # a list of lists would become a frame as well
    return about, pd.DataFrame(content["points"], columns=COLUMNS)


def _from_csv(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    head, _, rest = path.read_text("utf-8").partition("\n")
    about: dict[str, Any] = json.loads(head.removeprefix(CSV_HEAD))
    # Older releases of pandas miss the last bit of some numbers.
    return about, read_csv(io.BytesIO(rest.encode())).to_pandas()


def _from_netcdf(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    import h5py

    with h5py.File(path, "r") as file:
        about: dict[str, Any] = json.loads(file.attrs[KEY])
        group = file[GROUP]
        columns = {name: _column(group, name) for name in COLUMNS}
    return about, pd.DataFrame(columns)


def _column(group: Any, name: str) -> Any:
    import h5py

    # HDF5 may name other files of the reader's to take the numbers from.
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(name)
    found = group[name]
    if found.external or found.is_virtual:
        raise ValueError(name)
    return found.asstr()[()] if name in TEXTS else np.asarray(found[()])


def no_map(path: Path, error: Exception) -> InputError:
    """What to say of a file that is no map."""
    law = f"not a stability map ({type(error).__name__})"
    remedy = "give a folder or file that export wrote, or the id of a sweep"
    return InputError([Mistake("sweep", str(path), law, remedy)])
