"""Where commands put their results: lines and tables for people, JSON lines for programs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from eventdriven_sync import documents
from eventdriven_sync.cli.render import (
    Column,
    chain_tree,
    need_rich,
    plain_chain,
    plain_table,
    rich_table,
)
from eventdriven_sync.cli.words import clean
from eventdriven_sync.documents import Document
from eventdriven_sync.errors import EventDrivenError

if TYPE_CHECKING:
    from rich.console import Console

    from eventdriven_sync.chain import Chain

T = TypeVar("T")


def is_terminal() -> bool:
    """Whether a person reads the output in a terminal that can do more than text."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


class Output:
    """The output of one command.

    Attributes:
        json: True for one JSON object per line and nothing else on the standard output.
    """

    def __init__(self) -> None:
        self.json = False

    def line(self, text: str = "") -> None:
        """A line for people; nothing with ``--json``."""
        if not self.json:
            click.echo(_encodable(text))

    def note(self, text: str) -> None:
        """A remark beside the result, on the error output; nothing with ``--json``."""
        if not self.json:
            click.echo(text, err=True)

    def warning(self, text: str) -> None:
        """Something the user must know whatever the format, on the error output."""
        click.echo(f"Warning: {clean(text)}", err=True)

    def document(self, found: Document) -> None:
        """One JSON object; nothing without ``--json``."""
        if not self.json:
            return
        try:
            text = json.dumps(found, ensure_ascii=not _unicode(), allow_nan=False)
        except RecursionError as error:
            raise EventDrivenError(
                "this chain is nested too deeply for one JSON object: "
                "`eventdriven events list --operation ID --json` lists its events one by one"
            ) from error
        click.echo(text)

    def rows(
        self,
        found: Sequence[T],
        columns: Sequence[Column[T]],
        *,
        empty: str,
        as_document: Callable[[T], Document] = documents.document,
    ) -> None:
        """A table, or one JSON object per row.

        Args:
            empty: what to say, and what to do next, when there is nothing.
        """
        if self.json:
            for row in found:
                self.document(as_document(row))
        elif not found:
            self.note(empty)
        elif is_terminal():
            need_rich()
            console = _console()
            console.print(rich_table(columns, found, width=console.width))
        else:
            self.line(plain_table(columns, found))

    def more(self, found: Sequence[Any], limit: int, last_id: Callable[[Any], str]) -> None:
        """Say how to read on, if there may be more than is shown."""
        if len(found) >= limit:
            self.note(f"There may be more: add --after {last_id(found[-1])}, or a higher --limit.")

    def chain(self, chain: Chain) -> None:
        """The chain as a tree, for people."""
        if self.json:
            return
        if is_terminal():
            need_rich()
            _console().print(chain_tree(chain))
        else:
            self.line(plain_chain(chain))

    def facts(self, pairs: Sequence[tuple[str, object]]) -> None:
        """Names and values below each other; those without a value are left out."""
        shown = [(name, clean(value)) for name, value in pairs if value not in (None, "")]
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            self.line(f"{name.ljust(width)}  {value}")

    def payload(self, data: Any) -> None:
        """A document as indented JSON."""
        self.line(json.dumps(data, indent=2, ensure_ascii=not _unicode()))


class Progress:
    """A count on the error output that overwrites itself, only where a person looks on."""

    def __init__(self, out: Output, what: str) -> None:
        self._shown = sys.stderr.isatty() and not out.json
        self._what = what
        self._used = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._used:
            click.echo(err=True)

    def tell(self, count: int) -> None:
        """Show how far it is."""
        if self._shown:
            self._used = True
            click.echo(f"\r{count:,} {self._what}", err=True, nl=False)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _unicode() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"


def _encodable(text: str) -> str:
    """The text with ``?`` for what the terminal's encoding lacks."""
    if _unicode():
        return text
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return text.encode(encoding, "replace").decode(encoding)
