"""The guard of training loops: against boundaries that are known, in plain loops and Lightning."""

from __future__ import annotations

import sys
import types
import warnings
from typing import Any

import pytest
import torch
from synthetic import ALPHA, DECAY, LR, boundaries, measure, spec_of

import stabmap
from analysis.map import StabilityMap
from stabmap.guard import MapGuard, UnstableError
from sweeps.rounds import Rounds
from trainables.domain import InputError, StabmapError


def map_over(axes: dict[str, Any], points: int = 96) -> StabilityMap:
    spec = spec_of(axes, search="sobol", budget={"points": points})
    rounds = Rounds(spec)
    while proposed := rounds.propose():
        for number, point in proposed:
            rounds.record(number, measure(point))
    return rounds.map()


@pytest.fixture(scope="module")
def known() -> StabilityMap:
    return map_over({"lr": LR, "weight_decay": DECAY})


def optimiser(lr: float, weight_decay: float = 0.01) -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1)], lr=lr, weight_decay=weight_decay)


@pytest.mark.parametrize("weight_decay", [1e-3, 1e-2, 0.3])
def test_rates_are_judged_by_the_boundary(known: StabilityMap, weight_decay: float) -> None:
    true = 10 ** boundaries(weight_decay)[0]
    guard = MapGuard(known)
    below, beyond = guard.ask(true / 2, weight_decay), guard.ask(true * 2, weight_decay)
    assert below.stable and not beyond.stable and beyond.known
    assert beyond.largest == known.max_stable("lr", weight_decay=weight_decay)
    assert beyond.largest is not None
    assert f"{beyond.lr / beyond.largest:.3g} times the largest" in beyond.text


def test_warning_comes_once_for_each_setting(known: StabilityMap) -> None:
    guard, wild = MapGuard(known), optimiser(5.0)
    with pytest.warns(UserWarning, match="stabmap: learning rate 5 is .* times the largest"):
        guard(wild)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guard(wild)
        guard(optimiser(0.01))
    wild.param_groups[0]["lr"] = 6.0
    with pytest.warns(UserWarning, match="learning rate 6"):
        guard(wild)


def test_stop(known: StabilityMap) -> None:
    guard = MapGuard(known, "stop")
    guard(optimiser(0.01))
    with pytest.raises(UnstableError, match="learning rate 5 is"):
        guard(optimiser(5.0))


def test_lower_changes_only_the_groups_that_are_beyond(known: StabilityMap) -> None:
    both = optimiser(5.0)
    both.add_param_group({"params": [torch.zeros(1)], "lr": 0.02, "weight_decay": 0.1})
    with pytest.warns(UserWarning, match="lowered to"):
        MapGuard(known, "lower")(both)
    rates = [group["lr"] for group in both.param_groups]
    assert rates == [known.max_stable("lr", weight_decay=0.01), 0.02]


def test_a_training_under_the_guard() -> None:
    """A parabola of curvature 2, stable below lr 1: lowered rates converge, others blow up."""
    spec = stabmap.load_spec(
        {"task": "one-layer-cnn", "axes": {"lr": {"scale": "log", "low": 0.01, "high": 100}},
         "search": "sobol", "budget": {"points": 64}}
    )  # fmt: skip
    rounds = Rounds(spec)
    from synthetic import result_of

    from trainables.domain import Margins

    while proposed := rounds.propose():
        for number, point in proposed:
            calm = 1.0 if point.lr < 1 else -1.0
            rounds.record(number, result_of(point, Margins(calm, calm)))
    guard = MapGuard(rounds.map(), "lower")
    for guarded in (True, False):
        x = torch.ones(1, requires_grad=True)
        descent = torch.optim.SGD([x], lr=1.5)
        for _ in range(100):
            if guarded:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    guard(descent)
            descent.zero_grad()
            (x**2).sum().backward()  # type: ignore[no-untyped-call]
            descent.step()
        assert (abs(x.item()) < 1e-3) is guarded


def test_off_the_map(known: StabilityMap) -> None:
    """Nothing is stopped or lowered where the map cannot tell."""
    calm = map_over({"lr": {**LR, "high": 0.05}, "weight_decay": 0.01}, 32)
    guard = MapGuard(calm, "stop")
    with pytest.warns(UserWarning, match="off the map, which is stable up to its end 0.05"):
        assert not guard(optimiser(3.0))[0].known
    with pytest.warns(UserWarning, match="holds weight_decay at 0.01, this training has 0.5"):
        guard(optimiser(0.02, 0.5))
    with pytest.warns(UserWarning, match="the map cannot tell: weight_decay = 7"):
        MapGuard(known, "stop")(optimiser(0.02, 7.0))


def test_other_axes_are_given() -> None:
    found = map_over({"lr": LR, "alpha": ALPHA}, 48)
    with pytest.raises(InputError, match=r"alpha = None: .* no optimiser has it; give its value"):
        MapGuard(found)
    guard = MapGuard(found, alpha=0.5)
    assert guard.ask(0.01).stable
    assert guard.ask(9.0).largest == found.max_stable("lr", alpha=0.5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"action": "shout"}, "action = 'shout': the guard cannot do that; use one of warn, stop"),
        ({"confidence": 1.0}, "confidence = 1.0: 0 < confidence < 1"),
        ({"momentum": 0.9}, "momentum = 0.9: is no other axis of a map; use alpha, weight_decay"),
        ({"lr": 0.1}, "is no other axis"),
    ],
)
def test_wrong_settings(known: StabilityMap, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        MapGuard(known, **settings)
    assert said in str(error.value)


def test_a_map_without_rates() -> None:
    found = map_over({"lr": 0.1, "weight_decay": DECAY}, 16)
    with pytest.raises(InputError, match=r"lr = 0\.1: the map has one rate"):
        MapGuard(found)


def trained(guard: MapGuard, lr: float, steps: int = 4) -> torch.optim.Optimizer:
    """A line fitted by Lightning's own trainer, for some batches, under the guard."""
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

    class Line(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            inputs, targets = batch
            return torch.nn.functional.mse_loss(self.layer(inputs), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.layer.parameters(), lr=lr, weight_decay=0.01)

    data = torch.utils.data.TensorDataset(torch.ones(steps, 1), torch.ones(steps, 1))
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[guard.lightning()],
    )
    with warnings.catch_warnings():  # Lightning's own, about workers and short epochs
        warnings.filterwarnings("ignore", message="(?!stabmap)")
        trainer.fit(Line(), torch.utils.data.DataLoader(data))
    assert trainer.global_step == steps
    return trainer.optimizers[0]  # type: ignore[no-any-return]


@pytest.mark.slow
def test_lightning_trains_on_with_a_warning(known: StabilityMap) -> None:
    with pytest.warns(UserWarning, match="stabmap: learning rate 5 is .* times") as said:
        assert trained(MapGuard(known), 5.0).param_groups[0]["lr"] == 5.0
    assert len([one for one in said if "stabmap" in str(one.message)]) == 1


@pytest.mark.slow
def test_lightning_is_stopped_before_the_first_step(known: StabilityMap) -> None:
    with pytest.raises(UnstableError, match="learning rate 5 is"):
        trained(MapGuard(known, "stop"), 5.0)
    assert trained(MapGuard(known, "stop"), 0.01).param_groups[0]["lr"] == 0.01


@pytest.mark.slow
def test_lightning_trains_at_the_lowered_rate(known: StabilityMap) -> None:
    with pytest.warns(UserWarning, match="lowered to"):
        lowered = trained(MapGuard(known, "lower"), 5.0)
    assert lowered.param_groups[0]["lr"] == known.max_stable("lr", weight_decay=0.01)


def test_lightning(known: StabilityMap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Lightning, and under its newer name."""
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(StabmapError, match="pip install lightning"):
        MapGuard(known).lightning()
    fake = types.ModuleType("lightning.pytorch")
    fake.Callback = type("Callback", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning", types.ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", fake)
    callback = MapGuard(known, "stop").lightning()
    assert isinstance(callback, fake.Callback)
    trainer = types.SimpleNamespace(optimizers=[optimiser(0.01), optimiser(5.0)])
    with pytest.raises(UnstableError):
        callback.on_train_batch_start(trainer, None, None, 0)
