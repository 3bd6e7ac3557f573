"""The shape of each declared type: what a payload may hold and how it is written.

A payload becomes one JSON-safe document, the same in MongoDB and on the wire. Both directions are strict:
``"3"`` is no int, and every fault is reported with its path. How each type is written::

    str int float bool None list dict    as they are; ints in 64 bits, dict keys as text
    attrs class                          object, a private field under its alias; extra fields are ignored
    Enum, Literal                        the value
    datetime (aware), date, UUID         ISO text with microseconds and offset; ISO text; text
    Decimal, ObjectId, bytes             text, 24 hex digits, base64
    timedelta                            seconds
    tuple, set, frozenset                list; sets sorted, so equal events have equal content
    A | B of attrs classes               object with "_type": the class name
    Any                                  only what JSON knows; tuples become lists
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import enum
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from threading import RLock
from typing import Any
from uuid import UUID

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn_from_attrs, make_dict_unstructure_fn_from_attrs

from eventdriven_sync.errors import shorten
from eventdriven_sync.payload import (
    ANY,
    DICTS,
    LISTS,
    Fault,
    Part,
    Shape,
    check_bool,
    check_float,
    check_int,
    check_key,
    check_none,
    check_plain,
    check_str,
    dict_shape,
    enum_shape,
    expected,
    impossible,
    list_shape,
    literal_shape,
    optional_shape,
    row_shape,
    union_shape,
)

MISSING = object()
_LONGEST = dt.timedelta.max.total_seconds() - 1

# --- scalars that JSON writes as text or number ------------------------------------------------------------


def _as_text(cls: type, what: str, write: Callable[[Any], str], parse: Callable[[str], Any]) -> Shape:
    def encode(value: Any) -> str:
        if not isinstance(value, cls):
            raise expected(what, value)
        return write(value)

    def decode(value: Any, _: Any = None) -> Any:
        if not isinstance(value, str):
            raise expected(f"{what} as text", value)
        try:
            return parse(value)
        except (ValueError, ArithmeticError):
            raise expected(f"{what} as text", value) from None

    return Shape(what, (str,), encode, decode, cls)


def _write_moment(value: dt.datetime) -> str:
    offset = value.utcoffset()
    if offset is None:
        raise Fault(f"{value} is naive: use an aware datetime, such as datetime.now(UTC)")
    # Offsets with seconds (local mean times) exist in Python but not in RFC 3339.
    return (value.astimezone(dt.UTC) if offset.seconds % 60 else value).isoformat()


def _read_moment(text: str) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text)
    if moment.utcoffset() is None:
        raise ValueError(text)
    return moment


def _write_date(value: dt.date) -> str:
    if isinstance(value, dt.datetime):
        raise expected("date", value)
    return value.isoformat()


def _write_decimal(value: Decimal) -> str:
    if not value.is_finite():
        raise impossible(f"is Decimal {value}, which has no place in a payload: use None or text")
    return str(value)


def _read_decimal(text: str) -> Decimal:
    value = Decimal(text)
    if not value.is_finite():
        raise ValueError(text)
    return value


def _write_span(value: Any) -> float:
    if not isinstance(value, dt.timedelta):
        raise expected("timedelta", value)
    seconds = value.total_seconds()
    # A float keeps the microseconds of about 270 years.
    if seconds > _LONGEST or dt.timedelta(seconds=seconds) != value:
        raise impossible("is too long to keep its microseconds: use whole seconds")
    return seconds


def _read_span(value: Any, _: Any = None) -> dt.timedelta:
    try:
        return dt.timedelta(seconds=check_float(value))
    except (OverflowError, Fault):
        raise expected("timedelta as seconds", value) from None


def _object_id(text: str) -> str:
    # bson's own InvalidId is no ValueError.
    if not re.fullmatch("[0-9a-fA-F]{24}", text):
        raise ValueError(text)
    return text


def _write_bytes(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _read_bytes(text: str) -> bytes:
    return binascii.a2b_base64(text, strict_mode=True)


SCALARS: dict[Any, Shape] = {
    Any: ANY,
    object: ANY,
    str: Shape("str", (str,), check_str, check_str, str),
    int: Shape("int", (int,), check_int, check_int, int),
    float: Shape("float", (float,), check_float, check_float, float),
    bool: Shape("bool", (bool,), check_bool, check_bool, bool),
    type(None): Shape("None", (type(None),), check_none, check_none, type(None)),
    None: Shape("None", (type(None),), check_none, check_none, type(None)),
    dt.datetime: _as_text(dt.datetime, "an aware datetime", _write_moment, _read_moment),
    dt.date: _as_text(dt.date, "date", _write_date, dt.date.fromisoformat),
    dt.timedelta: Shape("timedelta", (float,), _write_span, _read_span, dt.timedelta),
    Decimal: _as_text(Decimal, "Decimal", _write_decimal, _read_decimal),
    UUID: _as_text(UUID, "UUID", str, UUID),
    bytes: _as_text(bytes, "bytes", _write_bytes, _read_bytes),
}


# --- values nobody declared: the variables of an operation ------------------------------------------------


def _write_loose(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {check_key(key): _write_loose(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_write_loose(item) for item in value]
    if isinstance(value, enum.Enum):
        return _write_loose(value.value)
    if is_object_id(type(value)):
        return str(value)
    shape = SCALARS.get(type(value))
    return shape.encode(value) if shape else check_plain(value)


def _loose_parts(value: Any, writing: bool) -> Iterator[Part]:
    if isinstance(value, Mapping):
        yield from ((f"[{shorten(key)}]", item, LOOSE) for key, item in value.items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{index}]", item, LOOSE) for index, item in enumerate(value))


LOOSE = Shape("variables", (dict,), _write_loose, check_plain, parts=_loose_parts)


def is_object_id(cls: Any) -> bool:
    """Known by its name, so that bson is imported only by those who use it."""
    return f"{getattr(cls, '__module__', '')}.{getattr(cls, '__name__', '')}" == "bson.objectid.ObjectId"


# --- from a declaration to its shape -----------------------------------------------------------------------


class Shapes:
    """The shapes of the classes seen so far. ``_lock`` guards the tables while a class is compiled."""

    def __init__(self) -> None:
        self.ready: dict[Any, Shape] = {}
        self._classes: dict[Any, Shape] = {}
        self._lock = RLock()
        self._converter = cattrs.Converter(detailed_validation=False)
        self._converter.register_unstructure_hook_factory(lambda t: isinstance(t, Shape), _encoder)
        self._converter.register_structure_hook_factory(lambda t: isinstance(t, Shape), _decoder)

    def of(self, cls: type) -> Shape:
        """The shape of a class; Fault with the path of the field that no payload can hold."""
        with self._lock:
            try:
                shape = self._shape(cls)
            except BaseException:
                self._classes.clear()  # some may refer to the one that failed
                raise
            self.ready[cls] = shape
        return shape

    def _shape(self, declared: Any) -> Shape:
        declared = _bare(declared)
        origin, args = typing.get_origin(declared), typing.get_args(declared)
        kind = origin or declared
        what = declared.__name__ if isinstance(declared, type) and not args else str(declared)
        what = what.replace("typing.", "")
        if origin is None and declared in SCALARS:
            return SCALARS[declared]
        if origin is typing.Literal:
            return literal_shape(what, args)
        if kind in (typing.Union, types.UnionType):
            return self._union(args)
        if attrs.has(kind):
            return self._class(declared)
        if kind is tuple and declared not in (tuple, tuple) and args[-1:] != (...,):
            return row_shape(what, [self._shape(part) for part in args])
        if kind in LISTS:
            return list_shape(what, kind, self._shape(args[0] if args else Any))
        if kind in DICTS:
            key, item = args or (Any, Any)
            return dict_shape(what, DICTS[kind], self._shape(key), self._shape(item))
        return _named_shape(kind, what)

    def _union(self, args: tuple[Any, ...]) -> Shape:
        inner = [self._shape(part) for part in args if part is not type(None)]
        what = " | ".join(shape.what for shape in inner)
        shape = inner[0] if len(inner) == 1 else union_shape(what, inner)
        return shape if len(inner) == len(args) else optional_shape(shape)

    def _class(self, declared: Any) -> Shape:
        if declared not in self._classes:
            cls = typing.get_origin(declared) or declared
            shape = Shape(cls.__name__, (dict,), _unfinished, _unfinished, cls)
            # Known before it is finished: classes may refer to themselves, and are endless if they do.
            shape.endless = True
            self._classes[declared] = shape
            self._finish(shape, self._fields(cls, typing.get_args(declared)))
        return self._classes[declared]

    def _fields(self, cls: Any, args: tuple[Any, ...]) -> list[attrs.Attribute[Any]]:
        """The fields that are written and read, with the shape in the place of the type."""
        try:
            attrs.resolve_types(cls)
        except NameError as error:
            raise impossible(f"has an annotation that cannot be resolved: {error}") from error
        names = dict(zip(getattr(cls, "__parameters__", ()), args, strict=False))
        fields = []
        for field in attrs.fields(cls):
            if not field.init:
                continue
            try:
                shape = self._shape(_with_arguments(Any if field.type is None else field.type, names))
            except Fault as error:
                error.path = f".{field.alias}{error.path}"
                raise
            fields.append(field.evolve(type=shape))
        return fields

    def _finish(self, shape: Shape, fields: list[attrs.Attribute[Any]]) -> None:
        cls = shape.cls
        names = {parameter.__name__: Any for parameter in getattr(cls, "__parameters__", ())}
        write = make_dict_unstructure_fn_from_attrs(
            fields, cls, self._converter, names, _cattrs_use_alias=True
        )
        read = make_dict_structure_fn_from_attrs(fields, cls, self._converter, names, _cattrs_use_alias=True)

        def encode(value: Any) -> Any:
            # A subclass would lose its own fields.
            if type(value) is not cls:
                raise expected(cls.__name__, value)
            return write(value)

        def decode(value: Any, _: Any = None) -> Any:
            if type(value) is not dict and not isinstance(value, Mapping):
                raise expected("an object", value)
            return read(value, cls)

        def parts(value: Any, writing: bool) -> Iterator[Part]:
            if not isinstance(value, cls if writing else Mapping):
                return
            for field in fields:
                part: Any = field.type
                found = getattr(value, field.name, MISSING) if writing else value.get(field.alias, MISSING)
                if found is not MISSING:
                    yield f".{field.alias}", found, part
                elif writing or field.default is attrs.NOTHING:
                    yield f".{field.alias}", found, _REQUIRED

        shape.encode, shape.decode, shape.parts = encode, decode, parts
        inner: list[Any] = [field.type for field in fields]
        shape.endless = any(part.endless for part in inner)


def _missing(value: Any, _: Any = None) -> Any:
    raise Fault("required field is missing")


_REQUIRED = Shape("required", (), _missing, _missing)


def _unfinished(value: Any, _: Any = None) -> Any:
    raise AssertionError("the shape is used before its class was read")  # pragma: no cover


def _encoder(shape: Any) -> Callable[[Any], Any]:
    return (lambda value: shape.encode(value)) if shape.encode is _unfinished else shape.encode


def _decoder(shape: Any) -> Callable[..., Any]:
    return (lambda value, _: shape.decode(value)) if shape.decode is _unfinished else shape.decode


def _bare(declared: Any) -> Any:
    """The type without NewType, Annotated, Final, ``type`` alias and type variable around it."""
    while True:
        if isinstance(declared, typing.TypeVar):
            return declared.__bound__ or Any
        if typing.get_origin(declared) in (typing.Annotated, typing.Final):
            declared = typing.get_args(declared)[0]
        elif hasattr(declared, "__supertype__"):
            declared = declared.__supertype__
        elif type(declared).__name__ == "TypeAliasType":
            declared = declared.__value__
        else:
            return Any if declared is typing.Final else declared


def _with_arguments(declared: Any, names: Mapping[Any, Any]) -> Any:
    """The type of a generic class's field, with the class's arguments in place of its parameters."""
    if isinstance(declared, typing.TypeVar):
        return names.get(declared, declared)
    parameters = getattr(declared, "__parameters__", ())
    if not names or not parameters or isinstance(declared, type):
        return declared
    return declared[tuple(names.get(parameter, parameter) for parameter in parameters)]


def _named_shape(kind: Any, what: str) -> Shape:
    """An enum or an ObjectId."""
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return enum_shape(kind)
    if is_object_id(kind):
        return _as_text(kind, "ObjectId", str, lambda text: kind(_object_id(text)))
    raise impossible(
        f"is declared as {what}, which no payload can hold: use str, int, float, bool, datetime, Decimal, "
        "UUID, an enum, an attrs class, or lists and dicts of them"
    )
