"""Who may do what: identities, roles, and the mark that every view of the dashboard bears."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import attrs

from eventdriven_sync.config import check_name, check_text
from eventdriven_sync.errors import ConfigurationError, InvalidOption, shorten

Role = Literal["viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")

Kind = Literal["page", "api", "stream", "file"]

V = TypeVar("V", bound=Callable[..., Any])
_MARK = "eventdriven_access"


@attrs.frozen(kw_only=True)
class Identity:
    """Who looks at the dashboard, as a signed-in user or as ``authorize`` says.

    Attributes:
        name: how the audit log calls them, 1 to 200 characters.
        role: ``viewer`` looks, ``operator`` also retries and discards, ``admin`` does everything.
        payloads: a viewer sees payloads only if this is True; operators and admins always do.
        groups: the consumer groups whose deliveries they see and act on; empty means all.

    Raises:
        InvalidOption: the role is none of these, or the name cannot be used.
    """

    name: str
    role: Role = "viewer"
    payloads: bool = False
    groups: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        check_text(self.name, field="identity name", most=200)
        check_role(self.role)
        for group in self.groups:
            check_name(group, what="group")

    def may(self, role: Role) -> bool:
        """Whether this role or a lower one was asked for."""
        return ROLES.index(self.role) >= ROLES.index(role)

    @property
    def sees_payloads(self) -> bool:
        """Whether payloads, variables and stacks are shown."""
        return self.payloads or self.role != "viewer"

    def reaches(self, group: str) -> bool:
        """Whether deliveries of this group are theirs to see."""
        return not self.groups or group in self.groups


def check_role(value: object) -> Role:
    """The role, or InvalidOption."""
    for role in ROLES:
        if value == role:
            return role
    raise InvalidOption(f"role is {shorten(value)}: give {', '.join(ROLES)}", field="role", value=value)


@attrs.frozen(kw_only=True)
class Access:
    """What a view demands.

    Attributes:
        role: the lowest role that may; None is anybody, also who is not signed in.
        kind: ``page`` answers errors as HTML and sends strangers to the sign-in page, ``api`` answers JSON,
            ``stream`` and ``file`` answer plainly.
        background: it is fetched without the user doing anything, and keeps no session alive.
    """

    role: Role | None
    kind: Kind = "page"
    background: bool = False


def mark(view: V, access: Access) -> V:
    """Say what a view demands. Views without this mark are refused."""
    setattr(view, _MARK, access)
    return view


def access_of(view: object) -> Access:
    """What a view demands.

    Raises:
        ConfigurationError: it does not say; such a view is never run.
    """
    access = getattr(view, _MARK, None)
    if not isinstance(access, Access):
        raise ConfigurationError(
            f"the dashboard's view {shorten(view)} does not say who may see it: add it with Routes.get or "
            "Routes.post, which take the role"
        )
    return access
