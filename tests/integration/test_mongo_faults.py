"""The MongoDB store while its server is killed, frozen or away, and after a fork."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from eventdriven_sync.devserver.mongod import Mongod
from eventdriven_sync.devserver.process import ServerBinaryMissing
from eventdriven_sync.envelope import new_id
from eventdriven_sync.errors import PublishOutcomeUnknown, StoreError, StoreUnavailable
from eventdriven_sync.outcome import Done
from eventdriven_sync.stores.mongo import MongoStore
from tests.contracts.samples import Samples
from tests.polling import eventually

TIMEOUT = 15.0
SHORT = 1.0
GRACE = 1.0


@pytest.fixture(scope="module")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """A mongod of this module, to kill and freeze."""
    server = Mongod(tmp_path_factory.mktemp("mongod"))
    try:
        server.start()
    except ServerBinaryMissing as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    yield server
    server.kill()
    server.await_end(TIMEOUT)


@pytest.fixture
def store(mongod: Mongod) -> Iterator[MongoStore]:
    """A store whose calls without a timeout of their own take ``SHORT``; the server runs again afterwards."""
    store = MongoStore(mongod.url_for(f"test_{new_id()}"), timeout=SHORT)
    store.open(timeout=TIMEOUT)
    yield store
    if mongod.running:
        mongod.resume()
    mongod.start()
    eventually(lambda: _answers(store), timeout=TIMEOUT)
    store.close()


@pytest.fixture
def given(store: MongoStore) -> Samples:
    return Samples(store.directory.now())


def _answers(store: MongoStore) -> bool:
    try:
        store.directory.now()
    except StoreError:
        return False
    return True


def freeze(mongod: Mongod) -> None:
    """Stop the server without ending it; a thread of it may run for a moment after the signal."""
    assert mongod.process is not None
    state = Path(f"/proc/{mongod.process.pid}/stat")
    mongod.pause()
    eventually(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")


def calls(store: MongoStore, given: Samples) -> dict[str, Callable[[], Any]]:
    settlement = given.settlement(given.event(), Done(), emitted=(given.full_event(),))
    return {
        "append": lambda: store.events.append([given.event()], timeout=SHORT),
        "save_operation": lambda: store.events.save_operation(given.operation(), timeout=SHORT),
        "settle": lambda: store.deliveries.settle([settlement]),
        "claim": lambda: store.deliveries.claim_due(["A.b"], limit=1, lease=1, worker="w", token="t"),
        "states": lambda: store.deliveries.states(["A.b:1"]),
        "renew": lambda: store.deliveries.renew(["A.b:1"], token="t", lease=1),
        "begin": lambda: store.idempotency.begin("key", fingerprint="f", token="t", lease=1, keep=1),
        "heartbeat": lambda: store.directory.heartbeat(given.worker()),
        "transaction": lambda: store.run_transaction(
            lambda session: store.events.append([given.event()], timeout=SHORT, session=session),
            timeout=SHORT,
        ),
    }


def errors_in_time(every: dict[str, Callable[[], Any]]) -> dict[str, type[BaseException]]:
    """What each call raised; all at the same time, each within its deadline."""

    def run(name: str) -> tuple[type[BaseException], float]:
        began = time.monotonic()
        with pytest.raises(StoreError) as error:
            print(name, every[name]())
        assert error.value.__cause__ is not None
        return error.type, time.monotonic() - began

    with ThreadPoolExecutor(len(every)) as pool:
        found = dict(zip(every, pool.map(run, every), strict=True))
    late = {name: took for name, (_, took) in found.items() if took > SHORT + GRACE}
    assert not late
    return {name: kind for name, (kind, _) in found.items()}


def test_without_a_server_nothing_is_written_and_every_call_says_so_in_time(
    mongod: Mongod, store: MongoStore, given: Samples
) -> None:
    mongod.kill()
    mongod.await_end(TIMEOUT)
    eventually(lambda: not _answers(store))
    assert set(errors_in_time(calls(store, given)).values()) == {StoreUnavailable}


def test_with_a_frozen_server_every_call_ends_in_time_and_knows_what_it_does_not_know(
    mongod: Mongod, store: MongoStore, given: Samples
) -> None:
    patient = MongoStore(mongod.url_for("test_patient"), timeout=TIMEOUT)
    every = calls(store, given)
    every["patient"] = lambda: patient.events.append([given.event()], timeout=SHORT)
    with ThreadPoolExecutor(len(every)) as pool:  # so that each finds an open connection
        list(pool.map(lambda call: call(), every.values()))
    freeze(mongod)
    kinds = errors_in_time(every)
    assert set(kinds.values()) <= {StoreUnavailable, PublishOutcomeUnknown}
    reads = {name: kinds[name] for name in ("states", "claim")}
    assert set(reads.values()) == {StoreUnavailable}
    assert kinds["append"] is kinds["patient"] is PublishOutcomeUnknown
    patient.close()


def test_what_a_frozen_server_did_not_answer_can_be_published_again(
    mongod: Mongod, store: MongoStore, given: Samples
) -> None:
    event = given.event()
    store.directory.now()
    freeze(mongod)
    with pytest.raises(PublishOutcomeUnknown, match="again with the same ids is safe") as error:
        store.events.append([event], timeout=SHORT)
    assert error.value.event_ids == (event.id,)
    mongod.resume()
    assert store.events.append([event], timeout=TIMEOUT) in ([True], [False])
    assert store.events.get([event.id]) == {event.id: event}


def test_a_commit_without_answer_is_unknown_and_names_its_events(
    mongod: Mongod, store: MongoStore, given: Samples
) -> None:
    event = given.event()
    began = time.monotonic()

    def publish() -> None:
        with store.transaction(timeout=SHORT) as session:
            store.events.append([event], timeout=SHORT, session=session)
            freeze(mongod)

    with pytest.raises(PublishOutcomeUnknown, match="committing") as error:
        publish()
    assert time.monotonic() - began < SHORT + GRACE
    assert error.value.event_ids == (event.id,)


def test_the_users_own_error_ends_a_transaction_and_comes_out_unchanged(
    store: MongoStore, given: Samples
) -> None:
    event = given.event()

    def fail(session: Any) -> None:
        store.events.append([event], timeout=SHORT, session=session)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.run_transaction(fail, timeout=TIMEOUT)
    assert store.events.get([event.id]) == {}
    assert store.events.append([event], timeout=TIMEOUT) == [False]


def test_nothing_accepted_is_lost_when_the_server_is_killed_and_nobody_gets_an_error(
    mongod: Mongod, store: MongoStore, given: Samples
) -> None:
    accepted: list[str] = []
    recorded: list[str] = []
    stop = threading.Event()

    def publish() -> None:
        while not stop.is_set():
            event = given.event()
            store.events.append([event], timeout=TIMEOUT)
            accepted.append(event.id)

    def settle() -> None:
        while not stop.is_set():
            settlement = given.settlement(given.event(), Done(), token=new_id())
            try:
                assert store.deliveries.settle([settlement]) == [True]
            except StoreError:
                # Its time was over; the same again is safe.
                eventually(lambda s=settlement: _settled(store, s), timeout=TIMEOUT)
            recorded.append(settlement.delivery_id)

    with ThreadPoolExecutor(6) as pool:
        working = [pool.submit(work) for work in (publish, publish, publish, publish, settle, settle)]
        try:
            for _ in range(3):
                enough = len(accepted) + 100
                eventually(lambda enough=enough: len(accepted) >= enough, timeout=TIMEOUT)
                mongod.kill()
                mongod.await_end(TIMEOUT)
                mongod.start()
        finally:
            stop.set()
    for each in working:
        each.result()
    assert set(store.events.get(accepted)) == set(accepted)
    assert len(store.deliveries.states(recorded)) == len(recorded)


def _settled(store: MongoStore, settlement: Any) -> bool:
    try:
        return store.deliveries.settle([settlement]) == [True]
    except StoreError:
        return False


def test_a_forked_child_connects_anew_and_the_parent_goes_on(store: MongoStore, given: Samples) -> None:
    stop = threading.Event()
    mine = [given.event() for _ in range(20)]
    theirs = [given.event() for _ in range(20)]

    def publish() -> None:
        while not stop.is_set():
            store.events.append([given.event()], timeout=TIMEOUT)

    with ThreadPoolExecutor(4) as pool:
        # Forking while others write: the child must not wait for a writer that it does not have.
        busy = [pool.submit(publish) for _ in range(4)]
        children = [_child(lambda event=event: _append(store, event)) for event in theirs[:5]]
        for event in mine:
            assert store.events.append([event], timeout=TIMEOUT) == [False]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        stop.set()
    for each in busy:
        each.result()
    assert codes == [0] * 5
    expected = {event.id for event in (*mine, *theirs[:5])}
    assert set(store.events.get([event.id for event in (*mine, *theirs)])) == expected


def _append(store: MongoStore, event: Any) -> None:
    parked = store._link._connection
    store.events.append([event], timeout=TIMEOUT)
    assert parked is None
    assert store._link.now.pid == os.getpid()


def _child(body: Callable[[], None]) -> int:
    """Run in a forked child, which ends at once with 0 or 1."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        body()
        code = 0
    finally:
        os._exit(code)


def test_closing_while_others_wait_for_the_server_is_no_refusal_of_what_they_write(
    mongod: Mongod, given: Samples
) -> None:
    store = MongoStore(mongod.url_for(f"test_{new_id()}"), timeout=TIMEOUT)
    store.open(timeout=TIMEOUT)
    mongod.kill()
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.deliveries.settle, [given.settlement(given.event(), Done())])
        eventually(lambda: store._link.now._lanes, message="it has begun")
        store.close()
        with pytest.raises((StoreUnavailable, PublishOutcomeUnknown)):
            waiting.result(TIMEOUT)
    assert time.monotonic() - began < TIMEOUT / 2
    mongod.start()
