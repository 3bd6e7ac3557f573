"""Write comments, and the switch that makes one handler fail."""

from typing import Any

from flask import Blueprint, abort, session, url_for
from flask.typing import ResponseReturnValue

from ..events import CommentWritten
from ..extensions import events
from ..web import done, show, signed_in, texts
from . import data
from .handlers import comment

blueprint = Blueprint("comments", __name__)


@blueprint.app_context_processor
def comments_for_templates() -> dict[str, Any]:
    """A post's page includes our part of it: ``templates/comments/section.html``."""
    return {"comments_of": lambda post_id: [public(found) for found in data.of_post(post_id)]}


@blueprint.get("/posts/<post_id>/comments")
def list_comments(post_id: str) -> ResponseReturnValue:
    return {"comments": [public(found) for found in data.of_post(post_id)]}


@blueprint.post("/posts/<post_id>/comments")
@signed_in
@events.operation("writeComment", variables=["post_id"])
@events.idempotent
def write(post_id: str) -> ResponseReturnValue:
    text = texts(text=2_000)["text"]
    user = data.find_user(session["user_id"])
    if user is None or not data.has_post(post_id):
        abort(409, "The post or your account is not known here, or not yet. Please try again in a moment.")
    with events.transaction() as writes:
        written = data.insert(user, post_id, text, writes)
        comment.publish(CommentWritten(comment_id=str(written["_id"]), post_id=post_id, user_id=user["_id"]))
    page = url_for("blogs.read", post_id=post_id, _anchor="comments")
    return done(public(written), go_to=page, say="Your comment is online.")


@blueprint.get("/demonstration")
def demonstration() -> ResponseReturnValue:
    return show("comments/demonstration.html", fault=data.fault())


@blueprint.post("/demonstration/fault")
@signed_in
@events.untracked
def switch_fault() -> ResponseReturnValue:
    """For the demonstration only: from now on ``Comment.rename_author`` fails, or no longer."""
    on = texts(fault=3)["fault"]
    if on not in ("on", "off"):
        abort(400, 'The fault is "on" or "off".')
    data.set_fault(on == "on")
    return done({"fault": on}, go_to=url_for("comments.demonstration"), say=f"The fault is {on}.", status=200)


def public(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": str(found["_id"]),
        "written_at": found["_id"].generation_time.isoformat(),
        "text": found["text"],
        "author": found["author"],
    }
