"""Rules that hold for every public name of the theory: what goes in, what comes out, what is said.

One call of each function stands here with its arguments by name; the rules are tried on all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from analysis import theory
from trainables.domain import InputError

LINE = np.array([0.0, 1.0, 0.5, 0.0])
SQUARE = np.array([[2.0, 0.5], [0.5, 1.0]])
IMAGE = np.array([[1.0, 2.0, 0.0], [0.5, 1.0, 1.0], [3.0, 0.0, 1.0]])
RELU = {
    "x": np.ones((3, 1)),
    "w": np.ones((1, 2)),
    "v": np.ones((2, 1)),
    "b": np.array([0.0, 0.5]),
}
GRID = {"dx": 1.0, "kappa": 2.0}
BELTRAMI = {"delta": 0.1, "fidelity": 1.5, "dx": 1.0}
MODES = {"a": -0.5, "smallest": 1.0, "largest": 4.0, "beta": 1.0}
CNN = {"width": 4, "share": 0.6}
SIMULATED: dict[str, Any] = {"u": LINE, "target": LINE, "dt": 0.1}

CALLS: dict[str, dict[str, Any]] = {
    "BeltramiRun.first_above": {"limit": 2.0},
    "DecayRange.contains": {"weight_decay": 1.0},
    "OneLayerCNN": {"weight_decay": 20.0, **CNN},
    "OneLayerCNN.curvature": {"kappa": 1.0},
    "OneLayerCNN.gradient": {"kappa": 1.0},
    "SGDStability": {"data": IMAGE, "batch_size": 2, "replacement": True},
    "SGDStability.radius": {"lr": 0.1},
    "activated_decay_range": {"lr": 0.1, "image_sum": 1.0, "pixels": 4},
    "activated_decay_range_as_printed": {"lr": 0.1, "image_sum": 1.0},
    "balanced_layers": {"target": SQUARE, "depth": 2},
    "beltrami_cfl_bound": {"slope": 0.5, **BELTRAMI},
    "beltrami_cfl_bound_as_printed": {"slope": 0.5, **BELTRAMI},
    "beltrami_divergence_bound": {"fidelity": 1.0},
    "beltrami_loss": {"u": LINE, "target": LINE, **BELTRAMI},
    "beltrami_reach": {"dt": 0.1, "fidelity": 1.0, "dx": 1.0},
    "beltrami_restrained_band": BELTRAMI,
    "beltrami_sharpness": {"u": LINE, **BELTRAMI},
    "beltrami_signal": {"points": 10, "seed": 1},
    "beltrami_simulate": {**SIMULATED, "steps": 2, **BELTRAMI},
    "beltrami_step": {**SIMULATED, **BELTRAMI},
    "checkerboard": {"size": 4},
    "checkerboard_eigenvalue": {"size": 6, "width": 2},
    "checkerboard_share": {"image": 7, "width": 3},
    "common_eigenvalues": {"matrices": np.stack([SQUARE, SQUARE @ SQUARE])},
    "decay_bound": {"weight_decay": 0.1, "optimiser": "sgd", "momentum": 0.5, "decay": "coupled"},
    "deep_linear_descent": {"weights": [SQUARE], "target": SQUARE, "lr": 0.1, "steps": 1},
    "deep_linear_lr_bound": {"rho": 2.0, "depth": 3},
    "double_path": {"eigenvalue": 2.0, "lr": 0.1, "depth": 3, "steps": 2},
    "even_power_radius": {"lr": 0.1, "power": 4},
    "even_power_step": {"x": 1.0, "lr": 0.1, "power": 4},
    "heat_amplifier": {"frequency": 1.0, "dt": 0.1, **GRID},
    "heat_cfl_bound": GRID,
    "heat_dirichlet_bound": {"points": 5, **GRID},
    "heat_growth": {"dt": 0.1, "points": 5, **GRID},
    "heat_simulate": {"u": LINE, "dt": 0.1, "steps": 2, **GRID},
    "heat_start": {"points": 5},
    "heat_step": {"u": LINE, "dt": 0.1, **GRID},
    "identity_layers": {"size": 2, "depth": 3},
    "identity_limit": {"eigenvalue": 2.0, "depth": 3},
    "identity_lr_bound": {"eigenvalue": 2.0, "depth": 3},
    "identity_path": {"eigenvalue": 2.0, "lr": 0.1, "depth": 3, "steps": 2},
    "identity_rate": {"eigenvalue": 2.0, "lr": 0.1, "depth": 3},
    "identity_start_lr_bound": {"rho": 2.0, "depth": 3},
    "largest_singular_value_bound": {"lr": 0.1, "depth": 3},
    "linear_cnn_amplifier": {
        "lr": 0.1,
        "weight_decay": 1.0,
        "a": -0.5,
        "eigenvalue": 2.0,
        "beta": 1.0,
    },
    "linear_cnn_decay_range": {"lr": 0.1, **MODES},
    "linear_cnn_decay_range_as_printed": {"lr": 0.1, **MODES},
    "mesh_ratio": {"dt": 0.1, **GRID},
    "multilayer_gain": {"kernels": [SQUARE], "shape": (4, 4)},
    "multilayer_gain_as_printed": {"kernels": [SQUARE], "slopes": 0.5},
    "nearest_psd": {"target": SQUARE},
    "nesterov_amplifier": {
        "dt": 0.1,
        "momentum": 0.5,
        "weight_decay": 1.0,
        "a": -0.5,
        "eigenvalue": 2.0,
        "beta": 1.0,
    },
    "nesterov_decay_range": {"dt": 0.1, "momentum": 0.5, **MODES},
    "nesterov_decay_range_as_printed": {"dt": 0.1, **MODES},
    "nesterov_lr": {"dt": 0.1, "momentum": 0.5},
    "nesterov_momentum": {"dt": 0.1, "damping": 0.5},
    "network_product": {"weights": [SQUARE, SQUARE]},
    "not_activated_decay_range": {"lr": 0.1},
    "one_layer_cnn_exponent": {"kappa": 1.0, "lr": 0.1, "weight_decay": 2.0, "steps": 4, **CNN},
    "one_layer_cnn_loss": {"kappa": 1.0, "weight_decay": 2.0, "rest": 1.0, **CNN},
    "one_layer_cnn_path": {"kappa": 1.0, "lr": 0.1, "weight_decay": 2.0, "steps": 2, **CNN},
    "one_layer_cnn_phases": {"lr": 0.1, "weight_decay": 2.0, **CNN},
    "overlays": {
        "task": "one-layer-cnn",
        "task_options": {},
        "optimiser": "sgd",
        "momentum": 0.0,
        "decay": "coupled",
    },
    "overlays.lr": {"weight_decay": 2.0},
    "patch_extremes": {"image": IMAGE, "width": 2},
    "patch_gram": {"image": IMAGE, "width": 2},
    "power_spectrum": {"image": IMAGE},
    "product_path": {"weights": np.array([1.0, 2.0]), "eigenvalue": 2.0, "lr": 0.1, "steps": 2},
    "quadratic_threshold": {
        "lr": 0.1,
        "optimiser": "adam",
        "momentum": 0.5,
        "weight_decay": 0.1,
        "decay": "coupled",
        "step": 3,
    },
    "relu_descent": {**RELU, "targets": np.ones((3, 1)), "lr": 0.1, "steps": 1, "factor": 0.5},
    "relu_lr_bound": {"x": np.ones((3, 1)), "outputs": np.ones((3, 1)), "factor": 0.5},
    "relu_output_bound": {"lr": 0.1, "factor": 0.5},
    "relu_outputs": RELU,
    "residual_lr_bound": {"target": SQUARE, "depth": 3},
    "scalar_solution_lr_bound": {"weights": np.array([1.0, 2.0])},
    "softmax_collapse_gap": {"dtype": "float32"},
    "solution_lr_bound": {"weights": [SQUARE, SQUARE]},
    "solution_sharpness": {"weights": [SQUARE, SQUARE]},
    "spectrum_extremes": {"image": IMAGE},
    "three_halves_cycle": {"lr": 0.1},
    "three_halves_starts": {"lr": 0.1, "count": 3},
    "three_halves_step": {"x": 1.0, "lr": 0.1},
    "trace_threshold": {"lr": 0.1, "batch_size": 2},
    "two_minima_curvature": {"x": 1.0},
    "two_minima_gradient": {"x": 1.5},
    "two_minima_limit": {"x": 1.1, "lr": 0.1, "steps": 50},
    "two_minima_loss": {"x": 1.5},
    "two_minima_thresholds": {},
}

#: What methods are called on.
OBJECTS: dict[str, Any] = {
    "BeltramiRun": theory.beltrami_simulate(LINE, LINE, 0.1, 2),
    "DecayRange": theory.DecayRange(0.0, 2.0),
    "OneLayerCNN": theory.OneLayerCNN(20.0),
    "SGDStability": theory.SGDStability(IMAGE),
    "overlays": theory.overlays("one-layer-cnn", {}, "sgd", 0.0, "coupled")[0],
}

#: No functions of their own: results, whose numbers are looked at where they are made.
RESULTS = {"BeltramiRun", "CNNPhases", "DecayRange", "Overlay", "TWO_MINIMA_BARRIER"}

#: Arguments that are no numbers, or of which None means something.
WORDS = {
    *("task", "task_options", "optimiser", "decay", "dtype", "replacement", "step", "limit"),
}

each_call = pytest.mark.parametrize("name", sorted(CALLS))


def function(name: str) -> Callable[..., Any]:
    first, _, method = name.partition(".")
    found: Callable[..., Any] = getattr(OBJECTS[first] if method else theory, method or first)
    return found


def flexible(name: str) -> list[str]:
    """Arguments that may be a number or an array of any shape."""
    called = function(name)
    if name in ("overlays.lr", "DecayRange.contains"):
        return ["weight_decay"]
    kinds = {n: str(p.annotation) for n, p in inspect.signature(called).parameters.items()}
    values = CALLS[name]
    return [n for n in values if kinds[n].startswith("ArrayLike") and np.ndim(values[n]) == 0]


def numbers_in(value: Any) -> Iterator[Any]:
    """Everything in a result that is a number, a word or an array."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from numbers_in(getattr(value, field.name))
        for name, kind in inspect.getmembers(type(value)):
            if isinstance(kind, property) and not name.startswith("_"):
                yield from numbers_in(getattr(value, name))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from numbers_in(part)
    elif not callable(value):
        yield value


def test_every_public_name_is_tried() -> None:
    tried = {name.partition(".")[0] for name in CALLS} | RESULTS
    assert tried == set(theory.__all__)
    for name, values in CALLS.items():
        if name != "overlays.lr":
            parameters = list(inspect.signature(function(name)).parameters)
            assert sorted(values) == sorted(parameters), name


# --------------------------------------------------------------------------- what comes out


@each_call
def test_numbers_for_numbers(name: str) -> None:
    """Python's own floats, never numpy's and never an array without axes."""
    found = list(numbers_in(function(name)(**CALLS[name])))
    assert found or name == "overlays"
    for value in found:
        if isinstance(value, np.ndarray):
            assert value.ndim > 0, value
        else:
            assert type(value) in (float, int, bool, str), value


@pytest.mark.parametrize("name", [name for name in sorted(CALLS) if flexible(name)])
def test_arrays_for_arrays(name: str) -> None:
    """Arguments with an axis more give a result with an axis more, of the same numbers."""
    values = CALLS[name]
    more = {key: np.full(3, values[key]) for key in flexible(name) if key != "slopes"}
    for one, many in zip(
        numbers_in(function(name)(**values)),
        numbers_in(function(name)(**values | more)),
        strict=True,
    ):
        if np.ndim(one) == 0 and isinstance(many, np.ndarray):
            assert many.shape == (3,)
            assert many.tolist() == [one] * 3
        elif np.shape(one) == np.shape(many):
            np.testing.assert_array_equal(one, many)
        else:
            assert np.ndim(many) == np.ndim(one) + 1
            assert 3 in many.shape


def test_results_with_decays_of_any_shape() -> None:
    """The ranges and phases too: floats and words for numbers."""
    decays = theory.linear_cnn_decay_range(0.1, -0.5, 1.0, 4.0)
    assert (type(decays.low), type(decays.high), type(decays.empty)) == (float, float, bool)
    assert decays.contains(5.0) is True
    assert decays.contains([5.0, 50.0]).tolist() == [True, False]
    phases = theory.one_layer_cnn_phases(0.1, 2.0)
    assert type(phases.regime) is str
    two = theory.one_layer_cnn_phases(0.03, [20.0, 200.0])
    assert two.regime.tolist() == ["stable", "divergent"]
    run = theory.beltrami_simulate(LINE, LINE, 100.0, 60)
    assert run.first_above(10.0) == 1
    assert type(run.first_above(10.0)) is int
    assert isinstance(theory.quadratic_threshold(np.array(0.1)), float)


# --------------------------------------------------------------------------- what goes in


@each_call
def test_numbers_in_any_form(name: str) -> None:
    """Tensors that require a gradient, numpy's scalars, fractions: all as the number itself."""
    values, loose = CALLS[name], flexible(name)
    expected = [np.asarray(v).tolist() for v in numbers_in(function(name)(**values))]
    forms: list[Callable[[Any], Any]] = [
        lambda v: torch.tensor(float(v), dtype=torch.float64, requires_grad=True),
        np.float64,
        np.array,
        Fraction,
    ]
    for form in forms:
        given = values | {key: form(values[key]) for key in loose}
        found = [np.asarray(v).tolist() for v in numbers_in(function(name)(**given))]
        assert found == expected
    matrices = {key: v for key, v in values.items() if isinstance(v, np.ndarray)}
    given = values | {key: torch.tensor(v, requires_grad=True) for key, v in matrices.items()}
    given |= {
        key: [torch.tensor(w, requires_grad=True) for w in v]
        for key, v in values.items()
        if isinstance(v, list)
    }
    found = [np.asarray(v).tolist() for v in numbers_in(function(name)(**given))]
    assert found == expected


def test_lists_of_tensors_in_low_precision() -> None:
    rates = [torch.tensor(0.5, requires_grad=True), torch.tensor(0.25)]
    assert theory.three_halves_cycle(rates).tolist() == [0.0625, 0.015625]
    half = torch.tensor([0.5, 0.25], dtype=torch.bfloat16)
    assert theory.three_halves_cycle(half).tolist() == [0.0625, 0.015625]
    assert theory.three_halves_cycle(10**20) == 10**40 / 4


# --------------------------------------------------------------------------- what is said


def parts(error: InputError) -> list[str]:
    """Names that the mistakes begin with: 'u, dt' gives u and dt, 'x.shape' and 'x[0]' give x."""
    fields = [part for m in error.mistakes for part in m.field.split(", ")]
    return [re.split(r"[ .\[]", part)[0] for part in fields]


def number_arguments(name: str) -> list[str]:
    return [key for key in CALLS[name] if key not in WORDS]


@each_call
@pytest.mark.parametrize("bad", [None, "fast", 1j, np.nan, object(), [1.0, None], [[1.0], [1, 2]]])
def test_a_wrong_argument_is_the_one_that_is_named(name: str, bad: Any) -> None:
    for key in number_arguments(name):
        with pytest.raises(InputError) as caught:
            function(name)(**CALLS[name] | {key: bad})
        assert set(parts(caught.value)) == {key}
        if bad is None or isinstance(bad, str):
            assert repr(bad) in str(caught.value)


@each_call
def test_one_number_where_one_is_wanted(name: str) -> None:
    """Arrays for arguments that are no arrays are refused by name."""
    kinds = inspect.signature(function(name)).parameters if name != "overlays.lr" else {}
    for key in number_arguments(name):
        if key in kinds and str(kinds[key].annotation) in ("int", "float"):
            with pytest.raises(InputError) as caught:
                function(name)(**CALLS[name] | {key: np.full(2, CALLS[name][key])})
            assert set(parts(caught.value)) == {key}


@each_call
def test_shapes_that_do_not_fit_are_named_as_they_were_given(name: str) -> None:
    """Two numbers against three: only arguments of this function, both of them among those."""
    values = CALLS[name]
    own = {"low", "high"} if name == "DecayRange.contains" else set()
    for one, other in itertools.permutations(flexible(name), 2):
        given = values | {one: np.full(2, values[one]), other: np.full(3, values[other])}
        with pytest.raises(InputError) as caught:
            function(name)(**given)
        assert {one, other} <= set(parts(caught.value)) <= set(values) | own
    matrices = {key: v for key, v in values.items() if isinstance(v, np.ndarray)}
    for key, matrix in itertools.product(flexible(name), matrices):
        given = values | {key: np.full(3, values[key]), matrix: np.stack([matrices[matrix]] * 2)}
        with contextlib.suppress(InputError):
            function(name)(**given)
            continue
        with pytest.raises(InputError) as caught:
            function(name)(**given)
        assert set(parts(caught.value)) <= set(values)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.heat_cfl_bound(np.ones(3), np.ones(2)), r"^dx, kappa = \{'dx': \(3,\), 'k"),
        (
            lambda: theory.linear_cnn_amplifier([0.1, 0.2], np.ones(3), 1.0, 1.0),
            r"^lr, weight_decay, a, eigenvalue, beta = \{'lr': \(2,\), 'weight_decay': \(3,\), ",
        ),
        (
            lambda: theory.quadratic_threshold(None),  # type: ignore[call-overload]
            "^lr = None: must be real numbers; give a numb",
        ),
        (lambda: theory.heat_cfl_bound("1.0"), "^dx = '1.0': must be real numbers"),
    ],
)
def test_messages_of_a_trial_user(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
