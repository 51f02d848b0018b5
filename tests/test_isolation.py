"""Whether results depend on their neighbours, and that a dependence is found; other precisions."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import Tensor
from typer.testing import CliRunner

from stabmap.cli import app
from trainables import isolation
from trainables.domain import InputError, Point, Regime, StabmapError, Training
from trainables.dynamics.ensembles import choose
from trainables.dynamics.ensembles.backend import Stack
from trainables.dynamics.ensembles.batched import Batched
from trainables.evaluate import check_reproducible, evaluate
from trainables.isolation import check_isolation
from trainables.tasks import get_task


@pytest.fixture(autouse=True)
def forget() -> None:
    """No test lives on what another one has chosen."""
    choose._known.clear()


MLP = {"samples": 24, "width": 4}
POINTS = [Point(0.01), Point(0.3, 0.0, 0.1), Point(3.0)]


def test_results_do_not_depend_on_their_neighbours() -> None:
    found = check_isolation("mnist-mlp", MLP, Training(steps=40), POINTS)
    assert found.sound
    assert found.backend == "wide"
    assert list(found.differences) == [
        "together",
        "together, the other way round",
        "two at a time",
        "stopped and restored",
        "beside another process",
    ]


class Crowded(Batched):
    """Rounds otherwise in stacks of seven to fifteen, which the trial does not make."""

    def gradients(
        self, stack: Stack, inputs: Tensor, targets: Tensor, each: bool
    ) -> tuple[Tensor, list[Tensor]]:
        losses, gradients = super().gradients(stack, inputs, targets, each)
        if 7 <= len(losses) <= 15:
            gradients = [g * (1 + 1e-12) for g in gradients]
        return losses, gradients


def test_a_dependence_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "Batched", Crowded)
    found = check_isolation("mnist-mlp", MLP, Training(steps=20, dtype="float64"), POINTS)
    assert not found.sound
    assert found.differences["together"] == POINTS
    assert found.differences["two at a time"] == []
    assert found.to_dict()["sound"] is False


def test_a_neighbour_that_does_not_train_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "PATIENCE", 0.01)
    with pytest.raises(StabmapError, match="no second process could train it beside the first"):
        check_isolation("mnist-mlp", MLP, Training(steps=20), POINTS)


@pytest.mark.parametrize("sound", [True, False])
def test_doctor(sound: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not sound:
        monkeypatch.setattr(choose, "Batched", Crowded)
    words = ["doctor", "--isolation", "-o", "dtype=float64"]
    words += ["-o", "steps=20", "-o", "task.samples=24"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == (0 if sound else 1)
    assert ("together: the same to the bit as alone" in shown.stdout) == sound
    assert ("DIFFERENT from alone" in shown.stdout) != sound
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert found["isolation"]["sound"] is sound
    assert found["isolation"]["backend"] == "batched"
    assert set(found["versions"]) >= {"python", "torch", "ray", "stabmap"}


def test_doctor_without_a_check() -> None:
    shown = CliRunner().invoke(app, ["doctor", "--json"])
    assert shown.exit_code == 0
    assert "isolation" not in json.loads(shown.stdout)


# --------------------------------------------------------------------------- precisions


def test_regimes_in_bfloat16() -> None:
    """Exact boundaries at 0.03226 and 0.1; two digits are enough for what lies well inside."""
    points = [Point(lr, 0.0, 20.0) for lr in (0.01, 0.02, 0.05, 0.09, 0.12)]
    found = evaluate(points, get_task("one-layer-cnn", image=64), steps=100, dtype="bfloat16")
    assert [r.verdict.regime[0] for r in found] == ["s", "s", "r", "r", "d"]
    assert {r.replicates[0].backend for r in found} == {"loop"}


STABILISERS = [
    "stability", "stability-reference", "clip-norm", "clip-spectral-norm", "spectra", "stablemax",
    "orthogonal-gradient", "stable-spam",
]  # fmt: skip


@pytest.mark.parametrize("name", STABILISERS)
def test_stabilisers_work_in_bfloat16(name: str) -> None:
    task = get_task("mnist-mlp", **MLP)
    settings: dict[str, Any] = {"steps": 20, "dtype": "bfloat16", "stabiliser": name}
    (result,) = evaluate([Point(0.05, 0.5, 1e-3)], task, **settings)
    assert result.verdict.regime is Regime.STABLE


def test_k_and_2k_agree_in_bfloat16() -> None:
    check_reproducible(Point(0.05), get_task("mnist-mlp", **MLP), Training(dtype="bfloat16"))


def test_tfloat32_needs_a_gpu() -> None:
    with pytest.raises(InputError) as error:
        evaluate([Point(0.1)], "mnist-mlp", dtype="tfloat32")
    assert str(error.value) == (
        "dtype = 'tfloat32': only GPUs have it, and device is cpu; "
        "use device: cuda, or dtype: float32"
    )
    assert Training(dtype="tfloat32", device="cuda").smallest_lr == 3 * 2.0**-126
