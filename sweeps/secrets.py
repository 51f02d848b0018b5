"""Secrets come from the environment, or from a file that nobody else can read."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path

from trainables.domain import InputError, Mistake

LARGEST_SECRET = 4096


def read_secret(name: str) -> str | None:
    """The secret in the environment variable `name`, or in the file that `name`_FILE names.

    Args:
        name: of the variable, such as `RAY_AUTH_TOKEN`.

    Returns:
        The secret, without the line end of the file; None where neither variable is set.

    Raises:
        InputError: both are set, the file cannot be read, others may read it, or it is empty.
            The error never shows the secret.
    """
    value, file = os.environ.get(name), os.environ.get(f"{name}_FILE")
    if value and file:
        law, remedy = f"{name} is set too", "unset one of the two"
        raise InputError([Mistake(f"{name}_FILE", file, law, remedy)])
    if file:
        return _content(f"{name}_FILE", Path(os.path.expanduser(file)))
    return value or None


def _content(variable: str, path: Path) -> str:
    private = f"run: chmod 600 {shlex.quote(str(path))}"
    remedy = f"write the secret to it and {private}"
    try:
        # The handle that was checked is the one that is read; a FIFO is not waited for.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        law = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise InputError([Mistake(variable, str(path), law, remedy)]) from None
    try:
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            raise InputError([Mistake(variable, str(path), "is no regular file", remedy)])
        if mode & 0o177:
            law = f"others may read it, or anybody run it (mode {stat.S_IMODE(mode):o})"
            raise InputError([Mistake(variable, str(path), law, private)])
        content = os.read(handle, LARGEST_SECRET + 1)
    finally:
        os.close(handle)
    try:
        secret = content.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        secret = ""
    if not secret.isprintable() or not 0 < len(content) <= LARGEST_SECRET or not secret:
        law = f"holds no secret: one line of text of at most {LARGEST_SECRET} bytes"
        raise InputError([Mistake(variable, str(path), law, remedy)])
    return secret
