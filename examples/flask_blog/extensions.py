"""The event bus of whichever application runs. Opens nothing: ``create_app`` binds it."""

from eventdriven_sync.flask import EventDriven

events = EventDriven()
