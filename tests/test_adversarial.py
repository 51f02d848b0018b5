"""Games: who moves when, the hinge loss by hand, published sizes, the Frechet distance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
from torch import Tensor, nn
from toys import Bowl

import stabmap
from stabmap.testing import check_task
from trainables.domain import InputError, Point, Training
from trainables.tasks import Alternating, get_task
from trainables.tasks.adversarial import NOISE, Game
from trainables.tasks.biggan import BigGAN
from trainables.tasks.frechet import FEATURES, frechet_distance, small_features
from trainables.tasks.sngan import SNGAN
from trainables.trajectory import Bench, Trajectory

SMALL: dict[str, Any] = {
    "samples": 16, "batch_size": 4, "width": 3, "generator_width": 2, "generated": 8,
    "discriminator_steps": 2,
}  # fmt: skip
KINDS = [SNGAN, BigGAN]


def small(kind: Any, **changes: Any) -> Any:
    return kind(**SMALL | changes)


# ------------------------------------------------------------------ who moves when


@dataclass(frozen=True)
class TwoBowls(Bowl):
    """Two linear layers that are trained in turns of two and one."""

    batch: ClassVar[int | None] = None

    def module(self, seed: int) -> nn.Module:
        parts = {"one": super().module(seed), "two": super().module(seed + 1)}
        return _Sum(nn.ModuleDict(parts))

    def trained(self, step: int) -> tuple[str, ...]:
        return ("parts.two",) if step % 3 == 2 else ("parts.one",)


class _Sum(nn.Module):
    def __init__(self, parts: nn.ModuleDict) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, inputs: Tensor) -> Tensor:
        return self.parts["one"](inputs) + self.parts["two"](inputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "torch.optim.Adam"])
def test_turns_are_those_of_two_optimisers(optimiser: str) -> None:
    """PyTorch with an optimiser a player, momentum and weight decay included."""
    kind: Any = torch.optim.SGD if optimiser == "sgd" else torch.optim.Adam
    own: dict[str, Any] = {"momentum": 0.9} if optimiser == "sgd" else {}
    training = Training(optimiser=optimiser, dtype="float64", **own)
    bench = Bench.of(TwoBowls(), training)
    trajectory = Trajectory(bench, Point(lr=0.05, weight_decay=0.01), 1, 0)
    module: Any = bench.network(0, torch.float64)
    players = [
        kind(module.parts[name].parameters(), lr=0.05, weight_decay=0.01, **own)
        for name in ("one", "two")
    ]
    for step in range(20):
        trajectory.step(slice(None))
        loss: Any = F.mse_loss(module(bench.inputs), bench.targets)
        module.zero_grad()
        loss.backward()
        players[step % 3 == 2].step()
        for ours, theirs in zip(trajectory.parameters, module.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-14)


def test_a_game_is_trained_one_trajectory_after_the_other() -> None:
    task = TwoBowls()
    assert isinstance(task, Alternating)
    [result] = stabmap.evaluate([Point(lr=0.1)], task, steps=30)
    assert result.replicates[0].backend == "loop"
    report = check_task(task)
    assert report.ok, str(report)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_player_whose_turn_it_is_moves(kind: Any) -> None:
    bench = Bench.of(small(kind), Training())
    trajectory = Trajectory(bench, Point(lr=0.05, weight_decay=0.1), 1, 0)
    for step in range(6):
        before = {name: p.detach().clone() for name, p in trajectory.module.named_parameters()}
        trajectory.step(bench.batch(0, step))
        moved = {
            name.partition(".")[0]
            for name, p in trajectory.module.named_parameters()
            if not torch.equal(p, before[name])
        }
        assert moved == {"generator" if step % 3 == 2 else "discriminator"}


# ------------------------------------------------------------------ the loss


@pytest.mark.parametrize("kind", KINDS)
def test_each_player_gets_the_gradient_of_its_own_part(kind: Any) -> None:
    """Against the two hinge losses written out, on a copy."""
    task = small(kind)
    inputs, targets = task.train_data()
    inputs = inputs[:4]
    game: Any = task.module(1)
    loss = task.loss.value(game(inputs), targets[:4])
    found = dict(zip(*zip(*game.named_parameters(), strict=True), strict=True))
    gradients = dict(zip(found, torch.autograd.grad(loss, list(found.values())), strict=True))
    other: Any = task.module(1)
    pixels = 3 * 32 * 32
    images = inputs[:, :pixels].reshape(-1, 3, 32, 32)
    noise, classes, wanted = inputs[:, pixels:-2], inputs[:, -2].long(), inputs[:, -1].long()
    drawn = other.generator(noise, wanted)
    real = other.discriminator(images, classes)
    fake = other.discriminator(drawn.detach(), wanted)
    critic = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    mine = list(other.discriminator.parameters())
    # The third pass sees weights that two power iterations have moved on: it comes after them.
    fooled = other.discriminator(drawn, wanted)
    theirs = list(other.generator.parameters())
    for part, player, parameters in (
        (critic, other.discriminator, mine), (-fooled.mean(), other.generator, theirs),
    ):  # fmt: skip
        name = "discriminator." if player is other.discriminator else "generator."
        expected = torch.autograd.grad(part, parameters)
        for (key, _), gradient in zip(player.named_parameters(), expected, strict=True):
            torch.testing.assert_close(gradients[name + key], gradient)
    torch.testing.assert_close(loss, critic - fooled.mean())


def test_noise_is_new_in_each_step_and_the_same_for_all_k() -> None:
    task = small(SNGAN)
    inputs, _ = task.train_data()
    one, again, other = (task.augment(inputs, 5, step) for step in (3, 3, 4))
    assert torch.equal(one, again)
    pixels = 3 * 32 * 32
    assert torch.equal(one[:, :pixels], other[:, :pixels])
    noise = other[:, pixels : pixels + NOISE]
    assert not torch.equal(noise, one[:, pixels : pixels + NOISE])
    assert abs(float(noise.mean())) < 0.1
    assert abs(float(noise.std()) - 1) < 0.1
    assert set(other[:, -1].tolist()) <= set(range(10))
    assert torch.equal(other[:, -2], inputs[:, -2])


def test_generated_images_are_what_is_compared() -> None:
    task = small(SNGAN)
    game: Any = task.module(0)
    inputs, held_out = task.test_data()
    game.eval()
    images = game(inputs)
    assert images.shape == held_out.shape == (8, 3 * 32 * 32)
    assert -1 <= float(images.detach().min()) <= float(images.detach().max()) <= 1
    assert isinstance(game, Game)
    assert task.metric(images.detach(), held_out) > 0


# ------------------------------------------------------------------ sizes


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_sizes() -> None:
    """Layer by layer from the tables of the papers, biases and affine normalisations included."""

    def conv(inputs: int, outputs: int, side: int) -> int:
        return inputs * outputs * side * side + outputs

    wide, narrow = 256, 128
    up = 2 * (conv(wide, wide, 3) + 2 * wide) + conv(wide, wide, 1)
    generator = NOISE * 16 * wide + 16 * wide + 3 * up + 2 * wide + conv(wide, 3, 3)
    first = conv(3, narrow, 3) + conv(narrow, narrow, 3) + conv(3, narrow, 1)
    halves = 2 * conv(narrow, narrow, 3) + conv(narrow, narrow, 1)
    discriminator = first + halves + 4 * conv(narrow, narrow, 3) + narrow + 1
    sngan: Any = SNGAN().module(0)
    assert count(sngan.generator) == generator == 4_276_739
    assert count(sngan.discriminator) == discriminator == 1_053_825
    up = 2 * (conv(wide, wide, 3) + 2 * 100 * wide) + conv(wide, wide, 1)
    generator = NOISE * 16 * wide + 16 * wide + 3 * up + 2 * wide + conv(wide, 3, 3)
    first = conv(3, wide, 3) + conv(wide, wide, 3) + conv(3, wide, 1)
    halves = 2 * conv(wide, wide, 3) + conv(wide, wide, 1)
    discriminator = first + halves + 4 * conv(wide, wide, 3) + wide + 1 + 100 * wide
    biggan: Any = BigGAN().module(0)
    assert count(biggan.generator) == generator == 4_580_867
    assert count(biggan.discriminator) == discriminator


@pytest.mark.parametrize("kind", KINDS)
def test_the_discriminator_is_spectrally_normalised(kind: Any) -> None:
    """After many passes every weight that acts has a largest singular value of 1."""
    task = small(kind)
    game: Any = task.module(0)
    inputs = task.train_data()[0][:4]
    with torch.no_grad():
        for _ in range(50):
            game(inputs)
    game.eval()
    normalised = [
        part for part in game.discriminator.modules()
        if isinstance(part, (nn.Conv2d, nn.Linear, nn.Embedding))
    ]  # fmt: skip
    assert len(normalised) >= 11
    for part in normalised:
        largest = float(torch.linalg.matrix_norm(part.weight.flatten(1), 2))
        assert largest == pytest.approx(1.0, abs=2e-2)


# ------------------------------------------------------------------ the metric


class _AsTheyAre(nn.Module):
    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return images.double().flatten(1)


def _images(number: int, seed: int, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + torch.rand(number, 3, 2, 2, generator=generator, dtype=torch.float64)


def test_a_set_is_at_no_distance_from_itself() -> None:
    images = _images(50, 0)
    assert abs(frechet_distance(images, images, _AsTheyAre())) < 1e-3


def test_the_distance_equals_scipys() -> None:
    """Heusel et al. 2017 with scipy's square root of a matrix, on the same features."""
    real, fake = _images(80, 0), _images(60, 1, 0.3)
    a, b = (images.flatten(1).numpy() for images in (real, fake))
    difference = a.mean(0) - b.mean(0)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(sqrtm(first @ second))
    expected = difference @ difference + np.trace(first + second - 2 * root)
    assert frechet_distance(real, fake, _AsTheyAre()) == pytest.approx(expected, rel=1e-6)


def test_the_small_network_tells_classes_apart_and_is_always_the_same() -> None:
    network = small_features("cifar-10", None)
    small_features.cache_clear()
    again = small_features("cifar-10", None)
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    from trainables.tasks.images import load

    _, (pixels, labels) = load("cifar-10", None)
    images = torch.from_numpy(pixels[:300]).double() / 255
    features = network(images)
    assert features.shape == (300, FEATURES)
    right = network.output(features).argmax(1) == torch.from_numpy(labels[:300])
    assert float(right.double().mean()) > 0.3  # ten classes
    half = frechet_distance(images[:150], images[150:], network)
    noise = frechet_distance(images[:150], torch.rand_like(images[150:]), network)
    assert noise > 10 * half


def test_the_metric_says_what_it_is(tmp_path: Path) -> None:
    assert "no FID" in small(SNGAN).metric_name
    with pytest.raises(InputError, match=r"task\.inception = .*there is no such file"):
        small(SNGAN, inception=str(tmp_path / "weights.pth"))
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"task\.inception = .*torch-fidelity"):
        small(SNGAN, inception=str(weights))


@pytest.mark.parametrize(
    ("option", "value"),
    [("discriminator_steps", 0), ("regularised", "both"), ("width", 0), ("generated", 1),
     ("generator_width", 0), ("batch_size", None)],
)  # fmt: skip
def test_options_obey_their_laws(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"task.{option}"):
        small(SNGAN, **{option: value})


def test_more_images_than_there_are() -> None:
    with pytest.raises(InputError, match="held-out images only"):
        small(SNGAN, generated=50_000).test_data()


# ------------------------------------------------------------------ sweeps


@pytest.mark.parametrize("player", ["discriminator", "generator"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layer_is_regularised(kind: Any, player: str) -> None:
    task = small(kind, regularised=player)
    assert task.module(0).get_submodule(task.regularised_layer) is not None
    settings: dict[str, Any] = {"steps": 24, "lyapunov": False, "seed": 1}
    plain, regularised = (
        stabmap.evaluate(
            [Point(lr=0.05, alpha=alpha)], task, **settings,
            stabiliser={"name": "stability", "anchor": "epoch"},
        )[0]
        for alpha in (0.0, 10.0)
    )  # fmt: skip
    one, other = (r.replicates[0].evidence["metric"] for r in (plain, regularised))
    assert one is not None and other is not None
    assert math.isfinite(float(other))
    assert one != other


def test_names_are_found() -> None:
    assert get_task("sngan").name == "sngan"
    assert get_task("biggan").name == "biggan"
