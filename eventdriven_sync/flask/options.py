"""What ``app.config`` says: the settings of the bus, and how requests become operations."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from eventdriven_sync.config import PREFIX, Settings, between, check_misspelt
from eventdriven_sync.errors import InvalidOption, shorten
from eventdriven_sync.redaction import Redaction

VARIABLES = ("all", "path", "none")
_METHOD = re.compile(r"[A-Z][A-Z_-]*")


def _words(value: Any) -> Any:
    """A list of words as a set; one text with commas serves where settings come from the environment."""
    if isinstance(value, str):
        value = [word.strip() for word in value.split(",") if word.strip()]
    return frozenset(value) if isinstance(value, Iterable) else value


def _check_words(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, frozenset) or not all(isinstance(word, str) for word in value):
        raise _refused(attribute.name, value, "give a list of names")


def _check_methods(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    _check_words(instance, attribute, value)
    if wrong := sorted(word for word in value if not _METHOD.fullmatch(word)):
        raise _refused(attribute.name, wrong[0], 'give a list of methods such as ["POST", "PUT"]')


def _check_flag(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if not isinstance(value, bool):
        raise _refused(attribute.name, value, "give True or False")


def _check_variables(instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value not in VARIABLES:
        raise _refused(attribute.name, value, f"give one of {', '.join(VARIABLES)}")


def _upper(value: Any) -> Any:
    words = _words(value)
    return frozenset(str(word).upper() for word in words) if isinstance(words, frozenset) else words


def _refused(field: str, value: object, cure: str) -> InvalidOption:
    return InvalidOption(f"{field} is {shorten(value)}: {cure}", field=field, value=value)


@attrs.frozen(kw_only=True)
class HttpOptions:
    """How requests become operations; each field is read from ``EVENTDRIVEN_<FIELD>``. Seconds.

    Attributes:
        http_methods: requests with these methods are operations.
        http_variables: what is stored of a request, redacted: ``all`` (path, query, form, JSON), ``path``
            or ``none``. Views that chose variables by their decorator keep to those.
        http_skip: endpoints and blueprints whose requests are no operations.
        http_timeout: for storing the operation at the end of its request.
        redact: names of more fields whose values are never stored.
        redact_allow: names of fields that are stored although they look like secrets.
        idempotency_keep: how long the first answer to an ``Idempotency-Key`` is kept.
        idempotency_lease: after so long a request that was begun and never ended may run again.
        embedded: run the handlers in threads of the web process.
        embedded_threads: how many.

    Raises:
        InvalidOption: a value is outside its range; the message names it.
    """

    http_methods: frozenset[str] = attrs.field(
        default=frozenset({"POST", "PUT", "PATCH", "DELETE"}), converter=_upper, validator=_check_methods
    )
    http_variables: str = attrs.field(default="all", validator=_check_variables)
    http_skip: frozenset[str] = attrs.field(default=frozenset(), converter=_words, validator=_check_words)
    http_timeout: float = attrs.field(default=2.0, validator=between(0.05, 300))
    redact: frozenset[str] = attrs.field(default=frozenset(), converter=_words, validator=_check_words)
    redact_allow: frozenset[str] = attrs.field(default=frozenset(), converter=_words, validator=_check_words)
    idempotency_keep: float = attrs.field(default=86400.0, validator=between(1, 30 * 86400))
    idempotency_lease: float = attrs.field(default=60.0, validator=between(1, 86400))
    embedded: bool = attrs.field(default=False, validator=_check_flag)
    embedded_threads: int = attrs.field(default=4, validator=between(1, 1024, whole=True))

    def make_redaction(self) -> Redaction:
        """What hides secrets; it remembers what it decided about names, so make it once."""
        return Redaction(names=tuple(sorted(self.redact)), allow=tuple(sorted(self.redact_allow)))


def http_options(config: Mapping[str, Any]) -> HttpOptions:
    """The options for requests in an application's config.

    Raises:
        InvalidOption: a value is outside its range.
    """
    return HttpOptions(**_found(config, HttpOptions))


def bus_settings(config: Mapping[str, Any]) -> Settings:
    """The settings of a bus: the application's config before the environment, before the defaults.

    The config wins, or a test that names its database would write into that of a shell's environment. Under
    ``TESTING`` a server that the config does not name is in memory.

    Raises:
        ConfigurationError: a value is outside its range.
    """
    given = _found(config, Settings)
    if config.get("TESTING"):
        given = {"nats": "memory://", "mongo": "memory://"} | given
    return attrs.evolve(Settings.from_env(), **given)


def check_names(config: Mapping[str, Any]) -> None:
    """ConfigurationError if a setting of the prefix is none of ours but resembles one."""
    known = [*_names(Settings), *_names(HttpOptions)]
    for name in config:
        if name.startswith(PREFIX) and name not in known:
            check_misspelt(name, known)


def _found(config: Mapping[str, Any], options: type) -> dict[str, Any]:
    names = _names(options)
    return {names[name]: value for name, value in config.items() if name in names and value is not None}


def _names(options: type) -> dict[str, str]:
    return {f"{PREFIX}{field.name.upper()}": field.name for field in attrs.fields(options)}
