"""What every response of the dashboard says to the browser."""

from __future__ import annotations

from flask import request
from werkzeug.wrappers import Response

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'self'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
IMMUTABLE = "public, max-age=31536000, immutable"
_HSTS = "max-age=31536000"


def harden(response: Response) -> Response:
    """Set the headers, and remove what opens the response to other sites."""
    kept = response.headers.get("Cache-Control")
    for name, value in HEADERS.items():
        response.headers[name] = value
    if kept == IMMUTABLE:
        response.headers["Cache-Control"] = kept
    if request.is_secure:
        response.headers["Strict-Transport-Security"] = _HSTS
    # An extension of the application may have added them to all of its responses.
    for name, _ in list(response.headers):
        if name.lower().startswith("access-control-"):
            response.headers.remove(name)
    return response
