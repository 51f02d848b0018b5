"""The store: every result once, exact to the bit, whatever happened to the process before."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import LR, keep, kept_in, margins_at, measure, result_of, spec_of

from sweeps.spec import SweepSpec, load_spec
from sweeps.store import Entry, Store, key_of
from trainables.domain import (
    Curve,
    Margins,
    Point,
    PointResult,
    Reason,
    Replicate,
    StabmapError,
    UnreachableError,
    Verdict,
)


def spec_in(folder: Path, **changes: Any) -> SweepSpec:
    return spec_of({"lr": LR}, folder=str(folder), **changes)


def some(count: int) -> list[PointResult]:
    points = [Point(0.1 * (i + 1) / 3) for i in range(count)]
    return [result_of(p, margins_at(p), growth=0.1 / 3, metric=None) for p in points]


def fill(folder: Path, results: list[PointResult]) -> bytes:
    with Store(spec_in(folder)) as store:
        for number, result in enumerate(results):
            assert keep(store, result, 1000.0 + number / 3)
        return (store.folder / "results.jsonl").read_bytes()


# --------------------------------------------------------------------------- appending


def test_append_is_idempotent(tmp_path: Path) -> None:
    first, second = some(2)
    before = fill(tmp_path, [first, second])
    other = result_of(first.point, Margins(-1, -5))  # the same point with another verdict
    for _ in range(2):
        with Store(spec_in(tmp_path)) as store:
            assert not keep(store, first, 5.0)
            assert not keep(store, other, 5.0)
            assert len(store) == 2
            assert kept_in(store, first.point) == first
            assert store.entries[first.point.key].finished_at == 1000.0
            assert (store.folder / "results.jsonl").read_bytes() == before


def test_a_result_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    with Store(spec_in(tmp_path)) as store:
        path = store.folder / "results.jsonl"
        for count, result in enumerate(some(3), 1):
            keep(store, result, 0.0)
            lines = path.read_text().splitlines()
            assert len(lines) == count
            assert PointResult.from_dict(json.loads(lines[-1])["result"]) == result


def test_append_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of the line has been handed over before the disk is asked to keep it."""
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda number: sizes.append(os.fstat(number).st_size))
    with Store(spec_in(tmp_path)) as store:
        for result in some(2):
            keep(store, result, 0.0)
            assert sizes[-1] == (store.folder / "results.jsonl").stat().st_size
    assert len(sizes) == 2


def test_several_results_wait_for_the_disk_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same lines as one by one; what is there already, or comes twice, is left out."""
    first, second, third = some(3)
    asked: list[int] = []
    monkeypatch.setattr(os, "fsync", asked.append)
    with Store(spec_in(tmp_path / "one")) as store:
        for result in (first, second, third):
            keep(store, result, 7.0)
        expected = (store.folder / "results.jsonl").read_bytes()
    asked.clear()
    with Store(spec_in(tmp_path / "together")) as store:
        assert store.extend([Entry(first, 0, 7.0)]) == (True,)
        given = [Entry(r, 0, 7.0) for r in (first, second, third, second)]
        assert store.extend(given) == (False, True, True, False)
        assert store.extend(given) == (False,) * 4
        assert (store.folder / "results.jsonl").read_bytes() == expected
        assert kept_in(store, third.point) == third and len(store) == 3
    assert len(asked) == 2


def test_unknown_points(tmp_path: Path) -> None:
    """Points are told apart to the last bit."""
    first = measure(Point(0.1))
    with Store(spec_in(tmp_path)) as store:
        keep(store, first, 0.0)
        for lr in (math.nextafter(0.1, 1), math.nextafter(0.1, 0)):
            assert kept_in(store, Point(lr)) is None
        near = measure(Point(math.nextafter(0.1, 1)))
        assert keep(store, near, 0.0)
        assert len(store) == 2
        assert kept_in(store, Point(0.1, alpha=1e-300)) is None
    with Store(spec_in(tmp_path)) as store:
        assert kept_in(store, near.point) == near
        assert kept_in(store, first.point) == first


def test_replicates_of_a_point_are_told_apart(tmp_path: Path) -> None:
    """By how often the point was trained before; each is kept once, in any order."""
    point, other = Point(0.1), Point(0.2)
    kept = [result_of(point, Margins(1 - i, 1.0)) for i in range(3)]
    with Store(spec_in(tmp_path)) as store:
        for repetition in (2, 0, 1):
            assert kept_in(store, point, repetition) is None
            assert keep(store, kept[repetition], 10.0 + repetition, repetition)
            assert not keep(store, kept[0], 99.0, repetition)
        assert keep(store, measure(other), 0.0)
        before = (store.folder / "results.jsonl").read_bytes()
    with Store(spec_in(tmp_path)) as store:
        assert [kept_in(store, point, i) for i in range(4)] == [*kept, None]
        assert kept_in(store, point) == kept[0]
        assert kept_in(store, other, 1) is None
        assert len(store) == 4
        keys = [key_of(point, i) for i in range(3)]
        assert keys[0] == point.key
        assert [store.entries[key].finished_at for key in keys] == [10.0, 11.0, 12.0]
        assert not keep(store, kept[1], 0.0, 2)
        assert (store.folder / "results.jsonl").read_bytes() == before


finite = st.floats(allow_nan=False, allow_infinity=False)
replicates = st.builds(
    Replicate,
    seed=st.integers(0, 2**31),
    verdict=st.builds(
        Verdict,
        margins=st.builds(Margins, stable=finite, bounded=finite),
        reason=st.sampled_from(Reason),
        step=st.integers(0, 2**40),
    ),
    steps_run=st.integers(0, 2**40),
    evidence=st.dictionaries(st.text(max_size=5), st.none() | finite, max_size=3),
    curves=st.dictionaries(
        st.text(max_size=5),
        st.lists(st.tuples(st.integers(0, 10**6), finite), max_size=4).map(
            lambda pairs: Curve(tuple(s for s, _ in pairs), tuple(v for _, v in pairs))
        ),
        max_size=2,
    ),
)
positive = st.floats(0, exclude_min=True, allow_infinity=False)
results = st.builds(
    PointResult,
    point=st.builds(Point, lr=positive, alpha=positive | st.just(0.0), weight_decay=positive),
    replicates=st.lists(replicates, min_size=1, max_size=3).map(tuple),
)


@given(result=results, at=st.floats(0, 1e12))
def test_results_come_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, result: PointResult, at: float
) -> None:
    folder = tmp_path_factory.mktemp("store")
    with Store(spec_in(folder)) as store:
        keep(store, result, at)
    with Store(spec_in(folder)) as store:
        found = kept_in(store, result.point)
        assert found == result
        assert repr(found) == repr(result)  # also the sign of zeros
        assert {k: e.finished_at for k, e in store.entries.items()} == {result.point.key: at}


def test_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    """Never half a line, and nothing that later readers choke on."""
    good, bad = some(1)[0], result_of(Point(0.5), Margins(1, 1), growth=math.inf)
    with Store(spec_in(tmp_path)) as store:
        with pytest.raises(ValueError, match="JSON"):
            keep(store, bad, 0.0)
        assert kept_in(store, bad.point) is None
        assert keep(store, good, 0.0)
    with Store(spec_in(tmp_path)) as store:
        assert len(store) == 1


# --------------------------------------------------------------------------- crashes


def test_a_last_line_cut_off_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The crash costs at most the point that was being written, which can be written again."""
    monkeypatch.setattr(os, "fsync", lambda number: None)  # hundreds of them take seconds
    kept = some(3)
    whole = fill(tmp_path, kept)
    spec = spec_in(tmp_path)
    path = tmp_path / "sweeps" / spec.hash / "results.jsonl"
    begin = whole[:-1].rindex(b"\n") + 1
    assert whole.count(b"\n") == 3 and len(whole) - begin > 100
    for cut in range(begin, len(whole)):
        path.write_bytes(whole[:cut])
        with Store(spec) as store:
            assert [kept_in(store, r.point) for r in kept] == [*kept[:2], None]
            assert keep(store, kept[2], 1000.0 + 2 / 3)
        assert path.read_bytes() == whole, f"after a cut at byte {cut - begin}"
    path.write_bytes(whole)
    with Store(spec) as store:
        assert len(store) == 3


def test_a_file_that_ends_in_nothing(tmp_path: Path) -> None:
    """A crash of the machine can leave a file that is empty or padded with zeros."""
    kept = some(2)
    whole = fill(tmp_path, kept)
    spec = spec_in(tmp_path)
    path = tmp_path / "sweeps" / spec.hash / "results.jsonl"
    for content, count in ((b"", 0), (whole + b"\0" * 50, 2), (whole + b'{"fin', 2)):
        path.write_bytes(content)
        with Store(spec) as store:
            assert len(store) == count
    assert path.read_bytes() == whole


def test_partial_files_do_no_harm(tmp_path: Path) -> None:
    """What a crash left of a file that was being replaced."""
    spec = spec_in(tmp_path)
    with Store(spec) as store:
        store.remember(sweep="abc")
        folder = store.folder
    for name in ("spec.yaml.partial", "sweep.json.partial"):
        (folder / name).write_text("{ rubb")
    with Store(spec) as store:
        assert store.recall() == {"sweep": "abc"}
        store.remember(more=1)
        assert store.recall() == {"sweep": "abc", "more": 1}
    assert load_spec(folder / "spec.yaml").hash == spec.hash


# --------------------------------------------------------------------------- one at a time


def test_a_second_store_is_refused(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    with Store(spec) as store:
        keep(store, some(1)[0], 0.0)
        before = (store.folder / "results.jsonl").read_bytes()
        for _ in range(2):  # the refusal takes nothing away
            with pytest.raises(StabmapError, match=f"sweep {spec.hash} is being run by another"):
                Store(spec)
        assert (store.folder / "results.jsonl").read_bytes() == before
        # Another sweep in the same folder is no obstacle.
        Store(spec_in(tmp_path, seed=1)).close()
    with Store(spec) as store:
        assert len(store) == 1


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process_holds_the_sweep_until_it_dies(tmp_path: Path) -> None:
    """Even where it dies of kill -9 and cannot clean up."""
    spec = spec_in(tmp_path)
    with Store(spec) as store:
        lock = store.folder / "lock"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(StabmapError, match="another process") as caught:
        Store(spec)
    assert not isinstance(caught.value, UnreachableError)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()
    with Store(spec) as store:
        assert len(store) == 0


def test_the_lock_is_seen_from_outside(tmp_path: Path) -> None:
    with Store(spec_in(tmp_path)) as store, (store.folder / "lock").open("w") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        store.close()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --------------------------------------------------------------------------- the folder


def test_remember_and_recall(tmp_path: Path) -> None:
    with Store(spec_in(tmp_path)) as store:
        assert store.recall() == {}
        store.remember(sweep="abc", tracking="sqlite:///x")
        store.remember(sweep="def", count=3)
        assert store.recall() == {"sweep": "def", "tracking": "sqlite:///x", "count": 3}
    with Store(spec_in(tmp_path)) as store:
        assert store.recall() == {"sweep": "def", "tracking": "sqlite:///x", "count": 3}
    with Store(spec_in(tmp_path, seed=1)) as store:
        assert store.recall() == {}


def test_folder_and_spec(tmp_path: Path) -> None:
    """The folder has the name of the hash and holds the spec, which loads back to itself."""
    spec = spec_in(tmp_path / "new" / "deep")
    with Store(spec) as store:
        assert store.folder == tmp_path / "new" / "deep" / "sweeps" / spec.hash
        assert load_spec(store.folder / "spec.yaml").resolved() == spec.resolved()
    larger = spec_in(tmp_path / "new" / "deep", budget={"points": 999})
    with Store(larger) as store:
        assert load_spec(store.folder / "spec.yaml").budget.points == 999
    assert len(list((tmp_path / "new" / "deep" / "sweeps").iterdir())) == 1


def test_folder_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with Store(spec_in(Path("~/runs"))) as store:
        assert store.folder.parent == tmp_path / "runs" / "sweeps"


@pytest.mark.parametrize("place", ["file/below", "/proc/stabmap", "/dev/null/x"])
def test_folder_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / place  # an absolute place stays what it is
    with pytest.raises(UnreachableError) as caught:
        Store(spec_in(folder))
    assert caught.value.exit_code == 4
    text = str(caught.value)
    assert f"folder = {str(folder)!r}" in text
    assert "cannot be written" in text
    assert "STABMAP_HOME" in text
    assert "\n" not in text
    assert os.listdir(tmp_path) == ["file"]
