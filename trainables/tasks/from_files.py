"""Tasks from a Python file that was named on the command line, never from a spec.

The file's text, not its path, is what a sweep has: it is shipped to the workers, and its hash is
part of the sweep's. So the file is one module that imports only what is installed everywhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.abc
import importlib.util
import inspect
import os
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from trainables.domain import InputError, Mistake

#: What a task may be called.
NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
LARGEST_FILE = 1024 * 1024
#: What a class must have beside `name`; see `trainables.tasks.Task`.
PARTS = (
    "metric_name",
    "regularised_layer",
    "stand_in",
    "loss",
    "batch",
    "module",
    "train_data",
    "test_data",
    "metric",
)


@dataclass(frozen=True)
class Source:
    """A file with tasks.

    Args:
        path: where it was read, for messages.
        text: what is in it.
    """

    path: str
    text: str

    @property
    def hash(self) -> str:
        """Sixteen hex digits that are equal for equal texts."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, str]:
        """The fields, for a worker's `Source(**...)`."""
        return dataclasses.asdict(self)


#: Class and source of each task that was registered, by its name.
_REGISTERED: dict[str, tuple[type[Any], Source]] = {}


def registered() -> dict[str, type[Any]]:
    """Classes of the tasks from files, by name."""
    return {name: kind for name, (kind, _) in _REGISTERED.items()}


def source_of(name: str) -> Source | None:
    """The file that a task came from; None for one that is installed."""
    return _REGISTERED[name][1] if name in _REGISTERED else None


def load_source(path: str | Path, taken: tuple[str, ...]) -> tuple[str, ...]:
    """Register the tasks of a file.

    Args:
        path: a Python file.
        taken: names of the installed tasks, which the file may not use.

    Returns:
        The names of its tasks.

    Raises:
        InputError: the file cannot be read or imported, has no task, or takes a name that is used.
    """
    source = Source(str(path), _read(path))
    found = _tasks(source)
    for name in found:
        other = source_of(name)
        if name in taken or (other is not None and not _same_file(other.path, source.path)):
            owner = "an installed task" if other is None else f"a task of {other.path}"
            law = f"{owner} has that name"
            raise _mistake(source.path, f"task {name!r}: {law}", "give the task another name")
    register(source)
    return tuple(found)


def register(source: Source) -> None:
    """Register the tasks of a source that was checked already; on a worker, what it was sent."""
    _REGISTERED.update({name: (kind, source) for name, kind in _tasks(source).items()})


def _mistake(path: str, law: str, remedy: str) -> InputError:
    return InputError([Mistake("tasks", path, law, remedy)])


def _same_file(one: str, other: str) -> bool:
    return os.path.abspath(os.path.expanduser(one)) == os.path.abspath(os.path.expanduser(other))


def _read(path: str | Path) -> str:
    place, named = os.path.expanduser(path), str(path)
    if not named.endswith(".py"):
        raise _mistake(named, "is no Python file (.py)", "give the path of a file with tasks")
    if not os.path.isfile(place):
        raise _mistake(named, "there is no such file", "give the path of a file with tasks")
    try:
        with open(place, "rb") as file:
            content = file.read(LARGEST_FILE + 1)
        text = importlib.util.decode_source(content)
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        law = f"cannot be read ({type(error).__name__})"
        raise _mistake(named, law, "give a file of Python code in UTF-8") from error
    if len(content) > LARGEST_FILE:
        law = f"is larger than {LARGEST_FILE // 1024} KiB"
        raise _mistake(named, law, "keep data out of it: it is sent to every worker")
    return text


class _Loader(importlib.abc.ExecutionLoader):
    """Imports a text: no cache beside the user's file, and no file needed on a worker."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def get_filename(self, fullname: str) -> str:
        """What stack traces name."""
        return os.path.abspath(os.path.expanduser(self._source.path))

    def get_source(self, fullname: str) -> str:
        """What is executed, and what stack traces quote."""
        return self._source.text


def _module(source: Source) -> ModuleType:
    """The module of a source, executed once a process."""
    # A name of its own: a file called random.py must not stand in for Python's.
    name = f"stabmap_tasks_{source.hash}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_loader(name, _Loader(source))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look it up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        law = f"cannot be imported ({_where(error, str(module.__file__))}: {_what(error)})"
        raise _mistake(source.path, law, "mend that line") from error
    return module


def _what(error: BaseException) -> str:
    """Kind and text of an error; of a syntax error without the file, which is named anyway."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _where(error: BaseException, path: str) -> str:
    """The last line of the file that led to an error."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"line {error.lineno}"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    return f"line {lines[-1]}" if lines else "at its start"


def _tasks(source: Source) -> dict[str, type[Any]]:
    """The task classes that a source defines, by name."""
    module = _module(source)
    classes = [kind for _, kind in inspect.getmembers(module, inspect.isclass)]
    named: list[Any] = [
        kind
        for kind in dict.fromkeys(classes)
        if kind.__module__ == module.__name__
        and isinstance(getattr(kind, "name", None), str)
        and hasattr(kind, "module")
    ]
    found: dict[str, type[Any]] = {}
    for kind in named:
        fields = getattr(kind, "__dataclass_fields__", None)
        missing = [part for part in PARTS if part not in (fields or ()) and not hasattr(kind, part)]
        if missing or fields is None:
            what = f"has no {', '.join(missing)}" if missing else "is no dataclass"
            law = f"class {kind.__name__} {what}"
            raise _mistake(source.path, law, "a task is a frozen dataclass; see CONTRIBUTING.md")
        if not re.fullmatch(NAME, kind.name):
            law = f"{kind.name!r} is no name for a task"
            raise _mistake(source.path, law, "use letters, digits, points, _ and -")
        if kind.name in found:
            law = f"two tasks are called {kind.name!r}"
            raise _mistake(source.path, law, "rename one of them")
        found[kind.name] = kind
    if not found:
        law = "holds no task: no class has a name and a module"
        raise _mistake(source.path, law, "write a class as CONTRIBUTING.md shows")
    return found
