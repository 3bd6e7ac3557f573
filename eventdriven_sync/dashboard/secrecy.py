"""The secret key of a dashboard and what is derived from it."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from eventdriven_sync.errors import ConfigurationError

MIN_KEY_BYTES = 32
_MIN_DIFFERENT = 10
_KNOWN = ("dev", "changeme", "change-me", "secret", "password", "default")
_CURE = 'make one with `python -c "import secrets; print(secrets.token_urlsafe(48))"` and keep it secret'


def check_key(value: object, *, field: str = "secret_key") -> bytes:
    """The key as bytes.

    Raises:
        ConfigurationError: it is missing, shorter than 32 bytes, or no secret. The message does not show it.
    """
    if not isinstance(value, (str, bytes)) or not value:
        raise ConfigurationError(
            f"the dashboard needs a {field} of at least {MIN_KEY_BYTES} random bytes, from secret_key=… or "
            f"the application's SECRET_KEY: {_CURE}",
            field=field,
        )
    key = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    if len(key) < MIN_KEY_BYTES or _is_guessable(key):
        raise ConfigurationError(
            f"{field} has {len(key)} bytes, {len(set(key))} different ones: the dashboard needs at least "
            f"{MIN_KEY_BYTES} random bytes; {_CURE}",
            field=field,
            limit=MIN_KEY_BYTES,
        )
    return key


def _is_guessable(key: bytes) -> bool:
    """Whether it has few different characters beside words that examples use."""
    rest = key.lower()
    for word in _KNOWN:
        rest = rest.replace(word.encode(), b"")
    return len(set(rest)) < _MIN_DIFFERENT


def new_secret() -> str:
    """256 random bits as text that fits into a cookie."""
    return secrets.token_urlsafe(32)


def signed(key: bytes, purpose: str, text: str) -> str:
    """What only who has the key can make of a text, for one purpose."""
    return hmac.new(key, f"{purpose}\0{text}".encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, in a time that does not tell how nearly."""
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))
