"""A process beside the driver that takes a part of what the driver has to compute."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    InvalidStateError,
)
from contextlib import suppress
from importlib import import_module
from threading import Lock
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainables.allocator import keep_freed_memory

#: What two processes have to share for the same sums to have the same bits.
LIBRARIES = ("numpy", "scipy", "optuna")
SETTINGS = ("OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES")


class _Caller:
    """What lives in the process: an actor, so that Ray does not end it when it is idle."""

    def __init__(self, niceness: int) -> None:
        # Ray gives workers a lower priority than the driver's, whose work this is.
        with suppress(OSError):  # only root may
            os.setpriority(os.PRIO_PROCESS, 0, niceness)
        keep_freed_memory()

    def call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        return function(*arguments, **keywords)


def surroundings(module: str) -> tuple[Any, ...]:
    """Which files a process computes with: a Ray that others started may have its own."""
    files = [import_module(name).__file__ for name in (module, *LIBRARIES)]
    return sys.version, *files, *(os.environ.get(name) for name in SETTINGS)


class SecondProcess(Executor):
    """One process on the driver's machine, which Ray starts, and ends with the driver.

    Always this machine: another one's linear algebra may round differently. It takes no CPU from
    the workers' share.

    Args:
        module: where the functions are that it is to call; importing it may take a while.
        ready: is told of this object, on a thread of Ray, once the process can be used: never,
            where it cannot begin or computes with other libraries than the driver.
    """

    def __init__(self, module: str, ready: Callable[[Executor], None]) -> None:
        here = ray.get_runtime_context().get_node_id()
        where = NodeAffinitySchedulingStrategy(here, soft=False)
        begin: Any = ray.remote(_Caller).options(num_cpus=0, scheduling_strategy=where)
        self._actor: Any = begin.remote(os.getpriority(os.PRIO_PROCESS, 0))
        self._asked: set[Future[Any]] = set()
        self._lock = Lock()
        expected = surroundings(module)

        def begun(first: Future[Any]) -> None:  # on Ray's thread: asking Ray here would block it
            if not (first.cancelled() or first.exception()) and first.result() == expected:
                ready(self)

        self.submit(surroundings, module).add_done_callback(begun)

    def submit(
        self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any
    ) -> Future[Any]:
        """Have a function of a module called.

        Raises:
            BrokenExecutor: it cannot be called there; so does the future where the process is lost.
            CancelledError: the process was ended; so does the future.
        """
        answer: Future[Any] = Future()

        def tell(given: Future[Any]) -> None:
            error = given.exception()
            with self._lock:
                self._asked.discard(answer)
            with suppress(InvalidStateError):  # it was cancelled
                if error is None:
                    answer.set_result(given.result())
                elif isinstance(error, RayTaskError):  # the function's own
                    answer.set_exception(error.cause)
                else:
                    answer.set_exception(BrokenExecutor(str(error)))

        with self._lock:
            if self._actor is None:  # nobody asks Ray, which would begin anew
                raise CancelledError
            try:
                asked = self._actor.call.remote(function, *arguments, **keywords)
            except Exception as error:
                raise BrokenExecutor(str(error)) from error
            self._asked.add(answer)
        asked.future().add_done_callback(tell)
        return answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the process; what it was asked for and has not answered is cancelled."""
        with self._lock:
            actor, self._actor = self._actor, None
            left, self._asked = self._asked, set()
        for answer in left:
            answer.cancel()
        if actor is not None and ray.is_initialized():
            with suppress(Exception):  # Ray is being lost, and the process with it
                ray.kill(actor)
