"""How much final accuracies scatter over rounding and over seeds (Sun et al. 2024, Table 1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainables.domain import InputError, Mistake

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Population standard deviations of a table of final accuracies, in the accuracies' unit.

    Args:
        over_ks: for each seed the spread over the perturbation integers k: what one rounding in
            the last bit changes.
        over_seeds: for each k the spread over the seeds: what the order of the batches changes.

    Example:
        >>> found = spread([[0.90, 0.94], [0.92, 0.96]])
        >>> round(found.mean_over_ks, 3), round(found.mean_over_seeds, 3)
        (0.01, 0.02)
    """

    over_ks: tuple[float, ...]
    over_seeds: tuple[float, ...]

    @property
    def mean_over_ks(self) -> float:
        """Average over the seeds of `over_ks`."""
        return float(np.mean(self.over_ks))

    @property
    def mean_over_seeds(self) -> float:
        """Average over the ks of `over_seeds`."""
        return float(np.mean(self.over_seeds))


def spread(finals: ArrayLike) -> Spread:
    """Spread of final accuracies over k for each seed and over seeds for each k.

    The standard deviation divides by the number of values, not by one less (ddof = 0): so does
    the paper's Table 1, whose first column gives 0.271.

    Args:
        finals: final accuracies, (ks, seeds), finite, at least 2 x 2.

    Raises:
        InputError: finals has another shape or holds values that are not finite.

    Example:
        >>> [round(deviation, 3) for deviation in spread([[0.90, 0.94], [0.92, 0.96]]).over_seeds]
        [0.02, 0.02]
    """
    table = _numbers("finals", finals)
    if table.ndim != 2 or min(table.shape) < 2:
        law = "a table of at least 2 ks x 2 seeds"
        raise InputError([Mistake("finals", table.shape, law, "one row a k, one column a seed")])
    return Spread(tuple(table.std(axis=0).tolist()), tuple(table.std(axis=1).tolist()))


def final_accuracy(accuracies: ArrayLike, last: int = 10) -> Array:
    """Final accuracy of a training: the mean over its last epochs.

    Args:
        accuracies: accuracy after each epoch, finite, (..., epochs).
        last: number of epochs to average, >= 1; the paper takes 10.

    Returns:
        The means, with the shape (...) of the trainings.

    Raises:
        InputError: there are fewer epochs than `last`, or values that are not finite.

    Example:
        >>> float(final_accuracy([0.5, 0.8, 0.9, 1.0], last=2))
        0.95
    """
    history = _numbers("accuracies", accuracies)
    if isinstance(last, bool) or not isinstance(last, int) or last < 1:
        raise InputError([Mistake("last", last, "an integer >= 1", "use 10, as the paper does")])
    if history.ndim < 1 or history.shape[-1] < last:
        law = f"at least {last} epochs along the last axis"
        remedy = "train for longer, or average fewer epochs with `last`"
        raise InputError([Mistake("accuracies", history.shape, law, remedy)])
    return np.asarray(history[..., -last:].mean(axis=-1))


def _numbers(name: str, values: ArrayLike) -> Array:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        law = "an array of numbers, all rows of one length"
        raise InputError([Mistake(name, values, law, "give such an array")]) from error
    if not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))[0].tolist()
        value = float(array[tuple(where)])
        remedy = "leave out the k or the seed that failed"
        raise InputError([Mistake(f"{name}{where}", value, "must be finite", remedy)])
    return array
