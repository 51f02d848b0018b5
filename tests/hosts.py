"""Three hosts on this machine: network namespaces on a bridge, each with a raylet of its own.

A host can be cut off and joined again, or lost with all that runs on it. The bridge lies in a
namespace too, so the machine's own network is left alone and all links go with the namespaces.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PORT = 6379
HEAD = ["--head", f"--port={PORT}", "--include-dashboard=false"]
GPUS = 2
#: Ray by default calls a silent host dead after 30 s and more. The test has no time for that.
FAILURE_DETECTION = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "4",
}
#: What a worker runs as while it trains: Ray puts the method's name into the process's title.
TRAINING = "Trainable.train"


@dataclass(frozen=True)
class Host:
    """A network namespace with an address of its own."""

    namespace: str
    bridge: str
    number: int
    folder: Path
    environment: Mapping[str, str]

    @property
    def address(self) -> str:
        return f"10.77.0.{self.number + 1}"

    @property
    def link(self) -> str:
        """The bridge's end of its cable."""
        return f"host{self.number}"

    @property
    def log(self) -> Path:
        """What its raylet says."""
        return self.folder / f"{self.link}.log"

    def popen(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """A program on this host, with a temporary folder that no other host sees."""
        hidden = ["sh", "-c", 'mount -t tmpfs tmpfs "$TMPDIR" && exec "$@"', "sh"]
        with log.open("ab") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *hidden, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**self.environment, "TMPDIR": str(self.folder / "temporary")},
                cwd=ROOT,
                start_new_session=True,
            )

    def start_ray(self, head: Host | None = None) -> subprocess.Popen[bytes]:
        """A raylet; with GCS and all where there is no other head."""
        what = [f"--address={head.address}:{PORT}"] if head else HEAD
        what = [*what, f"--node-ip-address={self.address}", f"--temp-dir={self.folder / self.link}"]
        what += [f"--num-gpus={GPUS}", f"--num-cpus={GPUS}", "--object-store-memory=200000000"]
        what += ["--disable-usage-stats", "--block"]
        ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start"]
        return self.popen([*ray, *what], self.log)

    def pids(self) -> list[int]:
        """All processes on this host."""
        return [int(pid) for pid in _ip("netns", "pids", self.namespace).split()]

    def training(self) -> list[int]:
        """The workers that train at this moment."""
        found = []
        for pid in self.pids():
            with suppress(OSError):
                if TRAINING in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(pid)
        return found

    def cut_off(self) -> None:
        """Pull the cable."""
        _ip("-n", self.bridge, "link", "set", self.link, "down")

    def join(self) -> None:
        """Put the cable back."""
        _ip("-n", self.bridge, "link", "set", self.link, "up")

    def lose(self) -> None:
        """End everything on this host at once, as a lost machine does."""
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


@contextmanager
def hosts(count: int = 3) -> Iterator[list[Host]]:
    """Hosts that see each other, the first one with the head of a Ray cluster of all.

    Skips the test where there is no `ip` or where it may not make namespaces.
    """
    if shutil.which("ip") is None:
        pytest.skip("ip is not installed: apt-get install iproute2")
    folder = Path(tempfile.mkdtemp(prefix="stabmap-hosts-", dir="/tmp"))
    (folder / "temporary").mkdir()
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = _environment(token)
    names = [f"{folder.name}-{n}" for n in range(count)]
    made = [Host(n, folder.name, i, folder, environment) for i, n in enumerate(names)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        _lay_cables(folder.name, made)
        processes.append(made[0].start_ray())
        _wait_for_ray(made[0], processes[0])
        processes += [host.start_ray(made[0]) for host in made[1:]]
        for host, process in zip(made, processes, strict=True):
            _wait_for_ray(host, process)
        yield made
    finally:
        for host in made:
            with suppress(subprocess.CalledProcessError):
                host.lose()
        for process in processes:
            process.kill()
            process.wait()
        for name in (*names, folder.name):
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", name)
        shutil.rmtree(folder, ignore_errors=True)


def _environment(token: Path) -> dict[str, str]:
    """What Ray and a sweep on such a host need; nothing that would lead them elsewhere."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
    return {
        **kept,
        **FAILURE_DETECTION,
        # Else the second lost host is told of, if at all, as a repetition of the first.
        "RAY_DEDUP_LOGS": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout


def _lay_cables(bridge: str, made: Sequence[Host]) -> None:
    try:
        _ip("netns", "add", bridge)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    _ip("-n", bridge, "link", "add", "bridge", "type", "bridge")
    _ip("-n", bridge, "link", "set", "bridge", "up")
    for host in made:
        space = host.namespace
        _ip("netns", "add", space)
        cable = ("type", "veth", "peer", "name", host.link, "netns", bridge)
        _ip("-n", space, "link", "add", "eth0", *cable)
        _ip("-n", bridge, "link", "set", host.link, "master", "bridge", "up")
        _ip("-n", space, "address", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", space, "link", "set", "eth0", "up")
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "route", "add", "default", "dev", "eth0")  # Ray asks which way is out


def _wait_for_ray(host: Host, process: subprocess.Popen[bytes], limit: float = 120.0) -> None:
    """Until the raylet says that it runs. RuntimeError with its last words if it does not."""
    deadline = time.monotonic() + limit
    while "Ray runtime started" not in (said := host.log.read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no raylet on {host.namespace}:\n{said[-2000:]}")
        time.sleep(0.1)
