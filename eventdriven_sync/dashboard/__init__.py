"""The dashboard: events, chains, dead letters and workers in the browser, as a Flask blueprint.

Needs ``pip install "eventdriven_sync[dashboard]"``.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from eventdriven_sync.dashboard.access import Identity, Role
from eventdriven_sync.errors import MissingExtra

if TYPE_CHECKING:
    from flask import Blueprint, Flask

    from eventdriven_sync.bus import EventBus
    from eventdriven_sync.dashboard.mount import Authorize
    from eventdriven_sync.redaction import Redaction

__all__ = ["Identity", "Role", "application", "dashboard"]


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
    need_packages()
    from eventdriven_sync.dashboard.blueprint import build

    return build(
        bus,
        authorize=authorize,
        insecure=insecure,
        secret_key=secret_key,
        registration=registration,
        redaction=redaction,
        name=name,
    )


def application(
    bus: EventBus,
    *,
    authorize: Authorize | None = None,
    insecure: bool = False,
    secret_key: str | bytes | None = None,
    registration: bool = False,
    redaction: Redaction | None = None,
    proxies: int = 0,
    threads: int = 8,
) -> Flask:
    """The dashboard as a WSGI application of its own, for any server or mount; see ``dashboard``.

    Args:
        secret_key: without one each process makes its own: give one if several serve the same address.
        proxies: how many stand before it; their ``X-Forwarded-For``, ``-Proto`` and ``-Host`` are believed.
        threads: of the server: half of them may hold a live stream.

    Raises:
        what ``dashboard`` raises, and ConfigurationError for a weak key.

    Example:
        >>> mounted = DispatcherMiddleware(site, {"/events": application(bus, authorize=who)})
    """
    need_packages()
    from eventdriven_sync.dashboard.server import make_application

    return make_application(
        bus,
        authorize=authorize,
        insecure=insecure,
        secret_key=secret_key,
        registration=registration,
        redaction=redaction,
        proxies=proxies,
        threads=threads,
    )


def need_packages(*more: str) -> None:
    """Whether what the dashboard is made with is installed, and these as well.

    Raises:
        MissingExtra: a package is not.
    """
    for package in ("flask", "jinja2", *more):
        if find_spec(package) is None:
            raise MissingExtra(
                f'the dashboard needs {package}: pip install "eventdriven_sync[dashboard]"', extra="dashboard"
            )
