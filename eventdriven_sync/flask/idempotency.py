"""The ``Idempotency-Key`` header: the same request is answered once, and then with the same answer.

After the draft https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/: 400 for a
key that is missing or cannot be used, 409 while the first request runs, 422 for another request.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import flask
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import HTTPException
from werkzeug.wsgi import ClosingIterator

from eventdriven_sync.envelope import new_id
from eventdriven_sync.errors import EventDrivenError, StoreError
from eventdriven_sync.flask.requests import TrackedRequest, current
from eventdriven_sync.records import Reply

if TYPE_CHECKING:
    from eventdriven_sync.flask.extension import AppState

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
MAX_KEY = 255
MAX_BODY = 8 * 1024 * 1024
MAX_REPLY = 4 * 1024 * 1024
# Of the connection or of one client's session, or said anew with every answer.
_NOT_KEPT = frozenset({"set-cookie", "date", "server", "connection", "content-length", "x-operation-id"})
# They speak of a body, and are not kept without it.
_OF_BODY = frozenset({"content-type", "content-encoding", "content-disposition", "content-range", "etag"})
_TOO_MANY_REQUESTS = 429
_PART = 64 * 1024


def answer_once(view: F, state_of: Callable[[flask.Flask], AppState], *, required: bool) -> F:
    """The view, run once per key; see ``EventDriven.idempotent``."""

    @functools.wraps(view)
    def call(*arguments: Any, **named: Any) -> Any:
        key = flask.request.headers.get(HEADER)
        if key is None and not required:
            return run(*arguments, **named)
        _check(key)
        state = state_of(flask.current_app._get_current_object())  # type: ignore[attr-defined]
        return _Once(state, str(key)).answer(lambda: run(*arguments, **named))

    def run(*arguments: Any, **named: Any) -> Any:
        return flask.current_app.ensure_sync(view)(*arguments, **named)

    return call  # type: ignore[return-value]


class _Once:
    """One request with a key."""

    def __init__(self, state: AppState, key: str) -> None:
        self._tracked = current()
        self._options = state.options
        self._hides = state.redaction.hides
        state.bus.open()
        self._replies = state.bus.store.idempotency
        # Without a user whom the application cannot name, or one would get the answer of another.
        self._key = _digest(str(flask.request.endpoint), state.user_id() or "", key)
        self._token = new_id()

    def answer(self, view: Callable[[], Any]) -> Any:
        """The view's answer, or the first one again."""
        request = flask.request
        fingerprint = _digest(request.method, request.path, request.query_string, *_body(request))
        found = self._replies.begin(
            self._key,
            fingerprint=fingerprint,
            token=self._token,
            lease=self._options.idempotency_lease,
            keep=self._options.idempotency_keep,
        )
        if found.fingerprint != fingerprint:
            _refuse(422, f"this {HEADER} was used for another request: use a new key for a new request")
        if found.state == "running":
            _refuse(409, f"the first request with this {HEADER} is still running: try again", retry_after=1)
        if found.reply is not None:
            return self._again(found.reply)
        return self._first(view)

    def _first(self, view: Callable[[], Any]) -> flask.Response:
        if self._tracked:
            # Should this process die now, the client's second try publishes the same events.
            self._tracked.repeat_as(f"http:{self._key}")
        try:
            response = flask.make_response(_answer_of(view, self._tracked))
            kept = response.status_code < 500 and response.status_code != _TOO_MANY_REQUESTS
            body = _content(response) if kept else None
        except BaseException:
            self._abandon()
            raise
        if kept:
            self._keep(response, body)
        else:
            self._abandon()
        return response

    def _abandon(self) -> None:
        try:
            self._replies.abandon(self._key, token=self._token)
        except StoreError as error:
            lease = self._options.idempotency_lease
            log.error("An %s is free again only when its lease of %g s ends: %s", HEADER, lease, error)

    def _keep(self, response: flask.Response, body: bytes | None) -> None:
        if body is None:
            log.warning("An answer of more than %d bytes is kept without its body", MAX_REPLY)
        left_out = _NOT_KEPT if body is not None else _NOT_KEPT | _OF_BODY
        reply = Reply(
            status=response.status_code,
            headers=tuple((n, v) for n, v in response.headers.items() if self._keeps(n.lower(), left_out)),
            body=body or b"",
            operation_id=self._tracked.id if self._tracked else None,
        )
        try:
            self._replies.finish(
                self._key, token=self._token, reply=reply, keep=self._options.idempotency_keep
            )
        except EventDrivenError as error:
            # The view has done its work: a client that is told otherwise would do it again.
            log.error("The answer to an %s was not kept, a repeated request runs again: %s", HEADER, error)

    def _keeps(self, header: str, left_out: frozenset[str]) -> bool:
        secret = self._hides(header) and not header.startswith("access-control-")
        return header not in left_out and not secret

    def _again(self, reply: Reply) -> flask.Response:
        response = flask.make_response(reply.body, reply.status)
        response.headers.clear()
        response.headers.extend(reply.headers)
        response.headers[REPLAYED] = "true"
        if self._tracked and reply.operation_id:
            self._tracked.replay(reply.operation_id)
        return response


def _answer_of(view: Callable[[], Any], tracked: TrackedRequest | None) -> Any:
    """What the view returns; what it aborts with is an answer as well, and is kept like one."""
    try:
        return view()
    except HTTPException as error:
        if tracked:
            tracked.note_error(error)
        return flask.current_app.handle_http_exception(error)


def _content(response: flask.Response) -> bytes | None:
    """The body of an answer, which stays readable; None if it is too large to be kept."""
    response.direct_passthrough = False
    if not response.is_streamed:
        body = response.get_data()
        return body if len(body) <= MAX_REPLY else None
    parts = response.iter_encoded()
    read, size = _up_to(MAX_REPLY, parts)
    close = getattr(response.response, "close", None)
    if size > MAX_REPLY:
        response.response = ClosingIterator(chain(read, parts), close)
        return None
    if close is not None:
        response.call_on_close(close)
    response.response = read
    return b"".join(read)


def _body(request: flask.Request) -> list[bytes]:
    """What the request says, to be compared; the view can read it all the same."""
    if (request.content_length or 0) > MAX_BODY:
        _refuse_body()
    read, size = _up_to(MAX_BODY, iter(lambda: request.stream.read(_PART), b""))
    if size > MAX_BODY:
        _refuse_body()
    request.stream = io.BytesIO(b"".join(read))
    data = request.get_data()  # this, or what was read before us
    request.stream = io.BytesIO(data)
    # A form that was parsed before us has left no data, and one with files separates them anew each time.
    multipart = request.mimetype == "multipart/form-data"
    form = _form(request) if multipart or "form" in vars(request) else []
    return [*form, b"" if multipart else data]


def _form(request: flask.Request) -> list[bytes]:
    files = [
        [name, each.filename, _file_digest(each)]
        for name in request.files
        for each in request.files.getlist(name)
    ]
    return [json.dumps([list(request.form.lists()), files]).encode()]


def _file_digest(file: FileStorage) -> str:
    file.stream.seek(0)
    digest = hashlib.file_digest(file.stream, "sha256").hexdigest()  # type: ignore[arg-type]
    file.stream.seek(0)
    return digest


def _up_to(limit: int, parts: Iterable[bytes]) -> tuple[list[bytes], int]:
    """The parts until there are more bytes than the limit, and how many they have."""
    read, size = [], 0
    for part in parts:
        read.append(part)
        size += len(part)
        if size > limit:
            break
    return read, size


def _refuse_body() -> NoReturn:
    _refuse(413, f"the body has more than {MAX_BODY:,} bytes, the limit for requests with an {HEADER}")


def _check(key: str | None) -> None:
    if key is None:
        _refuse(400, f"give the header {HEADER}: a new value, such as a UUID, for each new request")
    if not 0 < len(key) <= MAX_KEY or not key.isprintable():
        _refuse(400, f"the header {HEADER} must be 1 to {MAX_KEY} printable characters, it has {len(key)}")


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()


def _refuse(status: int, why: str, *, retry_after: int | None = None) -> NoReturn:
    response = flask.jsonify(error=why)
    response.status_code = status
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    flask.abort(response)
