"""What is read from a sweep's folder, and how its driver is asked; a small stand-in is the driver.

The stand-in keeps the contract that real drivers keep: it holds the lock, writes `sweep.json` and
looks for a word in `control`.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from stabmap import cli_cluster
from stabmap.cli import app
from sweeps.spec import load_spec
from sweeps.status import (
    STATES,
    SweepStatus,
    _settle,
    ask,
    find_sweep,
    find_sweeps,
    read_status,
)
from trainables.domain import InputError, StabmapError, UnreachableError

HASH = "0123456789abcdef"

DRIVER = """
import fcntl, json, os, pathlib, sys, time
folder, obeys, ends_after = pathlib.Path(sys.argv[1]), sys.argv[2] == "obeys", float(sys.argv[3])
lock = (folder / "lock").open("w")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
def say(**facts):
    kept = folder / "sweep.json"
    old = json.loads(kept.read_text()) if kept.exists() else {}
    (folder / "new").write_text(json.dumps(old | facts | {"updated": time.time()}))
    (folder / "new").replace(kept)
say(state="running", title="toy", points=3, limit=8, left=75.0, workers=2, pid=os.getpid(),
    host="here", counts={"stable": 2, "restrained": 0, "divergent": 1}, sweep="f" * 32)
print("up", flush=True)
begin = time.time()
while time.time() - begin < ends_after:
    time.sleep(0.05)
    word = (folder / "control").read_text() if (folder / "control").exists() else None
    if word and obeys:
        (folder / "control").unlink()
        say(state={"pause": "paused", "stop": "stopped"}[word], points=4)
        sys.exit()
say(state="complete", points=8)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STABMAP_HOME", str(tmp_path))
    return tmp_path


def folder_of(home: Path, spec_hash: str = HASH, **facts: Any) -> Path:
    """A sweep's folder as a driver leaves it."""
    folder = home / "sweeps" / spec_hash
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text("{}")
    if facts:
        (folder / "sweep.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts stand-ins; all of them end with the test."""
    running: list[subprocess.Popen[str]] = []

    def begin(folder: Path, obeys: bool = True, seconds: float = 60.0) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", DRIVER, str(folder), "obeys" if obeys else "deaf"]
        driver = subprocess.Popen([*words, str(seconds)], stdout=subprocess.PIPE, text=True)
        running.append(driver)
        assert driver.stdout is not None
        assert driver.stdout.readline() == "up\n"
        return driver

    yield begin
    for driver in running:
        driver.kill()
        driver.communicate()


def stabmap(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def refusal(done: Result) -> str:
    """The only line of a refusal."""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


# --------------------------------------------------------------------------- reading


def test_a_running_sweep(home: Path, start: Start) -> None:
    driver = start(folder_of(home))
    found = read_status(home / "sweeps" / HASH)
    assert (found.state, found.alive, found.done) == ("running", True, "3/8")
    assert (found.pid, found.workers, found.left) == (driver.pid, 2, 75.0)
    expected = "running  points 3/8  stable 2  restrained 0  divergent 1  about 1m15s left"
    assert found.line() == expected


def test_a_driver_that_died(home: Path, start: Start) -> None:
    driver = start(folder_of(home))
    driver.kill()
    driver.wait()
    found = read_status(home / "sweeps" / HASH)
    assert (found.state, found.alive, found.points) == ("died", False, 3)
    assert found.error is not None
    assert f"process {driver.pid} on here" in found.error
    assert f"stabmap resume {HASH}" in found.error


@pytest.mark.parametrize("state", [s for s in STATES if s != "running"])
def test_states_of_sweeps_that_ended(home: Path, state: str) -> None:
    folder = folder_of(home, state=state, error="no memory" if state == "failed" else None)
    found = read_status(folder)
    assert (found.state, found.alive) == (state, False)
    assert ("no memory" in found.line()) == (state == "failed")


def test_a_sweep_that_has_not_said_anything(home: Path, start: Start) -> None:
    folder = folder_of(home)
    assert read_status(folder).state == "unknown"
    start(folder)
    (folder / "sweep.json").unlink()
    assert read_status(folder).state == "running"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '"running"',
        "\ud800".encode("utf-8", "surrogatepass"),
        '{"state": 7, "points": "9", "counts": [1], "left": NaN, "updated": true, "title": {}}',
        '{"state": "sleeping", "limit": 1.5, "counts": {"stable": "x", "other": 3}, "pid": []}',
        '{"updated": 1e999, "left": ' + "9" * 400 + "}",
    ],
)
def test_damaged_facts_are_no_traceback(home: Path, text: str | bytes) -> None:
    folder = folder_of(home)
    (folder / "sweep.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = read_status(folder)
    assert (found.state, found.points, found.left) == ("unknown", 0, None)
    assert json.dumps(found.to_dict(), allow_nan=False)
    assert stabmap("status").exit_code == 0


def test_nothing_moves_the_cursor(home: Path) -> None:
    folder_of(home, state="failed", title="a\x1b[2Jb [red]c", error="one\r\ntwo\x07")
    found = read_status(home / "sweeps" / HASH)
    assert found.title == "a [2Jb [red]c"
    assert found.error == "one two"
    assert "a [2Jb [red]c" in stabmap("status").stdout  # rich takes no colour from it


# --------------------------------------------------------------------------- finding


def test_finding(home: Path) -> None:
    one = folder_of(home, "aa11" + "0" * 12, sweep="1" * 32, title="first", updated=5.0)
    two = folder_of(home, "aa22" + "0" * 12, sweep="2" * 32, title="second", updated=6.0)
    assert [s.title for s in find_sweeps(home)] == ["second", "first"]
    for text in (one.name, "aa11", "1" * 32, "first", str(one)):
        assert find_sweep(text, home).folder == one
    assert find_sweep("aa2", home).folder == two
    with pytest.raises(InputError, match=r"sweep = 'aa': names 2 sweeps in .*; use a hash: aa22"):
        find_sweep("aa", home)
    for text in ("bb", "fir", "../sweeps", "", "*"):
        with pytest.raises(InputError, match=r"no such sweep in .*; stabmap status lists"):
            find_sweep(text, home)


def test_no_sweeps(home: Path) -> None:
    assert find_sweeps(home / "nowhere") == ()
    assert stabmap("status").stdout == f"no sweeps in {home}\n"
    assert not list(home.iterdir())
    done = stabmap("status", "abc")
    assert done.exit_code == 2
    assert refusal(done).startswith("error: sweep = 'abc': no such sweep in ")
    with pytest.raises(InputError, match="no sweep lies there"):
        read_status(home)
    (home / "spec.yaml").write_text("{}")  # of a user, not of a sweep
    with pytest.raises(InputError, match="no sweep lies there"):
        read_status(home)


def test_status_prints(home: Path, start: Start) -> None:
    start(folder_of(home))
    folder_of(home, "a" * 16, state="paused", title="other", points=5, updated=time.time() - 3700)
    content = json.loads(stabmap("status", "--json").stdout)
    assert [s["state"] for s in content["sweeps"]] == ["running", "paused"]
    header, first, second = stabmap("status").stdout.splitlines()
    assert header.split() == [
        *("sweep", "hash", "state", "points", "stable", "restrained", "divergent"),
        *("left", "heard", "of"),
    ]
    assert first.split()[:8] == ["toy", HASH, "running", "3/8", "2", "0", "1", "1m15s"]
    assert second.split() == ["other", "a" * 16, "paused", "5", "1h01m", "ago"]
    card = stabmap("status", "toy").stdout
    assert "points    3/8  stable 2  restrained 0  divergent 1\n" in card
    assert json.loads(stabmap("status", "toy", "--json").stdout)["counts"]["stable"] == 2


# --------------------------------------------------------------------------- asking


@pytest.mark.parametrize(("verb", "state"), [("pause", "paused"), ("stop", "stopped")])
def test_ask_a_driver(home: Path, start: Start, verb: str, state: str) -> None:
    folder = folder_of(home)
    driver = start(folder)
    done = stabmap(verb, HASH)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"sweep {HASH} is {state}: 4 points are kept\n"
    assert driver.wait(timeout=5) == 0
    assert read_status(folder).state == state
    assert not (folder / "control").exists()
    again = stabmap(verb, HASH, "--json")
    assert json.loads(again.stdout)["state"] == state


def test_a_driver_that_forgets_what_it_was_asked(home: Path, start: Start) -> None:
    """As one that begins: what it finds may be left from before."""
    folder = folder_of(home)
    start(folder, obeys=False, seconds=1.5)
    asked = []

    def look(seconds: float) -> None:
        asked.append((folder / "control").exists())
        (folder / "control").unlink(missing_ok=True)
        time.sleep(seconds)

    ask(read_status(folder), "pause", 30.0, look)
    assert len(asked) > 2
    assert all(asked)


def test_a_driver_that_does_not_answer(home: Path, start: Start) -> None:
    folder = folder_of(home)
    driver = start(folder, obeys=False)
    done = stabmap("pause", HASH, "--timeout", "0.5")
    assert done.exit_code == 4
    assert f"process {driver.pid} on here holds it and did not answer in 0.5 s" in refusal(done)
    assert (folder / "control").read_text() == "pause"
    assert read_status(folder).state == "running"


def test_a_driver_that_ends_by_itself_meanwhile(home: Path, start: Start) -> None:
    folder = folder_of(home)
    start(folder, obeys=False, seconds=0.5)
    done = stabmap("stop", HASH)
    assert done.stdout == f"sweep {HASH} ended before it could stop: it is complete\n"
    assert not (folder / "control").exists()  # the next driver is not asked


@pytest.mark.parametrize(("verb", "state"), [("pause", "paused"), ("stop", "stopped")])
def test_ask_a_driver_that_is_gone(home: Path, start: Start, verb: str, state: str) -> None:
    folder = folder_of(home)
    driver = start(folder)
    driver.kill()
    driver.wait()
    (folder / "control").write_text("stop")  # never heard, and not meant for the next driver
    done = stabmap(verb, HASH)
    assert done.stdout == (f"sweep {HASH} is now {state} (its driver is gone): 3 points are kept\n")
    assert json.loads((folder / "sweep.json").read_text())["title"] == "toy"
    assert read_status(folder).state == state
    assert sorted(p.name for p in folder.iterdir()) == ["lock", "spec.yaml", "sweep.json"]


def test_a_driver_that_dies_while_it_is_asked(home: Path, start: Start) -> None:
    folder = folder_of(home)
    driver = start(folder, obeys=False)
    found, said = ask(read_status(folder), "pause", 30.0, lambda _: driver.kill())
    assert (found.state, "its driver is gone" in said) == ("paused", True)
    assert not (folder / "control").exists()


@pytest.mark.parametrize(
    ("verb", "state"),
    [
        *(("pause", state) for state in ("complete", "short", "failed", "stopped", "interrupted")),
        *(("stop", state) for state in ("complete", "short", "failed")),
    ],
)
def test_nothing_to_end(home: Path, verb: str, state: str) -> None:
    folder_of(home, state=state)
    done = stabmap(verb, HASH)
    assert done.exit_code == 1
    assert f"is {state}: there is nothing to {verb}; to go on with it: stabmap resume" in refusal(
        done
    )


def test_a_paused_sweep_is_stopped(home: Path) -> None:
    folder = folder_of(home, state="paused", points=2)
    assert "is now stopped (it was paused): 2 points are kept" in stabmap("stop", HASH).stdout
    assert read_status(folder).state == "stopped"


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf"])
def test_a_timeout_is_positive(home: Path, timeout: str) -> None:
    folder_of(home, state="running")
    done = stabmap("pause", HASH, "--timeout", timeout)
    assert done.exit_code == 2
    assert "--timeout" in refusal(done)
    assert read_status(home / "sweeps" / HASH).state == "died"


# --------------------------------------------------------------------------- watching


def test_watch_to_the_end(home: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_cluster, "LOOK", 0.05)
    start(folder_of(home), seconds=3.0)
    done = stabmap("watch", HASH)
    first, last = done.stdout.splitlines()  # one at the beginning, then each 10 s, one at the end
    assert first.startswith("running  points 3/8")
    assert last.startswith("complete  points 8/8")
    assert done.exit_code == 0


@pytest.mark.parametrize(
    ("state", "code"),
    [
        *(("complete", 0), ("short", 3), ("paused", 3), ("stopped", 3), ("interrupted", 3)),
        *(("failed", 1), ("running", 1)),  # running without a lock: it died
    ],
)
def test_watch_says_how_it_ended(home: Path, state: str, code: int) -> None:
    folder_of(home, state=state)
    assert stabmap("watch", HASH).exit_code == code


def test_ctrl_c_ends_the_watching_alone(home: Path, start: Start) -> None:
    """On a terminal, where the line is redrawn."""
    driver = start(folder_of(home))
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "stabmap", "watch", HASH]
    watching = subprocess.Popen(
        words, stdout=theirs, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    os.close(theirs)
    seen = b""
    while seen.count(b"\r\x1b[K") < 3:
        seen += os.read(ours, 1000)
    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate(timeout=20)
    os.close(ours)
    assert watching.returncode == 130
    assert errors == "the sweep goes on\n" or errors == "\nthe sweep goes on\n"
    assert b"\r\x1b[Krunning  points 3/8" in seen
    assert b"\n" not in seen
    assert driver.poll() is None
    assert read_status(home / "sweeps" / HASH).state == "running"


def test_watch_is_patient_with_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop that was closed: some failures in a row, then the cluster answers again."""
    monkeypatch.setattr(cli_cluster, "FAR_LOOK", 0.01)
    answers = [UnreachableError("away")] * 3 + [SweepStatus(HASH)]

    def read() -> SweepStatus:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert cli_cluster._patient(read)() == SweepStatus(HASH)
    monkeypatch.setattr(cli_cluster, "AWAY", 0.0)
    answers += [UnreachableError("away")]
    with pytest.raises(UnreachableError, match="away"):
        cli_cluster._patient(read)()


# --------------------------------------------------------------------------- resuming


def stored(home: Path) -> Any:
    """The folder of a real spec, and the spec."""
    spec = load_spec("one-layer-cnn", {"budget.points": 9, "folder": str(home)})
    folder = home / "sweeps" / spec.hash
    folder.mkdir(parents=True)
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec.resolved()))
    return spec


def test_resume_runs_the_stored_spec(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the folder was moved since: its results must be found."""
    spec = stored(home)
    moved = home.rename(home.with_name("moved"))
    ran: list[Any] = []

    def execute(loaded: Any, address: str, stream: Any, insecure: bool) -> Any:
        ran.append((loaded, address))
        kept = {"sweep": "1" * 32, "points": 4, "folder": moved, "review": "open x"}
        return SimpleNamespace(
            **kept, ending="paused", recorded=True, stability_map=None, picture=None
        )

    monkeypatch.setattr("sweeps.runner.execute", execute)
    done = stabmap("resume", spec.hash[:8], "--folder", str(moved))
    ((loaded, address),) = ran
    assert (loaded.hash, loaded.folder, loaded.budget.points) == (spec.hash, str(moved), 9)
    assert address == "local"
    assert done.exit_code == 3
    (last,) = [line for line in done.stderr.splitlines() if line.startswith("paused: 4 points")]
    assert last.endswith(f"stabmap resume {spec.hash[:8]} --folder {moved}")


def test_resume_with_another_version(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = stored(home)
    monkeypatch.setattr("sweeps.spec.__version__", "99")
    done = stabmap("resume", spec.hash)
    assert done.exit_code == 1
    assert "was begun by another version of stabmap" in refusal(done)


def test_asking_needs_a_lock_of_ones_own(home: Path, start: Start) -> None:
    """A driver that begins at the same moment keeps what it writes."""
    folder = folder_of(home, state="running")
    dead = read_status(folder)
    start(folder)
    with pytest.raises(StabmapError, match="was just started"):
        _settle(dead, "pause")
    assert read_status(folder).state == "running"
