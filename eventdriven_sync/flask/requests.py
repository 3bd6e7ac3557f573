"""Requests as operations: begun before the view, stored when its request ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import flask
from werkzeug.datastructures import FileStorage, MultiDict
from werkzeug.exceptions import HTTPException

from eventdriven_sync import context
from eventdriven_sync.envelope import utcnow
from eventdriven_sync.errors import EventDrivenError
from eventdriven_sync.executor import failure_of
from eventdriven_sync.flask.views import Mark, mark_of
from eventdriven_sync.operations import OperationScope
from eventdriven_sync.outcome import Failure

if TYPE_CHECKING:
    from eventdriven_sync.flask.extension import AppState

log = logging.getLogger(__name__)

T = TypeVar("T")

HEADER = "X-Operation-Id"
# Larger bodies are not looked into: their view may never have read them.
MAX_BODY = 64 * 1024
MAX_SAID = 500
_SHORT_ANSWERS = ("application/json", "application/problem+json", "text/plain")
_KEY = "eventdriven.request"

FindUser = Callable[[], Callable[[], object] | None]


class TrackedRequest(OperationScope):
    """The operation of one request."""

    def __init__(self, state: AppState, mark: Mark, user: Callable[[], object] | None) -> None:
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
        self._find_user = user
        self.shown_id = self.id
        self.forgotten = False
        self._error: BaseException | None = None
        self._status = 0
        self._said = ""
        self._secrets: frozenset[str] = frozenset()
        self._streams = False
        self._concluded = False

    def note_error(self, error: BaseException) -> None:
        """The view, or what stands before it, raised this."""
        self._error = error

    def note_answer(self, response: flask.Response) -> None:
        """The request is answered with this. A streamed answer is made within the operation, to its end."""
        self._status = response.status_code
        if response.direct_passthrough:
            return
        if not response.is_streamed:
            failed = response.status_code >= 400 and response.mimetype in _SHORT_ANSWERS
            self._said = response.get_data(as_text=True)[:MAX_SAID] if failed else ""
        elif self._error is None:  # what an exception was turned into is an iterator as well
            self._streams = True
            response.response = _Stream(self, iter(response.response))

    def replay(self, operation_id: str) -> None:
        """The answer is that of an earlier operation, which is shown instead of this one."""
        self.shown_id, self.forgotten = operation_id, True

    def repeat_as(self, key: str) -> None:
        """Another request under this key publishes the same events."""
        if self._own is not None:
            self._own.idempotency_key = key

    def who(self) -> str | None:
        """The user as the application tells it."""
        try:
            found = self._find_user() if self._find_user else None
        except Exception:  # the application's own function
            log.exception("The function given to EventDriven.user failed; the operation has no user")
            return None
        return None if found is None or found == "" else str(found)[:200]

    def within(self, call: Callable[[], T]) -> T:
        """Call a part of the request that runs after its end."""
        outer = context.origin.get()
        context.origin.set(self._own)
        try:
            return call()
        finally:
            context.origin.set(outer)

    def leave(self) -> None:
        """The request's context ends: what only it knows is noted, and unless it streams that was all."""
        if self.forgotten:
            self.forget()
            return
        everything = _everything(self._request, with_body=True)
        self.describe(
            variables=self._kept(everything), details={"status_code": self._status}, user=self.who()
        )
        if self._error is not None or self._status >= 400 or self._streams:
            self._secrets = self._state.redaction.secrets(everything)
        self._leave()
        if not self._streams:
            self.conclude()

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

    def _store_once(self) -> None:
        if not self._stored:
            # The body is left alone: the view that publishes now may still want to read it.
            everything = _everything(self._request, with_body=False)
            self.describe(variables=self._kept(everything), user=self.who())
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
        if error is not None:
            failure = failure_of(error, below="flask.app")
        else:
            failure = Failure(
                error_type=f"HTTP {status}", message=self._said, traceback="", failed_at=utcnow(), attempt=1
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

    def install(self, user: FindUser) -> None:
        """Hook into the application.

        Args:
            user: gives the function that says who the user is, or None.
        """
        self._app.before_request(partial(self._begin, user))
        self._app.after_request(_answered)
        self._app.teardown_request(_end)
        # What an error handler of the application turns into an answer is seen nowhere else.
        handle: Callable[..., Any] = self._app.handle_user_exception
        noting: Any = partial(_noting_error, handle)
        self._app.handle_user_exception = noting  # type: ignore[method-assign]

    def _begin(self, user: FindUser) -> None:
        if self._state.options.embedded:
            self._state.embedded.ensure()
        mark = mark_of(self._app.view_functions.get(flask.request.endpoint or ""))
        if not self._is_operation(mark):
            return
        tracked = TrackedRequest(self._state, mark, user())
        tracked.begin()
        flask.request.environ[_KEY] = tracked

    def _is_operation(self, mark: Mark) -> bool:
        request, options = flask.request, self._state.options
        if request.url_rule is None:  # a wrong URL or method: strangers must not fill the database
            return False
        if mark.tracked is not None:
            return mark.tracked
        skipped = {request.endpoint, *request.blueprints} & options.http_skip
        return request.method in options.http_methods and not skipped


def current() -> TrackedRequest | None:
    """The operation of the current request, or None."""
    found = flask.request.environ.get(_KEY) if flask.has_request_context() else None
    return found if isinstance(found, TrackedRequest) else None


def _noting_error(handle: Callable[..., Any], *arguments: Any) -> Any:
    if tracked := current():
        tracked.note_error(arguments[-1])
    return handle(*arguments)


def _answered(response: flask.Response) -> flask.Response:
    if tracked := current():
        tracked.note_answer(response)
        response.headers[HEADER] = tracked.shown_id
    return response


def _end(error: BaseException | None) -> None:
    if tracked := current():
        del flask.request.environ[_KEY]
        if error is not None:
            tracked.note_error(error)
        tracked.leave()


def _everything(request: flask.Request, *, with_body: bool) -> dict[str, Any]:
    """What the request was called with; of equal names the path wins over the body, that over the query."""
    body = _body(request) if with_body else {}
    return {**_fields(request.args), **body, **(request.view_args or {})}


def _body(request: flask.Request) -> dict[str, Any]:
    """The fields of a form or JSON object. A body that the view did not parse is parsed if it is small."""
    if "form" not in vars(request) and not 0 < (request.content_length or 0) <= MAX_BODY:
        return {}
    try:
        if request.is_json:
            found = request.get_json(silent=True)
            return found if isinstance(found, dict) else {} if found is None else {"json": found}
        files = {name: [_file(each) for each in request.files.getlist(name)] for name in request.files}
        return _fields(request.form) | {
            name: each[0] if len(each) == 1 else each for name, each in files.items()
        }
    except (HTTPException, OSError):  # too large, or the client has gone: the view's affair
        return {}


def _fields(values: MultiDict[str, str]) -> dict[str, Any]:
    return {name: each[0] if len(each) == 1 else each for name, each in values.lists()}


def _file(upload: FileStorage) -> str:
    return f"file {upload.filename or 'without a name'}"
