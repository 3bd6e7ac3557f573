"""Register, sign in and out, see and rename yourself."""

import re
from typing import Any

from flask import Blueprint, abort, render_template, session, url_for
from flask.typing import ResponseReturnValue
from werkzeug.security import check_password_hash, generate_password_hash

from eventdriven_sync import current_operation_id

from ..events import UserNameUpdated, UserRegistered
from ..extensions import events
from ..web import done, form, show, signed_in, texts
from . import data
from .handlers import users

blueprint = Blueprint("users", __name__)

EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
NOBODYS_PASSWORD = generate_password_hash("")  # compared for unknown addresses: the answer takes as long


@blueprint.app_context_processor
def current_user() -> dict[str, Any]:
    return {"current_user": data.find(session["user_id"]) if "user_id" in session else None}


@blueprint.get("/register")
def register_page() -> ResponseReturnValue:
    return render_template("users/register.html", typed={})


@blueprint.post("/register")
@form("users/register.html")
@events.operation("registerUser", variables=["email"])
def register() -> ResponseReturnValue:
    given = texts(first_name=80, last_name=80, email=254, password=200)
    names = {"first_name": given["first_name"], "last_name": given["last_name"]}
    email = given["email"].lower()
    if not EMAIL.fullmatch(email):
        abort(400, "The email is not an address such as ada@example.org.")
    if len(given["password"]) < 8:
        abort(400, "The password needs at least 8 characters.")
    password = generate_password_hash(given["password"])
    with events.transaction() as writes:  # the user and the event, or neither
        user = data.insert({**names, "email": email, "password": password}, writes)
        users.publish(UserRegistered(user_id=str(user["_id"]), **names))
    begin_session(user)
    return done(public(user), go_to=url_for("blogs.home"), say=f"Welcome, {user['first_name']}!")


@blueprint.get("/sign-in")
def sign_in_page() -> ResponseReturnValue:
    return render_template("users/sign_in.html", typed={})


@blueprint.post("/sign-in")
@form("users/sign_in.html")
@events.operation("signIn", variables=["email"])
def sign_in() -> ResponseReturnValue:
    given = texts(email=254, password=200)
    user = data.find_by_email(given["email"].lower())
    right = check_password_hash(user["password"] if user else NOBODYS_PASSWORD, given["password"])
    if not user or not right:
        abort(401, "The e-mail address or the password is wrong.")
    begin_session(user)
    return done(public(user), go_to=url_for("blogs.home"), say="You are signed in.", status=200)


@blueprint.post("/sign-out")
@events.untracked
def sign_out() -> ResponseReturnValue:
    session.clear()
    return done({}, go_to=url_for("blogs.home"), say="You are signed out.", status=200)


@blueprint.get("/me")
@signed_in
def me() -> ResponseReturnValue:
    user = data.find(session["user_id"])
    if user is None:
        session.clear()
        abort(401, "This account does not exist any more.")
    return show("users/me.html", user=public(user))


@blueprint.post("/me/name")
@signed_in
@events.operation("userUpdateNames", variables=["first_name", "last_name"])
def rename() -> ResponseReturnValue:
    names = texts(first_name=80, last_name=80)
    with events.transaction() as writes:
        user = data.rename(session["user_id"], names, writes)
        if user is None:
            abort(401, "This account does not exist any more.")
        users.publish(UserNameUpdated(user_id=str(user["_id"]), revision=user["revision"], **names))
    said = f"Your new name is on its way: eventdriven chain {current_operation_id()}"
    return done(public(user), go_to=url_for("users.me"), say=said, status=200)


def begin_session(user: dict[str, Any]) -> None:
    session.clear()
    session["user_id"] = str(user["_id"])


def public(user: dict[str, Any]) -> dict[str, Any]:
    names = {name: user[name] for name in ("first_name", "last_name", "email")}
    return {"id": str(user["_id"]), **names, **data.contributions(str(user["_id"]))}
