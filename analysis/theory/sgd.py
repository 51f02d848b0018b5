"""Mean-square stability of SGD on least squares: exact threshold and bounds by the trace."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh

from analysis.theory.arguments import one, plain_numbers, positive, real
from trainables.domain import InputError, Mistake

Array = NDArray[np.float64]

#: Largest rank of the data for which the operator on second moments is built: its side is
#: r (r + 1) / 2, so that it then takes 35 MB and its top eigenvalue a second or two.
MAX_RANK = 64
#: Numbers in one block of the accumulation, to bound memory where there are many samples.
_BLOCK = 2_000_000


@plain_numbers
def trace_threshold(lr: ArrayLike, batch_size: int = 1) -> Array:
    """Largest trace of the Hessian that SGD can keep stable: 2 batch_size / lr.

    Where tr(H) exceeds it, an interpolating minimum repels SGD in mean square; where it does not,
    the minimum may repel all the same (necessary, not sufficient). For batches of one sample it
    is tr(H) <= 2 / lr (Wu & Su 2023). That criterion is false for larger batches, which leave
    room for up to batch_size times the trace: it follows from the bound of
    `SGDStability.necessary_lr` with E||x||^4 >= tr(H)^2. Batches are drawn with replacement.

    Args:
        lr: learning rate, finite and > 0, any shape.
        batch_size: samples in a batch, >= 1.

    Raises:
        InputError: an argument lies outside its domain.
    """
    mistakes = _batch_mistakes(batch_size)
    if mistakes:
        raise InputError(mistakes)
    rates = positive("lr", lr)
    return np.asarray(2 * batch_size / rates)


@dataclass(frozen=True, eq=False)
class SGDStability:
    """Learning rates at which SGD on least squares stays near an interpolating minimum.

    The loss is 1/2 mean (x . theta - y)^2 over N samples, its Hessian H = X^T X / N. Near an
    interpolating minimum of any model with the loss 1/2 (f - y)^2 the same holds to first order
    with X the Jacobian of f's outputs. With the batch Hessian H_b, one step maps the second moment
    S = E[e e^T] of the error to

        T(S) = E[(I - lr H_b) S (I - lr H_b)]
             = S - lr (H S + S H) + lr^2 [c E(x x^T S x x^T) + (1 - c) H S H],

    where c = 1 / B for batches of B samples drawn with replacement, and
    c = (N - B) / (B (N - 1)) for batches that hold no sample twice but are drawn anew in each
    step. Batches that cut one shuffled epoch into pieces depend on each other from step to step:
    for them T is no more than an approximation. Directions in which no sample lies never move and
    are left out.

    Stable means that T contracts, so that the mean square error dies out. Single runs can still
    converge at somewhat larger rates, where rare large excursions carry the mean.

    Args:
        data: X, finite, not all 0, (N, d): one sample a row.
        batch_size: B, >= 1; at most N without replacement.
        replacement: whether a batch may hold a sample twice.

    Raises:
        InputError: a law above is broken; all broken laws are listed.
    """

    data: Array
    batch_size: int = 1
    replacement: bool = True

    def __post_init__(self) -> None:
        mistakes = _batch_mistakes(self.batch_size)
        data = real("data", self.data).copy()
        if data.ndim != 2 or not data.size:
            law = "a matrix with at least one row and one column"
            mistakes.append(Mistake("data", data.shape, law, "one sample a row"))
        elif not np.isfinite(data).all():
            mistakes.append(Mistake("data", "NaN or infinity", "must be finite", "clean the data"))
        elif not data.any():
            law = "some sample must differ from 0: nothing is learnt here"
            mistakes.append(Mistake("data", 0.0, law, "check the data"))
        elif not mistakes and not self.replacement and self.batch_size > len(data):
            law = f"a batch without replacement holds at most the {len(data)} samples"
            mistakes.append(Mistake("batch_size", self.batch_size, law, "use a smaller batch"))
        if mistakes:
            raise InputError(mistakes)
        data.setflags(write=False)
        object.__setattr__(self, "data", data)

    @property
    def single_share(self) -> float:
        """c: weight of the single samples' fourth moment against that of the full batch."""
        samples, batch = len(self.data), self.batch_size
        if self.replacement:
            return 1 / batch
        return (samples - batch) / (batch * (samples - 1)) if samples > 1 else 0.0

    @property
    def trace(self) -> float:
        """tr(H), the mean of ||x||^2."""
        return float(self._spectrum.sum())

    @property
    def sharpness(self) -> float:
        """Largest eigenvalue of H."""
        return float(self._spectrum[0])

    @property
    def full_batch_lr(self) -> float:
        """2 / sharpness, the threshold of gradient descent; SGD's is never larger."""
        return 2 / self.sharpness

    @property
    def necessary_lr(self) -> float:
        """Learning rate above which SGD cannot be stable; needs no more than the spectrum of H.

        lr [c E||x||^4 + (1 - c) ||H||_F^2] <= 2 tr(H). T is self-adjoint, so that its largest
        eigenvalue is at least tr(T(I)) / d, which is at most 1 only under this bound.
        """
        c = self.single_share
        fourth = float((np.square(self.data).sum(axis=1) ** 2).mean())
        return float(2 * self.trace / (c * fourth + (1 - c) * np.square(self._spectrum).sum()))

    @cached_property
    def critical_lr(self) -> float:
        """Exact threshold: T contracts below this learning rate and expands above it.

        T maps positive matrices to positive ones, so that its spectral radius is its largest
        eigenvalue. This is below 1 exactly where lr Q < 2 L as quadratic forms on symmetric
        matrices, with L(S) = (H S + S H) / 2 and Q the bracket of T: the threshold is 2 over
        the largest generalised eigenvalue of (Q, L).

        Raises:
            InputError: the data have more than `MAX_RANK` independent directions.
        """
        mean, bracket = self._forms
        root = np.sqrt(mean)
        return 2 / _top(bracket / root[:, None] / root[None, :])

    def radius(self, lr: float) -> float:
        """Spectral radius of T: factor by which the mean square error changes a step, in the end.

        Args:
            lr: learning rate, finite and > 0.

        Raises:
            InputError: lr is not positive, or as for `critical_lr`.
        """
        rate = one("lr", positive("lr", lr))
        mean, bracket = self._forms
        return _top(np.diag(1 - 2 * rate * mean) + rate**2 * bracket)

    @cached_property
    def _axes(self) -> tuple[Array, Array]:
        """Samples in the eigenvectors of H that they span, (N, r), and the eigenvalues, (r,)."""
        left, singular, _ = np.linalg.svd(self.data, full_matrices=False)
        floor = singular[0] * max(self.data.shape) * np.finfo(np.float64).eps
        kept = singular > floor
        return left[:, kept] * singular[kept], singular[kept] ** 2 / len(self.data)

    @property
    def _spectrum(self) -> Array:
        return self._axes[1]

    @cached_property
    def _forms(self) -> tuple[Array, Array]:
        """L (its diagonal) and Q on symmetric r x r matrices, as vectors of their upper triangle.

        In the eigenvectors of H both L and S -> H S H are diagonal. Entries off the diagonal
        carry a factor sqrt(2), so that the scalar product is that of the matrices.
        """
        samples, spectrum = self._axes
        if len(spectrum) > MAX_RANK:
            law = f"the exact threshold is computed up to rank {MAX_RANK}"
            remedy = "project the data on their leading directions, or use necessary_lr"
            raise InputError([Mistake("data", f"rank {len(spectrum)}", law, remedy)])
        rows, columns = np.triu_indices(len(spectrum))
        weights = np.where(rows == columns, 1.0, np.sqrt(2.0))
        c = self.single_share
        bracket = np.diag((1 - c) * spectrum[rows] * spectrum[columns])
        for block in np.array_split(samples, 1 + len(samples) * len(rows) // _BLOCK):
            products = block[:, rows] * block[:, columns] * weights
            bracket += c / len(samples) * (products.T @ products)
        return (spectrum[rows] + spectrum[columns]) / 2, bracket


def _top(matrix: Array) -> float:
    """Largest eigenvalue of a symmetric matrix."""
    last = len(matrix) - 1
    return float(eigh(matrix, eigvals_only=True, subset_by_index=[last, last])[0])


def _batch_mistakes(batch_size: int) -> list[Mistake]:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        return [Mistake("batch_size", batch_size, "an integer >= 1", "use the number of samples")]
    return []
