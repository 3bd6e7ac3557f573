import copy
import inspect
import pickle

import pytest

from eventdriven_sync import errors
from eventdriven_sync.errors import EventDrivenError, InvalidOption, OperationTimeout, shorten

BRANCHES = {
    errors.ConfigurationError,
    errors.CodecError,
    errors.BrokerError,
    errors.StoreError,
    errors.HandlerError,
}
ALL = [
    found
    for _, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, EventDrivenError) and found is not EventDrivenError
]


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_every_error_belongs_to_one_branch_and_says_what_it_means(kind: type[EventDrivenError]) -> None:
    assert len(BRANCHES & set(kind.__mro__)) == 1
    assert kind.__doc__


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling_and_copying_with_its_facts(kind: type[EventDrivenError]) -> None:
    error = kind("lease is 0: give more", field="lease", limit=(1, 2))
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert str(again) == "lease is 0: give more"
        assert (again.field, again.limit) == ("lease", (1, 2))


def test_a_fact_that_was_not_given_is_an_attribute_error() -> None:
    error = InvalidOption("x", field="lease")
    with pytest.raises(AttributeError, match="InvalidOption has no fact 'limit'"):
        _ = error.limit
    assert getattr(error, "limit", None) is None


def test_a_timeout_can_be_caught_as_pythons_own() -> None:
    with pytest.raises(TimeoutError):
        raise OperationTimeout("operation 1 is not settled", operation_id="1")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        ("a", "'a'"),
        ("a" * 78, repr("a" * 78)),
        ("a" * 79, "'" + "a" * 78 + "…"),
        (b"a" * 10_000_000, "b'" + "a" * 77 + "…"),
        ([1] * 100, repr([1] * 100)[:79] + "…"),
    ],
    ids=["None", "short", "just", "over", "huge", "list"],
)
def test_a_value_is_shown_in_at_most_80_characters(value: object, text: str) -> None:
    assert shorten(value) == text
    assert len(shorten(value)) <= 80


def test_a_value_that_cannot_be_shown_does_not_hide_the_error() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert shorten(Broken()) == "<Broken without repr>"
    assert shorten(10**5_000) == "<int without repr>"
