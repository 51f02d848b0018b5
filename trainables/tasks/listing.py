"""All tasks in a list: source, size, data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from trainables.domain import InputError
from trainables.tasks import get_task, task_class, task_names


@dataclass(frozen=True)
class Line:
    """What a list says of a task, with its default options.

    Args:
        name: of the task.
        source: where its setting comes from: paper and section.
        parameters: numbers that are trained.
        needs: data that its full size needs beyond the package; None for nothing.
        stand_in: what is trained on instead of that data; None where it is there.
        missing: why the data is not there; None where it is, or where none is needed.
    """

    name: str
    source: str
    parameters: int
    needs: str | None
    stand_in: str | None
    missing: str | None

    @property
    def data(self) -> str:
        """In a sentence."""
        if self.needs is None:
            return "Data: comes along."
        if self.missing is None and self.stand_in is None:
            return f"Data: {self.needs}: present."
        instead = f" Trains on {self.stand_in} instead." if self.stand_in else ""
        why = f" ({self.missing})" if self.missing else ""
        return f"Data: {self.needs}: not present{why}.{instead}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        present = self.needs is None or (self.missing is None and self.stand_in is None)
        return dataclasses.asdict(self) | {"present": present}


def listing(data_root: str | None = None) -> list[Line]:
    """A line for each task, sorted by name.

    Args:
        data_root: folder in which those tasks look that read data from one.
    """
    return [_line(name, data_root) for name in task_names()]


def _line(name: str, data_root: str | None) -> Line:
    kind = task_class(name)
    reads = any(f.name == "data_root" for f in dataclasses.fields(kind))
    task = get_task(name)
    needs = getattr(task, "needs", None)
    missing = "no folder was named" if reads and needs is not None else None
    if reads and data_root is not None:
        try:
            task, missing = get_task(name, data_root=data_root), None
        except InputError as error:
            missing = error.mistakes[0].law
    return Line(
        name,
        getattr(task, "source", "") or "no source given",
        sum(p.numel() for p in task.module(0).parameters()),
        needs,
        task.stand_in,
        missing,
    )
