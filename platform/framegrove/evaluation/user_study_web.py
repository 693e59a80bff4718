"""The study's page and what it asks its server: pairs without names, and where choices are sent.

Nothing that reaches a browser says which setting made a video: a pair and its videos have addresses that are hashes
with a secret of the study's.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, StringConstraints
from sqlalchemy.exc import DatabaseError
from starlette.requests import Request
from starlette.responses import Response

from framegrove.evaluation.user_study import QUESTIONS, Better, Choice, Pair, is_swapped, next_pair
from framegrove.evaluation.user_study_store import StudyStore
from framegrove.serving.origins import CrossSite, ForeignHosts, allowed_hosts

log = logging.getLogger(__name__)

_PAGE = Path(__file__).parent / "page"
_FILES = {"user_study.css": "text/css", "user_study.js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

Person = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1, max_length=60)]
Answer = Literal["left", "right", "tie"]


class Answers(BaseModel):
    """What the page sends: who chose, between what, and how on each question."""

    model_config = ConfigDict(extra="forbid")
    person: Person
    pair: str
    aesthetics: Answer
    motion: Answer
    alignment: Answer


def build_study(folder: Path, pairs: Sequence[Pair], store: StudyStore, host: str = "127.0.0.1") -> FastAPI:
    """The application, for videos below ``folder``; ``host`` is the address that it is served at."""
    app = FastAPI(title="Framegrove study", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(CrossSite, origins=())
    hosts = allowed_hosts(host, ())
    if hosts is not None:
        app.add_middleware(ForeignHosts, hosts=hosts)
    by_token = {_token(store.secret, "pair", repr(pair.key)): pair for pair in pairs}
    tokens = {pair.key: token for token, pair in by_token.items()}
    videos = {_token(store.secret, "video", file): folder / file for pair in pairs for file in pair.files}

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(_PAGE / "user_study.html", headers=_HEADERS)

    @app.get("/page/{name}")
    def file(name: str) -> Response:
        if name not in _FILES:
            return _refusal(404, "there is no such file")
        return FileResponse(_PAGE / name, media_type=_FILES[name], headers=_HEADERS)

    @app.get("/next")
    def next_(person: Annotated[Person, Query()]) -> JSONResponse:
        answered = store.answered()
        done = sum(person in people for people in answered.values())
        found = next_pair(person, pairs, answered)
        shown = None
        if found is not None:
            left, right = reversed(found.files) if is_swapped(person, found) else found.files
            shown = {
                "token": tokens[found.key],
                "prompt": found.prompt,
                "left": f"video/{_token(store.secret, 'video', left)}",
                "right": f"video/{_token(store.secret, 'video', right)}",
            }
        return JSONResponse({"done": done, "all": len(pairs), "pair": shown}, headers={"Cache-Control": "no-store"})

    @app.post("/choices")
    def choose(answers: Answers) -> JSONResponse:
        pair = by_token.get(answers.pair)
        if pair is None:
            return _refusal(404, "this pair is not in the study any more: reload the page")
        swapped = is_swapped(answers.person, pair)
        sides: dict[str, Better] = {"tie": "tie", "left": "one", "right": "other"}
        if swapped:
            sides |= {"left": "other", "right": "one"}
        new = store.add(
            Choice(answers.person, pair.key, question, sides[getattr(answers, question)], "other" if swapped else "one")
            for question in QUESTIONS
        )
        return JSONResponse({"new": new})

    @app.get("/video/{token}")
    def video(token: str) -> Response:
        path = videos.get(token)
        if path is None or not path.is_file():
            return _refusal(404, "there is no such video")
        return FileResponse(path, media_type="video/mp4", headers={"X-Content-Type-Options": "nosniff"})

    @app.exception_handler(DatabaseError)
    def not_kept(request: Request, error: DatabaseError) -> JSONResponse:
        log.error("a study's file cannot be used: %s", error.orig, exc_info=error)
        return _refusal(503, "your answers could not be kept: tell whoever runs the study, and send them again")

    @app.exception_handler(RequestValidationError)
    def not_allowed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return _refusal(400, f"{first['loc'][-1]}: {first['msg'][0].lower()}{first['msg'][1:]}")

    return app


def _refusal(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status)


def _token(secret: str, *parts: str) -> str:
    return hmac.new(secret.encode(), "\n".join(parts).encode(), "sha256").hexdigest()[:32]
