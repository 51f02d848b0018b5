"""Verbs that look after what sweeps leave behind: fsck and serve."""

from __future__ import annotations

import json
import secrets
import shlex
import socket
import sys
from typing import Annotated

import typer

from stabmap.cli_cluster import find_here, kept_spec
from stabmap.cli_parts import (
    AsJson,
    Home,
    Insecure,
    TaskFiles,
    load_task_files,
    plain_errors,
    task_words,
)
from trainables.domain import InputError, Mistake, UnreachableError

verbs = typer.Typer()

#: Environment variable with the service's token; TOKEN_FILE names a file that holds it.
TOKEN = "STABMAP_TOKEN"
#: Seconds in which open answers may end when the service is stopped.
GRACE = 2


@verbs.command()
@plain_errors
def fsck(
    sweep: Annotated[str, typer.Argument(help="Hash, MLflow id, title or folder of a sweep.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Write what is missing, take out what is doubled.")
    ] = False,
    folder: Home = None,
    tasks: TaskFiles = None,
    as_json: AsJson = False,
) -> None:
    """Say whether the store, the database, Optuna and MLflow agree on every point of a sweep.

    The sweep must not be running. Exit code 1: they disagree.
    """
    from sweeps import fsck as checks

    load_task_files(tasks)
    spec = kept_spec(find_here(sweep, folder))
    before, report = checks.repair(spec) if repair else (None, checks.check(spec))
    if as_json:
        print(json.dumps(report.to_dict() | ({"before": before.to_dict()} if before else {})))
    else:
        for finding in before.findings if before else ():
            print(f"was {finding}")
        for finding in report.findings:
            print(finding)
        verdict = "disagree" if report.findings else "agree"
        print(f"sweep {report.sweep}: {report.points} points; the records {verdict}")
    if report.findings:
        if not repair:
            again = ["stabmap", "fsck", sweep, "--repair"]
            again += ["--folder", str(folder)] if folder else []
            again += task_words(tasks)
            print(f"mend with: {shlex.join(again)}", file=sys.stderr)
        raise typer.Exit(1)


@verbs.command()
@plain_errors
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8787,
    folder: Home = None,
    insecure: Insecure = False,
) -> None:
    """Answer questions about maps over HTTP, read-only.

    Callers show the token in STABMAP_TOKEN, or in the file that STABMAP_TOKEN_FILE names; without
    either one is made up and shown here. A browser is let in by the link that is printed. GET /docs
    describes the questions.
    """
    import uvicorn

    from analysis.hosts import is_loopback_host
    from analysis.load import home
    from analysis.serve import create_app
    from analysis.sign_in import SIGN_IN
    from sweeps.secrets import read_secret

    token = None if insecure else read_secret(TOKEN)
    if made_up := token is None and not insecure:
        if not is_loopback_host(host):
            law = "a service that others can reach needs a token of yours"
            remedy = f"set {TOKEN} or {TOKEN}_FILE, or allow everyone with --insecure"
            raise InputError([Mistake("host", host, law, remedy)])
        token = secrets.token_urlsafe(24)
    local = ["127.0.0.1", "localhost", "[::1]", host]
    app = create_app(folder or home(), token, local if is_loopback_host(host) else None)
    with _listening(host, port) as listener:
        if made_up:
            print(f"token     {token}", file=sys.stderr)
        shown = f"[{host}]" if ":" in host else host
        place = f"http://{shown}:{listener.getsockname()[1]}"
        print(f"listening on {place}", file=sys.stderr)
        # A token of the user's is not shown: the page asks for it.
        path = "/" if token is None else f"{SIGN_IN}#{token}" if made_up else SIGN_IN
        print(f"browser   {place}{path}", file=sys.stderr, flush=True)
        # Streams of events have no end of their own.
        config = uvicorn.Config(
            app, host=host, log_level="warning", timeout_graceful_shutdown=GRACE
        )
        uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that takes calls."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:  # a name with an empty part is a UnicodeError
        raise UnreachableError(
            f"host = {host!r}: nothing can listen at its port {port} ({error}); choose another"
        ) from error
