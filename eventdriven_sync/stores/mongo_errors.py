"""What the driver's errors mean: not written, unknown, refused, or wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pymongo
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    ExecutionTimeout,
    InvalidOperation,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
)
from pymongo.errors import ConfigurationError as DriverConfigurationError

from eventdriven_sync.errors import (
    ConfigurationError,
    EventDrivenError,
    PublishOutcomeUnknown,
    QueryTooSlow,
    StoreError,
    StorePermissionDenied,
    StoreUnavailable,
)

# Unauthorized, AuthenticationFailed, and what Atlas says instead.
_DENIED = {13, 18, 8000}
_OUT_OF_DISK = 14031
DUPLICATE_KEY = 11000
MAX_QUESTION = 2.0


class Unanswered(Exception):
    """The time is over and the call was not answered.

    Args:
        sent: False when nothing can have been written.
        cause: what the driver said last, if it said anything.
    """

    def __init__(self, *, sent: bool, cause: BaseException | None = None) -> None:
        super().__init__("sent, not answered" if sent else "not sent")
        self.sent = sent
        self.cause = cause


@contextmanager
def bounded(question: str, *, seconds: float = MAX_QUESTION) -> Iterator[None]:
    """What a person asks for gets little time, at the server too; QueryTooSlow when it is over."""
    try:
        with pymongo.timeout(seconds):
            yield
    except (ExecutionTimeout, NetworkTimeout) as error:
        raise QueryTooSlow(
            f"looking for {question} took longer than {seconds:g} s and was ended: ask for a shorter time "
            "span, or for less",
            limit=seconds,
        ) from error


def after_close(error: PyMongoError) -> bool:
    """Whether our own client was closed, by another thread: no server has refused anything."""
    return isinstance(error, InvalidOperation) and "after close" in str(error)


def translated(
    error: Exception, action: str, *, timeout: float, event_ids: Sequence[str] = ()
) -> EventDrivenError:
    """What the driver's error means to a user of the library."""
    if isinstance(error, Unanswered):
        return _unanswered(error, action, timeout, event_ids)
    code = error_code(error)
    if code in _DENIED:
        return StorePermissionDenied(
            f"MongoDB refused the user of this connection ({action}): {text_of(error)}; give the user "
            "readWrite on the database of the URL",
            action=action,
            code=code,
        )
    if code == _OUT_OF_DISK:
        return StoreUnavailable(f"MongoDB has no disk space left, nothing was written ({action})")
    if isinstance(error, DriverConfigurationError):
        return ConfigurationError(f"MongoDB cannot be used: {text_of(error)}")
    if isinstance(error, PyMongoError) and error.has_error_label("TransientTransactionError"):
        return StoreUnavailable(
            f"the transaction was ended, nothing was written ({action}): {text_of(error)}"
        )
    return StoreError(f"MongoDB answered with an error ({action}): {text_of(error)}", code=code)


def _unanswered(error: Unanswered, action: str, timeout: float, event_ids: Sequence[str]) -> StoreError:
    said = f": {text_of(error.cause)}" if error.cause else ""
    if not error.sent:
        return StoreUnavailable(
            f"MongoDB could not be reached within {timeout:g} s, nothing was written ({action}){said}",
            timeout=timeout,
            event_ids=tuple(event_ids),
        )
    return PublishOutcomeUnknown(
        f"MongoDB did not answer within {timeout:g} s, it may or may not be stored ({action}); doing it "
        f"again with the same ids is safe{said}",
        timeout=timeout,
        event_ids=tuple(event_ids),
    )


def passing(error: PyMongoError) -> bool:
    """Whether it may pass by itself: no server, no answer, a changed primary, a write not yet replicated."""
    if isinstance(error, ConnectionFailure | WriteConcernError) or error.timeout:
        return True
    if isinstance(error, BulkWriteError):
        details = error.details or {}
        return bool(details.get("writeConcernErrors"))
    labels = ("RetryableWriteError", "UnknownTransactionCommitResult")
    return any(error.has_error_label(label) for label in labels)


def error_code(error: BaseException) -> int | None:
    """The server's error code, of the first failed write if there are several."""
    if isinstance(error, BulkWriteError):
        errors = (error.details or {}).get("writeErrors") or [{}]
        code: int | None = errors[0].get("code")
        return code
    return error.code if isinstance(error, OperationFailure) else None


def text_of(error: BaseException | None) -> str:
    """The driver's words, shortened: it repeats the whole topology, and documents in some errors."""
    text = str(error)
    for repetition in (", full error:", ", Timeout:", " (configured timeouts:"):
        text = text.partition(repetition)[0]
    return f"{type(error).__name__}: {text[:200]}"
