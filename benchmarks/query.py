"""How fast is a large map? Loading, a million places, and single questions over HTTP.

Run: .venv/bin/python benchmarks/query.py

Prints, for a made-up map of 10,000 points over two axes: the time to load it from parquet; the time
to fit its model, once a process; the time to classify 1,000,000 random places, with the time that
the first such question needs beside it to make the table (analysis/table.py), and by how much the
table is off at 5,000 of the places; the latencies of single questions to `stabmap serve`, asked at
50 a second whether or not the last one was answered. Where a figure varies from run to run the best
one counts and all are shown: other programs on the machine only add to it. About three minutes on
two cores. Exit code 1: a target was missed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from analysis.example import _result
from analysis.map import REGIMES, StabilityMap
from analysis.quality import box_points
from stabmap import Client, example_map, load_map

POINTS, PLACES, CHECKED = 10_000, 1_000_000, 5_000
#: Seconds, seconds, seconds.
LOAD, CLASSIFY, LATENCY = 0.5, 1.0, 0.010
RATE, QUESTIONS, ROUNDS = 50, 1_000, 3
HASH = "0123456789abcdef"


def large_map() -> StabilityMap:
    """A map of many points whose boundaries are straight lines."""
    like = example_map()
    places = box_points(like.axes, 1 << 14, 1)[:POINTS]
    results = [(i, _result(place, i, 1, 1)) for i, place in enumerate(places)]
    return StabilityMap.of(like.about, results)


def timed(ask: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    ask()
    return time.perf_counter() - begin


def verdict(seconds: list[float], target: float, unit: float = 1.0) -> tuple[str, bool]:
    """The best of some times beside its target, and whether it is met."""
    every = " ".join(f"{s * unit:.2f}" for s in seconds)
    held = min(seconds) < target
    return (
        f"{min(seconds) * unit:8.2f} {'<' if held else 'NOT <'} {target * unit:g}   ({every})",
        held,
    )


def in_process(folder: Path) -> list[bool]:
    """Loading and classifying."""
    loads = [timed(lambda: load_map(folder)) for _ in range(5)]
    text, loaded = verdict(loads, LOAD)
    print(f"load, s                                {text}")
    found = load_map(folder)
    print(f"fit, s, once a process                 {timed(lambda: found.surface):8.2f}")
    places = box_points(found.axes, 1 << 20, 2)[:PLACES]
    asked = {"lr": places[:, 0], "weight_decay": places[:, 2]}
    print(f"1,000,000 places and the table, s      {timed(lambda: found.classify(**asked)):8.2f}")
    cpu = time.process_time()
    text, classified = verdict([timed(lambda: found.classify(**asked)) for _ in range(5)], CLASSIFY)
    print(f"1,000,000 places again, s              {text}")
    print(f"  of which one core's, s               {(time.process_time() - cpu) / 5:8.2f}")
    every = np.random.default_rng(0).choice(PLACES, CHECKED, replace=False)
    quick = found.classify(**asked)
    plain = found.classify(**{axis: values[every] for axis, values in asked.items()})
    off = np.max([np.abs(quick[r][every] - plain[r]) for r in REGIMES], axis=0)
    print(f"table off by at most (99 % of places)  {off.max():8.4f} ({np.quantile(off, 0.99):.4f})")
    return [loaded, classified]


@contextmanager
def service(home: Path) -> Iterator[tuple[Client, int]]:
    """`stabmap serve` in a process of its own."""
    words = [sys.executable, "-m", "stabmap", "serve", "--folder", str(home), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        token, place = (process.stderr.readline().split()[-1] for _ in range(2))
        try:
            yield Client(place, token, timeout=600), process.pid
        finally:
            process.terminate()


def latencies(client: Client) -> list[float]:
    """Seconds from when each question was due to its answer."""
    random = np.random.default_rng(4)
    begin = time.perf_counter() + 0.1

    def ask(number: int) -> float:
        due = begin + number / RATE
        client.classify(HASH, lr=lrs[number], weight_decay=0.01)
        return time.perf_counter() - due

    lrs = 10 ** random.uniform(-2, 2, QUESTIONS)
    asked = []
    with ThreadPoolExecutor(16) as pool:
        for number in range(QUESTIONS):
            time.sleep(max(0.0, begin + number / RATE - time.perf_counter()))
            asked.append(pool.submit(ask, number))
    return [answer.result() for answer in asked]


def work_of(pid: int) -> float:
    """Seconds of one core that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def over_http(home: Path) -> bool:
    """Single questions."""
    with service(home) as (client, pid):
        client.classify(HASH, lr=1.0, weight_decay=0.01)  # fits the model
        before = work_of(pid)
        rounds = [np.quantile(latencies(client), [0.5, 0.99, 1.0]) for _ in range(ROUNDS)]
        work = (work_of(pid) - before) / (ROUNDS * QUESTIONS)
    text, held = verdict([float(r[1]) for r in rounds], LATENCY, 1e3)
    print(f"p99 of a question over HTTP, ms        {text}")
    shown = " ".join(f"{seconds * 1e3:8.2f}" for seconds in best(rounds))
    print(f"  of which the service's work, ms      {work * 1e3:8.2f}")
    print(f"median, largest of the best round, ms  {shown}")
    return held


def best(rounds: list[np.ndarray]) -> tuple[float, float]:
    """Median and largest of the round with the least p99."""
    chosen = min(rounds, key=lambda r: float(r[1]))
    return float(chosen[0]), float(chosen[2])


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        place = home / "sweeps" / HASH
        large_map().export(place / "map", ["parquet"])
        (place / "sweep.json").write_text(json.dumps({"state": "complete", "title": "large"}))
        held = [*in_process(place / "map"), over_http(home)]
    raise SystemExit(not all(held))


if __name__ == "__main__":
    main()
