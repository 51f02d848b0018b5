"""The model at very many places: a table of it, made finer where it bends.

A model of 1,256 points takes a tenth of a millisecond a place. For a million places it is looked
up instead, by linear interpolation between the nodes of a lattice. Its cells are halved again where
trying the model between their nodes shows that a probability is off by more than TOLERANCE.
Where the finest lattice is still off by more, the model itself is asked. What is promised rests on
the places that were tried, among them all points of the model, where it has its kinks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.special import ndtr

from analysis.surface import INDICATOR, regime_probabilities

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
S = TypeVar("S", bound=np.generic)
#: From (m, d) unit coordinates to the (m, 2) normal quantiles of the labels' probabilities.
Model = Callable[[Array], Array]

#: By how much the probability of a regime may be off.
TOLERANCE = 5e-3
#: Cells along an edge of the first lattice: below the length of the model's rough part.
COARSE = 32
#: Cells along an edge of the last one, by dimensions.
FINEST = {1: 8192, 2: 2048, 3: 128}
#: Places at which the model is asked for a table; a halving that needs more is left out.
BUDGET = 100_000


class Table:
    """A model over the unit cube, to be looked up.

    Args:
        model: what to look up.
        d: dimensions, 1 to 3.
        kinks: (n, d) places at which the model is not smooth, to be tried too: those of its points.
    """

    def __init__(self, model: Model, d: int, kinks: Array | None = None) -> None:
        self._model, self._d = model, d
        self._kinks = np.zeros((0, d)) if kinks is None else kinks
        self._at_kinks = model(self._kinks) if len(self._kinks) else np.zeros((0, 2))
        axes = [np.linspace(0, 1, COARSE + 1)] * d
        nodes = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        self._nodes = model(nodes.reshape(-1, d)).reshape(*nodes.shape[:-1], 2).astype("f4")
        #: How often the model was asked to make the table.
        self.asked = nodes.size // d + len(self._kinks)
        #: By cell, whether the model itself has to be asked.
        self.unsure: Mask = np.ones((COARSE,) * d, dtype=bool)
        while self.unsure.any() and self._halve():
            pass

    @property
    def _cells(self) -> int:
        return len(self.unsure)

    def _halve(self) -> bool:
        """Try the unsure cells between their nodes, and halve all; False where that is too much."""
        tried = _corners(_doubled(self.unsure))
        tried[(slice(None, None, 2),) * self._d] = False  # the nodes that were there before
        count = int(tried.sum())
        if 2 * self._cells > FINEST[self._d] or self.asked + count > BUDGET:
            return False
        nodes = _between(self._nodes, self._d)
        found = self._model(np.argwhere(tried) / (2 * self._cells))
        change = np.zeros(tried.shape, dtype="f4")
        change[tried] = np.abs(_regimes(found) - _regimes(nodes[tried])).max(-1)
        nodes[tried] = found
        change = _doubled(_largest(change, self._d))
        # A halving leaves a quarter of an error where the model is smooth, half of it at a kink.
        last = 4 * self._cells > FINEST[self._d]
        self.unsure = change > (2 * TOLERANCE if last else TOLERANCE)
        self._nodes, self.asked = nodes, self.asked + count
        missed, cells = self._looked_up(self._kinks)
        off = np.abs(_regimes(missed) - _regimes(self._at_kinks)).max(-1) > TOLERANCE
        self.unsure[tuple(cells[:, off])] = True
        return True

    def _looked_up(self, x: Array) -> tuple[Array, NDArray[np.intp]]:
        """What the lattice says at (m, d) places, and the (d, m) cells that these are in."""
        place = np.clip(x.T, 0, 1) * self._cells
        found = np.stack(
            [map_coordinates(self._nodes[..., k], place, order=1, mode="nearest") for k in (0, 1)],
            axis=-1,
        )
        return found, np.minimum(place.astype(np.intp), self._cells - 1)

    def __call__(self, x: Array) -> Array:
        """(m, 2) normal quantiles of the labels' probabilities at (m, d) unit coordinates."""
        found, cells = self._looked_up(x)
        if (unsure := self.unsure[tuple(cells)]).any():
            found[unsure] = self._model(x[unsure])
        return found


def _regimes(quantiles: Array) -> Array:
    return regime_probabilities(*ndtr(quantiles).T)


class Tables:
    """Tables of a model whose axes may have an extra level at 0, each made when it is asked for.

    Args:
        model: takes the columns of `analysis.surface.columns`.
        d: how many columns are coordinates along the axes' ranges.
        zeros: of each column that indicates an extra level, which coordinate is its axis's.
        kinks: (n, columns) rows at which the model is not smooth.
    """

    def __init__(
        self, model: Model, d: int, zeros: Sequence[int] = (), kinks: Array | None = None
    ) -> None:
        self._model, self._d, self._zeros = model, d, tuple(zeros)
        self._kinks = np.zeros((0, d + len(self._zeros))) if kinks is None else kinks
        self.made: dict[tuple[bool, ...], Table | Array] = {}

    def probabilities(self, x: Array) -> Array:
        """(m, 3) probabilities of the regimes at (m, columns) rows."""
        return _regimes(self(x))

    def __call__(self, x: Array) -> Array:
        """As `Table`, at (m, columns) rows."""
        found = np.empty((len(x), 2))
        for kind in product((False, True), repeat=len(self._zeros)):
            rows = self._of(kind, x)
            if not rows.any():
                continue
            if kind not in self.made:
                self.made[kind] = self._make(kind)
            table = self.made[kind]
            here = x[rows][:, self._kept(kind)]
            found[rows] = table(here) if isinstance(table, Table) else table
        return found

    def _of(self, kind: tuple[bool, ...], x: Array) -> Mask:
        """Which rows are at the extra levels of just these axes."""
        at_zero = x[:, self._d :] > 0.5 + INDICATOR / 2
        rows: Mask = (at_zero == np.array(kind, dtype=bool)).all(1)
        return rows

    def _kept(self, kind: tuple[bool, ...]) -> list[int]:
        """The coordinates that are left where some axes are at their extra level."""
        gone = {column for column, zero in zip(self._zeros, kind, strict=True) if zero}
        return [column for column in range(self._d) if column not in gone]

    def _make(self, kind: tuple[bool, ...]) -> Table | Array:
        kept = self._kept(kind)
        template = np.concatenate([np.zeros(self._d), INDICATOR * np.array(kind) + 0.5])

        def restricted(x: Array) -> Array:
            whole = np.tile(template, (len(x), 1))
            whole[:, kept] = x
            return self._model(whole)

        if not kept:
            return restricted(np.zeros((1, 0)))
        kinks = self._kinks[self._of(kind, self._kinks)][:, kept]
        return Table(restricted, len(kept), kinks)


# --------------------------------------------------------------------------- lattices


def _between(nodes: Array, d: int) -> Array:
    """The nodes of the lattice of half the cells, by linear interpolation."""
    for axis in range(d):
        nodes = np.moveaxis(nodes, axis, 0)
        finer = np.empty((2 * len(nodes) - 1, *nodes.shape[1:]))
        finer[::2] = nodes
        finer[1::2] = (nodes[:-1] + nodes[1:]) / 2
        nodes = np.moveaxis(finer, 0, axis)
    return nodes


def _doubled(cells: NDArray[S]) -> NDArray[S]:
    """What holds of a cell, for the cells of half the edge in it."""
    for axis in range(cells.ndim):
        cells = np.repeat(cells, 2, axis)
    return cells


def _corners(cells: Mask) -> Mask:
    """The nodes that are a corner of some of the cells."""
    n = len(cells)
    nodes = np.zeros((n + 1,) * cells.ndim, dtype=bool)
    for corner in product((0, 1), repeat=cells.ndim):
        nodes[tuple(slice(i, i + n) for i in corner)] |= cells
    return nodes


def _largest(nodes: Array, d: int) -> Array:
    """Of each cell of double edge, the largest value at its nodes."""
    n = len(nodes) // 2
    largest: Array = np.maximum.reduce(
        [
            nodes[tuple(slice(i, i + 2 * n - 1, 2) for i in offset)]
            for offset in product((0, 1, 2), repeat=d)
        ]
    )
    return largest
