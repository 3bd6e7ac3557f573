"""Templates: the dashboard's own environment, in which everything is escaped."""

from __future__ import annotations

from functools import cache
from typing import Any

from flask import request
from jinja2 import Environment, PackageLoader, StrictUndefined
from werkzeug.wrappers import Response

from eventdriven_sync._version import __version__
from eventdriven_sync.cli.words import command_line
from eventdriven_sync.dashboard import asking, shown
from eventdriven_sync.dashboard.assets import asset
from eventdriven_sync.dashboard.mount import url, visit


@cache
def environment() -> Environment:
    """The environment; not the application's, whose filters and escaping are its own affair.

    Templates have ``url(view, …)``, ``asset(file)``, ``csrf_token()``, ``identity()`` (None for a
    stranger), ``signs_in()``, ``namespace()``, ``curl(view, …)``, ``notice()``, ``version``, and what
    ``shown`` has. An undefined name is an error.
    """
    found = Environment(
        loader=PackageLoader("eventdriven_sync.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.policies["json.dumps_kwargs"] = {"sort_keys": False}
    found.globals.update(
        url=url,
        asset=asset,
        csrf_token=lambda: visit().csrf_token(),
        identity=lambda: visit().identity,
        signs_in=lambda: visit().mount.signs_in,
        version=__version__,
        namespace=lambda: visit().mount.bus.settings.namespace,
        curl=curl,
        notice=asking.notice,
    )
    found.globals.update(shown.GLOBALS)
    found.filters.update(shown.FILTERS)
    return found


def curl(endpoint: str, **values: Any) -> str:
    """The command that asks the API; ``cookies.txt`` is the cookie jar of somebody who has signed in."""
    address = f"{request.host_url.rstrip('/')}{url(endpoint, **values)}"
    return command_line("curl", "--cookie", "cookies.txt", address)


def render(template: str, *, status: int = 200, **values: Any) -> Response:
    """A page.

    Args:
        template: file in ``templates/``.
        status: HTTP status.
        values: what the template shows, each escaped there.
    """
    return Response(environment().get_template(template).render(**values), status, mimetype="text/html")
