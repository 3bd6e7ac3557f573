"""The fingerprint of an error: equal for failures that differ only in ids, numbers and quoted values."""

from __future__ import annotations

import hashlib
import re

# What is read of a message, and what is kept of it once its values are gone. Beyond that stand values.
MAX_READ = 1000
MAX_KEPT = 200

_VALUES = re.compile(
    r"""(?<!\w)'[^']*'(?!\w)                        # quoted, an apostrophe within a word aside
      | "[^"]*" | `[^`]*`
      | \b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b
      | \b0x[0-9a-f]+\b
      | \b(?=[a-f]*[0-9])[0-9a-f]{6,}\b             # a hexadecimal id, which a word has no digit of
      | [-+]?\d+(?:[.,:]\d+)*
    """,
    re.VERBOSE | re.IGNORECASE,
)


def normalised(message: str) -> str:
    """The message with ``*`` for whatever may differ from one failure to the next.

    Example:
        >>> normalised("user 42 not found in 'users'")
        'user * not found in *'
    """
    return " ".join(_VALUES.sub("*", message[:MAX_READ]).split())[:MAX_KEPT]


def fingerprint(error_type: str, message: str) -> str:
    """12 hex digits for an error of this class with this message."""
    text = f"{error_type}\0{normalised(message)}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
