"""Sweeps on a Ray cluster: submitted as jobs, followed through their log, asked by helper jobs.

A job runs on the head of the cluster and outlives the client that submitted it. All that is known
from afar is what Ray keeps of a job: its metadata, its status and its log.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

# Ray reads this when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps import shipment
from sweeps.access import TOKEN_MODE, check_head, knock, token, token_mode
from sweeps.shipment import ENVIRONMENT, packed
from sweeps.spec import SweepSpec
from sweeps.status import SweepStatus, pick, plain
from trainables.domain import StabmapError, UnreachableError

#: Seconds within which the head answers one request.
PATIENCE = 30.0
#: Seconds within which Ray starts a helper job, and between two looks at it.
START, LOOK = 60.0, 0.5
#: How our jobs are marked; metadata is shown to whoever may see the dashboard.
KIND, HASH, TITLE, POINTS, FOLDER = (
    f"stabmap.{name}" for name in ("kind", "hash", "title", "points", "folder")
)
#: States of a job that Ray has not started, or that is running.
ALIVE = {JobStatus.PENDING: "waiting", JobStatus.RUNNING: "running"}
#: The driver's progress line, and its last words where it ended before its time.
PROGRESS = re.compile(
    r"^points (\d+)(?:/(\d+))?  stable (\d+)  restrained (\d+)  divergent (\d+)"
    r"(?:  about (?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)? left)?",
    re.MULTILINE,
)
ENDED = re.compile(r"^(paused|stopped|interrupted|out of time): ", re.MULTILINE)
FAILED = re.compile(r"^error: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Finished:
    """How a helper job ended: its exit code and what it wrote."""

    code: int
    log: str


class _Client(JobSubmissionClient):
    """Ray's client, with an end to its patience and errors in one line."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        try:
            return super()._do_request(method, endpoint, **{"timeout": PATIENCE, **options})
        except AuthenticationError as error:
            remedy = (
                "put the cluster's token into RAY_AUTH_TOKEN or ~/.ray/auth_token"
                if token_mode()
                else "set RAY_AUTH_MODE=token and the cluster's token"
            )
            raise UnreachableError(
                f"address = {self._address!r}: the head refuses this token, or there is none; "
                f"{remedy}"
            ) from error
        except OSError as error:  # requests' errors are OSErrors
            raise UnreachableError(
                f"address = {self._address!r}: the head does not answer "
                f"({type(error).__name__}); see that the cluster is up"
            ) from error


@contextmanager
def _named_address() -> Iterator[None]:
    """Ray would rather take an address from these than the one that was given and checked."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    former = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(former)


class Cluster:
    """The sweeps of a Ray cluster, through the jobs server of its head.

    Args:
        address: of the dashboard, such as `http://localhost:8265`.
        insecure: whether a cluster without a token is allowed.

    Raises:
        InputError: the address or the token breaks a law.
        UnreachableError: no head answers there, it refuses the token, or it serves anyone.
    """

    def __init__(self, address: str, insecure: bool = False) -> None:
        self.address = check_head(address, insecure)
        self._insecure = ["--insecure"] if insecure else []
        logging.getLogger("ray").setLevel(logging.ERROR)
        for part in ("job.sdk", "dashboard_sdk"):
            logging.getLogger(f"ray.dashboard.modules.{part}").setLevel(logging.ERROR)
        with _named_address(), self._plainly():
            # The very token that was checked, not one that Ray has read before.
            known = token() if token_mode() else None
            headers = {"Authorization": f"Bearer {known}"} if known else None
            self._client = _Client(self.address, headers=headers)

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """What the head refuses is an error in one line."""
        try:
            yield
        except (RuntimeError, ConnectionError) as error:
            first = plain(str(error))[:200]
            raise UnreachableError(
                f"address = {self.address!r}: the head refuses ({first}); see its dashboard"
            ) from error

    # ----------------------------------------------------------------- reading

    def _jobs(self) -> list[JobDetails]:
        """The jobs that ran sweeps, the latest first."""
        with self._plainly():
            jobs = self._client.list_jobs()
        ours = [j for j in jobs if j.submission_id and (j.metadata or {}).get(KIND) == "sweep"]
        return sorted(ours, key=lambda job: (job.start_time or 0, _attempt(job)), reverse=True)

    def sweeps(self) -> tuple[SweepStatus, ...]:
        """Every sweep that was submitted to the cluster, as its latest job left it."""
        return tuple(self._read(status, job) for status, job in self._latest())

    def find(self, text: str) -> SweepStatus:
        """The sweep that a text names: its hash, a beginning of it, its title or a job's id.

        Raises:
            InputError: there is none, or more than one.
        """
        latest = self._latest()
        found = pick(text, tuple(status for status, _ in latest), f"on {self.address}")
        return next(self._read(status, job) for status, job in latest if status == found)

    def _latest(self) -> list[tuple[SweepStatus, JobDetails]]:
        latest: dict[str, tuple[SweepStatus, JobDetails]] = {}
        for job in self._jobs():
            known = job.metadata or {}
            status = SweepStatus(
                hash=plain(known.get(HASH, "")),
                title=plain(known.get(TITLE, "")),
                state=ALIVE.get(job.status, "unknown"),
                limit=int(known[POINTS]) if known.get(POINTS, "").isdecimal() else None,
                updated=(job.end_time or job.start_time or 0) / 1000 or None,
                job=job.submission_id,
            )
            latest.setdefault(status.hash, (status, job))
        return list(latest.values())

    def _read(self, status: SweepStatus, job: JobDetails) -> SweepStatus:
        """With what the log of its job says."""
        log = ""
        if job.status != JobStatus.PENDING:
            with suppress(RuntimeError):  # the node that wrote it may be gone
                log = self._client.get_job_logs(str(job.submission_id))
        return _from_log(_ended(status, job, log), log)

    # ----------------------------------------------------------------- submitting

    def submit(self, spec: SweepSpec) -> SweepStatus:
        """Ship a spec and the code, and have the cluster run it; returns at once.

        Args:
            spec: the sweep, from `load_spec`.

        Returns:
            The sweep, with the id of its job.

        Raises:
            StabmapError: it runs there already.
            UnreachableError: the head cannot be used.
        """
        words = [*shipment.words(spec), *self._insecure]
        facts = {HASH: spec.hash, TITLE: spec.title}
        if spec.budget.points is not None:
            facts[POINTS] = str(spec.budget.points)
        if "folder" in spec.model_fields_set:
            facts[FOLDER] = spec.folder
        return self._start(words, facts, spec)

    def resume(self, status: SweepStatus) -> SweepStatus:
        """Go on with a sweep of this cluster, from the spec that is kept there.

        Raises:
            StabmapError: it runs there already.
            UnreachableError: the head cannot be used.
        """
        job = next(job for job in self._jobs() if job.submission_id == status.job)
        facts = {key: text for key, text in (job.metadata or {}).items() if key != KIND}
        words = ["resume", status.hash, "--address", "auto", *_folder(facts), *self._insecure]
        return self._start(words, facts, None)

    def _start(
        self, words: Sequence[str], facts: dict[str, str], spec: SweepSpec | None
    ) -> SweepStatus:
        former = [job for job in self._jobs() if (job.metadata or {}).get(HASH) == facts[HASH]]
        for job in former:
            if job.status in ALIVE:
                raise _runs_already(facts[HASH], str(job.submission_id))
        # A name that is taken is an error of the server; only here is it seen what it means.
        name = f"stabmap-{facts[HASH]}-{1 + max(map(_attempt, former), default=0)}"
        try:
            self._send(words, name, {KIND: "sweep", **facts}, spec)
        except RuntimeError as error:
            if "already" in str(error):
                raise _runs_already(facts[HASH], name) from error
            with self._plainly():
                raise
        limit = int(facts[POINTS]) if POINTS in facts else None
        return SweepStatus(facts[HASH], title=facts[TITLE], state="waiting", limit=limit, job=name)

    def _send(
        self, words: Sequence[str], name: str, facts: dict[str, str], spec: SweepSpec | None
    ) -> None:
        with packed(spec) as folder:
            self._client.submit_job(
                entrypoint=shlex.join(["python", "-m", "stabmap", *words]),
                submission_id=name,
                runtime_env={"working_dir": str(folder), "env_vars": dict(ENVIRONMENT)},
                metadata=facts,
            )

    # ----------------------------------------------------------------- asking

    def ask(self, status: SweepStatus, request: str, timeout: float) -> str:
        """Ask a sweep to end in good order, and wait for it.

        Args:
            status: the sweep, from `find`.
            request: `pause` or `stop`.
            timeout: seconds that its driver is given.

        Returns:
            What happened, in words.

        Raises:
            StabmapError: there is nothing to ask.
            UnreachableError: the head cannot be used, or the driver did not answer.
        """
        if status.state == "waiting":
            return self._withdraw(status, request)
        job = next(job for job in self._jobs() if job.submission_id == status.job)
        folder = _folder(job.metadata or {})
        words = [request, status.hash, "--timeout", f"{timeout:g}", *folder]
        done = self.helper(words, timeout + START)
        if done.code:
            raise self.failure(done)
        self._await(str(status.job), timeout)  # so that it can be resumed at once
        return (done.log.strip().splitlines() or [f"sweep {status.hash}: {request} done"])[-1]

    def _withdraw(self, status: SweepStatus, request: str) -> str:
        if request != "stop":
            raise StabmapError(
                f"sweep {status.hash} waits for Ray to start it: there is nothing to {request}; "
                "stop takes it back"
            )
        with self._plainly():
            self._client.stop_job(str(status.job))
        return f"sweep {status.hash} is taken back before it was started"

    def helper(self, words: Sequence[str], timeout: float) -> Finished:
        """Run a verb on the head, wait for its end and forget the job.

        Args:
            words: of the command line, after `stabmap`.
            timeout: seconds.

        Raises:
            UnreachableError: Ray did not start it, or it did not end in time.
        """
        name = f"stabmap-{words[0]}-{uuid.uuid4().hex[:12]}"
        with self._plainly():
            self._send(words, name, {KIND: "helper"}, None)
            job = self._await(name, timeout)
            if not job.status.is_terminal():
                self._client.stop_job(name)
                raise UnreachableError(
                    f"address = {self.address!r}: job {name} did not end in {timeout:g} s; see its "
                    "log in the dashboard"
                )
            log = self._client.get_job_logs(name)
        if job.driver_exit_code is None:
            raise UnreachableError(
                f"address = {self.address!r}: Ray did not run job {name} "
                f"({plain(job.message or str(job.status))[:200]}); see the dashboard"
            )
        with suppress(RuntimeError, UnreachableError):
            self._client.delete_job(name)
        return Finished(job.driver_exit_code, log)

    def _await(self, name: str, timeout: float) -> JobDetails:
        """A job when it has ended, or when the time is over."""
        until = time.monotonic() + timeout
        with self._plainly():
            while True:
                job = self._client.get_job_info(name)
                if job.status.is_terminal() or time.monotonic() >= until:
                    return job
                time.sleep(LOOK)

    def failure(self, done: Finished) -> StabmapError:
        """What a helper job says of its failure, with its exit code."""
        said = FAILED.findall(done.log) or [plain(done.log)[-300:] or "it said nothing"]
        error = StabmapError(f"on {self.address}: {plain(said[-1])}")
        error.exit_code = done.code or 1
        return error


def _attempt(job: JobDetails) -> int:
    last = (job.submission_id or "").rpartition("-")[2]
    return int(last) if last.isdecimal() else 0


def _folder(facts: dict[str, str]) -> list[str]:
    """Where a sweep lies, if its spec says so."""
    return ["--folder", facts[FOLDER]] if FOLDER in facts else []


def _runs_already(spec_hash: str, job: str) -> StabmapError:
    return StabmapError(
        f"sweep {spec_hash} runs on the cluster already, as job {job}; follow it with stabmap "
        "watch, or stop it first"
    )


def _ended(status: SweepStatus, job: JobDetails, log: str) -> SweepStatus:
    """With the state in which its job left it."""
    if status.alive:
        return status
    if job.status == JobStatus.SUCCEEDED:
        return replace(status, state="complete")
    said = ENDED.findall(log)
    if said:
        return replace(status, state="short" if said[-1] == "out of time" else said[-1])
    if job.status == JobStatus.STOPPED:
        return replace(status, state="interrupted")
    errors = FAILED.findall(log) or [job.message or "its job failed"]
    return replace(status, state="failed", error=plain(errors[-1])[:300])


def _from_log(status: SweepStatus, log: str) -> SweepStatus:
    """With the numbers of the last progress line."""
    lines = PROGRESS.findall(log)
    if not lines:
        return status
    done, limit, *rest = lines[-1]
    stable, restrained, divergent, hours, minutes, seconds = rest
    counts = {"stable": stable, "restrained": restrained, "divergent": divergent}
    left = None
    if status.alive and (hours or minutes or seconds):
        left = 3600.0 * int(hours or 0) + 60.0 * int(minutes or 0) + float(seconds or 0)
    return replace(
        status,
        points=int(done),
        limit=int(limit) if limit else status.limit,
        counts={name: int(count) for name, count in counts.items()},
        left=left,
    )


# --------------------------------------------------------------------------- nodes


@dataclass(frozen=True)
class Answer:
    """What a node of a cluster said.

    Args:
        node: its name, as Ray knows it.
        gpus: GPUs that Ray gives out there.
        found: what the question returned; None where it failed.
        error: why it failed.
        skew: seconds by which its clock is ahead of ours, as known from the quickest exchange.
        within: half of that exchange's round trip: the skew is known no better.
    """

    node: str
    gpus: float
    found: Any = None
    error: str | None = None
    skew: float = 0.0
    within: float = 0.0


class _Witness:
    """Lives on a node: answers a question, and tells the time."""

    def answer(self, question: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        return question(*arguments)

    def clock(self) -> float:
        return time.time()


def ask_nodes(
    address: str, question: Callable[..., Any], arguments: Sequence[Any], timeout: float = 60.0
) -> tuple[Answer, ...]:
    """Ask every node of a cluster a question, all at the same time.

    Args:
        address: `auto` or `host:port`.
        question: a function; it travels with its module, which may be unknown over there.
        arguments: its arguments.
        timeout: seconds that a node is given.

    Returns:
        An answer a node.

    Raises:
        UnreachableError: the cluster does not answer, or refuses the token.
    """
    if address != "auto":
        knock(address)
    modules = [sys.modules[name] for name in (question.__module__, __name__)]
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
    try:
        with _connected(address):
            nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
            witnesses = [_witness(node["NodeID"]) for node in nodes]
            asked = [witness.answer.remote(question, arguments) for witness in witnesses]
            each = zip(nodes, witnesses, asked, strict=True)
            return tuple(_answer(*them, timeout) for them in each)
    finally:
        for module in modules:
            ray.cloudpickle.unregister_pickle_by_value(module)  # type: ignore[no-untyped-call]


@contextmanager
def _connected(address: str) -> Iterator[None]:
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray has many kinds of failure
        first = plain(str(error) or repr(error))[:200]
        raise UnreachableError(
            f"address = {address!r}: Ray cannot be reached ({first}); start the cluster, or "
            f"give it the cluster's token ({TOKEN_MODE})"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _witness(node: str) -> Any:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": there, "max_restarts": 0}
    return ray.remote(_Witness).options(**options).remote()


def _answer(node: dict[str, Any], witness: Any, asked: Any, timeout: float) -> Answer:
    name = str(node["NodeManagerHostname"] or node["NodeManagerAddress"])
    gpus = float(node["Resources"].get("GPU", 0.0))
    try:
        found = ray.get(asked, timeout=timeout)
        trips = [_exchange(witness, timeout) for _ in range(5)]
    except Exception as error:  # the node's, Ray's, or the end of our patience
        lines = [plain(line) for line in str(error).splitlines() if line.strip()]
        return Answer(name, gpus, error=(lines or [repr(error)])[-1][:300])
    within, skew = min(trips)
    return Answer(name, gpus, found, None, skew, within)


def _exchange(witness: Any, timeout: float) -> tuple[float, float]:
    """Half of the round trip, and how far the clock there is ahead of its middle."""
    sent = time.time()
    there = ray.get(witness.clock.remote(), timeout=timeout)
    back = time.time()
    return (back - sent) / 2, there - (sent + back) / 2
