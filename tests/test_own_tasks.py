"""A user's own tasks, from functions, Lightning and Hugging Face, and what is said of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from toys import Bowl
from typer.testing import CliRunner

import stabmap
from stabmap.cli import app
from stabmap.testing import check_task
from sweeps.spec import load_spec
from trainables.domain import InputError, Point, Training
from trainables.losses import CROSS_ENTROPY, MEAN_SQUARED_ERROR, Loss
from trainables.tasks import from_files, get_task, task_names
from trainables.tasks.checks import check_parts
from trainables.tasks.from_functions import task_from
from trainables.trajectory import Bench, Trajectory

Pairs = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def line(seed: int, width: int = 1, bias: bool = True) -> nn.Module:
    """A line."""
    return nn.Linear(2, width, bias=bias)


def points(count: int = 8, slope: float = 2.0) -> Pairs:
    """On a line."""
    x = torch.linspace(-1, 1, 2 * count).reshape(count, 2)
    return (x, slope * x[:, :1]), (x, slope * x[:, 1:])


def largest_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().max()


def made(**changes: Any) -> Any:
    parts: dict[str, Any] = {
        "name": "line",
        "module": line,
        "data": points,
        "loss": MEAN_SQUARED_ERROR,
        "metric": largest_error,
    }
    return task_from(**parts | changes)


# ------------------------------------------------------------------ from functions


def test_parameters_become_options() -> None:
    task = made()(width=3, count=4, slope=1.5, batch_size=2)
    fits: bool = isinstance(task, stabmap.Task)
    assert fits
    assert (task.name, task.metric_name, task.batch) == ("line", "largest error", 2)
    inputs, targets = task.train_data()
    assert (inputs.shape, targets.dtype) == ((4, 2), torch.float64)
    torch.testing.assert_close(targets, 1.5 * inputs[:, :1])
    assert task.module(0).weight.shape == (3, 2)
    assert task.regularised_layer == ""
    again = type(task)(width=3, count=4, slope=1.5, batch_size=2)
    assert (task, hash(task)) == (again, hash(again))


def test_weights_depend_on_the_seed_alone() -> None:
    task = made()()
    before = torch.random.get_rng_state()
    one, again, other = (task.module(seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.weight, again.weight)
    assert not torch.equal(one.weight, other.weight)


def test_a_training_is_that_of_the_functions() -> None:
    task = made()()
    bench = Bench.of(task, Training(dtype="float64", steps=20))
    trajectory = Trajectory(bench, Point(lr=0.1), 1, 4)
    module = task.module(4)
    inputs, targets = task.train_data()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(20):
        trajectory.step(slice(None))
        optimiser.zero_grad()
        ((module(inputs) - targets) ** 2).mean().backward()
        optimiser.step()
    for ours, theirs in zip(trajectory.parameters, module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_last_linear_layer_is_regularised_by_default() -> None:
    def network(seed: int) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1), nn.Tanh())

    assert made(module=network)().regularised_layer == "2"
    assert made(module=network, regularised_layer="0")().regularised_layer == "0"
    [result] = stabmap.evaluate([Point(lr=0.1, alpha=0.5)], made(module=network)(), steps=20)
    assert result.replicates[0].steps_run > 0


def test_any_function_is_a_loss() -> None:
    def fourth_power(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets) ** 4).mean()

    task = made(loss=fourth_power)()
    assert isinstance(task.loss, Loss)
    [result] = stabmap.evaluate([Point(lr=0.05)], task, steps=20)
    assert result.verdict.regime == "stable"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "a b"}, "is no name for a task"),
        ({"module": lambda: nn.Linear(1, 1)}, "it takes no seed"),
        ({"module": lambda seed, width: nn.Linear(1, 1)}, "width has no default"),
        ({"data": lambda count: points(count)}, "count has no default"),
        ({"data": lambda width=2: points()}, "an option has one default"),
        ({"data": lambda sizes=(1, 2): points()}, "an option has one default"),
        ({"data": lambda batch_size=2: points()}, "batch_size is an option of every task"),
    ],
)
def test_functions_that_make_no_task(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        made(**changes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 2.5}, "task.width = 2.5"),
        ({"width": True}, "task.width"),
        ({"bias": 1}, "task.bias"),
        ({"slope": "2"}, "task.slope"),
        ({"batch_size": 0}, "task.batch_size"),
    ],
)
def test_options_of_another_kind(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        made()(**options)


def test_data_that_are_no_pairs() -> None:
    def points_alone() -> Tensor:
        return torch.ones(3)

    task = made(data=points_alone)()
    with pytest.raises(InputError, match="points_alone does not return two pairs"):
        task.train_data()


# ------------------------------------------------------------------ files


FILE = Path(stabmap.__file__).parent / "templates" / "task.py"


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """No task but the installed ones."""
    monkeypatch.setattr(from_files, "_REGISTERED", {})


def test_by_path_and_name() -> None:
    task = get_task(f"{FILE}:my-task", width=4)
    assert task.name == "my-task"
    assert "my-task" in task_names()
    [result] = stabmap.evaluate([Point(lr=0.5)], f"{FILE}:my-task", steps=20)
    assert result.verdict.regime == "stable"
    with pytest.raises(InputError, match="no such task"):
        get_task(f"{FILE}:another")


def test_a_spec_names_no_file() -> None:
    with pytest.raises(InputError, match=r"a spec names no file; write task: my-task, and name"):
        load_spec({"task": f"{FILE}:my-task", "axes": {"lr": 0.1}, "budget": {"points": 1}})


def test_init_writes_a_task_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["init", "mine"])
    assert found.exit_code == 0, found.output
    assert "next: stabmap run mine/sweep.yaml --tasks mine/task.py" in found.output
    shown = CliRunner().invoke(app, ["show", "mine/sweep.yaml", "--tasks", "mine/task.py"])
    assert shown.exit_code == 0, shown.output
    said = CliRunner().invoke(app, ["tasks", "--check", "my-task", "--tasks", "mine/task.py"])
    assert said.exit_code == 0, said.output
    assert "deterministic: repeats itself" in said.output
    assert "batchable: many trajectories" in said.output
    again = CliRunner().invoke(app, ["init", "mine"])
    assert again.exit_code == 2
    assert "mine/task.py" in again.stderr and "is there already" in again.stderr


def test_init_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = CliRunner().invoke(app, ["init", str(tmp_path / "file" / "inner")])
    assert found.exit_code == 2
    assert "cannot be written to" in found.stderr and "; name a folder of yours" in found.stderr


def test_the_map_of_the_template_has_its_boundaries(tmp_path: Path) -> None:
    """Its sweep reaches all three regimes, or a new user's first map would be of one colour."""
    task = get_task(f"{FILE}:my-task", samples=200)
    grid = [Point(lr=lr, weight_decay=wd) for lr in (0.05, 5.0, 50.0) for wd in (1e-4, 1.0)]
    regimes = {str(r.verdict.regime) for r in stabmap.evaluate(grid, task, steps=200)}
    assert regimes == {"stable", "restrained", "divergent"}


# ------------------------------------------------------------------ check_task


@pytest.mark.parametrize("name", ["one-layer-cnn", "mnist-mlp"])
def test_tasks_that_come_along_are_sound(name: str) -> None:
    options: dict[str, Any] = {"image": 33} if name == "one-layer-cnn" else {"samples": 20}
    report = check_task(name, **options)
    assert report.ok, str(report)
    assert report.backend not in (None, "loop")
    assert report.seconds is not None and 0 < report.seconds < 10
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


#: What goes wrong, and the words that say so.
_DRAWS = iter(range(10**9))


@dataclass(frozen=True)
class OtherData(Bowl):
    def train_data(self) -> tuple[Tensor, Tensor]:
        inputs, targets = super().train_data()
        return inputs + 1e-3 * next(_DRAWS), targets


@dataclass(frozen=True)
class OtherWeights(Bowl):
    def module(self, seed: int) -> nn.Module:
        return nn.Linear(len(self.curvatures), 1, bias=False, dtype=torch.float64)


_ONE = nn.Linear(2, 1, bias=False, dtype=torch.float64)


@dataclass(frozen=True)
class SharedWeights(Bowl):
    def module(self, seed: int) -> nn.Module:
        return _ONE


class _Counting(nn.Linear):
    """Its output depends on how often any network was asked."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs) * (1 + 1e-3 * (next(_DRAWS) % 7))


@dataclass(frozen=True)
class GlobalState(Bowl):
    def module(self, seed: int) -> nn.Module:
        layer = _Counting(len(self.curvatures), 1, bias=False, dtype=torch.float64)
        layer.load_state_dict(super().module(seed).state_dict())
        return layer


class _Ageing(nn.Linear):
    """Its output depends on its age, which is neither parameter nor buffer."""

    age = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.age += self.training
        return super().forward(inputs) * (1 + 1e-3 * self.age)


@dataclass(frozen=True)
class HiddenState(Bowl):
    def module(self, seed: int) -> nn.Module:
        layer = _Ageing(len(self.curvatures), 1, bias=False, dtype=torch.float64)
        layer.load_state_dict(super().module(seed).state_dict())
        return layer


@dataclass(frozen=True)
class LossOfEach(Bowl):
    loss: ClassVar[Loss] = Loss("each", lambda o, t: ((o - t) ** 2)[:, 0])


@dataclass(frozen=True)
class LossDetached(Bowl):
    loss: ClassVar[Loss] = Loss("detached", lambda o, t: ((o - t) ** 2).mean().detach())


@dataclass(frozen=True)
class LossFails(Bowl):
    loss: ClassVar[Loss] = Loss("fails", lambda o, t: o @ t)


@dataclass(frozen=True)
class NoNetwork(Bowl):
    def module(self, seed: int) -> Any:
        return "network"


@dataclass(frozen=True)
class NoParameters(Bowl):
    def module(self, seed: int) -> nn.Module:
        return nn.Identity()


@dataclass(frozen=True)
class NoSuchLayer(Bowl):
    regularised_layer: ClassVar[str] = "output"


@dataclass(frozen=True)
class Unequal(Bowl):
    def train_data(self) -> tuple[Tensor, Tensor]:
        return torch.ones(3, 2).double(), torch.ones(2, 1).double()


@dataclass(frozen=True)
class NotFinite(Bowl):
    def test_data(self) -> tuple[Tensor, Tensor]:
        return torch.full((2, 2), torch.nan).double(), torch.ones(2, 1).double()


@dataclass(frozen=True)
class Single(Bowl):
    def train_data(self) -> tuple[Tensor, Tensor]:
        return torch.ones(2, 2), torch.ones(2, 1)


@dataclass(frozen=True)
class LargeBatch(Bowl):
    batch: ClassVar[int | None] = 3


@dataclass(frozen=True)
class NoNumber(Bowl):
    def metric(self, outputs: Tensor, targets: Tensor) -> Any:
        return "good"


WRONG = [
    (LossOfEach, "loss() returns a tensor of shape (2,), not one number"),
    (LossDetached, "loss() cannot be differentiated"),
    (LossFails, "loss() fails: mat1 and mat2"),
    (NoNetwork, "module() returns str, not a torch.nn.Module"),
    (NoParameters, "module() has no parameters"),
    (NoSuchLayer, "regularised_layer() is 'output', and the network has no submodule of that name"),
    (Unequal, "train_data() has 3 inputs for 2 targets"),
    (NotFinite, "test_data() has inputs that are not finite"),
    (Single, "train_data() has inputs in float32"),
    (LargeBatch, "batch() is 3, which must be None or from 1 to 2"),
    (NoNumber, "metric() returns str, not a number"),
]
UNSTEADY = [
    (OtherData, "train_data() gives other inputs at a second call"),
    (OtherWeights, "module() gives other weights for the same seed"),
    (SharedWeights, "module() keeps global state: two networks share their weights"),
    (GlobalState, "it keeps global state between updates"),
    (HiddenState, "is not resumable"),
]


@pytest.mark.parametrize(("kind", "words"), WRONG)
def test_a_wrong_method_is_named_before_anything_is_trained(kind: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        stabmap.evaluate([Point(lr=0.1)], kind(), steps=20)
    assert words in str(caught.value)
    report = check_task(kind())
    assert not report.ok
    assert words in str(report)


@pytest.mark.parametrize("words", [["show"], ["doctor", "--isolation"]])
def test_commands_name_what_is_wrong_with_a_task(words: list[str], tmp_path: Path) -> None:
    text = FILE.read_text().replace("CROSS_ENTROPY, accuracy", "broken, accuracy")
    text = text.replace("MyTask =", "def broken(o, t):\n    raise KeyError(7)\n\n\nMyTask =")
    (tmp_path / "wrong.py").write_text(text.replace("my-task", "wrong-task"))
    spec = tmp_path / "sweep.yaml"
    spec.write_text(
        "task: {name: wrong-task}\naxes: {lr: {scale: log, low: 0.01, high: 1.0}}\n"
        "budget: {points: 8}\n"
    )
    found = CliRunner().invoke(
        app, [*words, str(spec), "--tasks", str(tmp_path / "wrong.py")], catch_exceptions=False
    )
    assert found.exit_code == 2
    assert "error: task = 'wrong-task': loss() in " in found.output
    assert "fails: " in found.output


@pytest.mark.parametrize(("kind", "words"), UNSTEADY)
def test_what_no_result_can_be_built_on(kind: Any, words: str) -> None:
    report = check_task(kind())
    assert not report.ok
    assert words in str(report), str(report)


def test_a_file_is_named_with_its_method(tmp_path: Path) -> None:
    text = FILE.read_text().replace("CROSS_ENTROPY, accuracy", "broken, accuracy")
    text = text.replace("MyTask =", "def broken(o, t):\n    return (o - 1) ** 2\n\n\nMyTask =")
    path = tmp_path / "wrong.py"
    path.write_text(text.replace("my-task", "wrong-task"))
    stabmap.load_tasks(path)
    with pytest.raises(InputError, match=r"loss\(\) in .*wrong.py returns a tensor of shape"):
        check_parts(get_task("wrong-task"))


# ------------------------------------------------------------------ the list


def test_the_list_names_all_tasks() -> None:
    found = CliRunner().invoke(app, ["tasks", "--json"])
    assert found.exit_code == 0, found.output
    lines = {each["name"]: each for each in json.loads(found.output)["tasks"]}
    assert set(lines) == set(task_names())
    for each in lines.values():
        assert each["parameters"] > 0
        assert set(each) == {
            "name", "source", "parameters", "needs", "stand_in", "missing", "present",
        }  # fmt: skip
    assert lines["mnist-regression"]["parameters"] == 61717
    assert lines["mnist-regression"]["missing"] == "no folder was named"
    assert not lines["mnist-regression"]["present"]
    assert lines["heat"]["present"]
    said = CliRunner().invoke(app, ["tasks"]).output
    assert all(f"{name}: " in said for name in lines)


def test_the_list_says_which_data_is_missing(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["tasks", "--json", "--data-root", str(tmp_path)])
    lines = {each["name"]: each for each in json.loads(found.output)["tasks"]}
    assert "holds no MNIST" in lines["mnist-mlp"]["missing"]


# ------------------------------------------------------------------ Lightning


def lightning_line() -> Any:
    lightning = pytest.importorskip("lightning")

    class Line(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def training_step(self, batch: Any, index: int) -> Any:
            inputs, targets = batch
            loss = ((self.layer(inputs) - targets) ** 2).mean()
            self.log("loss", loss)
            return {"loss": loss}

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Line


@pytest.mark.parametrize("batch_size", [None, 4])
def test_lightning_equals_plain_pytorch(batch_size: int | None) -> None:
    kind = lightning_line()
    ours = stabmap.lightning_task("lit", lambda seed: kind(), points, batch_size=batch_size)()
    plain = made(batch_size=batch_size)()
    settings: dict[str, Any] = {"steps": 40, "backend": "loop"}
    for lr in (0.1, 30.0):
        [one] = stabmap.evaluate([Point(lr=lr, weight_decay=1e-3)], ours, **settings)
        [other] = stabmap.evaluate([Point(lr=lr, weight_decay=1e-3)], plain, **settings)
        assert one.verdict == other.verdict
        assert one.replicates[0].curves == other.replicates[0].curves


def test_lightning_task_is_sound_and_has_options() -> None:
    kind = lightning_line()
    found = stabmap.lightning_task(
        "lit", lambda seed, unused=1: kind(), points, regularised_layer="layer"
    )
    task = found(count=4, unused=2)
    assert task.regularised_layer == "inner.layer"
    assert len(task.train_data()[0]) == 4
    assert check_task(task).ok, str(check_task(task))
    held_out = float(task.metric(task.module(0)(task.test_data()[0]), torch.zeros(0)))
    inputs, targets = points(4)[1]
    module: Any = task.module(0)
    expected = float(((module.inner.layer(inputs.double()) - targets) ** 2).mean())
    assert held_out == pytest.approx(expected)


def test_lightning_wants_a_training_step_with_a_loss() -> None:
    plain = stabmap.lightning_task("lit", lambda seed: nn.Linear(2, 1), points)()
    with pytest.raises(InputError, match="a Linear without a training_step"):
        stabmap.evaluate([Point(lr=0.1)], plain, steps=20)
    kind = lightning_line()
    kind.training_step = lambda self, batch, index: None
    silent = stabmap.lightning_task("lit", lambda seed: kind(), points)()
    with pytest.raises(InputError, match="training_step returns neither one number nor"):
        stabmap.evaluate([Point(lr=0.1)], silent, steps=20)


# ------------------------------------------------------------------ Hugging Face


def tokens(samples: int = 8, classes: int = 3) -> Pairs:
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(0, 11, (samples, 6), generator=generator)
    return (words, words[:, 0] % classes), (words, words[:, 0] % classes)


def texts(samples: int = 8) -> Pairs:
    words = (torch.arange(6) + torch.arange(samples)[:, None]) % 11
    return (words, words), (words, words)


SIZES = {"n_positions": 6, "vocab_size": 11, "n_embd": 8, "n_layer": 1, "n_head": 2}


def gpt2(seed: int) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(**SIZES, attn_implementation="eager")
    return transformers.GPT2LMHeadModel(config)  # type: ignore[no-any-return]


def classifier(seed: int, classes: int = 3) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        **SIZES, num_labels=classes, pad_token_id=0, attn_implementation="eager"
    )
    return transformers.GPT2ForSequenceClassification(config)  # type: ignore[no-any-return]


def test_a_language_models_loss_is_its_own() -> None:
    task = stabmap.hugging_face_task("gpt2", gpt2, texts, next_token=True)()
    inputs, labels = task.train_data()
    module: Any = task.module(2)
    theirs = module.inner(inputs, labels=labels).loss
    torch.testing.assert_close(float(task.loss.value(module(inputs), labels)), float(theirs))
    report = check_task(task)
    assert report.ok, str(report)


def test_a_classifier_learns_its_classes() -> None:
    task = stabmap.hugging_face_task("classes", classifier, tokens, batch_size=4)()
    inputs, labels = task.train_data()
    module: Any = task.module(0)
    theirs = module.inner(inputs, labels=labels).loss
    torch.testing.assert_close(float(task.loss.value(module(inputs), labels)), float(theirs))
    [result] = stabmap.evaluate([Point(lr=0.3)], task, steps=60, early=False)
    assert float(result.replicates[0].evidence["metric"] or 0.0) > 0.5
    assert result.verdict.regime != "divergent"


def test_a_model_without_a_head() -> None:
    def headless(seed: int) -> nn.Module:
        transformers = pytest.importorskip("transformers")
        return transformers.GPT2Model(transformers.GPT2Config(**SIZES))  # type: ignore[no-any-return]

    task = stabmap.hugging_face_task("none", headless, tokens)()
    with pytest.raises(InputError, match="the output of GPT2Model has no logits"):
        stabmap.evaluate([Point(lr=0.1)], task, steps=20)


def test_the_bare_package_needs_neither() -> None:
    code = "import sys, stabmap; stabmap.lightning_task, stabmap.hugging_face_task; "
    code += "assert not {'lightning', 'transformers'} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_cross_entropy_of_targets_in_functions() -> None:
    """Class numbers stay whole numbers on the way."""

    def classes() -> Pairs:
        x = torch.linspace(-1, 1, 8)[:, None].repeat(1, 2)
        y = (x[:, 0] > 0).long()
        return (x, y), (x, y)

    task = made(
        data=classes,
        module=lambda seed: nn.Linear(2, 2),
        loss=CROSS_ENTROPY,
        metric=lambda o, t: (o.argmax(1) == t).double().mean(),
    )()
    assert task.train_data()[1].dtype == torch.int64
    check_parts(task)
