"""The chain for other programs: as a Mermaid flowchart. The text tree is the CLI's."""

from __future__ import annotations

import re

from eventdriven_sync.dashboard.graph import Node

_CLASSES = {
    "succeeded": "fill:#e3f4e8,stroke:#1a7f42,color:#0f3d22",
    "running": "fill:#e2eefc,stroke:#1c64c4,color:#12325c",
    "pending": "fill:#eef0f3,stroke:#5d6775,color:#2b323c",
    "retrying": "fill:#fdf1d5,stroke:#9a6400,color:#4a3200",
    "dead": "fill:#fde6e6,stroke:#c02632,color:#5e1119",
    "discarded": "fill:#f1f1f1,stroke:#8a8a8a,color:#4c4c4c",
}
_SPECIAL = re.compile(r"[^\w .,:()/+@×…·ø-]")


def mermaid(root: Node) -> str:
    """A flowchart from left to right, as drawn: what is folded or closed in the graph is so here."""
    names = {node.id: f"n{number}" for number, node in enumerate(root.walk())}
    lines = ["flowchart LR"]
    for node in root.walk():
        lines.append(f"  {names[node.id]}{_shape(node)}" + (f":::{node.state}" if node.state else ""))
    for node in root.walk():
        for child in node.children:
            time = f'|"{_text(child.edge)}"|' if child.edge else ""
            lines.append(f"  {names[node.id]} -->{time} {names[child.id]}")
    lines += [f"  classDef {state} {style}" for state, style in _CLASSES.items()]
    return "\n".join(lines) + "\n"


def _shape(node: Node) -> str:
    title = f"{node.label} ×{node.count:,}" if node.count > 1 else node.label
    hidden = f"+{node.hidden:,} behind it" if node.hidden else ""
    text = "<br>".join(_text(part) for part in (title, node.note, hidden) if part)
    if node.kind == "operation":
        return f'[["{text}"]]'
    return f'(["{text}"])' if node.kind in ("event", "events") else f'["{text}"]'


def _text(value: str) -> str:
    """Every sign that could mean something to Mermaid or to HTML as its number."""
    return _SPECIAL.sub(lambda found: f"#{ord(found[0])};", value)
