"""A process beside the driver that takes a part of what the driver has to compute."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import suppress
from importlib import import_module
from threading import Lock
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from trainables.allocator import keep_freed_memory


class _Caller:
    """What lives in the process: an actor, so that Ray does not end it when it is idle."""

    def __init__(self) -> None:
        keep_freed_memory()

    def call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        return function(*arguments, **keywords)


class SecondProcess(Executor):
    """One process on the driver's machine, which Ray starts, and ends with the driver.

    Always this machine: another one's linear algebra may round differently. It takes no CPU from
    the workers' share.

    Args:
        module: where the functions are that it is to call; importing it may take a while.
        ready: is told of this object, on a thread of Ray, once the process can be used.
    """

    def __init__(self, module: str, ready: Callable[[Executor], None]) -> None:
        here = ray.get_runtime_context().get_node_id()
        where = NodeAffinitySchedulingStrategy(here, soft=False)
        begin: Any = ray.remote(_Caller).options(num_cpus=0, scheduling_strategy=where)
        self._actor: Any = begin.remote()
        self._asked: set[Future[Any]] = set()
        self._lock = Lock()

        def begun(first: Future[Any]) -> None:
            if first.exception() is None:
                ready(self)

        self.submit(import_module, module).add_done_callback(begun)

    def submit(
        self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any
    ) -> Future[Any]:
        """Have a function of a module called; `BrokenExecutor` where the process is lost."""
        answer: Future[Any] = Future()

        def tell(given: Future[Any]) -> None:
            error = given.exception()
            with self._lock:
                if answer not in self._asked:
                    return
                self._asked.remove(answer)
            if error is None:
                answer.set_result(given.result())
            elif isinstance(error, RayTaskError):  # the function's own
                answer.set_exception(error.cause)
            else:
                answer.set_exception(BrokenExecutor(str(error)))

        with self._lock:
            if self._actor is None:  # nobody asks Ray, which would begin anew
                raise BrokenExecutor("the process was ended")
            self._asked.add(answer)
            asked = self._actor.call.remote(function, *arguments, **keywords)
        asked.future().add_done_callback(tell)
        return answer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the process; what it was asked for and has not answered is `BrokenExecutor`."""
        with self._lock:
            actor, self._actor = self._actor, None
            left, self._asked = self._asked, set()
        with suppress(Exception):  # Ray is gone, and the process with it
            ray.kill(actor)
        for answer in left:
            answer.set_exception(BrokenExecutor("the process was ended"))
