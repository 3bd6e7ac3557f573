"""The blueprint: views, with the guard before them and the headers behind them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from flask import Blueprint, current_app, g, request
from flask.blueprints import BlueprintSetupState
from flask.sansio.app import App
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect
from werkzeug.wrappers import Response

from eventdriven_sync.bus import EventBus
from eventdriven_sync.dashboard.access import Access, access_of
from eventdriven_sync.dashboard.accounts import Accounts
from eventdriven_sync.dashboard.action_pages import action_pages
from eventdriven_sync.dashboard.api_actions import api
from eventdriven_sync.dashboard.assets import files
from eventdriven_sync.dashboard.chain_pages import chain_pages
from eventdriven_sync.dashboard.failures import respond
from eventdriven_sync.dashboard.guard import admit, guard
from eventdriven_sync.dashboard.headers import harden
from eventdriven_sync.dashboard.health import health
from eventdriven_sync.dashboard.letter_pages import letter_pages
from eventdriven_sync.dashboard.live import streams
from eventdriven_sync.dashboard.mount import EXTENSION, Authorize, Mount, Visit, mounts
from eventdriven_sync.dashboard.pages import pages
from eventdriven_sync.dashboard.routing import Routes
from eventdriven_sync.dashboard.screening import AS_STORED
from eventdriven_sync.dashboard.secrecy import check_key
from eventdriven_sync.dashboard.signing import signing
from eventdriven_sync.dashboard.subject_pages import subject_pages
from eventdriven_sync.dashboard.user_pages import user_pages
from eventdriven_sync.errors import ConfigurationError, InvalidOption, shorten
from eventdriven_sync.redaction import Redaction

ROUTES: Sequence[Routes] = (
    *(pages, chain_pages, letter_pages, action_pages, subject_pages, user_pages),
    *(streams, signing, api, health, files),
)

# With insecure=True nothing is secret on this machine, and several processes must agree on the key.
_NO_KEY = b"insecure"


def build(
    bus: EventBus,
    *,
    authorize: Authorize | None,
    insecure: bool,
    secret_key: str | bytes | None,
    registration: bool,
    redaction: Redaction | None,
    name: str,
) -> Blueprint:
    """See ``dashboard``."""
    _check(bus, authorize=authorize, insecure=insecure)
    accounts = Accounts(bus)
    blueprint = Blueprint(name, __name__)
    for routes in ROUTES:
        routes.add_to(blueprint)

    def mount(state: BlueprintSetupState) -> None:
        _mount(
            state,
            Mount(
                bus=bus,
                name=".".join(filter(None, (state.name_prefix, state.name))),
                prefix=(state.url_prefix or "").rstrip("/"),
                key=_key(state.app, secret_key, insecure=insecure),
                authorize=authorize,
                insecure=insecure,
                accounts=accounts,
                redaction=redaction or AS_STORED,
                registration=registration,
            ),
        )

    blueprint.record(mount)
    blueprint.before_request(_before)
    blueprint.register_error_handler(Exception, _failed)
    return blueprint


def _check(bus: object, *, authorize: object, insecure: object) -> None:
    if not isinstance(bus, EventBus):
        raise InvalidOption(f"bus is {shorten(bus)}: give the EventBus whose events are shown", field="bus")
    if authorize is not None and not callable(authorize):
        raise InvalidOption(
            f"authorize is {shorten(authorize)}: give a function that takes the request and returns an "
            "Identity or None",
            field="authorize",
        )
    if not isinstance(insecure, bool):
        raise InvalidOption(f"insecure is {shorten(insecure)}: give True or False", field="insecure")
    if authorize is not None and insecure:
        raise InvalidOption("give authorize, or insecure=True, not both", field="insecure")


def _key(app: App, given: str | bytes | None, *, insecure: bool) -> bytes:
    if insecure and given is None:
        return _NO_KEY
    return check_key(app.config.get("SECRET_KEY") if given is None else given)


def _mount(state: BlueprintSetupState, mount: Mount) -> None:
    app = state.app
    if app.debug and not mount.insecure:
        raise ConfigurationError(
            "the application is in debug mode, whose debugger runs any code: the dashboard is not mounted; "
            "turn debug off, or use insecure=True on a machine of your own",
            field="debug",
        )
    if "<" in mount.prefix:
        raise InvalidOption(
            f"url_prefix is {shorten(mount.prefix)}: the dashboard's must have no variable parts",
            field="url_prefix",
        )
    app.extensions.setdefault(EXTENSION, {})[mount.name] = mount
    app.before_request(partial(_unmatched, mount))
    # What comes first here is called last: nobody adds a header afterwards.
    app.after_request_funcs.setdefault(None, []).insert(0, partial(_after, mount))


def _before() -> Response | None:
    mount = mounts()[str(request.blueprint)]
    return guard(mount, access_of(current_app.view_functions[str(request.endpoint)]))


def _unmatched(mount: Mount) -> Response | None:
    """What no route answers below our prefix is answered by us: it is guarded, and has our headers."""
    error = request.routing_exception
    if error is None or isinstance(error, RequestRedirect) or not mount.answers():
        return None
    is_api = request.path.startswith(f"{mount.prefix}/api/")
    access = Access(role="viewer", kind="api" if is_api else "page")
    try:
        return admit(Visit.begin(mount, access)) or respond(error, access.kind)
    except HTTPException as refused:
        return respond(refused, access.kind)


def _failed(error: Exception) -> Response:
    here: Visit | None = g.get(EXTENSION)
    return respond(error, here.access.kind if here else "file")


def _after(mount: Mount, response: Response) -> Response:
    here: Visit | None = g.get(EXTENSION)
    if here is not None and here.mount is mount:
        here.keep(response)
        return harden(response)
    return harden(response) if mount.answers() else response
