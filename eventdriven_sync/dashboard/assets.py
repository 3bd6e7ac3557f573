"""The dashboard's own CSS, scripts and pictures, under URLs that change with their content."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from flask import send_from_directory
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

from eventdriven_sync.dashboard.headers import IMMUTABLE
from eventdriven_sync.dashboard.mount import url
from eventdriven_sync.dashboard.routing import Routes

FOLDER = Path(__file__).parent / "static"

files = Routes(kind="file")


@cache
def files_version() -> str:
    """A digest of all files: one for all, so that scripts can import each other by relative paths."""
    digest = hashlib.sha256()
    for path in sorted(FOLDER.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(FOLDER).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def asset(name: str) -> str:
    """The URL of a file of ``static/``."""
    return url("static_file", version=files_version(), name=name)


@files.get("/static/<version>/<path:name>", role=None)
def static_file(version: str, name: str) -> Response:
    """A file of ours; browsers may keep it, since another content has another URL."""
    if version != files_version():
        raise NotFound("No such file in this version.")
    response = send_from_directory(FOLDER, name)
    response.headers["Cache-Control"] = IMMUTABLE
    return response
