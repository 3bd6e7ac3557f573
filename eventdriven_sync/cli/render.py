"""What the terminal shows: tables, and the chain of an operation as a tree. With rich, or as plain text.

Nothing here imports rich before it is needed: ``plain_chain`` and ``plain_table`` work without it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import attrs

from eventdriven_sync.chain import Chain, ChainEvent
from eventdriven_sync.cli.words import clean, duration, first_line, many, when
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import MissingExtra
from eventdriven_sync.records import Delivery, Operation

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text
    from rich.tree import Tree

T = TypeVar("T")

FOLD_FROM = 20
GAP = 2
FLEXIBLE = 20

STYLES = {
    "succeeded": "green",
    "ok": "green",
    "dead": "bold red",
    "failed": "bold red",
    "fail": "bold red",
    "retrying": "yellow",
    "warn": "yellow",
    "vanished": "yellow",
    "running": "cyan",
    "pending": "cyan",
    "discarded": "dim",
    "retired": "dim",
    "info": "dim",
}
MARKS = {"succeeded": "✓", "dead": "✗", "retrying": "↻", "running": "▶", "pending": "…", "discarded": "–"}

Part = tuple[str, str]
"""Text and its style."""


@attrs.frozen(kw_only=True)
class Column(Generic[T]):
    """A column of a table.

    Attributes:
        text: what a row shows.
        state: coloured by what it says.
        right: aligned to the right, for numbers.
        flexible: may be wrapped in a terminal; the others stay on one line as far as they fit.
        extra: left out where a terminal is too narrow.
    """

    title: str
    text: Callable[[T], str]
    state: bool = False
    right: bool = False
    flexible: bool = False
    extra: bool = False


def need_rich() -> None:
    """MissingExtra if rich is not installed."""
    try:
        import rich  # noqa: F401
    except ImportError as error:
        raise MissingExtra('this needs: pip install "eventdriven_sync[cli]"', extra="cli") from error


# --- tables ----------------------------------------------------------------------------------------


def plain_table(columns: Sequence[Column[T]], rows: Sequence[T]) -> str:
    """Aligned columns two spaces apart, nothing cut: for pipes and files."""
    cells = [[column.title for column in columns]]
    cells += [[clean(column.text(row)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(_aligned(line, widths, columns) for line in cells)


def _aligned(line: Sequence[str], widths: Sequence[int], columns: Sequence[Column[Any]]) -> str:
    padded = [
        text.rjust(width) if column.right else text.ljust(width)
        for text, width, column in zip(line, widths, columns, strict=True)
    ]
    return "  ".join(padded).rstrip()


def rich_table(columns: Sequence[Column[T]], rows: Sequence[T], *, width: int) -> Table:
    """The same for a terminal: coloured, and made to fit its width.

    Raises:
        MissingExtra: rich is not installed.
    """
    need_rich()
    from rich.table import Table
    from rich.text import Text

    shown, widths = _fitting(columns, rows, width)
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for column, room in zip(shown, widths, strict=True):
        justify: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(column.title, overflow="fold", justify=justify, width=room)
    for row in rows:
        texts = [clean(column.text(row)) for column in shown]
        table.add_row(
            *(Text(text, style=_style(column, text)) for text, column in zip(texts, shown, strict=True))
        )
    return table


def _fitting(
    columns: Sequence[Column[T]], rows: Sequence[T], width: int
) -> tuple[list[Column[T]], list[int | None]]:
    """The columns there is room for and their widths; None where even without extras it is too narrow."""
    shown = list(columns)
    extras = [column for column in columns if column.extra]
    while extras and _total([_least(column, rows) for column in shown]) > width:
        shown.remove(extras.pop())
    widths = [_least(column, rows) for column in shown]
    spare = width - _total(widths)
    if spare < 0:
        return shown, [None] * len(shown)
    for index, column in enumerate(shown):
        more = min(spare, max(_longest(column, rows), len(column.title)) - widths[index])
        widths[index] += more
        spare -= more
    return shown, [*widths]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * len(widths)


def _least(column: Column[T], rows: Sequence[T]) -> int:
    longest = _longest(column, rows)
    title = max((len(word) for word in column.title.split()), default=0)
    return max(title, min(longest, FLEXIBLE) if column.flexible else longest)


def _longest(column: Column[T], rows: Sequence[T]) -> int:
    return max((len(clean(column.text(row))) for row in rows), default=0)


def _style(column: Column[Any], text: str) -> str:
    return STYLES.get(text.partition(" ")[0], "") if column.state else ""


# --- the chain --------------------------------------------------------------------------------------


@attrs.define(eq=False)
class _Node:
    """One line of the tree; ``parts`` are joined by two spaces."""

    parts: list[Part]
    children: list[_Node] = attrs.field(factory=list)


def chain_tree(chain: Chain) -> Tree:
    """The chain as a tree of rich: operation → events → handlers → events.

    Raises:
        MissingExtra: rich is not installed.
    """
    need_rich()
    from rich.tree import Tree

    root = _tree(chain)
    tree = Tree(_rich_label(root), guide_style="dim")
    waiting = [(root, tree)]
    while waiting:
        node, branch = waiting.pop()
        waiting += [(child, branch.add(_rich_label(child))) for child in node.children]
    return tree


def plain_chain(chain: Chain) -> str:
    """The chain as text, without rich and without colours."""
    return "\n".join(_plain_lines(_tree(chain)))


def _rich_label(node: _Node) -> Text:
    from rich.text import Text

    return Text("  ").join(Text(text, style=style) for text, style in node.parts if text)


def _plain_lines(root: _Node) -> Iterator[str]:
    waiting: list[tuple[_Node, str, str]] = [(root, "", "")]
    while waiting:
        node, lead, below = waiting.pop()
        yield lead + "  ".join(text for text, _ in node.parts if text)
        lines = [(child, below + "├─ ", below + "│  ") for child in node.children]
        lines[-1:] = [(child, below + "└─ ", below + "   ") for child in node.children[-1:]]
        waiting += reversed(lines)


def _tree(chain: Chain) -> _Node:
    """Built without recursion: a chain may be deeper than Python's stack."""
    root = _Node(_operation_parts(chain.operation))
    waiting: list[tuple[_Node, tuple[ChainEvent, ...]]] = [(root, chain.events)]
    while waiting:
        parent, events = waiting.pop()
        shown, folded = _fold(events)
        for item in shown:
            node = _Node(_event_parts(item.event))
            parent.children.append(node)
            for child in item.deliveries:
                leaf = _Node(_delivery_parts(child.delivery))
                node.children.append(leaf)
                waiting.append((leaf, child.events))
        parent.children += folded
    root.children += _remarks(chain)
    return root


def _fold(events: Sequence[ChainEvent]) -> tuple[list[ChainEvent], list[_Node]]:
    """Of many siblings of one name the first; and a line for the rest, unless something is wrong there."""
    shown: list[ChainEvent] = []
    seen: Counter[str] = Counter()
    for item in events:
        name = item.event.name
        bad = any(child.delivery.state in ("dead", "retrying") for child in item.deliveries)
        if seen[name] < FOLD_FROM or bad:
            shown.append(item)
        seen[name] += 1
    hidden = seen - Counter(item.event.name for item in shown)
    lines = [
        _Node([(f"… and {many(count, f'more {name} event')} without failures", "dim")])
        for name, count in hidden.items()
    ]
    return shown, lines


def _remarks(chain: Chain) -> list[_Node]:
    remarks = []
    if not chain.events:
        remarks.append(_Node([("published no event", "dim")]))
    if chain.truncated:
        remarks.append(_Node([("the chain has more events than are shown", "yellow")]))
    return remarks


def _operation_parts(operation: Operation) -> list[Part]:
    error = operation.error
    return [
        (clean(operation.name), "bold"),
        (clean(operation.kind), ""),
        (operation.status, STYLES[operation.status]),
        (duration(operation.duration_ms), "dim"),
        (first_line(f"{error.error_type}: {error.message}") if error else "", "red"),
        (operation.id, "dim"),
    ]


def _event_parts(event: Envelope) -> list[Part]:
    return [
        (clean(event.name), "bold blue"),
        (f"v{event.version}" if event.version > 1 else "", "dim"),
        (f"key {clean(event.key)}" if event.key is not None else "", ""),
        (event.id, "dim"),
    ]


def _delivery_parts(delivery: Delivery) -> list[Part]:
    style = STYLES[delivery.state]
    state = f"{delivery.state} ({clean(delivery.reason)})" if delivery.reason else delivery.state
    return [
        (f"{MARKS[delivery.state]} {delivery.handler}", style),
        (state, style),
        (attempts(delivery), ""),
        (duration(delivery.duration_ms), "dim"),
        (_next_attempt(delivery), "yellow"),
        (last_error(delivery) if delivery.state != "succeeded" else "", "red"),
    ]


def attempts(delivery: Delivery) -> str:
    """How often it was tried: ``5 attempts``, and how often a person had it retried."""
    begun = many(delivery.attempts, "attempt") if delivery.attempts else ""
    again = f"retried {many(delivery.generation, 'time')}" if delivery.generation else ""
    return ", ".join(filter(None, (begun, again)))


def last_error(delivery: Delivery, *, limit: int = 200) -> str:
    """Class and text of the last failure, empty if there is none."""
    if not delivery.failures:
        return ""
    failure = delivery.failures[-1]
    return first_line(f"{failure.error_type}: {failure.message}", limit=limit)


def _next_attempt(delivery: Delivery) -> str:
    if delivery.state != "retrying" or delivery.due_at is None:
        return ""
    return f"next attempt {when(delivery.due_at)}"
