"""How right is a map, and does it know? Measured where the truth is exact: the one-layer CNN.

Run: .venv/bin/python benchmarks/map_calibration.py

Prints, for maps of 32, 64 and 128 Sobol points, the misclassified share of the (log lr, log weight
decay) plane beside the share that the map itself expects, and both for nearest-neighbour labels,
the named alternative, which knows nothing of its error. About five minutes on one core.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import KDTree

from analysis.map import REGIMES, StabilityMap
from analysis.theory import OneLayerCNN
from stabmap import evaluate, get_task, load_spec
from sweeps.search.designs import SobolDesign

SPEC = {
    "task": {"name": "one-layer-cnn", "image": 64},
    "axes": {
        "lr": {"scale": "log", "low": 0.003, "high": 0.5},
        "weight_decay": {"scale": "log", "low": 4, "high": 256},
    },
    "steps": 400,
    "dtype": "float64",
    "budget": {"points": 128},
}
SIDE = 100


def main() -> None:
    """Print the table."""
    spec = load_spec(SPEC)
    lr, decay = (spec.space[i].from_unit((np.arange(SIDE) + 0.5) / SIDE) for i in (0, 2))
    exact = [OneLayerCNN(float(w)) for w in decay]
    stable = np.array([theory.largest_stable_lr for theory in exact])[:, None]
    bounded = np.array([theory.largest_bounded_lr for theory in exact])[:, None]
    truth = np.where(lr[None, :] > bounded, 2, np.where(lr[None, :] > stable, 1, 0))

    design = SobolDesign(spec.space, seed=1)
    points = [design[i] for i in range(128)]
    results = evaluate(points, get_task("one-layer-cnn", image=64), steps=400, dtype="float64")
    print("points  map wrong  map expects  surely wrong  nearest neighbour wrong  ratio nn/map")
    for count in (32, 64, 128):
        found = StabilityMap.of(spec.about(), list(enumerate(results))[:count])
        answer = found.classify(lr=lr[None, :], weight_decay=decay[:, None])
        stack = np.stack([answer[name] for name in REGIMES])
        wrong, sure = stack.argmax(0) != truth, stack.max(0) > 0.95
        places = np.array([[p.lr, p.weight_decay] for p in points[:count]])
        tree = KDTree(np.log(places) / np.log([0.5 / 0.003, 256 / 4]))
        grid = np.stack(np.broadcast_arrays(lr[None, :], decay[:, None]), -1)
        _, nearest = tree.query(np.log(grid) / np.log([0.5 / 0.003, 256 / 4]))
        labels = np.array([REGIMES.index(r.verdict.regime.value) for r in results[:count]])
        neighbour = (labels[nearest] != truth).mean()
        print(
            f"{count:6d}  {wrong.mean():9.3f}  {(1 - stack.max(0)).mean():11.3f}"
            f"  {wrong[sure].mean():12.4f}  {neighbour:23.3f}  {neighbour / wrong.mean():12.2f}"
        )


if __name__ == "__main__":
    main()
