"""What every test starts from: one thread, and property tests that repeat themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile(
    "stabmap", deadline=None, derandomize=True, database=None, max_examples=60
)
settings.load_profile("stabmap")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray for all tests of the session that run in this process."""
    scratch = Path("/tmp") / f"stabmap-test-{os.getpid()}"  # socket paths must stay short
    import ray  # not every test pays for it

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=str(scratch),
    )
    yield
    ray.shutdown()
