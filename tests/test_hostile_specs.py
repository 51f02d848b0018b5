"""Specs that were written to do harm, or by accident: one line a mistake, and nothing else.

2,000 generated ones in this process, and files of the known kinds through the command line.
"""

from __future__ import annotations

import copy
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from stabmap.cli import app
from sweeps.plain_yaml import LARGEST_FILE, MOST_VALUES, NotPlain, parse
from sweeps.spec import load_spec, parse_overrides
from trainables.domain import InputError, Training
from trainables.messages import printable

VALID: dict[str, Any] = {
    "name": "n",
    "task": {"name": "one-layer-cnn", "image": 64, "kernel": 8, "distinct": True},
    "axes": {
        "lr": {"scale": "log", "low": 0.01, "high": 10},
        "alpha": {"scale": "linear", "low": 0, "high": 1},
        "weight_decay": {"scale": "log", "low": 1e-3, "high": 1, "zero": True},
    },
    "ks": [1, 3],
    "seeds": 1,
    "seed": 0,
    "steps": 60,
    "dtype": "float32",
    "device": "cpu",
    "optimiser": "adam",
    "momentum": 0.9,
    "decay": "coupled",
    "beta2": 0.99,
    "eps": 1e-8,
    "stabiliser": {"name": "stability", "anchor": "epoch"},
    "sharpness": True,
    "lyapunov": True,
    "early": True,
    "backend": "auto",
    "search": {
        "method": "grid",
        "batch": 8,
        "startup": 3,
        "replicates": 3,
        "levels": {"lr": 4},
        "start": [{"lr": 1, "weight_decay": 0, "alpha": 0}],
        "audit": 3,
    },
    "budget": {"points": 64, "wall_time": "5m"},
    "resources": {"workers": 2, "cpus": 1, "gpus": 0, "pack": 4},
    "tracking": {"address": "http://localhost:5000", "experiment": "e"},
    "folder": "somewhere",
}

#: What somebody might put anywhere.
HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, -0.0, 2, 10**39, 10**41, -(10**5000), 2**63, 1e308, 5e-324),
    *(float("inf"), float("-inf"), float("nan"), b"bytes", (1, 3)),
    *("", " ", "x", "x" * 999, "x" * 300, "x" * 100_000, "é" * 200, "😀"),
    *("\x00", "\x1b[31mred", "two\nlines", "\r", "\u202eback", "\u200b", "\ud800", "\x9b2J"),
    *("../../x", "..", "~nobody-here/x", "~", "/", "/dev/zero", "a" * 250 + "/" + "b" * 250),
    *("1e400", "0x10", "0o17", "9" * 5000, "nan", "true", "1:30", "2020-01-01"),
    *([], {}, [[]], [None], [1, [2]], {"a": 1}, {"": 1}, {"name": None}, {"name": "x", "y": 3}),
    *({"__class__": 1}, {"scale": "log"}, list(range(200)), ["a"] * 10_000, [1] * 10_001),
    *({str(i): i for i in range(300)}, {str(i): 0 for i in range(10_001)}, {1: 2, "1": 3}),
    *("torch.optim.lr_scheduler", "torch.optim.Optimizer", "torch.optim.LBFGS", "torch.optim."),
    *("torch.optim.os.system", "torch.optim.SGD.__init__", "mnist-mlp", "none", "clip-norm"),
    *("cuda", "cuda:0", "cuda:000", "cuda:99999999999999999999", "tpe", "boundary", "log"),
    *("bfloat16", "tfloat32", "float64", "vmap", "password=x", "http://u:p@h", "file:///etc"),
]

KEYS = ["x", "__init__", "self", "name", "model_config", "a.b", "\x1b", "method", "", "k" * 300, 1]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key, inner in (
        value.items() if isinstance(value, dict)
        else enumerate(value) if isinstance(value, list) else ()
    ):  # fmt: skip
        yield from places(inner, (*path, key))


PLACES = list(places(VALID))


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A valid spec with up to three places changed, removed, or given a neighbour."""
    raw = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(PLACES))
        what = draw(st.sampled_from(["value", "value", "value", "key", "remove"]))
        value = copy.deepcopy(draw(st.sampled_from(HOSTILE)))
        place: Any = raw
        try:
            for key in parents:
                place = place[key]
            if what == "remove":
                del place[last]
            else:
                place[last if what == "value" else draw(st.sampled_from(KEYS))] = value
        except (KeyError, IndexError, TypeError, AttributeError):
            continue  # an earlier change took that place away
    return raw


def is_answered(source: Any, overrides: Any = None) -> bool:
    """Whether it is a spec; if not, its mistakes are such that they may be printed."""
    given = parse_overrides if isinstance(overrides, list) else dict
    try:
        spec = load_spec(source, given(overrides or ()))
    except InputError as error:
        mistakes, code = error.mistakes, error.exit_code
    else:
        mistakes, code = (), 2
    for line in map(str, mistakes):
        assert line.isprintable(), line
        assert len(line) < 1000, line
    assert (code, len(mistakes) <= 51) == (2, True)
    if mistakes:
        return False
    again = load_spec(parse(yaml.safe_dump(spec.resolved(), sort_keys=False)))
    assert again.hash == spec.hash
    assert again.resolved() == spec.resolved()
    assert spec.title.isprintable()
    assert spec.tracking.experiment.isprintable()
    return True


def test_the_spec_that_is_mutated_is_valid() -> None:
    assert is_answered(VALID)


@settings(max_examples=1400, suppress_health_check=list(HealthCheck))
@given(mutated())
def test_mutated_specs(raw: dict[str, Any]) -> None:
    is_answered(raw)


YAML_PIECES = st.sampled_from(
    [
        *("task: ", "axes", ": ", ":", "\n", "\n  ", "\t", "- ", "[", "]", "{", "}", ", ", "#"),
        *("&a ", "*a", "!!str ", "!t ", "<<: ", "? ", "|\n", ">\n", "'", '"', '"\\0"', "%"),
        *("---\n", "...\n", "1e400", "0x1", ".inf", ".nan", "-0", "~", "mnist-mlp", "\x00"),
        *("budget: {points: 2}\n", "\x85", "\ufeff", "\u2028", "lr: .1", "{lr: .1}", "1_0"),
        *("1:30", "2020-01-01", "é", "😀"),
    ]
)


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(st.lists(YAML_PIECES | st.text(max_size=3), max_size=25).map("".join))
def test_random_yaml(text: str) -> None:
    try:
        raw = parse(text)
    except NotPlain:
        return
    # As the command line has them: one value at a place, or a whole spec.
    is_answered(VALID, {"task.image": raw})
    if isinstance(raw, dict):
        is_answered(raw)


PATHS = st.lists(
    st.sampled_from(["task", "axes", "lr", "search", "start", "0", "ks", "__class__", "", " ", "é"])
    | st.text(max_size=2),
    max_size=20,
).map(".".join)


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(PATHS, st.sampled_from(["=1", "=", "", "=[", "={a: 1}", "=*a"])), max_size=3)
)
def test_odd_overrides(words: list[tuple[str, str]]) -> None:
    is_answered(VALID, [path + value for path, value in words])


def test_values_that_only_a_program_can_give() -> None:
    """A mapping that holds itself, and one that is deep."""
    raw: dict[str, Any] = copy.deepcopy(VALID)
    raw["task"]["image"] = raw
    assert not is_answered(raw)
    looped: list[Any] = []
    looped.append(looped)
    assert not is_answered({**VALID, "ks": looped})
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    assert not is_answered({**VALID, "ks": deep})


def test_a_number_of_many_digits() -> None:
    assert load_spec(VALID, {"axes.lr": {"scale": "log", "low": 1, "high": 10**38}}).space[0].free
    for value in (10**41, -(10**5000)):
        with pytest.raises(InputError, match=r"^axes\.lr = 'a number of many digits': at most 40"):
            load_spec(VALID, {"axes.lr": value})


# --------------------------------------------------------------------------- files

GOOD = b"task: mnist-mlp\naxes: {lr: .1}\nbudget: {points: 2}\n"
BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(20)
)

#: Content, what the only line says.
FILES: dict[str, tuple[bytes, str]] = {
    "alias bomb": (BOMB, "line 1: anchors and aliases are not read; write the value out"),
    "anchor of itself": (b"task: &a {name: *a}\n", "anchors and aliases are not read"),
    "an alias alone": (b"task: *a\n", "anchors and aliases are not read"),
    "deep flow": (b"task: " + b"[" * 100_000, "line 1: nested deeper than 16"),
    "deep block": (b"".join(b" " * i + b"a:\n" for i in range(500)), "line 17: nested deeper"),
    "deep list": (b"- " * 60_000, "nested deeper than 16"),
    "python object": (
        b"task: !!python/object/apply:os.system ['touch pwned']\n",
        "line 1: the tag tag:yaml.org,2002:python/object/apply:os.system is not read",
    ),
    "python name": (b"task: !!python/name:os.system\n", "is not read"),
    "binary": (b"task: !!binary aGVsbG8=\n", "2002:binary is not read"),
    "set": (b"task: !!set {a, b}\n", "2002:set is not read"),
    "own tag": (b"task: !mine x\n", "the tag !mine is not read"),
    "timestamp tag": (b"task: !!timestamp 2020-01-01\n", "2002:timestamp is not read"),
    "merge key": (GOOD + b"<<: {steps: 30}\n", "<< = {'steps': 30}: no such key"),
    "key twice": (GOOD + b"task: one-layer-cnn\n", "line 4: the key task stands there twice"),
    "key twice within": (GOOD + b"search: {batch: 4, batch: 5}\n", "line 4: the key batch stands"),
    "key twice as text": (GOOD + b"1: 2\n'1': 3\n", "line 5: the key 1 stands there twice"),
    "list as key": (b"? [a, b]\n: 1\n", "line 1: a key is a word"),
    "two documents": (GOOD + b"---\ntask: x\n", "line 4: a second document begins; keep one"),
    "a list": (b"- 1\n- 2\n", "holds no mapping"),
    "empty": (b"", "holds no mapping"),
    "a word": (b"task", "holds no mapping"),
    "NUL": (b"task: a\0b\n", "is no YAML"),
    "NUL as an escape": (GOOD + b'name: "a\\0b"\n', r"name = 'a\x00b': a text has no control"),
    "terminal escape": (GOOD + b'name: "\\e[31m"\n', r"name = '\x1b[31m': a text has no control"),
    "terminal escape in a key": (GOOD + b'"\\e[31m": 1\n', r"\x1b[31m = 1: a key is printable"),
    "right to left": (GOOD + b'tracking: {experiment: "\\u202Ex"}\n', "invisible signs"),
    "not UTF-8": (b"name: ok\nname: caf\xe9\n", "is no UTF-8 text (line 2); save it as UTF-8"),
    "UTF-16": ("task: x".encode("utf-16"), "is no UTF-8 text"),
    "large": (b"# " + b"x" * LARGEST_FILE, "is larger than 256 KiB, which no spec needs"),
    "many values": (b"ks: [" + b"1," * (MOST_VALUES + 1) + b"]", f"more than {MOST_VALUES} values"),
    "a long list": (GOOD + b"ks: [" + b"1," * 10_001 + b"]", "ks = '10001 entries': at most 10000"),
    "many ks": (GOOD + b"ks: [" + b"1," * 65 + b"]", "ks = '65 numbers': a list of at most 64"),
    "a long text": (GOOD + b"name: " + b"x" * 1001, "at most 1000 characters, and 255 bytes"),
    "a long name in a path": (GOOD + b"folder: /tmp/" + b"x" * 256, "255 bytes between two"),
    "number of 5000 digits": (GOOD + b"steps: " + b"9" * 5000, "steps = '999"),
    "1e400": (GOOD.replace(b".1", b"1.0e+400"), "axes.lr = inf: lr > 0 must hold"),
    "infinity": (GOOD.replace(b".1", b"-.inf"), "axes.lr = -inf: lr > 0 must hold"),
    "not a number": (GOOD.replace(b".1", b".nan"), "axes.lr = nan: lr > 0 must hold"),
    "minus zero": (GOOD.replace(b".1", b"-0.0"), "axes.lr = -0.0: lr > 0 must hold"),
    "hexadecimal": (GOOD + b"steps: 0x40\n", "steps = '0x40': must be a valid integer"),
    "octal": (GOOD + b"steps: 0o100\n", "steps = '0o100': must be a valid integer"),
    "sexagesimal": (GOOD + b"steps: 1:30\n", "steps = '1:30': must be a valid integer"),
    "a date for a number": (GOOD + b"steps: 2020-01-01\n", "steps = '2020-01-01': must be"),
    "a path as name": (GOOD + b"name: ../../x\n", "name = '../../x': a name is no path; write"),
    "a path as task": (GOOD.replace(b"mnist-mlp", b"../x.py"), "task = '../x.py': no such task"),
    "a path as experiment": (
        GOOD + b"tracking: {experiment: a/../../b}\n",
        "tracking.experiment = 'a/../../b': no part of the name is ..",
    ),
    "a long sweep name": (GOOD + b"name: " + b"x" * 201, "1 to 200 characters; write name: my"),
    "no experiment": (GOOD + b"tracking: {experiment: ''}\n", "tracking.experiment = '': 1 to 200"),
    "a long experiment": (
        GOOD + b"tracking: {experiment: " + b"x" * 201 + b"}\n",
        "1 to 200 characters",
    ),
    "no folder": (GOOD + b"folder: ''\n", "folder = '': names no folder; write the path"),
    "a user that is not there": (GOOD + b"folder: ~nobody-here/x\n", "there is no such user"),
    "a batch that fills the memory": (
        GOOD + b"search: {batch: 1000000000}\n",
        "search.batch = 1000000000: points a round >= 1, and at most 10000",
    ),
    "a grid that fills the memory": (
        GOOD.replace(
            b".1", b"{scale: log, low: 1, high: 2}, alpha: {scale: linear, low: 0, high: 1}"
        )
        + b"search: {method: grid, levels: 5000}\n",
        "search.levels = 25000000: a grid has at most 1000000 points",
    ),
    "patches that fill the memory": (
        GOOD.replace(b"mnist-mlp", b"{name: one-layer-cnn, image: 4096, distinct: false}"),
        "task.distinct = False: every patch apart makes 16,920,",
    ),
    "endless seeds": (GOOD + b"seeds: 1000000000000\n", "at most 10000; use seeds: 1"),
    "endless steps": (GOOD + b"steps: 1000000000000\n", "and at most 1000000000; use a few"),
    "endless points": (GOOD + b"search: {audit: -1}\n", "points >= 0, and fewer than"),
    "many workers": (GOOD + b"resources: {workers: 100000}\n", "workers >= 1, and at most 10000"),
    "many CPUs": (GOOD + b"resources: {cpus: 1.0e+9}\n", "finite and > 0, and at most 10000"),
    "many GPUs": (
        GOOD + b"device: cuda\nresources: {gpus: 1.0e+9}\n",
        "more than one GPU is a whole number, and at most 10000",
    ),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory and a home that are empty."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("STABMAP_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def nothing_left(place: Path) -> bool:
    return not (place / "home").exists() and not list((place / "cwd").iterdir())


def refused(*words: str) -> list[str]:
    """The lines of a refusal, which are all that is printed."""
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 2, (done.output, done.exception)
    assert isinstance(done.exception, SystemExit)
    assert done.stdout == ""
    lines = done.stderr.removesuffix("\n").split("\n")
    assert all(line.startswith("error: ") and line.isprintable() for line in lines)
    assert all(len(line) < 1000 + len("error: ") for line in lines)
    return lines


@pytest.mark.parametrize("kind", FILES)
def test_a_file(kind: str, place: Path) -> None:
    """One line that names what is wrong; no file, no folder."""
    content, said = FILES[kind]
    (place / "sweep.yaml").write_bytes(content)
    (line,) = refused("show", str(place / "sweep.yaml"))
    assert said in line
    assert refused("run", str(place / "sweep.yaml"), "-q") == [line]
    assert nothing_left(place)


def test_many_mistakes_are_counted(place: Path) -> None:
    entries = b"{a: b}," * 9000
    (place / "sweep.yaml").write_bytes(GOOD + b"search: {start: [" + entries + b"]}\n")
    lines = refused("show", str(place / "sweep.yaml"))
    assert len(lines) == 51
    assert lines[-1].startswith("error: spec = '9000 mistakes': only the first 50 are shown")
    assert nothing_left(place)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("/dev/zero", "is no regular file"),
        ("/dev/null", "is no regular file"),
        ("/proc/self/mem", "cannot be read as a file"),
        ("folder", "cannot be read as a file"),
        ("fifo", "is no regular file; write the spec to a file"),
        ("../presets/mnist-mlp", "cannot be read as a file"),
        ("../../x", "cannot be read as a file"),
        ("~nobody-here/x", "cannot be read as a file"),
        ("", "cannot be read as a file"),
        ("x" * 5000, "cannot be read as a file"),
        ("a\0b", "cannot be read as a file"),
        ("\x1b[2J", "cannot be read as a file"),
    ],
)
def test_a_source_that_is_no_file(source: str, said: str, place: Path) -> None:
    (place / "folder").mkdir()
    os.mkfifo(place / "fifo")
    here = str(place / source) if source in ("folder", "fifo") else source
    (line,) = refused("show", here)
    assert said in line
    assert nothing_left(place)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("a..b=1", "a path is names with single dots between"),
        (".=1", "a path is names with single dots between"),
        ("task.=1", "a path is names with single dots between"),
        ("=1", "an override reads path=value"),
        ("__class__.x=1", "__class__ = {'x': 1}: no such key"),
        ("task.__class__=1", "task.__class__ = 1: mnist-mlp has no such option"),
        (".".join("a" * 5000) + "=1", "a path is names with single dots between"),
        ("search.start.0.lr=1", "search.start is [], which has no parts"),
        ("ks=*a", "the value: line 1: anchors and aliases are not read"),
        ("ks=" + "[" * 1000, "the value: line 1: nested deeper than 16"),
        ("name=!!python/object/apply:os.system ['ls']", "is not read"),
        ("steps=" + "9" * 5000, "steps = '999"),
        ('name="\\e[2J"', "a text has no control characters"),
        ("\x1b[2J=1", r"\x1b[2J = 1: a key is printable"),
        ("name=a\nb: c", "is no YAML"),
    ],
)
def test_an_odd_override(override: str, said: str, place: Path) -> None:
    (place / "sweep.yaml").write_bytes(GOOD + b"search: {start: []}\n")
    (line,) = refused("show", str(place / "sweep.yaml"), "-o", override)
    assert said in line
    assert nothing_left(place)


GOOD_FILES = {
    "line ends of Windows and a BOM": b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n"),
    "a date as name": GOOD + b"name: 2020-01-01\n",
    "underscores": GOOD + b"steps: 1_000\n",
    "one document with its marks": b"---\n" + GOOD + b"...\n",
    "a name in another script": GOOD + "name: карта 地図 é\n".encode(),
    "an experiment in folders": GOOD + b"tracking: {experiment: /Users/me/maps}\n",
}


@pytest.mark.parametrize("kind", GOOD_FILES)
def test_a_file_that_is_odd_but_good(kind: str, place: Path) -> None:
    (place / "sweep.yaml").write_bytes(GOOD_FILES[kind])
    assert is_answered(place / "sweep.yaml")


def test_yes_and_no_are_what_they_were() -> None:
    """Only what surprises was taken out of YAML 1.1."""
    text = "[yes, no, on, off, true, 1, -7, +3, 0, 1.5, 1.0e-3, .5, .inf, ~, null, 1_000]"
    assert parse(text) == yaml.safe_load(text)
    assert parse("[010, 0x1F, 1:30, 2020-01-01, =]") == ["010", "0x1F", "1:30", "2020-01-01", "="]


# --------------------------------------------------------------------------- processes


def bounded() -> None:
    """2 GiB of data: torch is loaded within, a bomb is not."""
    resource.setrlimit(resource.RLIMIT_DATA, (2 * 2**30, 2 * 2**30))


@pytest.mark.parametrize("kind", ["alias bomb", "deep flow", "many values"])
def test_a_file_in_a_process(kind: str, place: Path) -> None:
    """As a shell sees it, with bounded memory and time."""
    (place / "sweep.yaml").write_bytes(FILES[kind][0])
    done = subprocess.run(
        [sys.executable, "-m", "stabmap", "run", str(place / "sweep.yaml")],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=bounded,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert FILES[kind][1] in line
    assert nothing_left(place)


# --------------------------------------------------------------------------- messages


@given(st.text())
def test_printable(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text


def test_a_long_training_is_refused_from_python_too() -> None:
    for settings_ in ({"seeds": 10_001}, {"steps": 10**9 + 1}, {"ks": tuple(range(1, 133, 2))}):
        with pytest.raises(InputError, match="at most"):
            Training(**settings_)
