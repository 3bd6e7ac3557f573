"""Deliveries in memory: outcomes, retries and dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from attrs import evolve

from eventdriven_sync.envelope import Envelope
from eventdriven_sync.outcome import Dead, Done, Failure, RetryAt
from eventdriven_sync.records import Delivery, Settlement
from eventdriven_sync.store import DeliveryQuery
from eventdriven_sync.stores.memory.copies import copied
from eventdriven_sync.stores.memory.events import insert_events, page, same, within
from eventdriven_sync.stores.memory.state import State, Tables

KEPT_FAILURES = 10

Table = MutableMapping[str, Delivery]


class MemoryDeliveries:
    """The ``DeliveryStore`` of a ``MemoryStore``. Thread-safe."""

    def __init__(self, state: State) -> None:
        self._state = state

    def states(self, delivery_ids: Sequence[str]) -> dict[str, str]:
        """The state of those that have a record."""
        with self._state.open() as tables:
            return {each: tables.deliveries[each].state for each in delivery_ids if each in tables.deliveries}

    def settle(self, settlements: Sequence[Settlement]) -> list[bool]:
        """Store emitted events, then outcomes; False where the settlement is fenced off."""
        now = self._state.clock()
        with self._state.open() as tables:
            for settlement in settlements:
                _store_emitted(tables, settlement)
            return [_settle(tables.deliveries, settlement, now) for settlement in settlements]

    def settle_in(self, session: Any, settlement: Settlement) -> bool:
        """The same inside a transaction; False means: abort.

        Also False when this attempt is recorded already: its transaction went through, and committing
        again would double the business writes.
        """
        with self._state.open(session) as tables:
            if _is_recorded(tables.deliveries, settlement):
                return False
            _store_emitted(tables, settlement)
            return _settle(tables.deliveries, settlement, self._state.clock())

    def start(self, deliveries: Sequence[Delivery], *, lease: float) -> list[bool]:
        """Insert these as ``running`` under their ``token``; False where somebody else's record exists."""
        until = _in(self._state.clock(), lease)
        with self._state.open() as tables:
            return [
                _insert(
                    tables.deliveries,
                    evolve(each, state="running", attempts=max(1, each.attempts), due_at=until),
                )
                for each in deliveries
            ]

    def claim_due(
        self, handlers: Sequence[str], *, limit: int, lease: float, worker: str, token: str
    ) -> list[Delivery]:
        """Claim deliveries that are due, the longest waiting first."""
        now = self._state.clock()
        with self._state.open() as tables:
            waiting = sorted(_waiting(tables.deliveries, handlers), key=lambda pair: pair[0])
            due = [delivery for due_at, _, delivery in waiting if due_at <= now]
            claimed = [_claim(each, now, _in(now, lease), worker, token) for each in due[:limit]]
            _put(tables.deliveries, claimed)
        return [copied(each) for each in claimed]

    def renew(
        self,
        delivery_ids: Sequence[str],
        *,
        token: str,
        lease: float,
        begun: bool = False,
        ending_within: float | None = None,
    ) -> set[str]:
        """Prolong leases; return the ids that are no longer held under ``token``."""
        now = self._state.clock()
        soon = None if ending_within is None else _in(now, ending_within)
        with self._state.open() as tables:
            held = _held(tables.deliveries, delivery_ids, token)
            ending = [each for each in held if soon is None or each.due_at is None or each.due_at < soon]
            prolonged = [evolve(each, due_at=_in(now, lease), begun=begun or each.begun) for each in ending]
            _put(tables.deliveries, prolonged)
        return set(delivery_ids) - {each.id for each in held}

    def release(self, delivery_ids: Sequence[str], *, token: str) -> None:
        """Give claimed deliveries back unrun: ``retrying``, due at once, the start not counted."""
        now = self._state.clock()
        with self._state.open() as tables:
            held = _held(tables.deliveries, delivery_ids, token)
            # Without its token: a settlement that comes late must not look like one recorded before.
            _put(
                tables.deliveries,
                [
                    evolve(each, state="retrying", attempts=each.attempts - 1, due_at=now, token="")
                    for each in held
                ],
            )

    def insert_pending(self, deliveries: Sequence[Delivery]) -> int:
        """Insert as ``pending``, due at once; those that have a record stay. How many were inserted."""
        now = self._state.clock()
        with self._state.open() as tables:
            return sum(
                _insert(tables.deliveries, evolve(each, state="pending", due_at=now, token=""))
                for each in deliveries
            )

    def next_due(self, handlers: Sequence[str], *, timeout: float | None = None) -> float | None:
        """Seconds until the next delivery is due (negative: overdue), None if there is none."""
        now = self._state.clock()
        with self._state.open() as tables:
            due = min((due_at for due_at, _, _ in _waiting(tables.deliveries, handlers)), default=None)
        return None if due is None else (due - now).total_seconds()

    def get(self, delivery_id: str) -> Delivery | None:
        """The delivery, or None."""
        with self._state.open() as tables:
            return copied(tables.deliveries.get(delivery_id))

    def find(self, query: DeliveryQuery) -> list[Delivery]:
        """Deliveries by query, without embedded events and messages."""
        with self._state.open() as tables:
            found = [_shown(each, brief=query.brief) for each in _matching(tables.deliveries, query)]
        return page(
            found,
            order=lambda delivery: (delivery.created_at, delivery.id),
            after=query.after,
            limit=query.limit,
        )

    def count(self, query: DeliveryQuery) -> dict[str, int]:
        """Number of deliveries by state; states without any are left out."""
        with self._state.open() as tables:
            return dict(Counter(each.state for each in _matching(tables.deliveries, query)))

    def retry_dead(self, query: DeliveryQuery, *, by: str, job: str = "") -> int:
        """Move dead deliveries matching the query to ``retrying``, whatever its ``limit``. How many."""
        now = self._state.clock()
        with self._state.open() as tables:
            dead = [each for each in _matching(tables.deliveries, query) if each.state == "dead"]
            revived = [_revive(each, now, job=job or each.job) for each in dead]
            return _put(tables.deliveries, revived)

    def retry_with(self, delivery_id: str, event: Envelope, *, by: str) -> bool:
        """Move a dead delivery to ``retrying`` with another event; its own stays as ``original``."""
        now = self._state.clock()
        with self._state.open() as tables:
            dead = tables.deliveries.get(delivery_id)
            if dead is None or dead.state != "dead" or dead.event is None:
                return False
            edited = {"event": copied(event), "original": dead.original or dead.event}
            return _put(tables.deliveries, [_revive(dead, now, **edited)]) == 1

    def discard(self, query: DeliveryQuery, *, reason: str, by: str) -> int:
        """Move dead or retrying deliveries matching the query to ``discarded``, whatever its ``limit``."""
        now = self._state.clock()
        with self._state.open() as tables:
            chosen = [e for e in _matching(tables.deliveries, query) if e.state in ("dead", "retrying")]
            tables.discarded.update((each.id, each) for each in chosen)
            return _put(tables.deliveries, [_discard(each, now, reason) for each in chosen])

    def undo_discard(self, delivery_id: str, *, by: str) -> bool:
        """Bring a delivery that a person discarded back to the state it had."""
        now = self._state.clock()
        with self._state.open() as tables:
            before = tables.discarded.pop(delivery_id, None)
            if before is None:
                return False
            due_at = now if before.state == "retrying" else None
            return _put(tables.deliveries, [evolve(before, due_at=due_at)]) == 1


# --- the moves; each returns the record as it is afterwards ------------------------------------------


def _settle(table: Table, settlement: Settlement, now: datetime) -> bool:
    if _is_recorded(table, settlement):
        return True
    stored = table.get(settlement.delivery_id)
    if stored is None and not settlement.claimed:
        return _insert(table, _outcome(_first_record(settlement), settlement, now))
    if stored is None or not _owns(stored, settlement):
        return False
    table[stored.id] = _outcome(stored, settlement, now)
    return True


def _is_recorded(table: Table, settlement: Settlement) -> bool:
    stored = table.get(settlement.delivery_id)
    return stored is not None and stored.token == settlement.token and stored.state != "running"


def _owns(stored: Delivery, settlement: Settlement) -> bool:
    return settlement.claimed and stored.state == "running" and stored.token == settlement.token


def _first_record(settlement: Settlement) -> Delivery:
    return Delivery(
        id=settlement.delivery_id,
        handler=settlement.handler,
        event_id=settlement.event_id,
        event_name=settlement.event_name,
        operation_id=settlement.operation_id,
        state="running",
        attempts=1,
        created_at=settlement.started_at,
    )


def _outcome(delivery: Delivery, settlement: Settlement, now: datetime) -> Delivery:
    tried = evolve(
        delivery,
        token=settlement.token,
        worker=settlement.worker,
        started_at=settlement.started_at,
        duration_ms=settlement.duration_ms,
        event=copied(settlement.event) or delivery.event,
        raw=copied(settlement.raw) or delivery.raw,
    )
    match settlement.outcome:
        case Done():
            return _end(tried, "succeeded", now)
        case RetryAt(after=after, failure=failure):
            return evolve(_failed(tried, failure), state="retrying", due_at=_in(now, after))
        case Dead(reason=reason, failure=failure):
            failed = _failed(tried, failure)
            return evolve(failed, state="dead", reason=reason, due_at=None, settled_at=now)
        case discarded:
            return _end(tried, "discarded", now, reason=discarded.reason)


def _failed(delivery: Delivery, failure: Failure) -> Delivery:
    failures = (*delivery.failures, failure)[-KEPT_FAILURES:]
    return evolve(delivery, failures=failures, failed=delivery.failed + 1)


def _end(delivery: Delivery, state: Any, now: datetime, *, reason: str = "") -> Delivery:
    return evolve(delivery, state=state, reason=reason, due_at=None, settled_at=now, event=None, raw=None)


def _claim(delivery: Delivery, now: datetime, until: datetime, worker: str, token: str) -> Delivery:
    lost = delivery.lost + (delivery.state == "running" and delivery.begun)
    return evolve(
        delivery,
        state="running",
        attempts=delivery.attempts + 1,
        lost=lost,
        begun=not lost,
        started_at=now,
        due_at=until,
        worker=worker,
        token=token,
    )


def _discard(delivery: Delivery, now: datetime, reason: str) -> Delivery:
    return evolve(
        delivery,
        state="discarded",
        reason=reason,
        due_at=None,
        settled_at=now,
        discarded_from=delivery.state,
    )


def _revive(delivery: Delivery, now: datetime, **more: Any) -> Delivery:
    return evolve(
        delivery,
        state="retrying",
        generation=delivery.generation + 1,
        attempts=0,
        failed=0,
        lost=0,
        reason="",
        due_at=now,
        settled_at=None,
        **more,
    )


# --- reading and writing the table ---------------------------------------------------------------------


def _store_emitted(tables: Tables, settlement: Settlement) -> None:
    if isinstance(settlement.outcome, Done):
        insert_events(tables.events, settlement.emitted)


def _insert(table: Table, delivery: Delivery) -> bool:
    stored = table.get(delivery.id)
    if stored is None:
        table[delivery.id] = copied(delivery)
        return True
    # A repeated ``start`` of ours, whose first answer did not reach us.
    return bool(delivery.token) and (stored.token, stored.state) == (delivery.token, delivery.state)


def _put(table: Table, deliveries: Sequence[Delivery]) -> int:
    table.update((each.id, each) for each in deliveries)
    return len(deliveries)


def _held(table: Table, delivery_ids: Iterable[str], token: str) -> list[Delivery]:
    known = [table[each] for each in delivery_ids if each in table]
    return [each for each in known if each.state == "running" and each.token == token]


def _waiting(table: Table, handlers: Sequence[str]) -> Iterator[tuple[datetime, str, Delivery]]:
    for delivery in table.values():
        if delivery.due_at is not None and delivery.handler in handlers:
            yield delivery.due_at, delivery.id, delivery


def _matching(table: Table, query: DeliveryQuery) -> list[Delivery]:
    return [each for each in table.values() if _matches(each, query)]


def _matches(delivery: Delivery, query: DeliveryQuery) -> bool:
    fields = (
        (query.handler, delivery.handler),
        (query.group, delivery.group),
        (query.reason, delivery.reason),
        (query.job, delivery.job),
        (query.event_id, delivery.event_id),
        (query.event_name, delivery.event_name),
        (query.operation_id, delivery.operation_id),
        (query.error, delivery.failures[-1].error_type if delivery.failures else ""),
        (query.fingerprint, delivery.fingerprint),
    )
    chosen = not query.ids or delivery.id in query.ids
    if query.died_before and not (delivery.settled_at and delivery.settled_at < query.died_before):
        return False
    staged = not query.states or delivery.state in query.states
    return chosen and staged and same(fields) and within(delivery.created_at, query.since, query.until)


def _shown(delivery: Delivery, *, brief: bool) -> Delivery:
    failures = delivery.failures
    if brief:
        failures = tuple(evolve(failure, traceback="") for failure in failures)
    return evolve(delivery, event=None, raw=None, original=None, failures=failures)


def _in(now: datetime, seconds: float) -> datetime:
    return now + timedelta(seconds=seconds)
