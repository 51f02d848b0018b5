"""How unsure a map is of a regime."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

Array = NDArray[np.float64]

#: Ways to say it, with the largest value that three regimes allow.
KINDS = {"bits": float(np.log2(3)), "wrong": 2 / 3}


def entropy(probabilities: Array) -> Array:
    """Entropy in bits of (n, 3) probabilities, (n,): 0 where sure, 1.58 where nothing is known."""
    found: Array = entr(np.maximum(probabilities, 0)).sum(-1) / np.log(2)
    return found


def wrong(probabilities: Array) -> Array:
    """Probability that the most likely regime is not the one, (n,), of (n, 3) probabilities."""
    found: Array = 1 - probabilities.max(-1)
    return found
