"""A client of the service that `stabmap serve` starts: the questions of a map, from elsewhere."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

from urllib3 import BaseHTTPResponse, PoolManager, ProxyManager
from urllib3.exceptions import HTTPError, ProtocolError

from analysis.hosts import is_loopback_host
from sweeps.secrets import read_secret
from trainables.domain import InputError, Margins, Mistake, Point, Reason, Regime, UnreachableError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

    from analysis.map import StabilityMap

#: Where the token comes from; TOKEN_FILE may name a file that holds it.
TOKEN = "STABMAP_TOKEN"
#: Places of one request, and points of one page.
BATCH = 100_000
PAGE = 1_000
#: Connections that are kept open for the threads of a program.
CONNECTIONS = 16
#: What a map says of a point beside its evidence.
VERDICT = (
    "number",
    "lr",
    "alpha",
    "weight_decay",
    "regime",
    "reason",
    "step",
    "margin_stable",
    "margin_bounded",
)


@dataclass(frozen=True)
class RemoteSweep:
    """A sweep that a service knows.

    Args:
        hash: its name, which never changes.
        title: what its spec calls it.
        state: `running`, or how it ended; `died` where it should run and no process does.
        points: points with a result.
        limit: points in the budget; None where only time ends the sweep.
        counts: points by regime.
        left: estimated seconds to the end.
        updated: when this was written, seconds since the epoch.
        sweep: MLflow id of the sweep.
    """

    hash: str
    title: str | None
    state: str | None
    points: int | None
    limit: int | None
    counts: Mapping[str, int] | None
    left: float | None
    updated: float | None
    sweep: str | None


@dataclass(frozen=True)
class RemotePoint:
    """A point of a map, with what it found.

    Args:
        number: number of its first training in the sweep; None in an event.
        point: where.
        regime: what it is.
        reason: what decided it.
        step: the step that decided it.
        margins: positive on the calm side.
        evidence: all other columns of the evidence (docs/map-format.md); None where not measured.
    """

    number: int | None
    point: Point
    regime: Regime
    reason: Reason
    step: int
    margins: Margins
    evidence: Mapping[str, float | None]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> RemotePoint:
        """A point from a row of the evidence."""
        return cls(
            row.get("number"),
            Point(row["lr"], row["alpha"], row["weight_decay"]),
            Regime(row["regime"]),
            Reason(row["reason"]),
            row["step"],
            Margins(row["margin_stable"], row["margin_bounded"]),
            {name: value for name, value in row.items() if name not in VERDICT},
        )


@dataclass(frozen=True)
class SweepEvent:
    """Something that happened in a sweep.

    Args:
        kind: `point`, `state`, or `end` behind the last one.
        id: what to give as `after` to go on behind it; None if no point came yet.
        point: the training that finished, of a `point`.
        facts: state, points, limit and counts, of a `state` or an `end`.
    """

    kind: str
    id: int | None
    point: RemotePoint | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Client:
    """Asks a service about its sweeps and their maps.

    Sweeps are named by hash, MLflow id or title, as everywhere. Threads may share a client.

    Args:
        address: where the service listens.
        token: its token; None takes STABMAP_TOKEN, or the file that STABMAP_TOKEN_FILE names.
        timeout: seconds that an answer may take; the first question to a large map takes long.

    Raises:
        InputError: the address is none, or the token's file cannot be used.

    Every question raises:
        InputError: what the map or the service refuses, in its words; a missing or wrong token.
        UnreachableError: the service does not answer, or answers with what is no answer.

    Example:
        >>> client = stabmap.Client(address, token)
        >>> [sweep.title for sweep in client.sweeps()]
        ['first map']
    """

    address: str = "http://127.0.0.1:8787"
    token: str | None = field(default=None, repr=False)
    timeout: float = 120.0

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.address)
            right = parts.scheme in ("http", "https") and bool(parts.hostname)
            right = right and not (parts.username or parts.query or parts.fragment)
            _ = parts.port  # raises where it is no number
        except ValueError:
            right = False
        if not right:
            remedy = "write http://host:8787, without a user name or a token"
            raise InputError([Mistake("address", self.address, "is no address of one", remedy)])
        if self.token is None:
            object.__setattr__(self, "token", read_secret(TOKEN))
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            law = "a token is one line of ASCII characters"
            raise InputError([Mistake("token", self.token, law, "give what stabmap serve takes")])

    def __reduce__(self) -> tuple[Any, ...]:
        """Without its connections, so that it can be sent to other processes."""
        return type(self), (self.address, self.token, self.timeout)

    # ----------------------------------------------------------------- sweeps

    def sweeps(self) -> tuple[RemoteSweep, ...]:
        """All sweeps, the latest first.

        Example:
            >>> client.sweeps()[0].state
            'complete'
        """
        return tuple(RemoteSweep(**facts) for facts in self._json("/sweeps"))

    def sweep(self, name: str) -> RemoteSweep:
        """How far a sweep is.

        Example:
            >>> client.sweep("first map").points
            64
        """
        return RemoteSweep(**self._json(_path(name)))

    def points(self, name: str) -> Iterator[RemotePoint]:
        """The evidence, point by point, fetched in pages.

        Example:
            >>> stable = [p for p in client.points("first map") if p.regime == "stable"]
            >>> 20 < len(stable) < 40
            True
        """
        after: int | None = -1
        while after is not None:
            page = self._json(f"{_path(name)}/points", after=after, limit=PAGE)
            yield from map(RemotePoint.of, page["points"])
            after = page["next"]

    def events(self, name: str, after: int | None = None) -> Generator[SweepEvent, None, None]:
        """What happens in a sweep, from its first point until it ends, or `close()` is called.

        Args:
            name: of the sweep.
            after: `id` of the last event that came, to go on after a connection was lost.

        Example:
            >>> [event.kind for event in client.events("first map")]
            ['state', 'end']
        """
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        with self._opened(f"{_path(name)}/events", headers=headers) as answer:
            for kind, number, data in _parsed(answer):
                after = after if number is None else number
                if kind == "point":
                    yield SweepEvent(kind, after, RemotePoint.of(data))
                else:
                    yield SweepEvent(kind, after, facts=data)

    # ----------------------------------------------------------------- questions

    def classify(self, name: str, **values: ArrayLike) -> dict[str, Any]:
        """Probabilities of the three regimes, as `StabilityMap.classify` gives them.

        Args:
            name: of the sweep.
            **values: lr, alpha, weight_decay as numbers or arrays that broadcast together.

        Returns:
            Floats for numbers, arrays of the broadcast shape for arrays.

        Example:
            >>> found = client.classify("first map", lr=[0.01, 100], weight_decay=0.01)
            >>> found["stable"].round(1).tolist()
            [1.0, 0.0]
        """
        import numpy as np

        given = {axis: _numbers(axis, value) for axis, value in values.items()}
        try:
            shape = np.broadcast_shapes(*(value.shape for value in given.values()))
        except ValueError:
            raise InputError(
                [
                    Mistake(axis, list(v.shape), "the shapes do not broadcast", "give equal shapes")
                    for axis, v in given.items()
                ]
            ) from None
        path = f"{_path(name)}/classify"
        if shape == ():
            found = self._json(path, {axis: float(value) for axis, value in given.items()})
            return dict(found)
        # A number stays one: only arrays become as long as the answer.
        long = {a: np.broadcast_to(v, shape).ravel() for a, v in given.items() if v.shape}
        short = {axis: float(value) for axis, value in given.items() if not value.shape}
        count = int(np.prod(shape))
        parts = [
            self._json(path, short | {a: v[i : i + BATCH].tolist() for a, v in long.items()})
            for i in range(0, count, BATCH)
        ]
        return {
            regime.value: np.array([p for part in parts for p in part[regime.value]]).reshape(shape)
            for regime in Regime
        }

    def max_stable(
        self, name: str, axis: str, *, confidence: float = 0.95, **fixed: float
    ) -> float | None:
        """Largest value of an axis that is stable, as `StabilityMap.max_stable` gives it.

        Example:
            >>> 0.1 < client.max_stable("first map", "lr", weight_decay=0.01) < 1
            True
        """
        asked = {"axis": axis, "confidence": confidence, **fixed}
        found: float | None = self._json(f"{_path(name)}/max_stable", **asked)["max_stable"]
        return found

    def boundary(self, name: str, kind: str, *, confidence: float = 0.9) -> pd.DataFrame:
        """A boundary with its interval, as `StabilityMap.boundary` gives it.

        Example:
            >>> list(client.boundary("first map", "stable").columns)
            ['lr', 'alpha', 'weight_decay', 'low', 'high']
        """
        import pandas as pd

        path = f"{_path(name)}/boundary/{quote(kind, safe='')}"
        rows = self._json(path, confidence=confidence)
        columns = ["lr", "alpha", "weight_decay", "low", "high"]
        return pd.DataFrame(rows, columns=columns).astype("float64")

    def map(self, name: str) -> StabilityMap:
        """The whole map, to be asked without the service.

        Example:
            >>> found = client.map("first map")
            >>> found.classify(lr=0.1, weight_decay=0.01) == client.classify(
            ...     "first map", lr=0.1, weight_decay=0.01
            ... )
            True
        """
        from analysis.map import StabilityMap

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "map.json"
            with self._opened(f"{_path(name)}/map.json") as answer:
                path.write_bytes(answer.read())
            return StabilityMap.read(path)

    # ----------------------------------------------------------------- HTTP

    def _json(self, path: str, body: Any = None, **query: Any) -> Any:
        """An answer in JSON, to a question with a body or with parameters."""
        asked = f"{path}?{urlencode(query)}" if query else path
        data = None if body is None else json.dumps(body).encode()
        with self._opened(asked, data) as answer:
            return json.loads(answer.read())

    @contextmanager
    def _opened(
        self, path: str, data: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[BaseHTTPResponse]:
        sent = dict(headers or {})
        if data is not None:
            sent["Content-Type"] = "application/json"
        if self.token is not None:
            sent["Authorization"] = f"Bearer {self.token}"
        answer = None
        try:
            answer = self._asked(path, data, sent)
            if answer.status != 200:
                raise self._refusal(answer.status, answer.read())
            yield answer
        except (OSError, HTTPError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise UnreachableError(
                f"address = {self.address!r}: the service does not answer ({reason}); start it "
                "with stabmap serve, or mend the address"
            ) from error
        finally:
            if answer is not None:
                answer.close()  # only what was not read to its end
                answer.release_conn()

    def _asked(self, path: str, data: bytes | None, headers: Mapping[str, str]) -> BaseHTTPResponse:
        url, method = self.address.rstrip("/") + path, "GET" if data is None else "POST"
        ask = partial(self._pool.request, method, url, body=data, headers=headers)
        try:
            return ask(redirect=False, retries=False, preload_content=False)
        except ProtocolError:  # the service has closed a connection that was kept
            return ask(redirect=False, retries=False, preload_content=False)

    @cached_property
    def _pool(self) -> PoolManager:
        """Connections that are kept: never through a proxy to this machine, no redirects."""
        kept: dict[str, Any] = {"maxsize": CONNECTIONS, "timeout": self.timeout}
        place = urlsplit(self.address)
        host = place.hostname or ""
        proxy = getproxies().get(place.scheme)
        if proxy is None or is_loopback_host(host) or proxy_bypass(host):
            return PoolManager(**kept)
        return ProxyManager(proxy, **kept)

    def _refusal(self, status: int, content: bytes) -> Exception:
        if status in (401, 403):
            law = "the service asks for a token" if status == 401 else "is not the service's token"
            remedy = f"set {TOKEN} or {TOKEN}_FILE to the token of stabmap serve"
            given = None if self.token is None else "(hidden)"
            return InputError([Mistake("token", given, law, remedy)])
        try:
            answer = json.loads(content)
            if told := answer.get("mistakes"):
                return InputError([Mistake(**mistake) for mistake in told])
            detail = answer["detail"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return UnreachableError(
                f"address = {self.address!r}: HTTP {status} from what is no stabmap service; mend "
                "the address"
            )
        said = detail if isinstance(detail, str) else "; ".join(map(str, detail))
        if status < 500:
            return InputError([Mistake("question", None, said, "ask for what there is")])
        return UnreachableError(f"address = {self.address!r}: the service cannot answer: {said}")


def _path(name: str) -> str:
    # A name such as `..` is none of a folder above.
    return "/sweeps/" + quote(name, safe="").replace(".", "%2E")


def _numbers(axis: str, value: ArrayLike) -> Any:
    import numpy as np

    try:
        found = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError([Mistake(axis, value, "must be a number", "give a number")]) from None
    if not found.size or not np.isfinite(found).all():
        law = "must be finite" if found.size else "no value is given"
        raise InputError([Mistake(axis, found.tolist(), law, "give a number")])
    return found


def _parsed(answer: Iterator[bytes]) -> Iterator[tuple[str, int | None, Any]]:
    """Kind, id and data of server-sent events; lines of comments keep the connection alive."""
    fields: dict[str, str] = {}
    for raw in answer:
        line = raw.decode("utf-8").rstrip("\r\n")
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            number = fields.get("id", "")
            found = int(number) if number.isdecimal() else None
            yield fields.get("event", "message"), found, json.loads(fields["data"])
            fields = {}
