"""The demonstration: a user changes his name, one of two modules fails, and its dead letter is retried.

Everything is real: nats-server and mongod are started for it, on free ports, with their data in a temporary
directory that is removed at the end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import attrs

from eventdriven_sync.bus import EventBus
from eventdriven_sync.chain import Chain
from eventdriven_sync.cli.render import plain_chain
from eventdriven_sync.devserver import DevServers
from eventdriven_sync.events import event
from eventdriven_sync.operations import OperationScope
from eventdriven_sync.worker import Worker

Echo = Callable[[str], object]

WAIT = 90.0


@event("User.nameUpdated", key="user_id")
@attrs.frozen(kw_only=True)
class UserNameUpdated:
    """A user has a new name."""

    user_id: str
    first_name: str
    last_name: str


@event("Blog.userUpdated", key="user_id")
@attrs.frozen(kw_only=True)
class BlogUserUpdated:
    """The author's name was changed in every blog post."""

    user_id: str


@event("Comment.userUpdated", key="user_id")
@attrs.frozen(kw_only=True)
class CommentUserUpdated:
    """The author's name was changed in every comment."""

    user_id: str


@attrs.define
class Switch:
    """Makes the handler of ``Comment`` fail while it is on."""

    on: bool = True


def build(bus: EventBus, switch: Switch, echo: Echo) -> None:
    """Two modules that know nothing of each other, only the event."""
    blog, comment = bus.group("Blog"), bus.group("Comment")

    @blog.handler(UserNameUpdated, name="update_author")
    def update_posts(event: UserNameUpdated) -> None:
        echo(f"Event! - [User.nameUpdated] Blog renames its author to {event.first_name} {event.last_name}")
        blog.publish(BlogUserUpdated(user_id=event.user_id))

    @comment.handler(UserNameUpdated, name="update_author")
    def update_comments(event: UserNameUpdated) -> None:
        echo("Event! - [User.nameUpdated] Comment tries to rename its author")
        if switch.on:
            raise RuntimeError("Test Error!!")
        comment.publish(CommentUserUpdated(user_id=event.user_id))


def run(*, once: bool = True, echo: Echo = print) -> int:
    """Run the demonstration.

    Args:
        once: end when it is done; otherwise keep the servers until Ctrl-C, to look around with the CLI.
        echo: prints a line.

    Returns:
        0 if the chain ended as promised, else 1.
    """
    echo("1. Starting nats-server (JetStream) and mongod (replica set of one) ...")
    with DevServers() as servers:
        bus = EventBus(nats=servers.nats_url, mongo=servers.mongo_url("demo"), namespace="demo")
        switch = Switch()
        build(bus, switch, echo)
        echo(f"   nats {servers.nats_url}, mongo on port {servers.mongo.port}")
        with _WorkerLines(echo), bus:
            worker = Worker(bus, threads=4).start()
            try:
                good = _story(bus, switch, echo)
                if not once:
                    _look_around(servers, echo)
            finally:
                worker.stop(grace=5.0)
    echo("Done: the servers are stopped, their data is removed." if good else "The demonstration failed.")
    return 0 if good else 1


def _story(bus: EventBus, switch: Switch, echo: Echo) -> bool:
    echo("2. An operation renames a user and publishes User.nameUpdated ...")
    operation = _rename(bus)
    echo(
        "3. Blog handles it; Comment fails with 'Test Error!!', 5 attempts with growing pauses (about 15 s):"
    )
    chain = operation.wait(timeout=WAIT)
    _show(chain, echo)
    dead = bus.dead_letters.find(operation_id=operation.id)
    if len(dead) != 1 or chain.succeeded:
        echo(f"   expected one dead letter, found {len(dead)}")
        return False
    echo(
        f"4. The dead letter {dead[0].id} failed {dead[0].failed} times. The fault is mended, it is retried:"
    )
    switch.on = False
    bus.dead_letters.retry(dead[0].id, by="demo")
    chain = operation.wait(timeout=WAIT)
    _show(chain, echo)
    return chain.succeeded


def _rename(bus: EventBus) -> OperationScope:
    names = {"first_name": "Ada", "last_name": "Lovelace"}
    with bus.operation("userUpdateNames", kind="script", variables=names, user="ada") as operation:
        bus.publish(UserNameUpdated(user_id="42", **names))
    return operation


def _show(chain: Chain, echo: Echo) -> None:
    echo("")
    echo(plain_chain(chain))
    echo("")


def _look_around(servers: DevServers, echo: Echo) -> None:
    echo("The servers stay up until Ctrl-C. In another terminal:")
    for name, value in servers.settings(namespace="demo", database="demo").items():
        echo(f"  export {name}='{value}'")
    echo("  eventdriven operations list")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        echo("stopping ...")


class _WorkerLines(logging.Handler):
    """Shows what the library logs (``Failed 1 times …``) between the lines of the demonstration."""

    def __init__(self, echo: Echo) -> None:
        super().__init__(level=logging.WARNING)
        self._echo = echo

    def __enter__(self) -> None:
        logging.getLogger("eventdriven_sync").addHandler(self)

    def __exit__(self, *error: object) -> None:
        logging.getLogger("eventdriven_sync").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        self._echo(f"   {record.getMessage()}")
