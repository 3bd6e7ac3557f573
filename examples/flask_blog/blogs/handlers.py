"""What the module ``Blog`` does when something happened elsewhere, or here a moment ago."""

from typing import Any

from eventdriven_sync import Batch

from ..events import (
    BlogDayEnded,
    BlogPostViewed,
    BlogUserDuplicated,
    BlogUserUpdated,
    CommentWritten,
    UserNameUpdated,
    UserRegistered,
)
from ..extensions import events
from . import data

blog = events.group("Blog")


@blog.handler(UserRegistered, transactional=True)
def copy_user(event: UserRegistered, session: Any) -> None:
    """A transactional handler: the copy, the event it publishes and its success commit together."""
    print(f"Event! - [User.registered] Blog keeps a copy of {event.first_name} {event.last_name}")
    names = {"first_name": event.first_name, "last_name": event.last_name}
    data.keep_user(event.user_id, names, revision=1, session=session)
    blog.publish(BlogUserDuplicated(user_id=event.user_id))


@blog.handler(UserNameUpdated)
def rename_author(event: UserNameUpdated) -> None:
    """Without a transaction: doing this twice does no harm."""
    print(f"Event! - [User.nameUpdated] Blog renames its author to {event.first_name} {event.last_name}")
    names = {"first_name": event.first_name, "last_name": event.last_name}
    posts = data.rename_author(event.user_id, names, event.revision)
    blog.publish(BlogUserUpdated(user_id=event.user_id, posts=posts))


@blog.handler(CommentWritten, transactional=True)
def count_comment(event: CommentWritten, session: Any) -> None:
    print("Event! - [Comment.written] Blog counts a comment")
    data.count(event.post_id, "comments", 1, session)


@blog.batch_handler(
    BlogPostViewed, group_by=lambda event: event.post_id, max_size=500, max_wait=1.0, transactional=True
)
def count_views(batch: Batch[BlogPostViewed], session: Any) -> None:
    """A batch handler: one write for all views of a post within a second."""
    print(f"Event! - [Blog.postViewed] Blog adds {len(batch)} to the views of a post")
    data.count(batch.key, "views", len(batch), session)


@blog.handler(BlogDayEnded, transactional=True)
def count_day(event: BlogDayEnded, session: Any) -> None:
    print(f"Event! - [Blog.dayEnded] Blog counts {event.day}: {data.count_day(event.day, session)}")
