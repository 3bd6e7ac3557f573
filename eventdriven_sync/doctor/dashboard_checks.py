"""What can be wrong with the dashboard: who may sign in, its key, debug mode, what strangers are shown."""

from __future__ import annotations

import http.client
import os
import ssl
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import attrs

from eventdriven_sync.dashboard.secrecy import check_key
from eventdriven_sync.doctor.check import Check, Unknown, fail, known, ok, skip, warn
from eventdriven_sync.errors import ConfigurationError

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus
    from eventdriven_sync.doctor.facts import Facts

KEY_VARIABLE = "EVENTDRIVEN_DASHBOARD_SECRET_KEY"
DEBUG_VARIABLE = "FLASK_DEBUG"
_HTTP_TIMEOUT = 3.0
# Werkzeug's debugger serves its own files under any address, and whoever reaches it runs code of theirs.
_DEBUGGER = "?__debugger__=yes&cmd=resource&f=debugger.js"


@attrs.frozen(kw_only=True)
class People:
    """How many users of the dashboard there are.

    Attributes:
        admins: who may sign in.
        waiting: for approval.
    """

    users: int
    admins: int
    waiting: int


@attrs.frozen(kw_only=True)
class Page:
    """What the dashboard answers to a stranger.

    Attributes:
        private: the connection is encrypted, or does not leave this machine.
        status: of the answer; a redirect is not followed.
        debugger: it runs under a debugger.
    """

    url: str
    private: bool
    status: int
    debugger: bool


@attrs.frozen(kw_only=True)
class Dashboard:
    """What there is to know of the dashboard.

    Attributes:
        key_fault: what is wrong with the key in the environment, or empty.
        has_key: whether there is one.
        debug: Flask's debug mode is asked for in the environment.
    """

    people: People | Unknown
    key_fault: str
    has_key: bool
    debug: bool
    page: Page | Unknown


def count_people(bus: EventBus) -> People:
    """Counted in the event store."""
    people = bus.store.people
    return People(
        users=people.count_users(),
        admins=people.count_users(role="admin", state="active"),
        waiting=people.count_users(state="waiting"),
    )


def look(people: People | Unknown, *, url: str | None) -> Dashboard:
    """This process's environment, and the dashboard's page if its address is known."""
    key, fault = os.environ.get(KEY_VARIABLE, ""), ""
    try:
        if key:
            check_key(key, field=KEY_VARIABLE)
    except ConfigurationError as error:
        fault = error.message
    debug = os.environ.get(DEBUG_VARIABLE, "").strip().lower() not in ("", "0", "false", "no")
    return Dashboard(people=people, key_fault=fault, has_key=bool(key), debug=debug, page=visit(url))


def visit(url: str | None) -> Page | Unknown:
    """What a stranger is shown there."""
    if not url:
        return Unknown("no dashboard URL given (for example https://shop.example/events)", skipped=True)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return Unknown(f"dashboard URL {url!r} does not begin with http:// or https://")
    address = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/"
    try:
        return Page(
            url=address,
            private=parts.scheme == "https" or is_this_machine(parts.hostname),
            status=_answer(address)[0],
            debugger="javascript" in _answer(address + _DEBUGGER)[1],
        )
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        what = "has a certificate that cannot be trusted" if isinstance(reason, ssl.SSLError) else "is silent"
        return Unknown(f"{address} {what}: {reason}")


def is_this_machine(host: str) -> bool:
    """Whether what is sent there does not leave this machine."""
    return host in ("localhost", "::1") or host.startswith("127.") or host.endswith(".localhost")


class _StayHere(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


def _answer(address: str) -> tuple[int, str]:
    """The status and the type of what is answered."""
    try:
        with urllib.request.build_opener(_StayHere).open(address, timeout=_HTTP_TIMEOUT) as answer:
            return int(answer.status), answer.headers.get_content_type()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get_content_type()


# --- checks ---------------------------------------------------------------------------------------------


def users(facts: Facts) -> Check:
    """Somebody can manage the users there are."""
    people = known(facts.dashboard.people)
    if not people.users:
        skip("the dashboard has no users of its own")
    if not people.admins:
        return warn(
            f"{people.users} user(s), and no admin among them who may sign in: nobody can approve or disable",
            "eventdriven user role NAME admin, or eventdriven user add NAME --role admin",
        )
    waiting = f", waiting for approval: {people.waiting}" if people.waiting else ""
    return ok(f"users: {people.users}, admins: {people.admins}{waiting}")


def settings(facts: Facts) -> Check:
    """Its key is a secret, and nothing runs in debug mode."""
    found = facts.dashboard
    if found.debug:
        return fail(
            f"{DEBUG_VARIABLE} is set: an application in debug mode runs code of whoever reaches it, and the "
            "dashboard refuses to be mounted in it",
            f"unset {DEBUG_VARIABLE} where the application is served",
        )
    if found.key_fault:
        finding, _, cure = found.key_fault.rpartition("; ")
        return fail(finding, cure)
    return ok("a key in the environment, no debug mode" if found.has_key else "no debug mode")


def access(facts: Facts) -> Check:
    """A stranger is shown nothing, and nobody reads along."""
    page = known(facts.dashboard.page)
    if page.debugger:
        return fail(
            f"{page.url} runs under Werkzeug's debugger: whoever reaches it can run code",
            "serve it with a WSGI server, without debug=True and without flask --debug",
        )
    if not page.private:
        return fail(
            f"{page.url} is not encrypted: passwords cross the network in clear text",
            "put a proxy that ends TLS before it, and give its https:// URL",
        )
    if page.status == http.client.OK:
        return fail(
            f"{page.url} shows the events to strangers",
            "leave out insecure=True, and let authorize= return None for who is not signed in",
        )
    if page.status not in (301, 302, 303, 307, 308, 401, 403):
        return warn(f"{page.url} answers a stranger with status {page.status}", "check the URL and its log")
    return ok(f"{page.url} asks strangers to sign in")
