"""What the decorators of views say, kept as a mark on the view function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs

from eventdriven_sync.config import check_text
from eventdriven_sync.errors import InvalidOption, shorten

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__eventdriven_view__"


@attrs.frozen(kw_only=True)
class Mark:
    """How a view's requests become operations.

    Attributes:
        name: of the operation; None for the endpoint.
        variables: the names of what is stored; None for what the application's options say.
        tracked: True and False overrule the request's method, None does not.
    """

    name: str | None = None
    variables: tuple[str, ...] | None = None
    tracked: bool | None = None


UNMARKED = Mark()


def mark_of(view: Callable[..., Any] | None, method: str) -> Mark:
    """The mark of a view, or of the method of its class. ``functools.wraps`` passes it on."""
    cls = getattr(view, "view_class", None)
    # Flask's classes answer HEAD by the method for GET as well.
    names = ("head", "get") if method == "HEAD" else (method.lower(),)
    own = next((found for name in names if (found := getattr(cls, name, None))), None)
    for each in (own, view):
        if isinstance(found := getattr(each, _MARK, None), Mark):
            return found
    return UNMARKED


def operation(name: str | None, variables: Sequence[str] | None) -> Callable[[F], F]:
    """See ``EventDriven.operation``."""
    if name is not None:
        check_text(name, field="name", most=200, of="operation ")
    if isinstance(variables, str) or not all(isinstance(each, str) for each in variables or ()):
        raise InvalidOption(
            f"variables is {shorten(variables)}: give a list of names", field="variables", value=variables
        )
    chosen = None if variables is None else tuple(variables)
    return lambda view: _marked(view, Mark(name=name, variables=chosen, tracked=True))


def untracked(view: F) -> F:
    """See ``EventDriven.untracked``."""
    return _marked(view, Mark(tracked=False))


def wrap(view: F | None, decorate: Callable[[F], F]) -> Any:
    """A decorator that may be written with and without parentheses."""
    return decorate if view is None else decorate(view)


def _marked(view: F, mark: Mark) -> F:
    if not callable(view):
        raise InvalidOption(f"{shorten(view)} is no view function: put the decorator above `def`")
    setattr(view, _MARK, mark)
    return view
