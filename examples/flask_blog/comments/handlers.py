"""What the module ``Comment`` does when something happened elsewhere."""

from tenacity import stop_after_attempt, wait_exponential

from eventdriven_sync import RetryPolicy

from ..events import BlogPostWritten, CommentUserUpdated, UserNameUpdated, UserRegistered
from ..extensions import events
from . import data

comment = events.group("Comment")


@comment.handler(UserRegistered)
def copy_user(event: UserRegistered) -> None:
    print(f"Event! - [User.registered] Comment keeps a copy of {event.first_name} {event.last_name}")
    names = {"first_name": event.first_name, "last_name": event.last_name}
    data.keep_user(event.user_id, names, revision=1)


@comment.handler(BlogPostWritten)
def copy_post(event: BlogPostWritten) -> None:
    print(f"Event! - [Blog.postWritten] Comment opens the comments on {event.title!r}")
    data.keep_post(event.post_id, event.title)


# A policy of its own: 5 attempts as usual, with pauses of 0.5, 1, 2 and 4 seconds.
@comment.handler(
    UserNameUpdated, retry=RetryPolicy(stop=stop_after_attempt(5), wait=wait_exponential(multiplier=0.5))
)
def rename_author(event: UserNameUpdated) -> None:
    print(f"Event! - [User.nameUpdated] Comment renames its author to {event.first_name} {event.last_name}")
    if data.fault():  # the switch of the demonstration
        raise RuntimeError("Test Error!!")
    names = {"first_name": event.first_name, "last_name": event.last_name}
    comments = data.rename_author(event.user_id, names, event.revision)
    comment.publish(CommentUserUpdated(user_id=event.user_id, comments=comments))
