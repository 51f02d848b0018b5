"""The presets at the papers' full size, and how they run on what comes along."""

from __future__ import annotations

from typing import Any

#: Presets that need data in a folder, and what else changes without it.
FULL_SIZE: dict[str, dict[str, Any]] = {
    "cifar-regression": {},
    "cifar-tanh": {},
    "mnist-convex-pairs": {},
    "mnist-regression-full": {"task.samples": 4000},
    "resnet-56-cifar-10": {},
    "resnet-56-equal-time": {},
    "vgg16-bn-fashion-mnist": {},
}


def without_data(name: str) -> dict[str, Any]:
    """Overrides with which a preset needs no folder."""
    return {"task.data_root": None, **FULL_SIZE[name]} if name in FULL_SIZE else {}
