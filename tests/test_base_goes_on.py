"""`early: base`: once its label is settled a training goes on with its base alone, as ever."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stabmap import example_map
from trainables import record as record_under_test
from trainables.domain import (
    InputError,
    Margins,
    Point,
    PointResult,
    Reason,
    Regime,
    Replicate,
    Training,
    Verdict,
)
from trainables.evaluate import checked_training, evaluate
from trainables.pack import PackRun
from trainables.tasks import Task, get_task
from trainables.verdict import Evidence, Observations

CNN: dict[str, Any] = {"image": 10, "kernel": 4}
MLP: dict[str, Any] = {"samples": 24, "width": 4}
BATCHES = {**MLP, "batch_size": 8}
#: Task, its options, settings of the training, and what trains it.
CASES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("one-layer-cnn", CNN, {}, "exact"),
    ("one-layer-cnn", CNN, {"momentum": 0.9, "ks": (1, 3, 5)}, "loop"),
    ("mnist-mlp", MLP, {"sharpness": False}, "wide"),
    ("mnist-mlp", MLP, {"optimiser": "adam", "lyapunov": False}, "batched"),
    ("mnist-mlp", BATCHES, {"optimiser": "nesterov", "dtype": "float64"}, "vmap"),
    ("mnist-mlp", BATCHES, {"stabiliser": {"name": "stability", "anchor": 5}}, "batched"),
    ("mnist-mlp", BATCHES, {"stabiliser": "spectra", "momentum": 0.9}, "batched"),
    (
        "mnist-mlp",
        MLP,
        {"stabiliser": {"name": "stable-spam", "reset_every": 7}, "optimiser": "adam"},
        "batched",
    ),
    ("mnist-mlp", BATCHES, {"stabiliser": "clip-norm"}, "loop"),
    (
        "mnist-regression",
        {"samples": 4, "batch_size": 2},
        {"lyapunov": False, "seeds": 1},
        "batched",
    ),
]
#: Long enough for checks, of which the first is after 32 updates.
STEPS = 44


def settle(
    step_of: Callable[[Observations], int],
) -> Callable[..., tuple[Verdict, Evidence] | None]:
    """A rule by which a label is settled from some step on, whatever is seen."""

    def settled(seen: Observations, _ratio: object = None) -> tuple[Verdict, Evidence] | None:
        now = len(seen.change)
        late = now >= step_of(seen) and seen.ended is None
        return (Verdict(Margins(-0.5, 0.5), Reason.AMPLIFIED, now), {}) if late else None

    return settled


def points_of(name: str, settings: Mapping[str, Any]) -> list[Point]:
    rate = 0.01 if name == "one-layer-cnn" else 0.003
    alpha = 0.5 if "stabiliser" in settings else 0.0
    return [Point(rate, alpha, 0.1), Point(rate / 3), Point(1e200)]


def interrupted(points: list[Point], task: Task, training: Training, every: int) -> Any:
    """The results of a pack that goes through a file after every few steps."""
    pack, steps = PackRun(points, task, training, together=9), 0
    while not pack.done:
        pack.advance(0.0)
        steps += 1
        if steps % every == 0:
            file = io.BytesIO()
            torch.save(pack.state_dict(), file)
            file.seek(0)
            pack = PackRun(points, task, training, together=9)
            pack.load_state_dict(torch.load(file, weights_only=True))
    return pack.results


def fingerprint(_: object, parameters: Iterable[Tensor], buffers: Iterable[Tensor] = ()) -> float:
    """In place of an accuracy: a number that another last bit of any parameter would change."""
    del buffers
    values = torch.cat([p.detach().double().reshape(-1) for p in parameters])
    return float(values @ torch.arange(1, len(values) + 1, dtype=torch.float64).sqrt())


def base_of(replicate: Replicate) -> tuple[Any, ...]:
    """What is known of the base trajectory's metric, and how long it was trained."""
    return replicate.evidence["metric"], replicate.curves["metric"], replicate.steps_run


@pytest.mark.parametrize(("name", "options", "changes", "backend"), CASES)
def test_the_base_goes_on_as_it_would_with_the_others(
    name: str,
    options: dict[str, Any],
    changes: dict[str, Any],
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Metric, its curve and length are those of full trainings; and the others are not trained."""
    # Each replicate at another check: bases join a stack that others are in already.
    rule = settle(lambda seen: 33 + int(1e6 * seen.loss[0]) % 9)
    monkeypatch.setattr(record_under_test, "settled", rule)
    monkeypatch.setattr(record_under_test.Record, "_metric", fingerprint)
    task, points = get_task(name, **options), points_of(name, changes)
    given = {"steps": STEPS, "seeds": 2, "evaluate_every": 4, "backend": backend, **changes}
    full = evaluate(points, task, early=False, **given)
    short = evaluate(points, task, early=True, **given)
    alone = evaluate(points, task, early="base", **given)
    ends, apart = set(), 0
    for one, two, three in zip(full, short, alone, strict=True):
        for a, b, c in zip(one.replicates, two.replicates, three.replicates, strict=True):
            assert (a.backend, b.backend, c.backend) == (backend, backend, backend)
            assert c.verdict == b.verdict
            if one.point.lr < 1:
                ends.add(c.verdict.step)
                assert base_of(c) == base_of(a)
                assert base_of(a)[2] == STEPS and c.evidence["metric_k3"] is None
                apart += a.evidence["metric"] != a.evidence["metric_k3"]
                assert c.curves["loss"] == b.curves["loss"]
                assert c.evidence.get("lyapunov_exponent") == b.evidence.get("lyapunov_exponent")
    assert len(ends) > 1 and max(ends) < STEPS
    assert apart  # it would be seen if another k had gone on
    training = checked_training({"early": "base", **given})
    assert evaluate(points[::-1], task, early="base", **given) == alone[::-1]
    assert interrupted(points, task, training, 5) == alone


def test_labels_are_those_of_early_ends_and_metrics_those_of_full_length() -> None:
    """Along both boundaries of the one-layer CNN, by the rule itself."""
    task = get_task("one-layer-cnn", image=16, kernel=6)
    points = [Point(lr, 0.0, 20.0) for lr in (0.01, 0.02, 0.031, 0.05, 0.099, 0.103)]
    found: dict[Any, list[PointResult]] = {
        early: evaluate(points, task, steps=400, dtype="float64", seeds=2, early=early)
        for early in (True, False, "base")
    }
    saved = 0
    for one, two, three in zip(found[True], found[False], found["base"], strict=True):
        assert three.verdict == one.verdict
        assert three.verdict.regime is two.verdict.regime
        for a, b in zip(two.replicates, three.replicates, strict=True):
            if two.verdict.regime is not Regime.DIVERGENT:
                assert (b.evidence["metric"], b.steps_run) == (a.evidence["metric"], 400)
                saved += 400 - b.verdict.step
    assert saved > 1000


@pytest.mark.parametrize("backend", ["exact", "loop"])
def test_a_base_that_blows_up_after_all_takes_its_label_back(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Called restrained while it grew, it is divergent: as at full length, though seen later."""
    monkeypatch.setattr(record_under_test, "settled", settle(lambda _: 33))
    task, points = get_task("one-layer-cnn", **CNN), [Point(0.05, 0.0, 44.0)]
    given: dict[str, Any] = {"steps": 400, "backend": backend, "dtype": "float64"}
    (full,), (found,) = (evaluate(points, task, early=early, **given) for early in (False, "base"))
    (one,), (other,) = full.replicates, found.replicates
    assert 33 < one.steps_run < 400
    assert found.verdict.regime is full.verdict.regime is Regime.DIVERGENT
    assert found.verdict.reason is full.verdict.reason
    assert other.steps_run == pytest.approx(one.steps_run, abs=1)
    assert other.verdict.step == other.steps_run
    assert other.evidence["metric"] is None and other.evidence["metric_k3"] is None


def test_a_network_with_a_state_goes_on_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch normalisation: its running statistics are those of the base."""
    monkeypatch.setattr(record_under_test, "settled", settle(lambda _: 35))
    task = get_task("resnet", data="mnist", depth=8, width=1, samples=20, batch_size=4)
    given: dict[str, Any] = {"steps": 40, "lyapunov": False, "evaluate_every": 10, "ks": (1, 3)}
    found = [evaluate([Point(0.05)], task, early=early, **given)[0] for early in (False, "base")]
    one, other = (result.replicates[0] for result in found)
    assert (other.verdict.step, other.evidence["metric_k3"]) == (35, None)
    assert base_of(other) == base_of(one)


def test_what_else_early_may_be() -> None:
    with pytest.raises(InputError, match=r"early = 'bases'.*use one of False, True, base"):
        Training(early="bases")  # type: ignore[arg-type]


def test_variance_over_k_needs_every_k_to_the_end() -> None:
    """The error says which setting has kept the others short."""
    found = example_map(seeds=3)
    about = {**found.about, "training": {**found.about["training"], "early": "base"}}
    rows = found.frame.assign(
        trainings=[t.replace('"metric_k3"', '"was_k3"') for t in found.frame["trainings"]]
    )
    with pytest.raises(InputError, match="sweep with `early: false`, which trains every k"):
        replace(found, about=about, frame=rows).variance()
