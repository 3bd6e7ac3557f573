"""Kill -9 at every boundary on an event's way: at the first event, at the seventh and at the last.

What is left is looked at before anybody heals it, and again when everything came to an end: by the witness,
the audit and, where effects are in MongoDB, by the application's own collection.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
import pymongo
import pytest

from eventdriven_sync import EventBus
from eventdriven_sync.audit import Audit
from eventdriven_sync.broker import Incoming
from eventdriven_sync.brokers.memory import MemoryBroker
from eventdriven_sync.reconciler import ROLE
from eventdriven_sync.records import Delivery
from eventdriven_sync.store import DeliveryQuery, EventQuery
from tests.apps import crashing
from tests.apps.crash_points import (
    AFTER_ASKING,
    AFTER_BRINGING,
    AFTER_CLAIM,
    AFTER_COMMIT,
    AFTER_DISPATCH,
    AFTER_RECORDING,
    AFTER_START,
    BEFORE_ACK,
    BEFORE_BRINGING,
    BEFORE_COMMIT,
    BEFORE_DISPATCH,
    BEFORE_OUTCOME,
    BEFORE_RECORDING,
    BEFORE_SETTLE,
    BEFORE_START,
    BEFORE_STORE,
    BEFORE_WATERMARK,
)
from tests.apps.crashing import BATCH, EVENTS, FIRST, LAST, SEVENTH, Case
from tests.apps.site import Site, conserved
from tests.polling import eventually

ALL = list(range(1, EVENTS + 1))
# On a busy machine NATS gets events late, and what it still brings must not be taken for lost.
PATIENCE = 3.0


def cases(how: str, *places: str) -> list[Case]:
    """Each place at each of the three events."""
    wanted = [(place, nth) for place in places for nth in (FIRST, SEVENTH, LAST)]
    return [Case(how, place, nth, number) for number, (place, nth) in enumerate(wanted)]


class Run:
    """All cases of a test on one bus: what happened, what is left, and what becomes of it.

    A worker of this process leads, and runs none of their handlers before ``heal``.
    """

    def __init__(self, site: Site, cases: Sequence[Case]) -> None:
        self.site, self.cases, self.witness = site, cases, site.witness
        self.bus = site.bus(lambda bus, witness: self._build(bus))
        self.bus.mongo_client.get_default_database().create_collection("books")

    def _build(self, bus: EventBus) -> None:
        for case in self.cases:
            crashing.build(bus, self.witness, case)

    def crash(self, cases: Sequence[Case] | None = None) -> None:
        crashing.crash_all(self.cases if cases is None else cases, self.site.settings, self.witness)
        end_transactions(self.bus.mongo_client)

    def heal(self) -> Audit:
        """Another worker does what is left; the audit finds nothing lost."""
        self.site.worker(self.bus, threads=8)
        conserved(self.bus, timeout=60)
        # What followed from the last of them may have come when its handler had been counted.
        return conserved(self.bus, timeout=60)

    def numbers(self, what: str, case: Case) -> list[int]:
        """The events of a case that the witness saw do this, in the order of it."""
        return [note["number"] for note in self.witness.notes(what, case=case.number)]

    def stored(self, case: Case) -> list[int]:
        """The events of a case that are accepted."""
        found = self.bus.store.events.find(EventQuery(names=(f"{case.name}.begun",), limit=100))
        return sorted(event.data["number"] for event in found)

    def followed(self, case: Case) -> list[int]:
        """The events that handlers of a case published, as far as they are accepted."""
        found = self.bus.store.events.find(EventQuery(names=(f"{case.name}.followed",), limit=100))
        return sorted(event.data["number"] for event in found)

    def states(self, case: Case) -> dict[int, str]:
        """The deliveries of a case by the number of their event."""
        known = self.bus.store.deliveries.states([case.delivery_id(n) for n in ALL])
        return {n: known[case.delivery_id(n)] for n in ALL if case.delivery_id(n) in known}

    def deliveries(self, case: Case) -> list[Delivery]:
        """All of a case."""
        return self.bus.store.deliveries.find(DeliveryQuery(handler=case.handler))

    def delivery(self, case: Case) -> Delivery:
        """Of the event at which the process died."""
        return next(each for each in self.deliveries(case) if each.event_id == case.target)

    def booked(self, case: Case) -> list[int]:
        """What transactions of a case wrote into the application's collection."""
        found = self.bus.mongo_client.get_default_database().books.find({"case": case.number})
        return sorted(document["number"] for document in found)

    def check_end(self, case: Case, audited: Audit, accepted: list[int] = ALL) -> None:
        """Whatever happened: every accepted event succeeded, and what followed exists once and succeeded."""
        ends = {h.name: (h.accepted, h.succeeded) for h in audited.handlers}
        assert ends[case.handler] == (len(accepted), len(accepted)), case
        assert ends[f"{case.name}.follow"] == (len(accepted), len(accepted)), case
        assert set(self.numbers("end", case)) == set(accepted), case
        assert self.followed(case) == accepted, case
        assert set(self.numbers("follow", case)) == set(accepted), case


@pytest.fixture
def led(site: Site) -> Site:
    """A site whose reconciler leads from the beginning: those of killed processes never do."""
    site.settings = attrs.evolve(site.settings, reconcile_after=PATIENCE)
    bus = site.bus(crashing.lead)
    site.worker(bus, threads=1)
    leases = bus.mongo_client.get_default_database().leases
    eventually(lambda: leases.find_one({"_id": ROLE}))
    return site


# --- publishers ---------------------------------------------------------------------------------------


def test_a_publisher_killed_before_the_store_accepted_nothing_and_after_it_loses_nothing(led: Site) -> None:
    alone = cases("publisher", BEFORE_STORE, BEFORE_DISPATCH, AFTER_DISPATCH)
    within = cases("session", BEFORE_COMMIT, AFTER_COMMIT)
    run = Run(led, [*alone, *(attrs.evolve(case, number=case.number + len(alone)) for case in within)])
    run.crash()
    expected = {}
    for case in run.cases:
        assert run.numbers("published", case) == ALL[: case.nth - 1], case
        accepted = ALL[: case.nth - (case.place in (BEFORE_STORE, BEFORE_COMMIT))]
        assert run.stored(case) == accepted, case
        assert run.booked(case) == (accepted if case.how == "session" else []), case
        expected[case] = accepted
    audited = run.heal()
    for case, accepted in expected.items():
        run.check_end(case, audited, accepted)
        assert sorted(run.numbers("start", case)) == accepted, case


# --- the live lane ------------------------------------------------------------------------------------


def test_a_worker_killed_before_the_outcome_is_recorded_runs_that_event_again_and_no_other(led: Site) -> None:
    run = Run(led, cases("worker", AFTER_ASKING, BEFORE_SETTLE, BEFORE_OUTCOME))
    publish(run)
    run.crash()
    for case in run.cases:
        ran = case.nth - (case.place == AFTER_ASKING)
        assert run.numbers("end", case) == ALL[:ran], case
        assert run.states(case) == dict.fromkeys(ALL[: case.nth - 1], "succeeded"), case
        # Of one that is not recorded, what it published may be stored, and nobody knows of it yet.
        assert run.followed(case) == ALL[: case.nth - (case.place != BEFORE_OUTCOME)], case
    audited = run.heal()
    for case in run.cases:
        run.check_end(case, audited)
        again = [] if case.place == AFTER_ASKING else [case.nth]
        assert Counter(run.numbers("start", case)) == Counter(ALL + again), case
        delivery = run.delivery(case)
        assert (delivery.state, delivery.attempts, delivery.lost) == ("succeeded", 1, 1), (
            "the start is counted"
        )


def test_a_worker_killed_after_recording_runs_nothing_again(led: Site) -> None:
    run = Run(led, cases("worker", BEFORE_ACK, BEFORE_DISPATCH))
    publish(run)
    run.crash()
    for case in run.cases:
        assert run.states(case) == dict.fromkeys(ALL[: case.nth], "succeeded"), case
        assert run.followed(case) == ALL[: case.nth], case
    audited = run.heal()
    for case in run.cases:
        run.check_end(case, audited)
        assert sorted(run.numbers("start", case)) == ALL, case
        assert (run.delivery(case).attempts, run.delivery(case).lost) == (1, 0), case


def test_a_worker_killed_around_the_outcomes_of_a_batch_runs_all_of_that_batch_again_or_nothing(
    led: Site,
) -> None:
    run = Run(led, cases("batch", BEFORE_SETTLE, BEFORE_OUTCOME, BEFORE_ACK))
    publish(run)
    run.crash()
    unrecorded = {}
    for case in run.cases:
        left = [n for n in run.numbers("end", case) if n not in run.states(case)]
        assert len(left) <= BATCH, case
        assert (case.nth in left) == (case.place != BEFORE_ACK), case
        unrecorded[case.number] = left
    audited = run.heal()
    for case in run.cases:
        run.check_end(case, audited)
        assert Counter(run.numbers("start", case)) == Counter(ALL + unrecorded[case.number]), case


def test_a_worker_killed_while_it_counts_the_start_of_a_redelivered_event_leaves_it_to_another(
    led: Site,
) -> None:
    run = Run(led, cases("worker", BEFORE_START, AFTER_START))
    publish(run)
    for case in run.cases:
        deliver_once(run.bus, case)
    run.crash()
    for case in run.cases:
        started = run.numbers("start", case)
        states = run.states(case)
        assert len(started) == case.nth - 1, case
        assert {n for n in states if states[n] == "succeeded"} == set(started), case
        assert len(states) - len(started) == (case.place == AFTER_START), case
    audited = run.heal()
    for case in run.cases:
        run.check_end(case, audited)
        assert sorted(run.numbers("start", case)) == ALL, case
        # An attempt is counted, and no second loss: the handler had not begun when the process died.
        counts = Counter((each.attempts, each.lost) for each in run.deliveries(case))
        assert counts == Counter([(2, 1) if case.place == AFTER_START else (1, 1)] + [(1, 1)] * 11), case


# --- the recovery lane --------------------------------------------------------------------------------


def test_what_a_worker_of_the_recovery_lane_claimed_is_claimed_by_another_when_its_lease_ends(
    led: Site,
) -> None:
    run = Run(led, cases("worker", AFTER_CLAIM, BEFORE_SETTLE, BEFORE_DISPATCH))
    bring(run)
    run.crash()
    for case in run.cases:
        ran = case.nth - (case.place == AFTER_CLAIM)
        assert run.numbers("end", case) == ALL[:ran], case
        states = run.states(case)
        end = "succeeded" if case.place == BEFORE_DISPATCH else "running"
        assert states[case.nth] == end, case
        done = ALL[: case.nth - 1]
        assert [states[n] for n in done] == ["succeeded"] * len(done), case
    audited = run.heal()
    for case in run.cases:
        run.check_end(case, audited)
        again = [case.nth] if case.place == BEFORE_SETTLE else []
        assert Counter(run.numbers("start", case)) == Counter(ALL + again), case
        counts = (1, 0) if case.place == BEFORE_DISPATCH else (2, 1)
        assert (run.delivery(case).attempts, run.delivery(case).lost) == counts, case


# --- transactional handlers ---------------------------------------------------------------------------


def test_a_transactional_handler_has_all_its_effects_or_none_whenever_it_is_killed(
    led: Site,
) -> None:
    run = Run(led, cases("transactional", BEFORE_COMMIT, AFTER_COMMIT, BEFORE_ACK, BEFORE_DISPATCH))
    publish(run)
    run.crash()
    for case in run.cases:
        done = ALL[: case.nth - (case.place == BEFORE_COMMIT)]
        assert run.numbers("end", case) == ALL[: case.nth], case
        assert run.booked(case) == run.followed(case) == done, case
        assert run.states(case) == dict.fromkeys(done, "succeeded"), case
    audited = run.heal()
    for case in run.cases:
        run.check_end(case, audited)
        assert run.booked(case) == ALL, case
        starts = Counter(run.numbers("start", case))
        # Others may run twice as well: MongoDB lets transactions that meet try again.
        assert (starts[case.nth] > 1) >= (case.place == BEFORE_COMMIT), case
        assert case.place == BEFORE_COMMIT or starts[case.nth] == 1, case


# --- the reconciler -----------------------------------------------------------------------------------


def test_a_reconciler_killed_between_two_events_is_followed_by_one_that_brings_the_rest(
    site: Site, mongo_client: pymongo.MongoClient[Any], database_name: str
) -> None:
    places = [(BEFORE_BRINGING, n) for n in (FIRST, SEVENTH, LAST)]
    places += [(AFTER_BRINGING, n) for n in (FIRST, SEVENTH, LAST)]
    places.sort(key=lambda each: each[1])
    # One after the other: each of them goes on where the one before it died.
    same = [Case("reconciler", place, nth, 0) for place, nth in [*places, (BEFORE_WATERMARK, 1)]]
    run = Run(site, same[:1])
    lose(run.bus, same[0])
    lost_at, wait = run.bus.store.directory.now(), run.bus.settings.reconcile_after
    eventually(lambda: (run.bus.store.directory.now() - lost_at).total_seconds() > wait)
    for case in same:
        run.crash([case])
        brought = EVENTS if case.place == BEFORE_WATERMARK else case.nth - (case.place == BEFORE_BRINGING)
        assert run.states(case) == dict.fromkeys(ALL[:brought], "pending"), case
        # The next may lead when this lease has ended; nobody waits for that here.
        assert mongo_client[database_name].leases.delete_one({"_id": ROLE}).deleted_count == 1
    audited = run.heal()
    run.check_end(same[0], audited)
    assert sorted(run.numbers("start", same[0])) == ALL


def end_transactions(client: pymongo.MongoClient[Any]) -> None:
    """What killed processes left open MongoDB ends after 60 seconds; nobody waits for that here."""
    stages = [
        {"$currentOp": {"allUsers": True, "idleSessions": True}},
        {"$match": {"type": "idleSession", "transaction": {"$exists": True}}},
    ]
    left = [{"lsid": each["lsid"]} for each in client.admin.aggregate(stages)]
    if left:
        client.admin.command("killAllSessionsByPattern", left)


# --- the recorder -------------------------------------------------------------------------------------


def test_what_a_killed_recorder_had_in_hand_is_recorded_once_by_the_next(site: Site) -> None:
    site.settings = attrs.evolve(site.settings, reconcile_after=PATIENCE)
    run = Run(site, cases("recorder", BEFORE_RECORDING, AFTER_RECORDING))
    # One after the other: each recorder reads the streams of all.
    for case in run.cases:
        case.publish(run.bus)
        run.crash([case])
        assert run.stored(case) == ALL[: case.nth - (case.place == BEFORE_RECORDING)], case
    site.worker(run.bus, threads=8)
    eventually(lambda: [run.stored(case) for case in run.cases] == [ALL] * len(run.cases), timeout=60)
    audited = run.heal()
    for case in run.cases:
        run.check_end(case, audited)
        assert sorted(run.numbers("start", case)) == ALL, case


# --- what is there before -----------------------------------------------------------------------------


def publish(run: Run) -> None:
    """The events of every case, which NATS has when this returns."""
    for case in run.cases:
        case.publish(run.bus)
    assert run.bus.flush(timeout=10)


def lose(bus: EventBus, case: Case) -> None:
    """Events that are accepted, and that NATS never had."""
    case.publish(EventBus(settings=bus.settings, broker=MemoryBroker(), store=bus.store))


def bring(run: Run) -> None:
    """Events that NATS never had; the leading reconciler has made pending deliveries of them."""
    for case in run.cases:
        lose(run.bus, case)
    for case in run.cases:
        eventually(lambda case=case: run.states(case) == dict.fromkeys(ALL, "pending"))


def deliver_once(bus: EventBus, case: Case) -> None:
    """Somebody took the messages and gave them back: they are delivered for the second time from now on."""
    (spec,) = bus.topology.consumers(bus.handlers[case.handler], None)
    arrived: list[Incoming] = []
    consumption = bus.broker.consume(spec, arrived.extend, window=100)
    eventually(lambda: len(arrived) == EVENTS)
    consumption.stop()
    consumption.release(arrived)
    eventually(lambda: consumption.in_hand == 0)
