"""What every route needs: input, answers as a page or as JSON, who is signed in, protection of forms."""

import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from flask import Flask, Response, abort, flash, jsonify, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue
from pymongo.errors import OperationFailure
from werkzeug.exceptions import Conflict, HTTPException

View = Callable[..., ResponseReturnValue]

POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; form-action 'self'"
# Control characters but line breaks and tabs, and halves of surrogate pairs, which no database stores.
UNWANTED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def init_app(app: Flask) -> None:
    app.before_request(check_csrf_token)
    app.after_request(add_headers)
    app.register_error_handler(HTTPException, show_error)
    app.register_error_handler(OperationFailure, show_conflict)
    app.jinja_env.globals["csrf_token"] = csrf_token


def wants_json() -> bool:
    """Whether the client is a program: it sends JSON or asks for it."""
    accepted = request.accept_mimetypes.best_match(["text/html", "application/json"])
    return request.is_json or accepted == "application/json"


def show(template: str, **values: Any) -> ResponseReturnValue:
    """The page, or the values as JSON."""
    return jsonify(values) if wants_json() else render_template(template, **values)


def done(values: Mapping[str, Any], *, go_to: str, say: str, status: int = 201) -> ResponseReturnValue:
    """What a successful change answers: the values as JSON, or the page to look at next."""
    if wants_json():
        return jsonify(values), status
    flash(say)
    return redirect(go_to, 303)


def form(template: str) -> Callable[[View], View]:
    """On wrong input show the form again, with what was typed and what is wrong with it."""

    def decorate(view: View) -> View:
        @wraps(view)
        def wrapper(*args: Any, **kwargs: Any) -> ResponseReturnValue:
            try:
                return view(*args, **kwargs)
            except HTTPException as error:
                if wants_json() or error.code not in (400, 401, 409):
                    raise
                return render_template(template, typed=request.form, error=error.description), error.code

        return wrapper

    return decorate


def signed_in(view: View) -> View:
    """Only for users who are signed in."""

    @wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> ResponseReturnValue:
        if "user_id" not in session:
            abort(401, "Please sign in first.")
        return view(*args, **kwargs)

    return wrapper


def texts(**limits: int) -> dict[str, str]:
    """The named fields of the form or JSON body, each present, text and not too long; else 400."""
    body = request.get_json(silent=True) if request.is_json else request.form
    if not isinstance(body, Mapping):
        abort(400, "Send a JSON object.")
    return {name: _text(name, body.get(name), limit) for name, limit in limits.items()}


def _text(name: str, value: object, limit: int) -> str:
    label = name.replace("_", " ")
    if not isinstance(value, str) or not value.strip():
        abort(400, f"The {label} is missing.")
    if len(value) > limit:
        abort(400, f"The {label} has {len(value):,} characters; at most {limit:,} are possible.")
    if UNWANTED.search(value):
        abort(400, f"The {label} contains a character that cannot be stored.")
    return value if name == "password" else value.strip()


def csrf_token() -> str:
    """The secret that each form of this session carries."""
    return str(session.setdefault("csrf_token", secrets.token_urlsafe()))


def check_csrf_token() -> None:
    """Refuse forms of other sites. They cannot send JSON here: the browser would ask us first."""
    if request.method in ("GET", "HEAD", "OPTIONS") or request.is_json:
        return
    sent, own = request.form.get("csrf_token", ""), session.get("csrf_token", "")
    if not own or not hmac.compare_digest(sent.encode(), own.encode()):
        abort(403, "This form has expired. Open the page again and repeat what you did.")


def add_headers(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.vary.add("Accept")
    return response


def show_error(error: HTTPException) -> ResponseReturnValue:
    if wants_json():
        return jsonify(error=error.description), error.code or 500
    if error.code == 401:
        flash(error.description or "Please sign in first.")
        return redirect(url_for("users.sign_in_page"), 303)
    return render_template("error.html", error=error), error.code or 500


def show_conflict(error: OperationFailure) -> ResponseReturnValue:
    """Of two transactions that change the same document at the same moment, MongoDB refuses one."""
    if not error.has_error_label("TransientTransactionError"):
        raise error
    return show_error(Conflict("Somebody changed this at the same moment. Please try again."))
