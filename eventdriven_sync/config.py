"""Settings of a bus: one value, checked on construction. Explicit argument > ``EVENTDRIVEN_*`` > default."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import attrs

from eventdriven_sync.errors import (
    ConfigurationError,
    InvalidGroupName,
    InvalidOption,
    shorten,
)

_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,31}")
PREFIX = "EVENTDRIVEN_"
# An event gets its time when publishing begins. The reconciler looks back for 90 seconds: one that is stored
# later than that could be missed, so nobody may try for longer than this; the rest is for clocks that differ.
MAX_PUBLISH_TIMEOUT = 60.0
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def plain(text: str) -> str:
    """The text as a ``str`` itself: a member of ``class Name(str, Enum)`` formats as something else."""
    return str.__str__(text)


def check_text(value: object, *, field: str, most: int, of: str = "") -> str:
    """Text of 1 to ``most`` characters that UTF-8 can carry, or InvalidOption."""
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise InvalidOption(
            f"{of}{field} is {shorten(value)}: give text of 1 to {most:,} characters", field=field, limit=most
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidOption(
            f"{of}{field} has the lone surrogate {value[error.start]!r} at position {error.start}: give text "
            "that UTF-8 can carry",
            field=field,
        ) from error
    return plain(value)


def check_name(value: object, *, what: str) -> str:
    """A group or handler name, or InvalidGroupName."""
    # Group and handler are joined by '__': a group that ends in '_' would be confused with a handler
    # that begins with one.
    if (
        not isinstance(value, str)
        or not _NAME.fullmatch(value)
        or "__" in value
        or (what == "group" and value.endswith("_"))
    ):
        raise InvalidGroupName(
            f"{what} name {shorten(value)} cannot be used: 1 to 64 characters of A-Z a-z 0-9 _ -, "
            "without '__', a group without '_' at its end (it becomes part of a consumer name)",
            field=what,
            value=value,
            limit=64,
        )
    return plain(value)


def between(
    low: float, high: float, *, whole: bool = False
) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    """An attrs validator: a number from ``low`` to ``high``, or InvalidOption naming the range."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        check_number(value, field=attribute.name, low=low, high=high, whole=whole)

    return check


def check_number(value: Any, *, field: str, low: float, high: float, whole: bool = False) -> Any:
    """The number itself if it is one and in its range, else InvalidOption."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or (whole and not isinstance(value, int))
        or not low <= value <= high
    ):
        kind = "whole number" if whole else "number"
        raise InvalidOption(
            f"{field} is {shorten(value)}: give a {kind} from {low:,.10g} to {high:,.10g}",
            field=field,
            value=value,
            limit=(low, high),
        )
    return value


def redact(url: str) -> str:
    """The URL or list of URLs without its passwords and tokens.

    Rather too much is hidden than too little: a password need not be escaped as it should be.
    """
    shown = ",".join(map(_without_userinfo, _split(url)))
    return re.sub(r"(?i)((?:password|properties)=)[^&,]*", r"\1***", shown)


def login(urls: Sequence[str]) -> dict[str, Any]:
    """User and password, or the token, of the first of these URLs that has any."""
    for url in map(urlsplit, urls):
        if url.username and url.password:
            return {"user": unquote(url.username), "password": unquote(url.password)}
        if url.username:
            return {"token": unquote(url.username)}
    return {}


def _without_userinfo(url: str) -> str:
    """A name before a colon is shown; alone it is a token."""
    begin, end = url.find("://") + 3, url.rfind("@")
    if begin < 3:
        # It is no URL, which is said with all but what may be a secret.
        return url if end < 0 else f"***{url[end:]}"
    if end < begin:
        return url
    name, colon, _ = url[begin:end].partition(":")
    return f"{url[:begin]}{name + colon if colon and not set(name) & set('/@') else ''}***{url[end:]}"


def _split(urls: str) -> list[str]:
    return re.split(r",(?=\s*[a-z+]+://)", urls)


def _check_namespace(instance: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str) or not _NAMESPACE.fullmatch(value):
        raise ConfigurationError(
            f"namespace is {shorten(value)}: 1 to 32 characters of A-Z a-z 0-9 -, starting with a letter or "
            "digit (it begins every stream name and subject)",
            field="namespace",
            value=value,
        )


def _check_url(schemes: tuple[str, ...], example: str) -> Callable[[Any, attrs.Attribute[Any], Any], None]:
    def check(instance: object, attribute: attrs.Attribute[str], value: object) -> None:
        wrong = _url_fault(value, schemes)
        if wrong:
            shown = redact(value) if isinstance(value, str) else value
            raise ConfigurationError(
                f"{attribute.name} URL is {shorten(shown)}: {wrong}, for example {example}",
                field=attribute.name,
                value=shown,
            )

    return check


def _url_fault(value: object, schemes: tuple[str, ...]) -> str:
    """What is wrong with a URL or a list of them, or nothing."""
    if not isinstance(value, str) or not value:
        return "give text"
    for part in _split(value) if "nats" in schemes else [value]:
        try:
            url = urlsplit(part.strip())
        except ValueError:  # whose text may show the password
            return "it cannot be read as a URL"
        if url.scheme not in schemes or "://" not in part:
            return f"it must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}"
        if re.search(r"[\s\0-\x1f]", part.strip()):
            return "it contains white space"
        if url.scheme in ("nats", "tls") and not _has_host(url):
            return "its host or port cannot be used, ports are 1 to 65535"
    return ""


def _has_host(url: SplitResult) -> bool:
    try:
        return bool(url.hostname) and url.port != 0 and "," not in url.netloc
    except ValueError:
        return False


def _check_replicas(instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    if type(value) is not int or value not in (1, 3):
        raise InvalidOption(
            f"stream_replicas is {shorten(value)}: give 1 or 3", field="stream_replicas", value=value
        )


def _trimmed(value: Any) -> Any:
    """Files and shells like to leave a line end behind a URL."""
    return value.strip() if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    return plain(value) if isinstance(value, str) else value


def _shown(url: Any) -> str:
    return repr(redact(url) if isinstance(url, str) else url)


@attrs.frozen(kw_only=True)
class Settings:
    """Everything that can be set on a bus. Seconds unless the name says otherwise.

    Attributes:
        nats: one URL, or several separated by commas.
        mongo: a MongoDB URI; the database is its path, ``eventdriven`` if it has none.
        namespace: begins every stream name and subject, and owns the database: buses of other namespaces see
            nothing of this one and need databases of their own.
        publish_timeout: until ``publish`` gives up on MongoDB; 60 at most.
        broker_timeout: for calls to NATS that are waited for.
        max_payload_bytes: limit of one encoded event.
        max_chain_depth: events between an operation and the last event of its chain.
        ack_wait: until NATS delivers an unacknowledged message again.
        lease: until a delivery whose worker fell silent is claimed by another.
        reconcile_after: age from which an accepted event without delivery is looked after.
        reconcile_every: pause between two rounds of the reconciler.
        poll_every: longest pause of the recovery lane between two looks for due deliveries.
        stall_after: how long work may wait while nothing of it is settled until a worker's health is red.
        version_grace: how long an event newer than its class is retried before it is dead.
        max_lost: starts without outcome after which a delivery is dead (``worker_lost``).
        stream_max_age: how long NATS keeps messages.
        stream_replicas: 1 or 3.

    Raises:
        ConfigurationError: a value is outside its range; the message names it.
    """

    nats: str = attrs.field(
        default="nats://127.0.0.1:4222",
        converter=_trimmed,
        repr=_shown,
        validator=_check_url(("nats", "tls", "memory"), "nats://localhost:4222"),
    )
    mongo: str = attrs.field(
        default="mongodb://127.0.0.1:27017/eventdriven",
        converter=_trimmed,
        repr=_shown,
        validator=_check_url(("mongodb", "mongodb+srv", "memory"), "mongodb://localhost:27017/blog"),
    )
    namespace: str = attrs.field(default="eventdriven", converter=_plain, validator=_check_namespace)
    publish_timeout: float = attrs.field(default=15.0, validator=between(0.05, MAX_PUBLISH_TIMEOUT))
    broker_timeout: float = attrs.field(default=5.0, validator=between(0.05, 300))
    max_payload_bytes: int = attrs.field(
        default=256 * 1024, validator=between(2048, 8 * 1024 * 1024, whole=True)
    )
    max_chain_depth: int = attrs.field(default=100, validator=between(1, 100_000, whole=True))
    ack_wait: float = attrs.field(default=30.0, validator=between(0.3, 3600))
    lease: float = attrs.field(default=30.0, validator=between(0.3, 3600))
    reconcile_after: float = attrs.field(default=20.0, validator=between(0.1, 86400))
    reconcile_every: float = attrs.field(default=5.0, validator=between(0.05, 3600))
    poll_every: float = attrs.field(default=0.5, validator=between(0.01, 60))
    stall_after: float = attrs.field(default=60.0, validator=between(0.1, 86400))
    version_grace: float = attrs.field(default=3600.0, validator=between(0, 30 * 86400))
    max_lost: int = attrs.field(default=3, validator=between(1, 100, whole=True))
    stream_max_age: float = attrs.field(default=7 * 86400.0, validator=between(60, 10 * 365 * 86400))
    stream_replicas: int = attrs.field(default=1, validator=_check_replicas)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Settings from ``EVENTDRIVEN_<FIELD>`` variables; ``attrs.evolve`` sets more on top of them.

        Variables that only resemble a setting are refused; others of the prefix belong to somebody else
        (Kubernetes makes ``EVENTDRIVEN_PORT`` of a service called "eventdriven").

        Raises:
            ConfigurationError: a variable cannot be read as its type, or is a misspelt setting.
        """
        environ = os.environ if environ is None else environ
        fields = {f"{PREFIX}{field.name.upper()}": field for field in attrs.fields(cls)}
        for variable in environ:
            if variable.startswith(PREFIX) and variable not in fields:
                check_misspelt(variable, list(fields))
        found = {
            field.name: _read(variable, environ[variable], field.default)
            for variable, field in fields.items()
            if variable in environ
        }
        return cls(**found)


def check_misspelt(variable: str, known: list[str]) -> None:
    """ConfigurationError if a name that is no setting resembles one."""
    # The prefix is cut off, or every name would resemble every other.
    names = [name.removeprefix(PREFIX) for name in known]
    name = re.sub("_UR[IL]$", "", variable.removeprefix(PREFIX))
    meant = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    if meant:
        raise ConfigurationError(
            f"{variable} is no setting: did you mean {PREFIX}{meant[0]}?", field=variable
        )


def _read(variable: str, text: str, default: Any) -> Any:
    if isinstance(default, str):
        return text
    try:
        return type(default)(text)
    except ValueError as error:
        kind = "whole number" if isinstance(default, int) else "number"
        raise ConfigurationError(
            f"{variable} is {shorten(text)}: give a {kind}, for example {default}",
            field=variable,
            value=text,
        ) from error
