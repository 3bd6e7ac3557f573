"""Which of the driver's errors may pass by themselves, and what the others mean to a user."""

import pytest
from pymongo.errors import (
    AutoReconnect,
    BulkWriteError,
    DuplicateKeyError,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WriteConcernError,
)

from eventdriven_sync.errors import (
    EventDrivenError,
    PublishOutcomeUnknown,
    StoreError,
    StorePermissionDenied,
    StoreUnavailable,
)
from eventdriven_sync.stores.mongo_errors import Unanswered, passing, text_of, translated

LABELLED = OperationFailure("stepped down", 189, {"errorLabels": ["RetryableWriteError"]})
NOT_REPLICATED = BulkWriteError({"writeErrors": [], "writeConcernErrors": [{"code": 91}]})
DUPLICATE = BulkWriteError({"writeErrors": [{"code": 11000}], "writeConcernErrors": []})
FULL_DISK = BulkWriteError({"writeErrors": [{"code": 14031}], "writeConcernErrors": []})
CONFLICT = OperationFailure("conflict", 112, {"errorLabels": ["TransientTransactionError"]})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AutoReconnect("connection closed"), True),
        (ServerSelectionTimeoutError("no primary"), True),
        (ExecutionTimeout("operation exceeded time limit", 50), True),
        (WriteConcernError("waiting for replication timed out", 64), True),
        (NOT_REPLICATED, True),
        (LABELLED, True),
        (DUPLICATE, False),
        (DuplicateKeyError("E11000", 11000), False),
        (OperationFailure("not authorized", 13), False),
        (CONFLICT, False),
    ],
)
def test_an_error_that_may_pass_is_tried_again(error: PyMongoError, expected: bool) -> None:
    assert passing(error) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Unanswered(sent=False), StoreUnavailable),
        (Unanswered(sent=True, cause=AutoReconnect("gone")), PublishOutcomeUnknown),
        (OperationFailure("not authorized on blog", 13), StorePermissionDenied),
        (OperationFailure("Authentication failed.", 18), StorePermissionDenied),
        (FULL_DISK, StoreUnavailable),
        (CONFLICT, StoreUnavailable),
        (OperationFailure("hint provided does not correspond to an existing index", 2), StoreError),
    ],
)
def test_an_error_says_whether_anything_was_written(error: Exception, expected: type) -> None:
    told = translated(error, "while storing events", timeout=15, event_ids=("e1",))
    assert type(told) is expected
    assert isinstance(told, EventDrivenError)
    assert "while storing events" in str(told)


def test_an_unknown_outcome_names_the_events_and_the_cure() -> None:
    told = translated(Unanswered(sent=True), "while storing events", timeout=1.5, event_ids=("e1", "e2"))
    assert told.event_ids == ("e1", "e2")
    assert "within 1.5 s" in str(told)
    assert "again with the same ids is safe" in str(told)


def test_no_document_gets_into_a_message() -> None:
    error = OperationFailure("validation failed", 121, {"errInfo": {"details": {"secret": "payload"}}})
    assert "payload" in str(error)
    assert text_of(error) == "OperationFailure: validation failed"
    refused = "shop:27017: [Errno 111] Connection refused"
    unreachable = ServerSelectionTimeoutError(f"{refused} (configured timeouts: connectTimeoutMS: 5000.0ms)")
    assert text_of(unreachable) == f"ServerSelectionTimeoutError: {refused}"
