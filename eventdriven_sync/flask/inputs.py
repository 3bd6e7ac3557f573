"""What a request was called with: its path, query, form and JSON, and where secrets may stand in it."""

from __future__ import annotations

import logging
from typing import Any

import flask
from werkzeug.datastructures import FileStorage, MultiDict
from werkzeug.exceptions import HTTPException

log = logging.getLogger(__name__)

# Larger bodies are not looked into: their view may never have read them.
MAX_BODY = 64 * 1024
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
# Cookies are secret whatever their names; as for the short ones, "dark" would be hidden in every text.
_SHORTEST_COOKIE = 8


def before_body(request: flask.Request) -> dict[str, Any]:
    """The path and the query, where the view may still want to read the body."""
    return together(request, {})


def together(request: flask.Request, body: dict[str, Any]) -> dict[str, Any]:
    """Of equal names the path wins over the body, that over the query."""
    return {**_fields(request.args), **body, **(request.view_args or {})}


def body_of(request: flask.Request) -> dict[str, Any]:
    """The fields of a form or JSON object. A body that the view did not parse is parsed if it is small."""
    if not _was_read(request) and not 0 < (request.content_length or 0) <= MAX_BODY:
        return {}
    try:
        return _form(request) if request.mimetype in FORMS else _json(request)
    except (HTTPException, OSError):  # too large, or the client has gone: the view's affair
        return {}
    except Exception as error:  # nested too deeply, or the application's own parser
        log.warning("The body of a request is not looked into: %s", type(error).__name__)
        return {}


def places_of_secrets(request: flask.Request, body: dict[str, Any]) -> list[Any]:
    """Everything that a text about this request may quote, also what is not stored of it."""
    credentials = request.authorization
    return [
        _fields(request.args),
        body,
        request.view_args,
        {"cookies": [value for value in request.cookies.values() if len(value) >= _SHORTEST_COOKIE]},
        dict(request.headers),
        {"password": credentials.get("password"), "token": credentials.token} if credentials else {},
    ]


def _was_read(request: flask.Request) -> bool:
    """Whether the application has read the body, other than as a stream."""
    return not {"form", "_cached_data", "_cached_json"}.isdisjoint(vars(request))


def _json(request: flask.Request) -> dict[str, Any]:
    # Many a webhook sends JSON under another type, and many a view reads it all the same.
    if not request.is_json and not _was_read(request):
        return {}
    found = request.get_json(force=True, silent=True)
    return found if isinstance(found, dict) else {} if found is None else {"json": found}


def _form(request: flask.Request) -> dict[str, Any]:
    files = {name: [_file(each) for each in request.files.getlist(name)] for name in request.files}
    return _fields(request.form) | {name: each[0] if len(each) == 1 else each for name, each in files.items()}


def _fields(values: MultiDict[str, str]) -> dict[str, Any]:
    return {name: each[0] if len(each) == 1 else each for name, each in values.lists()}


def _file(upload: FileStorage) -> str:
    return f"file {upload.filename or 'without a name'}"
