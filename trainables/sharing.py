"""What all trajectories of a seed share, checked by hash: data, their order, initial weights.

Two k can only be compared where nothing else differs. The data and the weights come from a task's
own methods, so these are asked twice, the second time with other global random numbers.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Iterable, Iterator
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
#: What was found in this process before, by task and seed.
_known: dict[tuple[Task, str, int], dict[str, str]] = {}
MOST_KNOWN = 64

#: Which method of a task each hash is of.
METHODS = {"data": "train_data()", "weights": "module(seed)"}


def shared(bench: Bench, seed: int) -> dict[str, str]:
    """Hashes of what trajectories of one seed share: `data`, `order`, `weights`.

    Raises:
        NotReproducibleError: a method of the task gives something else when it is asked again.
    """
    key = (bench.task, bench.training.device, seed)
    try:
        if key in _known:
            return _known[key]
    except TypeError:  # a task that has no hash
        return _found(bench, seed)
    _known[key] = _found(bench, seed)
    if len(_known) > MOST_KNOWN:
        del _known[next(iter(_known))]
    return _known[key]


def _found(bench: Bench, seed: int) -> dict[str, str]:
    first = {"data": digest([bench.inputs64, bench.targets64]), "weights": _weights(bench, seed)}
    with _other_random_numbers():
        again = {"data": digest(bench.task.train_data()), "weights": _weights(bench, seed)}
    for what, method in METHODS.items():
        if first[what] != again[what]:
            raise NotReproducibleError(
                f"task {bench.task.name}: {method} gives other {what} when it is called again, so "
                "trajectories of one seed would not share them; draw all random numbers from a "
                "generator with a fixed seed"
                + (", that of the argument" if what == "weights" else "")
            )
    batches = [bench.batch(seed, step) for step in range(ORDER_STEPS)]
    order = digest(rows for rows in batches if isinstance(rows, Tensor))
    return {"data": first["data"], "order": order, "weights": first["weights"]}


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
def _other_random_numbers() -> Iterator[None]:
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


def _weights(bench: Bench, seed: int) -> str:
    return digest(bench.network(seed, torch.float64).state_dict().values())


def digest(tensors: Iterable[Any]) -> str:
    """Hash of shapes, dtypes and bits."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy())
    return found.hexdigest()
