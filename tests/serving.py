"""A service in a thread of the test's process, on a port of its own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from analysis.map import StabilityMap
from analysis.serve import create_app

HOSTS = ["127.0.0.1", "localhost"]


@contextmanager
def serving(folder: Path, token: str | None) -> Iterator[str]:
    """The address of a service on a folder."""
    config = uvicorn.Config(
        create_app(folder, token, HOSTS),
        host="127.0.0.1",
        port=0,
        log_level="error",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def keep(folder: Path, name: str, found: StabilityMap | None, **facts: Any) -> Path:
    """A sweep with some facts and a map, as a runner leaves it."""
    place = folder / "sweeps" / name
    place.mkdir(parents=True)
    (place / "sweep.json").write_text(json.dumps(facts))
    if found is not None:
        found.export(place / "map", ["parquet", "json"])
    return place
