"""What the machine of a process is busy with: processor, memory, GPU."""

from __future__ import annotations

import os
import time
from typing import Any

#: Seconds until the first sample, and between two.
FIRST_SECONDS = 2.0
SAMPLE_SECONDS = 10.0

Usage = list[tuple[str, float]]


class Meter:
    """Samples this machine every few seconds, if psutil is installed.

    Processor load is the mean since the last sample. All processes of the machine count: a sample
    says how busy it is, not with what.

    Args:
        process: whether to tell apart what this process uses.
    """

    def __init__(self, process: bool = False) -> None:
        self._psutil: Any = None
        self._process: Any = None
        self._next = time.monotonic() + FIRST_SECONDS
        try:
            import psutil
        except ImportError:
            return
        self._psutil = psutil
        psutil.cpu_percent()  # the first answer has no time to be a mean of
        if process:
            self._process = psutil.Process()
            self._process.cpu_percent()

    def sample(self, device: str = "cpu") -> Usage:
        """Names, most of them MLflow's own, and values; nothing where it is too early.

        Args:
            device: what this process trains on.
        """
        now = time.monotonic()
        if self._psutil is None or now < self._next:
            return []
        self._next = now + SAMPLE_SECONDS
        try:
            return [*self._machine(), *self._own(), *_gpu(device)]
        except Exception:  # no sample is worth a training
            return []

    def _machine(self) -> Usage:
        memory = self._psutil.virtual_memory()
        return [
            ("cpu_utilization_percentage", float(self._psutil.cpu_percent())),
            ("system_memory_usage_megabytes", memory.used / 1e6),
            ("system_memory_usage_percentage", 100 * memory.used / memory.total),
        ]

    def _own(self) -> Usage:
        if self._process is None:
            return []
        return [
            ("process_cpu_percentage", float(self._process.cpu_percent())),
            ("process_memory_megabytes", self._process.memory_info().rss / 1e6),
        ]


def _gpu(device: str) -> Usage:
    """Memory in use on the GPU of this process, under the number that the machine gives it."""
    if not device.startswith("cuda"):
        return []
    import torch

    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return []
    index = torch.device(device).index or 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    name = visible[index] if index < len(visible) and visible[index].isdecimal() else index
    free, total = torch.cuda.mem_get_info(index)
    return [
        (f"gpu_{name}_memory_usage_megabytes", (total - free) / 1e6),
        (f"gpu_{name}_memory_usage_percentage", 100 * (1 - free / total)),
    ]
