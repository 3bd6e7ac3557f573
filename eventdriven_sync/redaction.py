"""Hiding secrets before anything is stored or shown, in documents and in texts."""

from __future__ import annotations

import heapq
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from math import isfinite
from typing import Any
from urllib.parse import quote, quote_plus

import attrs

from eventdriven_sync.config import between, plain
from eventdriven_sync.errors import InvalidOption, shorten
from eventdriven_sync.sensitive import (
    CUT,
    HIDDEN,
    MOST_WORDS,
    forms_of,
    is_secret_name,
    speaks_of,
    without_looks,
    without_pairs,
    words_of,
)

MAX_FREE_TEXT = 64 * 1024
MAX_KEY = 200
MAX_NAME = 500
_MAX_NAMES = 1000
_MAX_SEARCHED = 1024 * 1024
_MAX_VISITED = 10_000
_SHORTEST_LITERAL = 4
_MAX_ROUNDS = 4
_TAIL = 1024  # what is read beyond a cut, so that a secret across it is recognized
_FEWEST_CHARACTERS = 60
_INT_END = 2**63
_SMALLEST_CARD = 10**12
_SCHEME = re.compile(r"(?:bearer|basic|token)\s+(\S+)\s*", re.IGNORECASE)


# --- the rules -----------------------------------------------------------------------------------------


def _check_names(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, tuple) or len(value) > _MAX_NAMES or not all(map(_is_name, value)):
        raise InvalidOption(
            f"{attribute.name} is {shorten(value)}: give a list of at most {_MAX_NAMES:,} names, each with 1 "
            f'to {MOST_WORDS} words and at most {MAX_KEY} characters, such as ["iban", "tax_id"]',
            field=attribute.name,
            limit=_MAX_NAMES,
        )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_KEY and 1 <= len(words_of(value)) <= MOST_WORDS


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, set, frozenset)) else value


def _memory(decide: str) -> Any:
    """Makes a method with a bounded memory: names of fields come again with every request."""
    return attrs.Factory(lambda redaction: lru_cache(4096)(getattr(redaction, decide)), takes_self=True)


@attrs.frozen(kw_only=True)
class Redaction:
    """What is hidden before anything is stored or shown. Safe to share between threads.

    Passwords, tokens, keys, cookies, card numbers and their like are hidden by the names of their fields;
    what looks like a secret (JWT, PEM, AWS keys, URLs with passwords, card numbers …) is hidden anywhere.

    Attributes:
        names: more names or words to hide: "iban" hides ``userIban``, ``user_iban`` and ``IBAN``.
        allow: exact names that are shown although a built-in rule hides them, such as "token_count".
        max_text: characters of one text.
        max_items: entries of one list or object, the one included that says how many were left out.
        max_depth: objects and lists inside each other, the document included.
        max_bytes: of the whole document as JSON in UTF-8. Texts are shortened first, then items left out.

    Raises:
        InvalidOption: a value is outside its range.
    """

    names: tuple[str, ...] = attrs.field(default=(), converter=_as_tuple, validator=_check_names)
    allow: tuple[str, ...] = attrs.field(default=(), converter=_as_tuple, validator=_check_names)
    max_text: int = attrs.field(default=1000, validator=between(16, MAX_FREE_TEXT, whole=True))
    max_items: int = attrs.field(default=100, validator=between(2, 10_000, whole=True))
    max_depth: int = attrs.field(default=6, validator=between(1, 50, whole=True))
    max_bytes: int = attrs.field(default=16 * 1024, validator=between(256, 8 * 1024 * 1024, whole=True))
    _hides: Callable[[str], bool] = attrs.field(init=False, eq=False, repr=False, default=_memory("_decide"))
    _label: Callable[[str], tuple[str, bool]] = attrs.field(
        init=False, eq=False, repr=False, default=_memory("_labelled")
    )

    def hides(self, name: str) -> bool:
        """Whether the value of a field of this name is hidden; names over 500 characters are no names."""
        return len(name) > MAX_NAME or self._hides(name)

    def document(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """A redacted copy that JSON and MongoDB can hold, bounded in every dimension.

        Dates, UUIDs and other objects become text. Redacting it again changes nothing.

        Raises:
            InvalidOption: it is no mapping.
        """
        if not isinstance(value, Mapping):
            raise InvalidOption(f'document is {shorten(value)}: give a dict such as {{"file": name}}')
        for most_text, most_items in self._limits():
            try:
                copy: dict[str, Any] = _Copy(self, most_text, most_items).of(value, 1)
            except _Full:
                continue
            if _size(copy) <= self.max_bytes:
                return copy
        return {CUT: _left_out(len(value))}

    def text(self, text: str, *, secrets: Iterable[str] = ()) -> str:
        """Free text without what looks like a secret, and without the given literals.

        It has at most 63 Ki characters. ``password=…``, ``token: …`` and ``"pin": "…"`` are hidden by the
        name before them. It never raises for what it is given.

        Args:
            text: an error message, a traceback, a log line.
            secrets: what ``secrets()`` found in the input that the text may quote, escaped or not.
        """
        text = _storable(_as_text(text)[:_MAX_SEARCHED])
        for literal in sorted({form for each in secrets for form in _spellings(each)}, key=len, reverse=True):
            text = text.replace(literal, HIDDEN)
        return self._short(text, MAX_FREE_TEXT - _TAIL)

    def secrets(self, value: Any) -> frozenset[str]:
        """The literal values of at least 4 characters under hidden names, at any depth.

        They are looked for in the first 10,000 values, those of the upper levels first.
        """
        found: set[str] = set()
        waiting = deque([(value, False)])
        seen: dict[tuple[int, bool], Any] = {}
        for _ in range(_MAX_VISITED):
            if not waiting:
                break
            part, hidden = waiting.popleft()
            inner = _parts(part)
            if inner is None:
                found |= _literals(part) if hidden else set()
            elif (id(part), hidden) not in seen:
                seen[id(part), hidden] = part
                room = _MAX_VISITED - len(waiting)
                waiting.extend((item, hidden or self._hides_key(name)) for name, item in inner[0][:room])
        return frozenset(found)

    def _hides_key(self, name: Any) -> bool:
        return name is not None and self.hides(_as_text(name))

    def _decide(self, name: str) -> bool:
        # In small letters too: in "PassWoRD" capitals are no humps.
        spellings = {name, name.lower()}
        if any(speaks_of(each, forms_of(self.names)) for each in spellings):
            return True
        return name not in self.allow and any(is_secret_name(each) for each in spellings)

    def _labelled(self, name: str) -> tuple[str, bool]:
        """A key as it is shown, and whether its value is hidden."""
        shown = _storable(name[: MAX_KEY + _TAIL]).replace("\0", "\ufffd")
        return self._short(shown, MAX_KEY), self.hides(name)

    def _limits(self) -> Iterator[tuple[int, int]]:
        """Of texts and items, ever tighter: all fields in short are worth more than some of them in full."""
        most_text, most_items = self.max_text, self.max_items
        while True:
            yield most_text, most_items
            if most_text > _FEWEST_CHARACTERS:
                most_text = max(most_text // 4, _FEWEST_CHARACTERS)
            elif most_items > 3:
                most_items //= 2
            else:
                return

    def _short(self, text: str, limit: int) -> str:
        """Redacted, then cut: the other way round a part of a secret could pass."""
        if len(text) <= limit:
            text = self._scrubbed(text)
        else:
            text = f"{self._scrubbed(_whole_words(text, limit + _TAIL)).rstrip(CUT)}{CUT}"
        if len(text) <= limit:
            return text
        # A cut can make a secret of what was part of a longer word.
        return _cut(self._scrubbed(_cut(text, limit)), limit)

    def _scrubbed(self, text: str) -> str:
        # Without a secret in its middle, what is around it can look like one.
        for _ in range(_MAX_ROUNDS):
            before, text = text, without_pairs(without_looks(text), self.hides)
            if text == before:
                break
        return text


# --- copying -------------------------------------------------------------------------------------------


class _Full(Exception):
    """The copy is larger than allowed."""


class _Copy:
    """One try to copy a document within its limits."""

    def __init__(self, redaction: Redaction, most_text: int, most_items: int) -> None:
        self._redaction = redaction
        self._label = redaction._label
        self._most_text = most_text
        self._most_items = most_items
        # Escapes are not counted: this ends what is hopeless, the finished copy is measured.
        self._left = redaction.max_bytes
        self._above: list[int] = []

    def of(self, value: Any, depth: int) -> Any:
        """The copy of any value."""
        kind = type(value)
        if kind is str:
            return self._text(value)
        if kind not in _FAMILIES:
            kind = _family(value)
        if kind in _CONTAINERS:
            return self._container(value, depth)
        self._spend(1)
        if kind is int:
            return self._int(int.__int__(value))
        if kind is float:
            return float.__float__(value) if isfinite(value) else str(float.__float__(value))
        return value if kind in _AS_IT_IS else self._text(_as_text(value))

    def _spend(self, least: int) -> None:
        self._left -= least
        if self._left < 0:
            raise _Full

    def _text(self, text: str) -> str:
        if len(text) > self._most_text or not text.isascii():
            text = _storable(text[: self._most_text + 2 * _TAIL])
        text = self._redaction._short(text, self._most_text)
        self._spend(len(text))
        return text

    def _int(self, value: int) -> Any:
        if -_SMALLEST_CARD < value < _SMALLEST_CARD:
            return value
        text = _as_text(value)
        shown = self._text(text)
        return value if shown == text and -_INT_END <= value < _INT_END else shown

    def _container(self, value: Any, depth: int) -> Any:
        if id(value) in self._above:
            return "<cycle>"
        parts = _parts(value, self._most_items + 1)
        if parts is None:
            return self._text(_as_text(value))
        pairs, count = parts
        if pairs and depth > self._redaction.max_depth:
            return f"{CUT} {_left_out(count)}"
        if len(pairs) > self._most_items:
            pairs = pairs[: self._most_items - 1]
        self._above.append(id(value))
        copy = self._dict if _family(value) is Mapping else self._list
        result = copy(pairs, depth + 1, _left_out(count - len(pairs)) if count > len(pairs) else "")
        self._above.pop()
        return result

    def _dict(self, pairs: list[tuple[Any, Any]], depth: int, left_out: str) -> dict[str, Any]:
        copy: dict[str, Any] = {}
        for key, item in pairs:
            name = key if type(key) is str else _as_text(key)
            shown, hidden = self._label(name) if len(name) <= MAX_NAME else self._redaction._labelled(name)
            self._spend(len(shown) + 4)
            copy[shown] = HIDDEN if hidden else self.of(item, depth)
        if left_out:
            copy[CUT] = left_out
        return copy

    def _list(self, pairs: list[tuple[Any, Any]], depth: int, left_out: str) -> list[Any]:
        copy = []
        for _, item in pairs:
            self._spend(1)
            copy.append(self.of(item, depth))
        return [*copy, f"{CUT} {left_out}"] if left_out else copy


_AS_IT_IS = (bool, type(None))
_SETS = (set, frozenset)
_CONTAINERS = frozenset({dict, Mapping, list, tuple, set, frozenset})
_FAMILIES = _CONTAINERS | {str, bool, int, float, type(None), bytes}
_BASES = (Mapping, str, int, float, list, tuple, set, frozenset)


def _family(value: Any) -> Any:
    """The type that a value is treated as; ``object`` if it is shown as its text."""
    try:
        return next((base for base in _BASES if isinstance(value, base)), object)
    except Exception:  # a proxy of something that is not there answers every question so
        return object


def _parts(value: Any, most: int = _MAX_VISITED) -> tuple[list[tuple[Any, Any]], int] | None:
    """The first entries with their keys, of lists without, and how many there are; None for no container."""
    if type(value) is dict and len(value) <= most:
        return list(value.items()), len(value)
    family = _family(value)
    if family not in _CONTAINERS:
        return None
    try:
        if family is Mapping:
            return list(islice(value.items(), most)), len(value)
        # Sets in the same order in every process.
        items = heapq.nsmallest(most, value, key=_as_text) if family in _SETS else islice(value, most)
        return [(None, item) for item in items], len(value)
    except Exception:  # the user's own container
        return None


def _as_text(value: Any) -> str:
    try:
        if isinstance(value, (bytes, bytearray, memoryview)):
            return f"<{len(value):,} bytes>"
        return plain(value) if isinstance(value, str) else plain(str(value))
    except Exception:  # a user's own __str__, an int of 5,000 digits
        return f"<{type(value).__name__} without text>"


def _literals(value: Any) -> set[str]:
    """How the value of a hidden field may stand in a text."""
    if value is None or isinstance(value, bool):
        return set()
    text = bytes(value).decode(errors="replace") if isinstance(value, (bytes, bytearray)) else _as_text(value)
    scheme = _SCHEME.fullmatch(text)
    return {each for each in (text, scheme[1] if scheme else "") if len(each) >= _SHORTEST_LITERAL}


def _spellings(literal: str) -> set[str]:
    """The literal itself, and as it stands in a repr, in JSON and in a URL."""
    literal = _storable(_as_text(literal))
    quoted = {repr(literal)[1:-1], json.dumps(literal)[1:-1], json.dumps(literal, ensure_ascii=False)[1:-1]}
    return ({literal, quote(literal), quote(literal, safe=""), quote_plus(literal)} | quoted) - {""}


def _storable(text: str) -> str:
    """Without lone surrogates, which UTF-8 cannot carry."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def _whole_words(text: str, limit: int) -> str:
    """The beginning of a long text, without the word that is cut in two: it may be half a secret."""
    if len(text) <= limit:
        return text
    low = limit - _TAIL
    end = max(text.rfind(" ", low, limit), text.rfind("\n", low, limit))
    return text[: end if end >= 0 else low]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip(CUT)}{CUT}"


def _left_out(count: int) -> str:
    return f"{count:,} left out"


_encoded = json.JSONEncoder(ensure_ascii=False).encode


def _size(document: dict[str, Any]) -> int:
    return len(_encoded(document).encode())
