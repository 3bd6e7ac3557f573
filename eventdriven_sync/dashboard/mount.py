"""A dashboard mounted in a Flask application, and one visit to it."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable
from typing import Any, cast

import attrs
from flask import Request, current_app, g, request, url_for
from werkzeug.exceptions import TooManyRequests
from werkzeug.wrappers import Response

from eventdriven_sync.bus import EventBus
from eventdriven_sync.dashboard.access import Access, Identity
from eventdriven_sync.dashboard.accounts import Accounts
from eventdriven_sync.dashboard.screening import screened
from eventdriven_sync.dashboard.secrecy import new_secret, same, signed
from eventdriven_sync.monitor import Monitor
from eventdriven_sync.redaction import Redaction

Authorize = Callable[[Request], Identity | None]

MAX_BULK = 10  # a minute
EXTENSION = "eventdriven_dashboard"
_SECRET_LENGTH = len(new_secret())
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Via")


@attrs.frozen(kw_only=True, eq=False)
class Mount:
    """What one dashboard in one application consists of. Thread-safe.

    Attributes:
        bus: whose events are shown.
        name: of the blueprint as it is registered; begins the names of its endpoints.
        prefix: of its URLs, without a slash at its end.
        key: what its tokens are signed with.
        authorize: the application's own authentication.
        insecure: anybody on this machine is an admin.
        accounts: its own users, if neither is given.
        redaction: how secrets are hidden.
        registration: people may ask for an account.
    """

    bus: EventBus
    name: str
    prefix: str
    key: bytes
    authorize: Authorize | None
    insecure: bool
    accounts: Accounts
    redaction: Redaction
    registration: bool = False

    @property
    def signs_in(self) -> bool:
        """Whether the dashboard has users and sessions of its own."""
        return self.authorize is None and not self.insecure

    def answers(self) -> bool:
        """Whether the present request has no view, and is below our prefix."""
        path = request.path
        return request.routing_exception is not None and (
            path == self.prefix or path.startswith(f"{self.prefix}/")
        )


@attrs.define(kw_only=True, eq=False)
class Visit:
    """One request to a dashboard.

    Attributes:
        mount: where.
        access: what the view demands.
        secret: ties forms to the browser they were made for, and is the id of the session once signed in.
        fresh: the browser does not have the secret yet.
        identity: who it is, None if nobody knows.
    """

    mount: Mount
    access: Access
    secret: str
    fresh: bool
    identity: Identity | None = None
    _cookies_due: bool = attrs.field(default=False, init=False)

    @classmethod
    def begin(cls, mount: Mount, access: Access) -> Visit:
        """The visit of the present request, which ``visit()`` gives from now on."""
        found = request.cookies.get(_cookie_name(mount, "visit"), "")
        known = len(found) == _SECRET_LENGTH and found.isascii()
        begun = cls(mount=mount, access=access, secret=found if known else new_secret(), fresh=not known)
        setattr(g, EXTENSION, begun)
        return begun

    def csrf_token(self) -> str:
        """What a form or script of this page must send back with every change."""
        self._cookies_due = self._cookies_due or self.fresh or not self.is_same_site()
        return signed(self.mount.key, "csrf", self.secret)

    def renew(self) -> None:
        """A new secret: what somebody may have planted in the browser before opens nothing."""
        self.secret, self.fresh, self._cookies_due = new_secret(), True, True

    def is_same_site(self) -> bool:
        """Whether the request comes from a page of this site: the browser sent its strict cookie."""
        return same(request.cookies.get(_cookie_name(self.mount, "strict"), ""), self._strict)

    def has_token(self, token: str) -> bool:
        """Whether it is this visit's CSRF token."""
        return same(token, signed(self.mount.key, "csrf", self.secret))

    def keep(self, response: Response) -> None:
        """Give the browser what it has to send from now on."""
        if not self._cookies_due:
            return
        values = {"visit": (self.secret, "Lax"), "strict": (self._strict, "Strict")}
        for purpose, (value, same_site) in values.items():
            response.set_cookie(
                _cookie_name(self.mount, purpose),
                value,
                path=_cookie_path(self.mount),
                secure=not is_plain_loopback(),
                httponly=True,
                samesite=same_site,
            )

    @property
    def _strict(self) -> str:
        return signed(self.mount.key, "strict", self.secret)


def visit() -> Visit:
    """The visit of the present request.

    Raises:
        RuntimeError: there is none.
    """
    return cast(Visit, getattr(g, EXTENSION))


def bus() -> EventBus:
    """Whose events the present request is about."""
    return visit().mount.bus


def monitor() -> Monitor:
    """What the present request asks and acts through: what its maker may not see is not in the answers."""
    return screened(Monitor(bus()), identity(), visit().mount.redaction, slow_down=_slow_down)


def _slow_down() -> None:
    """Count what one person sets in motion, over all processes."""
    bus().open()
    [strikes] = bus().store.people.strike([f"bulk:{identity().name}"], window=60)
    if strikes.count > MAX_BULK:
        raise TooManyRequests(
            f"That was more than {MAX_BULK} times in a minute: wait and look what came of it.",
            retry_after=math.ceil(strikes.left),
        )


def identity() -> Identity:
    """Who makes the present request; for views that demand a role."""
    found = visit().identity
    assert found is not None, "a view without a role asked who it is"
    return found


def url(endpoint: str, **values: Any) -> str:
    """The URL of a view of this dashboard, by its function's name."""
    return url_for(f"{visit().mount.name}.{endpoint}", **values)


def mounts() -> dict[str, Mount]:
    """The dashboards of the present application, by name."""
    found: dict[str, Mount] = current_app.extensions.setdefault(EXTENSION, {})
    return found


def is_plain_loopback() -> bool:
    """Whether the request came over http from this machine to this machine, and through no proxy."""
    return not request.is_secure and is_loopback()


def is_loopback() -> bool:
    """Whether the request came from this machine to this machine, and through no proxy.

    The name it asks for counts as well: a foreign name that resolves to 127.0.0.1 is an attack.
    """
    if any(header in request.headers for header in _FORWARDED):
        return False
    return _is_loopback(request.remote_addr or "") and _is_loopback(host_name(request.host))


def host_name(host: str) -> str:
    """The host of ``host:port`` without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _cookie_path(mount: Mount) -> str:
    return f"{request.script_root}{mount.prefix}" or "/"


def _cookie_name(mount: Mount, purpose: str) -> str:
    """A name that no other application and no other dashboard on this host uses: ports do not count."""
    name = f"eventdriven-{mount.bus.settings.namespace}-{purpose}"
    if is_plain_loopback():
        return name
    return f"__Host-{name}" if _cookie_path(mount) == "/" else f"__Secure-{name}"
