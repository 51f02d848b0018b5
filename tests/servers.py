"""PostgreSQL and the MLflow server for tests: on loopback, with passwords, killed and revived.

Both are started by what users start them with. Leaving the `with` block ends them together with
every process that they have started.
"""

from __future__ import annotations

import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psycopg2
import pytest

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"


class Program:
    """A program in a process group of its own, started and ended as often as a test likes."""

    def __init__(
        self,
        command: list[str],
        ready: Callable[[], bool],
        log: Path,
        environment: Mapping[str, str],
        folder: Path,
        account: pwd.struct_passwd | None = None,
        farewell: signal.Signals = signal.SIGTERM,
    ) -> None:
        self._command, self._ready, self._log = command, ready, log
        self._environment, self._folder, self._account = environment, folder, account
        self._farewell = farewell
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id. RuntimeError while the program does not run."""
        if self._process is None:
            raise RuntimeError("the program does not run")
        return self._process.pid

    def start(self, limit: float = 180.0) -> None:
        """Return once the program answers. RuntimeError with its last words if it does not.

        MLflow comes up in 6 s where it has a processor to itself, in 45 s where ten others want it.
        """
        if self._process is not None:
            raise RuntimeError("the program already runs")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self._environment),
                cwd=self._folder,
                start_new_session=True,
                **_as_account(self._account),
            )
        deadline = time.monotonic() + limit
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                last = self._log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self._command[0]} did not come up within {limit} s:\n{last}")
            time.sleep(0.05)

    def stop(self, patience: float = 15.0) -> None:
        """Ask the program to end; kill it if it has not after `patience` seconds."""
        if self._process is None:
            return
        family = _family(self.pid)
        self._process.send_signal(self._farewell)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._end(family)

    def kill(self) -> None:
        """`kill -9` to the program and its process group, as a machine short of memory does."""
        if self._process is None:
            return
        family = _family(self.pid)
        self._end(family)

    def _end(self, family: list[int]) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        # PostgreSQL's children have sessions of their own. They end when they notice; until then
        # they hold the memory that a new server needs.
        deadline = time.monotonic() + 5
        while any(map(_alive, family)) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in filter(_alive, family):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@dataclass(frozen=True)
class Server:
    """A running server: where it is, who may enter, and the program behind it."""

    url: str
    user: str
    password: str = field(repr=False)
    environment: Mapping[str, str] = field(repr=False)  # lets a client in: address and password
    program: Program = field(repr=False)

    @property
    def pid(self) -> int:
        return self.program.pid

    def start(self) -> None:
        self.program.start()

    def stop(self) -> None:
        self.program.stop()

    def kill(self) -> None:
        self.program.kill()


@dataclass(frozen=True)
class PostgreSQL(Server):
    """A PostgreSQL server; `url` names its first database and, like all here, no password."""

    def database(self, name: str) -> str:
        """Address of a database of its own, made if need be: MLflow and Optuna share none."""
        connection = psycopg2.connect(**_connection(self.environment))
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
            if cursor.fetchone() is None:
                cursor.execute(f'CREATE DATABASE "{name}"')
        connection.close()
        return self.url.rpartition("/")[0] + "/" + name


ServerT = TypeVar("ServerT", bound=Server)


@contextmanager
def postgresql(folder: Path) -> Iterator[PostgreSQL]:
    """A new PostgreSQL server. Skips the test where PostgreSQL is not installed.

    Args:
        folder: holds its log and its data; root's servers keep their data elsewhere, because they
            run under another account, which may not look into root's folders.
    """
    programs = [_postgresql_program(name) for name in ("initdb", "postgres")]
    if None in programs:
        pytest.skip("initdb is not installed: apt-get install postgresql")
    initdb, postgres = map(str, programs)
    account = _other_account() if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="stabmap-postgresql-")) if account else folder
    password, port = secrets.token_hex(16), free_port()
    settings = {"PGHOST": LOOPBACK, "PGPORT": str(port), "PGUSER": "stabmap"}
    settings |= {"PGDATABASE": "postgres", "PGPASSWORD": password}
    try:
        data = _new_cluster(initdb, home, account, password)
        # No socket file, and no waiting for the disk: a test survives no power cut anyway.
        options = ["-h", LOOPBACK, "-p", str(port), "-c", "unix_socket_directories=", "-F"]
        program = Program(
            [postgres, "-D", str(data), *options],
            lambda: _connects(settings),
            folder / "postgresql.log",
            _clean_environment(),
            home,
            account,
            signal.SIGINT,  # "fast": open sessions are ended, not waited for
        )
        url = f"postgresql+psycopg2://stabmap@{LOOPBACK}:{port}/postgres"
        with _running(PostgreSQL(url, "stabmap", password, settings, program)) as server:
            yield server
    finally:
        if account:
            shutil.rmtree(home, ignore_errors=True)


@contextmanager
def mlflow_server(folder: Path, backend: PostgreSQL, auth: bool = True) -> Iterator[Server]:
    """An MLflow server by `deploy/mlflow/serve.sh`; its runs are in the database `mlflow`.

    Args:
        folder: holds its log and its artifacts.
        backend: the PostgreSQL server.
        auth: whether it asks for a password; without one it is started by `mlflow server` itself.
    """
    backend.database("mlflow")
    password, port = secrets.token_hex(16), free_port()
    artifacts = str(folder / "artifacts")
    environment = (
        _clean_environment()
        | dict(backend.environment)
        | {
            "PGDATABASE": "mlflow",
            "PYTHON": sys.executable,
            "MLFLOW_HOST": LOOPBACK,
            "MLFLOW_PORT": str(port),
            "MLFLOW_NAMES": LOOPBACK,
            "MLFLOW_WORKERS": "1",
            "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
    )
    open_server = [sys.executable, "-m", "mlflow", "server", "--serve-artifacts"]
    open_server += ["--backend-store-uri", "postgresql+psycopg2://"]
    command = [str(ROOT / "deploy/mlflow/serve.sh")] if auth else open_server
    url = f"http://{LOOPBACK}:{port}"
    client = {"MLFLOW_TRACKING_URI": url}
    if auth:
        client |= {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
    program = Program(command, lambda: _healthy(url), folder / "mlflow.log", environment, folder)
    with _running(Server(url, "admin", password, client, program)) as server:
        yield server


@contextmanager
def mlflow_on_file(folder: Path) -> Iterator[Server]:
    """An MLflow server as `mlflow server` starts it, with its runs in a sqlite file: no password.

    Args:
        folder: holds its log, its database and its artifacts.
    """
    port = free_port()
    environment = _clean_environment() | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    url = f"http://{LOOPBACK}:{port}"
    program = Program(command, lambda: _healthy(url), folder / "mlflow.log", environment, folder)
    with _running(Server(url, "", "", {"MLFLOW_TRACKING_URI": url}, program)) as server:
        yield server


def free_port() -> int:
    """A free port outside the range that clients are given: it is still free after a restart."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port


@contextmanager
def _running(server: ServerT) -> Iterator[ServerT]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _postgresql_program(name: str) -> str | None:
    # Debian keeps them out of the path.
    beside = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(beside[-1]) if beside else None)


def _other_account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.skip("PostgreSQL refuses to run as root, and there is no account postgres or nobody")


def _new_cluster(initdb: str, home: Path, account: pwd.struct_passwd | None, password: str) -> Path:
    secret, data = home / "password", home / "data"
    secret.touch(mode=0o600)
    secret.write_text(password)
    if account:
        for path in (home, secret):
            os.chown(path, account.pw_uid, account.pw_gid)
    command = [initdb, "-D", str(data), "-U", "stabmap", "-A", "scram-sha-256"]
    command += [f"--pwfile={secret}", "--encoding=UTF8", "--locale=C", "--no-sync"]
    done = subprocess.run(
        command,
        cwd=home,
        env=_clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **_as_account(account),
    )
    secret.unlink()
    if done.returncode:
        raise RuntimeError(f"initdb failed:\n{done.stderr}")
    return data


def _as_account(account: pwd.struct_passwd | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _clean_environment() -> dict[str, str]:
    """This process's environment without what would point a server elsewhere."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PG", "MLFLOW_"))}


def _connection(settings: Mapping[str, str]) -> dict[str, str]:
    return {
        "host": settings["PGHOST"],
        "port": settings["PGPORT"],
        "user": settings["PGUSER"],
        "dbname": settings["PGDATABASE"],
        "password": settings["PGPASSWORD"],
        "connect_timeout": "2",
    }


def _connects(settings: Mapping[str, str]) -> bool:
    try:
        psycopg2.connect(**_connection(settings)).close()
    except psycopg2.OperationalError:
        return False
    return True


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    family = [pid]
    for member in family:  # grows as it is read
        family += children.get(member, [])
    return family


def _alive(pid: int) -> bool:
    """Whether a process, or a thread that has outlived its first one, still holds its sockets."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return False
    return threads > 1 or stat.rpartition(")")[2].split()[0] != "Z"
