"""The service over real HTTP: who is let in, and the same answers as the map gives itself."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from serving import keep, serving
from synthetic import DECAY, LR, measure, spec_of

from analysis.hosts import is_loopback_host
from analysis.library import Library
from analysis.map import StabilityMap
from analysis.page import page_html
from analysis.tracking import Tracking
from sweeps.rounds import Rounds

TOKEN = "correct-horse"
HASH, OTHER, EMPTY = "0123456789abcdef", "1123456789abcdef", "2123456789abcdef"


def some_map(points: int) -> StabilityMap:
    spec = spec_of({"lr": LR, "weight_decay": DECAY}, search="sobol", budget={"points": points})
    rounds = Rounds(spec)
    while proposed := rounds.propose():
        for number, point in proposed:
            rounds.record(number, measure(point))
    return rounds.map()


@pytest.fixture(scope="module")
def stability_map() -> StabilityMap:
    return some_map(40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, stability_map: StabilityMap) -> Path:
    root = tmp_path_factory.mktemp("home")
    for number, name in enumerate((HASH, OTHER, EMPTY)):
        place = root / "sweeps" / name
        place.mkdir(parents=True)
        facts = {
            "sweep": f"run-{number}",
            "title": "only" if name == HASH else "twice",
            "state": "complete",
            "updated": 100.0 + number,
            "tracking": "postgresql://secret",
        }
        (place / "sweep.json").write_text(json.dumps(facts))
        if name != EMPTY:
            stability_map.export(place / "map")
    (root / "secret.parquet").write_text("not for you")
    return root


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with serving(folder, TOKEN) as found:
        yield found


def ask(
    url: str, body: Any = None, token: str | None = TOKEN, **headers: str
) -> tuple[int, bytes, Any]:
    """Status, content and headers."""
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    data = None if body is None else json.dumps(body).encode()
    headers["Content-Type"] = "application/json"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as got:
            return got.status, got.read(), got.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


ASKED = [
    "/sweeps",
    f"/sweeps/{HASH}",
    f"/sweeps/{HASH}/points",
    f"/sweeps/{HASH}/max_stable?axis=lr&weight_decay=0.01",
    f"/sweeps/{HASH}/boundary/stable",
    f"/sweeps/{HASH}/map.json",
    f"/sweeps/{HASH}/map.nc",
    f"/sweeps/{HASH}/map.png",
    f"/sweeps/{EMPTY}/events",
    f"/sweeps/{HASH}/page",
]


@pytest.mark.parametrize("path", ASKED)
def test_strangers_are_turned_away(address: str, path: str) -> None:
    assert ask(address + path)[0] == 200
    status, _, headers = ask(address + path, token=None)
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    for wrong in ("", "x", TOKEN[:-1], TOKEN + "x", "é"):
        assert ask(address + path, token=wrong.encode().decode("latin-1"))[0] in (401, 403)
    assert ask(address + path, token=None, Authorization=f"Basic {TOKEN}")[0] == 401


def test_strangers_may_not_classify_either(address: str) -> None:
    url, place = f"{address}/sweeps/{HASH}/classify", {"lr": 0.1, "weight_decay": 0.01}
    assert ask(url, place)[0] == 200
    assert ask(url, place, token=None)[0] == 401
    assert ask(url, place, token="wrong")[0] == 403


def test_browsers_get_a_cookie_for_the_token(address: str) -> None:
    """And only with it, from pages of the service or by a link that somebody followed."""
    for wrong in ("", "x", TOKEN + "x"):
        status, _, headers = ask(f"{address}/sign-in", {"token": wrong}, token=None)
        assert (status, headers["Set-Cookie"]) == (403, None)
    status, _, headers = ask(f"{address}/sign-in", {"token": TOKEN}, token=None)
    assert status == 204 and TOKEN not in str(headers)
    cookie, *rules = headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(rules)
    name, value = cookie.split("=")
    page = f"{address}/sweeps/{HASH}/page"
    link = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    for headers, expected in (
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 401),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 401),
        ({"Sec-Fetch-Site": "same-site", **link}, 200),
        ({"Sec-Fetch-Site": "same-site", **link, "Sec-Fetch-Dest": "iframe"}, 401),
    ):
        assert ask(page, token=None, Cookie=cookie, **headers)[0] == expected
    assert ask(page, token=None, Cookie=f"{name}={value}x")[0] == 401
    assert ask(page, token=None, Cookie=f"{name}=")[0] == 401
    assert ask(page, token="wrong", Cookie=cookie)[0] == 403


def test_a_cookie_ends_with_the_service(folder: Path, address: str) -> None:
    cookie = ask(f"{address}/sign-in", {"token": TOKEN}, token=None)[2]["Set-Cookie"]
    value = cookie.split(";")[0].partition("=")[2]
    with serving(folder, TOKEN) as other:
        name = f"stabmap-{other.rpartition(':')[2]}"
        assert ask(f"{other}/sweeps", token=None, Cookie=f"{name}={value}")[0] == 401


def test_answers_are_not_kept_and_load_nothing(address: str) -> None:
    for path in ("/docs", "/sign-in", f"/sweeps/{HASH}/page"):
        headers = ask(address + path)[2]
        assert headers["Cache-Control"] == "no-store"
        policy = headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in policy and "http" not in policy


def test_titles_on_the_page_of_sweeps_are_texts(tmp_path: Path) -> None:
    keep(tmp_path, HASH, None, title="<script>alert(1)</script>", state="complete")
    with serving(tmp_path, None) as address:
        page = ask(f"{address}/", token=None)[1].decode()
    assert "&lt;script&gt;" in page and "<script" not in page


def test_facts_are_read_again_when_they_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = keep(tmp_path, HASH, None, state="complete", points=1)
    keep(tmp_path, OTHER, None, state="complete", points=7)
    read: list[Path] = []
    original = Path.read_text

    def counted(path: Path, *args: Any) -> str:
        read.append(path)
        return original(path, *args)

    monkeypatch.setattr(Path, "read_text", counted)
    library = Library(tmp_path)
    for points in (1, 1, 22, 22):
        (place / "sweep.json").write_text(json.dumps({"state": "complete", "points": points}))
        os.utime(place / "sweep.json", (points, points))
        assert sorted(facts["points"] for facts in library.sweeps()) == sorted([points, 7])
    assert len(read) == 3


def test_only_its_own_names_are_answered(address: str) -> None:
    """A page whose name points here (DNS rebinding) gets nothing."""
    assert ask(f"{address}/health", Host="evil.example")[0] == 400
    assert ask(f"{address}/health", token=None)[0] == 200


def test_answers_are_those_of_the_map(
    address: str, stability_map: StabilityMap, tmp_path: Path
) -> None:
    sweep = f"{address}/sweeps/{HASH}"
    at = {"lr": 0.1, "weight_decay": 0.01}
    assert json.loads(ask(f"{sweep}/classify", at)[1]) == stability_map.classify(**at)
    rates = [float(lr) for lr in np.geomspace(0.01, 100, 50)]
    many = json.loads(ask(f"{sweep}/classify", {"lr": rates, "weight_decay": 0.01})[1])
    for regime, values in stability_map.classify(lr=rates, weight_decay=0.01).items():
        assert many[regime] == values.tolist()
    answer = json.loads(ask(f"{sweep}/max_stable?axis=lr&weight_decay=0.01&confidence=0.9")[1])
    assert answer["max_stable"] == stability_map.max_stable("lr", weight_decay=0.01, confidence=0.9)
    places = json.loads(ask(f"{sweep}/boundary/divergent")[1])
    assert [p["lr"] for p in places] == stability_map.boundary("divergent")["lr"].tolist()
    assert ask(f"{sweep}/map.json")[1].decode() == stability_map.to_json()
    assert ask(f"{sweep}/map.png")[1].startswith(b"\x89PNG")
    (tmp_path / "map.nc").write_bytes(ask(f"{sweep}/map.nc")[1])
    read = StabilityMap.read(tmp_path / "map.nc")
    pd.testing.assert_frame_equal(read.to_frame(), stability_map.to_frame())
    status, page, headers = ask(f"{sweep}/page")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert page.decode() == page_html(stability_map, Tracking(sweep="run-0"))


def test_pages_hold_every_point_once(address: str, stability_map: StabilityMap) -> None:
    numbers, after = list[int](), -1
    while after is not None:
        page = json.loads(ask(f"{address}/sweeps/{HASH}/points?after={after}&limit=7")[1])
        assert 0 < len(page["points"]) <= 7
        numbers += [point["number"] for point in page["points"]]
        after = page["next"]
    assert numbers == stability_map.to_frame()["number"].tolist()


def test_sweeps_and_their_names(address: str) -> None:
    listed = json.loads(ask(f"{address}/sweeps")[1])
    assert [facts["hash"] for facts in listed] == [EMPTY, OTHER, HASH]
    assert "tracking" not in listed[0]
    for name in (HASH, "run-0", "only"):
        assert json.loads(ask(f"{address}/sweeps/{name}")[1])["hash"] == HASH
    status, content, _ = ask(f"{address}/sweeps/twice")
    assert status == 409 and OTHER in content.decode()


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/sweeps/nothing", 404, "no sweep 'nothing'; GET /sweeps lists them"),
        (f"/sweeps/{EMPTY}/map.json", 404, "no results yet"),
        ("/sweeps/..%2f..%2fsecret/map.json", 404, ""),
        ("/sweeps/%2e%2e/map.json", 404, ""),
        (f"/sweeps/{HASH}/max_stable?axis=momentum", 422, "momentum"),
        (f"/sweeps/{HASH}/max_stable?axis=lr", 422, "weight_decay"),
        (f"/sweeps/{HASH}/max_stable?axis=lr&weight_decay=0.01&confidence=2", 422, "confidence"),
        (f"/sweeps/{HASH}/boundary/left", 422, "stable or divergent"),
        (f"/sweeps/{HASH}/points?limit=0", 422, "limit"),
    ],
)
def test_wrong_questions(address: str, path: str, status: int, said: str) -> None:
    found, content, _ = ask(address + path)
    assert found == status and said in content.decode()


@pytest.mark.parametrize(
    "place", [{}, {"lr": "x"}, {"lr": [], "weight_decay": 0.1}, {"speed": 1}, {"lr": 1e9}, [1]]
)
def test_wrong_places(address: str, place: Any) -> None:
    assert ask(f"{address}/sweeps/{HASH}/classify", place)[0] == 422


def test_a_map_that_grows_is_read_again(tmp_path: Path, address: str) -> None:
    place = tmp_path / "sweeps" / HASH
    place.mkdir(parents=True)
    (place / "sweep.json").write_text("{}")
    library = Library(tmp_path)
    for points in (8, 16):
        some_map(points).export(place / "map")
        assert len(library.map(HASH).to_frame()) == points
        assert library.map(HASH) is library.map(HASH)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_loopback(host: str, local: bool) -> None:
    assert is_loopback_host(host) is local


def test_sweeps_whose_state_is_damaged_or_wrong(tmp_path: Path) -> None:
    """A crash leaves a broken file, or one that says running: the others are still answered."""
    for name, text in ((HASH, "{"), (OTHER, '{"state": "running", "updated": 1}')):
        (tmp_path / "sweeps" / name).mkdir(parents=True)
        (tmp_path / "sweeps" / name / "sweep.json").write_text(text)
    library = Library(tmp_path)
    assert [facts["state"] for facts in library.sweeps()] == ["died", "unknown"]
    with (tmp_path / "sweeps" / OTHER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert library.find(OTHER)["state"] == "running"


def test_the_verb_says_where_it_listens(tmp_path: Path) -> None:
    """Port 0 takes a free one; a port that is taken is an error line, and no token is shown."""
    words = [sys.executable, "-m", "stabmap", "serve", "--folder", str(tmp_path), "--port"]
    with subprocess.Popen([*words, "0"], stderr=subprocess.PIPE, text=True) as service:
        assert service.stderr is not None
        said = [service.stderr.readline().split()[-1] for _ in range(2)]
        token, place = said
        assert service.stderr.readline() == f"browser   {place}/sign-in#{token}\n"
        assert ask(f"{place}/sweeps", token=token)[:2] == (200, b"[]")
        port = place.rpartition(":")[2]
        other = subprocess.run([*words, port], capture_output=True, text=True, timeout=60)
        service.send_signal(signal.SIGINT)
        service.wait(30)
    assert other.returncode == 4
    assert re.fullmatch(rf"error: host = '127.0.0.1': nothing .* {port} \(.*\n", other.stderr)
