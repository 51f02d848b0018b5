"""A sweep whose worker, driver, MLflow server and PostgreSQL are killed in turn while it runs.

Everything random comes from one seed: who is killed when, and how long a server stays away. What
the sweep is doing at that moment is not in its hand.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sql
from mlflow import MlflowClient
from servers import ROOT, PostgreSQL, Server, mlflow_server, postgresql

from sweeps.rounds import Rounds
from sweeps.spec import load_spec
from trainables.evaluate import evaluate
from trainables.tasks import get_task

VICTIMS = ("worker", "driver", "MLflow", "PostgreSQL")
#: Seconds that a killed server stays away.
AWAY = (1.0, 5.0)
#: Results between two kills.
BETWEEN = (1, 8)
#: By this variable all processes of a sweep are known, also those that outlive their driver.
MARK = "STABMAP_TEST_MARK"
#: What Ray calls a worker that trains.
WORKER = "Trainable"
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")

SPEC: dict[str, Any] = {
    "task": {"name": "one-layer-cnn", "image": 64},
    "axes": {
        "lr": {"scale": "log", "low": 0.003, "high": 0.5},
        "weight_decay": {"scale": "log", "low": 4, "high": 256},
    },
    # Its proposals depend on the results, so a result that differs or is missing would show.
    "search": {"method": "tpe", "batch": 16},
    "resources": {"pack": 4, "workers": 2},
}


@dataclass
class Report:
    """What a sweep under kills has come to.

    Args:
        kills: who was killed, in order.
        killed_at: the number of results at each kill.
        points: results in the store.
        lost: points of the budget without a result.
        doubled: results, rows and runs beyond the first of a point.
        running: MLflow runs that are left RUNNING.
        fsck: what `stabmap fsck` prints, and its exit code.
        left: processes that outlived the sweep.
        map: the map's file.
        seconds: from the first start to the end.
    """

    kills: list[str] = field(default_factory=list)
    killed_at: list[int] = field(default_factory=list)
    points: int = 0
    lost: int = 0
    doubled: int = 0
    running: int = 0
    fsck: tuple[int, str] = (-1, "")
    left: int = 0
    map: bytes = b""
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing of the kills is left to be seen."""
        return not (self.lost or self.doubled or self.running or self.fsck[0] or self.left)


class Driver:
    """`stabmap run` on this machine, as often as it takes.

    Args:
        folder: for the spec, the sweep and its log.
        spec: the sweep.
    """

    def __init__(self, folder: Path, spec: Mapping[str, Any]) -> None:
        self.home, self.log, self._path = folder / "home", folder / "log", folder / "sweep.yaml"
        folder.mkdir()
        self._path.write_text(json.dumps(spec))
        self._mark = secrets.token_hex(8)
        self._environment = {**os.environ, MARK: self._mark, "PYTHONPATH": _path()}
        self._process: subprocess.Popen[bytes] | None = None

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "stabmap", *words]

    def start(self) -> None:
        """Begin, or go on with the same command."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command("run", str(self._path), "-o", f"folder={self.home}"),
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    @property
    def code(self) -> int | None:
        """Exit code; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def kill(self) -> None:
        """`kill -9`, to the driver alone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pids(self, of: str = "", without: Sequence[str] = ()) -> list[int]:
        """All processes that it has started, and itself; by what they call themselves."""
        sign, found = f"{MARK}={self._mark}".encode(), []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                title = (path / "cmdline").read_text(errors="replace")
                if sign in (path / "environ").read_bytes().split(b"\0") and of in title:
                    found += [] if any(map(title.__contains__, without)) else [int(path.name)]
        return sorted(found)

    def results(self) -> list[dict[str, Any]]:
        """The results on disk."""
        logs = (self.home / "sweeps").glob("*/results.jsonl")
        lines = [line for log in logs for line in log.read_text().splitlines(keepends=True)]
        return [json.loads(line)["result"]["point"] for line in lines if line.endswith("\n")]

    def fsck(self) -> tuple[int, str]:
        """`stabmap fsck`: exit code and output."""
        [sweep] = (self.home / "sweeps").iterdir()
        done = subprocess.run(
            self._command("fsck", str(sweep)),
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, (done.stdout + done.stderr).strip()

    def map(self) -> bytes:
        """The map's file."""
        [path] = self.home.glob("sweeps/*/map/map.parquet")
        return path.read_bytes()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        while pids := [pid for pid in self.pids() if pid != os.getpid()]:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._process is not None:
                self._process.poll()
            time.sleep(0.05)


def run_under_kills(
    folder: Path, spec: Mapping[str, Any], kills: int, seed: int, limit: float
) -> Report:
    """Run a sweep to its end in spite of so many kills.

    Args:
        folder: an empty folder.
        spec: the sweep, without addresses.
        kills: how many; each of the four victims in turn, in an order that the seed gives.
        seed: of all that is random.
        limit: seconds after which it is given up.
    """
    chance, begin = random.Random(seed), time.monotonic()
    with _servers(folder) as (mlflow, database):
        results = database.database("stabmap")
        addresses = {"database": results, "tracking": {"address": mlflow.url}}
        report, until = Report(), begin + limit
        with Driver(folder / "struck", {**spec, **addresses}) as driver:
            with closing(_Executioner(driver, mlflow, database, chance)) as executioner:
                for victim in _order(kills, chance):
                    _wait_for_results(driver, chance.randint(*BETWEEN), until)
                    report.kills.append(victim)
                    report.killed_at.append(len(driver.results()))
                    print(f"{report.killed_at[-1]} results: kill -9 {victim}", file=sys.stderr)
                    executioner.kill(victim, until)
            _wait_for_end(driver, until)
            report.seconds = time.monotonic() - begin
            report.left = _survivors(driver)
            report.fsck = driver.fsck()
            _count(report, driver, spec["budget"]["points"], mlflow, results)
            report.map = driver.map()
    return report


def run_undisturbed(folder: Path, spec: Mapping[str, Any], limit: float) -> bytes:
    """The map's file of the same sweep without servers and kills."""
    with Driver(folder / "whole", spec) as driver:
        _wait_for_end(driver, time.monotonic() + limit)
        return driver.map()


def evaluate_all(folder: Path, spec: Mapping[str, Any]) -> bytes:
    """The map's file without Ray, packs, store and records: proposals and trainings alone."""
    loaded = load_spec(spec)
    rounds, task = Rounds(loaded), get_task(loaded.task_name, **loaded.task_options)
    while proposed := rounds.propose():
        points = [point for _, point in proposed]
        results = evaluate(points, task, **asdict(loaded.training))
        for (number, _), result in zip(proposed, results, strict=True):
            rounds.record(number, result)
    path = folder / "evaluated.parquet"
    rounds.map().write_parquet(path)
    return path.read_bytes()


@contextmanager
def _servers(folder: Path) -> Iterator[tuple[Server, PostgreSQL]]:
    places = [folder / name for name in ("postgresql", "mlflow")]
    for place in places:
        place.mkdir()
    with postgresql(places[0]) as database, mlflow_server(places[1], database) as mlflow:
        secret = {**mlflow.environment, "PGPASSWORD": database.password}
        former = {name: os.environ.get(name) for name in secret}
        os.environ.update(secret)  # also for those who count at the end
        try:
            yield mlflow, database
        finally:
            for name, value in former.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _order(kills: int, chance: random.Random) -> list[str]:
    rounds = -(-kills // len(VICTIMS))
    return [v for _ in range(rounds) for v in chance.sample(VICTIMS, len(VICTIMS))][:kills]


def _wait_for_results(driver: Driver, count: int, until: float) -> None:
    """Until so many more results are on disk."""
    wanted = len(driver.results()) + count
    while len(driver.results()) < wanted:
        _check(driver, until)
        time.sleep(0.05)


def _check(driver: Driver, until: float) -> None:
    if driver.code is not None or time.monotonic() > until:
        ending = "it takes too long" if driver.code is None else f"it ended with {driver.code}"
        raise RuntimeError(f"{ending}:\n{driver.log.read_text()[-3000:]}")


class _Executioner:
    """Kills with `kill -9`. The driver is started again at once, a server after a while.

    Meanwhile others may be killed, so a driver may find no server when it begins.
    """

    def __init__(
        self, driver: Driver, mlflow: Server, database: PostgreSQL, chance: random.Random
    ) -> None:
        self._driver, self._chance = driver, chance
        self._servers: dict[str, Server] = {"MLflow": mlflow, "PostgreSQL": database}
        self._revivals: dict[str, Future[None]] = {}
        self._threads = ThreadPoolExecutor(len(self._servers))

    def kill(self, victim: str, until: float) -> None:
        if victim == "worker":
            self._kill_worker(until)
        elif victim == "driver":
            self._driver.kill()
            self._driver.start()
        else:
            self._wait_for(victim)
            server, away = self._servers[victim], self._chance.uniform(*AWAY)
            server.kill()
            self._revivals[victim] = self._threads.submit(_revive, server, away)

    def _kill_worker(self, until: float) -> None:
        while not (workers := self._driver.pids(of=WORKER)):
            _check(self._driver, until)
            time.sleep(0.05)
        with suppress(ProcessLookupError):
            os.kill(self._chance.choice(workers), signal.SIGKILL)

    def _wait_for(self, server: str) -> None:
        if server in self._revivals:
            self._revivals.pop(server).result()

    def close(self) -> None:
        """Until all servers are back."""
        for server in self._servers:
            self._wait_for(server)
        self._threads.shutdown()


def _revive(server: Server, away: float) -> None:
    time.sleep(away)
    for left in range(2, -1, -1):  # MLflow gives up where PostgreSQL is away: so it is tried again
        try:
            server.start()
        except RuntimeError:
            if not left:
                raise
        else:
            return


def _wait_for_end(driver: Driver, until: float) -> None:
    while driver.code is None and time.monotonic() < until:
        time.sleep(0.1)
    if driver.code != 0:
        raise RuntimeError(f"{driver.code}: {driver.log.read_text()[-3000:]}")


def _survivors(driver: Driver, patience: float = 20.0) -> int:
    """Processes of the sweep that are there when they had time to end.

    Without Ray's agents: after a kill they look for their cluster for a minute or two, then end.
    """
    deadline = time.monotonic() + patience
    while (left := driver.pids(without=AGENTS)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return len(left)


def _count(report: Report, driver: Driver, budget: int, mlflow: Server, database: str) -> None:
    """Points that are missing or there twice: in the store, in PostgreSQL and in MLflow."""
    kept = Counter(json.dumps(point, sort_keys=True) for point in driver.results())
    runs = _runs(mlflow)
    children = Counter(
        run.data.tags["stabmap.point"] for run in runs if "stabmap.point" in run.data.tags
    )
    parents = len(runs) - sum(children.values())
    rows = _rows(database)
    report.points = len(kept)
    report.lost = 3 * budget - len(kept) - len(children) - rows
    report.doubled = sum(c - 1 for c in (*kept.values(), *children.values())) + parents - 1
    report.running = sum(run.info.status == "RUNNING" for run in runs)


def _runs(mlflow: Server) -> Sequence[Any]:
    client = MlflowClient(mlflow.url)
    experiments = [e.experiment_id for e in client.search_experiments()]
    found, token = [], None
    while True:
        page = client.search_runs(experiments, max_results=1000, page_token=token)
        found += list(page)
        token = page.token
        if not token:
            return found


def _rows(database: str) -> int:
    engine = sql.create_engine(database)
    with engine.connect() as connection:
        count = connection.scalar(sql.text("select count(*) from stabmap_results"))
    engine.dispose()
    return int(count or 0)


def _path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
