"""Users as the command line and the dashboard manage them; signing in, with its throttle."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping, Sequence

from eventdriven_sync.bus import EventBus
from eventdriven_sync.config import check_name
from eventdriven_sync.dashboard.access import check_role
from eventdriven_sync.dashboard.passwords import Hasher, check_password_rules
from eventdriven_sync.envelope import new_id, utcnow
from eventdriven_sync.errors import EventDrivenError, InvalidOption, InvalidTransition, NotFound, shorten
from eventdriven_sync.figures import AuditEntry
from eventdriven_sync.people import (
    MAX_USERS,
    People,
    Session,
    User,
    UserChange,
    UserState,
    check_user_name,
)

WINDOW = 15 * 60.0
MAX_PER_ACCOUNT = 5
MAX_PER_ADDRESS = 20
IDLE = 30 * 60.0
LIFETIME = 12 * 3600.0
# A session is prolonged at most so often: each time is a durable write.
PROLONG_EVERY = 60.0
MAX_WAITING = 100


class SignInRefused(EventDrivenError):
    """Name and password do not open a session."""


class Throttled(EventDrivenError):
    """Too many tries; ``after`` says how many seconds to wait."""


class Accounts:
    """The users of a bus's dashboard. Thread-safe; every method opens the bus.

    Args:
        bus: in whose store they are.
        hasher: how passwords are hashed.
    """

    def __init__(self, bus: EventBus, *, hasher: Hasher | None = None) -> None:
        self._bus = bus
        self._hasher = hasher or Hasher()

    # --- managing -----------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        password: str,
        *,
        role: str,
        payloads: bool = False,
        groups: Sequence[str] = (),
        by: str,
    ) -> User:
        """A new user who may sign in at once.

        Raises:
            InvalidOption: the name is taken or cannot be used, the password is too short, the role is none,
                or it is the first user and no admin.
        """
        known = check_user_name(name)
        role = check_role(role)
        check_password_rules(password)
        if role != "admin" and not self._people.count_users(role="admin", state="active"):
            raise InvalidOption(
                f"user {known!r} would be {role}, and there is no admin yet: add one, with --role admin",
                field="role",
            )
        user = User(
            name=known,
            password=self._hasher.hash(password),
            role=role,
            payloads=payloads,
            groups=tuple(check_name(group, what="group") for group in groups),
            created_at=utcnow(),
            created_by=by,
        )
        if self._people.count_users() >= MAX_USERS:
            raise InvalidOption(f"there are {MAX_USERS:,} users: no more can be added", limit=MAX_USERS)
        if not self._people.add_user(user):
            raise InvalidOption(f"user {known!r} exists already", field="name", value=known)
        self._note("user_added", by=by, ids=[known], after=_shown(user))
        return self.get(known)

    def register(self, name: str, password: str, *, address: str) -> None:
        """Somebody asks to be let in: a viewer once an admin approves. Whether the name is free is not told.

        Raises:
            InvalidOption: name or password cannot be used.
            Throttled: too many tries from this address, or too many people wait for approval.
        """
        known = check_user_name(name)
        check_password_rules(password)
        self._count([_address_key(address)], [MAX_PER_ADDRESS])
        if self._people.count_users(state="waiting") >= MAX_WAITING:
            raise Throttled("Too many people wait for approval; ask an admin.", after=WINDOW)
        user = User(
            name=known,
            password=self._hasher.hash(password),
            role="viewer",
            state="waiting",
            created_at=utcnow(),
            created_by=known,
        )
        if self._people.add_user(user):
            self._note("user_registered", by=known, ip=address, ids=[known], after=_shown(user))

    def find(self, *, state: UserState | None = None, limit: int = 100) -> list[User]:
        """Users by name."""
        return self._people.users(state=state, limit=limit)

    def get(self, name: str) -> User:
        """The user.

        Raises:
            NotFound: there is none of this name.
        """
        found = self._people.user(check_user_name(name))
        if found is None:
            raise NotFound(
                f"no user is called {shorten(name)}; `eventdriven user list` shows them", name=name
            )
        return found

    def change(self, name: str, change: UserChange, *, by: str, ip: str = "") -> User:
        """Change a user, who has to sign in anew.

        Args:
            by: who does it, for the audit log.
            ip: from where.

        Raises:
            NotFound: there is none of this name.
            InvalidOption: the role is none, or a group's name cannot be used.
            InvalidTransition: nobody would be admin any more.
        """
        before = self.get(name)
        known = before.name
        self._keep_an_admin(before, change)
        if change.role is not None:
            check_role(change.role)
        for group in change.groups or ():
            check_name(group, what="group")
        changed = self._people.change_user(known, change)
        # After the change: who signs in between the two signs in with what is new.
        self._people.end_sessions(known)
        after = changed or self.get(known)
        action = "user_changed" if change.password is None else "password_changed"
        self._note(action, by=by, ip=ip, ids=[known], before=_shown(before), after=_shown(after))
        return after

    def approve(self, name: str, *, role: str | None = None, by: str, ip: str = "") -> User:
        """Let in somebody who waits for it, or was disabled.

        Args:
            role: another one than they have; of those who asked for an account that is ``viewer``.

        Raises:
            NotFound, InvalidOption.
            InvalidTransition: they are in already.
        """
        if self.get(name).state == "active":
            raise InvalidTransition(f"user {name.lower()!r} is active already", name=name, state="active")
        return self.change(name, UserChange(state="active", role=role), by=by, ip=ip)

    def set_password(self, name: str, password: str, *, by: str, ip: str = "") -> User:
        """Another password; all sessions end.

        Raises:
            NotFound, InvalidOption.
        """
        known = self.get(name).name
        return self.change(known, UserChange(password=self._hasher.hash(password)), by=by, ip=ip)

    def is_empty(self) -> bool:
        """Whether nobody could sign in."""
        return not self._people.count_users(state="active")

    # --- signing in ---------------------------------------------------------------------------------

    def sign_in(self, name: str, password: str, *, address: str) -> User:
        """The user, if the password is theirs. Takes as long for an unknown name.

        Raises:
            SignInRefused: the same for a wrong name and a wrong password.
            Throttled: 5 failures of a name or 20 of an address within 15 minutes.
        """
        by_name, by_address = _name_key(name), _address_key(address)
        # Counted before it is checked: of a hundred tries at once no more than five are checked.
        self._count([by_name, by_address], [MAX_PER_ACCOUNT, MAX_PER_ADDRESS])
        user = self._people.user(name.lower()) if len(name) <= 64 else None
        if not self._hasher.matches(user.password if user else None, password) or user is None:
            self._note("login_failed", by=name[:64], ip=address)
            raise SignInRefused("Name or password is wrong.")
        self._people.forgive(by_name)
        self._people.forgive(by_address, count=1)
        if user.state != "active":
            self._note("login_failed", by=user.name, ip=address, after={"state": user.state})
            waits = user.state == "waiting"
            raise SignInRefused(
                "An admin has to approve your account first." if waits else "Your account is disabled."
            )
        if self._hasher.is_outdated(user.password):
            self._people.change_user(user.name, UserChange(password=self._hasher.hash(password)))
        self._people.signed_in(user.name)
        self._note("login", by=user.name, ip=address)
        return user

    def open_session(self, user: User, secret: str, *, address: str) -> None:
        """The browser that has this secret is the user's from now on."""
        self._people.open_session(
            Session(
                id=session_id(secret), user=user.name, role=user.role, address=address, started_at=utcnow()
            ),
            idle=IDLE,
            lifetime=LIFETIME,
        )

    def who(self, secret: str, *, background: bool) -> User | None:
        """Whose session the browser with this secret has.

        Args:
            background: the browser asks by itself: that keeps no session alive.
        """
        session = self._people.session(session_id(secret))
        user = self._people.user(session.user) if session else None
        if session is None or user is None:
            return None
        if user.state != "active" or user.role != session.role:
            self._people.end_session(session.id)
            return None
        if not background and session.quiet >= PROLONG_EVERY:
            self._people.prolong(session.id, idle=IDLE)
        return user

    def sign_out(self, secret: str) -> None:
        """End the session of the browser with this secret."""
        self._people.end_session(session_id(secret))

    # --- inside -------------------------------------------------------------------------------------

    @property
    def _people(self) -> People:
        self._bus.open()
        return self._bus.store.people

    def _note(
        self,
        action: str,
        *,
        by: str,
        ip: str = "",
        ids: Sequence[str] = (),
        before: Mapping[str, object] | None = None,
        after: Mapping[str, object] | None = None,
    ) -> None:
        entry = AuditEntry(
            id=new_id(),
            who=by or "-",
            ip=ip,
            action=action,
            ids=tuple(ids),
            before=before or {},
            after=after or {},
        )
        self._bus.store.trail.record(entry)

    def _keep_an_admin(self, user: User, change: UserChange) -> None:
        """At least one: otherwise only who has a shell could let anybody in again."""
        stays = change.state in (None, "active") and change.role in (None, "admin")
        if stays or (user.role, user.state) != ("admin", "active"):
            return
        if self._people.count_users(role="admin", state="active") < 2:
            raise InvalidTransition(
                f"user {user.name!r} is the only admin: make somebody else one first", name=user.name
            )

    def _count(self, keys: Sequence[str], limits: Sequence[int]) -> None:
        strikes = self._people.strike(keys, window=WINDOW)
        left = [each.left for each, limit in zip(strikes, limits, strict=True) if each.count > limit]
        if left:
            raise Throttled("Too many tries; wait and try again.", after=max(left))


def session_id(secret: str) -> str:
    """What is stored of a session's secret: 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _name_key(name: str) -> str:
    # A digest: the key is as long for a name of a megabyte.
    return f"name:{hashlib.sha256(name.lower().encode('utf-8', 'surrogatepass')).hexdigest()}"


def _address_key(address: str) -> str:
    """Of IPv6 the network: whoever has one address there has 2**64."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return f"address:{address[:64]}"
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return f"address:{ipaddress.ip_network((found, 64), strict=False)}"
    return f"address:{getattr(found, 'ipv4_mapped', None) or found}"


def _shown(user: User) -> dict[str, object]:
    """What the audit trail keeps of a user: not the hash."""
    return {
        "role": user.role,
        "state": user.state,
        "payloads": user.payloads,
        "groups": list(user.groups),
    }
