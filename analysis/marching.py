"""Level sets of values on a grid: segments in two dimensions, triangles in three.

Each cell of the grid is cut into simplices around its diagonal (Freudenthal 1942): 2 triangles or 6
tetrahedra, which fit together over the faces of the cells. In a simplex values are linear, so that
the level set there is a segment, a triangle or a quadrangle, and no case is ambiguous.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int_]

#: The edges of a simplex that a piece of the level set has its corners on: a corner each.
Piece = tuple[tuple[int, int], ...]


def level_simplices(values: Array) -> tuple[Array, Indices]:
    """Where values on a grid pass 0.

    Args:
        values: finite, on a grid of two or three dimensions with at least 2 places along each.

    Returns:
        Vertices (n, d) in units of the grid's cells, and pieces (m, d) as indices of vertices:
        segments for d = 2, triangles for d = 3. Neighbouring pieces share vertices. They have no
        inner and no outer side.
    """
    d, flat = values.ndim, values.ravel()
    places = np.arange(values.size).reshape(values.shape)
    corner = places[(slice(-1),) * d].ravel()
    strides = [int(np.prod(values.shape[axis + 1 :])) for axis in range(d)]
    edges = [np.empty((0, d, 2), dtype=np.int_)]
    for order in permutations(strides):
        simplices = corner[:, None] + np.cumsum([0, *order])
        cases = (flat[simplices] >= 0) @ (1 << np.arange(d + 1))
        for case in range(1, 2 ** (d + 1) - 1):
            here = simplices[cases == case]
            edges += [here[:, np.array(piece)] for piece in _pieces(d, case)]
    ends = np.sort(np.concatenate(edges), axis=-1)
    keys, pieces = np.unique(ends[..., 0] * values.size + ends[..., 1], return_inverse=True)
    first, second = keys // values.size, keys % values.size
    share = flat[first] / (flat[first] - flat[second])
    start, end = (np.stack(np.unravel_index(i, values.shape), -1) for i in (first, second))
    return start + share[:, None] * (end - start), pieces.reshape(-1, d)


@lru_cache
def _pieces(d: int, case: int) -> tuple[Piece, ...]:
    """The pieces in a simplex whose corners are positive where `case` has a bit."""
    inside = [i for i in range(d + 1) if case >> i & 1]
    outside = [i for i in range(d + 1) if not case >> i & 1]
    if len(inside) == 2 and len(outside) == 2:
        (a, b), (c, e) = inside, outside
        return ((a, c), (a, e), (b, e)), ((a, c), (b, e), (b, c))
    return (tuple((i, o) for i in inside for o in outside),)
