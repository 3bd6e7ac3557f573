"""Who may use the dashboard: users, their sessions, and how often somebody has tried."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Literal, Protocol

import attrs

from eventdriven_sync.errors import InvalidOption, shorten

UserState = Literal["waiting", "active", "disabled"]
USER_STATES: tuple[UserState, ...] = ("waiting", "active", "disabled")
MAX_USERS = 10_000
MAX_SESSIONS = 20

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}")


def check_user_name(value: object) -> str:
    """The name as it is compared, in lower case; InvalidOption if it cannot be used."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidOption(
            f"user name {shorten(value)} cannot be used: 1 to 64 characters of A-Z a-z 0-9 _ . @ + -, "
            "beginning with a letter or digit",
            field="name",
            value=value,
            limit=64,
        )
    return value.lower()


@attrs.frozen(kw_only=True)
class User:
    """Somebody who may sign in.

    Attributes:
        name: in lower case, unique.
        password: its hash, never the password.
        role: ``viewer``, ``operator`` or ``admin``.
        payloads: a viewer sees payloads.
        groups: whose deliveries they see and act on; empty means all.
        state: ``waiting`` for approval, ``active``, or ``disabled``.
        created_at: by the store's clock once it is stored.
        created_by: who added them; of a registration they themselves.
        signed_in_at: when they did so last.
    """

    name: str
    password: str = attrs.field(repr=False)
    role: str
    payloads: bool = False
    groups: tuple[str, ...] = ()
    state: UserState = "active"
    created_at: datetime
    created_by: str = ""
    signed_in_at: datetime | None = None


@attrs.frozen(kw_only=True)
class UserChange:
    """What becomes different about a user; None stays as it is."""

    password: str | None = attrs.field(default=None, repr=False)
    role: str | None = None
    payloads: bool | None = None
    groups: tuple[str, ...] | None = None
    state: UserState | None = None


@attrs.frozen(kw_only=True)
class Session:
    """A browser that is signed in.

    Attributes:
        id: a digest of the secret that the browser has; the secret itself is stored nowhere.
        user: the name of who signed in.
        role: theirs at that moment: the session ends when they get another.
        address: from where.
        started_at: when they signed in, by the store's clock.
        quiet: seconds since the session was last prolonged, as it is read.
    """

    id: str
    user: str
    role: str
    address: str = ""
    started_at: datetime
    quiet: float = 0.0


@attrs.frozen(kw_only=True)
class Strikes:
    """How often something was tried within a window of time.

    Attributes:
        count: tries, the present one among them.
        left: seconds until they are forgotten.
    """

    count: int
    left: float


class People(Protocol):
    """Users, sessions and strikes. Times are the store's clock."""

    def add_user(self, user: User) -> bool:
        """Store a new user with the store's time as ``created_at``; False if the name is taken."""

    def user(self, name: str) -> User | None:
        """The user of this name, in lower case, or None."""

    def users(self, *, state: UserState | None = None, limit: int = 100) -> list[User]:
        """Users by name."""

    def count_users(self, *, role: str | None = None, state: UserState | None = None) -> int:
        """How many users there are, of a role and in a state."""

    def change_user(self, name: str, change: UserChange) -> User | None:
        """Change a user and return what is stored; None if there is none."""

    def signed_in(self, name: str) -> None:
        """Note that the user signed in now."""

    def open_session(self, session: Session, *, idle: float, lifetime: float) -> None:
        """Store a new session: it ends ``idle`` seconds after it was last prolonged, and at ``lifetime``.

        Of one user the newest 20 stay.
        """

    def session(self, session_id: str) -> Session | None:
        """The session, or None if there is none or it has ended."""

    def prolong(self, session_id: str, *, idle: float) -> None:
        """The session was used: it ends ``idle`` seconds from now, if its lifetime is not over before."""

    def end_session(self, session_id: str) -> None:
        """End it, if it exists."""

    def end_sessions(self, user: str) -> int:
        """End all sessions of a user; how many there were."""

    def strike(self, keys: Sequence[str], *, window: float) -> list[Strikes]:
        """Count a try for each key; those of a key are forgotten ``window`` seconds after its first."""

    def forgive(self, key: str, *, count: int | None = None) -> None:
        """Take back so many tries, or all of them."""
