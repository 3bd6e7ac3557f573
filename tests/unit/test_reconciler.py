"""The reconciler: brings what the broker lost, and nothing that still comes."""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import attrs
import pytest

from eventdriven_sync import reconciler as module
from eventdriven_sync.broker import RECORDER, ConsumerState
from eventdriven_sync.envelope import Envelope
from eventdriven_sync.errors import BrokerError, BrokerUnavailable, StoreError
from eventdriven_sync.reconciler import LATE, Reconciler
from eventdriven_sync.records import HandlerRecord
from eventdriven_sync.store import EventQuery
from tests.polling import eventually
from tests.unit.rig import Greeted, Renamed, Rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(reconcile_after=20.0)
    yield made
    made.close()


def reconciler(rig: Rig, holder: str = "one") -> Reconciler:
    return Reconciler(store=rig.store, broker=rig.broker, settings=rig.bus.settings, holder=holder)


def listen(rig: Rig, *names: str) -> None:
    """Handlers of ``Renamed``, registered."""
    for name in names:
        rig.handler(lambda e: None, name=name)
    rig.bus.open()


def accept(rig: Rig, count: int = 1, *, dispatch: bool = False, payload: object = None) -> list[Envelope]:
    made = [rig.envelope(payload or Renamed(name=str(i))) for i in range(count)]
    rig.store.events.append(made, timeout=1)
    if dispatch:
        rig.bus.dispatch(made)
    return made


def states(rig: Rig, events: list[Envelope], handler: str = "Blog.keep") -> list[str | None]:
    known = rig.store.deliveries.states([f"{handler}:{event.id}" for event in events])
    return [known.get(f"{handler}:{event.id}") for event in events]


def record(rig: Rig) -> HandlerRecord:
    return rig.store.directory.handlers()[0]


@pytest.fixture
def keep(rig: Rig) -> Any:
    handler = rig.handler(lambda e: None, name="keep")
    rig.bus.open()
    return handler


def test_an_event_that_never_reached_the_broker_is_brought(rig: Rig, keep: Any) -> None:
    events = accept(rig, 3)
    rig.clock.advance(21)
    assert reconciler(rig).round() == 3
    assert states(rig, events) == ["pending"] * 3
    found = rig.store.deliveries.get(f"Blog.keep:{events[0].id}")
    assert found is not None
    assert found.event == events[0]
    assert reconciler(rig).round() == 0


def test_a_young_event_is_given_its_time(rig: Rig, keep: Any) -> None:
    events = accept(rig)
    rig.clock.advance(19)
    assert reconciler(rig).round() == 0
    assert states(rig, events) == [None]


def test_what_the_consumer_still_holds_is_left_to_it(rig: Rig, keep: Any) -> None:
    events = accept(rig, 3, dispatch=True)
    rig.clock.advance(3600)
    assert reconciler(rig).round() == 0
    assert states(rig, events) == [None] * 3


def test_the_watermark_stays_before_what_is_still_with_the_broker(rig: Rig, keep: Any) -> None:
    (waiting,) = accept(rig, dispatch=True)
    rig.clock.advance(3600)
    reconciler(rig).round()
    assert record(rig).reconciled_until is None or record(rig).reconciled_until <= waiting.published_at
    rig.broker.wipe()
    assert reconciler(rig).round() == 1


def test_the_watermark_stays_behind_by_what_may_become_visible_late(rig: Rig, keep: Any) -> None:
    rig.clock.advance(1000)
    reconciler(rig).round()
    assert record(rig).reconciled_until == rig.clock() - timedelta(seconds=LATE)
    late = attrs.evolve(rig.envelope(Renamed(name="late")), published_at=rig.clock() - timedelta(seconds=80))
    rig.store.events.append([late], timeout=1)
    assert reconciler(rig).round() == 1


def test_a_wiped_broker_loses_nothing(rig: Rig, keep: Any) -> None:
    events = accept(rig, 5, dispatch=True)
    rig.broker.wipe()
    rig.clock.advance(60)
    assert reconciler(rig).round() == 5
    assert states(rig, events) == ["pending"] * 5


def test_settled_deliveries_are_not_brought_again(rig: Rig, keep: Any) -> None:
    (event,) = accept(rig)
    attempt = rig.arrived(keep, event)
    rig.executor.read(attempt)
    rig.settler.settle([(attempt, rig.executor.run(attempt))])
    rig.clock.advance(60)
    assert reconciler(rig).round() == 0


def test_events_from_before_a_handler_began_are_not_owed_to_it(rig: Rig) -> None:
    accept(rig, 2)
    rig.clock.advance(10)
    rig.handler(lambda e: None, name="keep")
    rig.bus.open()
    rig.clock.advance(60)
    assert reconciler(rig).round() == 0


def test_a_handler_that_starts_with_all_gets_what_the_broker_never_had(rig: Rig) -> None:
    events = accept(rig, 2)
    rig.clock.advance(10)
    rig.handler(lambda e: None, name="keep", start="all")
    rig.bus.open()
    rig.clock.advance(60)
    assert reconciler(rig).round() == 2
    assert states(rig, events) == ["pending", "pending"]


def test_nothing_is_owed_to_a_retired_handler(rig: Rig, keep: Any) -> None:
    accept(rig)
    rig.store.directory.retire("Blog.keep")
    rig.clock.advance(60)
    assert reconciler(rig).round() == 0


def test_only_one_process_reconciles_until_it_resigns_or_falls_silent(rig: Rig, keep: Any) -> None:
    first, second = reconciler(rig, "one"), reconciler(rig, "two")
    first.round()
    accept(rig)
    rig.clock.advance(21)
    assert second.round() == 0
    rig.clock.advance(60)
    assert second.round() == 1


def test_more_than_a_page_is_compared(rig: Rig, keep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 3)
    events = accept(rig, 10)
    rig.clock.advance(60)
    assert reconciler(rig).round() == 10
    assert states(rig, events) == ["pending"] * 10


class Questions:
    """Counts what the reconciler asks the store, by the name of the method."""

    def __init__(self, rig: Rig, patch: pytest.MonkeyPatch) -> None:
        self.asked: Counter[str] = Counter()
        for part, name in (
            (rig.store.events, "find"),
            (rig.store.deliveries, "states"),
            (rig.store.directory, "reconciled"),
        ):
            patch.setattr(part, name, self._counting(name, getattr(part, name)))

    def _counting(self, name: str, ask: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.asked[name] += 1
            return ask(*arguments, **options)

        return counted


def test_little_is_compared_for_all_handlers_with_one_question_each(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"keep{number}" for number in range(5)]
    listen(rig, *names)
    events = accept(rig, 3)
    rig.clock.advance(21)
    questions = Questions(rig, monkeypatch)
    assert reconciler(rig).round() == 15
    assert questions.asked == {"find": 1, "states": 1}
    assert all(states(rig, events, f"Blog.{name}") == ["pending"] * 3 for name in names)
    rig.clock.advance(LATE + 60)
    questions.asked.clear()
    assert reconciler(rig).round() == 0
    assert questions.asked == {"find": 1, "states": 1, "reconciled": 1}
    rig.clock.advance(60)
    questions.asked.clear()
    assert reconciler(rig).round() == 0
    assert questions.asked == {"find": 1, "reconciled": 1}, "there is no delivery left to ask for"


def test_each_handler_is_owed_what_came_after_it_began_and_what_it_listens_to(rig: Rig) -> None:
    rig.handler(lambda e: None, name="early")
    rig.bus.open()
    before = accept(rig, 2)
    rig.clock.advance(10)
    rig.handler(lambda e: None, name="late")
    rig.handler(lambda e: None, Greeted, name="other")
    rig.bus.open()
    after = accept(rig, 1)
    rig.clock.advance(60)
    assert reconciler(rig).round() == 4
    assert states(rig, [*before, *after], "Blog.early") == ["pending"] * 3
    assert states(rig, [*before, *after], "Blog.late") == [None, None, "pending"]
    assert states(rig, [*before, *after], "Blog.other") == [None] * 3


def test_much_is_compared_handler_by_handler(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 3)
    listen(rig, "one", "two")
    events = accept(rig, 7)
    rig.clock.advance(60)
    assert reconciler(rig).round() == 14
    for name in ("one", "two"):
        assert states(rig, events, f"Blog.{name}") == ["pending"] * 7


def test_more_than_a_page_of_events_is_compared_though_each_handler_has_few(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 4)
    rig.handler(lambda e: None, Renamed, name="one")
    rig.handler(lambda e: None, Greeted, name="two")
    rig.bus.open()
    events = [*accept(rig, 3), *accept(rig, 1, payload=Greeted(name="x")), *accept(rig, 3)]
    rig.clock.advance(LATE + 60)
    assert reconciler(rig).round() == 7
    rig.clock.advance(LATE + 60)
    assert reconciler(rig).round() == 0
    assert sorted(map(str, states(rig, events, "Blog.one"))) == ["None"] + ["pending"] * 6


def test_more_deliveries_than_a_page_are_compared_though_the_events_are_few(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen(rig, *(f"keep{number}" for number in range(4)))
    monkeypatch.setattr(module, "PAGE", 6)
    accept(rig, 3)
    rig.clock.advance(60)
    questions = Questions(rig, monkeypatch)
    assert reconciler(rig).round() == 12
    assert questions.asked["states"] == 4, "a question of bounded size for each handler"


def test_a_handler_that_lags_behind_costs_the_others_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.handler(lambda e: None, name="lagging")
    rig.bus.open()
    accept(rig, dispatch=True)
    rig.clock.advance(3600)
    for number in range(3):
        rig.handler(lambda e: None, Greeted, name=f"keep{number}")
    rig.bus.open()
    accept(rig, payload=Greeted(name="x"))
    rig.clock.advance(21)
    questions = Questions(rig, monkeypatch)
    assert reconciler(rig).round() == 3
    assert questions.asked["find"] == 2, "one for the three together, one for the one that lags"


def test_the_recorder_is_asked_before_the_events_are_read(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    listen(rig, "one", "two")
    order: list[str] = []
    find, state = rig.store.events.find, rig.broker.consumer_state

    def finding(query: EventQuery) -> list[Envelope]:
        order.append("events")
        return find(query)

    def asking(stream: str, name: str, *, timeout: float) -> ConsumerState | None:
        order.append(name)
        return state(stream, name, timeout=timeout)

    monkeypatch.setattr(rig.store.events, "find", finding)
    monkeypatch.setattr(rig.broker, "consumer_state", asking)
    rig.clock.advance(60)
    reconciler(rig).round()
    assert order == [RECORDER, "events"]


def test_a_watermark_stored_late_does_not_meet_a_handler_registered_anew(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen(rig, "one", "two")
    events = accept(rig)
    rig.clock.advance(LATE + 60)
    running = reconciler(rig)
    compare = running._compare

    def compare_and_begin_anew(record: HandlerRecord, *arguments: Any) -> Any:
        if record.name == "Blog.two":
            rig.store.directory.retire("Blog.one")
            again = attrs.evolve(record, name="Blog.one", starts_at=None, registered_at=rig.clock())
            rig.store.directory.register([again])
        return compare(record, *arguments)

    monkeypatch.setattr(running, "_compare", compare_and_begin_anew)
    running.round()
    assert record(rig).name == "Blog.one"
    assert record(rig).reconciled_until is None
    assert states(rig, events, "Blog.one") == ["pending"]


def test_what_was_compared_before_the_broker_went_away_is_kept(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen(rig, "one", "two")
    rig.clock.advance(1000)
    accept(rig, dispatch=True)
    rig.clock.advance(21)
    asked = rig.broker.consumer_state

    def away_after_the_first(stream: str, name: str, *, timeout: float) -> ConsumerState | None:
        if name == "Blog__two":
            raise BrokerUnavailable("gone")
        return asked(stream, name, timeout=timeout)

    monkeypatch.setattr(rig.broker, "consumer_state", away_after_the_first)
    with pytest.raises(BrokerUnavailable):
        reconciler(rig).round()
    one, two = rig.store.directory.handlers()
    assert one.reconciled_until is not None
    assert two.reconciled_until is None


def test_a_stop_half_way_leaves_the_rest_to_the_next(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watermark must not pass what was not compared: nobody would look there again."""
    monkeypatch.setattr(module, "PAGE", 3)
    events = []
    for _ in range(9):
        events += accept(rig)
        rig.clock.advance(1)
    rig.handler(lambda e: None, name="keep", start="all")
    rig.bus.open()
    rig.clock.advance(1000)
    stopped = reconciler(rig)
    missing = stopped._missing

    def stop_after_the_first_page(*arguments: Any) -> Any:
        stopped._stopping.set()
        return missing(*arguments)

    stopped._missing = stop_after_the_first_page  # type: ignore[method-assign]
    assert stopped.round() == 3
    assert reconciler(rig).round() == 6
    assert states(rig, events) == ["pending"] * 9


def test_an_unreachable_broker_stops_the_round_and_moves_no_watermark(rig: Rig, keep: Any) -> None:
    accept(rig)
    rig.clock.advance(60)
    rig.broker.disconnect()
    with pytest.raises(BrokerUnavailable):
        reconciler(rig).round()
    assert record(rig).reconciled_until is None
    rig.broker.connect()
    assert reconciler(rig).round() == 1


def test_one_refused_stream_keeps_no_other_handler_waiting(rig: Rig) -> None:
    rig.handler(lambda e: None, name="a_refused")
    rig.handler(lambda e: None, name="b_fine")
    rig.bus.open()
    events = accept(rig)
    rig.clock.advance(60)
    state = rig.broker.consumer_state

    def refuse(stream: str, name: str, *, timeout: float) -> ConsumerState | None:
        if "refused" in name:
            raise BrokerError("no permission for this stream")
        return state(stream, name, timeout=timeout)

    rig.broker.consumer_state = refuse  # type: ignore[method-assign]
    assert reconciler(rig).round() == 1
    assert states(rig, events, "Blog.b_fine") == ["pending"]


def test_events_nobody_listens_to_are_nobodys_business(rig: Rig, keep: Any) -> None:
    accept(rig, payload=Greeted(name="x"))
    rig.clock.advance(60)
    assert reconciler(rig).round() == 0


def test_a_reconciler_that_never_started_can_be_stopped(rig: Rig) -> None:
    reconciler(rig).stop(timeout=1)


# --- chores -------------------------------------------------------------------------------------------


class Chores:
    """Things to do beside reconciling; the first one always fails."""

    def __init__(self) -> None:
        self.tried = 0
        self.done = 0

    def fail(self) -> None:
        self.tried += 1
        raise (StoreError("no") if self.tried % 2 else ZeroDivisionError("no"))

    def do(self) -> None:
        self.done += 1


def with_chores(rig: Rig, holder: str, chores: Chores) -> Reconciler:
    settings = attrs.evolve(rig.bus.settings, reconcile_every=0.05)
    return Reconciler(
        store=rig.store,
        broker=rig.broker,
        settings=settings,
        holder=holder,
        chores=[chores.fail, chores.do],
    )


def test_who_leads_does_the_chores_whatever_becomes_of_one_of_them(rig: Rig) -> None:
    leader, follower = Chores(), Chores()
    assert rig.store.directory.lead(module.ROLE, "one", ttl=60)
    running = [with_chores(rig, "one", leader), with_chores(rig, "two", follower)]
    for each in running:
        each.start()
    eventually(lambda: leader.done >= 3)
    for each in running:
        each.stop(timeout=5)
    assert leader.tried >= 3
    assert follower.tried == 0


def test_chores_are_done_while_the_broker_is_away(rig: Rig, keep: Any) -> None:
    accept(rig)
    rig.clock.advance(60)
    rig.broker.disconnect()
    chores = Chores()
    running = with_chores(rig, "one", chores)
    running.start()
    eventually(lambda: chores.done >= 2)
    running.stop(timeout=5)
