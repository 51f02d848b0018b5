"""Thresholds against torch's own optimisers, softmax collapse against brute force, overlays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from analysis.theory import OneLayerCNN
from analysis.theory.edge_of_stability import OPTIMISERS, decay_bound, quadratic_threshold
from analysis.theory.overlays import overlays
from analysis.theory.softmax import PRECISION, softmax_collapse_gap
from trainables.domain import InputError

# ------------------------------------------------------------------ one step of torch, probed

#: So small that its square leaves the second moments, which are of order 1, as they were.
TINY = 1e-12
#: What each test sets second moments to: a preconditioner far from 1.
SCALE = 2.5
LATE = 100_000


def optimiser_of(
    name: str, parameter: Tensor, buffer: float, lr: float, b: float, step: int
) -> torch.optim.Optimizer:
    """torch's optimiser in the middle of a training: first moment given, second one of scale 1."""
    slots: dict[str, Any]
    made: torch.optim.Optimizer
    first = torch.full_like(parameter, buffer)
    if name in ("sgd", "nesterov"):
        nesterov = name == "nesterov" and b > 0
        made = torch.optim.SGD([parameter], lr=lr, momentum=b, nesterov=nesterov)
        slots = {"momentum_buffer": first}
    elif name == "rmsprop":
        made = torch.optim.RMSprop([parameter], lr=lr, momentum=b, alpha=0.99, eps=1e-30)
        mean = torch.full_like(parameter, SCALE**2 / 0.99)
        slots = {"step": torch.tensor(1.0), "square_avg": mean, "momentum_buffer": first}
    elif name == "adadelta":
        made = torch.optim.Adadelta([parameter], lr=lr, rho=0.9, eps=1e-30)
        mean = torch.full_like(parameter, 4 * SCALE**2 / 0.9)
        slots = {"step": torch.tensor(1.0), "square_avg": mean}
        slots["acc_delta"] = torch.full_like(parameter, 4.0)
    else:
        made = torch.optim.Adam([parameter], lr=lr, betas=(b, 0.999), eps=1e-30)
        second = torch.full_like(parameter, SCALE**2 * (1 - 0.999 ** (step + 1)) / 0.999)
        slots = {"step": torch.tensor(float(step)), "exp_avg": first, "exp_avg_sq": second}
    made.state[parameter].update(slots)
    return made


def memory(name: str, optimiser: torch.optim.Optimizer, parameter: Tensor) -> float:
    """The first moment after the step."""
    kept = optimiser.state[parameter]
    found = kept.get("exp_avg") if name in ("adam", "adamw") else kept.get("momentum_buffer")
    return 0.0 if found is None else float(found.item())


def radius(
    name: str, h: float, lr: float, b: float, lam: float, decay: str, step: int = LATE
) -> float:
    """Spectral radius of one step of torch on 1/2 h p^2, a matrix on (parameter, first moment).

    h is the preconditioned eigenvalue; coupled decay is scaled with it, as for P = 1.
    """
    scale = SCALE if name not in ("sgd", "nesterov") else 1.0
    columns = []
    for start in ((TINY, 0.0), (0.0, TINY)):
        p = torch.tensor([start[0]], dtype=torch.float64, requires_grad=True)
        rule = optimiser_of(name, p, start[1], lr, b, step)
        p.grad = scale * (h + (lam if decay == "coupled" else 0.0)) * p.detach()
        if decay == "decoupled":
            with torch.no_grad():
                p.mul_(1 - lr * lam)
        rule.step()
        columns.append([float(p.item()) / TINY, memory(name, rule, p) / TINY])
    return float(np.abs(np.linalg.eigvals(np.array(columns).T)).max())


def bisect(grows: Callable[[float], bool], start: float) -> float:
    """Where a monotone condition becomes true, above `start`."""
    low, high = start, 2 * start
    assert not grows(low)
    while not grows(high):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if grows(middle) else (middle, high)
    return (low + high) / 2


CASES = [
    (name, b, lam, decay)
    for name in OPTIMISERS
    for b in ((0.0,) if name == "adadelta" else (0.0, 0.5, 0.9))
    for lam, decay in ((0.0, "coupled"), (3.0, "coupled"), (3.0, "decoupled"))
    if name != "adamw" or decay == "decoupled"
]


@pytest.mark.parametrize(("name", "b", "lam", "decay"), CASES)
def test_the_threshold_is_where_torchs_own_step_stops_to_contract(
    name: str, b: float, lam: float, decay: str
) -> None:
    """Acceptance row 23."""
    lr = 0.1
    found = bisect(lambda h: radius(name, h, lr, b, lam, decay) > 1, 0.5)
    assert quadratic_threshold(lr, name, b, lam, decay) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize(("lam", "decay"), [(0.0, "coupled"), (3.0, "coupled"), (3.0, "decoupled")])
@pytest.mark.parametrize("step", [0, 1, 9])
def test_early_adam_tolerates_less_by_the_correction_of_its_first_moment(
    step: int, lam: float, decay: str
) -> None:
    found = bisect(lambda h: radius("adam", h, 0.1, 0.9, lam, decay, step) > 1, 0.5)
    threshold = quadratic_threshold(0.1, "adam", 0.9, lam, decay, step=step)
    assert threshold == pytest.approx(found, rel=1e-9)
    assert threshold < quadratic_threshold(0.1, "adam", 0.9, lam, decay)


def test_published_thresholds() -> None:
    """Acceptance row 23."""
    names = ("sgd", "nesterov", "adam")
    found = [quadratic_threshold(0.1, name, 0.9) for name in names]
    assert found == pytest.approx([38.0, 13.5714, 380.0], rel=4e-6)


@pytest.mark.parametrize(("name", "b", "lam", "decay"), CASES)
def test_the_decay_bound_is_where_a_parameter_without_curvature_starts_to_grow(
    name: str, b: float, lam: float, decay: str
) -> None:
    bound = float(decay_bound(lam, name, b, decay))
    if lam == 0 or (decay == "coupled" and name not in ("sgd", "nesterov")):
        assert bound == math.inf
        return
    found = bisect(lambda lr: radius(name, 0.0, lr, b, lam, decay) > 1 + 1e-12, 1e-3)
    assert bound == pytest.approx(found, rel=1e-9)


# ------------------------------------------------------------------ arrays


@settings(max_examples=25)
@given(
    st.sampled_from(OPTIMISERS),
    st.lists(st.floats(1e-4, 10), min_size=1, max_size=3),
    st.lists(st.floats(0, 0.99), min_size=1, max_size=3),
    st.lists(st.floats(0, 5), min_size=1, max_size=3),
)
def test_arrays_give_what_numbers_give(
    name: str, lrs: list[float], momenta: list[float], decays: list[float]
) -> None:
    momenta = [0.0] if name == "adadelta" else momenta
    lr, b, lam = np.array(lrs)[:, None, None], np.array(momenta)[:, None], np.array(decays)
    thresholds = quadratic_threshold(lr, name, b, lam)
    bounds = decay_bound(lam, name, b)
    assert thresholds.shape == (len(lrs), len(momenta), len(decays))
    assert bounds.shape == (len(momenta), len(decays))
    for (i, j, k), value in np.ndenumerate(thresholds):
        alone = quadratic_threshold(lrs[i], name, momenta[j], decays[k])
        assert isinstance(alone, float)
        assert value == alone
        assert bounds[j, k] == decay_bound(decays[k], name, momenta[j])


@settings(max_examples=25)
@given(st.sampled_from(OPTIMISERS), st.floats(0, 0.99), st.floats(0, 5), st.floats(1e-3, 1))
def test_a_larger_rate_or_decay_tolerates_less(name: str, b: float, lam: float, lr: float) -> None:
    b = 0.0 if name == "adadelta" else b
    here = quadratic_threshold(lr, name, b, lam)
    assert quadratic_threshold(1.1 * lr, name, b, lam) < here
    assert quadratic_threshold(lr, name, b, lam + 0.1) < here


def test_steps_broadcast_and_tend_to_the_limit() -> None:
    found = quadratic_threshold(np.array([[0.1], [0.2]]), "adam", 0.9, step=np.array([0, 1, 1000]))
    np.testing.assert_allclose(found, [[38, 72.2, 380], [19, 36.1, 190]])


def test_adamw_is_adam_with_decoupled_decay() -> None:
    adam = quadratic_threshold(0.1, "adam", 0.9, 3.0, "decoupled")
    assert quadratic_threshold(0.1, "adamw", 0.9, 3.0) == adam == pytest.approx(323.0)
    assert decay_bound(4.0, "adamw", 0.9) == 0.5


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"lr": 0.0}, "lr = 0.0: finite and > 0 must hold"),
        ({"lr": [0.1, math.nan]}, "lr = nan: finite and > 0"),
        ({"lr": math.inf}, "lr = inf: finite and > 0"),
        ({"lr": "fast"}, "lr = 'fast': must be real numbers"),
        ({"lr": None}, "lr = None: must be real numbers; give a number or an array of them"),
        ({"momentum": "0.9"}, "momentum = '0.9': must be real numbers"),
        ({"momentum": 1.0}, "momentum = 1.0: 0 <= momentum < 1"),
        ({"momentum": -0.1}, "momentum = -0.1: 0 <= momentum < 1"),
        ({"momentum": math.nan}, "momentum = nan: 0 <= momentum < 1"),
        ({"momentum": 0.9, "optimiser": "adadelta"}, "adadelta has no momentum"),
        ({"weight_decay": -1.0}, "weight_decay = -1.0: finite and >= 0"),
        ({"weight_decay": math.inf}, "weight_decay = inf: finite and >= 0"),
        ({"optimiser": "sdg"}, "optimiser = 'sdg': no such optimiser; did you mean sgd?"),
        ({"optimiser": "lion"}, "use one of sgd, nesterov, adam, adamw, rmsprop, adadelta"),
        ({"decay": "copled"}, "decay = 'copled': no such decay; did you mean coupled?"),
        ({"decay": "coupled", "optimiser": "adamw"}, "adamw is Adam with decoupled decay"),
        ({"step": -1, "optimiser": "adam"}, "step = -1.0: a count of updates"),
        ({"step": 0.5, "optimiser": "adam"}, "step = 0.5: a count of updates"),
        ({"step": 3}, "sgd does not correct its first moment"),
        ({"lr": [0.1, 0.2], "momentum": [0.1, 0.2, 0.3]}, "must broadcast"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as caught:
        quadratic_threshold(**{"lr": 0.1, **arguments})
    assert text in str(caught.value)
    assert len(caught.value.mistakes) == 1
    if not {"lr", "step"} & set(arguments):
        with pytest.raises(InputError) as caught:
            decay_bound(**{"weight_decay": 0.1, **arguments})
        assert text in str(caught.value)


def test_all_mistakes_are_listed() -> None:
    with pytest.raises(InputError) as caught:
        quadratic_threshold(-1.0, "sgd", 2.0, -3.0)
    assert [mistake.field for mistake in caught.value.mistakes] == [
        "lr",
        "momentum",
        "weight_decay",
    ]


# ------------------------------------------------------------------ softmax collapse


@pytest.mark.parametrize("dtype", PRECISION)
def test_the_smallest_gap_at_which_the_softmax_rounds_to_certainty(dtype: str) -> None:
    """Acceptance row 24: found by trying gaps of the format itself."""
    kind: torch.dtype = getattr(torch, dtype)

    def collapses(gap: float) -> bool:
        logits = torch.tensor([0.0, -gap], dtype=kind)
        return bool(torch.exp(logits - logits.max()).sum() == 1)

    theory = softmax_collapse_gap(dtype)
    found = bisect(collapses, theory / 2.1)
    # The next gap that the format can hold.
    unit = torch.finfo(kind).eps * 2.0 ** math.floor(math.log2(theory))
    assert abs(found - theory) <= 1.01 * unit


def test_softmax_gap_in_numpy() -> None:
    """Acceptance row 24."""
    theory = softmax_collapse_gap("float32")
    assert theory == pytest.approx(16.6355, rel=2e-6)
    gaps = np.float32(theory) + np.arange(-20, 21, dtype=np.float32) * np.spacing(np.float32(16))
    sums = np.float32(1) + np.exp(-gaps)
    assert sums.dtype == np.float32
    edge = int(np.argmax(sums == 1))
    assert 17 <= edge <= 23
    assert (sums[edge:] == 1).all()
    assert (sums[:edge] > 1).all()


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes_of_torch_and_numpy_name_a_format(name: str) -> None:
    gap = softmax_collapse_gap(name)
    assert softmax_collapse_gap(getattr(torch, name)) == gap
    if name != "bfloat16":
        assert (
            softmax_collapse_gap(getattr(np, name)) == softmax_collapse_gap(np.dtype(name)) == gap
        )
    for other in (torch.int32, np.int64, None, float):
        with pytest.raises(InputError, match=r"^dtype = .*: no such floating-point format"):
            softmax_collapse_gap(other)


def test_unknown_format() -> None:
    with pytest.raises(InputError, match="did you mean float32"):
        softmax_collapse_gap("flaot32")


# ------------------------------------------------------------------ overlays


@pytest.mark.parametrize(
    ("optimiser", "momentum", "decay", "factor"),
    [
        ("sgd", 0.9, "coupled", 3.8),
        ("sgd", 0.9, "decoupled", 2.0),
        ("nesterov", 0.9, "coupled", 3.8 / 2.8),
        ("nesterov", 0.9, "decoupled", 2.0),
        ("adam", 0.9, "coupled", None),
        ("adam", 0.9, "decoupled", 2.0),
        ("adamw", 0.9, "coupled", 2.0),  # the only decay that it has
        ("rmsprop", 0.9, "coupled", None),
        ("rmsprop", 0.9, "decoupled", 2.0),
        ("adadelta", 0.9, "decoupled", 2.0),
        ("of-my-own", 0.9, "coupled", None),
    ],
)
def test_every_sweep_gets_the_bound_of_its_weight_decay(
    optimiser: str, momentum: float, decay: str, factor: float | None
) -> None:
    found = overlays("mnist-mlp", {}, optimiser, momentum, decay)
    if factor is None:
        assert found == []
        return
    (bound,) = found
    assert not bound.exact
    assert bound.label == f"theory: {factor:.3g} / weight decay"
    np.testing.assert_allclose(
        bound.lr(np.array([[0.0, 0.5, 4.0]])), [[math.inf, 2 * factor, factor / 4]]
    )


def test_no_decay_puts_no_bound_on_the_one_layer_cnn_within_sight() -> None:
    stable, bound = overlays("one-layer-cnn", {}, "sgd", 0.0, "coupled")
    rates = stable.lr(np.array([[0.0], [1e-12], [1e-6], [20.0]]))
    assert rates.shape == (4, 1)
    assert 1e7 < rates[0, 0] < math.inf
    assert rates[0, 0] == rates[1, 0] > rates[2, 0] > rates[3, 0]
    assert rates[3, 0] == OneLayerCNN(20.0, 32).largest_stable_lr
    assert bound.lr(np.array([-0.0]))[0] == math.inf


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_an_overlay_refuses_a_weight_decay_that_there_is_not(bad: float) -> None:
    for overlay in overlays("one-layer-cnn", {}, "sgd", 0.0, "coupled"):
        with pytest.raises(InputError, match="weight_decay"):
            overlay.lr(np.array([1.0, bad]))
