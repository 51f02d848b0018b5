"""Lanczos with full reorthogonalisation, and what its basis says of the largest eigenvalue."""

from __future__ import annotations

import math
import sys

import numpy as np

from trainables.dynamics.hessian_products import ROUNDOFF, Array


class Lanczos:
    """Orthonormal basis of a symmetric matrix's Krylov space, and the matrix in that basis.

    In that basis the matrix is tridiagonal. All basis vectors are kept, and each new one is made
    orthogonal to all of them: without that, rounding brings found eigenvalues back as copies.
    """

    def __init__(self, first: Array) -> None:
        self.basis = [first / np.linalg.norm(first)]
        self.diagonal: list[float] = []
        self.beside: list[float] = []
        self._stray = 0.0

    def extend(self, image: Array) -> None:
        """Take in the matrix's product with the newest basis vector."""
        newest = self.basis[-1]
        along = float(newest @ image)
        image = image - along * newest
        if self.beside:
            image -= self.beside[-1] * self.basis[-2]
        for old in self.basis:
            # 0 if products were exact and symmetric, so its size says how far they are from that.
            stray = float(old @ image)
            image -= stray * old
            self._stray = max(self._stray, abs(stray))
        self.diagonal.append(along)
        self.beside.append(float(np.linalg.norm(image)))
        if not self.exhausted:
            self.basis.append(image / self.beside[-1])

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans everything that can be reached from the first vector."""
        size = max(map(abs, [*self.diagonal, *self.beside]))
        nothing = self.beside[-1] <= ROUNDOFF * size
        return nothing or len(self.diagonal) == len(self.basis[0])

    @property
    def unevenness(self) -> float:
        """How much inexact products may have moved an eigenvalue."""
        return self._stray * len(self.diagonal)

    def top(self) -> tuple[float, float, Array]:
        """Largest eigenvalue in the basis, its residual, its eigenvector's coefficients."""
        inner = self.beside[:-1]
        values, vectors = np.linalg.eigh(
            np.diag(self.diagonal) + np.diag(inner, 1) + np.diag(inner, -1)
        )
        residual = self.beside[-1] * abs(float(vectors[-1, -1]))
        return float(values[-1]), residual, vectors[:, -1]

    def bound(self, overlap: float) -> float:
        """Largest eigenvalue that a first vector with this overlap can have failed to show.

        Basis vector j is p_j(A) times the first one, p_j the Lanczos polynomials, so its overlap
        with an eigenvector of eigenvalue x is p_j(x) times the first one's, and all of these
        overlaps squared add up to at most 1. Above the top of the basis p_j(x) only grows.

        Args:
            overlap: cosine of the angle between first vector and eigenvector, at least.
        """
        from scipy.optimize import brentq  # here: a bare GPU machine has no scipy

        value, residual, _ = self.top()
        if self.beside[-1] == 0:
            return value

        def excess(x: float) -> float:
            """Logarithm of that sum over what is allowed, by ratios, which do not overflow."""
            logarithm, ratio, before = 0.0, 1.0, 0.0
            terms = [logarithm]
            for along, beside in zip(self.diagonal, self.beside, strict=True):
                ratio = (x - along - before / ratio) / beside
                if ratio <= 0:  # x is the top itself, but for rounding
                    break
                logarithm += 2 * math.log(ratio)
                terms.append(logarithm)
                before = beside
            return float(np.logaddexp.reduce(terms)) + 2 * math.log(overlap)

        if excess(value) >= 0:
            return value
        width = max(residual, ROUNDOFF * self.beside[-1], sys.float_info.min)
        while excess(value + width) < 0:
            width *= 2
        return float(brentq(excess, value, value + width, rtol=1e-12))
