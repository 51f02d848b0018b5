"""The client against a service: the answers of the map, and plain words where there is none."""

from __future__ import annotations

import doctest
import http.server
import inspect
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from serving import keep, serving

import stabmap
import stabmap.client
from analysis.evidence import EVIDENCE
from stabmap import Client, InputError, UnreachableError

TOKEN = "correct-horse"
HASH = "0123456789abcdef"
TITLE = "first map"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("home")
    counts = stabmap.example_map().counts()
    facts = {"title": TITLE, "state": "complete", "points": 64, "counts": counts, "updated": 9.5}
    keep(home, HASH, stabmap.example_map(), **facts)
    with serving(home, TOKEN) as found:
        yield found


@pytest.fixture
def client(address: str) -> Client:
    return Client(address, TOKEN)


def test_examples_in_docstrings(client: Client) -> None:
    space = {"client": client, "address": client.address, "token": TOKEN, "stabmap": stabmap}
    found = doctest.testmod(stabmap.client, extraglobs=space)
    assert found.attempted > 8 and found.failed == 0
    for name, member in vars(Client).items():
        if callable(member) and not name.startswith("_"):
            assert ">>> " in (inspect.getdoc(member) or ""), name


@pytest.mark.parametrize(
    ("lr", "decay"),
    [
        (0.3, 0.01),
        ([0.01, 1.0, 50.0], 0.01),
        (np.geomspace(0.01, 100, 6).reshape(6, 1), np.array([0.0, 1e-3, 1.0])),
        (np.float64(2), [1e-2]),
    ],
)
def test_classify_gives_the_shapes_and_values_of_the_map(
    client: Client, monkeypatch: pytest.MonkeyPatch, lr: object, decay: object
) -> None:
    monkeypatch.setattr(stabmap.client, "BATCH", 4)  # several requests
    ours = client.classify(TITLE, lr=lr, weight_decay=decay)  # type: ignore[arg-type]
    theirs = stabmap.example_map().classify(lr=lr, weight_decay=decay)  # type: ignore[arg-type]
    for regime, values in theirs.items():
        assert type(ours[regime]) is type(values)
        np.testing.assert_array_almost_equal_nulp(ours[regime], values, 1 << 20)
        assert np.shape(ours[regime]) == np.shape(values)


def test_other_questions_are_answered_as_by_the_map(client: Client) -> None:
    whole = stabmap.example_map()
    pd.testing.assert_frame_equal(client.boundary(HASH, "divergent"), whole.boundary("divergent"))
    asked = {"confidence": 0.8, "weight_decay": 0.1}
    assert client.max_stable(HASH, "lr", **asked) == whole.max_stable("lr", **asked)
    assert client.max_stable(HASH, "weight_decay", lr=100.0) is None
    pd.testing.assert_frame_equal(client.map(HASH).to_frame(), whole.to_frame())


def test_points_come_over_all_pages(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stabmap.client, "PAGE", 7)
    found = list(client.points(TITLE))
    frame = stabmap.example_map().to_frame()
    assert [p.number for p in found] == frame["number"].tolist()
    assert [p.point.lr for p in found] == frame["lr"].tolist()
    assert [p.regime.value for p in found] == frame["regime"].tolist()
    assert [p.margins.bounded for p in found] == frame["margin_bounded"].tolist()
    assert set(EVIDENCE) < set(found[0].evidence)
    with pytest.raises(FrozenInstanceError):
        found[0].step = 1  # type: ignore[misc]


def test_a_sweep(client: Client) -> None:
    (listed,) = client.sweeps()
    assert listed == client.sweep(HASH) == client.sweep(TITLE)
    assert (listed.hash, listed.points, listed.updated, listed.limit) == (HASH, 64, 9.5, None)


# --------------------------------------------------------------------------- refusals


def refused(ask: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        ask()
    return str(caught.value)


def test_what_the_map_refuses_is_refused_in_its_words(client: Client) -> None:
    whole = stabmap.example_map()
    for asked in ({"lr": 1e9}, {"lr": 1.0, "weight_decay": 5.0}, {"lr": 1.0, "alpha": 1.0}):
        ours = refused(lambda asked=asked: client.classify(TITLE, **asked))  # type: ignore[misc]
        assert ours == refused(lambda asked=asked: whole.classify(**asked))  # type: ignore[misc]
    ours = refused(lambda: client.max_stable(TITLE, "lr", confidence=2.0, weight_decay=0.1))
    assert ours == refused(lambda: whole.max_stable("lr", confidence=2.0, weight_decay=0.1))
    assert refused(lambda: client.boundary(TITLE, "left")) == refused(
        lambda: whole.boundary("left")
    )


def test_what_the_client_refuses_itself(client: Client) -> None:
    ask = client.classify
    assert "lr = 'x': must be a number; give" in refused(lambda: ask(TITLE, lr="x"))
    assert "must be finite; give" in refused(lambda: ask(TITLE, lr=float("nan")))
    assert "no value is given; give" in refused(lambda: ask(TITLE, lr=[]))
    shapes = refused(lambda: ask(TITLE, lr=[1, 2], weight_decay=[1, 2, 3]))
    assert "lr = [2]: the shapes do not broadcast; give equal shapes" in shapes
    for wrong in ("127.0.0.1:1", "ftp://host", "http://", "http://u:p@h", "http://h/?token=1"):
        assert "is no address of one; write http" in refused(lambda wrong=wrong: Client(wrong))  # type: ignore[misc]


def test_unknown_sweeps(client: Client) -> None:
    assert "no sweep 'nothing'; GET /sweeps lists them" in refused(lambda: client.sweep("nothing"))
    assert "no sweep '..'" in refused(lambda: client.sweep(".."))
    assert "String should match pattern" in refused(lambda: client.sweep("<b>"))
    assert "question = None: Not Found" in refused(lambda: client.sweep("../../secret"))


def test_tokens(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STABMAP_TOKEN", raising=False)
    assert "asks for a token; set STABMAP_TOKEN" in refused(Client(address).sweeps)
    said = refused(Client(address, "wrong-battery").sweeps)
    assert "is not the service's token; set STABMAP_TOKEN" in said and "battery" not in said
    assert "battery" not in repr(Client(address, "wrong-battery"))
    monkeypatch.setenv("STABMAP_TOKEN", TOKEN)
    assert len(Client(address).sweeps()) == 1
    monkeypatch.delenv("STABMAP_TOKEN")
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    monkeypatch.setenv("STABMAP_TOKEN_FILE", str(tmp_path / "token"))
    assert len(Client(address).sweeps()) == 1


@contextmanager
def stranger(status: int, body: bytes, **headers: str) -> Iterator[str]:
    """Something else that answers, and counts what it is asked."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (500, b"Internal Server Error", "HTTP 500 from what is no stabmap service; mend"),
        (302, b"", "HTTP 302 from what is no stabmap service; mend"),
        (503, b'{"detail": "map schema 9"}', "the service cannot answer: map schema 9"),
        (200, b"<html>", "the service does not answer"),
    ],
)
def test_services_that_are_none(status: int, body: bytes, said: str) -> None:
    away = stranger(status, body, Location="http://127.0.0.1:9/")
    with away as place, pytest.raises(UnreachableError) as caught:
        Client(place, TOKEN).sweeps()
    assert said in str(caught.value) and TOKEN not in str(caught.value)


def test_nobody_listens() -> None:
    with pytest.raises(UnreachableError, match=r"address = .*does not answer.*stabmap serve"):
        Client("http://127.0.0.1:9", TOKEN).sweeps()


def test_a_token_that_no_header_can_hold_is_hidden() -> None:
    for wrong in ("battery\nHost: x", "batt\u00e9ry"):
        said = refused(lambda wrong=wrong: Client("http://127.0.0.1:9", wrong))  # type: ignore[misc]
        assert "token = ***: a token is one line of ASCII" in said and "batt" not in said


def test_connections_are_kept_and_shared_by_threads(client: Client) -> None:
    def ask(lr: float) -> float:
        return float(client.classify(HASH, lr=lr, weight_decay=0.01)["stable"])

    asked = np.geomspace(0.01, 100, 40)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, asked.tolist()))
    expected = stabmap.example_map().classify(lr=asked, weight_decay=0.01)["stable"]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    list(client.points(HASH))
    with suppress(InputError):
        client.sweep("nothing")
    next(events := client.events(HASH))
    events.close()
    assert client.sweep(HASH).points == 64
    kept = client._pool.connection_from_url(client.address)
    assert kept.num_requests >= 44 and kept.num_connections <= 6


@pytest.mark.parametrize("late", [False, True], ids=["before", "at the next question"])
def test_a_connection_that_the_service_closed_is_opened_again(late: bool) -> None:
    body = b'{"points": 1}'
    sent = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_once_each() -> None:
            for heard in (2 if late else 1, 1):
                with listener.accept()[0] as call:  # closed without a word about it
                    call.recv(65536)
                    call.sendall(sent)
                    if heard == 2:
                        call.recv(65536)

        thread = threading.Thread(target=answer_once_each, daemon=True)
        thread.start()
        asker = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", TOKEN)
        assert [asker._json("/") for _ in range(2)] == [{"points": 1}] * 2
        thread.join(10)


def test_a_client_goes_to_other_processes(client: Client) -> None:
    client.sweeps()
    again = pickle.loads(pickle.dumps(client))
    assert again == client and again.sweeps() == client.sweeps()


def test_this_machine_is_not_asked_through_a_proxy(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert len(client.sweeps()) == 1
