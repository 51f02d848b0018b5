"""deploy/mlflow: the documented server with PostgreSQL, from outside; it comes back when killed.

Requests are made with urllib, so that nothing of MLflow's client stands between test and server.
"""

from __future__ import annotations

import base64
import dataclasses
import http.client
import itertools
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from servers import ROOT, PostgreSQL, Server, mlflow_server, postgresql

SERVE = ROOT / "deploy/mlflow/serve.sh"
SEARCH = "/api/2.0/mlflow/experiments/search?max_results=10"
EXPERIMENT = "/api/2.0/mlflow/experiments/create"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQL]:
    with postgresql(tmp_path_factory.mktemp("postgresql")) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def server(folder: Path, database: PostgreSQL) -> Iterator[Server]:
    with mlflow_server(folder, database) as running:
        yield running


def ask(
    server: Server,
    path: str,
    password: str | None = "the right one",
    body: bytes | None = None,
    method: str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    """Status and body of the answer; a request with a body is a POST."""
    request = urllib.request.Request(server.url + path, body, headers or {}, method=method)
    if password is not None:
        word = server.password if password == "the right one" else password
        token = base64.b64encode(f"{server.user}:{word}".encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
    if body is not None and "Content-Type" not in request.headers:
        request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read()


def new_experiment(server: Server, name: str) -> str:
    status, body = ask(server, EXPERIMENT, body=json.dumps({"name": name}).encode())
    assert status == 200, body
    return str(json.loads(body)["experiment_id"])


def test_right_password_is_let_in(server: Server) -> None:
    status, body = ask(server, SEARCH)
    assert status == 200
    assert "Default" in {e["name"] for e in json.loads(body)["experiments"]}


@pytest.mark.parametrize("password", [None, "", "wrong", "password1234"])
@pytest.mark.parametrize("path", [SEARCH, "/", "/api/2.0/mlflow-artifacts/artifacts"])
def test_strangers_are_refused(server: Server, path: str, password: str | None) -> None:
    assert ask(server, path, password)[0] in (401, 403)


def test_strangers_write_nothing(server: Server) -> None:
    body = json.dumps({"name": "a stranger's"}).encode()
    assert ask(server, EXPERIMENT, None, body)[0] in (401, 403)
    artifact = "/api/2.0/mlflow-artifacts/artifacts/0/a/b.txt"
    assert ask(server, artifact, None, b"x", "PUT")[0] in (401, 403)
    assert b"stranger" not in ask(server, SEARCH)[1]


def test_artifacts_go_through_the_server_and_come_back(server: Server, folder: Path) -> None:
    experiment = new_experiment(server, "artifacts")
    body = json.dumps({"experiment_id": experiment, "start_time": 1}).encode()
    run = json.loads(ask(server, "/api/2.0/mlflow/runs/create", body=body)[1])["run"]["info"]
    assert run["artifact_uri"].startswith("mlflow-artifacts:/")
    inside = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
    path = f"/api/2.0/mlflow-artifacts/artifacts/{inside}/map.bin"
    content = bytes(range(256)) * 4
    headers = {"Content-Type": "application/octet-stream"}
    assert ask(server, path, body=content, method="PUT", headers=headers)[0] == 200
    assert ask(server, path) == (200, content)
    (kept,) = (folder / "artifacts").rglob("map.bin")
    assert kept.read_bytes() == content
    assert kept.stat().st_mode & 0o077 == 0  # others on the machine have no business there


def test_artifacts_stay_in_their_folder(server: Server, folder: Path) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)
    token = base64.b64encode(f"{server.user}:{server.password}".encode()).decode()
    headers = {"Authorization": f"Basic {token}"}
    for path in ("../escaped", "%2e%2e/escaped", "..%2fescaped", "%252e%252e/escaped"):
        address = f"/api/2.0/mlflow-artifacts/artifacts/{path}"
        connection.request("PUT", address, b"x", headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status >= 400, path
    connection.close()
    assert not list(folder.parent.rglob("escaped"))


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:1", "127.0.0.1.evil.example"])
def test_other_host_names_are_refused(server: Server, host: str) -> None:
    status, body = ask(server, SEARCH, headers={"Host": host})
    assert status == 403
    assert b"Host header" in body


def test_its_name_is_allowed_with_and_without_the_port(server: Server) -> None:
    port = server.url.rpartition(":")[2]
    for host in ("127.0.0.1", f"127.0.0.1:{port}"):
        assert ask(server, SEARCH, headers={"Host": host})[0] == 200


def test_colleagues_read_all_and_change_only_their_own(server: Server) -> None:
    theirs = new_experiment(server, "the administrator's")
    account = {"username": "ada", "password": "ada's long password"}
    body = json.dumps(account).encode()
    assert ask(server, "/api/2.0/mlflow/users/create", body=body)[0] == 200
    ada = dataclasses.replace(server, user=account["username"], password=account["password"])
    assert ask(ada, f"/api/2.0/mlflow/experiments/get?experiment_id={theirs}")[0] == 200
    run = {"experiment_id": theirs, "start_time": 1}
    create = "/api/2.0/mlflow/runs/create"
    assert ask(ada, create, body=json.dumps(run).encode())[0] == 403
    run["experiment_id"] = new_experiment(ada, "Ada's")
    assert ask(ada, create, body=json.dumps(run).encode())[0] == 200


def test_other_sites_change_nothing(server: Server) -> None:
    body = json.dumps({"name": "from elsewhere"}).encode()
    headers = {"Origin": "https://evil.example"}
    assert ask(server, EXPERIMENT, body=body, headers=headers)[0] == 403


def test_runs_and_accounts_are_in_postgresql(server: Server, database: PostgreSQL) -> None:
    new_experiment(server, "kept in PostgreSQL")
    with (
        psycopg2.connect(
            host="127.0.0.1",
            port=database.environment["PGPORT"],
            user=database.user,
            password=database.password,
            dbname="mlflow",
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT count(*) FROM experiments WHERE name = 'kept in PostgreSQL'")
        assert cursor.fetchone() == (1,)
        cursor.execute("SELECT password_hash FROM users WHERE username = 'admin'")
        ((kept,),) = cursor.fetchall()
    connection.close()
    assert server.password not in kept


def test_postgresql_asks_for_the_password(database: PostgreSQL) -> None:
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(database.url.replace("+psycopg2", ""), password="wrong")


def test_no_secret_is_shown(server: Server, database: PostgreSQL, folder: Path) -> None:
    shown = Path(f"/proc/{server.pid}/cmdline").read_text() + repr(server) + repr(database)
    shown += (folder / "mlflow.log").read_text() + database.url + server.url
    assert server.password not in shown
    assert database.password not in shown


def test_killed_and_started_again_nothing_is_lost(server: Server, database: PostgreSQL) -> None:
    new_experiment(server, "before the kill")
    first = server.pid
    server.kill()
    with pytest.raises(urllib.error.URLError, match="refused"):
        ask(server, SEARCH)
    database.kill()
    with pytest.raises(psycopg2.OperationalError):
        psycopg2.connect(database.url.replace("+psycopg2", ""), password=database.password)
    database.start()
    server.start()
    assert server.pid != first
    assert b"before the kill" in ask(server, SEARCH)[1]


def test_postgresql_killed_under_it_is_found_again(server: Server, database: PostgreSQL) -> None:
    database.kill()
    database.start()
    assert ask(server, SEARCH)[0] == 200


# ---------------------------------------------------------------------- what serve.sh asks for


SETTINGS = {
    "PATH": os.environ["PATH"],
    "PYTHON": sys.executable,
    "PGHOST": "127.0.0.1",
    "PGUSER": "stabmap",
    "PGDATABASE": "mlflow",
    "MLFLOW_ARTIFACTS_DESTINATION": "/nowhere",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "a",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "b",
}


def refusal(settings: dict[str, str]) -> str:
    done = subprocess.run(
        [SERVE], env=settings, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("name", ["PGHOST", "PGUSER", "PGDATABASE", "MLFLOW_ARTIFACTS_DESTINATION"])
def test_missing_setting_is_named(name: str) -> None:
    settings = {k: v for k, v in SETTINGS.items() if k != name}
    assert refusal(settings) == f"serve.sh: {name} is not set; docs/cluster.md lists the settings"


@pytest.mark.parametrize("name", ["MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"])
def test_missing_secret_is_named_with_a_way_out(name: str) -> None:
    line = refusal({**SETTINGS, name: ""})
    assert line.startswith(f"serve.sh: {name} is not set; set it, or {name}_FILE to a file")


@pytest.mark.parametrize(
    ("mode", "content", "law"),
    [
        (0o644, "hunter2", "has mode 644, so others may read it; chmod 600"),
        (0o640, "hunter2", "has mode 640"),
        (0o600, "", "is empty"),
        (None, "", "cannot be read"),
    ],
)
def test_file_of_a_secret_is_private_and_full(
    tmp_path: Path, mode: int | None, content: str, law: str
) -> None:
    file = tmp_path / "password"
    if mode is not None:
        file.write_text(content)
        file.chmod(mode)
    settings = {**SETTINGS, "MLFLOW_AUTH_ADMIN_PASSWORD": ""}
    line = refusal({**settings, "MLFLOW_AUTH_ADMIN_PASSWORD_FILE": str(file)})
    assert f"MLFLOW_AUTH_ADMIN_PASSWORD_FILE = {file} {law}" in line
    assert "hunter2" not in line


def test_options_environment_and_secrets_reach_the_server(tmp_path: Path) -> None:
    """In place of Python, a program that prints what it is given."""
    show = tmp_path / "python"
    show.write_text('#!/bin/sh\necho "$@"\necho "$MLFLOW_AUTH_ADMIN_PASSWORD"\n')
    show.chmod(0o700)
    secret = tmp_path / "password"
    secret.write_text("from the file\n")
    secret.chmod(0o600)
    settings = {
        **SETTINGS,
        "PYTHON": str(show),
        "MLFLOW_AUTH_ADMIN_PASSWORD": "",
        "MLFLOW_AUTH_ADMIN_PASSWORD_FILE": str(secret),
        "MLFLOW_NAMES": "mlflow.example.org mlflow",
        "MLFLOW_PORT": "5512",
    }
    done = subprocess.run(
        [SERVE, "--workers", "2"], env=settings, capture_output=True, text=True, check=True
    )
    command, password = done.stdout.splitlines()
    assert password == "from the file"
    options = command.split()
    value = dict(itertools.pairwise(options))
    assert value["--host"] == "127.0.0.1"  # unless told otherwise
    assert value["--allowed-hosts"] == (
        "mlflow.example.org,mlflow.example.org:5512,mlflow,mlflow:5512"
    )
    assert "https://mlflow.example.org" in value["--cors-allowed-origins"].split(",")
    assert options[-2:] == ["--workers", "2"]
