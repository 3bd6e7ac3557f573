import gc
import weakref
from collections.abc import Iterator

import pytest

from eventdriven_sync.heap import FIRST, calm_collector


@pytest.fixture(autouse=True)
def as_python_starts() -> Iterator[None]:
    before, enabled = gc.get_threshold(), gc.isenabled()
    gc.set_threshold(700, 10, 10)
    gc.enable()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)
    (gc.enable if enabled else gc.disable)()


def test_the_collector_looks_less_often_and_not_at_what_was_there() -> None:
    with calm_collector():
        assert gc.get_threshold() == (FIRST, 10, 10)
        assert gc.get_freeze_count() > 0
    assert gc.get_threshold() == (700, 10, 10)
    assert gc.get_freeze_count() == 0


def test_afterwards_all_is_as_before_although_the_block_failed() -> None:
    with pytest.raises(ValueError, match="no"), calm_collector():
        raise ValueError("no")
    assert (gc.get_threshold(), gc.get_freeze_count()) == ((700, 10, 10), 0)


def test_a_cycle_is_still_found() -> None:
    class Node:
        pass

    with calm_collector():
        node = Node()
        node.itself = node  # type: ignore[attr-defined]
        gone = weakref.ref(node)
        del node
        made = [[number] for number in range(FIRST + 1)]
        assert gone() is None
        assert len(made) > FIRST


@pytest.mark.parametrize("chosen", [(0, 10, 10), (50_000, 20, 5)])
def test_a_threshold_that_the_application_chose_stays(chosen: tuple[int, int, int]) -> None:
    gc.set_threshold(*chosen)
    with calm_collector():
        assert gc.get_threshold() == chosen
    assert gc.get_threshold() == chosen


def test_a_collector_that_was_turned_off_stays_off_and_freezes_nothing() -> None:
    gc.disable()
    with calm_collector():
        assert (gc.isenabled(), gc.get_freeze_count()) == (False, 0)
    assert not gc.isenabled()


def test_what_the_application_froze_stays_frozen() -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    with calm_collector():
        assert gc.get_freeze_count() <= frozen
    assert 0 < gc.get_freeze_count() <= frozen
