"""``eventdriven worker``, ``dev up`` and ``demo``: what runs until it is told to stop."""

from __future__ import annotations

import io
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

import click

from eventdriven_sync.cli.logs import WholeLines, configure_logging
from eventdriven_sync.cli.options import Command, Group
from eventdriven_sync.cli.session import Session, Unreachable

if TYPE_CHECKING:
    from eventdriven_sync.worker import Worker

LEVELS = ("debug", "info", "warning", "error")
DEFAULT_THREADS = 8
DEFAULT_GRACE = 25.0
MAX_PORT = 65535

_EXPORT = re.compile(r"export (\w+)='(.*)'")


def _print_at_once() -> None:
    """What handlers print reaches a log file or pipe line by line, not when the worker ends."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
        sys.stdout = cast(TextIO, WholeLines(sys.stdout))


@click.command(cls=Command)
@click.option("--group", "groups", multiple=True, metavar="GROUP", help="Run this group; may be repeated.")
@click.option(
    "--handler", "handlers", multiple=True, metavar="GROUP.HANDLER", help="Run this handler; may be repeated."
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    default=DEFAULT_THREADS,
    show_default=True,
    help="How many handlers run at once in one process.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, 3600),
    default=DEFAULT_GRACE,
    show_default=True,
    help="Seconds that running handlers get to end after SIGTERM or Ctrl-C; a second one ends at once.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Processes; one that dies is replaced.",
)
@click.option(
    "--health-port",
    type=click.IntRange(1, MAX_PORT),
    help="Answer GET /live, /ready and /progress here; with --processes the next ports as well, one each.",
)
@click.option(
    "--health-host",
    default="127.0.0.1",
    show_default=True,
    help="Where to listen for that; there is no authentication.",
)
@click.option(
    "--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="What is logged."
)
@click.pass_obj
def worker(
    session: Session,
    *,
    groups: tuple[str, ...],
    handlers: tuple[str, ...],
    threads: int,
    grace: float,
    processes: int,
    health_port: int | None,
    health_host: str,
    log_level: str,
) -> None:
    """Run the handlers of the application (needs --app): all, those of some groups, or some by name.

    It logs to the error output, with --json one JSON object per line.
    """
    from eventdriven_sync.worker import Worker

    configure_logging(log_level, as_json=session.out.json)
    _print_at_once()
    # Also with processes: what cannot run is refused here, and not again and again in each of them.
    found = Worker(
        session.app_bus(),
        groups=groups or None,
        handlers=handlers or None,
        threads=threads,
        grace=grace,
    )
    if processes == 1:
        with _health_served(found, health_host, health_port):
            code = found.run()
    else:
        from eventdriven_sync.processes import run_processes

        if health_port and health_port + processes - 1 > MAX_PORT:
            raise click.UsageError(f"--health-port {health_port} leaves no ports for {processes} processes")
        child = _child(session, groups, handlers, threads, grace, log_level)

        def line(number: int) -> list[str]:
            at = [] if health_port is None else ["--health-port", str(health_port + number - 1)]
            return [*child, *at, *(["--health-host", health_host] if at else [])]

        code = run_processes(line, processes=processes, grace=grace, command=session.program)
    click.get_current_context().exit(code)


def _health_served(found: Worker, host: str, port: int | None) -> AbstractContextManager[object]:
    from eventdriven_sync.endpoint import HealthEndpoint

    return HealthEndpoint(found.health, port=port, host=host) if port else nullcontext()


def _child(
    session: Session,
    groups: tuple[str, ...],
    handlers: tuple[str, ...],
    threads: int,
    grace: float,
    log_level: str,
) -> list[str]:
    """What each of several processes is called with."""
    line = [] if session.bound else ["--app", str(session.app)]
    line += ["worker", *(["--debug"] if session.debug else [])]
    line += ["--threads", str(threads), "--grace", str(grace), "--log-level", log_level]
    line += [word for group in groups for word in ("--group", group)]
    line += [word for handler in handlers for word in ("--handler", handler)]
    return line + (["--json"] if session.out.json else [])


@click.group(cls=Group)
def dev() -> None:
    """Servers for development."""


@dev.command("up")
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".eventdriven"),
    show_default=True,
    help="Where data and logs are kept.",
)
@click.option("--nats-port", type=click.IntRange(1, 65535), help="Port of nats-server; a free one otherwise.")
@click.option("--mongo-port", type=click.IntRange(1, 65535), help="Port of mongod; a free one otherwise.")
@click.option("--namespace", default="dev", show_default=True, help="Namespace in the settings it prints.")
@click.option("--sync-always", is_flag=True, help="nats-server writes through to the disk: safe, and slower.")
@click.pass_obj
def dev_up(
    session: Session,
    *,
    data_dir: Path,
    nats_port: int | None,
    mongo_port: int | None,
    namespace: str,
    sync_always: bool,
) -> None:
    """Run nats-server and mongod until Ctrl-C, and print the settings that lead to them."""
    from eventdriven_sync.devserver import ServerBinaryMissing, run_up

    def echo(line: str) -> None:
        setting = _EXPORT.fullmatch(line)
        session.out.line(line)
        session.out.document(
            {
                "message": line,
                "name": setting[1] if setting else None,
                "value": setting[2] if setting else None,
            }
        )

    try:
        run_up(
            data_dir,
            nats_port=nats_port,
            mongo_port=mongo_port,
            sync_always=sync_always,
            namespace=namespace,
            echo=echo,
        )
    except ServerBinaryMissing as error:
        raise Unreachable(str(error)) from error


@click.command(cls=Command)
@click.option(
    "--once",
    is_flag=True,
    help="End when it is done, as it does without a terminal; otherwise the blog stays up until Ctrl-C.",
)
@click.pass_obj
def demo(session: Session, *, once: bool) -> None:
    """Show everything on real servers: a blog, its visitor, a failing handler, its dead letter, the retry."""
    from eventdriven_sync.demo import run
    from eventdriven_sync.devserver import ServerBinaryMissing

    def echo(line: str) -> None:
        session.out.line(line)
        session.out.document({"message": line})

    try:
        code = run(once=once or not sys.stdout.isatty(), echo=echo)
    except ServerBinaryMissing as error:
        raise Unreachable(str(error)) from error
    click.get_current_context().exit(code)
