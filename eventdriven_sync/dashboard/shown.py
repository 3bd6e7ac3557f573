"""Values as pages show them: times, states, payloads as trees, what is hidden, commands to copy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import attrs

from eventdriven_sync.cli.render import MARKS
from eventdriven_sync.cli.words import clean, command_line, duration, first_line, many, size
from eventdriven_sync.documents import iso, plain
from eventdriven_sync.redaction import Redaction

MAX_DEPTH = 40
MAX_NODES = 2000
OPEN_DEPTH = 2
OPEN_CHILDREN = 30

_REDACTION = Redaction(max_text=64 * 1024, max_items=5000, max_depth=MAX_DEPTH, max_bytes=4 * 1024 * 1024)


@attrs.define(eq=False, kw_only=True)
class JsonNode:
    """A value of a JSON document, to be unfolded.

    Attributes:
        key: its name or index in what holds it; None at the root.
        text: the value, or of what holds others a summary.
        kind: class of a scalar: ``s`` text, ``n`` number, ``l`` true, false and null.
        open: whether it is unfolded at first.
        more: what was left out, in words.
    """

    key: str | None
    text: str
    kind: str = ""
    open: bool = False
    more: str = ""
    children: list[JsonNode] = attrs.field(factory=list)


def json_tree(document: Any) -> JsonNode:
    """The document as a tree: at most ``MAX_DEPTH`` deep and ``MAX_NODES`` large."""
    root, children = _node(None, plain(document), 0)
    waiting = [(root, children, 1)]
    left = MAX_NODES
    while waiting:
        parent, values, depth = waiting.pop(0)
        shown = values[: left if depth < MAX_DEPTH else 0]
        left -= len(shown)
        for key, value in shown:
            node, below = _node(key, value, depth)
            parent.children.append(node)
            if below:
                waiting.append((node, below, depth + 1))
        if len(shown) < len(values):
            parent.more = f"… {len(values) - len(shown):,} more; see the text"
    return root


def _node(key: str | None, value: Any, depth: int) -> tuple[JsonNode, list[tuple[str, Any]]]:
    """A node without its children, and those."""
    children: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        children = [(str(name), each) for name, each in value.items()]
        text = f"{{{many(len(value), 'field')}}}"
    elif isinstance(value, list):
        children = [(str(index), each) for index, each in enumerate(value)]
        text = f"[{many(len(value), 'item')}]"
    if not children:
        return JsonNode(key=key, text=_scalar(value), kind=_kind(value)), []
    return JsonNode(key=key, text=text, open=depth < OPEN_DEPTH and len(children) <= OPEN_CHILDREN), children


def _scalar(value: Any) -> str:
    return clean(json.dumps(value, ensure_ascii=False))


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "s"
    return "n" if isinstance(value, (int, float)) and not isinstance(value, bool) else "l"


def json_text(document: Any) -> str:
    """The document as indented JSON."""
    return json.dumps(plain(document), indent=2, ensure_ascii=False)


def redacted(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document without secrets."""
    return _REDACTION.document(plain(document))


def redacted_text(text: str) -> str:
    """A message or stack without secrets."""
    return _REDACTION.text(text)


def raw_text(data: bytes) -> str:
    """Bytes of a message as text; what is no UTF-8 as escapes."""
    return data.decode("utf-8", "backslashreplace")


def utc(at: datetime) -> str:
    """A time in UTC, to the millisecond: what stands there without scripts, and in the title with them."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"


def mark_of(state: str) -> str:
    """The sign of a state of a delivery or an operation."""
    return MARKS.get({"failed": "dead"}.get(state, state), "")


def without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The values but those of these names."""
    return {name: value for name, value in values.items() if name not in names}


FILTERS = {"iso": iso, "utc": utc, "duration": duration, "first_line": first_line, "size": size}
GLOBALS = {
    "command": command_line,
    "json_text": json_text,
    "json_tree": json_tree,
    "many": many,
    "mark_of": mark_of,
    "raw_text": raw_text,
    "redacted": redacted,
    "redacted_text": redacted_text,
    "without": without,
}
