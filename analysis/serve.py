"""Maps over HTTP: read-only, for programs that ask where training is stable.

Every answer about sweeps needs the token, as `Authorization: Bearer TOKEN`; `/health` and the
description at `/docs` do not. Sweeps are those of one folder; nothing outside it can be named.
"""

from __future__ import annotations

import json
import re
import secrets
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from analysis.load import ARTIFACT_FOLDER
from analysis.lock import is_held
from analysis.map import MAP_FILE, StabilityMap
from trainables.domain import InputError, StabmapError

#: Values that one question may ask for, and points on one page.
MOST_VALUES = 1_000_000
PAGE = 1_000

Number = Annotated[float, Field(allow_inf_nan=False)]
Values = Number | Annotated[list[Number], Field(min_length=1, max_length=MOST_VALUES)]
#: How the token comes in; what is missing is said by `_guard`.
BEARER = HTTPBearer(auto_error=False)
#: Facts about a sweep that are shown; the rest concerns only the machine that runs it.
FACTS = ("title", "state", "points", "limit", "counts", "left", "updated", "sweep")


class Place(BaseModel):
    """Where a map is asked: numbers, or lists of one length. An axis held fixed may be left out."""

    model_config = ConfigDict(extra="forbid")
    lr: Values | None = None
    alpha: Values | None = None
    weight_decay: Values | None = None

    def given(self) -> dict[str, Any]:
        """The axes that were named."""
        return self.model_dump(exclude_none=True)


class Library:
    """The sweeps of one folder, and their maps as they are now.

    Args:
        folder: as `folder` in a spec.
    """

    def __init__(self, folder: Path) -> None:
        self._root = folder / "sweeps"
        self._maps: dict[Path, tuple[int, StabilityMap]] = {}

    def sweeps(self) -> list[dict[str, Any]]:
        """All sweeps, the latest first."""
        found = [self._facts(path.parent) for path in self._root.glob("*/sweep.json")]
        return sorted(found, key=lambda facts: -(facts["updated"] or 0))

    def _facts(self, folder: Path) -> dict[str, Any]:
        read: Any = None
        with suppress(OSError, ValueError):  # a crash may leave it damaged
            read = json.loads((folder / "sweep.json").read_text("utf-8"))
        facts = read if isinstance(read, dict) else {"state": "unknown"}
        if facts.get("state") == "running" and not is_held(folder):
            facts["state"] = "died"
        return {"hash": folder.name, **{name: facts.get(name) for name in FACTS}}

    def find(self, name: str) -> dict[str, Any]:
        """The sweep with a hash, an MLflow id or, where it is the only one, a title.

        Raises:
            HTTPException: 404 where there is none, 409 where there are several.
        """
        found = [f for f in self.sweeps() if name in (f["hash"], f["sweep"], f["title"])]
        if not found:
            raise HTTPException(404, f"no sweep {name!r}; GET /sweeps lists them")
        if len(found) > 1:
            hashes = ", ".join(facts["hash"] for facts in found)
            raise HTTPException(409, f"several sweeps are called {name!r}: {hashes}")
        return found[0]

    def map(self, name: str) -> StabilityMap:
        """The map of a sweep, read again when it has changed.

        Raises:
            HTTPException: 404 where there is no such sweep, or no result yet.
        """
        path = self._root / self.find(name)["hash"] / ARTIFACT_FOLDER / MAP_FILE
        try:
            changed = path.stat().st_mtime_ns
        except FileNotFoundError:
            raise HTTPException(404, f"sweep {name!r} has no results yet") from None
        known = self._maps.get(path)
        if known is None or known[0] != changed:
            known = self._maps[path] = changed, StabilityMap.read_parquet(path)
        return known[1]


Name = Annotated[str, InPath(pattern=r"^[\w.-]{1,64}$", description="Hash, MLflow id or title.")]


def create_app(folder: Path, token: str | None, hosts: list[str] | None = None) -> FastAPI:
    """The service.

    Args:
        folder: as `folder` in a spec.
        token: what a caller has to show; None lets everyone in.
        hosts: names under which the service may be called; None allows all.
    """
    app = FastAPI(title="stabmap", version=version("stabmap"), description=__doc__)
    if hosts is not None:  # else a page elsewhere could make a browser ask for it
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    app.add_exception_handler(InputError, _mistakes)
    app.add_exception_handler(StabmapError, _failure)

    @app.get("/health")
    def health() -> dict[str, str]:
        """Whether the service is up."""
        return {"status": "ok", "stabmap": version("stabmap")}

    _add_sweeps(app, Library(folder), [Depends(_guard(token))])
    return app


def _guard(token: str | None) -> Callable[..., None]:
    def check(shown: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)]) -> None:
        if token is None:
            return
        if shown is None:
            remedy = "send the header Authorization: Bearer TOKEN"
            raise HTTPException(401, remedy, headers={"WWW-Authenticate": "Bearer"})
        if not secrets.compare_digest(shown.credentials.encode(), token.encode()):
            raise HTTPException(403, "this is not the token")

    return check


def _mistakes(_: Request, error: Exception) -> Response:
    assert isinstance(error, InputError)
    return JSONResponse({"detail": [str(mistake) for mistake in error.mistakes]}, 422)


def _failure(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 503)


def _add_sweeps(app: FastAPI, library: Library, guard: list[Any]) -> None:
    @app.get("/sweeps", dependencies=guard)
    def sweeps() -> list[dict[str, Any]]:
        """All sweeps, the latest first."""
        return library.sweeps()

    @app.get("/sweeps/{sweep}", dependencies=guard)
    def facts(sweep: Name) -> dict[str, Any]:
        """How far a sweep is."""
        return library.find(sweep)

    @app.get("/sweeps/{sweep}/points", dependencies=guard)
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

    @app.post("/sweeps/{sweep}/classify", dependencies=guard)
    def classify(sweep: Name, place: Place) -> dict[str, float | list[float]]:
        """How likely each regime is, at one place or at many."""
        found = library.map(sweep).classify(**place.given())
        return {k: v if isinstance(v, float) else v.tolist() for k, v in found.items()}

    @app.get("/sweeps/{sweep}/max_stable", dependencies=guard)
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

    @app.get("/sweeps/{sweep}/boundary/{kind}", dependencies=guard)
    def boundary(sweep: Name, kind: str, confidence: Number = 0.9) -> list[dict[str, Any]]:
        """Places on a boundary (`stable` or `divergent`), each with its interval."""
        frame = library.map(sweep).boundary(kind, confidence=confidence)
        return frame.astype(object).where(frame.notna(), None).to_dict("records")  # type: ignore[no-any-return]

    _add_files(app, library, guard)


def _add_files(app: FastAPI, library: Library, guard: list[Any]) -> None:
    @app.get("/sweeps/{sweep}/map.json", dependencies=guard)
    def as_json(sweep: Name) -> Response:
        """What was swept, and all points."""
        return Response(library.map(sweep).to_json(), media_type="application/json")

    @app.get("/sweeps/{sweep}/map.png", dependencies=guard)
    def picture(sweep: Name) -> Response:
        """The map as a picture."""
        from analysis.plot import plot_map

        with tempfile.TemporaryDirectory() as folder:
            path = plot_map(library.map(sweep), Path(folder) / "map.png")
            return Response(path.read_bytes(), media_type="image/png")

    @app.get("/sweeps/{sweep}/page", dependencies=guard, response_class=HTMLResponse)
    def page(sweep: Name) -> str:
        """The map as an interactive page in one file."""
        from analysis.page import page_html
        from analysis.tracking import Tracking

        return page_html(library.map(sweep), Tracking(sweep=library.find(sweep)["sweep"]))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a service on that host."""
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None
