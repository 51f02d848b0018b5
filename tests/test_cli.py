"""The command line without a sweep: what it prints, what it refuses, and what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from full_size import without_data
from synthetic import DECAY, LR, map_of
from typer.testing import CliRunner, Result

from analysis import exports, load
from analysis.map import StabilityMap
from stabmap import cli
from stabmap.cli import app
from sweeps.spec import load_spec, preset_names


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and a home that are empty."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("STABMAP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def stability_map() -> StabilityMap:
    return map_of({"lr": LR, "weight_decay": DECAY}, 32)


@pytest.fixture
def folder(stability_map: StabilityMap, place: Path) -> str:
    stability_map.export(place / "out")
    return str(place / "out")


def stabmap(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def in_process(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The real thing: exit code and streams as a shell sees them."""
    return subprocess.run(
        [sys.executable, "-m", "stabmap", *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def nothing_left(place: Path) -> bool:
    return not (place / "home").exists() and not list((place / "cwd").iterdir())


def one_line(text: str) -> str:
    """The only line of a refusal."""
    assert "Traceback" not in text
    (line,) = text.splitlines()
    assert line.startswith("error: ")
    return line


# --------------------------------------------------------------------------- show


@pytest.mark.parametrize("name", preset_names())
def test_show_a_preset(name: str, place: Path) -> None:
    """What it prints is a spec that loads back to the same sweep."""
    overrides = without_data(name)
    words = [w for k, v in overrides.items() for w in ("-o", f"{k}={'null' if v is None else v}")]
    done = stabmap("show", name, *words)
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    text, _, rest = done.stdout.partition("\n\n")
    spec = load_spec(name, overrides)
    assert load_spec(yaml.safe_load(text)).resolved() == spec.resolved()
    lines = rest.splitlines()
    assert lines[0] == f"hash  {spec.hash}"
    assert lines[1].startswith(f"cost  {spec.budget.points} points, ")
    stand_in = f"note  the data are a stand-in for {spec.stand_in}"
    assert (stand_in in lines) == (spec.stand_in is not None)
    assert nothing_left(place)


def test_show_as_json(place: Path) -> None:
    done = stabmap("show", "mnist-mlp", "--json", "-o", "budget.points=9", "-o", "seeds=2")
    assert done.exit_code == 0
    (line,) = done.stdout.splitlines()
    content = json.loads(line)
    spec = load_spec("mnist-mlp", {"budget.points": 9, "seeds": 2})
    assert content["spec"] == json.loads(json.dumps(spec.resolved()))
    assert content["hash"] == spec.hash
    assert content["cost"]["points"] == 9
    assert content["cost"]["steps"] == 2 * 3 * spec.steps  # two k and the neighbour
    assert nothing_left(place)


def test_show_counts_workers(place: Path) -> None:
    def workers(*words: str) -> int:
        content = json.loads(stabmap("show", "mnist-mlp", "--json", *words).stdout)
        return int(content["cost"]["workers"])

    cpus = len(os.sched_getaffinity(0))
    assert workers() == cpus
    assert workers("-o", "resources.cpus=0.5") == 2 * cpus
    assert workers("-o", f"resources.cpus={10 * cpus}") == 1
    assert workers("-o", "resources.workers=3") == 3


def test_show_notes_a_power_of_two() -> None:
    done = stabmap("show", "mnist-mlp", "-o", "ks=[1, 3, 4]")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == (
        "note  k=4 repeats k=1 to the bit (a power of two apart)"
    )


def test_show_and_run_note_an_idle_stabiliser(place: Path) -> None:
    words = ["mnist-mlp", "-o", "stabiliser=clip-norm"]
    note = "stabiliser clip-norm does nothing at alpha 0: give axes.alpha a range"
    done = stabmap("show", *words)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-1] == f"note  {note}"
    assert json.loads(stabmap("show", *words, "--json").stdout)["notes"] == [note]
    done = stabmap("run", *words, "-o", "folder=/proc/stabmap")
    assert done.stderr.splitlines()[0] == f"note: {note}"
    assert nothing_left(place)


# --------------------------------------------------------------------------- bad input of run

BAD: list[tuple[list[str], str, str]] = [
    (["-o", "task=mnist-mpl"], "task = 'mnist-mpl': no such task", "mean mnist-mlp?"),
    (["-o", "axes.lr.low=50"], "axes.lr = [50.0, 20.0]: low < high", "swap"),
    (["-o", "axes.lr.low=0"], "axes.lr.low = 0.0: low > 0", "positive low"),
    (["-o", "axes.weight_decay.low=-1"], "axes.weight_decay.low = -1.0: low > 0", "zero: true"),
    (["-o", "ks=[1, 6]"], "ks = 6: k is odd", "use 3"),
    (["-o", "ks=[1, 0]"], "ks = 0: k is an integer >= 1", "odd numbers"),
    (["-o", "axes.lr.low=1e-39"], "axes.lr.low = 1e-39: lr / 3 underflows float32", "float64"),
    (["-o", "budget={}"], "budget = None: a sweep needs an end", "points: 64"),
    (["-o", "task.data_root=/nowhere"], "task.data_root = '/nowhere': ", "built-in images"),
    (["-o", "stepps=5"], "stepps = 5: no such key", "did you mean steps?"),
    (["-o", "steps"], "-o = 'steps': an override reads path=value", "budget.points=64"),
    (["--address", "ray://host:1"], "address = 'ray://host:1': ", "--address auto"),
]


@pytest.mark.parametrize(("words", "begin", "remedy"), BAD)
def test_run_refuses(words: list[str], begin: str, remedy: str, place: Path) -> None:
    """One line with field, value, law and remedy; nothing is made."""
    done = stabmap("run", "mnist-mlp", "--quiet", *words)
    assert done.exit_code == 2
    assert done.stdout == ""
    line = one_line(done.stderr)
    assert line.startswith(f"error: {begin}")
    assert remedy in line
    assert nothing_left(place)


def test_run_says_all_that_is_wrong(place: Path) -> None:
    words = ["-o", "ks=[1, 6]", "-o", "seeds=0", "-o", "steps=1", "-o", "budget.points=0"]
    for verb in ("run", "show"):
        done = stabmap(verb, "mnist-mlp", *words)
        assert done.exit_code == 2
        lines = done.stderr.splitlines()
        fields = [line.removeprefix("error: ").partition(" = ")[0] for line in lines]
        assert fields == ["ks", "seeds", "steps", "budget.points"]
    assert nothing_left(place)


@pytest.mark.parametrize("name", ["missing.yaml", "missing/sweep.yaml", "no-preset"])
def test_run_without_a_spec(name: str, place: Path) -> None:
    done = stabmap("run", name)
    assert done.exit_code == 2
    line = one_line(done.stderr)
    assert line.startswith(f"error: spec = {name!r}: cannot be read as a file")
    assert f"or a preset: {preset_names()[0]}, " in line
    assert nothing_left(place)


@pytest.mark.parametrize("folder_name", ["file/below", "/proc/stabmap"])
@pytest.mark.parametrize("separate", [False, True])
def test_run_in_a_folder_that_cannot_be_written(
    folder_name: str, separate: bool, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether MLflow's database lies there too or elsewhere."""
    (place / "file").write_text("")
    if separate:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/kept.db")
    target = str(place / folder_name)
    done = stabmap("run", "mnist-mlp", "--quiet", "-o", f"folder={target}")
    assert done.exit_code == 4
    line = one_line(done.stderr)
    assert target in line
    assert "folder" in line or "mlflow.db" in line
    assert (place / "file").read_text() == ""
    assert nothing_left(place)


def test_run_makes_no_database_for_a_folder_that_cannot_be_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/kept.db")
    assert stabmap("run", "mnist-mlp", "-q", "-o", "folder=/proc/stabmap").exit_code == 4
    assert not (place / "kept.db").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_run_on_a_gpu_that_is_not_there(place: Path) -> None:
    for device in ("cuda", "cuda:0"):
        done = stabmap("run", "mnist-mlp", "--quiet", "-o", f"device={device}")
        assert done.exit_code == 4
        line = one_line(done.stderr)
        assert line.startswith(f"error: device = {device!r}: ")
        assert "use device: cpu" in line
    assert nothing_left(place)


def test_run_without_the_tracking_server(place: Path) -> None:
    """It takes seconds to notice, not the minutes of MLflow's own settings."""
    begin = time.monotonic()
    done = stabmap("run", "mnist-mlp", "-q", "-o", "tracking.address=http://127.0.0.1:9")
    assert time.monotonic() - begin < 60
    assert done.exit_code == 4
    line = one_line(done.stderr)
    assert line.startswith("error: tracking.address = 'http://127.0.0.1:9': ")
    assert "MLFLOW_TRACKING_URI" in line
    assert "sqlite" in line
    assert nothing_left(place)


@pytest.mark.parametrize("where", ["tracking.address", "MLFLOW_TRACKING_URI"])
def test_run_makes_no_folder_for_a_database(
    where: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"sqlite:///{place}/missing/mlflow.db"
    words = ["-o", f"{where}={address}"] if where == "tracking.address" else []
    if not words:
        monkeypatch.setenv(where, address)
    done = stabmap("run", "mnist-mlp", "-q", *words)
    assert done.exit_code == 4
    line = one_line(done.stderr)
    assert line.startswith(f"error: {where} = {address!r}: there is no folder '{place}/missing'; ")
    assert "make it" in line
    assert not (place / "missing").exists()
    assert nothing_left(place)


def test_where_a_database_may_lie(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the sweep's folder, which is made, or in one that exists, as a name alone too."""
    from sweeps.runner import check_surroundings

    home = place / "home"
    for address in (
        None,
        f"sqlite:///{home}/mlflow.db",
        f"sqlite:///{place}/kept.db",
        "sqlite:///kept.db",
        "http://127.0.0.1:9",
    ):
        check_surroundings(load_spec("mnist-mlp", {"tracking.address": address}), "local")
    assert nothing_left(place)


# --------------------------------------------------------------------------- real processes


def test_a_refusal_in_a_process(place: Path) -> None:
    """Ten mistakes, ten lines, exit code 2, no stack trace, nothing made."""
    spec = {
        "task": "mnist",
        "axes": {"lr": {"scale": "log", "low": 2, "high": 1}, "beta": 1},
        "ks": [2, 6],
        "seeds": 0,
        "steps": 3,
        "momentum": 1,
        "budget": {"points": 0, "wall_time": 0},
        "resources": {"pack": 0},
    }
    path = place / "sweep.yaml"
    path.write_text(yaml.safe_dump(spec))
    done = in_process("run", str(path))
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 10
    assert all(line.startswith("error: ") and "; " in line for line in lines)
    assert nothing_left(place)


def test_what_is_out_of_reach_in_a_process(place: Path) -> None:
    """Beyond the spec: exit code 4, one line after the greeting, and no Ray was started."""
    done = in_process("run", "mnist-mlp", "-o", "folder=/proc/stabmap")
    assert done.returncode == 4
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    greeting, error = done.stderr.splitlines()
    assert greeting.startswith("sweep mnist-mlp (")
    assert error.startswith("error: ")
    assert nothing_left(place)


def test_a_question_in_a_process(stability_map: StabilityMap, folder: str) -> None:
    done = in_process("query", folder, "lr=0.1", "weight_decay=1e-3", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == pytest.approx(
        stability_map.classify(lr=0.1, weight_decay=1e-3), abs=1e-6
    )
    done = in_process("query", folder, "lr=1e9", "weight_decay=0")
    assert done.returncode == 2
    assert "lr" in one_line(done.stderr)


def test_version() -> None:
    done = stabmap("--version")
    assert (done.exit_code, done.stdout) == (0, f"stabmap {version('stabmap')}\n")


def test_programs_are_named_as_the_shell_finds_them(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name where PATH leads to them, else by their path, seen from here where it lies below."""
    programs = place / "cwd" / ".venv" / "bin"
    elsewhere = place / "elsewhere"
    for parent in (programs, elsewhere):
        parent.mkdir(parents=True)
        (parent / "mlflow").touch(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    for path, said in (
        (elsewhere, ".venv/bin/mlflow"),  # another one
        (place, ".venv/bin/mlflow"),
        (programs, "mlflow"),
    ):
        monkeypatch.setenv("PATH", str(path))
        assert cli._program("mlflow") == said
    assert cli._program("open") == "open"
    monkeypatch.setenv("PATH", str(place))
    monkeypatch.chdir(place / "home" if (place / "home").exists() else elsewhere)
    assert cli._program("mlflow") == str(programs / "mlflow")


def test_what_is_printed_can_be_called(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs = place / "cwd" / "my env" / "bin"
    programs.mkdir(parents=True)
    (programs / "mlflow").touch(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", str(place))
    found = SimpleNamespace(
        stability_map=None, picture=None, folder="f", review="mlflow ui --port 1", sweep="s"
    )
    cli._report(found)
    assert "review    'my env/bin/mlflow' ui --port 1" in capsys.readouterr().out.splitlines()


def test_usage(place: Path) -> None:
    assert stabmap("no-such-verb").exit_code == 2
    assert stabmap("run").exit_code == 2
    assert stabmap("run", "mnist-mlp", "--no-such-option").exit_code == 2
    assert stabmap().exit_code == 2
    done = stabmap("--help")
    assert done.exit_code == 0
    for verb in ("run", "show", "query", "plot", "export"):
        assert verb in done.stdout
        assert stabmap(verb, "--help").exit_code == 0
    assert nothing_left(place)


# --------------------------------------------------------------------------- query


def test_query_in_words(stability_map: StabilityMap, folder: str) -> None:
    done = stabmap("query", folder, "lr=0.02", "weight_decay=0")
    assert done.exit_code == 0
    p = stability_map.classify(lr=0.02, weight_decay=0)
    assert done.stdout.splitlines() == [
        f"stable      {p['stable']:.3f}",
        f"restrained  {p['restrained']:.3f}",
        f"divergent   {p['divergent']:.3f}",
    ]


def test_query_largest(stability_map: StabilityMap, folder: str) -> None:
    expected = stability_map.max_stable("lr", weight_decay=0.01, confidence=0.8)
    assert expected is not None
    words = ["query", folder, "--max", "lr", "weight_decay=0.01", "--confidence", "0.8"]
    done = stabmap(*words)
    assert done.stdout == f"lr <= {expected:.4g} is stable with probability >= 0.8\n"
    (line,) = stabmap(*words, "--json").stdout.splitlines()
    assert json.loads(line) == {"axis": "lr", "max_stable": expected, "confidence": 0.8}


def test_query_where_nothing_is_stable(folder: str) -> None:
    words = ["query", folder, "--max", "weight_decay", "lr=100"]
    done = stabmap(*words)
    assert done.exit_code == 0
    assert done.stdout.startswith("no weight_decay of this map is stable")
    assert json.loads(stabmap(*words, "--json").stdout)["max_stable"] is None


@pytest.mark.parametrize(
    ("words", "begin"),
    [
        (["weight_decay=0"], "lr = None: the sweep varied this axis"),
        (["lr=0.1", "weightdecay=0"], "weightdecay = None: no such axis; did you mean weight_dec"),
        (["lr=0.1", "weight_decay=5"], "weight_decay = 5.0: the sweep looked at 0 to 1 only"),
        (["lr=0.1", "weight_decay=0", "alpha=1"], "alpha = 1.0: the sweep held it at 0"),
        (["lr=nan", "weight_decay=0"], "lr = nan: must be finite"),
        (["lr", "weight_decay=0"], "at = 'lr': a place reads axis=number"),
        (["lr=fast", "weight_decay=0"], "at = 'lr=fast': a place reads axis=number"),
        (["--max", "momentum"], "momentum = None: no such axis"),
        (["--max", "alpha"], "alpha = 0.0: the sweep held this axis fixed"),
        (["--max", "lr", "lr=1", "weight_decay=0"], "lr = 1.0: this is the axis asked for"),
        (["--max", "lr", "weight_decay=0", "--confidence", "95"], "confidence = 95.0: 0 < "),
    ],
)
def test_query_refuses(words: list[str], begin: str, folder: str, place: Path) -> None:
    done = stabmap("query", folder, *words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert one_line(done.stderr).startswith(f"error: {begin}")
    assert nothing_left(place)


@pytest.mark.parametrize(
    "words", [["--max", "lr", "confidence=0.5"], ["self=1"], ["--max", "lr", "axis=1"]]
)
def test_query_of_a_name_that_python_uses(words: list[str], folder: str) -> None:
    done = stabmap("query", folder, *words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 2
    assert "no such axis" in one_line(done.stderr)


@pytest.mark.parametrize("verb", ["query", "plot", "export"])
def test_a_sweep_that_does_not_exist(verb: str, place: Path) -> None:
    more = {"query": ["lr=1"], "plot": [], "export": ["out"]}[verb]
    for sweep, law in (("0123", "no sweep was kept in sqlite:///"), ("a/b", "no map.parquet")):
        done = stabmap(verb, sweep, *more)
        assert done.exit_code == 2
        line = one_line(done.stderr)
        assert line.startswith(f"error: sweep = {sweep!r}: ")
        assert law in line
        assert "stabmap run" in line
    assert nothing_left(place)


def test_a_file_that_is_no_map(place: Path) -> None:
    (place / "notes.txt").write_text("lr 0.1 stable")
    done = stabmap("query", str(place / "notes.txt"), "lr=1")
    assert done.exit_code == 2
    assert "not a stability map" in one_line(done.stderr)


# --------------------------------------------------------------------------- plot, export


def test_plot(stability_map: StabilityMap, folder: str, place: Path) -> None:
    done = stabmap("plot", folder)
    assert (done.exit_code, done.stdout) == (0, "map.png\n")
    done = stabmap("plot", folder, "-O", str(place / "other.png"))
    assert done.stdout.strip() == str(place / "other.png")
    assert (place / "other.png").read_bytes() == (place / "cwd" / "map.png").read_bytes()
    stabmap("plot", folder, "-O", "plain.png", "--no-theory")
    assert (place / "cwd" / "plain.png").read_bytes() != (place / "other.png").read_bytes()


@pytest.mark.parametrize("name", ["map.foo", "map.jpg", "map"])
def test_plot_refuses_what_its_help_does_not_name(name: str, folder: str, place: Path) -> None:
    done = stabmap("plot", folder, "-O", name)
    assert done.exit_code == 2
    line = one_line(done.stderr)
    assert line.startswith(f"error: path = {name!r}: is no picture")
    assert ".png, .svg, .pdf" in line
    assert ".png, .svg, .pdf" in stabmap("plot", "--help").stdout
    assert nothing_left(place)


@pytest.mark.parametrize("name", ["missing/map.png", "/proc/map.png"])
def test_plot_refuses(name: str, folder: str, place: Path) -> None:
    done = stabmap("plot", folder, "--output", name)
    assert done.exit_code == 2
    assert one_line(done.stderr).startswith(f"error: path = {name!r}: cannot be written")
    assert nothing_left(place)


def test_export(stability_map: StabilityMap, folder: str, place: Path) -> None:
    """From a folder to a folder: all files, the same bytes where the format promises it."""
    done = stabmap("export", folder, str(place / "again"))
    assert done.exit_code == 0
    names = [f"{place}/again/{name}" for name in exports.FILES.values()]
    assert done.stdout.splitlines() == names
    for name in names[:3]:
        original = Path(folder) / Path(name).name
        assert Path(name).read_bytes() == original.read_bytes()
    done = stabmap("export", folder, "/proc/stabmap")
    assert done.exit_code == 2
    assert one_line(done.stderr).startswith("error: folder = '/proc/stabmap': cannot be written")


def test_ctrl_c(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(load, "load_map", interrupted)
    done = stabmap("query", folder, "lr=1")
    assert done.exit_code == 130
    assert "Traceback" not in done.output
