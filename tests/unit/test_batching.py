"""Collecting batches, and the object a batch handler gets."""

import pytest

from eventdriven_sync.batching import Batch, Collector
from eventdriven_sync.errors import InvalidOption
from eventdriven_sync.handlers import BatchOptions


class Seconds:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def collector(clock: Seconds, *, max_size: int = 3, max_wait: float = 1.0) -> Collector[int]:
    return Collector(BatchOptions(max_size=max_size, max_wait=max_wait, group_by=None), clock=clock)


def test_a_bucket_is_handed_out_when_it_is_full() -> None:
    collect = collector(Seconds())
    assert [collect.add("a", 1), collect.add("b", 2), collect.add("a", 3), collect.add("a", 4)] == [
        None,
        None,
        None,
        [1, 3, 4],
    ]
    assert collect.drain() == [2]


def test_a_bucket_is_due_when_its_first_item_has_waited() -> None:
    clock = Seconds()
    collect = collector(clock)
    collect.add("a", 1)
    clock.now = 0.6
    collect.add("a", 2)
    collect.add("b", 3)
    assert collect.due() == []
    clock.now = 1.0
    assert collect.due() == [[1, 2]]
    clock.now = 1.6
    assert collect.due() == [[3]]
    assert collect.due() == []


def test_a_key_begins_anew_after_its_batch() -> None:
    clock = Seconds()
    collect = collector(clock, max_size=1)
    assert collect.add("a", 1) == [1]
    clock.now = 5.0
    assert collect.due() == []


def test_draining_hands_out_everything_once() -> None:
    collect = collector(Seconds())
    collect.add("a", 1)
    collect.add("b", 2)
    assert (collect.drain(), collect.drain()) == ([1, 2], [])


def test_a_batch_knows_its_events_by_identity() -> None:
    first, twin = [1], [1]
    batch = Batch("key", [first])
    batch.fail(first, ValueError("no"))
    assert (len(batch), batch.key, len(batch.failed)) == (1, "key", 1)
    with pytest.raises(InvalidOption, match=r"not one of batch\.events"):
        batch.fail(twin, ValueError("no"))


@pytest.mark.parametrize("error", ["text", None, ValueError])
def test_an_item_fails_with_an_exception_only(error: object) -> None:
    event = object()
    with pytest.raises(InvalidOption) as caught:
        Batch(None, [event]).fail(event, error)  # type: ignore[arg-type]
    assert caught.value.field == "error"
