"""The axes as Optuna sees them: one parameter a free axis, and a switch for an extra zero level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from trainables.domain import Axis, Point


def _switch(axis: Axis) -> str:
    return f"{axis.name}_is_zero"


def distributions(space: Sequence[Axis]) -> dict[str, BaseDistribution]:
    """Optuna's distributions of the free axes, in a fixed order."""
    found: dict[str, BaseDistribution] = {}
    for axis in space:
        if axis.free:
            assert axis.low is not None and axis.high is not None
            found[axis.name] = FloatDistribution(axis.low, axis.high, log=axis.scale == "log")
            if axis.zero:
                found[_switch(axis)] = CategoricalDistribution([False, True])
    return found


def switches(space: Sequence[Axis]) -> dict[str, str]:
    """The switch of each axis that has an extra zero level."""
    return {axis.name: _switch(axis) for axis in space if axis.free and axis.zero}


def to_params(space: Sequence[Axis], point: Point) -> dict[str, Any]:
    """A point as Optuna's parameters."""
    params: dict[str, Any] = {}
    for axis in space:
        if axis.free:
            value = getattr(point, axis.name)
            if axis.zero:
                params[_switch(axis)] = value == 0
                value = value or axis.low
            params[axis.name] = value
    return params


def to_point(space: Sequence[Axis], params: Mapping[str, Any]) -> Point:
    """Inverse of `to_params`."""
    values: dict[str, Any] = {}
    for axis in space:
        value = params[axis.name] if axis.free else axis.value
        values[axis.name] = 0.0 if params.get(_switch(axis)) else value
    return Point(**values)
