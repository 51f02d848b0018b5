"""What a training runs on: with the code and the versions, all that its rounding depends on."""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch


@lru_cache
def hardware(device: str = "cpu") -> str:
    """Name of the processor or GPU behind a device of torch.

    Of a processor also the vector instructions that torch uses: two with the same name may differ
    in them where one is a virtual machine, and sums of another width round otherwise.

    Raises:
        RuntimeError: there is no such GPU here.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}"


def _processor() -> str:
    """As Linux calls it; elsewhere what Python knows."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return " ".join(value.split())
    return platform.processor() or platform.machine()
