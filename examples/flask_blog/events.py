"""What happens in this application, as facts: all that one module knows of another.

Names and fields are a contract with events that were stored long ago. Add fields with a default; for any
other change give the class a new ``version=``.
"""

from datetime import date

from eventdriven_sync import event


@event("User.registered", key="user_id")
class UserRegistered:
    user_id: str
    first_name: str
    last_name: str


@event("User.nameUpdated", key="user_id")
class UserNameUpdated:
    user_id: str
    first_name: str
    last_name: str
    revision: int  # grows with each renaming: retries may bring an older name after a newer one


@event("Blog.userDuplicated", key="user_id")
class BlogUserDuplicated:
    user_id: str


@event("Blog.userUpdated", key="user_id")
class BlogUserUpdated:
    user_id: str
    posts: int


@event("Blog.postWritten", key="post_id")
class BlogPostWritten:
    post_id: str
    user_id: str
    title: str


@event("Blog.postViewed", key="post_id")
class BlogPostViewed:
    post_id: str


@event("Blog.dayEnded")
class BlogDayEnded:
    day: date


@event("Comment.userUpdated", key="user_id")
class CommentUserUpdated:
    user_id: str
    comments: int


@event("Comment.written", key="post_id")
class CommentWritten:
    comment_id: str
    post_id: str
    user_id: str
