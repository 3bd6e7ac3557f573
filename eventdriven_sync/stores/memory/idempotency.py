"""Idempotent requests in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from attrs import evolve

from eventdriven_sync.records import IdempotencyRecord, Reply, check_reply
from eventdriven_sync.stores.memory.state import Claim, State


class MemoryIdempotency:
    """The ``IdempotencyStore`` of a ``MemoryStore``. Thread-safe."""

    def __init__(self, state: State) -> None:
        self._state = state

    def begin(
        self, key: str, *, fingerprint: str, token: str, lease: float, keep: float
    ) -> IdempotencyRecord:
        """Claim the key for a request, or say what is there."""
        with self._open() as (claims, now):
            found = claims.get(key)
            if found is not None and not _may_claim(found, fingerprint, token, now):
                return _record(key, found, mine=False)
            claims[key] = Claim(
                fingerprint=fingerprint,
                token=token,
                lease_until=now + timedelta(seconds=lease),
                expires_at=now + timedelta(seconds=max(lease, keep)),
            )
            return _record(key, claims[key], mine=True)

    def finish(self, key: str, *, token: str, reply: Reply, keep: float) -> bool:
        """Keep the reply for ``keep`` seconds from now; False if ``token`` does not own the record."""
        check_reply(reply)
        with self._open() as (claims, now):
            found = claims.get(key)
            if found is None or found.token != token:
                return False
            if found.reply is None:
                claims[key] = evolve(found, reply=reply, expires_at=now + timedelta(seconds=keep))
            return True

    def abandon(self, key: str, *, token: str) -> None:
        """Forget the running record that ``token`` owns, so that the next request with this key runs."""
        with self._open() as (claims, _):
            found = claims.get(key)
            if found is not None and found.token == token and found.reply is None:
                del claims[key]

    @contextmanager
    def _open(self) -> Iterator[tuple[dict[str, Claim], datetime]]:
        """What is not absent by now, and the store's time."""
        with self._state.open() as tables:
            now = self._state.clock()
            for key in [key for key, claim in tables.idempotency.items() if claim.expires_at <= now]:
                del tables.idempotency[key]
            yield tables.idempotency, now


def _may_claim(found: Claim, fingerprint: str, token: str, now: datetime) -> bool:
    held = found.token != token and found.lease_until > now
    return found.reply is None and found.fingerprint == fingerprint and not held


def _record(key: str, claim: Claim, *, mine: bool) -> IdempotencyRecord:
    return IdempotencyRecord(
        key=key,
        fingerprint=claim.fingerprint,
        state="mine" if mine else "answered" if claim.reply else "running",
        token=claim.token,
        reply=claim.reply,
    )
