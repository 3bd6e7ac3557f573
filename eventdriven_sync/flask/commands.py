"""``flask events …``: the commands of ``eventdriven``, with the application's own bus."""

from __future__ import annotations

import sys
from typing import Any

import click
from flask.cli import ScriptInfo

from eventdriven_sync.cli import COMMANDS
from eventdriven_sync.cli.session import Reporting, Session


def events_command() -> click.Group:
    """The group ``events`` for ``app.cli``."""
    group = _Events(
        name="events",
        help="Run workers, publish, look at events and their chains, mend what failed.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    for command in COMMANDS:
        group.add_command(command)
    return group


class _Events(Reporting):
    """Runs its commands in an application context, with a session of that application's bus."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        from eventdriven_sync.flask.extension import state_of

        info = ctx.ensure_object(ScriptInfo)
        app = info.load_app()
        session = ctx.obj = Session(bus=lambda: state_of(app).bus, program=_program(info))
        ctx.call_on_close(session.close)
        with app.app_context():
            return super().invoke(ctx)


def _program(info: ScriptInfo) -> list[str]:
    """What runs ``flask events`` again, in processes of its own."""
    target = [] if info.app_import_path is None else ["--app", info.app_import_path]
    return [sys.executable, "-m", "flask", *target, "events"]
