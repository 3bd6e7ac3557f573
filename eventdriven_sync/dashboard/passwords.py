"""Hashing passwords: scrypt with a cost that is ours and not the library's default."""

from __future__ import annotations

import os
import threading

from werkzeug.security import check_password_hash, generate_password_hash

from eventdriven_sync.errors import EventDrivenError, InvalidOption

# One of the settings that OWASP's Password Storage Cheat Sheet holds equally strong (N=2^17 p=1, N=2^16 p=2)
# that takes 64 MiB: with 128 MiB a sign-in took the process over 200 MB.
METHOD = "scrypt:65536:8:2"
MIN_LENGTH = 12  # characters
MAX_BYTES = 1024

# One hash takes 64 MiB for half a second: of many at once the machine would die before the passwords do.
_PATIENCE = 5.0
_turn = threading.Lock()  # guards the memory: one hash at a time


class TooBusy(EventDrivenError):
    """So many passwords are being checked that this one would wait too long."""


def check_password_rules(password: object) -> str:
    """The password, or InvalidOption; the message does not show it."""
    if not isinstance(password, str) or len(password) < MIN_LENGTH or _too_long(password):
        raise InvalidOption(
            f"the password must have at least {MIN_LENGTH} characters and at most {MAX_BYTES:,} bytes",
            field="password",
            limit=(MIN_LENGTH, MAX_BYTES),
        )
    return password


class Hasher:
    """Makes and checks hashes. Thread-safe.

    Args:
        method: as werkzeug writes it; another one than the default is for tests.
    """

    def __init__(self, method: str = "") -> None:
        self._method = method = method or METHOD
        # What an unknown user's password is compared with, so that it takes as long.
        self._nobody = f"{method}${'x' * 16}${'0' * 128}"

    def hash(self, password: str) -> str:
        """The hash to store.

        Raises:
            InvalidOption: the password is too short or too long.
            TooBusy: others are being hashed.
        """
        check_password_rules(password)
        with _Turn():
            return generate_password_hash(password, method=self._method)

    def matches(self, stored: str | None, password: str) -> bool:
        """Whether the password is the one of the hash; takes as long when there is none.

        Raises:
            TooBusy: others are being checked.
        """
        if _too_long(password):
            return False
        with _Turn():
            found = check_password_hash(stored or self._nobody, password)
        return found and stored is not None

    def is_outdated(self, stored: str) -> bool:
        """Whether the hash was made in another way than today's."""
        return not stored.startswith(f"{self._method}$")


class _Turn:
    """Waits for its turn, with a limit."""

    def __enter__(self) -> None:
        if not _turn.acquire(timeout=_PATIENCE):
            raise TooBusy("many people are signing in at this moment; try again in a few seconds")

    def __exit__(self, *error: object) -> None:
        _turn.release()


def _too_long(password: str) -> bool:
    return len(password.encode("utf-8", "surrogatepass")) > MAX_BYTES


def _after_fork() -> None:
    global _turn
    _turn = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
