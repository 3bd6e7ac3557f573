"""Routes of the dashboard. A route cannot be added without the role that it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import attrs
from flask import Blueprint

from eventdriven_sync.dashboard.access import Access, Kind, Role, mark

V = TypeVar("V", bound=Callable[..., Any])


@attrs.frozen(kw_only=True)
class Route:
    """A path and what answers there."""

    path: str
    method: str
    view: Callable[..., Any]


class Routes:
    """Routes that belong together; module level, shared by all dashboards of a process.

    Args:
        kind: how errors are answered and strangers are sent away; see ``Access``.

    Example:
        >>> pages = Routes()
        >>> @pages.get("/operations", role="viewer")
        ... def operations() -> str:
        ...     return render("operations.html", page=monitor().operations(limit=50))
    """

    def __init__(self, *, kind: Kind = "page") -> None:
        self._kind = kind
        self._routes: list[Route] = []

    def get(self, path: str, *, role: Role | None, background: bool = False) -> Callable[[V], V]:
        """A view that changes nothing; its name becomes the endpoint's.

        Args:
            path: as Flask writes them, below the dashboard's prefix.
            role: the lowest that may see it; None is anybody, signed in or not.
            background: fetched by a timer and not by a person: it keeps no session alive.
        """
        return self._add(path, "GET", Access(role=role, kind=self._kind, background=background))

    def post(self, path: str, *, role: Role | None) -> Callable[[V], V]:
        """A view that changes something; it runs only with a CSRF token from the same origin."""
        return self._add(path, "POST", Access(role=role, kind=self._kind))

    def add_to(self, blueprint: Blueprint) -> None:
        """Put the routes into a blueprint."""
        for route in self._routes:
            # No automatic OPTIONS: there is no cross-origin use, and so nothing to ask for beforehand.
            blueprint.add_url_rule(
                route.path, view_func=route.view, methods=[route.method], provide_automatic_options=False
            )

    def _add(self, path: str, method: str, access: Access) -> Callable[[V], V]:
        def add(view: V) -> V:
            self._routes.append(Route(path=path, method=method, view=mark(view, access)))
            return view

        return add
