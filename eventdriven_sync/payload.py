"""The building blocks of payloads: how values are checked, written to a document and read back."""

from __future__ import annotations

import collections.abc as abc
import enum
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import isfinite
from typing import Any, Literal

import attrs

from eventdriven_sync.errors import CodecError, PayloadInvalid, PayloadNotSerializable, shorten

TAG = "_type"
_INT_END = 2**63

Part = tuple[str, Any, "Shape"]


class Fault(Exception):
    """A value that does not fit; whoever explains it adds the path, and ``shown`` unless it is a secret."""

    def __init__(
        self, reason: str, kind: type[CodecError] = PayloadInvalid, *, shown: str = "", path: str = ""
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.kind = kind
        self.shown = shown
        self.path = path


def expected(what: str, value: object) -> Fault:
    """The fault of a value of another type."""
    if value is None:
        return Fault(f"expected {what}, got None")
    return Fault(f"expected {what}, got {type(value).__name__}", shown=shorten(value))


def impossible(reason: str) -> Fault:
    """The fault of a value that has no place in JSON or MongoDB, whatever was declared."""
    return Fault(reason, PayloadNotSerializable)


def _no_parts(value: Any, writing: bool) -> Iterable[Part]:
    return ()


@attrs.define(eq=False)
class Shape:
    """How values of one declared type are written, read and looked into.

    ``kinds`` are the JSON types it is written as, ``cls`` is the type its values have in Python, ``parts``
    leads to the parts of a value that is being written or read: only used to explain a fault. Values of
    ``endless`` types may nest without end: their depth is measured.
    """

    what: str
    kinds: tuple[type, ...]
    encode: Callable[[Any], Any]
    decode: Callable[..., Any]
    cls: Any = None
    parts: Callable[[Any, bool], Iterable[Part]] = _no_parts
    tag: str = ""
    endless: bool = False


# --- what JSON knows: checked the same in both directions ------------------------------------------------


def check_str(value: Any, _: Any = None) -> str:
    """The text, if UTF-8 can carry it."""
    if type(value) is str and value.isascii():
        return value
    if not isinstance(value, str):
        raise expected("str", value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        shown = f"the lone surrogate {value[error.start]!r} at position {error.start}"
        raise impossible(f"has {shown}, which UTF-8 cannot carry") from None
    return str.__str__(value)


def check_int(value: Any, _: Any = None) -> int:
    """The number, if 64 bits can hold it."""
    if type(value) is int and -_INT_END <= value < _INT_END:
        return value
    if not isinstance(value, int) or isinstance(value, bool):
        raise expected("int", value)
    if not -_INT_END <= value < _INT_END:
        bits = value.bit_length()
        raise impossible(f"needs {bits} bits and a sign; MongoDB stores 64 in all: pass it as str")
    return int(value)


def check_float(value: Any, _: Any = None) -> float:
    """The number, if it is finite; ints are welcome."""
    if type(value) is float and isfinite(value):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return float(check_int(value))
    if not isinstance(value, float):
        raise expected("float", value)
    if not isfinite(value):
        raise impossible(f"is {value}, which JSON cannot carry: use None or text")
    return float(value)


def check_bool(value: Any, _: Any = None) -> bool:
    """The bool itself."""
    if not isinstance(value, bool):
        raise expected("bool", value)
    return value


def check_none(value: Any, _: Any = None) -> None:
    """None itself."""
    if value is not None:
        raise expected("None", value)


def check_key(value: Any, _: Any = None) -> str:
    """A key as JSON and MongoDB can hold it."""
    if not isinstance(value, str):
        raise impossible(f"is {type(value).__name__} {shorten(value)}: keys must be str")
    if "\0" in value:
        raise impossible(f"{shorten(value)} contains NUL, which MongoDB cannot hold")
    return check_str(value)


def _plain_dict(value: Any) -> dict[str, Any]:
    return {check_key(key): check_plain(item) for key, item in value.items()}


def _plain_list(value: Any) -> list[Any]:
    return [check_plain(item) for item in value]


_PLAIN: dict[type, Callable[[Any], Any]] = {
    str: check_str,
    bool: check_bool,
    int: check_int,
    float: check_float,
    dict: _plain_dict,
    list: _plain_list,
    tuple: _plain_list,
    type(None): check_none,
}


def check_plain(value: Any, _: Any = None) -> Any:
    """A checked copy of what JSON knows: neither side can change the other's."""
    check = _PLAIN.get(type(value))
    if check is None:
        check = next((found for kind, found in _PLAIN.items() if isinstance(value, kind)), _unknown)
    return check(value)


def _unknown(value: Any) -> Any:
    raise impossible(
        f"is {type(value).__name__}, which JSON does not know: declare the field's type, or pass str or float"
    )


def _plain_parts(value: Any, writing: bool) -> Iterator[Part]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield " key", key, _KEY
            yield f"[{shorten(key)}]", item, ANY
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{index}]", item, ANY) for index, item in enumerate(value))


_KEY = Shape("key", (str,), check_key, check_key)
ANY = Shape("Any", tuple(_PLAIN), check_plain, check_plain, parts=_plain_parts, endless=True)


# --- containers, choices and classes -----------------------------------------------------------------------

LISTS: dict[Any, tuple[Any, Callable[[list[Any]], Any]]] = {
    list: (list, list),
    abc.MutableSequence: (list, list),
    abc.Sequence: ((list, tuple), list),
    tuple: (tuple, tuple),
    set: (set, set),
    abc.MutableSet: (set, set),
    abc.Set: ((set, frozenset), frozenset),
    frozenset: (frozenset, frozenset),
}
_SETS = (set, frozenset, abc.Set, abc.MutableSet)
DICTS: dict[Any, Any] = {dict: dict, abc.MutableMapping: abc.MutableMapping, abc.Mapping: abc.Mapping}


def _in_order(items: list[Any]) -> list[Any]:
    """Sorted, so that equal sets are written equally in every process."""
    try:
        return sorted(items)
    except TypeError:  # mixed types, or objects
        return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))


def list_shape(what: str, origin: Any, item: Shape) -> Shape:
    """``list[A]``, ``tuple[A, ...]``, ``set[A]`` and their abstract kin."""
    accepted, build = LISTS[origin]
    arrange = _in_order if origin in _SETS else list

    def encode(value: Any) -> list[Any]:
        if not isinstance(value, accepted):
            raise expected(what, value)
        write = item.encode
        return arrange([write(part) for part in value])

    def decode(value: Any, _: Any = None) -> Any:
        if not isinstance(value, (list, tuple)):
            raise expected(what, value)
        read = item.decode
        return build([read(part) for part in value])

    def parts(value: Any, writing: bool) -> Iterator[Part]:
        if isinstance(value, accepted if writing else list):
            yield from ((f"[{index}]", part, item) for index, part in enumerate(value))

    return Shape(what, (list,), encode, decode, origin, parts, endless=item.endless)


def row_shape(what: str, items: list[Shape]) -> Shape:
    """``tuple[A, B]``: as many items as declared, each with its own type."""

    def checked(value: Any, kind: Any) -> Any:
        if not isinstance(value, kind):
            raise expected(what, value)
        if len(value) != len(items):
            raise Fault(f"expected {len(items)} items, got {len(value)}")
        return value

    def encode(value: Any) -> list[Any]:
        return [item.encode(part) for item, part in zip(items, checked(value, tuple), strict=True)]

    def decode(value: Any, _: Any = None) -> tuple[Any, ...]:
        return tuple(item.decode(part) for item, part in zip(items, checked(value, list), strict=True))

    def parts(value: Any, writing: bool) -> Iterator[Part]:
        if isinstance(value, (list, tuple)):
            yield from ((f"[{index}]", *pair) for index, pair in enumerate(zip(value, items, strict=False)))

    endless = any(item.endless for item in items)
    return Shape(what, (list,), encode, decode, tuple, parts, endless=endless)


def dict_shape(what: str, accepted: Any, key: Shape, item: Shape) -> Shape:
    """``dict[A, B]``; ``A`` must be something that is written as text."""
    if key.kinds != (str,) and key is not ANY:
        raise impossible(f"is declared as {what}: JSON keys are text, use dict[str, …]")
    plain = key.cls is str or key is ANY
    name = _KEY if plain else attrs.evolve(key, encode=lambda value: check_key(key.encode(value)))

    def encode(value: Any) -> dict[str, Any]:
        if not isinstance(value, accepted):
            raise expected(what, value)
        label, write = name.encode, item.encode
        return {label(k): write(part) for k, part in value.items()}

    def decode(value: Any, _: Any = None) -> dict[Any, Any]:
        if type(value) is not dict and not isinstance(value, Mapping):
            raise expected(what, value)
        return {name.decode(k): item.decode(part) for k, part in value.items()}

    def parts(value: Any, writing: bool) -> Iterator[Part]:
        for k, part in value.items() if isinstance(value, Mapping) else ():
            yield " key", k, name
            yield f"[{shorten(k)}]", part, item

    return Shape(what, (dict,), encode, decode, dict, parts, endless=item.endless)


def _choice_shape(what: str, written: list[tuple[Any, Any]], cls: Any) -> Shape:
    """Values from a fixed choice: pairs of the Python value and what it is written as."""
    for _, value in written:
        if type(value) not in (str, int, float, bool, type(None)):
            raise impossible(f"is declared as {what}, whose value {shorten(value)} is no str or number")
    # 1, 1.0 and True are equal and hash alike: the type is part of what is looked up.
    out = {(type(key), key): check_plain(value) for key, value in written}
    back = {(type(value), value): key for (_, key), value in out.items()}
    choice = " or ".join(repr(value) for value in out.values())

    def pick(table: dict[Any, Any], value: Any, wanted: str) -> Any:
        if isinstance(value, abc.Hashable) and (type(value), value) in table:
            return table[type(value), value]
        raise expected(wanted, value)

    def encode(value: Any) -> Any:
        return pick(out, value, what)

    def decode(value: Any, _: Any = None) -> Any:
        return pick(back, value, choice)

    return Shape(what, tuple({type(value): None for value in out.values()}), encode, decode, cls)


def literal_shape(what: str, values: tuple[Any, ...]) -> Shape:
    """``Literal["a", 1, Color.RED]``."""
    pairs = [(value, value.value if isinstance(value, enum.Enum) else value) for value in values]
    return _choice_shape(what, pairs, cls=Literal)


def enum_shape(cls: type[enum.Enum]) -> Shape:
    """An enum, written by value; combinations of flags as their number."""
    if not issubclass(cls, enum.Flag):
        return _choice_shape(cls.__name__, [(member, member.value) for member in cls], cls=cls)

    def encode(value: Any) -> int:
        if type(value) is not cls:
            raise expected(cls.__name__, value)
        return check_int(value.value)

    def decode(value: Any, _: Any = None) -> Any:
        try:
            return cls(check_int(value))
        except ValueError:
            raise expected(cls.__name__, value) from None

    return Shape(cls.__name__, (int,), encode, decode, cls)


def optional_shape(inner: Shape) -> Shape:
    """``A | None``, the most frequent union, without the search."""

    def encode(value: Any) -> Any:
        return None if value is None else inner.encode(value)

    def decode(value: Any, _: Any = None) -> Any:
        return None if value is None else inner.decode(value)

    def parts(value: Any, writing: bool) -> Iterable[Part]:
        return () if value is None else inner.parts(value, writing)

    return Shape(
        f"{inner.what} | None", (*inner.kinds, type(None)), encode, decode, parts=parts, endless=inner.endless
    )


def union_shape(what: str, members: list[Shape]) -> Shape:
    """``A | B | None``: told apart by their JSON type; classes by their tag, if there is more than one."""
    classes = [shape for shape in members if attrs.has(shape.cls)]
    members = [_tagged(shape) for shape in members] if len(classes) > 1 else members
    tags = {shape.tag: shape for shape in members if shape.tag}
    by_kind = _by_kind(what, [shape for shape in members if not shape.tag])
    if len(classes) > 1 and (len(tags) < len(classes) or dict in by_kind):
        raise impossible(f"is declared as {what}: two of its members look alike in JSON")
    by_class = {shape.cls: shape for shape in members if shape.cls is not Literal}

    def candidates(value: Any, writing: bool) -> Iterable[Shape]:
        if writing:
            found = by_class.get(type(value))
            return [found] if found else members
        if tags and isinstance(value, Mapping):
            return filter(None, [tags.get(str(value.get(TAG)))])
        kind = type(value) if type(value) in by_kind else _base(value, by_kind)
        return by_kind.get(kind, ())

    def attempt(value: Any, writing: bool) -> Any:
        shapes = list(candidates(value, writing))
        for shape in shapes:
            try:
                return shape.encode(value) if writing else shape.decode(value)
            except Fault:
                if len(shapes) == 1:
                    raise
        raise expected(what, value)

    def parts(value: Any, writing: bool) -> Iterable[Part]:
        shapes = list(candidates(value, writing))
        return shapes[0].parts(value, writing) if len(shapes) == 1 else ()

    def encode(value: Any) -> Any:
        return attempt(value, True)

    def decode(value: Any, _: Any = None) -> Any:
        return attempt(value, False)

    kinds = tuple({kind: None for shape in members for kind in shape.kinds})
    endless = any(shape.endless for shape in members)
    return Shape(what, kinds, encode, decode, parts=parts, endless=endless)


def _base(value: Any, kinds: Iterable[type]) -> type:
    """The kind a value of a subclass belongs to: MongoDB reads long ints as ``Int64``."""
    return next((kind for kind in kinds if isinstance(value, kind)), type(value))


def _tagged(shape: Shape) -> Shape:
    """A class among others: its object says which one it is."""
    if not attrs.has(shape.cls):
        return shape
    tag = shape.cls.__name__

    def encode(value: Any) -> Any:
        return {TAG: tag, **shape.encode(value)}

    def decode(value: Any, _: Any = None) -> Any:
        return shape.decode(value)

    def parts(value: Any, writing: bool) -> Iterable[Part]:
        return shape.parts(value, writing)

    # A class that refers to itself may be unfinished: nothing is taken from it before it is used.
    return Shape(shape.what, (dict,), encode, decode, shape.cls, parts, tag, shape.endless)


def _by_kind(what: str, members: list[Shape]) -> dict[type, list[Shape]]:
    """Who may read which JSON type; of several only one may be other than a literal."""
    table: dict[type, list[Shape]] = {}
    for shape in sorted(members, key=lambda shape: shape.cls is not Literal):
        for kind in shape.kinds:
            readers = table.setdefault(kind, [])
            if readers and Literal not in (readers[-1].cls, shape.cls):
                both = f"{readers[-1].what} and {shape.what} look alike in JSON"
                raise impossible(f"is declared as {what}: {both}")
            readers.append(shape)
    if float in table:
        table.setdefault(int, table[float])
    return table
