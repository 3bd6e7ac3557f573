"""Signing in and out, and asking for an account."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from urllib.parse import unquote

from flask import redirect, request
from werkzeug.exceptions import BadRequest, NotFound, ServiceUnavailable
from werkzeug.wrappers import Response

from eventdriven_sync.dashboard.accounts import SignInRefused, Throttled
from eventdriven_sync.dashboard.mount import Mount, url, visit
from eventdriven_sync.dashboard.rendering import render
from eventdriven_sync.dashboard.routing import Routes
from eventdriven_sync.errors import InvalidOption

signing = Routes()

MAX_FIELD = 4096
_TARGET = re.compile(r"/(?![/\\])[!-\[\]-~]*")
_STRAYING = re.compile(r"[\x00-\x1f\x7f\\]|/\.\.?(?:/|$)")


@signing.get("/login", role=None)
def sign_in() -> Response:
    """The form."""
    mount = _own_users()
    if mount.accounts.is_empty():
        raise ServiceUnavailable(
            "Nobody could sign in, there is no user yet. Add one: eventdriven user add NAME --role admin"
        )
    target = safe_target(request.args.get("next", ""))
    if visit().identity is not None:
        return redirect(target, 303)
    return _form(target=target)


@signing.post("/login", role=None)
def sign_in_with_password() -> Response:
    """Open a session, with a new id: one that somebody may have planted opens nothing."""
    mount = _own_users()
    name, password = _field("name"), _field("password")
    target = safe_target(_field("next"))
    try:
        user = mount.accounts.sign_in(name, password, address=request.remote_addr or "")
    except SignInRefused as refused:
        return _form(target=target, name=name, message=str(refused), status=401)
    except Throttled as throttled:
        return _wait(_form(target=target, name=name, message=str(throttled), status=429), throttled)
    here = visit()
    if not here.fresh:
        mount.accounts.sign_out(here.secret)
    here.renew()
    mount.accounts.open_session(user, here.secret, address=request.remote_addr or "")
    return redirect(target, 303)


@signing.post("/logout", role="viewer")
def sign_out() -> Response:
    """End the session."""
    mount = _own_users()
    mount.accounts.sign_out(visit().secret)
    visit().renew()
    return redirect(url("sign_in"), 303)


@signing.get("/register", role=None)
def registration() -> Response:
    """The form for who has no account."""
    _registers()
    return render("register.html", name="", message="", done=False)


@signing.post("/register", role=None)
def register() -> Response:
    """Ask for an account. The answer does not tell whether the name was free."""
    mount = _registers()
    name, password = _field("name"), _field("password")
    if password != _field("password_again"):
        return _again(name, "The two passwords differ.")
    try:
        mount.accounts.register(name, password, address=request.remote_addr or "")
    except InvalidOption as error:
        return _again(name, str(error))
    except Throttled as throttled:
        return _wait(_again(name, str(throttled), status=429), throttled)
    return render("register.html", name="", message="", done=True)


def safe_target(text: str) -> str:
    """Where to go after signing in: a path of this dashboard, the overview if it is none.

    What a browser could take for another host is none, also when it is escaped once or twice more.
    """
    start = url("overview")
    decoded = (unquote(text), unquote(unquote(text)))
    local = _TARGET.fullmatch(text) and all(map(_is_local, decoded))
    return text if local and text.startswith(start) else start


def _is_local(path: str) -> bool:
    """Whether it stays on this host, however a browser reads it."""
    return not re.match(r"(?!/)|/[/\\]", path) and not _STRAYING.search(path.partition("?")[0])


def _own_users() -> Mount:
    mount = visit().mount
    if not mount.signs_in:
        raise NotFound("Here the application signs people in.")
    return mount


def _registers() -> Mount:
    mount = _own_users()
    if not mount.registration:
        raise NotFound("Accounts are added by an admin: eventdriven user add NAME --role ROLE")
    return mount


def _field(name: str) -> str:
    text = request.form.get(name, "")
    if len(text) > MAX_FIELD:
        raise BadRequest(f"{name} has {len(text):,} characters: at most {MAX_FIELD:,}.")
    return text


def _form(*, target: str, name: str = "", message: str = "", status: int = 200) -> Response:
    values: Mapping[str, object] = {
        "target": target,
        "name": name,
        "message": message,
        "registers": visit().mount.registration,
    }
    return render("sign_in.html", status=status, **values)


def _again(name: str, message: str, *, status: int = 400) -> Response:
    return render("register.html", status=status, name=name, message=message, done=False)


def _wait(response: Response, throttled: Throttled) -> Response:
    response.headers["Retry-After"] = str(math.ceil(throttled.after))
    return response
