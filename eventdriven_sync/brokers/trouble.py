"""What went wrong last: kept for ``status()``, and logged without flooding the log."""

from __future__ import annotations

import logging
import re
import time

from eventdriven_sync.errors import BrokerPermissionDenied

logger = logging.getLogger(__name__)

# What the server says when it forbids something, and when it lets nobody in.
DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"', re.IGNORECASE)
REFUSED = re.compile(r"authorization|authentication expired|authentication revoked", re.IGNORECASE)
_SAY_AGAIN = 30.0
_KINDS_MOST = 200


class Trouble:
    """Call it with a text. Texts that differ only in numbers are one kind, logged once in 30 seconds.

    Attributes:
        last: the latest text.
    """

    def __init__(self, where: str) -> None:
        self.last = ""
        self._where = where
        self._said: dict[str, float] = {}

    def refused(self) -> BrokerPermissionDenied:
        """The error for credentials that the server does not take."""
        return BrokerPermissionDenied(
            f"NATS at {self._where} refuses the credentials: check user and password in the URL",
            url=self._where,
        )

    def forbidden(self, subject: str) -> BrokerPermissionDenied:
        """The error for a subject that the server keeps from this user."""
        return BrokerPermissionDenied(
            f"NATS at {self._where} does not allow this user to publish to {subject}: grant it",
            url=self._where,
            subject=subject,
        )

    def __call__(self, text: str) -> None:
        """Remember it, and log it unless its kind was logged a moment ago."""
        self.last = text
        kind, now = re.sub(r"\d+", "#", text)[:80], time.monotonic()
        if now - self._said.get(kind, -_SAY_AGAIN) < _SAY_AGAIN:
            return
        if len(self._said) >= _KINDS_MOST:
            self._said.clear()
        self._said[kind] = now
        logger.warning("NATS at %s: %s", self._where, text, extra={"action": "nats_trouble"})
