from collections.abc import Callable, Iterator

import pytest

from eventdriven_sync import watchdog as module
from eventdriven_sync.watchdog import Watchdog
from tests.polling import eventually


class Looks:
    """A watchdog's looks: how often there is something to look after, and what happens during a look."""

    def __init__(self) -> None:
        self.count = 0
        self.found = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self) -> bool:
        self.count += 1
        self.meanwhile()
        self.found -= 1
        return self.found >= 0


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def watchdog(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watchdog]:
    monkeypatch.setattr(module, "TICK", 0.01)
    monkeypatch.setattr(module, "LINGERS", 3)
    watchdog = Watchdog(looks)
    watchdog.start()
    yield watchdog
    watchdog.stop()
    assert not watchdog.alive


def sleeps_after(count: int, watchdog: Watchdog, looks: Looks) -> None:
    """It has looked so often, and only a wake-up makes it look again."""
    eventually(lambda: looks.count >= count)
    eventually(lambda: waits(watchdog))
    assert looks.count == count


def waits(watchdog: Watchdog) -> bool:
    """Whether its thread waits for work, and not for the next look."""
    return len(watchdog._work._cond._waiters) == 1  # type: ignore[attr-defined]


def test_it_looks_until_nothing_was_there_for_a_while_and_sleeps(watchdog: Watchdog, looks: Looks) -> None:
    eventually(lambda: waits(watchdog))
    assert looks.count == 0
    looks.found = 4
    watchdog.wake()
    sleeps_after(4 + 3, watchdog, looks)
    watchdog.wake()
    sleeps_after(7 + 1 + 3, watchdog, looks)


def test_who_wakes_it_while_it_looks_for_the_last_time_is_not_overlooked(
    watchdog: Watchdog, looks: Looks
) -> None:
    looks.meanwhile = lambda: watchdog.wake() if looks.count == 1 + 3 else None
    watchdog.wake()
    sleeps_after(1 + 3 + 1 + 3, watchdog, looks)


def test_who_wakes_it_before_it_sleeps_keeps_it_awake(watchdog: Watchdog, looks: Looks) -> None:
    looks.meanwhile = lambda: watchdog.wake() if looks.count == 2 else None
    watchdog.wake()
    sleeps_after(3 + 3, watchdog, looks)


def test_an_error_does_not_put_it_to_sleep(watchdog: Watchdog, looks: Looks) -> None:
    def fail_once() -> None:
        if looks.count == 1 + 3:
            raise RuntimeError("a bug of ours")

    looks.meanwhile = fail_once
    watchdog.wake()
    sleeps_after(1 + 3 + 3, watchdog, looks)


def test_it_ends_although_it_was_stopped_while_it_looked(looks: Looks) -> None:
    watchdog = Watchdog(looks)
    looks.meanwhile = watchdog._stopped.set
    watchdog.start()
    watchdog.wake()
    eventually(lambda: not watchdog.alive)
    assert looks.count == 1


def test_one_that_never_started_can_be_stopped(looks: Looks) -> None:
    Watchdog(looks).stop()
    assert looks.count == 0
