"""What the module ``User`` does when something happened elsewhere."""

from typing import Any

from ..events import BlogPostWritten, CommentWritten
from ..extensions import events
from . import data

users = events.group("User")


@users.handler(BlogPostWritten, CommentWritten, transactional=True)
def count_contribution(event: BlogPostWritten | CommentWritten, session: Any) -> None:
    """Counting twice would be wrong, so the count and the success of this handler commit together."""
    what = "posts" if isinstance(event, BlogPostWritten) else "comments"
    print(f"Event! - [{'Blog.postWritten' if what == 'posts' else 'Comment.written'}] User counts {what}")
    data.count(event.user_id, what, session)
