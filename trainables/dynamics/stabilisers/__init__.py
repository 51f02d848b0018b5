"""Stabilisers by name: what can be done to a training to widen its stable region."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainables.domain import Mistake, Training
from trainables.dynamics.stabilisers.base import Action, AtOutputs, Setting, Stabiliser, Step
from trainables.dynamics.stabilisers.clipping import ClipNorm, ClipSpectralNorm
from trainables.dynamics.stabilisers.orthogonal_convolution import OrthogonalConvolution
from trainables.dynamics.stabilisers.orthogonal_gradient import OrthogonalGradient
from trainables.dynamics.stabilisers.spectra import Spectra
from trainables.dynamics.stabilisers.stability import Stability
from trainables.dynamics.stabilisers.stability_reference import StabilityReference
from trainables.dynamics.stabilisers.stable_spam import StableSpam
from trainables.dynamics.stabilisers.stablemax import StableMax
from trainables.options import construct, unknown_name
from trainables.tasks import Task

__all__ = [
    "Action",
    "AtOutputs",
    "Setting",
    "Stabiliser",
    "Step",
    "get_stabiliser",
    "stabiliser_names",
]

STABILISERS: dict[str, type[Stabiliser]] = {
    found.name: found
    for found in (
        Stability,
        StabilityReference,
        ClipNorm,
        ClipSpectralNorm,
        Spectra,
        StableMax,
        OrthogonalGradient,
        StableSpam,
        OrthogonalConvolution,
    )
}


def stabiliser_names() -> tuple[str, ...]:
    """Names of all stabilisers."""
    return tuple(STABILISERS)


def get_stabiliser(name: str, **options: Any) -> Stabiliser:
    """A stabiliser by its name.

    Args:
        name: one of `stabiliser_names()`.
        **options: the stabiliser's own options.

    Raises:
        InputError: unknown name, unknown option, or an option that breaks its law.
    """
    if name not in STABILISERS:
        raise unknown_name("stabiliser", "stabiliser", name, stabiliser_names())
    return construct("stabiliser", name, STABILISERS[name], options)  # type: ignore[no-any-return]


def stabiliser_of(training: Training) -> Stabiliser:
    """The stabiliser that a training names.

    Raises:
        InputError: as `get_stabiliser`.
    """
    assert isinstance(training.stabiliser, Mapping)
    return get_stabiliser(**training.stabiliser)


def strength_mistakes(
    field: str, strongest: float, task: Task, training: Training
) -> list[Mistake]:
    """Why the stabiliser cannot act on a task with strengths up to `strongest` > 0."""
    stabiliser = stabiliser_of(training)
    mistakes = list(stabiliser.mistakes(task, training))
    if strongest > stabiliser.strongest:
        mistakes.append(
            Mistake(
                field,
                strongest,
                f"alpha <= {stabiliser.strongest:g} for the stabiliser {stabiliser.name}",
                "lower it",
            )
        )
    return mistakes
