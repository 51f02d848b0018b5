"""Live events: what another process appends to a sweep's store arrives, once and in order."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import keep, serving
from synthetic import DECAY, LR, measure, spec_of

import analysis.events
from analysis.events import LOG, read_points
from stabmap import Client, InputError, Point
from sweeps.store import Entry, Store, folder_of

TOKEN = "correct-horse"
HASH = "0123456789abcdef"

#: A driver: it holds the store, appends a point when a line comes in, and ends at the end of input.
DRIVER = """
import sys
from synthetic import DECAY, LR, measure, spec_of
from sweeps.store import Entry, Store
from stabmap import Point
spec = spec_of({"lr": LR, "weight_decay": DECAY}, folder=sys.argv[1])
with Store(spec) as store:
    store.remember(title="live", state="running", points=0)
    print(spec.hash, flush=True)
    for number, line in enumerate(sys.stdin, 1):
        store.extend([Entry(measure(Point(float(line), 0.0, 0.01)), 0, 100.0 + number)])
        store.remember(points=number)
        print(number, flush=True)
    store.remember(state="complete")
"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with serving(tmp_path, TOKEN) as found:
        yield found


def test_points_of_another_process_arrive_as_they_are_kept(tmp_path: Path, address: str) -> None:
    words = [sys.executable, "-c", DRIVER, str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    places = [str(Path(__file__).parent), *sys.path]
    with subprocess.Popen(words, env={"PYTHONPATH": ":".join(places)}, **pipes) as driver:
        given, said = driver.stdin, driver.stdout
        assert given is not None and said is not None

        def append(lr: float) -> None:
            print(lr, file=given, flush=True)
            said.readline()

        name = said.readline().strip()
        append(0.1)
        client = Client(address, TOKEN, timeout=30)
        seen = client.events("live")
        first = next(seen)
        assert (first.kind, first.point and first.point.point.lr) == ("point", 0.1)
        assert next(seen).facts["points"] == 1
        for number, lr in enumerate((0.2, 30.0), 2):
            append(lr)
            begin = time.monotonic()
            event = next(seen)
            assert time.monotonic() - begin < 15
            assert event.kind == "point" and event.point is not None
            assert event.point.point.lr == lr
            assert event.point.regime == measure(Point(lr, 0.0, 0.01)).verdict.regime
            assert event.point.evidence["finished_at"] == 100 + number
            state = next(seen)
            while state.facts["points"] < number:  # looked at between the two writes
                state = next(seen)
            assert (state.kind, state.facts["state"], state.id) == ("state", "running", event.id)
        seen.close()  # the connection is lost; what came until then is not sent again
        append(0.3)
        again = client.events(name, after=event.id)
        after = next(again)
        assert after.point is not None and after.point.point.lr == 0.3
        given.close()
        rest = list(again)
        driver.wait(30)
    assert [event.kind for event in rest if event.facts.get("state") != "running"] == [
        "state",
        "end",
    ]
    assert rest[-1].facts["state"] == "complete"
    assert [e.point.point.lr for e in client.events(name) if e.point] == [0.1, 0.2, 30.0, 0.3]
    assert [e.kind for e in client.events(name, after=after.id)] == ["state", "end"]


def test_a_sweep_whose_driver_died_ends(tmp_path: Path, address: str) -> None:
    keep(tmp_path, HASH, None, title="gone", state="running")
    (last,) = [e for e in Client(address, TOKEN).events("gone") if e.kind == "end"]
    assert last.facts["state"] == "died"


def test_the_words_on_the_line(tmp_path: Path, address: str) -> None:
    """As browsers and curl read them."""
    spec = spec_of({"lr": LR, "weight_decay": DECAY}, folder=str(tmp_path))
    with Store(spec) as store:
        store.extend([Entry(measure(Point(0.1, 0.0, 0.01)), 0, 5.0)])
        store.remember(state="complete", points=1)
    size = (folder_of(spec) / LOG).stat().st_size
    headers = {"Authorization": f"Bearer {TOKEN}"}
    asked = urllib.request.Request(f"{address}/sweeps/{spec.hash}/events", headers=headers)
    with urllib.request.urlopen(asked, timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        text = answer.read().decode()
    point, state, end = text.strip().split("\n\n")
    fields = dict(line.split(": ", 1) for line in point.splitlines())
    assert (fields["event"], fields["id"]) == ("point", str(size))
    shown = json.loads(fields["data"])
    assert (shown["lr"], shown["repetition"], shown["finished_at"]) == (0.1, 0, 5.0)
    assert "event: state" in state.splitlines() and "event: end" in end.splitlines()


def test_unknown_sweeps_and_ids_are_refused(tmp_path: Path, address: str) -> None:
    client = Client(address, TOKEN)
    with pytest.raises(InputError, match="no sweep 'nothing'"):
        next(client.events("nothing"))
    keep(tmp_path, HASH, None, state="complete")
    with pytest.raises(InputError, match="last-event-id: Input should be greater than or equal"):
        next(client.events(HASH, after=-1))
    with pytest.raises(InputError, match="asks for a token"):
        next(Client(address, "").events(HASH))


def test_what_is_read_of_a_log(tmp_path: Path) -> None:
    """Half a line waits for its end, a damaged one is left out, as is what the log never had."""
    log = tmp_path / LOG
    assert read_points(log, 0) == ([], 0)
    lines = [Entry(measure(Point(lr)), 0, 1.0).line() for lr in (0.1, 0.2)]
    log.write_bytes(lines[0] + b'{"result": 3}\n[]\n' + lines[1][:-9])
    found, place = read_points(log, 0)
    assert [(n, row["lr"]) for n, row in found] == [(len(lines[0]), 0.1)]
    assert place == log.stat().st_size - len(lines[1]) + 9
    with log.open("ab") as file:
        file.write(lines[1][-9:])
    found, place = read_points(log, place)
    assert [row["lr"] for _, row in found] == [0.2]
    assert place == log.stat().st_size


def test_damaged_lines_hide_nothing_behind_them(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysis.events, "MOST", 100)
    place = keep(tmp_path, HASH, None, state="complete")
    good = Entry(measure(Point(0.1)), 0, 1.0).line()
    (place / LOG).write_bytes(b"{" * 200 + b"\n" + good)
    kinds = [event.kind for event in Client(address, TOKEN).events(HASH)]
    assert kinds == ["state", "point", "end"]


@pytest.mark.parametrize("after", [1, 7, 10**9])
def test_an_id_that_is_none_of_the_log_gets_everything(
    tmp_path: Path, address: str, after: int
) -> None:
    place = keep(tmp_path, HASH, None, state="complete")
    (place / LOG).write_bytes(Entry(measure(Point(0.1)), 0, 1.0).line())
    kinds = [event.kind for event in Client(address, TOKEN).events(HASH, after=after)]
    assert kinds == ["point", "state", "end"]
