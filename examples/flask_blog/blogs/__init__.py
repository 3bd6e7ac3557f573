"""Blogs: posts, who wrote them and how often they are read. Publishes ``Blog.*``."""

from . import handlers
from .routes import blueprint

__all__ = ["blueprint", "handlers"]
