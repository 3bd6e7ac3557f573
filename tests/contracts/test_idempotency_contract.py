"""What every ``IdempotencyStore`` promises, on the memory store and on MongoDB."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from eventdriven_sync.errors import PayloadNotSerializable, PayloadTooLarge
from eventdriven_sync.records import MAX_REPLY, IdempotencyRecord, Reply
from eventdriven_sync.store import IdempotencyStore
from tests.contracts.samples import Samples
from tests.contracts.stages import TIMEOUT, StoreStage

THREADS = 16
SHORT = 0.1
A_MOMENT_LATER = 0.11


class Requests:
    """Requests that share the key of this test."""

    def __init__(self, stage: StoreStage, given: Samples) -> None:
        self.store: IdempotencyStore = stage.store.idempotency
        self.key = f"key-{given.tag}"
        self.reply = given.reply()
        self.pass_time = stage.pass_time

    def begin(self, token: str, *, body: str = "body", lease: float = 60, keep: float = 600) -> str:
        """The state."""
        return self.found(token, body=body, lease=lease, keep=keep).state

    def found(
        self, token: str, *, body: str = "body", lease: float = 60, keep: float = 600
    ) -> IdempotencyRecord:
        return self.store.begin(self.key, fingerprint=body, token=token, lease=lease, keep=keep)

    def finish(self, token: str, *, reply: Reply | None = None, keep: float = 600) -> bool:
        return self.store.finish(self.key, token=token, reply=reply or self.reply, keep=keep)

    def abandon(self, token: str) -> None:
        self.store.abandon(self.key, token=token)


@pytest.fixture
def requests(stage: StoreStage, given: Samples) -> Requests:
    return Requests(stage, given)


# --- who runs it --------------------------------------------------------------------------------------


def test_the_first_request_runs(requests: Requests) -> None:
    assert requests.found("one") == IdempotencyRecord(
        key=requests.key, fingerprint="body", state="mine", token="one"
    )


@pytest.mark.parametrize("body", ["body", "other"])
def test_while_it_runs_everybody_else_is_told_so(requests: Requests, body: str) -> None:
    requests.begin("one")
    assert requests.found("two", body=body) == IdempotencyRecord(
        key=requests.key, fingerprint="body", state="running", token="one"
    )


def test_keys_know_nothing_of_each_other(requests: Requests) -> None:
    requests.begin("one")
    request: dict[str, Any] = {"fingerprint": "body", "token": "two", "lease": 60, "keep": 600}
    assert requests.store.begin(f"{requests.key}.", **request).state == "mine"


def test_of_many_requests_at_the_same_time_one_runs(requests: Requests) -> None:
    found = at_once(requests.found)
    [mine] = [each for each in found if each.state == "mine"]
    assert {each.token for each in found} == {mine.token}
    assert [each.state for each in found].count("running") == THREADS - 1


def test_claiming_again_with_the_same_token_is_safe_and_prolongs_the_lease(requests: Requests) -> None:
    requests.begin("one", lease=SHORT)
    assert requests.begin("one", lease=60) == "mine"
    requests.pass_time(A_MOMENT_LATER)
    assert requests.begin("two") == "running"


def test_the_same_token_does_not_bring_another_request_under_the_key(requests: Requests) -> None:
    requests.begin("one", lease=SHORT)
    found = requests.found("one", body="other")
    assert (found.state, found.fingerprint) == ("running", "body")


def test_text_that_looks_like_an_expression_is_taken_literally(requests: Requests) -> None:
    found = requests.found("$fingerprint", body="$token")
    assert (found.state, found.token, found.fingerprint) == ("mine", "$fingerprint", "$token")
    assert requests.begin("$token", body="$token") == "running"
    reply = Reply(status=200, headers=(("X", "$$NOW"),), body=b"$state", operation_id="$state")
    assert requests.finish("$fingerprint", reply=reply)
    assert requests.found("two", body="$token").reply == reply


# --- when its process dies ----------------------------------------------------------------------------


def test_when_the_lease_is_over_the_same_request_runs_again(requests: Requests) -> None:
    requests.begin("one", lease=SHORT)
    requests.pass_time(A_MOMENT_LATER)
    assert requests.found("two") == IdempotencyRecord(
        key=requests.key, fingerprint="body", state="mine", token="two"
    )
    assert requests.begin("one") == "running"


def test_when_the_lease_is_over_many_at_the_same_time_take_it_over_once(requests: Requests) -> None:
    requests.begin("one", lease=SHORT)
    requests.pass_time(A_MOMENT_LATER)
    assert sorted(each.state for each in at_once(requests.found)) == ["mine"] + ["running"] * (THREADS - 1)


@pytest.mark.parametrize("body", ["other", "$fingerprint"])
def test_when_the_lease_is_over_another_request_still_does_not_run(requests: Requests, body: str) -> None:
    requests.begin("one", lease=SHORT)
    requests.pass_time(A_MOMENT_LATER)
    found = requests.found("two", body=body)
    assert (found.state, found.fingerprint, found.token) == ("running", "body", "one")
    assert requests.begin("three") == "mine"


def test_who_comes_back_late_changes_nothing(requests: Requests, given: Samples) -> None:
    requests.begin("late", lease=SHORT)
    requests.pass_time(A_MOMENT_LATER)
    requests.begin("two")
    assert not requests.finish("late", reply=given.reply(status=500))
    requests.abandon("late")
    assert requests.begin("three") == "running"
    assert requests.finish("two")
    assert not requests.finish("late", reply=given.reply(status=500))
    assert requests.found("three").reply == requests.reply


def test_a_lease_that_nobody_took_over_does_not_matter(requests: Requests) -> None:
    requests.begin("one", lease=SHORT)
    requests.pass_time(A_MOMENT_LATER)
    assert requests.finish("one")
    assert requests.begin("two") == "answered"


# --- what it was answered -----------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["body", "other"])
@pytest.mark.parametrize("token", ["one", "two"])
def test_once_answered_everybody_gets_the_reply(requests: Requests, token: str, body: str) -> None:
    requests.begin("one")
    assert requests.finish("one")
    assert requests.found(token, body=body) == IdempotencyRecord(
        key=requests.key, fingerprint="body", state="answered", token="one", reply=requests.reply
    )


def test_a_reply_may_be_empty(requests: Requests) -> None:
    empty = Reply(status=204, headers=(), body=b"", operation_id=None)
    requests.begin("one")
    assert requests.finish("one", reply=empty)
    assert requests.found("two").reply == empty


def test_the_first_reply_stays(requests: Requests, given: Samples) -> None:
    requests.begin("one")
    assert requests.finish("one")
    assert requests.finish("one", reply=given.reply(status=500), keep=SHORT)
    requests.pass_time(A_MOMENT_LATER)
    assert requests.found("two").reply == requests.reply


def test_what_nobody_began_cannot_be_finished(requests: Requests) -> None:
    assert not requests.finish("one")
    assert requests.begin("two") == "mine"


def test_a_reply_of_eight_mebibytes_is_kept_and_a_byte_more_is_refused(
    requests: Requests, given: Samples
) -> None:
    requests.begin("one")
    headers = (("X", "ä"),)
    with pytest.raises(PayloadTooLarge, match=r"reply has 8,388,609 bytes .* limit 8,388,608") as error:
        requests.finish("one", reply=given.reply(headers=headers, body=b"x" * (MAX_REPLY - 2)))
    assert (error.value.size, error.value.limit) == (MAX_REPLY + 1, MAX_REPLY)
    assert requests.begin("two") == "running"
    largest = given.reply(headers=headers, body=b"x" * (MAX_REPLY - 3))
    assert requests.finish("one", reply=largest)
    assert requests.found("two").reply == largest


@pytest.mark.parametrize("header", [("X-Name", "a\ud800"), ("X-\udfff", "a")])
def test_a_header_that_is_no_text_is_refused_by_name(
    requests: Requests, given: Samples, header: tuple[str, str]
) -> None:
    requests.begin("one")
    with pytest.raises(PayloadNotSerializable, match=r"header 'X-.* of the reply is 'a"):
        requests.finish("one", reply=given.reply(headers=(header,)))
    assert requests.begin("two") == "running"


# --- giving it up, and time ---------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["body", "other"])
def test_what_was_abandoned_runs_again(requests: Requests, body: str) -> None:
    requests.begin("one")
    requests.abandon("two")
    assert requests.begin("two", body=body) == "running"
    for _ in range(2):
        requests.abandon("one")
    assert not requests.finish("one")
    assert requests.begin("two", body=body) == "mine"


def test_what_was_answered_cannot_be_abandoned(requests: Requests) -> None:
    requests.begin("one")
    requests.finish("one")
    requests.abandon("one")
    assert requests.begin("two") == "answered"


@pytest.mark.parametrize("body", ["body", "other"])
def test_a_reply_is_kept_for_its_time_and_then_absent(requests: Requests, body: str) -> None:
    requests.begin("one")
    requests.finish("one", keep=SHORT)
    requests.pass_time(A_MOMENT_LATER)
    assert requests.found("two", body=body) == IdempotencyRecord(
        key=requests.key, fingerprint=body, state="mine", token="two"
    )


def test_the_time_of_a_reply_counts_from_its_end(requests: Requests) -> None:
    requests.begin("one", lease=SHORT, keep=60)
    requests.finish("one", keep=600)
    requests.pass_time(A_MOMENT_LATER)
    assert requests.begin("two", body="other") == "answered"


def test_a_request_that_runs_longer_than_it_is_kept_is_absent(requests: Requests) -> None:
    requests.begin("one", lease=SHORT, keep=SHORT)
    requests.pass_time(A_MOMENT_LATER)
    assert not requests.finish("one")
    requests.abandon("one")
    assert requests.begin("two", body="other") == "mine"


def test_a_claim_is_never_kept_shorter_than_its_lease(requests: Requests) -> None:
    requests.begin("one", lease=60, keep=SHORT)
    requests.pass_time(A_MOMENT_LATER)
    assert requests.begin("two") == "running"
    assert requests.finish("one")


def at_once(begin: Callable[[str], IdempotencyRecord]) -> list[IdempotencyRecord]:
    """What as many threads find that begin at the same moment, each with a token of its own."""
    start = threading.Barrier(THREADS)

    def run(number: int) -> IdempotencyRecord:
        start.wait(TIMEOUT)
        return begin(f"token-{number}")

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))
