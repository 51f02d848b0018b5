"""The presets at the papers' full size, and how they run on what comes along."""

from __future__ import annotations

from typing import Any

#: Presets that need data in a folder, and what else changes without it.
FULL_SIZE: dict[str, dict[str, Any]] = {
    "biggan-cifar-100": {"task.generated": 1000},
    "cifar-regression": {},
    "cifar-tanh": {},
    "crowd-mcnn": {"task.samples": 64, "task.held_out": 16, "task.size": 64},
    "mnist-convex-pairs": {},
    "mnist-regression-full": {"task.samples": 4000},
    "resnet-56-cifar-10": {},
    "resnet-56-equal-time": {},
    "sngan-cifar-10": {"task.generated": 1000},
    "vgg16-bn-fashion-mnist": {},
}


def without_data(name: str) -> dict[str, Any]:
    """Overrides with which a preset needs no folder."""
    return {"task.data_root": None, **FULL_SIZE[name]} if name in FULL_SIZE else {}
