"""Group retries: canaries first, the others while they succeed, and any process may go on."""

from collections.abc import Iterator
from typing import Any

import pytest

from eventdriven_sync import EventBus, Reject
from eventdriven_sync import group_retries as module
from eventdriven_sync.errors import InvalidOption, InvalidTransition, NotFound, StoreUnavailable
from eventdriven_sync.group_retries import GroupRetries
from eventdriven_sync.jobs import STALLED, RetryJob
from eventdriven_sync.monitor import Monitor
from eventdriven_sync.testing import MemoryRun, memory
from tests.unit.rig import Renamed


class Shop:
    """Ten dead letters of one handler, and what it does from now on.

    Attributes:
        broken: names of events at which the handler still fails.
        seen: names of those it handled.
    """

    def __init__(self, bus: EventBus, run: MemoryRun) -> None:
        self.run = run
        self.monitor = Monitor(bus)
        self.broken = {str(number) for number in range(10)}
        self.seen: list[str] = []

        @bus.group("Blog").handler(Renamed)
        def greet(event: Renamed) -> None:
            if event.name in self.broken:
                raise Reject(f"user {event.number} is unknown")
            self.seen.append(event.name)

        bus.publish_many([Renamed(name=str(number), number=number) for number in range(10)])
        run.drain()
        run.clock.advance(1)
        assert self.dead == 10
        [group] = self.monitor.letter_groups()
        self.group = {"handler": group.handler, "fingerprint": group.fingerprint}

    @property
    def dead(self) -> int:
        return len(self.monitor.letters(limit=200).items)

    def start(self, **options: Any) -> RetryJob:
        return self.monitor.retry_group(**self.group, by="ada", **options)

    def steps(self, count: int = 1) -> None:
        """What leading workers do; a new one each time. Handlers run in between."""
        for _ in range(count):
            GroupRetries(self.run.store).round()
            self.run.drain()
            self.run.clock.advance(1)

    def send_canaries(self, job: RetryJob) -> list[str]:
        """Send them, but let no handler run yet; the names in their events."""
        GroupRetries(self.run.store).round()
        letters = [self.monitor.letter(key) for key in self.job(job).canaries]
        return [letter.event.data["name"] for letter in letters if letter.event]

    def job(self, job: RetryJob) -> RetryJob:
        return self.monitor.job(job.id)


@pytest.fixture
def shop() -> Iterator[Shop]:
    bus = EventBus(nats="memory://", mongo="memory://", namespace="unit")
    with memory(bus) as run:
        yield Shop(bus, run)


def test_a_preview_says_how_many(shop: Shop) -> None:
    monitor = shop.monitor
    assert monitor.preview_retry(**shop.group) == 10
    assert monitor.preview_retry("Blog.greet") == 10
    assert monitor.preview_retry("Blog.other") == 0
    assert monitor.preview_retry("Blog.greet", fingerprint="0") == 0
    assert monitor.preview_retry("Blog.greet", since=shop.run.clock()) == 0


def test_canaries_go_first_and_the_others_follow_when_they_have_succeeded(shop: Shop) -> None:
    shop.broken.clear()
    job = shop.start(canary=3)
    assert (job.state, job.total, job.moved) == ("canary", 10, 0)
    GroupRetries(shop.run.store).round()
    waiting = shop.job(job)
    assert (waiting.state, waiting.moved, len(waiting.canaries)) == ("canary", 3, 3)
    assert waiting.progress == {"retrying": 3}
    assert shop.dead == 7
    shop.run.drain()
    assert len(shop.seen) == 3
    shop.steps(2)
    done = shop.job(job)
    assert (done.state, done.moved, done.note) == ("done", 10, "")
    assert done.progress == {"succeeded": 10}
    assert done.finished_at is not None
    assert sorted(shop.seen) == sorted(str(number) for number in range(10))


def test_without_canaries_all_go_at_once(shop: Shop) -> None:
    shop.broken.clear()
    job = shop.start(canary=0)
    shop.steps()
    assert shop.job(job).state == "done"
    assert shop.dead == 0


def test_it_stops_when_a_canary_dies_again(shop: Shop) -> None:
    job = shop.start(canary=2)
    shop.broken = {shop.send_canaries(job)[0]}
    shop.run.drain()
    shop.steps(3)
    stopped = shop.job(job)
    assert (stopped.state, stopped.moved) == ("stopped", 2)
    assert stopped.note == "1 of the first 2 died again"
    assert shop.dead == 9


def test_it_stops_when_too_many_die_again_later(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    monkeypatch.setattr(module, "MOST_OPEN", 2)
    job = shop.start(canary=1)
    shop.broken -= set(shop.send_canaries(job))
    shop.run.drain()
    shop.steps(6)
    stopped = shop.job(job)
    assert stopped.state == "stopped"
    assert stopped.note == "2 of 3 died again"
    assert (stopped.moved, shop.dead) == (3, 9)


def test_it_waits_while_too_many_are_open(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    monkeypatch.setattr(module, "MOST_OPEN", 4)
    job = shop.start(canary=0)
    for _ in range(3):
        GroupRetries(shop.run.store).round()
    assert shop.job(job).moved == 4
    assert shop.dead == 6


def test_letters_that_die_after_it_began_are_left_alone(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 5)
    monkeypatch.setattr(module, "MOST_OPEN", 5)
    job = shop.start(canary=0)
    shop.steps(3)
    done = shop.job(job)
    assert (done.state, done.moved) == ("done", 10)
    assert done.progress == {"dead": 10}
    assert {letter.generation for letter in shop.monitor.letters().items} == {1}


def test_it_is_cancelled_and_what_was_sent_back_goes_on(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)
    monkeypatch.setattr(module, "MOST_OPEN", 3)
    shop.broken.clear()
    job = shop.start(canary=0)
    shop.steps()
    shop.monitor.cancel(job.id, by="eve", reason="wrong group")
    shop.steps(3)
    cancelled = shop.job(job)
    assert (cancelled.state, cancelled.note, cancelled.moved) == ("cancelled", "by eve", 3)
    assert (len(shop.seen), shop.dead) == (3, 7)
    with pytest.raises(InvalidTransition, match="'cancelled'"):
        shop.monitor.cancel(job.id, by="eve")
    assert len(shop.monitor.audit_log(touched=job.id).items) == 2
    actions = [(entry.who, entry.action, entry.reason) for entry in shop.monitor.audit_log().items]
    assert ("eve", "cancel_job", "wrong group") in actions
    assert ("ada", "group_retry", "") in actions


def test_a_process_that_dies_between_two_steps_leaves_the_same_canaries_to_the_next(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.broken.clear()
    job = shop.start(canary=2)
    retry, calls = shop.run.store.deliveries.retry_dead, []

    def die_first(*arguments: Any, **options: Any) -> int:
        calls.append(1)
        if len(calls) == 1:
            raise StoreUnavailable("died")
        return retry(*arguments, **options)

    monkeypatch.setattr(shop.run.store.deliveries, "retry_dead", die_first)
    with pytest.raises(StoreUnavailable):
        GroupRetries(shop.run.store).round()
    chosen = shop.job(job).canaries
    assert len(chosen) == 2
    shop.steps()
    assert len(shop.seen) == 2
    assert shop.job(job).canaries == chosen
    shop.steps(3)
    assert shop.job(job).state == "done"
    assert len(shop.seen) == 10


def test_when_nothing_is_left_for_the_canaries_it_is_done(shop: Shop) -> None:
    job = shop.start(canary=2)
    for letter in shop.monitor.letters().items:
        shop.monitor.discard(letter.id, by="eve", reason="no")
    shop.steps()
    assert (shop.job(job).state, shop.job(job).note) == ("done", "nothing was left to send back")


def test_one_job_at_a_time_sends_back_letters_of_a_handler(shop: Shop) -> None:
    job = shop.start()
    with pytest.raises(InvalidTransition, match=f"job {job.id} already"):
        shop.start()
    shop.monitor.cancel(job.id, by="ada")
    shop.run.clock.advance(1)
    assert shop.start().id != job.id
    page = shop.monitor.jobs(limit=1)
    assert page.after is not None
    assert shop.monitor.jobs(after=page.after).items[0].id == job.id
    assert [each.id for each in shop.monitor.jobs(over=True).items] == [job.id]


def test_a_job_that_nobody_takes_up_is_seen_to_stall(shop: Shop) -> None:
    job = shop.start()
    assert not job.stalled(shop.run.clock())
    shop.run.clock.advance(STALLED + 1)
    assert shop.job(job).stalled(shop.run.clock())
    shop.monitor.cancel(job.id, by="ada")
    assert not shop.job(job).stalled(shop.run.clock())


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m: m.retry_group("Blog.other", by="ada"), NotFound, "nothing to send back"),
        (lambda m: m.retry_group("Blog.greet", by=""), InvalidOption, "by"),
        (lambda m: m.retry_group("Blog.greet", by="ada", canary=101), InvalidOption, "canary"),
        (lambda m: m.retry_group("Blog.greet", by="ada", canary=-1), InvalidOption, "canary"),
        (lambda m: m.retry_group("Blog.greet", by="ada", canary=True), InvalidOption, "canary"),
        (lambda m: m.retry_group({"$ne": 1}, by="ada"), InvalidOption, "handler"),
        (
            lambda m: m.retry_group("Blog.greet", fingerprint={"$ne": 1}, by="ada"),
            InvalidOption,
            "fingerprint",
        ),
        (lambda m: m.job("nothing"), NotFound, "no group retry"),
        (lambda m: m.job(7), InvalidOption, "job id"),
        (lambda m: m.cancel("nothing", by="ada"), NotFound, "no group retry"),
        (lambda m: m.jobs(limit=0), InvalidOption, "limit"),
        (lambda m: m.jobs(over="yes"), InvalidOption, "over"),
        (lambda m: m.jobs(after=7), InvalidOption, "after"),
    ],
)
def test_bad_input_is_refused_by_name(shop: Shop, call: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call(shop.monitor)
