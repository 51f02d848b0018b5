"""stabmap: where is training stable, where restrained, where divergent?

Everything a user needs comes from here; the parts are loaded when they are first used.

    spec = stabmap.load_spec("sweep.yaml", {"budget.points": 64})
    sweep = stabmap.run_sweep(spec)
    stabmap.load_map(sweep).classify(lr=0.1, weight_decay=5e-4)
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis import theory
    from analysis.compare import compare
    from analysis.example import example_map
    from analysis.load import load_map
    from analysis.map import StabilityMap
    from stabmap.client import Client
    from stabmap.guard import MapGuard, UnstableError
    from sweeps.runner import run_sweep
    from sweeps.search.boundary import BoundarySampler
    from sweeps.spec import SweepSpec, load_spec
    from trainables import __version__
    from trainables.domain import (
        Axis,
        InputError,
        Margins,
        Mistake,
        NotReproducibleError,
        Point,
        PointResult,
        Reason,
        Regime,
        StabmapError,
        Training,
        UnreachableError,
        Verdict,
    )
    from trainables.dynamics.dry_run import dry_run
    from trainables.dynamics.perturbed_k import PerturbedK
    from trainables.dynamics.stabilisers import get_stabiliser, stabiliser_names
    from trainables.evaluate import evaluate
    from trainables.tasks import Task, get_task, load_tasks, task_names
    from trainables.tasks.from_functions import task_from
    from trainables.tasks.from_hugging_face import hugging_face_task
    from trainables.tasks.from_lightning import lightning_task


def _check_neighbours() -> None:
    """Refuse to run with another published package called `sweeps` or `analysis`."""
    here = Path(__file__).resolve().parent.parent
    for name in ("trainables", "analysis", "sweeps"):
        spec = importlib.util.find_spec(name)
        places = list(spec.submodule_search_locations or ()) if spec else []
        found = Path(places[0]).resolve() if places else None
        # A plain folder of that name is found as well, as a package without code of its own.
        if found != here / name or spec is None or spec.origin is None:
            place = f"Python finds {found}" if found else "Python finds none"
            raise ImportError(
                f"stabmap needs its own package {name!r} in {here}, but {place}: uninstall the "
                f"other package (or rename the folder) called {name!r}, or install stabmap in an "
                "environment of its own"
            )


_check_neighbours()

_PLACES = {
    "__version__": "trainables",
    "Axis": "trainables.domain",
    "BoundarySampler": "sweeps.search.boundary",
    "Client": "stabmap.client",
    "InputError": "trainables.domain",
    "MapGuard": "stabmap.guard",
    "Margins": "trainables.domain",
    "Mistake": "trainables.domain",
    "NotReproducibleError": "trainables.domain",
    "PerturbedK": "trainables.dynamics.perturbed_k",
    "Point": "trainables.domain",
    "PointResult": "trainables.domain",
    "Reason": "trainables.domain",
    "Regime": "trainables.domain",
    "StabilityMap": "analysis.map",
    "StabmapError": "trainables.domain",
    "SweepSpec": "sweeps.spec",
    "Task": "trainables.tasks",
    "Training": "trainables.domain",
    "UnreachableError": "trainables.domain",
    "UnstableError": "stabmap.guard",
    "Verdict": "trainables.domain",
    "compare": "analysis.compare",
    "dry_run": "trainables.dynamics.dry_run",
    "evaluate": "trainables.evaluate",
    "example_map": "analysis.example",
    "get_stabiliser": "trainables.dynamics.stabilisers",
    "get_task": "trainables.tasks",
    "hugging_face_task": "trainables.tasks.from_hugging_face",
    "lightning_task": "trainables.tasks.from_lightning",
    "load_map": "analysis.load",
    "load_spec": "sweeps.spec",
    "load_tasks": "trainables.tasks",
    "run_sweep": "sweeps.runner",
    "stabiliser_names": "trainables.dynamics.stabilisers",
    "task_from": "trainables.tasks.from_functions",
    "task_names": "trainables.tasks",
    "theory": "analysis",
}

__all__ = [
    "Axis",
    "BoundarySampler",
    "Client",
    "InputError",
    "MapGuard",
    "Margins",
    "Mistake",
    "NotReproducibleError",
    "PerturbedK",
    "Point",
    "PointResult",
    "Reason",
    "Regime",
    "StabilityMap",
    "StabmapError",
    "SweepSpec",
    "Task",
    "Training",
    "UnreachableError",
    "UnstableError",
    "Verdict",
    "__version__",
    "compare",
    "dry_run",
    "evaluate",
    "example_map",
    "get_stabiliser",
    "get_task",
    "hugging_face_task",
    "lightning_task",
    "load_map",
    "load_spec",
    "load_tasks",
    "run_sweep",
    "stabiliser_names",
    "task_from",
    "task_names",
    "theory",
]


def __getattr__(name: str) -> Any:
    if name == "theory":
        return importlib.import_module("analysis.theory")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'stabmap' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
