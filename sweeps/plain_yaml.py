"""YAML as specs need it: one document of mappings, lists, texts and numbers, nothing else.

Anchors, tags and several documents are refused: they can grow without end, hold themselves, or
make objects, and a spec needs none of them. Dates, octal, hexadecimal and sexagesimal numbers
are texts, so that no value silently becomes another; what a field makes of them is its own law.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

#: A spec with thousands of start points is smaller; PyYAML takes a second for so many values.
LARGEST_FILE = 256 * 1024
MOST_VALUES = 20_000
#: Mappings and lists in each other; a spec has four.
DEEPEST = 16

_PREFIX = "tag:yaml.org,2002:"


class NotPlain(Exception):
    """A text or file that is no plain YAML.

    Args:
        law: what is wrong with it.
        remedy: the way out.
    """

    def __init__(self, law: str, remedy: str) -> None:
        super().__init__(law)
        self.law, self.remedy = law, remedy


class _Loader(yaml.SafeLoader):
    """The safe loader without implicit types that surprise, and without keys given twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own shape

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping whose keys differ, also as texts."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise NotPlain(f"{_line(key)}: a key is a word", "write key: value")
            if key.value in seen:
                law = f"{_line(key)}: the key {key.value} stands there twice"
                raise NotPlain(law, "remove one of the two")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"(?i:true|false|yes|no|on|off)", list("tTfFyYnNoO")),
    ("int", r"[-+]?(0|[1-9][0-9_]{0,39})", list("-+0123456789")),
    (
        "float",
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+][0-9]+)?|[-+]?\.(?i:inf)|\.(?i:nan)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"{_PREFIX}{_tag}", re.compile(f"(?:{_pattern})$"), _first)


def _line(node: Any) -> str:
    return f"line {node.start_mark.line + 1}"


def read_text(path: str | Path) -> str:
    """The text of a small regular file in UTF-8.

    Raises:
        OSError: it cannot be opened.
        NotPlain: it is of another kind, too large, or no text.
    """
    try:
        # A FIFO would be waited for; a device may never end.
        handle = os.open(os.path.expanduser(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:
        raise OSError(str(error)) from error
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise NotPlain("is no regular file", "write the spec to a file")
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        law = f"is larger than {LARGEST_FILE // 1024} KiB, which no spec needs"
        raise NotPlain(law, "give the path of a spec")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise NotPlain(f"is no UTF-8 text (line {line})", "save it as UTF-8") from error


def parse(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        NotPlain: it is not YAML, or not of the plain kind.
    """
    try:
        _check_events(text)
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark is not None else "unreadable characters"
        raise NotPlain(f"is no YAML ({where})", "mend that line") from error
    except ValueError as error:  # a number that its pattern lets through
        raise NotPlain(f"is no YAML ({error})", "mend that value") from error


def _check_events(text: str) -> None:
    """Refuse what must not be composed; events come one by one and take no memory."""
    depth = documents = values = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = _line(event)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise NotPlain(f"{where}: a second document begins", "keep one in the file")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise NotPlain(f"{where}: anchors and aliases are not read", "write the value out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            law = f"{where}: the tag {tag} is not read"
            raise NotPlain(law, "write a plain value, in quotes where it is a text")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        values += isinstance(event, yaml.ScalarEvent)
        if values > MOST_VALUES:
            raise NotPlain(f"{where}: more than {MOST_VALUES} values", "leave some out")
        if depth > DEEPEST:
            raise NotPlain(f"{where}: nested deeper than {DEEPEST}", "a spec has four levels")
