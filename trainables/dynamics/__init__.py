"""Update rules and what is measured along them, one idea a file.

Measures of curvature can be had from here, loaded when they are first used: `sharpness` (largest
Hessian eigenvalue), `hessian_trace`, `directional_sharpness` (curvature along a direction), and
`Estimate`, what each of them returns.

    from trainables.dynamics import sharpness

    top = sharpness(module, torch.nn.functional.cross_entropy, inputs, targets)
    print(top.value, top.error, top.gradients)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainables.dynamics.curvature import (
        Estimate,
        directional_sharpness,
        hessian_trace,
        sharpness,
    )

__all__ = ["Estimate", "directional_sharpness", "hessian_trace", "sharpness"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("trainables.dynamics.curvature"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
