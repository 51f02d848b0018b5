"""What a sweep trains on, as MLflow shows it: name, digest, size, and what it stands in for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sweeps.spec import SweepSpec


@dataclass(frozen=True)
class Dataset:
    """A task's data.

    Args:
        name: the task's name.
        digest: of all training and test data, to the bit.
        source: the task with its options, which make the data.
        examples: number of examples for training and for testing.
        stand_in: what the data stand in for; None where they are the real thing.
    """

    name: str
    digest: str
    source: dict[str, Any]
    examples: tuple[int, int]
    stand_in: str | None


def dataset_of(spec: SweepSpec) -> Dataset:
    """The data of a sweep's task.

    Raises:
        Exception: whatever the task raises.
    """
    from trainables.sharing import digest
    from trainables.tasks import get_task

    task = get_task(spec.task_name, **spec.task_options)
    parts = task.train_data(), task.test_data()
    train, test = (len(inputs) for inputs, _ in parts)
    source = {"task": spec.task_name, **spec.task_options}
    stand_in = task.stand_in
    found = digest(tensor for part in parts for tensor in part)[:16]
    return Dataset(spec.task_name, found, source, (train, test), stand_in)
