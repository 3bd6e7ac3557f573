"""What stands before every view: who is it, may they, and did they mean it."""

from __future__ import annotations

import logging

from flask import current_app, redirect, request
from werkzeug.exceptions import (
    Forbidden,
    LengthRequired,
    RequestEntityTooLarge,
    Unauthorized,
    UnsupportedMediaType,
)
from werkzeug.wrappers import Response

from eventdriven_sync.dashboard.access import Access, Identity, check_role
from eventdriven_sync.dashboard.mount import Mount, Visit, is_loopback, is_plain_loopback, url
from eventdriven_sync.errors import ConfigurationError, shorten

log = logging.getLogger(__name__)

MAX_BODY = 1024 * 1024
SAFE_METHODS = ("GET", "HEAD")
TOKEN_HEADER = "X-CSRF-Token"
TOKEN_FIELD = "csrf_token"

_TYPES = {"api": "application/json"}
_FORM = "application/x-www-form-urlencoded"


def guard(mount: Mount, access: Access) -> Response | None:
    """Let the request through, or answer it.

    Raises:
        HTTPException: it is refused.
    """
    here = Visit.begin(mount, access)
    answer = admit(here)
    if answer is None and request.method not in SAFE_METHODS:
        check_change(here)
    return answer


def admit(here: Visit) -> Response | None:
    """Whether this place is safe, and this person may.

    Raises:
        HTTPException: they may not.
    """
    access = here.access
    if access.kind != "file":
        _check_place(here.mount)
        here.identity = _identify(here)
    if access.role is None:
        return None
    if here.identity is None:
        return _stranger(here)
    if not here.identity.may(access.role):
        raise Forbidden(f"This needs the role {access.role}; you are {here.identity.role}.")
    return None


def check_change(here: Visit) -> None:
    """Whether the request was made by a page of ours, in the browser that the page was made for."""
    _check_body(here.access)
    _check_origin()
    token = request.headers.get(TOKEN_HEADER) or (
        request.form.get(TOKEN_FIELD, "") if here.access.kind != "api" else ""
    )
    if not token or not here.has_token(token) or not here.is_same_site():
        raise Forbidden(
            "The CSRF token is missing, or of another session: load the page again. Scripts send what "
            f"GET api/v1/session gives as the header {TOKEN_HEADER}, with the cookies they got there."
        )


def _check_place(mount: Mount) -> None:
    if mount.insecure and not is_loopback():
        raise Forbidden(
            "This dashboard was mounted with insecure=True, which serves this machine only, by the name "
            "localhost or its loopback address and through no proxy."
        )
    if current_app.debug and not mount.insecure:
        raise Forbidden(
            "The application runs in debug mode, whose debugger runs any code: the dashboard is closed."
        )
    if not request.is_secure and not is_plain_loopback():
        raise Forbidden(
            "The dashboard is served over https only. Behind a proxy that ends TLS, tell the application: "
            "werkzeug.middleware.proxy_fix.ProxyFix, or `eventdriven dashboard --behind-proxy`."
        )


def _identify(here: Visit) -> Identity | None:
    mount = here.mount
    if mount.insecure:
        return Identity(name="insecure", role="admin")
    if mount.authorize is None:
        return _signed_in(here)
    found = mount.authorize(request)
    if found is not None and not isinstance(found, Identity):
        raise ConfigurationError(
            f"authorize returned {shorten(found)}: it must return an Identity, or None for a stranger",
            field="authorize",
        )
    return found


def _signed_in(here: Visit) -> Identity | None:
    if here.fresh:
        return None
    user = here.mount.accounts.who(here.secret, background=here.access.background)
    if user is None:
        return None
    return Identity(name=user.name, role=check_role(user.role), payloads=user.payloads, groups=user.groups)


def _stranger(here: Visit) -> Response:
    """Somebody whom nobody knows asks for what takes a role."""
    if not here.mount.signs_in or here.access.kind != "page":
        raise Unauthorized("Sign in first.")
    if "HX-Request" in request.headers:
        # htmx would put the sign-in page into the middle of the present one.
        refused = Response("Sign in first.", 401, mimetype="text/plain")
        refused.headers["HX-Redirect"] = url("sign_in")
        return refused
    if request.method not in SAFE_METHODS:
        raise Unauthorized("Sign in first.")
    return redirect(url("sign_in", next=request.full_path.rstrip("?")), 303)


def _check_body(access: Access) -> None:
    if request.content_length is None and "Transfer-Encoding" in request.headers:
        raise LengthRequired()
    if (request.content_length or 0) > MAX_BODY:
        raise RequestEntityTooLarge(f"The body is longer than {MAX_BODY:,} bytes.")
    wanted = _TYPES.get(access.kind, _FORM)
    if request.mimetype != wanted:
        raise UnsupportedMediaType(f"Send {wanted}, not {shorten(request.mimetype)}.")


def _check_origin() -> None:
    """A browser says where a request comes from; programs say nothing, and have no cookies to be abused."""
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site is not None and site != "same-origin":
        raise Forbidden("This request was made by a page of another site.")
    # With no-referrer a browser calls the origin of its own forms "null", and Sec-Fetch-Site tells.
    unnamed = origin is None or (origin == "null" and site == "same-origin")
    if not unnamed and origin != request.host_url.rstrip("/"):
        raise Forbidden("This request was made by a page of another origin.")
