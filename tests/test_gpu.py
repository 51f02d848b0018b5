"""What must hold on a GPU; skipped where there is none."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from trainables.domain import Point, Training
from trainables.dynamics.curvature import sharpness
from trainables.dynamics.stabilisers import stabiliser_names
from trainables.evaluate import check_reproducible, evaluate
from trainables.pack import PackRun
from trainables.tasks.mnist_regression import MnistRegression
from trainables.tasks.one_layer_cnn import OneLayerCNN

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

RATES = (0.01, 0.02, 0.029, 0.031, 0.05, 0.07, 0.09, 0.12)
EXACT = "SSSSRRRD"


class RandomImages(MnistRegression):
    """The LeNet of the regression task on random images: no data set is needed."""

    def train_data(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(400, 1, 32, 32, generator=generator, dtype=torch.float64)
        return images, torch.randint(0, 10, (400, 1), generator=generator).double()

    def test_data(self) -> tuple[Tensor, Tensor]:
        return self.train_data()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_verdicts_are_exact(dtype: str) -> None:
    """Acceptance row 15, without the two rates that need 1,000 steps."""
    results = evaluate(
        [Point(lr, 0.0, 20.0) for lr in RATES],
        OneLayerCNN(image=64),
        dtype=dtype,
        device="cuda",
        sharpness=False,
    )
    assert "".join(r.verdict.regime.value[0].upper() for r in results) == EXACT


OPTIMISERS = ("sgd", "nesterov", "adam", "rmsprop", "adadelta", "torch.optim.NAdam")


@pytest.mark.parametrize("alpha", [0.0, 3.0])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_convolutions_repeat_to_the_bit(optimiser: str, alpha: float) -> None:
    """k repeated and k doubled agree on the device's own kernels."""
    training = Training(device="cuda", optimiser=optimiser)
    check_reproducible(Point(0.01, alpha), RandomImages(samples=400), training)


def test_runs_repeat_to_the_bit() -> None:
    task = RandomImages(samples=400)
    first, second = (
        evaluate([Point(0.01, 1.0, 1e-3)], task, steps=40, device="cuda") for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("name", [n for n in stabiliser_names() if n != "stablemax"])
def test_stabilisers_go_on_to_the_bit(name: str) -> None:
    """State is on the device it is needed on, also after a checkpoint on the processor."""
    task = RandomImages(samples=400)
    training = Training(device="cuda", steps=20, stabiliser=name)
    points = [Point(0.01, 0.5)]
    straight, first, second = (PackRun(points, task, training) for _ in range(3))
    straight.advance()
    while not first.done:
        first.advance(seconds=0.0)
        if first.results:
            break
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        first, second = second, PackRun(points, task, training)
    first.advance()
    assert first.results == straight.results


def test_sharpness_is_that_of_the_processor() -> None:
    module, (inputs, targets) = OneLayerCNN(image=64).module(0), OneLayerCNN(image=64).train_data()
    loss = OneLayerCNN(image=64).loss.value
    here = sharpness(module, loss, inputs, targets).value
    there = sharpness(module.cuda(), loss, inputs.cuda(), targets.cuda()).value
    assert there == pytest.approx(here, rel=1e-3)
