"""How much of the box a regime fills, with an interval, by draws of both boundaries.

A draw is a pair of latent functions from the model's joint posterior at points that cover the box
evenly: it shows one course that both boundaries may take. The share of the points that lie in the
regime is one draw of its volume. Errors next to each other are drawn together, which adding up
single probabilities would miss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.evidence import REGIMES
from analysis.quality import drawn_regimes
from analysis.surface import Surface

Array = NDArray[np.float64]

#: Points that stand for the box, and draws.
POINTS = 512
DRAWS = 2000
#: What can be asked for: a regime, or both that do not diverge.
PARTS = {name: (i,) for i, name in enumerate(REGIMES)} | {"bounded": (0, 1)}


@dataclass(frozen=True)
class Volume:
    """Share of the box that belongs to a regime.

    Args:
        regime: stable, restrained, divergent, or bounded for either of the first two.
        share: mean over the draws, in [0, 1].
        low: lower end of the interval, with half of 1 - confidence of the draws below it.
        high: upper end of the interval.
        confidence: share of the draws in the interval.
    """

    regime: str
    share: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f"{self.regime}: {self.share:.1%} of the box ({self.low:.1%} to {self.high:.1%})"


def volume(surface: Surface, x: Array, regime: str, confidence: float, seed: int = 0) -> Volume:
    """The volume of a part of `PARTS`, at (n, d) unit coordinates that stand for the box."""
    shares = part_shares(drawn_regimes(surface, x, seed, DRAWS), regime)
    low, high = ends(shares, confidence)
    return Volume(regime, float(shares.mean()), low, high, confidence)


def part_shares(drawn: NDArray[np.int_], part: str) -> Array:
    """The share of the box in a part, for each of (draws, points) indices of regimes."""
    shares: Array = np.isin(drawn, PARTS[part]).mean(1)
    return shares


def ends(draws: Array, confidence: float) -> tuple[float, float]:
    """The ends of the central interval."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
