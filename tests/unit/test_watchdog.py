from collections.abc import Callable, Iterator
from typing import Any

import pytest

from eventdriven_sync.watchdog import Watchdog
from tests.polling import eventually


class Looks:
    """What a watchdog found at its looks: how often it was to look again, and what happened meanwhile."""

    def __init__(self) -> None:
        self.count = 0
        self.again = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self) -> bool:
        self.count += 1
        self.meanwhile()
        self.again -= 1
        return self.again >= 0


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def watchdog(looks: Looks) -> Iterator[Watchdog]:
    watchdog = Watchdog(looks)
    watchdog.start()
    yield watchdog
    watchdog.stop()
    assert not watchdog.alive


def asleep(watchdog: Watchdog) -> Any:
    return lambda: not watchdog._work.is_set()


def test_it_looks_until_nothing_is_left_to_look_after_and_sleeps(watchdog: Watchdog, looks: Looks) -> None:
    assert asleep(watchdog)()
    looks.again = 3
    watchdog.wake()
    eventually(lambda: looks.count == 4)
    eventually(asleep(watchdog))
    watchdog.wake()
    eventually(lambda: looks.count == 5)


def test_who_wakes_it_while_it_looks_is_not_overlooked(watchdog: Watchdog, looks: Looks) -> None:
    looks.meanwhile = lambda: watchdog.wake() if looks.count == 1 else None
    watchdog.wake()
    eventually(lambda: looks.count == 2)
    eventually(asleep(watchdog))


def test_an_error_does_not_put_it_to_sleep(watchdog: Watchdog, looks: Looks) -> None:
    def fail_once() -> None:
        if looks.count == 1:
            raise RuntimeError("a bug of ours")

    looks.meanwhile = fail_once
    watchdog.wake()
    eventually(lambda: looks.count == 2)
    assert watchdog.alive


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
