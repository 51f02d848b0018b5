"""Who is let in: programs with the token in a header, browsers with a cookie they got for it.

A browser is given the token once, behind the # of the address of the sign-in page. That part of an
address is never sent, so it is in no log; the page takes it out of the history and trades it for a
cookie that scripts cannot read, that no other site can make the browser send, and that ends with
the service.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from typing import Annotated

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

#: How a program shows the token; what is missing is said by `Door`.
BEARER = HTTPBearer(auto_error=False, description="The token that `stabmap serve` was given.")
#: Where a browser trades the token for a cookie.
SIGN_IN = "/sign-in"

SCRIPT = """
const form = document.querySelector("form"), said = document.querySelector("output");
async function signIn(token) {
  const asked = {method: "POST", headers: {"Content-Type": "application/json"},
                 body: JSON.stringify({token})};
  const answer = await fetch("sign-in", asked).catch(() => ({ok: false, status: 0}));
  if (answer.ok) location.replace("./");
  else said.value = answer.status ? "This is not the token." : "The service does not answer.";
}
form.addEventListener("submit", event => {
  event.preventDefault();
  signIn(form.elements.token.value.trim());
});
const token = decodeURIComponent(location.hash.slice(1));
if (token) {
  history.replaceState(null, "", location.pathname);
  signIn(token);
}
"""
STYLE = """
:root { color-scheme: light dark; }
body { max-width: 30rem; margin: 4rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
input, button { font: inherit; padding: .3rem .6rem; }
"""
PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>stabmap: sign in</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<h1>stabmap</h1>
<p>Open the link that <code>stabmap serve</code> printed, or enter the service's token.</p>
<form>
<label>Token <input name="token" type="password" autocomplete="off" required></label>
<button>Sign in</button>
</form>
<p><output role="alert"></output></p>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; connect-src 'self'; style-src {_digest(STYLE)}; "
    f"script-src {_digest(SCRIPT)}; img-src data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)


class Shown(BaseModel):
    """What a browser shows to be let in."""

    model_config = ConfigDict(extra="forbid")
    token: Annotated[str, Field(max_length=4096)]


class Door:
    """Lets in who has the token, or the cookie of a browser that had it.

    Args:
        token: what has to be shown; None lets everyone in.
    """

    def __init__(self, token: str | None) -> None:
        self._token = token
        self._session = secrets.token_urlsafe(32)

    def fits(self, token: str) -> bool:
        """Whether this is the token."""
        return self._token is None or _equal(token, self._token)

    def knows(self, request: Request) -> bool:
        """Whether a browser that signed in asks, and not a page from elsewhere through it."""
        if self._token is None:
            return True
        # Another port of this machine is the same site to a cookie, but not the same origin.
        site = request.headers.get("sec-fetch-site", "none")
        if site not in ("same-origin", "none") and not _is_navigation(request):
            return False
        return _equal(request.cookies.get(_cookie(request), ""), self._session)

    def check(self, request: Request, shown: HTTPAuthorizationCredentials | None) -> None:
        """Turn away who has neither.

        Raises:
            HTTPException: 401 where nothing was shown, 403 where it is not the token.
        """
        if shown is None:
            if not self.knows(request):
                remedy = "send the header Authorization: Bearer TOKEN; browsers: /sign-in"
                raise HTTPException(401, remedy, headers={"WWW-Authenticate": "Bearer"})
        elif not self.fits(shown.credentials):
            raise HTTPException(403, "this is not the token")

    def open(self, request: Request, response: Response) -> None:
        """Give a browser the cookie."""
        response.set_cookie(
            _cookie(request),
            self._session,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )


def _is_navigation(request: Request) -> bool:
    """Whether somebody followed a link, whose answer only they see."""
    read = request.headers.get
    return read("sec-fetch-mode") == "navigate" and read("sec-fetch-dest") == "document"


def _equal(one: str, other: str) -> bool:
    return secrets.compare_digest(one.encode(), other.encode())


def _cookie(request: Request) -> str:
    """Ports share their cookies, so each service on a machine has a name of its own."""
    return f"stabmap-{request.url.port or request.url.scheme}"


def add_sign_in(app: FastAPI, door: Door) -> None:
    """The page on which a browser shows the token."""

    @app.get(SIGN_IN, include_in_schema=False, response_class=HTMLResponse)
    def page() -> Response:
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})

    @app.post(SIGN_IN, include_in_schema=False, status_code=204)
    def sign_in(shown: Shown, request: Request) -> Response:
        if not door.fits(shown.token):
            raise HTTPException(403, "this is not the token")
        response = Response(status_code=204)
        door.open(request, response)
        return response
