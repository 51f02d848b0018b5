"""The spec: every law with field, value and remedy, all mistakes at once, and the hash."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from full_size import FULL_SIZE, without_data
from hypothesis import given
from hypothesis import strategies as st

from sweeps import spec as spec_module
from sweeps.spec import SweepSpec, load_spec, parse_overrides, preset_names
from trainables.domain import InputError, Mistake, odd_part

BASE: dict[str, Any] = {
    "task": {"name": "one-layer-cnn", "image": 64},
    "axes": {
        "lr": {"scale": "log", "low": 0.01, "high": 10},
        "weight_decay": {"scale": "log", "low": 1e-3, "high": 1, "zero": True},
    },
    "steps": 60,
    "budget": {"points": 12},
}


def mistakes(source: Any, overrides: Mapping[str, Any] | None = None) -> tuple[Mistake, ...]:
    with pytest.raises(InputError) as caught:
        load_spec(source, overrides)
    assert caught.value.exit_code == 2
    for mistake in caught.value.mistakes:
        assert str(mistake) in str(caught.value)
    return caught.value.mistakes


def log(low: float | None = None, high: float | None = None, **more: Any) -> dict[str, Any]:
    return {"scale": "log", "low": low, "high": high, **more}


def linear(low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"scale": "linear", "low": low, "high": high, **more}


def test_the_base_is_valid() -> None:
    spec = load_spec(BASE)
    assert spec.task_name == "one-layer-cnn"
    assert spec.task_options == {"image": 64}
    assert [(a.name, a.free) for a in spec.space] == [
        ("lr", True),
        ("alpha", False),
        ("weight_decay", True),
    ]
    assert spec.training.ks == (1, 3)
    assert spec.training.steps == 60
    assert spec.title == "one-layer-cnn"
    assert load_spec(BASE, {"name": "mine"}).title == "mine"
    assert spec.gpus == 0
    assert load_spec(BASE, {"device": "cuda"}).gpus == 1
    assert load_spec(BASE, {"device": "cuda:0", "resources.gpus": 0.25}).gpus == 0.25


# --------------------------------------------------------------------------- one law at a time

#: What is changed, then what the only mistake says: field, value as shown, law, remedy.
LAWS: list[tuple[dict[str, Any], str, str, str, str]] = [
    ({"ks": [1, 6]}, "ks", "6", "odd", "use 3"),
    ({"ks": [0, 1, 3]}, "ks", "0", "integer >= 1", "odd numbers"),
    ({"ks": [-3, 1]}, "ks", "-3", "integer >= 1", "odd numbers"),
    ({"ks": [1, 3, 3]}, "ks", "[1, 3, 3]", "listed once", "remove"),
    ({"ks": [1, 2, 4]}, "ks", "[1, 2, 4]", "power of two", "[1, 3]"),
    ({"ks": [5]}, "ks", "[5]", "at least two", "[1, 3]"),
    ({"ks": []}, "ks", "[]", "at least two", "[1, 3]"),
    ({"seeds": 0}, "seeds", "0", ">= 1", "seeds: 1"),
    ({"seed": 2**63}, "seed", str(2**63), "64 bits", "seed: 0"),
    ({"steps": 19}, "steps", "19", "steps >= 20", "few hundred"),
    ({"evaluate_every": 0}, "evaluate_every", "0", "updates >= 1", "use 20"),
    ({"momentum": 1.0}, "momentum", "1.0", "0 <= momentum < 1", "0.9"),
    ({"momentum": -0.1}, "momentum", "-0.1", "0 <= momentum < 1", "0.9"),
    ({"momentum": math.nan}, "momentum", "nan", "0 <= momentum < 1", "0.9"),
    ({"dtype": "float16"}, "dtype", "'float16'", "must be 'float32', 'float64'", "write"),
    ({"optimiser": "sdg"}, "optimiser", "'sdg'", "unknown choice", "mean sgd? use one of sgd"),
    ({"optimiser": "xyz"}, "optimiser", "'xyz'", "unknown choice", "use one of sgd"),
    ({"stabiliser": "none", "axes.alpha": 1}, "stabiliser", "'none'", "alpha > 0", "at 0, or name"),
    (
        {"stabiliser": "none", "axes.alpha": linear(0, 1)},
        "stabiliser",
        "'none'",
        "alpha > 0",
        "hold axes.alpha at 0, or name a stabiliser",
    ),
    ({"stabiliser.name": "none", "stabiliser.mode": 3}, "stabiliser.mode", "3", "no opt", "leave"),
    ({"stabiliser": ["x"]}, "stabiliser", "['x']", "be a name or a mapping", "stabiliser: clip-no"),
    ({"task": 3}, "task", "3", "must be a name or a mapping", "write task: mnist-mlp"),
    ({"axes.lr": [1]}, "axes.lr", "[1]", "must be a number or a mapping", "write lr: 0.1, or {"),
    ({"ks": 3}, "ks", "3", "must be a list", "write ks: [1, 3]"),
    ({"steps": "many"}, "steps", "'many'", "must be a valid integer", "write steps: 400"),
    (
        {"optimiser": "torch.optim.NAdm"},
        "optimiser",
        "'torch.optim.NAdm'",
        "no such optimiser in torch.optim",
        "did you mean NAdam?",
    ),
    (
        {"optimiser": "torch.optim.Rprop", "axes.weight_decay": 0.1},
        "axes.weight_decay",
        "0.1",
        "torch.optim.Rprop takes no argument weight_decay",
        "set it to 0",
    ),
    (
        {"optimiser": "torch.optim.NAdam", "decay": "coupled"},
        "decay",
        "'coupled'",
        "torch.optim.NAdam keeps its own decay",
        "leave it out",
    ),
    ({"decay": "both"}, "decay", "'both'", "'coupled' or 'decoupled'", "write"),
    (
        {"stabiliser": "stable-spm"},
        "stabiliser",
        "'stable-spm'",
        "no such stabiliser",
        "did you mean stable-spam",
    ),
    (
        {"stabiliser": {"name": "stability", "anchor": "always"}},
        "stabiliser.anchor",
        "'always'",
        "never, epoch or a number of steps >= 1",
        "use never",
    ),
    (
        {"stabiliser.anchors": 3},
        "stabiliser.anchors",
        "3",
        "stability has no such option",
        "did you mean anchor",
    ),
    ({"beta2": 1.0, "optimiser": "adam"}, "beta2", "1.0", "0 <= beta2 < 1", "0.999"),
    ({"lyapunov": "perhaps"}, "lyapunov", "'perhaps'", "must be a valid boolean", "write"),
    ({"ks": [1, True]}, "ks.1", "True", "must be a valid integer", "write"),
    ({"sharpness": "perhaps"}, "sharpness", "'perhaps'", "must be a valid boolean", "write"),
    ({"device": "cuda:1"}, "device", "'cuda:1'", "each pack the GPU", "use device: cuda"),
    ({"device": "tpu"}, "device", "'tpu'", "unknown device", "use cpu"),
    ({"device": "cuda:x"}, "device", "'cuda:x'", "unknown device", "use cpu"),
    # axes
    ({"axes.lr": log(1, 0.1)}, "axes.lr", "[1.0, 0.1]", "low < high", "swap"),
    ({"axes.lr": log(1, 1)}, "axes.lr", "[1.0, 1.0]", "low < high", "widen"),
    ({"axes.lr": log(0, 1)}, "axes.lr.low", "0.0", "low > 0", "positive low"),
    ({"axes.lr": log(-1, 1)}, "axes.lr.low", "-1.0", "low > 0", "scale: linear"),
    ({"axes.lr": linear(0, 1)}, "axes.lr.low", "0.0", "lr > 0", "raise low"),
    ({"axes.alpha": linear(-1, 1)}, "axes.alpha.low", "-1.0", "alpha >= 0", "raise low"),
    ({"axes.alpha": log(0, 1)}, "axes.alpha.low", "0.0", "low > 0", "zero: true"),
    ({"axes.lr": log(0.1, 1, zero=True)}, "axes.lr.zero", "True", "trains nothing", "remove"),
    ({"axes.alpha": linear(0, 1, zero=True)}, "axes.alpha.zero", "True", "already", "remove"),
    ({"axes.lr": log(None, 1)}, "axes.lr.low", "None", "finite low", "low: <number>"),
    ({"axes.lr": log(1, None)}, "axes.lr.high", "None", "finite high", "high: <number>"),
    ({"axes.lr": log(1, math.inf)}, "axes.lr.high", "inf", "finite high", "high: <number>"),
    ({"axes.lr": log(0.1, 1, value=0.5)}, "axes.lr.value", "0.5", "single value", "remove"),
    ({"axes.lr": {"value": 0}}, "axes.lr.value", "0.0", "lr > 0", "finite"),
    ({"axes.lr": 0}, "axes.lr", "0.0", "lr > 0", "finite"),
    ({"axes.lr": math.nan}, "axes.lr", "nan", "lr > 0", "finite"),
    ({"axes.weight_decay": -1}, "axes.weight_decay", "-1.0", ">= 0", "finite"),
    ({"axes.lr": {"scale": "fixed"}}, "axes.lr.value", "None", "needs a value", "write"),
    ({"axes.lr": {"value": 1, "high": 2}}, "axes.lr.high", "2.0", "no range", "scale: log"),
    ({"axes.alpha": {"value": 1, "zero": True}}, "axes.alpha.zero", "True", "one level", "range"),
    ({"axes.lr": None}, "axes.lr", "None", "needs a learning rate", "lr: {scale: log"),
    ({"axes.lr": log(1e-39, 1)}, "axes.lr.low", "1e-39", "lr / 3 underflows float32", "float64"),
    ({"axes.lr": 3e-38}, "axes.lr", "3e-38", "lr / 3 underflows float32", "lr >= 3.53e-38"),
    ({"axes.lr.scale": "logg"}, "axes.lr.scale", "'logg'", "'log', 'linear' or 'fixed'", "write"),
    ({"axes.lr.low": "small"}, "axes.lr.low", "'small'", "must be a valid number", "write"),
    # task
    ({"task": {}}, "task", "None", "needs a task", "one-layer-cnn"),
    ({"task": "one-layer-cn"}, "task", "'one-layer-cn'", "no such task", "mean one-layer-cnn?"),
    ({"task": "zzz"}, "task", "'zzz'", "no such task", "known: beltrami"),
    ({"task.image": 1}, "task.image", "1", "an integer from 2 to 4096", "choose"),
    ({"task.kernel": 2.5}, "task.kernel", "2.5", "an integer from 1", "choose"),
    ({"task.name": ["x"]}, "task.name", "['x']", "must be a valid string", "write"),
    # search, budget, resources
    ({"search.method": "random"}, "search.method", "'random'", "'sobol' or 'grid'", "write"),
    ({"search.batch": 0}, "search.batch", "0", "points a round >= 1", "use 8"),
    ({"search.startup": 0}, "search.startup", "0", "points >= 1", "leave it out"),
    ({"search.replicates": 0}, "search.replicates", "0", "trainings a point >= 1", "use 3"),
    ({"search.audit": -1}, "search.audit", "-1", "fewer than budget.points", "one in eight"),
    ({"search.audit": 64, "budget.points": 64}, "search.audit", "64", "fewer than", "one in"),
    ({"search.tolerance": 0}, "search.tolerance", "0.0", "0 < tolerance < 1", "use 0.05"),
    (
        {"search": {"method": "grid", "tolerance": 0.05}},
        "search.tolerance",
        "0.05",
        "a grid is searched to its end",
        "method: boundary",
    ),
    ({"search.levels": 1}, "search.levels", "1", ">= 2", "use 8"),
    ({"search.levels": {"lr": 1}}, "search.levels.lr", "1", ">= 2", "use 8"),
    ({"search.levels": {"decay": 9}}, "search.levels.decay", "9", "no such axis", "weight_decay"),
    ({"budget": {}}, "budget", "None", "needs an end", "points: 64"),
    ({"budget.points": 0}, "budget.points", "0", "points >= 1", "use 64"),
    ({"budget.points": 1.5}, "budget.points", "1.5", "must be a valid integer", "write"),
    ({"budget.wall_time": 0}, "budget.wall_time", "0.0", "seconds > 0", "10m"),
    ({"budget.wall_time": "0m"}, "budget.wall_time", "0.0", "seconds > 0", "10m"),
    ({"budget.wall_time": math.inf}, "budget.wall_time", "inf", "seconds > 0", "10m"),
    ({"budget.wall_time": "5min"}, "budget.wall_time", "'5min'", "must be a valid number", ""),
    ({"budget.wall_time": "-5m"}, "budget.wall_time", "'-5m'", "must be a valid number", ""),
    ({"budget.wall_time": "1.2.3s"}, "budget.wall_time", "'1.2.3s'", "unable to parse", ""),
    ({"resources.workers": 0}, "resources.workers", "0", "workers >= 1", "leave it out"),
    ({"resources.pack": 0}, "resources.pack", "0", "points a pack >= 1", "use 4"),
    ({"resources.cpus": 0}, "resources.cpus", "0.0", "CPUs a pack, finite and > 0", "use 1"),
    ({"resources.cpus": math.nan}, "resources.cpus", "nan", "CPUs a pack, finite and > 0", "use 1"),
    ({"resources.gpus": 1}, "resources.gpus", "1.0", "cpu uses no GPU", "device: cuda"),
    (
        {"device": "cuda", "resources.gpus": 0},
        "resources.gpus",
        "0.0",
        "cuda needs a GPU",
        "leave it out",
    ),
    (
        {"device": "cuda", "resources.gpus": 0.3},
        "resources.gpus",
        "0.3",
        "1/n",
        "use 0.25",
    ),
]


@pytest.mark.parametrize(("changes", "field", "value", "law", "remedy"), LAWS)
def test_law(changes: dict[str, Any], field: str, value: str, law: str, remedy: str) -> None:
    (found,) = mistakes(BASE, changes)
    text = str(found)
    assert found.field == field
    assert text.startswith(f"{field} = {value}: ")
    assert law in found.law
    assert remedy in found.remedy
    assert found.law in text and found.remedy in text
    assert "\n" not in text


@pytest.mark.parametrize("address", ["https://me:s3cret@host/x", "postgresql://me:s3cret@host/db"])
def test_no_password_in_a_spec(address: str) -> None:
    """Specs are kept and shown; the mistake does not repeat what it complains about."""
    (found,) = mistakes(BASE, {"tracking.address": address})
    assert found.field == "tracking.address"
    assert "password" in found.law
    assert "MLFLOW_TRACKING_PASSWORD" in found.remedy and "PGPASSWORD" in found.remedy
    assert "s3cret" not in str(found)
    load_spec(BASE, {"tracking.address": "http://host:5000/with@sign"})


START_LAWS = [
    ({"lr": 1}, "search.start[1].weight_decay", "None", "gives every free axis"),
    ({"lr": 99, "weight_decay": 0.1}, "search.start[1].lr", "99.0", "axis (0.01 to 10)"),
    ({"lr": 1, "weight_decay": 2}, "search.start[1].weight_decay", "2.0", "(0.001 to 1 or 0)"),
    ({"lr": 1, "weight_decay": 0, "alpha": 1}, "search.start[1].alpha", "1.0", "axis (0)"),
    ({"lr": math.nan, "weight_decay": 0}, "search.start[1].lr", "nan", "outside"),
    ({"lr": 1, "weight_decay": 0, "rl": 1}, "search.start[1].rl", "1.0", "no such axis"),
]


@pytest.mark.parametrize(("point", "field", "value", "law"), START_LAWS)
def test_law_of_a_start_point(point: dict[str, float], field: str, value: str, law: str) -> None:
    good = {"lr": 10, "weight_decay": 0}
    (found,) = mistakes(BASE, {"search.start": [good, point]})
    assert str(found).startswith(f"{field} = {value}: ")
    assert law in found.law
    assert found.remedy


@pytest.mark.parametrize(
    "point", [{"lr": 0.01, "weight_decay": 0}, {"lr": 10, "weight_decay": 1e-3, "alpha": 0}]
)
def test_start_points_at_the_ends(point: dict[str, float]) -> None:
    (start,) = load_spec(BASE, {"search.start": [point]}).start
    assert (start.lr, start.alpha, start.weight_decay) == (
        point["lr"],
        0.0,
        point["weight_decay"],
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ks", [[1, 3], [1, 5, 9]])
def test_underflow_begins_where_numbers_lose_bits(dtype: str, ks: list[int]) -> None:
    """The smallest lr allowed still gives a normal number at the largest k; the next one not."""
    kind = np.dtype(dtype).type
    tiny = {"float32": 2.0**-126, "float64": 2.0**-1022}[dtype]  # smallest normal numbers
    lowest = max(ks) * tiny
    base = {**BASE, "dtype": dtype, "ks": ks, "axes": {"lr": 1}}
    assert load_spec(base, {"axes.lr": lowest}).axes.lr is not None
    assert kind(lowest / max(ks)) >= tiny
    found = mistakes(base, {"axes.lr": lowest * (1 - 1e-15)})
    assert [m.field for m in found] == ["axes.lr"]


def test_the_analytic_regulariser_needs_a_loss_that_it_knows() -> None:
    changes = {"stabiliser": {"name": "stability", "mode": "analytic"}, "axes.alpha": 0.1}
    (found,) = mistakes(BASE, changes)
    assert found.field == "stabiliser.mode"
    assert "binary-cross-entropy" in found.law
    assert "generic" in found.remedy
    load_spec(BASE, {**changes, "axes.alpha": 0})  # without a strength it does not matter
    load_spec(BASE, {**changes, "task": {"name": "mnist-regression"}})


def test_a_strength_that_mixes_ends_at_one() -> None:
    axis = {"scale": "linear", "low": 0, "high": 2}
    changes = {"stabiliser": "orthogonal-gradient", "axes.alpha": axis}
    (found,) = mistakes(BASE, changes)
    assert (found.field, found.value) == ("axes.alpha.high", 2)
    assert "alpha <= 1" in found.law
    load_spec(BASE, {**changes, "axes.alpha.high": 1})


@pytest.mark.parametrize("ks", [(1, 2, 3), (3, 1, 8), (1, 5, 4)])
def test_a_power_of_two_is_allowed_with_a_note(ks: tuple[int, ...]) -> None:
    spec = load_spec(BASE, {"ks": ks})
    assert spec.ks == ks
    (note,) = spec.training.notes
    even = next(k for k in ks if k % 2 == 0)
    assert f"k={even} repeats k=1 to the bit" in note
    assert load_spec(BASE, {"ks": [1, 3, 5]}).training.notes == ()


@given(ks=st.lists(st.integers(-3, 40), max_size=5))
def test_which_ks_are_allowed(ks: list[int]) -> None:
    allowed = (
        all(k >= 1 and (k % 2 == 1 or k & (k - 1) == 0) for k in ks)
        and len(set(ks)) == len(ks)
        and len({odd_part(k) for k in ks if k > 0}) >= 2
    )
    if allowed:
        assert load_spec(BASE, {"ks": ks}).training.ks == tuple(ks)
    else:
        assert {m.field for m in mistakes(BASE, {"ks": ks})} == {"ks"}


# --------------------------------------------------------------------------- all at once


def test_all_mistakes_at_once() -> None:
    """Fourteen mistakes of all kinds, each with its own field."""
    raw = {
        "task": "mnist-mpl",
        "stepps": 10,
        "steps": 3,
        "seeds": 0,
        "ks": [1, 6],
        "momentum": 2,
        "dtype": "half",
        "device": "tpu",
        "axes": {
            "lr": {"scale": "log", "low": 10, "high": 1},
            "alpha": {"scale": "log", "low": 0, "high": 1},
            "decay": 3,
        },
        "search": {"batch": -1, "start": [{"lrr": 3}]},
        "budget": {"points": -5, "wall_time": "-1"},
        "resources": {"pack": 0, "worker": 3, "gpus": 1},
        "tracking": {"uri": "http://x"},
    }
    before = copy.deepcopy(raw)
    found = mistakes(raw)
    assert raw == before
    assert sorted(m.field for m in found) == sorted(
        [
            "task",
            "stepps",
            "steps",
            "seeds",
            "ks",
            "momentum",
            "dtype",
            "device",
            "axes.lr",
            "axes.alpha.low",
            "axes.decay",
            "search.batch",
            "search.start[0].lrr",
            "budget.points",
            "budget.wall_time",
            "resources.pack",
            "resources.worker",
            "resources.gpus",
            "tracking.uri",
        ]
    )
    assert len({str(m) for m in found}) == len(found)


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        (
            {
                "stabiliser": {"name": "clip-nrom"},
                "optimiser": "sdg",
                "beta2": 0.5,
                "momentum": 1.5,
                "steps": 2,
                "axes.alpha": -1,
            },
            ["axes.alpha", "momentum", "optimiser", "stabiliser", "steps"],
        ),
        (
            {
                "stabiliser": {"name": "stability", "order": "leftt", "anchor": 0, "ordr": 1},
                "stabiliser.layers": ["fc9"],
                "axes.alpha": linear(0, 1),
                "task.imagee": 3,
                "task.kernel": -1,
                "axes.lr": 1e-39,
            },
            [
                "axes.lr",
                "stabiliser.anchor",
                "stabiliser.layers",
                "stabiliser.order",
                "stabiliser.ordr",
                "task.imagee",
                "task.kernel",
            ],
        ),
        (
            {"stabiliser": "stable-spam", "axes.alpha": 2, "task.image": 0, "steps": 1},
            ["axes.alpha", "steps", "task.image"],
        ),
        # The default in the place of a mistake would break another law.
        (
            {"optimiser": "adammw", "stabiliser.track_decay": True, "axes.alpha": 1},
            ["optimiser"],
        ),
        ({"ks": [1, 6], "axes.lr": 3e-38}, ["ks"]),
    ],
)
def test_a_mistake_hides_no_law_of_another_part(changes: dict[str, Any], fields: list[str]) -> None:
    found = mistakes({**BASE, "stabiliser": {"name": "stability"}}, changes)
    assert sorted(m.field for m in found) == sorted(fields)


@pytest.mark.parametrize("field", spec_module.EXAMPLES)
def test_every_example_can_be_read(field: str) -> None:
    """What a message tells people to write is read without a mistake of that kind."""
    for text in re.split(", or (?![^{]*})", spec_module.EXAMPLES[field]):
        raw = copy.deepcopy({**BASE, "axes": {"lr": {}, "alpha": {}, "weight_decay": {}}})
        spec_module._override(raw, field, yaml.safe_load(text))
        _, found, _ = spec_module._parse(raw)
        assert not found
    assert set(SweepSpec.model_fields) <= set(spec_module.EXAMPLES)


def test_an_empty_spec_lacks_three_things() -> None:
    assert sorted(m.field for m in mistakes({})) == ["axes.lr", "budget", "task"]


def test_an_unreadable_part_does_not_echo() -> None:
    """A value that cannot be read is one mistake, not a second one for being missing."""
    (found,) = mistakes(BASE, {"axes.lr": [1, 2]})
    assert found.field == "axes.lr"
    (found,) = mistakes(BASE, {"budget": {"points": "many"}})
    assert found.field == "budget.points"


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        (
            {"axes.lr": [1, 2], "axes.alpha": {"scale": "log", "low": 5, "high": 1}},
            ["axes.alpha", "axes.lr"],
        ),
        (
            {"resources.workers": "two", "resources.pack": 0},
            ["resources.pack", "resources.workers"],
        ),
        (
            {"search.method": "best", "search.batch": 0},
            ["search.batch", "search.method"],
        ),
        (
            {"budget.points": "many", "budget.wall_time": -1},
            ["budget.points", "budget.wall_time"],
        ),
    ],
)
def test_an_unreadable_part_hides_no_neighbour(changes: dict[str, Any], fields: list[str]) -> None:
    assert sorted(m.field for m in mistakes(BASE, changes)) == fields


def test_levels_that_cannot_be_read() -> None:
    found = mistakes(BASE, {"search.levels": {"lr": "many"}})
    assert [m.field for m in found] == ["search.levels.lr"]


def test_levels_of_a_wrong_type() -> None:
    (found,) = mistakes(BASE, {"search.levels": "many"})
    assert found.field == "search.levels"


@pytest.mark.parametrize("part", ["task", "axes", "search", "budget", "resources", "tracking"])
@pytest.mark.parametrize("value", [None, [1]])
def test_a_part_that_is_no_mapping(part: str, value: Any) -> None:
    """Such as a key whose entries are all commented out."""
    (found,) = mistakes(BASE, {part: value})
    assert found.field == part
    assert "Part" not in str(found)


def test_a_key_that_is_no_text() -> None:
    (found,) = mistakes({**BASE, 3: 4})
    assert found.field == "3"


@pytest.mark.parametrize("gpus", [1.5, math.nan, math.inf])
def test_shares_of_more_than_one_gpu(gpus: float) -> None:
    (found,) = mistakes(BASE, {"device": "cuda", "resources.gpus": gpus})
    assert found.field == "resources.gpus"


# --------------------------------------------------------------------------- unknown keys

UNKNOWN = [
    ("stepz", "steps"),
    ("budgets", "budget"),
    ("optimizer", "optimiser"),
    ("axes.weightdecay", "weight_decay"),
    ("axes.lr.lo", "low"),
    ("axes.alpha.scal", "scale"),
    ("axes.weight_decay.hihg", "high"),
    ("search.methods", "method"),
    ("budget.walltime", "wall_time"),
    ("resources.worker", "workers"),
    ("tracking.adress", "address"),
    ("task.imagee", "image"),
    ("search.levels.weightdecay", "weight_decay"),
]


@pytest.mark.parametrize(("path", "meant"), UNKNOWN)
def test_unknown_key_names_the_nearest(path: str, meant: str) -> None:
    spec = {**BASE, "axes": {**BASE["axes"], "alpha": linear(0, 1)}}
    (found,) = mistakes(spec, {path: 5})
    assert found.field == path
    assert "no such" in found.law
    assert f"did you mean {meant}?" in found.remedy


def test_unknown_key_without_a_neighbour_lists_what_there_is() -> None:
    (found,) = mistakes(BASE, {"budget.xyzzy": 1})
    assert found.remedy == "known here: points, wall_time"
    (found,) = mistakes(BASE, {"task.xyzzy": 1})
    assert "known: image, kernel, distinct" in found.remedy
    (found,) = mistakes(BASE, {"xyzzy": 1})
    assert "did you mean" not in found.remedy
    assert all(name in found.remedy for name in SweepSpec.model_fields)


# --------------------------------------------------------------------------- overrides


def test_overrides_reach_every_depth() -> None:
    spec = load_spec(
        BASE,
        {"steps": 80, "budget.points": 5, "axes.lr.low": 0.1, "search.levels.lr": 3, "ks": [1, 5]},
    )
    assert (spec.steps, spec.budget.points, spec.search.levels) == (80, 5, {"lr": 3})
    assert spec.space[0].low == 0.1
    assert spec.space[0].high == 10
    assert spec.training.ks == (1, 5)


def test_override_through_a_task_that_is_a_name() -> None:
    spec = load_spec({**BASE, "task": "one-layer-cnn"}, {"task.kernel": 8})
    assert (spec.task_name, spec.task_options) == ("one-layer-cnn", {"kernel": 8})
    assert load_spec({**BASE, "task": {}}, {"task": "mnist-mlp"}).task_name == "mnist-mlp"


def test_override_makes_what_is_missing() -> None:
    bare = {"task": "one-layer-cnn"}
    spec = load_spec(bare, {"axes.lr.value": 0.5, "budget.points": 3})
    assert spec.axes.lr is not None and spec.axes.lr.value == 0.5


@pytest.mark.parametrize(
    ("path", "stop", "shown"), [("axes.lr.low", "axes.lr", "0.1"), ("steps.a.b", "steps", "60")]
)
def test_override_through_a_number(path: str, stop: str, shown: str) -> None:
    spec = {**BASE, "axes": {"lr": 0.1}}
    (found,) = mistakes(spec, {path: 1})
    assert found.field == path
    assert f"{stop} is {shown}, which has no parts" in found.law
    assert found.remedy == f"override {stop} as a whole"


def test_overrides_leave_the_source_alone() -> None:
    before = copy.deepcopy(BASE)
    load_spec(BASE, {"axes.lr.low": 0.5, "task.kernel": 8, "resources.pack": 2})
    assert before == BASE


def test_overrides_add_their_mistakes_to_the_others() -> None:
    found = mistakes({**BASE, "steps": 1}, {"seed.x": 1, "budget.points": 0, "seed": 0})
    assert {m.field for m in found} >= {"steps", "budget.points"}


def test_parse_overrides() -> None:
    found = parse_overrides(
        ["a=1", "a.b=2.5", "c=yes", "d=[1, 3]", "e={x: 1}", "f=", "g=x=y", " h =text", "i='1'"]
    )
    assert found == {
        "a": 1,
        "a.b": 2.5,
        "c": True,
        "d": [1, 3],
        "e": {"x": 1},
        "f": None,
        "g": "x=y",
        "h": "text",
        "i": "1",
    }


def test_parse_overrides_reports_all_mistakes() -> None:
    with pytest.raises(InputError) as caught:
        parse_overrides(["steps", "=3", "ks=[1", "seed=1", "  =3"])
    assert [m.value for m in caught.value.mistakes] == ["steps", "=3", "ks=[1", "  =3"]
    assert {m.field for m in caught.value.mistakes} == {"-o"}
    assert "budget.points=64" in str(caught.value)


# --------------------------------------------------------------------------- numbers and times


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (90, 90),
        ("90", 90),
        ("90s", 90),
        ("5m", 300),
        (" 5 m ", 300),
        ("1.5h", 5400),
        ("2d", 172800),
        ("1e3", 1000),
    ],
)
def test_wall_time(text: Any, seconds: float) -> None:
    assert load_spec(BASE, {"budget": {"wall_time": text}}).budget.wall_time == seconds


def test_numbers_that_yaml_takes_for_text(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-3 as text; the spec reads it as the number that everybody means."""
    assert yaml.safe_load("1e-3") == "1e-3"
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "task: one-layer-cnn\n"
        "axes:\n"
        "  lr: {scale: log, low: 1e-3, high: 1e1}\n"
        "  weight_decay: 1e-4\n"
        "momentum: 5e-1\n"
        "search: {start: [{lr: 1e-2}]}\n"
        "budget: {points: 4}\n"
    )
    spec = load_spec(path, parse_overrides(["axes.alpha=2e-3"]))
    assert [spec.space[0].low, spec.space[0].high] == [1e-3, 10]
    assert spec.space[1].value == 2e-3
    assert spec.space[2].value == 1e-4
    assert spec.training.momentum == 0.5
    assert spec.start[0].lr == 1e-2


# --------------------------------------------------------------------------- files and presets


@pytest.mark.parametrize("name", FULL_SIZE)
def test_presets_of_full_size_name_the_folder_they_miss(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (found,) = mistakes(name)
    assert (found.field, found.value) == ("task.data_root", "data")
    assert "the folder holds no" in found.law
    if name != "crowd-mcnn":  # which nobody may fetch without asking its authors
        assert "stabmap data" in found.remedy and "--download" in found.remedy


@pytest.mark.parametrize("name", preset_names())
def test_presets_load(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STABMAP_HOME", str(tmp_path))
    spec = load_spec(name, without_data(name))
    assert spec.budget.points or spec.budget.wall_time
    assert any(axis.free for axis in spec.space)
    assert load_spec(spec.resolved()).hash == spec.hash
    assert not list(tmp_path.iterdir())


def test_preset_names() -> None:
    assert {"mnist-mlp", "one-layer-cnn"} <= set(preset_names())
    first, more = preset_names()[0], r"and \d+ more \(README.md\)$"
    with pytest.raises(InputError, match=f"; give the path .* or a preset: {first}, .*{more}"):
        load_spec("!")
    with pytest.raises(InputError, match="did you mean mnist-mlp"):
        load_spec("mnist-mpl")


def test_a_file_goes_before_a_preset_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mnist-mlp").write_text(yaml.safe_dump(BASE))
    monkeypatch.chdir(tmp_path)
    assert load_spec("mnist-mlp").task_name == "one-layer-cnn"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_spec("~/mnist-mlp").hash == load_spec(BASE).hash


@pytest.mark.parametrize(
    ("content", "law"),
    [
        (None, "cannot be read as a file"),
        (b"\xff\xfe\x00", "is no UTF-8 text"),
        (b"a: [1", "is no YAML"),
        (b"a: b: c", "is no YAML"),
        (b"a: \x01", "is no YAML"),
        (b"- 1\n- 2\n", "holds no mapping"),
        (b"", "holds no mapping"),
        (b"just text", "holds no mapping"),
    ],
)
def test_file_that_is_no_spec(tmp_path: Path, content: bytes | None, law: str) -> None:
    path = tmp_path / "sweep.yaml"
    if content is not None:
        path.write_bytes(content)
    for source in (path, str(path)):
        (found,) = mistakes(source)
        assert found.field == "spec"
        assert found.value == str(path)
        assert law in found.law
    assert list(tmp_path.iterdir()) == ([path] if content is not None else [])
    (found,) = mistakes(tmp_path)
    assert "cannot be read" in found.law


def test_broken_yaml_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("task: one-layer-cnn\nks: [1, 3\nsteps: 5\n")
    (found,) = mistakes(path)
    assert "line 3" in found.law
    assert "\n" not in str(found)


# --------------------------------------------------------------------------- resolved and hash


def axis_specs(name: str) -> st.SearchStrategy[Any]:
    low = st.floats(1e-30, 1e20)

    def ranged(scale: str) -> st.SearchStrategy[Any]:
        return st.builds(
            lambda low, ratio, zero: {
                "scale": scale,
                "low": low,
                "high": low * ratio,
                "zero": zero and name != "lr",
            },
            low,
            st.floats(1.01, 1e10),
            st.booleans(),
        )

    value = low if name == "lr" else low | st.just(0.0) | st.just(0)
    return value | ranged("log") | ranged("linear")


signs = st.characters(codec="utf-8", exclude_characters="/\\").filter(str.isprintable)
names = st.none() | st.text(signs, max_size=12).filter(lambda name: name != "..")

valid_specs = st.fixed_dictionaries(
    {
        "task": st.sampled_from(
            [
                "mnist-mlp",
                {"name": "mnist-mlp", "samples": 100, "batch_size": 10},
                {"name": "one-layer-cnn", "image": 33, "distinct": False},
            ]
        ),
        "axes": st.fixed_dictionaries(
            {"lr": axis_specs("lr")},
            optional={"alpha": axis_specs("alpha"), "weight_decay": axis_specs("weight_decay")},
        ),
        "budget": st.sampled_from([{"points": 7}, {"wall_time": "3m"}, {"points": 2**40}]),
    },
    optional={
        "name": names,
        "ks": st.sampled_from([[1, 3], [3, 1, 2], [5, 9]]),
        "seeds": st.integers(1, 9),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "steps": st.integers(20, 10**6),
        "dtype": st.sampled_from(["float32", "float64"]),
        "optimiser": st.sampled_from(["sgd", "nesterov", "adam", "rmsprop"]),
        "momentum": st.none() | st.floats(0, 1, exclude_max=True),
        "decay": st.sampled_from(["coupled", "decoupled"]),
        "stabiliser": st.sampled_from(
            ["clip-norm", {"name": "stability", "anchor": 7, "layers": None}, "spectra"]
        ),
        "lyapunov": st.booleans(),
        "sharpness": st.booleans(),
        "search": st.fixed_dictionaries(
            {},
            optional={
                "method": st.sampled_from(["boundary", "sobol", "grid", "tpe", "gp"]),
                "batch": st.integers(1, 100),
                "levels": st.integers(2, 9) | st.just({"lr": 3, "alpha": 2}),
            },
        ),
        "resources": st.fixed_dictionaries(
            {}, optional={"workers": st.integers(1, 64), "cpus": st.floats(0.1, 8)}
        ),
        "tracking": st.sampled_from([{}, {"address": "http://x", "experiment": "y"}]),
        "folder": st.sampled_from(["/tmp/x", "~/somewhere"]),
    },
)


@given(raw=valid_specs)
def test_resolved_loads_back_to_the_same_sweep(raw: dict[str, Any]) -> None:
    """As plain values and through YAML, to the bit, and it says everything."""
    spec = load_spec(raw)
    resolved = spec.resolved()
    assert list(resolved)[:2] == ["task", "axes"]
    assert set(resolved) == set(SweepSpec.model_fields)
    for source in (resolved, yaml.safe_load(yaml.safe_dump(resolved, sort_keys=False))):
        again = load_spec(source)
        assert again.hash == spec.hash
        assert again.resolved() == resolved
        assert again.space == spec.space
        assert again.training == spec.training
        assert again.budget == spec.budget
    assert len(spec.hash) == 16
    assert set(spec.hash) <= set("0123456789abcdef")


def test_resolved_reads_as_people_write() -> None:
    """Every default is filled in, and a fixed axis is a number."""
    resolved = load_spec(BASE, {"optimiser": "adam", "axes.alpha": 0.5}).resolved()
    assert resolved["momentum"] == 0.9
    assert resolved["seeds"] == 1
    assert resolved["axes"] == {
        "lr": {"scale": "log", "low": 0.01, "high": 10.0},
        "alpha": 0.5,
        "weight_decay": {"scale": "log", "low": 1e-3, "high": 1.0, "zero": True},
    }
    assert resolved["task"] == {
        "name": "one-layer-cnn",
        "image": 64,
        "kernel": 32,
        "distinct": True,
    }
    assert resolved["folder"]


def test_resolved_start_points_load_back() -> None:
    spec = load_spec(BASE, {"search.start": [{"lr": 0.1 + 0.2, "weight_decay": 0}]})
    again = load_spec(spec.resolved())
    assert again.start == spec.start
    assert again.hash == spec.hash


#: What only decides where and for how long a sweep runs.
SILENT: dict[str, list[Any]] = {
    "name": ["x"],
    "budget": [{"points": 999}, {"wall_time": 5}],
    "resources": [{"pack": 1}, {"workers": 2}, {"cpus": 2}],
    "tracking": [{"address": "http://elsewhere"}, {"experiment": "other"}],
    "folder": ["/tmp/elsewhere"],
    "database": ["sqlite:////data/stabmap.db", "postgresql://host/stabmap"],
}
#: Everything else: each of these is another sweep.
TELLING: dict[str, list[Any]] = {
    "task": ["one-layer-cnn", {"name": "one-layer-cnn", "image": 65}, "mnist-mlp"],
    "axes": [
        {"lr": 0.1},
        {"lr": 0.1 + 1e-17, "weight_decay": 0.1},
        {"lr": 0.1, "alpha": 0.1},
        {"lr": log(0.01, 10)},
        {"lr": linear(0.01, 10)},
        {"lr": log(0.011, 10)},
        {"lr": log(0.01, 11)},
        {**BASE["axes"], "weight_decay": {"scale": "log", "low": 1e-3, "high": 1}},
    ],
    "ks": [[3, 1], [1, 5], [1, 3, 5]],
    "seeds": [2],
    "seed": [1, -1],
    "orders": [2, 3],
    "steps": [61],
    "steps_at_lr": [100.0],
    "schedule": ["cosine", "step-decay", {"name": "step-decay", "every": 0.3}],
    "dtype": ["float64"],
    "device": ["cuda", "cuda:0"],
    "optimiser": ["nesterov", "adam", "adamw", "rmsprop", "adadelta", "torch.optim.NAdam"],
    "momentum": [0.5],
    "decay": ["decoupled"],
    "stabiliser": [
        "stability",
        "stability-reference",
        {"name": "stability", "anchor": "epoch"},
        "clip-norm",
    ],
    "lyapunov": [False],
    "evaluate_every": [20],
    "early": [False],
    "backend": ["loop", "vmap"],
    "beta2": [0.5, 0.6],
    "eps": [1e-3],
    "sharpness": [False],
    "search": [
        {"method": "grid"},
        {"method": "tpe"},
        {"batch": 15},
        {"method": "grid", "levels": 7},
        {"method": "grid", "levels": {"lr": 8}},
        {"start": [{"lr": 1, "weight_decay": 0}]},
        {"start": [{"lr": 1, "weight_decay": 1}]},
    ],
}


def test_every_field_is_known_to_be_in_the_hash_or_not() -> None:
    assert set(SILENT) | set(TELLING) == set(SweepSpec.model_fields)
    assert not set(SILENT) & set(TELLING)


@pytest.mark.parametrize("field", SILENT)
def test_hash_does_not_change_with(field: str) -> None:
    for value in SILENT[field]:
        changed = load_spec({**BASE, field: value})
        assert changed.resolved() != load_spec(BASE).resolved()
        assert changed.hash == load_spec(BASE).hash


def test_all_changes_that_tell_give_different_hashes() -> None:
    hashes = [load_spec(BASE).hash]
    for field, values in TELLING.items():
        base: dict[str, Any] = {"optimiser": "rmsprop"} if field in ("beta2", "eps") else {}
        if field == "stabiliser":  # it tells only where it acts
            base = {"axes": {**BASE["axes"], "alpha": 0.5}}
        if field == "orders":  # a full batch has none
            base = {"task": {"name": "mnist-mlp", "batch_size": 10}}
        hashes += [load_spec({**BASE, **base, field: value}).hash for value in values]
    assert len(hashes) == 1 + sum(map(len, TELLING.values()))
    assert len(set(hashes)) == len(hashes)


def test_hash_changes_with_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_spec(BASE).hash
    monkeypatch.setattr(spec_module, "__version__", "99.0")
    assert load_spec(BASE).hash != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"task": "one-layer-cnn"}, {"task": {"name": "one-layer-cnn"}}),
        ({"axes": {"lr": 0.1}}, {"axes": {"lr": {"scale": "fixed", "value": "1e-1"}}}),
        ({"axes": {"lr": 0.1}}, {"axes": {"lr": 0.1, "alpha": 0, "weight_decay": 0.0}}),
        ({"axes": {"lr": 1}}, {"axes": {"lr": 1.0}}),
        ({"momentum": None}, {"momentum": 0}),
        ({"optimiser": "adam"}, {"optimiser": "adam", "momentum": 0.9, "beta2": 0.999}),
        ({"optimiser": "adamw"}, {"optimiser": "adam", "decay": "decoupled"}),
        ({"task": "one-layer-cnn"}, {"task": {"name": "one-layer-cnn", "image": 256}}),
        ({"search": {"levels": 3}}, {"search": {"levels": 5}}),
        ({"stabiliser": "stability"}, {"stabiliser": "none"}),
        ({"stabiliser": "none"}, {"stabiliser": "clip-norm"}),
        ({"stabiliser": "clip-norm"}, {"stabiliser": {"name": "stability", "anchor": 3}}),
        (
            {"stabiliser": "stability"},
            {"stabiliser": {"name": "stability", "mode": "auto", "anchor": "never"}},
        ),
        ({"search": {}}, {"search": {"method": "boundary", "levels": 8, "batch": 8, "audit": 3}}),
        ({"search": "sobol"}, {"search": {"method": "sobol", "startup": 5, "replicates": 9}}),
        ({"ks": [1, 3]}, {"ks": (1, 3)}),
    ],
)
def test_two_spellings_of_one_sweep(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert load_spec({**BASE, **one}).hash == load_spec({**BASE, **other}).hash


@pytest.mark.parametrize("named", ["clip-norm", {"name": "stability", "anchor": "epoch"}])
def test_a_stabiliser_at_alpha_zero_is_noted(named: Any) -> None:
    name = named if isinstance(named, str) else named["name"]
    spec = load_spec(BASE, {"stabiliser": named})
    note = f"stabiliser {name} does nothing at alpha 0: give axes.alpha a range"
    assert spec.notes == (note,)
    assert load_spec(spec.resolved()).notes == (note,)
    assert spec.about()["training"]["stabiliser"] == {"name": "none"}
    assert load_spec(BASE, {"stabiliser": named, "ks": [1, 2, 3]}).notes[1:] == (note,)
    for alpha in (0.1, linear(0, 1)):
        acting = load_spec(BASE, {"stabiliser": named, "axes.alpha": alpha})
        assert acting.notes == ()
        assert acting.about()["training"]["stabiliser"]["name"] == name


def test_no_stabiliser() -> None:
    spec = load_spec(BASE, {"stabiliser": "none"})
    assert spec.notes == load_spec(BASE).notes == ()
    assert spec.resolved()["stabiliser"] == {"name": "none"}
    assert spec.about() == load_spec(BASE).about()
    assert spec.about()["training"]["stabiliser"] == {"name": "none"}


def test_the_order_of_keys_does_not_count() -> None:
    backwards = dict(reversed(list(BASE.items())))
    backwards["axes"] = dict(reversed(list(BASE["axes"].items())))
    forwards = {**BASE, "task": {"name": "one-layer-cnn", "image": 64, "kernel": 16}}
    backwards["task"] = {"kernel": 16, "image": 64, "name": "one-layer-cnn"}
    assert load_spec(backwards).hash == load_spec(forwards).hash


def test_a_spec_cannot_be_changed() -> None:
    spec = load_spec(BASE)
    with pytest.raises(ValueError, match="frozen"):
        spec.steps = 5


def test_a_broken_axis_hides_no_law_of_the_others() -> None:
    changes = {"axes.lr": 1e-39, "axes.alpha": -1, "search.start": [{"weight_decay": 5}]}
    fields = {m.field for m in mistakes(BASE, changes)}
    assert {"axes.lr", "axes.alpha"} <= fields


def test_both_missing_ends_are_reported() -> None:
    fields = sorted(m.field for m in mistakes(BASE, {"axes.lr": {"scale": "log"}}))
    assert fields == ["axes.lr.high", "axes.lr.low"]


def test_an_option_of_a_stabiliser_given_by_name() -> None:
    spec = load_spec({**BASE, "stabiliser": "spectra"}, {"stabiliser.aspect": True})
    assert spec.training.stabiliser == {"name": "spectra", "iterations": None, "aspect": True}


def test_an_optimiser_that_cannot_take_the_network() -> None:
    (found,) = mistakes(BASE, {"task": "mnist-mlp", "optimiser": "torch.optim.Muon"})
    assert (found.field, found.value) == ("optimiser", "torch.optim.Muon")
    assert "(32,)" in found.law


@pytest.mark.parametrize(
    "address", ["postgresql+asyncpg://host/db", "mysql://host/db", "sqlite://", "/a/file.db"]
)
def test_addresses_that_are_no_database(address: str) -> None:
    with pytest.raises(InputError, match=r"database = .*: is no address of a sqlite file or of"):
        load_spec({**BASE, "database": address})


@pytest.mark.parametrize("driver", ["", "+psycopg2", "+psycopg", "+pg8000"])
def test_drivers_of_postgresql(driver: str) -> None:
    address = f"postgresql{driver}://host/db"
    assert load_spec({**BASE, "database": address}).database == address
