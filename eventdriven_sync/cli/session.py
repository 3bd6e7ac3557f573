"""One run of the program: its bus, its output, and what its errors become."""

from __future__ import annotations

import getpass
import os
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from eventdriven_sync.cli.loading import load_bus
from eventdriven_sync.cli.logs import quiet
from eventdriven_sync.cli.output import Output
from eventdriven_sync.cli.words import clean, clean_lines
from eventdriven_sync.errors import (
    BrokerUnavailable,
    CodecError,
    ConfigurationError,
    ConsumerConflict,
    EventDrivenError,
    InvalidTransition,
    NotFound,
    PublishOutcomeUnknown,
    StoreUnavailable,
    StreamConflict,
)
from eventdriven_sync.processes import COMMAND

if TYPE_CHECKING:
    from eventdriven_sync.bus import EventBus

FLUSH = 2.0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130

_CODES: tuple[tuple[type[Exception], int], ...] = (
    (StoreUnavailable, UNREACHABLE),
    (BrokerUnavailable, UNREACHABLE),
    (PublishOutcomeUnknown, UNREACHABLE),
    (StreamConflict, FAILED),
    (ConsumerConflict, FAILED),
    (ConfigurationError, USAGE),
    (CodecError, USAGE),
    (NotFound, USAGE),
    (InvalidTransition, USAGE),
)


class Unreachable(EventDrivenError):
    """A server that a command needs cannot be had."""


class Session:
    """What a command works with. One thread only.

    Args:
        bus: gives the bus of an application that runs these commands as its own; ``--app`` has no place then.
        program: what runs these commands in another process.

    Attributes:
        app: ``module:bus``, or None.
        program: as given.
        debug: show stacks of errors.
        out: where results go.
    """

    def __init__(
        self, *, bus: Callable[[], EventBus] | None = None, program: Sequence[str] = COMMAND
    ) -> None:
        self.app: str | None = None
        self.debug = False
        self.out = Output()
        self.program = tuple(program)
        self._given = bus
        self._app_bus: EventBus | None = None
        self._bus: EventBus | None = None

    @property
    def bound(self) -> bool:
        """Whether the application is known without ``--app``."""
        return self._given is not None

    def bus(self) -> EventBus:
        """A bus to look at things with; see ``unopened_bus``."""
        bus = self.unopened_bus()
        bus.open()
        return bus

    def unopened_bus(self) -> EventBus:
        """The bus of the environment or of ``--app``, without its handlers: looking subscribes nobody."""
        from eventdriven_sync.bus import EventBus

        if self._bus is None and (self.app or self._given):
            app = self.app_bus()
            self._bus = EventBus(settings=app.settings, broker=app.broker, store=app.store)
        if self._bus is None:
            self._bus = EventBus.from_env()
        return self._bus

    def app_bus(self) -> EventBus:
        """The application's own bus, with its handlers and event classes.

        Raises:
            UsageError: no ``--app`` was given.
            ConfigurationError: it cannot be loaded.
        """
        if self._given and self._app_bus is None:
            self._app_bus = self._given()
        if not self.app and self._app_bus is None:
            raise click.UsageError(
                "this needs the application's bus: --app module:bus, or EVENTDRIVEN_APP=module:bus"
            )
        if self._app_bus is None:
            self._app_bus = load_bus(str(self.app))
        return self._app_bus

    def close(self) -> None:
        """Disconnect: what was published is on its way. An application that goes on keeps its bus open."""
        if self._given is not None:
            if self._app_bus is not None and self._app_bus.opened:
                self._app_bus.flush(timeout=FLUSH)
            return
        for bus in (self._bus, self._app_bus):
            if bus is not None:
                bus.close(timeout=FLUSH)


class Reporting(click.Group):
    """A group whose errors become one line on the error output and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        session = ctx.ensure_object(Session)
        quiet()
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            ctx.exit(INTERRUPTED)
        except Exception as error:  # the border to the user: whatever it is becomes a line and a code
            _report(error, debug=session.debug)
            ctx.exit(exit_code(error))


class Root(Reporting):
    """The program ``eventdriven``."""


def exit_code(error: Exception) -> int:
    """2 for what the caller can mend by calling otherwise, 3 for a server that is away, 1 for the rest."""
    if isinstance(error, Unreachable):
        return UNREACHABLE
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def _report(error: Exception, *, debug: bool) -> None:
    if debug:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    if isinstance(error, EventDrivenError):
        click.echo(f"Error: {clean_lines(error)}", err=True)
        return
    hint = "" if debug else " (--debug shows where)"
    click.echo(f"Error: {type(error).__name__}: {clean(error)}{hint}", err=True)


def person() -> str:
    """Who acts, as it is kept with what was done: ``cli:ada``."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container whose user has no name
        return f"cli:uid {os.getuid()}"
