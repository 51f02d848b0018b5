"""One map of the points of two sweeps."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from analysis.settings import differences, settings
from trainables.domain import AXIS_NAMES, InputError, Mistake

if TYPE_CHECKING:
    from analysis.map import StabilityMap

#: What may differ between maps that are merged: none of it changes what a training does.
APART = ("search", "training.seed", "merged")


def merged(first: StabilityMap, second: StabilityMap) -> StabilityMap:
    """See `StabilityMap.merge`."""
    mistakes = [
        Mistake(
            found.field,
            [found.first, found.second],
            "maps that are merged agree in it",
            "compare them, or sweep both alike",
        )
        for found in differences(settings(first), settings(second), APART)
    ]
    mistakes += [
        Mistake("slice", dict(found.about["slice"]), "a slice has no points of its own to merge",
                "merge the whole maps, then slice")
        for found in (first, second)
        if found._evidence is not found
    ]  # fmt: skip
    if mistakes:
        raise InputError(mistakes)
    later = second.frame.copy()
    later["number"] += int(first.frame["number"].max()) + 1 if len(first.frame) else 0
    both = pd.concat([first.frame, later], ignore_index=True)
    if _seed(first) == _seed(second):
        both = _once(both)
    both["audit"] = np.zeros(len(both), dtype=np.int64)
    sources = [*_sources(first), *_sources(second)]
    return replace(first, frame=both, about={**first.about, "merged": sources})


def _seed(found: StabilityMap) -> object:
    return found.about.get("training", {}).get("seed")


def _sources(found: StabilityMap) -> list[object]:
    """What was merged into a map: how each sweep searched, and its seed."""
    own = {"search": found.about.get("search"), "seed": _seed(found), "points": len(found.frame)}
    return list(found.about.get("merged", [own]))


def _once(frame: pd.DataFrame) -> pd.DataFrame:
    """Each point once: equal trainings say nothing new."""
    most = frame.sort_values("replicates", ascending=False, kind="stable")
    return most.drop_duplicates(list(AXIS_NAMES)).sort_index().reset_index(drop=True)
