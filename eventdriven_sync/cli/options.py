"""Options that commands share, and how they are read."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from eventdriven_sync.cli.session import Session

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_LIMIT = 50
MAX_LIMIT = 10_000

_AGO = re.compile(r"(\d{1,9})\s*([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def moment(text: str) -> datetime:
    """``30m``, ``2h``, ``7d`` before now, or an ISO 8601 time; one without an offset is local."""
    ago = _AGO.fullmatch(text.strip())
    try:
        if ago:
            return datetime.now(UTC) - timedelta(seconds=int(ago[1]) * _SECONDS[ago[2]])
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise click.BadParameter(f"{text!r} is no time: give 30m, 2h, 7d, or 2026-01-31T12:00") from error


def _set_app(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(Session).app = value


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).debug = True


def _set_json(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.ensure_object(Session).out.json = value


def app_option(*, environment: bool) -> click.Option:
    """``--app``; the environment counts at the top only, or it would overrule what is given there."""
    return click.Option(
        ["--app"],
        metavar="MODULE:BUS",
        envvar="EVENTDRIVEN_APP" if environment else None,
        show_envvar=environment,
        expose_value=False,
        callback=_set_app,
        help="The application's EventBus, such as blog.events:bus.",
    )


def debug_option(*, environment: bool) -> click.Option:
    """``--debug``."""
    return click.Option(
        ["--debug"],
        is_flag=True,
        envvar="EVENTDRIVEN_DEBUG" if environment else None,
        show_envvar=environment,
        expose_value=False,
        callback=_set_debug,
        help="Show the stack of an error.",
    )


class Command(click.Command):
    """A command with the options that every command has."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own, those of all commands, ``--help``."""
        own = super().get_params(ctx)
        session = ctx.find_object(Session)
        everywhere = [each for each in _EVERYWHERE if each.name != "app" or not (session and session.bound)]
        return [*own[: len(self.params)], *everywhere, *own[len(self.params) :]]


class Group(click.Group):
    """A group whose commands have the options that every command has."""

    command_class = Command


_EVERYWHERE = (
    click.Option(
        ["--json"],
        is_flag=True,
        expose_value=False,
        callback=_set_json,
        help="One JSON object per line instead of text.",
    ),
    app_option(environment=False),
    debug_option(environment=False),
)


def limit_option(function: F) -> F:
    """``--limit``."""
    return click.option(
        "--limit",
        type=click.IntRange(1, MAX_LIMIT),
        default=DEFAULT_LIMIT,
        show_default=True,
        help="At most so many.",
    )(function)


def since_option(function: F) -> F:
    """``--since``."""
    return click.option(
        "--since", type=moment, metavar="WHEN", help="Not older than 30m, 2h, 7d, or an ISO time."
    )(function)


def until_option(function: F) -> F:
    """``--until``."""
    return click.option(
        "--until", type=moment, metavar="WHEN", help="Older than 30m, 2h, 7d, or an ISO time."
    )(function)


def after_option(function: F) -> F:
    """``--after``."""
    return click.option("--after", metavar="ID", help="The page that follows this id.")(function)


def yes_option(function: F) -> F:
    """``--yes``."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask.")(function)


def dry_run_option(function: F) -> F:
    """``--dry-run``."""
    return click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")(function)


def agreed(question: str, *, yes: bool) -> None:
    """Ask on the error output; anything but yes aborts the command."""
    if not yes:
        click.confirm(question, abort=True, err=True)
