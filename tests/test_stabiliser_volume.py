"""The arithmetic of the study of stabilisers, against closed forms and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from analysis.compare import Gain, compare
from analysis.quality import box_points
from stabmap import example_map
from studies.stabiliser_volume import CONFIDENCE, added, effect


def exact(places: Any) -> Any:
    """Whether the law of the made-up map is stable at (lr, alpha, weight decay)."""
    lr, alpha, decay = places.T
    return np.log10(lr) < -1.3 + 0.4 * alpha - 0.4 * np.log10(np.maximum(decay, 1e-5))


def test_added_is_the_mean_over_strengths() -> None:
    found = example_map("lr", "alpha", "weight_decay")
    places = box_points(found.axes, 4096, seed=5)
    plain = places * [1, 0, 1]
    truth = exact(places).mean() - exact(plain).mean()
    gain = added(found)
    assert gain.confidence == CONFIDENCE
    assert gain.low < truth < gain.high
    assert gain.difference == pytest.approx(truth, abs=0.04)
    assert gain.difference == pytest.approx(gain.second - gain.first)
    assert gain.low > 0 and effect(gain) == 1
    # Between the gains of single strengths, and nearer to that of the middle than to none.
    single = [compare(found.slice(alpha=0), found.slice(alpha=a)).gains[0] for a in (1, 2)]
    assert 0 < gain.difference < single[1].difference
    assert gain.difference == pytest.approx(single[0].difference, abs=0.03)


def test_effects_are_intervals_without_0() -> None:
    gains = [Gain("stable", 0.5, 0.5, 0, low, high, 0.99, 0.5)
             for low, high in ((0.1, 0.2), (-0.1, 0.2), (-0.2, -0.1), (0.0, 0.1))]  # fmt: skip
    assert [effect(gain) for gain in gains] == [1, 0, -1, 0]
