"""Users: who may write here. Publishes ``User.registered`` and ``User.nameUpdated``."""

from . import handlers
from .routes import blueprint

__all__ = ["blueprint", "handlers"]
