"""What all trajectories of a seed share, checked by hash: data, their order, initial weights.

Two k can only be compared where nothing else differs. The data and the weights come from a task's
own methods, so these are asked twice, the second time with other global random numbers.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.domain import NotReproducibleError
from trainables.tasks import Task
from trainables.trajectory import Bench

log = logging.getLogger("stabmap")

#: Steps whose batches are hashed.
ORDER_STEPS = 8
#: Of the global generators at the second time of asking.
OTHER_SEED = 20_241
#: What was found in this process before, by task and device, and by seed for weights.
_known: dict[Hashable, str] = {}
MOST_KNOWN = 64

#: The method of a task that each hash is of, and where its random numbers are to come from.
METHODS = {
    "data": ("train_data()", "a generator with a fixed seed"),
    "weights": ("module(seed)", "a generator with the seed of the argument"),
}


def shared(bench: Bench, seed: int, order: int | None = None) -> dict[str, str]:
    """Hashes of what trajectories of one seed share: `data`, `order`, `weights`.

    The data are asked for once a process and task.

    Args:
        bench: the task with its data.
        seed: of the initial weights.
        order: seed of the data order; None for the same.

    Raises:
        NotReproducibleError: a method of the task gives something else when it is asked again.
    """

    def data() -> str:
        return digest(bench.task.train_data())

    def weights() -> str:
        return digest(bench.network(seed, torch.float64).state_dict().values())

    def loaded() -> str:
        return digest([bench.inputs64, bench.targets64])

    here = bench.task, bench.training.device
    by = seed if order is None else order
    batches = [bench.batch(by, step) for step in range(ORDER_STEPS)]
    return {
        "data": _steady(bench.task, "data", here, loaded, data),
        "order": digest(rows for rows in batches if isinstance(rows, Tensor)),
        "weights": _steady(bench.task, "weights", (*here, seed), weights, weights),
    }


def warn_of_changes(task: Task, before: dict[str, str], now: dict[str, str]) -> None:
    """A line in the log where a stopped training goes on with something else."""
    changed = [what for what in now if before.get(what) not in (None, now[what])]
    if changed:
        log.warning(
            "task %s: %s not as they were when this pack was stopped: its results are not those of "
            "an uninterrupted run",
            task.name,
            " and ".join(changed),
        )


@contextmanager
def other_random_numbers() -> Iterator[None]:
    """The global generators elsewhere; they are put back afterwards."""
    kept = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(OTHER_SEED)
            np.random.seed(OTHER_SEED)
            random.seed(OTHER_SEED)
            yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])


def _steady(
    task: Task, what: str, key: Hashable, first: Callable[[], str], again: Callable[[], str]
) -> str:
    """A hash that is the same when it is asked for again."""
    try:
        if key in _known:
            return _known[key]
    except TypeError:  # a task that has no hash
        key = None
    found = first()
    with other_random_numbers():
        same = again() == found
    if not same:
        method, source = METHODS[what]
        raise NotReproducibleError(
            f"task {task.name}: {method} gives other {what} when it is called again, so "
            f"trajectories of one seed would not share them; draw all random numbers from {source}"
        )
    if key is not None:
        _known[key] = found
        if len(_known) > MOST_KNOWN:
            del _known[next(iter(_known))]
    return found


def digest(tensors: Iterable[Any]) -> str:
    """Hash of shapes, dtypes and bits."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy())
    return found.hexdigest()
