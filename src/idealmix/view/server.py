"""The page of a run over HTTP, on the loopback address only.

Flows in: a run folder. Flows out: two answers, the page at ``/`` and at ``/state`` a word that changes when a phase begins
or ends; the page asks for it and loads itself again. The path of a request is compared with these two and used for
nothing else. Requests that name another host are refused, so that no web page can reach the run by a name of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from idealmix.disk import read_json
from idealmix.errors import IdealmixError, InputError
from idealmix.report import words
from idealmix.report.answers import answers_in
from idealmix.report.page import build, check, live_script
from idealmix.report.templates import render
from idealmix.report.whatif import WhatIf, load
from idealmix.rounds.folder import SEARCH
from idealmix.view import progress


def check_run(run: Path) -> None:
    """Refuse what is no run folder.

    Raises:
        InputError: nothing is there, or something else.
    """
    mend = "give the folder that `idealmix run` wrote to (its config's `output`)"
    if not run.is_dir():
        raise InputError("there is no such run folder", where=str(run), mend=mend)
    if not any((run / name).is_file() for name in ("result.json", *_COMPARISONS)):
        if not (run / "config.yaml").is_file() or not (run / ".phases").is_dir():
            raise InputError("this folder is not a run of idealmix", where=str(run), mend=mend)
        progress.read_config(run)


def state(run: Path) -> str:
    """A word that changes whenever a phase of the run, or of its search, begins or ends, or a result is written."""
    runs = (run, run / SEARCH)
    markers = (marker for one in runs for marker in progress.files_below(one / ".phases", ".done"))
    seen = progress.dated([*(one / name for one in runs for name in _RESULTS), *markers])
    return hashlib.sha256(repr((seen, progress.current(run))).encode()).hexdigest()[:16]


def page(run: Path, now: str) -> str:
    """The run's page at the state `now`: its report, its comparison, or how far it has come.

    Raises:
        InputError: a file of the run is damaged, of another version, or gone while it was read.
    """
    try:
        return _page(run, now)
    except OSError as error:
        raise InputError(
            f"a file of this run cannot be read now: {error.strerror or error}",
            where=str(error.filename or run),
            mend="look again: the run may be writing it",
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, UndefinedError) as error:
        raise InputError(
            f"a file of this run is damaged or of another version: {type(error).__name__} {error}",
            where=str(run),
        ) from error


def _page(run: Path, now: str) -> str:
    if (run / "result.json").is_file():
        result = read_json(run / "result.json")
        check(result)
        return build(result, load(run, result), answers=answers_in(run / "diagnose"), live=now)
    for name in _COMPARISONS:
        if (run / name).is_file():
            from idealmix.comparison.page import build as build_comparison

            return build_comparison(read_json(run / name), live=now)
    result = _search(run) if (run / SEARCH / ".phases").is_dir() else progress.partial(run)
    if result is not None:
        result["under_way"] += _now(run)
        return build(result, WhatIf(None, "They come when the run has ended."), live=now)
    return _waiting(
        run,
        now,
        "Under way: nothing is evaluated yet.",
        _now(run) or "No phase is going on.",
        progress.finished(run),
    )


def _search(run: Path) -> dict[str, Any] | None:
    """How far the search of a run has come, or what it found while its mixture is trained in full."""
    where = run / SEARCH
    if not (where / "result.json").is_file():
        result = progress.partial(where)
    else:
        result = read_json(where / "result.json")
        check(result)
        result["under_way"] = "The search has ended; its mixture is trained at the full size."
    return result and {**result, "name": f"{run.resolve().name}, {where.name}"}


def serve(run: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server for a run on 127.0.0.1; `port` 0: a free one. The caller calls ``serve_forever``.

    Raises:
        InputError: it is no run, or the port is taken.
    """
    check_run(run)

    class Handler(_Handler):
        folder = run
        hosts = frozenset[str]()

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"port {port} cannot be used: {error}",
            where="--port",
            mend="leave it out, and a free one is taken",
        ) from None
    Handler.hosts = frozenset(f"{host}:{port_of(server)}" for host in ("127.0.0.1", "localhost"))
    server.daemon_threads = True
    return server


def port_of(server: ThreadingHTTPServer) -> int:
    """The port that a server listens at."""
    return int(server.socket.getsockname()[1])


_COMPARISONS = ("comparison.json", "compare/comparison.json")
_RESULTS = ("result.json", "draw.json", *_COMPARISONS)


def _now(run: Path) -> str:
    doing = progress.current(run)
    return f" Now: {', '.join(doing)}." if doing else ""


def _waiting(run: Path, now: str, title: str, said: str, done: Mapping[str, float] | None = None) -> str:
    """A page that has nothing to show yet but the finished phases."""
    return render(
        "waiting.html",
        "idealmix.view",
        name=run.resolve().name,
        live=now,
        words=words,
        title=title,
        said=said,
        done=done,
        **live_script(),
    )


class _Handler(BaseHTTPRequestHandler):
    folder: Path
    hosts: frozenset[str]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.headers.get("Host", "") not in self.hosts:
            self._answer(403, "This server answers only to 127.0.0.1 and localhost.")
        elif self.path == "/state":
            self._answer(200, state(self.folder))
        elif self.path == "/":
            now = state(self.folder)
            try:
                html = page(self.folder, now)
            except IdealmixError as error:  # a file is replaced, or damaged: the next state may be better
                html = _waiting(self.folder, now, "This cannot be shown.", error.message())
            self._answer(200, html, "text/html")
        else:
            self._answer(404, "There is only the page at /.")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _answer(self, status: int, text: str, kind: str = "text/plain") -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
        ):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not told."""
