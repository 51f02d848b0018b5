"""Networks whose buffers change in training, augmented batches, and a metric along the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import Bowl

from trainables.domain import InputError, Point, Training
from trainables.dynamics.lyapunov import Neighbour
from trainables.evaluate import check_reproducible, evaluate
from trainables.losses import CROSS_ENTROPY, Loss
from trainables.pack import PackRun
from trainables.record import MOST_HELD_OUT, Record
from trainables.replicate_run import ReplicateRun
from trainables.tasks.augmentation import PADDING, cropped_and_flipped
from trainables.trajectory import Bench, Trajectory

POINT = Point(lr=0.1, weight_decay=1e-3)


@dataclass(frozen=True)
class Normalised:
    """Two classes of eight numbers, by a small network with batch normalisation.

    Args:
        rows: size of a mini-batch, or None.
        shifts: whether each batch is shifted by numbers from seed and step.
    """

    rows: int | None = 8
    shifts: bool = False

    name: ClassVar[str] = "normalised"
    metric_name: ClassVar[str] = "mean of the outputs"
    regularised_layer: ClassVar[str] = "4"
    stand_in: ClassVar[str | None] = None
    loss: ClassVar[Loss] = CROSS_ENTROPY

    @property
    def batch(self) -> int | None:
        return self.rows

    def module(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.0), nn.Linear(6, 2)
        )
        return net.double()

    def train_data(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(40, 8, generator=generator, dtype=torch.float64)
        return inputs, (inputs.sum(1) > 0).long()

    def test_data(self) -> tuple[Tensor, Tensor]:
        inputs, targets = self.train_data()
        return 3 * inputs[:30] + 1, targets[:30]

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        return float(outputs[:, 0].mean())

    def augment(self, inputs: Tensor, seed: int, step: int) -> Tensor:
        if not self.shifts:
            return inputs
        shift = np.random.RandomState([seed, step]).randn(len(inputs), 1)
        return inputs + torch.from_numpy(shift).to(inputs)


def settings(**more: Any) -> dict[str, Any]:
    return {"steps": 40, "dtype": "float64", **more}


def by_hand(task: Normalised, seed: int, steps: int, lr: float, decay: float) -> nn.Module:
    """PyTorch's own loop."""
    module = task.module(seed)
    optimiser = torch.optim.SGD(module.parameters(), lr=lr, weight_decay=decay)
    bench = Bench.of(task, Training(**settings()))
    inputs, targets = task.train_data()
    for step in range(steps):
        rows = bench.batch(seed, step)
        loss = nn.functional.cross_entropy(
            module(task.augment(inputs[rows], seed, step)), targets[rows]
        )
        parameters = list(module.parameters())
        for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.grad = gradient
        optimiser.step()
    return module


# ------------------------------------------------------------------ running statistics


@pytest.mark.parametrize("task", [Normalised(), Normalised(shifts=True), Normalised(None)])
def test_the_metric_uses_the_statistics_of_the_training(task: Normalised) -> None:
    [result] = evaluate([POINT], task, **settings(early=False))
    (replicate,) = result.replicates
    module = by_hand(task, replicate.seed, 40, POINT.lr, POINT.weight_decay).eval()
    inputs, targets = task.test_data()
    with torch.no_grad():
        expected = task.metric(module(inputs), targets)
        module.train()
        assert abs(task.metric(module(inputs), targets) - expected) > 1e-3
    assert replicate.evidence["metric"] == pytest.approx(expected, rel=1e-9)
    assert replicate.backend == "loop"


@pytest.mark.parametrize("rows", [None, 8])
def test_objectives_change_no_statistics(rows: int | None) -> None:
    """Beside the training by hand every buffer stays the same, whatever is measured."""
    task = Normalised(rows)
    training = Training(**settings(early=False, evaluate_every=1))
    run = ReplicateRun(Record(Bench.of(task, training), POINT, 5))
    for _ in range(40):
        run.advance()
    module = by_hand(task, 5, 40, POINT.lr, POINT.weight_decay)
    for (name, ours), theirs in zip(
        run.trajectories[0].module.named_buffers(), module.buffers(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, msg=name)
    run.result()
    assert int(run.trajectories[0].module.get_buffer("1.num_batches_tracked")) == 40


def test_each_trajectory_has_its_own_buffers() -> None:
    run = ReplicateRun(Record(Bench.of(Normalised(), Training(**settings())), POINT, 5))
    assert run._neighbour is not None
    for _ in range(5):
        run.advance()
    trajectories = [*run.trajectories, run._neighbour.other]
    means = [t.module.get_buffer("1.running_mean") for t in trajectories]
    assert len({m.data_ptr() for m in means}) == 3
    assert not any(torch.equal(means[0], other) for other in means[1:])
    for other in means[1:]:
        torch.testing.assert_close(means[0], other, rtol=0, atol=1e-6)


class Remembering(nn.Module):
    """A number that is trained, less a tenth of a running sum that is fed back."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
        self.register_buffer("total", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("mask", torch.tensor([-torch.inf, 0.0]).double())

    def forward(self, inputs: Tensor) -> Tensor:
        found = inputs @ self.weight.T - 0.1 * self.total
        if self.training:
            self.total.mul_(0.5).add_(self.weight.detach()[0])
        return found


@dataclass(frozen=True)
class Fed(Bowl):
    """A bowl whose network remembers; a step is linear in the weight and in what is remembered."""

    name: ClassVar[str] = "fed"

    def module(self, seed: int) -> nn.Module:
        return Remembering()

    def train_data(self) -> tuple[Tensor, Tensor]:
        return torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)


def test_a_neighbour_is_pulled_back_in_its_buffers_too() -> None:
    """The exponent is the larger eigenvalue of the map of weight and memory."""
    lr = 0.1
    training = Training(**settings(steps=200))
    bench = Bench.of(Fed(), training)
    assert bench.keeps_state
    base = Trajectory(bench, Point(lr=lr), 1, 3)
    neighbour = Neighbour(base)
    for _ in range(120):
        base.step(slice(None))
        neighbour.step(slice(None))
    # w' = w - 2 lr (w - 0.1 total - 1), total' = total / 2 + w
    matrix = np.array([[1 - 2 * lr, 0.2 * lr], [1.0, 0.5]])
    expected = np.log(np.abs(np.linalg.eigvals(matrix)).max())
    assert np.mean(neighbour.rates[60:]) == pytest.approx(expected, abs=1e-6)
    assert torch.equal(neighbour.other.module.get_buffer("mask"), base.module.get_buffer("mask"))


@pytest.mark.parametrize("rows", [None, 8])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_goes_on_to_the_bit(rows: int | None, alpha: float) -> None:
    points = [Point(lr=0.1, alpha=alpha), Point(lr=0.5, alpha=alpha)]
    training = Training(
        **settings(steps=20, early=False, evaluate_every=7),
        stabiliser={"name": "stability", "mode": "generic"},
    )
    whole = PackRun(points, Normalised(rows, rows is not None), training)
    whole.advance()
    first, second = (
        PackRun(points, Normalised(rows, rows is not None), training) for _ in range(2)
    )
    for _ in range(27):
        first.advance(0)
    assert not first.done
    second.load_state_dict(first.state_dict())
    second.advance()
    assert second.results == whole.results


def test_a_training_repeats_itself_with_its_statistics() -> None:
    check_reproducible(POINT, Normalised(), Training(**settings()))
    check_reproducible(POINT, Normalised(shifts=True), Training(**settings(dtype="float32")))


def test_only_the_loop_trains_them() -> None:
    assert Bench.of(Normalised(), Training()).keeps_state
    assert not Bench.of(Bowl(), Training()).keeps_state
    with pytest.raises(InputError, match=r"backend = 'vmap': the network changes its buffers"):
        evaluate([POINT], Normalised(), **settings(backend="vmap"))


def test_sharpness_is_that_of_batch_statistics() -> None:
    [result] = evaluate([POINT], Normalised(None), **settings(early=False))
    curve = result.replicates[0].curves["sharpness_ratio"]
    assert len(curve.values) == 8
    assert all(0 < value < 1 for value in curve.values)


# ------------------------------------------------------------------ augmentation


def plain_augmentation(images: Tensor, background: list[float], key: tuple[int, ...]) -> Tensor:
    """An image after the other, with loops."""
    random = np.random.RandomState(list(key))
    down, across = random.randint(0, 9, (2, len(images), 1))
    flips = random.randint(0, 2, (len(images), 1))
    found = torch.empty_like(images)
    for n, image in enumerate(images):
        padded = torch.stack(
            [
                torch.nn.functional.pad(channel, (4, 4, 4, 4), value=value)
                for channel, value in zip(image, background, strict=True)
            ]
        )
        i, j = int(down[n, 0]), int(across[n, 0])
        crop = padded[:, i : i + image.shape[1], j : j + image.shape[2]]
        found[n] = crop.flip(2) if flips[n, 0] else crop
    return found


def test_crops_and_flips() -> None:
    images = torch.randn(50, 3, 12, 10, dtype=torch.float64)
    found = cropped_and_flipped(images, [-1.0, 0.5, 2.0], (7, 3, 1))
    assert torch.equal(found, plain_augmentation(images, [-1.0, 0.5, 2.0], (7, 3, 1)))
    assert torch.equal(found, cropped_and_flipped(images, [-1.0, 0.5, 2.0], (7, 3, 1)))
    for other in ((7, 4, 1), (8, 3, 1)):
        assert not torch.equal(found, cropped_and_flipped(images, [-1.0, 0.5, 2.0], other))
    narrow = cropped_and_flipped(images.float(), [-1.0, 0.5, 2.0], (7, 3, 1))
    assert torch.equal(narrow, found.float())
    assert PADDING == 4


def test_all_k_and_diagnostics_see_the_same_batch() -> None:
    bench = Bench.of(Normalised(shifts=True), Training(steps=40))
    rows = bench.batch(3, 11)
    narrow, wide = (bench.data(rows, 3, 11, wide) for wide in (False, True))
    torch.testing.assert_close(narrow[0], wide[0].float())
    assert not torch.equal(wide[0], bench.inputs64[rows])
    seen: list[Tensor] = []
    run = ReplicateRun(Record(bench, POINT, 3))
    for trajectory in run.trajectories:
        trajectory.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for step in range(3):
        run.advance()
        expected = bench.data(bench.batch(3, step), 3, step)[0]
        assert [torch.equal(inputs, expected) for inputs in seen] == [True, True]
        seen.clear()


def test_the_loss_before_and_after_is_that_of_the_changed_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, list[float]] = {"compared": [], "trained": []}
    compare, move = Record.compare, Record.move

    def spy_on_compare(self: Record, before: float, after: float) -> None:
        seen["compared"].append(before)
        compare(self, before, after)

    def spy_on_move(self: Record, losses: Any, *rest: Any) -> None:
        seen["trained"].append(losses[0])
        move(self, losses, *rest)

    monkeypatch.setattr(Record, "compare", spy_on_compare)
    monkeypatch.setattr(Record, "move", spy_on_move)
    evaluate([Point(lr=0.1)], Normalised(shifts=True), **settings(early=False))
    assert len(seen["trained"]) == 40
    # The verdict looks at the later half only, and a mini-batch is compared only there.
    np.testing.assert_allclose(seen["compared"], seen["trained"][20:], rtol=1e-12)


def test_what_augments_belongs_to_the_data_order() -> None:
    bench = Bench.of(Normalised(shifts=True), Training(**settings()))
    run = ReplicateRun(Record(bench, POINT, 3, order=8))
    assert run._neighbour is not None
    seen: list[Tensor] = []
    for trajectory in (*run.trajectories, run._neighbour.other):
        trajectory.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    run.advance()
    expected = bench.data(bench.batch(8, 0), 8, 0)[0]
    assert [torch.equal(inputs, expected) for inputs in seen] == [True] * 3


def test_the_metric_of_each_k_uses_its_own_statistics() -> None:
    training = Training(**settings(early=False, ks=(1, 3, 5), dtype="float32"))
    run = ReplicateRun(Record(Bench.of(Normalised(), training), POINT, 5))
    while not run.done:
        run.advance()
    evidence = run.result().evidence
    inputs, _ = Normalised().test_data()
    for trajectory, name in zip(
        run.trajectories, ("metric", "metric_k3", "metric_k5"), strict=True
    ):
        module = trajectory.module.double().eval()
        with torch.no_grad():
            assert evidence[name] == pytest.approx(float(module(inputs)[:, 0].mean()), rel=1e-12)


@dataclass(frozen=True)
class Shifted(Bowl):
    """A bowl on augmented mini-batches, which suits the ensembles."""

    name: ClassVar[str] = "shifted"
    batch: ClassVar[int | None] = 1

    def augment(self, inputs: Tensor, seed: int, step: int) -> Tensor:
        return inputs * (1 + 0.1 * np.random.RandomState([seed, step]).rand())


def test_ensembles_see_augmented_batches() -> None:
    points = [Point(lr=0.05), Point(lr=0.2)]
    together = evaluate(points, Shifted(), **settings(early=False))
    looped = evaluate(points, Shifted(), **settings(early=False, backend="loop"))
    for one, other in zip(together, looped, strict=True):
        assert one.replicates[0].backend != "loop"
        ours, theirs = (r.replicates[0].evidence["metric"] for r in (one, other))
        assert ours == pytest.approx(theirs, rel=1e-12)
    plain = evaluate(points, Bowl(), **settings(early=False, backend="loop"))
    assert plain[0].replicates[0].evidence["metric"] != looped[0].replicates[0].evidence["metric"]


# ------------------------------------------------------------------ evaluate_every


@pytest.mark.parametrize("backend", ["auto", "loop"])
def test_the_metric_along_the_way(backend: str) -> None:
    """Gradient descent on a bowl: the metric is w_1 times the first row, known in closed form."""
    [result] = evaluate(
        [Point(lr=0.1)], Bowl(), **settings(early=False, evaluate_every=8, backend=backend)
    )
    (replicate,) = result.replicates
    assert (replicate.backend == "loop") == (backend == "loop")
    curve = replicate.curves["metric"]
    assert curve.steps == (8, 16, 24, 32, 40)
    start = float(next(Bowl().module(replicate.seed).parameters()).detach()[0, 0])
    expected = [1 + (start - 1) * 0.9**step for step in curve.steps]
    np.testing.assert_allclose(curve.values, expected, rtol=1e-12)
    assert curve.values[-1] == replicate.evidence["metric"]


def test_without_it_there_is_no_curve_and_no_bit_changes() -> None:
    plain, followed = (
        evaluate([POINT], Normalised(), **settings(evaluate_every=every))[0].replicates[0]
        for every in (None, 3)
    )
    assert "metric" not in plain.curves
    curves = {name: c for name, c in followed.curves.items() if name != "metric"}
    assert curves == plain.curves
    assert followed.evidence == plain.evidence


def test_the_metric_ends_where_the_training_blows_up() -> None:
    [result] = evaluate([Point(lr=9.0)], Bowl(), **settings(steps=400, evaluate_every=1))
    (replicate,) = result.replicates
    assert replicate.verdict.regime.value == "divergent"
    assert replicate.curves["metric"].steps[-1] < replicate.steps_run < 400


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "often"])
def test_a_wrong_number_is_named(every: Any) -> None:
    with pytest.raises(InputError, match=r"evaluate_every = .*updates >= 1.*use 20"):
        evaluate([POINT], Bowl(), evaluate_every=every)


def test_many_held_out_samples_pass_in_parts() -> None:
    most = MOST_HELD_OUT["cpu"]
    held = 2 * most + most // 2

    @dataclass(frozen=True)
    class Many(Normalised):
        def test_data(self) -> tuple[Tensor, Tensor]:
            inputs = torch.arange(held * 8, dtype=torch.float64).reshape(held, 8) / 20_000
            return inputs, torch.zeros(held).long()

    record = Record(Bench.of(Many(), Training(**settings())), POINT, 0)
    module = Many().module(0).eval()
    sizes: list[int] = []
    record.mirror.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    record.measure(list(module.parameters()), list(module.buffers()))
    with torch.no_grad():
        expected = float(module(Many().test_data()[0])[:, 0].mean())
    [(step, figure)] = record._metrics
    assert step == 0
    assert figure == pytest.approx(expected, rel=1e-12)
    assert sizes == [most, most, most // 2]
    assert record.mirror.training
