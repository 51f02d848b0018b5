"""Tasks from a file named on the command line: found, refused, hashed, and trained by workers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import stabmap
from stabmap.cli import app
from sweeps.store import Store
from trainables.domain import InputError, Point, PointResult
from trainables.evaluate import evaluate
from trainables.tasks import from_files
from trainables.tasks.from_files import Source, register, source_of

TASK = '''
"""A parabola."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainables.losses import MEAN_SQUARED_ERROR, Loss


@dataclass(frozen=True)
class Parabola:
    curvature: float = 2.0
    batch: int | None = None

    name: ClassVar[str] = "parabola"
    metric_name: ClassVar[str] = "output"
    regularised_layer: ClassVar[str] = ""
    stand_in: ClassVar[str | None] = None
    loss: ClassVar[Loss] = MEAN_SQUARED_ERROR

    def module(self, seed: int) -> nn.Module:
        layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.fill_(2.0 + 0.01 * (seed % 7))
        return layer

    def train_data(self) -> tuple[Tensor, Tensor]:
        inputs = torch.full((1, 1), (self.curvature / 2) ** 0.5, dtype=torch.float64)
        return inputs, inputs.clone()

    def test_data(self) -> tuple[Tensor, Tensor]:
        return self.train_data()

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        return float(outputs[0, 0])
'''

SPEC: dict[str, Any] = {
    "task": {"name": "parabola", "curvature": 2.0},
    "axes": {"lr": {"scale": "log", "low": 0.1, "high": 4}},
    "steps": 40,
    "search": {"method": "sobol", "audit": 0},
    "budget": {"points": 4},
    "resources": {"pack": 2, "workers": 1},
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, and no task but the installed ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STABMAP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(from_files, "_REGISTERED", {})
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("stabmap_tasks_")]:
        del sys.modules[name]


@pytest.fixture
def file(place: Path) -> Path:
    path = place / "mine.py"
    path.write_text(TASK)
    return path


def refusal(path: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        stabmap.load_tasks(path)
    (found,) = caught.value.mistakes
    assert (found.field, found.value) == ("tasks", str(path))
    assert str(found).isprintable()
    assert len(str(found)) < 1000
    return str(found)


# --------------------------------------------------------------------------- found


def test_a_task_is_found_by_its_name(file: Path) -> None:
    assert "parabola" not in stabmap.task_names()
    assert stabmap.load_tasks(file) == ("parabola",)
    assert "parabola" in stabmap.task_names()
    task = stabmap.get_task("parabola", curvature=1.0)
    (calm, wild) = evaluate([Point(0.5), Point(3.0)], task, steps=40)
    # Gradient descent on a parabola of curvature 1 is stable below lr 2.
    assert (calm.verdict.regime, wild.verdict.regime) == ("stable", "divergent")


def test_nothing_is_written_beside_the_file(file: Path) -> None:
    stabmap.load_tasks(file)
    assert [path.name for path in file.parent.iterdir()] == ["mine.py"]


def test_a_file_may_be_called_like_a_module(place: Path) -> None:
    import random

    (place / "random.py").write_text(TASK)
    stabmap.load_tasks(place / "random.py")
    assert sys.modules["random"] is random


def test_loaded_again_it_takes_changes_over(file: Path) -> None:
    stabmap.load_tasks(file)
    assert stabmap.get_task("parabola").curvature == 2.0  # type: ignore[attr-defined]
    assert stabmap.load_tasks("mine.py") == ("parabola",)
    file.write_text(TASK.replace("curvature: float = 2.0", "curvature: float = 3.0"))
    stabmap.load_tasks(file)
    assert stabmap.get_task("parabola").curvature == 3.0  # type: ignore[attr-defined]


# --------------------------------------------------------------------------- hash


def test_a_changed_task_is_another_sweep(file: Path) -> None:
    stabmap.load_tasks(file)
    first = stabmap.load_spec(SPEC)
    stabmap.load_tasks(file)
    assert stabmap.load_spec(SPEC).hash == first.hash
    assert stabmap.load_spec(first.resolved()).hash == first.hash
    file.write_text(TASK + "\n# changed\n")
    stabmap.load_tasks(file)
    assert stabmap.load_spec(SPEC).hash != first.hash


def test_the_path_is_not_part_of_the_hash(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stabmap.load_tasks(file)
    first = stabmap.load_spec(SPEC).hash
    monkeypatch.setattr(from_files, "_REGISTERED", {})
    (file.parent / "other").mkdir()
    stabmap.load_tasks(file.rename(file.parent / "other" / "name.py"))
    assert stabmap.load_spec(SPEC).hash == first


def test_a_spec_keeps_the_file_that_it_was_loaded_with(file: Path) -> None:
    """What the hash says is what the workers are sent, whatever is loaded later."""
    stabmap.load_tasks(file)
    spec = stabmap.load_spec(SPEC)
    file.write_text(TASK + "\n# changed\n")
    stabmap.load_tasks(file)
    assert spec.source is not None
    assert spec.source.text == TASK
    assert spec.about()["source"] == spec.source.hash


def test_installed_tasks_hash_as_before(file: Path) -> None:
    before = stabmap.load_spec("mnist-mlp")
    stabmap.load_tasks(file)
    after = stabmap.load_spec("mnist-mlp")
    assert (after.source, after.hash) == (None, before.hash)
    assert "source" not in after.about()


# --------------------------------------------------------------------------- refused

BAD: dict[str, tuple[str, str]] = {
    "syntax": ("x = 1\ndef f(:\n", "cannot be imported (line 2: SyntaxError: invalid syntax)"),
    "name": ("import os\n\nmissing\n", "(line 3: NameError: name 'missing' is not defined)"),
    "module": ("import no_such_module\n", "(line 1: ModuleNotFoundError: No module named"),
    "inside": ("def f():\n    1 / 0\n\nf()\n", "(line 2: ZeroDivisionError: division by zero)"),
    "lines": ("raise ValueError('a\\nb\\x1b[2J')\n", r"(line 1: ValueError: a\nb\x1b[2J)"),
    "exit": ("raise SystemExit(0)\n", "(line 1: SystemExit: 0)"),
    "NUL": ("x = 1\0\n", "cannot be imported ("),
    "empty": ("", "holds no task: no class has a name and a module; write a class as"),
    "imported": (
        "from trainables.tasks.mnist_mlp import MnistMLP\n",
        "holds no task: no class has a name and a module",
    ),
    "parts": (TASK.replace("def metric", "def metrics"), "class Parabola has no metric; a task is"),
    "plain class": (TASK.replace("@dataclass(frozen=True)", ""), "is no dataclass"),
    "built in": (TASK.replace('"parabola"', '"mnist-mlp"'), "'mnist-mlp': an installed task has"),
    "path": (TASK.replace('"parabola"', '"../x"'), "'../x' is no name for a task; use letters"),
    "twice": (TASK + "\nclass Other(Parabola):\n    pass\n", "two tasks are called 'parabola'"),
    "large": ("#" * (from_files.LARGEST_FILE + 1), "is larger than 1024 KiB"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_refused(kind: str, file: Path) -> None:
    text, said = BAD[kind]
    file.write_text(text)
    before = (stabmap.task_names(), set(sys.modules))
    assert said in refusal(file)
    assert said in refusal(file)  # also where an earlier try got as far as that
    assert stabmap.task_names() == before[0]
    for verb in ("run", "show", "doctor"):
        done = CliRunner().invoke(app, [verb, "mnist-mlp", "--tasks", str(file)])
        assert (done.exit_code, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: tasks = ")
    assert [path.name for path in file.parent.iterdir()] == ["mine.py"]


def test_what_is_no_file_of_python(place: Path) -> None:
    assert "there is no such file" in refusal("missing.py")
    assert "is no Python file (.py)" in refusal("mine.yaml")
    (place / "folder.py").mkdir()
    assert "there is no such file" in refusal("folder.py")
    os.mkfifo(place / "fifo.py")
    assert "there is no such file" in refusal("fifo.py")
    (place / "latin.py").write_bytes(b"x = '\xe9'\n")
    assert "cannot be read" in refusal("latin.py")
    assert "there is no such file" in refusal("a\0b.py")


def test_two_files_with_one_name(file: Path) -> None:
    stabmap.load_tasks(file)
    other = file.with_name("other.py")
    other.write_text(TASK + "# another\n")
    assert f"task 'parabola': a task of {file} has that name" in refusal(other)
    assert source_of("parabola") == Source(str(file), TASK)


def test_a_spec_cannot_name_a_path(file: Path) -> None:
    for name in (str(file), "mine.py", "mine", "mine:Parabola", "parabola"):
        with pytest.raises(InputError) as caught:
            stabmap.load_spec(SPEC, {"task": {"name": name}})
        assert "no such task" in str(caught.value)
    with pytest.raises(InputError, match="tasks = 'x': no such key"):
        stabmap.load_spec(SPEC, {"tasks": "x"})


# --------------------------------------------------------------------------- the command line


def spec_file(place: Path, **changes: Any) -> str:
    (place / "sweep.yaml").write_text(json.dumps(SPEC | {"folder": str(place / "kept")} | changes))
    return str(place / "sweep.yaml")


def test_show_and_doctor(file: Path) -> None:
    """The other process of `doctor --isolation` knows the task as well."""
    sweep = spec_file(file.parent)
    done = CliRunner().invoke(app, ["show", sweep, "--tasks", str(file), "--json"])
    assert done.exit_code == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["spec"]["task"] == {"name": "parabola", "curvature": 2.0, "batch": None}
    assert content["hash"] == stabmap.load_spec(sweep).hash
    words = ["doctor", sweep, "--isolation", "--tasks", str(file), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["isolation"]["sound"] is True


def test_a_worker_is_sent_the_text(place: Path) -> None:
    """No file at that path is needed; what is sent replaces what was there."""
    for curvature in (2.0, 5.0):
        text = TASK.replace("curvature: float = 2.0", f"curvature: float = {curvature}")
        register(Source(**Source("/nowhere/mine.py", text).to_dict()))
        assert stabmap.get_task("parabola").curvature == curvature  # type: ignore[attr-defined]
    assert not list(place.iterdir())


def test_the_kept_file_is_offered_and_not_executed(file: Path) -> None:
    """Whoever goes on with a sweep says that its file may be trusted."""
    stabmap.load_tasks(file)
    spec = stabmap.load_spec(SPEC, {"folder": str(file.parent)})
    with Store(spec) as store:
        kept = store.folder / "task.py"
    from_files._REGISTERED.clear()
    for verb in ("resume", "fsck"):
        done = CliRunner().invoke(app, [verb, spec.hash, "--folder", str(file.parent)])
        assert done.exit_code == 2
        assert done.stderr.endswith(f"only if you name it; add --tasks {kept}\n")
    assert from_files._REGISTERED == {}


@pytest.mark.ray
def test_a_small_sweep(cluster: None, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers train the text that was loaded: the file is gone before they begin."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    stabmap.load_tasks(file)
    spec = stabmap.load_spec(SPEC, {"folder": str(file.parent / "kept")})
    file.unlink()
    stabmap.run_sweep(spec)
    lines = (Path(spec.folder) / "sweeps" / spec.hash / "results.jsonl").read_text().splitlines()
    kept = [PointResult.from_dict(json.loads(line)["result"]) for line in lines]
    assert len(kept) == 4
    task = stabmap.get_task("parabola")
    for result in kept:
        assert evaluate([result.point], task, steps=40) == [result]
        assert (result.verdict.regime == "divergent") == (result.point.lr > 1)
