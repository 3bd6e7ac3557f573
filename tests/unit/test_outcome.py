import math
import pickle
import traceback
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, get_args

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventdriven_sync import Discard, Reject, Retry
from eventdriven_sync import outcome as module
from eventdriven_sync.errors import EventDrivenError, InvalidDelay
from eventdriven_sync.outcome import (
    FINAL_STATES,
    MAX_DELAY,
    MAX_MESSAGE,
    MAX_TRACEBACK,
    MOVES,
    Dead,
    DeadReason,
    DeliveryState,
    Discarded,
    Done,
    Failure,
    RetryAt,
    check_delay,
    stack_of,
    text_of,
)

FAILURE = Failure(
    error_type="OSError", message="x", traceback="", failed_at=datetime(2026, 1, 1, tzinfo=UTC), attempt=1
)


@pytest.mark.parametrize("after", [0, 0.5, 60, MAX_DELAY])
def test_a_delay_in_range_is_taken(after: float) -> None:
    assert Retry(after=after).after == after
    assert type(check_delay(after)) is float


@pytest.mark.parametrize("after", [-1, -1e-9, MAX_DELAY + 1, math.nan, math.inf, "60", None, True, 10**400])
def test_a_delay_out_of_range_is_refused_with_the_range(after: Any) -> None:
    with pytest.raises(
        InvalidDelay, match=r"after is .*: give seconds from 0 to 31,536,000 \(365 days\)"
    ) as caught:
        Retry("later", after=after)
    assert caught.value.limit == MAX_DELAY


@pytest.mark.parametrize("signal", [Retry("later", after=5), Reject("why"), Discard("why")])
def test_signals_are_no_errors_of_ours_and_survive_pickling(signal: Exception) -> None:
    assert not isinstance(signal, EventDrivenError)
    again = pickle.loads(pickle.dumps(signal))
    assert type(again) is type(signal)
    assert (again.args, vars(again)) == (signal.args, vars(signal))


@pytest.mark.parametrize("outcome", [Done(), RetryAt(after=1, failure=FAILURE), Discarded(reason="x")])
def test_an_outcome_is_an_immutable_value(outcome: Any) -> None:
    assert outcome == attrs.evolve(outcome)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        outcome.reason = "other"


def test_an_outcome_is_told_from_another() -> None:
    assert Dead(reason="rejected", failure=FAILURE) != Dead(reason="timeout", failure=FAILURE)


STATES = get_args(DeliveryState)


def test_every_state_has_its_moves_and_every_move_leads_to_a_state() -> None:
    assert set(MOVES) == {None, *STATES}
    assert set().union(*MOVES.values()) == set(STATES)
    assert len(get_args(DeadReason)) == 9


def test_what_succeeded_or_was_discarded_never_moves_again() -> None:
    assert MOVES["succeeded"] == frozenset()
    assert MOVES["discarded"] == {"retrying", "dead"}
    assert MOVES["dead"] == {"retrying", "discarded"}
    assert {"succeeded", "dead", "discarded"} == FINAL_STATES


@settings(deadline=None)
@given(path=st.lists(st.sampled_from(STATES), max_size=30))
def test_a_delivery_that_only_makes_allowed_moves_succeeds_at_most_once(path: list[str]) -> None:
    state: str | None = None
    visited = []
    for step in path:
        if step in MOVES[state]:
            visited.append(state := step)
    assert visited.count("succeeded") <= 1
    assert "succeeded" not in visited[:-1]
    # An attempt always begins by being "running", unless the live lane records it at once.
    for before, after in pairwise(visited):
        assert after != "succeeded" or before == "running"


# --- secrets in errors ------------------------------------------------------------------------------------

CANARY = "kX9-canary-7Qz"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    "said",
    [
        f"login with password={CANARY} failed",
        f"could not reach smtp://ada:{CANARY}@mail.example",
        f'the answer was {{"api_key": "{CANARY}"}}',
        f"Authorization: Bearer {TOKEN}",
    ],
)
def test_what_looks_like_a_secret_is_kept_neither_of_an_error_nor_of_its_cause(said: str) -> None:
    for error in (raised(ValueError(said)), raised(ValueError("no"), cause=raised(OSError(said)))):
        kept = text_of(error) + stack_of(error, below="nowhere")
        assert CANARY not in kept
        assert TOKEN not in kept
        assert "in raised" in kept


def test_a_secret_is_not_kept_because_a_text_is_cut_in_its_middle() -> None:
    said = "x" * (MAX_MESSAGE - 20) + f" smtp://ada:{CANARY}@mail.example"
    assert "kX9" not in text_of(ValueError(said))
    assert len(text_of(ValueError("y" * 10_000))) <= MAX_MESSAGE


def test_a_stack_without_secrets_is_kept_as_it_is() -> None:
    error = raised(ValueError("no ink\n  on line 2"), cause=raised(KeyError("color")))
    expected = "".join(traceback.format_exception(error))
    assert stack_of(error, below="nowhere") == expected
    assert stack_of(error, below="nowhere") == expected, "also the second time"
    assert len(stack_of(raised(ValueError("z" * 40_000)), below="nowhere").encode()) <= MAX_TRACEBACK


def fail(message: str, chained: bool = False) -> None:
    try:
        raise KeyError("inner")
    except KeyError as error:
        if chained:
            raise ValueError(message) from error
    raise ValueError(message)


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("messages", [("no", "no"), ("first\nline", "second"), ("a", "")])
def test_a_stack_reads_as_python_prints_it_however_often_it_was_made(
    messages: tuple[str, str], chained: bool
) -> None:
    for message in messages:
        with pytest.raises(ValueError) as caught:
            fail(message, chained)
        error = caught.value
        error.add_note(f"note of {message}")
        printed = "".join(traceback.format_exception(error))
        assert stack_of(error, below="nowhere") == printed


def test_few_stacks_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_known_frames", kept := {})
    for number in range(200):
        namespace: dict[str, Any] = {}
        exec(f"def fail():\n    raise ValueError({number})", namespace)
        with pytest.raises(ValueError) as caught:
            namespace["fail"]()
        assert f"ValueError: {number}" in stack_of(caught.value, below="nowhere")
    assert 0 < len(kept) <= module._FRAMES_MOST


def test_only_texts_without_a_secret_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_harmless", remembered := set[str]())
    monkeypatch.setattr(module, "_HARMLESS_MOST", 3)
    for said in ("the shop is closed", "password=Hunter2Secret99", "x y " * 200):
        failed = ValueError(said)
        module.text_of(failed)
        module.stack_of(failed, below="")
    assert "the shop is closed" in remembered
    assert not [text for text in remembered if "Hunter2" in text or len(text) > 500]
    for number in range(5):
        module.text_of(ValueError(f"number {number}"))
    assert len(remembered) <= 3
