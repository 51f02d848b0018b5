"""RelL1 against a brute-force count, and its laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trainables.dynamics.distance import MANY, SMALL, rel_l1, rel_l1_each

Arrays = list[NDArray[np.float64]]

numbers = st.one_of(
    st.just(0.0),
    st.floats(1e-290, 1e300),
    st.floats(-1e300, -1e-290),
    st.floats(-2.0, 2.0),
)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Arrays, Arrays]:
    """Two lists of arrays of the same shapes; an array is often zero in both."""
    first, second = [], []
    for _ in range(draw(st.integers(1, 3))):
        size = draw(st.integers(1, 5))
        entries = st.lists(numbers, min_size=size, max_size=size)
        zero = draw(st.booleans())
        first.append(np.zeros(size) if zero else np.array(draw(entries)))
        same = draw(st.booleans())
        second.append(first[-1].copy() if zero or same else np.array(draw(entries)))
    return first, second


def brute(first: Arrays, second: Arrays) -> float:
    """Entry by entry, in plain Python."""
    terms: list[float] = []
    for x, y in zip(first, second, strict=True):
        if not x.any() and not y.any():
            continue
        for a, b in zip(x.tolist(), y.tolist(), strict=True):
            terms.append(abs(a - b) / (abs(a) + abs(b)) if a or b else 0.0)
    return 2 * math.fsum(terms) / len(terms) if terms else 0.0


def tensors(arrays: Arrays) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


@given(pairs())
def test_equals_the_brute_force_count(pair: tuple[Arrays, Arrays]) -> None:
    first, second = pair
    expected = brute(first, second)
    assert rel_l1(tensors(first), tensors(second)) == pytest.approx(expected, rel=1e-14, abs=0)


@given(pairs())
def test_lies_in_0_2_is_symmetric_and_0_only_for_equal_arguments(
    pair: tuple[Arrays, Arrays],
) -> None:
    first, second = pair
    value = rel_l1(tensors(first), tensors(second))
    assert 0 <= value <= 2
    assert value == rel_l1(tensors(second), tensors(first))
    equal = all(np.array_equal(x, y) for x, y in zip(first, second, strict=True))
    assert (value == 0) == equal


@given(
    st.lists(st.tuples(st.integers(1, 6), st.sampled_from([torch.float32, torch.float64]))),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
def test_many_tensors_and_many_pairs_are_those_one_by_one(
    shapes: list[tuple[int, torch.dtype]], count: int, seed: int
) -> None:
    """To the bit, also where small tensors are joined: more than `MANY` of one dtype in a row."""
    shapes = [*shapes, *[(3, torch.float32)] * MANY, (SMALL + 1, torch.float32)]
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        [
            torch.randn(count, size, generator=generator).to(dtype) * (index % 3 > 0)
            for index, (size, dtype) in enumerate(shapes)
        ]
        for _ in range(2)
    )
    together = rel_l1_each(first, second)
    for row in range(count):
        pair = [x[row].double().numpy() for x in first], [y[row].double().numpy() for y in second]
        assert rel_l1([x[row] for x in first], [y[row] for y in second]) == together[row]
        assert float(together[row]) == pytest.approx(brute(*pair), rel=1e-13)


def test_a_tensor_without_entries_changes_nothing() -> None:
    empty, x, y = torch.empty(0), torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])
    assert rel_l1([empty, x], [empty, y]) == rel_l1([x], [y]) == 0.5
    assert rel_l1([empty], [empty]) == 0.0


def test_worked_examples() -> None:
    def of(x: list[float], y: list[float]) -> float:
        return rel_l1([torch.tensor(x)], [torch.tensor(y)])

    assert of([1.0, 3.0], [1.0, 1.0]) == 0.5  # 2/2 (0 + 2/4)
    assert of([1.0], [-1.0]) == 2.0
    assert of([5.0, 0.0], [0.0, 0.0]) == 1.0  # 0/0 counts as 0 but its entry counts in N


def test_a_tensor_that_is_zero_on_both_sides_is_left_out() -> None:
    moved, still = torch.tensor([1.0]), torch.zeros(9)
    assert rel_l1([moved, still], [-moved, still]) == 2.0
    touched = still.clone()
    touched[0] = 1e-30
    assert rel_l1([moved, still], [-moved, touched]) == pytest.approx(2 * 2 / 10)
    assert rel_l1([still], [still]) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_that_have_lost_their_digits_do_not_separate(dtype: torch.dtype) -> None:
    """A dead weight under weight decay ends among the subnormal numbers, one ulp is half of it."""
    limits = torch.finfo(dtype)
    lost = torch.tensor([limits.smallest_normal * limits.eps * 3, 1.0], dtype=dtype)
    other = torch.tensor([limits.smallest_normal * limits.eps, 1.0], dtype=dtype)
    assert float(lost[0]) != float(other[0])
    assert rel_l1([lost], [other]) == 0.0
    kept = limits.tiny / limits.eps * torch.tensor([3.0, 1.0], dtype=dtype)
    assert rel_l1([kept[:1]], [kept[1:]]) == pytest.approx(2 * 2 / 4)


def test_is_evaluated_in_float64() -> None:
    """In float32 the sum |x| + |y| overflows, and small differences are rounded."""
    large = torch.tensor([3e38])
    assert rel_l1([large], [large / 3]) == pytest.approx(1.0, rel=1e-6)
    x, y = torch.tensor([1.0]), torch.tensor([1.0 + 2.0**-23])
    assert rel_l1([x], [y]) == pytest.approx(2 * 2.0**-23 / (2 + 2.0**-23), rel=1e-15)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("other", [0.0, 1.0, math.inf])
def test_a_non_finite_entry_gives_nan(bad: float, other: float) -> None:
    x = [torch.tensor([1.0]), torch.tensor([1.0, bad])]
    y = [torch.tensor([1.0]), torch.tensor([1.0, other])]
    assert math.isnan(rel_l1(x, y))
    assert math.isnan(rel_l1(y, x))


def test_different_numbers_of_tensors_are_refused() -> None:
    one = torch.ones(1)
    with pytest.raises(ValueError, match="zip"):
        rel_l1([one], [one, one])
