"""Settings of a bus: one value, checked on construction. Explicit argument > ``EVENTDRIVEN_*`` > default."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import attrs

from eventdriven_sync.errors import (
    ConfigurationError,
    InvalidGroupName,
    InvalidOption,
    shorten,
)

_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,31}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_name(value: object, *, what: str) -> str:
    """A group or handler name, or InvalidGroupName."""
    if not isinstance(value, str) or not _NAME.fullmatch(value) or "__" in value:
        raise InvalidGroupName(
            f"{what} name {shorten(value)} cannot be used: 1 to 64 characters of A-Z a-z 0-9 _ -, "
            "without '__' (it becomes part of a consumer name)",
            field=what,
            value=value,
            limit=64,
        )
    return value


def between(
    low: float, high: float
) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """An attrs validator: a number from ``low`` to ``high``, or InvalidOption naming the range."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        check_number(value, field=attribute.name, low=low, high=high)

    return check


def check_number(value: Any, *, field: str, low: float, high: float) -> Any:
    """The number itself if it is one and in its range, else InvalidOption."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not low <= value <= high
    ):
        raise InvalidOption(
            f"{field} is {shorten(value)}: give a number from {low:g} to {high:g}",
            field=field,
            value=value,
            limit=(low, high),
        )
    return value


def redact(url: str) -> str:
    """The URL without its password."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)


def _check_namespace(
    instance: object, attribute: attrs.Attribute[str], value: object
) -> None:
    if not isinstance(value, str) or not _NAMESPACE.fullmatch(value):
        raise ConfigurationError(
            f"namespace is {shorten(value)}: 1 to 32 characters of A-Z a-z 0-9 -, starting with a letter or "
            "digit (it begins every stream name and subject)",
            field="namespace",
            value=value,
        )


def _check_url(
    schemes: tuple[str, ...], example: str
) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(instance: object, attribute: attrs.Attribute[str], value: object) -> None:
        shown = redact(value) if isinstance(value, str) else value
        for part in str(value).split(",") if attribute.name == "nats" else [str(value)]:
            if urlsplit(part.strip()).scheme not in schemes:
                raise ConfigurationError(
                    f"{attribute.name} URL is {shorten(shown)}: it must begin with "
                    f"{' or '.join(s + '://' for s in schemes)}, for example {example}",
                    field=attribute.name,
                    value=shown,
                )

    return check


@attrs.frozen(kw_only=True)
class Settings:
    """Everything that can be set on a bus. Seconds unless the name says otherwise.

    Attributes:
        nats: one URL, or several separated by commas.
        mongo: a MongoDB URI; the database is its path, ``eventdriven`` if it has none.
        namespace: begins every stream name and subject; buses of other namespaces see nothing of this one.
        publish_timeout: until ``publish`` gives up on MongoDB.
        broker_timeout: for calls to NATS that are waited for.
        max_payload_bytes: limit of one encoded event.
        max_chain_depth: events between an operation and the last event of its chain.
        ack_wait: until NATS delivers an unacknowledged message again.
        lease: until a delivery whose worker fell silent is claimed by another.
        reconcile_after: age from which an accepted event without delivery is looked after.
        reconcile_every: pause between two rounds of the reconciler.
        poll_every: longest pause of the recovery lane between two looks for due deliveries.
        version_grace: how long an event newer than its class is retried before it is dead.
        max_lost: starts without outcome after which a delivery is dead (``worker_lost``).
        stream_max_age: how long NATS keeps messages.
        stream_replicas: 1 or 3.

    Raises:
        ConfigurationError: a value is outside its range; the message names it.
    """

    nats: str = attrs.field(
        default="nats://127.0.0.1:4222",
        validator=_check_url(("nats", "tls", "memory"), "nats://localhost:4222"),
    )
    mongo: str = attrs.field(
        default="mongodb://127.0.0.1:27017/eventdriven",
        validator=_check_url(
            ("mongodb", "mongodb+srv", "memory"), "mongodb://localhost:27017/blog"
        ),
    )
    namespace: str = attrs.field(default="eventdriven", validator=_check_namespace)
    publish_timeout: float = attrs.field(default=15.0, validator=between(0.05, 300))
    broker_timeout: float = attrs.field(default=5.0, validator=between(0.05, 300))
    max_payload_bytes: int = attrs.field(
        default=256 * 1024, validator=between(1024, 8 * 1024 * 1024)
    )
    max_chain_depth: int = attrs.field(default=100, validator=between(1, 100_000))
    ack_wait: float = attrs.field(default=30.0, validator=between(0.3, 3600))
    lease: float = attrs.field(default=30.0, validator=between(0.3, 3600))
    reconcile_after: float = attrs.field(default=20.0, validator=between(0.1, 86400))
    reconcile_every: float = attrs.field(default=5.0, validator=between(0.05, 3600))
    poll_every: float = attrs.field(default=0.5, validator=between(0.01, 60))
    version_grace: float = attrs.field(default=3600.0, validator=between(0, 30 * 86400))
    max_lost: int = attrs.field(default=3, validator=between(1, 100))
    stream_max_age: float = attrs.field(
        default=7 * 86400.0, validator=between(60, 10 * 365 * 86400)
    )
    stream_replicas: int = attrs.field(
        default=1, validator=attrs.validators.in_([1, 3])
    )

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] | None = None, **explicit: Any
    ) -> Settings:
        """Settings from ``EVENTDRIVEN_<FIELD>`` variables; ``explicit`` values win.

        Raises:
            ConfigurationError: a variable cannot be read as its type, or is unknown.
        """
        environ = os.environ if environ is None else environ
        fields = {field.name: field for field in attrs.fields(cls)}
        found = {
            name: _read(
                f"EVENTDRIVEN_{name.upper()}",
                environ[f"EVENTDRIVEN_{name.upper()}"],
                field.default,
            )
            for name, field in fields.items()
            if f"EVENTDRIVEN_{name.upper()}" in environ
        }
        return cls(**(found | {k: v for k, v in explicit.items() if v is not None}))


def _read(variable: str, text: str, default: Any) -> Any:
    if isinstance(default, str):
        return text
    try:
        return type(default)(text)
    except ValueError as error:
        raise ConfigurationError(
            f"{variable} is {shorten(text)}: give a {type(default).__name__}, for example {default}",
            field=variable,
            value=text,
        ) from error
