"""What every test starts from: one thread, and property tests that repeat themselves."""

from __future__ import annotations

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
