"""No sequence of calls takes a delivery on a way that is not in ``MOVES``, and none loses an event."""

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from eventdriven_sync.envelope import Envelope
from eventdriven_sync.outcome import FINAL_STATES, MOVES
from eventdriven_sync.records import Delivery, Settlement
from eventdriven_sync.store import DeliveryQuery
from eventdriven_sync.stores.memory import MemoryStore
from tests.contracts.samples import Samples
from tests.contracts.stages import FakeClock

outcomes = st.sampled_from(["succeeded", "retrying", "dead", "discarded"])
leases = st.sampled_from([1.0, 30.0])
delays = st.sampled_from([0.0, 1.0, 60.0])


class Abort(Exception):
    """Ends a transaction without its writes."""


class Deliveries(RuleBasedStateMachine):
    """Workers, a broker, a reconciler and a person acting on one handler's deliveries in any order.

    ``claims`` holds every attempt that ever began with a claim, so stale ones come back as well.
    ``owners`` and ``recorded`` are the tokens that may settle, and that did last.
    ``in_consumer`` and ``lost`` are the messages the broker still has, and those it lost.
    """

    events = Bundle("events")
    claims = Bundle("claims")

    @initialize()
    def begin(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(clock=self.clock)
        self.given = Samples(self.clock.time)
        self.accepted: dict[str, Envelope] = {}
        self.in_consumer: set[str] = set()
        self.lost: set[str] = set()
        self.owners: dict[str, str] = {}
        self.recorded: dict[str, str] = {}
        self.before: dict[str, Delivery] = {}
        self.tokens = 0

    # --- the publisher and the broker

    # Few events, so that calls meet at the same delivery.
    @precondition(lambda self: len(self.accepted) < 3)
    @rule(target=events)
    def accept(self) -> Envelope:
        event = self.given.event(published_at=self.clock.time)
        self.store.events.append([event], timeout=1)
        self.accepted[event.id] = event
        self.in_consumer.add(event.id)
        return event

    @rule()
    def wipe(self) -> None:
        self.lost |= self.in_consumer
        self.in_consumer.clear()

    @rule(event=events)
    def redeliver(self, event: Envelope) -> None:
        """A broker that lost its acknowledgements delivers settled events again."""
        self.in_consumer.add(event.id)

    # --- the live lane

    @rule(event=events, state=outcomes, after=delays, again=st.booleans())
    def settle_live(self, event: Envelope, state: str, after: float, again: bool) -> None:
        settlement = self._settlement(event, state, after, token=self._new_token())
        new = self._record(event.id) is None
        for _ in range(1 + again):
            assert self.store.deliveries.settle([settlement]) == [new]
        if new:
            self._acknowledge(event.id)

    @rule(target=claims, event=events, lease=leases)
    def start(self, event: Envelope, lease: float) -> object:
        token = self._new_token()
        new = self._record(event.id) is None
        record = self.given.delivery(event, token=token, attempts=1)
        assert self.store.deliveries.start([record], lease=lease) == [new]
        self._acknowledge(event.id)
        return self._own([record.id] if new else [], token)

    # --- the recovery lane

    @rule(target=claims, limit=st.integers(1, 3), lease=leases)
    def claim(self, limit: int, lease: float) -> object:
        token = self._new_token()
        claimed = self.store.deliveries.claim_due(
            [self.given.handler], limit=limit, lease=lease, worker="w", token=token
        )
        assert len(claimed) <= limit
        for delivery in claimed:
            due_at = self.before[delivery.id].due_at
            assert due_at is not None
            assert due_at <= self.clock.time
        return self._own([delivery.id for delivery in claimed], token)

    @rule(claim=claims, state=outcomes, after=delays)
    def settle_claimed(self, claim: tuple[str, str], state: str, after: float) -> None:
        settlement = self._claimed_settlement(claim, state, after)
        owned, repeated = self._owns(claim), self.recorded.get(claim[0]) == claim[1]
        assert self.store.deliveries.settle([settlement]) == [owned or repeated]
        assert (self._record_of(claim) != self.before[claim[0]]) == owned
        if owned:
            self._note_recorded(claim)

    @rule(claim=claims, state=outcomes, commits=st.booleans())
    def settle_in_transaction(self, claim: tuple[str, str], state: str, commits: bool) -> None:
        settlement = self._claimed_settlement(claim, state, 1.0)

        def body(session: object) -> None:
            assert self.store.deliveries.settle_in(session, settlement) == self._owns(claim)
            if not (commits and self._owns(claim)):
                raise Abort

        try:
            self.store.run_transaction(body, timeout=1)
        except Abort:
            assert self._record_of(claim) == self.before[claim[0]]
        else:
            self._note_recorded(claim)

    @rule(claim=claims, lease=leases)
    def renew(self, claim: tuple[str, str], lease: float) -> None:
        lost = self.store.deliveries.renew([claim[0]], token=claim[1], lease=lease)
        assert lost == (set() if self._owns(claim) else {claim[0]})

    @rule(claim=claims)
    def release(self, claim: tuple[str, str]) -> None:
        owned = self._owns(claim)
        self.store.deliveries.release([claim[0]], token=claim[1])
        if owned:
            del self.owners[claim[0]]
        assert (self._record_of(claim) != self.before[claim[0]]) == owned

    @rule()
    def reconcile(self) -> None:
        missing = [self.accepted[each] for each in self.lost if self._record(each) is None]
        records = [self.given.delivery(event) for event in missing]
        assert self.store.deliveries.insert_pending(records) == len(missing)
        self.lost.clear()

    # --- a person, and time

    @rule()
    def retry_dead(self) -> None:
        dead = [each for each in self.before.values() if each.state == "dead"]
        assert self.store.deliveries.retry_dead(DeliveryQuery(), by="ada") == len(dead)
        for each in dead:
            assert self._record(each.event_id) == attrs.evolve(
                each,
                state="retrying",
                generation=each.generation + 1,
                attempts=0,
                failed=0,
                lost=0,
                reason="",
                due_at=self.clock.time,
                settled_at=None,
            )

    @rule(states=st.sampled_from([("dead",), ("retrying",), ()]))
    def discard(self, states: tuple[str, ...]) -> None:
        query = DeliveryQuery(states=states)
        allowed = states or ("dead", "retrying")
        expected = sum(each.state in allowed for each in self.before.values())
        assert self.store.deliveries.discard(query, reason="no", by="ada") == expected

    @rule(event=events)
    def retry_with_another_payload(self, event: Envelope) -> None:
        before = self._record(event.id)
        edited = attrs.evolve(event, data={"user_id": "edited"})
        moved = self.store.deliveries.retry_with(f"{self.given.handler}:{event.id}", edited, by="ada")
        assert moved == (before is not None and before.state == "dead")
        if moved and before:
            after = self._record(event.id)
            assert after is not None
            assert (after.state, after.event, after.original) == (
                "retrying",
                edited,
                before.original or before.event,
            )

    @rule(event=events)
    def undo_a_discard(self, event: Envelope) -> None:
        before = self._record(event.id)
        undone = self.store.deliveries.undo_discard(f"{self.given.handler}:{event.id}", by="ada")
        assert undone == bool(before and before.discarded_from)
        after = self._record(event.id)
        if undone and before and after:
            assert after.state == before.discarded_from
            assert after.event is not None

    @rule(seconds=st.sampled_from([0.5, 2.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # --- what always holds

    @invariant()
    def the_laws_hold(self) -> None:
        after = self._records()
        assert set(self.before) <= set(after), "a delivery vanished"
        for key, record in after.items():
            self._check_move(self.before.get(key), record)
            _check_fields(record)
        self._check_conservation({record.event_id for record in after.values()})
        self.before = after

    def _check_conservation(self, recorded: set[str]) -> None:
        assert recorded | self.in_consumer | self.lost == set(self.accepted)
        counts = self.store.deliveries.count(DeliveryQuery(handler=self.given.handler))
        unsettled = (self.in_consumer | self.lost) - recorded
        assert sum(counts.values()) + len(unsettled) == len(self.accepted)

    def _check_move(self, old: Delivery | None, new: Delivery) -> None:
        if old == new:
            return
        state = None if old is None else old.state
        assert new.state in MOVES[state], f"{state} -> {new.state}"
        if old is not None:
            assert new.generation == old.generation + (state == "dead" and new.state == "retrying")
            assert new.created_at == old.created_at

    # --- words for the rules

    def _records(self) -> dict[str, Delivery]:
        found = self.store.deliveries.find(DeliveryQuery(limit=10_000))
        records = [self.store.deliveries.get(each.id) for each in found]
        return {record.id: record for record in records if record}

    def _record(self, event_id: str) -> Delivery | None:
        return self.store.deliveries.get(f"{self.given.handler}:{event_id}")

    def _record_of(self, claim: tuple[str, str]) -> Delivery | None:
        return self.store.deliveries.get(claim[0])

    def _owns(self, claim: tuple[str, str]) -> bool:
        """Whether this claim is the last one, and has neither ended nor been given back."""
        return self.owners.get(claim[0]) == claim[1]

    def _own(self, ids: list[str], token: str) -> object:
        for each in ids:
            self.owners[each] = token
            self.recorded.pop(each, None)
        return multiple(*[(each, token) for each in ids])

    def _note_recorded(self, claim: tuple[str, str]) -> None:
        del self.owners[claim[0]]
        self.recorded[claim[0]] = claim[1]

    def _acknowledge(self, event_id: str) -> None:
        self.in_consumer.discard(event_id)

    def _new_token(self) -> str:
        self.tokens += 1
        return f"token-{self.tokens}"

    def _settlement(self, event: Envelope, state: str, after: float, *, token: str) -> Settlement:
        outcome = self.given.outcome(state, after=after)
        return self.given.settlement(event, outcome, token=token, started_at=self.clock.time)

    def _claimed_settlement(self, claim: tuple[str, str], state: str, after: float) -> Settlement:
        event = self.accepted[claim[0].partition(":")[2]]
        return attrs.evolve(self._settlement(event, state, after, token=claim[1]), claimed=True)


def _check_fields(record: Delivery) -> None:
    assert (record.due_at is None) == (record.state in FINAL_STATES)
    by_handler = record.state == "discarded" and not record.discarded_from
    assert (record.event is None) == (record.state == "succeeded" or by_handler)
    assert record.state == "discarded" or not record.discarded_from
    assert (record.settled_at is None) == (record.state not in FINAL_STATES)
    assert len(record.failures) <= 10
    assert 0 <= record.failed <= record.attempts
    assert 0 <= record.lost <= record.attempts


# Without a database of examples: it would be one more directory to keep out of the tree.
Deliveries.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None, database=None)
TestDeliveryStates = Deliveries.TestCase


def test_success_has_no_exit() -> None:
    assert MOVES["succeeded"] == frozenset()
