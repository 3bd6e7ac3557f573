"""Who may sign in: the users of a dashboard that has its own."""

from __future__ import annotations

from flask import redirect, request
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

from eventdriven_sync.dashboard import asking
from eventdriven_sync.dashboard.access import ROLES, check_role
from eventdriven_sync.dashboard.accounts import Accounts
from eventdriven_sync.dashboard.mount import identity, url, visit
from eventdriven_sync.dashboard.rendering import render
from eventdriven_sync.dashboard.routing import Routes
from eventdriven_sync.people import USER_STATES, UserChange

user_pages = Routes()

MAX_SHOWN = 500


@user_pages.get("/users", role="admin")
def users() -> Response:
    """Users by name, those who wait for approval first."""
    state = asking.one_of("state", USER_STATES)
    found = _accounts().find(state=state, limit=MAX_SHOWN)
    ordered = sorted(found, key=lambda user: (USER_STATES.index(user.state), user.name))
    return render("users.html", users=ordered, states=USER_STATES, state=state, roles=ROLES, most=MAX_SHOWN)


@user_pages.post("/users/<name>/approve", role="admin")
def approve_user(name: str) -> Response:
    """Let in who asked for an account, or was disabled."""
    role = check_role(request.form.get("role", ""))
    _accounts().approve(name, role=role, **_actor())
    return redirect(asking.noted(url("users"), "approved"), 303)


@user_pages.post("/users/<name>/role", role="admin")
def change_role(name: str) -> Response:
    """Give a user another role; they have to sign in anew."""
    role = check_role(request.form.get("role", ""))
    _accounts().change(name, UserChange(role=role), **_actor())
    return redirect(asking.noted(url("users"), "role"), 303)


@user_pages.post("/users/<name>/disable", role="admin")
def disable_user(name: str) -> Response:
    """Let a user in no more; their sessions end."""
    _accounts().change(name, UserChange(state="disabled"), **_actor())
    return redirect(asking.noted(url("users"), "disabled"), 303)


def _accounts() -> Accounts:
    mount = visit().mount
    if not mount.signs_in:
        raise NotFound("Here the application signs people in: the dashboard has no users of its own.")
    return mount.accounts


def _actor() -> dict[str, str]:
    return {"by": identity().name, "ip": request.remote_addr or ""}
