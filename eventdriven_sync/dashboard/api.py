"""The JSON API below ``api/v1``."""

from __future__ import annotations

import json
from typing import Any

from werkzeug.wrappers import Response

from eventdriven_sync.dashboard.mount import identity, visit
from eventdriven_sync.dashboard.routing import Routes

api = Routes(kind="api")


def document(found: Any, *, status: int = 200) -> Response:
    """A JSON response."""
    return Response(json.dumps(found, allow_nan=False), status, mimetype="application/json")


@api.get("/api/v1/session", role="viewer")
def session() -> Response:
    """Who is signed in, and the token that every change must carry."""
    who = identity()
    return document(
        {
            "name": who.name,
            "role": who.role,
            "payloads": who.sees_payloads,
            "groups": list(who.groups),
            "csrf_token": visit().csrf_token(),
        }
    )
