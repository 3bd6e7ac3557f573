"""The Flask integration: an operation per request, handlers in an application context, ``flask events``.

>>> from eventdriven_sync.flask import EventDriven
>>> events = EventDriven()
"""

try:
    import flask as _flask  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "flask":
        raise
    from eventdriven_sync.errors import MissingExtra

    raise MissingExtra('eventdriven_sync.flask needs: pip install "eventdriven_sync[flask]"') from error

from eventdriven_sync.flask.extension import EventDriven

__all__ = ["EventDriven"]
