import logging
import math
import threading
from datetime import timedelta
from typing import Any

import pytest
import tenacity
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity import (
    RetryCallState,
    retry_any,
    retry_if_exception,
    retry_if_exception_cause_type,
    retry_if_exception_message,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    stop_after_delay,
    stop_all,
    stop_before_delay,
    stop_never,
    wait_chain,
    wait_combine,
    wait_exponential,
    wait_fixed,
    wait_incrementing,
    wait_none,
    wait_random,
    wait_random_exponential,
)

from eventdriven_sync import RetryPolicy
from eventdriven_sync.errors import InvalidOption
from eventdriven_sync.outcome import MAX_DELAY

ERROR = OSError("disk full")
FIXED = wait_fixed(5)


def decisions(policy: RetryPolicy, *moments: tuple[int, float], error: BaseException = ERROR) -> list[Any]:
    return [policy.decide(error, failures=failures, elapsed=elapsed) for failures, elapsed in moments]


def test_by_default_four_more_attempts_follow_at_growing_pauses() -> None:
    policy = RetryPolicy()
    pauses = decisions(policy, (1, 0), (2, 1), (3, 3), (4, 7))
    for pause, least in zip(pauses, (1, 2, 4, 8), strict=True):
        assert least <= pause <= least + 0.5
    assert policy.decide(ERROR, failures=5) == "attempts_exhausted"


STOPS: list[tuple[Any, list[Any]]] = [
    (stop_after_attempt(2), [5, "x", "x"]),
    (stop_after_delay(10), [5, 5, "x"]),
    (stop_after_delay(timedelta(seconds=10)), [5, 5, "x"]),
    # The pause of 5 seconds would end after the limit.
    (stop_before_delay(10), [5, "x", "x"]),
    (stop_after_attempt(3) | stop_after_delay(10), [5, 5, "x"]),
    (stop_after_attempt(2) | stop_after_delay(60), [5, "x", "x"]),
    (stop_after_attempt(2) & stop_after_delay(60), [5, 5, "x"]),
    (stop_all(stop_after_attempt(2), stop_after_delay(7)), [5, "x", "x"]),
    (stop_never, [5, 5, 5]),
    (lambda state: state.attempt_number >= 3, [5, 5, "x"]),
]


@pytest.mark.parametrize(("stop", "expected"), STOPS)
def test_stop_objects_see_the_failures_and_the_time_since_the_first_attempt(
    stop: Any, expected: list[Any]
) -> None:
    found = decisions(RetryPolicy(stop=stop, wait=FIXED), (1, 0), (2, 8), (3, 61))
    assert found == [5.0 if pause == 5 else "attempts_exhausted" for pause in expected]


WAITS: list[tuple[Any, list[tuple[float, float]]]] = [
    (wait_none(), [(0, 0)] * 3),
    (wait_fixed(3), [(3, 3)] * 3),
    (wait_fixed(timedelta(minutes=1)), [(60, 60)] * 3),
    (wait_random(1, 2), [(1, 2)] * 3),
    (wait_incrementing(start=1, increment=2), [(1, 1), (3, 3), (5, 5)]),
    (wait_exponential(multiplier=2, max=7), [(2, 2), (4, 4), (7, 7)]),
    (wait_random_exponential(max=2), [(0, 1), (0, 2), (0, 2)]),
    (wait_chain(wait_fixed(1), wait_fixed(9)), [(1, 1), (9, 9), (9, 9)]),
    (wait_fixed(1) + wait_fixed(2), [(3, 3)] * 3),
    (wait_combine(wait_fixed(1), wait_random(0, 1)), [(1, 2)] * 3),
    (lambda state: state.attempt_number * 10, [(10, 10), (20, 20), (30, 30)]),
    (lambda state: -5, [(0, 0)] * 3),
    (lambda state: math.inf, [(MAX_DELAY, MAX_DELAY)] * 3),
    (wait_fixed(10**12), [(MAX_DELAY, MAX_DELAY)] * 3),
]


@pytest.mark.parametrize(("wait", "ranges"), WAITS)
def test_wait_objects_give_the_pause_within_0_seconds_and_365_days(
    wait: Any, ranges: list[tuple[float, float]]
) -> None:
    found = decisions(RetryPolicy(wait=wait), (1, 0), (2, 1), (3, 2))
    for pause, (low, high) in zip(found, ranges, strict=True):
        assert low <= pause <= high


def caused() -> Exception:
    error = RuntimeError("outer")
    error.__cause__ = OSError("inner")
    return error


ERRORS: list[tuple[Any, Exception, bool]] = [
    (retry_if_exception_type(OSError), OSError(), True),
    (retry_if_exception_type(OSError), ConnectionResetError(), True),
    (retry_if_exception_type((OSError, KeyError)), ValueError(), False),
    (retry_if_not_exception_type(OSError), OSError(), False),
    (retry_if_exception(lambda error: "full" in str(error)), ERROR, True),
    (retry_if_exception_message(match="disk .*"), ERROR, True),
    (retry_if_exception_message(message="disk"), ERROR, False),
    (retry_if_exception_cause_type(OSError), caused(), True),
    (retry_if_exception_cause_type(ValueError), caused(), False),
    (retry_if_exception_type(OSError) & retry_if_exception_message(match="disk"), OSError("net"), False),
    (retry_if_exception_type(KeyError) | retry_if_exception_message(match="disk"), ERROR, True),
    (retry_any(tenacity.retry_never, tenacity.retry_always), ERROR, True),
    (tenacity.retry_if_result(lambda result: result is None), ERROR, False),
    (lambda state: state.attempt_number < 9, ERROR, True),
]


@pytest.mark.parametrize(("on", "error", "again"), ERRORS)
def test_retry_objects_choose_which_errors_deserve_another_attempt(
    on: Any, error: Exception, again: bool
) -> None:
    decision = RetryPolicy(on=on, wait=FIXED).decide(error, failures=1)
    assert decision == (5.0 if again else "not_retryable")


def test_an_error_that_is_not_retryable_is_dead_for_that_reason_even_at_the_last_attempt() -> None:
    policy = RetryPolicy(on=retry_if_exception_type(KeyError), stop=stop_after_attempt(1))
    assert policy.decide(ERROR, failures=1) == "not_retryable"


def test_every_decision_gets_a_fresh_state() -> None:
    seen: list[RetryCallState] = []

    def stop(state: RetryCallState) -> bool:
        seen.append(state)
        return False

    policy = RetryPolicy(stop=stop, wait=FIXED)
    first, second = decisions(policy, (1, 0)), decisions(policy, (7, 100), error=KeyError("k"))
    assert first == second == [5.0]
    assert seen[0] is not seen[1]
    assert [state.attempt_number for state in seen] == [1, 7]
    assert [type(state.outcome.exception()) for state in seen if state.outcome] == [OSError, KeyError]
    assert [state.upcoming_sleep for state in seen] == [5.0, 5.0]
    assert seen[1].seconds_since_start == pytest.approx(100, abs=1)


def test_one_policy_decides_for_many_threads_at_once() -> None:
    policy = RetryPolicy(
        stop=stop_after_attempt(500), wait=wait_incrementing(start=0, increment=1, max=10**6)
    )
    wrong: list[int] = []

    def ask(start: int) -> None:
        for failures in range(start, 400, 4):
            if policy.decide(ERROR, failures=failures) != failures - 1:
                wrong.append(failures)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert wrong == []


def test_deciding_does_not_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(seconds: float) -> None:
        raise AssertionError(f"slept {seconds}")

    monkeypatch.setattr("time.sleep", fail)
    assert RetryPolicy(wait=wait_fixed(3600)).decide(ERROR, failures=1) == 3600


BROKEN: list[dict[str, Any]] = [
    {"wait": lambda state: math.nan},
    {"wait": lambda state: None},
    {"wait": lambda state: "soon"},
    {"stop": lambda state: 1 / 0},
    {"on": retry_if_exception(lambda error: error.no_such_attribute)},  # type: ignore[attr-defined]
]


@pytest.mark.parametrize("broken", BROKEN, ids=["nan", "None", "text", "stop raises", "on raises"])
def test_a_policy_that_fails_itself_is_logged_and_replaced_by_the_default(
    broken: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    policy = RetryPolicy(**broken)
    with caplog.at_level(logging.ERROR):
        assert 1 <= policy.decide(ERROR, failures=1) <= 1.5
        assert policy.decide(ERROR, failures=5) == "attempts_exhausted"
    assert [record.action for record in caplog.records] == ["retry_policy_failed"] * 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("field", ["stop", "wait", "on"])
@pytest.mark.parametrize("value", [5, None, "stop_after_attempt(5)"])
def test_an_argument_that_cannot_be_asked_is_refused(field: str, value: Any) -> None:
    with pytest.raises(
        InvalidOption, match=rf"RetryPolicy {field} is .*give an object of tenacity"
    ) as caught:
        RetryPolicy(**{field: value})
    assert caught.value.field == field


DESCRIBED: list[tuple[RetryPolicy, str]] = [
    (RetryPolicy(), "5 attempts, wait_exponential_jitter"),
    (RetryPolicy(stop=stop_never, wait=FIXED), "stop_never, wait_fixed"),
    (
        RetryPolicy(stop=stop_after_attempt(3) | stop_after_delay(9), wait=FIXED),
        "3 attempts or stop_after_delay, wait_fixed",
    ),
    (
        RetryPolicy(stop=stop_after_attempt(3) & stop_after_delay(9), wait=FIXED),
        "3 attempts and stop_after_delay, wait_fixed",
    ),
    (RetryPolicy(stop=decisions, wait=FIXED), "decisions, wait_fixed"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("policy", "words"), DESCRIBED, ids=[row[1] for row in DESCRIBED])
def test_a_policy_describes_itself(policy: RetryPolicy, words: str) -> None:
    assert policy.describe() == words


@settings(deadline=None)
@given(failures=st.integers(1, 10_000), elapsed=st.floats(-1e9, 1e9))
def test_a_decision_is_a_pause_in_range_or_a_reason(failures: int, elapsed: float) -> None:
    policies = [RetryPolicy(), RetryPolicy(stop=stop_never), RetryPolicy(stop=stop_after_delay(100))]
    for policy in policies:
        decision = policy.decide(ERROR, failures=failures, elapsed=elapsed)
        assert decision == "attempts_exhausted" or 0 <= decision <= MAX_DELAY
