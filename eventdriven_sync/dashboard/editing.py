"""An edited payload: what the person saw as hidden and left alone is what is stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from eventdriven_sync.errors import InvalidOption, shorten
from eventdriven_sync.sensitive import HIDDEN

MAX_TEXT = 512 * 1024
MAX_DEPTH = 100


def edited_payload(text: str, *, shown: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The payload to run with.

    Args:
        text: JSON, as the person sent it.
        shown: the payload as they saw it, without secrets.
        stored: as it is.

    Raises:
        InvalidOption: it is no JSON object, too long or too deep, or has a hidden value in another place.
    """
    if len(text) > MAX_TEXT:
        raise InvalidOption(
            f"the payload has {len(text):,} characters: give at most {MAX_TEXT:,}", field="payload"
        )
    try:
        edited = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidOption(f"the payload is no JSON: {shorten(str(error))}", field="payload") from error
    if not isinstance(edited, dict):
        raise InvalidOption(
            f'the payload is {shorten(edited)}: give a JSON object such as {{"user_id": "42"}}',
            field="payload",
        )
    restored = _restored(edited, shown, stored, ("payload",))
    assert isinstance(restored, dict)
    return restored


def _restored(edited: Any, shown: Any, stored: Any, path: tuple[str, ...]) -> Any:
    if len(path) > MAX_DEPTH:
        raise InvalidOption(f"the payload is nested deeper than {MAX_DEPTH} levels", field="payload")
    if isinstance(edited, dict):
        known = shown if isinstance(shown, Mapping) and isinstance(stored, Mapping) else {}
        return {
            name: _restored(value, known.get(name), _at(stored, name), (*path, name))
            for name, value in edited.items()
        }
    if isinstance(edited, list):
        same = isinstance(shown, list) and isinstance(stored, list) and len(shown) == len(edited)
        return [
            _restored(value, shown[n] if same else None, stored[n] if same else None, (*path, str(n)))
            for n, value in enumerate(edited)
        ]
    if edited == shown and type(edited) is type(shown):
        return stored
    if isinstance(edited, str) and HIDDEN in edited:
        raise InvalidOption(
            f"{'.'.join(path)} is {shorten(edited)}, which stands for a hidden value: leave it where it was, "
            "or give the value itself",
            field="payload",
        )
    return edited


def _at(stored: Any, name: str) -> Any:
    return stored.get(name) if isinstance(stored, Mapping) else None
