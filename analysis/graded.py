"""What the sizes of margins tell beyond their signs.

Near its boundary a margin may fall to 0 little by little, so that its size says how far away the
boundary is. Elsewhere it jumps, or saturates. So only the smallest sizes on a side are taken for
what they are; of the others it is known that they are larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.expectation_propagation import Sizes

Array = NDArray[np.float64]

#: Share of a side's sizes, the smallest, that are taken for what they are; sizes that a side must
#: have to count; and those of them that must be smaller than all others.
NEAREST = 0.5
FEWEST = 3
FEWEST_NEAR = 2
#: Sizes that count: smaller ones are rounding errors of anything, larger ones say nothing.
LEAST, LARGEST = 1e-200, 1e200
#: Units of the noise beyond which an observation is only known to lie. No fit takes one so far; the
#: first points' scale may, where later sizes are of another order.
FARTHEST = 2e3


@dataclass(frozen=True)
class Graded:
    """The sizes of margins on those sides of a boundary where enough of them are known.

    Near the boundary a margin's size says how far away it is. Far from it margins saturate, so a
    size above `limits` only says: at least so far.

    Args:
        size: of each margin, or the limit that it exceeds, (n,); 0 on sides that do not count.
        exact: whether it is the size itself, (n,).
        side: which of `limits` belongs to it, (n,).
        limits: of the sides that count.
        signs: of these sides.
    """

    size: Array
    exact: NDArray[np.bool_]
    side: NDArray[np.int_]
    limits: tuple[float, ...]
    signs: tuple[float, ...]

    @classmethod
    def of(cls, labels: Array, sizes: Array) -> Graded | None:
        """The sizes that count; None if none do.

        Args:
            labels: +1 or -1, (n,).
            sizes: of the margins, (n,), not negative; not finite where they are unknown.
        """
        size, exact = np.zeros(len(labels)), np.zeros(len(labels), dtype=bool)
        side = np.zeros(len(labels), dtype=int)
        limits: list[float] = []
        signs: list[float] = []
        for sign in (1.0, -1.0):
            here = labels == sign
            known = here & (sizes < LARGEST)
            if known.sum() < FEWEST:
                continue
            limit = float(np.quantile(sizes[known], NEAREST))
            near = known & (sizes < limit)
            if near.sum() < FEWEST_NEAR or limit < LEAST:
                continue
            size[here], side[here] = limit, len(limits)
            size[near], exact[near] = sizes[near], True
            limits.append(limit)
            signs.append(sign)
        return cls(size, exact, side, tuple(limits), tuple(signs)) if limits else None

    def sizes(self, scales: Sequence[float]) -> Sizes:
        """In units of the noise."""
        scale = np.asarray(scales)[self.side]
        most = FARTHEST / scale
        return Sizes(np.minimum(self.size, most) * scale, self.exact & (self.size < most))

    def of_rows(self, rows: NDArray[np.int_]) -> Graded:
        """Those of some points."""
        return replace(self, size=self.size[rows], exact=self.exact[rows], side=self.side[rows])
