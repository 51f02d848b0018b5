"""A map as a labelled grid (xarray): what a notebook, a plot or a NetCDF file takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.evidence import REGIMES
from analysis.surface import Surface, columns
from analysis.uncertainty import entropy
from trainables.domain import Axis, InputError, Mistake

if TYPE_CHECKING:
    from xarray import Dataset

Array = NDArray[np.float64]

#: Places along each free axis, by how many of them there are; an extra level at 0 comes on top.
PLACES = {0: 2, 1: 512, 2: 128, 3: 32}
#: Cells of a grid at most: some hundred megabytes while it is made.
LARGEST = 4_000_000
NAMES = {"lr": "learning rate", "alpha": "stabiliser strength", "weight_decay": "weight decay"}
MARGINS = ("stable", "bounded")


def axis_values(axis: Axis, count: int) -> Array:
    """Evenly spaced values along an axis's scale, after the extra level 0 where there is one."""
    if not axis.free:
        return axis.from_unit(np.zeros(1))
    values = axis.from_unit(np.linspace(0, 1, count))
    return np.concatenate([[0.0], values]) if axis.zero else values


def as_grid(
    axes: Sequence[Axis], seen: Sequence[Axis], surface: Surface, count: int | None
) -> Dataset:
    """The fitted model over a grid of the free axes.

    Args:
        axes: of the grid.
        seen: axes as the model knows them; it may know a range where the grid has one value.
        surface: the model.
        count: places along each free axis; None for as many as suit their number.

    Raises:
        InputError: fewer than 2 places, or so many that the grid would not fit in memory.
    """
    import xarray

    free = [axis for axis in axes if axis.free]
    count = PLACES[len(free)] if count is None else count
    _check(count, len(free))
    values = [axis_values(axis, count) for axis in axes]
    shape = tuple(len(v) for axis, v in zip(axes, values, strict=True) if axis.free)
    points = np.stack(np.meshgrid(*values, indexing="ij"), -1).reshape(-1, len(axes))
    x, _ = columns(seen, points)
    probability = surface.probabilities(x)
    latent = [field.predict(x) for field in (surface.stable, surface.bounded)]
    names = [axis.name for axis in free]
    mean, deviation = (
        np.stack([given.reshape(shape) for given in parts])
        for parts in zip(*((m, np.sqrt(v)) for m, v in latent), strict=True)
    )
    data = {
        "probability": (["regime", *names], probability.T.reshape(3, *shape), _PROBABILITY),
        "most_likely": (names, probability.argmax(1).astype(np.int8).reshape(shape), _MOST_LIKELY),
        "uncertainty": (names, entropy(probability).reshape(shape), _UNCERTAINTY),
        "latent_mean": (["margin", *names], mean, _LATENT_MEAN),
        "latent_sd": (["margin", *names], deviation, _LATENT_SD),
    }
    coordinates: dict[str, Any] = {"regime": list(REGIMES), "margin": list(MARGINS)}
    for axis, along in zip(axes, values, strict=True):
        coordinates[axis.name] = (
            ([axis.name], along, _attributes(axis))
            if axis.free
            else ((), along[0], _attributes(axis))
        )
    return xarray.Dataset(data, coordinates, {"title": "stability map", "Conventions": "CF-1.11"})


def _check(count: int, free: int) -> None:
    law = None
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 2:
        law = "a whole number >= 2"
    elif count**free > LARGEST:
        law = f"count ** {free} <= {LARGEST}"
    if law:
        raise InputError([Mistake("count", count, law, f"use {PLACES[free]}, or leave it out")])


_PROBABILITY = {"long_name": "probability of each regime", "units": "1"}
_MOST_LIKELY = {
    "long_name": "most likely regime",
    "flag_values": np.arange(3, dtype=np.int8),
    "flag_meanings": " ".join(REGIMES),
}
_UNCERTAINTY = {"long_name": "entropy of the regime", "units": "bit"}
_LATENT_MEAN = {
    "long_name": "mean of the latent function, positive on the calm side",
    "units": "1",
}
_LATENT_SD = {"long_name": "standard deviation of the latent function", "units": "1"}


def _attributes(axis: Axis) -> dict[str, Any]:
    """NetCDF knows neither booleans nor None."""
    found: dict[str, Any] = {"long_name": NAMES[axis.name], "units": "1", "scale": axis.scale}
    if axis.free:
        found |= {"low": axis.low, "high": axis.high, "zero": int(axis.zero)}
    return found
