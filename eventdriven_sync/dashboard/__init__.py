"""The dashboard: events, chains, dead letters and workers in the browser, as a Flask blueprint.

Needs ``pip install "eventdriven_sync[dashboard]"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventdriven_sync.dashboard.access import Identity, Role
from eventdriven_sync.errors import MissingExtra

if TYPE_CHECKING:
    from flask import Blueprint

    from eventdriven_sync.bus import EventBus
    from eventdriven_sync.dashboard.mount import Authorize
    from eventdriven_sync.redaction import Redaction

__all__ = ["Identity", "Role", "dashboard"]


def dashboard(
    bus: EventBus,
    *,
    authorize: Authorize | None = None,
    insecure: bool = False,
    secret_key: str | bytes | None = None,
    registration: bool = False,
    redaction: Redaction | None = None,
    name: str = "eventdriven_dashboard",
) -> Blueprint:
    """A blueprint that shows what happens on a bus. Nothing is opened before the first request.

    Args:
        bus: whose events are shown.
        authorize: called with each request, in the application's context: who it is, or None for a
            stranger. Without it, users sign in who were added with ``eventdriven user add``.
        insecure: everybody is an admin. Served only to this machine, and through no proxy.
        secret_key: at least 32 random bytes, by default the application's ``SECRET_KEY``.
        registration: people may ask for an account; an admin approves it (``eventdriven user approve``).
        redaction: how secrets are hidden in what is shown; the built-in rules by default.
        name: of the blueprint; give another one to a second dashboard of one application.

    Raises:
        InvalidOption: an argument cannot be used.
        ConfigurationError: at ``register_blueprint``, if the key is missing or weak, or the application is in
            debug mode.
        MissingExtra: Flask is not installed.

    Example:
        >>> app.register_blueprint(dashboard(bus), url_prefix="/events")
    """
    try:
        from eventdriven_sync.dashboard.blueprint import build
    except ModuleNotFoundError as error:
        raise MissingExtra(
            'the dashboard needs: pip install "eventdriven_sync[dashboard]"', extra="dashboard"
        ) from error
    return build(
        bus,
        authorize=authorize,
        insecure=insecure,
        secret_key=secret_key,
        registration=registration,
        redaction=redaction,
        name=name,
    )
