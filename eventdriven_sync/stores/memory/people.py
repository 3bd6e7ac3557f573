"""Users, sessions and strikes in memory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import attrs

from eventdriven_sync.people import MAX_SESSIONS, Session, Strikes, User, UserChange, UserState
from eventdriven_sync.stores.memory.state import State, Tables


@attrs.frozen(kw_only=True)
class _Open:
    """A session with when it ends."""

    session: Session
    seen_at: datetime
    idle_until: datetime
    until: datetime


@attrs.frozen(kw_only=True)
class _Tries:
    """How many, until when they count."""

    count: int
    until: datetime


class MemoryPeople:
    """The ``People`` of a ``MemoryStore``. Thread-safe."""

    def __init__(self, state: State) -> None:
        self._state = state

    def add_user(self, user: User) -> bool:
        """Store a new user; False if the name is taken."""
        now = self._state.clock()
        with self._state.open() as tables:
            if user.name in tables.users:
                return False
            tables.users[user.name] = attrs.evolve(user, created_at=now)
            return True

    def user(self, name: str) -> User | None:
        """The user of this name, or None."""
        with self._state.open() as tables:
            return tables.users.get(name)

    def users(self, *, state: UserState | None = None, limit: int = 100) -> list[User]:
        """Users by name."""
        with self._state.open() as tables:
            known = sorted(tables.users.items())
        return [user for _, user in known if state in (None, user.state)][:limit]

    def count_users(self, *, role: str | None = None, state: UserState | None = None) -> int:
        """How many users there are, of a role and in a state."""
        with self._state.open() as tables:
            every = list(tables.users.values())
        return sum(role in (None, user.role) and state in (None, user.state) for user in every)

    def change_user(self, name: str, change: UserChange) -> User | None:
        """Change a user and return what is stored; None if there is none."""
        fields = {key: value for key, value in attrs.asdict(change).items() if value is not None}
        with self._state.open() as tables:
            if name not in tables.users:
                return None
            tables.users[name] = attrs.evolve(tables.users[name], **fields)
            return tables.users[name]

    def signed_in(self, name: str) -> None:
        """Note that the user signed in now."""
        now = self._state.clock()
        with self._state.open() as tables:
            if name in tables.users:
                tables.users[name] = attrs.evolve(tables.users[name], signed_in_at=now)

    def open_session(self, session: Session, *, idle: float, lifetime: float) -> None:
        """Store a new session; of one user the newest 20 stay."""
        now = self._state.clock()
        with self._state.open() as tables:
            tables.sessions[session.id] = _Open(
                session=attrs.evolve(session, started_at=now),
                seen_at=now,
                idle_until=now + timedelta(seconds=min(idle, lifetime)),
                until=now + timedelta(seconds=lifetime),
            )
            for old in _of_user(tables, session.user)[:-MAX_SESSIONS]:
                del tables.sessions[old]

    def session(self, session_id: str) -> Session | None:
        """The session, or None if there is none or it has ended."""
        now = self._state.clock()
        with self._state.open() as tables:
            found: _Open | None = tables.sessions.get(session_id)
        if found is None or found.idle_until <= now:
            return None
        return attrs.evolve(found.session, quiet=(now - found.seen_at).total_seconds())

    def prolong(self, session_id: str, *, idle: float) -> None:
        """The session was used; one that has ended stays so."""
        now = self._state.clock()
        with self._state.open() as tables:
            found: _Open | None = tables.sessions.get(session_id)
            if found is not None and found.idle_until > now:
                until = min(found.until, now + timedelta(seconds=idle))
                tables.sessions[session_id] = attrs.evolve(found, seen_at=now, idle_until=until)

    def end_session(self, session_id: str) -> None:
        """End it, if it exists."""
        with self._state.open() as tables:
            tables.sessions.pop(session_id, None)

    def end_sessions(self, user: str) -> int:
        """End all sessions of a user; how many there were."""
        with self._state.open() as tables:
            ended = _of_user(tables, user)
            for session_id in ended:
                del tables.sessions[session_id]
            return len(ended)

    def strike(self, keys: Sequence[str], *, window: float) -> list[Strikes]:
        """Count a try for each key."""
        now = self._state.clock()
        with self._state.open() as tables:
            for key in keys:
                old: _Tries | None = tables.strikes.get(key)
                tables.strikes[key] = (
                    attrs.evolve(old, count=old.count + 1)
                    if old is not None and old.until > now
                    else _Tries(count=1, until=now + timedelta(seconds=window))
                )
            found: list[_Tries] = [tables.strikes[key] for key in keys]
        return [Strikes(count=each.count, left=(each.until - now).total_seconds()) for each in found]

    def forgive(self, key: str, *, count: int | None = None) -> None:
        """Take back so many tries, or all of them."""
        with self._state.open() as tables:
            found: _Tries | None = tables.strikes.pop(key, None)
            if found is not None and count is not None:
                tables.strikes[key] = attrs.evolve(found, count=max(0, found.count - count))


def _of_user(tables: Tables, user: str) -> list[str]:
    """The ids of a user's sessions, the oldest first."""
    found = [(key, kept.session) for key, kept in tables.sessions.items() if kept.session.user == user]
    return [key for key, session in sorted(found, key=lambda each: each[1].started_at)]
