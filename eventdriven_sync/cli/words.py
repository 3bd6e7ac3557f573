"""Values as text for people: times, durations, states, and text that cannot disturb a terminal."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable
from datetime import UTC, datetime

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
DAY = 86400.0
_STEPS = ((60.0, 1.0, "s"), (3600.0, 60.0, "min"), (DAY, 3600.0, "h"), (float("inf"), DAY, "d"))


def clean(value: object) -> str:
    """Text on one line, control characters as escapes: what events carry must not steer the terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(value))


def clean_lines(value: object) -> str:
    """The same for text of several lines, such as a stack."""
    return "\n".join(clean(line.replace("\t", "    ")) for line in str(value).split("\n"))


def first_line(value: object, *, limit: int = 200) -> str:
    """The first line of a text, cut to ``limit`` characters."""
    text = clean(str(value).strip().partition("\n")[0])
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def when(moment: datetime | None, *, now: datetime | None = None) -> str:
    """A time as lists show it: how long ago within a day, else the local date."""
    if moment is None:
        return "-"
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if abs(seconds) < DAY:
        return distance(seconds)
    local = moment.astimezone()
    same_year = local.year == (now or datetime.now(UTC)).astimezone().year
    return f"{local:%m-%d %H:%M}" if same_year else f"{local:%Y-%m-%d}"


def moment_in_full(moment: datetime | None, *, now: datetime | None = None) -> str:
    """A time with date, seconds and offset, and how long ago."""
    if moment is None:
        return "-"
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S %z} ({distance(seconds)})"


def distance(seconds: float) -> str:
    """``3 min ago``, or ``in 3 min`` for a negative number."""
    size = abs(seconds)
    step, unit = next((step, unit) for limit, step, unit in _STEPS if size < limit)
    text = f"{int(size // step)} {unit}"
    return f"in {text}" if seconds < 0 else f"{text} ago"


def duration(milliseconds: float | None) -> str:
    """``34 ms``, ``1.2 s``, ``3 min 5 s``; empty if unknown."""
    if milliseconds is None:
        return ""
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def size(count: float) -> str:
    """Bytes as ``512 B`` or ``3.4 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def many(count: int, one: str, several: str | None = None) -> str:
    """``1 event``, ``1,234 events``."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or nothing when no known word is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    near = near or [name for name in names if name.lower() == word.lower()][:1]
    return f"; did you mean {near[0]!r}?" if near else ""


def listed(names: Iterable[str], *, limit: int = 20, none: str = "none") -> str:
    """Names separated by commas, the first ``limit`` of them."""
    every = sorted(names)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more or none


def command_line(*words: str) -> str:
    """Words as they can be pasted into a shell."""
    return shlex.join(words)
