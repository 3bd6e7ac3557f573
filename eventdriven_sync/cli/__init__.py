"""The command line ``eventdriven``: run workers, publish, look at everything, mend what failed.

Neither NATS nor MongoDB is imported before a command needs it, so ``--help`` and completion are quick.
"""

from __future__ import annotations

import click

from eventdriven_sync._version import __version__
from eventdriven_sync.cli import (
    configuration,
    dead,
    events,
    handlers,
    health,
    operations,
    people,
    publishing,
    running,
)
from eventdriven_sync.cli.options import app_option, debug_option
from eventdriven_sync.cli.session import Root, Session

program = Root(
    name="eventdriven",
    help="""Event-driven backends for synchronous Python: NATS JetStream carries, MongoDB remembers.

    Commands that need no handlers of yours find the servers in EVENTDRIVEN_NATS, EVENTDRIVEN_MONGO and
    EVENTDRIVEN_NAMESPACE, or in the bus that --app names.

    Exit codes: 0 all is well, 1 failed, 2 called wrongly (also: no such id, a state that does not allow it),
    3 a server cannot be reached.
    """,
    params=[
        app_option(environment=True),
        debug_option(environment=True),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
click.version_option(__version__, prog_name="eventdriven", help="Show the version.")(program)

# Those that work with an application's bus: ``flask events`` has them as well.
COMMANDS: tuple[click.Command, ...] = (
    running.worker,
    publishing.publish,
    operations.chain,
    operations.operations,
    events.events,
    handlers.handlers,
    dead.dead,
    health.audit,
    health.doctor,
    health.streams,
    people.dashboard,
    people.user,
    running.dev,
)

for _command in (*COMMANDS, running.demo, configuration.config, configuration.completion):
    program.add_command(_command)


def main() -> None:
    """The console script."""
    session = Session()
    try:
        program.main(prog_name="eventdriven", obj=session)
    finally:
        session.close()
