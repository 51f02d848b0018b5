"""The shape of a boundary: how long, how rough, and of what box-counting dimension."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Array = NDArray[np.float64]
Indices = NDArray[np.int_]

#: Sizes of boxes, each this many times the next smaller one, and positions along each axis over
#: which the number of boxes is averaged: it depends on how they happen to lie.
FACTOR = 2**0.5
SHIFTS = 6
#: Parts of the extent of a curve that the largest boxes are, and the least factor between the
#: largest and the smallest of them from which a dimension is read.
COARSE = 4
SPAN = 4.0
#: Places along a curve within the side of the smallest boxes.
DENSE = 8


@dataclass(frozen=True)
class Mesh:
    """A boundary of a map with three free axes, as triangles.

    Args:
        vertices: (n, 3) lr, alpha, weight_decay in the axes' units.
        faces: (m, 3) indices of vertices, without a front and a back.
        area: in unit coordinates, in which the box is the unit cube.
    """

    vertices: Array
    faces: Indices
    area: float


@dataclass(frozen=True)
class Dimension:
    """Box-counting dimension of a curve in the plane.

    Args:
        value: slope of ln(number of boxes) over -ln(their side).
        interval: least and largest slope over half of the sizes or more that follow each other: it
            is narrow where one dimension holds for all sizes.
        resolutions: the smallest and the largest side, in unit coordinates. Nothing is said of the
            boundary outside of them.
    """

    value: float
    interval: tuple[float, float]
    resolutions: tuple[float, float]


@dataclass(frozen=True)
class Geometry:
    """The shape of a boundary in unit coordinates, in which the box is the unit square.

    Args:
        length: of all its pieces together.
        pieces: how many there are.
        roughness: root mean square distance of each piece from the straight line that fits it best,
            over all pieces; 0 for straight ones.
        dimension: box-counting dimension; None where the boundary is known at too few sizes.
    """

    length: float
    pieces: int
    roughness: float
    dimension: Dimension | None


def geometry(vertices: Array, segments: Indices, resolution: float) -> Geometry:
    """The shape of a curve.

    Args:
        vertices: (n, 2) places.
        segments: (m, 2) indices of the vertices that are joined.
        resolution: below which the curve is not known.
    """
    ends = vertices[segments]
    lengths = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
    count, piece = _pieces(len(vertices), segments)
    residues = [_residue(ends[piece == i], lengths[piece == i]) for i in range(count)]
    total = float(lengths.sum())
    roughness = float(np.sqrt(sum(residues) / total)) if total > 0 else 0.0
    return Geometry(total, count, roughness, dimension(vertices, segments, resolution))


def area(vertices: Array, faces: Indices) -> float:
    """Area of triangles; vertices (n, 3), faces (m, 3)."""
    one, two, three = vertices[faces].transpose(1, 0, 2)
    return float(np.linalg.norm(np.cross(two - one, three - one), axis=1).sum() / 2)


def _pieces(vertices: int, segments: Indices) -> tuple[int, Indices]:
    """How many connected pieces, and which one each segment belongs to."""
    if not len(segments):
        return 0, np.empty(0, dtype=np.int_)
    links = coo_array((np.ones(len(segments)), tuple(segments.T)), shape=(vertices, vertices))
    labels = connected_components(links, directed=False)[1][segments[:, 0]]
    found, piece = np.unique(labels, return_inverse=True)
    return len(found), piece


def _residue(ends: Array, lengths: Array) -> float:
    """Integral over a piece of the squared distance from its straight line."""
    if not lengths.sum():
        return 0.0
    middles, half = ends.mean(1), (ends[:, 1] - ends[:, 0]) / 2
    centred = middles - np.average(middles, axis=0, weights=lengths)
    # The second moment of a segment: that of its middle and that about its middle.
    moments = np.einsum("n,ni,nj->ij", lengths, centred, centred)
    moments += np.einsum("n,ni,nj->ij", lengths / 3, half, half)
    return float(max(np.linalg.eigvalsh(moments)[0], 0.0))


def dimension(vertices: Array, segments: Indices, resolution: float) -> Dimension | None:
    """Box-counting dimension of a curve between a resolution and a quarter of its extent.

    Args:
        vertices: (n, 2) places.
        segments: (m, 2) indices of the vertices that are joined.
        resolution: side of the smallest boxes, > 0.

    Returns:
        None where less than a factor SPAN lies between the smallest and the largest boxes.
    """
    if not len(segments):
        return None
    coarse = float(np.ptp(vertices[segments.ravel()], axis=0).max()) / COARSE
    if coarse < SPAN * resolution * (1 - 1e-9):
        return None
    steps = int(np.log(coarse / resolution) / np.log(FACTOR) + 1e-9)
    sizes = coarse / FACTOR ** np.arange(steps + 1)
    points = _along(vertices[segments], float(sizes[-1]) / DENSE)
    # A straight line of length L needs L / size boxes and one more: half a box at each end.
    ends = float((np.unique(segments, return_counts=True)[1] == 1).sum())
    counts = np.log([max(_boxes(points, float(size)) - ends / 2, 1.0) for size in sizes])
    scales = -np.log(sizes)
    half = max(2, len(sizes) // 2)
    slopes = [
        _slope(scales[i:j], counts[i:j])
        for i in range(len(sizes))
        for j in range(i + half + 1, len(sizes) + 1)
    ]
    within = (float(min(slopes)), float(max(slopes)))
    return Dimension(_slope(scales, counts), within, (float(sizes[-1]), coarse))


def _slope(scales: Array, counts: Array) -> float:
    return float(np.polyfit(scales, counts, 1)[0])


def _along(ends: Array, spacing: float) -> Array:
    """Places along segments, nowhere further apart than a spacing."""
    lengths = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
    steps = np.maximum(np.ceil(lengths / spacing).astype(np.int_), 1)
    owner = np.repeat(np.arange(len(ends)), steps)
    order = np.arange(len(owner)) - np.repeat(np.cumsum(steps) - steps, steps)
    share = ((order + 0.5) / steps[owner])[:, None]
    found: Array = ends[owner, 0] * (1 - share) + ends[owner, 1] * share
    return found


def _boxes(points: Array, size: float) -> float:
    """How many boxes of a side hold a point, on average over positions of the boxes."""
    shifts = [(i / SHIFTS, j / SHIFTS) for i in range(SHIFTS) for j in range(SHIFTS)]
    scaled = (points - points.min(0)) / size
    return float(np.mean([_filled(np.floor(scaled + shift).astype(np.int64)) for shift in shifts]))


def _filled(boxes: Indices) -> int:
    return len(np.unique(boxes[:, 0] * (boxes[:, 1].max() + 1) + boxes[:, 1]))
