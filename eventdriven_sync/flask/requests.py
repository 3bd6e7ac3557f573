"""Requests as operations: begun before the view, stored when its request ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import flask
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from eventdriven_sync import context
from eventdriven_sync.envelope import utcnow
from eventdriven_sync.errors import EventDrivenError
from eventdriven_sync.executor import failure_of
from eventdriven_sync.flask import inputs
from eventdriven_sync.flask.views import Mark, mark_of
from eventdriven_sync.operations import OperationScope
from eventdriven_sync.outcome import Failure

if TYPE_CHECKING:
    from eventdriven_sync.flask.extension import AppState

log = logging.getLogger(__name__)

T = TypeVar("T")

HEADER = "X-Operation-Id"
MAX_SAID = 500
MAX_USER = 200
_SHORT_ANSWERS = ("application/json", "application/problem+json", "text/plain")
# On the request: its environ may be handed on to another application.
_ATTRIBUTE = "eventdriven_operation"


class TrackedRequest(OperationScope):
    """The operation of one request."""

    def __init__(self, state: AppState, mark: Mark) -> None:
        # The object itself: every look through Flask's proxy is paid for.
        self._request = request = flask.request._get_current_object()  # type: ignore[attr-defined]
        rule = request.url_rule
        super().__init__(
            state.bus,
            name=mark.name or str(request.endpoint)[:200],
            kind="http",
            variables={},
            user=None,
            details={
                "method": request.method,
                "path": rule.rule if rule else "",
                "endpoint": request.endpoint,
                "client": request.remote_addr,
            },
        )
        self._state = state
        self._mark = mark
        self.shown_id = self.id
        self.forgotten = False
        self._error: BaseException | None = None
        self._status = 0
        self._said = ""
        self._secrets: frozenset[str] = frozenset()
        self._streams = False
        self._left = False
        self._described = False
        self._concluded = False

    def note_error(self, error: BaseException) -> None:
        """The view, or what stands around it, raised this."""
        if not isinstance(error, GeneratorExit):  # the reader of a stream has gone, which is no failure
            self._error = error

    def note_answer(self, response: flask.Response) -> None:
        """The request is answered with this. A streamed answer is made within the operation, to its end."""
        self._status = response.status_code
        if not response.is_streamed:
            self._said = _said_by(response) if response.status_code >= 400 else ""
        elif self._error is None and _has_body(self._request, response):
            # Not what an exception was turned into, which is an iterator as well.
            self._streams = True
            response.response = _Stream(self, iter(response.response))
        self._leave()

    def replay(self, operation_id: str) -> None:
        """The answer is that of an earlier operation, which is shown instead of this one."""
        self.shown_id, self.forgotten = operation_id, True

    def repeat_as(self, key: str) -> None:
        """Another request under this key publishes the same events."""
        if self._own is not None:
            self._own.idempotency_key = key

    def _who(self) -> str | None:
        """The user as the application tells it, as it is stored."""
        try:
            found = self._state.user_id()
        except Exception:  # the application's own function
            log.exception("The function given to EventDriven.user failed; the operation has no user")
            return None
        return self._state.redaction.text(found)[:MAX_USER] if found else None

    def within(self, call: Callable[[], T]) -> T:
        """Call a part of the request that runs after its end."""
        outer = context.origin.get()
        context.origin.set(self._own)
        try:
            return call()
        finally:
            context.origin.set(outer)

    def finish(self) -> None:
        """The request's context ends: what only it knows is noted, and unless it streams that was all."""
        self._leave()
        if self.forgotten and not self._stored:
            return
        body = inputs.body_of(self._request)
        kept = self._kept(inputs.together(self._request, body))
        self.describe(variables=kept, details=self._answer(), user=self._who())
        self._described = True
        if self._error is not None or self._status >= 400 or self._streams:
            self._secrets = self._state.redaction.secrets(inputs.places_of_secrets(self._request, body))
        if self._error is not None or not self._streams:
            self.conclude()

    def _answer(self) -> dict[str, Any]:
        # What Flask could not even finish is answered by the server.
        status = self._status or (500 if self._error else None)
        return {"status_code": status} if status else {}

    def conclude(self) -> None:
        """It is over; that this cannot be stored does not take the answer back."""
        if self._concluded:
            return
        self._concluded = True
        try:
            self.end(self._failure(), timeout=self._state.options.http_timeout)
        except EventDrivenError as error:
            log.error(
                "Operation %s was answered with status %s, which was not stored: %s",
                self.id,
                self._status,
                error,
                extra={"action": "operation_not_stored", "operation": self.id},
            )
        # Its stack holds what holds this.
        self._error = None

    def _leave(self) -> None:
        # Once: a stream ends in whatever context its reader is in by then.
        if not self._left:
            self._left = True
            super()._leave()

    def _store_once(self) -> None:
        if self._stored:
            return
        if not self._described:
            # The body is left alone: the view that publishes now may still want to read it.
            self.describe(variables=self._kept(inputs.before_body(self._request)), user=self._who())
        self.store()

    def _plain(self, values: dict[str, Any]) -> dict[str, Any]:
        """What is said of a request is JSON-safe already: ``Redaction.document`` saw to it."""
        return values

    def _kept(self, everything: dict[str, Any]) -> dict[str, Any]:
        """What is stored of what the request was called with, redacted."""
        kept, chosen = self._state.options.http_variables, self._mark.variables
        if chosen is not None:
            everything = {name: everything[name] for name in chosen if name in everything}
        elif kept != "all":
            everything = dict(self._request.view_args or {}) if kept == "path" else {}
        return self._state.redaction.document(everything)

    def _failure(self) -> Failure | None:
        """What went wrong, without secrets: those of the request are looked for by their values as well."""
        error, status = self._error, self._status
        if status < 400 and (error is None or isinstance(error, HTTPException)):
            return None
        answered = error.response if isinstance(error, HTTPException) else None
        if error is not None and answered is None:
            failure = failure_of(error, below="flask.app")
        else:
            said = self._said if answered is None else _said_by(answered)
            failure = Failure(
                error_type=f"HTTP {status}", message=said, traceback="", failed_at=utcnow(), attempt=1
            )
        hide = partial(self._state.redaction.text, secrets=self._secrets)
        return attrs.evolve(failure, message=hide(failure.message), traceback=hide(failure.traceback))


class _Stream:
    """A streamed answer on its way to the client."""

    def __init__(self, tracked: TrackedRequest, parts: Iterator[Any]) -> None:
        self._tracked = tracked
        self._parts = parts

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> Any:
        try:
            return self._tracked.within(lambda: next(self._parts))
        except StopIteration:
            self._tracked.conclude()
            raise
        except BaseException as error:
            self._tracked.note_error(error)
            self._tracked.conclude()
            raise

    def close(self) -> None:
        """The server has sent it, or the client has gone."""
        close = getattr(self._parts, "close", None)
        if close is not None:
            self._tracked.within(close)
        self._tracked.conclude()


class Requests:
    """Makes the requests of one application operations."""

    def __init__(self, app: flask.Flask, state: AppState) -> None:
        self._app = app
        self._state = state

    def install(self) -> None:
        """Stand around the application's own functions, in whatever order they are registered.

        Functions of ``before_request`` and its like would not do: one that answers or fails keeps those
        after it from being called. What an error handler turns into an answer is seen nowhere else.
        """
        app: Any = self._app
        app.preprocess_request = partial(self._beginning, app.preprocess_request)
        app.handle_user_exception = partial(_noting_error, app.handle_user_exception)
        app.process_response = partial(_noting_answer, app.process_response)
        app.do_teardown_request = partial(_ending, app.do_teardown_request)

    def _beginning(self, preprocess: Callable[..., Any], *arguments: Any) -> Any:
        if self._state.options.embedded:
            self._state.embedded.ensure()
        view = self._app.view_functions.get(flask.request.endpoint or "")
        mark = mark_of(view, flask.request.method)
        if self._is_operation(mark):
            tracked = TrackedRequest(self._state, mark)
            tracked.begin()
            setattr(flask.request, _ATTRIBUTE, tracked)
        return preprocess(*arguments)

    def _is_operation(self, mark: Mark) -> bool:
        request, options = flask.request, self._state.options
        rule = request.url_rule
        if rule is None:  # a wrong URL or method: strangers must not fill the database
            return False
        if request.method == "OPTIONS" and getattr(rule, "provide_automatic_options", False):
            return False  # Flask's answer, the view is not asked
        if mark.tracked is not None:
            return mark.tracked
        skipped = {request.endpoint, *request.blueprints} & options.http_skip
        return request.method in options.http_methods and not skipped


def current() -> TrackedRequest | None:
    """The operation of the current request, or None."""
    found = getattr(flask.request, _ATTRIBUTE, None) if flask.has_request_context() else None
    return found if isinstance(found, TrackedRequest) else None


def _noting_error(handle: Callable[..., Any], *arguments: Any) -> Any:
    if tracked := current():
        tracked.note_error(arguments[-1])
    return handle(*arguments)


def _noting_answer(process: Callable[..., Any], *arguments: Any) -> Any:
    response = process(*arguments)
    if tracked := current():
        tracked.note_answer(response)
        response.headers[HEADER] = tracked.shown_id
    return response


def _ending(tear_down: Callable[..., None], *arguments: Any) -> None:
    """Functions for the end of a request belong to its operation, which ends although they fail."""
    tracked = current()
    if tracked is None:
        return tear_down(*arguments)
    if arguments and isinstance(arguments[-1], BaseException):
        tracked.note_error(arguments[-1])
    try:
        tracked.within(lambda: tear_down(*arguments))
    except BaseException as error:
        tracked.note_error(error)
        raise
    finally:
        delattr(flask.request, _ATTRIBUTE)
        tracked.finish()


def _has_body(request: flask.Request, response: flask.Response) -> bool:
    return request.method != "HEAD" and response.status_code not in (204, 304)


def _said_by(response: object) -> str:
    """What an answer says, if it is a short text for people or programs."""
    if not isinstance(response, Response) or response.is_streamed or response.direct_passthrough:
        return ""
    if response.mimetype not in _SHORT_ANSWERS:
        return ""
    return response.get_data()[: 4 * MAX_SAID].decode(errors="replace")[:MAX_SAID]
