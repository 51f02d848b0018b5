"""Who may be spoken to: a cluster that asks for Ray's token, or one on this machine.

Whoever reaches a Ray cluster runs any code on it. So code and specs go only to clusters that turn
strangers away, and the token is read only from the environment or a file that others cannot read.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from analysis.hosts import is_loopback_host
from sweeps.status import plain
from trainables.domain import InputError, Mistake, UnreachableError
from trainables.messages import redacted

#: Seconds within which a head answers.
PATIENCE = 10.0
#: What to write where an address cannot be read.
EXAMPLE = "write http://host:8265"
#: How the cluster is made to ask for a token.
TOKEN_MODE = "start Ray with RAY_AUTH_MODE=token on every node"


def check_access(address: str, insecure: bool) -> None:
    """Raise unless a cluster may be joined: off this machine only with Ray's token.

    Args:
        address: `local`, `auto`, `host:port` or `http://host:port`. For `auto` the address counts
            that Ray would take from `RAY_ADDRESS`.
        insecure: whether the user allows a cluster without a token.

    Raises:
        InputError: token mode is off, or there is no token, or others may read its file.
    """
    if address.startswith("ray://"):
        law = "Ray client connections are not supported"
        remedy = "run on a node of the cluster with --address auto"
        raise InputError([Mistake("address", address, law, remedy)])
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "auto"
    if insecure or not re.fullmatch(r".+://.+|.+:[0-9]+", address):
        return  # local, auto, or a text that whoever joins the cluster refuses
    if not token_mode():
        if is_loopback(address):
            return
        law = "a cluster that is not on this machine needs token mode"
        remedy = "set RAY_AUTH_MODE=token and the cluster's token, or allow it with --insecure"
        raise InputError([Mistake("RAY_AUTH_MODE", os.environ.get("RAY_AUTH_MODE"), law, remedy)])
    _check_token()


def knock(address: str) -> None:
    """Raise unless something listens at host:port; Ray itself would try for many minutes.

    Raises:
        InputError: the address is no host:port.
        UnreachableError: nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        law, remedy = "is no address of a Ray cluster", "write auto, host:port or http://host:8265"
        raise InputError([Mistake("address", redacted(address), law, remedy)])
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except OSError as error:
        raise UnreachableError(
            f"address = {address!r}: nothing answers there ({error}); start the cluster first"
        ) from error


def token_mode() -> bool:
    """Whether Ray is told to use a token."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def token() -> str | None:
    """The token, from where Ray takes it; None where there is none."""
    given = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if given:
        return given
    try:
        return _token_file().read_text("utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _token_file() -> Path:
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"


def _check_token() -> None:
    """Raise unless there is a token, and others cannot read the file it comes from."""
    if os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return
    path, named = _token_file(), os.environ.get("RAY_AUTH_TOKEN_PATH")
    field = "RAY_AUTH_TOKEN_PATH" if named else "RAY_AUTH_TOKEN"
    if token() is None:
        law = f"token mode needs a token, and there is none in {path}"
        remedy = "copy the cluster's token there with mode 600, or set RAY_AUTH_TOKEN"
        raise InputError([Mistake(field, named, law, remedy)])
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        law = f"others may read the token's file (mode {mode:o})"
        raise InputError([Mistake(field, str(path), law, f"chmod 600 {path}")])


def is_loopback(address: str) -> bool:
    """Whether an address is on this machine for certain."""
    parts = _split(address if "://" in address else f"ray://{address}")
    return is_loopback_host(parts.hostname or "")


def _split(address: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        law = f"is no address ({error})"
        shown = redacted(address.removeprefix("ray://"))
        raise InputError([Mistake("address", shown, law, EXAMPLE)]) from error
    return parts


def head_url(address: str) -> str:
    """The address of a cluster's head, checked.

    Raises:
        InputError: it is no http or https address of a host, or it holds a password.
    """
    parts = _split(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        law = "is no address of a Ray dashboard"
        raise InputError([Mistake("address", redacted(address), law, EXAMPLE)])
    if parts.username is not None or parts.query or parts.fragment:
        law = "a password does not belong in an address"
        remedy = f"{EXAMPLE}; the token goes into RAY_AUTH_TOKEN or ~/.ray/auth_token"
        raise InputError([Mistake("address", "(hidden)", law, remedy)])
    return f"{parts.scheme}://{parts.netloc}"


def check_head(address: str, insecure: bool) -> str:
    """Raise unless the head of a cluster answers, and turns strangers away.

    Args:
        address: of its dashboard.
        insecure: whether the user allows a head that serves everyone.

    Returns:
        The address, without what does not belong to it.

    Raises:
        InputError: the address is malformed, or the token is missing or open to others.
        UnreachableError: no head answers there, or one that serves everyone.
    """
    url = head_url(address)
    check_access(url, insecure)
    open_to_all = serves_strangers(url)
    if open_to_all and not insecure and not is_loopback(url):
        raise UnreachableError(
            f"address = {url!r}: this head serves anyone, token or not; {TOKEN_MODE}, or allow "
            "it with --insecure"
        )
    return url


def serves_strangers(url: str) -> bool:
    """Whether the head of a cluster answers a call without a token.

    Raises:
        UnreachableError: nothing answers there, or something that is no head.
    """
    status = _ask_anonymously(url)
    if status in (401, 403):
        return False
    if status == 200:
        return True
    raise UnreachableError(
        f"address = {url!r}: no Ray head with a jobs server answers there (HTTP {status}); it "
        'wants pip install "ray[default]" and its dashboard'
    )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """What is sent on to another place was not answered by the head."""

    def redirect_request(self, *_: Any) -> None:
        """Do not follow."""


def _ask_anonymously(url: str) -> int:
    """The HTTP status of a call of a head's jobs server without any token."""
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(f"{url}/api/jobs/", timeout=PATIENCE) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError
        reason = plain(str(getattr(error, "reason", error)))[:100]
        raise UnreachableError(
            f"address = {url!r}: nothing answers there ({reason}); start the cluster, or forward "
            "its dashboard: ray dashboard cluster.yaml"
        ) from error
