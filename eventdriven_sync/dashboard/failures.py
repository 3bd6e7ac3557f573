"""What an error becomes: a page or a JSON document that says what the caller can do, and nothing else."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus

import attrs
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect
from werkzeug.wrappers import Response

from eventdriven_sync.dashboard.access import Kind
from eventdriven_sync.dashboard.passwords import TooBusy
from eventdriven_sync.dashboard.rendering import render
from eventdriven_sync.envelope import new_id
from eventdriven_sync.errors import (
    BrokerUnavailable,
    CodecError,
    InvalidEventId,
    InvalidOption,
    InvalidTransition,
    NotFound,
    PublishOutcomeUnknown,
    QueryTooSlow,
    StoreUnavailable,
)

log = logging.getLogger(__name__)

PROBLEM = "application/problem+json"

# What the caller can mend, with the library's own message.
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (NotFound, 404),
    (InvalidTransition, 409),
    (InvalidOption, 400),
    (InvalidEventId, 400),
    (CodecError, 400),
    (QueryTooSlow, 400),
)
_AWAY = (StoreUnavailable, BrokerUnavailable, PublishOutcomeUnknown, TooBusy)


@attrs.frozen(kw_only=True)
class Problem:
    """What the caller is told.

    Attributes:
        status: the HTTP status.
        detail: what is wrong and how to mend it.
        error_id: by which the log knows more, if there is more.
        headers: what the status demands, such as ``Retry-After``.
    """

    status: int
    detail: str
    error_id: str = ""
    headers: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def title(self) -> str:
        """The status in words."""
        return HTTPStatus(self.status).phrase


def respond(error: Exception, kind: Kind) -> Response:
    """The response to an error of a view or of what stands before it."""
    if isinstance(error, RequestRedirect):
        return Response(status=error.code, headers={"Location": error.new_url})
    problem = problem_of(error)
    response = _page(problem) if kind == "page" else _document(problem)
    response.headers.extend(problem.headers)
    return response


def problem_of(error: Exception) -> Problem:
    """What to say about an error. What is not the caller's affair goes to the log, under an id."""
    if isinstance(error, HTTPException):
        return _refusal(error)
    for type_, status in _STATUS:
        if isinstance(error, type_):
            return Problem(status=status, detail=str(error))
    error_id = new_id()
    extra = {"action": "dashboard_failed", "error_id": error_id}
    if isinstance(error, _AWAY):
        log.warning("Dashboard: a server is away, error %s: %s", error_id, error, extra=extra)
        detail = "A server cannot be reached at the moment; try again."
        return Problem(status=503, detail=detail, error_id=error_id, headers={"Retry-After": "5"})
    log.error("Dashboard: error %s", error_id, exc_info=error, extra=extra)
    return Problem(status=500, detail="Something went wrong; the log knows more.", error_id=error_id)


def _refusal(error: HTTPException) -> Problem:
    status = error.code or 500
    headers = {name: value for name, value in error.get_headers() if name in ("Retry-After", "Allow")}
    return Problem(status=status, detail=error.description or "", headers=headers)


def _page(problem: Problem) -> Response:
    return render("error.html", status=problem.status, problem=problem)


def _document(problem: Problem) -> Response:
    found = {"title": problem.title, "status": problem.status, "detail": problem.detail}
    found |= {"error_id": problem.error_id} if problem.error_id else {}
    return Response(json.dumps(found), problem.status, mimetype=PROBLEM)
