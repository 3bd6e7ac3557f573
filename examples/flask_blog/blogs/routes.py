"""Write posts, read them, and the nightly statistics."""

from datetime import UTC, datetime
from typing import Any

import click
from flask import Blueprint, abort, render_template, request, session, url_for
from flask.typing import ResponseReturnValue

from ..events import BlogDayEnded, BlogPostViewed, BlogPostWritten
from ..extensions import events
from ..web import done, form, show, signed_in, texts
from . import data
from .handlers import blog

blueprint = Blueprint("blogs", __name__, cli_group="blog")

PAGE = 20


@blueprint.get("/")
def home() -> ResponseReturnValue:
    found = data.newest(request.args.get("before"), PAGE)
    older = str(found[-1]["_id"]) if len(found) == PAGE else None
    return show("blogs/home.html", posts=[public(post) for post in found], older=older)


@blueprint.get("/posts/new")
@signed_in
def write_page() -> ResponseReturnValue:
    return render_template("blogs/write.html", typed={})


@blueprint.post("/posts")
@signed_in
@form("blogs/write.html")
@events.operation("writePost", variables=["title"])
@events.idempotent
def write() -> ResponseReturnValue:
    given = texts(title=200, text=20_000)
    user = data.find_user(session["user_id"])
    if user is None:
        abort(409, "Your account is still being set up. Please try again in a moment.")
    with events.transaction() as writes:
        post = data.insert(user, given, writes)
        blog.publish(BlogPostWritten(post_id=str(post["_id"]), user_id=user["_id"], title=post["title"]))
    return done(public(post), go_to=url_for("blogs.read", post_id=post["_id"]), say="Your post is online.")


@blueprint.get("/posts/<post_id>")
def read(post_id: str) -> ResponseReturnValue:
    post = data.find(post_id)
    if post is None:
        abort(404, "There is no such post.")
    blog.publish(BlogPostViewed(post_id=post_id))
    return show("blogs/post.html", post=public(post))


@blueprint.get("/statistics")
def statistics() -> ResponseReturnValue:
    days = [{"day": day.pop("_id"), **day} for day in data.statistics(limit=31)]
    return show("blogs/statistics.html", days=days)


@blueprint.cli.command("nightly-statistics")
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), help="Today by default.")
def nightly_statistics(day: datetime | None) -> None:
    """For cron, on every instance: run at the same time or again, the day is counted once."""
    ended = (day or datetime.now(UTC)).date()
    with events.bus.operation(
        "nightlyStatistics", kind="cron", idempotency_key=ended.isoformat()
    ) as operation:
        receipt = blog.publish(BlogDayEnded(day=ended))
    click.echo(f"{operation.id} {'was there already' if receipt.duplicate else 'is on its way'}")


def public(post: dict[str, Any]) -> dict[str, Any]:
    shown = ("title", "text", "author", "views", "comments")
    return {
        "id": str(post["_id"]),
        "written_at": post["_id"].generation_time.isoformat(),
        **{name: post[name] for name in shown},
    }
