"""``eventdriven user`` and ``eventdriven dashboard``: who may look, and the server they look at."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from eventdriven_sync.cli.logs import configure_logging
from eventdriven_sync.cli.options import Command, Group, limit_option
from eventdriven_sync.cli.render import Column
from eventdriven_sync.cli.session import Session, person
from eventdriven_sync.cli.words import clean, when
from eventdriven_sync.documents import user_document
from eventdriven_sync.errors import InvalidOption
from eventdriven_sync.people import USER_STATES, User, UserChange, UserState

if TYPE_CHECKING:
    from eventdriven_sync.dashboard.accounts import Accounts

ROLES = ("viewer", "operator", "admin")
KEY_VARIABLE = "EVENTDRIVEN_DASHBOARD_SECRET_KEY"
_MAX_FILE = 8192

USER_COLUMNS: tuple[Column[User], ...] = (
    Column(title="name", text=lambda u: u.name),
    Column(title="role", text=lambda u: u.role),
    Column(title="state", text=lambda u: u.state),
    Column(title="groups", text=lambda u: ", ".join(u.groups) or "all", flexible=True),
    Column(title="payloads", text=lambda u: "yes" if u.payloads or u.role != "viewer" else "no", extra=True),
    Column(title="signed in", text=lambda u: when(u.signed_in_at)),
    Column(title="added", text=lambda u: when(u.created_at), extra=True),
    Column(title="by", text=lambda u: u.created_by, extra=True),
)


@click.group(cls=Group)
def user() -> None:
    """People who may sign in to the dashboard."""


def _password_options(function: Callable[..., None]) -> Callable[..., None]:
    """The password from a variable, a file or the terminal; never from the command line, which others see."""

    @click.option("--password-env", metavar="VARIABLE", help="Environment variable that has the password.")
    @click.option(
        "--password-file",
        type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
        help="File that has the password as its first line; - is the standard input.",
    )
    @functools.wraps(function)
    def with_password(
        session: Session, *, password_env: str | None, password_file: Path | None, **rest: Any
    ) -> None:
        # Asked for when it is needed: what else is wrong is said before anybody types.
        function(session, password=lambda: _password(password_env, password_file), **rest)

    return with_password


def _password(variable: str | None, file: Path | None) -> str:
    if variable and file:
        raise click.UsageError("give --password-env or --password-file, not both")
    if variable:
        if variable not in os.environ:
            raise click.UsageError(f"--password-env: there is no environment variable {variable!r}")
        return os.environ[variable]
    if file:
        with click.open_file(str(file), encoding="utf-8") as opened:
            return str(opened.readline(_MAX_FILE)).rstrip("\r\n")
    return str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))


@user.command("add")
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default="viewer", show_default=True, help="What they may.")
@click.option("--payloads", is_flag=True, help="A viewer sees payloads; operators and admins always do.")
@click.option(
    "--group",
    "groups",
    multiple=True,
    metavar="GROUP",
    help="They see and retry deliveries of this group only; may be repeated.",
)
@click.pass_obj
@_password_options
def add_user(
    session: Session,
    *,
    name: str,
    role: str,
    payloads: bool,
    groups: tuple[str, ...],
    password: Callable[[], str],
) -> None:
    """Add a user. The first must be an admin.

    The password has at least 12 characters; it is asked for unless an option says where it is.
    """
    added = _accounts(session).add(name, password(), role=role, payloads=payloads, groups=groups, by=person())
    session.out.document(user_document(added))
    session.out.line(f"User {added.name} added as {added.role}.")


@user.command("list")
@click.option("--state", type=click.Choice(USER_STATES), help="In this state.")
@limit_option
@click.pass_obj
def list_users(session: Session, *, state: UserState | None, limit: int) -> None:
    """List users by name."""
    session.out.rows(
        _accounts(session).find(state=state, limit=limit),
        USER_COLUMNS,
        as_document=user_document,
        empty="There is no such user. Add one: eventdriven user add NAME --role admin",
    )


@user.command("role")
@click.argument("name")
@click.argument("role", type=click.Choice(ROLES))
@click.option("--payloads/--no-payloads", default=None, help="Whether a viewer sees payloads.")
@click.option(
    "--group", "groups", multiple=True, metavar="GROUP", help="From now on only this group; may be repeated."
)
@click.option("--all-groups", is_flag=True, help="From now on all groups.")
@click.pass_obj
def change_role(
    session: Session,
    *,
    name: str,
    role: str,
    payloads: bool | None,
    groups: tuple[str, ...],
    all_groups: bool,
) -> None:
    """Give a user another role. They have to sign in anew."""
    if groups and all_groups:
        raise click.UsageError("give --group or --all-groups, not both")
    change = UserChange(role=role, payloads=payloads, groups=groups if groups or all_groups else None)
    _say(session, _accounts(session).change(name, change, by=person()), f"is {role} now")


@user.command("approve")
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), help="Another role than they have.")
@click.pass_obj
def approve_user(session: Session, *, name: str, role: str | None) -> None:
    """Let in somebody who asked for an account, or was disabled."""
    approved = _accounts(session).approve(name, role=role, by=person())
    _say(session, approved, f"may sign in as {approved.role}")


@user.command("disable")
@click.argument("name")
@click.pass_obj
def disable_user(session: Session, *, name: str) -> None:
    """Let a user in no more. Their sessions end; `approve` lets them in again."""
    _say(session, _accounts(session).change(name, UserChange(state="disabled"), by=person()), "is disabled")


@user.command("password")
@click.argument("name")
@click.pass_obj
@_password_options
def change_password(session: Session, *, name: str, password: Callable[[], str]) -> None:
    """Give a user another password. Their sessions end."""
    accounts = _accounts(session)
    known = accounts.get(name)
    _say(session, accounts.set_password(known.name, password(), by=person()), "has another password")


@click.command(cls=Command)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where it listens.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8400, show_default=True, help="0 takes a free one."
)
@click.option(
    "--threads",
    type=click.IntRange(2, 256),
    default=16,
    show_default=True,
    help="Requests at once; half of them may be live streams.",
)
@click.option(
    "--behind-proxy",
    "proxies",
    type=click.IntRange(1, 10),
    is_flag=False,
    flag_value=1,
    default=None,
    metavar="HOPS",
    help="So many proxies stand before it and end TLS; their X-Forwarded headers are believed.",
)
@click.option("--registration", is_flag=True, help="People may ask for an account, which an admin approves.")
@click.option("--insecure", is_flag=True, help="Nobody signs in: everybody on this machine is an admin.")
@click.option(
    "--secret-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"At least 32 random bytes, the same for all processes behind one address; or in {KEY_VARIABLE}. "
    "One process alone makes its own.",
)
@click.pass_obj
def dashboard(
    session: Session,
    *,
    host: str,
    port: int,
    threads: int,
    proxies: int | None,
    registration: bool,
    insecure: bool,
    secret_key_file: Path | None,
) -> None:
    """Serve the dashboard until Ctrl-C.

    Users sign in; add the first with `eventdriven user add NAME --role admin`.
    """
    from eventdriven_sync.dashboard import application, need_packages

    need_packages("waitress")
    from eventdriven_sync.dashboard.server import check_address, check_users, serve

    configure_logging("info", as_json=session.out.json)
    check_address(host, proxies=proxies or 0, insecure=insecure)
    bus = session.bus()
    if not insecure:
        check_users(bus)
    app = application(
        bus,
        insecure=insecure,
        secret_key=_secret_key(secret_key_file),
        registration=registration,
        proxies=proxies or 0,
        threads=threads,
    )

    def started(url: str) -> None:
        session.out.document({"url": url})
        session.out.line(f"Dashboard: {url} (Ctrl-C stops it)")

    serve(app, host=host, port=port, threads=threads, started=started)


def _secret_key(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        with file.open(encoding="utf-8") as opened:
            return opened.read(_MAX_FILE).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOption(f"--secret-key-file {clean(file)}: {error}", field="secret_key_file") from error


def _say(session: Session, changed: User, what: str) -> None:
    session.out.document(user_document(changed))
    session.out.line(f"User {changed.name} {what}.")


def _accounts(session: Session) -> Accounts:
    from eventdriven_sync.dashboard import need_packages

    need_packages()
    from eventdriven_sync.dashboard.accounts import Accounts

    return Accounts(session.bus())
