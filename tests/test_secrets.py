"""Passwords and tokens: where they come from, and that they are shown and kept nowhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from synthetic import LR, map_of
from typer.testing import CliRunner

from analysis.load import load_map, redacted
from stabmap.cli import app
from sweeps.secrets import LARGEST_SECRET, read_secret
from sweeps.spec import load_spec, parse_overrides
from sweeps.tracking import Tracker
from trainables.domain import InputError, Mistake, Point, UnreachableError
from trainables.messages import SECRET_VARIABLES

SECRET = "hunter2/ü?&x=y z"
NAME = "STABMAP_TEST_TOKEN"


@pytest.fixture(autouse=True)
def no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SECRET_VARIABLES, "MLFLOW_TRACKING_URI", NAME, f"{NAME}_FILE"):
        monkeypatch.delenv(name, raising=False)


# --------------------------------------------------------------------------- reading


def write(path: Path, content: bytes, mode: int) -> str:
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def refusal() -> str:
    with pytest.raises(InputError) as caught:
        read_secret(NAME)
    (found,) = caught.value.mistakes
    assert found.field == f"{NAME}_FILE"
    return str(found)


def test_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_secret(NAME) is None
    monkeypatch.setenv(NAME, "")
    assert read_secret(NAME) is None
    monkeypatch.setenv(NAME, SECRET)
    assert read_secret(NAME) == SECRET


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_from_a_file(mode: int, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "token", (SECRET + end).encode(), mode)
    monkeypatch.setenv(f"{NAME}_FILE", path)
    assert read_secret(NAME) == SECRET


def test_from_a_file_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "token", b"abc", 0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(f"{NAME}_FILE", "~/token")
    assert read_secret(NAME) == "abc"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o610, 0o700, 0o644, 0o666, 0o777])
def test_a_file_that_others_may_use(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "my token", b"s3cret", mode)
    monkeypatch.setenv(f"{NAME}_FILE", path)
    text = refusal()
    assert text == (
        f"{NAME}_FILE = '{path}': others may read it, or anybody run it (mode {mode:o}); "
        f"run: chmod 600 '{path}'"
    )
    subprocess.run(text.partition("run: ")[2], shell=True, check=True)
    assert read_secret(NAME) == "s3cret"


def test_a_link_is_judged_by_what_it_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(write(tmp_path / "token", b"s3cret", 0o644))
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "link"))
    assert "mode 644" in refusal()


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"s3cret\nmore\n", b"s3\x00cret", b"\xff", b"x" * (LARGEST_SECRET + 1)]
)
def test_a_file_without_a_secret(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{NAME}_FILE", write(tmp_path / "token", content, 0o600))
    text = refusal()
    assert "holds no secret: one line of text" in text
    assert "s3" not in text.replace(str(tmp_path), "")


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "missing"))
    assert "cannot be read (No such file" in refusal()
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path))
    assert "is no regular file" in refusal()
    os.mkfifo(tmp_path / "fifo", 0o600)
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "fifo"))
    assert "is no regular file" in refusal()


def test_both_ways_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{NAME}_FILE", write(tmp_path / "token", b"s3cret", 0o600))
    monkeypatch.setenv(NAME, "other s3cret")
    text = refusal()
    assert f"{NAME} is set too; unset one of the two" in text
    assert "s3cret" not in text


# --------------------------------------------------------------------------- specs

IN_SPECS: list[dict[str, Any]] = [
    {"tracking.address": "https://me:s3cret@host/x"},
    {"tracking.address": "postgresql://me:s3cret@host:5432/db"},
    {"tracking.address": "postgresql+psycopg2://me:s3/c3s3cret@host/db"},
    {"tracking.address": "postgresql://host/db?user=me&password=s3cret"},
    {"tracking.address": "https://host/?access_token=s3cret"},
    {"tracking.address": "https://host/?API_KEY=s3cret"},
    {"tracking.password": "s3cret"},
    {"tracking.token": "s3cret"},
    {"tracking.MLFLOW_TRACKING_PASSWORD": "s3cret"},
    {"tracking": ["a", {"password": "s3cret"}]},
    {"password": 53},
    {"credentials": {"user": "me", "password": "s3cret"}},
    {"task.api-key": "s3cret"},
    {"task.data_root": "s3://me:s3cret@bucket"},
    {"folder": "/mnt/?secret=s3cret"},
    {"name": "x token=s3cret"},
    {"ks": ["http://a:s3cret@b"]},
    {"search.start": [{"lr": "http://a:s3cret@b"}]},
]


@pytest.mark.parametrize("changes", IN_SPECS)
def test_a_secret_in_a_spec(changes: dict[str, Any]) -> None:
    """It is refused where it stands, and said where it belongs, without being repeated."""
    with pytest.raises(InputError) as caught:
        load_spec("mnist-mlp", changes)
    found = caught.value.mistakes[0]
    assert len(caught.value.mistakes) == (2 if isinstance(changes.get("tracking"), list) else 1)
    assert found.law == "a password, token or key does not belong in a spec"
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        assert f"MLFLOW_TRACKING_{name}" in found.remedy
    assert "PGPASSWORD" in found.remedy and "~/.pgpass with mode 600" in found.remedy
    assert str(found).endswith(found.remedy)
    assert "s3cret" not in str(caught.value)
    assert "53" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://host:5000/with@sign",
        "postgresql://me@host:5432/db",
        "http://[::1]:5000",
        "sqlite://",
    ],
)
def test_an_address_without_a_secret(address: str) -> None:
    assert load_spec("mnist-mlp", {"tracking.address": address}).tracking.address == address


@pytest.mark.parametrize(
    "words",
    [
        ["tracking.address=http://me:s3cret@host"],
        ["tracking.password=s3cret"],
        ["tracking.password='s3cret"],
        ["tracking.password"],
        ["tracking.address=http://me:s3cret@host", "tracking.address.x=1"],
        ["tracking.address=x", "tracking.address.password=s3cret"],
        ["tracking.address=http://me:s3cret@host: *a"],
    ],
)
def test_a_secret_in_an_override(words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_spec("mnist-mlp", parse_overrides(words))
    assert "s3cret" not in str(caught.value)


# --------------------------------------------------------------------------- redacted

PASSWORDS = st.text(
    st.characters(codec="utf-8", categories=("L", "N", "P", "S")) | st.sampled_from("@:/?#&=%'\" "),
    min_size=4,
    max_size=20,
)
AROUND = "cannot reach <{}> (error 403: 'host' refused); try again"


@given(PASSWORDS)
def test_a_password_of_the_environment_is_never_shown(password: str) -> None:
    """As it is and as it is written in an address, wherever it stands, in a mistake too."""
    assume(password not in AROUND + "http://***@host:5000 f = : law; remedy")
    for written in (password, quote(password, safe="")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", address := f"http://user:{written}@host:5000")
            for text in (AROUND.format(address), AROUND.format(password), f"{written} {password}"):
                assert password not in redacted(text)
                assert password not in str(Mistake("f", text, text, text))


@given(PASSWORDS.filter(lambda text: not any(c.isspace() for c in text)))
def test_a_password_in_any_address_is_never_shown(password: str) -> None:
    """Where the environment does not have it: malformed addresses too."""
    assume(password not in AROUND + "postgresql://***@host/db")
    for user in ("user:", "", ":"):
        shown = redacted(AROUND.format(f"postgresql://{user}{password}@host/db"))
        assert password not in shown
        assert shown == AROUND.format("postgresql://***@host/db")


@pytest.mark.parametrize("name", SECRET_VARIABLES)
def test_variables_that_hold_secrets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert redacted("it is s3cret") == "it is s3cret"
    monkeypatch.setenv(name, "s3cret")
    assert redacted("it is s3cret") == "it is ***"
    monkeypatch.setenv(name, "it")  # would hide half of every message
    assert redacted("it is s3cret") == "it is s3cret"


@given(st.text(st.characters(codec="ascii", categories=("L", "N", "Z")), max_size=50))
def test_what_has_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


# --------------------------------------------------------------------------- a run that fails


class _Mlflow(BaseHTTPRequestHandler):
    """Answers that it is there, then that nothing is allowed."""

    def do_GET(self) -> None:
        self._answer(200 if "search" in self.path else 403)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(200 if "search" in self.path else 403)

    def _answer(self, status: int) -> None:
        # What a careless server or proxy might send: the address as it was called.
        secret = f"denied for http://user:{quote(SECRET, safe='')}@host and {SECRET}"
        content = {} if status == 200 else {"error_code": "PERMISSION_DENIED", "message": secret}
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def mlflow() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Mlflow)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def assert_hidden(folder: Path, *outputs: bytes) -> None:
    """Neither an output nor a file below the folder has the password, plain or quoted."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for content in (*outputs, *(path.read_bytes() for path in files)):
        for secret in (SECRET, quote(SECRET, safe=""), json.dumps(SECRET)[1:-1], "hunter2"):
            assert secret.encode() not in content


def test_a_failed_run_shows_and_keeps_no_secret(mlflow: str, tmp_path: Path) -> None:
    """In a process, with a server that repeats the address: output, and all files that are left."""
    environment = {
        "MLFLOW_TRACKING_URI": f"http://user:{quote(SECRET, safe='')}@{mlflow}",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "STABMAP_HOME": str(tmp_path / "home"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "stabmap", "run", "mnist-mlp"],
        env={**os.environ, **environment},
        cwd=tmp_path,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 4, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert b"error: tracking.address = 'http://***@127.0.0.1:" in done.stderr
    assert list(tmp_path.rglob("spec.yaml")), "the sweep's folder was expected, to look into it"
    assert_hidden(tmp_path, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "address",
    [
        f"http://user:{quote(SECRET, safe='')}@127.0.0.1:9",
        f"postgresql://user:{quote(SECRET, safe='')}@127.0.0.1:9/db",
        f"nonsense://user:{SECRET}@127.0.0.1:9/db",
    ],
)
def test_what_cannot_be_reached_shows_no_secret(
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("STABMAP_HOME", str(tmp_path / "home"))
    done = CliRunner().invoke(app, ["run", "mnist-mlp"])
    assert done.exit_code == 4, done.output
    assert "error: tracking.address = " in done.stderr
    assert_hidden(tmp_path, done.output.encode(), caplog.text.encode())


def test_a_sweep_remembers_where_it_was_recorded_without_the_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that was recorded, up to the point where Ray would start."""

    def no_ray(*_: Any) -> None:
        raise UnreachableError(f"Ray cannot be reached, says user:{SECRET}")

    address = f"http://user:{quote(SECRET, safe='')}@127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("STABMAP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(Tracker, "_connect", lambda self: None)
    monkeypatch.setattr(Tracker, "open", lambda self, *_, **__: "0" * 32)
    monkeypatch.setattr(Tracker, "close", lambda self, *_, **__: True)
    monkeypatch.setattr("sweeps.runner._ray", no_ray)  # even where a test before left one on
    done = CliRunner().invoke(app, ["run", "mnist-mlp"])
    assert done.exit_code == 4, done.output
    assert "error: Ray cannot be reached, says user:***" in done.stderr
    (kept,) = tmp_path.rglob("sweep.json")
    assert json.loads(kept.read_text())["tracking"] == "http://***@127.0.0.1:9"
    assert_hidden(tmp_path, done.output.encode())


@pytest.mark.parametrize("verb", [["query"], ["plot"], ["export", "out"]])
def test_an_address_on_the_command_line(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [verb[0], "0" * 32, *verb[1:], "--tracking", "nonsense://me:s3cret@127.0.0.1:9/x"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "no such sweep in nonsense://***@127.0.0.1:9/x" in done.output
    assert "s3cret" not in done.output
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------- files of others


@pytest.mark.parametrize("sweep", ["..", "a%2fb", "x'y", "\x1b[2J", "a\0b", "z" * 201, "~nobody-x"])
def test_an_id_is_no_path(sweep: str) -> None:
    with pytest.raises(InputError) as caught:
        load_map(sweep, "http://127.0.0.1:9")
    assert str(caught.value).isprintable()


def test_a_map_from_mlflow_lies_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server names what it sends; what it names elsewhere is not read."""
    import mlflow

    map_of({"lr": LR}, [Point(0.1), Point(10.0)]).export(tmp_path)

    class Client:
        inside = True

        def __init__(self, _: str) -> None:
            pass

        def get_run(self, _: str) -> None:
            pass

        def download_artifacts(self, _: str, name: str, folder: str) -> str:
            if not self.inside:
                return f"{folder}/../{tmp_path.name}/map.parquet"
            target = Path(folder) / "map.parquet"
            target.write_bytes((tmp_path / "map.parquet").read_bytes())
            return str(target)

    monkeypatch.setattr(mlflow, "MlflowClient", Client)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path.parent))
    assert len(load_map("0" * 32, "http://127.0.0.1:9").frame) == 2
    Client.inside = False
    with pytest.raises(UnreachableError, match=r"put map\.parquet where it does not belong"):
        load_map("0" * 32, "http://127.0.0.1:9")


def test_an_export_writes_inside_its_folder_only(tmp_path: Path) -> None:
    """Whatever the map says of itself: its names are content, never paths."""
    found = map_of({"lr": LR}, [Point(0.1), Point(10.0)])
    about = {**found.about, "task": {"name": "../../escaped"}, "../escaped": "../escaped"}
    replace(found, about=about).export(tmp_path / "out" / "in")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in files} == {tmp_path / "out" / "in"}
    assert {path.name for path in files} == {"map.parquet", "map.json", "map.csv", "map.nc"}


@pytest.mark.parametrize(
    "about",
    [
        "[]",
        "1",
        "null",
        "{}",
        '{"schema_version": 4}',
        '{"schema_version": 4, "axes": 1}',
        '{"schema_version": 4, "axes": {"lr": {"os": 1}}}',
        '{"schema_version": 4, "axes": {"lr": {"value": -1}, "alpha": {}, "weight_decay": {}}}',
        '{"schema_version": 4, "axes": {"lr": {"value": 1}, "alpha": {"value": 0}, '
        '"weight_decay": {"value": 0}}}',
        "[" * 100,
    ],
)
def test_a_file_that_only_claims_to_be_a_map(about: str, tmp_path: Path) -> None:
    table = pa.table({"x": [1, 2]}).replace_schema_metadata({"stabmap": about})
    pq.write_table(table, tmp_path / "map.parquet")
    with pytest.raises(InputError, match="not a stability map"):
        load_map(tmp_path)
