"""The dashboard as an application of its own, and the server that ``eventdriven dashboard`` runs."""

from __future__ import annotations

import ipaddress
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from eventdriven_sync.bus import EventBus
from eventdriven_sync.dashboard.accounts import Accounts
from eventdriven_sync.dashboard.blueprint import build
from eventdriven_sync.dashboard.guard import MAX_BODY
from eventdriven_sync.dashboard.live import SETTING as STREAMS_SETTING
from eventdriven_sync.dashboard.mount import Authorize
from eventdriven_sync.dashboard.secrecy import new_secret
from eventdriven_sync.errors import ConfigurationError, InvalidOption, shorten
from eventdriven_sync.redaction import Redaction

MAX_HOPS = 10


def make_application(
    bus: EventBus,
    *,
    authorize: Authorize | None,
    insecure: bool,
    secret_key: str | bytes | None,
    registration: bool,
    redaction: Redaction | None,
    proxies: int,
    threads: int,
) -> Flask:
    """See ``application``."""
    if type(proxies) is not int or not 0 <= proxies <= MAX_HOPS:
        raise InvalidOption(
            f"proxies is {shorten(proxies)}: give how many stand before it, 0 to {MAX_HOPS}", field="proxies"
        )
    app = Flask("eventdriven_dashboard", static_folder=None)
    # Half of the threads may hold a stream; the others answer.
    app.config[STREAMS_SETTING] = max(threads // 2, 1)
    app.register_blueprint(
        build(
            bus,
            authorize=authorize,
            insecure=insecure,
            # One process needs no key that outlives it: sessions do not depend on it.
            secret_key=new_secret() if secret_key is None and not insecure else secret_key,
            registration=registration,
            redaction=redaction,
            name="eventdriven_dashboard",
        )
    )
    if proxies:
        fixed = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies, x_host=proxies)
        app.wsgi_app = fixed  # type: ignore[method-assign]
    return app


def check_address(host: str, *, proxies: int, insecure: bool) -> None:
    """Whether the dashboard may listen there.

    Raises:
        InvalidOption: people elsewhere could reach it, and what they send could be read on the way.
    """
    if _is_loopback(host):
        return
    if insecure:
        raise InvalidOption(
            f"host is {shorten(host)} and insecure=True: that is for this machine only, 127.0.0.1",
            field="host",
        )
    if not proxies:
        raise InvalidOption(
            f"host is {shorten(host)}: passwords would cross the network in clear text. Put a proxy that "
            "ends TLS before it and say so with --behind-proxy, or stay on 127.0.0.1",
            field="host",
        )


def check_users(bus: EventBus) -> None:
    """Whether somebody could sign in.

    Raises:
        ConfigurationError: there is no user.
    """
    if Accounts(bus).is_empty():
        raise ConfigurationError(
            "nobody could sign in, there is no user yet; add one: eventdriven user add NAME --role admin, "
            "or give --insecure on a machine of your own",
            field="users",
        )


def serve(app: Flask, *, host: str, port: int, threads: int, started: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that run get a few seconds to end.

    Args:
        started: is told the URL as soon as the port is open.

    Raises:
        ConfigurationError: nothing can listen there.
    """
    from waitress import create_server  # type: ignore[import-untyped]

    try:
        server: Any = create_server(
            app,
            host=host,
            port=port,
            threads=threads,
            ident=None,
            max_request_body_size=2 * MAX_BODY,
            # The guard has to see that a proxy stands before it, even one that nobody told it of.
            clear_untrusted_proxy_headers=False,
        )
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}:{port}: {error}", field="port") from error
    name = f"[{host}]" if ":" in host else host
    with _stopped_by_sigterm():
        started(f"http://{name}:{server.effective_port}/")
        server.run()


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the server as Ctrl-C does. Only the main thread is asked by signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
