"""Comments: what readers say about posts. Publishes ``Comment.*``."""

from . import handlers
from .routes import blueprint

__all__ = ["blueprint", "handlers"]
