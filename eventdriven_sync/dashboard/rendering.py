"""Templates: the dashboard's own environment, in which everything is escaped."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from werkzeug.wrappers import Response

from eventdriven_sync._version import __version__
from eventdriven_sync.dashboard import asking, shown
from eventdriven_sync.dashboard.assets import asset
from eventdriven_sync.dashboard.mount import has_view, url, visit


@cache
def environment() -> Environment:
    """The environment; not the application's, whose filters and escaping are its own affair.

    Templates have ``url(view, …)``, ``asset(file)``, ``csrf_token()``, ``identity()`` (None for a
    stranger), ``signs_in()``, ``namespace()``, ``has_page(view)``, ``notice()``, ``version``, and what
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
        has_page=has_view,
        notice=asking.notice,
    )
    found.globals.update(shown.GLOBALS)
    found.filters.update(shown.FILTERS)
    return found


def render(template: str, *, status: int = 200, **values: Any) -> Response:
    """A page.

    Args:
        template: file in ``templates/``.
        status: HTTP status.
        values: what the template shows, each escaped there.
    """
    return Response(environment().get_template(template).render(**values), status, mimetype="text/html")
