"""Maps over HTTP: read-only, for programs that ask where training is stable.

Every answer about sweeps needs the token, as `Authorization: Bearer TOKEN`, or a browser that
signed in at `/sign-in`; `/health` and the description at `/docs` do not. Sweeps are those of one
folder; nothing outside it can be named.
"""

from __future__ import annotations

import html
import json
import tempfile
from collections.abc import AsyncIterable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from fastapi.security import HTTPAuthorizationCredentials
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from analysis.document import STYLE
from analysis.events import events
from analysis.library import Library, NoSweepError
from analysis.load import TITLES
from analysis.sign_in import BEARER, Door, add_sign_in
from trainables.domain import InputError, StabmapError

#: Values that one question may ask for, and points on one page.
MOST_VALUES = 1_000_000
PAGE = 1_000

Number = Annotated[float, Field(allow_inf_nan=False)]
Values = Number | Annotated[list[Number], Field(min_length=1, max_length=MOST_VALUES)]
#: Of a question with many wrong values, as many lines are shown.
MOST_LINES = 20
#: Sent with every answer that has none of its own.
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
}


class Place(BaseModel):
    """Where a map is asked: numbers, or lists of one length. An axis held fixed may be left out."""

    model_config = ConfigDict(extra="forbid")
    lr: Values | None = None
    alpha: Values | None = None
    weight_decay: Values | None = None

    def given(self) -> dict[str, Any]:
        """The axes that were named."""
        return self.model_dump(exclude_none=True)


Name = Annotated[
    str, InPath(pattern=f"^{TITLES}$", description="Hash, MLflow id or title of a sweep.")
]


def create_app(folder: Path, token: str | None, hosts: list[str] | None = None) -> FastAPI:
    """The service.

    Args:
        folder: as `folder` in a spec.
        token: what a caller has to show; None lets everyone in.
        hosts: names under which the service may be called; None allows all.
    """
    app: FastAPI = FastAPIOffline(  # its page of questions loads nothing from elsewhere
        title="stabmap", version=version("stabmap"), description=__doc__, redoc_url=None
    )
    app.add_middleware(_Headers)
    if hosts is not None:  # else a page elsewhere could make a browser ask for it
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    for kind, answer in _ANSWERS.items():
        app.add_exception_handler(kind, answer)
    library, door = Library(folder), Door(token)

    @app.get("/health")
    def health() -> dict[str, str]:
        """Whether the service is up."""
        return {"status": "ok", "stabmap": version("stabmap")}

    async def guard(  # at once: a thread would cost more than the comparison
        request: Request, shown: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]
    ) -> None:
        door.check(request, shown)

    sweeps = APIRouter(prefix="/sweeps", dependencies=[Depends(guard)], responses=REFUSALS)
    _add_sweeps(sweeps, library)
    _add_questions(sweeps, library)
    _add_files(sweeps, library)
    app.include_router(sweeps)
    add_sign_in(app, door)
    _add_start(app, library, door)
    return app


# --------------------------------------------------------------------------- refusals


class Refusal(BaseModel):
    """Why a question has no answer."""

    detail: str | list[str]
    mistakes: list[dict[str, Any]] | None = Field(
        None, description="Of a wrong value: `field`, `value`, `law` that it breaks, `remedy`."
    )


def _refused(description: str) -> dict[str, Any]:
    # Not as `model`: that would be described as of the kind that the answer has, such as a picture.
    schema = Refusal.model_json_schema()
    return {"description": description, "content": {"application/json": {"schema": schema}}}


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: _refused("The body is no text."),
    401: _refused("No token."),
    403: _refused("Not the token."),
    404: _refused("No such sweep, or no result yet."),
    409: _refused("Several sweeps have this title."),
    422: _refused("A value is wrong; `detail` has one line for each."),
    503: _refused("The map cannot be used."),
}
BINARY = {"schema": {"type": "string", "format": "binary"}}
PICTURE: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": BINARY}}}
NETCDF: dict[int | str, dict[str, Any]] = {200: {"content": {"application/x-netcdf": BINARY}}}


def _mistakes(_: Request, error: Exception) -> Response:
    assert isinstance(error, InputError)
    told = [
        {"field": m.field, "value": _plain(m.value), "law": m.law, "remedy": m.remedy}
        for m in error.mistakes
    ]
    return JSONResponse({"detail": [str(m) for m in error.mistakes], "mistakes": told}, 422)


def _plain(value: Any) -> Any:
    """A value as JSON may hold it."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return str(value)


def _malformed(_: Request, error: Exception) -> Response:
    """Values of the wrong kind: said as everything else is, and without the values."""
    assert isinstance(error, RequestValidationError)
    lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    return JSONResponse({"detail": lines[:MOST_LINES]}, 422)


def _no_sweep(_: Request, error: Exception) -> Response:
    assert isinstance(error, NoSweepError)
    return JSONResponse({"detail": str(error)}, error.status)


def _failure(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 503)


_ANSWERS: dict[type[Exception], Any] = {
    InputError: _mistakes,
    RequestValidationError: _malformed,
    NoSweepError: _no_sweep,
    StabmapError: _failure,
}


class _Headers:
    """Headers of every answer: browsers keep it to themselves, and load nothing from elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with)


# --------------------------------------------------------------------------- questions


def _add_sweeps(app: APIRouter, library: Library) -> None:
    @app.get("")
    def sweeps() -> list[dict[str, Any]]:
        """All sweeps, the latest first."""
        return library.sweeps()

    @app.get("/{sweep}")
    def facts(sweep: Name) -> dict[str, Any]:
        """How far a sweep is."""
        return library.find(sweep)

    @app.get("/{sweep}/points")
    def points(
        sweep: Name,
        after: Annotated[int, Query(ge=-1, le=2**53, description="`next` of the last page.")] = -1,
        limit: Annotated[int, Query(ge=1, le=PAGE)] = 100,
    ) -> dict[str, Any]:
        """The evidence, one entry a point, a page at a time."""
        frame = library.map(sweep).to_frame()
        page = frame[frame["number"] > after].head(limit)
        more = len(page) == limit and page["number"].iloc[-1] < frame["number"].iloc[-1]
        rows = page.astype(object).where(page.notna(), None).to_dict("records")
        return {"points": rows, "next": int(page["number"].iloc[-1]) if more else None}

    # A stream that has begun cannot refuse any more, hence the sweep is looked for before.
    @app.get("/{sweep}/events", response_class=EventSourceResponse, dependencies=[Depends(facts)])
    async def live(
        sweep: Name,
        last_event_id: Annotated[
            int, Header(ge=0, le=2**53, description="`id` of the last event that came.")
        ] = 0,
    ) -> AsyncIterable[ServerSentEvent]:
        """What happens while a sweep runs, as server-sent events.

        `point`: a training has finished. `state`: how far the sweep is. `end`: nothing more comes.
        """
        async for event in events(library, library.find(sweep)["hash"], last_event_id):
            yield event


def _add_questions(app: APIRouter, library: Library) -> None:
    @app.post("/{sweep}/classify", response_model=dict[str, float | list[float]])
    def classify(sweep: Name, place: Place) -> Response:
        """How likely each regime is, at one place or at many."""
        found = library.map(sweep).classify(**place.given())
        # As a whole answer: what is not checked again needs no second thread.
        return JSONResponse(
            {k: v if isinstance(v, float) else v.tolist() for k, v in found.items()}
        )

    @app.get("/{sweep}/max_stable")
    def max_stable(
        sweep: Name,
        axis: str,
        confidence: Number = 0.95,
        lr: Number | None = None,
        alpha: Number | None = None,
        weight_decay: Number | None = None,
    ) -> dict[str, Any]:
        """The largest value of an axis up to which training is stable; null where there is none."""
        given = {"lr": lr, "alpha": alpha, "weight_decay": weight_decay}
        fixed = {name: value for name, value in given.items() if value is not None}
        value = library.map(sweep).max_stable(axis, confidence=confidence, **fixed)
        return {"axis": axis, "max_stable": value, "confidence": confidence}

    @app.get("/{sweep}/boundary/{kind}")
    def boundary(sweep: Name, kind: str, confidence: Number = 0.9) -> list[dict[str, Any]]:
        """Places on a boundary (`stable` or `divergent`), each with its interval."""
        frame = library.map(sweep).boundary(kind, confidence=confidence)
        return frame.astype(object).where(frame.notna(), None).to_dict("records")  # type: ignore[no-any-return]


def _add_files(app: APIRouter, library: Library) -> None:
    @app.get("/{sweep}/map.json")
    def as_json(sweep: Name) -> Response:
        """What was swept, and all points."""
        return Response(library.map(sweep).to_json(), media_type="application/json")

    @app.get("/{sweep}/map.nc", response_class=Response, responses=NETCDF)
    def as_netcdf(sweep: Name) -> Response:
        """The map with the grid of its model (docs/map-format.md)."""
        with tempfile.TemporaryDirectory() as folder:
            (path,) = library.map(sweep).export(folder, ["netcdf"])
            return Response(path.read_bytes(), media_type="application/x-netcdf")

    @app.get("/{sweep}/map.png", response_class=Response, responses=PICTURE)
    def picture(sweep: Name) -> Response:
        """The map as a picture."""
        from analysis.plot import plot_map

        with tempfile.TemporaryDirectory() as folder:
            path = plot_map(library.map(sweep), Path(folder) / "map.png")
            return Response(path.read_bytes(), media_type="image/png")

    @app.get("/{sweep}/page", response_class=HTMLResponse)
    def page(sweep: Name) -> str:
        """The map as an interactive page in one file."""
        from analysis.page import page_html
        from analysis.tracking import Tracking

        return page_html(library.map(sweep), Tracking(sweep=library.find(sweep)["sweep"]))


# --------------------------------------------------------------------------- for browsers


def _add_start(app: FastAPI, library: Library, door: Door) -> None:
    @app.get("/", include_in_schema=False, response_class=HTMLResponse)
    def start(request: Request) -> Response:
        if not door.knows(request):
            return RedirectResponse("sign-in", 303)
        return HTMLResponse(_start_page(library.sweeps()))


def _start_page(sweeps: list[dict[str, Any]]) -> str:
    """All sweeps with links to their maps."""
    rows = "".join(
        f'<tr><td><a href="sweeps/{quote(facts["hash"])}/page">'
        f"{html.escape(str(facts['title'] or facts['hash']))}</a></td>"
        f"<td>{html.escape(str(facts['state']))}</td><td>{html.escape(str(facts['points']))}</td>"
        "</tr>"
        for facts in sweeps
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("sweep", "state", "points"))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>stabmap: sweeps</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<h1>Sweeps</h1>
<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>
<p><a href="docs">Questions that programs may ask</a></p>
</body>
</html>
"""
